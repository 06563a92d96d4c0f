//! One replica plan as a function of its load.

use super::{Limit, Metric, Statistic};
use crate::Result;
use crate::cost::{Breakdown, Deployment, EngineSpeed, Lengths, Queue, StepLoad};
use crate::units::{Bytes, Seconds};

/// Points of the batch grid per doubling.
const POINTS_PER_DOUBLING: f64 = 2.0;
/// Prompts may take at most this share of the time.
const BUSIEST: f64 = 0.98;

/// Step times of a replica up to its batch cap.
#[derive(Clone, Debug)]
pub struct PlanCurve {
    /// Seconds of a decode step with `j + 1` sequences.
    decode: Vec<f64>,
    /// Seconds that one prompt takes from all others, by the same index.
    prompt: Vec<f64>,
    /// Prompt tokens of a step and the seconds that they add, at the middle batch.
    chunk: Vec<(f64, f64)>,
    lengths: Lengths,
    request_s: f64,
    chunk_tokens: f64,
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
    pub fn new(deployment: &Deployment, usable: Bytes, lengths: &Lengths) -> Result<Self> {
        // Sizing never pushes a sequence out: each holds its whole length.
        let whole = Lengths { input: lengths.input + lengths.output, output: 0.0 };
        let cap = deployment.batch_cap(usable, &whole)?;
        let dp = deployment.layout.attention_dp as f64;
        let per_token = deployment.cache_per_sequence(whole.input).0 / whole.input;
        let free = usable.0 - deployment.weights_per_device().0;
        let costs = deployment.costs;
        let chunks = (lengths.input / costs.chunk_tokens).ceil().max(1.0);
        let part = lengths.input / chunks;
        let context = lengths.mean_context();
        let load = |sequences: f64, prompt_tokens: f64| StepLoad {
            sequences,
            context,
            prompt_tokens,
            prompt_length: if prompt_tokens > 0.0 { lengths.input } else { 0.0 },
        };
        let mut grid = Vec::new();
        for batch in batches(cap) {
            let decode = deployment.step(&load(batch, 0.0))?.total().0;
            let riding = if costs.mixed { batch } else { 0.0 };
            let with = deployment.step(&load(riding, part))?.total().0;
            let extra = if costs.mixed { with - decode } else { with };
            grid.push((batch.ln(), decode, (extra * chunks).max(0.0)));
        }
        let middle = (cap / 2.0).max(1.0);
        let step = deployment.step(&load(middle, 0.0))?;
        let mut chunk = vec![(0.0, 0.0)];
        let riding = if costs.mixed { middle } else { 0.0 };
        for share in [0.125, 0.25, 0.5, 1.0] {
            let tokens = (part * share).max(1.0);
            let with = deployment.step(&load(riding, tokens))?.total().0;
            let base = if costs.mixed { step.total().0 } else { 0.0 };
            let before = chunk[chunk.len() - 1];
            if tokens > before.0 {
                chunk.push((tokens, (with - base).max(before.1)));
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number of sequences below the engine's cap"
        )]
        let count = cap as usize;
        let at = |j: usize, value: fn(&(f64, f64, f64)) -> f64| {
            interpolate(&grid, ((j + 1) as f64).ln(), value)
        };
        Ok(Self {
            decode: (0..count).map(|j| at(j, |g| g.1)).collect(),
            prompt: (0..count).map(|j| at(j, |g| g.2)).collect(),
            chunk,
            lengths: *lengths,
            request_s: costs.request_s,
            chunk_tokens: costs.chunk_tokens,
            cache_tokens: free / per_token * dp,
            step,
        })
    }

    /// Sequences that fit.
    pub fn cap(&self) -> usize {
        self.decode.len()
    }

