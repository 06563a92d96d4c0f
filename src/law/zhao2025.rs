//! Zhao et al. 2025, *Towards a Comprehensive Scaling Law of Mixture-of-Experts*, arXiv 2509.23678.
//!
//! ```text
//! L = (e G + f/G + m S^2 + n S) (1/N^alpha + k/Na^alpha + h Na/N)
//!     + a/N^alpha + b/D^beta + c/Na^alpha + eps
//! ```
//!
//! In nats per token, without logarithms. N counts all parameters, Na the activated
//! ones, G the activated experts per token with the shared ones, S the shared share of them.
//!
//! The number of experts is no variable: with a fixed number of active experts only N moves with it.
//! The coefficients reached this project through documents that quote the paper; they reproduce the
//! optima that the paper prints.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::law::scaling::{ArchitectureLaw, Extrapolation, state, with_each};
use crate::law::surface::{SizeAndTokens, Sizes, Surface};
use crate::law::{Closure, Inputs, LawInfo, LossLaw, Range, TokenCurve, Variable, embedded};

const PUBLISHED: &str = include_str!("../config/presets/laws/zhao2025.toml");
/// The paper prints no error of its fit; that of Krajewski et al. 2024 is used.
const RESIDUAL_NATS: f64 = 0.015;

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub e: f64,
    pub f: f64,
    pub m: f64,
    pub n: f64,
    pub k: f64,
    pub h: f64,
    pub a: f64,
    pub alpha: f64,
    pub b: f64,
    pub beta: f64,
    pub c: f64,
    pub eps: f64,
}

/// Which experts a token visits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// Activated experts per token, shared ones included.
    pub active_experts: f64,
    /// Shared share of the activated experts.
    pub shared_ratio: f64,
}

impl Coefficients {
    /// Loss of `n_total` parameters, `n_active` of them activated, on `tokens` tokens.
    pub fn loss(&self, n_total: f64, tokens: f64, n_active: f64, activation: Activation) -> f64 {
        let total = n_total.powf(-self.alpha);
        let active = n_active.powf(-self.alpha);
        self.kappa(activation) * (total + self.k * active + self.h * n_active / n_total)
            + self.a * total
            + self.b * tokens.powf(-self.beta)
            + self.c * active
            + self.eps
    }

    /// `e G + f/G + m S^2 + n S`.
    pub fn kappa(&self, activation: Activation) -> f64 {
        let Activation { active_experts: g, shared_ratio: s } = activation;
        self.e * g + self.f / g + self.m * s * s + self.n * s
    }

    /// The activation of lowest loss, whatever the sizes: `G = sqrt(f/e)`, `S = -n/(2m)`.
    pub fn best_activation(&self) -> Activation {
        Activation {
            active_experts: (self.f / self.e).sqrt(),
            shared_ratio: -self.n / (2.0 * self.m),
        }
    }

    /// Activated parameters of lowest loss at `n_total` parameters and any number of tokens:
    /// `Na^(alpha+1) = alpha N (c + k kappa) / (kappa h)`, so that Na/N falls as `N^(-alpha/(alpha+1))`.
    pub fn best_n_active(&self, n_total: f64, activation: Activation) -> f64 {
        let kappa = self.kappa(activation);
        let power = self.alpha * n_total * (self.c + self.k * kappa) / (kappa * self.h);
        power.powf(1.0 / (self.alpha + 1.0))
    }
}

/// The law.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zhao2025 {
    pub(crate) info: LawInfo,
    /// Its coefficients.
    pub coefficients: Coefficients,
    #[serde(skip)]
    pub(crate) residual_nats: f64,
    #[serde(skip)]
    pub(crate) draws: Vec<Coefficients>,
}

impl Zhao2025 {
    /// The law as published.
    ///
    /// # Errors
    /// [`crate::Error::BadFile`] if the embedded coefficients are damaged, which a test excludes.
    pub fn published() -> Result<Self> {
        let law: Self = embedded("zhao2025.toml", PUBLISHED)?;
        Ok(Self { residual_nats: RESIDUAL_NATS, ..law })
    }
}

impl LossLaw for Zhao2025 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let n_total = inputs.require(Variable::NTotal, &self.info.id)?;
        let best = self.coefficients.best_activation();
        let active_experts = inputs.get(Variable::ActiveExperts);
        let shared_ratio = inputs.get(Variable::SharedRatio);
        let mut notes = Vec::new();
        if active_experts.is_none() {
            notes.push(format!("G not given: the law's own optimum {:.3}", best.active_experts));
        }
        if shared_ratio.is_none() {
            notes.push(format!("S not given: the law's own optimum {:.4}", best.shared_ratio));
        }
        let activation = Activation {
            active_experts: active_experts.unwrap_or(best.active_experts),
            shared_ratio: shared_ratio.unwrap_or(best.shared_ratio),
        };
        Ok(Box::new(AtTotal { law: self.clone(), n_total, activation, notes }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Ok(Arc::new(self.clone()))
    }
}

