//! One cell where its kernels run: its inputs, its launches, and the blocks that are taken of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check;
use super::data::Inputs;
use super::plan::CellSpec;
use super::preflight::Load;
use super::sampling::{BlockRule, BlockSamples, take_block, warm_up};
use super::target::Target;
use super::timing::{Clock, Launch, host_time};
use crate::gpu::Condition;
use crate::kernels::{Arithmetic, LayerWeights, LoadedLayer, Stage, Turn};
use crate::record::{Block, CheckOutcome, CheckRecord, TimingMode};
use crate::{Error, Result};

/// Busy time of the launches before a cell's first block: clocks rise and pages are touched.
const WARM_UP_NS: u64 = 5_000_000;

/// Pauses after a block during which the device was slowed down, before the next attempt.
pub(super) const COOLING: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20), Duration::ZERO];

/// Most launches of one recorded cycle through weights and routings: recording takes some microseconds
/// for each of a launch's kernels.
const MOST_IN_CYCLE: usize = 1024;

/// What all cells share where they are launched.
pub(super) struct Bed<'a> {
    /// Where the backend rounds with such weights.
    pub(super) arithmetic: Arithmetic,
    pub(super) target: &'a dyn Target,
    pub(super) clock: &'a dyn Clock,
    pub(super) rule: BlockRule,
    pub(super) threads: usize,
    pub(super) cores: usize,
}

/// What was drawn for a cell, as its record tells it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// Routings that samples rotate over.
    pub draws: usize,
    /// Distinct experts with at least one row, averaged over the draws.
    pub active_experts: f64,
    /// Rows of the busiest expert, averaged over the draws.
    pub max_rows: f64,
    /// Experts whose weights are read before those of one are read again.
    pub cycle_experts: f64,
}

/// What became of one block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// Absent when the output is wrong, or the device was slowed down in every attempt.
    pub block: Option<Block>,
    /// Draw and time of one launch (ps) of every sample.
    pub samples: Vec<(usize, f64)>,
    /// Time of one launch as the warm-up saw it.
    pub launch_ns: Option<u64>,
    /// Slowed down by heat or power in every attempt.
    pub throttled: bool,
    /// The power limit held the clock.
    pub power_limited: bool,
    /// The comparison with the reference, when this block is the first that is taken here.
    pub check: Option<CheckRecord>,
    /// Time that the comparison took.
    pub checking_ns: u64,
    /// Which kernels the layer planned for the batch.
    pub plan: Option<String>,
}

/// A cell that can be launched.
pub(super) struct CellLaunches {
    spec: CellSpec,
    inputs: Arc<Inputs>,
    /// One cycle through weights and routings, where a series is recorded.
    cycle: Vec<Turn>,
    /// Duration of one launch as the warm-up saw it.
    launch_ns: Option<u64>,
    cursor: Cursor,
    is_checked: bool,
}

/// Place in the cycle through draws and weight sets.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Samples prepared so far.
    prepared: usize,
    /// Draw of the sample in work.
    draw: usize,
    /// Set of weights of the next launch.
    set: usize,
    /// Set of weights of the last launch.
    last_set: usize,
    /// Launches since the input was put in place.
    launches: usize,
}

impl Cursor {
    /// The set of weights of the next launch, of `sets`.
    const fn advance(&mut self, sets: usize) -> usize {
        // Launches of one sample share their experts, so each takes other weights.
        if self.launches > 0 {
            self.set = (self.set + 1) % sets;
        }
        self.launches += 1;
        self.last_set = self.set;
        self.set
    }
}

/// A layer with the inputs of one cell, ready to be launched.
struct Timed<'a, 'b> {
    layer: &'a mut (dyn LoadedLayer + 'b),
    timing: TimingMode,
    inputs: &'a Inputs,
    cycle: &'a [Turn],
    sets: usize,
    cursor: &'a mut Cursor,
    /// Whether the routings are on the device.
    in_place: bool,
}

impl Timed<'_, '_> {
    /// The launches of one sample, where a series is recorded.
    fn series(&self, launches: u32) -> Option<Vec<Turn>> {
        let launches = launches as usize;
        match self.timing {
            TimingMode::Cpu | TimingMode::Cold => None,
            TimingMode::Stream => Some(self.cycle.iter().copied().cycle().take(launches).collect()),
            TimingMode::Hot => Some(vec![Turn { set: 0, routing: self.cursor.draw }; launches]),
        }
    }
}

