//! Tian et al. 2025, *Towards Greater Leverage: Scaling Laws for Efficient Mixture-of-Experts
//! Language Models*, arXiv 2507.17702, equation 13 and table 2.
//!
//! `EL(A, G, C) = Ah^(a + d log10 C + gamma (log2 G)^2 + beta log2 G)`: the FLOPs of an equally good
//! dense model over those of the MoE model. `1/Ah = 1/(A + 1/(1/A_start - 1/A_max)) + 1/A_max` with
//! the activation ratio A, the granularity G = 2 `d_model` / `d_expert`, and C FLOPs.
//!
//! The paper does not state its logarithms; log10 for C with log2 for G is the only pair tried that
//! gives its printed leverage (above 7 at A = 3.1 %, G = 12, 1e22) and its best granularity (8 to 12).
//! The text calls d positive where the table has it negative; leverage grows with C since Ah < 1.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::abnar2025::sparsity;
use crate::law::dense::{self, DenseLaw};
use crate::law::scaling::{ArchitectureLaw, Extrapolation, state};
use crate::law::surface::{Surface, falling_root, out_of_reach};
use crate::law::{
    Closure, Evaluation, Inputs, LawInfo, LossLaw, Outside, Question, Slice, TokenCurve, Variable,
    embedded,
};
use crate::units::Flops;
use crate::{Error, Result};

const PUBLISHED: &str = include_str!("../config/presets/laws/tian2025.toml");
/// The paper prints no error of its fit; that of Krajewski et al. 2024 is used.
const RESIDUAL_NATS: f64 = 0.015;

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub a: f64,
    pub d: f64,
    pub gamma: f64,
    pub beta: f64,
    pub a_start: f64,
    pub a_max: f64,
}

/// `factor C^exponent`: how the paper splits a budget.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Power {
    /// Factor.
    pub factor: f64,
    /// Exponent of C.
    pub exponent: f64,
}

impl Power {
    /// The value at a budget.
    pub fn at(self, budget: Flops) -> f64 {
        self.factor * budget.0.powf(self.exponent)
    }
}

/// Forward FLOPs per token (M, without embeddings) and tokens (D) for a budget, M D = C.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// M.
    pub flops_per_token: Power,
    /// D.
    pub tokens: Power,
}

impl Coefficients {
    /// Efficiency leverage at an activation ratio, a granularity and a budget.
    pub fn leverage(&self, activation_ratio: f64, granularity: f64, budget: Flops) -> f64 {
        let offset = 1.0 / (1.0 / self.a_start - 1.0 / self.a_max);
        let effective = 1.0 / (1.0 / (activation_ratio + offset) + 1.0 / self.a_max);
        let fine = granularity.log2();
        let exponent =
            self.a + self.d * budget.0.log10() + self.gamma * fine * fine + self.beta * fine;
        effective.powf(exponent)
    }

    /// Factor and exponent of `EL = factor C^exponent` at an activation ratio and a granularity.
    fn power(&self, activation_ratio: f64, granularity: f64) -> Power {
        let factor = self.leverage(activation_ratio, granularity, Flops(1.0));
        let ten = self.leverage(activation_ratio, granularity, Flops(10.0));
        Power { factor, exponent: (ten / factor).log10() }
    }

    /// The granularity of highest leverage: `2^(-beta / (2 gamma))`.
    pub fn best_granularity(&self) -> f64 {
        (-self.beta / (2.0 * self.gamma)).exp2()
    }
}

/// The law, with the paper's allocations and hyper-parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tian2025 {
    info: LawInfo,
    /// The coefficients of the leverage.
    pub coefficients: Coefficients,
    /// Split of a budget for dense models.
    pub dense: Allocation,
    /// Split of a budget for MoE models, at an activation ratio of 7.8 % and granularity 2.
    pub moe: Allocation,
    /// Peak learning rate for a budget.
    pub learning_rate: Power,
    /// Batch in tokens for a budget.
    pub batch_tokens: Power,
    /// The dense law that turns leverage into a loss.
    #[serde(skip)]
    baseline: Option<DenseLaw>,
}

