//! One cell while it is being measured: its inputs, its blocks, and the record that becomes of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::check;
use super::data::Inputs;
use super::plan::{CYCLE_PER_CACHE, CellSpec};
use super::preflight::Load;
use super::record::{
    Block, Cell, CheckOutcome, CheckRecord, Flag, LatencyRecord, Op, RoutingRecord, RunCeilings,
    Status, TimingMode,
};
use super::sampling::{BlockRule, BlockSamples, Summary, summarise, take_block, warm_up};
use super::target::Target;
use super::timing::{Clock, Launch, host_time};
use super::work::{expert_bytes, of_launch};
use crate::Result;
use crate::config::DType;
use crate::gpu::Condition;
use crate::kernels::{Arithmetic, LayerWeights, LoadedLayer, Stage};
use crate::stats::interval::median;

/// Busy time of the launches before a cell's first block: clocks rise and pages are touched.
const WARM_UP_NS: u64 = 5_000_000;

/// Pauses after a block during which the device was slowed down, before the next attempt.
const COOLING: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20), Duration::ZERO];

/// What all cells of a run share.
pub(super) struct Common<'a> {
    /// Name and hash of the kernels.
    pub(super) kernel: (&'a str, &'a str),
    pub(super) dtype: DType,
    /// Where the backend rounds with such weights.
    pub(super) arithmetic: Arithmetic,
    pub(super) routing: String,
    pub(super) seed: u64,
    pub(super) timing: TimingMode,
    pub(super) width: f64,
    pub(super) cache_bytes: f64,
    pub(super) target: &'a dyn Target,
    pub(super) clock: &'a dyn Clock,
    pub(super) rule: BlockRule,
    pub(super) threads: usize,
    pub(super) cores: usize,
}

/// A cell being measured.
pub(super) struct CellState {
    pub(super) spec: CellSpec,
    inputs: Inputs,
    /// Duration of one launch as the warm-up saw it.
    launch_ns: Option<u64>,
    cursor: Cursor,
    blocks: Vec<Block>,
    /// Draw and duration (ps) of every sample.
    samples: Vec<(usize, f64)>,
    check: Option<CheckRecord>,
    checking_ns: u64,
    failure: Option<String>,
    /// Which kernels the layer planned for the batch.
    plan: Option<String>,
    /// Slowed down in every attempt at a block.
    throttled: bool,
    /// The power limit held the clock in some block.
    power_limited: bool,
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
    inputs: &'a Inputs,
    sets: usize,
    cursor: &'a mut Cursor,
}

impl Launch for Timed<'_, '_> {
    fn launch(&mut self, _turn: usize) -> Result<()> {
        let set = self.cursor.advance(self.sets);
        self.layer.run(Stage::Layer, set)
    }

    fn time(&mut self, clock: &dyn Clock, first: usize, launches: u32) -> Result<u64> {
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
        if draw.next_set {
            self.cursor.set = (self.cursor.set + 1) % self.sets;
        }
        self.layer.set_input(&self.inputs.x, &draw.logits)
    }
}

