//! Pairs of weight and activation formats, and the two products of one block in each of them.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::cell::RefCell;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::activate::activate;
use super::packed::PackedLanes;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Bf16, Sse2};
use super::{Isa, Operand, Panel, dot, packed};
use crate::kernels::cpu::blocks::BLOCK;

/// A weight as stored.
pub(crate) trait Weight: Copy + Send + Sync + 'static {
    /// Zero.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "x86 has loads of its own"))]
    const ZERO: Self;

    /// The value in single precision, exactly.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "x86 has loads of its own"))]
    fn widen(self) -> f32;
}

impl Weight for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        // Not `to_f32`: that quiets NaNs, a branch that keeps the loop from being vectorised.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Weight for f16 {
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32_const()
    }
}

/// An activation as kept between the products.
pub(crate) trait Activation: Copy + Send + Sync + 'static {
    /// Zero, which fills up rows and columns.
    const ZERO: Self;
    /// What unwritten buffers are filled with in tests.
    const NAN: Self;

    /// The nearest value of this format, ties to even.
    fn narrow(value: f32) -> Self;
}

impl Activation for f32 {
    const ZERO: Self = 0.0;
    const NAN: Self = f32::NAN;

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Activation for bf16 {
    const ZERO: Self = bf16::ZERO;
    const NAN: Self = bf16::NAN;

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16;
        // Rounding a NaN up could carry into infinity; no branch, so that the loop stays a vector one.
        let quiet = (bits >> 16) | 0x40;
        #[expect(clippy::cast_possible_truncation, reason = "both have 16 bits left")]
        let upper = (if value.is_nan() { quiet } else { rounded }) as u16;
        bf16::from_bits(upper)
    }
}

/// How weights of one format are multiplied: the format and layout of activations, and the products
/// of one block of up to 64 weight rows with all rows of an expert.
pub(crate) trait Format {
    /// A weight as stored.
    type Weight: Weight;
    /// An activation as kept.
    type Activation: Activation;
    /// The number of an expert's rows is filled up to a multiple of this.
    const ROWS: usize;

    /// Rows with `k` columns that are multiplied with one panel of weights after another: as many as stay in a
    /// cache. A multiple of [`Self::ROWS`].
    fn rows_at_once(_k: usize) -> usize {
        usize::MAX
    }

    /// Stores up to 64 values of one row into a block of `rows` rows; the rest of its 64 is zero.
    fn put_row(block: &mut [Self::Activation], rows: usize, row: usize, values: &[f32]);

    /// `out = silu(a gate^T) (a up^T)`, or `silu(a gate^T)` without `up`; `out` is one block in the
    /// layout of `a`.
    fn gate_up(
        isa: Isa,
        weights: (Panel<Self::Weight>, Option<Panel<Self::Weight>>),
        a: Operand<Self::Activation>,
        out: &mut [Self::Activation],
    );

    /// `out[row][n] = sum over k of a[row][k] w[n][k]`; `out` is one block `[rows][64]` without the
    /// rows that fill up, zero beyond the last weight row.
    fn down(isa: Isa, w: Panel<Self::Weight>, a: Operand<Self::Activation>, out: &mut [f32]);
}

/// A block of columns in all formats but tiles.
pub(crate) trait Block {
    /// A weight as stored.
    type Weight: Weight;
    /// An activation as kept.
    type Activation: Activation;

    /// `out[row][n] = sum over k of a[row][k] w[n][k]` for rows `first..first + out.len() / BLOCK` of
    /// `a`; columns beyond the last weight row become zero. `piece` is room to pack weights.
    fn panel(
        isa: Isa,
        w: Panel<Self::Weight>,
        a: Operand<Self::Activation>,
        first: usize,
        out: &mut [f32],
        piece: &mut Vec<packed::Line>,
    );
}

/// Most token rows that are multiplied as dot products. For more, weight rows are packed first.
const FEW: usize = 12;
/// Token rows that are multiplied at a time at most: their sums of gate and up stay in a second-level
/// cache. A multiple of what the micro-kernels take.
const CHUNK: usize = 240;

/// What a thread keeps between blocks, so that nothing is allocated or cleared for them.
#[derive(Default)]
struct Scratch {
    /// Gate and up between the products and the activation.
    sums: Vec<f32>,
    /// Weights that are packed while they are used.
    piece: Vec<packed::Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Token rows of each chunk, chunks as equal as multiples of 12 can be.
fn chunk(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(CHUNK).max(1)).next_multiple_of(12)
}

impl<B: Block> Format for B {
    type Weight = B::Weight;
    type Activation = B::Activation;
    const ROWS: usize = 1;

    #[inline]
    fn put_row(block: &mut [B::Activation], _: usize, row: usize, values: &[f32]) {
        let out = &mut block[row * BLOCK..(row + 1) * BLOCK];
        let (filled, rest) = out.split_at_mut(values.len());
        filled.iter_mut().zip(values).for_each(|(out, &v)| *out = B::Activation::narrow(v));
        rest.fill(B::Activation::ZERO);
    }

    fn gate_up(
        isa: Isa,
        (gate, up): (Panel<B::Weight>, Option<Panel<B::Weight>>),
        a: Operand<B::Activation>,
        out: &mut [B::Activation],
    ) {
        SCRATCH.with_borrow_mut(|Scratch { sums, piece }| {
            let most = chunk(a.rows) * BLOCK;
            if sums.len() < 2 * most {
                sums.resize(2 * most, 0.0);
            }
            let (gates, ups) = sums.split_at_mut(most);
            for (i, out) in out.chunks_mut(most).enumerate() {
                let first = i * most / BLOCK;
                let gates = &mut gates[..out.len()];
                B::panel(isa, gate, a, first, gates, piece);
                let ups = up.map(|up| {
                    let ups = &mut ups[..out.len()];
                    B::panel(isa, up, a, first, ups, piece);
                    &*ups
                });
                activate(isa, gates, ups, out);
            }
        });
    }

