//! The arithmetic of routers: operations that IEEE 754 rounds in one way, in an order that the CUDA
//! kernels repeat (`kernels/common.cuh`), so that ids and weights agree bit for bit everywhere.
//!
//! Denormals are kept, in arguments and results; results that are not a number have unspecified bits.
//! Multiplications with addition are fused by name (`f32::mul_add`) and nowhere else.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::f32::consts::{LN_2, LOG2_E};

/// Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; products of the first with integers up to 150 are exact.
const LN_2_PARTS: (f32, f32) = (0.693_145_75, 1.428_606_8e-6);

/// `e^x` to 1.1 ulp over the whole range: 0 below -104, infinity above 88.73, denormals rounded once.
///
/// Cody and Waite's reduction `x = n ln 2 + r`, then a minimax polynomial of `(e^r - 1 - r) / r^2`.
///
/// ```
/// use moe_frontier::kernels::math::exp;
/// assert_eq!(exp(0.0), 1.0);
/// assert_eq!(exp(f32::NEG_INFINITY), 0.0);
/// ```
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Both ends lie beyond the last argument with a result of its own; NaN passes both comparisons.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_PARTS.0, x);
    let r = n.mul_add(-LN_2_PARTS.1, r);
    let p = 1.382_096_9e-3f32;
    let p = p.mul_add(r, 8.369_828e-3);
    let p = p.mul_add(r, 4.166_829_6e-2);
    let p = p.mul_add(r, 1.666_651_2e-1);
    let p = p.mul_add(r, 0.499_999_94);
    let p = (p * r).mul_add(r, r) + 1.0;
    // 2^n as two factors, since n runs from -150 to 128: the first product is exact, the second
    // rounds once into the denormals.
    let integer = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let half = (integer.cast_signed() >> 1).cast_unsigned();
    let power = |n: u32| f32::from_bits(n.wrapping_add(127) << 23);
    p * power(half) * power(integer.wrapping_sub(half))
}

/// `ln(1 + x)` to 1.3 ulp: -infinity at -1, NaN below.
///
/// `1 + x = 2^e (1 + m)` with `m` in [-0.25, 0.5], where `m` is computed with one rounding (after
/// N. Juffa); then a minimax polynomial of `ln(1 + m)`.
#[inline(always)]
pub fn log1p(x: f32) -> f32 {
    if !(x > -1.0 && x < f32::INFINITY) || x == 0.0 {
        return match x {
            _ if x < -1.0 => f32::NAN,
            -1.0 => f32::NEG_INFINITY,
            _ => x,
        };
    }
    let exponent = (x + 1.0).to_bits().wrapping_sub(0x3f40_0000) & 0xff80_0000;
    // x 2^-e + (2^-e - 1); 2^-e as a quarter of 4 * 2^-e, which is never denormal.
    let scaled = f32::from_bits(x.to_bits().wrapping_sub(exponent));
    let four = f32::from_bits(0x4080_0000u32.wrapping_sub(exponent));
    let m = scaled + 0.25f32.mul_add(four, -1.0);
    let p = -4.507_639e-2f32;
    let p = p.mul_add(m, 0.104_653_16);
    let p = p.mul_add(m, -0.131_633_52);
    let p = p.mul_add(m, 0.144_787_24);
    let p = p.mul_add(m, -0.166_470_99);
    let p = p.mul_add(m, 0.199_908_1);
    let p = p.mul_add(m, -0.250_001);
    let p = p.mul_add(m, 0.333_334_5);
    let p = p.mul_add(m, -0.5);
    let p = (p * m).mul_add(m, m);
    let e = (exponent.cast_signed() >> 23).cast_unsigned();
    let n = f32::from_bits(e.wrapping_add(ROUND.to_bits())) - ROUND;
    n.mul_add(LN_2, p)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `sqrt(ln(1 + e^x))`; infinity counts as the largest finite number, so that weights can be divided by
/// their sum.
#[inline(always)]
pub fn sqrt_softplus(x: f32) -> f32 {
    let x = if x > f32::MAX { f32::MAX } else { x };
    let tail = log1p(exp(if x > 0.0 { -x } else { x }));
    (if x > 0.0 { x + tail } else { tail }).sqrt()
}

/// `e^(x - max)` for a softmax: 1 where both are the same infinity, and 0 for every `x` when nothing is
/// above -infinity, so that a row without a finite logit has the weight 0.
#[inline(always)]
#[expect(
    clippy::float_cmp,
    reason = "equality is what is meant: the difference of infinities is NaN"
)]
pub fn softmax_power(x: f32, max: f32) -> f32 {
    if max == f32::NEG_INFINITY {
        return 0.0;
    }
    let power = exp(x - max);
    if x == max { 1.0 } else { power }
}

/// `p / sum`, and 0 when the sum is 0.
#[inline(always)]
pub fn share_of(p: f32, sum: f32) -> f32 {
    if sum > 0.0 { p / sum } else { 0.0 }
}

/// Lanes of a warp, among which sums are dealt.
pub const LANES: usize = 32;

