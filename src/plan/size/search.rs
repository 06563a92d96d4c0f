//! The search over devices, layouts, batch limits and replicas.

use serde::Serialize;

use super::{Limit, Load, PlanCurve, SizeInputs, Variability};
use crate::latency::{KernelTimes, Source};
use crate::plan::points::{REPORTED_OVER_NOMINAL, RESERVE, USABLE_SHARE};
use crate::serving::{
    Arrivals, Deployment, Layout, Percentiles, Simulated, simulate, usd_per_million_split,
};
use crate::units::{Bytes, UsdPerHour};
use crate::{Error, Result};

/// Devices of a replica inside one node.
const NODE_SIZES: [usize; 4] = [1, 2, 4, 8];
/// Most plans that are simulated before the search gives up.
const FINALISTS: usize = 12;
/// Times that a finalist may gain replicas from its simulation.
const EXTRA: usize = 3;
/// It gains one, and one more for each of so many that it has.
const FLEET_STEP: usize = 50;

/// A plan that cannot keep the service level, with what failed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// Device and layout.
    pub plan: String,
    /// `memory`, `layout`, `ttft`, `tpot`, `throughput`, `price` or `simulation`, and the detail.
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
    /// Requests per second that one replica could carry within the limits.
    pub capacity: f64,
    /// One replica at the peak rate, by the chain.
    pub load: Load,
    /// One replica at the mean rate, by the chain.
    pub mean_load: Load,
    /// Simulation at the peak rate, for finalists.
    pub simulated: Option<Simulated>,
    /// Weights per device in bytes.
    pub weights: Bytes,
    /// Memory of a device that the engine may use.
    pub usable: Bytes,
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

    /// Dollars per hour.
    pub fn usd_per_hour(&self) -> f64 {
        self.gpus() as f64 * self.price.0
    }

    /// Dollars per million prompt tokens and per million output tokens at a mean rate.
    pub fn usd_per_million(&self, inputs: &SizeInputs) -> (f64, f64) {
        let busy = self.mean_load.prompt_share;
        // Idle time is paid in proportion to what the busy time goes to.
        let decoding = 1.0 - busy;
        let occupied = busy + decoding * (self.mean_load.mean_batch.min(1.0));
        let share = if occupied > 0.0 { busy / occupied } else { 0.0 };
        let (input, output) = usd_per_million_split(
            self.gpus() as f64,
            self.price,
            inputs.rate,
            inputs.lengths.input,
            inputs.lengths.output,
            share,
        );
        (input.0, output.0)
    }

    /// Mean rate over what the replicas, spares left out, could carry within the limits.
    pub fn utilisation(&self, inputs: &SizeInputs) -> f64 {
        inputs.rate / (self.capacity * (self.replicas - inputs.spare) as f64)
    }

    fn name(&self) -> String {
        format!("{} {}", self.device, self.layout)
    }
}

/// The cheapest plan and what else was found.
#[derive(Clone, Debug)]
pub struct SizeAnswer {
    /// Cheapest plan that passed its simulation.
    pub best: Choice,
    /// The limit that binds it.
    pub binding: String,
    /// Other plans that keep the limits, cheapest first, by the chain.
    pub others: Vec<Choice>,
    /// Plans that do not.
    pub failures: Vec<Failure>,
}

