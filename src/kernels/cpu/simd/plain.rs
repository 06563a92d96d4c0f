//! Four lanes of plain arithmetic, for processors without kernels of their own.

#![expect(
    clippy::inline_always,
    reason = "the micro-kernel is only fast when its parts are inlined into it"
)]

use std::marker::PhantomData;

use super::dot::Lanes;
use super::format::Weight;
use super::int8::span;
use super::packed::PackedLanes;

/// Four lanes in an array, which compilers keep in one vector register where there is one.
pub(super) struct Plain<W>(PhantomData<W>);

impl<W: Weight> Lanes for Plain<W> {
    type Weight = W;
    type Activation = f32;
    type Register = [f32; 4];
    type Sums = [f32; 4];
    type Total = f32;
    const STEP: usize = 4;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = usize::MAX;
    const ZERO: W = W::ZERO;

    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn weights(from: *const W) -> [f32; 4] {
        // SAFETY: the caller vouches for four values, which may lie at any address.
        let v = unsafe { from.cast::<[W; 4]>().read_unaligned() };
        [v[0].widen(), v[1].widen(), v[2].widen(), v[3].widen()]
    }
    #[inline(always)]
    unsafe fn activations(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for four values.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: [f32; 4], x: [f32; 4], s: [f32; 4]) -> [f32; 4] {
        [w[0] * x[0] + s[0], w[1] * x[1] + s[1], w[2] * x[2] + s[2], w[3] * x[3] + s[3]]
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [[f32; 4]; N]) -> [f32; N] {
        sums.map(|s| (s[0] + s[2]) + (s[1] + s[3]))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const W) {}
}

impl<W: Weight> PackedLanes for Plain<W> {
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for a value.
        [unsafe { *from }; 4]
    }
    #[inline(always)]
    unsafe fn widen(from: *const W, to: *mut f32) {
        // SAFETY: the caller vouches for four values at both ends.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(Self::weights(from)) }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for the sums.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(sums: [f32; 4], to: *mut f32) {
        // SAFETY: the caller vouches for room.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(sums) }
    }
}

/// Four sums of products of 8-bit weights with 16-bit activations.
pub(super) struct PlainWords;

impl Lanes for PlainWords {
    type Weight = i8;
    type Activation = i16;
    type Register = [i16; 4];
    type Sums = [i32; 4];
    type Total = f64;
    const STEP: usize = 4;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = span(4);
    const ZERO: i8 = 0;

    #[inline(always)]
    unsafe fn zero() -> [i32; 4] {
        [0; 4]
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> [i16; 4] {
        // SAFETY: the caller vouches for four values, which may lie at any address.
        unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(i16::from)
    }
    #[inline(always)]
    unsafe fn activations(from: *const i16) -> [i16; 4] {
        // SAFETY: the caller vouches for four values.
        unsafe { from.cast::<[i16; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: [i16; 4], x: [i16; 4], s: [i32; 4]) -> [i32; 4] {
        // Wrapping, as a row without unit holds any integers; `SPAN` keeps all others from it.
        let sum = |i: usize| s[i].wrapping_add(i32::from(w[i]) * i32::from(x[i]));
        [sum(0), sum(1), sum(2), sum(3)]
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [[i32; 4]; N]) -> [f64; N] {
        sums.map(|s| s.map(f64::from).iter().sum())
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const i8) {}
}