    fn down(isa: Isa, w: Panel<B::Weight>, a: Operand<B::Activation>, out: &mut [f32]) {
        SCRATCH.with_borrow_mut(|Scratch { piece, .. }| {
            let most = chunk(a.rows) * BLOCK;
            for (i, out) in out.chunks_mut(most).enumerate() {
                B::panel(isa, w, a, i * most / BLOCK, out, piece);
            }
        });
    }
}

/// Multiplies a block as dot products or as packed weights, whichever is faster: `NW` x `NX` dot
/// products at a time, or `NV` registers of weights x `NT` token rows.
///
/// # Safety
/// The processor has the instructions of `L` and `S`.
#[inline(always)]
unsafe fn multiply<L, S, const NW: usize, const NX: usize, const NV: usize, const NT: usize>(
    w: Panel<L::Weight>,
    a: Operand<L::Activation>,
    first: usize,
    out: &mut [f32],
    piece: &mut Vec<packed::Line>,
) where
    L: PackedLanes,
    S: PackedLanes<Activation = L::Activation>,
{
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        if w.packed || out.len() > FEW * BLOCK {
            packed::panel::<L, S, NV, NT>(w, a, first, out, piece);
        } else {
            dot::panel::<L, NW, NX>(w.values, w.k, a, first, out);
        }
    }
}

/// Activations in single precision; weights are widened when loaded, products are fused where the
/// instruction set can.
pub(crate) struct Wide<W>(PhantomData<W>);

#[cfg(target_arch = "x86_64")]
impl<W: Weight + super::x86::Widen> Block for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(
        isa: Isa,
        w: Panel<W>,
        a: Operand<f32>,
        first: usize,
        out: &mut [f32],
        piece: &mut Vec<packed::Line>,
    ) {
        // A value of `Isa` can be made by anyone, and a wrong one would be an illegal instruction:
        // the check is repeated (one cached load).
        match isa {
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if Isa::Avx512.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { wide_avx512(w, a, first, out, piece) }
            }
            Isa::Avx2 if isa.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { wide_avx2(w, a, first, out, piece) }
            }
            // 2 x 4 sums, 2 registers of one operand and one of the other fill 11 of 16.
            // SAFETY: every x86-64 processor has SSE2.
            _ => unsafe { multiply::<Sse2<W>, Sse2<f32>, 2, 4, 2, 4>(w, a, first, out, piece) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn wide_avx512<W: super::x86::Widen>(
    w: Panel<W>,
    a: Operand<f32>,
    first: usize,
    out: &mut [f32],
    piece: &mut Vec<packed::Line>,
) {
    // 4 x 6 sums, 4 registers of weights and one of tokens fill 29 of 32.
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<Avx512<W>, Avx512<f32>, 4, 6, 4, 6>(w, a, first, out, piece) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_avx2<W: super::x86::Widen>(
    w: Panel<W>,
    a: Operand<f32>,
    first: usize,
    out: &mut [f32],
    piece: &mut Vec<packed::Line>,
) {
    // 4 x 2 sums, 4 registers of weights and one of tokens fill 13 of 16; 2 x 6 sums 15.
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<Avx2<W>, Avx2<f32>, 4, 2, 2, 6>(w, a, first, out, piece) }
}

#[cfg(target_arch = "aarch64")]
impl<W: super::neon::Widen> Block for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(
        _: Isa,
        w: Panel<W>,
        a: Operand<f32>,
        first: usize,
        out: &mut [f32],
        piece: &mut Vec<packed::Line>,
    ) {
        use super::neon::Neon;
        // 4 x 6 sums, 4 registers of weights and one of tokens fill 29 of 32.
        // SAFETY: every aarch64 processor has NEON.
        unsafe { multiply::<Neon<W>, Neon<f32>, 4, 6, 4, 6>(w, a, first, out, piece) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl<W: Weight> Block for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(
        _: Isa,
        w: Panel<W>,
        a: Operand<f32>,
        first: usize,
        out: &mut [f32],
        piece: &mut Vec<packed::Line>,
    ) {
        use super::plain::Plain;
        // SAFETY: plain arithmetic needs no instruction set.
        unsafe { multiply::<Plain<W>, Plain<f32>, 2, 4, 2, 4>(w, a, first, out, piece) }
    }
}

/// Activations rounded to bf16 and multiplied in pairs with bf16 weights; sums in single precision.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Block for Pairs {
    type Weight = bf16;
    type Activation = bf16;

    #[inline]
    fn panel(
        isa: Isa,
        w: Panel<bf16>,
        a: Operand<bf16>,
        first: usize,
        out: &mut [f32],
        piece: &mut Vec<packed::Line>,
    ) {
        assert!(Isa::Avx512Bf16.is_available(), "{} has no kernel for bf16 pairs", isa.label());
        // SAFETY: the processor has the features that the callee is compiled for.
        unsafe { pairs_avx512(w, a, first, out, piece) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,fma")]
fn pairs_avx512(
    w: Panel<bf16>,
    a: Operand<bf16>,
    first: usize,
    out: &mut [f32],
    piece: &mut Vec<packed::Line>,
) {
    // 4 x 6 sums, 4 registers of weights and one of tokens fill 29 of 32.
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<Avx512Bf16, Avx512Bf16, 4, 6, 4, 6>(w, a, first, out, piece) }
}
