//! Ludziejewski et al. 2025, *Joint MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient*,
//! arXiv 2502.05172: the default law.
//!
//! `L(N, D, E) = a Eh^delta N^(alpha + gamma ln Eh) + b Eh^omega D^(beta + zeta ln Eh) + c`, natural
//! logarithms, nats per token. N counts *active* parameters with embedding and unembedding, D training
//! tokens, E experts per layer: top-1, every layer MoE; E = 1 is dense.
//!
//! The paper's equation 7 for the optimum is meant with the magnitudes of its signed exponents; read
//! literally it gives the inverse. Its table 4 was printed from coefficients with more digits than
//! table 3, so that the two differ by up to 0.3 %.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::law::scaling::{ArchitectureLaw, Extrapolation, with_each};
use crate::law::step_law::step_law;
use crate::law::surface::{SizeAndTokens, Sizes, Surface};
use crate::law::{
    Closure, Inputs, LawInfo, LossLaw, PowerLawSlice, Range, Slice, Template, TokenCurve, Variable,
    effective_experts, embedded,
};
use crate::units::{Flops, Nats};
use crate::{Error, Result, error};

const COEFFICIENTS: &str = include_str!("../config/presets/laws/ludziejewski2025.toml");

/// Vocabulary of the tokenizer used (GPT-2).
const VOCAB: f64 = 50_257.0;
/// Width of one attention head; layers and heads are both width / 64.
const HEAD_DIM: f64 = 64.0;
/// FFN width over residual width.
const FFN_RATIO: f64 = 3.0;
/// Tokens per parameter that the paper names as beyond its data.
const BEYOND_DATA: f64 = 414.0;
/// Most experts that are a meaningful question; the law saturates at `e_max` anyway.
const MAX_EXPERTS: usize = 4096;

/// The law with its published coefficients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ludziejewski2025 {
    pub(crate) info: LawInfo,
    /// Its coefficients.
    pub coefficients: Coefficients,
    pub(crate) residual_nats: f64,
    runs: Vec<LargestRun>,
    /// Joint draws of the coefficients, for laws that were fitted here.
    #[serde(skip)]
    pub(crate) draws: Vec<Coefficients>,
}

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub a: f64,
    pub alpha: f64,
    pub delta: f64,
    pub gamma: f64,
    pub b: f64,
    pub beta: f64,
    pub omega: f64,
    pub zeta: f64,
    pub e_start: f64,
    pub e_max: f64,
    pub c: f64,
}

impl Coefficients {
    /// The law at a number of experts.
    pub fn slice(&self, experts: f64) -> PowerLawSlice {
        let effective = effective_experts(experts, self.e_start, self.e_max);
        let log = effective.ln();
        PowerLawSlice {
            m: self.a * effective.powf(self.delta),
            mu: self.alpha + self.gamma * log,
            n: self.b * effective.powf(self.omega),
            nu: self.beta + self.zeta * log,
            c: self.c,
            coupling: 0.0,
        }
    }
}

/// Largest values among the listed runs of one expert count.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LargestRun {
    experts: usize,
    n_active: f64,
    tokens: f64,
    train_flops: f64,
    tokens_per_param: f64,
}

impl Ludziejewski2025 {
    /// The law as published.
    ///
    /// # Errors
    /// [`Error::BadFile`] if the embedded coefficients are damaged, which a test excludes.
    pub fn published() -> Result<Self> {
        embedded("ludziejewski2025.toml", COEFFICIENTS)
    }

    /// A law of this form and architecture with other coefficients; without a list of runs, its
    /// ranges are those of `info`.
    pub(crate) const fn fitted(
        info: LawInfo,
        coefficients: Coefficients,
        residual_nats: f64,
        draws: Vec<Coefficients>,
    ) -> Self {
        Self { info, coefficients, residual_nats, draws, runs: Vec::new() }
    }

    /// Upper end of a variable in the ranges of the whole set.
    fn high(&self, variable: Variable) -> Option<f64> {
        self.info.ranges.iter().find(|r| r.variable == variable).and_then(|r| r.high)
    }

