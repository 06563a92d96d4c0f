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
        WeightData::Int8(_) | WeightData::Fp8(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::{CpuBackend, Weights};
    use crate::kernels::{MoeBackend, MoeShape, RouterSpec, Stage, reference};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    fn normal(rng: &mut ChaCha8Rng, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect()
    }

    fn stored(values: &[f32], dtype: DType) -> WeightData {
        match dtype {
            DType::F16 => WeightData::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            DType::Bf16 => WeightData::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
            _ => WeightData::F32(values.iter().copied().collect()),
        }
    }

    /// Shapes with odd sizes, with more columns than are multiplied at a time, and with experts of a
    /// few rows, of a dozen or so, and of more than are multiplied at a time.
    const CASES: [(MoeShape, usize); 5] = [
        (MoeShape { experts: 3, top_k: 2, hidden: 70, inter: 45, gated: true }, 7),
        (MoeShape { experts: 2, top_k: 1, hidden: 33, inter: 66, gated: false }, 27),
        (MoeShape { experts: 2, top_k: 1, hidden: 1091, inter: 17, gated: true }, 29),
        (MoeShape { experts: 2, top_k: 2, hidden: 18, inter: 2057, gated: true }, 14),
        (MoeShape { experts: 2, top_k: 1, hidden: 40, inter: 64, gated: true }, 531),
    ];

    #[test]
    fn packed_weights_give_the_layer_within_the_error_bound() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let backend = CpuBackend::with_isa(isa).unwrap();
            for (case, dtype) in
                CASES.iter().flat_map(|c| [DType::F32, DType::Bf16, DType::F16].map(|d| (c, d)))
            {
                let (shape, tokens) = *case;
                let mut rng = ChaCha8Rng::seed_from_u64(tokens as u64);
                let w13 = stored(&normal(&mut rng, shape.w13_len().unwrap(), 0.1), dtype);
                let w2 = stored(&normal(&mut rng, shape.w2_len().unwrap(), 0.1), dtype);
                let weights = LayerWeights::new(shape, w13, w2).unwrap();
                let Some(packed) = PackedWeights::new(&weights, isa).unwrap() else {
                    assert_eq!((isa, dtype), (Isa::Amx, DType::Bf16));
                    continue;
                };
                let x = normal(&mut rng, tokens * shape.hidden, 1.0);
                let logits = normal(&mut rng, tokens * shape.experts, 1.0);
                let spec = RouterSpec::softmax();
                let routed = reference::route(&logits, shape.experts, shape.top_k, &spec).unwrap();
                let run = |packed| {
                    let weights = Weights { rows: &weights, packed };
                    backend.forward_with(weights, &x, &routed).unwrap()
                };
                let exact = reference::layer_in(&weights, &x, &routed, isa.activations(dtype));
                for (way, out) in [("packed", run(Some(&packed))), ("in rows", run(None))] {
                    for (i, (&got, exact)) in out.iter().zip(&exact).enumerate() {
                        let off = (f64::from(got) - exact.value).abs();
                        let name = isa.label();
                        assert!(
                            off <= exact.bound,
                            "{name} {dtype:?} {shape:?} {way}: element {i} is {got}, not {exact:?}"
                        );
                    }
                }
                assert_eq!(run(Some(&packed)), run(Some(&packed)));
            }
        }
    }

    #[test]
    fn a_loaded_layer_says_what_its_copy_takes_and_runs_with_it() {
        let (shape, tokens) = CASES[0];
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let w13 = stored(&normal(&mut rng, shape.w13_len().unwrap(), 0.1), DType::F32);
        let w2 = stored(&normal(&mut rng, shape.w2_len().unwrap(), 0.1), DType::F32);
        let sets = [LayerWeights::new(shape, w13, w2).unwrap()];
        let x = normal(&mut rng, tokens * shape.hidden, 1.0);
        let logits = normal(&mut rng, tokens * shape.experts, 1.0);
        let backend = CpuBackend::with_isa(Isa::Portable).unwrap();
        let packing = backend.clone().with_packed_weights();
        assert_ne!(backend.kernel_sha256(), packing.kernel_sha256());
        let run = |backend: &CpuBackend| {
            let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens).unwrap();
            layer.set_input(&x, &logits).unwrap();
            layer.run(Stage::Layer, 0).unwrap();
            (layer.plan(), layer.output().unwrap(), layer.routed().unwrap())
        };
        let (none, _, _) = run(&backend);
        let (plan, out, routed) = run(&packing);
        assert_eq!(none, None);
        let copies = |dtype| (backend.weight_copies(dtype), packing.weight_copies(dtype));
        assert_eq!((copies(DType::F32), copies(DType::Int8)), ((1, 2), (1, 1)));
        let int8 = [sets[0].quantized().unwrap()];
        let layer = packing.load(&int8, &RouterSpec::softmax(), tokens).unwrap();
        assert_eq!(layer.plan().unwrap(), "int8 weights multiplied as they lie: no copy");
        assert!(plan.unwrap().starts_with("weights packed once: 0.000 GB more, in "));
        let exact = reference::layer(&sets[0], &x, &routed);
        for (&got, exact) in out.iter().zip(&exact) {
            assert!((f64::from(got) - exact.value).abs() <= exact.bound, "{got}, not {exact:?}");
        }
    }
}
