//! `SiLU` and SwiGLU over whole blocks, in code that compilers turn into vectors.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use super::Isa;
use super::format::Activation;

/// `out = silu(gate)`, times `up` when there is one; all of equal length.
pub(super) fn activate<A: Activation>(isa: Isa, gate: &[f32], up: Option<&[f32]>, out: &mut [A]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if Isa::Avx512.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { activate_avx512(gate, up, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if isa.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { activate_avx2(gate, up, out) }
        }
        _ => plain(gate, up, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn activate_avx512<A: Activation>(gate: &[f32], up: Option<&[f32]>, out: &mut [A]) {
    plain(gate, up, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn activate_avx2<A: Activation>(gate: &[f32], up: Option<&[f32]>, out: &mut [A]) {
    plain(gate, up, out);
}

#[inline(always)]
fn plain<A: Activation>(gate: &[f32], up: Option<&[f32]>, out: &mut [A]) {
    if let Some(up) = up {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = A::narrow(silu(gate) * up);
        }
    } else {
        for (out, &gate) in out.iter_mut().zip(gate) {
            *out = A::narrow(silu(gate));
        }
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `e^x` to 2 ulp for `x` in [-87, 88.8]; beyond, `e^-87` and infinity. A NaN gives `e^-87`.
///
/// Cody and Waite's reduction `x = n ln 2 + r` and the polynomial of Cephes `expf` (S. L. Moshier,
/// netlib), without branches or table, so that it runs in vector lanes.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding and subtracting 1.5 x 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has so few bits that its multiples are exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = x.clamp(-87.0, 89.0);
    let x = if x.is_nan() { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2.0 - n * LN2.1;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    // The integer sits in the low bits of `shifted`; 2^n in two factors, since n reaches 128. Wrapping, as
    // n is small: a check for overflow would be a branch in each lane, and the loop no vector one.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let power = |n: i32| f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23);
    let half = n >> 1;
    p * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn the_exponential_is_good_to_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.7 {
            let (got, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / exact - 1.0).abs() < 2.0 * f64::from(f32::EPSILON), "e^{x}: {got}");
            x += 0.001_37;
        }
        assert!(exp(89.0).is_infinite());
        assert!(exp(-1e30) > 0.0 && exp(-1e30) < 1e-37);
    }

    #[test]
    fn silu_is_exact_far_from_zero_and_keeps_what_is_not_a_number() {
        for v in [18.0f32, 32.0, 1e30, f32::INFINITY] {
            assert_eq!(silu(v).to_bits(), v.to_bits());
        }
        assert_eq!(silu(0.0).to_bits(), 0f32.to_bits());
        assert!(silu(f32::NAN).is_nan());
        assert!(silu(-200.0).abs() < 1e-30);
    }

    #[test]
    fn every_instruction_set_activates_alike() {
        let gate: Vec<f32> = (-300i16..300).map(|i| f32::from(i) * 0.21).collect();
        let up: Vec<f32> = (-300i16..300).map(|i| f32::from(i % 17) * 0.3).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for up in [Some(up.as_slice()), None] {
                let mut wide = vec![f32::NAN; gate.len()];
                let mut narrow = vec![bf16::NAN; gate.len()];
                activate(isa, &gate, up, &mut wide);
                activate(isa, &gate, up, &mut narrow);
                for (i, &got) in wide.iter().enumerate() {
                    let g = f64::from(gate[i]);
                    let exact = g / (1.0 + (-g).exp()) * up.map_or(1.0, |up| f64::from(up[i]));
                    let off = (f64::from(got) - exact).abs();
                    assert!(off <= 4.0 * f64::from(f32::EPSILON) * exact.abs() + 1e-36, "{g}");
                    assert_eq!(narrow[i].to_bits(), bf16::from_f32(got).to_bits(), "{got}");
                }
            }
        }
    }
}
