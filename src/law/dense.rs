//! Laws of one size and tokens: `L = E + A / N^alpha + B / D^beta`, nats per token, 6 N D FLOPs.
//!
//! Hoffmann et al. 2022 (arXiv 2203.15556) printed rounded coefficients that are not usable for
//! optima: at 5.76e23 FLOPs they give 92.6 tokens per parameter where the unrounded ones of the
//! released notebook give 58.9. Besiroglu et al. 2024 (arXiv 2404.10102) refitted the plotted runs.
//! FLAME-MoE 2025 (arXiv 2505.20225) has the same form over the active parameters of models that all
//! have 64 experts, 6 of them and 2 shared ones active.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::unknown_name;
use crate::law::scaling::ArchitectureLaw;
use crate::law::surface::{SizeAndTokens, Sizes, Surface};
use crate::law::{Inputs, LawInfo, LossLaw, PowerLawSlice, Range, Slice, Variable, embedded};
use crate::units::{Flops, Nats};
use crate::{Error, Result, error};

const HOFFMANN: &str = include_str!("../config/presets/laws/hoffmann2022.toml");
const BESIROGLU: &str = include_str!("../config/presets/laws/besiroglu2024.toml");

const FLAME_MOE: &str = include_str!("../config/presets/laws/flame_moe2025.toml");

/// A law of one size and tokens with one set of coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseLaw {
    info: LawInfo,
    /// The coefficients.
    pub slice: PowerLawSlice,
    /// Whether all parameters are active.
    dense: bool,
}

/// A file of such a law: its description and named sets of coefficients.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DenseFile {
    info: LawInfo,
    sets: BTreeMap<String, Published>,
}

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub e: f64,
    pub a: f64,
    pub b: f64,
    pub alpha: f64,
    pub beta: f64,
}

impl Coefficients {
    /// The same as a sum of powers.
    pub const fn slice(&self) -> PowerLawSlice {
        let Self { e, a, b, alpha, beta } = *self;
        PowerLawSlice { m: a, mu: -alpha, n: b, nu: -beta, c: e, coupling: 0.0 }
    }
}

/// Coefficients as published: each factor outright or as its natural logarithm.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Published {
    Plain(Coefficients),
    Logarithms { ln_e: f64, ln_a: f64, ln_b: f64, alpha: f64, beta: f64 },
}

impl Published {
    fn slice(&self) -> PowerLawSlice {
        match *self {
            Self::Plain(coefficients) => coefficients.slice(),
            Self::Logarithms { ln_e, ln_a, ln_b, alpha, beta } => {
                Coefficients { e: ln_e.exp(), a: ln_a.exp(), b: ln_b.exp(), alpha, beta }.slice()
            }
        }
    }
}

/// Hoffmann et al. 2022; `unrounded` (the default) or `printed`.
///
/// # Errors
/// [`Error::Usage`] for another set.
pub fn hoffmann(variant: Option<&str>) -> Result<DenseLaw> {
    law("hoffmann2022.toml", HOFFMANN, variant.unwrap_or("unrounded"))
}

/// Besiroglu et al. 2024.
///
/// # Errors
/// [`Error::BadFile`] if the embedded coefficients are damaged, which a test excludes.
pub fn besiroglu() -> Result<DenseLaw> {
    law("besiroglu2024.toml", BESIROGLU, "published")
}

/// FLAME-MoE 2025.
///
/// # Errors
/// [`Error::BadFile`] if the embedded coefficients are damaged, which a test excludes.
pub fn flame_moe() -> Result<DenseLaw> {
    let law = law("flame_moe2025.toml", FLAME_MOE, "published")?;
    Ok(DenseLaw { dense: false, ..law })
}

fn law(name: &str, text: &str, set: &str) -> Result<DenseLaw> {
    let file: DenseFile = embedded(name, text)?;
    let coefficients = file
        .sets
        .get(set)
        .ok_or_else(|| unknown_name("--variant", set, file.sets.keys().map(String::as_str)))?;
    Ok(DenseLaw { slice: coefficients.slice(), info: file.info, dense: true })
}

