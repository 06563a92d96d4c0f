//! Abnar et al. 2025, *Parameters vs FLOPs: Scaling Laws for Optimal Sparsity for
//! Mixture-of-Experts Language Models*, arXiv 2501.12370, equation 6 and table 3.
//!
//! `L(N, D, S) = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e`, nats per
//! token, no logarithms. N counts all parameters; S = (E - K)/E is the sparsity; lambda is negative
//! as printed. At fixed N and D more sparsity is worse: gains appear at fixed compute only.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::scaling::{ArchitectureLaw, Extrapolation, state, with_each};
use crate::law::surface::{SizeAndTokens, Sizes, Surface};
use crate::law::{Closure, Inputs, LawInfo, LossLaw, Range, TokenCurve, Variable, embedded};
use crate::{Error, Result};

const PUBLISHED: &str = include_str!("../config/presets/laws/abnar2025.toml");
/// Root of the mean squared error of the fit (0.00056, the paper's table).
const RESIDUAL_NATS: f64 = 0.0237;

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub a: f64,
    pub alpha: f64,
    pub b: f64,
    pub beta: f64,
    pub c: f64,
    pub lambda: f64,
    pub d: f64,
    pub delta: f64,
    pub gamma: f64,
    pub e: f64,
}

impl Coefficients {
    /// Loss of `n_total` parameters on `tokens` tokens at one sparsity.
    pub fn loss(&self, n_total: f64, tokens: f64, sparsity: f64) -> f64 {
        let active = 1.0 - sparsity;
        self.a * n_total.powf(-self.alpha)
            + self.b * tokens.powf(-self.beta)
            + self.c * active.powf(-self.lambda)
            + self.d * active.powf(-self.delta) * n_total.powf(-self.gamma)
            + self.e
    }
}

/// The law.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abnar2025 {
    pub(crate) info: LawInfo,
    /// Its coefficients.
    pub coefficients: Coefficients,
    #[serde(skip)]
    pub(crate) residual_nats: f64,
    #[serde(skip)]
    pub(crate) draws: Vec<Coefficients>,
}

impl Abnar2025 {
    /// The law as published.
    ///
    /// # Errors
    /// [`Error::BadFile`] if the embedded coefficients are damaged, which a test excludes.
    pub fn published() -> Result<Self> {
        let law: Self = embedded("abnar2025.toml", PUBLISHED)?;
        Ok(Self { residual_nats: RESIDUAL_NATS, ..law })
    }
}

/// Sparsity as given, or `(E - K)/E` from experts and active experts.
pub(crate) fn sparsity(inputs: &Inputs, law: &str) -> Result<f64> {
    let from_counts = match (inputs.get(Variable::Experts), inputs.get(Variable::ActiveExperts)) {
        (Some(experts), Some(active)) => Some((experts - active) / experts),
        (None, None) => None,
        (Some(_), None) => Some(inputs.require(Variable::ActiveExperts, law)?),
        (None, Some(_)) => Some(inputs.require(Variable::Experts, law)?),
    };
    match (inputs.get(Variable::Sparsity), from_counts) {
        (Some(given), None) => Ok(given),
        (None, Some(counted)) => Ok(counted),
        (Some(_), Some(_)) => Err(Error::usage(
            Variable::Sparsity.flag(),
            "give it, or --experts with --active-experts, not both",
        )),
        (None, None) => Err(Error::usage(
            Variable::Sparsity.flag(),
            format!("missing; {law} needs it, or --experts with --active-experts"),
        )),
    }
}

impl LossLaw for Abnar2025 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let sparsity = sparsity(inputs, &self.info.id)?;
        Ok(Box::new(AtSparsity { law: self.clone(), sparsity }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Ok(Arc::new(self.clone()))
    }
}