/// A sum in the order in which every device adds: value `i` (an expert id, or a slot of the chosen)
/// belongs to lane `i mod 32`; each lane adds its values in ascending order to 0; then lane `l` and
/// lane `l + d` are added for `d` = 16, 8, 4, 2, 1.
///
/// ```
/// use moe_frontier::kernels::math::LaneSum;
/// let mut sum = LaneSum::default();
/// for i in 0..100 {
///     sum.add(i, 0.5);
/// }
/// assert_eq!(sum.total(), 50.0);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneSum {
    lanes: [f32; LANES],
}

impl LaneSum {
    /// The sum of `values`, the first of which has the index `first`.
    pub fn of(values: &[f32], first: usize) -> f32 {
        let mut sum = Self::default();
        for (i, &value) in values.iter().enumerate() {
            sum.add(first + i, value);
        }
        sum.total()
    }

    /// Adds the value of index `i`; indices of a lane come in ascending order.
    pub fn add(&mut self, i: usize, value: f32) {
        self.lanes[i % LANES] += value;
    }

    /// The lanes themselves, lane 0 first.
    #[inline(always)]
    pub(crate) fn lanes_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.lanes
    }

    /// The sum of all lanes.
    #[inline(always)]
    pub fn total(mut self) -> f32 {
        for d in [16, 8, 4, 2, 1] {
            for lane in 0..d {
                self.lanes[lane] += self.lanes[lane + d];
            }
        }
        self.lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `got` from `exact` in units of the last place that `exact` has as an f32.
    fn ulps(got: f32, exact: f64) -> f64 {
        let magnitude = exact.abs().max(f64::from(f32::MIN_POSITIVE));
        let exponent = i32::try_from(magnitude.to_bits() >> 52).unwrap() - 1023;
        let unit = 2f64.powi(exponent - 23);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn the_exponential_is_good_to_1_1_ulp_down_to_the_denormals() {
        let mut x = -103.9f32;
        while x < 88.72 {
            let off = ulps(exp(x), f64::from(x).exp());
            assert!(off < 1.1, "e^{x} is off by {off} ulp");
            x += 0.000_713;
        }
        assert_eq!(exp(-0.0).to_bits(), 1f32.to_bits());
        assert_eq!(exp(-105.0).to_bits(), 0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-103.5).to_bits(), 1, "the smallest denormal");
        for x in [88.73, 1e30, f32::INFINITY] {
            assert!(exp(x).is_infinite() && exp(x) > 0.0);
        }
        assert!(exp(88.72).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn the_logarithm_is_good_to_1_3_ulp_over_all_magnitudes() {
        // Every 9973rd float: both signs, denormals, huge values, infinities, NaN.
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            let exact = f64::from(x).ln_1p();
            let got = log1p(x);
            if exact.is_nan() {
                assert!(got.is_nan(), "{x}");
            } else {
                assert!(ulps(got, exact) < 1.3, "ln(1 + {x}) = {exact}, not {got}");
            }
        }
        assert_eq!(log1p(-1.0).to_bits(), f32::NEG_INFINITY.to_bits());
        assert_eq!(log1p(f32::INFINITY).to_bits(), f32::INFINITY.to_bits());
        assert_eq!(log1p(-0.0).to_bits(), (-0f32).to_bits());
        assert_eq!(log1p(f32::from_bits(1)).to_bits(), 1);
    }

    #[test]
    fn scores_are_defined_for_infinities() {
        assert_eq!(sigmoid(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(sigmoid(f32::INFINITY).to_bits(), 1f32.to_bits());
        assert_eq!(sqrt_softplus(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(sqrt_softplus(f32::INFINITY).to_bits(), f32::MAX.sqrt().to_bits());
        assert!((sqrt_softplus(0.0) - 2f32.ln().sqrt()).abs() < 1e-7);
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        assert_eq!(softmax_power(high, high).to_bits(), 1f32.to_bits());
        assert_eq!(softmax_power(low, high).to_bits(), 0);
        assert_eq!(softmax_power(low, low).to_bits(), 0);
        assert_eq!(share_of(0.0, 0.0).to_bits(), 0);
    }

    #[test]
    fn a_sum_has_the_order_of_a_warp() {
        // 2^24 and ones: lane by lane, 1 + 1 is kept; one after another it would be lost.
        let mut values = [1.0f32; 64];
        values[0] = 16_777_216.0;
        let mut lanes = [0f32; 32];
        for (i, v) in values.iter().enumerate() {
            lanes[i % 32] += v;
        }
        // Every lane adds its neighbour at distance d, as a butterfly does; all end equal.
        for d in [16, 8, 4, 2, 1] {
            let before = lanes;
            for (l, lane) in lanes.iter_mut().enumerate() {
                *lane = before[l] + before[l ^ d];
            }
        }
        let total = LaneSum::of(&values, 0);
        assert!(lanes.iter().all(|l| l.to_bits() == total.to_bits()));
        let in_order: f32 = values.iter().sum();
        assert!((total - in_order).abs() > 1.0, "{total} {in_order}");
        // Starting elsewhere is another order.
        assert_eq!(LaneSum::of(&values[..1], 7).to_bits(), 16_777_216f32.to_bits());
    }
}
