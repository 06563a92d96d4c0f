//! A replica in steady state: step time against batch, the highest rate within a service level,
//! and the batch at a given rate.
//!
//! A replica is a processor-sharing server: `B` sequences each advance one token per step of
//! `T(B)`, so it completes `B / (T(B) x O)` requests per second. Waiting is not modelled here.

use crate::Result;
use crate::latency::Source;
use crate::serving::{Lengths, Replica, StepTime};
use crate::units::{Seconds, TokensPerSecond};

/// Points of the batch grid per doubling; `T(B)` is smooth between them.
const POINTS_PER_DOUBLING: f64 = 2.0;

/// Multipliers on the parts of a step, for what-if questions and random draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFactors {
    /// On the MoE layers.
    pub experts: f64,
    /// On dense products and attention.
    pub dense: f64,
    /// On the fixed cost per layer and on communication.
    pub overhead: f64,
    /// Routing: 0 is the nominal one, 1 the far end of the range of skew.
    pub skew: f64,
}

impl StepFactors {
    /// Nothing changed.
    pub const ONE: Self = Self { experts: 1.0, dense: 1.0, overhead: 1.0, skew: 0.0 };
}

/// What the user's clients are promised, on means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceLevel {
    /// Longest mean time per output token, if promised.
    pub tpot: Option<Seconds>,
    /// Longest mean time to first token (without queueing), if promised.
    pub ttft: Option<Seconds>,
}

/// Step time of a replica on a grid of batch sizes, ready for many cheap questions.
#[derive(Clone, Debug)]
pub struct StepCurve {
    /// Batch sizes, rising from 1 to the memory's cap.
    batch: Vec<f64>,
    /// Step time at each batch, prefill share included.
    steps: Vec<StepTime>,
    /// Time to first token at each batch: the prompt's chunks ride on as many steps.
    first_token: Vec<StepTime>,
    /// Steps that a prompt needs until its first token.
    prefill_steps: f64,
    lengths: Lengths,
}

/// Where a replica operates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operation {
    /// Decoding sequences.
    pub batch: f64,
    /// Step time: time per output token.
    pub tpot: Seconds,
    /// Time to first token once admitted.
    pub ttft: Seconds,
    /// Requests completed per second.
    pub requests_per_s: f64,
    /// Output tokens per second.
    pub output_rate: TokensPerSecond,
}

impl StepCurve {
    /// Prices `replica` from one sequence up to `cap` sequences; `None` when the cap is below one.
    ///
    /// `chunk` is the number of prompt tokens that one step takes in at most.
    ///
    /// # Errors
    /// When the latency model cannot answer for some batch.
    pub fn new(replica: &Replica, lengths: Lengths, cap: f64, chunk: f64) -> Result<Option<Self>> {
        if cap < 1.0 {
            return Ok(None);
        }
        let batch = batch_grid(cap);
        let prefill_ratio = lengths.input / lengths.output;
        let price = |prefill: &dyn Fn(f64) -> f64| {
            batch.iter().map(|&b| replica.step(b, prefill(b), &lengths)).collect::<Result<Vec<_>>>()
        };
        let steps = price(&|b| b * prefill_ratio)?;
        let first_token = price(&|_| lengths.input.min(chunk))?;
        let prefill_steps = (lengths.input / chunk).ceil().max(1.0);
        Ok(Some(Self { batch, steps, first_token, prefill_steps, lengths }))
    }

    /// The memory's cap on sequences.
    pub fn cap(&self) -> f64 {
        self.batch.last().copied().unwrap_or(0.0)
    }

    /// Step time at a batch inside the grid, with the parts scaled.
    pub fn step_time(&self, batch: f64, factors: &StepFactors) -> Seconds {
        self.between(&self.steps, batch, factors)
    }

    /// Time to first token of a request admitted beside `batch` others, waiting excluded.
    pub fn first_token_time(&self, batch: f64, factors: &StepFactors) -> Seconds {
        self.between(&self.first_token, batch, factors) * self.prefill_steps
    }

    /// Linear between the grid points around `batch`.
    fn between(&self, steps: &[StepTime], batch: f64, factors: &StepFactors) -> Seconds {
        let (i, share) = self.locate(batch);
        let low = scaled(&steps[i], factors);
        let high = steps.get(i + 1).map_or(low, |s| scaled(s, factors));
        low + (high - low) * share
    }

