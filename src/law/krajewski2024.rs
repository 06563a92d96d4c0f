//! Krajewski, Ludziejewski et al. 2024, *Scaling Laws for Fine-Grained Mixture of Experts*,
//! arXiv 2402.07871, equation 9.
//!
//! `L(N, D, G) = c + (g/G^gamma + a)/N^alpha + b/D^beta`, nats per token, no logarithms. N counts
//! *total* non-embedding parameters without routers, G is `4 d_model / d_expert`; there are G E
//! experts of which a token visits G. The expansion rate E is fixed in each set of coefficients.
//!
//! "64 x 100M" in the paper's tables means E = 64 and 100M *active*: with the closure
//! `N = (8 E + 4)/12 N_act` that is 43 times as many parameters, not 64.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::scaling::{ArchitectureLaw, Extrapolation, state, with_each};
use crate::law::surface::{Sizes, Surface};
use crate::law::{Closure, Inputs, LawInfo, LossLaw, Range, TokenCurve, Variable, embedded};
use crate::{Error, Result};

const PUBLISHED: &str = include_str!("../config/presets/laws/krajewski2024.toml");

/// FLOPs per parameter and token of the network, forward and backward.
const NETWORK_FLOPS: f64 = 6.0;
/// FLOPs per router weight and token; the paper calls 6 to 20 plausible and uses 14.
const ROUTER_FLOPS: f64 = 14.0;
/// Width over number of blocks.
const ASPECT: f64 = 64.0;
/// Largest granularity, as a power of two, that an optimum considers.
const MAX_POWER: i32 = 10;
/// Error of the fit in nats (0.019 on the validation runs), the paper's section 5.
const RESIDUAL_NATS: f64 = 0.015;
/// FFN width of the paper's dense blocks over the hidden size, and that of a gated block of as many
/// parameters over it.
const WIDTH_RATIO: f64 = 8.0 / 3.0;

/// The coefficients; `g` and `gamma` are zero in the dense set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub a: f64,
    pub alpha: f64,
    pub b: f64,
    pub beta: f64,
    pub g: f64,
    pub gamma: f64,
    pub c: f64,
}

impl Coefficients {
    /// Loss of `n_total` non-embedding parameters on `tokens` tokens at one granularity.
    pub fn loss(&self, n_total: f64, tokens: f64, granularity: f64) -> f64 {
        let size = self.g * granularity.powf(-self.gamma) + self.a;
        self.c + size * n_total.powf(-self.alpha) + self.b * tokens.powf(-self.beta)
    }
}

/// The sizes behind a number of parameters: `d = 64 n_blocks`, `N = d^2 (8 E + 4) n_blocks`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FineGrained {
    /// Expansion rate: total over active feed-forward parameters.
    pub expansion: f64,
    /// `4 d_model / d_expert`; 1 for dense.
    pub granularity: f64,
}

impl FineGrained {
    /// Total over active parameters: `(8 E + 4) / 12`.
    pub fn total_over_active(self) -> f64 {
        (8.0 * self.expansion + 4.0) / 12.0
    }

    /// Training FLOPs per token: `(12 d^2 c_f + d E G c_r) n_blocks`, embeddings left out. Routing
    /// cost is what limits the granularity.
    pub fn train_flops_per_token(self, n_total: f64) -> f64 {
        let d = (ASPECT * n_total / (8.0 * self.expansion + 4.0)).cbrt();
        let router = if self.expansion > 1.0 { d * self.expansion * self.granularity } else { 0.0 };
        (12.0 * d * d * NETWORK_FLOPS + router * ROUTER_FLOPS) * d / ASPECT
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    info: LawInfo,
    sets: BTreeMap<String, Set>,
}

/// Coefficients of one expansion rate.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    expansion: f64,
    coefficients: Coefficients,
}

/// The law: all sets of coefficients, one an expansion rate.
#[derive(Clone, Debug)]
pub struct Krajewski2024 {
    info: LawInfo,
    sets: Vec<Set>,
    residual_nats: f64,
    draws: Vec<Coefficients>,
}

