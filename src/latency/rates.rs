//! Published rates of a device by the number format that a kernel works in, and the least time of
//! each operation at them.

use crate::config::{DType, DeviceSpec};
use crate::{Error, Result};

/// Rates of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Memory bandwidth in bytes per second.
    pub read: f64,
    /// Link bandwidth inside a scale-up domain, per direction, in bytes per second.
    pub link: f64,
    /// Bandwidth per device in bytes per second and fixed time in seconds of a message beyond the
    /// scale-up domain, where stated.
    pub scale_out: Option<(f64, f64)>,
    bits16: f64,
    bits8: f64,
    int8: f64,
    fp4: f64,
}

/// How a kernel stores weights and what it multiplies them in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Bits of a stored weight, scales included.
    pub bits: f64,
    /// Arithmetic.
    pub arithmetic: Arithmetic,
}

/// Number format of the tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// f16 or bf16.
    Bits16,
    /// e4m3.
    Fp8,
    /// Signed bytes.
    Int8,
    /// e2m1.
    Fp4,
}

impl Arithmetic {
    /// What weights stored in `dtype` are multiplied in: 4-bit and 8-bit weights at the widest rate
    /// that tensor cores have for them, others in 16 bits.
    pub const fn of_weights(dtype: DType) -> Self {
        match dtype {
            DType::Fp8 => Self::Fp8,
            DType::Int8 => Self::Int8,
            DType::Nvfp4 => Self::Fp4,
            _ => Self::Bits16,
        }
    }
}

impl Precision {
    /// Of a number format as aiconfigurator names it; `None` for one that is not known.
    pub fn of(format: &str) -> Option<Self> {
        let (dtype, arithmetic) = match format {
            "bfloat16" | "float16" | "half" => (DType::Bf16, Arithmetic::Bits16),
            "fp8" | "fp8_block" => (DType::Fp8, Arithmetic::Fp8),
            "sq" => (DType::Int8, Arithmetic::Int8),
            "int8_wo" => (DType::Int8, Arithmetic::Bits16),
            "int4_wo" => (DType::Int4, Arithmetic::Bits16),
            "w4a16_mxfp4" => (DType::Mxfp4, Arithmetic::Bits16),
            "w4a8_mxfp4_mxfp8" => (DType::Mxfp4, Arithmetic::Fp8),
            "nvfp4" => (DType::Nvfp4, Arithmetic::Fp4),
            _ => return None,
        };
        Some(Self { bits: dtype.bits(), arithmetic })
    }
}

impl Rates {
    /// The published rates of a device. A format without tensor cores of its own runs in the next
    /// wider one.
    ///
    /// # Errors
    /// [`Error::Unfit`] when no 16-bit peak is known.
    pub fn of(device: &DeviceSpec) -> Result<Self> {
        let bits16 = device.peak(DType::Bf16).or_else(|| device.peak(DType::F16));
        let bits16 =
            bits16.ok_or_else(|| Error::unfit(&device.name, "no published 16-bit peak"))?;
        let bits8 = device.peak(DType::Fp8).unwrap_or(bits16);
        Ok(Self {
            read: device.read_bytes_per_s,
            link: device.link_bytes_per_s,
            scale_out: device.scale_out.as_ref().map(|s| (s.bytes_per_s, s.latency_s)),
            bits16,
            bits8,
            int8: device.peak(DType::Int8).unwrap_or(bits8),
            fp4: device.peak(DType::Nvfp4).unwrap_or(bits8),
        })
    }

    /// Peak rate in FLOP/s.
    pub fn peak(&self, arithmetic: Arithmetic) -> f64 {
        match arithmetic {
            Arithmetic::Bits16 => self.bits16,
            Arithmetic::Fp8 => self.bits8,
            Arithmetic::Int8 => self.int8,
            Arithmetic::Fp4 => self.fp4,
        }
    }

    /// Least time of some work.
    pub fn floor(&self, work: Work, arithmetic: Arithmetic) -> f64 {
        (work.bytes / self.read).max(work.flops / self.peak(arithmetic))
    }

    /// Share of the work that is arithmetic: 0 to 1.
    pub fn arithmetic_share(&self, work: Work, arithmetic: Arithmetic) -> f64 {
        let (read, compute) = (work.bytes / self.read, work.flops / self.peak(arithmetic));
        if compute > 0.0 { compute / (compute + read) } else { 0.0 }
    }
}

/// Bytes that must be moved and arithmetic that must be done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes of memory traffic.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
}

/// A time measured on one device carried to another: only the part at the roofline moves; launches,
/// synchronisation and latencies stay. A time below the roofline of its own device (weights that
/// stayed in the cache between repetitions) moves by the ratio of the two.
pub fn carried(seconds: f64, work: Work, arithmetic: Arithmetic, from: &Rates, to: &Rates) -> f64 {
    let (before, after) = (from.floor(work, arithmetic), to.floor(work, arithmetic));
    if seconds > before { seconds - before + after } else { seconds * after / before }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::latency) fn rates(name: &str) -> Rates {
        Rates::of(&DeviceSpec::load(name).unwrap()).unwrap()
    }

    #[test]
    fn only_the_part_at_the_roofline_moves_to_another_device() {
        let (h100, h200) = (rates("h100"), rates("h200"));
        let work = Work { bytes: 3.35e9, flops: 1e6 };
        let moved = carried(1.2e-3, work, Arithmetic::Bits16, &h100, &h200);
        assert!((moved - (0.2e-3 + 3.35e9 / 4.8e12)).abs() < 1e-9, "{moved}");
        // Launches alone: nothing moves.
        let none = Work { bytes: 0.0, flops: 0.0 };
        assert_eq!(
            carried(5e-6, none, Arithmetic::Bits16, &h100, &h200).to_bits(),
            5e-6f64.to_bits()
        );
    }

    #[test]
    fn a_format_without_tensor_cores_runs_in_the_next_wider_one() {
        let (a100, b200) = (rates("a100"), rates("b200"));
        assert_eq!(a100.peak(Arithmetic::Fp8).to_bits(), a100.peak(Arithmetic::Bits16).to_bits());
        assert!(b200.peak(Arithmetic::Fp4) > b200.peak(Arithmetic::Fp8));
        assert_eq!(Precision::of("w4a16_mxfp4").unwrap().arithmetic, Arithmetic::Bits16);
        assert!(Precision::of("int3").is_none());
    }
}
