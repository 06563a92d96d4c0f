//! Counting parameters, weight bytes and cache bytes of a [`MoeModel`].
//!
//! Counted: embedding and head, attention (with its biases where a model counts them), routers,
//! experts, dense feed-forward blocks, norms. Not counted: multi-token-prediction layers, expert and
//! router biases, query/key norms, attention sinks, shared-expert gates (all below 0.01 %).

use crate::config::formats::TensorBits;
use crate::config::layers::{FeedForward, Mixer, MoeBlock, Reach, SelfAttention, TensorKind};
use crate::config::{Attention, DType, LayerGroup, MoeModel};
use crate::units::Bytes;

/// Parameters of a model by part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamCount {
    /// Input embedding.
    pub embedding: f64,
    /// Output head; 0 when tied to the embedding.
    pub head: f64,
    /// Attention and other mixers of all layers.
    pub attention: f64,
    /// Of these, mixers without attention (Mamba, linear attention).
    pub linear: f64,
    /// Routers of all MoE layers.
    pub router: f64,
    /// All routed experts.
    pub experts: f64,
    /// Routed experts that one token visits.
    pub active_experts: f64,
    /// Shared experts, and projections around experts of their own width.
    pub shared: f64,
    /// Dense feed-forward blocks, those in parallel to experts included.
    pub dense_ffn: f64,
    /// Norms.
    pub norms: f64,
}

impl ParamCount {
    /// Everything but routed experts.
    fn common(&self) -> f64 {
        self.embedding
            + self.head
            + self.attention
            + self.router
            + self.shared
            + self.dense_ffn
            + self.norms
    }

    /// All parameters.
    pub fn total(&self) -> f64 {
        self.common() + self.experts
    }

    /// Parameters that one token meets, embedding and head included.
    pub fn active(&self) -> f64 {
        self.common() + self.active_experts
    }

    /// The same without embedding and head.
    pub fn active_non_embedding(&self) -> f64 {
        self.active() - self.embedding - self.head
    }

    /// Active parameters without the input embedding, as some authors count (gpt-oss).
    pub fn active_head_only(&self) -> f64 {
        self.active() - self.embedding
    }
}

/// Weights of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KindBytes {
    /// What they belong to.
    pub kind: TensorKind,
    /// How many.
    pub params: f64,
    /// Bits of one, scales included.
    pub bits: f64,
}

impl KindBytes {
    /// Their size.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.params * self.bits / 8.0)
    }
}

impl MoeModel {
    /// Layers with a MoE feed-forward block; all layers of a dense model that is not listed by
    /// groups, whose block is its one expert.
    pub fn moe_layers(&self) -> usize {
        if self.groups.is_empty() {
            return self.num_layers.saturating_sub(self.dense_layers);
        }
        let is_moe = |g: &&LayerGroup| match g.ffn {
            FeedForward::Moe(_) => true,
            FeedForward::Dense { .. } => self.is_dense(),
            FeedForward::None => false,
        };
        self.groups.iter().filter(is_moe).map(|g| g.layers).sum()
    }

    /// Layers with attention, which alone have a cache.
    pub fn attention_layers(&self) -> usize {
        let attends = |g: &&LayerGroup| matches!(g.mixer, Mixer::Attention(_));
        self.layer_groups().iter().filter(attends).map(|g| g.layers).sum()
    }

    /// Whether there is a single expert and so nothing to route.
    pub const fn is_dense(&self) -> bool {
        self.num_experts == 1
    }

    /// All layers by kind.
    pub fn layer_groups(&self) -> Vec<LayerGroup> {
        if self.groups.is_empty() { self.plain_groups() } else { self.groups.clone() }
    }

    /// The layers that the plain fields describe: windowed layers are taken to be MoE layers first.
    pub(crate) fn plain_groups(&self) -> Vec<LayerGroup> {
        let window = match self.attention {
            Attention::Gqa { sliding_window, .. } => sliding_window,
            Attention::Mla { .. } => None,
        };
        let (reach, windowed) = window
            .map_or((Reach::Full, 0), |w| (Reach::Window(w.window), w.layers.min(self.num_layers)));
        let mut projection = self.attention.clone();
        if let Attention::Gqa { sliding_window, .. } = &mut projection {
            *sliding_window = None;
        }
        let mixer = |reach| {
            Mixer::Attention(SelfAttention { reach, ..SelfAttention::full(projection.clone()) })
        };
        let dense = FeedForward::Dense { width: self.dense_intermediate_size, gated: self.gated };
        let moe = self.plain_block();
        let moe_layers = self.num_layers.saturating_sub(self.dense_layers);
        let windowed_moe = windowed.min(moe_layers);
        let windowed_dense = windowed - windowed_moe;
        let groups = [
            (moe_layers - windowed_moe, Reach::Full, &moe),
            (windowed_moe, reach, &moe),
            (self.dense_layers.saturating_sub(windowed_dense), Reach::Full, &dense),
            (windowed_dense, reach, &dense),
        ];
        groups
            .into_iter()
            .filter(|(layers, ..)| *layers > 0)
            .map(|(layers, reach, ffn)| LayerGroup {
                layers,
                mixer: mixer(reach),
                ffn: ffn.clone(),
            })
            .collect()
    }

