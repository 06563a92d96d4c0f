//! One replica plan as a function of its load.

use super::steps::{Steps, Variability};
use super::{Limit, Metric, Statistic};
use crate::Result;
use crate::serving::{
    Breakdown, Deployment, EngineSpeed, Lengths, PromptTimes, StepLoad, batch_grid,
};
use crate::units::Seconds;

/// Points of the batch grid per doubling.
const POINTS_PER_DOUBLING: f64 = 2.0;
/// The same where prompts ride on the steps, which changes more slowly.
const PROMPT_POINTS_PER_DOUBLING: f64 = 0.5;

/// Step times of a replica up to its batch cap.
#[derive(Clone, Debug)]
pub struct PlanCurve {
    steps: Steps,
    output: f64,
    cache_tokens: f64,
    /// Decode step at the middle batch by part.
    pub step: Breakdown,
}

/// A replica at a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Mean decoding sequences.
    pub mean_batch: f64,
    /// Share of the time that prompts take.
    pub prompt_share: f64,
    /// Time to first token: mean, p50, p90, p99.
    pub ttft: [Seconds; 4],
    /// Time per output token: mean, p50, p90, p99.
    pub tpot: [Seconds; 4],
}

impl Load {
    /// The value that a limit is on.
    pub fn value(&self, limit: &Limit) -> Seconds {
        let index = Statistic::ALL.iter().position(|s| *s == limit.statistic).unwrap_or(0);
        match limit.metric {
            Metric::Ttft => self.ttft[index],
            Metric::Tpot => self.tpot[index],
        }
    }

    /// The largest share of a limit that is used; above 1 one is missed.
    pub fn tightest(&self, limits: &[Limit]) -> f64 {
        limits.iter().map(|l| self.value(l) / l.most).fold(0.0, f64::max)
    }
}

impl PlanCurve {
    /// Tabulates a deployment.
    ///
    /// # Errors
    /// [`crate::Error::Infeasible`] when not one sequence fits; as [`Deployment::step`].
    pub fn new(
        deployment: &Deployment,
        lengths: &Lengths,
        variability: Variability,
    ) -> Result<Self> {
        // Sizing never pushes a sequence out: each holds its whole length.
        let cap = deployment.guaranteed_cap(lengths)?;
        let dp = deployment.layout.attention_dp as f64;
        let held = lengths.held();
        let per_token = deployment.cache_per_sequence(held).0 / held;
        let free = (deployment.memory.usable() - deployment.weights_per_device()).0;
        let mut decodes = Vec::new();
        for batch in batch_grid(cap, POINTS_PER_DOUBLING) {
            let step = deployment.decode_step(batch, lengths)?;
            decodes.push((batch.ln(), step.total().0));
        }
        let step = deployment.step(&StepLoad::of(lengths, (cap / 2.0).max(1.0), 0.0))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number of sequences below the engine's cap"
        )]
        let count = cap as usize;
        let decode = (1..=count).map(|b| interpolate(&decodes, (b as f64).ln())).collect();
        let prompt = prompt_times(deployment, lengths, cap)?;
        Ok(Self {
            steps: Steps::new(decode, prompt, *lengths, deployment.costs, variability),
            output: lengths.output.max(1.0),
            cache_tokens: free / per_token * dp,
            step,
        })
    }

    /// The same on an engine whose steps, and what a first token takes beyond them, are so many times
    /// as long.
    pub fn scaled(&self, step: f64, first: f64) -> Self {
        Self { steps: self.steps.scaled(step, first), ..self.clone() }
    }

    /// Sequences that fit.
    pub fn cap(&self) -> usize {
        self.steps.cap()
    }

    /// The replica with at most `cap` sequences at `rate` requests per second; `None` when it cannot
    /// keep up.
    pub fn at(&self, rate: f64, cap: usize) -> Option<Load> {
        self.load(rate, cap, |_, _| true)
    }

    /// The same with the percentiles that are wanted; the others are zero.
    fn load(
        &self,
        rate: f64,
        cap: usize,
        wanted: impl Fn(Metric, Statistic) -> bool,
    ) -> Option<Load> {
        let mut load = self.steps.at(rate, cap.min(self.cap()), wanted)?;
        let delivered = self.steps.delivered(load.tpot[0].0);
        for value in &mut load.ttft {
            *value += Seconds(delivered);
        }
        Some(load)
    }

    /// Whether the replica with at most `cap` sequences has an equilibrium at `rate` requests per
    /// second.
    pub fn keeps_up(&self, rate: f64, cap: usize) -> bool {
        self.load(rate, cap, |_, _| false).is_some()
    }

    /// The highest rate at which all limits hold with at most `cap` sequences; 0 when none does.
    pub fn capacity(&self, limits: &[Limit], cap: usize) -> f64 {
        let cap = cap.min(self.cap());
        let mut high = self.steps.fastest(cap) / self.output;
        let wanted = |metric: Metric, statistic: Statistic| {
            limits.iter().any(|l| l.metric == metric && l.statistic == statistic)
        };
        let holds = |rate: f64| {
            self.load(rate, cap, wanted).is_some_and(|load| load.tightest(limits) <= 1.0)
        };
        let mut low = high * 1e-6;
        if !holds(low) {
            return 0.0;
        }
        for _ in 0..40 {
            let middle = (low * high).sqrt();
            if holds(middle) {
                low = middle;
            } else {
                high = middle;
            }
            if high / low < 1.0001 {
                break;
            }
        }
        low
    }

    /// What the simulation needs, with at most `cap` sequences.
    pub fn speed(&self, cap: usize) -> EngineSpeed {
        self.steps.speed(cap, self.cache_tokens)
    }

    /// Output tokens per second of a full replica with `batch` sequences, and its time per token.
    pub fn throughput(&self, batch: usize) -> (f64, Seconds) {
        let batch = batch.clamp(1, self.cap());
        let each = self.steps.full(batch);
        (batch as f64 / each, Seconds(each))
    }
}

/// What prompts of these lengths add to the steps of a deployment.
fn prompt_times(deployment: &Deployment, lengths: &Lengths, cap: f64) -> Result<PromptTimes> {
    let costs = deployment.costs;
    let part = costs.computed(lengths.input).min(costs.chunk_tokens);
    // From an eighth of a prompt to a whole chunk of them.
    let mut tokens = vec![(part / 8.0).max(1.0)];
    while let Some(&last) = tokens.last()
        && last < costs.chunk_tokens
    {
        tokens.push((2.0 * last).min(costs.chunk_tokens));
    }
    let mut rows = Vec::new();
    for sequences in std::iter::once(0.0).chain(batch_grid(cap, PROMPT_POINTS_PER_DOUBLING)) {
        let riding = if costs.mixed { sequences } else { 0.0 };
        let base = if riding > 0.0 {
            deployment.step(&StepLoad::of(lengths, riding, 0.0))?.total().0
        } else {
            0.0
        };
        let mut row: Vec<(f64, f64)> = Vec::new();
        for &tokens in &tokens {
            let with = deployment.step(&StepLoad::of(lengths, riding, tokens))?.total().0;
            row.push((tokens, (with - base).max(row.last().map_or(0.0, |p| p.1))));
        }
        rows.push((sequences, row));
    }
    PromptTimes::new(rows)
}

fn interpolate(grid: &[(f64, f64)], x: f64) -> f64 {
    let after = grid.partition_point(|g| g.0 < x);
    match (after.checked_sub(1).and_then(|i| grid.get(i)), grid.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0),
        (Some(g), None) | (None, Some(g)) => g.1,
        (None, None) => 0.0,
    }
}