impl Krajewski2024 {
    /// The law as published; `held_out` takes the fit of the paper's table 5, which left the best
    /// fifth of the runs out, for an expansion rate of 64.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name.
    pub fn published(variant: Option<&str>) -> Result<Self> {
        let file: File = embedded("krajewski2024.toml", PUBLISHED)?;
        let variant = variant.unwrap_or("published");
        if !file.info.variants.iter().any(|v| v == variant) {
            let known = file.info.variants.iter().map(String::as_str);
            return Err(crate::config::unknown_name("--variant", variant, known));
        }
        let held_out = variant == "held_out";
        let kept = |name: &str| match name {
            "moe_64_held_out" => held_out,
            "moe_64" => !held_out,
            _ => true,
        };
        let sets = file.sets.iter().filter(|(name, _)| kept(name)).map(|(_, &set)| set).collect();
        let residual_nats = RESIDUAL_NATS;
        Ok(Self { info: file.info, sets, residual_nats, draws: Vec::new() })
    }

    /// A law of one expansion rate, for coefficients from a fit.
    pub(crate) fn fitted(
        info: LawInfo,
        expansion: f64,
        (coefficients, draws): (Coefficients, Vec<Coefficients>),
        residual_nats: f64,
    ) -> Self {
        Self { info, sets: vec![Set { expansion, coefficients }], residual_nats, draws }
    }

    fn at(&self, expansion: f64, granularity: f64) -> Result<AtGranularity> {
        let set = self.sets.iter().find(|s| (s.expansion - expansion).abs() < 1e-9);
        let set = set.copied().ok_or_else(|| {
            let rates: Vec<String> = self.sets.iter().map(|s| s.expansion.to_string()).collect();
            Error::unfit(
                &self.info.id,
                format!(
                    "its coefficients exist for an expansion rate of {} only, not {expansion}",
                    rates.join(", ")
                ),
            )
        })?;
        let shape = FineGrained { expansion, granularity };
        Ok(AtGranularity { info: self.info.clone(), shape, coefficients: set.coefficients })
    }
}

