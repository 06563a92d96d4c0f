//! A deployment tabulated over its batch: many cheap questions about one step curve.
//!
//! A replica is a processor-sharing server: `B` sequences each advance one token a step, so it
//! completes `B / (T(B) x O)` requests a second, where `T(B)` is the mean over steps with and without
//! prompt tokens ([`Deployment::steps`]). Waiting is not modelled here.

use crate::Result;
use crate::serving::steady::Prefill;
use crate::serving::{Breakdown, Deployment, Lengths};
use crate::units::{Seconds, TokensPerSecond};

/// Points of the batch grid per doubling; `T(B)` is smooth between them.
const POINTS_PER_DOUBLING: f64 = 2.0;

/// Multipliers on the parts of a step, for what-if questions and random draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFactors {
    /// On the routed experts.
    pub experts: f64,
    /// On every kernel, and on what the engine adds.
    pub step: f64,
    /// Routing: 0 is the nominal one, 1 the far end of the range of skew, -1 as far the other way.
    pub skew: f64,
}

impl StepFactors {
    /// Nothing changed.
    pub const ONE: Self = Self { experts: 1.0, step: 1.0, skew: 0.0 };
}

/// What the clients are promised, on means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceLevel {
    /// Maximum mean TPOT, if promised.
    pub tpot: Option<Seconds>,
    /// Maximum mean TTFT, excluding queueing, if promised.
    pub ttft: Option<Seconds>,
}

/// Step time of a replica on a grid of batch sizes.
#[derive(Clone, Debug)]
pub struct StepCurve {
    /// Batch sizes, rising from 1 to the memory's cap.
    batch: Vec<f64>,
    /// Mean step at each batch.
    steps: Vec<Breakdown>,
    /// The same as plain numbers: a ranking scales them millions of times.
    rows: Vec<Row>,
    /// A prompt's own step at each batch.
    prompts: Vec<Row>,
    prefill: Prefill,
    lengths: Lengths,
}

/// Where a replica operates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operation {
    /// Decoding sequences.
    pub batch: f64,
    /// Mean time per output token.
    pub tpot: Seconds,
    /// Mean time to first token once admitted, where a limit on it was asked for.
    pub ttft: Option<Seconds>,
    /// Requests completed per second.
    pub requests_per_s: f64,
    /// Output tokens per second.
    pub output_rate: TokensPerSecond,
}

/// Points added where the service level is just kept: each squares the error of the one before, from
/// about 1 % to less than the ninth digit.
const REFINEMENTS: usize = 4;
/// The table is off by so little that the next point would be beyond the ninth digit.
const CLOSE: f64 = 1e-6;

impl StepCurve {
    /// Tabulates `deployment` from one sequence to all that fit, closest around the batch at which
    /// `level` is just kept.
    ///
    /// # Errors
    /// [`crate::Error::Infeasible`] when not one sequence fits; as [`Deployment::step`].
    pub fn new(deployment: &Deployment, lengths: &Lengths, level: &ServiceLevel) -> Result<Self> {
        let batch = batch_grid(deployment.batch_cap(lengths)?, POINTS_PER_DOUBLING);
        let prefill = deployment.prefill(lengths);
        let mut steps = Vec::with_capacity(batch.len());
        let mut prompts = Vec::with_capacity(batch.len());
        for &b in &batch {
            steps.push(deployment.steps(b, lengths)?.mean());
            if level.ttft.is_some() {
                prompts.push(Row::of(&deployment.prompt_step(b, lengths)?));
            }
        }
        let rows = steps.iter().map(Row::of).collect();
        let mut curve = Self { batch, steps, rows, prompts, prefill, lengths: *lengths };
        for _ in 0..REFINEMENTS {
            let Some(at) = curve.capacity(level, &StepFactors::ONE) else { break };
            if curve.insert(deployment, at.batch)? < CLOSE {
                break;
            }
        }
        Ok(curve)
    }

    /// Adds a batch to the grid; how far the table was off there, relative, and 0 when it is in it.
    fn insert(&mut self, deployment: &Deployment, batch: f64) -> Result<f64> {
        let (i, share) = self.locate(batch);
        if !(1e-12..=1.0 - 1e-12).contains(&share) {
            return Ok(0.0);
        }
        let step = deployment.steps(batch, &self.lengths)?.mean();
        let off = self.step_time(batch, &StepFactors::ONE) / step.total() - 1.0;
        self.batch.insert(i + 1, batch);
        self.rows.insert(i + 1, Row::of(&step));
        self.steps.insert(i + 1, step);
        if !self.prompts.is_empty() {
            let prompt = deployment.prompt_step(batch, &self.lengths)?;
            self.prompts.insert(i + 1, Row::of(&prompt));
        }
        Ok(off.abs())
    }