impl DenseLaw {
    /// A law of this form with other coefficients.
    pub(crate) fn fitted(&self, info: LawInfo, slice: PowerLawSlice) -> Self {
        Self { info, slice, dense: self.dense }
    }
}

impl LossLaw for DenseLaw {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, _inputs: &Inputs) -> Result<Box<dyn Surface>> {
        Ok(Box::new(self.clone()))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Err(Error::unfit(
            &self.info.id,
            "the number of experts is not varied in it and it cannot rank expert counts; \
             ludziejewski2025 can",
        ))
    }
}

impl Surface for DenseLaw {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.slice.loss(n, tokens).0
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some(n), n_total: self.dense.then_some(n) }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        inputs.require(Variable::NActive, &self.info.id)
    }

    fn ranges(&self) -> Vec<Range> {
        self.info.ranges.clone()
    }

    fn optimum(&self, budget: Flops) -> Result<SizeAndTokens> {
        error::positive(Variable::TrainFlops.flag(), budget.0)?;
        let best = self.slice.optimum(budget);
        Ok(SizeAndTokens { n: best.n_active, tokens: best.tokens })
    }

    fn budget_for_loss(&self, loss: Nats) -> Result<Flops> {
        self.slice.budget_for_loss(loss)
    }

    fn tokens_for_loss(&self, n: f64, loss: Nats) -> Result<f64> {
        self.slice.tokens_for_loss(n, loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::surface;

    #[test]
    fn losses_and_optima_agree_with_the_computed_values() {
        type Case = (DenseLaw, f64, [f64; 3], [f64; 4], f64);
        // L(1e9, 20e9); at 1e20: N in M, D in B, loss; at 5.76e23: N in B, D in T, D/N, loss; and
        // the exponent of N in the budget.
        let cases: [Case; 3] = [
            (
                hoffmann(Some("printed")).unwrap(),
                2.58005,
                [644.9, 25.85, 2.5998],
                [32.19, 2.982, 92.6, 1.9307],
                0.4516,
            ),
            (
                hoffmann(None).unwrap(),
                2.53067,
                [774.9, 21.51, 2.5534],
                [40.36, 2.379, 58.9, 1.9184],
                0.4565,
            ),
            (
                besiroglu().unwrap(),
                2.52921,
                [854.5, 19.50, 2.5526],
                [72.35, 1.327, 18.3, 1.9740],
                0.5126,
            ),
        ];
        let close = |got: f64, expected: f64, relative: f64| {
            assert!((got / expected - 1.0).abs() <= relative, "{got} against {expected}");
        };
        for (law, loss, small, large, exponent) in cases {
            assert!((law.slice.loss(1e9, 20e9).0 - loss).abs() <= 1e-5, "{loss}");
            let best = law.slice.optimum(Flops(1e20));
            close(best.n_active, small[0] * 1e6, 2e-3);
            close(best.tokens, small[1] * 1e9, 2e-3);
            assert!((best.loss.0 - small[2]).abs() <= 1e-4);
            let best = law.slice.optimum(Flops(5.76e23));
            close(best.n_active, large[0] * 1e9, 2e-3);
            close(best.tokens, large[1] * 1e12, 2e-3);
            close(best.tokens / best.n_active, large[2], 4e-3);
            assert!((best.loss.0 - large[3]).abs() <= 1e-4);
            close(law.slice.nu / (law.slice.mu + law.slice.nu), exponent, 2e-4);
        }
    }

    #[test]
    fn the_closed_optimum_is_the_searched_one() {
        let law = besiroglu().unwrap();
        let closed = Surface::optimum(&law, Flops(1e22)).unwrap();
        let searched = surface::optimum(&law, Flops(1e22)).unwrap();
        assert!((searched.n / closed.n - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_law_of_64_experts_agrees_with_the_computed_value() {
        let law = flame_moe().unwrap();
        assert!((law.slice.loss(1e9, 20e9).0 - 2.83202).abs() <= 1e-5);
        assert_eq!(law.sizes(1e9).n_total, None);
    }

    #[test]
    fn an_unknown_set_is_refused_with_the_known_ones() {
        let error = hoffmann(Some("rounded")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("unrounded"), "{error}");
    }
}
