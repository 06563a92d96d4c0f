//! The micro-kernel for packed weights: every lane of a register is a weight row.
//!
//! Weights lie in tiles of 16 rows, `[k / P][16][P]`: one line of 64 bytes (in single precision) holds
//! the same column of 16 rows, in bf16 the same pair (`P` = 2) of columns. A line is multiplied with
//! that column of a few token rows, each repeated in all lanes, and the sums stay in registers over
//! the whole length: no lanes are added up at the end, and any number of token rows does without
//! filling up.
//!
//! Weights are packed once when a layer is loaded, or a piece at a time while they are used, which pays
//! from a dozen token rows on: rows are packed at some 50 GB/s, and then multiplied at 0.97 to 1.00 of
//! the rate at which registers alone are (Zen 5, f32 and bf16 pairs), against 0.60 for the dot
//! products of [`super::dot`].

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::marker::PhantomData;

use rayon::prelude::*;

use super::dot::Lanes;
use super::format::Weight;
use super::{Operand, Panel};
use crate::kernels::cpu::blocks::BLOCK;

/// Rows of a tile.
const SIDE: usize = 16;
/// Tiles of a panel.
const TILES: usize = BLOCK / SIDE;
/// Columns multiplied with all token rows before the next are: with 64 weight rows 256 KiB in single
/// precision, a part of a second-level cache.
const PIECE: usize = 1024;
/// Bytes of a cache line, which is what is asked for ahead of its use.
const LINE: usize = size_of::<Line>();

/// The instructions for packed weights, whose lanes are weight rows.
///
/// # Safety of implementations and callers
/// As for [`Lanes`].
pub(super) trait PackedLanes: Lanes {
    /// Values that one lane of a register takes: pairs, or single ones.
    const PER_LANE: usize;
    /// Loads `PER_LANE` activations into every lane.
    unsafe fn repeat(from: *const Self::Activation) -> Self::Register;
    /// Stores `STEP` weights in single precision.
    unsafe fn widen(from: *const Self::Weight, to: *mut f32);
    /// Loads one sum for every lane.
    unsafe fn resume(from: *const f32) -> Self::Sums;
    /// Stores one sum of every lane.
    unsafe fn store(sums: Self::Sums, to: *mut f32);
    /// Stores lane `i` of the 16 lanes in row `j` of 16 as lane `j` of row `i`. Rows to read are `stride`
    /// bytes apart and may lie at any address, rows to write follow each other.
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        for row in 0..16 {
            for lane in 0..16 {
                // SAFETY: the caller vouches for 16 rows of 16 lanes at both ends.
                unsafe {
                    let value = from.byte_add(row * stride).add(lane).read_unaligned();
                    to.add(lane * 16 + row).write_unaligned(value);
                }
            }
        }
    }
}

/// Values that a matrix of `n` rows of `k` weights has when packed, `per_lane` to a lane. Its tiles
/// follow each other, those of any panel of 64 rows at `packed_len(row, k, per_lane)`.
pub(crate) const fn packed_len(n: usize, k: usize, per_lane: usize) -> usize {
    n.div_ceil(SIDE) * k.div_ceil(per_lane) * SIDE * per_lane
}

/// 64 bytes of a cache line, as which packed weights are aligned.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; SIDE]);

impl Line {
    const ZERO: Self = Self([0.0; SIDE]);
}

/// Weights on the boundaries of cache lines, without which every register would be read from two.
#[derive(Debug)]
pub(crate) struct Aligned<W> {
    lines: Vec<Line>,
    len: usize,
    format: PhantomData<W>,
}

