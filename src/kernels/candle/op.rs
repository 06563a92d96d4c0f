//! Router, experts and weighted sum as one candle operation on (`x`, logits).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, bail};

use super::{view, wrapped};
use crate::kernels::cpu::{CpuBackend, Workspace};
use crate::kernels::{LayerWeights, RouterSpec};

/// The experts of one layer as an operation on `x` `[.., hidden]` and router logits `[.., experts]`
/// of equally many rows; the result has the shape and format of `x`.
///
/// Both may be f32, bf16 or f16 views of any strides. Values are widened to single precision, in which
/// everything is computed as [`CpuBackend`] does, and rounded once at the end. There is no backward
/// pass: asking for gradients is candle's error, never a gradient that is silently missing.
///
/// The workspace stays allocated between calls at the size of the largest; clones share it, and calls
/// on clones at the same time wait for one another.
#[derive(Clone)]
pub struct RoutedExperts {
    weights: Arc<LayerWeights>,
    router: RouterSpec,
    backend: CpuBackend,
    buffers: Arc<Mutex<Buffers>>,
    /// Weights and workspace on a GPU, from the first call with CUDA tensors on.
    #[cfg(feature = "candle-cuda")]
    on_gpu: Arc<Mutex<Option<super::cuda::OnGpu>>>,
}

#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    logits: Vec<f32>,
    workspace: Workspace,
}

impl RoutedExperts {
    /// The operation for these weights.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] when the router's settings do not fit the weights.
    pub fn new(
        weights: Arc<LayerWeights>,
        router: RouterSpec,
        backend: CpuBackend,
    ) -> crate::Result<Self> {
        router.validate(weights.shape.experts, weights.shape.top_k)?;
        Ok(Self {
            weights,
            router,
            backend,
            buffers: Arc::default(),
            #[cfg(feature = "candle-cuda")]
            on_gpu: Arc::default(),
        })
    }

    /// The weights that it multiplies with.
    pub fn weights(&self) -> &LayerWeights {
        &self.weights
    }

    /// Rows of both inputs, when their shapes fit.
    fn tokens(&self, x: &Layout, logits: &Layout) -> Result<usize> {
        let shape = &self.weights.shape;
        let rows = |layout: &Layout, width: usize| match layout.dims().split_last() {
            Some((&last, rest)) if last == width => Some(rest.iter().product::<usize>()),
            _ => None,
        };
        match (rows(x, shape.hidden), rows(logits, shape.experts)) {
            (Some(tokens), Some(logit_rows)) if tokens == logit_rows => Ok(tokens),
            _ => bail!(
                "x {:?} and logits {:?} are not [.., {}] and [.., {}] with equally many rows",
                x.shape(),
                logits.shape(),
                shape.hidden,
                shape.experts
            ),
        }
    }
}

impl CustomOp2 for RoutedExperts {
    fn name(&self) -> &'static str {
        "moe-routed-experts"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        logits: &CpuStorage,
        logits_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tokens = self.tokens(x_layout, logits_layout)?;
        // A call that panicked leaves nothing behind that the next one reads before writing it.
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Buffers { x: x_values, logits: logit_values, workspace } = &mut *buffers;
        view::read(x, x_layout, x_values)?;
        view::read(logits, logits_layout, logit_values)?;
        let input = (tokens, x_values.as_slice(), logit_values.as_slice());
        let out = self
            .backend
            .route_and_forward(&self.weights, &self.router, input, workspace)
            .map_err(wrapped)?;
        Ok((view::store(out, x)?, x_layout.shape().clone()))
    }

    /// By the CUDA kernels, on the tensors' own stream. `x` is bf16 with contiguous rows, logits f32 or
    /// bf16 with contiguous rows; weights are uploaded at the first call.
    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        logits: &candle_core::CudaStorage,
        logits_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let tokens = self.tokens(x_layout, logits_layout)?;
        let out = self.with_gpu(&x.device, |gpu| {
            gpu.forward(tokens, (x, x_layout), (logits, logits_layout))
        })?;
        Ok((out, x_layout.shape().clone()))
    }
}

#[cfg(feature = "candle-cuda")]
impl RoutedExperts {
    /// Runs `work` with the weights on a device, where they are uploaded if they are not there.
    fn with_gpu<T>(
        &self,
        device: &candle_core::CudaDevice,
        work: impl FnOnce(&mut super::cuda::OnGpu) -> Result<T>,
    ) -> Result<T> {
        let mut on_gpu = self.on_gpu.lock().unwrap_or_else(PoisonError::into_inner);
        let layer = match on_gpu.take().filter(|layer| layer.is_on(device)) {
            Some(layer) => layer,
            None => super::cuda::OnGpu::new(device, &self.weights, &self.router)?,
        };
        work(on_gpu.insert(layer))
    }
}

/// The same on (`x`, the router's weights) for few tokens on a GPU, where the router computes the
/// logits in the launch that chooses. Both are bf16 with contiguous rows.
#[cfg(feature = "candle-cuda")]
pub(super) struct GatedExperts(pub(super) RoutedExperts);

#[cfg(feature = "candle-cuda")]
impl CustomOp2 for GatedExperts {
    fn name(&self) -> &'static str {
        "moe-gated-experts"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("on the CPU the logits are a product before the experts")
    }

    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        x_layout: &Layout,
        gate: &candle_core::CudaStorage,
        gate_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let shape = &self.0.weights.shape;
        let fits = x_layout.dims().last() == Some(&shape.hidden)
            && gate_layout.dims() == [shape.experts, shape.hidden];
        if !fits {
            bail!(
                "x {:?} and gate {:?} are not [.., {}] and [{}, {}]",
                x_layout.shape(),
                gate_layout.shape(),
                shape.hidden,
                shape.experts,
                shape.hidden
            )
        }
        let tokens = x_layout.shape().elem_count() / shape.hidden;
        let out = self.0.with_gpu(&x.device, |gpu| {
            gpu.forward_from_gate(tokens, (x, x_layout), (gate, gate_layout))
        })?;
        Ok((out, x_layout.shape().clone()))
    }
}