    /// The feed-forward block that the plain fields describe.
    fn plain_block(&self) -> FeedForward {
        let (width, gated) = (self.moe_intermediate_size, self.gated);
        if self.is_dense() {
            return FeedForward::Dense { width, gated };
        }
        FeedForward::Moe(MoeBlock {
            experts: self.num_experts,
            top_k: self.top_k,
            width,
            gated,
            latent: None,
            zero_experts: 0,
            shared: self.shared_experts,
            parallel: 0,
        })
    }

    /// Width that an expert reads and writes: the hidden size, or that of its latent space.
    pub fn expert_input_size(&self) -> usize {
        let blocks = self.groups.iter().filter_map(|g| g.ffn.moe());
        blocks.map(|m| m.expert_input(self.hidden_size)).next().unwrap_or(self.hidden_size)
    }

    /// Parameters by part.
    pub fn params(&self) -> ParamCount {
        let vocab = self.vocab_size as f64 * self.hidden_size as f64;
        let mut count = ParamCount {
            embedding: vocab,
            head: if self.tied_embeddings { 0.0 } else { vocab },
            attention: 0.0,
            linear: 0.0,
            router: 0.0,
            experts: 0.0,
            active_experts: 0.0,
            shared: 0.0,
            dense_ffn: 0.0,
            // The norm before the head.
            norms: self.hidden_size as f64,
        };
        for group in self.layer_groups() {
            let layers = group.layers as f64;
            for part in group.parts(self.hidden_size) {
                count.add(part.kind, layers * part.params, layers * part.active);
            }
        }
        if self.is_dense() && self.groups.is_empty() {
            // The one expert of a dense model counts as its expert, as the steps execute it.
            let ffn = self.num_layers.saturating_sub(self.dense_layers) as f64
                * self.expert_params()
                * f64::from(u8::from(self.moe_intermediate_size > 0));
            count.dense_ffn -= ffn;
            count.experts += ffn;
            count.active_experts += ffn;
        }
        count
    }

    /// Parameters of one expert of one layer.
    pub fn expert_params(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        matrices * (self.expert_input_size() as f64 * self.moe_intermediate_size as f64)
    }

    /// Bits by tensor kind. Embedding and head stay in 16 bits in quantised checkpoints.
    pub fn tensor_bits(&self) -> TensorBits {
        let plain = || {
            let experts = self.expert_bits();
            TensorBits {
                experts,
                shared: experts,
                ..TensorBits::of(self.expert_dtype, self.dense_dtype)
            }
        };
        self.bits.unwrap_or_else(plain)
    }

    /// Stores experts and everything else in the given formats, whatever the file had.
    pub fn set_weights(&mut self, experts: DType, dense: DType) {
        (self.expert_dtype, self.dense_dtype) = (experts, dense);
        (self.expert_bits, self.bits) = (None, None);
    }

    /// Weights by tensor kind; kinds that the model lacks are left out.
    pub fn weights_by_kind(&self) -> Vec<KindBytes> {
        let (p, bits) = (self.params(), self.tensor_bits());
        TensorKind::ALL
            .into_iter()
            .map(|kind| KindBytes { kind, params: p.of(kind), bits: bits.of_kind(kind) })
            .filter(|k| k.params > 0.0)
            .collect()
    }

    /// All weights. Routers and norms stay in 16 bits whatever the rest is stored in.
    pub fn weight_bytes(&self) -> Bytes {
        Bytes(self.weights_by_kind().iter().map(|k| k.bytes().0).sum())
    }

    /// One expert of one layer.
    pub fn expert_bytes(&self) -> Bytes {
        Bytes(self.expert_params() * self.expert_bits() / 8.0)
    }

    /// Cached keys and values of a sequence of `tokens` tokens, over all layers; layers with a
    /// window hold at most their window, layers without attention nothing.
    pub fn kv_bytes(&self, tokens: f64) -> Bytes {
        let values: f64 =
            self.layer_groups().iter().map(|g| g.layers as f64 * g.cached_values(tokens)).sum();
        Bytes(values * self.kv_dtype.bits() / 8.0)
    }

    /// Recurrent state of one sequence over all layers; it does not grow with the context.
    pub fn state_bytes(&self) -> Bytes {
        let groups = self.layer_groups();
        Bytes(groups.iter().map(|g| g.layers as f64 * g.state_bytes(self.hidden_size)).sum())
    }
}

impl ParamCount {
    fn add(&mut self, kind: TensorKind, params: f64, active: f64) {
        match kind {
            TensorKind::Experts => {
                self.experts += params;
                self.active_experts += active;
            }
            TensorKind::Shared => self.shared += params,
            TensorKind::Attention => self.attention += params,
            TensorKind::Linear => {
                self.attention += params;
                self.linear += params;
            }
            TensorKind::Dense => self.dense_ffn += params,
            TensorKind::Embedding => self.embedding += params,
            TensorKind::Head => self.head += params,
            TensorKind::Router => self.router += params,
            TensorKind::Norms => self.norms += params,
        }
    }