impl Tian2025 {
    /// The law as published; `variant` names the dense law that turns leverage into a loss:
    /// `besiroglu2024` (the default) or `hoffmann2022`.
    ///
    /// # Errors
    /// [`Error::Usage`] for another dense law.
    pub fn published(variant: Option<&str>) -> Result<Self> {
        let law: Self = embedded("tian2025.toml", PUBLISHED)?;
        let baseline = match variant.unwrap_or("besiroglu2024") {
            "besiroglu2024" => dense::besiroglu()?,
            "hoffmann2022" => dense::hoffmann(None)?,
            other => {
                let known = law.info.variants.iter().map(String::as_str);
                return Err(crate::config::unknown_name("--variant", other, known));
            }
        };
        Ok(Self { baseline: Some(baseline), ..law })
    }

    fn baseline(&self) -> Result<&DenseLaw> {
        let missing = || Error::unfit(&self.info.id, "it gives no loss without a dense law");
        self.baseline.as_ref().ok_or_else(missing)
    }

    /// Loss of the MoE model: that of the best dense model of `C x EL` FLOPs.
    fn loss(&self, (ratio, granularity): (f64, f64), budget: Flops) -> Result<f64> {
        let leverage = self.coefficients.leverage(ratio, granularity, budget);
        Ok(self.baseline()?.slice.optimum(budget * leverage).loss.0)
    }

    fn evaluation(&self, shape: (f64, f64), budget: Flops) -> Result<Evaluation> {
        let (ratio, granularity) = shape;
        let state = Inputs::default()
            .with(Variable::TrainFlops, budget.0)
            .with(Variable::Sparsity, 1.0 - ratio)
            .with(Variable::Granularity, granularity);
        let outside: Vec<Outside> =
            self.info.ranges.iter().filter_map(|r| r.outside(&state)).collect();
        Ok(Evaluation {
            law: self.info.id.clone(),
            loss_nats: self.loss(shape, budget)?,
            n_active: None,
            n_total: None,
            tokens: self.moe.tokens.at(budget),
            train_flops: Some(budget.0),
            lifetime_flops: None,
            in_fit_range: outside.is_empty(),
            extrapolation: outside.iter().map(|o| o.factor).fold(1.0, f64::max),
            outside,
            experts: None,
            granularity: Some(granularity),
            sparsity: Some(1.0 - ratio),
            exits: None,
            efficiency_leverage: Some(self.coefficients.leverage(ratio, granularity, budget)),
            notes: self.notes(budget)?,
        })
    }

    fn notes(&self, budget: Flops) -> Result<Vec<String>> {
        Ok(vec![
            format!(
                "loss of the best dense model of C x EL FLOPs by {}: this law has none of its own",
                self.baseline()?.info().id
            ),
            format!(
                "tokens and {:.3e} forward FLOPs per token by the paper's allocation at an activation \
                 ratio of 7.8 % and granularity 2",
                self.moe.flops_per_token.at(budget)
            ),
            format!(
                "the paper's learning rate here is {:.2e}, its batch {:.3e} tokens",
                self.learning_rate.at(budget),
                self.batch_tokens.at(budget)
            ),
            "C of training or of forward passes is not stated: worth 10 % of the leverage".into(),
        ])
    }
}

impl LossLaw for Tian2025 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, _inputs: &Inputs) -> Result<Box<dyn Surface>> {
        Err(Error::unfit(&self.info.id, "it gives compute leverage, no loss of size and tokens"))
    }

    fn answer(&self, inputs: &Inputs, question: Question) -> Result<Evaluation> {
        let ratio = 1.0 - sparsity(inputs, &self.info.id)?;
        let granularity = inputs
            .get(Variable::Granularity)
            .unwrap_or_else(|| self.coefficients.best_granularity());
        let shape = (ratio, granularity);
        match question {
            Question::Loss => {
                let budget = inputs.require(Variable::TrainFlops, &self.info.id)?;
                self.evaluation(shape, Flops(budget))
            }
            Question::Budget(budget) => self.evaluation(shape, budget),
            Question::Target(loss) => {
                let curve = |budget: f64| self.loss(shape, Flops(budget)).unwrap_or(f64::NAN);
                let floor = self.baseline()?.slice.c;
                let budget = falling_root(curve, (1e12, 1e32), loss.0)
                    .ok_or_else(|| out_of_reach(loss, floor, "raise the target loss"))?;
                self.evaluation(shape, Flops(budget))
            }
            Question::LifetimeBudget(..) | Question::LifetimeTarget(..) => Err(Error::unfit(
                &self.info.id,
                "it does not say how many parameters a served token meets",
            )),
        }
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        self.baseline()?;
        Ok(Arc::new(self.clone()))
    }
}

