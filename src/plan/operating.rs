//! Where a candidate's deployment operates at the given traffic, and what limits it there.

use crate::latency::Source;
use crate::plan::inputs::{Demand, RankInputs};
use crate::plan::outcome::Binding;
use crate::plan::price::{Priced, Quote, ReplicaOption};
use crate::serving::{Operation, StepFactors, StepTime};
use crate::units::Seconds;
use crate::{Error, Result};

/// A deployment at work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// The cheapest deployment.
    pub quote: Quote,
    /// One replica at the given traffic.
    pub operation: Operation,
    /// What limits it.
    pub binding: Binding,
    /// Origin of its MoE latencies.
    pub source: Source,
}

/// The cheapest deployment of a candidate at the given traffic.
///
/// # Errors
/// [`Error::Infeasible`] with the nearest service level that can be kept, or for a cost over the bound.
pub fn serve(priced: &Priced, inputs: &RankInputs) -> Result<Served> {
    let quote = priced.quote(inputs, &StepFactors::ONE).ok_or_else(|| priced.why_not(inputs))?;
    if let Some(bound) = inputs.max_serve.filter(|bound| quote.cost.0 > bound.0) {
        return Err(Error::infeasible(
            format!("serving costs {}, over the bound of {bound}", quote.cost),
            "raise --max-serve-cost",
        ));
    }
    let option = priced.option(quote.devices).ok_or_else(|| priced.why_not(inputs))?;
    let rate = quote.capacity.requests_per_s * quote.utilisation;
    let operation = option.curve.at_rate(rate, &StepFactors::ONE).unwrap_or(quote.capacity);
    let binding = binding(priced, option, &quote, inputs.demand);
    Ok(Served { quote, operation, binding, source: option.curve.source(operation.batch) })
}

/// What would have to change for the deployment to become cheaper.
fn binding(priced: &Priced, option: &ReplicaOption, quote: &Quote, demand: Demand) -> Binding {
    /// Below this use of its only, smallest replica a deployment is there to hold the weights.
    const IDLE: f64 = 0.9;
    let smallest = priced.options.iter().all(|o| o.devices >= option.devices);
    let alone = matches!(demand, Demand::Rate(_)) && quote.replicas <= 1.0;
    if alone && smallest && quote.utilisation < IDLE {
        return Binding::MemoryFloor;
    }
    if quote.capacity.batch >= option.curve.cap() {
        return Binding::KvBound;
    }
    largest_part(option.curve.parts(quote.capacity.batch))
}

/// The part of a step that takes longest.
fn largest_part(step: &StepTime) -> Binding {
    let weights = step.experts + step.dense - step.compute_bound;
    let parts = [
        (Binding::WeightStream, weights),
        (Binding::KvBound, step.attention),
        (Binding::ComputeBound, step.compute_bound),
        (Binding::Overhead, step.overhead + step.communication),
    ];
    let largest = |best: (Binding, Seconds), part: (Binding, Seconds)| {
        if part.1 > best.1 { part } else { best }
    };
    parts.into_iter().fold(parts[0], largest).0
}
