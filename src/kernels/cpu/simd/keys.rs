//! Scores packed with their places, so that one integer comparison orders both: the higher score first,
//! of equal ones the lower place.
//!
//! A key holds the score in its upper half, as an integer of the same order, and the complement of the
//! place in its lower half. [`Keys`] names what is done with eight keys at a time in each instruction set.

#![cfg_attr(
    all(not(test), target_arch = "x86_64"),
    expect(clippy::wildcard_imports, reason = "intrinsics carry their module in their names")
)]
#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Keys that are handled at a time.
pub(super) const LANES: usize = 8;

/// Below the key of every number: its upper half belongs to a NaN.
pub(super) const LOWEST: i64 = i64::MIN;

/// The key of a score that is a number. Both zeros are one score.
#[inline(always)]
pub(super) fn key(score: f32, place: u32) -> i64 {
    let ordered = flipped((score + 0.0).to_bits().cast_signed());
    (i64::from(ordered) << 32) | i64::from(!place)
}

/// The place in a key.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
pub(super) const fn place(key: i64) -> u32 {
    !(key.cast_unsigned() as u32)
}

/// The score in a key.
#[inline(always)]
pub(super) const fn score(key: i64) -> f32 {
    f32::from_bits(flipped((key >> 32) as i32).cast_unsigned())
}

/// Bits of a float into an integer of the same order, and back: negative numbers have their magnitude
/// inverted.
#[inline(always)]
const fn flipped(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// Eight keys in the registers of one instruction set.
///
/// # Safety of implementations and callers
/// Every function is unsafe because it may only run on a processor that has the instruction set.
pub(super) trait Keys: Copy {
    /// Keys of nothing.
    unsafe fn lowest() -> Self;
    /// Given keys.
    unsafe fn new(keys: [i64; LANES]) -> Self;
    /// The keys of neighbouring scores, the first of which has the place `first`.
    unsafe fn pack(scores: &[f32; LANES], first: u32) -> Self;
    /// The higher key of each lane.
    unsafe fn max(self, other: Self) -> Self;
    /// The highest of all lanes.
    unsafe fn highest(self) -> i64;
    /// The same keys but for one, which becomes [`LOWEST`].
    unsafe fn without(self, key: i64) -> Self;
}

/// Plain integers: what compilers make of them.
#[derive(Clone, Copy)]
pub(super) struct Plain([i64; LANES]);

impl Keys for Plain {
    #[inline(always)]
    unsafe fn lowest() -> Self {
        Self([LOWEST; LANES])
    }
    #[inline(always)]
    unsafe fn new(keys: [i64; LANES]) -> Self {
        Self(keys)
    }
    #[inline(always)]
    unsafe fn pack(scores: &[f32; LANES], first: u32) -> Self {
        let mut keys = [LOWEST; LANES];
        for ((k, &score), place) in keys.iter_mut().zip(scores).zip(first..) {
            *k = key(score, place);
        }
        Self(keys)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        let mut keys = self.0;
        for (a, b) in keys.iter_mut().zip(other.0) {
            *a = (*a).max(b);
        }
        Self(keys)
    }
    #[inline(always)]
    unsafe fn highest(self) -> i64 {
        let k = self.0;
        let pairs = [k[0].max(k[4]), k[1].max(k[5]), k[2].max(k[6]), k[3].max(k[7])];
        pairs[0].max(pairs[2]).max(pairs[1].max(pairs[3]))
    }
    #[inline(always)]
    unsafe fn without(self, key: i64) -> Self {
        let mut keys = self.0;
        for k in &mut keys {
            *k = if *k == key { LOWEST } else { *k };
        }
        Self(keys)
    }
}

/// One register of AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512i);

#[cfg(target_arch = "x86_64")]
impl Keys for Avx512 {
    #[inline(always)]
    unsafe fn lowest() -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_set1_epi64(LOWEST) })
    }
    #[inline(always)]
    unsafe fn new(keys: [i64; LANES]) -> Self {
        // SAFETY: the caller vouches for AVX-512; the array has the register's 64 bytes.
        Self(unsafe { _mm512_loadu_si512(keys.as_ptr().cast()) })
    }
    #[inline(always)]
    unsafe fn pack(scores: &[f32; LANES], first: u32) -> Self {
        // SAFETY: the caller vouches for AVX-512; there are eight scores to load.
        unsafe {
            let scores = _mm256_add_ps(_mm256_loadu_ps(scores.as_ptr()), _mm256_setzero_ps());
            let bits = _mm256_castps_si256(scores);
            let magnitude = _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits));
            let ordered = _mm512_cvtepi32_epi64(_mm256_xor_si256(bits, magnitude));
            let places = _mm512_sub_epi64(
                _mm512_set1_epi64(i64::from(!first)),
                _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
            );
            Self(_mm512_or_si512(_mm512_slli_epi64::<32>(ordered), places))
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_max_epi64(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn highest(self) -> i64 {
        // SAFETY: the caller vouches for AVX-512.
        unsafe { _mm512_reduce_max_epi64(self.0) }
    }
    #[inline(always)]
    unsafe fn without(self, key: i64) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let found = _mm512_cmpeq_epi64_mask(self.0, _mm512_set1_epi64(key));
            Self(_mm512_mask_mov_epi64(self.0, found, _mm512_set1_epi64(LOWEST)))
        }
    }
}

