//! Softmax of a router's row, in code that compilers turn into vectors: the operations and the order of
//! [`crate::kernels::math`], which no instruction set changes. Fused multiplication is an instruction
//! of AVX2 and AVX-512 and a slow library call on older x86-64.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

#[cfg(target_arch = "x86_64")]
use super::Isa;
use crate::kernels::math::{LANES, LaneSum, share_of, softmax_power};

/// Logits of a row's tail that are taken at a time: a vector of AVX2.
const TAIL: usize = 8;

/// Turns the chosen logits, highest first, into their shares of the softmax over `row`, or over
/// themselves. Without a logit above -infinity all shares are 0.
pub(crate) fn softmax_shares(row: Option<&[f32]>, chosen: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if Isa::Avx512.is_available() {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { shares_avx512(row, chosen) };
            return;
        }
        if Isa::Avx2.is_available() {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { shares_avx2(row, chosen) };
            return;
        }
    }
    shares(row, chosen);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn shares_avx512(row: Option<&[f32]>, chosen: &mut [f32]) {
    shares(row, chosen);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn shares_avx2(row: Option<&[f32]>, chosen: &mut [f32]) {
    shares(row, chosen);
}

#[inline(always)]
fn shares(row: Option<&[f32]>, chosen: &mut [f32]) {
    let Some(&max) = chosen.first() else { return };
    let sum = power_sum(row.unwrap_or(chosen), max);
    for w in chosen {
        *w = share_of(softmax_power(*w, max), sum);
    }
}

/// Sum of `e^(l - max)` over a row, dealt to lanes.
#[inline(always)]
fn power_sum(row: &[f32], max: f32) -> f32 {
    let mut sum = LaneSum::default();
    let lanes = sum.lanes_mut();
    let chunks = row.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &l) in lanes.iter_mut().zip(chunk) {
            *lane += softmax_power(l, max);
        }
    }
    for (lanes, piece) in lanes.chunks_exact_mut(TAIL).zip(tail.chunks(TAIL)) {
        // The power of -infinity is 0, which changes no sum.
        let mut full = [f32::NEG_INFINITY; TAIL];
        full[..piece.len()].copy_from_slice(piece);
        for (lane, &l) in lanes.iter_mut().zip(&full) {
            *lane += softmax_power(l, max);
        }
    }
    sum.total()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bits(
            row in prop::collection::vec(-100f32..100.0, 1..200),
            over_all in any::<bool>(),
        ) {
            let mut sorted = row.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let chosen = &sorted[..sorted.len().min(8)];
            let over = over_all.then_some(row.as_slice());
            let mut expected = chosen.to_vec();
            shares(over, &mut expected);
            let mut got = chosen.to_vec();
            softmax_shares(over, &mut got);
            prop_assert_eq!(bits(&got), bits(&expected));
            #[cfg(target_arch = "x86_64")]
            if Isa::Avx2.is_available() {
                let mut got = chosen.to_vec();
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { shares_avx2(over, &mut got) };
                prop_assert_eq!(bits(&got), bits(&expected));
            }
        }
    }

    #[test]
    fn shares_of_infinities_are_defined() {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        let shares = |row: &[f32], chosen: &[f32]| {
            let mut chosen = chosen.to_vec();
            softmax_shares(Some(row), &mut chosen);
            chosen
        };
        assert_eq!(bits(&shares(&[low; 9], &[low; 2])), bits(&[0.0; 2]));
        assert_eq!(bits(&shares(&[high, 1.0, high], &[high, high])), bits(&[0.5; 2]));
        assert_eq!(bits(&shares(&[low, 3.0], &[3.0, low])), bits(&[1.0, 0.0]));
    }
}
