//! The fewest replicas of a plan over the batch limits that are worth trying.

use super::replicas::{Found, Miss, Trial, fewest};
use super::{Metric, PlanCurve, SizeInputs};
use crate::{Error, Result};

/// The fewest replicas, from `start` on and up to `most`, that keep the limits, with their batch
/// limit; the batch limits `first` are tried before all others.
pub(super) fn settle(
    inputs: &SizeInputs,
    curve: &PlanCurve,
    first: &[usize],
    (start, most): (usize, usize),
) -> Result<Result<(usize, Found), Miss>> {
    let mut best: Option<(usize, Found)> = None;
    let mut missed = None;
    for cap in caps(inputs, curve, first) {
        let most = best.as_ref().map_or(most, |(_, found)| found.replicas - 1);
        if most == 0 {
            break;
        }
        let trial = Trial { inputs, curve, cap };
        match fewest(start.min(most), most, |replicas| trial.check(replicas))? {
            Ok(found) => best = Some((cap, found)),
            Err(miss) => missed = missed.or(Some(miss)),
        }
    }
    match (best, missed) {
        (Some(best), _) => Ok(Ok(best)),
        (None, Some(miss)) => Ok(Err(miss)),
        (None, None) => Err(Error::unfit("size", "no batch limit to try")),
    }
}

/// Batch limits worth trying: the first ones, the memory's, and from the largest one whose full step
/// keeps the limit on TPOT down: bursts then wait for a place instead of slowing each other.
fn caps(inputs: &SizeInputs, curve: &PlanCurve, first: &[usize]) -> Vec<usize> {
    let tpot = inputs.limits.iter().filter(|l| l.metric == Metric::Tpot);
    let tpot = tpot.map(|l| l.most.0).fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (1, curve.cap() + 1);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if curve.throughput(middle).1.0 <= tpot {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut caps: Vec<usize> = Vec::new();
    let kept = [curve.cap(), low, low / 2, low / 4, low / 8, low / 16];
    for cap in first.iter().copied().chain(kept) {
        if cap > 0 && !caps.contains(&cap) {
            caps.push(cap);
        }
    }
    caps
}
