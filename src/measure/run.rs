//! One run of `measure`: rounds in which every open cell gets one block, in a new random order, with
//! the device's ceilings and one kernel compared with itself in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::ceilings::CeilingSamples;
use super::cell::{CellState, refuse_impossible};
use super::data::{self, Inputs};
use super::ledger::{Event, Ledger};
use super::plan::{CellSpec, Plan, ROUNDS};
use super::preflight::Load;
use super::sampling::{LOOKS, is_closed};
use super::timing::{Clock, MonotonicClock};
use super::worker::{Answer, Ask, Facts, Trouble, Worker};
use super::{aa, host};
use crate::kernels::MoeShape;
use crate::record::{
    Key, PROFILE_SCHEMA, PROFILE_VERSION, PROTOCOL_VERSION, Profile, Provenance, Recipe, RunInfo,
};
use crate::{Error, Result};

/// Blocks between two samples of read bandwidth: its swings on shared machines last seconds.
const READ_EVERY: usize = 4;
/// A difference between the clocks over one block that is no adjustment any more: the time of day was
/// set, or the machine slept. The block is taken again.
const JUMP_NS: u64 = 500_000_000;
/// Attempts at a block during which the clock jumps.
const JUMPS: usize = 3;
/// Share of a round's time that must have passed before its cells' real cost is believed.
const BELIEVED: f64 = 0.5;
/// How far past its budget a run may be expected to end: a cell is not given up for less.
const SLACK: f64 = 1.02;

/// Told what is going on.
pub trait Observer {
    /// `done` of `total` steps are over; `what` is being worked on.
    fn step(&mut self, done: usize, total: usize, what: &str);

    /// Something that the reader of the result should know.
    fn notice(&mut self, message: &str);
}

/// An observer that says nothing.
impl Observer for () {
    fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

    fn notice(&mut self, _message: &str) {}
}

/// What a run was started with, for its provenance.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Program name and version.
    pub program: String,
    /// Arguments without the program's path.
    pub argv: Vec<String>,
}

/// How a run began; a run that goes on later began when its first session did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beginning {
    /// Hexadecimal identifier of the run.
    pub id: String,
    /// Program name and version.
    pub program: String,
    /// Arguments without the program's path.
    pub argv: Vec<String>,
    /// Operating system and kernel release.
    pub os: String,
    /// Name of the host, as its scheduler or itself calls it.
    #[serde(default)]
    pub host: String,
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: u64,
    /// How busy the machine was.
    pub load: Load,
}

impl Beginning {
    /// This moment on this machine.
    pub fn now(invocation: Invocation) -> Self {
        let Invocation { program, argv } = invocation;
        Self {
            id: format!("{:#018x}", rand::random::<u64>()),
            program,
            argv,
            os: host::os(),
            host: host::name(),
            unix_s: unix_seconds(),
            load: Load::read(),
        }
    }
}

/// The clocks of a run: a monotonic one that durations come from, and the time of day.
pub trait Clocks: Clock {
    /// Seconds since 1970-01-01 UTC. May step back.
    fn unix_s(&self) -> u64;

    /// The time of day in nanoseconds, to find out that it was set or that the machine slept. `None`: not
    /// known.
    fn wall_ns(&self) -> Option<u64> {
        None
    }

    /// How busy the machine is.
    fn load(&self) -> Load {
        Load::default()
    }
}

impl Clocks for MonotonicClock {
    fn unix_s(&self) -> u64 {
        unix_seconds()
    }

    fn wall_ns(&self) -> Option<u64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_nanos()).ok()
    }

    fn load(&self) -> Load {
        Load::read()
    }
}

/// The circumstances of a run, beside its plan and its worker.
pub struct Run<'a> {
    /// How it began.
    pub beginning: &'a Beginning,
    /// Its clocks.
    pub clocks: &'a dyn Clocks,
    /// When it began by them: the budget counts from here on, with what loading took.
    pub began_ns: u64,
    /// Where it keeps what it learns.
    pub ledger: &'a mut dyn Ledger,
    /// Told what is going on.
    pub observer: &'a mut dyn Observer,
    /// Raised to end it.
    pub stop: &'a AtomicBool,
}

/// What a run amounts to.
#[derive(Debug)]
pub struct Measured {
    /// Its cells; those that were not finished say so.
    pub profile: Profile,
    /// Why it ended early, if it did.
    pub failure: Option<Error>,
}

