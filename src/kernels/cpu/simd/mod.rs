//! The micro-kernels: what is computed for one block of 64 weight rows, for each instruction set.
//!
//! [`Isa`] is chosen at run time. A `Format` pairs the number format of the weights with the format
//! and layout in which activations are kept: `Wide` (f32 activations, weights widened when loaded),
//! `Pairs` (bf16 products on AVX-512) and `Tiles` (bf16 products on AMX); an `Int8Format` does the same
//! for int8 weights, with activations as 16-bit integers: `Words` and `Int8Tiles`. Nothing outside this
//! folder is unsafe; what is unsafe in here are instructions that the processor was asked about, and
//! loads through pointers into slices whose lengths were checked.

mod activate;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(all(test, target_arch = "x86_64"))]
mod amx_emulator;
#[cfg(target_arch = "x86_64")]
mod amx_int8;
mod dot;
mod format;
mod int8;
#[cfg(target_arch = "x86_64")]
mod int8_x86;
mod keys;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod plain;
mod rate;
mod route;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::str::FromStr;
use std::sync::OnceLock;

use crate::config::DType;
use crate::kernels::Activations;
use crate::{Error, Result};

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::Tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) use amx_int8::Int8Tiles;
#[cfg(target_arch = "x86_64")]
pub(crate) use format::Pairs;
pub(crate) use format::{Activation, Format, Weight, Wide};
pub(crate) use int8::{
    Int8Format, Integers, RowUnit, ScaledRows, Words, down as down_int8, gate_up as gate_up_int8,
    largest,
};
pub(crate) use packed::{Aligned, pack_matrices, packed_len};
pub use rate::multiply_registers;
pub(crate) use route::{Router, route_rows};

/// Sources that decide what the micro-kernels do, for the hash of the kernels.
pub(crate) const SOURCES: [&str; 15] = [
    include_str!("mod.rs"),
    include_str!("activate.rs"),
    include_str!("amx.rs"),
    include_str!("amx_int8.rs"),
    include_str!("dot.rs"),
    include_str!("format.rs"),
    include_str!("int8.rs"),
    include_str!("int8_x86.rs"),
    include_str!("keys.rs"),
    include_str!("neon.rs"),
    include_str!("packed.rs"),
    include_str!("plain.rs"),
    include_str!("route.rs"),
    include_str!("softmax.rs"),
    include_str!("x86.rs"),
];

/// Activations of one expert, column-blocked: `[blocks][rows][64]`; [`Tiles`] orders the values
/// within a block its own way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a, A> {
    /// All blocks.
    pub(crate) values: &'a [A],
    /// Rows in each block, padding included.
    pub(crate) rows: usize,
    /// The rows to multiply: from the first, to before the second. All of them, for formats that do not say
    /// how many they take at once.
    pub(crate) part: (usize, usize),
}

impl<'a, A> Operand<'a, A> {
    /// All rows of an expert.
    pub(crate) const fn whole(values: &'a [A], rows: usize) -> Self {
        Self { values, rows, part: (0, rows) }
    }

    /// `count` neighbouring rows of one block.
    #[inline]
    fn block_rows(&self, block: usize, row: usize, count: usize) -> &'a [A] {
        let start = (block * self.rows + row) * super::blocks::BLOCK;
        &self.values[start..start + count * super::blocks::BLOCK]
    }
}

/// Up to 64 weight rows of one matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a, W> {
    /// `[rows, k]`, or the tiles of [`packed`].
    pub(crate) values: &'a [W],
    /// Weight rows, at least one.
    pub(crate) rows: usize,
    /// Length of a row.
    pub(crate) k: usize,
    /// Whether the values are packed.
    pub(crate) packed: bool,
}

/// An instruction set that micro-kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AMX tiles for bf16 weights, and for int8 weights where it has byte products; AVX-512 for other
    /// formats.
    Amx,
    /// AVX-512 with bf16 products for bf16 weights; AVX-512 for other formats.
    Avx512Bf16,
    /// AVX-512 F, BW, VL with FMA: 32 registers of 16 lanes. int8 weights take VNNI where it is there.
    Avx512,
    /// AVX2 with FMA and F16C: 16 registers of 8 lanes. int8 weights take AVX-VNNI where it is there.
    Avx2,
    /// What every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
    Portable,
}

