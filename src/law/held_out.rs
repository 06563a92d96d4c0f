//! How well laws predict a user's largest runs: the evidence by which their weights in a mixture can be
//! set.
//!
//! Tokenizer and corpus differ from those behind a law, so its level is none of the evidence: the smaller
//! runs set an offset in nats, and what is left on the largest is the law's error.

use crate::law::fit::Run;
use crate::law::{Scaling, Variable};
use crate::{Error, Result};

/// Share of the runs, largest training FLOPs first, that are predicted.
const HELD_OUT: f64 = 0.25;
/// Fewest runs that a law must answer.
const FEWEST: usize = 8;

/// What a law errs on the largest runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// Root mean square of the errors in nats.
    pub rmse_nats: f64,
    /// Runs that were predicted.
    pub predicted: usize,
}

/// The variables that a file of runs must give: experts per layer, active parameters, tokens.
pub const VARIABLES: [Variable; 3] = [Variable::Experts, Variable::NActive, Variable::Tokens];

/// The error of a law, on its architecture, on the largest of the runs that it answers.
///
/// # Errors
/// [`Error::Unfit`] when it answers too few of them.
pub fn held_out(law: &Scaling, runs: &[Run]) -> Result<HeldOut> {
    let off = |run: &Run| {
        let [experts, n_active, tokens] = VARIABLES.map(|v| run.value(v));
        let slice = law.slice(crate::units::nearest_whole(experts)).ok()?;
        let error = run.ln_loss.exp() - slice.loss(n_active, tokens).0;
        error.is_finite().then_some((n_active * tokens, error))
    };
    let mut off: Vec<(f64, f64)> = runs.iter().filter_map(off).collect();
    if off.len() < FEWEST {
        let reason =
            format!("answers {} of the {} runs; {FEWEST} are needed", off.len(), runs.len());
        return Err(Error::unfit(law.id(), reason));
    }
    off.sort_by(|a, b| a.0.total_cmp(&b.0));
    let predicted = crate::units::nearest_whole(off.len() as f64 * HELD_OUT).max(1);
    let (small, large) = off.split_at(off.len() - predicted);
    let offset = small.iter().map(|o| o.1).sum::<f64>() / small.len() as f64;
    let squares = large.iter().map(|o| (o.1 - offset).powi(2)).sum::<f64>();
    Ok(HeldOut { rmse_nats: (squares / predicted as f64).sqrt(), predicted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Inputs, load_scaling};

    /// Runs that a law makes, in another tokenizer.
    fn runs(id: &str) -> Vec<Run> {
        let law = load_scaling(id).unwrap();
        let mut runs = Vec::new();
        for experts in [4, 8, 16] {
            let slice = law.slice(experts).unwrap();
            for n_active in [1e8, 3e8, 1e9, 3e9] {
                let tokens = 20.0 * n_active;
                let values = [experts as f64, n_active, tokens];
                let inputs = Inputs::new(VARIABLES.into_iter().zip(values)).unwrap();
                let line = runs.len();
                runs.push(Run::new(inputs, slice.loss(n_active, tokens).0 + 0.3, line, line));
            }
        }
        runs
    }

    #[test]
    fn the_law_behind_the_runs_errs_least_whatever_the_tokenizer() {
        for truth in ["ludziejewski2025", "abnar2025", "tian2025"] {
            let runs = runs(truth);
            let error = |id: &str| held_out(&load_scaling(id).unwrap(), &runs).unwrap().rmse_nats;
            assert!(error(truth) < 1e-9, "{truth}");
            for other in ["ludziejewski2025", "abnar2025", "tian2025", "clark2022"] {
                assert!(other == truth || error(other) > 1e-3, "{other} on {truth}");
            }
        }
    }

    #[test]
    fn too_few_runs_are_refused() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let error = held_out(&law, &runs("ludziejewski2025")[..7]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("7 of the 7"), "{error}");
    }
}
