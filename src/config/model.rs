//! The shape of a mixture-of-experts transformer: sizes, experts, attention, number formats.
//!
//! Field names follow the field's own configuration files (`num_experts_per_tok` is `top_k` here).
//! A dense model is one with a single expert, `top_k` 1 and no router. A stack of several kinds of
//! layers lists them as [`LayerGroup`]s; the other fields then describe its most usual ones.

use serde::{Deserialize, Serialize};

use crate::config::LayerGroup;
use crate::config::formats::TensorBits;

use crate::{Error, Result};

/// Larger than any size of a model that exists; products of three stay below 2^63.
const MOST: usize = 1 << 20;

/// How numbers are stored: the width of a weight or of a cached key or value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE single precision, 32 bits.
    F32,
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16, 16 bits.
    Bf16,
    /// 8-bit float (e4m3) in blocks of 128 x 128 with one 32-bit scale each.
    Fp8,
    /// 8-bit integers with one 16-bit scale per output channel.
    Int8,
    /// 4-bit float in groups of 32 with one 8-bit scale each: 4.25 bits.
    Mxfp4,
    /// 4-bit float in groups of 16 with one 8-bit scale each: 4.5 bits.
    Nvfp4,
    /// 4-bit integers in groups of 128 with one 16-bit scale each: 4.125 bits.
    Int4,
}

/// The attention block of every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Grouped-query attention; multi-head attention when `kv_heads == heads`.
    Gqa {
        /// Query heads.
        heads: usize,
        /// Key/value heads; `heads` is a multiple of it.
        kv_heads: usize,
        /// Values per head.
        head_dim: usize,
        /// Whether q, k, v and output projections carry counted biases (gpt-oss).
        bias: bool,
        /// Layers that see only a window of the context, if any.
        sliding_window: Option<SlidingWindow>,
    },
    /// Multi-head latent attention (DeepSeek): keys and values are cached as one latent vector.
    Mla {
        /// Query heads.
        heads: usize,
        /// Rank of the query compression; `None` projects queries directly.
        q_lora_rank: Option<usize>,
        /// Width of the cached latent vector.
        kv_lora_rank: usize,
        /// Per-head query/key width without position information.
        qk_nope_head_dim: usize,
        /// Rotary width, shared by all heads in the cache.
        qk_rope_head_dim: usize,
        /// Per-head value width.
        v_head_dim: usize,
    },
}

/// Layers whose attention is limited to the last `window` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// Tokens that such a layer can see and must cache.
    pub window: usize,
    /// How many of the layers are limited.
    pub layers: usize,
}

/// Experts that every token visits beside the routed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedExperts {
    /// Number of shared experts.
    pub count: usize,
    /// FFN width of all shared experts of a layer together.
    pub intermediate_size: usize,
}

/// Which score a router chooses experts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over all experts, then top-k (Mixtral, Qwen, OLMoE).
    Softmax,
    /// Top-k of the logits, then softmax over the chosen ones (gpt-oss).
    SoftmaxOverTopK,
    /// Sigmoid; a per-expert bias moves the choice but not the weight (DeepSeek-V3).
    Sigmoid,
    /// Square root of softplus; a bias as with the sigmoid (checkpoints that declare it).
    SoftplusSqrt,
    /// SparseMixer's per-pick thresholded softmax (Phi-3.5-MoE): counted, not executed here.
    SparseMixer,
    /// `top_k` groups of experts, top-1 by softmax inside each group (expert prototyping, M6-T).
    Prototype,
}

/// The router of a MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterConfig {
    /// Score that the choice is made by.
    pub scoring: Scoring,
    /// Whether the chosen weights are divided by their sum.
    pub renormalize: bool,
    /// Whether a per-expert correction bias is added for the choice.
    pub bias: bool,
    /// Number of expert groups; 1 means no group limit.
    pub n_group: usize,
    /// Groups that a token may choose from.
    pub topk_group: usize,
    /// Factor on the routed output.
    pub scaling_factor: f64,
}

impl RouterConfig {
    /// Softmax over all experts, top-k, renormalised: the common router.
    pub const SOFTMAX: Self = Self {
        scoring: Scoring::Softmax,
        renormalize: true,
        bias: false,
        n_group: 1,
        topk_group: 1,
        scaling_factor: 1.0,
    };
}

