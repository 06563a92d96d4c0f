//! The layer on candle's CUDA tensors: the launches of [`crate::kernels::gpu`] on candle's own stream.
//!
//! Compiled with the feature `candle-cuda` alone. Not run on a GPU yet.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::{CudaDevice as CandleDevice, CudaStorage, Layout, Result, bail};
use half::bf16;

use super::wrapped;
use crate::gpu::{CudaDevice, DeviceAddress, Launcher, Region};
use crate::kernels::gpu::{
    LayerBuffers, LogitFormat, Matrix, MoeInput, MoeOptions, Plan, Routing, Workspace, moe_forward,
};
use crate::kernels::{LayerWeights, RouterSpec, WeightData};

/// A layer's weights and workspace on the device of candle's tensors.
pub(super) struct OnGpu {
    candle: CandleDevice,
    device: CudaDevice,
    layer: LayerBuffers,
    options: MoeOptions,
    workspace: Option<Workspace>,
}

impl OnGpu {
    /// Uploads the weights.
    pub(super) fn new(
        candle: &CandleDevice,
        weights: &LayerWeights,
        router: &RouterSpec,
    ) -> Result<Self> {
        let mut device = CudaDevice::on_stream(candle.cuda_stream()).map_err(wrapped)?;
        let mut store = |data: &WeightData| -> Result<Region> {
            let bits = |v: bf16| v.to_ne_bytes();
            let bytes: Vec<u8> = match data {
                WeightData::Bf16(v) => v.iter().flat_map(|&v| bits(v)).collect(),
                other => bail!("the CUDA kernels multiply bf16 weights, not {:?}", other.dtype()),
            };
            device.store(&bytes).map_err(wrapped)
        };
        let (w13, w2) = (store(&weights.w13)?, store(&weights.w2)?);
        let bias: Vec<u8> = router.bias.iter().flat_map(|b| b.to_ne_bytes()).collect();
        let bias = match bias.as_slice() {
            [] => None,
            bias => Some(device.store(bias).map_err(wrapped)?),
        };
        let shape = weights.shape;
        Ok(Self {
            candle: candle.clone(),
            device,
            layer: LayerBuffers { shape, w13, w2, scales: None, router: router.clone(), bias },
            options: MoeOptions::default(),
            workspace: None,
        })
    }

    /// Whether tensors of this device can be used.
    pub(super) fn is_on(&self, device: &CandleDevice) -> bool {
        self.candle.id() == device.id()
    }

    /// Runs the layer into a new tensor `[.., hidden]`.
    pub(super) fn forward(
        &mut self,
        tokens: usize,
        (x, x_layout): (&CudaStorage, &Layout),
        (logits, logits_layout): (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let Ok(count) = u32::try_from(tokens) else { bail!("{tokens} tokens exceed 32 bits") };
        let hidden = self.layer.shape.hidden;
        // Every element is overwritten; candle's allocation without zeros is unsafe, and they cost less
        // than a hundredth of a layer.
        let out = self.candle.alloc_zeros::<bf16>(tokens * hidden)?;
        let plan = self.plan(count)?;
        let (logits, format) = if let Ok(values) = logits.as_cuda_slice::<f32>() {
            (self.rows("logits", values, logits_layout)?, LogitFormat::F32)
        } else {
            let values = logits.as_cuda_slice::<bf16>()?;
            (self.rows("logits", values, logits_layout)?, LogitFormat::Bf16)
        };
        let input = MoeInput {
            tokens: count,
            x: self.rows("x", x.as_cuda_slice::<bf16>()?, x_layout)?,
            routing: Routing::Logits { logits, format },
            out: Matrix::dense(self.region(&out, 0), hidden as u64),
        };
        if let Some(workspace) = &self.workspace {
            moe_forward(&mut self.device, &plan, &self.layer, &self.options, &input, workspace)
                .map_err(wrapped)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(out, self.candle.clone()))
    }

    /// The plan for a batch, with a workspace that holds it.
    fn plan(&mut self, tokens: u32) -> Result<Plan> {
        let shape = &self.layer.shape;
        let facts = *self.device.facts();
        let held = self.workspace.as_ref().map_or(0, |w| w.layout().max_tokens);
        if self.workspace.is_none() || held < tokens {
            if let Some(smaller) = self.workspace.take() {
                self.device.synchronize().map_err(wrapped)?;
                smaller.free(&mut self.device).map_err(wrapped)?;
            }
            let layout =
                Workspace::bytes(shape, tokens.max(1), &facts, &self.options).map_err(wrapped)?;
            self.workspace = Some(Workspace::new(&mut self.device, layout).map_err(wrapped)?);
        }
        Plan::choose(shape, tokens, LogitFormat::F32, &facts, &self.options).map_err(wrapped)
    }

    /// Rows of a tensor whose last dimension is contiguous and whose others are evenly spaced.
    fn rows<T: DeviceRepr>(
        &self,
        name: &str,
        values: &CudaSlice<T>,
        layout: &Layout,
    ) -> Result<Matrix> {
        let (dims, strides) = (layout.dims(), layout.stride());
        let (Some(&width), Some(&step)) = (dims.last(), strides.last()) else {
            bail!("{name} has no dimension")
        };
        let rows = &dims[..dims.len() - 1];
        let stride = rows.len().checked_sub(1).map_or(width, |last| strides[last]);
        let mut expected = stride;
        for (&size, &have) in rows.iter().zip(strides).rev() {
            if size > 1 && have != expected {
                bail!("{name} {:?} with strides {strides:?} is no matrix of rows", layout.shape());
            }
            expected *= size;
        }
        if step != 1 && width > 1 {
            bail!("rows of {name} are not contiguous: call contiguous() on it");
        }
        let region = self.region(values, layout.start_offset());
        Ok(Matrix { region, stride: stride.max(width) as u64 })
    }

    /// The memory of a tensor from one element on.
    fn region<T: DeviceRepr>(&self, values: &CudaSlice<T>, first: usize) -> Region {
        let size = size_of::<T>() as u64;
        // The guard would record an event for other streams; everything here runs on candle's own.
        let (address, _guard) = values.device_ptr(self.device.stream());
        let skipped = first as u64 * size;
        let bytes = (values.len() as u64 * size).saturating_sub(skipped);
        Region { address: DeviceAddress(address + skipped), bytes }
    }
}
