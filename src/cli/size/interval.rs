//! What the serving model's own error leaves open of a sized deployment.

use serde::Serialize;

use crate::Result;
use crate::ask::Sizing;
use crate::calibrate::predict::{Halves, ends};
use crate::plan::points::Setup;
use crate::plan::size::{Choice, ModelError, Reach, reach};
use crate::serving::{Estimate, Percentiles, Traffic};
use crate::units::UsdPerMillionTokens;

/// A value's 95 % interval.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Range {
    pub(super) lo: f64,
    pub(super) hi: f64,
}

/// One metric's intervals in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ranges {
    mean: Range,
    p50: Range,
    p90: Range,
    pub(super) p99: Range,
}

impl Ranges {
    fn of(p: &Percentiles, half: f64) -> Self {
        let of =
            |e: &Estimate| Range { lo: ends(e.lo, half).0 * 1e3, hi: ends(e.hi, half).1 * 1e3 };
        Self { mean: of(&p.mean), p50: of(&p.p50), p90: of(&p.p90), p99: of(&p.p99) }
    }
}

/// 95 % intervals of the answer, the simulation's and the serving model's error together.
#[derive(Debug, Serialize)]
pub(super) struct ModelInterval {
    of: &'static str,
    calibration: &'static str,
    tpot_log_half_width: f64,
    ttft_log_half_width: f64,
    pub(super) ttft_ms: Ranges,
    pub(super) tpot_ms: Ranges,
    /// Whether every limit holds at the upper ends.
    pub(super) limits_hold: bool,
    /// Devices of this layout that keep the limits if steps take as long as the lower end says.
    pub(super) gpus_lo: usize,
    /// The same at the upper end; null where no allowed number does.
    pub(super) gpus_hi: Option<usize>,
    usd_per_million_input_tokens_lo: f64,
    usd_per_million_input_tokens_hi: Option<f64>,
    pub(super) usd_per_million_output_tokens_lo: f64,
    pub(super) usd_per_million_output_tokens_hi: Option<f64>,
    output_tokens_per_s_per_gpu: f64,
    output_tokens_per_s_per_gpu_lo: Option<f64>,
    output_tokens_per_s_per_gpu_hi: f64,
}

const OF: &str = "kernel tables, carrying over between devices, the engine's constants and what groups \
of one model, device and engine share; simulated values add the simulation's own";

/// Half widths of the model's intervals for one replica of a plan at the peak rate: a slower engine runs
/// more sequences at that rate, which makes it slower again.
pub(super) fn halves(sized: &Sizing, choice: &Choice) -> Result<Halves> {
    let serving = (choice.replicas - sized.inputs.spare) as f64;
    under(sized, choice, Traffic::Open(sized.inputs.peak() / serving))
}

/// The same of its steps alone, with the sequences that it runs now.
fn of_steps(sized: &Sizing, choice: &Choice) -> Result<Halves> {
    let concurrency = choice.load.mean_batch.max(1.0);
    let traffic = Traffic::Closed { concurrency, requests_per_client: f64::INFINITY };
    under(sized, choice, traffic)
}

fn under(sized: &Sizing, choice: &Choice, traffic: Traffic) -> Result<Halves> {
    let inputs = &sized.inputs;
    let offer = inputs.offer(&choice.device)?;
    let setup = Setup {
        model: inputs.model.clone(),
        device: offer.device.clone(),
        layout: choice.layout,
        lengths: inputs.lengths,
        traffic,
        pools: None,
    };
    let latency = sized.sources.stack(&offer.device, &inputs.engine)?;
    let chosen = &sized.terms(&choice.device)?.chosen;
    chosen.predict(&setup, latency.as_ref(), &inputs.routing).map(|(_, halves)| halves)
}

/// The intervals of the chosen plan.
pub(super) fn interval(
    sized: &Sizing,
    choice: &Choice,
    halves: &Halves,
    (input, output): (UsdPerMillionTokens, UsdPerMillionTokens),
) -> Result<ModelInterval> {
    let inputs = &sized.inputs;
    let Halves { tpot, ttft, .. } = of_steps(sized, choice)?;
    let Reach { least, most } = reach(inputs, choice, &ModelError { tpot, ttft })?;
    let gpus = choice.gpus() as f64;
    let (low, high) = (least as f64 / gpus, most.map(|m| m as f64 / gpus));
    let rate = inputs.rate * inputs.lengths.output / gpus;
    Ok(ModelInterval {
        of: OF,
        calibration: sized.calibration(&choice.device),
        tpot_log_half_width: halves.tpot,
        ttft_log_half_width: halves.ttft,
        ttft_ms: Ranges::of(&choice.simulated.ttft_s, halves.ttft),
        tpot_ms: Ranges::of(&choice.simulated.tpot_s, halves.tpot),
        limits_hold: inputs
            .limits
            .iter()
            .all(|l| upper(l.simulated(&choice.simulated).hi, l, halves) <= l.most.0),
        gpus_lo: least,
        gpus_hi: most,
        usd_per_million_input_tokens_lo: input.0 * low,
        usd_per_million_input_tokens_hi: high.map(|h| input.0 * h),
        usd_per_million_output_tokens_lo: output.0 * low,
        usd_per_million_output_tokens_hi: high.map(|h| output.0 * h),
        output_tokens_per_s_per_gpu: rate,
        output_tokens_per_s_per_gpu_lo: high.map(|h| rate / h),
        output_tokens_per_s_per_gpu_hi: rate / low,
    })
}

/// Upper end of a limited value over the model's interval, in seconds.
pub(super) fn upper(seconds: f64, limit: &crate::plan::size::Limit, halves: &Halves) -> f64 {
    let half = match limit.metric {
        crate::plan::size::Metric::Ttft => halves.ttft,
        crate::plan::size::Metric::Tpot => halves.tpot,
    };
    ends(seconds, half).1
}
