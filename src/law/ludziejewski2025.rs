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
mod tests {
    use super::*;
    use crate::law::surface;

    fn law() -> Ludziejewski2025 {
        Ludziejewski2025::published().unwrap()
    }

    fn close(got: f64, expected: f64, relative: f64) {
        assert!((got / expected - 1.0).abs() <= relative, "{got} against {expected}");
    }

    #[test]
    fn losses_agree_with_the_computed_values() {
        let cases = [
            (1e9, 20e9, 1, 2.57760),
            (1e9, 20e9, 4, 2.53516),
            (1e9, 20e9, 8, 2.50878),
            (1e9, 20e9, 16, 2.48139),
            (1e9, 20e9, 32, 2.45456),
            (321e6, 16e9, 16, 2.64175),
            (2e9, 100e9, 2, 2.33691),
        ];
        for (n, d, experts, loss) in cases {
            let got = law().slice(experts).unwrap().loss(n, d).0;
            assert!((got - loss).abs() <= 1e-5, "E = {experts}: {got} against {loss}");
        }
    }

    #[test]
    fn slices_agree_with_table_4_to_its_rounding() {
        // (E, computed m, mu, n, nu, printed m, mu, n, nu)
        let cases = [
            (1, [30.3993, -0.18175, 53.8434, -0.19638], [30.3640, -0.1817, 53.9838, -0.1965]),
            (2, [27.8208, -0.17795, 66.7225, -0.20643], [27.7982, -0.1780, 66.8401, -0.2065]),
            (4, [24.8594, -0.17313, 87.6084, -0.21919], [24.8462, -0.1731, 87.7022, -0.2192]),
            (16, [19.0203, -0.16164, 167.4521, -0.24953], [19.0159, -0.1617, 167.5073, -0.2494]),
        ];
        for (experts, computed, printed) in cases {
            let s = law().slice(experts).unwrap();
            for (got, (computed, printed)) in
                [s.m, s.mu, s.n, s.nu].into_iter().zip(computed.into_iter().zip(printed))
            {
                close(got, computed, 5e-5);
                // The printed table comes from unrounded coefficients.
                close(got, printed, 3e-3);
            }
        }
    }

    #[test]
    fn effective_experts_agree_with_the_computed_values() {
        for (experts, expected) in [(1, 2.0732), (2, 3.0556), (4, 5.0005), (16, 16.1386)] {
            close(effective_experts(f64::from(experts), 2.0732, 290.4521), expected, 2e-5);
        }
    }

    #[test]
    fn optima_agree_with_table_1_and_the_computed_values() {
        type Row = (usize, f64, f64, f64, f64, f64, f64);
        // (E, computed N, D, N_total in B, loss, printed N, D in B)
        let at_1e20: [Row; 6] = [
            (1, 1.727, 9.65, 1.73, 2.5897, 1.7, 9.7),
            (2, 1.469, 11.35, 2.36, 2.5745, 1.5, 11.4),
            (4, 1.213, 13.74, 3.37, 2.5540, 1.2, 13.9),
            (8, 0.990, 16.84, 5.01, 2.5291, 0.990, 17.0),
            (16, 0.811, 20.54, 7.69, 2.5013, 0.810, 20.7),
            (32, 0.674, 24.72, 12.2, 2.4724, 0.669, 24.9),
        ];
        let at_1e21: [Row; 6] = [
            (1, 5.710, 29.19, 5.71, 2.3502, 5.7, 29.3),
            (2, 5.057, 32.96, 8.36, 2.3354, 5.0, 33.0),
            (4, 4.390, 37.97, 12.9, 2.3164, 4.4, 38.0),
            (8, 3.786, 44.02, 20.9, 2.2945, 3.8, 44.3),
            (16, 3.281, 50.79, 34.8, 2.2713, 3.3, 51.2),
            (32, 2.878, 57.92, 59.6, 2.2483, 2.85, 58.4),
        ];
        for (budget, rows) in [(1e20, at_1e20), (1e21, at_1e21)] {
            for (experts, n, d, total, loss, printed_n, printed_d) in rows {
                let best = law().slice(experts).unwrap().optimum(Flops(budget));
                close(best.n_active, n * 1e9, 5e-3);
                close(best.tokens, d * 1e9, 5e-3);
                assert!((best.loss.0 - loss).abs() <= 1e-4, "E = {experts}: {}", best.loss);
                let closure = law().closure(experts, best.n_active).unwrap();
                close(closure.n_total, total * 1e9, 5e-3);
                // One row is printed as 1.5 for 1.469: within its rounding.
                let rounding = 0.05 / printed_n;
                close(best.n_active, printed_n * 1e9, rounding.max(0.025));
                close(best.tokens, printed_d * 1e9, 0.025);
            }
        }
    }