/// A transformer with mixture-of-experts feed-forward layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoeModel {
    /// Name to print.
    pub name: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer layers, dense and MoE together.
    pub num_layers: usize,
    /// Layers whose feed-forward block is dense instead of MoE.
    pub dense_layers: usize,
    /// FFN width of those dense layers; 0 when there are none.
    pub dense_intermediate_size: usize,
    /// Attention of every layer.
    pub attention: Attention,
    /// Routed experts per MoE layer; 1 is a dense model.
    pub num_experts: usize,
    /// Routed experts that a token visits (`num_experts_per_tok`).
    pub top_k: usize,
    /// FFN width of one routed expert.
    pub moe_intermediate_size: usize,
    /// Experts that every token visits, if any.
    pub shared_experts: Option<SharedExperts>,
    /// Whether FFNs are gated (three matrices, SwiGLU) or plain (two matrices).
    pub gated: bool,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Whether input embedding and output head are one matrix.
    pub tied_embeddings: bool,
    /// The router.
    pub router: RouterConfig,
    /// Storage of the routed and shared experts' weights.
    pub expert_dtype: DType,
    /// Bits of one expert weight on average where precisions are mixed; else those of `expert_dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_bits: Option<f64>,
    /// Storage of everything else (attention, embeddings, dense layers).
    pub dense_dtype: DType,
    /// Storage of cached keys and values.
    pub kv_dtype: DType,
    /// Layers by kind where the fields above do not say everything; empty where they do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<LayerGroup>,
    /// Bits by tensor kind where the two formats above do not say everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<TensorBits>,
}

impl DType {
    /// Every format, widest first.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Fp8,
        Self::Int8,
        Self::Nvfp4,
        Self::Mxfp4,
        Self::Int4,
    ];

    /// Bits of one stored value, scales included.
    ///
    /// ```
    /// use moe_frontier::config::DType;
    /// assert_eq!(DType::Mxfp4.bits(), 4.25);
    /// ```
    pub const fn bits(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::F16 | Self::Bf16 => 16.0,
            Self::Fp8 => 8.0 + 32.0 / (128.0 * 128.0),
            // One scale per output channel: negligible beside a row of thousands of weights.
            Self::Int8 => 8.0,
            Self::Mxfp4 => 4.0 + 8.0 / 32.0,
            Self::Nvfp4 => 4.0 + 8.0 / 16.0,
            Self::Int4 => 4.0 + 16.0 / 128.0,
        }
    }

    /// The name used in flags, profiles and tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Int4 => "int4",
        }
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|d| d.label() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::label).join(", ");
            Error::usage("number format", format!("`{text}` is none of {names}"))
        })
    }
}

impl MoeModel {
    /// Bits of one stored weight of a routed or shared expert, scales included.
    pub fn expert_bits(&self) -> f64 {
        let listed = self.bits.map(|b| b.experts);
        self.expert_bits.or(listed).unwrap_or_else(|| self.expert_dtype.bits())
    }

    /// Checks that the sizes make a model.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let bad = |field: &str, reason: String| Err(Error::usage(field, reason));
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("num_experts", self.num_experts),
            ("top_k", self.top_k),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("vocab_size", self.vocab_size),
        ];
        for (field, size) in sizes {
            if !(1..=MOST).contains(&size) {
                return bad(field, format!("{size} does not lie between 1 and {MOST}"));
            }
        }
        if self.top_k > self.num_experts {
            let reason = format!("{} is more than the {} experts", self.top_k, self.num_experts);
            return bad("top_k", reason);
        }
        if self.dense_layers > self.num_layers {
            let reason =
                format!("{} is more than the {} layers", self.dense_layers, self.num_layers);
            return bad("dense_layers", reason);
        }
        if self.dense_layers > 0 && self.dense_intermediate_size == 0 {
            return bad("dense_intermediate_size", "is 0 although there are dense layers".into());
        }
        if let Attention::Gqa { heads, kv_heads, head_dim, .. } = self.attention
            && (kv_heads == 0 || head_dim == 0 || !heads.is_multiple_of(kv_heads) || heads == 0)
        {
            let reason = format!("{heads} heads cannot share {kv_heads} key/value heads");
            return bad("attention", reason);
        }
        let listed: usize = self.groups.iter().map(|g| g.layers).sum();
        if !self.groups.is_empty() && listed != self.num_layers {
            let reason = format!("hold {listed} layers, num_layers is {}", self.num_layers);
            return bad("groups", reason);
        }
        let r = &self.router;
        if r.n_group == 0
            || !self.num_experts.is_multiple_of(r.n_group)
            || !(1..=r.n_group).contains(&r.topk_group)
        {
            let reason =
                format!("{} of {} groups of {} experts", r.topk_group, r.n_group, self.num_experts);
            return bad("router groups", reason);
        }
        Ok(())
    }
}