impl ArchitectureLaw for Zhao2025 {
    fn mapping(&self) -> &'static str {
        "N is all, Na active parameters; G counts the experts a token visits, shared ones included, S \
         their shared share; the number of experts enters through N alone"
    }

    fn admits(&self, at: &Closure) -> std::result::Result<(), String> {
        if at.is_dense() {
            return Err(
                "it has no dense models: every one of its terms counts activated experts".into()
            );
        }
        Ok(())
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        let Coefficients { b, beta, .. } = self.coefficients;
        let activation = Activation {
            active_experts: at.active_experts(),
            shared_ratio: at.shared_experts as f64 / at.active_experts(),
        };
        let floor = self.coefficients.loss(at.n_total, f64::INFINITY, at.n_active, activation);
        TokenCurve::new(floor, (b, -beta))
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        Extrapolation::of(&self.info, &state(at, tokens))
    }

    fn residual_nats(&self) -> f64 {
        self.residual_nats
    }

    fn drawn(&self) -> Vec<Arc<dyn ArchitectureLaw>> {
        with_each(&self.draws, |coefficients| Self {
            coefficients,
            draws: Vec::new(),
            ..self.clone()
        })
    }
}

/// The law at one total size; its free size is the number of activated parameters.
struct AtTotal {
    law: Zhao2025,
    n_total: f64,
    activation: Activation,
    notes: Vec<String>,
}

impl Surface for AtTotal {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        if n > self.n_total {
            return f64::INFINITY;
        }
        self.law.coefficients.loss(self.n_total, tokens, n, self.activation)
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some(n), n_total: Some(self.n_total) }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        inputs.require(Variable::NActive, &self.law.info.id)
    }

    fn ranges(&self) -> Vec<Range> {
        self.law.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default()
            .with(Variable::ActiveExperts, self.activation.active_experts)
            .with(Variable::SharedRatio, self.activation.shared_ratio)
    }

    fn notes(&self, _at: SizeAndTokens) -> Vec<String> {
        self.notes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::surface::minimum;

    fn law() -> Coefficients {
        Zhao2025::published().unwrap().coefficients
    }

    fn at(active_experts: f64, shared_ratio: f64) -> Activation {
        Activation { active_experts, shared_ratio }
    }

    #[test]
    fn the_best_activation_is_the_printed_one() {
        let best = law().best_activation();
        assert!((best.active_experts - 6.778).abs() <= 1e-3, "{best:?}");
        assert!((best.shared_ratio - 0.3148).abs() <= 1e-3, "{best:?}");
        assert!((best.active_experts - 6.78).abs() <= 5e-3);
        assert!((best.shared_ratio - 0.31).abs() <= 5e-3);
        assert!((law().kappa(best) - 1.62826).abs() <= 1e-5);
    }

    #[test]
    fn the_best_active_share_falls_with_size() {
        let best = law().best_activation();
        for (n, share) in [(7e9, 0.5303), (30e9, 0.4007), (100e9, 0.3179)] {
            assert!((law().best_n_active(n, best) / n - share).abs() <= 1e-3, "{n}");
        }
        let share = law().best_n_active(30e9, at(8.0, 0.125)) / 30e9;
        assert!((share - 0.3626).abs() <= 1e-3, "{share}");
    }

    #[test]
    fn the_closed_optimum_is_the_searched_one() {
        let activation = at(8.0, 0.0);
        let searched = minimum(|ln| law().loss(1e10, 1e11, ln.exp(), activation), (15.0, 23.0));
        let closed = law().best_n_active(1e10, activation);
        assert!((searched.exp() / closed - 1.0).abs() < 1e-5, "{} {closed}", searched.exp());
    }

    #[test]
    fn losses_agree_with_the_computed_values() {
        let cases = [
            (16e9, 1e12, 2.8e9, at(8.0, 0.25), 2.21604),
            (7e9, 2e11, 1e9, at(8.0, 0.0), 2.37077),
            (100e9, 2e12, 6e9, at(9.0, 1.0 / 9.0), 2.11007),
        ];
        for (n, d, active, activation, loss) in cases {
            let got = law().loss(n, d, active, activation);
            assert!((got - loss).abs() <= 1e-5, "{got} against {loss}");
        }
    }
}