impl Launch for Timed<'_, '_> {
    fn launch(&mut self, _turn: usize) -> Result<()> {
        let set = self.cursor.advance(self.sets);
        self.layer.run(Stage::Layer, set)
    }

    fn least_launches(&self) -> u32 {
        match self.timing {
            TimingMode::Stream => u32::try_from(self.cycle.len()).unwrap_or(1).max(1),
            TimingMode::Cpu | TimingMode::Cold | TimingMode::Hot => 1,
        }
    }

    fn time(&mut self, clock: &dyn Clock, first: usize, launches: u32) -> Result<u64> {
        if let Some(turns) = self.series(launches) {
            let ns = self.layer.time_series(Stage::Layer, &turns)?.ok_or_else(|| {
                Error::usage("--mode", "this device cannot replay a series of launches")
            })?;
            if let Some(last) = turns.last() {
                (self.cursor.draw, self.cursor.last_set) = (last.routing, last.set);
            }
            return Ok(ns);
        }
        let mut cursor = *self.cursor;
        let sets: Vec<usize> = (0..launches).map(|_| cursor.advance(self.sets)).collect();
        if let Some(ns) = self.layer.time(Stage::Layer, &sets)? {
            *self.cursor = cursor;
            return Ok(ns);
        }
        host_time(self, clock, first, launches)
    }

    fn prepare(&mut self) -> Result<()> {
        self.cursor.draw = self.cursor.prepared % self.inputs.draws.len();
        self.cursor.prepared += 1;
        self.cursor.launches = 0;
        let draw = &self.inputs.draws[self.cursor.draw];
        if self.timing != TimingMode::Cpu && !self.in_place {
            let all: Vec<&[f32]> = self.inputs.draws.iter().map(|d| &*d.logits).collect();
            self.layer.set_routings(&self.inputs.x, &all)?;
            self.in_place = true;
        }
        if matches!(self.timing, TimingMode::Stream | TimingMode::Hot) {
            return Ok(());
        }
        if draw.next_set {
            self.cursor.set = (self.cursor.set + 1) % self.sets;
        }
        match self.timing {
            // The device has all routings: a sample brings nothing over from the host.
            TimingMode::Cold => self.layer.choose_routing(self.cursor.draw),
            _ => self.layer.set_input(&self.inputs.x, &draw.logits),
        }
    }
}

/// Launches over all draws and `sets` sets of weights in turn, whole passes through the draws.
fn cycle_of(inputs: &Inputs, sets: usize) -> Vec<Turn> {
    let per_pass = inputs.draws.iter().filter(|d| d.next_set).count().max(1);
    let passes = sets.div_ceil(per_pass).min(MOST_IN_CYCLE / inputs.draws.len().max(1)).max(1);
    // The first draw takes the next set: set 0.
    let mut set = sets - 1;
    let mut turns = Vec::with_capacity(passes * inputs.draws.len());
    for _ in 0..passes {
        for (routing, draw) in inputs.draws.iter().enumerate() {
            if draw.next_set {
                set = (set + 1) % sets;
            }
            turns.push(Turn { set, routing });
        }
    }
    turns
}

impl CellLaunches {
    /// A cell on a layer with `sets` sets of weights.
    pub(super) fn new(spec: CellSpec, inputs: Arc<Inputs>, sets: usize) -> Self {
        let streams = spec.timing == TimingMode::Stream;
        let cycle = if streams { cycle_of(&inputs, sets) } else { Vec::new() };
        let (cursor, is_checked) = (Cursor::default(), false);
        Self { spec, inputs, cycle, launch_ns: None, cursor, is_checked }
    }

    pub(super) const fn spec(&self) -> &CellSpec {
        &self.spec
    }

    /// The next launch takes this one of `sets` sets of weights.
    pub(super) fn go_on_at(&mut self, set: usize, sets: usize) {
        let next = self.cursor.prepared % self.inputs.draws.len();
        // Some draws go on to the next set themselves.
        let before = if self.inputs.draws[next].next_set { sets - 1 } else { 0 };
        self.cursor.set = (set + before) % sets;
    }