impl LossLaw for Krajewski2024 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let expansion = inputs.require(Variable::Experts, &self.info.id)?;
        let granularity = match inputs.get(Variable::Granularity) {
            None if expansion <= 1.0 => 1.0,
            _ => inputs.require(Variable::Granularity, &self.info.id)?,
        };
        Ok(Box::new(self.at(expansion, granularity)?))
    }

    /// Powers of two, when the granularity is left open.
    fn choices(&self, inputs: &Inputs) -> Result<Vec<Box<dyn Surface>>> {
        let expansion = inputs.require(Variable::Experts, &self.info.id)?;
        if inputs.get(Variable::Granularity).is_some() || expansion <= 1.0 {
            return Ok(vec![self.surface(inputs)?]);
        }
        (0..=MAX_POWER)
            .map(|power| Ok(Box::new(self.at(expansion, 2f64.powi(power))?) as Box<dyn Surface>))
            .collect()
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Krajewski2024 {
    /// The sets of coefficients around an expansion rate with their weights; `None` outside of them.
    fn around(&self, expansion: f64) -> Option<[(Set, f64); 2]> {
        /// An expansion is a ratio of widths.
        const ROUNDING: f64 = 1e-6;
        let mut sets = self.sets.clone();
        sets.sort_by(|a, b| a.expansion.total_cmp(&b.expansion));
        let near = |s: &&Set| (s.expansion / expansion - 1.0).abs() < ROUNDING;
        if let Some(&set) = sets.iter().find(near) {
            return Some([(set, 1.0), (set, 0.0)]);
        }
        let above = sets.iter().position(|s| s.expansion > expansion).filter(|i| *i > 0)?;
        let (low, high) = (sets[above - 1], sets[above]);
        let share = (expansion / low.expansion).ln() / (high.expansion / low.expansion).ln();
        Some([(low, 1.0 - share), (high, share)])
    }
}

impl ArchitectureLaw for Krajewski2024 {
    fn mapping(&self) -> &'static str {
        "G is 8/3 of the hidden size over an expert's width (4 in the paper's ungated blocks), at least \
         1; between its expansion rates of 1, 16 and 64 the loss at equal active parameters is linear in \
         ln E; FLOPs are 6 N_act D, routing left out"
    }

    fn admits(&self, at: &Closure) -> std::result::Result<(), String> {
        let rates: Vec<String> = self.sets.iter().map(|s| s.expansion.to_string()).collect();
        self.around(at.expansion()).map(|_| ()).ok_or_else(|| {
            format!(
                "its coefficients exist for expansion rates of {}; {:.1} is outside",
                rates.join(", "),
                at.expansion()
            )
        })
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        let Some(around) = self.around(at.expansion()) else {
            return TokenCurve::new(f64::NAN, (0.0, -1.0));
        };
        let body = at.n_active - at.n_vocab;
        let granularity = (WIDTH_RATIO * at.hidden / at.inter).max(1.0);
        let mut curve = TokenCurve::new(0.0, (0.0, -1.0));
        for ((set, weight), term) in around.into_iter().zip(&mut curve.terms) {
            let shape = FineGrained { expansion: set.expansion, granularity };
            let n_total = body * shape.total_over_active();
            let Coefficients { b, beta, .. } = set.coefficients;
            curve.floor += weight * set.coefficients.loss(n_total, f64::INFINITY, granularity);
            *term = (weight * b, -beta);
        }
        curve
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        let body = at.n_total - at.n_vocab;
        let counted = state(at, tokens).with(Variable::NTotal, body);
        Extrapolation::of(&self.info, &counted)
    }

    fn residual_nats(&self) -> f64 {
        self.residual_nats
    }

    fn drawn(&self) -> Vec<Arc<dyn ArchitectureLaw>> {
        with_each(&self.draws, |coefficients| {
            let sets = self.sets.iter().map(|s| Set { coefficients, ..*s }).collect();
            Self { sets, draws: Vec::new(), ..self.clone() }
        })
    }
}

/// The law at one expansion rate and granularity; its N counts total parameters.
struct AtGranularity {
    info: LawInfo,
    shape: FineGrained,
    coefficients: Coefficients,
}

