//! Weights in 8 bits: symmetric, with one scale for each output channel.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::kernels::{Values, WeightData};
use crate::{Error, Result};

/// The largest quantised value; -128 is never produced, so that the range is symmetric.
const LARGEST: f32 = 127.0;
/// Values of a row, below which sums of products with 16-bit activations are exact in double precision:
/// 2^31 x 128 x 32,768 = 2^53.
const MOST: usize = 1 << 31;

/// A stack of weight rows in 8 bits: value `[row, k]` is `values[row, k] * scales[row]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Weights {
    values: Values<i8>,
    scales: Values<f32>,
    k: usize,
}

impl Int8Weights {
    /// Rows of `k` values `[rows, k]` with one scale each `[rows]`. -128, which [`Int8Weights::quantize`]
    /// never makes, is a value like any other.
    ///
    /// # Errors
    /// [`Error::Usage`] when the lengths do not fit each other, for rows of none or of 2^31 values and
    /// more, or for a scale that is not finite.
    pub fn new(values: Vec<i8>, scales: Vec<f32>, k: usize) -> Result<Self> {
        if scales.len().checked_mul(k) != Some(values.len()) {
            return Err(Error::usage(
                "int8 weights",
                format!("{} values are not {} rows of {k}", values.len(), scales.len()),
            ));
        }
        check_row(k)?;
        if let Some(row) = scales.iter().position(|s| !s.is_finite()) {
            return Err(Error::usage(
                "int8 weights",
                format!("the scale of row {row} is not finite"),
            ));
        }
        Ok(Self { values: values.into(), scales: scales.into(), k })
    }

    /// The rows of some values, which are not copied; `None` where they are no whole rows of these.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        let whole = range.start.is_multiple_of(self.k) && range.end.is_multiple_of(self.k);
        let scales = self.scales.part(range.start / self.k..range.end / self.k)?;
        let values = self.values.part(range)?;
        whole.then_some(Self { values, scales, k: self.k })
    }

    /// Rounds rows of `k` values to the nearest multiple of their scale, `max |row| / 127`, ties to even:
    /// each value is off by at most half a scale. Rows of zeros, and rows so small that their scale would
    /// be denormal, become zeros with the scale 0.
    ///
    /// ```
    /// use moe_frontier::kernels::Int8Weights;
    ///
    /// let rows = Int8Weights::quantize(&[0.5, -1.27, 0.0, 0.0], 2)?;
    /// assert_eq!((rows.values(), rows.k()), (&[50, -127, 0, 0][..], 2));
    /// assert_eq!(rows.scales(), [0.01, 0.0]);
    /// # Ok::<(), moe_frontier::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Usage`] when `values` are no whole rows, or for a value that is not finite.
    pub fn quantize(values: &[f32], k: usize) -> Result<Self> {
        Self::quantize_rows(values.len(), k, |start, row| {
            row.copy_from_slice(&values[start..start + k]);
        })
    }

    /// The same for `len` values that `fill(start, row)` writes row by row, so that they never all
    /// exist in single precision.
    pub(crate) fn quantize_rows(
        len: usize,
        k: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        check_row(k)?;
        if !len.is_multiple_of(k) {
            return Err(Error::usage("int8 weights", format!("{len} values are no rows of {k}")));
        }
        let (mut values, mut scales) = (vec![0; len], vec![0.0; len / k]);
        values.par_chunks_exact_mut(k).zip(&mut scales).enumerate().try_for_each_init(
            || vec![0.0; k],
            |row, (i, (values, scale))| {
                fill(i * k, row);
                *scale = quantize_row(row, values);
                if scale.is_finite() { Ok(()) } else { Err(not_finite(i)) }
            },
        )?;
        Ok(Self { values: values.into(), scales: scales.into(), k })
    }

    /// All values, `[rows, k]`.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// The scale of each row, `[rows]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Values of one row.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// One value, exactly.
    pub fn get(&self, index: usize) -> f64 {
        f64::from(self.values[index]) * f64::from(self.scales[index / self.k])
    }
}

/// Quantises one row and returns its scale: NaN or infinite exactly when a value is.
fn quantize_row(row: &[f32], out: &mut [i8]) -> f32 {
    let largest = row.iter().fold(0, |most: u32, v| most.max(v.abs().to_bits()));
    let scale = f32::from_bits(largest) / LARGEST;
    if scale < f32::MIN_POSITIVE {
        out.fill(0);
        return 0.0;
    }
    for (out, value) in out.iter_mut().zip(row) {
        let rounded = (value / scale).round_ties_even().clamp(-LARGEST, LARGEST);
        #[expect(clippy::cast_possible_truncation, reason = "an integer of at most 127")]
        let narrow = rounded as i8;
        *out = narrow;
    }
    scale
}

