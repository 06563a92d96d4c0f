//! The sizes of a model as the step model needs them, in real numbers.
//!
//! Loss laws size models by a continuous width, so sizes are `f64` here; [`crate::config::MoeModel`]
//! holds the whole-number shape of a model that exists.

use crate::config::MoeModel;
use crate::latency::LayerQuery;
use crate::serving::LoadModel;
use crate::units::Bytes;

/// Sizes of one transformer, per layer where the name says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Layers with attention: all of them.
    pub layers: f64,
    /// Layers with a MoE (or, with one expert, plain) feed-forward block.
    pub moe_layers: f64,
    /// Width of the residual stream.
    pub hidden: f64,
    /// FFN width of one expert.
    pub inter: f64,
    /// Routed experts per MoE layer; 1 is dense.
    pub experts: usize,
    /// Routed experts per token.
    pub top_k: usize,
    /// Whether FFNs have three matrices (gated) or two.
    pub gated: bool,
    /// FFN width of all shared experts of a layer together; 0 without.
    pub shared_inter: f64,
    /// FFN width of the leading dense layers; 0 without.
    pub dense_inter: f64,
    /// Attention parameters of one layer.
    pub attention_params: f64,
    /// FLOPs of attention scores and values per token of context, layer and query token: 4 heads x width.
    pub attention_flops: f64,
    /// Cached key and value elements of one token in one layer.
    pub kv_values: f64,
    /// How often the cache can be split over tensor-parallel ranks (key/value heads; 1 for a latent cache).
    pub kv_splits: usize,
    /// Vocabulary size.
    pub vocab: f64,
    /// Whether the output head is a matrix of its own.
    pub untied_head: bool,
    /// Bits of one expert weight, scales included.
    pub expert_bits: f64,
    /// Bits of one other weight.
    pub dense_bits: f64,
    /// Bits of one cached element.
    pub kv_bits: f64,
}

impl Geometry {
    /// The sizes of a model that exists.
    ///
    /// Layers with a sliding window are counted with their full context here; the cache size that
    /// honours the window is [`MoeModel::kv_bytes`].
    pub fn of(model: &MoeModel) -> Self {
        let hidden = model.hidden_size as f64;
        let attention = &model.attention;
        Self {
            layers: model.num_layers as f64,
            moe_layers: (model.num_layers - model.dense_layers) as f64,
            hidden,
            inter: model.moe_intermediate_size as f64,
            experts: model.num_experts,
            top_k: model.top_k,
            gated: model.gated,
            shared_inter: model.shared_experts.map_or(0.0, |s| s.intermediate_size as f64),
            dense_inter: model.dense_intermediate_size as f64,
            attention_params: attention.params(hidden),
            attention_flops: attention.flops(),
            kv_values: attention.kv_values(),
            kv_splits: attention.kv_splits(),
            vocab: model.vocab_size as f64,
            untied_head: !model.tied_embeddings,
            expert_bits: model.expert_dtype.bits(),
            dense_bits: model.dense_dtype.bits(),
            kv_bits: model.kv_dtype.bits(),
        }
    }

    /// Matrices of one FFN: three when gated, two otherwise.
    pub fn matrices(&self) -> f64 {
        if self.gated { 3.0 } else { 2.0 }
    }

    /// Parameters of one expert in one layer.
    pub fn expert_params(&self) -> f64 {
        self.matrices() * self.hidden * self.inter
    }

    /// Parameters of one vocabulary matrix (embedding or head).
    pub fn vocab_params(&self) -> f64 {
        self.vocab * self.hidden
    }

    /// Router parameters of one layer; a dense model has none.
    pub fn router_params(&self) -> f64 {
        if self.experts > 1 { self.hidden * self.experts as f64 } else { 0.0 }
    }

    /// Weights of the whole model in bytes, embeddings included.
    pub fn weights_bytes(&self) -> Bytes {
        let experts = self.moe_layers * self.experts as f64 * self.expert_params();
        let shared = self.moe_layers * self.matrices() * self.hidden * self.shared_inter;
        let vocab = self.vocab_params() * if self.untied_head { 2.0 } else { 1.0 };
        let rest = self.layers * self.attention_params + self.dense_ffn_params() + vocab;
        // Routers stay in 16 bits whatever the experts are quantised to.
        let router = self.moe_layers * self.router_params() * 2.0;
        Bytes(((experts + shared) * self.expert_bits + rest * self.dense_bits) / 8.0 + router)
    }

