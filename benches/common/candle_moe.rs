//! candle's own grouped products, `candle_nn::moe::moe_gemm`, on the rows and experts of a batch: what a
//! model written with candle runs between its router and the sum over a token's experts. Not run on a
//! GPU yet.

use candle_core::{CudaDevice as CandleDevice, DType, Device, Result, Tensor};
use candle_nn::moe::moe_gemm;
use moe_frontier::Error;
use moe_frontier::gpu::{CudaDevice, Launcher, Region};
use moe_frontier::kernels::{LayerWeights, MoeShape, WeightData, reference};

use crate::common::Batch;

/// Largest deviation from our output, in norm, that rounding explains: both round rows to bf16, and
/// candle also each weighted row and their sum, 2^-9 each.
const MOST_OFF: f64 = 2e-2;

/// A layer on the stream that candle launches on.
pub(crate) struct CandleMoe {
    clock: CudaDevice,
    flush: Region,
    layer: Layer,
}

struct Layer {
    device: Device,
    shape: MoeShape,
    w13: Tensor,
    w2: Tensor,
}

/// One batch in candle's tensors, with pairs sorted by expert as candle wants them.
pub(crate) struct CandleBatch {
    x: Tensor,
    sorted_pairs: Tensor,
    sorted_experts: Tensor,
    topk_weights: Tensor,
}

impl CandleMoe {
    /// Uploads bf16 weights, which lie alike on both sides.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn new(ordinal: usize, weights: &LayerWeights) -> Result<Self> {
        let device = CandleDevice::new_with_stream(ordinal)?;
        let mut clock =
            CudaDevice::on_stream(device.cuda_stream()).map_err(candle_core::Error::wrap)?;
        let bytes = 2 * clock.facts().l2_bytes;
        let flush = clock.allocate(bytes).map_err(candle_core::Error::wrap)?;
        let layer = Layer::new(Device::Cuda(device), weights)?;
        Ok(Self { clock, flush, layer })
    }

    /// Uploads a batch with its routing.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn batch(&self, batch: &Batch) -> Result<CandleBatch> {
        let Layer { device, shape, .. } = &self.layer;
        let routed = &batch.routed;
        let aligned =
            reference::align(&routed.ids, shape.experts).map_err(candle_core::Error::wrap)?;
        let pairs = aligned.sorted_pairs;
        let experts: Vec<u32> = pairs.iter().map(|&pair| routed.ids[pair as usize]).collect();
        let (count, tokens) = (pairs.len(), batch.x.len() / shape.hidden);
        let x = Tensor::from_slice(&batch.x, (tokens, shape.hidden), &Device::Cpu)?;
        Ok(CandleBatch {
            x: x.to_dtype(DType::BF16)?.to_device(device)?,
            sorted_pairs: Tensor::from_vec(pairs, count, device)?,
            sorted_experts: Tensor::from_vec(experts, count, device)?,
            topk_weights: Tensor::from_slice(&routed.weights, count, device)?,
        })
    }

    /// Which of candle's two modes is the faster one for a batch.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn faster_mode(&mut self, batch: &CandleBatch) -> Result<bool> {
        // The first call of each is not counted: it loads code.
        let mut ms = [0.0; 2];
        for _ in 0..2 {
            ms = [self.time(batch, false)?, self.time(batch, true)?];
        }
        Ok(ms[1] < ms[0])
    }

    /// Milliseconds of both products with the activation between them, the second-level cache
    /// overwritten before. candle's allocations and the gaps between its launches are how it runs, and
    /// count.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn time(&mut self, batch: &CandleBatch, prefill: bool) -> Result<f64> {
        let Self { clock, flush, layer } = self;
        clock.fill(*flush, 0x3c).map_err(candle_core::Error::wrap)?;
        let work = |_: &mut CudaDevice| {
            layer
                .products(batch, prefill)
                .map(drop)
                .map_err(|e| Error::device("candle", e.to_string()))
        };
        Ok(clock.elapsed_ns(work).map_err(candle_core::Error::wrap)? * 1e-6)
    }

    /// Whether the layer's output is ours, `[tokens, hidden]`, up to rounding.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn agrees(&self, batch: &CandleBatch, prefill: bool, ours: &[f32]) -> Result<bool> {
        let MoeShape { top_k, hidden, .. } = self.layer.shape;
        let rows = self.layer.products(batch, prefill)?.to_dtype(DType::F32)?;
        let out = rows.reshape(((), top_k, hidden))?.sum(1)?.flatten_all()?.to_vec1::<f32>()?;
        let squares = |of: &mut dyn Iterator<Item = f64>| of.map(|v| v * v).sum::<f64>();
        let off = squares(&mut out.iter().zip(ours).map(|(a, b)| f64::from(a - b)));
        let all = squares(&mut ours.iter().map(|&v| f64::from(v)));
        Ok(out.len() == ours.len() && off.sqrt() <= MOST_OFF * all.sqrt())
    }
}

impl Layer {
    fn new(device: Device, weights: &LayerWeights) -> Result<Self> {
        let shape = weights.shape;
        let tensor = |data: &WeightData, rows: usize, columns: usize| match data {
            WeightData::Bf16(values) => {
                Tensor::from_slice(values, (shape.experts, rows, columns), &device)
            }
            other => candle_core::bail!("{:?} weights are no tensor here", other.dtype()),
        };
        let w13 = tensor(&weights.w13, 2 * shape.inter, shape.hidden)?;
        let w2 = tensor(&weights.w2, shape.hidden, shape.inter)?;
        Ok(Self { device, shape, w13, w2 })
    }

    /// Weighted rows by pair, `[tokens * top_k, hidden]`.
    fn products(&self, batch: &CandleBatch, prefill: bool) -> Result<Tensor> {
        let MoeShape { top_k, inter, .. } = self.shape;
        let (pairs, experts) = (&batch.sorted_pairs, &batch.sorted_experts);
        let both = moe_gemm(&batch.x, &self.w13, &None, pairs, experts, top_k, prefill)?;
        let (gate, up) = (both.narrow(1, 0, inter)?, both.narrow(1, inter, inter)?);
        let h = (gate.silu()? * up)?;
        let weights = Some(batch.topk_weights.clone());
        moe_gemm(&h, &self.w2, &weights, pairs, experts, top_k, prefill)
    }
}
