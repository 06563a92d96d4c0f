//! The two grouped products and the weighted sum.
//!
//! A task computes one block of 64 output columns for all rows of one expert: 64 (gated: 2 x 64) rows
//! of weights are streamed through the core once, against that expert's gathered rows. Tasks are
//! found by halving the list of experts, then the list of blocks, so that idle threads steal large
//! pieces first and a hot expert is still split.

use rayon::prelude::*;

use crate::kernels::cpu::blocks::{BLOCK, columns, count, padded, split_by_expert};
use crate::kernels::cpu::simd::{Format, Isa, Operand, Panel, packed_len};
use crate::kernels::{Alignment, MoeShape, Routed};

/// Matrices of one product, as many rows and columns in each.
pub(crate) struct Matrices<'a, W> {
    /// All of them, in rows or packed.
    values: &'a [W],
    /// Rows and columns of one.
    size: (usize, usize),
    /// Values to a lane, where they are packed.
    per_lane: Option<usize>,
}

impl<'a, W> Matrices<'a, W> {
    /// Matrices of `size` rows and columns.
    pub(crate) fn new(values: &'a [W], size: (usize, usize), per_lane: Option<usize>) -> Self {
        Self { values, size, per_lane }
    }

    /// Where the given number of rows of one matrix ends.
    fn end(&self, rows: usize) -> usize {
        let k = self.size.1;
        self.per_lane.map_or(rows * k, |per_lane| packed_len(rows, k, per_lane))
    }

    /// One block of 64 rows, or fewer at the end, of a matrix.
    fn panel(&self, matrix: usize, block: usize) -> Panel<'a, W> {
        let (n, k) = self.size;
        let rows = columns(block, n);
        let start = matrix * self.end(n);
        let values = &self.values[start + self.end(rows.start)..start + self.end(rows.end)];
        Panel { values, rows: rows.len(), k, packed: self.per_lane.is_some() }
    }
}

/// `h = act(a w13^T)`: `a` holds gathered rows, `h` receives activated rows, both column-blocked with
/// the rows of `starts`.
pub(crate) fn gate_up<F: Format>(
    shape: &MoeShape,
    w13: &Matrices<F::Weight>,
    a: &[F::Activation],
    starts: &[usize],
    h: &mut [F::Activation],
    isa: Isa,
) {
    let input = Input { values: a, starts, width: shape.hidden };
    for_each_block(
        &input,
        F::rows_at_once(shape.hidden),
        shape.inter,
        starts,
        h,
        &|expert, block, a, out| {
            let half = |half: usize| w13.panel(expert * shape.halves() + half, block);
            F::gate_up(isa, (half(0), shape.gated.then(|| half(1))), a, out);
        },
    );
}

/// `y = h w2^T`: `h` column-blocked with the rows of `starts`, `y` with those of the alignment.
pub(crate) fn down<F: Format>(
    shape: &MoeShape,
    w2: &Matrices<F::Weight>,
    h: &[F::Activation],
    starts: &[usize],
    alignment: &Alignment,
    y: &mut [f32],
    isa: Isa,
) {
    let input = Input { values: h, starts, width: shape.inter };
    let at_once = F::rows_at_once(shape.inter);
    for_each_block(
        &input,
        at_once,
        shape.hidden,
        &alignment.offsets,
        y,
        &|expert, block, h, out| {
            F::down(isa, w2.panel(expert, block), h, out);
        },
    );
}

/// Rows of all experts, column-blocked.
pub(crate) struct Input<'a, A> {
    /// Blocks of each expert.
    pub(crate) values: &'a [A],
    /// First row of each expert, and their number.
    pub(crate) starts: &'a [usize],
    /// Columns of a row.
    pub(crate) width: usize,
}

/// Blocks of one task where an expert's rows are more than are multiplied at once: rows that fill the cache
/// meet the weights of all of them.
const BLOCKS: usize = 8;

/// Runs `work(expert, block, input rows, output block)` for every block of every expert with rows, `at_once`
/// rows at a time.
pub(crate) fn for_each_block<A, O, W>(
    input: &Input<A>,
    at_once: usize,
    width: usize,
    starts: &[usize],
    output: &mut [O],
    work: &W,
) where
    A: Copy + Sync,
    O: Send,
    W: Fn(usize, usize, Operand<A>, &mut [O]) + Sync,
{
    let experts = starts.len() - 1;
    let stride = padded(input.width);
    split_by_expert(starts, padded(width), 0..experts, output, &|expert, out: &mut [O]| {
        let range = input.starts[expert]..input.starts[expert + 1];
        let a =
            Operand::whole(&input.values[range.start * stride..range.end * stride], range.len());
        let rows = starts[expert + 1] - starts[expert];
        debug_assert_eq!(out.len(), count(width) * rows * BLOCK);
        let blocks = if a.rows > at_once { BLOCKS } else { 1 };
        out.par_chunks_mut(blocks * rows * BLOCK).enumerate().for_each(|(chunk, out)| {
            for first in (0..a.rows).step_by(at_once) {
                let a = Operand { part: (first, a.rows.min(first.saturating_add(at_once))), ..a };
                for (block, out) in out.chunks_mut(rows * BLOCK).enumerate() {
                    work(expert, chunk * blocks + block, a, out);
                }
            }
        });
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