    /// Cache bytes of one token over all layers, before any split over ranks.
    pub fn kv_bytes_per_token(&self) -> Bytes {
        Bytes(self.layers * self.kv_values * self.kv_bits / 8.0)
    }

    /// All parameters, embeddings included.
    pub fn total_params(&self) -> f64 {
        let ffn = self.experts as f64 * self.expert_params()
            + self.matrices() * self.hidden * self.shared_inter
            + self.router_params();
        let vocab = self.vocab_params() * if self.untied_head { 2.0 } else { 1.0 };
        self.layers * self.attention_params
            + self.moe_layers * ffn
            + self.dense_ffn_params()
            + vocab
    }

    /// The MoE layer that each of `devices` tensor-parallel devices executes for `tokens` tokens.
    pub fn layer_query(&self, load: &LoadModel, tokens: f64, devices: usize) -> LayerQuery {
        LayerQuery {
            hidden: whole(self.hidden),
            inter: whole(self.inter / devices as f64),
            experts: self.experts,
            top_k: self.top_k,
            gated: self.gated,
            weight_bits: self.expert_bits,
            tokens,
            active_experts: load.active_experts(tokens),
            max_rows: load.max_rows(tokens),
        }
    }

    /// Parameters of the feed-forward blocks of all dense layers.
    fn dense_ffn_params(&self) -> f64 {
        (self.layers - self.moe_layers) * self.matrices() * self.hidden * self.dense_inter
    }

    /// Parameters that one token meets, embeddings included.
    pub fn active_params(&self) -> f64 {
        let ffn = self.top_k as f64 * self.expert_params()
            + self.matrices() * self.hidden * self.shared_inter
            + self.router_params();
        let rest = self.dense_ffn_params() + 2.0 * self.vocab_params();
        self.layers * self.attention_params + self.moe_layers * ffn + rest
    }
}

/// The nearest whole number, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "widths are positive and far below 2^53"
)]
fn whole(value: f64) -> usize {
    value.round().max(1.0) as usize
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A 4-expert, top-1 model of width 1024 with multi-head attention and 16-bit numbers.
    pub(crate) fn small() -> Geometry {
        let (width, layers) = (1024.0, 16.0);
        Geometry {
            layers,
            moe_layers: layers,
            hidden: width,
            inter: 3.0 * width,
            experts: 4,
            top_k: 1,
            gated: true,
            shared_inter: 0.0,
            dense_inter: 0.0,
            attention_params: 4.0 * width * width,
            attention_flops: 4.0 * width,
            kv_values: 2.0 * width,
            kv_splits: 16,
            vocab: 50_257.0,
            untied_head: true,
            expert_bits: 16.0,
            dense_bits: 16.0,
            kv_bits: 16.0,
        }
    }

    #[test]
    fn parameters_add_up() {
        let g = small();
        let square = 1024.0 * 1024.0;
        let vocab = 2.0 * 50_257.0 * 1024.0;
        let router = 16.0 * 4.0 * 1024.0;
        assert!(
            (g.total_params() - (vocab + router + 16.0 * (4.0 + 9.0 * 4.0) * square)).abs() < 1.0
        );
        assert!((g.active_params() - (vocab + router + 16.0 * 13.0 * square)).abs() < 1.0);
        assert!((g.weights_bytes().0 - 2.0 * g.total_params()).abs() < 1.0);
        assert!((g.kv_bytes_per_token().0 - 16.0 * 2048.0 * 2.0).abs() < 1e-9);
    }

    #[test]
    fn quantised_experts_shrink_only_the_experts() {
        let experts = 16.0 * 4.0 * small().expert_params();
        let quantised = Geometry { expert_bits: 4.25, ..small() };
        let saved = small().weights_bytes().0 - quantised.weights_bytes().0;
        assert!((saved - experts * (16.0 - 4.25) / 8.0).abs() < 1.0);
    }

    #[test]
    fn a_rank_executes_its_share_of_every_expert() {
        let load = LoadModel::uniform(4, 1);
        let query = small().layer_query(&load, 8.0, 4);
        assert_eq!((query.hidden, query.inter, query.experts), (1024, 768, 4));
        assert!((query.active_experts - 4.0 * (1.0 - 0.75f64.powi(8))).abs() < 1e-12);
    }
}