/// Measures the cells of a plan, which `worker` has loaded. What the ledger recalls is not measured again.
///
/// A single cell that fails leaves a record that says so; the others go on. A device or a storage that
/// fails, or a raised `stop`, ends the run with what it has brought so far.
///
/// # Errors
/// Why a run has ended that has brought nothing; [`Error::BadFile`] when the ledger does not follow from
/// the plan.
pub fn rounds(worker: &mut dyn Worker, plan: &Plan, run: Run) -> Result<Measured> {
    let facts = worker.facts().clone();
    let drawn = worker.drawn().to_vec();
    let Run { beginning, clocks, began_ns, ledger, observer, stop } = run;
    let mut rounds = Rounds {
        plan,
        worker,
        width: facts.width,
        cells: plan.cells.iter().zip(drawn).map(|(s, d)| CellState::new(*s, d)).collect(),
        ceilings: CeilingSamples::default(),
        aa: aa::Aa::default(),
        rng: ChaCha8Rng::seed_from_u64(plan.request.seed),
        complete: 0,
        time: RunTime { clocks, since_ns: began_ns, before: Duration::ZERO },
        at: Duration::from_nanos(clocks.now_ns().saturating_sub(began_ns)),
        this_round: ThisRound::default(),
        reserve: Duration::ZERO,
        ledger,
        stop,
    };
    let failure = rounds.measure(observer).err();
    if let Some(error @ Error::BadFile { .. }) = failure {
        return Err(error);
    }
    rounds.into_measured(&facts, beginning, failure)
}

/// The key that a profile of a device carries.
fn key(facts: &Facts, seed: u64) -> Key {
    let recipe =
        Recipe { data: data::RECIPE.into(), protocol_major: 1, seed: format!("{seed:#x}") };
    Key::new(facts.device.clone(), recipe)
}

/// The inputs of a cell; every timing mode has the same.
pub(super) fn inputs(plan: &Plan, spec: &CellSpec) -> Result<Inputs> {
    Inputs::draw(&spec.shape, spec.tokens, &plan.request.routing, seed_of(plan, spec))
}

const fn seed_of(plan: &Plan, spec: &CellSpec) -> u64 {
    plan.request.seed ^ (spec.tokens as u64) << 20 ^ (spec.shape.experts as u64) << 40
}

/// The routing of one cell as other programs read it, to time their kernels on the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CellRouting {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens.
    pub tokens: usize,
    /// Expert of each (token, slot), of each draw that the samples rotate over.
    pub draws: Vec<Vec<u32>>,
}

/// The routings that a plan's cells are measured with, each once: all ways of timing have the same.
///
/// # Errors
/// [`Error::Usage`] when the routing does not fit a shape, [`Error::Interrupted`] when `stop` is raised.
pub fn routings(plan: &Plan, stop: &AtomicBool) -> Result<Vec<CellRouting>> {
    let of_cell = |spec: &CellSpec| {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        let routing = &plan.request.routing;
        let draws = data::draws(&spec.shape, spec.tokens, routing, seed_of(plan, spec))?;
        let draws = draws.into_iter().map(|draw| draw.ids).collect();
        let MoeShape { hidden, inter, experts, top_k, .. } = spec.shape;
        Ok(CellRouting { hidden, inter, experts, top_k, tokens: spec.tokens, draws })
    };
    let is_first = |&i: &usize| {
        let (cell, before) = (&plan.cells[i], &plan.cells[..i]);
        before.iter().all(|other| (other.shape, other.tokens) != (cell.shape, cell.tokens))
    };
    (0..plan.cells.len()).filter(is_first).map(|i| of_cell(&plan.cells[i])).collect()
}

/// Time of a run over all its sessions.
struct RunTime<'a> {
    clocks: &'a dyn Clocks,
    /// When this session began to measure.
    since_ns: u64,
    /// Time of the sessions before.
    before: Duration,
}