    /// Peak learning rate that the paper gives for `n_active` parameters *without* embeddings:
    /// `exp(8.39 - 0.81 ln N - 0.25 ln E)`.
    pub fn learning_rate(&self, n_active: f64, experts: usize) -> f64 {
        (8.39 - 0.81 * n_active.ln() - 0.25 * (experts as f64).ln()).exp()
    }

    /// The largest listed run of the nearest expert count at or below the one asked for.
    fn largest_run(&self, experts: f64) -> Option<&LargestRun> {
        /// An expansion is a ratio of widths.
        const ROUNDING: f64 = 1e-9;
        let below = |r: &&LargestRun| r.experts as f64 <= experts * (1.0 + ROUNDING);
        self.runs.iter().filter(below).max_by_key(|r| r.experts)
    }
}

impl Ludziejewski2025 {
    /// The law at one expert count of its own models.
    ///
    /// # Errors
    /// [`Error::Usage`] for an expert count that the law does not define.
    pub fn slice(&self, experts: usize) -> Result<PowerLawSlice> {
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return Err(Error::usage(
                "--experts",
                format!("{experts} is outside this law; it takes 1 to {MAX_EXPERTS}"),
            ));
        }
        Ok(self.coefficients.slice(experts as f64))
    }

    /// The paper's own models: layers and heads are d / 64, FFN width 3 d:
    /// `N_act = 2 d V + 13 d^3 / 64`, `N_total = 2 d V + (4 + 9 E) d^3 / 64`. Routers are not counted.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes without a meaning.
    pub fn closure(&self, experts: usize, n_active: f64) -> Result<Closure> {
        Template::ludziejewski2025().at_size(experts, n_active)
    }
}

impl ArchitectureLaw for Ludziejewski2025 {
    fn mapping(&self) -> &'static str {
        "E is the total over the active feed-forward width: the expert count of its own top-1 models; \
         N is active parameters"
    }

    fn admits(&self, _at: &Closure) -> std::result::Result<(), String> {
        Ok(())
    }

    fn curve(&self, at: &Closure) -> TokenCurve {
        self.coefficients.slice(at.expansion()).curve(at.n_active)
    }

    fn extrapolation(&self, at: &Closure, tokens: f64) -> Extrapolation {
        let (expansion, n_active) = (at.expansion(), at.n_active);
        let run = self.largest_run(expansion);
        // A law from a file has ranges for the whole set instead of one an expert count; a variable
        // without any is never outside.
        let over = |of: fn(&LargestRun) -> f64, variable: Variable, value: f64| {
            let most = run.map(of).or_else(|| self.high(variable));
            most.map_or(0.0, |most| value / most)
        };
        let flops = 6.0 * n_active * tokens;
        Extrapolation {
            train_flops: over(|r| r.train_flops, Variable::TrainFlops, flops),
            n_active: over(|r| r.n_active, Variable::NActive, n_active),
            tokens: over(|r| r.tokens, Variable::Tokens, tokens),
            tokens_per_param: over(
                |r| r.tokens_per_param,
                Variable::TokensPerParam,
                tokens / n_active,
            ),
            experts: self.high(Variable::Experts).map_or(0.0, |most| expansion / most),
        }
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

    fn power_law(&self, expansion: f64) -> Option<PowerLawSlice> {
        Some(self.coefficients.slice(expansion))
    }
}

impl LossLaw for Ludziejewski2025 {
    fn info(&self) -> &LawInfo {
        &self.info
    }

    fn surface(&self, inputs: &Inputs) -> Result<Box<dyn Surface>> {
        let experts = inputs.require_whole(Variable::Experts, &self.info.id)?;
        Ok(Box::new(AtExperts { law: self.clone(), experts, slice: self.slice(experts)? }))
    }

    fn ranks(&self) -> Result<Arc<dyn ArchitectureLaw>> {
        Ok(Arc::new(self.clone()))
    }
}