impl<W: Weight> Aligned<W> {
    /// `len` zeros; `None` when there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Option<Self> {
        let count = len.checked_mul(size_of::<W>())?.div_ceil(LINE);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).ok()?;
        lines.resize(count, Line::ZERO);
        Some(Self { lines, len, format: PhantomData })
    }

    /// The weights.
    pub(crate) fn as_slice(&self) -> &[W] {
        // SAFETY: lines hold at least `len` weights, which are plain numbers of any bits.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// The weights, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [W] {
        // SAFETY: as above; any weights are lines of single precision values.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Packs whole matrices of `n` rows of `k` weights that follow each other, on all threads.
pub(crate) fn pack_matrices<W: Weight>(
    matrices: &[W],
    (n, k): (usize, usize),
    per_lane: usize,
    to: &mut [W],
) {
    let tiles = to.par_chunks_exact_mut(packed_len(SIDE, k, per_lane)).enumerate();
    tiles.for_each(|(i, tile)| {
        let (matrix, first) = (i / n.div_ceil(SIDE), i % n.div_ceil(SIDE) * SIDE);
        let rows = &matrices[(matrix * n + first) * k..(matrix * n + (first + SIDE).min(n)) * k];
        for (line, column) in tile.chunks_exact_mut(SIDE * per_lane).zip((0..k).step_by(per_lane)) {
            let count = per_lane.min(k - column);
            for (lane, row) in line.chunks_exact_mut(per_lane).zip(rows.chunks_exact(k)) {
                lane[..count].copy_from_slice(&row[column..column + count]);
            }
        }
    });
}

/// `out[row][n] = sum over k of a[row][k] w[n][k]` for rows `first..first + out.len() / BLOCK` of `a`
/// and up to 64 weight rows; columns beyond the last weight row become zero. Weights that lie in rows
/// are packed a piece at a time into `piece`, which grows to hold it, as what `S` multiplies.
///
/// `NV` registers of weight rows times `NX` token rows are summed at a time.
///
/// # Safety
/// The processor has the instructions of `L` and `S`.
#[inline(always)]
pub(super) unsafe fn panel<L, S, const NV: usize, const NX: usize>(
    w: Panel<L::Weight>,
    a: Operand<L::Activation>,
    first: usize,
    out: &mut [f32],
    piece: &mut Vec<Line>,
) where
    L: PackedLanes,
    S: PackedLanes<Activation = L::Activation>,
{
    let rows = out.len() / BLOCK;
    let tiles = w.rows.div_ceil(SIDE);
    assert!((1..=TILES).contains(&tiles), "a panel has up to 64 rows");
    assert!(w.k.div_ceil(BLOCK) * a.rows * BLOCK <= a.values.len(), "token columns exist");
    assert!(first + rows <= a.rows, "token rows exist");
    if tiles < TILES {
        // Tiles that are there write all of their columns.
        out.chunks_exact_mut(BLOCK).for_each(|row| row[tiles * SIDE..].fill(0.0));
    }
    for start in (0..w.k).step_by(PIECE) {
        let columns = (w.k - start).min(PIECE);
        let product = Product { a, first, rows, start, columns, tiles };
        let ahead = product.ahead(&w);
        if w.packed {
            assert!(w.values.len() >= packed_len(w.rows, w.k, L::PER_LANE), "packed weights");
            let stride = packed_len(SIDE, w.k, L::PER_LANE);
            let from = w.values[start * SIDE..].as_ptr();
            // SAFETY: every tile has `stride` values, of which `start` columns are skipped; the caller
            // vouches for the instructions.
            unsafe { product.add::<L, NV, NX>((from, stride), ahead, out) };
        } else {
            let stride = packed_len(SIDE, PIECE, S::PER_LANE);
            let lines = TILES * stride * size_of::<S::Weight>() / size_of::<Line>();
            if piece.len() < lines {
                piece.resize(lines, Line::ZERO);
            }
            let to = piece.as_mut_ptr().cast::<S::Weight>();
            // SAFETY: the piece has room for four tiles of PIECE columns; the caller vouches for the
            // instructions.
            unsafe {
                pack::<L, S>(w, start..start + columns, to, stride);
                product.add::<S, NV, NX>((to, stride), ahead, out);
            }
        }
    }
}

/// Packs some columns of a panel, tiles `stride` values apart.
///
/// # Safety
/// The processor has the instructions of `L` and `S`; `to` has room for the panel's tiles.
#[inline(always)]
unsafe fn pack<L, S>(
    w: Panel<L::Weight>,
    columns: std::ops::Range<usize>,
    to: *mut S::Weight,
    stride: usize,
) where
    L: PackedLanes,
    S: PackedLanes,
{
    assert!(w.values.len() == w.rows * w.k, "weight rows");
    let step = SIDE * S::PER_LANE;
    for (tile, row) in (0..w.rows).step_by(SIDE).enumerate() {
        let rows = (w.rows - row).min(SIDE);
        for column in columns.clone().step_by(step) {
            let count = (columns.end - column).min(step);
            let from = &w.values[row * w.k + column..];
            // SAFETY: 16 lines are written for 16 columns or pairs; the last of a tile may be fewer in
            // `columns`, but a tile has room for PIECE, a multiple of them.
            unsafe {
                let to = to.add(tile * stride + (column - columns.start) * SIDE);
                if rows == SIDE && count == step {
                    square::<L, S>(from.as_ptr(), w.k, to);
                } else {
                    // What is missing is filled up with zeros.
                    let mut whole = [L::ZERO; SIDE * 2 * SIDE];
                    for (to, from) in whole.chunks_exact_mut(step).zip(from.chunks(w.k)).take(rows)
                    {
                        to[..count].copy_from_slice(&from[..count]);
                    }
                    square::<L, S>(whole.as_ptr(), step, to);
                }
            }
        }
    }
}

/// Packs 16 rows of 16 columns or pairs.
///
/// # Safety
/// As [`pack`]; `from` points to the first of 16 rows, `stride` apart.
#[inline(always)]
unsafe fn square<L: PackedLanes, S: PackedLanes>(
    from: *const L::Weight,
    stride: usize,
    to: *mut S::Weight,
) {
    const { assert!(size_of::<S::Weight>() * S::PER_LANE == 4, "a lane has four bytes") };
    // SAFETY: the caller vouches for rows, room and instructions. A lane is any four bytes.
    unsafe {
        if size_of::<L::Weight>() == size_of::<S::Weight>() {
            S::transpose(from.cast(), stride * size_of::<L::Weight>(), to.cast());
        } else {
            let mut single = [[0f32; SIDE]; SIDE];
            for (i, single) in single.iter_mut().enumerate() {
                let mut column = 0;
                while column < SIDE {
                    L::widen(from.add(i * stride + column), single.as_mut_ptr().add(column));
                    column += L::STEP;
                }
            }
            S::transpose(single.as_ptr().cast(), SIDE * 4, to.cast());
        }
    }
}

/// Weights that will be needed next, which are read from memory while others are multiplied: a cache
/// line with every column (pair) of a few token rows.
struct Ahead {
    next: *const i8,
    end: *const i8,
}

/// Token rows and columns of one product with packed weights.
#[derive(Clone, Copy)]
struct Product<'a, A> {
    a: Operand<'a, A>,
    first: usize,
    rows: usize,
    /// First column, a multiple of [`PIECE`]; from column 0 on sums begin, later ones are resumed.
    start: usize,
    columns: usize,
    tiles: usize,
}