    /// The replica with at most `cap` sequences at `rate` requests per second; `None` when it cannot
    /// keep up.
    pub fn at(&self, rate: f64, cap: usize) -> Option<Load> {
        let cap = cap.min(self.cap());
        let tokens = (self.lengths.output - 1.0).max(0.0);
        let busy = rate * self.prompt[cap / 2];
        if busy >= BUSIEST {
            return None;
        }
        let slowed = |j: usize| self.decode[j] / (1.0 - busy);
        let service =
            (0..cap).map(|j| self.prompt[j] + (tokens + 1.0) * slowed(j)).collect::<Vec<f64>>();
        let queue = Queue::new(service).ok()?;
        let state = queue.at(rate)?;
        let own = |j: usize| self.prompt[j] + slowed(j);
        let running = |share: f64| state.running_quantile(share) - 1;
        // Prompts before this one: an M/D/1 queue with service `prompt`; its tail falls
        // exponentially at 2 (1 - busy) / prompt.
        let prompts = |share: f64, j: usize| {
            let tail = busy / (1.0 - share);
            if tail <= 1.0 { 0.0 } else { self.prompt[j] / (2.0 * (1.0 - busy)) * tail.ln() }
        };
        let mean_running = running(0.5);
        let mean_prompts = self.prompt[mean_running] * busy / (2.0 * (1.0 - busy));
        let mut ttft = [Seconds::ZERO; 4];
        let mut tpot = [Seconds::ZERO; 4];
        for (i, statistic) in Statistic::ALL.iter().enumerate() {
            let (first, each) = match statistic.share() {
                None => {
                    let j = mean_running;
                    let step = slowed(j);
                    (state.mean_wait.0 + mean_prompts + own(j) + step / 2.0, step)
                }
                Some(share) => {
                    let j = running(share);
                    let step = slowed(j);
                    let wait = state.wait_quantile(share).0.max(prompts(share, j));
                    (wait + own(j) + step * share, step)
                }
            };
            ttft[i] = Seconds(first + self.request_s);
            tpot[i] = Seconds(each);
        }
        Some(Load { mean_batch: state.mean_running, prompt_share: busy, ttft, tpot })
    }

    /// The highest rate at which all limits hold with at most `cap` sequences; 0 when none does.
    pub fn capacity(&self, limits: &[Limit], cap: usize) -> f64 {
        let holds = |rate: f64| self.at(rate, cap).is_some_and(|load| load.tightest(limits) <= 1.0);
        let cap = cap.min(self.cap());
        let tokens = self.lengths.output.max(1.0);
        let mut high = cap as f64 / (tokens * self.decode[cap - 1]);
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
        EngineSpeed {
            decode_s: self.decode[..cap.min(self.cap())].to_vec(),
            prompt_s: self.chunk.clone(),
            chunk_tokens: self.chunk_tokens,
            cache_tokens: self.cache_tokens,
            request_s: self.request_s,
        }
    }

    /// Output tokens per second of a full replica with `batch` sequences, and its time per token.
    pub fn throughput(&self, batch: usize) -> (f64, Seconds) {
        let j = batch.clamp(1, self.cap()) - 1;
        // In a full engine as many prompts enter as requests end.
        let per_token =
            self.decode[j] + (j + 1) as f64 * self.prompt[j] / self.lengths.output.max(1.0);
        ((j + 1) as f64 / per_token, Seconds(per_token))
    }
}

/// Batch sizes from 1 to `cap`, evenly in the logarithm.
fn batches(cap: f64) -> impl Iterator<Item = f64> {
    let steps = (POINTS_PER_DOUBLING * cap.log2()).ceil().max(1.0);
    let mut index = 0.0;
    std::iter::from_fn(move || {
        (index <= steps).then(|| {
            let batch = cap.powf(index / steps);
            index += 1.0;
            batch
        })
    })
}

fn interpolate(grid: &[(f64, f64, f64)], x: f64, value: fn(&(f64, f64, f64)) -> f64) -> f64 {
    let after = grid.partition_point(|g| g.0 < x);
    match (after.checked_sub(1).and_then(|i| grid.get(i)), grid.get(after)) {
        (Some(a), Some(b)) => value(a) + (value(b) - value(a)) * (x - a.0) / (b.0 - a.0),
        (Some(g), None) | (None, Some(g)) => value(g),
        (None, None) => 0.0,
    }
}
