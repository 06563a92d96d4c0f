//! Loss laws: from parameters, tokens and experts to nats per token.
//!
//! Losses of two laws are never compared: tokenizer and corpus differ.

use crate::{Error, Result};

pub mod dense;
pub mod ludziejewski2025;
mod power_law;
mod scaling;

pub use power_law::{Optimum, PowerLawSlice};
pub use scaling::{Closure, ExpertScaling, Extrapolation};

/// `1 / (1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max)`: the expert count that several laws use.
///
/// One expert gives exactly `e_start`; endlessly many approach `e_max`.
pub fn effective_experts(experts: f64, e_start: f64, e_max: f64) -> f64 {
    let offset = 1.0 / (1.0 / e_start - 1.0 / e_max);
    1.0 / (1.0 / (experts - 1.0 + offset) + 1.0 / e_max)
}

/// Laws that can rank expert counts, by identifier.
pub const SCALING_IDS: [&str; 1] = ["ludziejewski2025"];

/// The law with this identifier, for ranking expert counts.
///
/// # Errors
/// [`Error::Usage`] for an unknown identifier, naming those there are.
pub fn load_scaling(id: &str) -> Result<Box<dyn ExpertScaling>> {
    match id {
        "ludziejewski2025" => Ok(Box::new(ludziejewski2025::Ludziejewski2025::published()?)),
        _ => Err(Error::usage(
            "--law",
            format!(
                "`{id}` is no law that ranks expert counts; there is {}",
                SCALING_IDS.join(", ")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_experts_run_from_start_to_limit() {
        assert!((effective_experts(1.0, 2.0, 300.0) - 2.0).abs() < 1e-12);
        assert!((effective_experts(1e15, 2.0, 300.0) - 300.0).abs() < 1e-6);
        let rising: Vec<f64> =
            (1..100).map(|e| effective_experts(f64::from(e), 2.0, 300.0)).collect();
        assert!(rising.windows(2).all(|w| w[1] > w[0]));
    }

    #[test]
    fn an_unknown_law_is_refused_by_name() {
        let error = load_scaling("chinchilla").err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("ludziejewski2025"));
    }
}
