//! The micro-kernel as dot products: a few weight rows against a few token rows.
//!
//! Weights are read in place, row-major, so that decode streams them once and needs no packed copy;
//! token rows come column-blocked. `NW` x `NX` sums stay in registers over the whole length. One
//! source serves every instruction set: [`Lanes`] names the handful of instructions it is made of.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use super::Operand;
use crate::kernels::cpu::blocks::BLOCK;

/// The instructions of one instruction set for one pair of weight and activation formats.
///
/// # Safety of implementations and callers
/// Every function is unsafe because it may only run on a processor that has the instruction set; the
/// loads read [`Lanes::STEP`] values from their pointer.
pub(super) trait Lanes {
    /// A weight as stored.
    type Weight: Copy;
    /// An activation as stored.
    type Activation: Copy;
    /// A register of operands.
    type Register: Copy;
    /// A register of sums.
    type Sums: Copy;
    /// A sum of all lanes.
    type Total: Total;
    /// Values that one multiplication takes from each operand; divides [`BLOCK`].
    const STEP: usize;
    /// Token rows up to which one weight row is read at a time. One stream in the order of memory is
    /// what the processor's own prefetching follows best, but a single sum per token row waits for each
    /// addition: it pays where one multiplication takes 64 bytes of weights.
    const SINGLE_ROWS: usize;
    /// Blocks of columns after which, and after at most one more, lanes are added up: lanes of integers
    /// hold no more.
    const SPAN: usize;
    /// Zero, which fills up the tail of a weight row.
    const ZERO: Self::Weight;

    /// Sums of nothing.
    unsafe fn zero() -> Self::Sums;
    /// Loads `STEP` weights.
    unsafe fn weights(from: *const Self::Weight) -> Self::Register;
    /// Loads `STEP` activations.
    unsafe fn activations(from: *const Self::Activation) -> Self::Register;
    /// `sums + w x`, lane by lane.
    unsafe fn multiply_add(w: Self::Register, x: Self::Register, sums: Self::Sums) -> Self::Sums;
    /// Adds up the lanes of each register.
    unsafe fn totals<const N: usize>(sums: [Self::Sums; N]) -> [Self::Total; N];
    /// Asks for the cache line at `from`, which need not be valid memory, into the second-level cache:
    /// rows of 2 or 4 KiB fall on few sets of the first level (12 against 18 GB/s when aimed there).
    unsafe fn prefetch(from: *const Self::Weight);
}

/// A sum over columns, outside of vector registers.
pub(super) trait Total: Copy + Default {
    /// This sum and that of the columns that follow.
    fn plus(self, following: Self) -> Self;
    /// The nearest value in single precision.
    fn rounded(self) -> f32;
}

impl Total for f32 {
    #[inline(always)]
    fn plus(self, following: f32) -> f32 {
        self + following
    }
    #[inline(always)]
    fn rounded(self) -> f32 {
        self
    }
}

/// An integer of less than 53 bits.
impl Total for f64 {
    #[inline(always)]
    fn plus(self, following: f64) -> f64 {
        self + following
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the one rounding of an exact sum")]
    fn rounded(self) -> f32 {
        self as f32
    }
}

/// Rows up to which a panel is bound by reading its weights, so that prefetching them pays: with 8 rows
/// an expert it doubled the rate (57 to 125 GFLOP/s, bf16 pairs on Zen 4).
const FEW_ROWS: usize = 32;
/// Weights by which prefetching runs ahead of the strip that follows. 0 to 4 KiB were alike.
const AHEAD: usize = 1024;

/// `out[row][n] = sum over k of a[row][k] w[n][k]` for rows `first..first + out.len() / BLOCK` of `a`
/// and up to 64 weight rows `w` `[n, k]`; columns beyond the last weight row become zero.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn panel<L: Lanes, const NW: usize, const NX: usize>(
    w: &[L::Weight],
    k: usize,
    a: Operand<L::Activation>,
    first: usize,
    out: &mut [f32],
) {
    let columns = w.len() / k;
    let mut column = 0;
    while column + NW <= columns && out.len() > L::SINGLE_ROWS * BLOCK {
        // SAFETY: the caller vouches for the instructions.
        unsafe { strip::<L, NW, NX>(&w[column * k..(column + NW) * k], k, a, first, column, out) };
        column += NW;
    }
    while column < columns {
        // SAFETY: the caller vouches for the instructions.
        unsafe { strip::<L, 1, NX>(&w[column * k..(column + 1) * k], k, a, first, column, out) };
        column += 1;
    }
    if columns < BLOCK {
        for row in out.chunks_exact_mut(BLOCK) {
            row[columns..].fill(0.0);
        }
    }
}

/// `NW` weight rows against all token rows, `NX` at a time.
#[inline(always)]
unsafe fn strip<L: Lanes, const NW: usize, const NX: usize>(
    w: &[L::Weight],
    k: usize,
    a: Operand<L::Activation>,
    first: usize,
    column: usize,
    out: &mut [f32],
) {
    // The last columns of a row that is no multiple of the block, filled up with zeros.
    let whole = k / BLOCK;
    let mut tail = [[L::ZERO; BLOCK]; NW];
    if whole * BLOCK < k {
        for (tail, row) in tail.iter_mut().zip(w.chunks_exact(k)) {
            tail[..k - whole * BLOCK].copy_from_slice(&row[whole * BLOCK..]);
        }
    }
    let rows = out.len() / BLOCK;
    let strip = Strip::<L, NW> { w, k, tail: &tail, fetch: rows <= FEW_ROWS };
    let mut row = 0;
    // SAFETY: the caller vouches for the instructions; `tile` checks its bounds itself.
    unsafe {
        while row + NX <= rows {
            strip.tile::<NX>(a, first, row, column, out);
            row += NX;
        }
        match rows - row {
            0 => {}
            1 => strip.tile::<1>(a, first, row, column, out),
            2 => strip.tile::<2>(a, first, row, column, out),
            3 => strip.tile::<3>(a, first, row, column, out),
            4 => strip.tile::<4>(a, first, row, column, out),
            _ => strip.tile::<5>(a, first, row, column, out),
        }
    }
}

