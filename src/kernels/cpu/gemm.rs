//! The two grouped products and the weighted sum.
//!
//! A task computes one block of 64 output columns for all rows of one expert: 64 (gated: 2 x 64) rows
//! of weights are streamed through the core once, against that expert's gathered rows. Tasks are
//! found by halving the list of experts, then the list of blocks, so that idle threads steal large
//! pieces first and a hot expert is still split.

use rayon::prelude::*;

use crate::kernels::cpu::blocks::{BLOCK, count, padded, split_by_expert};
use crate::kernels::cpu::simd::{Isa, Operand, Weight};
use crate::kernels::{Alignment, MoeShape, Routed};

/// `h = act(a w13^T)`: `a` holds gathered rows, `h` receives activated rows, both column-blocked.
pub(crate) fn gate_up<W: Weight>(
    shape: &MoeShape,
    w13: &[W],
    a: &[f32],
    alignment: &Alignment,
    h: &mut [f32],
    isa: Isa,
) {
    let matrix = shape.inter * shape.hidden;
    for_each_block(shape.hidden, shape.inter, alignment, (a, h), &|expert, block, rows, out| {
        let columns = block * BLOCK..((block + 1) * BLOCK).min(shape.inter);
        let first = expert * shape.halves();
        let half = |half: usize| {
            let start = (first + half) * matrix + columns.start * shape.hidden;
            &w13[start..start + columns.len() * shape.hidden]
        };
        isa.product(half(0), shape.hidden, rows, out);
        if shape.gated {
            // Only the small product of one block is kept beside the output: 64 columns of a few rows.
            isa.gated_product(half(1), shape.hidden, rows, out);
        } else {
            for v in out.iter_mut() {
                *v = silu(*v);
            }
        }
    });
}

/// `y = h w2^T`, both column-blocked.
pub(crate) fn down<W: Weight>(
    shape: &MoeShape,
    w2: &[W],
    h: &[f32],
    alignment: &Alignment,
    y: &mut [f32],
    isa: Isa,
) {
    let matrix = shape.inter * shape.hidden;
    for_each_block(shape.inter, shape.hidden, alignment, (h, y), &|expert, block, rows, out| {
        let columns = block * BLOCK..((block + 1) * BLOCK).min(shape.hidden);
        let start = expert * matrix + columns.start * shape.inter;
        isa.product(&w2[start..start + columns.len() * shape.inter], shape.inter, rows, out);
    });
}

/// Runs `work(expert, block, input rows, output block)` for every block of every expert with rows.
fn for_each_block<F>(
    k: usize,
    n: usize,
    alignment: &Alignment,
    (input, output): (&[f32], &mut [f32]),
    work: &F,
) where
    F: Fn(usize, usize, &Operand, &mut [f32]) + Sync,
{
    let experts = alignment.offsets.len() - 1;
    split_by_expert(alignment, padded(n), 0..experts, output, &|expert, out: &mut [f32]| {
        let range = alignment.rows(expert);
        let rows = Operand {
            values: &input[range.start * padded(k)..range.end * padded(k)],
            rows: range.len(),
        };
        debug_assert_eq!(out.len(), count(n) * range.len() * BLOCK);
        out.par_chunks_mut(range.len() * BLOCK)
            .enumerate()
            .for_each(|(block, out)| work(expert, block, &rows, out));
    });
}

/// `out[t] = sum over slots of weight x row`, in slot order.
pub(crate) fn combine(
    shape: &MoeShape,
    y: &[f32],
    routed: &Routed,
    alignment: &Alignment,
    out: &mut [f32],
) {
    /// Values summed by one task at least.
    const GRAIN: usize = 16 * 1024;
    let stride = padded(shape.hidden);
    out.par_chunks_mut(shape.hidden)
        .with_min_len(GRAIN.div_ceil(shape.hidden))
        .enumerate()
        .for_each(|(token, out)| {
            for slot in 0..shape.top_k {
                let pair = token * shape.top_k + slot;
                let (expert, weight) = (routed.ids[pair] as usize, routed.weights[pair]);
                let range = alignment.rows(expert);
                let row = alignment.pair_rows[pair] as usize - range.start;
                let blocks = &y[range.start * stride..range.end * stride];
                let blocks = blocks.chunks_exact(range.len() * BLOCK);
                for (out, block) in out.chunks_mut(BLOCK).zip(blocks) {
                    let values = &block[row * BLOCK..][..out.len()];
                    if slot == 0 {
                        out.iter_mut().zip(values).for_each(|(o, v)| *o = weight * v);
                    } else {
                        out.iter_mut().zip(values).for_each(|(o, v)| *o += weight * v);
                    }
                }
            }
        });
}

/// `x / (1 + e^-x)`.
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
