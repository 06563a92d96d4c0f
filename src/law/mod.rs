//! Loss laws: from parameters, tokens and experts to nats per token.
//!
//! Losses of two laws are never compared: tokenizer and corpus differ.

use std::path::Path;
use std::sync::Arc;

use crate::config::unknown_name;
use crate::{Error, Result};

pub mod abnar2025;
#[cfg(test)]
mod adapters;
pub mod beyond;
pub mod bounded;
pub mod claims;
pub mod clark2022;
pub mod dense;
pub mod downstream;
mod evaluation;
pub mod familial2025;
pub mod file;
#[cfg(feature = "native")]
pub mod fit;
pub mod gains;
#[cfg(feature = "native")]
pub mod held_out;
pub mod inference_aware;
mod info;
pub mod krajewski2024;
pub mod ludziejewski2025;
pub mod others;
mod power_law;
pub mod precision;
#[cfg(test)]
mod properties;
mod scaling;
mod slice;
pub mod step_law;
pub mod surface;
#[cfg(feature = "native")]
pub mod sweep;
mod template;
pub mod tian2025;
mod variable;
pub mod yun2024;
pub mod zhao2025;

pub use evaluation::{Evaluation, Question, ask, evaluate};
pub use file::load_file;
pub use info::{LawInfo, Outside, Range, VariableInfo};
pub use power_law::{Optimum, PowerLawSlice};
pub use scaling::{ArchitectureLaw, Extrapolation, Scaling};
pub use slice::{Slice, TokenCurve};
pub use surface::Surface;
pub use template::{AttentionTemplate, Closure, Template};
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

    /// The surfaces among which an optimum may choose: more than one when a variable that was left
    /// out is to be optimised as well.
    ///
    /// # Errors
    /// As [`Self::surface`].
    fn choices(&self, inputs: &Inputs) -> Result<Vec<Box<dyn Surface>>> {
        Ok(vec![self.surface(inputs)?])
    }

    /// Answers a question whose variables have been checked; ask through [`ask`].
    ///
    /// # Errors
    /// As [`ask`].
    fn answer(&self, inputs: &Inputs, question: Question) -> Result<Evaluation> {
        evaluation::answer(self, inputs, question)
    }

    /// The law as something that can rank architectures.
    ///
    /// # Errors
    /// [`Error::Unfit`] with what the law lacks for that.
    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>>;

    /// The architecture that the law's sizes stand for; laws without one of their own take the default
    /// law's.
    fn template(&self) -> Template {
        Template::ludziejewski2025()
    }

    /// The law on its own architecture, or the default one.
    ///
    /// # Errors
    /// As [`Self::ranks`].
    fn scaling(&self) -> Result<Scaling> {
        Ok(Scaling::new(&self.info().id, self.ranks()?, self.template()))
    }
}

/// `1 / (1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max)`: the expert count that several laws use.
///
/// One expert gives exactly `e_start`; endlessly many approach `e_max`.
pub fn effective_experts(experts: f64, e_start: f64, e_max: f64) -> f64 {
    let offset = 1.0 / (1.0 / e_start - 1.0 / e_max);
    1.0 / (1.0 / (experts - 1.0 + offset) + 1.0 / e_max)
}

/// Published laws that can rank expert counts, by identifier; the first is the default.
pub const SCALING_IDS: [&str; 6] =
    ["ludziejewski2025", "abnar2025", "krajewski2024", "tian2025", "zhao2025", "clark2022"];

/// All laws that come with coefficients, by identifier.
pub const IDS: [&str; 9] = [
    "ludziejewski2025",
    "zhao2025",
    "krajewski2024",
    "clark2022",
    "abnar2025",
    "tian2025",
    "flame_moe2025",
    "hoffmann2022",
    "besiroglu2024",
];

/// Laws whose form is known, but not all coefficients.
pub const WITHOUT_COEFFICIENTS: [&str; 2] = ["yun2024", "familial2025"];