    #[test]
    fn the_closure_counts_the_papers_models() {
        // (width, blocks, experts, printed total in B, printed active in M)
        let models = [
            (1024.0, 16.0, 32, 5.002, 321.0),
            (1792.0, 28.0, 4, 3.777, 1349.0),
            (1408.0, 21.0, 8, 3.306, 683.0),
            (512.0, 8.0, 32, 0.664, 79.0),
        ];
        for (width, blocks, experts, total, active) in models {
            // The paper rounds the number of blocks to a whole number.
            let square = blocks * width * width;
            let n_active = 2.0 * width * VOCAB + 13.0 * square;
            let n_total = 2.0 * width * VOCAB + (4.0 + 9.0 * f64::from(experts)) * square;
            close(n_active, active * 1e6, 5e-3);
            close(n_total, total * 1e9, 1e-3);
            if (width / HEAD_DIM - blocks).abs() < 1e-9 {
                let closure = law().closure(usize::try_from(experts).unwrap(), n_active).unwrap();
                close(closure.hidden, width, 1e-9);
                close(closure.n_total, n_total, 1e-9);
            }
        }
    }

    #[test]
    fn memory_equal_models_save_the_printed_flops() {
        let active = |width: f64, blocks: f64| 2.0 * width * VOCAB + 13.0 * blocks * width * width;
        let (dense, two, four) = (active(1664.0, 26.0), active(1408.0, 22.0), active(1152.0, 18.0));
        close(dense, 1103e6, 5e-3);
        close(two, 709e6, 2e-2);
        close(four, 426e6, 5e-3);
        let saved = |n_active: f64| (1.0 - n_active / dense) * 100.0;
        assert!((saved(two) - 36.0).abs() <= 1.0, "{}", saved(two));
        assert!((saved(four) - 61.0).abs() <= 1.0, "{}", saved(four));
    }

    #[test]
    fn the_rule_of_thumb_keeps_its_order() {
        let loss = |n, d, experts| law().slice(experts).unwrap().loss(n, d).0;
        let losses = [loss(1.103e9, 8e9, 1), loss(709e6, 16e9, 2), loss(426e6, 32e9, 4)];
        for (got, expected) in losses.iter().zip([2.6659, 2.6261, 2.5973]) {
            assert!((got - expected).abs() <= 1e-4, "{got} against {expected}");
        }
        assert!(losses[0] > losses[1] && losses[1] > losses[2]);
    }

    #[test]
    fn budgets_for_the_four_expert_loss_agree_with_the_computed_ratios() {
        let cases = [
            (1e20, [1.37, 1.195, 0.805, 0.630, 0.485]),
            (2.12e21, [1.474, 1.241, 0.783, 0.604, 0.464]),
        ];
        for (budget, ratios) in cases {
            let loss = law().slice(4).unwrap().optimum(Flops(budget)).loss;
            for (experts, ratio) in [1, 2, 8, 16, 32].into_iter().zip(ratios) {
                let needed = law().slice(experts).unwrap().budget_for_loss(loss).unwrap();
                close(needed.0 / budget, ratio, 5e-3);
            }
        }
    }

