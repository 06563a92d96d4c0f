//! What the benches share: settings with their reasons, layers to run, and interleaved comparisons.
//!
//! criterion times one function after another, so a machine whose speed drifts favours whichever ran
//! in the better minute. Ratios are therefore taken apart from criterion, by [`interleaved`]: every
//! round runs each contender once, and the ratio of a pair is the median over rounds.

#![allow(dead_code, reason = "each bench is a crate of its own and uses a part of this file")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use half::bf16;
use moe_frontier::config::DType;
use moe_frontier::kernels::cpu::simd::{Isa, multiply_registers};
use moe_frontier::kernels::{LayerWeights, MoeShape, Routed, RouterSpec, WeightData, reference};
use moe_frontier::workload::{ExpertLoad, RoutingKind};
use rayon::prelude::*;

/// Seed of all weights, inputs and routings.
const SEED: u64 = 20_260_101;

/// criterion's settings for kernels of microseconds to a tenth of a second.
pub(crate) fn settings() -> Criterion {
    Criterion::default()
        // The smallest that criterion accepts: prefill cells take a tenth of a second a call, and a
        // whole target has to end within minutes. The interleaved tables carry the claims.
        .sample_size(10)
        // Caches, page tables and the thread pool are warm after a few calls.
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .without_plots()
        .configure_from_args()
}

/// How the target was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `cargo bench`: everything.
    Full,
    /// `cargo test --benches`: every cell once, on small sizes, to see that it runs.
    Smoke,
    /// A filter or `--list` was given, which the interleaved tables are not subject to.
    CriterionOnly,
}

impl Mode {
    /// Reads the arguments as criterion does.
    pub(crate) fn from_args() -> Self {
        /// Options of the tables themselves.
        const OWN: [&str; 3] = ["--bench", "--quick", "--once"];
        let args: Vec<String> = std::env::args().skip(1).collect();
        let has = |flag: &str| args.iter().any(|a| a == flag);
        if has("--test") || !has("--bench") {
            return Self::Smoke;
        }
        if args.iter().any(|a| !OWN.contains(&a.as_str())) {
            Self::CriterionOnly
        } else {
            Self::Full
        }
    }
}

/// A small, fast generator (splitmix64): gigabytes of weights in seconds.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `count` values spread evenly over [-scale, scale).
pub(crate) fn uniform(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let value = |i: usize| {
        let bits = mix(seed.wrapping_mul(SEED).wrapping_add(i as u64));
        // 24 random bits are exact in f32.
        let unit = f32::from(u16::try_from(bits >> 48).unwrap_or(0)) / 32_768.0 - 1.0;
        unit * scale
    };
    (0..count).into_par_iter().map(value).collect()
}

/// Random bf16 weights of a layer, scaled so that outputs stay near 1.
///
/// # Panics
/// When the shape makes no layer.
pub(crate) fn weights_bf16(shape: MoeShape) -> LayerWeights {
    let narrow = |count: Option<usize>, length: usize, seed| {
        let scale = (3.0 / length as f32).sqrt();
        let values = uniform(count.expect("shape fits"), scale, seed);
        let narrow: Vec<bf16> = values.into_par_iter().map(bf16::from_f32).collect();
        WeightData::Bf16(narrow.into())
    };
    let w13 = narrow(shape.w13_len(), shape.hidden, 1);
    let w2 = narrow(shape.w2_len(), shape.inter, 2);
    LayerWeights::new(shape, w13, w2).expect("weights fit the shape")
}

/// The same weights in single precision.
///
/// # Panics
/// Never for weights made by [`weights_bf16`].
pub(crate) fn widened(weights: &LayerWeights) -> LayerWeights {
    let widen = |data: &WeightData| match data {
        WeightData::F32(v) => WeightData::F32(v.clone()),
        WeightData::Bf16(v) => WeightData::F32(v.iter().map(|v| v.to_f32()).collect()),
        WeightData::F16(v) => WeightData::F32(v.iter().map(|v| v.to_f32()).collect()),
        WeightData::Int8(_) | WeightData::Fp8(_) => unreachable!("widened from bf16"),
    };
    LayerWeights::new(weights.shape, widen(&weights.w13), widen(&weights.w2))
        .expect("weights fit the shape")
}

