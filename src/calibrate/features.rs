//! What a measured row tells about the constants: its steps by part at the batch that it ran with.
//!
//! The batch of a row follows from its own measured times (Little's law), so that a fit is not
//! disturbed by rows near saturation.

use crate::Result;
use crate::error::Error;
use crate::plan::points::{self, LatencyOf, Point, Setup, typical_load};
use crate::serving::{Breakdown, EngineCosts, Layers, Prefill, StepLoad, Traffic};
use crate::units::Seconds;

/// Table times of one kind of step, without what the engine adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTimes {
    /// Kernels, in seconds.
    pub kernels: f64,
    /// The part of them in which arithmetic is the limit, in seconds.
    pub arithmetic: f64,
    /// Decoding sequences of the busiest attention group.
    pub sequences: f64,
    /// Prompt tokens of the step.
    pub prompt_tokens: f64,
    /// Standard deviation of ln(kernels) that the latencies claim.
    pub kernel_sd: f64,
}

impl StepTimes {
    fn of(step: &Breakdown, load: &StepLoad, groups: f64) -> Self {
        Self {
            kernel_sd: step.log_sd(step.kernels()),
            kernels: step.kernels(),
            arithmetic: step.arithmetic_s(),
            sequences: load.sequences / groups,
            prompt_tokens: load.prompt_tokens / groups,
        }
    }

    /// What the step takes with given constants, in seconds.
    fn seconds(&self, costs: &EngineCosts, layers: &Layers) -> f64 {
        let kernels = costs.kernel_time(self.kernels, self.arithmetic);
        let load = StepLoad {
            sequences: self.sequences,
            context: 0.0,
            prompt_tokens: self.prompt_tokens,
            prompt_length: self.prompt_tokens,
        };
        kernels + costs.overhead(layers, &load, kernels)
    }
}

/// One row prepared for fitting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features {
    /// Layers by kind.
    pub layers: Layers,
    /// A step without prompt tokens.
    pub decode: StepTimes,
    /// A step with prompt tokens.
    pub with: StepTimes,
    /// Plain steps per output token.
    pub plain: f64,
    /// Steps with prompt tokens per output token.
    pub share: f64,
    /// One of the steps of a prompt beside the batch.
    pub prompt: StepTimes,
    /// The same on an idle engine.
    pub alone: StepTimes,
    /// Steps of one prompt.
    pub chunks: f64,
    /// Output tokens of a request.
    pub output: f64,
    /// Decoding sequences.
    pub batch: f64,
    /// Prompts that wait for each other at the start, over the requests of each client.
    pub burst: f64,
    /// Measured time per output token in seconds.
    pub measured_tpot: f64,
    /// Measured time to first token in seconds; none where requests waited for a place.
    pub measured_ttft: Option<f64>,
}

impl Features {
    /// Time per output token with given constants, in seconds.
    pub fn tpot(&self, costs: &EngineCosts) -> f64 {
        self.plain * self.decode.seconds(costs, &self.layers)
            + self.share * self.with.seconds(costs, &self.layers)
    }

    /// Standard deviation of ln TPOT from that of the kernels alone.
    pub fn kernel_sd(&self, costs: &EngineCosts) -> f64 {
        let of = |times: &StepTimes| {
            times.kernel_sd * costs.kernel_time(times.kernels, times.arithmetic)
        };
        (self.plain * of(&self.decode) + self.share * of(&self.with)) / self.tpot(costs)
    }

    /// Time to first token with given constants beside steps of the measured length, in seconds.
    pub fn ttft(&self, costs: &EngineCosts) -> f64 {
        let own = Seconds(self.prompt.seconds(costs, &self.layers));
        let alone = self.chunks * self.alone.seconds(costs, &self.layers);
        let prefill = Prefill::new(costs, self.chunks, self.output);
        let first = prefill.first_token(self.batch, Seconds(self.measured_tpot), own);
        first.0 + costs.burst_factor * self.burst * alone
    }
}

/// Decoding sequences that a row ran with; `None` where its load does not tell.
pub fn batch_of(setup: &Setup, tpot: f64, ttft: Option<f64>) -> Option<f64> {
    let decoding = tpot * (setup.lengths.output - 1.0).max(1.0);
    let all = match setup.traffic {
        Traffic::Open(rate) => rate * decoding,
        Traffic::Closed { concurrency, .. } => {
            concurrency * decoding / (decoding + ttft.unwrap_or(0.0))
        }
        Traffic::Offline | Traffic::Burst(_) => return None,
    };
    Some(all / setup.pools.map_or(1.0, |p| p.decode_workers))
}

/// Prepares a row; `None` for rows that cannot be fitted.
///
/// # Errors
/// When latencies cannot be had at all.
pub fn features(
    point: &Point,
    costs: &EngineCosts,
    latency: &LatencyOf,
) -> Result<Option<Features>> {
    let (Ok(setup), None, Some(tpot)) = (&point.setup, &point.excluded, point.measured.tpot) else {
        return Ok(None);
    };
    let ttft = point.measured.ttft.map(|t| t.0);
    let Some(batch) = batch_of(setup, tpot.0, ttft) else { return Ok(None) };
    let neutral = EngineCosts { kernel_factor: 1.0, arithmetic_factor: 1.0, ..costs.clone() }
        .on(&point.engine, &setup.device);
    let latency = latency(&setup.device, &point.engine)?;
    let routing = typical_load(setup.model.num_experts, setup.model.top_k)?;
    let deployment = points::deployment(setup, &neutral, latency.as_ref(), &routing);
    let prompts = match &setup.pools {
        Some(pools) => crate::serving::Deployment { layout: pools.prefill, ..deployment },
        None => deployment,
    };
    let lengths = &setup.lengths;
    let times = || -> Result<Features> {
        let steps = deployment.steps(batch.max(1.0), lengths)?;
        let groups = setup.layout.attention_dp as f64;
        let prompt_groups = prompts.layout.attention_dp as f64;
        let beside = if setup.pools.is_some() { 0.0 } else { batch };
        let (prompt, prompt_load) = prompts.prompt_step_load(beside, lengths)?;
        let (alone, alone_load) = prompts.prompt_step_load(0.0, lengths)?;
        let apart = setup.pools.is_some();
        let cap = deployment.batch_cap(lengths)?;
        // Waiting for a place or for a pool says nothing about the engine's constants.
        let waits = apart
            || matches!(setup.traffic, Traffic::Closed { concurrency, .. } if concurrency > cap);
        Ok(Features {
            layers: Layers::of(&setup.model, setup.layout.attention_tp),
            decode: StepTimes::of(&steps.decode, &steps.load, groups),
            with: StepTimes::of(&steps.with, &steps.with_load, groups),
            plain: if apart { 1.0 } else { steps.plain },
            share: if apart { 0.0 } else { steps.share },
            prompt: StepTimes::of(&prompt, &prompt_load, prompt_groups),
            alone: StepTimes::of(&alone, &alone_load, prompt_groups),
            chunks: prompts.prefill(lengths).chunks,
            output: lengths.output,
            batch,
            burst: match setup.traffic {
                Traffic::Closed { concurrency, requests_per_client } => {
                    (concurrency - 1.0) / 2.0 / requests_per_client
                }
                _ => 0.0,
            },
            measured_tpot: tpot.0,
            measured_ttft: ttft.filter(|_| !waits),
        })
    };
    match times() {
        Ok(features) => Ok(Some(features)),
        // A row that cannot be predicted cannot be fitted; it is listed with its reason elsewhere.
        Err(Error::Unfit { .. } | Error::Infeasible { .. } | Error::Usage { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
