//! Weights packed once, when a layer is loaded: a second copy in the order in which they are multiplied.
//!
//! Packing while weights are used costs part of every call with more than a few rows an expert, and
//! dot products with fewer do more work than products of packed weights. A copy saves both, for as
//! much memory again as the weights have.

use half::{bf16, f16};

use crate::config::DType;
use crate::kernels::cpu::simd::{Aligned, Isa, Weight, pack_matrices, packed_len};
use crate::kernels::{LayerWeights, WeightData};
use crate::{Error, Result};

/// Packed weights of one product.
#[derive(Debug)]
pub(crate) enum Packed {
    /// Single precision.
    F32(Aligned<f32>),
    /// bfloat16.
    Bf16(Aligned<bf16>),
    /// Half precision.
    F16(Aligned<f16>),
}

/// A format in which weights can be packed.
pub(crate) trait Packable: Weight {
    /// Its name.
    const DTYPE: DType;

    /// The weights, if they are of this format.
    fn of(packed: &Packed) -> Option<&[Self]>;
}

impl Packable for f32 {
    const DTYPE: DType = DType::F32;

    fn of(packed: &Packed) -> Option<&[Self]> {
        if let Packed::F32(values) = packed { Some(values.as_slice()) } else { None }
    }
}

impl Packable for bf16 {
    const DTYPE: DType = DType::Bf16;

    fn of(packed: &Packed) -> Option<&[Self]> {
        if let Packed::Bf16(values) = packed { Some(values.as_slice()) } else { None }
    }
}

impl Packable for f16 {
    const DTYPE: DType = DType::F16;

    fn of(packed: &Packed) -> Option<&[Self]> {
        if let Packed::F16(values) = packed { Some(values.as_slice()) } else { None }
    }
}

/// Packed weights of a layer.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    /// First product.
    pub(crate) w13: Packed,
    /// Second product.
    pub(crate) w2: Packed,
    /// Memory of both.
    pub(crate) bytes: usize,
}

impl PackedWeights {
    /// Packs a layer's weights; `None` where an instruction set multiplies them as they lie.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no memory for the copy.
    pub(crate) fn new(weights: &LayerWeights, isa: Isa) -> Result<Option<Self>> {
        let Some(per_lane) = isa.packed_per_lane(weights.dtype()) else {
            return Ok(None);
        };
        let shape = &weights.shape;
        let (hidden, inter) = (shape.hidden, shape.inter);
        let w13 = pack(&weights.w13, shape.experts * shape.halves(), (inter, hidden), per_lane)?;
        let w2 = pack(&weights.w2, shape.experts, (hidden, inter), per_lane)?;
        Ok(w13.zip(w2).map(|((w13, a), (w2, b))| Self { w13, w2, bytes: a + b }))
    }
}

/// Packs `count` matrices of `size` rows and columns; also returns the bytes.
fn pack(
    data: &WeightData,
    count: usize,
    size: (usize, usize),
    per_lane: usize,
) -> Result<Option<(Packed, usize)>> {
    fn of<W: Weight>(
        values: &[W],
        len: usize,
        size: (usize, usize),
        per_lane: usize,
    ) -> Result<(Aligned<W>, usize)> {
        let bytes = len * size_of::<W>();
        let mut packed = Aligned::zeros(len)
            .ok_or_else(|| Error::device("cpu", format!("no {bytes} bytes for packed weights")))?;
        pack_matrices(values, size, per_lane, packed.as_mut_slice());
        Ok((packed, bytes))
    }
    let len = count * packed_len(size.0, size.1, per_lane);
    Ok(match data {
        WeightData::F32(v) => Some(of(v, len, size, per_lane)?).map(|(p, b)| (Packed::F32(p), b)),
        WeightData::Bf16(v) => Some(of(v, len, size, per_lane)?).map(|(p, b)| (Packed::Bf16(p), b)),
        WeightData::F16(v) => Some(of(v, len, size, per_lane)?).map(|(p, b)| (Packed::F16(p), b)),
        WeightData::Int8(_) => None,
    })
}