impl CellState {
    pub(super) fn new(spec: CellSpec, inputs: Inputs) -> Self {
        Self {
            spec,
            inputs,
            launch_ns: None,
            cursor: Cursor::default(),
            blocks: vec![],
            samples: vec![],
            check: None,
            checking_ns: 0,
            failure: None,
            plan: None,
            throttled: false,
            power_limited: false,
        }
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Duration of one launch as the warm-up saw it, in nanoseconds.
    pub(super) fn launch_ns(&self) -> Option<f64> {
        self.launch_ns.map(|ns| ns as f64)
    }

    /// Time spent in timed launches so far, in seconds.
    pub(super) fn busy_s(&self) -> f64 {
        let batch = self.blocks.first().map_or(1.0, |b| f64::from(b.launches_per_sample));
        self.samples.iter().map(|s| s.1).sum::<f64>() * batch * 1e-12
    }

    /// Time that went into comparing outputs with the reference.
    pub(super) const fn checking(&self) -> Duration {
        Duration::from_nanos(self.checking_ns)
    }

    /// Hands out the cell's launches for something else than its own blocks.
    pub(super) fn borrow(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        work: impl FnOnce(&mut dyn Launch) -> Result<()>,
    ) -> Result<()> {
        let cursor = &mut self.cursor;
        work(&mut Timed { layer, inputs: &self.inputs, sets, cursor })
    }

    /// Whether another block would add something.
    pub(super) fn is_alive(&self) -> bool {
        self.failure.is_none()
            && !self.throttled
            && self.check.is_none_or(|c| c.output == CheckOutcome::Pass)
    }

    /// Takes the block of one round; `false` when the run was stopped.
    pub(super) fn take(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: &[LayerWeights],
        common: &Common,
        round: u32,
        stop: &AtomicBool,
    ) -> bool {
        match self.try_take(layer, sets, common, round, stop) {
            Ok(taken) => taken,
            Err(error) => {
                self.failure = Some(error.to_string());
                true
            }
        }
    }

    fn try_take(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: &[LayerWeights],
        common: &Common,
        round: u32,
        stop: &AtomicBool,
    ) -> Result<bool> {
        if self.check.is_none() {
            let start = common.clock.now_ns();
            let record = check::run(layer, sets, &self.inputs, (0, 0), common.arithmetic)?;
            self.checking_ns += common.clock.now_ns().saturating_sub(start);
            self.check = Some(record);
            self.plan = layer.plan();
            if record.output != CheckOutcome::Pass {
                return Ok(true);
            }
        }
        let before = Load::read_settled();
        let Some((taken, condition)) = self.unthrottled_block(layer, sets.len(), common, stop)?
        else {
            return Ok(!stop.load(Ordering::Relaxed));
        };
        // Waiting threads are counted while ours sleep, stolen time while they worked.
        let during = Load { ticks: Load::read().ticks, ..before };
        let contended = during.is_contended(&before, common.threads, common.cores);
        let draws = self.inputs.draws.len();
        let first = self.cursor.prepared - taken.samples_ns.len();
        let numbered = taken.per_launch_ps().enumerate();
        self.samples.extend(numbered.map(|(i, ps)| ((first + i) % draws, ps)));
        let clock = condition.sm_clock_mhz;
        self.power_limited |= condition.power_limited;
        let block = taken.record(round, contended);
        self.blocks.extend(block.map(|b| Block { sm_clock_mhz: clock, ..b }));
        Ok(true)
    }

    /// A block during which the device was not slowed down. After a few attempts with a growing pause
    /// between them the cell is given up: `None`, as after `stop`.
    fn unthrottled_block(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        common: &Common,
        stop: &AtomicBool,
    ) -> Result<Option<(BlockSamples, Condition)>> {
        for pause in COOLING {
            // What came before the block does not concern it.
            let _ = common.target.condition();
            let Some(taken) = self.time_block(layer, sets, common, stop)? else {
                return Ok(None);
            };
            let condition = common.target.condition();
            if !condition.throttled {
                return Ok(Some((taken, condition)));
            }
            // The void block's samples took their turns of the draws; nothing else remembers them.
            std::thread::sleep(pause);
        }
        self.throttled = true;
        Ok(None)
    }

    fn time_block(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: usize,
        common: &Common,
        stop: &AtomicBool,
    ) -> Result<Option<BlockSamples>> {
        let cursor = &mut self.cursor;
        let mut timed = Timed { layer, inputs: &self.inputs, sets, cursor };
        let launch_ns = match self.launch_ns {
            Some(ns) => {
                // Code and page tables of this cell have been pushed out by the others.
                timed.prepare()?;
                timed.launch(0)?;
                ns
            }
            None => warm_up(&mut timed, common.clock, WARM_UP_NS)?,
        };
        self.launch_ns = Some(launch_ns);
        take_block(&mut timed, common.clock, common.rule, launch_ns, &mut 0, stop)
    }

    /// Compares the output of the last timed launch with the reference.
    pub(super) fn check_last(
        &mut self,
        layer: &mut dyn LoadedLayer,
        sets: &[LayerWeights],
        common: &Common,
    ) {
        let clock = common.clock;
        let Some(before) = self.check else { return };
        let start = clock.now_ns();
        let (draw, set) = (self.cursor.draw, self.cursor.last_set);
        match check::output(layer, &sets[set], &self.inputs, draw, common.arithmetic) {
            Ok(after) => self.check = Some(check::both(before, after)),
            Err(error) => self.failure = Some(error.to_string()),
        }
        self.checking_ns += clock.now_ns().saturating_sub(start);
    }

    /// Bytes of weights that pass through the caches before one is read again.
    fn cycle_bytes(&self, sets: usize, bits: f64) -> f64 {
        sets as f64 * self.inputs.visited_per_set() * expert_bytes(&self.spec.shape, bits)
    }

    /// (max - min) / median over the medians of the draws; `None` unless each of two draws or more
    /// has a sample.
    fn routing_spread(&self) -> Option<f64> {
        let of_draw = |draw: usize| {
            let times: Vec<f64> =
                self.samples.iter().filter(|s| s.0 == draw).map(|s| s.1).collect();
            median(&times)
        };
        let medians: Vec<f64> = (0..self.inputs.draws.len()).map(of_draw).collect::<Option<_>>()?;
        let (low, high) = medians
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), m| (low.min(*m), high.max(*m)));
        (medians.len() > 1).then_some((high - low) / median(&medians)?)
    }

    /// The record, before the physics gate.
    pub(super) fn record(&self, sets: usize, common: &Common) -> Cell {
        let shape = self.spec.shape;
        let bits = common.dtype.bits();
        let active = self.inputs.mean(|d| d.load.active() as f64);
        let times: Vec<f64> = self.samples.iter().map(|s| s.1).collect();
        let mut summary = self.summary(&times, common.width);
        // Cold launches find the cache overwritten, whatever they read.
        let resident = self.cycle_bytes(sets, bits) < CYCLE_PER_CACHE * common.cache_bytes;
        if common.timing != TimingMode::Cold && resident {
            summary.flags.push(Flag::CacheResident);
        }
        if self.power_limited {
            summary.flags.push(Flag::PowerLimited);
        }
        Cell {
            op: Op::MoeLayer,
            kernel: common.kernel.0.to_owned(),
            kernel_sha256: common.kernel.1.to_owned(),
            plan: self.plan.clone(),
            timing: common.timing,
            status: summary.status,
            flags: summary.flags,
            hidden: shape.hidden,
            inter: shape.inter,
            experts: shape.experts,
            top_k: shape.top_k,
            gated: shape.gated,
            tokens: self.spec.tokens,
            dtype: common.dtype,
            weight_bits: bits,
            routing: RoutingRecord {
                kind: common.routing.clone(),
                seed: format!("{:#x}", common.seed),
                realisations: self.inputs.draws.len(),
                active_experts: active,
                max_rows: self.inputs.mean(|d| f64::from(d.load.max())),
                routing_spread_rel: self.routing_spread(),
            },
            latency: summary.latency,
            percentiles: summary.percentiles,
            blocks: self.blocks.clone(),
            counts: summary.counts,
            work: of_launch(&shape, self.spec.tokens, active, bits),
            check: self.check.unwrap_or(CheckRecord {
                output: CheckOutcome::NotRun,
                worst_ratio_to_bound: None,
            }),
        }
    }

    fn summary(&self, times: &[f64], width: f64) -> Summary {
        let passed = self.check.is_some_and(|c| c.output == CheckOutcome::Pass);
        let refusal = match &self.failure {
            Some(reason) => Some((Status::Failed, reason.clone())),
            None if self.throttled => {
                Some((Status::Throttled, "slowed down by heat or power in every attempt".into()))
            }
            None if !passed => Some((Status::Refused, "its output is wrong".to_owned())),
            None => None,
        };
        let summary = summarise(&self.blocks, times, width);
        match refusal {
            Some((status, reason)) => {
                Summary { status, latency: LatencyRecord::Absent(reason), ..summary }
            }
            None => summary,
        }
    }
}

/// Applies the physics gate to a finished cell.
pub(super) fn refuse_impossible(mut cell: Cell, ceilings: &RunCeilings) -> Cell {
    if let Err(reason) = cell.check_physics(ceilings) {
        cell.status = Status::Refused;
        cell.latency = LatencyRecord::Absent(reason);
    }
    cell
}