impl ArchitectureLaw for Abnar2025 {
    fn mapping(&self) -> &'static str {
        "N is all parameters, S is 1 minus the active over the total feed-forward width; 6 N_act D FLOPs"
    }

    fn admits(&self, at: &Closure) -> std::result::Result<(), String> {
        /// The sparsest runs, held out by the paper.
        const SPARSEST: f64 = 0.98;
        let sparsity = 1.0 - 1.0 / at.expansion();
        if sparsity > SPARSEST {
            return Err(format!(
                "its runs end at a sparsity of {SPARSEST}; {sparsity:.3} is beyond"
            ));
        }
        Ok(())
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        let Coefficients { b, beta, .. } = self.coefficients;
        let floor = self.coefficients.loss(at.n_total, f64::INFINITY, 1.0 - 1.0 / at.expansion());
        TokenCurve::new(floor, (b, -beta))
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        let sparsest = self.info.ranges.iter().find(|r| r.variable == Variable::Sparsity);
        // Compared as total over active, like expert counts.
        let most = sparsest.and_then(|r| r.high).map_or(f64::INFINITY, |s| 1.0 / (1.0 - s));
        let experts = at.expansion() / most;
        Extrapolation { experts, ..Extrapolation::of(&self.info, &state(at, tokens)) }
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

/// The law at one sparsity; its N counts all parameters.
struct AtSparsity {
    law: Abnar2025,
    sparsity: f64,
}

impl Surface for AtSparsity {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.law.coefficients.loss(n, tokens, self.sparsity)
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some((1.0 - self.sparsity) * n), n_total: Some(n) }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * (1.0 - self.sparsity) * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        inputs.require(Variable::NTotal, &self.law.info.id)
    }

    fn ranges(&self) -> Vec<Range> {
        self.law.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default().with(Variable::Sparsity, self.sparsity)
    }

    fn notes(&self, _at: SizeAndTokens) -> Vec<String> {
        vec![
            "active parameters are taken as (1 - S) N, a rough default: attention and embeddings \
              are active too"
                .into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Question, ask};
    use crate::units::Flops;

    #[test]
    fn losses_and_optima_agree_with_the_computed_values() {
        let law = Abnar2025::published().unwrap();
        // S; L(10e9, 100e9); L(1e9, 20e9); optimum at 1e21: N, D in B, loss.
        let rows = [
            (0.0, 2.1005, 2.5657, [2.456, 67.9, 2.2748]),
            (0.5, 2.1019, 2.5899, [4.339, 76.8, 2.2103]),
            (0.75, 2.1149, 2.6284, [7.895, 84.4, 2.1555]),
        ];
        for (sparsity, large, small, [n, d, loss]) in rows {
            assert!((law.coefficients.loss(10e9, 100e9, sparsity) - large).abs() <= 1e-4);
            assert!((law.coefficients.loss(1e9, 20e9, sparsity) - small).abs() <= 1e-4);
            let given = Inputs::new([(Variable::Sparsity, sparsity)]).unwrap();
            let best = ask(&law, &given, Question::Budget(Flops(1e21))).unwrap();
            assert!((best.n_total.unwrap() / (n * 1e9) - 1.0).abs() <= 5e-3);
            assert!((best.tokens / (d * 1e9) - 1.0).abs() <= 5e-3);
            assert!((best.loss_nats - loss).abs() <= 1e-4);
        }
    }

    #[test]
    fn sparsity_follows_from_expert_counts() {
        let law = Abnar2025::published().unwrap();
        for (experts, expected) in [(4.0, 0.5), (8.0, 0.75), (16.0, 0.875), (32.0, 0.9375)] {
            let given = [(Variable::Experts, experts), (Variable::ActiveExperts, 2.0)];
            let given = Inputs::new(given).unwrap();
            assert!((sparsity(&given, "abnar2025").unwrap() - expected).abs() < 1e-12);
        }
        let both = Inputs::new([
            (Variable::Experts, 4.0),
            (Variable::ActiveExperts, 2.0),
            (Variable::Sparsity, 0.5),
        ]);
        assert_eq!(law.surface(&both.unwrap()).err().unwrap().exit_code(), 2);
        let half = Inputs::new([(Variable::Experts, 4.0)]).unwrap();
        let error = law.surface(&half).err().unwrap();
        assert!(error.to_string().contains("--active-experts"), "{error}");
    }

    #[test]
    fn at_a_fixed_budget_sparser_models_are_better_larger_and_activate_less() {
        let law = Abnar2025::published().unwrap();
        let at = |sparsity| {
            let given = Inputs::new([(Variable::Sparsity, sparsity)]).unwrap();
            ask(&law, &given, Question::Budget(Flops(1e21))).unwrap()
        };
        for pair in [0.0, 0.5, 0.75, 0.9].map(at).windows(2) {
            assert!(pair[1].loss_nats < pair[0].loss_nats);
            assert!(pair[1].n_total > pair[0].n_total && pair[1].n_active < pair[0].n_active);
        }
    }
}