/// Tokens with a uniform routing: inputs, logits that lead to it, and what the router makes of them.
pub(crate) struct Batch {
    /// `[tokens, hidden]`.
    pub(crate) x: Vec<f32>,
    /// `[tokens, experts]`.
    pub(crate) logits: Vec<f32>,
    /// Experts and weights.
    pub(crate) routed: Routed,
    /// Rows of each expert.
    pub(crate) load: ExpertLoad,
}

impl Batch {
    /// `tokens` random tokens for a layer.
    ///
    /// # Panics
    /// When the shape makes no layer.
    pub(crate) fn new(shape: &MoeShape, tokens: usize) -> Self {
        let sample = RoutingKind::Uniform.sample(tokens, shape.experts, shape.top_k, SEED);
        let ids = sample.expect("sizes fit").ids;
        let mut logits = uniform(tokens * shape.experts, 1.0, 4);
        for (pair, &id) in ids.iter().enumerate() {
            logits[pair / shape.top_k * shape.experts + id as usize] += 4.0;
        }
        let routed = reference::route(&logits, shape.experts, shape.top_k, &RouterSpec::softmax())
            .expect("logits are numbers");
        let load = ExpertLoad::of(&routed.ids, shape.experts);
        Self { x: uniform(tokens * shape.hidden, 1.0, 3), logits, routed, load }
    }
}

/// Runs every contender once a round, `rounds` times after one unmeasured round; seconds of each
/// contender in each round.
pub(crate) fn interleaved(rounds: usize, contenders: &mut [&mut dyn FnMut()]) -> Vec<Vec<f64>> {
    for run in contenders.iter_mut() {
        run();
    }
    let mut seconds = vec![Vec::with_capacity(rounds); contenders.len()];
    for round in 0..rounds {
        for i in 0..contenders.len() {
            // Nobody always runs after the same neighbour.
            let i = (i + round) % contenders.len();
            let start = Instant::now();
            contenders[i]();
            seconds[i].push(start.elapsed().as_secs_f64());
        }
    }
    seconds
}

/// The middle value; the mean of the two middle ones for an even count, NaN for none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, half) = (sorted.len(), sorted.len() / 2);
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// Median over rounds of how many times longer `other` took than `ours`.
pub(crate) fn ratio(other: &[f64], ours: &[f64]) -> f64 {
    median(&other.iter().zip(ours).map(|(o, u)| o / u).collect::<Vec<_>>())
}

/// Best of five rates at which the registers of all threads multiply, in FLOP per second; `None` for
/// formats that are multiplied otherwise.
pub(crate) fn register_rate(isa: Isa, weights: DType) -> Option<f64> {
    /// Milliseconds a thread: long against waking it.
    const REPEATS: u32 = 1 << 20;
    multiply_registers(isa, weights, 1)?;
    let rates = (0..5).map(|_| {
        let start = Instant::now();
        let done = rayon::broadcast(|_| multiply_registers(isa, weights, REPEATS));
        let flops: f64 = done.into_iter().flatten().sum();
        flops / start.elapsed().as_secs_f64()
    });
    Some(rates.fold(0.0, f64::max))
}

/// Best of five rates at which all threads together read `data`, in bytes per second.
pub(crate) fn read_bandwidth(data: &[f32]) -> f64 {
    let read = || {
        let sums = data.par_chunks(1 << 18).map(|chunk| {
            let (lanes, _) = chunk.as_chunks::<32>();
            let mut sums = [0u32; 32];
            for lane in lanes {
                for (sum, v) in sums.iter_mut().zip(lane) {
                    *sum ^= v.to_bits();
                }
            }
            sums.iter().fold(0, |a, b| a ^ b)
        });
        black_box(sums.reduce(|| 0, |a, b| a ^ b));
    };
    let best = (0..5).map(|_| {
        let start = Instant::now();
        read();
        start.elapsed().as_secs_f64()
    });
    size_of_val(data) as f64 / best.fold(f64::INFINITY, f64::min)
}
