//! Clark et al. 2022, *Unified Scaling Laws for Routed Language Models*, arXiv 2202.01169, table 3.
//!
//! `log10 L = a log10 N + b log10 Eh + c log10 N log10 Eh + d`, nats per token; the base of the
//! logarithms is settled by the released runs. N counts the parameters that one token meets in the
//! base model. Every run saw the same 131.07B tokens, so that no compute optimum exists in this law.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::unknown_name;
use crate::law::dense::{self, DenseLaw};
use crate::law::scaling::{ArchitectureLaw, Extrapolation, state};
use crate::law::surface::{SizeAndTokens, Sizes, Surface};
use crate::law::{
    Closure, Inputs, LawInfo, LossLaw, Range, Slice, TokenCurve, Variable, effective_experts,
    embedded,
};
use crate::units::Nats;
use crate::{Error, Result};

const PUBLISHED: &str = include_str!("../config/presets/laws/clark2022.toml");
/// Error of the published coefficients on the released runs, RMSLE 0.0089 at about 2.4 nats (computed
/// here).
const RESIDUAL_NATS: f64 = 0.021;

/// Training tokens of every run: 250,000 steps of 256 sequences of 2,048 tokens.
pub const TOKENS: f64 = 250_000.0 * 256.0 * 2048.0;

/// The coefficients of one router.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub a: f64,
    pub b: f64,
    pub c: f64,
    pub d: f64,
    pub e_start: f64,
    pub e_max: f64,
}

impl Coefficients {
    /// Loss of a base model of `n` parameters with `experts` experts.
    pub fn loss(&self, n: f64, experts: f64) -> Nats {
        let (size, width) = self.logarithms(n, experts);
        Nats(10f64.powf(self.a * size + self.b * width + self.c * size * width + self.d))
    }

    /// Parameters with which `experts` experts reach a loss.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when size no longer lowers the loss at this expert count.
    pub fn n_for_loss(&self, experts: f64, loss: Nats) -> Result<f64> {
        let (_, width) = self.logarithms(1.0, experts);
        let slope = self.a + self.c * width;
        let n = 10f64.powf((loss.0.log10() - self.b * width - self.d) / slope);
        if slope < 0.0 && n.is_finite() && n > 0.0 {
            Ok(n)
        } else {
            Err(Error::infeasible(
                format!("law cannot reach L = {loss} with {experts} experts"),
                "use fewer experts or a higher loss",
            ))
        }
    }

    /// The dense model of this law that is as good as `n` parameters with `experts` experts: its
    /// effective parameter count.
    pub fn effective_parameters(&self, n: f64, experts: f64) -> f64 {
        let dense = self.logarithms(1.0, 1.0).1;
        let level = self.loss(n, experts).0.log10();
        10f64.powf((level - self.b * dense - self.d) / (self.a + self.c * dense))
    }

    fn logarithms(&self, n: f64, experts: f64) -> (f64, f64) {
        (n.log10(), effective_experts(experts, self.e_start, self.e_max).log10())
    }
}

/// All parameters of a released model with S-Base or hash routing: `N + r ((E - 1)(8 d^2 + d) + d)`
/// with `routed_blocks` r. RL-R adds its router.
pub fn total_parameters(base: f64, routed_blocks: f64, width: f64, experts: f64) -> f64 {
    base + routed_blocks * ((experts - 1.0) * (8.0 * width * width + width) + width)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    info: LawInfo,
    sets: BTreeMap<String, Coefficients>,
}

/// The law with the coefficients of one router.
#[derive(Clone, Debug)]
pub struct Clark2022 {
    pub(crate) info: LawInfo,
    /// The coefficients.
    pub coefficients: Coefficients,
    /// The number of training tokens that it holds at.
    pub(crate) tokens: f64,
    pub(crate) residual_nats: f64,
    pub(crate) draws: Vec<Coefficients>,
}

impl Clark2022 {
    /// The law as published for a router: `s-base` (the default), `rl-r` or `hash`.
    ///
    /// # Errors
    /// [`Error::Usage`] for another router.
    pub fn published(router: Option<&str>) -> Result<Self> {
        let file: File = embedded("clark2022.toml", PUBLISHED)?;
        let router = router.unwrap_or("s-base");
        let found = file.sets.get(router).copied();
        let coefficients = found.ok_or_else(|| {
            unknown_name("--variant", router, file.sets.keys().map(String::as_str))
        })?;
        let (tokens, residual_nats) = (TOKENS, RESIDUAL_NATS);
        Ok(Self { info: file.info, coefficients, tokens, residual_nats, draws: Vec::new() })
    }
}

impl LossLaw for Clark2022 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let experts = inputs.require(Variable::Experts, &self.info.id)?;
        Ok(Box::new(AtExperts { law: self.clone(), experts }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        let with = |coefficients: Coefficients| -> Result<AtEffectiveSize> {
            let law = Self { coefficients, draws: Vec::new(), ..self.clone() };
            Ok(AtEffectiveSize { law, dense: dense::besiroglu()?, drawn: Vec::new() })
        };
        let drawn = self.draws.iter().map(|&c| Ok(Arc::new(with(c)?) as Arc<dyn ArchitectureLaw>));
        let drawn = drawn.collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(AtEffectiveSize { drawn, ..with(self.coefficients)? }))
    }
}