/// Sizes a deployment. `times` gives kernel times of a device or why there are none.
///
/// # Errors
/// [`Error::Infeasible`] with the nearest service level when nothing keeps the limits.
pub fn size<'a>(
    inputs: &SizeInputs,
    times: &dyn Fn(&crate::config::DeviceSpec) -> Result<&'a KernelTimes>,
) -> Result<SizeAnswer> {
    let mut failures = Vec::new();
    let mut choices = Vec::new();
    let mut nearest = Nearest::default();
    for (device, price) in &inputs.devices {
        let times = match times(device) {
            Ok(times) => times,
            Err(error) => {
                failures.push(Failure { plan: device.name.clone(), reason: error.to_string() });
                continue;
            }
        };
        for layout in layouts(inputs) {
            let costs = inputs.costs.clone().on(&inputs.engine, device);
            let deployment = Deployment { model: &inputs.model, layout, times, costs: &costs };
            let plan = format!("{} {layout}", device.name);
            let usable =
                Bytes(device.memory_bytes * REPORTED_OVER_NOMINAL * USABLE_SHARE) - RESERVE;
            let variability = Variability::of(inputs.burstiness, inputs.spread);
            let curve = PlanCurve::new(&deployment, usable, &inputs.lengths, variability);
            let curve = match curve {
                Ok(curve) => curve,
                Err(error) => {
                    failures.push(Failure { plan, reason: format!("memory: {error}") });
                    continue;
                }
            };
            match best_cap(&curve, inputs, layout.devices()) {
                Ok((max_batch, needed, capacity)) => {
                    let at = |rate: f64| curve.at(rate / needed as f64, max_batch);
                    let peak = inputs.rate * inputs.peak_over_mean;
                    let (Some(load), Some(mean_load)) = (at(peak), at(inputs.rate)) else {
                        continue;
                    };
                    choices.push(Choice {
                        device: device.name.clone(),
                        price: *price,
                        layout,
                        max_batch,
                        replicas: needed + inputs.spare,
                        capacity,
                        load,
                        mean_load,
                        simulated: None,
                        weights: deployment.weights_per_device(),
                        usable,
                        cache_per_sequence: deployment
                            .cache_per_sequence(inputs.lengths.mean_context()),
                        source: curve.step.source,
                        curve,
                    });
                }
                Err(reason) => {
                    nearest.consider(&curve, inputs, &plan);
                    failures.push(Failure { plan, reason });
                }
            }
        }
    }
    choices.sort_by(|a, b| {
        let key = |c: &Choice| (c.usd_per_hour(), c.load.tpot[0].0);
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    finish(inputs, choices, failures, &nearest)
}

/// Simulates the cheapest plans and keeps the cheapest that passes.
fn finish(
    inputs: &SizeInputs,
    mut choices: Vec<Choice>,
    mut failures: Vec<Failure>,
    nearest: &Nearest,
) -> Result<SizeAnswer> {
    let mut best: Option<Choice> = None;
    for choice in choices.iter_mut().take(FINALISTS) {
        // They stand in order of cost: one that passed can only be beaten by one that costs less
        // than it came to cost.
        if best.as_ref().is_some_and(|b| choice.usd_per_hour() >= b.usd_per_hour()) {
            break;
        }
        if confirm(choice, inputs)? {
            if best.as_ref().is_none_or(|b| choice.usd_per_hour() < b.usd_per_hour()) {
                best = Some(choice.clone());
            }
        } else {
            let reason = format!("simulation: misses a limit with {} replicas", choice.replicas);
            failures.push(Failure { plan: choice.name(), reason });
        }
    }
    let Some(best) = best else {
        let what = format!(
            "{} at {} requests/s on up to {} devices, {} plans tried",
            inputs.model.name,
            inputs.rate,
            inputs.max_gpus,
            failures.len()
        );
        return Err(Error::infeasible(what, nearest.sentence(&failures)));
    };
    let binding = binding(&best, inputs);
    let others = choices.into_iter().filter(|c| c.name() != best.name()).collect();
    Ok(SizeAnswer { best, binding, others, failures })
}

/// Simulates a plan at the peak rate, with more replicas where it misses a limit.
fn confirm(choice: &mut Choice, inputs: &SizeInputs) -> Result<bool> {
    for _ in 0..=EXTRA {
        let serving = choice.replicas - inputs.spare;
        let rate = inputs.rate * inputs.peak_over_mean / serving as f64;
        let drawn = match &inputs.trace {
            Some(trace) => Arrivals::Trace(trace.share(serving, rate)),
            None => Arrivals::Drawn {
                rate,
                burstiness: inputs.burstiness,
                lengths: inputs.lengths,
                spread: inputs.spread,
                requests: inputs.requests,
                seed: inputs.seed,
            },
        };
        let simulated = simulate(&choice.curve.speed(choice.max_batch), &drawn)?;
        choice.simulated = Some(simulated);
        let at = |rate: f64| choice.curve.at(rate / serving as f64, choice.max_batch);
        if let (Some(load), Some(mean)) = (at(inputs.rate * inputs.peak_over_mean), at(inputs.rate))
        {
            (choice.load, choice.mean_load) = (load, mean);
        }
        if inputs.limits.iter().all(|l| value(&simulated, l) <= l.most.0) {
            return Ok(true);
        }
        if (choice.replicas + 1) * choice.layout.devices() > inputs.max_gpus {
            return Ok(false);
        }
        // A large fleet that misses by a little needs more than one.
        let more = (serving / FLEET_STEP).max(1);
        let fit = inputs.max_gpus / choice.layout.devices() - choice.replicas;
        choice.replicas += more.min(fit);
    }
    Ok(false)
}

/// The simulated value that a limit is on.
fn value(simulated: &Simulated, limit: &Limit) -> f64 {
    let of: &Percentiles = match limit.metric {
        super::Metric::Ttft => &simulated.ttft_s,
        super::Metric::Tpot => &simulated.tpot_s,
    };
    match limit.statistic {
        super::Statistic::Mean => of.mean.value,
        super::Statistic::P50 => of.p50.value,
        super::Statistic::P90 => of.p90.value,
        super::Statistic::P99 => of.p99.value,
    }
}

/// Layouts of one replica: tensor parallel, experts spread, and attention by sequences.
fn layouts(inputs: &SizeInputs) -> Vec<Layout> {
    let mut all = Vec::new();
    for n in NODE_SIZES {
        all.push(Layout::tensor(n));
        if n > 1 && !inputs.model.is_dense() {
            all.push(Layout { attention_tp: n, attention_dp: 1, moe_tp: 1, moe_ep: n });
            all.push(Layout { attention_tp: 1, attention_dp: n, moe_tp: 1, moe_ep: n });
        }
    }
    all.retain(|l| l.devices() <= inputs.max_gpus && l.validate(&inputs.model).is_ok());
    all
}

/// Batch limit and replicas with the fewest replicas, and what a replica could carry.
fn best_cap(
    curve: &PlanCurve,
    inputs: &SizeInputs,
    devices: usize,
) -> Result<(usize, usize, f64), String> {
    let peak = inputs.rate * inputs.peak_over_mean;
    let mut best: Option<(usize, usize, f64)> = None;
    let mut cap = curve.cap();
    loop {
        let capacity = curve.capacity(&inputs.limits, cap);
        if capacity > 0.0 {
            let needed = replicas(peak, capacity);
            if best.is_none_or(|(_, n, c)| needed < n || (needed == n && capacity > c)) {
                best = Some((cap, needed, capacity));
            }
        }
        if cap <= 4 {
            break;
        }
        cap /= 2;
    }
    let Some((cap, needed, capacity)) = best else {
        return Err(missed(curve, inputs));
    };
    let gpus = (needed + inputs.spare).saturating_mul(devices);
    if gpus > inputs.max_gpus {
        let most = inputs.max_gpus;
        return Err(format!("throughput: {gpus} devices needed, at most {most} allowed"));
    }
    Ok((cap, needed, capacity))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of positive rates; huge ones saturate and exceed every limit on devices"
)]
fn replicas(peak: f64, capacity: f64) -> usize {
    // A rate that fits to within the bisection's precision needs no further replica.
    (peak / capacity - 1e-4).ceil().max(1.0) as usize
}

/// Which limit an idle replica misses.
fn missed(curve: &PlanCurve, inputs: &SizeInputs) -> String {
    match curve.at(idle_rate(inputs), curve.cap()) {
        None => "throughput: a prompt takes all the time".into(),
        Some(load) => inputs
            .limits
            .iter()
            .filter(|l| load.value(l) > l.most)
            .map(|l| format!("{l}: {} on an idle replica, {} promised", load.value(l), l.most))
            .next()
            .unwrap_or_else(|| "throughput: no rate keeps all limits".into()),
    }
}

/// A rate at which a replica is nearly always idle.
fn idle_rate(inputs: &SizeInputs) -> f64 {
    inputs.rate * 1e-6
}

/// The plan whose idle replica comes nearest to the limits.
#[derive(Default)]
struct Nearest {
    best: Option<(f64, String, Vec<String>)>,
}

impl Nearest {
    fn consider(&mut self, curve: &PlanCurve, inputs: &SizeInputs, plan: &str) {
        let Some(load) = curve.at(idle_rate(inputs), curve.cap()) else { return };
        let ratio = load.tightest(&inputs.limits);
        if self.best.as_ref().is_none_or(|(r, ..)| ratio < *r) {
            let levels = inputs
                .limits
                .iter()
                .map(|l| format!("{l} {:.1} ms", (load.value(l).0.max(l.most.0)) * 1e3))
                .collect();
            self.best = Some((ratio, plan.to_owned(), levels));
        }
    }

    fn sentence(&self, failures: &[Failure]) -> String {
        match &self.best {
            Some((ratio, plan, levels)) if *ratio > 1.0 => {
                format!("nearest feasible service level: {} (on {plan})", levels.join(", "))
            }
            Some((_, plan, _)) => {
                format!(
                    "the service level itself can be kept (on {plan}); allow more with --max-gpus"
                )
            }
            None => failures.first().map_or_else(
                || "no layout divides this model".into(),
                |f| format!("for instance {}: {}", f.plan, f.reason),
            ),
        }
    }
}

/// What would have to give way for the plan to become cheaper.
fn binding(best: &Choice, inputs: &SizeInputs) -> String {
    /// Below this use of its only replica a deployment is there to hold the weights.
    const IDLE: f64 = 0.5;
    let serving = best.replicas - inputs.spare;
    if serving == 1 && best.utilisation(inputs) * inputs.peak_over_mean < IDLE {
        return "min_gpus".into();
    }
    // A little above its capacity, which limit is missed first?
    let over = best.curve.at(best.capacity * 1.02, best.max_batch);
    let Some(over) = over else { return "throughput".into() };
    let tightest = inputs
        .limits
        .iter()
        .max_by(|a, b| (over.value(a) / a.most).total_cmp(&(over.value(b) / b.most)));
    match tightest {
        Some(limit) if over.value(limit) > limit.most => limit.to_string(),
        _ if best.max_batch >= best.curve.cap() => "memory".into(),
        _ => "throughput".into(),
    }
}
