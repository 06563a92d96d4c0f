//! A plan before its simulation, and what the simulation makes of it.

use super::choice::{Choice, goodput};
use super::replicas::{Found, Miss, Trial, fewest};
use super::{Load, Metric, PlanCurve, SizeInputs};
use crate::latency::Source;
use crate::serving::{Layout, MemoryBudget};
use crate::units::{Bytes, UsdPerHour};
use crate::{Error, Result};

/// The simulation may find fewer replicas than the chain does, but hardly fewer than this share.
const FEWER: f64 = 0.75;

/// A plan before its simulation.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) device: String,
    pub(super) price: UsdPerHour,
    pub(super) layout: Layout,
    /// Batch limit that the chain finds best.
    pub(super) max_batch: usize,
    /// Replicas that the chain finds necessary.
    pub(super) start: usize,
    /// Replicas that are allowed, spares left out.
    pub(super) most: usize,
    pub(super) capacity: f64,
    pub(super) weights: Bytes,
    pub(super) memory: MemoryBudget,
    pub(super) cache_per_sequence: Bytes,
    pub(super) source: Source,
    pub(super) curve: PlanCurve,
}

impl Candidate {
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.device, self.layout)
    }

    /// Dollars per hour with so many serving replicas.
    pub(super) fn usd_per_hour(&self, replicas: usize, inputs: &SizeInputs) -> f64 {
        ((replicas + inputs.spare) * self.layout.devices()) as f64 * self.price.0
    }

    /// Serving replicas that cost less than so many dollars per hour.
    pub(super) fn below(&self, usd: f64, inputs: &SizeInputs) -> usize {
        let each = self.layout.devices() as f64 * self.price.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a ratio of prices; a negative one saturates at zero"
        )]
        let all = (usd / each * (1.0 - 1e-12)).ceil() as usize;
        all.saturating_sub(1 + inputs.spare).min(self.most)
    }

    /// Fewest replicas that the simulation may find.
    pub(super) fn floor(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of replicas"
        )]
        let floor = (self.start as f64 * FEWER).floor() as usize;
        floor.max(1)
    }

    /// Batch limits worth trying: the best one by the chain, the memory's, and from the largest one
    /// whose full step keeps the limit on TPOT down: bursts then wait for a place instead of slowing
    /// each other.
    fn caps(&self, inputs: &SizeInputs) -> Vec<usize> {
        let tpot = inputs.limits.iter().filter(|l| l.metric == Metric::Tpot);
        let tpot = tpot.map(|l| l.most.0).fold(f64::INFINITY, f64::min);
        let (mut low, mut high) = (1, self.curve.cap() + 1);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if self.curve.throughput(middle).1.0 <= tpot {
                low = middle;
            } else {
                high = middle;
            }
        }
        let mut caps = vec![self.max_batch];
        for cap in [self.curve.cap(), low, low / 2, low / 4, low / 8, low / 16] {
            if cap > 0 && !caps.contains(&cap) {
                caps.push(cap);
            }
        }
        caps
    }

    /// The fewest replicas up to `most` that keep the limits, with their batch limit.
    pub(super) fn settle(
        &self,
        inputs: &SizeInputs,
        start: usize,
        most: usize,
    ) -> Result<Result<(usize, Found), Miss>> {
        let mut best: Option<(usize, Found)> = None;
        let mut missed = None;
        for cap in self.caps(inputs) {
            let most = best.as_ref().map_or(most, |(_, found)| found.replicas - 1);
            if most == 0 {
                break;
            }
            let trial = Trial { inputs, curve: &self.curve, cap };
            match fewest(start.min(most), most, |replicas| trial.check(replicas))? {
                Ok(found) => best = Some((cap, found)),
                Err(miss) => missed = missed.or(Some(miss)),
            }
        }
        match (best, missed) {
            (Some(best), _) => Ok(Ok(best)),
            (None, Some(miss)) => Ok(Err(miss)),
            (None, None) => Err(Error::unfit("size", "no batch limit to try")),
        }
    }

    /// The plan with what its simulation found.
    pub(super) fn chosen(self, inputs: &SizeInputs, cap: usize, found: Found) -> Result<Choice> {
        let serving = found.replicas;
        let at = |rate: f64| -> Result<Load> {
            let load = self.curve.at(rate / serving as f64, cap);
            load.ok_or_else(|| Error::unfit("size", "the chain has no equilibrium"))
        };
        let goodput = goodput(&found.run, inputs);
        Ok(Choice {
            load: at(inputs.peak())?,
            mean_load: at(inputs.rate)?,
            max_batch: cap,
            replicas: serving + inputs.spare,
            capacity: self.curve.capacity(&inputs.limits, cap).max(inputs.peak() / serving as f64),
            simulated: found.run.simulated,
            goodput,
            below: found.below,
            device: self.device,
            price: self.price,
            layout: self.layout,
            weights: self.weights,
            memory: self.memory,
            cache_per_sequence: self.cache_per_sequence,
            source: self.source,
            curve: self.curve,
        })
    }
}
