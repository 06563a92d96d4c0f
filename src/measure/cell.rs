//! One cell while it is being measured, as the run sees it: what its blocks amount to, and the record
//! that becomes of them.

use std::time::Duration;

use super::check;
use super::launches::{Drawn, Taken};
use super::plan::{CYCLE_PER_CACHE, CellSpec, Request};
use super::sampling::{Summary, summarise};
use super::work::{expert_bytes, of_launch};
use super::worker::Facts;
use crate::record::{
    Block, Cell, CheckOutcome, CheckRecord, Flag, LatencyRecord, Op, RoutingRecord, RunCeilings,
    Status, TimingMode,
};
use crate::stats::interval::median;

/// A cell being measured.
pub(super) struct CellState {
    pub(super) spec: CellSpec,
    drawn: Drawn,
    /// Duration of one launch as the warm-up saw it.
    launch_ns: Option<u64>,
    blocks: Vec<Block>,
    /// Draw and duration (ps) of every sample.
    samples: Vec<(usize, f64)>,
    check: Option<CheckRecord>,
    /// What the last block took, with everything around its launches.
    took: Option<Duration>,
    failure: Option<String>,
    /// Which kernels the layer planned for the batch.
    plan: Option<String>,
    /// Slowed down in every attempt at a block.
    throttled: bool,
    /// The power limit held the clock in some block.
    power_limited: bool,
    /// There was no time for it.
    is_cut: bool,
}

impl CellState {
    pub(super) fn new(spec: CellSpec, drawn: Drawn) -> Self {
        Self {
            spec,
            drawn,
            launch_ns: None,
            blocks: vec![],
            samples: vec![],
            check: None,
            took: None,
            failure: None,
            plan: None,
            throttled: false,
            power_limited: false,
            is_cut: false,
        }
    }

    /// Gives the cell up for want of time: it has no record.
    pub(super) fn cut(&mut self) {
        self.is_cut = true;
    }

    pub(super) const fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Duration of one launch as the warm-up saw it, in nanoseconds.
    pub(super) fn launch_ns(&self) -> Option<f64> {
        self.launch_ns.map(|ns| ns as f64)
    }

    /// What the last block took, with everything around its launches.
    pub(super) const fn took(&self) -> Option<Duration> {
        self.took
    }

    /// Whether another block would add something.
    pub(super) fn is_alive(&self) -> bool {
        self.failure.is_none()
            && !self.is_cut
            && !self.throttled
            && self.check.is_none_or(|c| c.output == CheckOutcome::Pass)
    }

    /// Gives the cell up.
    pub(super) fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
    }

    /// Adds what one round brought, and what it took.
    pub(super) fn add(&mut self, taken: Taken, took: Duration) {
        if let Some(check) = taken.check {
            self.add_check(check);
        }
        self.took = Some(took);
        self.launch_ns = self.launch_ns.or(taken.launch_ns);
        self.plan = self.plan.take().or(taken.plan);
        self.throttled |= taken.throttled;
        self.power_limited |= taken.power_limited;
        self.samples.extend(taken.samples);
        self.blocks.extend(taken.block);
    }

    /// Adds a comparison with the reference.
    pub(super) fn add_check(&mut self, check: CheckRecord) {
        self.check = Some(self.check.map_or(check, |before| check::both(before, check)));
    }

    /// (max - min) / median over the medians of the draws; `None` unless each of two draws or more
    /// has a sample.
    fn routing_spread(&self) -> Option<f64> {
        // Samples of a stream hold all draws.
        if self.spec.timing == TimingMode::Stream {
            return None;
        }
        let of_draw = |draw: usize| {
            let times: Vec<f64> =
                self.samples.iter().filter(|s| s.0 == draw).map(|s| s.1).collect();
            median(&times)
        };
        let medians: Vec<f64> = (0..self.drawn.draws).map(of_draw).collect::<Option<_>>()?;
        let (low, high) = medians
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(low, high), m| (low.min(*m), high.max(*m)));
        (medians.len() > 1).then_some((high - low) / median(&medians)?)
    }

    /// The record, before the physics gate. A cell is valid up to a half-width of `width`; its interval is
    /// wider by `between_runs`.
    pub(super) fn record(
        &self,
        facts: &Facts,
        request: &Request,
        width: f64,
        between_runs: f64,
    ) -> Cell {
        let CellSpec { shape, tokens, timing, .. } = self.spec;
        let bits = request.dtype.bits();
        let active = self.drawn.active_experts;
        let times: Vec<f64> = self.samples.iter().map(|s| s.1).collect();
        let mut summary = self.summary(&times, width, between_runs);
        // Bytes of weights that pass through the caches before one is read again.
        let cycle_bytes = self.drawn.cycle_experts * expert_bytes(&shape, bits);
        // Cold launches find the cache overwritten, whatever they read.
        if timing != TimingMode::Cold && cycle_bytes < CYCLE_PER_CACHE * facts.cache_bytes {
            summary.flags.push(Flag::CacheResident);
        }
        if self.power_limited {
            summary.flags.push(Flag::PowerLimited);
        }
        Cell {
            op: Op::MoeLayer,
            kernel: facts.kernel.clone(),
            kernel_sha256: facts.kernel_sha256.clone(),
            plan: self.plan.clone(),
            timing,
            status: summary.status,
            flags: summary.flags,
            hidden: shape.hidden,
            inter: shape.inter,
            experts: shape.experts,
            top_k: shape.top_k,
            gated: shape.gated,
            tokens,
            dtype: request.dtype,
            weight_bits: bits,
            routing: RoutingRecord {
                kind: request.routing.to_string(),
                seed: format!("{:#x}", request.seed),
                realisations: self.drawn.draws,
                active_experts: active,
                max_rows: self.drawn.max_rows,
                routing_spread_rel: self.routing_spread(),
            },
            latency: summary.latency,
            percentiles: summary.percentiles,
            blocks: self.blocks.clone(),
            counts: summary.counts,
            work: of_launch(&shape, tokens, active, bits),
            check: self.check.unwrap_or(CheckRecord {
                output: CheckOutcome::NotRun,
                worst_ratio_to_bound: None,
            }),
        }
    }

    fn summary(&self, times: &[f64], width: f64, between_runs: f64) -> Summary {
        let wrong = self.check.is_some_and(|c| c.output != CheckOutcome::Pass);
        let refusal = match &self.failure {
            Some(reason) => Some((Status::Failed, reason.clone())),
            None if self.throttled => {
                Some((Status::Throttled, "slowed down by heat or power in every attempt".into()))
            }
            None if wrong => Some((Status::Refused, "its output is wrong".to_owned())),
            None => None,
        };
        let summary = summarise(&self.blocks, times, width, between_runs);
        match refusal {
            Some((status, reason)) => {
                Summary { status, latency: LatencyRecord::Absent(reason), ..summary }
            }
            None => summary,
        }
    }
}

/// Applies the physics gate to a finished cell, and marks one that is faster than what the device was
/// seen to reach, within what the tests of that miss.
pub(super) fn refuse_impossible(mut cell: Cell, ceilings: &RunCeilings) -> Cell {
    if cell.is_above_ceiling(ceilings) {
        cell.flags.push(Flag::AboveCeiling);
    }
    if let Err(reason) = cell.check_physics(ceilings) {
        cell.status = Status::Refused;
        cell.latency = LatencyRecord::Absent(reason);
    }
    cell
}
