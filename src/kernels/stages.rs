//! The oracle of each stage by itself, for devices that keep bf16 between stages: plain loops in double
//! precision, fed with what the device itself had as input of that stage, so that bounds stay simple.
//!
//! Rounding of the device: sums in single precision, results in bf16. A result y of K terms is held to
//! `|y - r| <= 2^-8 |r| + 4 sqrt(K) u (|A| |B|)` and the smallest normal number, where u covers how
//! tensor cores add (`TENSOR_CORE`).

use half::bf16;

use crate::kernels::LayerWeights;
use crate::kernels::reference::{Exact, TENSOR_CORE};

/// Unit roundoff of f32, 2^-24.
const F32: f64 = 5.960_464_477_539_063e-8;
/// Room for one rounding to bf16, 2^-8.
const OUTPUT: f64 = 3.906_25e-3;
/// What may be lost where a result or a factor is denormal.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Activated values of one token in one expert, `[inter]`, rounded to bf16 within the bound. Gate rows
/// are the first half of `w13` if `gate_first`.
pub fn up(weights: &LayerWeights, gate_first: bool, expert: usize, x: &[bf16]) -> Vec<Exact> {
    let s = &weights.shape;
    let row = |half: usize, i: usize| {
        let start = ((expert * 2 + half) * s.inter + i) * s.hidden;
        dot(x, |k| weights.w13.get(start + k))
    };
    let halves = if gate_first { (0, 1) } else { (1, 0) };
    let activated = |i: usize| {
        let (gate, up) = (row(halves.0, i), row(halves.1, i));
        let silu = gate.value / (1.0 + (-gate.value).exp());
        let value = silu * up.value;
        // The activation's slope is at most 1.1; its own arithmetic is good to 8 units.
        let carried = 1.1 * (up.value.abs() + up.bound) * gate.bound + silu.abs() * up.bound;
        let rounded = (8.0 * F32 + OUTPUT) * value.abs();
        Exact { value, bound: carried + rounded + TINY }
    };
    (0..s.inter).map(activated).collect()
}

/// Values of the second product for one row of h in one expert, `[hidden]`, rounded to bf16.
pub fn down(weights: &LayerWeights, expert: usize, h: &[bf16]) -> Vec<Exact> {
    let exact = down_sums(weights, expert, h);
    let rounded = |e: Exact| Exact { bound: e.bound + OUTPUT * e.value.abs() + TINY, ..e };
    exact.into_iter().map(rounded).collect()
}

/// The same before rounding, as fast mode adds them.
pub fn down_sums(weights: &LayerWeights, expert: usize, h: &[bf16]) -> Vec<Exact> {
    let s = &weights.shape;
    let value = |n: usize| {
        let start = (expert * s.hidden + n) * s.inter;
        dot(h, |k| weights.w2.get(start + k))
    };
    (0..s.hidden).map(value).collect()
}

/// Sum of one column over a token's rows: (weight, value) by slot. Rounded to bf16 unless `f32`.
pub fn combine(rows: impl Iterator<Item = (f32, f64)>, f32_out: bool) -> Exact {
    let (mut value, mut absolute, mut slots) = (0.0, 0.0, 0.0);
    for (weight, y) in rows {
        let term = f64::from(weight) * y;
        value += term;
        absolute += f64::abs(term);
        slots += 1.0;
    }
    let output = if f32_out { F32 } else { OUTPUT };
    Exact { value, bound: output * f64::abs(value) + slots * F32 * absolute + TINY }
}

fn dot(a: &[bf16], b: impl Fn(usize) -> f64) -> Exact {
    let (mut value, mut absolute) = (0.0, 0.0);
    for (k, a) in a.iter().enumerate() {
        let term = a.to_f64() * b(k);
        value += term;
        absolute += term.abs();
    }
    Exact { value, bound: 4.0 * (a.len() as f64).sqrt() * TENSOR_CORE * absolute }
}

