//! The time of one step by part, with its spread, its floor and where each operation came from.

use serde::Serialize;

use crate::Error;
use crate::error::Result;
use crate::latency::{Latency, LatencyModel, Operation, Query, Source};
use crate::serving::{EngineCosts, Layers, StepLoad};
use crate::units::Seconds;

/// Parts below this share of a step do not decide how far it is trusted.
const NEGLIGIBLE: f64 = 0.05;

/// A part of a step, all layers together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Time.
    pub seconds: f64,
    /// Standard deviation of its logarithm.
    pub log_sigma: f64,
    /// Least time at the device's peaks.
    pub floor_s: f64,
    /// Part of the time in which arithmetic is the limit.
    pub arithmetic_s: f64,
    /// Least trusted source.
    pub source: Source,
}

impl Part {
    const NONE: Self = Self {
        seconds: 0.0,
        log_sigma: 0.0,
        floor_s: 0.0,
        arithmetic_s: 0.0,
        source: Source::Measured,
    };

    fn add(&mut self, latency: &Latency, times: f64) {
        let seconds = latency.value.0 * times;
        if seconds <= 0.0 {
            return;
        }
        let total = self.seconds + seconds;
        // Kernels of one kind err together: their spreads add like their times.
        self.log_sigma = (self.log_sigma * self.seconds + latency.log_sigma * seconds) / total;
        self.seconds = total;
        self.floor_s += latency.floor.0 * times;
        self.arithmetic_s += latency.arithmetic * seconds;
        self.source = self.source.combine(latency.source);
    }

    /// A weighted sum of two parts.
    fn mix(a: &Self, at: f64, b: &Self, bt: f64) -> Self {
        let seconds = a.seconds * at + b.seconds * bt;
        let weighed = a.log_sigma * a.seconds * at + b.log_sigma * b.seconds * bt;
        Self {
            seconds,
            log_sigma: if seconds > 0.0 { weighed / seconds } else { 0.0 },
            floor_s: a.floor_s * at + b.floor_s * bt,
            arithmetic_s: a.arithmetic_s * at + b.arithmetic_s * bt,
            source: if bt > 0.0 { a.source.combine(b.source) } else { a.source },
        }
    }

    /// What an engine makes of it.
    fn under(mut self, costs: &EngineCosts) -> Self {
        self.seconds = costs.kernel_time(self.seconds, self.arithmetic_s);
        self.floor_s = self.floor_s.min(self.seconds);
        self
    }
}

/// Which model of a stack answered each operation, with the least trusted source.
pub type Origins = [Option<(Source, u8)>; Operation::ALL.len()];

/// Time of one step by part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Breakdown {
    /// Routed experts with their top-k and combine.
    pub moe: Part,
    /// The same at the far end of the range of skew, where it was asked for.
    pub moe_skewed: Part,
    /// Projections, routers, shared experts, dense layers, head.
    pub dense: Part,
    /// Attention over the cache and of the prompts.
    pub attention: Part,
    /// Collectives and expert exchange.
    pub communication: Part,
    /// The engine's own time in seconds.
    pub overhead_s: f64,
    /// Where each operation came from, in the order of [`Operation::ALL`].
    #[serde(skip)]
    pub origins: Origins,
}

impl Breakdown {
    /// The whole step.
    pub fn total(&self) -> Seconds {
        Seconds(self.kernels() + self.overhead_s)
    }

    /// Without the engine's own time, in seconds.
    pub fn kernels(&self) -> f64 {
        self.parts().iter().map(|p| p.seconds).sum()
    }

    /// Experts, dense, attention and communication.
    pub const fn parts(&self) -> [&Part; 4] {
        [&self.moe, &self.dense, &self.attention, &self.communication]
    }

    /// Time in which arithmetic is the limit, in seconds.
    pub fn arithmetic_s(&self) -> f64 {
        self.parts().iter().map(|p| p.arithmetic_s).sum()
    }

    /// Standard deviation of the logarithm of `total` seconds, of which these kernels are a part.
    pub fn log_sd(&self, total: f64) -> f64 {
        let part = |p: &Part| p.seconds / total * p.log_sigma;
        if total > 0.0 {
            self.parts().map(part).map(|s| s * s).iter().sum::<f64>().sqrt()
        } else {
            0.0
        }
    }

