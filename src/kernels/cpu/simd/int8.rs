//! Products of int8 weights: activations become 16-bit integers with one unit for each row, sums are
//! integers and therefore exact.
//!
//! An instruction set decides how fast a sum is found, never its bits: every path, any number of
//! threads and any batch give the same result. A product is `(sum rounded to f32) * scale * unit`, in
//! that order. The unit is a power of two, so that multiplying by it is exact, and that activations
//! which are integers, or bf16 values within a factor of 128 of the row's largest, are not rounded.

use super::activate::activate;
#[cfg(target_arch = "x86_64")]
use super::int8_x86::{Words128, Words256, Words512};
use super::{Isa, Operand, dot};
use crate::kernels::cpu::blocks::{BLOCK, Place};

/// Rows for which gate and up are held between the products and the activation: 12 KiB each.
const CHUNK: usize = 48;
/// The same for decode, where clearing the larger buffers would show.
const SMALL_CHUNK: usize = 6;

/// The unit of a row of activations: the power of two by which its largest magnitude becomes an integer
/// of 15 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowUnit {
    /// What one step of the integers stands for; NaN for a row with an infinity or a NaN.
    pub(crate) unit: f32,
    /// Its reciprocal, or 0.
    per_unit: f32,
}

impl RowUnit {
    /// The unit of a row whose largest magnitude has the bits [`largest`] found.
    pub(crate) fn of(largest: u32) -> Self {
        /// Half of the last step, as seen in the bits of the largest magnitude: a value that would be
        /// rounded to 32,768 moves on to the next exponent.
        const CARRY: u32 = 1 << 8;
        /// Biased exponent from which unit and reciprocal are normal numbers; rows below it are zeros
        /// to any other row.
        const LEAST: u32 = 15;
        if largest >= f32::INFINITY.to_bits() {
            return Self { unit: f32::NAN, per_unit: 0.0 };
        }
        let exponent = ((largest + CARRY) >> 23).max(LEAST);
        // Largest magnitudes of 1 to 2, of the biased exponent 127, have the unit 2^-14.
        let unit = f32::from_bits((exponent - 14) << 23);
        Self { unit, per_unit: f32::from_bits((268 - exponent) << 23) }
    }

    /// The nearest integer, ties to even; any integer in a row that has no unit.
    #[inline(always)]
    pub(super) fn integer(self, value: f32) -> i16 {
        /// Adding 1.5 x 2^23 rounds to the nearest integer, which then sits in the low bits.
        const ROUND: f32 = 12_582_912.0;
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
        let low = (value * self.per_unit + ROUND).to_bits() as u16;
        low.cast_signed()
    }
}

/// Bits of the largest magnitude; those of a NaN are larger than any number's.
#[inline]
pub(crate) fn largest(values: &[f32]) -> u32 {
    values.iter().fold(0, |most, v| most.max(v.abs().to_bits()))
}

/// Up to 64 weight rows with their scales.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScaledRows<'a> {
    /// `[n, k]`.
    pub(crate) values: &'a [i8],
    /// `[n]`.
    pub(crate) scales: &'a [f32],
}

/// Activations of one expert as integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integers<'a> {
    /// Blocks in the layout of an [`Int8Format`].
    pub(crate) values: Operand<'a, i16>,
    /// Unit of each row, without rows that fill up.
    pub(crate) units: &'a [f32],
}

/// Sums of products on one kind of instructions.
pub(crate) trait Int8Format {
    /// The number of an expert's rows is filled up to a multiple of this, which divides 48.
    const ROWS: usize;

    /// Stores up to 64 values of one row into a block; the rest of its 64 is zero.
    fn put_row(block: &mut [i16], place: Place, values: &[f32], unit: RowUnit);

    /// `out[row][n] = sum over k of a[row][k] w[n][k]`, rounded once, for the rows from `first` on (a
    /// multiple of [`Int8Format::ROWS`]) and up to 64 weight rows; columns beyond them become zero.
    fn panel(isa: Isa, w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]);
}

