//! Pairs of weight and activation formats, and the two products of one block in each of them.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::marker::PhantomData;

use half::{bf16, f16};

use super::activate::activate;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512, Avx512Bf16, Sse2};
use super::{Isa, Operand, dot};
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
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
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

    /// Stores up to 64 values of one row into a block of `rows` rows; the rest of its 64 is zero.
    fn put_row(block: &mut [Self::Activation], rows: usize, row: usize, values: &[f32]);

    /// `out = silu(a gate^T) (a up^T)`, or `silu(a gate^T)` without `up`: weights `[n, k]` with up to
    /// 64 rows, `out` one block in the layout of `a`.
    fn gate_up(
        isa: Isa,
        weights: (&[Self::Weight], Option<&[Self::Weight]>),
        k: usize,
        a: Operand<Self::Activation>,
        out: &mut [Self::Activation],
    );

    /// `out[row][n] = sum over k of a[row][k] w[n][k]`; `out` is one block `[rows][64]` without the
    /// rows that fill up, zero beyond the last weight row.
    fn down(isa: Isa, w: &[Self::Weight], k: usize, a: Operand<Self::Activation>, out: &mut [f32]);
}

/// A block of columns by dot products, which all formats but tiles are made of.
pub(crate) trait Dot {
    /// A weight as stored.
    type Weight: Weight;
    /// An activation as kept.
    type Activation: Activation;

    /// See [`dot::panel`].
    fn panel(
        isa: Isa,
        w: &[Self::Weight],
        k: usize,
        a: Operand<Self::Activation>,
        first: usize,
        out: &mut [f32],
    );
}

/// Rows for which gate and up are held between the products and the activation: 12 KiB each, and
/// with 3,584 columns of bf16 activations 336 KiB, which a second-level cache holds.
pub(super) const CHUNK: usize = 48;
/// The same for decode, where clearing the larger buffers would show.
pub(super) const SMALL_CHUNK: usize = 6;

impl<D: Dot> Format for D {
    type Weight = D::Weight;
    type Activation = D::Activation;
    const ROWS: usize = 1;

    #[inline]
    fn put_row(block: &mut [D::Activation], _: usize, row: usize, values: &[f32]) {
        let out = &mut block[row * BLOCK..(row + 1) * BLOCK];
        let (filled, rest) = out.split_at_mut(values.len());
        filled.iter_mut().zip(values).for_each(|(out, &v)| *out = D::Activation::narrow(v));
        rest.fill(D::Activation::ZERO);
    }

    fn gate_up(
        isa: Isa,
        weights: (&[D::Weight], Option<&[D::Weight]>),
        k: usize,
        a: Operand<D::Activation>,
        out: &mut [D::Activation],
    ) {
        if a.rows <= SMALL_CHUNK {
            gate_up_chunks::<D, { SMALL_CHUNK * BLOCK }>(isa, weights, k, a, out);
        } else {
            gate_up_chunks::<D, { CHUNK * BLOCK }>(isa, weights, k, a, out);
        }
    }

    fn down(isa: Isa, w: &[D::Weight], k: usize, a: Operand<D::Activation>, out: &mut [f32]) {
        for (chunk, out) in out.chunks_mut(CHUNK * BLOCK).enumerate() {
            D::panel(isa, w, k, a, chunk * CHUNK, out);
        }
    }
}

fn gate_up_chunks<D: Dot, const VALUES: usize>(
    isa: Isa,
    (gate, up): (&[D::Weight], Option<&[D::Weight]>),
    k: usize,
    a: Operand<D::Activation>,
    out: &mut [D::Activation],
) {
    let (mut gates, mut ups) = ([0.0; VALUES], [0.0; VALUES]);
    for (chunk, out) in out.chunks_mut(VALUES).enumerate() {
        let first = chunk * (VALUES / BLOCK);
        let gates = &mut gates[..out.len()];
        D::panel(isa, gate, k, a, first, gates);
        let ups = up.map(|up| {
            let ups = &mut ups[..out.len()];
            D::panel(isa, up, k, a, first, ups);
            &*ups
        });
        activate(isa, gates, ups, out);
    }
}

/// Activations in single precision; weights are widened when loaded, products are fused where the
/// instruction set can.
pub(crate) struct Wide<W>(PhantomData<W>);

#[cfg(target_arch = "x86_64")]
impl<W: Weight + super::x86::Widen> Dot for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(isa: Isa, w: &[W], k: usize, a: Operand<f32>, first: usize, out: &mut [f32]) {
        // A value of `Isa` can be made by anyone, and a wrong one would be an illegal instruction:
        // the check is repeated (one cached load).
        match isa {
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if Isa::Avx512.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { wide_avx512(w, k, a, first, out) }
            }
            Isa::Avx2 if isa.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe { wide_avx2(w, k, a, first, out) }
            }
            // 2 x 4 sums, 2 weight vectors and one of tokens fill 11 of 16 registers.
            // SAFETY: every x86-64 processor has SSE2.
            _ => unsafe { dot::panel::<Sse2<W>, 2, 4>(w, k, a, first, out) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn wide_avx512<W: super::x86::Widen>(
    w: &[W],
    k: usize,
    a: Operand<f32>,
    first: usize,
    out: &mut [f32],
) {
    // 4 x 6 sums, 4 weight vectors and one of tokens fill 29 of 32 registers.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Avx512<W>, 4, 6>(w, k, a, first, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_avx2<W: super::x86::Widen>(
    w: &[W],
    k: usize,
    a: Operand<f32>,
    first: usize,
    out: &mut [f32],
) {
    // 4 x 2 sums, 4 weight vectors and one of tokens fill 13 of 16 registers.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Avx2<W>, 4, 2>(w, k, a, first, out) }
}

#[cfg(target_arch = "aarch64")]
impl<W: super::neon::Widen> Dot for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(_: Isa, w: &[W], k: usize, a: Operand<f32>, first: usize, out: &mut [f32]) {
        // 4 x 6 sums, 4 weight vectors and one of tokens fill 29 of 32 registers.
        // SAFETY: every aarch64 processor has NEON.
        unsafe { dot::panel::<super::neon::Neon<W>, 4, 6>(w, k, a, first, out) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl<W: Weight> Dot for Wide<W> {
    type Weight = W;
    type Activation = f32;

    #[inline]
    fn panel(_: Isa, w: &[W], k: usize, a: Operand<f32>, first: usize, out: &mut [f32]) {
        // SAFETY: plain arithmetic needs no instruction set.
        unsafe { dot::panel::<super::plain::Plain<W>, 2, 4>(w, k, a, first, out) }
    }
}

/// Activations rounded to bf16 and multiplied in pairs with bf16 weights; sums in single precision.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Dot for Pairs {
    type Weight = bf16;
    type Activation = bf16;

    #[inline]
    fn panel(isa: Isa, w: &[bf16], k: usize, a: Operand<bf16>, first: usize, out: &mut [f32]) {
        assert!(Isa::Avx512Bf16.is_available(), "{} has no kernel for bf16 pairs", isa.label());
        // SAFETY: the processor has the features that the callee is compiled for.
        unsafe { pairs_avx512(w, k, a, first, out) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,fma")]
fn pairs_avx512(w: &[bf16], k: usize, a: Operand<bf16>, first: usize, out: &mut [f32]) {
    // 4 x 6 sums, 4 weight vectors and one of tokens fill 29 of 32 registers.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Avx512Bf16, 4, 6>(w, k, a, first, out) }
}
