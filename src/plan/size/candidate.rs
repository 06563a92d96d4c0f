//! A plan before its simulation, and what the simulation makes of it.

use super::choice::{Choice, goodput};
use super::replicas::{Found, Miss};
use super::settle::settle;
use super::{Load, PlanCurve, SizeInputs};
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

    /// Price of so many serving replicas.
    pub(super) fn price_of(&self, replicas: usize, inputs: &SizeInputs) -> UsdPerHour {
        self.price * ((replicas + inputs.spare) * self.layout.devices()) as f64
    }

    /// Serving replicas that cost less than that.
    pub(super) fn below(&self, price: UsdPerHour, inputs: &SizeInputs) -> usize {
        let each = self.price * self.layout.devices() as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a ratio of prices; a negative one saturates at zero"
        )]
        let all = (price / each * (1.0 - 1e-12)).ceil() as usize;
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

    /// The fewest replicas up to `most` that keep the limits, with their batch limit.
    pub(super) fn settle(
        &self,
        inputs: &SizeInputs,
        start: usize,
        most: usize,
    ) -> Result<Result<(usize, Found), Miss>> {
        settle(inputs, &self.curve, &[self.max_batch], (start, most))
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
