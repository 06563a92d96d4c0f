//! The rate at which an instruction set multiplies and adds when nothing has to be loaded: the ceiling
//! of every product.

#![expect(
    clippy::inline_always,
    reason = "code takes on the instruction set of its caller only when it is inlined into it"
)]

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use half::bf16;

use super::Isa;
use super::dot::Lanes;
use crate::config::DType;

/// Sums that do not wait for each other: enough for two units with a latency of five, and few enough
/// for 16 registers.
const SUMS: usize = 12;

/// Multiplies and adds registers `rounds` times, as products of weights of a format do, and returns how
/// many FLOPs that were. `None` for formats that are multiplied in tiles or as integers.
pub fn multiply_registers(isa: Isa, weights: DType, rounds: u32) -> Option<f64> {
    let per_round = match (isa, weights) {
        (Isa::Amx, DType::Bf16) | (_, DType::Int8) => return None,
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, DType::Bf16) if isa.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { pairs_avx512(rounds) }
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, _) if Isa::Avx512.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { wide_avx512(rounds) }
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) if isa.is_available() => {
            // SAFETY: the processor has the features that the callee is compiled for.
            unsafe { wide_avx2(rounds) }
        }
        // SAFETY: every processor of the architecture has these instructions.
        _ => unsafe { multiply::<Portable>(&[0.5; 16], &[1.0; 16], rounds) },
    };
    Some(per_round as f64 * f64::from(rounds))
}

#[cfg(target_arch = "x86_64")]
type Portable = super::x86::Sse2<f32>;
#[cfg(target_arch = "aarch64")]
type Portable = super::neon::Neon<f32>;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Portable = super::plain::Plain<f32>;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,fma")]
fn pairs_avx512(rounds: u32) -> usize {
    let half = bf16::from_f32_const(0.5);
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<super::x86::Avx512Bf16>(&[half; 32], &[bf16::ONE; 32], rounds) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
fn wide_avx512(rounds: u32) -> usize {
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<super::x86::Avx512<f32>>(&[0.5; 16], &[1.0; 16], rounds) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_avx2(rounds: u32) -> usize {
    // SAFETY: this function is only reached where its features are there.
    unsafe { multiply::<super::x86::Avx2<f32>>(&[0.5; 16], &[1.0; 16], rounds) }
}

/// FLOPs of one round.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn multiply<L: Lanes<Sums: Copy>>(
    weights: &[L::Weight],
    activations: &[L::Activation],
    rounds: u32,
) -> usize {
    assert!(weights.len() >= L::STEP && activations.len() >= L::STEP, "a register each");
    // SAFETY: both slices hold a register (asserted); the caller vouches for the instructions.
    unsafe {
        let (w, x) = (L::weights(weights.as_ptr()), L::activations(activations.as_ptr()));
        let mut sums = [L::zero(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = L::multiply_add(w, x, *sum);
            }
        }
        black_box(L::totals(sums));
    }
    2 * L::STEP * SUMS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_multiplies_whole_registers() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let Some(flops) = multiply_registers(isa, dtype, 10) else {
                    assert_eq!((isa, dtype), (Isa::Amx, DType::Bf16));
                    continue;
                };
                // 4 to 32 values, 12 registers, 10 rounds, a product and a sum each.
                assert!((960.0..=7680.0).contains(&flops), "{} {dtype:?}: {flops}", isa.label());
            }
            assert_eq!(multiply_registers(isa, DType::Int8, 1), None);
        }
    }
}
