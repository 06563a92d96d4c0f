//! A plan that keeps the service level, and one that does not.

use serde::Serialize;

use super::replicas::Miss;
use super::{Load, PlanCurve, SizeInputs};
use crate::latency::Source;
use crate::serving::{FleetRun, Layout, MemoryBudget, Simulated, usd_per_million_split};
use crate::units::{Bytes, UsdPerHour, UsdPerMillionTokens};

/// A plan that cannot keep the service level, with what failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// Device and layout.
    pub plan: String,
    /// The limit that it misses (`ttft_p99` and the like), `throughput`, `memory` or `latency`, and
    /// the detail.
    pub reason: String,
}

/// A plan that keeps the service level.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Name of the device.
    pub device: String,
    /// Its price.
    pub price: UsdPerHour,
    /// Layout of a replica.
    pub layout: Layout,
    /// Batch limit of a replica.
    pub max_batch: usize,
    /// Replicas, spares included.
    pub replicas: usize,
    /// Requests per second that one replica carries within the limits.
    pub capacity: f64,
    /// One replica at the peak rate, by the chain.
    pub load: Load,
    /// One replica at the mean rate, by the chain.
    pub mean_load: Load,
    /// Simulation at the peak rate.
    pub simulated: Simulated,
    /// Share of the requests within the service level: each is held to the strictest percentile
    /// that is promised for its time to first token and for its time per output token.
    pub goodput: f64,
    /// What fewer replicas miss.
    pub below: Option<Miss>,
    /// Weights per device in bytes.
    pub weights: Bytes,
    /// Memory of a device.
    pub memory: MemoryBudget,
    /// Cache of one sequence at its mean length, on a device that holds it.
    pub cache_per_sequence: Bytes,
    /// Where the step times come from.
    pub source: Source,
    /// Step times.
    pub curve: PlanCurve,
}

impl Choice {
    /// Devices of all replicas.
    pub fn gpus(&self) -> usize {
        self.layout.devices() * self.replicas
    }

    /// Price of all devices.
    pub fn total_price(&self) -> UsdPerHour {
        self.price * self.gpus() as f64
    }

    /// Price of prompt tokens and of output tokens at the mean rate.
    pub fn token_prices(&self, inputs: &SizeInputs) -> (UsdPerMillionTokens, UsdPerMillionTokens) {
        let busy = self.mean_load.prompt_share;
        // Idle time is paid in proportion to what the busy time goes to.
        let decoding = 1.0 - busy;
        let occupied = busy + decoding * (self.mean_load.mean_batch.min(1.0));
        let share = if occupied > 0.0 { busy / occupied } else { 0.0 };
        usd_per_million_split(
            self.gpus() as f64,
            self.price,
            inputs.rate,
            inputs.lengths.input,
            inputs.lengths.output,
            share,
        )
    }

    /// Mean rate over what the replicas, spares left out, carry within the limits.
    pub fn utilisation(&self, inputs: &SizeInputs) -> f64 {
        inputs.rate / (self.capacity * (self.replicas - inputs.spare) as f64)
    }

    /// Device and layout.
    pub fn name(&self) -> String {
        format!("{} {}", self.device, self.layout)
    }
}

/// Share of the requests of a run within the service level.
pub(super) fn goodput(run: &FleetRun, inputs: &SizeInputs) -> f64 {
    let (ttft, tpot) = inputs.thresholds();
    let kept = run.each.iter().filter(|(first, per)| *first <= ttft && *per <= tpot).count();
    kept as f64 / run.each.len().max(1) as f64
}
