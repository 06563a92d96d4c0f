//! The layer as models written with candle compute it: expert by expert, from candle's operations.
//!
//! The same steps as the mixture-of-experts blocks of candle-transformers: rows of one expert by
//! `index_select`, three matrix products with `SiLU` and a product between, `index_add` into the output.

use candle_core::{Device, Result, Tensor, bail};

use super::wrapped;
use crate::Error;
use crate::kernels::{LayerWeights, MoeShape, Routed, WeightData};

/// Experts as separate candle tensors.
pub struct NaiveLayer {
    shape: MoeShape,
    experts: Vec<Expert>,
}

struct Expert {
    /// `[inter, hidden]`; plain experts have only `up`.
    gate: Option<Tensor>,
    up: Tensor,
    /// `[hidden, inter]`.
    down: Tensor,
}

impl NaiveLayer {
    /// Copies the weights into tensors of their own format.
    ///
    /// # Errors
    /// candle's.
    pub fn new(weights: &LayerWeights) -> Result<Self> {
        let s = weights.shape;
        let matrix = |data: &WeightData, start: usize, rows: usize, columns: usize| {
            let range = start..start + rows * columns;
            match data {
                WeightData::F32(v) => Tensor::from_slice(&v[range], (rows, columns), &Device::Cpu),
                WeightData::Bf16(v) => Tensor::from_slice(&v[range], (rows, columns), &Device::Cpu),
                WeightData::F16(v) => Tensor::from_slice(&v[range], (rows, columns), &Device::Cpu),
                WeightData::Int8(_) => bail!("candle has no tensors of int8 weights with scales"),
                WeightData::Fp8(_) => bail!("candle has no tensors of fp8 weights with scales"),
            }
        };
        let size = s.inter * s.hidden;
        let expert = |e: usize| {
            let first = e * s.halves() * size;
            Ok(Expert {
                gate: s
                    .gated
                    .then(|| matrix(&weights.w13, first, s.inter, s.hidden))
                    .transpose()?,
                up: matrix(&weights.w13, first + (s.halves() - 1) * size, s.inter, s.hidden)?,
                down: matrix(&weights.w2, e * size, s.hidden, s.inter)?,
            })
        };
        Ok(Self { shape: s, experts: (0..s.experts).map(expert).collect::<Result<_>>()? })
    }

    /// The layer's output for `x` `[tokens, hidden]`, in the format of the weights.
    ///
    /// # Errors
    /// candle's when `x` does not fit; [`Error::Usage`] inside it for an id that names no expert.
    pub fn forward(&self, x: &Tensor, routed: &Routed) -> Result<Tensor> {
        let mut tokens = vec![Vec::new(); self.shape.experts];
        let mut weights = vec![Vec::new(); self.shape.experts];
        for (pair, (&id, &weight)) in (0u32..).zip(routed.ids.iter().zip(&routed.weights)) {
            let Some(tokens) = tokens.get_mut(id as usize) else {
                let reason = format!("pair {pair} names expert {id} of {}", self.shape.experts);
                return Err(wrapped(Error::usage("expert ids", reason)));
            };
            tokens.push(pair / u32::try_from(self.shape.top_k).unwrap_or(u32::MAX));
            weights[id as usize].push(weight);
        }
        let mut out = x.zeros_like()?;
        for (expert, (tokens, weights)) in self.experts.iter().zip(tokens.iter().zip(weights)) {
            if tokens.is_empty() {
                continue;
            }
            let tokens = Tensor::new(tokens.as_slice(), x.device())?;
            let weights = Tensor::new(weights.as_slice(), x.device())?.to_dtype(x.dtype())?;
            let rows = expert.forward(&x.index_select(&tokens, 0)?)?;
            out = out.index_add(&tokens, &rows.broadcast_mul(&weights.reshape(((), 1))?)?, 0)?;
        }
        Ok(out)
    }
}

impl Expert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let up = x.matmul(&self.up.t()?)?;
        let h = match &self.gate {
            Some(gate) => (x.matmul(&gate.t()?)?.silu()? * up)?,
            None => up.silu()?,
        };
        h.matmul(&self.down.t()?)
    }
}
