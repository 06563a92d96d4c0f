//! Step Law (arXiv 2503.04715): learning rate and batch size that the paper found best for a size
//! and a number of tokens. Advice beside a recommended run, no part of any ranking.

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_agrees_with_the_computed_values() {
        let advice = step_law(1e9, 1e11);
        assert!((advice.learning_rate / 1.6325e-3 - 1.0).abs() < 1e-4, "{advice:?}");
        assert!((advice.batch_tokens / 1.1077e6 - 1.0).abs() < 1e-4, "{advice:?}");
    }
}
