//! The search over devices, layouts, batch limits and replicas.

use super::candidate::Candidate;
use super::choice::{Choice, Failure};
use super::nearest::{Shortfall, sentence};
use super::replicas::{MEMORY, Miss, Trial, Verdict};
use super::{Offer, PlanCurve, SizeInputs, Variability};
use crate::config::device::DeviceKind;
use crate::latency::LatencyModel;
use crate::plan::points::LatencyOf;
use crate::serving::{Deployment, Layout, MemoryBudget, Served, Traffic};
use crate::units::UsdPerHour;
use crate::{Error, Result};

/// Devices of a replica that are always tried.
const SIZES: [usize; 4] = [1, 2, 4, 8];
/// Further sizes, for models that no smaller replica holds within the limits.
const WIDE_SIZES: [usize; 3] = [16, 32, 64];
/// Plans that are simulated at most once one keeps the limits.
const FINALISTS: usize = 24;
/// Alternatives that are searched.
const ALTERNATIVES: usize = 4;

/// The cheapest plan and what else was found.
#[derive(Clone, Debug)]
pub struct SizeAnswer {
    /// Cheapest plan.
    pub best: Choice,
    /// The limit that binds it.
    pub binding: String,
    /// Other plans that keep the limits in their simulation, cheapest first.
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
    let mut search = Search { inputs, failures: Vec::new(), shortfalls: Vec::new() };
    let mut candidates = Vec::new();
    for offer in &inputs.devices {
        match latency(&offer.device, &inputs.engine) {
            Ok(latency) => candidates.extend(search.device(offer, latency.as_ref())?),
            Err(error) => search.fail(offer.device.name.clone(), error.to_string()),
        }
    }
    let (best, others) = search.finish(candidates)?;
    let steady = steady(inputs, &best, latency)?;
    let binding = binding(&best, inputs);
    Ok(SizeAnswer { best, binding, others, failures: search.failures, steady })
}

/// One replica of a plan at the mean rate.
fn steady(inputs: &SizeInputs, choice: &Choice, latency: &LatencyOf) -> Result<Served> {
    let offer = inputs.offer(&choice.device)?;
    let latency = latency(&offer.device, &inputs.engine)?;
    let deployment = deployment(inputs, offer, choice.layout, latency.as_ref());
    let serving = choice.replicas - inputs.spare;
    deployment.serve(&Traffic::Open(inputs.rate / serving as f64), &inputs.lengths)
}

/// A layout on a device under `inputs`.
fn deployment<'a>(
    inputs: &'a SizeInputs,
    offer: &'a Offer,
    layout: Layout,
    latency: &'a dyn LatencyModel,
) -> Deployment<'a> {
    Deployment {
        model: &inputs.model,
        layout,
        latency,
        costs: &offer.costs,
        routing: &inputs.routing,
        skewed: None,
        memory: MemoryBudget::of(&offer.device),
        domain: offer.device.scale_up_devices,
    }
}

/// A search under way.
struct Search<'a> {
    inputs: &'a SizeInputs,
    failures: Vec<Failure>,
    shortfalls: Vec<Shortfall>,
}