impl Isa {
    /// Every instruction set, in the order in which [`Isa::detect`] prefers them.
    pub const ALL: [Self; 5] =
        [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable];

    /// The fastest one that this processor has.
    ///
    /// Of the processors with AMX, the first ones do bf16 products at half the rate of f32 (measured
    /// on Sapphire Rapids), others at twice (measured on Zen 4, which has no AMX): where the tiles
    /// exist but may not be used, the f32 kernel is taken.
    pub fn detect() -> Self {
        // Asked once: in a virtual machine every CPUID instruction costs microseconds.
        static FOUND: OnceLock<Isa> = OnceLock::new();
        let passed_over = |isa| isa == Self::Avx512Bf16 && has_amx();
        let mut all = Self::ALL.into_iter();
        *FOUND.get_or_init(|| {
            all.find(|&isa| isa.is_available() && !passed_over(isa)).unwrap_or(Self::Portable)
        })
    }

    /// Why kernels cannot use it here; `None` where they can.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            _ if self.is_available() => None,
            _ if !cfg!(target_arch = "x86_64") => Some("an instruction set of x86-64"),
            Self::Amx if has_amx() => {
                Some("the system does not let this process use the tiles that the processor has")
            }
            _ => Some("this processor does not have it"),
        }
    }

    /// Whether this processor has it and the system permits it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512.is_available() && amx::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Amx | Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }

    /// The name that tables and profiles use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Amx => "AMX",
            Self::Avx512Bf16 => "AVX512_BF16",
            Self::Avx512 => "AVX-512",
            Self::Avx2 => "AVX2+FMA",
            Self::Portable => {
                if cfg!(target_arch = "x86_64") {
                    "SSE2"
                } else if cfg!(target_arch = "aarch64") {
                    "NEON"
                } else {
                    "portable"
                }
            }
        }
    }

    /// The word by which a flag names it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// The format in which activations are multiplied with weights of a format: bf16 where the
    /// instructions take bf16 pairs, 16-bit integers with int8 weights, else single precision.
    pub const fn activations(self, weights: DType) -> Activations {
        match (self, weights) {
            (_, DType::Int8) => Activations::Int16,
            (Self::Amx | Self::Avx512Bf16, DType::Bf16) => Activations::Bf16,
            _ => Activations::F32,
        }
    }
}

impl Isa {
    /// The number of an expert's rows is filled up to a multiple of this.
    pub(crate) fn row_multiple(self, weights: DType) -> usize {
        match (self, weights) {
            (Self::Amx, DType::Bf16) => 16,
            (_, DType::Int8) if self.has_byte_tiles() => 16,
            _ => 1,
        }
    }

    /// Whether int8 weights are multiplied in tiles.
    pub(crate) fn has_byte_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Amx && amx::takes_int8();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Values to a lane of packed weights ([`packed`]); `None` where weights are multiplied as they lie.
    pub(crate) const fn packed_per_lane(self, weights: DType) -> Option<usize> {
        match (self, weights) {
            (Self::Amx, DType::Bf16) => None,
            (Self::Avx512Bf16, DType::Bf16) => Some(2),
            (_, DType::F32 | DType::F16 | DType::Bf16) => Some(1),
            _ => None,
        }
    }
}

impl FromStr for Isa {
    type Err = Error;

    /// Reads the word of a flag.
    fn from_str(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.flag() == word).ok_or_else(|| {
            let words: Vec<&str> = Self::ALL.iter().map(|isa| isa.flag()).collect();
            Error::usage("instruction set", format!("{word:?} is none of {}", words.join(", ")))
        })
    }
}

/// Whether the processor has AMX, permitted or not.
fn has_amx() -> bool {
    #[cfg(target_arch = "x86_64")]
    return amx::processor_has_it();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.flag().parse::<Isa>().unwrap(), isa);
        }
        let error = "avx1024".parse::<Isa>().unwrap_err();
        assert!(error.to_string().contains("avx512-bf16"), "{error}");
    }

    #[test]
    fn some_instruction_set_is_always_there() {
        assert!(Isa::Portable.is_available());
        assert!(Isa::detect().is_available());
        for isa in Isa::ALL {
            assert_eq!(isa.missing().is_none(), isa.is_available(), "{}", isa.label());
        }
    }
}