    /// The set of weights of the last launch, and the expert behind those that it visited.
    pub(super) fn last_read(&self) -> (usize, usize) {
        let visited = self.inputs.draws[self.cursor.draw].ids.iter().max();
        (self.cursor.last_set, visited.map_or(0, |last| *last as usize + 1))
    }

    /// What was drawn, on a layer with `sets` sets of weights.
    pub(super) fn drawn(&self, sets: usize) -> Drawn {
        let active_experts = self.inputs.mean(|d| d.load.active() as f64);
        let all = sets as f64 * self.inputs.visited_per_set();
        Drawn {
            draws: self.inputs.draws.len(),
            active_experts,
            max_rows: self.inputs.mean(|d| f64::from(d.load.max())),
            cycle_experts: match self.spec.timing {
                TimingMode::Cpu | TimingMode::Cold => all,
                TimingMode::Stream => all.min(self.cycle.len() as f64 * active_experts),
                TimingMode::Hot => active_experts,
            },
        }
    }

    /// Hands out the cell's launches for something else than its own blocks.
    pub(super) fn borrow<T>(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        work: impl FnOnce(&mut dyn Launch) -> Result<T>,
    ) -> Result<T> {
        work(&mut self.timed(layer, sets))
    }

    fn timed<'a, 'b>(
        &'a mut self,
        layer: &'a mut (dyn LoadedLayer + 'b),
        sets: usize,
    ) -> Timed<'a, 'b> {
        Timed {
            layer,
            timing: self.spec.timing,
            inputs: &self.inputs,
            cycle: &self.cycle,
            sets,
            cursor: &mut self.cursor,
            in_place: false,
        }
    }

    /// Takes the block of one round.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `stop` was raised; whatever the kernels report.
    pub(super) fn take(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: &[LayerWeights],
        bed: &Bed,
        round: u32,
        stop: &AtomicBool,
    ) -> Result<Taken> {
        let mut taken = Taken {
            block: None,
            samples: Vec::new(),
            launch_ns: None,
            throttled: false,
            power_limited: false,
            check: None,
            checking_ns: 0,
            plan: None,
        };
        if !self.is_checked {
            let start = bed.clock.now_ns();
            let record = check::run(layer, sets, &self.inputs, (0, 0), bed.arithmetic)?;
            taken.checking_ns = bed.clock.now_ns().saturating_sub(start);
            taken.check = Some(record);
            taken.plan = layer.plan();
            if record.output != CheckOutcome::Pass {
                return Ok(taken);
            }
            self.is_checked = true;
        }
        let before = Load::read_settled();
        let found = self.unthrottled_block(layer, sets.len(), bed, stop)?;
        taken.launch_ns = self.launch_ns;
        let Some((samples, condition)) = found else {
            taken.throttled = true;
            return Ok(taken);
        };
        // Waiting threads are counted while ours sleep, stolen time while they worked.
        let during = Load { ticks: Load::read().ticks, ..before };
        let contended = condition.shared || during.is_contended(&before, bed.threads, bed.cores);
        let draws = self.inputs.draws.len();
        let first = self.cursor.prepared - samples.samples_ns.len();
        let numbered = samples.per_launch_ps().enumerate();
        taken.samples = numbered.map(|(i, ps)| ((first + i) % draws, ps)).collect();
        taken.power_limited = condition.power_limited;
        let block = samples.record(round, contended);
        taken.block = block.map(|b| Block { sm_clock_mhz: condition.sm_clock_mhz, ..b });
        Ok(taken)
    }

    /// A block during which the device was not slowed down. After a few attempts with a growing pause
    /// between them the cell is given up: `None`.
    fn unthrottled_block(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        bed: &Bed,
        stop: &AtomicBool,
    ) -> Result<Option<(BlockSamples, Condition)>> {
        for pause in COOLING {
            // What came before the block does not concern it.
            let _ = bed.target.condition();
            let taken = self.time_block(layer, sets, bed, stop)?;
            let condition = bed.target.condition();
            if !condition.throttled {
                return Ok(Some((taken, condition)));
            }
            // The void block's samples took their turns of the draws; nothing else remembers them.
            std::thread::sleep(pause);
        }
        Ok(None)
    }

    fn time_block(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        bed: &Bed,
        stop: &AtomicBool,
    ) -> Result<BlockSamples> {
        let known = self.launch_ns;
        let mut timed = self.timed(layer, sets);
        let launch_ns = match known {
            Some(ns) => {
                // Code and page tables of this cell have been pushed out by the others.
                timed.prepare()?;
                timed.launch(0)?;
                ns
            }
            None => warm_up(&mut timed, bed.clock, WARM_UP_NS)?,
        };
        let taken = take_block(&mut timed, bed.clock, bed.rule, launch_ns, &mut 0, stop)?;
        self.launch_ns = Some(launch_ns);
        // Whatever was measured last when the stop came is not worth keeping.
        match taken {
            Some(taken) if !stop.load(Ordering::Relaxed) => Ok(taken),
            _ => Err(Error::interrupted()),
        }
    }

    /// Compares the output of the last timed launch with the reference; also the time that it took.
    ///
    /// # Errors
    /// [`Error::Unfit`] when nothing was timed here; whatever the layer reports.
    pub(super) fn check_last(
        &self,
        layer: &mut dyn LoadedLayer,
        sets: &[LayerWeights],
        bed: &Bed,
    ) -> Result<(CheckRecord, u64)> {
        if self.launch_ns.is_none() {
            return Err(Error::unfit("output", "nothing was timed that could be checked"));
        }
        let start = bed.clock.now_ns();
        let (draw, set) = (self.cursor.draw, self.cursor.last_set);
        let record = check::output(layer, &sets[set], &self.inputs, draw, bed.arithmetic)?;
        Ok((record, bed.clock.now_ns().saturating_sub(start)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::sampling::take_block;
    use super::super::timing::fake::FakeClock;
    use super::*;
    use crate::kernels::{MoeShape, Routed};

    const SHAPE: MoeShape = MoeShape { experts: 8, top_k: 1, hidden: 4, inter: 4, gated: true };

    /// Blocks of four samples of at least 200 us.
    const RULE: BlockRule = BlockRule {
        min_samples: 4,
        min_busy_ns: 1,
        cap_ns: 1_000_000_000,
        shortest_sample_ns: 200_000,
    };

    const LAUNCH_NS: u64 = 30_000;

    /// A layer on a device whose launches take 30 us by its own clock; keeps what it is asked.
    #[derive(Default)]
    struct Replaying {
        inputs: usize,
        routings: Vec<usize>,
        chosen: Vec<usize>,
        alone: Vec<Vec<usize>>,
        series: Vec<Vec<Turn>>,
        cannot_replay: bool,
    }

    impl LoadedLayer for Replaying {
        fn set_input(&mut self, _x: &[f32], _logits: &[f32]) -> Result<()> {
            self.inputs += 1;
            Ok(())
        }
        fn set_routings(&mut self, _x: &[f32], logits: &[&[f32]]) -> Result<()> {
            self.routings.push(logits.len());
            Ok(())
        }
        fn choose_routing(&mut self, routing: usize) -> Result<()> {
            self.chosen.push(routing);
            Ok(())
        }
        fn run(&mut self, _stage: Stage, _set: usize) -> Result<()> {
            Ok(())
        }
        fn time(&mut self, _stage: Stage, sets: &[usize]) -> Result<Option<u64>> {
            self.alone.push(sets.to_vec());
            Ok(Some(sets.len() as u64 * LAUNCH_NS))
        }
        fn time_series(&mut self, _stage: Stage, turns: &[Turn]) -> Result<Option<u64>> {
            self.series.push(turns.to_vec());
            Ok((!self.cannot_replay).then_some(turns.len() as u64 * LAUNCH_NS))
        }
        fn routed(&mut self) -> Result<Routed> {
            Ok(Routed { ids: vec![], weights: vec![] })
        }
        fn output(&mut self) -> Result<Vec<f32>> {
            Ok(vec![])
        }
        fn poison(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn cell(timing: TimingMode, tokens: usize, sets: usize) -> CellLaunches {
        let spec = CellSpec { shape: SHAPE, tokens, timing, block: Duration::ZERO };
        let inputs = Inputs::draw(&SHAPE, tokens, &"uniform".parse().unwrap(), 5).unwrap();
        CellLaunches::new(spec, Arc::new(inputs), sets)
    }

    fn block(cell: &mut CellLaunches, layer: &mut Replaying, sets: usize) -> Result<BlockSamples> {
        let stop = AtomicBool::new(false);
        let clock = FakeClock::default();
        cell.borrow(layer, sets, |timed| {
            take_block(timed, &clock, RULE, LAUNCH_NS, &mut 0, &stop).map(Option::unwrap)
        })
    }

    #[test]
    fn a_stream_goes_through_all_weights_before_it_reads_any_again() {
        for (tokens, sets) in [(1, 3), (1, 40), (3, 5), (64, 4), (64, 1)] {
            let mut layer = Replaying::default();
            let mut cell = cell(TimingMode::Stream, tokens, sets);
            let drawn = cell.drawn(sets);
            let taken = block(&mut cell, &mut layer, sets).unwrap();
            assert_eq!(taken.launches_per_sample as usize % cell.cycle.len(), 0);
            assert!(u64::from(taken.launches_per_sample) * LAUNCH_NS >= RULE.shortest_sample_ns);
            assert_eq!(layer.routings, [drawn.draws], "the routings are put in place once a block");
            let turns = &layer.series[0];
            assert!(layer.series.len() == 4 && layer.series.iter().all(|again| again == turns));
            let used: HashSet<usize> = turns.iter().map(|t| t.set).collect();
            assert_eq!(used.len(), sets, "{tokens} tokens, {sets} sets");
            let routings: HashSet<usize> = turns.iter().map(|t| t.routing).collect();
            assert_eq!(routings.len(), drawn.draws);
            let mut visited = HashSet::new();
            for turn in turns {
                let draw = &cell.inputs.draws[turn.routing];
                if draw.next_set {
                    visited.clear();
                }
                for (expert, _) in draw.load.counts().iter().enumerate().filter(|c| *c.1 > 0) {
                    assert!(visited.insert(expert), "{tokens} tokens, {sets} sets: {turn:?}");
                }
            }
            let all = (sets * SHAPE.experts) as f64;
            assert!((0.5 * all..=all + 1e-9).contains(&drawn.cycle_experts), "{drawn:?}");
        }
    }

    #[test]
    fn hot_launches_share_weights_and_routing() {
        let (mut layer, mut cell) = (Replaying::default(), cell(TimingMode::Hot, 1, 3));
        let taken = block(&mut cell, &mut layer, 3).unwrap();
        assert_eq!((taken.launches_per_sample, layer.routings.len()), (7, 1));
        for (sample, turns) in layer.series.iter().enumerate() {
            assert!(turns.iter().all(|turn| *turn == Turn { set: 0, routing: sample }));
        }
        assert!((cell.drawn(3).cycle_experts - 1.0).abs() < 1e-12);
    }

    #[test]
    fn cold_launches_are_timed_one_by_one_on_other_weights_each() {
        let (mut layer, mut cell) = (Replaying::default(), cell(TimingMode::Cold, 1, 3));
        block(&mut cell, &mut layer, 3).unwrap();
        assert!(layer.series.is_empty());
        // The inputs are put in place once a block; samples choose among them.
        assert_eq!((layer.inputs, layer.routings.len()), (0, 1));
        assert_eq!(layer.chosen, [0, 1, 2, 3]);
        for sets in &layer.alone {
            assert!(sets.len() == 7 && sets.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn a_series_needs_a_device_that_can_replay() {
        for timing in [TimingMode::Stream, TimingMode::Hot] {
            let mut layer = Replaying { cannot_replay: true, ..Replaying::default() };
            let error = block(&mut cell(timing, 1, 3), &mut layer, 3).unwrap_err();
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn an_output_that_nobody_timed_is_not_checked() {
        let target = super::super::CpuTarget::default();
        let clock = FakeClock::default();
        let bed = Bed {
            arithmetic: Arithmetic::SINGLE,
            target: &target,
            clock: &clock,
            rule: RULE,
            threads: 1,
            cores: 1,
        };
        let found = cell(TimingMode::Cold, 1, 1).check_last(&mut Replaying::default(), &[], &bed);
        assert_eq!(found.unwrap_err().exit_code(), 4);
    }
}
