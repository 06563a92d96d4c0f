//! Weights in 8-bit floats, with one scale for each block of 128 x 128 of a matrix.
//!
//! e4m3 (OCP 8-bit floating point specification, revision 1.0): a sign, 4 bits of exponent with bias 7,
//! 3 of mantissa, subnormals, no infinity, and NaN where all bits but the sign are set. The largest
//! value is 448. Matrices that are no multiple of 128 have smaller blocks at their ends, and no block
//! reaches into the next matrix.

use std::ops::Range;

use rayon::prelude::*;

use crate::constants::FP8_BLOCK as BLOCK;
use crate::kernels::Values;
use crate::{Error, Result};

/// The largest value of e4m3.
const LARGEST: f32 = 448.0;
/// The code of NaN, without the sign.
const NAN: u8 = 0x7f;
/// Multiples of this are the subnormal values, and the first of the normal ones.
const STEP: f32 = 1.0 / 512.0;

/// A stack of matrices `[matrices, rows, k]` in 8-bit floats: value `[m, n, k]` is
/// `e4m3(codes[m, n, k]) * scales[m, n / 128, k / 128]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Weights {
    codes: Values<u8>,
    scales: Values<f32>,
    rows: usize,
    k: usize,
}

impl Fp8Weights {
    /// Codes `[matrices, rows, k]` with scales `[matrices, ceil(rows / 128), ceil(k / 128)]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the lengths do not fit each other, for a code that is NaN, and for a scale
    /// that is not finite.
    pub fn new(codes: Vec<u8>, scales: Vec<f32>, rows: usize, k: usize) -> Result<Self> {
        let matrices = matrices(codes.len(), rows, k)?;
        let blocks = matrices * rows.div_ceil(BLOCK) * k.div_ceil(BLOCK);
        let invalid = |reason: String| Err(Error::usage("fp8 weights", reason));
        if scales.len() != blocks {
            return invalid(format!("{} scales for {blocks} blocks of 128 x 128", scales.len()));
        }
        if let Some(at) = codes.par_iter().position_first(|code| code & NAN == NAN) {
            return invalid(format!("value {at} is not a number"));
        }
        if let Some(block) = scales.iter().position(|s| !s.is_finite()) {
            return invalid(format!("the scale of block {block} is not finite"));
        }
        Ok(Self { codes: codes.into(), scales: scales.into(), rows, k })
    }

    /// The matrices of some values, which are not copied; `None` where they are no whole matrices of these.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        let size = self.rows * self.k;
        let whole = range.start.is_multiple_of(size) && range.end.is_multiple_of(size);
        let blocks = self.rows.div_ceil(BLOCK) * self.k.div_ceil(BLOCK);
        let scales = self.scales.part(range.start / size * blocks..range.end / size * blocks)?;
        let codes = self.codes.part(range)?;
        whole.then_some(Self { codes, scales, ..*self })
    }

    /// Rounds matrices `[matrices, rows, k]` block by block, with the scale `max |block| / 448`, to the
    /// nearest value, ties to even. A value that is not below `scale / 64` is off by at most a
    /// sixteenth of itself, a smaller one by at most `scale / 1024`. Blocks of zeros, and blocks so
    /// small that their scale would be denormal, become zeros with the scale 0.
    ///
    /// ```
    /// use moe_frontier::kernels::Fp8Weights;
    ///
    /// let weights = Fp8Weights::quantize(&[448.0, -1.0, 0.0, 17.0], 2, 2)?;
    /// assert_eq!(weights.scales(), [1.0]);
    /// let values: Vec<f64> = (0..4).map(|i| weights.get(i)).collect();
    /// assert_eq!(values, [448.0, -1.0, 0.0, 16.0]);
    /// # Ok::<(), moe_frontier::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Usage`] when `values` are no whole matrices, or for a value that is not finite.
    pub fn quantize(values: &[f32], rows: usize, k: usize) -> Result<Self> {
        Self::quantize_bands(values.len(), (rows, k), |start, band| {
            band.copy_from_slice(&values[start..start + band.len()]);
        })
    }

    /// The same for `len` values that `fill(start, values)` writes, some rows at a time, so that they
    /// never all exist in single precision.
    pub(crate) fn quantize_bands(
        len: usize,
        (rows, k): (usize, usize),
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let matrices = matrices(len, rows, k)?;
        let (bands, columns) = (rows.div_ceil(BLOCK), k.div_ceil(BLOCK));
        let (mut codes, mut scales) = (vec![0; len], vec![0.0; matrices * bands * columns]);
        let of_bands = codes.chunks_exact_mut(rows * k).flat_map(|m| m.chunks_mut(BLOCK * k));
        of_bands
            .collect::<Vec<_>>()
            .into_par_iter()
            .zip(scales.par_chunks_exact_mut(columns))
            .enumerate()
            .try_for_each_init(Vec::new, |band: &mut Vec<f32>, (i, (codes, scales))| {
                let start = (i / bands * rows + i % bands * BLOCK) * k;
                band.resize(codes.len(), 0.0);
                fill(start, band);
                quantize_band(band, k, codes, scales);
                if scales.iter().all(|s| s.is_finite()) {
                    Ok(())
                } else {
                    Err(not_finite(start / k))
                }
            })?;
        Ok(Self { codes: codes.into(), scales: scales.into(), rows, k })
    }

    /// All codes, `[matrices, rows, k]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scale of each block, `[matrices, ceil(rows / 128), ceil(k / 128)]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Rows of one matrix.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values of one row.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// One value, exactly.
    pub fn get(&self, index: usize) -> f64 {
        let (row, column) = (index / self.k, index % self.k);
        let (matrix, row) = (row / self.rows, row % self.rows);
        let band = matrix * self.rows.div_ceil(BLOCK) + row / BLOCK;
        let scale = self.scales[band * self.k.div_ceil(BLOCK) + column / BLOCK];
        f64::from(decode(self.codes[index])) * f64::from(scale)
    }
}

