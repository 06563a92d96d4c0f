//! Router: scores, top-k with ties to the lowest id, weights.

use crate::Result;
use crate::config::Scoring;
use crate::kernels::cpu::simd::softmax_shares;
use crate::kernels::math::LaneSum;
use crate::kernels::reference::{self, nan_logit};
use crate::kernels::{Routed, RouterSpec};

/// Chooses `top_k` of `experts` experts for each token of `logits` `[tokens, experts]` into `routed`.
///
/// Plain top-k over softmax or chosen logits (the decode path of most models) runs without
/// allocating; the other modes use the reference.
///
/// # Errors
/// [`crate::Error::Usage`] for a NaN logit or settings that do not fit.
pub fn route(
    logits: &[f32],
    experts: usize,
    top_k: usize,
    spec: &RouterSpec,
    routed: &mut Routed,
) -> Result<()> {
    let plain = matches!(spec.config.scoring, Scoring::Softmax | Scoring::SoftmaxOverTopK)
        && spec.config.n_group == 1
        && spec.bias.is_empty();
    if !plain {
        *routed = reference::route(logits, experts, top_k, spec)?;
        return Ok(());
    }
    spec.validate(experts, top_k)?;
    let tokens = logits.len() / experts;
    routed.ids.resize(tokens * top_k, 0);
    routed.weights.resize(tokens * top_k, 0.0);
    let rows = logits.chunks_exact(experts);
    let outputs = routed.ids.chunks_exact_mut(top_k).zip(routed.weights.chunks_exact_mut(top_k));
    for (token, (row, (ids, weights))) in rows.zip(outputs).enumerate() {
        if row.iter().any(|l| l.is_nan()) {
            return Err(nan_logit(token));
        }
        choose(row, ids, weights);
        weigh(row, weights, spec);
    }
    Ok(())
}

/// The highest logits of a row, highest first, ties by lowest id: an insertion sort of the best k.
fn choose(row: &[f32], ids: &mut [u32], best: &mut [f32]) {
    let mut held = 0;
    for (id, &logit) in (0u32..).zip(row) {
        if held == best.len() && logit <= best[held - 1] {
            continue;
        }
        let at = best[..held].partition_point(|&b| b >= logit);
        held = (held + 1).min(best.len());
        best.copy_within(at..held - 1, at + 1);
        ids.copy_within(at..held - 1, at + 1);
        (best[at], ids[at]) = (logit, id);
    }
}

/// Turns the chosen logits into weights, in the arithmetic of the reference.
fn weigh(row: &[f32], weights: &mut [f32], spec: &RouterSpec) {
    softmax_shares((spec.config.scoring == Scoring::Softmax).then_some(row), weights);
    if spec.config.renormalize {
        let sum = LaneSum::of(weights, 0);
        if sum > 0.0 {
            for w in weights.iter_mut() {
                *w /= sum;
            }
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32 by definition")]
    let scale = spec.config.scaling_factor as f32;
    for w in weights.iter_mut() {
        *w *= scale;
    }
}