impl RunTime<'_> {
    fn elapsed(&self) -> Duration {
        self.before + Duration::from_nanos(self.clocks.now_ns().saturating_sub(self.since_ns))
    }

    fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Both clocks now, in nanoseconds.
    fn both(&self) -> (u64, Option<u64>) {
        (self.clocks.now_ns(), self.clocks.wall_ns())
    }

    /// Whether the clocks went apart since an earlier reading.
    fn has_jumped(&self, earlier: (u64, Option<u64>)) -> bool {
        let now = self.both();
        let (Some(wall), Some(wall_before)) = (now.1, earlier.1) else { return false };
        let passed = i128::from(now.0) - i128::from(earlier.0);
        let by_wall = i128::from(wall) - i128::from(wall_before);
        (passed - by_wall).unsigned_abs() > u128::from(JUMP_NS)
    }

    /// Sets the clock to a moment of an earlier session.
    fn recall(&mut self, elapsed_ns: u64) {
        self.before = Duration::from_nanos(elapsed_ns);
        self.since_ns = self.clocks.now_ns();
    }
}

/// The rounds of one run.
struct Rounds<'a> {
    plan: &'a Plan,
    worker: &'a mut dyn Worker,
    /// Half-width of the interval at which a cell closes as valid.
    width: f64,
    cells: Vec<CellState>,
    ceilings: CeilingSamples,
    aa: aa::Aa,
    rng: ChaCha8Rng,
    /// Rounds that have ended.
    complete: u32,
    time: RunTime<'a>,
    /// Time of the run at its last event: what is decided follows from the events alone, so that a run
    /// that goes on decides as it did.
    at: Duration,
    this_round: ThisRound,
    /// Time that second looks at outputs will take, which come in the last round: as long as the first.
    reserve: Duration,
    ledger: &'a mut dyn Ledger,
    stop: &'a AtomicBool,
}

/// What the round in work has brought so far.
#[derive(Clone, Copy, Debug, Default)]
struct ThisRound {
    /// Time of the run when it began.
    began: Duration,
    /// Time of it that does not come again: checks of outputs, faults.
    once: Duration,
    /// What the blocks of it were expected to take, and what they took.
    expected: Duration,
    busy: Duration,
    /// Cells that were given up in it for want of time.
    cut: usize,
}

/// What follows from a round.
#[derive(Clone, Copy)]
struct Verdict {
    dropped: usize,
    is_last: bool,
}