/// Matrices of `[rows, k]` that `len` values are.
fn matrices(len: usize, rows: usize, k: usize) -> Result<usize> {
    match rows.checked_mul(k) {
        Some(size) if size > 0 && len.is_multiple_of(size) => Ok(len / size),
        _ => Err(Error::usage("fp8 weights", format!("{len} values are no matrices {rows} x {k}"))),
    }
}

fn not_finite(row: usize) -> Error {
    let reason = format!("the block of rows from {row} on has a value that is not finite");
    Error::usage("fp8 weights", reason)
}

/// Quantises up to 128 rows of `k` values; a block with a value that is not finite gets a scale that
/// is not.
fn quantize_band(values: &[f32], k: usize, codes: &mut [u8], scales: &mut [f32]) {
    for (block, scale) in scales.iter_mut().enumerate() {
        let columns = block * BLOCK..k.min((block + 1) * BLOCK);
        let rows = || values.chunks_exact(k).map(|row| &row[columns.clone()]);
        // By bits, so that NaN is above all.
        let largest = rows().flatten().fold(0, |most: u32, v| most.max(v.abs().to_bits()));
        *scale = f32::from_bits(largest) / LARGEST;
        if *scale < f32::MIN_POSITIVE {
            *scale = 0.0;
        }
        let to = codes.chunks_exact_mut(k).map(|row| &mut row[columns.clone()]);
        for (code, value) in to.zip(rows()).flat_map(|(to, from)| to.iter_mut().zip(from)) {
            *code = if *scale > 0.0 { encode(value / *scale) } else { 0 };
        }
    }
}

/// The value of a code.
fn decode(code: u8) -> f32 {
    if code & NAN == NAN {
        return f32::NAN;
    }
    // In the same fields of an f32 a code is its value times 2^-120, subnormals included.
    let magnitude = f32::from_bits(u32::from(code & NAN) << 20) * f32::from_bits(247 << 23);
    if code > NAN { -magnitude } else { magnitude }
}