/// Descriptions of all laws, those without published coefficients included.
///
/// # Errors
/// [`Error::BadFile`] if an embedded file is damaged, which a test excludes.
pub fn infos() -> Result<Vec<LawInfo>> {
    let mut infos =
        IDS.into_iter().map(|id| Ok(load(id, None)?.info().clone())).collect::<Result<Vec<_>>>()?;
    infos.insert(1, embedded("yun2024.toml", yun2024::INFO)?);
    infos.push(embedded("familial2025.toml", familial2025::INFO)?);
    Ok(infos)
}

/// Whether a law was given as a file rather than by its identifier.
fn is_path(law: &str) -> bool {
    law.contains(['/', '\\']) || Path::new(law).extension().is_some()
}

/// The law with this identifier, with its default set of coefficients or a named one; or the law in
/// a file of this path.
///
/// # Errors
/// [`Error::Usage`] for an unknown identifier or set, naming the nearest; [`Error::Unfit`] for a law
/// without published coefficients; whatever [`load_file`] refuses.
pub fn load(id: &str, variant: Option<&str>) -> Result<Box<dyn LossLaw>> {
    if is_path(id) {
        no_variant(id, variant)?;
        return load_file(Path::new(id));
    }
    if matches!(
        id,
        "ludziejewski2025" | "zhao2025" | "abnar2025" | "flame_moe2025" | "besiroglu2024"
    ) {
        no_variant(id, variant)?;
    }
    Ok(match id {
        "ludziejewski2025" => Box::new(ludziejewski2025::Ludziejewski2025::published()?),
        "zhao2025" => Box::new(zhao2025::Zhao2025::published()?),
        "krajewski2024" => Box::new(krajewski2024::Krajewski2024::published(variant)?),
        "clark2022" => Box::new(clark2022::Clark2022::published(variant)?),
        "abnar2025" => Box::new(abnar2025::Abnar2025::published()?),
        "tian2025" => Box::new(tian2025::Tian2025::published(variant)?),
        "flame_moe2025" => Box::new(dense::flame_moe()?),
        "hoffmann2022" => Box::new(dense::hoffmann(variant)?),
        "besiroglu2024" => Box::new(dense::besiroglu()?),
        "yun2024" => {
            return Err(Error::unfit(
                id,
                "the paper publishes no coefficients; fit them to runs with `law fit --form yun2024`, \
                 or write a law file, and give its path",
            ));
        }
        "familial2025" => {
            return Err(Error::unfit(
                id,
                "only its exponent of the exits is known; fit the others to runs with `law fit --form \
                 familial2025`, or write a law file, and give its path",
            ));
        }
        _ => return Err(unknown_name("--law", id, IDS.into_iter().chain(WITHOUT_COEFFICIENTS))),
    })
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

/// The law with this identifier or in the file of this path, for ranking expert counts.
///
/// # Errors
/// [`Error::Usage`] for an unknown identifier, naming those there are; [`Error::Unfit`] for a law that
/// lacks something a ranking needs; whatever [`load_file`] refuses.
pub fn load_scaling(id: &str) -> Result<Scaling> {
    if IDS.contains(&id) || WITHOUT_COEFFICIENTS.contains(&id) || is_path(id) {
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
    fn laws_without_published_coefficients_are_listed_and_refused() {
        assert_eq!(infos().unwrap().len(), IDS.len() + WITHOUT_COEFFICIENTS.len());
        for id in WITHOUT_COEFFICIENTS {
            assert!(infos().unwrap().iter().any(|info| info.id == id));
            let error = load(id, None).err().unwrap();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains("law fit"), "{error}");
        }
    }

    #[test]
    fn a_law_that_cannot_rank_expert_counts_says_what_it_lacks() {
        let error = load_scaling("hoffmann2022").err().unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("experts"), "{error}");
    }
}