    /// Parts of the step at the grid point nearest to `batch`.
    pub fn parts(&self, batch: f64) -> &StepTime {
        let (i, share) = self.locate(batch);
        let nearest = if share > 0.5 { i + 1 } else { i };
        &self.steps[nearest.min(self.steps.len() - 1)]
    }

    /// The least trusted origin up to `batch`.
    pub fn source(&self, batch: f64) -> Source {
        self.parts(batch).source
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

    /// The operating point at which a replica completes `requests_per_s`, or `None` above its capacity.
    pub fn at_rate(&self, requests_per_s: f64, factors: &StepFactors) -> Option<Operation> {
        let concurrency = |b: f64| self.operate(b, factors).map(|o| o.requests_per_s);
        if requests_per_s <= concurrency(1.0)? {
            // Below one sequence at a time on average: each request is served alone.
            let alone = self.operate(1.0, factors)?;
            let busy = requests_per_s / alone.requests_per_s;
            return Some(Operation {
                batch: busy,
                ..alone.with_rate(requests_per_s, &self.lengths)
            });
        }
        let index = self.batch.iter().position(|&b| concurrency(b) >= Some(requests_per_s))?;
        let (mut low, mut high) = (self.batch[index - 1], self.batch[index]);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if concurrency(middle)? < requests_per_s { low = middle } else { high = middle }
        }
        self.operate(high, factors)
    }

