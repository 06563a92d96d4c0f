//! Column-blocked rows: `[expert][block of 64 columns][row][64]`.
//!
//! Each expert's rows are stored block by block, so that a task that computes 64 output columns for
//! all rows of an expert writes one contiguous piece, and a product that reads a few rows finds the
//! same 64 columns of its neighbours side by side. Columns beyond the width are zero.

use rayon::prelude::*;

use crate::kernels::Alignment;

/// Columns of one block: 256 bytes, four cache lines.
pub(crate) const BLOCK: usize = 64;
/// Rows gathered by one task at least: below this a task costs more than its copy.
const GATHER_ROWS: usize = 16;

/// Blocks that hold `width` columns.
pub(crate) const fn count(width: usize) -> usize {
    width.div_ceil(BLOCK)
}

/// Columns stored for a width.
pub(crate) const fn padded(width: usize) -> usize {
    count(width) * BLOCK
}

/// Copies each pair's token row of `x` `[tokens, width]` into `packed`, grouped by expert.
pub(crate) fn gather(
    x: &[f32],
    width: usize,
    top_k: usize,
    alignment: &Alignment,
    packed: &mut [f32],
) {
    let stride = padded(width);
    let experts = alignment.offsets.len() - 1;
    split_by_expert(alignment, stride, 0..experts, packed, &|expert, out: &mut [f32]| {
        let pairs = &alignment.sorted_pairs[alignment.rows(expert)];
        out.par_chunks_mut(pairs.len() * BLOCK)
            .with_min_len(GATHER_ROWS.div_ceil(pairs.len()))
            .enumerate()
            .for_each(|(block, out)| {
                let columns = block * BLOCK..((block + 1) * BLOCK).min(width);
                for (&pair, out) in pairs.iter().zip(out.chunks_exact_mut(BLOCK)) {
                    let row = &x[pair as usize / top_k * width..][columns.clone()];
                    out[..row.len()].copy_from_slice(row);
                    out[row.len()..].fill(0.0);
                }
            });
    });
}

/// Hands every expert with rows its part of `buffer` (`rows x stride` values), experts in parallel.
pub(crate) fn split_by_expert<F>(
    alignment: &Alignment,
    stride: usize,
    experts: std::ops::Range<usize>,
    buffer: &mut [f32],
    work: &F,
) where
    F: Fn(usize, &mut [f32]) + Sync,
{
    let rows = alignment.offsets[experts.end] - alignment.offsets[experts.start];
    if rows == 0 {
        return;
    }
    if experts.len() == 1 {
        work(experts.start, &mut buffer[..rows * stride]);
        return;
    }
    let middle = experts.start + experts.len() / 2;
    let left = alignment.offsets[middle] - alignment.offsets[experts.start];
    let (a, b) = buffer.split_at_mut(left * stride);
    rayon::join(
        || split_by_expert(alignment, stride, experts.start..middle, a, work),
        || split_by_expert(alignment, stride, middle..experts.end, b, work),
    );
}
