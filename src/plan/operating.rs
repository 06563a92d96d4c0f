//! Where a candidate's deployment operates at the given traffic, and what limits it there.

use crate::plan::inputs::RankInputs;
use crate::plan::outcome::Binding;
use crate::plan::price::{Book, Deployed, Priced, ReplicaOption, deployment};
use crate::serving::{Breakdown, Served, StepFactors, Traffic};
use crate::{Error, Result};

/// A deployment at work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operating {
    /// The cheapest deployment.
    pub deployed: Deployed,
    /// One replica at the given traffic, by the serving model itself and not by its table.
    pub served: Served,
    /// What limits it.
    pub binding: Binding,
}

/// The cheapest deployment of a candidate at the given traffic.
///
/// # Errors
/// [`Error::Infeasible`] with the nearest service level that can be kept, or for a cost over the bound.
pub fn operate(book: &Book, priced: &Priced, inputs: &RankInputs) -> Result<Operating> {
    let deployed =
        priced.deploy(inputs, &StepFactors::ONE).ok_or_else(|| priced.why_not(inputs))?;
    if let Some(bound) = inputs.max_serve.filter(|bound| deployed.cost.0 > bound.0) {
        return Err(Error::infeasible(
            format!("serving costs {}, over the bound of {bound}", deployed.cost),
            "raise --max-serve-cost",
        ));
    }
    let option = &priced.options[deployed.option];
    let routing = book.routing(priced.model.num_experts)?;
    let replica =
        deployment(&priced.model, option.layout, routing, book.latency().as_ref(), inputs);
    let served = replica.serve(&Traffic::Open(deployed.requests_per_s()), &inputs.lengths)?;
    let binding = binding(priced, option, &deployed, inputs);
    Ok(Operating { deployed, served, binding })
}

/// What would have to change for the deployment to become cheaper.
fn binding(
    priced: &Priced,
    option: &ReplicaOption,
    deployed: &Deployed,
    inputs: &RankInputs,
) -> Binding {
    /// Below this use of its only, smallest replica a deployment is there to hold the weights.
    const IDLE: f64 = 0.9;
    let smallest = priced.options.iter().all(|o| o.layout.devices() >= option.layout.devices());
    let alone = inputs.demand.rate.is_some() && deployed.replicas <= 1.0;
    if alone && smallest && deployed.utilisation < IDLE * inputs.demand.utilisation {
        return Binding::MemoryFloor;
    }
    if deployed.capacity.batch >= option.curve.cap() {
        return Binding::KvBound;
    }
    largest_part(option.curve.parts(deployed.capacity.batch))
}

/// The part of a step that takes longest.
fn largest_part(step: &Breakdown) -> Binding {
    let arithmetic = step.moe.arithmetic_s + step.dense.arithmetic_s;
    let parts = [
        (Binding::WeightStream, step.moe.seconds + step.dense.seconds - arithmetic),
        (Binding::KvBound, step.attention.seconds),
        (Binding::ComputeBound, arithmetic),
        (Binding::Overhead, step.overhead_s + step.communication.seconds),
    ];
    let largest = |best: (Binding, f64), part: (Binding, f64)| {
        if part.1 > best.1 { part } else { best }
    };
    parts.into_iter().fold(parts[0], largest).0
}