    /// The memory's cap on sequences.
    pub fn cap(&self) -> f64 {
        self.batch.last().copied().unwrap_or(0.0)
    }

    /// Step time at a batch inside the grid, with the parts scaled.
    pub fn step_time(&self, batch: f64, factors: &StepFactors) -> Seconds {
        self.between(&self.rows, batch, factors)
    }

    /// Linear between the grid points around `batch`.
    fn between(&self, steps: &[Row], batch: f64, factors: &StepFactors) -> Seconds {
        let (i, share) = self.locate(batch);
        let low = steps[i].scaled(factors);
        if share <= 0.0 {
            return low;
        }
        let high = steps.get(i + 1).map_or(low, |s| s.scaled(factors));
        low + (high - low) * share
    }

    /// Parts of the step at the grid point nearest to `batch`.
    pub fn parts(&self, batch: f64) -> &Breakdown {
        let (i, share) = self.locate(batch);
        let nearest = if share > 0.5 { i + 1 } else { i };
        &self.steps[nearest.min(self.steps.len() - 1)]
    }

    /// The operating point of highest rate that keeps the service level, or `None` when even a
    /// single sequence breaks it.
    pub fn capacity(&self, level: &ServiceLevel, factors: &StepFactors) -> Option<Operation> {
        let mut best = self.operate(1.0, factors).filter(|o| level.share_kept(o, o) >= 1.0)?;
        let mut start = best;
        for &batch in &self.batch[1..] {
            let end = self.operate(batch, factors)?;
            let share = level.share_kept(&start, &end);
            if share < 1.0 {
                let at = self.operate(start.batch + (batch - start.batch) * share, factors)?;
                return Some(better(best, at));
            }
            best = better(best, end);
            start = end;
        }
        Some(best)
    }

    /// Whether this one is at least as fast at every batch of the other, and holds it.
    pub fn beats(&self, other: &Self) -> bool {
        self.cap() >= other.cap()
            && other
                .batch
                .iter()
                .zip(&other.steps)
                .all(|(&batch, step)| self.step_time(batch, &StepFactors::ONE) <= step.total())
    }

    /// The operating point with `batch` sequences.
    fn operate(&self, batch: f64, factors: &StepFactors) -> Option<Operation> {
        let tpot = self.step_time(batch, factors);
        if !(tpot.is_finite() && tpot.0 > 0.0) {
            return None;
        }
        let requests_per_s = batch / (tpot.0 * self.lengths.decodes());
        let first = |own: Seconds| self.prefill.first_token(batch, tpot, own);
        let has_prompts = !self.prompts.is_empty();
        Some(Operation {
            batch,
            tpot,
            ttft: has_prompts.then(|| first(self.between(&self.prompts, batch, factors))),
            requests_per_s,
            output_rate: TokensPerSecond(requests_per_s * self.lengths.output),
        })
    }

    /// Grid interval that holds `batch` and the share of the way through it.
    fn locate(&self, batch: f64) -> (usize, f64) {
        let upper = self.batch.partition_point(|&b| b <= batch);
        if upper == 0 {
            return (0, 0.0);
        }
        let i = upper - 1;
        match self.batch.get(upper) {
            Some(next) => (i, (batch - self.batch[i]) / (next - self.batch[i])),
            None => (i, 0.0),
        }
    }
}

impl ServiceLevel {
    /// How much of the way from `start`, which keeps the promises, to `end` still keeps them;
    /// 1 when `end` does. Both times are taken as linear in between.
    fn share_kept(&self, start: &Operation, end: &Operation) -> f64 {
        let share = |limit: Option<Seconds>, from: Seconds, to: Seconds| match limit {
            Some(limit) if to > limit => ((limit - from) / (to - from)).clamp(0.0, 1.0 - 1e-12),
            _ => 1.0,
        };
        let tpot = share(self.tpot, start.tpot, end.tpot);
        match (self.ttft, start.ttft, end.ttft) {
            (None, ..) => tpot,
            (limit, Some(from), Some(to)) => tpot.min(share(limit, from, to)),
            // The table was made without prompts.
            _ => 0.0,
        }
    }
}

fn better(a: Operation, b: Operation) -> Operation {
    if b.requests_per_s > a.requests_per_s { b } else { a }
}

/// The seconds of a step that factors apply to.
#[derive(Clone, Copy, Debug)]
struct Row {
    moe: f64,
    /// What the far end of the range of skew adds to the routed experts.
    skew: f64,
    moe_floor: f64,
    /// Dense, attention, communication, and their floors.
    others: [(f64, f64); 3],
    overhead: f64,
}

