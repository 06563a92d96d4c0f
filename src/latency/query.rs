//! What may be asked of a latency model: one operation on the busiest device of its group.
//!
//! Sizes are those of the model or of one device, as each field says. Token counts are real numbers
//! because steady states have mean loads.

use crate::config::DType;
use crate::constants::ACTIVATION_BYTES;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Query {
    /// Routed experts of one MoE layer, from top-k to combine; the router's GEMM is asked apart.
    Moe(MoeQuery),
    /// A dense GEMM.
    Gemm(GemmQuery),
    /// The attention core of one layer (GQA, MHA).
    Attention(AttentionQuery),
    /// A part of one multi-head latent attention block.
    Mla(MlaPart, MlaQuery),
    /// A collective between devices that hold the same tokens.
    Collective(CollectiveQuery),
    /// Dispatch and combine of one expert-parallel MoE layer, together.
    Exchange(ExchangeQuery),
}

/// The kind of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Routed experts.
    Moe,
    /// Dense GEMM.
    Gemm,
    /// Attention of prompts.
    PrefillAttention,
    /// Attention of decoding sequences.
    DecodeAttention,
    /// Latent attention of prompts.
    PrefillMla,
    /// Latent attention of decoding sequences.
    DecodeMla,
    /// Collective.
    Collective,
    /// Expert-parallel exchange.
    Exchange,
}

impl Operation {
    /// Every operation, in the order of a layer.
    pub const ALL: [Self; 8] = [
        Self::Moe,
        Self::Gemm,
        Self::PrefillAttention,
        Self::DecodeAttention,
        Self::PrefillMla,
        Self::DecodeMla,
        Self::Collective,
        Self::Exchange,
    ];

    /// Its name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Moe => "routed experts",
            Self::Gemm => "dense GEMM",
            Self::PrefillAttention => "prefill attention",
            Self::DecodeAttention => "decode attention",
            Self::PrefillMla => "prefill MLA",
            Self::DecodeMla => "decode MLA",
            Self::Collective => "collectives",
            Self::Exchange => "expert exchange",
        }
    }
}

impl Query {
    /// Its kind.
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Moe(_) => Operation::Moe,
            Self::Gemm(_) => Operation::Gemm,
            Self::Attention(q) => match q.phase {
                Phase::Prefill => Operation::PrefillAttention,
                Phase::Decode => Operation::DecodeAttention,
            },
            Self::Mla(_, q) => match q.phase {
                Phase::Prefill => Operation::PrefillMla,
                Phase::Decode => Operation::DecodeMla,
            },
            Self::Collective(_) => Operation::Collective,
            Self::Exchange(_) => Operation::Exchange,
        }
    }
}

/// Prompts or generation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Causal attention of whole prompts.
    Prefill,
    /// One new token per sequence against its cache.
    Decode,
}

/// Routed experts of one MoE layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeQuery {
    /// Hidden size of the model.
    pub hidden: usize,
    /// Intermediate size of one whole expert, before tensor parallelism.
    pub inter: usize,
    /// Routed experts of the layer, over all ranks.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Whether experts are gated (three matrices) or not (two).
    pub gated: bool,
    /// Storage of the expert weights: which kernels run.
    pub weights: DType,
    /// Bits of one stored expert weight on average, scales included; those of `weights` unless
    /// precisions are mixed.
    pub weight_bits: f64,
    /// Ranks that share each expert.
    pub tensor_parallel: usize,
    /// Ranks that the experts are spread over.
    pub expert_parallel: usize,
    /// Tokens entering the layer, over all expert-parallel ranks.
    pub tokens: f64,
    /// Whether each rank gets the rows of its own experts alone (an exchange dispatched them), not all
    /// tokens, of which it leaves out those of other ranks.
    pub dispatched: bool,
    /// Rows (token-expert pairs) of the busiest rank.
    pub rows: f64,
    /// Experts of the busiest rank with at least one row.
    pub active: f64,
    /// Rows of the busiest expert.
    pub max_rows: f64,
}

impl MoeQuery {
    /// What the kernels of the busiest rank see: of dispatched rows a layer without ranks.
    pub(crate) fn of_kernel(&self) -> Self {
        if !self.dispatched {
            return *self;
        }
        let tokens = self.rows / self.top_k as f64;
        Self { expert_parallel: 1, tokens, dispatched: false, ..*self }
    }

    /// Intermediate size of one expert on one device.
    pub fn local_inter(&self) -> f64 {
        self.inter as f64 / self.tensor_parallel as f64
    }

