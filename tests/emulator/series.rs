//! Series of launches over several sets of weights and routings, as `stream` and `hot` time them, on a
//! launcher that keeps what is launched and launches it again.

use moe_frontier::config::DType;
use moe_frontier::gpu::{DeviceFacts, Launch, Launcher, Recording, Region};
use moe_frontier::kernels::gpu::{GpuBackend, MoeOptions};
use moe_frontier::kernels::{LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage, Turn};
use moe_frontier::measure::data::{self, Inputs};
use moe_frontier::{Error, Result};

use crate::board::Board;
use crate::suite::{DEVICE, Outcome, Run};

/// A board that records as graphs do: what is captured does not run until it is replayed.
struct Replaying {
    board: Board,
    tapes: Vec<Vec<Launch>>,
    capturing: Option<Vec<Launch>>,
    /// Launches that ran, and recordings that empty the caches.
    ran: usize,
    flushed: usize,
}

impl Replaying {
    fn replay(&mut self, recording: Recording) -> Result<()> {
        let tape = self.tapes.get(recording.0).cloned();
        let tape = tape.ok_or_else(|| Error::usage("recording", "is not there"))?;
        tape.iter().try_for_each(|launch| self.enqueue(launch))
    }
}

impl Launcher for Replaying {
    fn facts(&self) -> &DeviceFacts {
        self.board.facts()
    }
    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        self.board.allocate(bytes)
    }
    fn free(&mut self, region: Region) -> Result<()> {
        self.board.free(region)
    }
    fn upload(&mut self, to: Region, bytes: &[u8]) -> Result<()> {
        self.board.upload(to, bytes)
    }
    fn download(&mut self, from: Region, bytes: &mut [u8]) -> Result<()> {
        self.board.download(from, bytes)
    }
    fn fill(&mut self, region: Region, byte: u8) -> Result<()> {
        self.board.fill(region, byte)
    }
    fn enqueue(&mut self, launch: &Launch) -> Result<()> {
        if let Some(tape) = &mut self.capturing {
            tape.push(launch.clone());
            return Ok(());
        }
        self.ran += 1;
        self.board.enqueue(launch)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.board.synchronize()
    }
    fn record(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Launcher) -> Result<()>,
    ) -> Result<Option<Recording>> {
        self.capturing = Some(Vec::new());
        let done = work(self);
        let tape = self.capturing.take();
        done?;
        self.tapes.extend(tape);
        Ok(Some(Recording(self.tapes.len() - 1)))
    }
    fn time(&mut self, recording: Recording, before: Option<Recording>) -> Result<f64> {
        if let Some(before) = before {
            let names = self.tapes.get(before.0).map(|t| t.iter().map(|l| l.kernel).collect());
            let cools: Vec<&str> = names.unwrap_or_default();
            self.flushed += usize::from(cools == ["probe_flush", "probe_read_stream"]);
        }
        self.replay(before.unwrap_or(recording))?;
        self.replay(recording)?;
        self.synchronize()?;
        Ok(1.0)
    }
}

const SHAPE: MoeShape = MoeShape { experts: 4, top_k: 2, hidden: 64, inter: 64, gated: true };
const TOKENS: usize = 3;

pub(crate) fn check(run: &Run) -> Outcome {
    let facts = DeviceFacts { l2_bytes: 1 << 12, ..DEVICE };
    let board = run.board_of(facts);
    let launcher = Replaying { board, tapes: Vec::new(), capturing: None, ran: 0, flushed: 0 };
    on(launcher).map_err(|e| format!("{}: {e}", run.label()))
}

fn on(launcher: Replaying) -> Outcome {
    let told = |e: Error| e.to_string();
    let backend =
        GpuBackend::new(launcher, "a board".into(), MoeOptions::default()).map_err(told)?;
    let sets: Result<Vec<_>> = (1..=2).map(|s| data::weights(SHAPE, DType::Bf16, s)).collect();
    let sets = sets.map_err(told)?;
    let inputs =
        Inputs::draw(&SHAPE, TOKENS, &"uniform".parse().map_err(told)?, 7).map_err(told)?;
    let mut layer = backend.load(&sets, &RouterSpec::softmax(), TOKENS).map_err(told)?;
    let turns = [(0, 0), (1, 1), (0, 2), (1, 0)].map(|(set, routing)| Turn { set, routing });
    let mut alone = Vec::new();
    for turn in turns {
        alone.push(of_turn(layer.as_mut(), &inputs, turn).map_err(told)?);
    }
    for (i, output) in alone.iter().enumerate() {
        if alone[..i].contains(output) {
            return Err("two turns have the same output: nothing could be told apart".into());
        }
    }
    let routings: Vec<&[f32]> = inputs.draws[..3].iter().map(|draw| &*draw.logits).collect();
    layer.set_routings(&inputs.x, &routings).map_err(told)?;
    for last in 0..turns.len() {
        let series: Vec<Turn> = turns.iter().copied().cycle().skip(last + 1).take(5).collect();
        layer.poison().map_err(told)?;
        let before = backend.launcher().ran;
        layer.time_series(Stage::Layer, &series).map_err(told)?.ok_or("nothing was recorded")?;
        let ran = backend.launcher().ran - before;
        // The first replay, which is not timed, leaves the caches as the second finds them.
        let once = backend.launcher().tapes.last().map_or(0, Vec::len);
        if once == 0 || ran != 2 * once {
            return Err(format!("{ran} launches in two replays of {once}"));
        }
        let expected = &alone[(last + 5) % turns.len()];
        if layer.output().map_err(told)? != *expected {
            return Err(format!("a series that ends with {:?} differs", series[4]));
        }
    }
    if backend.launcher().flushed != 0 {
        return Err("a series flushed the cache".into());
    }
    layer.time(Stage::Layer, &[0, 1]).map_err(told)?.ok_or("nothing was recorded")?;
    if backend.launcher().flushed != 2 {
        return Err("each cold launch flushes once".into());
    }
    // Cold samples choose among the routings that are there.
    for (turn, expected) in turns.iter().zip(&alone).rev() {
        layer.choose_routing(turn.routing).map_err(told)?;
        layer.poison().map_err(told)?;
        layer.time(Stage::Layer, &[turn.set]).map_err(told)?.ok_or("nothing was recorded")?;
        if layer.output().map_err(told)? != *expected {
            return Err(format!("a cold launch of {turn:?} differs"));
        }
    }
    if layer.choose_routing(3).is_ok() {
        return Err("a routing that is not there was chosen".into());
    }
    let unknown = [Turn { set: 0, routing: 3 }];
    match layer.time_series(Stage::Layer, &unknown) {
        Err(error) if error.exit_code() == 2 => Ok(()),
        other => Err(format!("a routing that is not there: {other:?}")),
    }
}

fn of_turn(layer: &mut dyn LoadedLayer, inputs: &Inputs, turn: Turn) -> Result<Vec<f32>> {
    layer.set_input(&inputs.x, &inputs.draws[turn.routing].logits)?;
    layer.run(Stage::Layer, turn.set)?;
    layer.output()
}