    /// Least trusted source among parts of 5 % or more.
    pub fn source(&self) -> Source {
        let total = self.total().0;
        self.parts()
            .into_iter()
            .filter(|p| p.seconds >= NEGLIGIBLE * total)
            .fold(Source::Measured, |worst, p| worst.combine(p.source))
    }

    /// `at` of one step and `bt` of another.
    pub fn mix(a: &Self, at: f64, b: &Self, bt: f64) -> Self {
        let part = |of: fn(&Self) -> &Part| Part::mix(of(a), at, of(b), bt);
        let mut origins = a.origins;
        for (mine, other) in origins.iter_mut().zip(&b.origins) {
            *mine = (*mine).max(*other);
        }
        Self {
            moe: part(|s| &s.moe),
            moe_skewed: part(|s| &s.moe_skewed),
            dense: part(|s| &s.dense),
            attention: part(|s| &s.attention),
            communication: part(|s| &s.communication),
            overhead_s: a.overhead_s * at + b.overhead_s * bt,
            origins,
        }
    }
}

/// Sums the operations of a step.
pub(super) struct Tally<'a> {
    latency: &'a dyn LatencyModel,
    sums: Breakdown,
}

impl<'a> Tally<'a> {
    pub(super) const fn new(latency: &'a dyn LatencyModel) -> Self {
        let sums = Breakdown {
            moe: Part::NONE,
            moe_skewed: Part::NONE,
            dense: Part::NONE,
            attention: Part::NONE,
            communication: Part::NONE,
            overhead_s: 0.0,
            origins: [None; Operation::ALL.len()],
        };
        Self { latency, sums }
    }

    fn ask(&mut self, query: &Query) -> Result<Latency> {
        let operation = query.operation();
        let latency = self.latency.answer(query).map_err(|absent| {
            Error::unfit(format!("latency of {}", operation.label()), absent.to_string())
        })?;
        let slot = &mut self.sums.origins[operation as usize];
        *slot = (*slot).max(Some((latency.source, latency.origin)));
        Ok(latency)
    }

    pub(super) fn moe(&mut self, query: &Query, times: f64) -> Result<()> {
        let latency = self.ask(query)?;
        self.sums.moe.add(&latency, times);
        Ok(())
    }

    pub(super) fn moe_skewed(&mut self, query: &Query, times: f64) -> Result<()> {
        let latency = self.ask(query)?;
        self.sums.moe_skewed.add(&latency, times);
        Ok(())
    }

    pub(super) fn dense(&mut self, query: &Query, times: f64) -> Result<()> {
        if matches!(query, Query::Gemm(q) if q.m <= 0.0) {
            return Ok(());
        }
        let latency = self.ask(query)?;
        self.sums.dense.add(&latency, times);
        Ok(())
    }

    pub(super) fn attention(&mut self, query: &Query, times: f64) -> Result<()> {
        let latency = self.ask(query)?;
        self.sums.attention.add(&latency, times);
        Ok(())
    }

    pub(super) fn communication(&mut self, query: &Query, times: f64) -> Result<()> {
        let latency = self.ask(query)?;
        self.sums.communication.add(&latency, times);
        Ok(())
    }

    /// The operations so far `times` over.
    pub(super) fn repeat(&mut self, times: f64) {
        let step = &self.sums;
        self.sums = Breakdown::mix(step, times, step, 0.0);
    }

    /// Of two halves one communicates while the other computes: what is left of the communication is
    /// what computing does not cover.
    pub(super) fn hide_communication(&mut self) {
        let computing: f64 = [self.sums.moe, self.sums.dense, self.sums.attention]
            .iter()
            .map(|part| part.seconds)
            .sum();
        let part = &mut self.sums.communication;
        let left = (part.seconds - computing).max(0.0);
        part.arithmetic_s *= if part.seconds > 0.0 { left / part.seconds } else { 0.0 };
        part.seconds = left;
        part.floor_s = part.floor_s.min(left);
    }

    /// Adds what the engine makes of it.
    pub(super) fn finish(self, costs: &EngineCosts, layers: &Layers, load: &StepLoad) -> Breakdown {
        let mut step = self.sums;
        for part in [
            &mut step.moe,
            &mut step.moe_skewed,
            &mut step.dense,
            &mut step.attention,
            &mut step.communication,
        ] {
            *part = part.under(costs);
        }
        step.overhead_s = costs.overhead(layers, load, step.kernels());
        step
    }
}
