//! A candidate in every layout that it fits, and the cheapest way to serve given traffic with it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::MoeModel;
use crate::latency::LatencyModel;
use crate::plan::candidates::{Shape, ladder, model};
use crate::plan::inputs::{Demand, RankInputs};
use crate::serving::{
    Deployment, Layout, LoadModel, Operation, StepCurve, StepFactors, usd_per_million_output,
};
use crate::units::{TokensPerSecond, UsdPerMillionTokens};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// A ratio of rates that exceeds a whole number by less than this needs no further replica.
const ROUNDING: f64 = 1e-9;

/// One candidate with its step time in each layout that holds it.
#[derive(Clone, Debug)]
pub struct Priced {
    /// The model.
    pub model: MoeModel,
    /// Layouts that hold the weights and at least one sequence; those that another one beats at
    /// every batch are left out.
    pub options: Vec<ReplicaOption>,
    /// Why a layout is missing that would divide the model, as far as it was not memory.
    pub refused: Option<String>,
}

/// A candidate in one layout.
#[derive(Clone, Debug)]
pub struct ReplicaOption {
    /// The layout.
    pub layout: Layout,
    /// Its step time against batch.
    pub curve: StepCurve,
}

/// A deployment of one candidate at given traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deployed {
    /// Index of the layout in the candidate's options.
    pub option: usize,
    /// Layout of one replica.
    pub layout: Layout,
    /// Replicas: whole for a given rate, 1 at scale.
    pub replicas: f64,
    /// Highest operating point of one replica within the service level.
    pub capacity: Operation,
    /// All serving dollars over output tokens.
    pub cost: UsdPerMillionTokens,
    /// Traffic over capacity.
    pub utilisation: f64,
}

impl Deployed {
    /// Devices of all replicas.
    pub fn gpus(&self) -> f64 {
        self.layout.devices() as f64 * self.replicas
    }

    /// Requests per second of one replica at the given traffic.
    pub fn requests_per_s(&self) -> f64 {
        self.capacity.requests_per_s * self.utilisation
    }
}

/// The load of the experts of one expert count.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Nominal.
    pub load: LoadModel,
    /// Far end of the range of skew; `None` where there is no range.
    pub skewed: Option<LoadModel>,
}

impl Routing {
    /// The loads of `experts` experts, `top_k` a token.
    ///
    /// # Errors
    /// [`Error::Usage`] for a routing that the sizes do not allow.
    pub fn new(inputs: &RankInputs, experts: usize, top_k: usize) -> Result<Self> {
        let ranged = inputs.ranges.zipf > 0.0 && experts > 1;
        let skewed = ranged
            .then(|| LoadModel::new(&RoutingKind::Zipf { s: inputs.ranges.zipf }, experts, top_k));
        Ok(Self {
            load: LoadModel::new(&inputs.routing, experts, top_k)?,
            skewed: skewed.transpose()?,
        })
    }
}

/// Shapes of one expert count by the loss that they reach.
type Ladder = Arc<Vec<(f64, Shape)>>;

/// Prices shapes, each once, for one set of inputs that step times depend on.
pub struct Book {
    latency: Arc<dyn LatencyModel>,
    inputs: RankInputs,
    routings: Arc<Vec<(usize, Routing)>>,
    priced: Mutex<HashMap<Shape, Arc<Priced>>>,
    ladders: Mutex<HashMap<usize, Ladder>>,
}

