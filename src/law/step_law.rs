//! Step Law (arXiv 2503.04715): learning rate and batch size that the paper found best for a size
//! and a number of tokens. Advice beside a recommended run, no part of any ranking.

use serde::{Deserialize, Serialize};

use crate::law::{Inputs, Range, Variable};

/// The paper's dense runs: 60M to 1.07B parameters without the vocabulary, 2B to 100B tokens.
const RUNS: [Range; 2] =
    [Range::new(Variable::NActive, 6e7, 1.0738e9), Range::new(Variable::Tokens, 2e9, 1e11)];
/// Beyond this factor outside the runs no advice is given: the runs themselves span little more than
/// one factor of ten in size.
const FAR_OUTSIDE: f64 = 10.0;

/// Peak learning rate and batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLaw {
    /// Peak learning rate: `1.79 N^-0.713 D^0.307`.
    pub learning_rate: f64,
    /// Batch in tokens: `0.58 D^0.571`.
    pub batch_tokens: f64,
}

/// Advice for `n` parameters without the vocabulary on `tokens` tokens.
///
/// ```
/// let advice = moe_frontier::law::step_law::step_law(1e9, 1e11);
/// assert!((advice.learning_rate / 1.6325e-3 - 1.0).abs() < 1e-4);
/// ```
pub fn step_law(n: f64, tokens: f64) -> StepLaw {
    StepLaw {
        learning_rate: 1.79 * n.powf(-0.713) * tokens.powf(0.307),
        batch_tokens: 0.58 * tokens.powf(0.571),
    }
}

/// Advice for a candidate: [`step_law`] with the largest factor by which size or tokens lie outside
/// the paper's runs (1 is inside).
///
/// # Errors
/// A sentence, when that factor is above 10 or a size is not above zero.
pub fn advice(n: f64, tokens: f64) -> Result<(StepLaw, f64), String> {
    if !(n.is_finite() && n > 0.0 && tokens.is_finite() && tokens > 0.0) {
        return Err("Step Law takes sizes above zero".into());
    }
    let state = Inputs::default().with(Variable::NActive, n).with(Variable::Tokens, tokens);
    let outside = RUNS.iter().filter_map(|range| range.outside(&state));
    let worst = outside.max_by(|a, b| a.factor.total_cmp(&b.factor));
    match worst {
        Some(worst) if worst.factor > FAR_OUTSIDE => Err(format!(
            "{} of {:.3e} lies {:.0} times outside Step Law's runs, which end at {:.3e}",
            if worst.variable == Variable::Tokens { "tokens" } else { "parameters" },
            worst.value,
            worst.factor,
            worst.limit
        )),
        worst => Ok((step_law(n, tokens), worst.map_or(1.0, |w| w.factor))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_inside_the_runs_and_refused_far_outside() {
        let (inside, factor) = advice(1e9, 1e11).unwrap();
        assert_eq!(inside, step_law(1e9, 1e11));
        assert!((factor - 1.0).abs() < 1e-12);
        let (_, factor) = advice(1e9, 4e11).unwrap();
        assert!((factor - 4.0).abs() < 1e-12);
        for (n, tokens, word) in [
            (1e9, 1.1e12, "tokens"),
            (1.2e10, 1e11, "parameters"),
            (5e6, 1e10, "parameters"),
            (f64::NAN, 1e9, "above zero"),
            (1e9, 0.0, "above zero"),
        ] {
            let reason = advice(n, tokens).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn the_advice_agrees_with_the_computed_values() {
        let advice = step_law(1e9, 1e11);
        assert!((advice.learning_rate / 1.6325e-3 - 1.0).abs() < 1e-4, "{advice:?}");
        assert!((advice.batch_tokens / 1.1077e6 - 1.0).abs() < 1e-4, "{advice:?}");
    }
}