    /// Parameters of one kind.
    pub const fn of(&self, kind: TensorKind) -> f64 {
        match kind {
            TensorKind::Experts => self.experts,
            TensorKind::Shared => self.shared,
            TensorKind::Attention => self.attention - self.linear,
            TensorKind::Linear => self.linear,
            TensorKind::Dense => self.dense_ffn,
            TensorKind::Embedding => self.embedding,
            TensorKind::Head => self.head,
            TensorKind::Router => self.router,
            TensorKind::Norms => self.norms,
        }
    }
}

impl Attention {
    /// FLOPs of scores and values for one query token, one context token and one layer. A latent
    /// cache is attended in latent space.
    pub fn flops(&self) -> f64 {
        match *self {
            Self::Gqa { heads, head_dim, .. } => 4.0 * (heads * head_dim) as f64,
            Self::Mla { heads, kv_lora_rank, qk_rope_head_dim, .. } => {
                2.0 * (heads * (2 * kv_lora_rank + qk_rope_head_dim)) as f64
            }
        }
    }

    /// Over how many ranks the cache can be split; beyond, it is replicated.
    pub const fn kv_splits(&self) -> usize {
        match *self {
            Self::Gqa { kv_heads, .. } => kv_heads,
            Self::Mla { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::preset;

    fn close(what: &str, got: f64, expected: f64, relative: f64) {
        assert!((got / expected - 1.0).abs() <= relative, "{what}: {got} against {expected}");
    }

    #[test]
    fn totals_and_active_counts_agree_with_the_published_ones() {
        // (model, total, active in 1e9), embedding and head counted.
        let models = [
            ("Mixtral-8x7B", 46.703, 12.880),
            ("DeepSeekMoE-16B", 16.376, 2.829),
            ("DeepSeek-V2-Lite", 15.706, 2.661),
            ("DeepSeek-V3", 671.026, 37.552),
            ("Qwen1.5-MoE-A2.7B", 14.316, 2.689),
            ("Qwen3-30B-A3B", 30.532, 3.353),
            ("Qwen3-235B-A22B", 235.094, 22.191),
            ("Phi-3.5-MoE", 41.873, 6.640),
            ("GLM-4.5-Air", 106.852, 13.423),
            ("Kimi-K2", 1026.408, 32.861),
        ];
        for (name, total, active) in models {
            let params = preset::load(name).unwrap().model.params();
            close(name, params.total(), total * 1e9, 1e-3);
            close(name, params.active(), active * 1e9, 1e-3);
        }
        for (name, total, head_only) in
            [("gpt-oss-20b", 20.908, 3.607), ("gpt-oss-120b", 116.789, 5.132)]
        {
            let params = preset::load(name).unwrap().model.params();
            close(name, params.total(), total * 1e9, 1e-3);
            close(name, params.active_head_only(), head_only * 1e9, 1e-3);
        }
    }

    #[test]
    fn models_without_a_reference_total_come_near_their_names() {
        for (name, billions) in
            [("Mixtral-8x22B", 141.0), ("OLMoE-1B-7B", 6.9), ("Ling-mini-2.0", 16.3)]
        {
            close(name, preset::load(name).unwrap().model.params().total(), billions * 1e9, 0.01);
        }
    }

    #[test]
    fn cache_and_expert_sizes_agree_with_the_published_ones() {
        // (model, cache bytes per token in bf16, bytes of one expert of one layer in bf16)
        let models = [
            ("Mixtral-8x7B", 131_072.0, 352.3e6),
            ("Qwen3-30B-A3B", 98_304.0, 9.4e6),
            ("Qwen3-235B-A22B", 192_512.0, 37.7e6),
            ("DeepSeek-V3", 70_272.0, 88.1e6),
            ("gpt-oss-120b", 73_728.0, 49.8e6),
        ];
        for (name, cache, expert) in models {
            let model = preset::load(name).unwrap().model;
            close(name, model.kv_bytes(1.0).0, cache, 1e-9);
            let in_bf16 = model.expert_bytes().0 * 16.0 / model.expert_dtype.bits();
            // Published to one decimal of a megabyte.
            close(name, in_bf16, expert, 0.05e6 / expert);
        }
    }

    #[test]
    fn a_sliding_window_caps_the_cache_of_its_layers() {
        let model = preset::load("gpt-oss-20b").unwrap().model;
        let (short, long) = (model.kv_bytes(128.0).0, model.kv_bytes(4096.0).0);
        let per_layer_token = 2.0 * 8.0 * 64.0 * 2.0;
        close("short", short, 24.0 * 128.0 * per_layer_token, 1e-12);
        close("long", long, 12.0 * (128.0 + 4096.0) * per_layer_token, 1e-12);
    }
}