impl Book {
    /// A book for the expert counts, lengths, formats, device and service level of `inputs`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a routing that the sizes do not allow.
    pub fn new(latency: Arc<dyn LatencyModel>, inputs: &RankInputs) -> Result<Self> {
        let of = |&experts: &usize| {
            let top_k = inputs.template.top_k.min(experts);
            Ok((experts, Routing::new(inputs, experts, top_k)?))
        };
        let routings = inputs.experts.iter().map(of).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            latency,
            inputs: inputs.clone(),
            routings: Arc::new(routings),
            priced: Mutex::default(),
            ladders: Mutex::default(),
        })
    }

    /// An empty book for other lengths, formats or limits of the same expert counts and routing.
    pub fn with(&self, inputs: &RankInputs) -> Self {
        Self {
            latency: Arc::clone(&self.latency),
            inputs: inputs.clone(),
            routings: Arc::clone(&self.routings),
            priced: Mutex::default(),
            ladders: Mutex::default(),
        }
    }

    /// Serving dollars per million output tokens of a model of any size: between the two shapes
    /// around it, linear in the logarithms. `None` when one of them cannot be served within the
    /// service level. A bound on cost does not count here: it is what the cost is compared with.
    pub fn cost(&self, experts: usize, n_active: f64) -> Option<f64> {
        let ladder = self.ladder(experts);
        let after = ladder.partition_point(|(n, _)| *n < n_active).clamp(1, ladder.len() - 1);
        let (low, high) = (ladder.get(after - 1)?, ladder.get(after)?);
        let of = |shape: &Shape| {
            let priced = self.get(shape).ok()?;
            Some(priced.deploy(&self.inputs, &StepFactors::ONE)?.cost.0.ln())
        };
        let share = (n_active / low.0).ln() / (high.0 / low.0).ln();
        let (at_low, at_high) = (of(&low.1)?, of(&high.1)?);
        Some((at_low + share * (at_high - at_low)).exp())
    }

    /// Shapes by rising size, one a width.
    fn ladder(&self, experts: usize) -> Ladder {
        let lock = || self.ladders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&experts).cloned() {
            return known;
        }
        let ladder = Arc::new(ladder(&self.inputs.template, experts));
        Arc::clone(lock().entry(experts).or_insert(ladder))
    }

    /// The latencies behind the prices.
    pub fn latency(&self) -> &Arc<dyn LatencyModel> {
        &self.latency
    }

    /// The routing of an expert count.
    ///
    /// # Errors
    /// [`Error::Usage`] for an expert count that the book was not made for.
    pub fn routing(&self, experts: usize) -> Result<&Routing> {
        let found = self.routings.iter().find(|(e, _)| *e == experts).map(|(_, r)| r);
        found.ok_or_else(|| Error::usage("--experts", format!("{experts} is not compared")))
    }

    /// A shape's step times, from memory if it was asked before.
    ///
    /// # Errors
    /// When no latency model answers in any layout.
    pub fn get(&self, shape: &Shape) -> Result<Arc<Priced>> {
        let known =
            || self.priced.lock().unwrap_or_else(PoisonError::into_inner).get(shape).cloned();
        if let Some(priced) = known() {
            return Ok(priced);
        }
        let model = model(shape, &self.inputs)?;
        let routing = self.routing(shape.experts)?;
        let priced = Arc::new(Priced::new(model, routing, self.latency.as_ref(), &self.inputs)?);
        let mut all = self.priced.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(all.entry(*shape).or_insert(priced)))
    }
}

impl Priced {
    /// Tabulates `model` in every layout of `inputs`.
    ///
    /// # Errors
    /// [`Error::Unfit`] when a latency is missing in every layout that would fit.
    pub fn new(
        model: MoeModel,
        routing: &Routing,
        latency: &dyn LatencyModel,
        inputs: &RankInputs,
    ) -> Result<Self> {
        let mut options = Vec::new();
        let mut refused = None;
        let device = &inputs.device;
        for sizes in [&device.replica_sizes, &device.wide_sizes] {
            if options.iter().any(|o: &ReplicaOption| keeps(o, inputs)) {
                break;
            }
            for layout in Layout::candidates(&model, 0, sizes) {
                let deployment = deployment(&model, layout, routing, latency, inputs);
                match StepCurve::new(&deployment, &inputs.lengths, &inputs.level) {
                    Ok(curve) => options.push(ReplicaOption { layout, curve }),
                    Err(Error::Infeasible { .. }) => {}
                    Err(error) => refused = Some(error),
                }
            }
        }
        match refused {
            Some(error) if options.is_empty() => Err(error),
            refused => {
                let refused = refused.map(|e| e.to_string());
                Ok(Self { model, options: undominated(options), refused })
            }
        }
    }