impl<A: Copy> Product<'_, A> {
    /// As much of the next panel as this piece is of its own.
    fn ahead<W>(&self, w: &Panel<W>) -> Ahead {
        let row = size_of_val(w.values) / w.k;
        let next = w.values.as_ptr().cast::<i8>().wrapping_add(row * (w.k + self.start));
        Ahead { next, end: next.wrapping_add(row * self.columns) }
    }

    /// Adds the product to `out`, or stores it when it is the first.
    ///
    /// # Safety
    /// The processor has the instructions of `L`; `w` points to the tiles, their distance apart.
    #[inline(always)]
    unsafe fn add<L, const NV: usize, const NX: usize>(
        &self,
        w: (*const L::Weight, usize),
        mut ahead: Ahead,
        out: &mut [f32],
    ) where
        L: PackedLanes<Activation = A>,
    {
        let mut row = 0;
        // SAFETY: the caller vouches for weights and instructions; rows are those of the product.
        unsafe {
            while row + NX <= self.rows {
                if ahead.next < ahead.end {
                    self.rows::<L, NV, NX, true>(w, row, &mut ahead, out);
                } else {
                    self.rows::<L, NV, NX, false>(w, row, &mut ahead, out);
                }
                row += NX;
            }
            match self.rows - row {
                0 => {}
                1 => self.rows::<L, NV, 1, false>(w, row, &mut ahead, out),
                2 => self.rows::<L, NV, 2, false>(w, row, &mut ahead, out),
                3 => self.rows::<L, NV, 3, false>(w, row, &mut ahead, out),
                4 => self.rows::<L, NV, 4, false>(w, row, &mut ahead, out),
                _ => self.rows::<L, NV, 5, false>(w, row, &mut ahead, out),
            }
        }
    }

    /// `NX` token rows from `row` on against all weight rows.
    ///
    /// # Safety
    /// As [`Product::add`]; the rows exist.
    #[inline(always)]
    unsafe fn rows<L, const NV: usize, const NX: usize, const FETCH: bool>(
        &self,
        (w, stride): (*const L::Weight, usize),
        row: usize,
        ahead: &mut Ahead,
        out: &mut [f32],
    ) where
        L: PackedLanes<Activation = A>,
    {
        let lanes = L::STEP / L::PER_LANE;
        let mut column = 0;
        // SAFETY: tiles, rows and columns exist (see the caller); the processor has the instructions.
        // Registers that reach beyond the last tile are left out.
        unsafe {
            while column + NV * lanes <= self.tiles * SIDE {
                self.sums::<L, NV, NX, FETCH>((w, stride), (row, column), ahead, out);
                column += NV * lanes;
            }
            while column < self.tiles * SIDE {
                self.sums::<L, 1, NX, FETCH>((w, stride), (row, column), ahead, out);
                column += lanes;
            }
        }
    }

    /// `NX` token rows against `NV` registers of weight rows.
    ///
    /// # Safety
    /// As [`Product::rows`]; the tiles have the registers.
    #[inline(always)]
    unsafe fn sums<L, const NV: usize, const NX: usize, const FETCH: bool>(
        &self,
        (w, stride): (*const L::Weight, usize),
        (row, column): (usize, usize),
        ahead: &mut Ahead,
        out: &mut [f32],
    ) where
        L: PackedLanes<Activation = A>,
    {
        let lanes = L::STEP / L::PER_LANE;
        let line = SIDE * L::PER_LANE;
        let out = &mut out[row * BLOCK + column..(row + NX - 1) * BLOCK + column + NV * lanes];
        // SAFETY: every weight register's tile exists, with a line for each column (pair); tokens have
        // whole blocks of columns; `out` has NX rows of NV registers. A prefetch may point anywhere.
        unsafe {
            let mut acc = [[L::zero(); NV]; NX];
            let mut next = ahead.next;
            if self.start > 0 {
                for (j, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = L::resume(out.as_ptr().add(j * BLOCK + v * lanes));
                    }
                }
            }
            let place = |v: usize| {
                let row = column + v * lanes;
                w.wrapping_add(row / SIDE * stride + row % SIDE * L::PER_LANE)
            };
            for block in 0..self.columns.div_ceil(BLOCK) {
                let x = self.a.block_rows(self.start / BLOCK + block, self.first + row, NX);
                let x = x[..NX * BLOCK].as_ptr();
                let steps = (self.columns - block * BLOCK).min(BLOCK).div_ceil(L::PER_LANE);
                for step in 0..steps {
                    let at = (block * BLOCK / L::PER_LANE + step) * line;
                    let mut weights = [L::weights(place(0).add(at)); NV];
                    let mut v = 1;
                    while v < NV {
                        weights[v] = L::weights(place(v).add(at));
                        v += 1;
                    }
                    if FETCH {
                        L::prefetch(next.cast());
                        next = next.wrapping_add(LINE);
                    }
                    let mut j = 0;
                    while j < NX {
                        let x = L::repeat(x.add(j * BLOCK + step * L::PER_LANE));
                        let mut v = 0;
                        while v < NV {
                            acc[j][v] = L::multiply_add(weights[v], x, acc[j][v]);
                            v += 1;
                        }
                        j += 1;
                    }
                }
            }
            ahead.next = next;
            for (j, acc) in acc.into_iter().enumerate() {
                for (v, acc) in acc.into_iter().enumerate() {
                    L::store(acc, out.as_mut_ptr().add(j * BLOCK + v * lanes));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn every_weight_of_every_matrix_has_its_place_and_the_rest_is_zero() {
        for (n, k, per_lane) in [(16, 4, 2), (21, 7, 2), (40, 3, 1), (1, 1, 1)] {
            let matrices: Vec<f32> = (1u16..).take(3 * n * k).map(f32::from).collect();
            let len = packed_len(n, k, per_lane);
            let mut packed = Aligned::zeros(3 * len).unwrap();
            pack_matrices(&matrices, (n, k), per_lane, packed.as_mut_slice());
            for (matrix, packed) in packed.as_slice().chunks_exact(len).enumerate() {
                let mut found = 0;
                for (i, &value) in packed.iter().enumerate() {
                    let (tile, within) =
                        (i / packed_len(SIDE, k, per_lane), i % packed_len(SIDE, k, per_lane));
                    let (line, lane) = (within / (SIDE * per_lane), within % (SIDE * per_lane));
                    let (row, column) =
                        (tile * SIDE + lane / per_lane, line * per_lane + lane % per_lane);
                    let expected = if row < n && column < k {
                        found += 1;
                        matrices[(matrix * n + row) * k + column]
                    } else {
                        0.0
                    };
                    assert!((value - expected).abs() <= 0.0, "{n} {k} {matrix} {row} {column}");
                }
                assert_eq!(found, n * k);
            }
        }
    }

    #[test]
    fn weights_begin_with_a_cache_line() {
        for len in [1, 31, 33, 1000] {
            let mut weights = Aligned::<bf16>::zeros(len).unwrap();
            assert_eq!(weights.as_slice().as_ptr().addr() % LINE, 0);
            weights.as_mut_slice().fill(bf16::ONE);
            assert!(
                weights.as_slice().iter().all(|&w| w == bf16::ONE)
                    && weights.as_slice().len() == len
            );
        }
        assert!(Aligned::<f32>::zeros(usize::MAX / 2).is_none());
    }
}
