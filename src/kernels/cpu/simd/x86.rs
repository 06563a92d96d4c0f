//! The instructions of x86-64: AVX-512 with and without bf16 products, AVX2, and the SSE2 that every
//! such processor has.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics carry their module in their names")
)]
#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::dot::Lanes;
use super::packed::PackedLanes;

/// 16 lanes of single precision; weights are widened when loaded.
pub(super) struct Avx512<W>(PhantomData<W>);
/// 16 sums of two bf16 products each.
pub(super) struct Avx512Bf16;
/// 8 lanes of single precision.
pub(super) struct Avx2<W>(PhantomData<W>);
/// 4 lanes of single precision, product and sum rounded apart.
pub(super) struct Sse2<W>(PhantomData<W>);

/// Loads of one weight format, widened to single precision.
pub(super) trait Widen: Copy {
    /// Zero.
    const ZERO: Self;
    /// Four values with SSE2.
    unsafe fn widen4(from: *const Self) -> __m128;
    /// Eight values with AVX2.
    unsafe fn widen8(from: *const Self) -> __m256;
    /// Sixteen values with AVX-512.
    unsafe fn widen16(from: *const Self) -> __m512;
}

impl Widen for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> __m128 {
        // SAFETY: the caller vouches for four values; every x86-64 processor has SSE2.
        unsafe { _mm_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn widen8(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for eight values and the instructions.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn widen16(from: *const Self) -> __m512 {
        // SAFETY: the caller vouches for sixteen values and the instructions.
        unsafe { _mm512_loadu_ps(from) }
    }
}

/// A bf16 is the upper half of an f32.
impl Widen for bf16 {
    const ZERO: Self = bf16::ZERO;
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> __m128 {
        // SAFETY: the caller vouches for four values (eight bytes); every x86-64 processor has SSE2.
        unsafe {
            _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(from.cast())))
        }
    }
    #[inline(always)]
    unsafe fn widen8(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for eight values and the instructions.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn widen16(from: *const Self) -> __m512 {
        // SAFETY: the caller vouches for sixteen values and the instructions.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

impl Widen for f16 {
    const ZERO: Self = f16::ZERO;
    #[inline(always)]
    unsafe fn widen4(from: *const Self) -> __m128 {
        // SAFETY: the caller vouches for four values; the conversion is plain arithmetic.
        unsafe {
            let v = std::slice::from_raw_parts(from, 4);
            _mm_setr_ps(
                v[0].to_f32_const(),
                v[1].to_f32_const(),
                v[2].to_f32_const(),
                v[3].to_f32_const(),
            )
        }
    }
    #[inline(always)]
    unsafe fn widen8(from: *const Self) -> __m256 {
        // SAFETY: the caller vouches for eight values and the instructions.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn widen16(from: *const Self) -> __m512 {
        // SAFETY: the caller vouches for sixteen values and the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
}

/// Sums of the lanes of four registers at once: halves are added, then neighbours, so that twelve
/// shuffles do the work of sixteen.
#[inline(always)]
unsafe fn totals_of_four(a: __m256, b: __m256, c: __m256, d: __m256) -> __m128 {
    // SAFETY: the caller vouches for AVX.
    unsafe {
        let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs))
    }
}

/// Sums of the lanes of each register of eight.
#[inline(always)]
unsafe fn totals_of_eights<const N: usize>(sums: [__m256; N]) -> [f32; N] {
    let mut totals = [0.0; N];
    let mut i = 0;
    // SAFETY: the caller vouches for AVX; `totals` has N values, of which four are written only
    // where four are left.
    unsafe {
        while i + 4 <= N {
            let four = totals_of_four(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
            _mm_storeu_ps(totals.as_mut_ptr().add(i), four);
            i += 4;
        }
        while i < N {
            let zero = _mm256_setzero_ps();
            totals[i] = _mm_cvtss_f32(totals_of_four(sums[i], zero, zero, zero));
            i += 1;
        }
    }
    totals
}

/// Sums of the lanes of each register of sixteen.
#[inline(always)]
unsafe fn totals_of_sixteens<const N: usize>(sums: [__m512; N]) -> [f32; N] {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let mut halves = [_mm256_setzero_ps(); N];
        let mut i = 0;
        while i < N {
            let upper = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0b1110>(
                _mm512_castps_pd(sums[i]),
                _mm512_castps_pd(sums[i]),
            ));
            halves[i] =
                _mm256_add_ps(_mm512_castps512_ps256(sums[i]), _mm512_castps512_ps256(upper));
            i += 1;
        }
        totals_of_eights(halves)
    }
}

/// [`PackedLanes::transpose`] in registers of sixteen lanes: neighbours, pairs, then quarters change places.
///
/// # Safety
/// Rows and room as there; the processor has AVX-512.
#[inline(always)]
unsafe fn transpose_sixteen(from: *const u32, stride: usize, to: *mut u32) {
    // SAFETY: the caller vouches for rows, room and AVX-512.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); 16];
        let mut other = rows;
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(from.byte_add(i * stride).cast());
        }
        for i in 0..8 {
            let (a, b) = (rows[2 * i], rows[2 * i + 1]);
            other[2 * i] = _mm512_unpacklo_epi32(a, b);
            other[2 * i + 1] = _mm512_unpackhi_epi32(a, b);
        }
        for i in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| other[4 * i + j]);
            rows[4 * i] = _mm512_unpacklo_epi64(a, c);
            rows[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
            rows[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
            rows[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
        }
        for i in 0..4 {
            for half in [0, 8] {
                let (a, b) = (rows[half + i], rows[half + 4 + i]);
                other[half + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
                other[half + 4 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
            }
        }
        for i in 0..8 {
            let (a, b) = (other[i], other[8 + i]);
            let (even, odd) = (
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
            );
            _mm512_storeu_si512(to.add(i * 16).cast(), even);
            _mm512_storeu_si512(to.add((i + 8) * 16).cast(), odd);
        }
    }
}

/// A square of eight lanes, transposed in the same way; rows to write are 16 lanes apart.
///
/// # Safety
/// Eight rows at both ends; the processor has AVX2.
#[inline(always)]
unsafe fn transpose_eight(from: *const f32, stride: usize, to: *mut f32) {
    // SAFETY: the caller vouches for rows, room and AVX2.
    unsafe {
        let mut rows = [_mm256_setzero_ps(); 8];
        let mut other = rows;
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm256_loadu_ps(from.byte_add(i * stride));
        }
        for i in 0..4 {
            let (a, b) = (rows[2 * i], rows[2 * i + 1]);
            other[2 * i] = _mm256_unpacklo_ps(a, b);
            other[2 * i + 1] = _mm256_unpackhi_ps(a, b);
        }
        for i in 0..2 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|j| other[4 * i + j]);
            rows[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
            rows[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
            rows[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
            rows[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
        }
        for i in 0..4 {
            let (a, b) = (rows[i], rows[4 + i]);
            _mm256_storeu_ps(to.add(i * 16), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add((i + 4) * 16), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}

impl<W: Widen> Lanes for Avx512<W> {
    type Weight = W;
    type Activation = f32;
    type Register = __m512;
    type Sums = __m512;
    type Total = f32;
    const STEP: usize = 16;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = usize::MAX;
    const ZERO: W = W::ZERO;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const W) -> __m512 {
        // SAFETY: the caller vouches for sixteen values and AVX-512.
        unsafe { W::widen16(from) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for sixteen values and AVX-512.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m512, x: __m512, sums: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_fmadd_ps(w, x, sums) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m512; N]) -> [f32; N] {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { totals_of_sixteens(sums) }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const W) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

impl<W: Widen> PackedLanes for Avx512<W> {
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for a value and AVX-512.
        unsafe { _mm512_set1_ps(*from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const W, to: *mut f32) {
        // SAFETY: the caller vouches for sixteen values at both ends and AVX-512.
        unsafe { _mm512_storeu_ps(to, W::widen16(from)) }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the sums and AVX-512.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(sums: __m512, to: *mut f32) {
        // SAFETY: the caller vouches for room and AVX-512.
        unsafe { _mm512_storeu_ps(to, sums) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        // SAFETY: as the caller vouches.
        unsafe { transpose_sixteen(from, stride, to) }
    }
}

impl Lanes for Avx512Bf16 {
    type Weight = bf16;
    type Activation = bf16;
    type Register = __m512bh;
    type Sums = __m512;
    type Total = f32;
    const STEP: usize = 32;
    const SINGLE_ROWS: usize = 4;
    const SPAN: usize = usize::MAX;
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const bf16) -> __m512bh {
        // SAFETY: the caller vouches for 32 values (64 bytes) and AVX-512; any bits are bf16 values.
        unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const bf16) -> __m512bh {
        // SAFETY: as for weights.
        unsafe { Self::weights(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m512bh, x: __m512bh, sums: __m512) -> __m512 {
        // SAFETY: the caller vouches for AVX512_BF16.
        unsafe { _mm512_dpbf16_ps(sums, w, x) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m512; N]) -> [f32; N] {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { totals_of_sixteens(sums) }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const bf16) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

impl PackedLanes for Avx512Bf16 {
    const PER_LANE: usize = 2;

    #[inline(always)]
    unsafe fn repeat(from: *const bf16) -> __m512bh {
        // SAFETY: the caller vouches for a pair and AVX-512.
        unsafe { std::mem::transmute(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const bf16, to: *mut f32) {
        // SAFETY: the caller vouches for 32 values at both ends and AVX-512.
        unsafe {
            _mm512_storeu_ps(to, bf16::widen16(from));
            _mm512_storeu_ps(to.add(16), bf16::widen16(from.add(16)));
        }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for the sums and AVX-512.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(sums: __m512, to: *mut f32) {
        // SAFETY: the caller vouches for room and AVX-512.
        unsafe { _mm512_storeu_ps(to, sums) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        // SAFETY: as the caller vouches.
        unsafe { transpose_sixteen(from, stride, to) }
    }
}

impl<W: Widen> Lanes for Avx2<W> {
    type Weight = W;
    type Activation = f32;
    type Register = __m256;
    type Sums = __m256;
    type Total = f32;
    const STEP: usize = 8;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = usize::MAX;
    const ZERO: W = W::ZERO;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const W) -> __m256 {
        // SAFETY: the caller vouches for eight values and AVX2.
        unsafe { W::widen8(from) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for eight values and AVX2.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m256, x: __m256, sums: __m256) -> __m256 {
        // SAFETY: the caller vouches for FMA.
        unsafe { _mm256_fmadd_ps(w, x, sums) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m256; N]) -> [f32; N] {
        // SAFETY: the caller vouches for AVX2.
        unsafe { totals_of_eights(sums) }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const W) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

impl<W: Widen> PackedLanes for Avx2<W> {
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for a value and AVX2.
        unsafe { _mm256_set1_ps(*from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const W, to: *mut f32) {
        // SAFETY: the caller vouches for eight values at both ends and AVX2.
        unsafe { _mm256_storeu_ps(to, W::widen8(from)) }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for the sums and AVX2.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(sums: __m256, to: *mut f32) {
        // SAFETY: the caller vouches for room and AVX2.
        unsafe { _mm256_storeu_ps(to, sums) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32) {
        // SAFETY: as the caller vouches: four squares of eight.
        unsafe {
            for (row, lane) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                let from = from.byte_add(row * stride).add(lane);
                transpose_eight(from.cast(), stride, to.add(lane * 16 + row).cast());
            }
        }
    }
}

impl<W: Widen> Lanes for Sse2<W> {
    type Weight = W;
    type Activation = f32;
    type Register = __m128;
    type Sums = __m128;
    type Total = f32;
    const STEP: usize = 4;
    const SINGLE_ROWS: usize = 0;
    const SPAN: usize = usize::MAX;
    const ZERO: W = W::ZERO;

    #[inline(always)]
    unsafe fn zero() -> __m128 {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe { _mm_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const W) -> __m128 {
        // SAFETY: the caller vouches for four values.
        unsafe { W::widen4(from) }
    }
    #[inline(always)]
    unsafe fn activations(from: *const f32) -> __m128 {
        // SAFETY: the caller vouches for four values.
        unsafe { _mm_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn multiply_add(w: __m128, x: __m128, sums: __m128) -> __m128 {
        // SAFETY: every x86-64 processor has SSE2.
        unsafe { _mm_add_ps(_mm_mul_ps(w, x), sums) }
    }
    #[inline(always)]
    unsafe fn totals<const N: usize>(sums: [__m128; N]) -> [f32; N] {
        let mut totals = [0.0; N];
        for (total, sums) in totals.iter_mut().zip(sums) {
            // SAFETY: every x86-64 processor has SSE2.
            unsafe {
                let two = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
                *total = _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)));
            }
        }
        totals
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const W) {
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

impl<W: Widen> PackedLanes for Sse2<W> {
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn repeat(from: *const f32) -> __m128 {
        // SAFETY: the caller vouches for a value and SSE2.
        unsafe { _mm_set1_ps(*from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const W, to: *mut f32) {
        // SAFETY: the caller vouches for four values at both ends and SSE2.
        unsafe { _mm_storeu_ps(to, W::widen4(from)) }
    }
    #[inline(always)]
    unsafe fn resume(from: *const f32) -> __m128 {
        // SAFETY: the caller vouches for the sums and SSE2.
        unsafe { _mm_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(sums: __m128, to: *mut f32) {
        // SAFETY: the caller vouches for room and SSE2.
        unsafe { _mm_storeu_ps(to, sums) }
    }
}