    /// The highest operating point of one replica in each layout that keeps the service level.
    pub fn capacities<'a>(
        &'a self,
        inputs: &'a RankInputs,
        factors: &'a StepFactors,
    ) -> impl Iterator<Item = (usize, Layout, Operation)> + 'a {
        self.options.iter().enumerate().filter_map(move |(i, o)| {
            Some((i, o.layout, o.curve.capacity(&inputs.level, factors)?))
        })
    }

    /// The cheapest deployment for the given traffic; `None` when no layout keeps the service level.
    pub fn deploy(&self, inputs: &RankInputs, factors: &StepFactors) -> Option<Deployed> {
        self.capacities(inputs, factors)
            .map(|(option, layout, capacity)| {
                let (replicas, utilisation) = replicas(inputs.demand, capacity.requests_per_s);
                let output = capacity.output_rate.0 * utilisation * replicas;
                let gpus = layout.devices() as f64 * replicas;
                let rate = TokensPerSecond(output);
                let cost = usd_per_million_output(gpus, inputs.device.price, rate);
                Deployed { option, layout, replicas, capacity, cost, utilisation }
            })
            // At the same number of devices the faster one is the better answer.
            .min_by(|a, b| {
                let key = |d: &Deployed| (d.gpus() / d.output_rate(), d.capacity.tpot.0);
                key(a).partial_cmp(&key(b)).unwrap_or(Ordering::Equal)
            })
    }

    /// Why nothing serves this candidate, as one sentence.
    pub fn why_not(&self, inputs: &RankInputs) -> Error {
        let fastest = self
            .options
            .iter()
            .map(|o| o.curve.step_time(1.0, &StepFactors::ONE).as_ms())
            .reduce(f64::min);
        if let Some(fastest) = fastest {
            return Error::infeasible(
                format!("one sequence alone takes {fastest:.1} ms a token, over the service level"),
                format!("nearest feasible --tpot is {fastest:.1}ms"),
            );
        }
        let device = &inputs.device;
        let most =
            device.replica_sizes.iter().chain(&device.wide_sizes).max().copied().unwrap_or(1);
        let reason = self.refused.as_ref().map_or_else(String::new, |r| format!("; {r}"));
        Error::infeasible(
            format!(
                "no layout of up to {most} device(s) that divides the model holds weights of {} and one \
                 sequence in {} each{reason}",
                self.model.weight_bytes(),
                device.memory.usable()
            ),
            "use fewer experts, fewer bits or a larger device",
        )
    }
}

/// Whether one replica can keep the service level at all.
fn keeps(option: &ReplicaOption, inputs: &RankInputs) -> bool {
    option.curve.capacity(&inputs.level, &StepFactors::ONE).is_some()
}

impl Deployed {
    fn output_rate(&self) -> f64 {
        self.capacity.output_rate.0 * self.utilisation * self.replicas
    }
}

/// A candidate in one layout under `inputs`.
pub fn deployment<'a>(
    model: &'a MoeModel,
    layout: Layout,
    routing: &'a Routing,
    latency: &'a dyn LatencyModel,
    inputs: &'a RankInputs,
) -> Deployment<'a> {
    Deployment {
        model,
        layout,
        latency,
        costs: &inputs.device.costs,
        routing: &routing.load,
        skewed: routing.skewed.as_ref(),
        memory: inputs.device.memory,
        domain: inputs.device.spec.scale_up_devices,
    }
}

/// Leaves out layouts that another one with no more devices beats at every batch.
fn undominated(options: Vec<ReplicaOption>) -> Vec<ReplicaOption> {
    let beaten = |i: usize| {
        let mine = &options[i];
        options.iter().enumerate().any(|(j, other)| {
            j != i
                && other.layout.devices() <= mine.layout.devices()
                && other.curve.beats(&mine.curve)
                && !(i < j && mine.curve.beats(&other.curve))
        })
    };
    let keep: Vec<bool> = (0..options.len()).map(|i| !beaten(i)).collect();
    options.into_iter().zip(keep).filter_map(|(o, keep)| keep.then_some(o)).collect()
}

/// Replicas for the demand, and the share of their capacity that it uses.
pub fn replicas(demand: Demand, requests_per_s: f64) -> (f64, f64) {
    match demand.rate {
        Some(rate) => {
            let each = requests_per_s * demand.utilisation;
            let replicas = (rate / each - ROUNDING).ceil().max(1.0);
            (replicas, rate / (requests_per_s * replicas))
        }
        None => (1.0, demand.utilisation),
    }
}