/// What experts are worth by this law, with size and tokens by a dense one: all runs behind it saw the
/// same number of tokens.
#[derive(Clone, Debug)]
struct AtEffectiveSize {
    law: Clark2022,
    dense: DenseLaw,
    drawn: Vec<Arc<dyn ArchitectureLaw>>,
}

impl ArchitectureLaw for AtEffectiveSize {
    fn mapping(&self) -> &'static str {
        "experts make a model as good as a dense one of the law's effective parameter count; its size \
         and tokens by besiroglu2024, because all runs saw 131.07B tokens; E is the total over the \
         active feed-forward width"
    }

    fn admits(&self, _at: &Closure) -> std::result::Result<(), String> {
        Ok(())
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        let n = self.law.coefficients.effective_parameters(at.n_active, at.expansion());
        self.dense.slice.curve(n)
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        let tokens_factor = (tokens / self.law.tokens).max(self.law.tokens / tokens);
        let of = Extrapolation::of(&self.law.info, &state(at, tokens));
        Extrapolation { tokens: tokens_factor, ..of }
    }

    fn residual_nats(&self) -> f64 {
        self.law.residual_nats
    }

    fn drawn(&self) -> Vec<Arc<dyn ArchitectureLaw>> {
        self.drawn.clone()
    }
}

/// The law at one expert count.
struct AtExperts {
    law: Clark2022,
    experts: f64,
}

impl Surface for AtExperts {
    fn loss(&self, n: f64, _tokens: f64) -> f64 {
        self.law.coefficients.loss(n, self.experts).0
    }

    /// The total needs the width and the number of routed blocks, which the law does not know.
    fn sizes(&self, n: f64) -> Sizes {
        Sizes { n_active: Some(n), n_total: (self.experts <= 1.0).then_some(n) }
    }

    /// The released runs count attention, 44 % on top of 2 N at 370M: the law cannot tell.
    fn train_flops_per_token(&self, _n: f64) -> f64 {
        f64::NAN
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        inputs.require(Variable::NActive, &self.law.info.id)
    }

    fn ranges(&self) -> Vec<Range> {
        self.law.info.ranges.clone()
    }

    fn fixed(&self) -> Inputs {
        Inputs::default().with(Variable::Experts, self.experts)
    }

    fn notes(&self, _at: SizeAndTokens) -> Vec<String> {
        vec![format!("holds at {:.5e} training tokens only", self.law.tokens)]
    }

    fn no_optimum(&self) -> Option<String> {
        Some(
            "all runs behind this law saw the same number of tokens: no budget can be split; use \
             law eval, or another law"
                .into(),
        )
    }

    fn only_tokens(&self) -> Option<f64> {
        Some(self.law.tokens)
    }

    fn tokens_for_loss(&self, _n: f64, _loss: Nats) -> Result<f64> {
        Err(Error::unfit(&self.law.info.id, "it holds at one number of training tokens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Question, ask};
    use crate::units::Flops;

    #[test]
    fn losses_agree_with_the_computed_values() {
        let cases = [
            ("s-base", [2.11534, 2.08153, 2.87496]),
            ("rl-r", [2.15963, 2.13697, 2.89705]),
            ("hash", [2.13973, 2.10725, 2.91262]),
        ];
        for (router, losses) in cases {
            let law = Clark2022::published(Some(router)).unwrap().coefficients;
            for ((n, experts), loss) in
                [(1.3e9, 16.0), (1.3e9, 32.0), (25e6, 8.0)].iter().zip(losses)
            {
                let got = law.loss(*n, *experts);
                assert!((got.0 - loss).abs() <= 1e-5, "{router}: {got} against {loss}");
                let back = law.n_for_loss(*experts, got).unwrap();
                assert!((back / n - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn the_closure_counts_the_released_models_exactly() {
        // Width 2048, 24 blocks of which every second routes, 1,308,819,456 base parameters.
        let printed = [(4.0, 2.517), (8.0, 4.128), (16.0, 7.349), (32.0, 13.792)];
        for (experts, billions) in printed {
            let total = total_parameters(1_308_819_456.0, 12.0, 2048.0, experts);
            assert!((total / 1e9 - billions).abs() < 5e-4, "{total}");
        }
    }

    #[test]
    fn there_is_no_optimum_and_no_other_number_of_tokens() {
        let law = Clark2022::published(None).unwrap();
        let given = Inputs::new([(Variable::Experts, 8.0)]).unwrap();
        let error = ask(&law, &given, Question::Budget(Flops(1e21))).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let given = given.with(Variable::NActive, 1e9);
        let at = ask(&law, &given, Question::Loss).unwrap();
        assert!((at.tokens / 131.072e9 - 1.0).abs() < 1e-9 && at.train_flops.is_none());
        let error = ask(&law, &given.with(Variable::Tokens, 2e10), Question::Loss).unwrap_err();
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn size_stops_helping_beyond_a_number_of_experts() {
        // c log10 Eh grows until the slope in N turns: then no size reaches a lower loss.
        let law = Coefficients { c: 0.09, ..Clark2022::published(None).unwrap().coefficients };
        assert_eq!(law.n_for_loss(512.0, Nats(2.0)).unwrap_err().exit_code(), 5);
    }
}