/// Two registers of AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2([__m256i; 2]);

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    #[inline(always)]
    unsafe fn higher(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe { _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b)) }
    }

    #[inline(always)]
    unsafe fn packed(ordered: __m128i, places: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let upper = _mm256_slli_epi64::<32>(_mm256_cvtepi32_epi64(ordered));
            _mm256_or_si256(upper, places)
        }
    }

    #[inline(always)]
    unsafe fn half_without(keys: __m256i, key: __m256i) -> __m256i {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let lowest = _mm256_set1_epi64x(LOWEST);
            _mm256_blendv_epi8(keys, lowest, _mm256_cmpeq_epi64(keys, key))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Keys for Avx2 {
    #[inline(always)]
    unsafe fn lowest() -> Self {
        // SAFETY: the caller vouches for AVX2.
        Self([unsafe { _mm256_set1_epi64x(LOWEST) }; 2])
    }
    #[inline(always)]
    unsafe fn new(keys: [i64; LANES]) -> Self {
        // SAFETY: the caller vouches for AVX2; the array has the 64 bytes of two registers.
        unsafe {
            let first = keys.as_ptr();
            Self([_mm256_loadu_si256(first.cast()), _mm256_loadu_si256(first.add(4).cast())])
        }
    }
    #[inline(always)]
    unsafe fn pack(scores: &[f32; LANES], first: u32) -> Self {
        // SAFETY: the caller vouches for AVX2; there are eight scores to load.
        unsafe {
            let scores = _mm256_add_ps(_mm256_loadu_ps(scores.as_ptr()), _mm256_setzero_ps());
            let bits = _mm256_castps_si256(scores);
            let magnitude = _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits));
            let ordered = _mm256_xor_si256(bits, magnitude);
            let first = _mm256_set1_epi64x(i64::from(!first));
            let low = _mm256_sub_epi64(first, _mm256_setr_epi64x(0, 1, 2, 3));
            let high = _mm256_sub_epi64(first, _mm256_setr_epi64x(4, 5, 6, 7));
            Self([
                Self::packed(_mm256_castsi256_si128(ordered), low),
                Self::packed(_mm256_extracti128_si256::<1>(ordered), high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller vouches for AVX2.
        unsafe { Self([Self::higher(self.0[0], other.0[0]), Self::higher(self.0[1], other.0[1])]) }
    }
    #[inline(always)]
    unsafe fn highest(self) -> i64 {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let four = Self::higher(self.0[0], self.0[1]);
            let (low, high) = (_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four));
            let two = _mm_blendv_epi8(high, low, _mm_cmpgt_epi64(low, high));
            _mm_cvtsi128_si64(two).max(_mm_extract_epi64::<1>(two))
        }
    }
    #[inline(always)]
    unsafe fn without(self, key: i64) -> Self {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let key = _mm256_set1_epi64x(key);
            Self([Self::half_without(self.0[0], key), Self::half_without(self.0[1], key)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::simd::Isa;

    #[test]
    fn keys_order_scores_then_places_and_give_both_back() {
        let scores = [f32::INFINITY, 3.0, 1e-40, 0.0, -1e-40, -2.0, f32::NEG_INFINITY];
        for pair in scores.windows(2) {
            assert!(key(pair[0], 9) > key(pair[1], 2), "{pair:?}");
        }
        for score in scores {
            assert!(key(score, 2) > key(score, 3) && key(score, 1023) > LOWEST);
            let key = key(score, 77);
            assert_eq!((super::score(key).to_bits(), place(key)), (score.to_bits(), 77));
        }
        assert_eq!(key(-0.0, 5), key(0.0, 5));
    }

    /// What [`Plain`] computes, in other registers.
    ///
    /// # Safety
    /// The processor has the instructions of `K`.
    unsafe fn agrees_with_plain<K: Keys>() {
        let scores = [0.5, -0.0, f32::NEG_INFINITY, 7.0, 7.0, -1e30, f32::INFINITY, 0.0];
        let other = [6.0, 1.0, -3.0, 7.0, 8.0, f32::NEG_INFINITY, 2.0, -0.0];
        // SAFETY: the caller vouches for the instructions; plain integers need none.
        unsafe {
            let (mut a, mut b) = (K::pack(&scores, 16), Plain::pack(&scores, 16));
            let (max, plain) = (a.max(K::pack(&other, 8)), b.max(Plain::pack(&other, 8)));
            assert_eq!(max.highest(), plain.highest());
            assert_eq!(K::new(plain.0).without(max.highest()).highest(), {
                plain.without(plain.highest()).highest()
            });
            for _ in 0..LANES {
                assert_eq!(a.highest(), b.highest());
                (a, b) = (a.without(a.highest()), b.without(b.highest()));
            }
            assert_eq!((a.highest(), K::lowest().highest()), (LOWEST, LOWEST));
        }
    }

    #[test]
    fn every_instruction_set_handles_keys_alike() {
        // SAFETY: plain integers need no instruction set; the others were asked for.
        unsafe {
            agrees_with_plain::<Plain>();
            #[cfg(target_arch = "x86_64")]
            if Isa::Avx2.is_available() {
                agrees_with_plain::<Avx2>();
            }
            #[cfg(target_arch = "x86_64")]
            if Isa::Avx512.is_available() {
                agrees_with_plain::<Avx512>();
            }
        }
        assert!(Isa::Portable.is_available());
    }
}