impl Search<'_> {
    fn fail(&mut self, plan: String, reason: String) {
        self.failures.push(Failure { plan, reason });
    }

    /// A plan that misses a limit with all the replicas that are allowed.
    fn miss(&mut self, candidate: Candidate, miss: Miss) {
        self.fail(candidate.name(), miss.to_string());
        if miss.constraint == MEMORY {
            let plan = candidate.name();
            self.shortfalls.push(Shortfall::Memory { plan, times: 1.0, detail: miss.detail });
            return;
        }
        let (rate, limits) = (self.inputs.peak() / candidate.most as f64, &self.inputs.limits);
        let shortfall = match candidate.curve.at(rate, candidate.max_batch) {
            Some(load) => {
                let ratio = load.tightest(limits);
                Shortfall::Limit(Box::new(candidate), miss, ratio)
            }
            None => self.too_few(&candidate),
        };
        self.shortfalls.push(shortfall);
    }

    /// A plan that needs more devices than are allowed.
    fn too_few(&self, candidate: &Candidate) -> Shortfall {
        Shortfall::Devices {
            plan: candidate.name(),
            needed: candidate
                .start
                .saturating_add(self.inputs.spare)
                .saturating_mul(candidate.layout.devices()),
            carried: candidate.capacity * candidate.most as f64 / self.inputs.peak_over_mean,
        }
    }

    /// All plans on one device that may keep the limits; replicas of more than eight devices are
    /// tried where no smaller one does.
    fn device(&mut self, offer: &Offer, latency: &dyn LatencyModel) -> Result<Vec<Candidate>> {
        let alone = offer.device.kind == DeviceKind::Cpu;
        let groups: [&[usize]; 2] = if alone { [&[1], &[]] } else { [&SIZES, &WIDE_SIZES] };
        for sizes in groups {
            let sizes: Vec<usize> =
                sizes.iter().copied().filter(|n| *n <= self.inputs.max_gpus).collect();
            let mut found = Vec::new();
            let copies = offer.costs.redundant_experts;
            for layout in Layout::candidates(&self.inputs.model, copies, &sizes) {
                found.extend(self.plan(offer, layout, latency)?);
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// One layout on one device, or nothing and the reason noted.
    fn plan(
        &mut self,
        offer: &Offer,
        layout: Layout,
        latency: &dyn LatencyModel,
    ) -> Result<Option<Candidate>> {
        let inputs = self.inputs;
        let deployment = deployment(inputs, offer, layout, latency);
        let name = format!("{} {layout}", offer.device.name);
        let variability = Variability::of(inputs.burstiness, inputs.spread);
        let curve = match PlanCurve::new(&deployment, &inputs.lengths, variability) {
            Ok(curve) => curve,
            Err(Error::Infeasible { what, .. }) => {
                let times = deployment.weights_per_device() / deployment.memory.usable();
                self.shortfalls.push(Shortfall::Memory {
                    plan: name.clone(),
                    times,
                    detail: what.clone(),
                });
                self.fail(name, format!("memory: {what}"));
                return Ok(None);
            }
            Err(error) => {
                self.fail(name, format!("latency: {error}"));
                return Ok(None);
            }
        };
        let (max_batch, start, capacity) = best_cap(&curve, inputs);
        let candidate = Candidate {
            device: offer.device.name.clone(),
            price: offer.price,
            layout,
            max_batch,
            start,
            most: (inputs.max_gpus / layout.devices()).saturating_sub(inputs.spare),
            capacity,
            weights: deployment.weights_per_device(),
            memory: deployment.memory,
            cache_per_sequence: deployment.cache_per_sequence(inputs.lengths.mean_context()),
            source: curve.step.source(),
            curve,
        };
        self.admit(candidate)
    }

    /// A plan that is worth simulating, or nothing and the reason noted.
    fn admit(&mut self, candidate: Candidate) -> Result<Option<Candidate>> {
        if candidate.most == 0 || candidate.floor() > candidate.most {
            let short = self.too_few(&candidate);
            if let Shortfall::Devices { needed, .. } = &short {
                let most = self.inputs.max_gpus;
                let reason = format!("throughput: {needed} devices needed, at most {most} allowed");
                self.fail(candidate.name(), reason);
            }
            self.shortfalls.push(short);
            return Ok(None);
        }
        if candidate.capacity > 0.0 {
            return Ok(Some(candidate));
        }
        // By the chain not even an idle replica keeps the limits. It knows mean lengths alone: the
        // simulation decides.
        let trial =
            Trial { inputs: self.inputs, curve: &candidate.curve, cap: candidate.max_batch };
        match trial.check_idle()? {
            Verdict::Kept(_) => Ok(Some(candidate)),
            Verdict::Missed(miss) => {
                self.miss(candidate, miss);
                Ok(None)
            }
        }
    }

    /// Simulates from the cheapest plan on: the cheapest one that keeps the limits, and others.
    fn finish(&mut self, mut candidates: Vec<Candidate>) -> Result<(Choice, Vec<Choice>)> {
        let inputs = self.inputs;
        candidates.sort_by(|a, b| {
            let price = |c: &Candidate| c.price_of(c.start, inputs).0;
            price(a).total_cmp(&price(b)).then(a.layout.devices().cmp(&b.layout.devices()))
        });
        let mut found: Vec<Choice> = Vec::new();
        // Plans that cost more than the best one, with the replicas that they need at least.
        let mut dearer: Vec<(Candidate, usize)> = Vec::new();
        let mut simulated = 0;
        for candidate in candidates {
            let best = found.iter().map(Choice::total_price).reduce(UsdPerHour::min);
            let cheaper = best.map_or(candidate.most, |best| candidate.below(best, inputs));
            if cheaper < candidate.floor() || (simulated >= FINALISTS && best.is_some()) {
                let least = candidate.start;
                dearer.push((candidate, least));
                continue;
            }
            simulated += 1;
            match candidate.settle(inputs, candidate.start, cheaper)? {
                Ok((cap, settled)) => found.push(candidate.chosen(inputs, cap, settled)?),
                Err(_) if cheaper < candidate.most => {
                    let least = candidate.start.max(cheaper + 1);
                    dearer.push((candidate, least));
                }
                Err(miss) => self.miss(candidate, miss),
            }
        }
        if found.is_empty() {
            return Err(self.infeasible()?);
        }
        dearer.sort_by(|a, b| {
            let price = |(c, least): &(Candidate, usize)| c.price_of(*least, inputs).0;
            price(a).total_cmp(&price(b))
        });
        for (candidate, least) in dearer {
            if found.len() > ALTERNATIVES {
                break;
            }
            match candidate.settle(inputs, least, candidate.most)? {
                Ok((cap, settled)) => found.push(candidate.chosen(inputs, cap, settled)?),
                Err(miss) => self.miss(candidate, miss),
            }
        }
        found.sort_by(|a, b| {
            let tpot = a.load.tpot[0].0.total_cmp(&b.load.tpot[0].0);
            a.total_price().0.total_cmp(&b.total_price().0).then(tpot)
        });
        let others = found.split_off(1);
        let best = found.pop().ok_or_else(|| Error::unfit("size", "no plan was found"))?;
        Ok((best, others))
    }

    fn infeasible(&self) -> Result<Error> {
        let inputs = self.inputs;
        let what = format!(
            "{} at {} requests/s on up to {} devices, {} plans tried",
            inputs.model.name,
            inputs.rate,
            inputs.max_gpus,
            self.failures.len()
        );
        Ok(Error::infeasible(what, sentence(inputs, &self.shortfalls, &self.failures)?))
    }
}

/// Batch limit and replicas with the fewest replicas by the chain, and what a replica could carry; a
/// capacity of 0 and one replica where by the chain nothing keeps the limits.
pub(super) fn best_cap(curve: &PlanCurve, inputs: &SizeInputs) -> (usize, usize, f64) {
    let mut best = (curve.cap(), 1, 0.0);
    let mut cap = curve.cap();
    loop {
        let capacity = curve.capacity(&inputs.limits, cap);
        if capacity > 0.0 {
            let needed = replicas(inputs.peak(), capacity);
            let (_, fewest, most) = best;
            if most <= 0.0 || needed < fewest || (needed == fewest && capacity > most) {
                best = (cap, needed, capacity);
            }
        }
        if cap <= 4 {
            break;
        }
        cap /= 2;
    }
    best
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

/// What would have to give way for the plan to become cheaper.
fn binding(best: &Choice, inputs: &SizeInputs) -> String {
    /// Below this use of its only replica a deployment is there to hold the weights.
    const IDLE_SHARE: f64 = 0.5;
    if let Some(miss) = &best.below {
        return miss.constraint.clone();
    }
    if best.utilisation(inputs) * inputs.peak_over_mean < IDLE_SHARE {
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