    /// The operating point with `batch` sequences.
    fn operate(&self, batch: f64, factors: &StepFactors) -> Option<Operation> {
        let tpot = self.step_time(batch, factors);
        (tpot.is_finite() && tpot.0 > 0.0).then(|| {
            let rate = batch / tpot.0;
            Operation {
                batch,
                tpot,
                ttft: self.first_token_time(batch, factors),
                requests_per_s: rate / self.lengths.output,
                output_rate: TokensPerSecond(rate),
            }
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
    /// 1 when `end` does. Both times are linear in between.
    fn share_kept(&self, start: &Operation, end: &Operation) -> f64 {
        let share = |limit: Option<Seconds>, from: Seconds, to: Seconds| match limit {
            Some(limit) if to > limit => ((limit - from) / (to - from)).clamp(0.0, 1.0 - 1e-12),
            _ => 1.0,
        };
        share(self.tpot, start.tpot, end.tpot).min(share(self.ttft, start.ttft, end.ttft))
    }
}

impl Operation {
    /// The same step at a lower request rate.
    fn with_rate(self, requests_per_s: f64, lengths: &Lengths) -> Self {
        let output_rate = TokensPerSecond(requests_per_s * lengths.output);
        Self { requests_per_s, output_rate, ..self }
    }
}

fn better(a: Operation, b: Operation) -> Operation {
    if b.requests_per_s > a.requests_per_s { b } else { a }
}

fn scaled(step: &StepTime, factors: &StepFactors) -> Seconds {
    let experts = step.experts + (step.experts_skewed - step.experts) * factors.skew;
    experts * factors.experts
        + (step.dense + step.attention) * factors.dense
        + (step.overhead + step.communication) * factors.overhead
}

/// 1 to `cap`, evenly in the logarithm, both ends included.
fn batch_grid(cap: f64) -> Vec<f64> {
    let mut grid = Vec::new();
    let mut exponent = 0.0;
    loop {
        let value = (exponent / POINTS_PER_DOUBLING).exp2();
        if value >= cap {
            grid.push(cap);
            return grid;
        }
        grid.push(value);
        exponent += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::latency::{Latency, LatencyModel};
    use crate::latency::{Ceilings, LayerQuery};
    use crate::serving::geometry::tests::small;
    use crate::serving::{Link, LoadModel};

    /// A device of round numbers: 1 TB/s, 100 TFLOP/s, 10 us a layer.
    struct Round;

    impl LatencyModel for Round {
        fn moe_layer(&self, query: &LayerQuery) -> Result<Latency> {
            let value = query.roofline(&self.ceilings());
            Ok(Latency { value, lo: value, hi: value, source: Source::Roofline })
        }

        fn ceilings(&self) -> Ceilings {
            Ceilings {
                read_bytes_per_s: 1e12,
                gemm_flops_per_s: 1e14,
                layer_overhead_s: 1e-5,
                source: Source::Roofline,
            }
        }
    }

    const LENGTHS: Lengths = Lengths { input: 512.0, output: 128.0 };

    fn curve(cap: f64) -> StepCurve {
        let load = LoadModel::uniform(4, 1);
        let replica = Replica {
            geometry: small(),
            devices: 1,
            latency: &Round,
            load: &load,
            skewed: &load,
            link: Link { latency: Seconds(1e-5), bytes_per_s: 1e11 },
        };
        StepCurve::new(&replica, LENGTHS, cap, 256.0).unwrap().unwrap()
    }

    #[test]
    fn a_cap_below_one_sequence_is_no_replica() {
        let load = LoadModel::uniform(4, 1);
        let replica = Replica {
            geometry: small(),
            devices: 1,
            latency: &Round,
            load: &load,
            skewed: &load,
            link: Link { latency: Seconds(1e-5), bytes_per_s: 1e11 },
        };
        assert!(StepCurve::new(&replica, LENGTHS, 0.0, 256.0).unwrap().is_none());
    }

    #[test]
    fn without_a_promise_the_memory_cap_is_the_capacity() {
        let none = ServiceLevel { tpot: None, ttft: None };
        let at = curve(100.0).capacity(&none, &StepFactors::ONE).unwrap();
        assert!((at.batch - 100.0).abs() < 1e-9);
        assert!((at.requests_per_s - 100.0 / at.tpot.0 / 128.0).abs() < 1e-9, "Little's law");
    }

    #[test]
    fn capacity_meets_the_promised_time_per_token_exactly() {
        let curve = curve(1000.0);
        let limit = curve.step_time(137.0, &StepFactors::ONE);
        let level = ServiceLevel { tpot: Some(limit), ttft: None };
        let at = curve.capacity(&level, &StepFactors::ONE).unwrap();
        assert!((at.tpot / limit - 1.0).abs() < 1e-6, "{} against {limit}", at.tpot);
        assert!((at.batch / 137.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_promise_that_one_sequence_breaks_has_no_capacity() {
        let level = ServiceLevel { tpot: Some(Seconds(1e-6)), ttft: None };
        assert!(curve(10.0).capacity(&level, &StepFactors::ONE).is_none());
        let level = ServiceLevel { tpot: None, ttft: Some(Seconds(1e-6)) };
        assert!(curve(10.0).capacity(&level, &StepFactors::ONE).is_none());
    }

    #[test]
    fn the_operating_point_carries_the_rate_asked_for() {
        let curve = curve(500.0);
        let full =
            curve.capacity(&ServiceLevel { tpot: None, ttft: None }, &StepFactors::ONE).unwrap();
        for share in [1e-6, 0.2, 0.7, 0.999] {
            let rate = full.requests_per_s * share;
            let at = curve.at_rate(rate, &StepFactors::ONE).unwrap();
            assert!((at.requests_per_s / rate - 1.0).abs() < 1e-6, "{share}");
            assert!(at.tpot <= full.tpot && at.batch <= full.batch);
        }
        assert!(curve.at_rate(full.requests_per_s * 1.01, &StepFactors::ONE).is_none());
    }

    #[test]
    fn slower_parts_lower_the_capacity() {
        let curve = curve(500.0);
        let level = ServiceLevel { tpot: Some(Seconds(5e-3)), ttft: None };
        let base = curve.capacity(&level, &StepFactors::ONE).unwrap().requests_per_s;
        for factors in [
            StepFactors { experts: 1.5, ..StepFactors::ONE },
            StepFactors { dense: 1.5, ..StepFactors::ONE },
            StepFactors { overhead: 1.5, ..StepFactors::ONE },
        ] {
            assert!(curve.capacity(&level, &factors).unwrap().requests_per_s < base);
        }
    }

    #[test]
    fn a_prompt_of_two_chunks_waits_for_two_steps() {
        let curve = curve(4.0);
        let expected = scaled(&curve.first_token[0], &StepFactors::ONE) * 2.0;
        assert_eq!(curve.first_token_time(1.0, &StepFactors::ONE), expected);
    }
}
