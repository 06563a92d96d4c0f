//! What the serving model's own error does to a plan: the same question on a slower and on a faster
//! engine.

use super::search::best_cap;
use super::settle::settle;
use super::{Choice, SizeInputs};
use crate::Result;

/// Half widths of the serving model's 95 % intervals of ln TPOT and ln TTFT.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelError {
    /// Of the time per output token.
    pub tpot: f64,
    /// Of the time to first token.
    pub ttft: f64,
}

/// Devices of a plan at the ends of the model's interval, spares included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// On an engine as fast as the lower end.
    pub least: usize,
    /// On one as slow as the upper end; `None` where no allowed number keeps the limits.
    pub most: Option<usize>,
}

/// How many devices the layout of a plan takes if the model errs as far as its interval reaches, either
/// way: steps by the interval of TPOT, what a first token takes beyond them by that of TTFT.
///
/// # Errors
/// As the simulation.
pub fn reach(inputs: &SizeInputs, choice: &Choice, error: &ModelError) -> Result<Reach> {
    let most = (inputs.max_gpus / choice.layout.devices()).saturating_sub(inputs.spare).max(1);
    let at = |sign: f64| -> Result<Option<usize>> {
        let (step, first) = ((sign * error.tpot).exp(), (sign * error.ttft).exp());
        let curve = choice.curve.scaled(step, first);
        let (by_chain, start, _) = best_cap(&curve, inputs);
        let first = [choice.max_batch, by_chain];
        let found = settle(inputs, &curve, &first, (start, most))?.ok();
        Ok(found.map(|(_, f)| (f.replicas + inputs.spare) * choice.layout.devices()))
    };
    let least = at(-1.0)?.unwrap_or_else(|| choice.gpus()).min(choice.gpus());
    Ok(Reach { least, most: at(1.0)?.map(|gpus| gpus.max(choice.gpus())) })
}