/// `out = silu(a gate^T) (a up^T)`, or `silu(a gate^T)` without `up`: one block `[rows][64]`. Each row's
/// largest magnitude is handed to `seen`.
pub(crate) fn gate_up<F: Int8Format>(
    isa: Isa,
    weights: (ScaledRows, Option<ScaledRows>),
    k: usize,
    a: Integers,
    out: &mut [f32],
    seen: impl Fn(usize, u32),
) {
    if a.values.rows <= SMALL_CHUNK {
        gate_up_chunks::<F, { SMALL_CHUNK * BLOCK }>(isa, weights, k, a, out, seen);
    } else {
        gate_up_chunks::<F, { CHUNK * BLOCK }>(isa, weights, k, a, out, seen);
    }
}

fn gate_up_chunks<F: Int8Format, const VALUES: usize>(
    isa: Isa,
    (gate, up): (ScaledRows, Option<ScaledRows>),
    k: usize,
    a: Integers,
    out: &mut [f32],
    seen: impl Fn(usize, u32),
) {
    let (mut gates, mut ups) = ([0.0; VALUES], [0.0; VALUES]);
    for (chunk, out) in out.chunks_mut(VALUES).enumerate() {
        let first = chunk * (VALUES / BLOCK);
        let gates = &mut gates[..out.len()];
        scaled_panel::<F>(isa, gate, k, a, first, gates);
        let ups = up.map(|up| {
            let ups = &mut ups[..out.len()];
            scaled_panel::<F>(isa, up, k, a, first, ups);
            &*ups
        });
        activate(isa, gates, ups, out);
        for (row, out) in out.chunks_exact(BLOCK).enumerate() {
            seen(first + row, largest(&out[..gate.scales.len()]));
        }
    }
}

/// `out[row][n] = sum over k of a[row][k] w[n][k]`: one block `[rows][64]`, zero beyond the last weight
/// row.
pub(crate) fn down<F: Int8Format>(isa: Isa, w: ScaledRows, k: usize, a: Integers, out: &mut [f32]) {
    for (chunk, out) in out.chunks_mut(CHUNK * BLOCK).enumerate() {
        scaled_panel::<F>(isa, w, k, a, chunk * CHUNK, out);
    }
}

fn scaled_panel<F: Int8Format>(
    isa: Isa,
    w: ScaledRows,
    k: usize,
    a: Integers,
    first: usize,
    out: &mut [f32],
) {
    F::panel(isa, w.values, k, a.values, first, out);
    for (out, unit) in out.chunks_exact_mut(BLOCK).zip(&a.units[first..]) {
        for (out, scale) in out.iter_mut().zip(w.scales) {
            *out = *out * scale * unit;
        }
    }
}

/// Blocks of 64 columns that `lanes` sums of 32 bits hold, less one: a lane takes 64 / `lanes` products of
/// a block, and 512 of them reach 512 x 32,767 x 128 < 2^31 at most.
pub(super) const fn span(lanes: usize) -> usize {
    8 * lanes - 1
}

/// Activations as 16-bit words in plain order, multiplied with weights that are widened when loaded.
pub(crate) struct Words;

impl Int8Format for Words {
    const ROWS: usize = 1;

    #[inline]
    fn put_row(block: &mut [i16], place: Place, values: &[f32], unit: RowUnit) {
        let out = &mut block[place.row * BLOCK..(place.row + 1) * BLOCK];
        let (filled, rest) = out.split_at_mut(values.len());
        filled.iter_mut().zip(values).for_each(|(out, &v)| *out = unit.integer(v));
        rest.fill(0);
    }

