//! The shape and the weights of one MoE layer as they lie in a checkpoint.

use std::ops::Range;

use half::{bf16, f16};

use crate::config::DType;
use crate::kernels::{Fp8Weights, Int8Weights, Values};
use crate::{Error, Result};

/// Most experts of one layer; routers keep one score per expert at hand.
pub const MAX_EXPERTS: usize = 1024;

/// Sizes of one MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeShape {
    /// Experts; 1 to [`MAX_EXPERTS`].
    pub experts: usize,
    /// Experts per token; 1 to `experts`.
    pub top_k: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Whether experts are gated (SwiGLU: `silu(gate) * up`) or plain (`silu(up)`).
    pub gated: bool,
}

impl MoeShape {
    /// Checks the sizes and that all buffers can be indexed.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the size that is out of range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=MAX_EXPERTS).contains(&self.experts) {
            return Err(Error::usage(
                "experts",
                format!("{} does not lie between 1 and {MAX_EXPERTS}", self.experts),
            ));
        }
        if !(1..=self.experts).contains(&self.top_k) {
            return Err(Error::usage(
                "top_k",
                format!("{} does not lie between 1 and the {} experts", self.top_k, self.experts),
            ));
        }
        if self.hidden == 0 || self.inter == 0 {
            return Err(Error::usage("hidden and inter", "must be at least 1"));
        }
        self.w13_len()
            .and_then(|_| self.w2_len())
            .map(|_| ())
            .ok_or_else(|| Error::usage("hidden and inter", "weights exceed the address space"))
    }

    /// Row blocks of the first product: gate and up when gated, up alone otherwise.
    pub const fn halves(&self) -> usize {
        if self.gated { 2 } else { 1 }
    }

    /// Elements of `w13`, `[experts, halves, inter, hidden]`; `None` on overflow.
    pub fn w13_len(&self) -> Option<usize> {
        self.experts.checked_mul(self.halves())?.checked_mul(self.inter)?.checked_mul(self.hidden)
    }

    /// Elements of `w2`, `[experts, hidden, inter]`; `None` on overflow.
    pub fn w2_len(&self) -> Option<usize> {
        self.experts.checked_mul(self.inter)?.checked_mul(self.hidden)
    }
}

/// Weight values in their storage format.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightData {
    /// Single precision.
    F32(Values<f32>),
    /// bfloat16; products accumulate in f32.
    Bf16(Values<bf16>),
    /// IEEE half precision, widened to f32 when used; products accumulate in f32.
    F16(Values<f16>),
    /// 8 bits with a scale for each row; sums are exact.
    Int8(Int8Weights),
    /// 8-bit floats with a scale for each block of 128 x 128, widened exactly when used.
    Fp8(Fp8Weights),
}

impl WeightData {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Int8(rows) => rows.values().len(),
            Self::Fp8(blocks) => blocks.codes().len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage format.
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
            Self::F16(_) => DType::F16,
            Self::Int8(_) => DType::Int8,
            Self::Fp8(_) => DType::Fp8,
        }
    }

    /// One value, exactly.
    pub fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(v) => f64::from(v[index]),
            Self::Bf16(v) => v[index].to_f64(),
            Self::F16(v) => v[index].to_f64(),
            Self::Int8(rows) => rows.get(index),
            Self::Fp8(blocks) => blocks.get(index),
        }
    }

    /// Bytes of all values, and of their scales.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(v) => size_of_val(&**v),
            Self::Bf16(v) => size_of_val(&**v),
            Self::F16(v) => size_of_val(&**v),
            Self::Int8(rows) => size_of_val(rows.values()) + size_of_val(rows.scales()),
            Self::Fp8(blocks) => size_of_val(blocks.codes()) + size_of_val(blocks.scales()),
        }
    }
}

impl WeightData {
    /// Some of the values, which are not copied; whole rows of int8 weights and whole matrices of fp8
    /// weights. `None` where they are not.
    fn part(&self, range: Range<usize>) -> Option<Self> {
        Some(match self {
            Self::F32(v) => Self::F32(v.part(range)?),
            Self::Bf16(v) => Self::Bf16(v.part(range)?),
            Self::F16(v) => Self::F16(v.part(range)?),
            Self::Int8(rows) => Self::Int8(rows.part(range)?),
            Self::Fp8(matrices) => Self::Fp8(matrices.part(range)?),
        })
    }
}

/// The weights of one MoE layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// Sizes.
    pub shape: MoeShape,
    /// First product, `[experts, halves, inter, hidden]`, rows contiguous; gate rows before up rows.
    pub w13: WeightData,
    /// Second product, `[experts, hidden, inter]`, rows contiguous.
    pub w2: WeightData,
}