/// What align makes of the experts of all pairs, with segments padded to a multiple of `block_m`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaddedAlignment {
    /// Rows of each expert without padding.
    pub expert_count: Vec<i32>,
    /// First padded row of each expert, and the number of padded rows.
    pub expert_offsets: Vec<i32>,
    /// Pair of each padded row; -1 for padding.
    pub sorted_pairs: Vec<i32>,
    /// Padded row of each pair; -1 for a pair whose expert does not exist.
    pub pair_rows: Vec<i32>,
    /// Expert, first row and rows of each tile, in order.
    pub tiles: Vec<[i32; 3]>,
    /// Whether an id was not below the number of experts.
    pub bad_id: bool,
}

impl PaddedAlignment {
    /// Groups pairs by expert, keeping their order.
    pub fn new(ids: &[i32], experts: i32, block_m: i32) -> Self {
        let mut a = Self { pair_rows: vec![-1; ids.len()], ..Self::default() };
        a.bad_id = ids.iter().any(|id| !(0..experts).contains(id));
        for expert in 0..experts {
            let start = signed(a.sorted_pairs.len());
            a.expert_offsets.push(start);
            for pair in (0..ids.len()).filter(|&pair| ids[pair] == expert) {
                a.pair_rows[pair] = signed(a.sorted_pairs.len());
                a.sorted_pairs.push(signed(pair));
            }
            let count = signed(a.sorted_pairs.len()) - start;
            a.expert_count.push(count);
            let tiles = (count + block_m - 1) / block_m;
            for tile in 0..tiles {
                let row0 = start + tile * block_m;
                a.tiles.push([expert, row0, block_m.min(start + count - row0)]);
            }
            let end = start + tiles * block_m;
            a.sorted_pairs.resize(usize::try_from(end).unwrap_or(0), -1);
        }
        a.expert_offsets.push(signed(a.sorted_pairs.len()));
        a
    }
}

/// Pairs are numbered in 31 bits; more are cut off, which no comparison survives.
fn signed(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{MoeShape, WeightData, reference};

    #[test]
    fn stages_in_order_agree_with_the_whole_layer() {
        let shape = MoeShape { experts: 2, top_k: 2, hidden: 8, inter: 16, gated: true };
        let value = |i: usize| f32::from(u8::try_from(i * 37 % 19).unwrap()) / 8.0 - 1.0;
        let stack = |n: usize| WeightData::Bf16((0..n).map(|i| bf16::from_f32(value(i))).collect());
        let weights = LayerWeights::new(shape, stack(2 * 2 * 16 * 8), stack(2 * 8 * 16)).unwrap();
        let x: Vec<bf16> = (0..8).map(|i| bf16::from_f32(value(i + 5))).collect();
        let wide: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        for (i, exact) in up(&weights, true, 1, &x).iter().enumerate() {
            let plain = reference::gate_up(&weights, 1, &wide)[i];
            assert!((exact.value - plain.value).abs() < 1e-12);
            assert!(exact.bound >= plain.bound);
        }
        let swapped = up(&weights, false, 1, &x);
        assert!(swapped.iter().zip(up(&weights, true, 1, &x)).any(|(a, b)| *a != b));
        let h: Vec<bf16> = (0..16).map(|i| bf16::from_f32(value(i + 3))).collect();
        let y = down(&weights, 1, &h);
        let first: f64 = (0..16).map(|k| h[k].to_f64() * weights.w2.get(128 + k)).sum();
        assert!((y[0].value - first).abs() < 1e-12);
        let sum = combine([(0.5, 3.0), (0.25, -2.0)].into_iter(), false);
        assert!((sum.value - 1.0).abs() < 1e-15 && sum.bound > OUTPUT);
    }

    #[test]
    fn segments_are_padded_and_pairs_without_expert_dropped() {
        let a = PaddedAlignment::new(&[2, 0, 2, 7, 2, -1], 4, 2);
        assert_eq!(a.expert_count, [1, 0, 3, 0]);
        assert_eq!(a.expert_offsets, [0, 2, 2, 6, 6]);
        assert_eq!(a.sorted_pairs, [1, -1, 0, 2, 4, -1]);
        assert_eq!(a.pair_rows, [2, 0, 3, -1, 4, -1]);
        assert_eq!(a.tiles, [[0, 0, 1], [2, 2, 2], [2, 4, 1]]);
        assert!(a.bad_id);
    }
}