impl Surface for AtGranularity {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.coefficients.loss(n, tokens, self.shape.granularity)
    }

    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some(n / self.shape.total_over_active()), n_total: Some(n) }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        self.shape.train_flops_per_token(n)
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        match (inputs.get(Variable::NTotal), inputs.get(Variable::NActive)) {
            (Some(n_total), _) => Ok(n_total),
            (None, Some(n_active)) => Ok(n_active * self.shape.total_over_active()),
            (None, None) => Err(Error::usage(
                Variable::NTotal.flag(),
                format!("missing; {} needs it, or --n-active", self.info.id),
            )),
        }
    }

    fn ranges(&self) -> Vec<Range> {
        self.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default()
            .with(Variable::Experts, self.shape.expansion)
            .with(Variable::Granularity, self.shape.granularity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Question, ask};
    use crate::units::Flops;

    fn inputs(values: &[(Variable, f64)]) -> Inputs {
        Inputs::new(values.iter().copied()).unwrap()
    }

    fn close(got: f64, expected: f64, relative: f64) {
        assert!((got / expected - 1.0).abs() <= relative, "{got} against {expected}");
    }

    #[test]
    fn optima_agree_with_the_table_and_the_computed_values() {
        let law = Krajewski2024::published(None).unwrap();
        // published N_act, D, G, FLOPs, loss; computed loss there; computed optimum N_act, D, loss.
        let rows = [
            ([100e6, 4.37e9, 8.0, 2.95e18, 3.133], 3.1097, [102.5e6, 4.28e9, 3.109]),
            ([1e9, 28.94e9, 16.0, 1.93e20, 2.491], 2.4714, [1.021e9, 28.3e9, 2.472]),
            ([7e9, 137.60e9, 32.0, 6.46e21, 2.076], 2.0596, [7.132e9, 135.0e9, 2.060]),
            ([300e9, 2.96e12, 64.0, 5.69e24, 1.503], 1.4903, [305e9, 2.91e12, 1.490]),
        ];
        for ([n, d, g, flops, printed], at_printed, [best_n, best_d, best_loss]) in rows {
            let given = inputs(&[
                (Variable::Experts, 64.0),
                (Variable::NActive, n),
                (Variable::Tokens, d),
                (Variable::Granularity, g),
            ]);
            let here = ask(&law, &given, Question::Loss).unwrap();
            assert!((here.loss_nats - at_printed).abs() <= 1e-3, "{}", here.loss_nats);
            close(here.loss_nats, printed, 1e-2);
            close(here.train_flops.unwrap(), flops, 4e-3);
            let best =
                ask(&law, &inputs(&[(Variable::Experts, 64.0)]), Question::Budget(Flops(flops)))
                    .unwrap();
            assert_eq!(best.granularity, Some(g));
            close(best.n_active.unwrap(), n, 0.03);
            close(best.tokens, d, 0.03);
            close(best.n_active.unwrap(), best_n, 5e-3);
            close(best.tokens, best_d, 5e-3);
            assert!((best.loss_nats - best_loss).abs() <= 1e-3, "{}", best.loss_nats);
        }
    }

    #[test]
    fn the_dense_and_the_16_fold_set_agree_with_the_computed_values() {
        let law = Krajewski2024::published(None).unwrap();
        let dense =
            inputs(&[(Variable::Experts, 1.0), (Variable::NTotal, 1e9), (Variable::Tokens, 20e9)]);
        let got = ask(&law, &dense, Question::Loss).unwrap();
        assert!((got.loss_nats - 2.98031).abs() <= 1e-5, "{}", got.loss_nats);
        for (budget, n, d, loss) in
            [(1e20, 418e6, 38.4e9, 2.6495), (1e21, 1.565e9, 103.9e9, 2.3171)]
        {
            let question = Question::Budget(Flops(budget));
            let best = ask(&law, &inputs(&[(Variable::Experts, 16.0)]), question).unwrap();
            assert_eq!(best.granularity, Some(16.0));
            close(best.n_active.unwrap(), n, 5e-3);
            close(best.tokens, d, 5e-3);
            assert!((best.loss_nats - loss).abs() <= 1e-3);
        }
    }

    #[test]
    fn sixty_four_times_a_size_is_43_times_as_many_parameters() {
        let shape = FineGrained { expansion: 64.0, granularity: 1.0 };
        close(shape.total_over_active(), 43.0, 1e-9);
        // The trap: read as 64 times, the first row of the table comes out at 3.044.
        let law = Krajewski2024::published(None).unwrap().at(64.0, 8.0).unwrap();
        assert!((law.loss(64.0 * 100e6, 4.37e9) - 3.044).abs() < 1e-3);
    }

    #[test]
    fn other_expansion_rates_are_refused() {
        let law = Krajewski2024::published(None).unwrap();
        let error = ask(&law, &inputs(&[(Variable::Experts, 8.0)]), Question::Budget(Flops(1e20)));
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("not 8"), "{error}");
    }

    #[test]
    fn the_fit_without_the_best_runs_is_close_to_the_full_one() {
        let full = Krajewski2024::published(None).unwrap().at(64.0, 8.0).unwrap();
        let part = Krajewski2024::published(Some("held_out")).unwrap().at(64.0, 8.0).unwrap();
        let (full, part) = (full.loss(4.3e9, 16e9), part.loss(4.3e9, 16e9));
        assert!((full - part).abs() < 0.03 && (full - part).abs() > 1e-6, "{full} {part}");
    }
}