impl LayerWeights {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`Error::Usage`] when a length does not fit the shape, the two formats differ, or rows of int8
    /// weights or matrices of fp8 weights are not those of the shape.
    pub fn new(shape: MoeShape, w13: WeightData, w2: WeightData) -> Result<Self> {
        shape.validate()?;
        if Some(w13.len()) != shape.w13_len() || Some(w2.len()) != shape.w2_len() {
            return Err(Error::usage(
                "weights",
                format!(
                    "w13 has {} and w2 {} values, which does not fit {shape:?}",
                    w13.len(),
                    w2.len()
                ),
            ));
        }
        if w13.dtype() != w2.dtype() {
            return Err(Error::usage("weights", "w13 and w2 differ in their format"));
        }
        for (name, data, k) in [("w13", &w13, shape.hidden), ("w2", &w2, shape.inter)] {
            if let WeightData::Int8(rows) = data
                && rows.k() != k
            {
                let reason = format!("{name} has a scale for every {} values, not {k}", rows.k());
                return Err(Error::usage("weights", reason));
            }
        }
        let sizes = [(shape.inter, shape.hidden), (shape.hidden, shape.inter)];
        for ((name, data), (rows, k)) in [("w13", &w13), ("w2", &w2)].into_iter().zip(sizes) {
            if let WeightData::Fp8(blocks) = data
                && (blocks.rows(), blocks.k()) != (rows, k)
            {
                let (has, row) = (blocks.rows(), blocks.k());
                let reason = format!("{name} has matrices of {has} x {row}, not {rows} x {k}");
                return Err(Error::usage("weights", reason));
            }
        }
        Ok(Self { shape, w13, w2 })
    }

    /// The layer of some of the experts, each of whose rows is a token that visits one expert: what a rank of an
    /// expert-parallel group holds. `None` for no experts.
    ///
    /// # Errors
    /// As [`Self::part`].
    pub fn experts(&self, experts: std::ops::Range<usize>) -> Result<Option<Self>> {
        if experts.is_empty() {
            return Ok(None);
        }
        self.part(experts, 1).map(Some)
    }

    /// Storage format.
    pub const fn dtype(&self) -> DType {
        self.w13.dtype()
    }

    /// Bytes of all weights, scales included.
    pub fn bytes(&self) -> usize {
        self.w13.bytes() + self.w2.bytes()
    }

    /// A layer of some of these experts, whose weights are not copied.
    ///
    /// # Errors
    /// [`Error::Usage`] for experts that this layer does not have, or fewer than `top_k`.
    pub fn part(&self, experts: Range<usize>, top_k: usize) -> Result<Self> {
        let shape = MoeShape { experts: experts.len(), top_k, ..self.shape };
        let part = |data: &WeightData| {
            let each = data.len() / self.shape.experts;
            data.part(experts.start * each..experts.end * each)
        };
        let (Some(w13), Some(w2)) = (part(&self.w13), part(&self.w2)) else {
            let reason = format!("there are no experts {experts:?} of {}", self.shape.experts);
            return Err(Error::usage("experts", reason));
        };
        Self::new(shape, w13, w2)
    }

    /// The same layer in 8 bits, with a scale for each output channel; see [`Int8Weights::quantize`].
    ///
    /// # Errors
    /// [`Error::Usage`] for a weight that is not finite.
    pub fn quantized(&self) -> Result<Self> {
        let shape = self.shape;
        Self::new(shape, self.w13.quantized(shape.hidden)?, self.w2.quantized(shape.inter)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_weights_are_matrices_of_the_shape() {
        let shape = MoeShape { experts: 2, top_k: 1, hidden: 130, inter: 3, gated: true };
        let blocks = |matrices: usize, rows, k| {
            let values: Vec<f32> =
                (0..matrices * rows * k).map(|i| [1.0, -2.0, 3.5][i % 3]).collect();
            WeightData::Fp8(Fp8Weights::quantize(&values, rows, k).unwrap())
        };
        let layer = LayerWeights::new(shape, blocks(4, 3, 130), blocks(2, 130, 3)).unwrap();
        assert_eq!((layer.dtype(), layer.w2.len()), (DType::Fp8, 2 * 130 * 3));
        // A byte each, and a scale for each of 4 x 1 x 2 and 2 x 2 x 1 blocks.
        assert_eq!(layer.bytes(), 4 * 3 * 130 + 2 * 130 * 3 + 4 * (8 + 4));
        let turned = LayerWeights::new(shape, blocks(4, 130, 3), blocks(2, 130, 3)).unwrap_err();
        assert!(
            turned.to_string().contains("w13 has matrices of 130 x 3, not 3 x 130"),
            "{turned}"
        );
    }
}