impl Rounds<'_> {
    /// Runs rounds until every cell has closed or the time is over.
    fn measure(&mut self, observer: &mut dyn Observer) -> Result<()> {
        loop {
            let open = self.open_cells();
            if open.is_empty() {
                return Ok(());
            }
            self.one_round(&open, observer)?;
            let verdict = self.end_of_round()?;
            self.drop_least_wanted(verdict.dropped);
            let dropped = self.this_round.cut + verdict.dropped;
            if dropped > 0 {
                observer.notice(&format!(
                    "not measured: the {dropped} least wanted cells, because round {} took longer than \
                     planned; raise --time-budget",
                    self.complete
                ));
            }
            if verdict.is_last {
                return Ok(());
            }
        }
    }

    /// Decides how the run goes on after a round, or recalls what was decided.
    fn end_of_round(&mut self) -> Result<Verdict> {
        let round = self.complete;
        match self.ledger.recall() {
            Some(Event::RoundOver { round: recalled, dropped, is_last, elapsed_ns })
                if recalled == round =>
            {
                self.recall(elapsed_ns);
                Ok(Verdict { dropped, is_last })
            }
            Some(_) => Err(out_of_step()),
            None => {
                let verdict = self.decide();
                let Verdict { dropped, is_last } = verdict;
                let elapsed_ns = self.now_ns();
                self.ledger.keep(&Event::RoundOver { round, dropped, is_last, elapsed_ns })?;
                self.ledger.settle()?;
                Ok(verdict)
            }
        }
    }

    /// The time of the run now, which is that of its next event.
    fn now_ns(&mut self) -> u64 {
        let elapsed_ns = self.time.elapsed_ns();
        self.at = Duration::from_nanos(elapsed_ns);
        elapsed_ns
    }

    /// Sets the clock to an event of an earlier session.
    fn recall(&mut self, elapsed_ns: u64) {
        self.time.recall(elapsed_ns);
        self.at = Duration::from_nanos(elapsed_ns);
    }

    fn decide(&mut self) -> Verdict {
        self.now_ns();
        let round = self.complete;
        let budget = self.plan.request.budget;
        let repeated = self.repeated();
        let dropped = if round < ROUNDS { self.least_wanted() } else { 0 };
        let last = LOOKS[LOOKS.len() - 1];
        let is_last = round == last || (round >= ROUNDS && self.at + repeated > budget);
        Verdict { dropped, is_last }
    }

    /// Time of the round in work that the next one takes again. Outputs are checked once and faults cost
    /// their cell, so that their time does not come again.
    fn repeated(&self) -> Duration {
        self.at.saturating_sub(self.this_round.began + self.this_round.once)
    }

    /// Seconds that are left of the budget at a moment.
    fn left(&self, from: Duration) -> f64 {
        let budget = self.plan.request.budget.mul_f64(SLACK);
        budget.saturating_sub(from + self.reserve).as_secs_f64()
    }

    /// What a block of a cell takes in seconds, with its share of what is not spent in blocks (ceilings,
    /// inputs): as its last one did, or as it was planned and the blocks of this round came out.
    fn cost(&self, cell: &CellState) -> f64 {
        let ThisRound { expected, busy, .. } = self.this_round;
        let (busy, expected) = (busy.as_secs_f64(), expected.as_secs_f64());
        let overhead = self.repeated().as_secs_f64() / busy.max(f64::MIN_POSITIVE);
        let slower = busy / expected.max(f64::MIN_POSITIVE);
        let planned = || cell.spec.block.as_secs_f64() * slower;
        overhead * cell.took().map_or_else(planned, |took| took.as_secs_f64())
    }

    /// Whether there is no time for a cell in this round and those that its interval needs: the cells before
    /// it take it up, by what the cells of this round have taken so far. The most wanted cell is measured
    /// in any case.
    fn has_no_time(&self, index: usize) -> bool {
        let round = self.complete + 1;
        if round > ROUNDS {
            return self.at > self.plan.request.budget;
        }
        let ThisRound { began, once, busy, .. } = self.this_round;
        let left = self.left(began + once);
        let rounds = f64::from(ROUNDS - self.complete);
        if busy.is_zero() || self.repeated().as_secs_f64() < BELIEVED * left / rounds {
            return false;
        }
        let wanted = self.cells.iter().take(index).filter(|cell| cell.is_alive());
        let before: f64 = wanted.map(|cell| self.cost(cell)).sum();
        before > 0.0 && (before + self.cost(&self.cells[index])) * rounds > left
    }

    /// Drops this many cells of those that are left, the least wanted first.
    fn drop_least_wanted(&mut self, dropped: usize) {
        let left = self.cells.iter_mut().rev().filter(|cell| !cell.is_cut());
        left.take(dropped).for_each(CellState::cut);
    }

    /// The profile of what was measured so far.
    fn into_measured(
        self,
        facts: &Facts,
        beginning: &Beginning,
        failure: Option<Error>,
    ) -> Result<Measured> {
        let request = &self.plan.request;
        let (peer, peer_dtype) = &facts.peer;
        let kernel = (facts.dense_kernel.as_str(), request.dtype);
        let ceilings = match self.ceilings.record(kernel, (peer, *peer_dtype)) {
            Ok(ceilings) if failure.is_none() || self.has_blocks() => ceilings,
            nothing => {
                let unfit = || Error::unfit("run", "nothing was measured");
                return Err(failure.or(nothing.err()).unwrap_or_else(unfit));
            }
        };
        let (aa_effect_rel, noise_floor_rel, aa_verdict) = self.aa.verdict();
        // An interval as narrow as the machine can tell a kernel from itself is no noisier than it: every
        // comparison has that floor anyway.
        let width = facts.width.max(noise_floor_rel.min(aa::WIDEST_GRADE));
        let between_runs = aa::between_runs(&facts.device, noise_floor_rel);
        let record = |cell: &CellState| cell.record(facts, request, width, between_runs);
        let cells = self.cells.iter().filter(|cell| !cell.is_cut()).map(record);
        let cells = cells.map(|cell| refuse_impossible(cell, &ceilings)).collect();
        let clocks = self.time.clocks;
        let profile = Profile {
            schema: PROFILE_SCHEMA.into(),
            schema_version: PROFILE_VERSION.into(),
            protocol_version: PROTOCOL_VERSION.into(),
            key: key(facts, request.seed),
            provenance: Provenance {
                program: beginning.program.clone(),
                os: beginning.os.clone(),
                argv: beginning.argv.clone(),
                start_unix_s: beginning.unix_s,
                // The time of day may have stepped back meanwhile.
                end_unix_s: clocks.unix_s().max(beginning.unix_s),
                load_1min: beginning.load.load_1min,
                steal_rel: clocks.load().steal_since(&beginning.load),
                libraries: facts.libraries.clone(),
            },
            run: RunInfo {
                id: beginning.id.clone(),
                rounds: self.complete,
                aa_effect_rel,
                noise_floor_rel,
                aa_verdict,
                ceilings,
                between_runs_rel: Some(between_runs),
                partial: failure.as_ref().map(|error| {
                    format!("ended in round {}: {error}", self.complete.saturating_add(1))
                }),
                sweep: None,
            },
            cells,
        };
        Ok(Measured { profile, failure })
    }

    fn has_blocks(&self) -> bool {
        self.cells.iter().any(|cell| !cell.blocks().is_empty())
    }

    /// Cells that get a block in the next round, in a new random order.
    fn open_cells(&mut self) -> Vec<usize> {
        let open = |cell: &CellState| {
            cell.is_alive() && !is_closed(cell.blocks(), self.complete, self.width)
        };
        let mut indices: Vec<usize> =
            (0..self.cells.len()).filter(|&i| open(&self.cells[i])).collect();
        indices.shuffle(&mut self.rng);
        indices
    }

    fn one_round(&mut self, open: &[usize], observer: &mut dyn Observer) -> Result<()> {
        let round = self.complete + 1;
        let cells = self.cells.len();
        // Progress counts the rounds that every cell gets; later ones only narrow intervals.
        let rounds = usize::try_from(ROUNDS.max(round)).unwrap_or(1);
        let done = cells * usize::try_from(round - 1).unwrap_or(0);
        self.this_round = ThisRound { began: self.at, ..ThisRound::default() };
        self.rates(Ask::OtherRates, observer)?;
        if round == 1 {
            // Loading took another time when the run was begun, if this is a later session.
            self.this_round = ThisRound { began: self.at, ..ThisRound::default() };
        }
        for (i, &index) in open.iter().enumerate() {
            if self.has_no_time(index) {
                // In the rounds that only narrow intervals a cell keeps what it has.
                if round <= ROUNDS {
                    self.cells[index].cut();
                    self.this_round.cut += 1;
                }
                continue;
            }
            let spec = self.cells[index].spec;
            let what = format!(
                "round {round}, {} experts of {} x {}, {} tokens",
                spec.shape.experts, spec.shape.hidden, spec.shape.inter, spec.tokens
            );
            observer.step(done + i, cells * rounds, &what);
            if i % READ_EVERY == 0 {
                self.rates(Ask::ReadRate, observer)?;
            }
            self.block(index, round, observer)?;
        }
        self.compare_with_itself(round, observer)?;
        self.complete = round;
        Ok(())
    }

    /// The answer to a question, or nothing when it is lost: then the cell asked about is given up.
    fn ask(&mut self, ask: Ask, observer: &mut dyn Observer) -> Result<Option<Answer>> {
        match self.ledger.recall() {
            Some(Event::Answered { ask: before, answer, elapsed_ns }) if before == ask => {
                self.recall(elapsed_ns);
                Ok(Some(answer))
            }
            Some(Event::Lost { ask: before, reason, lost_ns, elapsed_ns }) if before == ask => {
                self.recall(elapsed_ns);
                self.this_round.once += Duration::from_nanos(lost_ns);
                self.give_up(ask, reason, observer);
                Ok(None)
            }
            Some(_) => Err(out_of_step()),
            None => self.ask_worker(ask, observer),
        }
    }

    fn ask_worker(&mut self, ask: Ask, observer: &mut dyn Observer) -> Result<Option<Answer>> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        let start = self.time.elapsed_ns();
        match self.steady_answer(ask, observer) {
            Ok(answer) => {
                let elapsed_ns = self.now_ns();
                let event = Event::Answered { ask, answer, elapsed_ns };
                self.ledger.keep(&event)?;
                let Event::Answered { answer, .. } = event else { return Ok(None) };
                Ok(Some(answer))
            }
            Err(Trouble::Over(error)) => Err(error),
            Err(Trouble::Lost(reason)) => {
                self.give_up(ask, reason.clone(), observer);
                self.worker.recover(self.stop)?;
                let elapsed_ns = self.now_ns();
                let lost_ns = elapsed_ns.saturating_sub(start);
                self.ledger.keep(&Event::Lost { ask, reason, lost_ns, elapsed_ns })?;
                self.this_round.once += Duration::from_nanos(lost_ns);
                Ok(None)
            }
        }
    }

    /// The worker's answer, asked again when the clocks jumped during a block: such a block is void.
    fn steady_answer(&mut self, ask: Ask, observer: &mut dyn Observer) -> Result<Answer, Trouble> {
        let mut check = None;
        for _ in 0..JUMPS {
            let before = self.time.both();
            let mut answer = self.worker.ask(ask, self.stop)?;
            let Answer::Block(taken) = &mut answer else { return Ok(answer) };
            taken.check = taken.check.or(check);
            if !self.time.has_jumped(before) {
                return Ok(answer);
            }
            check = taken.check;
            observer.notice("the clock jumped during a block, which is taken again");
        }
        Err(Trouble::Lost("the clock jumped during every attempt".into()))
    }

    /// Gives up the cell of a question that was lost.
    fn give_up(&mut self, ask: Ask, reason: String, observer: &mut dyn Observer) {
        match ask.cell().and_then(|index| self.cells.get_mut(index)) {
            Some(cell) => cell.fail(reason),
            None => observer.notice(&format!("a sample of a ceiling was lost: {reason}")),
        }
    }

    fn rates(&mut self, ask: Ask, observer: &mut dyn Observer) -> Result<()> {
        match self.ask(ask, observer)? {
            Some(Answer::Rates(samples)) => self.ceilings.add(samples),
            None => {}
            Some(_) => return Err(beside_the_point()),
        }
        Ok(())
    }

    fn block(&mut self, index: usize, round: u32, observer: &mut dyn Observer) -> Result<()> {
        let began = self.at;
        match self.ask(Ask::Block { cell: index, round }, observer)? {
            Some(Answer::Block(taken)) => {
                let checking = Duration::from_nanos(taken.checking_ns);
                let took = self.at.saturating_sub(began + checking);
                let cell = &mut self.cells[index];
                self.this_round.once += checking;
                self.this_round.expected += cell.spec.block;
                self.this_round.busy += took;
                self.reserve += checking;
                cell.add(taken, took);
            }
            None => return Ok(()),
            Some(_) => return Err(beside_the_point()),
        }
        // The last timed output of each cell is looked at once its interval could be complete.
        if round == ROUNDS && self.cells[index].is_alive() {
            match self.ask(Ask::CheckLast { cell: index }, observer)? {
                Some(Answer::Check { record, ns }) => {
                    let checking = Duration::from_nanos(ns);
                    self.this_round.once += checking;
                    self.reserve = self.reserve.saturating_sub(checking);
                    self.cells[index].add_check(record);
                }
                None => {}
                Some(_) => return Err(beside_the_point()),
            }
        }
        Ok(())
    }

    fn compare_with_itself(&mut self, round: u32, observer: &mut dyn Observer) -> Result<()> {
        let Some(cell) = aa::canary(&self.cells) else { return Ok(()) };
        match self.ask(Ask::Itself { cell, round }, observer)? {
            Some(Answer::Itself(log_ratio)) => self.aa.add(log_ratio),
            None => {}
            Some(_) => return Err(beside_the_point()),
        }
        Ok(())
    }

    /// How many of the least wanted cells the rounds that are left cannot hold, if they take what was
    /// repeated of the last.
    fn least_wanted(&self) -> usize {
        let allowed = self.left(self.at) / f64::from(ROUNDS - self.complete);
        let mut needed = self.repeated().as_secs_f64();
        let kept: Vec<&CellState> = self.cells.iter().filter(|cell| !cell.is_cut()).collect();
        let mut dropped = 0;
        for cell in kept.into_iter().skip(1).rev() {
            if needed <= allowed {
                break;
            }
            if cell.is_alive() {
                needed -= self.cost(cell);
            }
            dropped += 1;
        }
        dropped
    }
}

fn out_of_step() -> Error {
    Error::bad_file("journal", "its records do not follow from its plan; start a new run")
}

fn beside_the_point() -> Error {
    Error::device("worker", "answered another question than it was asked")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
