//! A mixture-of-experts layer as a candle module, with its router gate.

use std::sync::Arc;

use candle_core::{CustomOp2, DType, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{RoutedExperts, wrapped};
use crate::config::RouterConfig;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::{LayerWeights, MoeShape, RouterSpec, WeightData};

/// Sizes and router of a [`MoeLayer`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeLayerConfig {
    /// Sizes.
    pub shape: MoeShape,
    /// Router settings; [`RouterSpec::softmax`] has the common ones.
    pub router: RouterConfig,
}

/// Router gate and experts: on the CPU, and with the feature `candle-cuda` on CUDA tensors, where the
/// logits of up to 16 tokens of a bf16 gate are computed by the router's own launch.
///
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::VarBuilder;
/// use moe_frontier::kernels::{MoeShape, RouterSpec, candle::{MoeLayer, MoeLayerConfig}};
///
/// let shape = MoeShape { experts: 4, top_k: 2, hidden: 32, inter: 64, gated: true };
/// let config = MoeLayerConfig { shape, router: RouterSpec::softmax().config };
/// let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
/// let layer = MoeLayer::new(config, vb)?;
/// let x = Tensor::zeros((2, 5, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(layer.forward(&x)?.dims(), [2, 5, 32]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct MoeLayer {
    shape: MoeShape,
    /// `[experts, hidden]`, f32.
    gate: Tensor,
    experts: Arc<Box<dyn CustomOp2 + Send + Sync>>,
    /// The gate as it was given, where that is bf16, and the experts that compute their logits with it.
    #[cfg(feature = "candle-cuda")]
    gated: Option<(Tensor, Arc<Box<dyn CustomOp2 + Send + Sync>>)>,
}

impl MoeLayer {
    /// Loads a layer under the names of Hugging Face checkpoints with fused experts: `gate.weight`
    /// `[experts, hidden]`, `experts.gate_up_proj` `[experts, 2 * inter, hidden]`,
    /// `experts.down_proj` `[experts, hidden, inter]`, and `gate.e_score_correction_bias` `[experts]`
    /// when the router has a bias. Experts that are not gated have `[experts, inter, hidden]`.
    ///
    /// # Errors
    /// candle's for a tensor that is missing or has another shape; [`crate::Error::Usage`] inside it
    /// for a configuration that makes no layer.
    #[expect(clippy::needless_pass_by_value, reason = "the form of every candle_nn constructor")]
    pub fn new(config: MoeLayerConfig, vb: VarBuilder) -> Result<Self> {
        let shape = config.shape;
        shape.validate().map_err(wrapped)?;
        let (gate, experts) = (vb.pp("gate"), vb.pp("experts"));
        let bias = if config.router.bias {
            Some(gate.get(shape.experts, "e_score_correction_bias")?)
        } else {
            None
        };
        let w13 = (shape.experts, shape.halves() * shape.inter, shape.hidden);
        let w2 = (shape.experts, shape.hidden, shape.inter);
        Self::from_tensors(
            config,
            &gate.get((shape.experts, shape.hidden), "weight")?,
            bias.as_ref(),
            &experts.get(w13, "gate_up_proj")?,
            &experts.get(w2, "down_proj")?,
        )
    }

