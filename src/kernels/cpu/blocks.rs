//! Column-blocked rows: `[expert][block of 64 columns][row][64]`.
//!
//! Each expert's rows are stored block by block, so that a task that computes 64 output columns for
//! all rows of an expert writes one contiguous piece, and a product that reads a few rows finds the
//! same 64 columns of its neighbours side by side. Columns beyond the width are zero. Formats that
//! multiply whole tiles fill up every expert's rows with rows of zeros.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::Alignment;
use crate::kernels::cpu::simd::Format;

/// Columns of one block: two or four cache lines of activations.
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

/// First stored row of each expert, and their number last, when every expert's rows are filled up to a
/// multiple of `multiple`.
pub(crate) fn starts(alignment: &Alignment, multiple: usize, starts: &mut Vec<usize>) {
    starts.clear();
    let mut next = 0;
    for rows in alignment.offsets.windows(2) {
        starts.push(next);
        next += (rows[1] - rows[0]).next_multiple_of(multiple);
    }
    starts.push(next);
}

/// Most rows that [`starts`] can ask for.
pub(crate) fn most_rows(pairs: usize, experts: usize, multiple: usize) -> usize {
    pairs + pairs.min(experts) * (multiple - 1)
}

/// Columns of one block of rows of `width`.
pub(crate) fn columns(block: usize, width: usize) -> Range<usize> {
    block * BLOCK..((block + 1) * BLOCK).min(width)
}

/// A row of one block that is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Block of columns.
    pub(crate) block: usize,
    /// Rows that the block holds, and which of them.
    pub(crate) rows: usize,
    pub(crate) row: usize,
}

/// Writes all blocks of rows of `width`: `put(block, place, row)` is handed the row of the alignment
/// that belongs there with its expert's, or `None` for a row that fills up.
pub(crate) fn fill<A, P>(
    width: usize,
    alignment: &Alignment,
    starts: &[usize],
    out: &mut [A],
    put: &P,
) where
    A: Send,
    P: Fn(&mut [A], Place, Option<(usize, Range<usize>)>) + Sync,
{
    let experts = alignment.offsets.len() - 1;
    split_by_expert(starts, padded(width), 0..experts, out, &|expert, out: &mut [A]| {
        let range = alignment.rows(expert);
        let rows = starts[expert + 1] - starts[expert];
        out.par_chunks_mut(rows * BLOCK)
            .with_min_len(GATHER_ROWS.div_ceil(rows))
            .enumerate()
            .for_each(|(block, out)| {
                for row in 0..rows {
                    let of = (row < range.len()).then(|| (range.start + row, range.clone()));
                    put(out, Place { block, rows, row }, of);
                }
            });
    });
}

/// Copies each pair's token row of `x` `[tokens, width]` into `packed`, grouped by expert.
pub(crate) fn gather<F: Format>(
    x: &[f32],
    (width, top_k): (usize, usize),
    alignment: &Alignment,
    starts: &[usize],
    packed: &mut [F::Activation],
) {
    fill(width, alignment, starts, packed, &|out: &mut [_], place, of| {
        let values = of.map_or(&[][..], |(row, _)| {
            let token = alignment.sorted_pairs[row] as usize / top_k;
            &x[token * width..][columns(place.block, width)]
        });
        F::put_row(out, place.rows, place.row, values);
    });
}

/// Hands every expert with rows its part of `buffer` (`rows x stride` values), experts in parallel.
pub(crate) fn split_by_expert<A, W>(
    starts: &[usize],
    stride: usize,
    experts: Range<usize>,
    buffer: &mut [A],
    work: &W,
) where
    A: Send,
    W: Fn(usize, &mut [A]) + Sync,
{
    let rows = starts[experts.end] - starts[experts.start];
    if rows == 0 {
        return;
    }
    if experts.len() == 1 {
        work(experts.start, &mut buffer[..rows * stride]);
        return;
    }
    let middle = experts.start + experts.len() / 2;
    let left = starts[middle] - starts[experts.start];
    let (a, b) = buffer.split_at_mut(left * stride);
    rayon::join(
        || split_by_expert(starts, stride, experts.start..middle, a, work),
        || split_by_expert(starts, stride, middle..experts.end, b, work),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn filled_up_rows_hold_every_expert_and_never_more_than_foreseen(
            experts in 1usize..20,
            seed in prop::collection::vec(any::<u32>(), 0..200),
            multiple in 1usize..20,
        ) {
            let ids: Vec<u32> =
                seed.iter().map(|s| s % u32::try_from(experts).unwrap()).collect();
            let alignment = reference::align(&ids, experts).unwrap();
            let mut found = vec![7];
            starts(&alignment, multiple, &mut found);
            prop_assert_eq!(found.len(), experts + 1);
            for expert in 0..experts {
                let (rows, held) = (alignment.rows(expert).len(), found[expert + 1] - found[expert]);
                prop_assert!(held >= rows && held < rows + multiple && held % multiple == 0);
            }
            prop_assert!(found[experts] <= most_rows(ids.len(), experts, multiple));
        }
    }
}
