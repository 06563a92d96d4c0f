//! What a caller may choose about a layer besides its shape.

use crate::kernels::MoeShape;
use crate::{Error, Result};

/// Format of the weights on the device. Activations are bf16 with all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// bfloat16.
    Bf16,
    /// 8-bit floats (e4m3) with one f32 scale for each block of 128 x 128.
    E4m3,
}

impl WeightFormat {
    /// Size of one weight in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::E4m3 => 1,
        }
    }

    /// What the hidden and the inner size are multiples of: rows of weights start at 16 bytes.
    const fn row_multiple(self) -> usize {
        match self {
            Self::Bf16 => 8,
            Self::E4m3 => 16,
        }
    }
}

/// Format of the logits that a router reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogitFormat {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl LogitFormat {
    /// Size of one logit in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What a router starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouterInput {
    /// Logits in this format.
    Logits(LogitFormat),
    /// The layer's input and the router's weights: the router computes few tokens' logits itself.
    Gate,
}

impl From<LogitFormat> for RouterInput {
    fn from(format: LogitFormat) -> Self {
        Self::Logits(format)
    }
}

/// How the rows of a token become its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combine {
    /// Rows are stored, then summed in slot order: equal inputs give equal bits. Output in bf16.
    Bf16,
    /// The same with the output in single precision.
    F32,
    /// The second product adds weighted rows to a single-precision output in no fixed order: one pass
    /// less, but not reproducible.
    Fast,
}

impl Combine {
    /// Size of one output value in bytes.
    pub const fn output_bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::Fast => 4,
        }
    }
}

/// Settings of a layer on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeOptions {
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Whether gate rows precede up rows in `w13`; some checkpoints swap them.
    pub gate_first: bool,
    /// How the output is summed.
    pub combine: Combine,
    /// Name of the kernel of the first product, instead of the planned one.
    pub up: Option<String>,
    /// Name of the kernel of the second product, instead of the planned one.
    pub down: Option<String>,
    /// Most bytes of workspace; more tokens than fit are processed in chunks.
    pub workspace_limit: Option<u64>,
    /// Whether kernels may start while the one before them ends, where the device can.
    pub overlap: bool,
}

impl Default for MoeOptions {
    fn default() -> Self {
        Self {
            weights: WeightFormat::Bf16,
            gate_first: true,
            combine: Combine::Bf16,
            up: None,
            down: None,
            workspace_limit: None,
            overlap: true,
        }
    }
}

/// Most choices per token that the kernels take, as the host counts.
const MAX_TOP_K: usize = crate::gpu::params::MAX_TOP_K as usize;

/// Checks that the kernels take a shape.
///
/// # Errors
/// [`Error::Usage`] naming the multiple or the limit.
pub(crate) fn validate(shape: &MoeShape, weights: WeightFormat) -> Result<()> {
    shape.validate()?;
    let invalid = |name: &str, reason: String| Err(Error::usage(name, reason));
    if shape.top_k > MAX_TOP_K {
        return invalid("top_k", format!("{} is above the kernels' {MAX_TOP_K}", shape.top_k));
    }
    for (name, size) in [("hidden", shape.hidden), ("inter", shape.inter)] {
        let multiple = weights.row_multiple();
        if !size.is_multiple_of(multiple) {
            return invalid(
                name,
                format!("{size} is no multiple of {multiple} (rows start at 16 bytes)"),
            );
        }
        if u32::try_from(size).is_err() {
            return invalid(name, format!("{size} does not fit 32 bits"));
        }
    }
    if !shape.gated {
        return invalid("gated", "the CUDA kernels compute gated experts (SwiGLU) alone".into());
    }
    Ok(())
}

/// Most pairs of one pass.
pub(crate) const MAX_PAIRS: u64 = 1 << 30;

/// Pairs of `tokens` tokens; kernels number them in 31 bits, with room for padding.
///
/// # Errors
/// [`Error::Usage`] for more than kernels can number.
pub(crate) fn pairs(shape: &MoeShape, tokens: u32) -> Result<u32> {
    let pairs = u64::from(tokens) * shape.top_k as u64;
    match u32::try_from(pairs) {
        Ok(small) if pairs <= MAX_PAIRS => Ok(small),
        _ => Err(Error::usage(
            "tokens",
            format!("{tokens} tokens make {pairs} pairs; the kernels number {MAX_PAIRS}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MoeShape =
        MoeShape { experts: 64, top_k: 6, hidden: 2048, inter: 1408, gated: true };

    #[test]
    fn odd_multiples_of_8_pass_and_everything_else_names_its_limit() {
        validate(&MoeShape { inter: 704, hidden: 72, ..SHAPE }, WeightFormat::Bf16).unwrap();
        let odd = validate(&MoeShape { hidden: 72, ..SHAPE }, WeightFormat::E4m3).unwrap_err();
        assert!(odd.to_string().contains("multiple of 16"), "{odd}");
        for (shape, part) in [
            (MoeShape { hidden: 2044, ..SHAPE }, "multiple of 8"),
            (MoeShape { inter: 511, ..SHAPE }, "multiple of 8"),
            (MoeShape { experts: 1032, ..SHAPE }, "1024"),
            (MoeShape { top_k: 33, ..SHAPE }, "32"),
            (MoeShape { top_k: 0, ..SHAPE }, "top_k"),
            (MoeShape { gated: false, ..SHAPE }, "SwiGLU"),
            (MoeShape { experts: 1, top_k: 1, hidden: 1 << 33, ..SHAPE }, "32 bits"),
        ] {
            let error = validate(&shape, WeightFormat::Bf16).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn pairs_are_counted_in_64_bits() {
        assert_eq!(pairs(&SHAPE, 40_000).unwrap(), 240_000);
        assert_eq!(pairs(&SHAPE, u32::MAX).unwrap_err().exit_code(), 2);
        assert_eq!(pairs(&SHAPE, 1 << 28).unwrap_err().exit_code(), 2);
    }
}