    #[test]
    fn the_best_expert_count_under_a_memory_limit_is_the_papers_or_one_step_off() {
        // 16-bit weights and the cache of 16,384 tokens; paper's table 2 for 24, 80 and 640 GB.
        let printed =
            [(1e21, [16, 32, 32]), (1e22, [4, 16, 32]), (1e23, [1, 8, 32]), (1e24, [1, 1, 16])];
        let counts = [1, 2, 4, 8, 16, 32];
        let bytes = |experts: usize, n: f64| {
            let closure = law().closure(experts, n).unwrap();
            2.0 * closure.n_total + 2.0 * 2.0 * 16384.0 * closure.layers * closure.hidden
        };
        let loss = |experts: usize, budget: f64, memory: f64| {
            let slice = law().slice(experts).unwrap();
            let optimum = slice.optimum(Flops(budget)).n_active;
            let fits = |n: f64| if bytes(experts, n) <= memory { 0.0 } else { 1.0 };
            // The largest size that fits, by bisection of the step from 0 to 1.
            let (mut low, mut high) = (1e6_f64, optimum);
            if fits(high) > 0.0 {
                for _ in 0..60 {
                    let middle = (low * high).sqrt();
                    if fits(middle) > 0.0 { high = middle } else { low = middle }
                }
            } else {
                low = high;
            }
            slice.loss(low, budget / 6.0 / low).0
        };
        let mut equal = 0;
        for (budget, row) in printed {
            for (memory, expected) in [24e9, 80e9, 640e9].into_iter().zip(row) {
                let best = counts
                    .into_iter()
                    .min_by(|&a, &b| loss(a, budget, memory).total_cmp(&loss(b, budget, memory)))
                    .unwrap();
                let place = |e: usize| counts.iter().position(|&c| c == e).unwrap();
                assert!(place(best).abs_diff(place(expected)) <= 1, "{budget} {memory}: {best}");
                equal += usize::from(best == expected);
            }
        }
        assert!(equal >= 9, "{equal} of 12 cells");
    }

    #[test]
    fn the_learning_rate_agrees() {
        close(law().learning_rate(1e9, 8), 1.3426e-4, 1e-4);
    }

    #[test]
    fn more_experts_mean_lower_loss_smaller_models_and_more_tokens_up_to_1e23() {
        for power in 17..=23 {
            let optima: Vec<_> = [1, 2, 4, 8, 16, 32]
                .iter()
                .map(|&e| law().slice(e).unwrap().optimum(Flops(10f64.powi(power))))
                .collect();
            for pair in optima.windows(2) {
                assert!(pair[1].loss < pair[0].loss, "1e{power}");
                assert!(pair[1].n_active < pair[0].n_active, "1e{power}");
                assert!(pair[1].tokens > pair[0].tokens, "1e{power}");
            }
        }
    }

    #[test]
    fn extrapolation_is_named_per_expert_count() {
        let law = law().scaling().unwrap();
        let four = law.extrapolation(4, 1e9, 1.667e11);
        close(four.train_flops, 1e21 / 5.3e20, 1e-3);
        let thirty_two = law.extrapolation(32, 1e9, 1.667e11);
        close(thirty_two.train_flops, 1e21 / 3.1e19, 1e-3);
        assert!(law.extrapolation(4, 1e9, 2e10).in_fit_range());
        assert!(!law.extrapolation(64, 1e8, 1e9).in_fit_range());
    }

    #[test]
    fn expert_counts_outside_the_law_are_a_usage_error() {
        assert_eq!(law().slice(0).unwrap_err().exit_code(), 2);
        assert_eq!(law().slice(5000).unwrap_err().exit_code(), 2);
        assert_eq!(law().closure(4, f64::NAN).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_closed_optimum_is_the_searched_one() {
        for experts in [1.0, 4.0, 32.0] {
            let inputs = Inputs::new([(Variable::Experts, experts)]).unwrap();
            let surface = law().surface(&inputs).unwrap();
            for budget in [1e18, 1e21, 1e24] {
                let closed = surface.optimum(Flops(budget)).unwrap();
                let searched = surface::optimum(surface.as_ref(), Flops(budget)).unwrap();
                close(searched.n, closed.n, 1e-6);
                close(searched.tokens, closed.tokens, 1e-6);
            }
        }
    }

    #[test]
    fn a_size_can_be_given_in_total_parameters() {
        let inputs = |size| Inputs::new([(Variable::Experts, 8.0), size]).unwrap();
        let surface = law().surface(&inputs((Variable::NActive, 1e9))).unwrap();
        let n_total = surface.sizes(1e9).n_total.unwrap();
        close(surface.size(&inputs((Variable::NTotal, n_total))).unwrap(), 1e9, 1e-9);
        let error = surface.size(&Inputs::default()).unwrap_err();
        assert!(error.to_string().contains("--n-active"), "{error}");
    }

    #[test]
    fn a_loss_at_or_below_the_floor_is_refused() {
        let error = law().slice(4).unwrap().budget_for_loss(Nats(1.3637)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("1.3637"), "{error}");
    }
}
