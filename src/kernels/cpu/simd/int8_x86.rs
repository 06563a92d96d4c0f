//! Products of 8-bit weights with 16-bit activations on x86-64: weights are widened to 16 bits when
//! loaded, neighbouring products added in 32.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics carry their module in their names")
)]
#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::arch::x86_64::*;

use super::dot::Lanes;
use super::int8::span;

/// 16 sums of two products with AVX-512; product and sum in one instruction with VNNI.
pub(super) struct Words512<const VNNI: bool>;
/// 8 sums of two products with AVX2; product and sum in one instruction with AVX-VNNI.
pub(super) struct Words256<const VNNI: bool>;
/// 4 sums of two products with SSE2.
pub(super) struct Words128;

/// Sums of the lanes of each register of four, exact below 2^53.
#[inline(always)]
unsafe fn totals_of_fours<const N: usize>(sums: [__m256d; N]) -> [f64; N] {
    let mut totals = [0.0; N];
    let mut i = 0;
    // SAFETY: the caller vouches for AVX2; `totals` has N values, of which four are written only
    // where four are left.
    unsafe {
        while i + 4 <= N {
            let ab = _mm256_hadd_pd(sums[i], sums[i + 1]);
            let cd = _mm256_hadd_pd(sums[i + 2], sums[i + 3]);
            let lower = _mm256_permute2f128_pd::<0x20>(ab, cd);
            let upper = _mm256_permute2f128_pd::<0x31>(ab, cd);
            _mm256_storeu_pd(totals.as_mut_ptr().add(i), _mm256_add_pd(lower, upper));
            i += 4;
        }
        while i < N {
            let two =
                _mm_add_pd(_mm256_castpd256_pd128(sums[i]), _mm256_extractf128_pd::<1>(sums[i]));
            totals[i] = _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
            i += 1;
        }
    }
    totals
}

/// Eight integers as four sums.
#[inline(always)]
unsafe fn fours_of_eight(sums: __m256i) -> __m256d {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        _mm256_add_pd(
            _mm256_cvtepi32_pd(_mm256_castsi256_si128(sums)),
            _mm256_cvtepi32_pd(_mm256_extracti128_si256::<1>(sums)),
        )
    }
}

/// Sixteen integers as four sums.
#[inline(always)]
unsafe fn fours_of_sixteen(sums: __m512i) -> __m256d {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let eight = _mm512_add_pd(
            _mm512_cvtepi32_pd(_mm512_castsi512_si256(sums)),
            _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64::<1>(sums)),
        );
        _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd::<1>(eight))
    }
}

impl<const VNNI: bool> Lanes for Words512<VNNI> {
    type Weight = i8;
    type Activation = i16;
    type Register = __m512i;
    type Sums = __m512i;
    type Total = f64;
    const STEP: usize = 32;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = span(16);
    const ZERO: i8 = 0;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> __m512i {
        // SAFETY: the caller vouches for 32 values and AVX-512 BW.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const i16) -> __m512i {
        // SAFETY: the caller vouches for 32 values and AVX-512.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m512i, x: __m512i, sums: __m512i) -> __m512i {
        // SAFETY: the caller vouches for AVX-512 BW, and for VNNI where it says so.
        unsafe {
            if VNNI {
                _mm512_dpwssd_epi32(sums, w, x)
            } else {
                _mm512_add_epi32(sums, _mm512_madd_epi16(w, x))
            }
        }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m512i; N]) -> [f64; N] {
        // Not `map`: its closure would be a function without the caller's instructions.
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let mut fours = [_mm256_setzero_pd(); N];
            for (fours, sums) in fours.iter_mut().zip(sums) {
                *fours = fours_of_sixteen(sums);
            }
            totals_of_fours(fours)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const i8) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from) }
    }
}

impl<const VNNI: bool> Lanes for Words256<VNNI> {
    type Weight = i8;
    type Activation = i16;
    type Register = __m256i;
    type Sums = __m256i;
    type Total = f64;
    const STEP: usize = 16;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = span(8);
    const ZERO: i8 = 0;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> __m256i {
        // SAFETY: the caller vouches for 16 values and AVX2.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const i16) -> __m256i {
        // SAFETY: the caller vouches for 16 values and AVX2.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m256i, x: __m256i, sums: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2, and for AVX-VNNI where it says so.
        unsafe {
            if VNNI {
                _mm256_dpwssd_avx_epi32(sums, w, x)
            } else {
                _mm256_add_epi32(sums, _mm256_madd_epi16(w, x))
            }
        }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m256i; N]) -> [f64; N] {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let mut fours = [_mm256_setzero_pd(); N];
            for (fours, sums) in fours.iter_mut().zip(sums) {
                *fours = fours_of_eight(sums);
            }
            totals_of_fours(fours)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const i8) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from) }
    }
}

impl Lanes for Words128 {
    type Weight = i8;
    type Activation = i16;
    type Register = __m128i;
    type Sums = __m128i;
    type Total = f64;
    const STEP: usize = 8;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = span(4);
    const ZERO: i8 = 0;

    #[inline(always)]
    unsafe fn zero() -> __m128i {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe { _mm_setzero_si128() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const i8) -> __m128i {
        // SAFETY: the caller vouches for 8 values; every x86-64 processor has SSE2.
        unsafe {
            let narrow = _mm_loadl_epi64(from.cast());
            _mm_srai_epi16::<8>(_mm_unpacklo_epi8(narrow, narrow))
        }
    }
    #[inline(always)]
    unsafe fn activations(from: *const i16) -> __m128i {
        // SAFETY: the caller vouches for 8 values; every x86-64 processor has SSE2.
        unsafe { _mm_loadu_si128(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m128i, x: __m128i, sums: __m128i) -> __m128i {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe { _mm_add_epi32(sums, _mm_madd_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m128i; N]) -> [f64; N] {
        let mut totals = [0.0; N];
        for (total, sums) in totals.iter_mut().zip(sums) {
            // SAFETY: every x86-64 processor has SSE2.
            unsafe {
                let upper = _mm_cvtepi32_pd(_mm_unpackhi_epi64(sums, sums));
                let two = _mm_add_pd(_mm_cvtepi32_pd(sums), upper);
                *total = _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
            }
        }
        totals
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const i8) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from) }
    }
}
