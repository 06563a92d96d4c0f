//! Yun, Zhuang, Fu, Xing and Zhang 2024, *Toward Inference-optimal Mixture-of-Expert Large Language
//! Models*, arXiv 2404.02852, equation 4: the form only.
//!
//! `log L(N, D, E) = log(A/N^alpha + B/Eh^beta + C/D^gamma + F) + d log N log Eh`, nats per token,
//! natural logarithms (the paper leaves the base open; d depends on it). N counts the *dense* model of
//! the same depth and width, without embeddings. **The paper publishes no coefficients**: they come
//! from a file, made by a fit or by the user.
//!
//! Every second layer has E experts of which a token visits two. With a gated feed-forward block of
//! two thirds of a dense layer, all parameters are `(1 + (E-1)/3) N` and 4/3 N are active, whatever E.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::scaling::{ArchitectureLaw, Extrapolation, state, with_each};
use crate::law::surface::{Sizes, Surface};
use crate::law::{
    Closure, Inputs, LawInfo, LossLaw, PowerLawSlice, Range, Slice, Template, TokenCurve, Variable,
    effective_experts,
};
use crate::units::Nats;
use crate::{Error, Result};

pub(crate) const INFO: &str = include_str!("../config/presets/laws/yun2024.toml");

/// Feed-forward share of a dense layer's parameters.
const FFN_SHARE: f64 = 2.0 / 3.0;
/// FFN width of one block over the hidden size.
const FFN_RATIO: f64 = 8.0 / 3.0;
/// Share of the layers that have experts.
const MOE_LAYERS: f64 = 0.5;
/// Experts that a token visits.
const TOP_K: usize = 2;
/// `hidden x layers = mu N^(2/3)`. The paper does not give mu; its table of shapes, with depths
/// corrected to match its counts, spans 0.048 to 0.056.
const MU: f64 = 0.052;
/// Vocabulary of the Llama tokenizer, which the paper's serving stack uses; not in its N.
const VOCAB: usize = 32_000;

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
    pub gamma: f64,
    pub f: f64,
    pub d: f64,
    pub e_start: f64,
    pub e_max: f64,
}

impl Coefficients {
    /// Loss of the dense-equivalent size `n` on `tokens` tokens with `experts` experts.
    ///
    /// ```
    /// // Demonstration values fitted to other people's runs, not the paper's own.
    /// use moe_frontier::law::yun2024::Coefficients;
    /// let law = Coefficients {
    ///     a: 26.78, alpha: 0.1718, b: 0.0644, beta: 0.0953, c: 9.872, gamma: 0.0749, f: 0.1805,
    ///     d: -0.00223, e_start: 2.86, e_max: 94.1,
    /// };
    /// assert!((law.loss(1e9, 1e11, 16.0).0 - 2.18111).abs() < 1e-5);
    /// ```
    pub fn loss(&self, n: f64, tokens: f64, experts: f64) -> Nats {
        self.dense_slice(experts).loss(n, tokens)
    }

    /// The law at one expert count, over the dense-equivalent size.
    pub fn dense_slice(&self, experts: f64) -> PowerLawSlice {
        let effective = effective_experts(experts, self.e_start, self.e_max);
        PowerLawSlice {
            m: self.a,
            mu: -self.alpha,
            n: self.c,
            nu: -self.gamma,
            c: self.b * effective.powf(-self.beta) + self.f,
            coupling: self.d * effective.ln(),
        }
    }
}

/// Active over dense-equivalent parameters: 4/3 with any experts.
pub fn active_over_dense(experts: usize) -> f64 {
    let visited = TOP_K.min(experts) as f64;
    1.0 + MOE_LAYERS * FFN_SHARE * (visited - 1.0)
}

/// All over dense-equivalent parameters: `1 + (E - 1)/3`.
pub fn total_over_dense(experts: f64) -> f64 {
    1.0 + MOE_LAYERS * FFN_SHARE * (experts - 1.0)
}