    #[cfg(target_arch = "x86_64")]
    fn panel(isa: Isa, w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        // As for other formats, the processor is asked although `Isa` says what it has.
        match isa {
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if Isa::Avx512.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe {
                    if is_x86_feature_detected!("avx512vnni") {
                        vnni_avx512(w, k, a, first, out);
                    } else {
                        words_avx512(w, k, a, first, out);
                    }
                }
            }
            Isa::Avx2 if isa.is_available() => {
                // SAFETY: the processor has the features that the callee is compiled for.
                unsafe {
                    if is_x86_feature_detected!("avxvnni") {
                        vnni_avx2(w, k, a, first, out);
                    } else {
                        words_avx2(w, k, a, first, out);
                    }
                }
            }
            // 2 x 4 sums, 2 weight vectors and one of tokens fill 11 of 16 registers.
            // SAFETY: every x86-64 processor has SSE2.
            _ => unsafe { dot::panel::<Words128, 2, 4>(w, k, a, first, out) },
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn panel(_: Isa, w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        // 4 x 4 sums, 4 weight vectors of 8 and one of tokens fill 24 of 32 registers.
        // SAFETY: every aarch64 processor has NEON.
        unsafe { dot::panel::<super::neon::NeonWords, 4, 4>(w, k, a, first, out) }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn panel(_: Isa, w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        // SAFETY: plain arithmetic needs no instruction set.
        unsafe { dot::panel::<super::plain::PlainWords, 2, 4>(w, k, a, first, out) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
fn vnni_avx512(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
    // 4 x 6 sums, 4 weight vectors and one of tokens fill 29 of 32 registers.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Words512<true>, 4, 6>(w, k, a, first, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn words_avx512(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
    // As above; each product passes through one register more.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Words512<false>, 4, 6>(w, k, a, first, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avxvnni")]
fn vnni_avx2(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
    // 4 x 2 sums, 4 weight vectors and one of tokens fill 13 of 16 registers.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Words256<true>, 4, 2>(w, k, a, first, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn words_avx2(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
    // As above; each product passes through one register more.
    // SAFETY: this function is only reached where its features are there.
    unsafe { dot::panel::<Words256<false>, 4, 2>(w, k, a, first, out) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernels::cpu::blocks::padded;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Unsafe, as the processor must have its instructions.
    type Panel = unsafe fn(&[i8], usize, Operand<i16>, usize, &mut [f32]);

    fn baseline(w: &[i8], k: usize, a: Operand<i16>, first: usize, out: &mut [f32]) {
        Words::panel(Isa::Portable, w, k, a, first, out);
    }

    /// Every way to multiply words that this processor has, whichever is preferred.
    fn panels() -> Vec<(&'static str, Panel)> {
        let baseline: (&str, Panel) = ("baseline", baseline);
        #[cfg(not(target_arch = "x86_64"))]
        return vec![baseline];
        #[cfg(target_arch = "x86_64")]
        {
            let mut panels = vec![baseline];
            let (avx2, avx512) = (Isa::Avx2.is_available(), Isa::Avx512.is_available());
            let vnni =
                (is_x86_feature_detected!("avxvnni"), is_x86_feature_detected!("avx512vnni"));
            let kernels: [(bool, &str, Panel); 4] = [
                (avx2, "avx2", words_avx2),
                (avx2 && vnni.0, "avx-vnni", vnni_avx2),
                (avx512, "avx512", words_avx512),
                (avx512 && vnni.1, "avx512-vnni", vnni_avx512),
            ];
            for (available, name, panel) in kernels {
                if available {
                    panels.push((name, panel));
                } else {
                    eprintln!("SKIPPED {name}: this processor does not have it");
                }
            }
            panels
        }
    }

    /// Integers of 16 and 8 bits: random, or all extreme with random signs.
    fn integers(rng: &mut ChaCha8Rng, count: usize, extreme: bool) -> (Vec<i16>, Vec<i8>) {
        let mut either = |ends: [i16; 2]| {
            if extreme { ends[rng.random_range(0..2)] } else { rng.random_range(ends[0]..=ends[1]) }
        };
        let x = (0..count).map(|_| either([-32_767, 32_767])).collect();
        let w = (0..count).map(|_| either([-128, 127]));
        (x, w.map(|w| i8::try_from(w).unwrap()).collect())
    }

    /// Compares the panels of a format with plain loops, to the bit.
    pub(in super::super) fn compare<F: Int8Format>(
        panels: &[(&'static str, Panel)],
        (x, w): (&[i16], &[i8]),
        (rows, columns, k): (usize, usize, usize),
    ) {
        let x = &x[..rows * k];
        let stored = rows.next_multiple_of(F::ROWS);
        let mut a = vec![i16::MIN; stored * padded(k)];
        let one = RowUnit { unit: 1.0, per_unit: 1.0 };
        for (block, a) in a.chunks_exact_mut(stored * BLOCK).enumerate() {
            for row in 0..stored {
                let columns = block * BLOCK..((block + 1) * BLOCK).min(k);
                let values = x.get(row * k..(row + 1) * k).map_or(&[][..], |x| &x[columns]);
                let values: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
                F::put_row(a, Place { block, rows: stored, row }, &values, one);
            }
        }
        let a = Operand::whole(&a, stored);
        for (name, panel) in panels {
            let mut out = vec![f32::NAN; rows * BLOCK];
            // SAFETY: panels are listed where the processor has their instructions.
            unsafe { panel(w, k, a, 0, &mut out) };
            for (row, out) in out.chunks_exact(BLOCK).enumerate() {
                for (n, got) in out.iter().enumerate() {
                    let product = |i: usize| i64::from(w[n * k + i]) * i64::from(x[row * k + i]);
                    let exact = if n < columns { (0..k).map(product).sum() } else { 0_i64 };
                    #[expect(clippy::cast_precision_loss, reason = "the rounding under test")]
                    let rounded = exact as f32;
                    let case = format!("{name}, k {k}, row {row}, column {n}");
                    assert_eq!(got.to_bits(), rounded.to_bits(), "{case}: {got}, not {exact}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn sums_are_exact(
            k in 1usize..400,
            rows in 1usize..=40,
            columns in 1usize..=64,
            extreme: bool,
            seed: u64,
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (x, w) = integers(&mut rng, rows.max(columns) * k, extreme);
            compare::<Words>(&panels(), (&x, &w[..columns * k]), (rows, columns, k));
        }
    }

    /// Beyond what 32 bits hold, with values that all add up, and with a tail behind the last span.
    #[test]
    fn lanes_do_not_overflow() {
        for k in [512, 513, 2048, 2049, 4096 + 63, 8192, 8192 + 63, 16_384 + 1] {
            for weight in [127, -128] {
                let (x, w) = (vec![32_767; 7 * k], vec![weight; 5 * k]);
                compare::<Words>(&panels(), (&x, &w), (7, 5, k));
                let x = vec![-32_767; 7 * k];
                compare::<Words>(&panels(), (&x, &w), (7, 5, k));
            }
        }
    }

    proptest! {
        #[test]
        fn the_largest_magnitude_fills_15_bits_and_no_value_is_off_by_more_than_half_a_unit(
            bits in prop::collection::vec(any::<u32>(), 1..20),
        ) {
            let values: Vec<f32> =
                bits.iter().map(|b| f32::from_bits(*b)).filter(|v| v.is_finite()).collect();
            let most = values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            prop_assert_eq!(largest(&values), most.to_bits());
            let unit = RowUnit::of(most.to_bits());
            let step = f64::from(unit.unit);
            prop_assert!((step * f64::from(unit.per_unit) - 1.0).abs() <= 0.0);
            for &value in &values {
                let integer = unit.integer(value);
                prop_assert!(integer > i16::MIN);
                let off = (f64::from(integer) * step - f64::from(value)).abs();
                prop_assert!(off <= 0.5 * step, "{value}: {integer} x {step}");
            }
            let filled = unit.integer(most);
            prop_assert!(filled >= 1 << 14 || unit.unit <= f32::MIN_POSITIVE, "{most}: {filled}");
        }
    }

    #[test]
    fn units_change_where_the_largest_value_would_leave_15_bits() {
        let unit = |value: f32| RowUnit::of(value.to_bits());
        let below = f32::from_bits(2.0_f32.to_bits() - 257);
        assert_eq!((unit(below).unit.log2(), unit(below).integer(below)), (-14.0, 32_767));
        let above = f32::from_bits(2.0_f32.to_bits() - 256);
        assert_eq!((unit(above).unit.log2(), unit(above).integer(above)), (-13.0, 16_384));
        assert_eq!(unit(1.0).integer(1.0), 16_384);
        // Ties to even.
        let integers = [0.5, 1.5, 2.5, -0.5, -1.5].map(|v| unit(30_000.0).integer(v));
        assert_eq!(integers, [0, 2, 2, 0, -2]);
        assert_eq!(unit(0.0).integer(0.0), 0);
        assert!(unit(f32::MAX).unit.is_finite());
        for value in [f32::INFINITY, f32::NAN, -f32::NAN] {
            assert!(RowUnit::of(largest(&[1.0, value, 2.0])).unit.is_nan());
        }
    }
}
