//! Softmax of a router's row, in code that compilers turn into vectors: the operations and the order of
//! [`crate::kernels::math`], which no instruction set changes. Fused multiplication is an instruction
//! of AVX2 and AVX-512 and a slow library call on older x86-64.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use crate::kernels::math::{LANES, LaneSum, share_of, softmax_power};

/// Values of a row's tail, or choices of a token, that are taken at a time: a vector of AVX2.
const FEW: usize = 8;

/// The highest value of a row without NaN.
#[inline(always)]
pub(super) fn highest(row: &[f32]) -> f32 {
    row.iter().fold(f32::NEG_INFINITY, |max, &l| if l > max { l } else { max })
}

/// Sum of `e^(l - max)` over a row, dealt to lanes.
#[inline(always)]
pub(super) fn power_sum(row: &[f32], max: f32) -> f32 {
    // The power of -infinity is 0, which changes no sum.
    lane_sum(row, f32::NEG_INFINITY, |l| softmax_power(l, max))
}

/// Sum of `term` of all values in the order of [`LaneSum`]; the term of `filler` is 0.
#[inline(always)]
fn lane_sum(values: &[f32], filler: f32, term: impl Fn(f32) -> f32) -> f32 {
    let mut sum = LaneSum::default();
    let lanes = sum.lanes_mut();
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += term(v);
        }
    }
    for (lanes, piece) in lanes.chunks_exact_mut(FEW).zip(tail.chunks(FEW)) {
        let mut full = [filler; FEW];
        full[..piece.len()].copy_from_slice(piece);
        for (lane, &v) in lanes.iter_mut().zip(&full) {
            *lane += term(v);
        }
    }
    sum.total()
}

/// Sum of few values that are not negative, in the order of [`LaneSum`]: lanes without a value hold 0,
/// which changes no such sum, so that only the last three halvings are left.
#[inline(always)]
fn sum_of_few(v: &[f32; FEW]) -> f32 {
    let four = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Softmax over a group of experts, the first of which has the id `first`.
#[inline(always)]
pub(super) fn softmax(row: &[f32], first: usize, shares: &mut [f32]) {
    let max = highest(row);
    for (share, &l) in shares.iter_mut().zip(row) {
        *share = softmax_power(l, max);
    }
    let sum = if first.is_multiple_of(LANES) {
        lane_sum(shares, 0.0, |power| power)
    } else {
        LaneSum::of(shares, first)
    };
    for share in shares {
        *share = share_of(*share, sum);
    }
}

/// Rows whose sums and weights are computed together: their chains of dependent operations overlap.
pub(super) const ROWS: usize = 8;

/// A value for each of the first [`FEW`] slots of [`ROWS`] rows.
type Slots = [f32; ROWS * FEW];

/// How weights are made from the scores of the chosen.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// Whether weights are divided by their sum.
    pub(super) renormalize: bool,
    /// Factor of all weights.
    pub(super) scale: f32,
}

impl Finish {
    /// Turns the chosen logits of at most [`ROWS`] rows of `top_k` into weights by their shares of a
    /// softmax, of which the highest logit and the sum are given for each row.
    #[inline(always)]
    pub(super) fn shares(
        self,
        chosen: &mut [f32],
        top_k: usize,
        highest: &[f32; ROWS],
        sums: &[f32; ROWS],
    ) {
        if top_k <= FEW && chosen.len() == ROWS * top_k {
            return self.shares_of_few(chosen, top_k, highest, sums);
        }
        for ((chosen, &max), &sum) in chosen.chunks_exact_mut(top_k).zip(highest).zip(sums) {
            for w in chosen.iter_mut() {
                *w = share_of(softmax_power(*w, max), sum);
            }
            self.scores(chosen);
        }
    }

    /// The same for all of [`ROWS`] rows with few choices: one loop over the slots of all, each row
    /// filled up, becomes vectors, which loops over two or six weights do not.
    #[inline(always)]
    fn shares_of_few(
        self,
        chosen: &mut [f32],
        top_k: usize,
        highest: &[f32; ROWS],
        sums: &[f32; ROWS],
    ) {
        // The share of -infinity is 0, which changes no sum.
        let mut slots = [f32::NEG_INFINITY; ROWS * FEW];
        for (to, from) in slots.as_chunks_mut::<FEW>().0.iter_mut().zip(chosen.chunks(top_k)) {
            for (to, &v) in to.iter_mut().zip(from) {
                *to = v;
            }
        }
        let (max, sum) = (repeated(highest), repeated(sums));
        for ((w, max), sum) in slots.iter_mut().zip(max).zip(sum) {
            *w = share_of(softmax_power(*w, max), sum);
        }
        let mut divisors = [1.0; ROWS];
        for (divisor, weights) in divisors.iter_mut().zip(slots.as_chunks().0) {
            *divisor = self.divisor(sum_of_few(weights));
        }
        for (w, divisor) in slots.iter_mut().zip(repeated(&divisors)) {
            *w = *w / divisor * self.scale;
        }
        for (to, from) in chosen.chunks_mut(top_k).zip(slots.as_chunks::<FEW>().0) {
            for (to, &v) in to.iter_mut().zip(from) {
                *to = v;
            }
        }
    }

    /// Turns the chosen scores of one row, none of them negative, into weights.
    #[inline(always)]
    pub(super) fn scores(self, chosen: &mut [f32]) {
        let sum = if chosen.len() <= FEW {
            let mut few = [0.0; FEW];
            few[..chosen.len()].copy_from_slice(chosen);
            sum_of_few(&few)
        } else {
            lane_sum(chosen, 0.0, |w| w)
        };
        let divisor = self.divisor(sum);
        for w in chosen {
            *w = *w / divisor * self.scale;
        }
    }

    #[inline(always)]
    fn divisor(self, sum: f32) -> f32 {
        if self.renormalize && sum > 0.0 { sum } else { 1.0 }
    }
}

/// Each row's value in all its slots.
#[inline(always)]
fn repeated(rows: &[f32; ROWS]) -> Slots {
    let mut slots = [0.0; ROWS * FEW];
    for (slots, &value) in slots.as_chunks_mut::<FEW>().0.iter_mut().zip(rows) {
        *slots = [value; FEW];
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_have_the_order_of_lanes(values in prop::collection::vec(0f32..1e3, 0..100)) {
            let expected = LaneSum::of(&values, 0).to_bits();
            prop_assert_eq!(lane_sum(&values, 0.0, |v| v).to_bits(), expected);
            let mut few = [0.0; FEW];
            few.iter_mut().zip(&values).for_each(|(few, &v)| *few = v);
            prop_assert_eq!(sum_of_few(&few).to_bits(), LaneSum::of(&few, 0).to_bits());
        }
    }
}