/// The law with coefficients from a file.
#[derive(Clone, Debug)]
pub struct Yun2024 {
    pub(crate) info: LawInfo,
    /// Its coefficients.
    pub coefficients: Coefficients,
    pub(crate) residual_nats: f64,
    pub(crate) draws: Vec<Coefficients>,
}

impl LossLaw for Yun2024 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let experts = inputs.require_whole(Variable::Experts, &self.info.id)?;
        Ok(Box::new(AtExperts {
            info: self.info.clone(),
            experts,
            slice: self.coefficients.dense_slice(experts as f64),
        }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Ok(Arc::new(self.clone()))
    }

    /// Every second layer has experts, two of which a token visits; `hidden x layers = mu N^(2/3)` and
    /// `N = 12 hidden^2 layers` fix hidden over layers.
    fn template(&self) -> Template {
        Template {
            name: "models of yun2024".into(),
            top_k: TOP_K,
            expert_ratio: FFN_RATIO,
            moe_share: MOE_LAYERS,
            dense_ratio: FFN_RATIO,
            aspect: 12.0 / (12.0 * MU).powi(3),
            vocab: VOCAB,
            ..Template::ludziejewski2025()
        }
    }
}

impl ArchitectureLaw for Yun2024 {
    fn mapping(&self) -> &'static str {
        "N is 12 hidden^2 layers, the dense model of the same depth and width; E is twice the total over \
         the active feed-forward width, the expert count of its own top-2 models"
    }

    fn admits(&self, _at: &Closure) -> std::result::Result<(), String> {
        Ok(())
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        self.coefficients.dense_slice(equivalent_experts(at)).curve(dense_size(at))
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        let n = dense_size(at);
        let counted = state(at, tokens)
            .with(Variable::Experts, equivalent_experts(at))
            .with(Variable::NDense, n)
            .with(Variable::TrainFlops, 6.0 * n * tokens)
            .with(Variable::TokensPerParam, tokens / n);
        Extrapolation::of(&self.info, &counted)
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

/// Parameters of the dense model of the same depth and width, without embeddings; a dense model is its
/// own.
fn dense_size(at: &Closure) -> f64 {
    if at.is_dense() {
        return at.n_active - at.n_vocab;
    }
    12.0 * at.hidden * at.hidden * at.layers
}

/// The expert count of a top-2 model of the same expansion.
fn equivalent_experts(at: &Closure) -> f64 {
    if at.is_dense() { 1.0 } else { TOP_K as f64 * at.expansion() }
}

/// The law at one expert count; its N counts the dense model of the same depth and width.
struct AtExperts {
    info: LawInfo,
    experts: usize,
    slice: PowerLawSlice,
}

impl Surface for AtExperts {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.slice.loss(n, tokens).0
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes {
            n_active: Some(active_over_dense(self.experts) * n),
            n_total: Some(total_over_dense(self.experts as f64) * n),
        }
    }

    /// As the paper counts them: 6 N D with the dense-equivalent N.
    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        match (inputs.get(Variable::NDense), inputs.get(Variable::NActive)) {
            (Some(n), _) => Ok(n),
            (None, Some(active)) => Ok(active / active_over_dense(self.experts)),
            (None, None) => Err(Error::usage(
                Variable::NDense.flag(),
                format!("missing; {} needs it, or --n-active", self.info.id),
            )),
        }
    }

    fn ranges(&self) -> Vec<Range> {
        self.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default().with(Variable::Experts, self.experts as f64)
    }

    fn notes(&self, at: crate::law::surface::SizeAndTokens) -> Vec<String> {
        vec![format!(
            "training FLOPs are the paper's 6 N D; with active parameters they are {:.3e}",
            6.0 * active_over_dense(self.experts) * at.n * at.tokens
        )]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::units::Flops;

    /// Coefficients of the form, fitted to the runs of Clark et al. 2022 along their schedules:
    /// a demonstration, not the paper's.
    pub(crate) const DEMONSTRATION: Coefficients = Coefficients {
        a: 26.78,
        alpha: 0.1718,
        b: 0.0644,
        beta: 0.0953,
        c: 9.872,
        gamma: 0.0749,
        f: 0.1805,
        d: -0.00223,
        e_start: 2.86,
        e_max: 94.1,
    };

    fn law() -> Yun2024 {
        Yun2024 {
            info: toml::from_str(INFO).unwrap(),
            coefficients: DEMONSTRATION,
            residual_nats: 0.01,
            draws: Vec::new(),
        }
    }

    #[test]
    fn demonstration_losses_agree_with_the_computed_values() {
        let cases = [
            (1e8, 1e10, 1.0, 2.99699),
            (1e8, 1e10, 4.0, 2.91212),
            (1e9, 1e11, 16.0, 2.18111),
            (1.3e9, 1.31e11, 32.0, 2.07053),
        ];
        for (n, d, experts, loss) in cases {
            let got = DEMONSTRATION.loss(n, d, experts).0;
            assert!((got - loss).abs() <= 1e-5, "{got} against {loss}");
        }
    }

    #[test]
    fn totals_are_those_of_the_paper_and_the_active_share_is_four_thirds() {
        for (experts, ratio) in [(4.0, 2.0), (8.0, 3.333), (16.0, 6.0), (32.0, 11.333)] {
            assert!((total_over_dense(experts) - ratio).abs() < 1e-3);
        }
        assert!((active_over_dense(8) - 4.0 / 3.0).abs() < 1e-12);
        assert!((active_over_dense(1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_ranking_asks_the_same_law() {
        let scaling = law().scaling().unwrap();
        for experts in [1, 4, 32] {
            let at = scaling.template().at_width(experts, 2048.0);
            let n = dense_size(&at);
            let wanted = DEMONSTRATION.loss(n, 1e11, experts as f64);
            let got = scaling.slice(experts).unwrap().loss(at.n_active, 1e11);
            assert!((got.0 - wanted.0).abs() < 1e-9, "{experts}: {got} against {wanted}");
            // Embeddings come on top of the law's size.
            let active = at.n_active - at.n_vocab;
            assert!((active / (n * active_over_dense(experts)) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn the_effective_expert_count_has_its_two_limits() {
        let at = |experts| effective_experts(experts, DEMONSTRATION.e_start, DEMONSTRATION.e_max);
        assert!((at(1.0) - DEMONSTRATION.e_start).abs() < 1e-12);
        assert!((at(1e9) / DEMONSTRATION.e_max - 1.0).abs() < 1e-6);
    }

    #[test]
    fn more_experts_mean_lower_optimal_loss_and_more_parameters() {
        for budget in [1e20, 1e21, 1e22] {
            let optima: Vec<_> = [1_usize, 4, 8, 16, 32]
                .into_iter()
                .map(|experts| {
                    let law = law().scaling().unwrap();
                    let best = law.slice(experts).unwrap().optimum(Flops(budget));
                    (best.loss, law.closure(experts, best.n_active).unwrap().n_total)
                })
                .collect();
            assert!(optima.windows(2).all(|w| w[1].0 < w[0].0 && w[1].1 > w[0].1), "{budget}");
        }
    }

    #[test]
    fn the_architecture_has_the_laws_parameters() {
        let closure = law().template().at_width(8, 2048.0);
        let n = 12.0 * closure.hidden * closure.hidden * closure.layers;
        let attention = 4.0 * closure.hidden * closure.hidden * closure.layers;
        let ffn = 3.0 * closure.hidden * closure.inter;
        let dense = (closure.layers - closure.moe_layers) * ffn;
        let body = attention + dense + closure.moe_layers * 8.0 * ffn;
        let vocab = 2.0 * closure.vocab * closure.hidden;
        assert!((body / n - 10.0 / 3.0).abs() < 1e-9, "{body}");
        // The paper's hidden x layers = mu N^(2/3).
        let product = closure.hidden * closure.layers;
        assert!((product / (MU * n.powf(2.0 / 3.0)) - 1.0).abs() < 1e-9, "{product}");
        assert!(((body + vocab) / closure.n_total - 1.0).abs() < 1e-12);
    }
}
