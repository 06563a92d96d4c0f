//! Loss laws: from parameters, tokens and experts to nats per token.
//!
//! Losses of two laws are never compared: tokenizer and corpus differ.

use std::path::Path;

use crate::config::unknown_name;
use crate::{Error, Result};

pub mod dense;
mod evaluation;
mod info;
pub mod ludziejewski2025;
mod power_law;
mod scaling;
pub mod surface;
mod variable;

pub use evaluation::{Evaluation, eval, evaluate, optimal, optimal_for_loss};
pub use info::{LawInfo, Outside, Range, VariableInfo};
pub use power_law::{Optimum, PowerLawSlice};
pub use scaling::{Closure, ExpertScaling, Extrapolation};
pub use surface::Surface;
pub use variable::{Inputs, Variable};

/// A published or fitted law: named variables to nats per token, with a stated domain.
pub trait LossLaw: Send + Sync {
    /// What the law says about itself.
    fn info(&self) -> &LawInfo;

    /// The law of size and tokens at the other variables.
    ///
    /// # Errors
    /// [`Error::Usage`] for a missing variable or a value that the law does not define.
    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>>;

    /// The law as something that can rank expert counts.
    ///
    /// # Errors
    /// [`Error::Unfit`] with what the law lacks for that.
    fn scaling(&self) -> Result<Box<dyn ExpertScaling>>;
}

/// `1 / (1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max)`: the expert count that several laws use.
///
/// One expert gives exactly `e_start`; endlessly many approach `e_max`.
pub fn effective_experts(experts: f64, e_start: f64, e_max: f64) -> f64 {
    let offset = 1.0 / (1.0 / e_start - 1.0 / e_max);
    1.0 / (1.0 / (experts - 1.0 + offset) + 1.0 / e_max)
}

/// Laws that can rank expert counts, by identifier.
pub const SCALING_IDS: [&str; 1] = ["ludziejewski2025"];

/// All laws that come with coefficients, by identifier.
pub const IDS: [&str; 3] = ["ludziejewski2025", "hoffmann2022", "besiroglu2024"];

/// The law with this identifier, with its default set of coefficients or a named one.
///
/// # Errors
/// [`Error::Usage`] for an unknown identifier or set, naming the nearest.
pub fn load(id: &str, variant: Option<&str>) -> Result<Box<dyn LossLaw>> {
    match id {
        "ludziejewski2025" => {
            no_variant(id, variant)?;
            Ok(Box::new(ludziejewski2025::Ludziejewski2025::published()?))
        }
        "hoffmann2022" => Ok(Box::new(dense::hoffmann(variant)?)),
        "besiroglu2024" => {
            no_variant(id, variant)?;
            Ok(Box::new(dense::besiroglu()?))
        }
        _ => Err(unknown_name("--law", id, IDS.into_iter())),
    }
}

fn no_variant(id: &str, variant: Option<&str>) -> Result<()> {
    variant.map_or(Ok(()), |_| {
        Err(Error::usage("--variant", format!("{id} has one set of coefficients only")))
    })
}

/// The coefficients of an embedded file.
fn embedded<T: serde::de::DeserializeOwned>(name: impl AsRef<Path>, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| Error::bad_file(name, e.message().to_owned()))
}

/// The law with this identifier, for ranking expert counts.
///
/// # Errors
/// [`Error::Usage`] for an unknown identifier, naming those there are.
pub fn load_scaling(id: &str) -> Result<Box<dyn ExpertScaling>> {
    if IDS.contains(&id) {
        return load(id, None)?.scaling();
    }
    Err(Error::usage(
        "--law",
        format!("`{id}` is no law that ranks expert counts; there is {}", SCALING_IDS.join(", ")),
    ))
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
    fn every_law_loads_under_its_own_name_and_states_its_source() {
        for id in IDS {
            let law = load(id, None).unwrap();
            assert_eq!(law.info().id, id);
            assert!(law.info().source.contains("arXiv"), "{id}");
            assert!(!law.info().variables.is_empty() && !law.info().form.is_empty());
            for variant in &law.info().variants {
                load(id, Some(variant)).unwrap();
            }
            assert_eq!(load(id, Some("no such set")).err().unwrap().exit_code(), 2);
        }
    }

    #[test]
    fn an_unknown_law_is_refused_with_the_nearest_name() {
        let error = load("hofman2022", None).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("nearest are hoffmann2022"), "{error}");
        let error = load_scaling("chinchilla").err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("ludziejewski2025"));
    }

    #[test]
    fn a_law_that_cannot_rank_expert_counts_says_what_it_lacks() {
        let error = load_scaling("hoffmann2022").err().unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("experts"), "{error}");
    }
}