    /// Routed experts on one device.
    pub fn local_experts(&self) -> f64 {
        self.experts as f64 / self.expert_parallel as f64
    }

    /// Parameters of one expert on one device.
    pub fn expert_params(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        matrices * self.hidden as f64 * self.local_inter()
    }

    /// Weight bytes that the busiest device reads.
    pub fn weight_bytes(&self) -> f64 {
        self.active * self.expert_params() * self.weight_bits / 8.0
    }

    /// Bytes that the busiest device cannot avoid moving: weights of the active experts, and
    /// activations in and out.
    pub fn bytes(&self) -> f64 {
        let tokens = self.rows / self.top_k as f64;
        self.weight_bytes() + 2.0 * tokens * self.hidden as f64 * ACTIVATION_BYTES
    }

    /// Floating-point operations on the busiest device.
    pub fn flops(&self) -> f64 {
        2.0 * self.expert_params() * self.rows
    }
}

/// An `m x k` activation times a `k x n` weight on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmQuery {
    /// Rows.
    pub m: f64,
    /// Output width on this device.
    pub n: usize,
    /// Inner width on this device.
    pub k: usize,
    /// Storage of the weight.
    pub weights: DType,
}

impl GemmQuery {
    /// Bytes moved: the weight once, activations in and out.
    pub fn bytes(&self) -> f64 {
        let (n, k) = (self.n as f64, self.k as f64);
        n * k * self.weights.bits() / 8.0 + ACTIVATION_BYTES * self.m * (n + k)
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        2.0 * self.m * self.n as f64 * self.k as f64
    }
}

/// The attention core of one layer on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionQuery {
    /// Prompts or generation.
    pub phase: Phase,
    /// Query heads on the device.
    pub heads: usize,
    /// Key/value heads on the device.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Storage of cached keys and values.
    pub cache: DType,
    /// Sliding window in tokens, if the layer has one.
    pub window: Option<usize>,
    /// Sequences (prompts) of the step on this device.
    pub sequences: f64,
    /// Decode: tokens that each sequence attends to. Prefill: prompt length.
    pub context: f64,
}

impl AttentionQuery {
    /// Tokens of the context that are reached.
    pub fn reached(&self) -> f64 {
        self.window.map_or(self.context, |w| self.context.min(w as f64))
    }

    /// Cache bytes of one token in this layer on this device.
    pub fn token_bytes(&self) -> f64 {
        2.0 * (self.kv_heads * self.head_dim) as f64 * self.cache.bits() / 8.0
    }

    /// Bytes moved.
    pub fn bytes(&self) -> f64 {
        let heads = (self.heads * self.head_dim) as f64;
        match self.phase {
            Phase::Decode => {
                self.sequences
                    * (self.reached() * self.token_bytes() + 2.0 * heads * ACTIVATION_BYTES)
            }
            Phase::Prefill => {
                let kv = (self.kv_heads * self.head_dim) as f64;
                self.sequences * self.context * 2.0 * (heads + kv) * ACTIVATION_BYTES
            }
        }
    }

    /// Floating-point operations; a prompt is causal and windowed layers skip what lies outside.
    pub fn flops(&self) -> f64 {
        let pair = 4.0 * (self.heads * self.head_dim) as f64;
        let pairs = match self.phase {
            Phase::Decode => self.reached(),
            Phase::Prefill => {
                let reach = self.reached();
                reach * reach / 2.0 + (self.context - reach) * reach
            }
        };
        self.sequences * pairs * pair
    }
}

/// A part of a multi-head latent attention block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MlaPart {
    /// The whole block: projections, absorption, core, output projection.
    Block,
    /// The attention core alone.
    Core,
    /// Absorption of the key and value expansions while decoding: two batched GEMMs.
    Absorb,
}

/// Multi-head latent attention of one layer on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlaQuery {
    /// Prompts or generation.
    pub phase: Phase,
    /// Query heads of the model, over all ranks.
    pub heads: usize,
    /// Ranks that share the heads.
    pub tensor_parallel: usize,
    /// Hidden size of the model.
    pub hidden: usize,
    /// Rank of the query compression, if any.
    pub q_lora_rank: Option<usize>,
    /// Width of the cached latent vector.
    pub kv_lora_rank: usize,
    /// Per-head width without position information.
    pub nope: usize,
    /// Rotary width, shared by all heads.
    pub rope: usize,
    /// Per-head value width.
    pub value: usize,
    /// Storage of the projections.
    pub weights: DType,
    /// Storage of the cache.
    pub cache: DType,
    /// Sequences (prompts) of the step on this device.
    pub sequences: f64,
    /// Decode: tokens that each sequence attends to. Prefill: prompt length.
    pub context: f64,
}