impl Row {
    fn of(step: &Breakdown) -> Self {
        let moe = step.moe.seconds;
        let skewed = step.moe_skewed.seconds;
        Self {
            moe,
            skew: if skewed > 0.0 { skewed - moe } else { 0.0 },
            moe_floor: step.moe.floor_s,
            others: [&step.dense, &step.attention, &step.communication]
                .map(|p| (p.seconds, p.floor_s)),
            overhead: step.overhead_s,
        }
    }

    /// The step with its parts scaled; no kernel beats the device's peaks.
    fn scaled(&self, factors: &StepFactors) -> Seconds {
        let experts = (self.moe + factors.skew * self.skew) * factors.experts * factors.step;
        let others = self.others.map(|(seconds, floor)| (seconds * factors.step).max(floor));
        let kernels = experts.max(self.moe_floor) + others[0] + others[1] + others[2];
        Seconds(kernels + self.overhead * factors.step)
    }
}

/// Batches from 1 to `cap`, evenly in the logarithm, so many per doubling.
pub fn batch_grid(cap: f64, per_doubling: f64) -> Vec<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few dozen points at most"
    )]
    let intervals = (cap.log2() * per_doubling).ceil().max(1.0) as usize;
    if cap <= 1.0 {
        return vec![1.0];
    }
    (0..=intervals).map(|i| cap.powf(i as f64 / intervals as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::testing::on_roofline;

    const LENGTHS: Lengths = Lengths { input: 512.0, output: 128.0 };
    const NONE: ServiceLevel = ServiceLevel { tpot: None, ttft: None };

    fn curve() -> StepCurve {
        on_roofline("mixtral-8x7b", "h100", 2, |d| StepCurve::new(d, &LENGTHS, &NONE).unwrap())
    }

    #[test]
    fn the_table_gives_back_the_deployment_at_its_points_and_comes_near_between() {
        on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let curve = StepCurve::new(d, &LENGTHS, &NONE).unwrap();
            for batch in [1.0, 3.0, 17.0, 100.0, curve.cap()] {
                let exact = d.steps(batch, &LENGTHS).unwrap().mean().total();
                let found = curve.step_time(batch, &StepFactors::ONE);
                assert!((found / exact - 1.0).abs() < 0.01, "{batch}: {found} {exact}");
            }
            let exact = d.steps(1.0, &LENGTHS).unwrap().mean().total();
            assert!((curve.step_time(1.0, &StepFactors::ONE) / exact - 1.0).abs() < 1e-12);
        });
    }

    #[test]
    fn a_tighter_promise_lowers_the_capacity_until_nothing_keeps_it() {
        let curve = curve();
        let at = |ms: f64| {
            let level = ServiceLevel { tpot: Some(Seconds::from_ms(ms)), ttft: None };
            curve.capacity(&level, &StepFactors::ONE)
        };
        let free = curve.capacity(&NONE, &StepFactors::ONE).unwrap();
        let floor = curve.step_time(1.0, &StepFactors::ONE).as_ms();
        let mut before = 0.0;
        for share in [1.001, 1.2, 1.5, 2.0, 3.0] {
            let found = at(share * floor).unwrap();
            assert!(found.tpot.as_ms() <= share * floor * (1.0 + 1e-9));
            assert!(found.requests_per_s > before && found.requests_per_s <= free.requests_per_s);
            before = found.requests_per_s;
        }
        assert!(at(0.99 * floor).is_none());
    }

    #[test]
    fn no_draw_beats_the_peak() {
        let curve = curve();
        let tiny = StepFactors { experts: 1e-6, step: 1e-6, skew: 0.0 };
        let floors: f64 = curve.parts(1.0).parts().iter().map(|p| p.floor_s).sum();
        assert!(curve.step_time(1.0, &tiny).0 >= floors);
    }

    #[test]
    fn a_prompt_limit_counts_too() {
        let kept = |ms: f64| {
            let level = ServiceLevel { tpot: None, ttft: Some(Seconds::from_ms(ms)) };
            on_roofline("mixtral-8x7b", "h100", 2, |d| {
                let curve = StepCurve::new(d, &LENGTHS, &level).unwrap();
                curve.capacity(&level, &StepFactors::ONE)
            })
        };
        assert!(kept(1e-3).is_none());
        let (tight, loose) = (kept(200.0).unwrap(), kept(1e6).unwrap());
        assert!(tight.batch < loose.batch, "{} {}", tight.batch, loose.batch);
        assert!(tight.ttft.unwrap().0 <= 0.2 * (1.0 + 1e-9));
    }
}