impl ArchitectureLaw for Tian2025 {
    fn mapping(&self) -> &'static str {
        "a model of leverage EL at its training FLOPs is as good as a dense one of EL times its active \
         parameters on the same tokens (the paper's own comparison); dense loss by besiroglu2024, G is 2 \
         hidden sizes over an expert's width"
    }

    fn admits(&self, _at: &Closure) -> std::result::Result<(), String> {
        Ok(())
    }

    /// With `EL = K C^k` and `C = 6 N D` the size term `A / (EL N)^alpha` is a power of D as well.
    fn curve(&self, at: &Closure) -> TokenCurve {
        let Some(baseline) = &self.baseline else {
            return TokenCurve::new(f64::NAN, (0.0, -1.0));
        };
        let dense = baseline.slice;
        if at.is_dense() {
            return dense.curve(at.n_active);
        }
        let leverage = self.coefficients.power(1.0 / at.expansion(), 2.0 * at.hidden / at.inter);
        let at_one_token = leverage.factor * (6.0 * at.n_active).powf(leverage.exponent);
        let size = dense.m * (at_one_token * at.n_active).powf(dense.mu);
        TokenCurve {
            factor: 1.0,
            floor: dense.c,
            terms: [(dense.n, dense.nu), (size, leverage.exponent * dense.mu)],
        }
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        /// Expansion of the sparsest pilot model (384 experts and a shared one, 12 and 1 active).
        const SPARSEST: f64 = 385.0 / 13.0;
        let experts = at.expansion() / SPARSEST;
        Extrapolation { experts, ..Extrapolation::of(&self.info, &state(at, tokens)) }
    }

    fn residual_nats(&self) -> f64 {
        RESIDUAL_NATS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::ask;
    use crate::units::Nats;

    fn law() -> Tian2025 {
        Tian2025::published(None).unwrap()
    }

    #[test]
    fn leverages_agree_with_the_computed_values() {
        let leverage = |ratio, granularity, budget| {
            law().coefficients.leverage(ratio, granularity, Flops(budget))
        };
        let cases = [
            (0.0625, 12.0, 1e20, 3.5336),
            (0.0625, 12.0, 1e21, 4.2874),
            (0.125, 12.0, 1e21, 3.0683),
            (0.25, 12.0, 1e22, 2.3602),
            (0.25, 2.0, 1e20, 1.6805),
            (0.125, 4.0, 1e20, 2.4561),
            (1.0, 2.0, 1e20, 0.9937),
        ];
        for (ratio, granularity, budget, expected) in cases {
            let got = leverage(ratio, granularity, budget);
            assert!((got - expected).abs() <= 1e-4, "{got} against {expected}");
        }
        for (experts, expected) in [(4.0, 1.363), (8.0, 1.858), (16.0, 2.501), (32.0, 3.288)] {
            let got = leverage(2.0 / experts, 2.0, 1e21);
            assert!((got - expected).abs() <= 1e-3, "{got} against {expected}");
        }
        assert!(leverage(0.031, 12.0, 1e22) > 7.0);
    }

    #[test]
    fn the_best_granularity_is_the_computed_one() {
        let best = law().coefficients.best_granularity();
        assert!((best - 11.337).abs() <= 1e-3, "{best}");
    }

    #[test]
    fn allocations_multiply_to_the_budget() {
        for (allocation, product) in [(law().dense, 0.9994), (law().moe, 1.0002)] {
            let got = allocation.flops_per_token.factor * allocation.tokens.factor;
            assert!((got - product).abs() <= 1e-4, "{got}");
            let exponents = allocation.flops_per_token.exponent + allocation.tokens.exponent;
            assert!((exponents - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn the_loss_is_that_of_a_dense_model_of_more_flops() {
        let given = Inputs::new([(Variable::Sparsity, 0.9375), (Variable::Granularity, 12.0)]);
        let given = given.unwrap();
        let best = ask(&law(), &given, Question::Budget(Flops(1e20))).unwrap();
        let dense = dense::besiroglu().unwrap().slice;
        let expected = dense.optimum(Flops(1e20 * best.efficiency_leverage.unwrap())).loss;
        assert!((best.loss_nats - expected.0).abs() < 1e-12);
        assert!(best.notes.iter().any(|n| n.contains("besiroglu2024")));
        let back = ask(&law(), &given, Question::Target(Nats(best.loss_nats))).unwrap();
        assert!((back.train_flops.unwrap() / 1e20 - 1.0).abs() < 1e-9);
        let error = ask(&law(), &given, Question::Target(Nats(1.0))).unwrap_err();
        assert_eq!(error.exit_code(), 5);
    }
}