impl MlaQuery {
    /// Query heads on one device.
    pub fn local_heads(&self) -> usize {
        self.heads.div_ceil(self.tensor_parallel)
    }

    /// Cache bytes of one token in this layer; every rank holds all of it.
    pub fn token_bytes(&self) -> f64 {
        (self.kv_lora_rank + self.rope) as f64 * self.cache.bits() / 8.0
    }

    /// Bytes that the core moves.
    pub fn core_bytes(&self) -> f64 {
        let heads = self.local_heads() as f64;
        match self.phase {
            Phase::Decode => {
                let width = (2 * self.kv_lora_rank + self.rope) as f64;
                self.sequences
                    * (self.context * self.token_bytes() + heads * width * ACTIVATION_BYTES)
            }
            Phase::Prefill => {
                let width = (2 * (self.nope + self.rope) + 2 * self.value) as f64;
                self.sequences * self.context * heads * width * ACTIVATION_BYTES
            }
        }
    }

    /// Floating-point operations of the core: in latent space while decoding, in expanded heads for
    /// prompts.
    pub fn core_flops(&self) -> f64 {
        let heads = self.local_heads() as f64;
        match self.phase {
            Phase::Decode => {
                let pair = 2.0 * heads * (2 * self.kv_lora_rank + self.rope) as f64;
                self.sequences * self.context * pair
            }
            Phase::Prefill => {
                let pair = 2.0 * heads * (self.nope + self.rope + self.value) as f64;
                self.sequences * self.context * self.context / 2.0 * pair
            }
        }
    }

    /// Weights of the absorbed expansions of the device's heads: latent to key and value.
    pub fn absorb_params(&self) -> f64 {
        (self.local_heads() * self.kv_lora_rank) as f64 * (self.nope + self.value) as f64
    }

    /// Bytes that the absorption moves with weights of `bits`: every head reads and writes its own
    /// key, value and two latents.
    pub fn absorb_bytes(&self, bits: f64) -> f64 {
        let width = self.local_heads() * (self.nope + self.value + 2 * self.kv_lora_rank);
        self.absorb_params() * bits / 8.0 + ACTIVATION_BYTES * self.sequences * width as f64
    }

    /// Floating-point operations of the absorption.
    pub fn absorb_flops(&self) -> f64 {
        2.0 * self.absorb_params() * self.sequences
    }
}

/// A collective.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Sum over all, result on all.
    AllReduce,
    /// Concatenation of all on all.
    AllGather,
    /// Sum over all, one share each.
    ReduceScatter,
    /// Every rank sends every rank its share.
    AllToAll,
}

/// One collective between devices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollectiveQuery {
    /// Which one.
    pub kind: CollectiveKind,
    /// Devices that take part.
    pub devices: usize,
    /// Scale-up domains (nodes) that they span; 1 inside one.
    pub nodes: usize,
    /// Message size in bytes as NCCL counts it: all-reduce, the buffer; all-to-all, everything a
    /// rank sends, its own share included.
    pub bytes: f64,
}

/// Dispatch and combine of one expert-parallel MoE layer, together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExchangeQuery {
    /// Low-latency kernels of decode steps, or throughput kernels of steps with prompts.
    pub phase: Phase,
    /// Ranks that the experts are spread over.
    pub ranks: usize,
    /// Scale-up domains (nodes) that they span; 1 inside one.
    pub nodes: usize,
    /// Tokens of the busiest rank before dispatch.
    pub tokens: f64,
    /// Hidden size.
    pub hidden: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Routed experts of the layer.
    pub experts: usize,
    /// Bits of one dispatched value (8 where the engine quantises before it sends).
    pub dispatch_bits: f64,
    /// Copies at the busiest rank over those under uniform routing; 1 where routing is uniform.
    pub skew: f64,
}

impl ExchangeQuery {
    /// Distinct ranks that one token is sent to under uniform routing.
    pub fn destinations(&self) -> f64 {
        let ranks = self.ranks as f64;
        ranks * (1.0 - (1.0 - 1.0 / ranks).powf(self.top_k as f64))
    }

    /// Bytes on the busiest rank's link: one copy per token and destination rank in dispatch, one
    /// 16-bit partial sum back in combine. Under skew the rank of the popular experts receives, and
    /// sends back, more than any rank sends.
    pub fn bytes(&self) -> f64 {
        let values = self.tokens * self.skew * self.destinations() * self.hidden as f64;
        values * (self.dispatch_bits / 8.0 + ACTIVATION_BYTES)
    }
}
