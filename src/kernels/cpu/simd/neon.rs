//! NEON, which every aarch64 processor has: 32 registers of 4 lanes.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics carry their module in their names")
)]
#![expect(
    clippy::inline_always,
    reason = "the micro-kernel is only fast when its parts are inlined into it"
)]

use std::arch::aarch64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::dot::Lanes;
use super::format::Weight;
use super::int8::span;
use super::packed::PackedLanes;

/// 4 lanes of single precision; weights are widened when loaded.
pub(super) struct Neon<W>(PhantomData<W>);

/// Loads of one weight format, widened to single precision.
pub(super) trait Widen: Weight {
    /// Four values.
    unsafe fn widen4(from: *const Self) -> float32x4_t;
}

impl Widen for f32 {
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> float32x4_t {
        // SAFETY: the caller vouches for four values; every aarch64 processor has NEON.
        unsafe { vld1q_f32(from) }
    }
}

/// A bf16 is the upper half of an f32.
impl Widen for bf16 {
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> float32x4_t {
        // SAFETY: the caller vouches for four values; every aarch64 processor has NEON.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }
}

impl Widen for f16 {
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> float32x4_t {
        // SAFETY: the caller vouches for four values; every aarch64 processor has NEON.
        unsafe {
            let v = from.cast::<[f16; 4]>().read_unaligned();
            let wide = [v[0].widen(), v[1].widen(), v[2].widen(), v[3].widen()];
            vld1q_f32(wide.as_ptr())
        }
    }
}

impl<W: Widen> Lanes for Neon<W> {
    type Weight = W;
    type Activation = f32;
    type Register = float32x4_t;
    type Sums = float32x4_t;
    type Total = f32;
    const STEP: usize = 4;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = usize::MAX;
    const ZERO: W = W::ZERO;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: every aarch64 processor has NEON.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const W) -> float32x4_t {
        // SAFETY: the caller vouches for four values.
        unsafe { W::widen4(from) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for four values.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: float32x4_t, x: float32x4_t, sums: float32x4_t) -> float32x4_t {
        // SAFETY: every aarch64 processor has NEON.
        unsafe { vfmaq_f32(sums, w, x) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [float32x4_t; N]) -> [f32; N] {
        // SAFETY: every aarch64 processor has NEON.
        sums.map(|s| unsafe { vaddvq_f32(s) })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const W) {}
}

impl<W: Widen> PackedLanes for Neon<W> {
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for a value; every aarch64 processor has NEON.
        unsafe { vdupq_n_f32(*from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const W, to: *mut f32) {
        // SAFETY: the caller vouches for four values at both ends.
        unsafe { vst1q_f32(to, W::widen4(from)) }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> float32x4_t {
        // SAFETY: the caller vouches for the sums.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(sums: float32x4_t, to: *mut f32) {
        // SAFETY: the caller vouches for room.
        unsafe { vst1q_f32(to, sums) }
    }
}

/// 4 sums of products of 8-bit weights, widened to 16 bits when loaded, with 16-bit activations.
pub(super) struct NeonWords;

impl Lanes for NeonWords {
    type Weight = i8;
    type Activation = i16;
    type Register = int16x8_t;
    type Sums = int32x4_t;
    type Total = f64;
    const STEP: usize = 8;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = span(4);
    const ZERO: i8 = 0;

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: every aarch64 processor has NEON.
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> int16x8_t {
        // SAFETY: the caller vouches for eight values.
        unsafe { vmovl_s8(vld1_s8(from)) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const i16) -> int16x8_t {
        // SAFETY: the caller vouches for eight values.
        unsafe { vld1q_s16(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: int16x8_t, x: int16x8_t, sums: int32x4_t) -> int32x4_t {
        // SAFETY: every aarch64 processor has NEON.
        unsafe { vmlal_high_s16(vmlal_s16(sums, vget_low_s16(w), vget_low_s16(x)), w, x) }
    }
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "four 32-bit sums fit into 53 bits")]
    unsafe fn totals<const N: usize>(sums: [int32x4_t; N]) -> [f64; N] {
        // SAFETY: every aarch64 processor has NEON.
        sums.map(|s| unsafe { vaddlvq_s32(s) } as f64)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const i8) {}
}
