//! What comes nearest when nothing keeps the limits.

use super::candidate::Candidate;
use super::replicas::{Miss, Trial, counted};
use super::{Failure, SizeInputs};
use crate::Result;
use crate::units::Seconds;

/// Plans of which the nearest service level is taken.
const COMPARED: usize = 3;

/// A plan that keeps no service level, or not this one.
pub(super) enum Shortfall {
    /// It misses a limit with as many replicas as are allowed; by the chain its tightest limit is
    /// used so many times.
    Limit(Box<Candidate>, Miss, f64),
    /// It needs so many times the devices that are allowed, and carries so many requests per second
    /// on those.
    Devices { plan: String, needed: usize, carried: f64 },
    /// Its weights and one sequence need so many times the memory.
    Memory { plan: String, times: f64, detail: String },
}

/// The nearest service level with what binds the plan that keeps it.
///
/// # Errors
/// As the simulation.
pub(super) fn sentence(
    inputs: &SizeInputs,
    shortfalls: &[Shortfall],
    failures: &[Failure],
) -> Result<String> {
    if let Some(text) = level(inputs, shortfalls)? {
        return Ok(text);
    }
    let devices = shortfalls.iter().filter_map(|s| match s {
        Shortfall::Devices { plan, needed, carried } => Some((plan, needed, carried)),
        _ => None,
    });
    if let Some((plan, needed, carried)) = devices.min_by_key(|d| d.1) {
        let most = inputs.max_gpus;
        let carried = if *carried > 0.0 {
            format!("; {most} carry {carried:.3} requests/s within the service level")
        } else {
            String::new()
        };
        return Ok(format!(
            "binding: throughput of {plan}, {needed} devices needed{carried}; allow more with \
             --max-gpus"
        ));
    }
    let memory = shortfalls.iter().filter_map(|s| match s {
        Shortfall::Memory { plan, times, detail } => Some((plan, times, detail)),
        _ => None,
    });
    if let Some((plan, _, detail)) = memory.min_by(|a, b| a.1.total_cmp(b.1)) {
        return Ok(format!("binding: memory of {plan}, {detail}"));
    }
    Ok(failures.first().map_or_else(
        || "no layout divides this model".into(),
        |f| format!("for instance {}: {}", f.plan, f.reason),
    ))
}

/// The nearest level of the plans that miss a limit.
fn level(inputs: &SizeInputs, shortfalls: &[Shortfall]) -> Result<Option<String>> {
    let mut missing: Vec<(&Candidate, &Miss, f64)> = shortfalls
        .iter()
        .filter_map(|s| match s {
            Shortfall::Limit(candidate, miss, ratio) => Some((candidate.as_ref(), miss, *ratio)),
            _ => None,
        })
        .collect();
    missing.sort_by(|a, b| a.2.total_cmp(&b.2));
    let mut best: Option<(f64, String)> = None;
    for (candidate, miss, _) in missing.into_iter().take(COMPARED) {
        let trial = Trial { inputs, curve: &candidate.curve, cap: candidate.max_batch };
        let simulated = trial.measure(candidate.most)?;
        let found = inputs.limits.iter().map(|l| (l, l.simulated(&simulated).hi));
        let ratio = found.clone().map(|(l, hi)| hi / l.most.0).fold(0.0, f64::max);
        if best.as_ref().is_some_and(|(least, _)| ratio >= *least) {
            continue;
        }
        let levels: Vec<String> =
            found.map(|(l, hi)| format!("{l} {}", up(hi.max(l.most.0)))).collect();
        let name = candidate.name();
        let text = format!(
            "nearest feasible service level: {} (on {} of {name}); binding: {miss}",
            levels.join(", "),
            counted(candidate.most)
        );
        best = Some((ratio, text));
    }
    Ok(best.map(|(_, text)| text))
}

/// Seconds in ms, rounded up, so that the printed level is kept.
fn up(seconds: f64) -> String {
    format!("{:.1} ms", (Seconds(seconds).as_ms() * 10.0 - 1e-9).ceil() / 10.0)
}