struct Strip<'a, L: Lanes, const NW: usize> {
    w: &'a [L::Weight],
    k: usize,
    tail: &'a [[L::Weight; BLOCK]; NW],
    fetch: bool,
}

impl<L: Lanes, const NW: usize> Strip<'_, L, NW> {
    /// `NW` x `NX` dot products over the whole length.
    #[inline(always)]
    unsafe fn tile<const NX: usize>(
        &self,
        a: Operand<L::Activation>,
        first: usize,
        row: usize,
        column: usize,
        out: &mut [f32],
    ) {
        let whole = self.k / BLOCK;
        let mut start = whole.min(L::SPAN);
        let mut totals = [[L::Total::default(); NW]; NX];
        // SAFETY: the caller vouches for the instructions, here and below.
        unsafe { self.span::<NX>(a, first + row, 0..start, &mut totals) };
        while start < whole {
            let end = whole.min(start.saturating_add(L::SPAN));
            let mut span = [[L::Total::default(); NW]; NX];
            // SAFETY: see above.
            unsafe { self.span::<NX>(a, first + row, start..end, &mut span) };
            for (total, span) in totals.iter_mut().flatten().zip(span.iter().flatten()) {
                *total = total.plus(*span);
            }
            start = end;
        }
        for (j, totals) in totals.iter().enumerate() {
            let out = &mut out[(row + j) * BLOCK + column..][..NW];
            for (out, total) in out.iter_mut().zip(totals) {
                *out = total.rounded();
            }
        }
    }

    /// The same over the whole blocks of columns `blocks`, and the tail if it follows them.
    #[inline(always)]
    unsafe fn span<const NX: usize>(
        &self,
        a: Operand<L::Activation>,
        row: usize,
        blocks: std::ops::Range<usize>,
        totals: &mut [[L::Total; NW]; NX],
    ) {
        let whole = self.k / BLOCK;
        assert!(self.w.len() == NW * self.k && blocks.end <= whole, "one strip holds NW rows");
        // SAFETY: the caller vouches for the instructions.
        let mut sums = [[unsafe { L::zero() }; NW]; NX];
        for block in blocks.clone() {
            let x = &a.block_rows(block, row, NX)[..NX * BLOCK];
            // SAFETY: `whole * BLOCK <= k`, so each of the NW rows of length `k` holds the block, and
            // `x` holds NX rows of it; the caller vouches for the instructions.
            unsafe {
                let w = self.w.as_ptr().add(block * BLOCK);
                if NW > 1 && self.fetch {
                    // Strips follow each other in memory: lines are asked for in that order.
                    let next = NW * (self.k + block * BLOCK) + AHEAD;
                    for line in (0..NW * BLOCK).step_by(64 / size_of::<L::Weight>()) {
                        L::prefetch(self.w.as_ptr().wrapping_add(next + line));
                    }
                }
                accumulate::<L, NW, NX>(w, self.k, x.as_ptr(), &mut sums);
            }
        }
        if blocks.end == whole && whole * BLOCK < self.k {
            let x = &a.block_rows(whole, row, NX)[..NX * BLOCK];
            // SAFETY: `tail` holds NW rows of BLOCK values and `x` NX; instructions as above.
            unsafe {
                accumulate::<L, NW, NX>(self.tail.as_ptr().cast(), BLOCK, x.as_ptr(), &mut sums);
            }
        }
        // Not `map`: its closure would be a function without the caller's instructions.
        for (totals, sums) in totals.iter_mut().zip(sums) {
            // SAFETY: the caller vouches for the instructions.
            *totals = unsafe { L::totals::<NW>(sums) };
        }
    }
}

/// Adds one block of columns to the sums.
///
/// # Safety
/// `w` points to `NW` rows of `BLOCK` weights, `stride` apart; `x` to `NX` rows of `BLOCK` activations.
#[inline(always)]
unsafe fn accumulate<L: Lanes, const NW: usize, const NX: usize>(
    w: *const L::Weight,
    stride: usize,
    x: *const L::Activation,
    sums: &mut [[L::Sums; NW]; NX],
) {
    let mut start = 0;
    while start < BLOCK {
        // SAFETY: `start + STEP <= BLOCK` since STEP divides BLOCK, so every load stays in its row.
        unsafe {
            let mut registers = [L::weights(w.add(start)); NW];
            let mut i = 1;
            while i < NW {
                registers[i] = L::weights(w.add(i * stride + start));
                i += 1;
            }
            let mut j = 0;
            while j < NX {
                let x = L::activations(x.add(j * BLOCK + start));
                let mut i = 0;
                while i < NW {
                    sums[j][i] = L::multiply_add(registers[i], x, sums[j][i]);
                    i += 1;
                }
                j += 1;
            }
        }
        start += L::STEP;
    }
}
