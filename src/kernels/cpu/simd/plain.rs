//! Four lanes of plain arithmetic, for processors without kernels of their own.

#![expect(
    clippy::inline_always,
    reason = "the micro-kernel is only fast when its parts are inlined into it"
)]

use std::marker::PhantomData;

use super::dot::Lanes;
use super::format::Weight;

/// Four lanes in an array, which compilers keep in one vector register where there is one.
pub(super) struct Plain<W>(PhantomData<W>);

impl<W: Weight> Lanes for Plain<W> {
    type Weight = W;
    type Activation = f32;
    type Register = [f32; 4];
    type Sums = [f32; 4];
    const STEP: usize = 4;
    const PER_LANE: usize = 1;
    const SINGLE_ROWS: usize = 0;
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