/// The law at one expert count; its N counts active parameters.
struct AtExperts {
    law: Ludziejewski2025,
    experts: usize,
    slice: PowerLawSlice,
}

impl AtExperts {
    /// The paper's learning rate, and Step Law's learning rate and batch, for a run of this size.
    fn hyperparameters(&self, at: SizeAndTokens) -> Vec<String> {
        let Ok(closure) = self.law.closure(self.experts, at.n) else {
            return Vec::new();
        };
        let body = at.n - 2.0 * closure.hidden * closure.vocab;
        let step = step_law(body, at.tokens);
        vec![
            format!(
                "peak learning rate by this paper {:.3e}",
                self.law.learning_rate(body, self.experts)
            ),
            format!(
                "Step Law (arXiv 2503.04715): peak learning rate {:.3e}, batch {:.3e} tokens",
                step.learning_rate, step.batch_tokens
            ),
        ]
    }
}

impl Surface for AtExperts {
    fn loss(&self, n: f64, tokens: f64) -> f64 {
        self.slice.loss(n, tokens).0
    }

    fn sizes(&self, n: f64) -> Sizes {
        let n_total = self.law.closure(self.experts, n).ok().map(|c| c.n_total);
        Sizes { n_active: Some(n), n_total }
    }

    fn train_flops_per_token(&self, n: f64) -> f64 {
        6.0 * n
    }

    fn size(&self, inputs: &Inputs) -> Result<f64> {
        if let Some(n_active) = inputs.get(Variable::NActive) {
            return Ok(n_active);
        }
        let n_total = inputs.get(Variable::NTotal).ok_or_else(|| {
            Error::usage("--n-active", "missing; ludziejewski2025 needs it, or --n-total")
        })?;
        let layers_params = |experts: f64| 4.0 + 3.0 * FFN_RATIO * experts;
        let d = width(n_total, layers_params(self.experts as f64));
        Ok(2.0 * d * VOCAB + layers_params(1.0) / HEAD_DIM * d.powi(3))
    }

    fn ranges(&self) -> Vec<Range> {
        let mut ranges = self.law.info.ranges.clone();
        if let Some(run) = self.law.largest_run(self.experts as f64) {
            ranges.extend([
                Range::up_to(Variable::NActive, run.n_active),
                Range::up_to(Variable::Tokens, run.tokens),
                Range::up_to(Variable::TrainFlops, run.train_flops),
                Range::up_to(Variable::TokensPerParam, run.tokens_per_param),
            ]);
        }
        ranges
    }

    fn fixed(&self) -> Inputs {
        Inputs::default().with(Variable::Experts, self.experts as f64)
    }

    fn notes(&self, at: SizeAndTokens) -> Vec<String> {
        let ratio = at.tokens / at.n;
        let mut notes = self.hyperparameters(at);
        if let Some(run) = self.law.largest_run(self.experts as f64)
            && run.experts != self.experts
        {
            notes.push(format!(
                "{} experts were not fitted; ranges are those of {} experts",
                self.experts, run.experts
            ));
        }
        if ratio > BEYOND_DATA {
            notes.push(format!(
                "{ratio:.0} tokens per parameter are beyond what the paper itself trusts ({BEYOND_DATA})"
            ));
        } else if ratio < 1.0 {
            notes.push("models with less than one token per parameter fit worse".into());
        }
        notes
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

/// The width d with `2 d V + factor d^3 / 64 = params`, by Newton's method: the left side is
/// increasing and convex, so starting above the root it converges from above.
fn width(params: f64, factor: f64) -> f64 {
    let cubic = factor / HEAD_DIM;
    let mut d = (params / cubic).cbrt();
    for _ in 0..60 {
        let value = 2.0 * d * VOCAB + cubic * d.powi(3) - params;
        let next = d - value / (2.0 * VOCAB + 3.0 * cubic * d * d);
        if (next - d).abs() <= 1e-13 * d {
            return next;
        }
        d = next;
    }
    d
}

#[cfg(test)]
mod tests;