/// The code of the nearest value, ties to even; what is larger than all becomes the largest.
fn encode(value: f32) -> u8 {
    let magnitude = value.abs().min(LARGEST);
    let code = if magnitude < 8.0 * STEP {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an integer from 0 to 8"
        )]
        let steps = (magnitude / STEP).round_ties_even() as u32;
        steps
    } else {
        // 20 of the 23 bits of mantissa are rounded off; a carry moves on into the exponent.
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - ((127 - 7) << 3)
    };
    u8::try_from(code).unwrap_or(NAN) | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values of e4m3 by its definition.
    fn defined(code: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let value = match exponent {
            0 => mantissa / 8.0 * 2.0f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
        };
        if code & 0x80 == 0 { value } else { -value }
    }

    #[test]
    fn codes_are_those_of_the_specification() {
        for code in (0..=u8::MAX).filter(|code| code & NAN != NAN) {
            assert!((decode(code) - defined(code)).abs() <= 0.0, "{code:#x}");
            assert_eq!(encode(decode(code)), code);
        }
        assert_eq!((decode(0x7e), decode(0x08), decode(0x01)), (448.0, 0.015_625, STEP));
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
    }

    #[test]
    fn values_between_two_codes_go_to_the_nearer_and_ties_to_the_even_one() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = f32::midpoint(low, high);
            let even = code + (code & 1);
            assert_eq!(encode(middle), even, "{middle}");
            assert_eq!(encode(middle - (high - low) / 64.0), code);
            assert_eq!(encode(middle + (high - low) / 64.0), code + 1);
            assert_eq!(encode(-middle), even | 0x80);
        }
        assert_eq!((encode(460.0), encode(f32::MAX)), (0x7e, 0x7e));
    }

    proptest! {
        #[test]
        fn every_value_is_as_close_as_stated(
            values in prop::collection::vec(-1e3f32..1e3, 2 * 130 * 131),
            exponent in -40i32..40,
        ) {
            let values: Vec<f32> = values.iter().map(|v| v * 2.0f32.powi(exponent)).collect();
            let weights = Fp8Weights::quantize(&values, 130, 131).unwrap();
            prop_assert_eq!(weights.scales().len(), 2 * 2 * 2);
            for (i, &value) in values.iter().enumerate() {
                let (row, column) = (i / 131, i % 131);
                let block = (row / 130 * 2 + row % 130 / 128) * 2 + column / 128;
                let scale = f64::from(weights.scales()[block]);
                let most = (f64::from(value).abs() / 16.0).max(scale / 1023.0);
                let off = (weights.get(i) - f64::from(value)).abs();
                prop_assert!(off <= most, "{value}: {off} with scale {scale}");
            }
        }
    }

    #[test]
    fn each_block_has_the_scale_of_its_own_largest_value() {
        // 448 times the number of the block everywhere in a block: every code is the largest.
        let (rows, k) = (200, 257);
        let block = |i: usize| i / (rows * k) * 6 + i / k % rows / 128 * 3 + i % k / 128;
        let number = |i: usize| f32::from(u8::try_from(block(i) + 1).unwrap());
        let values: Vec<f32> = (0..2 * rows * k).map(|i| 448.0 * number(i)).collect();
        let weights = Fp8Weights::quantize(&values, rows, k).unwrap();
        assert!(weights.codes().iter().all(|&code| code == 0x7e));
        let scales: Vec<f32> = (1..=12u8).map(f32::from).collect();
        assert_eq!(weights.scales(), scales);
        let again = Fp8Weights::new(weights.codes().to_vec(), scales, rows, k).unwrap();
        assert_eq!(again, weights);
        assert_eq!((weights.rows(), weights.k()), (rows, k));
    }

    #[test]
    fn blocks_too_small_for_a_scale_become_zeros() {
        let weights = Fp8Weights::quantize(&[1e-40, -1e-36, 0.0, -0.0], 2, 2).unwrap();
        assert_eq!((weights.codes(), weights.scales()), (&[0; 4][..], &[0.0][..]));
    }

    #[test]
    fn what_makes_no_matrices_is_refused() {
        let says = |codes: Vec<u8>, scales: Vec<f32>, rows, k, part| {
            let error = Fp8Weights::new(codes, scales, rows, k).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        };
        says(vec![0; 6], vec![1.0], 2, 2, "no matrices 2 x 2");
        says(vec![0; 6], vec![1.0], 0, 2, "no matrices 0 x 2");
        says(vec![0; 129], vec![1.0], 129, 1, "1 scales for 2 blocks");
        says(vec![1, 0xff], vec![1.0], 1, 2, "value 1 is not a number");
        says(vec![0; 2], vec![f32::INFINITY], 1, 2, "scale of block 0");
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 2 * 130 * 3];
            values[(130 + 129) * 3] = value;
            let error = Fp8Weights::quantize(&values, 130, 3).unwrap_err();
            assert!(error.to_string().contains("rows from 258 on"), "{error}");
        }
    }
}