    /// Makes a layer of given tensors, shaped as [`MoeLayer::new`] says. Expert weights are f32,
    /// bf16 or f16 and are copied once, row-major; the caller's tensors may be dropped afterwards.
    ///
    /// # Errors
    /// candle's for a shape or format that does not fit; [`crate::Error::Usage`] inside it for a
    /// configuration that makes no layer.
    pub fn from_tensors(
        config: MoeLayerConfig,
        gate: &Tensor,
        bias: Option<&Tensor>,
        gate_up: &Tensor,
        down: &Tensor,
    ) -> Result<Self> {
        let MoeLayerConfig { shape, router } = config;
        shape.validate().map_err(wrapped)?;
        expect_dims("gate", gate, &[shape.experts, shape.hidden])?;
        let w13 = [shape.experts, shape.halves() * shape.inter, shape.hidden];
        expect_dims("gate_up", gate_up, &w13)?;
        expect_dims("down", down, &[shape.experts, shape.hidden, shape.inter])?;
        let bias = match bias {
            Some(bias) => bias.to_dtype(DType::F32)?.to_vec1()?,
            None => Vec::new(),
        };
        let weights = LayerWeights::new(shape, values(gate_up)?, values(down)?).map_err(wrapped)?;
        let router = RouterSpec { config: router, bias };
        let experts = RoutedExperts::new(Arc::new(weights), router, CpuBackend::new());
        let experts = experts.map_err(wrapped)?;
        Ok(Self {
            shape,
            gate: gate.to_dtype(DType::F32)?.contiguous()?,
            #[cfg(feature = "candle-cuda")]
            gated: if gate.dtype() == DType::BF16 {
                let op = super::op::GatedExperts(experts.clone());
                Some((gate.contiguous()?, Arc::new(Box::new(op))))
            } else {
                None
            },
            experts: Arc::new(Box::new(experts)),
        })
    }

    /// Sizes.
    pub const fn shape(&self) -> &MoeShape {
        &self.shape
    }

    /// The router's logits for `x` `[.., hidden]`: `[.., experts]` in f32, whatever the format of `x`.
    ///
    /// # Errors
    /// candle's when the last dimension of `x` is not `hidden`.
    pub fn router_logits(&self, x: &Tensor) -> Result<Tensor> {
        let Some((&hidden, rows)) = x.dims().split_last() else {
            bail!("x is a scalar, not [.., {}]", self.shape.hidden)
        };
        if hidden != self.shape.hidden {
            bail!("x {:?} does not end in hidden size {}", x.dims(), self.shape.hidden)
        }
        let tokens: usize = rows.iter().product();
        let dims: Vec<usize> = rows.iter().copied().chain([self.shape.experts]).collect();
        if tokens == 0 {
            return Tensor::zeros(dims, DType::F32, x.device());
        }
        let x = x.to_dtype(DType::F32)?.reshape((tokens, hidden))?;
        x.matmul(&self.gate.t()?)?.reshape(dims)
    }

    /// The layer with router logits `[.., experts]` that the caller brings.
    ///
    /// # Errors
    /// candle's for shapes that do not fit; [`crate::Error::Usage`] inside it for a logit that is not
    /// a number.
    pub fn forward_with_logits(&self, x: &Tensor, logits: &Tensor) -> Result<Tensor> {
        x.apply_op2_arc(logits, Arc::clone(&self.experts))
    }
}

#[cfg(feature = "candle-cuda")]
impl MoeLayer {
    /// The layer of few bf16 tokens on a GPU, whose router computes the logits; `None` for others.
    fn forward_few(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let few = self.shape.hidden * crate::kernels::gpu::launches::GATE_TOKENS as usize;
        match &self.gated {
            Some((gate, experts))
                if x.device().is_cuda()
                    && x.device().same_device(gate.device())
                    && x.dtype() == DType::BF16
                    && (1..=few).contains(&x.elem_count()) =>
            {
                x.apply_op2_arc(gate, Arc::clone(experts)).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Module for MoeLayer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "candle-cuda")]
        if let Some(out) = self.forward_few(x)? {
            return Ok(out);
        }
        self.forward_with_logits(x, &self.router_logits(x)?)
    }
}

fn expect_dims(name: &str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() != dims {
        bail!("{name} has shape {:?}, not {dims:?}", tensor.dims())
    }
    Ok(())
}

/// Copies a tensor's values out, row-major.
fn values(tensor: &Tensor) -> Result<WeightData> {
    let flat = tensor.flatten_all()?;
    match tensor.dtype() {
        DType::F32 => Ok(WeightData::F32(flat.to_vec1()?.into())),
        DType::BF16 => Ok(WeightData::Bf16(flat.to_vec1()?.into())),
        DType::F16 => Ok(WeightData::F16(flat.to_vec1()?.into())),
        other => bail!("expert weights are {other:?}; convert them to F32, BF16 or F16 first"),
    }
}