/// Whether a row may have `k` values.
fn check_row(k: usize) -> Result<()> {
    if (1..MOST).contains(&k) {
        return Ok(());
    }
    Err(Error::usage("int8 weights", format!("rows of {k} values; 1 to {} are possible", MOST - 1)))
}

fn not_finite(row: usize) -> Error {
    Error::usage("int8 weights", format!("row {row} has a value that is not finite"))
}

impl WeightData {
    /// The same weights in 8 bits, in rows of `k` values; see [`Int8Weights::quantize`]. Weights that
    /// are in 8 bits already stay as they are.
    ///
    /// # Errors
    /// [`Error::Usage`] when they are no whole rows, or for a value that is not finite.
    pub fn quantized(&self, k: usize) -> Result<Self> {
        let quantize = |fill: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            Int8Weights::quantize_rows(self.len(), k, fill)
        };
        Ok(Self::Int8(match self {
            Self::F32(v) => Int8Weights::quantize(v, k)?,
            Self::Bf16(v) => quantize(&|start, row| v[start..start + k].convert_to_f32_slice(row))?,
            Self::F16(v) => quantize(&|start, row| v[start..start + k].convert_to_f32_slice(row))?,
            Self::Int8(rows) if rows.k == k => rows.clone(),
            Self::Int8(rows) => {
                let reason = format!("rows of {} cannot become rows of {k}", rows.k);
                return Err(Error::usage("int8 weights", reason));
            }
            Self::Fp8(_) => {
                return Err(Error::usage("int8 weights", "fp8 weights are 8 bits already"));
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_is_off_by_at_most_half_a_scale(
            rows in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 37), 1..6),
            exponent in -60i32..60,
        ) {
            let factor = 2.0f32.powi(exponent);
            let values: Vec<f32> = rows.iter().flatten().map(|v| v * factor).collect();
            let quantised = Int8Weights::quantize(&values, 37).unwrap();
            for (i, &value) in values.iter().enumerate() {
                let scale = f64::from(quantised.scales()[i / 37]);
                let off = (quantised.get(i) - f64::from(value)).abs();
                prop_assert!(off <= 0.500_01 * scale, "{value}: {off} of {scale}");
            }
            for (row, values) in quantised.values().chunks(37).zip(values.chunks(37)) {
                let any = values.iter().any(|v| *v != 0.0);
                prop_assert!(row.iter().all(|v| *v > -128));
                prop_assert_eq!(row.iter().any(|v| v.abs() == 127), any);
            }
        }
    }

    #[test]
    fn ties_go_to_the_even_neighbour() {
        // The largest value of 127 makes the scale 1.
        let rows = Int8Weights::quantize(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], 6).unwrap();
        assert_eq!(rows.values(), [127, 0, 2, 2, 0, -2]);
    }

    #[test]
    fn rows_too_small_for_a_scale_become_zeros() {
        let rows = Int8Weights::quantize(&[1e-40, -1e-37, 0.0, -0.0], 2).unwrap();
        assert_eq!((rows.values(), rows.scales()), (&[0; 4][..], &[0.0, 0.0][..]));
    }

    #[test]
    fn formats_agree_where_they_hold_the_values() {
        let wide: Vec<f32> = (0..96u8).map(|i| f32::from(i % 23) * 0.25 - 2.0).collect();
        let expected = WeightData::F32(wide.clone().into()).quantized(32).unwrap();
        let narrow = WeightData::Bf16(wide.iter().map(|&v| bf16::from_f32(v)).collect());
        let half = WeightData::F16(wide.iter().map(|&v| f16::from_f32(v)).collect());
        assert_eq!(narrow.quantized(32).unwrap(), expected);
        assert_eq!(half.quantized(32).unwrap(), expected);
        assert_eq!(expected.quantized(32).unwrap(), expected);
        assert_eq!(expected.quantized(16).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn what_makes_no_rows_is_refused() {
        for (values, scales, k) in [(6, 2, 2), (0, 2, 0), (0, 1, 3), (0, 0, 1 << 31)] {
            let error = Int8Weights::new(vec![0; values], vec![1.0; scales], k).unwrap_err();
            assert!(error.to_string().contains("rows of"), "{error}");
        }
        assert!(Int8Weights::new(vec![0; 4], vec![1.0, f32::NAN], 2).is_err());
        assert!(Int8Weights::quantize(&[0.0; 7], 2).is_err());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Int8Weights::quantize(&[0.0, 1.0, 2.0, value], 2).unwrap_err();
            assert!(error.to_string().contains("row 1 has a value"), "{error}");
        }
    }
}
