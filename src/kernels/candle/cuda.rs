//! The layer on candle's CUDA tensors: the launches of [`crate::kernels::gpu`] on candle's own stream.
//!
//! Compiled with the feature `candle-cuda` alone. Not run on a GPU yet.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use candle_core::{CudaDevice as CandleDevice, CudaStorage, Layout, Result, bail};
use half::bf16;

use super::wrapped;
use crate::gpu::{CudaDevice, DeviceAddress, Launcher, Region};
use crate::kernels::gpu::launches::GATE_TOKENS;
use crate::kernels::gpu::{
    LayerBuffers, LogitFormat, Matrix, MoeInput, MoeOptions, Plan, RouterInput, Routing, Workspace,
    moe_forward,
};
use crate::kernels::{LayerWeights, MoeShape, RouterSpec, WeightData};

/// A layer's weights and workspace on the device of candle's tensors.
pub(super) struct OnGpu {
    candle: CandleDevice,
    device: CudaDevice,
    layer: LayerBuffers,
    options: MoeOptions,
    workspace: Option<Workspace>,
    /// Room for the logits that a router computes, from the first time that one does.
    logits: Option<Region>,
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
            logits: None,
        })
    }

    /// Whether tensors of this device can be used.
    pub(super) fn is_on(&self, device: &CandleDevice) -> bool {
        self.candle.id() == device.id()
    }

    /// Runs the layer with given logits into a new tensor `[.., hidden]`.
    pub(super) fn forward(
        &mut self,
        tokens: usize,
        x: (&CudaStorage, &Layout),
        (logits, logits_layout): (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let (logits, format) = if let Ok(values) = logits.as_cuda_slice::<f32>() {
            (self.rows("logits", values, logits_layout)?, LogitFormat::F32)
        } else {
            let values = logits.as_cuda_slice::<bf16>()?;
            (self.rows("logits", values, logits_layout)?, LogitFormat::Bf16)
        };
        self.run(tokens, x, RouterInput::Logits(format), Routing::Logits { logits, format })
    }

    /// The same with logits that the router computes from its weights, bf16 `[experts, hidden]`; for at
    /// most [`GATE_TOKENS`] tokens.
    pub(super) fn forward_from_gate(
        &mut self,
        tokens: usize,
        x: (&CudaStorage, &Layout),
        (gate, gate_layout): (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let gate = self.rows("gate", gate.as_cuda_slice::<bf16>()?, gate_layout)?;
        let MoeShape { experts, hidden, .. } = self.layer.shape;
        if gate.stride != hidden as u64 {
            bail!("rows of gate are {} apart, not {hidden}", gate.stride)
        }
        let logits = if let Some(logits) = self.logits {
            logits
        } else {
            let most = GATE_TOKENS as usize * experts;
            let region = self.device.allocate(4 * most as u64).map_err(wrapped)?;
            *self.logits.insert(region)
        };
        let logits = Matrix::dense(logits, experts as u64);
        self.run(tokens, x, RouterInput::Gate, Routing::Gate { gate: gate.region, logits })
    }

    fn run(
        &mut self,
        tokens: usize,
        (x, x_layout): (&CudaStorage, &Layout),
        router: RouterInput,
        routing: Routing,
    ) -> Result<CudaStorage> {
        let Ok(count) = u32::try_from(tokens) else { bail!("{tokens} tokens exceed 32 bits") };
        let hidden = self.layer.shape.hidden;
        // Every element is overwritten; candle's allocation without zeros is unsafe, and they cost less
        // than a hundredth of a layer.
        let out = self.candle.alloc_zeros::<bf16>(tokens * hidden)?;
        let plan = self.plan(count, router)?;
        let input = MoeInput {
            tokens: count,
            x: self.rows("x", x.as_cuda_slice::<bf16>()?, x_layout)?,
            routing,
            out: Matrix::dense(self.region(&out, 0), hidden as u64),
        };
        if let Some(workspace) = &self.workspace {
            moe_forward(&mut self.device, &plan, &self.layer, &self.options, &input, workspace)
                .map_err(wrapped)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(out, self.candle.clone()))
    }

    /// The plan for a batch, with a workspace that holds it.
    fn plan(&mut self, tokens: u32, router: RouterInput) -> Result<Plan> {
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
        Plan::choose(shape, tokens, router, &facts, &self.options).map_err(wrapped)
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
