//! The search over devices, layouts, batch limits and replicas.

use serde::Serialize;

use super::{Limit, Load, PlanCurve, SizeInputs, Variability};
use crate::config::DeviceSpec;
use crate::config::device::DeviceKind;
use crate::latency::{LatencyModel, Source};
use crate::plan::points::LatencyOf;
use crate::serving::{
    Arrivals, Deployment, EngineCosts, Layout, MemoryBudget, Percentiles, Served, Simulated,
    Traffic, simulate, usd_per_million_split,
};
use crate::units::{Bytes, UsdPerHour};
use crate::{Error, Result};

/// Devices of a replica that are always tried.
const SIZES: [usize; 4] = [1, 2, 4, 8];
/// Further sizes, for models that no smaller replica holds within the limits.
const WIDE_SIZES: [usize; 3] = [16, 32, 64];
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
    /// One replica of the best plan at the mean rate in steady state, without waiting: what
    /// `estimate` says of it.
    pub steady: Served,
}

/// Sizes a deployment. `latency` gives latencies on a device or why there are none.
///
/// # Errors
/// [`Error::Infeasible`] with the nearest service level when nothing keeps the limits.
pub fn size(inputs: &SizeInputs, latency: &LatencyOf) -> Result<SizeAnswer> {
    let mut search = Search { inputs, failures: Vec::new(), nearest: Nearest::default() };
    let mut choices = Vec::new();
    for (device, price) in &inputs.devices {
        match latency(device, &inputs.engine) {
            Ok(latency) => choices.extend(search.device(device, *price, latency.as_ref())),
            Err(error) => search.fail(device.name.clone(), error.to_string()),
        }
    }
    choices.sort_by(|a, b| {
        let key = |c: &Choice| (c.usd_per_hour(), c.load.tpot[0].0);
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    let chosen = finish(inputs, &mut choices, &mut search)?;
    let steady = steady(inputs, &chosen, latency)?;
    let binding = binding(&chosen, inputs);
    let others = choices.into_iter().filter(|c| c.name() != chosen.name()).collect();
    Ok(SizeAnswer { best: chosen, binding, others, failures: search.failures, steady })
}

/// One replica of a plan at the mean rate.
fn steady(inputs: &SizeInputs, choice: &Choice, latency: &LatencyOf) -> Result<Served> {
    let named = inputs.devices.iter().find(|(d, _)| d.name == choice.device);
    let (device, _) = named.ok_or_else(|| Error::usage("--device", "the plan's device is gone"))?;
    let latency = latency(device, &inputs.engine)?;
    let costs = inputs.costs.clone().on(&inputs.engine, device);
    let deployment = deployment(inputs, device, choice.layout, (latency.as_ref(), &costs));
    let serving = choice.replicas - inputs.spare;
    deployment.serve(&Traffic::Open(inputs.rate / serving as f64), &inputs.lengths)
}

/// A layout on a device under `inputs`.
fn deployment<'a>(
    inputs: &'a SizeInputs,
    device: &DeviceSpec,
    layout: Layout,
    (latency, costs): (&'a dyn LatencyModel, &'a EngineCosts),
) -> Deployment<'a> {
    Deployment {
        model: &inputs.model,
        layout,
        latency,
        costs,
        routing: &inputs.routing,
        skewed: None,
        memory: MemoryBudget::of(device),
        domain: device.scale_up_devices,
    }
}

/// A search under way.
struct Search<'a> {
    inputs: &'a SizeInputs,
    failures: Vec<Failure>,
    nearest: Nearest,
}

impl Search<'_> {
    fn fail(&mut self, plan: String, reason: String) {
        self.failures.push(Failure { plan, reason });
    }

    /// All plans on one device that keep the limits; replicas of more than eight devices are tried
    /// where no smaller one does.
    fn device(
        &mut self,
        device: &DeviceSpec,
        price: UsdPerHour,
        latency: &dyn LatencyModel,
    ) -> Vec<Choice> {
        let alone = device.kind == DeviceKind::Cpu;
        let groups: [&[usize]; 2] = if alone { [&[1], &[]] } else { [&SIZES, &WIDE_SIZES] };
        for sizes in groups {
            let sizes: Vec<usize> =
                sizes.iter().copied().filter(|n| *n <= self.inputs.max_gpus).collect();
            let layouts = Layout::candidates(&self.inputs.model, &sizes);
            let found: Vec<Choice> = layouts
                .into_iter()
                .filter_map(|layout| self.plan(device, price, layout, latency))
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// One layout on one device, or nothing and the reason noted.
    fn plan(
        &mut self,
        device: &DeviceSpec,
        price: UsdPerHour,
        layout: Layout,
        latency: &dyn LatencyModel,
    ) -> Option<Choice> {
        let inputs = self.inputs;
        let costs = inputs.costs.clone().on(&inputs.engine, device);
        let deployment = deployment(inputs, device, layout, (latency, &costs));
        let name = format!("{} {layout}", device.name);
        let variability = Variability::of(inputs.burstiness, inputs.spread);
        let curve = match PlanCurve::new(&deployment, &inputs.lengths, variability) {
            Ok(curve) => curve,
            Err(error @ Error::Infeasible { .. }) => {
                self.fail(name, format!("memory: {error}"));
                return None;
            }
            Err(error) => {
                self.fail(name, format!("latency: {error}"));
                return None;
            }
        };
        let (max_batch, needed, capacity) = match best_cap(&curve, inputs, layout.devices()) {
            Ok(found) => found,
            Err(reason) => {
                self.nearest.consider(&curve, inputs, &name);
                self.fail(name, reason);
                return None;
            }
        };
        let at = |rate: f64| curve.at(rate / needed as f64, max_batch);
        let (load, mean_load) = (at(inputs.rate * inputs.peak_over_mean)?, at(inputs.rate)?);
        Some(Choice {
            device: device.name.clone(),
            price,
            layout,
            max_batch,
            replicas: needed + inputs.spare,
            capacity,
            load,
            mean_load,
            simulated: None,
            weights: deployment.weights_per_device(),
            memory: deployment.memory,
            cache_per_sequence: deployment.cache_per_sequence(inputs.lengths.mean_context()),
            source: curve.step.source(),
            curve,
        })
    }
}

/// Simulates the cheapest plans and keeps the cheapest that passes.
fn finish(inputs: &SizeInputs, choices: &mut [Choice], search: &mut Search) -> Result<Choice> {
    let mut best: Option<Choice> = None;
    for choice in choices.iter_mut().take(FINALISTS) {
        // They are in order of cost: one that passed can only be beaten by one that costs less than
        // it came to cost.
        if best.as_ref().is_some_and(|b| choice.usd_per_hour() >= b.usd_per_hour()) {
            break;
        }
        if confirm(choice, inputs)? {
            if best.as_ref().is_none_or(|b| choice.usd_per_hour() < b.usd_per_hour()) {
                best = Some(choice.clone());
            }
        } else {
            let reason = format!("simulation: misses a limit with {} replicas", choice.replicas);
            search.fail(choice.name(), reason);
        }
    }
    best.ok_or_else(|| {
        let what = format!(
            "{} at {} requests/s on up to {} devices, {} plans tried",
            inputs.model.name,
            inputs.rate,
            inputs.max_gpus,
            search.failures.len()
        );
        Error::infeasible(what, search.nearest.sentence(&search.failures))
    })
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
