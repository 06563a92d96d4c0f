//! Counting parameters, weight bytes and cache bytes of a [`MoeModel`].
//!
//! Counted: embedding and head, attention (with its biases where a model counts them), routers,
//! experts, dense feed-forward blocks, norms. Not counted: multi-token-prediction layers, expert and
//! router biases, query/key norms, attention sinks, shared-expert gates (all below 0.01 %).

use crate::config::{Attention, MoeModel};
use crate::units::Bytes;

/// Parameters of a model by part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamCount {
    /// Input embedding.
    pub embedding: f64,
    /// Output head; 0 when tied to the embedding.
    pub head: f64,
    /// Attention of all layers.
    pub attention: f64,
    /// Routers of all MoE layers.
    pub router: f64,
    /// All routed experts.
    pub experts: f64,
    /// Routed experts that one token visits.
    pub active_experts: f64,
    /// Shared experts.
    pub shared: f64,
    /// Feed-forward blocks of the dense layers.
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

    /// The same without the input embedding, as some authors count (gpt-oss).
    pub fn active_head_only(&self) -> f64 {
        self.active() - self.embedding
    }
}

impl MoeModel {
    /// Layers with a MoE feed-forward block.
    pub const fn moe_layers(&self) -> usize {
        self.num_layers.saturating_sub(self.dense_layers)
    }

    /// Whether there is a single expert and so nothing to route.
    pub const fn is_dense(&self) -> bool {
        self.num_experts == 1
    }

    /// Parameters by part.
    pub fn params(&self) -> ParamCount {
        let hidden = self.hidden_size as f64;
        let (layers, moe_layers) = (self.num_layers as f64, self.moe_layers() as f64);
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let ffn = |width: usize| matrices * hidden * width as f64;
        let vocab = self.vocab_size as f64 * hidden;
        let expert = moe_layers * ffn(self.moe_intermediate_size);
        let router =
            if self.is_dense() { 0.0 } else { moe_layers * hidden * self.num_experts as f64 };
        ParamCount {
            embedding: vocab,
            head: if self.tied_embeddings { 0.0 } else { vocab },
            attention: layers * self.attention.params(hidden),
            router,
            experts: self.num_experts as f64 * expert,
            active_experts: self.top_k as f64 * expert,
            shared: moe_layers * self.shared_experts.map_or(0.0, |s| ffn(s.intermediate_size)),
            dense_ffn: self.dense_layers as f64 * ffn(self.dense_intermediate_size),
            norms: (2.0 * layers + 1.0) * hidden,
        }
    }

    /// All weights. Routers and norms stay in 16 bits whatever the rest is stored in.
    pub fn weight_bytes(&self) -> Bytes {
        let p = self.params();
        let experts = (p.experts + p.shared) * self.expert_bits();
        let rest = (p.embedding + p.head + p.attention + p.dense_ffn) * self.dense_dtype.bits();
        Bytes((experts + rest) / 8.0 + (p.router + p.norms) * 2.0)
    }

    /// One expert of one layer.
    pub fn expert_bytes(&self) -> Bytes {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let params = matrices * self.hidden_size as f64 * self.moe_intermediate_size as f64;
        Bytes(params * self.expert_bits() / 8.0)
    }

    /// Cached keys and values of a sequence of `tokens` tokens, over all layers; layers with a
    /// sliding window hold at most their window.
    pub fn kv_bytes(&self, tokens: f64) -> Bytes {
        let per_layer = self.attention.kv_values() * self.kv_dtype.bits() / 8.0;
        let held = match self.attention {
            Attention::Gqa { sliding_window: Some(w), .. } => {
                let limited = w.layers.min(self.num_layers) as f64;
                limited * tokens.min(w.window as f64) + (self.num_layers as f64 - limited) * tokens
            }
            _ => self.num_layers as f64 * tokens,
        };
        Bytes(per_layer * held)
    }
}

impl Attention {
    /// Parameters of one layer for a residual stream of width `hidden`.
    pub fn params(&self, hidden: f64) -> f64 {
        match *self {
            Self::Gqa { heads, kv_heads, head_dim, bias, .. } => {
                let (heads, kv, width) = (heads as f64, kv_heads as f64, head_dim as f64);
                let biases = if bias { (heads + 2.0 * kv) * width + hidden } else { 0.0 };
                2.0 * hidden * width * (heads + kv) + biases
            }
            Self::Mla {
                heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                let (heads, latent, rope) =
                    (heads as f64, kv_lora_rank as f64, qk_rope_head_dim as f64);
                let (nope, value) = (qk_nope_head_dim as f64, v_head_dim as f64);
                let query = q_lora_rank.map_or(hidden * heads * (nope + rope), |rank| {
                    let rank = rank as f64;
                    hidden * rank + rank * heads * (nope + rope)
                });
                query
                    + hidden * (latent + rope)
                    + latent * heads * (nope + value)
                    + heads * value * hidden
            }
        }
    }

    /// Cached values of one token in one layer.
    pub fn kv_values(&self) -> f64 {
        match *self {
            Self::Gqa { kv_heads, head_dim, .. } => 2.0 * (kv_heads * head_dim) as f64,
            Self::Mla { kv_lora_rank, qk_rope_head_dim, .. } => {
                (kv_lora_rank + qk_rope_head_dim) as f64
            }
        }
    }

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
