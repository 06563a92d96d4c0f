//! The architecture whose sizes a ranking varies: proportions that stay while width and expert count
//! change, and the real-valued sizes that follow from them.

use crate::config::{Attention, MoeModel, RouterConfig, Scoring};
use crate::{Error, Result};

/// Halvings and Newton steps that invert a parameter count.
const STEPS: u32 = 60;
/// Most routed experts per layer that are a meaningful question.
const MAX_EXPERTS: usize = 4096;

/// Proportions of an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// What it is called in the answer.
    pub name: String,
    /// Routed experts that a token visits.
    pub top_k: usize,
    /// FFN width of one routed expert over the hidden size.
    pub expert_ratio: f64,
    /// Experts that every token visits.
    pub shared_experts: usize,
    /// FFN width of all of them together over the hidden size.
    pub shared_ratio: f64,
    /// Share of the layers that have experts.
    pub moe_share: f64,
    /// FFN width of the layers without experts over the hidden size.
    pub dense_ratio: f64,
    /// Hidden size over the number of layers.
    pub aspect: f64,
    /// Attention.
    pub attention: AttentionTemplate,
    /// Vocabulary.
    pub vocab: usize,
    /// Whether input embedding and output head are one matrix.
    pub tied_embeddings: bool,
    /// The router.
    pub router: RouterConfig,
}

/// Proportions of the attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionTemplate {
    /// Query heads that share key/value heads.
    Grouped {
        /// Width of all query heads over the hidden size.
        width_ratio: f64,
        /// Values per head; `None` takes 64 or 128, whichever divides over a replica's ranks.
        head_dim: Option<usize>,
        /// Query heads per key/value head; 1 is multi-head attention.
        group: f64,
    },
    /// Multi-head latent attention; ranks and head sizes stay while the number of heads scales.
    Latent {
        /// Hidden size over the number of heads.
        hidden_per_head: f64,
        /// Rank of the query compression, if any.
        q_lora_rank: Option<usize>,
        /// Width of the cached latent vector.
        kv_lora_rank: usize,
        /// Query/key width of a head without position.
        qk_nope_head_dim: usize,
        /// Rotary width.
        qk_rope_head_dim: usize,
        /// Value width of a head.
        v_head_dim: usize,
    },
}

impl AttentionTemplate {
    /// Parameters of one layer's attention.
    fn params(self, hidden: f64) -> f64 {
        match self {
            Self::Grouped { width_ratio, group, .. } => {
                hidden * hidden * width_ratio * (2.0 + 2.0 / group)
            }
            Self::Latent {
                hidden_per_head,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => {
                let heads = hidden / hidden_per_head;
                let query = heads * (qk_nope_head_dim + qk_rope_head_dim) as f64;
                let queries =
                    q_lora_rank.map_or(hidden * query, |rank| rank as f64 * (hidden + query));
                let latent = kv_lora_rank as f64;
                queries
                    + hidden * (latent + qk_rope_head_dim as f64)
                    + latent * heads * (qk_nope_head_dim + v_head_dim) as f64
                    + heads * v_head_dim as f64 * hidden
            }
        }
    }
}

/// Real-valued sizes of the transformer that a parameter count stands for: gated feed-forward blocks,
/// routers and norms not counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closure {
    /// Routed experts per layer; 1 is dense.
    pub experts: usize,
    /// Routed experts that one token visits.
    pub top_k: usize,
    /// Experts that every token visits.
    pub shared_experts: usize,
    /// Width of the residual stream.
    pub hidden: f64,
    /// FFN width of one routed expert; of a dense model, that of its blocks.
    pub inter: f64,
    /// FFN width of all shared experts together.
    pub shared_inter: f64,
    /// Layers.
    pub layers: f64,
    /// Layers with experts.
    pub moe_layers: f64,
    /// Vocabulary size.
    pub vocab: f64,
    /// Parameters of embedding and head.
    pub n_vocab: f64,
    /// Active parameters, with embedding and head.
    pub n_active: f64,
    /// All parameters.
    pub n_total: f64,
}

impl Closure {
    /// Total over active feed-forward width of a layer with experts: the expert count of a top-1 model
    /// without shared experts, and what stands for it in laws that know only such models.
    pub fn expansion(&self) -> f64 {
        let active = self.top_k as f64 * self.inter + self.shared_inter;
        (self.experts as f64 * self.inter + self.shared_inter) / active
    }

    /// Experts that a token visits, shared ones included.
    pub const fn active_experts(&self) -> f64 {
        (self.top_k + self.shared_experts) as f64
    }

    /// Whether there is nothing to route.
    pub const fn is_dense(&self) -> bool {
        self.experts <= 1
    }
}

impl Template {
    /// The models of Ludziejewski et al. 2025: layers and heads are width / 64, gated blocks of three
    /// times the width in every layer, top-1, multi-head attention.
    pub fn ludziejewski2025() -> Self {
        Self {
            name: "models of ludziejewski2025".into(),
            top_k: 1,
            expert_ratio: 3.0,
            shared_experts: 0,
            shared_ratio: 0.0,
            moe_share: 1.0,
            dense_ratio: 3.0,
            aspect: 64.0,
            attention: AttentionTemplate::Grouped { width_ratio: 1.0, head_dim: None, group: 1.0 },
            vocab: 50_257,
            tied_embeddings: false,
            router: RouterConfig { renormalize: false, ..RouterConfig::SOFTMAX },
        }
    }

    /// The proportions of a model.
    ///
    /// # Errors
    /// [`Error::Usage`] for a model whose layers these proportions do not describe.
    pub fn of(model: &MoeModel) -> Result<Self> {
        let refused = |what: &str| {
            Err(Error::usage(
                "--model",
                format!("{} {what}; its size cannot be varied", model.name),
            ))
        };
        if !model.groups.is_empty() {
            return refused("mixes several kinds of layers");
        }
        if !model.gated {
            return refused("has ungated feed-forward blocks");
        }
        let hidden = model.hidden_size as f64;
        let attention = match model.attention {
            Attention::Gqa { bias: true, .. } => return refused("has attention biases"),
            Attention::Gqa { sliding_window: Some(_), .. } => {
                return refused("has sliding-window layers");
            }
            Attention::Gqa { heads, kv_heads, head_dim, .. } => AttentionTemplate::Grouped {
                width_ratio: (heads * head_dim) as f64 / hidden,
                head_dim: Some(head_dim),
                group: heads as f64 / kv_heads as f64,
            },
            Attention::Mla {
                heads,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            } => AttentionTemplate::Latent {
                hidden_per_head: hidden / heads as f64,
                q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim,
                qk_rope_head_dim,
                v_head_dim,
            },
        };
        let shared = model.shared_experts;
        let expert_ratio = model.moe_intermediate_size as f64 / hidden;
        let dense = if model.dense_layers > 0 { model.dense_intermediate_size as f64 } else { 0.0 };
        Ok(Self {
            name: model.name.clone(),
            top_k: model.top_k,
            expert_ratio,
            shared_experts: shared.map_or(0, |s| s.count),
            shared_ratio: shared.map_or(0.0, |s| s.intermediate_size as f64 / hidden),
            moe_share: 1.0 - model.dense_layers as f64 / model.num_layers as f64,
            dense_ratio: dense / hidden,
            aspect: hidden / model.num_layers as f64,
            attention,
            vocab: model.vocab_size,
            tied_embeddings: model.tied_embeddings,
            // Groups of experts divide one expert count only.
            router: RouterConfig {
                n_group: 1,
                topk_group: 1,
                scoring: match model.router.scoring {
                    Scoring::Prototype | Scoring::SparseMixer => Scoring::Softmax,
                    other => other,
                },
                ..model.router
            },
        })
    }

    /// Width of the feed-forward blocks that one token meets in a layer with experts, over the hidden
    /// size; a dense model of the same architecture has blocks of this width.
    pub fn active_ratio(&self) -> f64 {
        self.top_k as f64 * self.expert_ratio + self.shared_ratio
    }

    /// The same with another number of query heads per key/value head; latent attention has none.
    pub fn with_kv_group(mut self, heads: f64) -> Self {
        if let AttentionTemplate::Grouped { group, .. } = &mut self.attention {
            *group = heads;
        }
        self
    }

    /// Query heads per key/value head; 1 for latent attention, whose cache they do not size.
    pub const fn kv_group(&self) -> f64 {
        match self.attention {
            AttentionTemplate::Grouped { group, .. } => group,
            AttentionTemplate::Latent { .. } => 1.0,
        }
    }

    /// The sizes at a width, real-valued.
    pub fn at_width(&self, experts: usize, hidden: f64) -> Closure {
        let layers = hidden / self.aspect;
        let moe_layers = if experts > 1 { self.moe_share * layers } else { layers };
        let dense_layers = layers - moe_layers;
        let top_k = self.top_k.min(experts);
        let (inter, shared_experts, shared_inter) = if experts > 1 {
            (self.expert_ratio * hidden, self.shared_experts, self.shared_ratio * hidden)
        } else {
            (self.active_ratio() * hidden, 0, 0.0)
        };
        let block = |width: f64| 3.0 * hidden * width;
        let tables = if self.tied_embeddings { 1.0 } else { 2.0 };
        let n_vocab = tables * hidden * self.vocab as f64;
        let common = n_vocab
            + layers * self.attention.params(hidden)
            + dense_layers * block(self.dense_ratio * hidden)
            + moe_layers * block(shared_inter);
        let experts_of = |count: usize| moe_layers * count as f64 * block(inter);
        Closure {
            experts,
            top_k,
            shared_experts,
            hidden,
            inter,
            shared_inter,
            layers,
            moe_layers,
            vocab: self.vocab as f64,
            n_vocab,
            n_active: common + experts_of(top_k),
            n_total: common + experts_of(experts),
        }
    }

    /// The sizes of `n_active` active parameters, by Newton's method in the logarithms: the count rises
    /// with the width and is convex there.
    ///
    /// # Errors
    /// [`Error::Usage`] for a number of experts or parameters outside what has a meaning.
    pub fn at_size(&self, experts: usize, n_active: f64) -> Result<Closure> {
        if !(1..=MAX_EXPERTS).contains(&experts) {
            return Err(Error::usage(
                "--experts",
                format!("{experts} does not lie between 1 and {MAX_EXPERTS}"),
            ));
        }
        Ok(self.sized(experts, crate::error::positive("--n-active", n_active)?))
    }

    /// [`Self::at_size`] of values that were checked.
    pub(crate) fn sized(&self, experts: usize, n_active: f64) -> Closure {
        /// A small step in the logarithm, for the slope.
        const NUDGE: f64 = 1e-6;
        let of = |ln_hidden: f64| self.at_width(experts, ln_hidden.exp()).n_active.ln();
        let wanted = n_active.ln();
        // A cubic in the width, from above.
        let mut ln_hidden = wanted / 3.0 + 2.0;
        for _ in 0..STEPS {
            let at = of(ln_hidden);
            let slope = (of(ln_hidden + NUDGE) - at) / NUDGE;
            let step = (at - wanted) / slope;
            ln_hidden -= step;
            if step.abs() < 1e-13 {
                break;
            }
        }
        self.at_width(experts, ln_hidden.exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

    #[test]
    fn the_default_template_has_the_papers_sizes() {
        let template = Template::ludziejewski2025();
        // Width, experts, total and active parameters of the paper's appendix E, where its layers are
        // width / 64.
        for (hidden, experts, total, active) in
            [(1024.0, 32, 5.002e9, 321e6), (1792.0, 4, 3.777e9, 1.349e9), (512.0, 32, 664e6, 79e6)]
        {
            let at = template.at_width(experts, hidden);
            assert!((at.n_total / total - 1.0).abs() < 1e-3, "{}", at.n_total);
            assert!((at.n_active / active - 1.0).abs() < 2e-2, "{}", at.n_active);
            assert!((at.expansion() - experts as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn a_size_is_inverted_exactly() {
        for template in ["mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b"] {
            let model = preset::load(template).unwrap().model;
            let template = Template::of(&model).unwrap();
            for experts in [1, 8, 256] {
                for hidden in [100.0, 4096.0, 50_000.0] {
                    let at = template.at_width(experts, hidden);
                    let back = template.at_size(experts, at.n_active).unwrap();
                    assert!((back.hidden / hidden - 1.0).abs() < 1e-9, "{}", template.name);
                }
            }
        }
    }

    #[test]
    fn a_models_own_proportions_give_back_its_counts() {
        for name in ["mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "olmoe-1b-7b"] {
            let model = preset::load(name).unwrap().model;
            let at =
                Template::of(&model).unwrap().at_width(model.num_experts, model.hidden_size as f64);
            let params = model.params();
            let uncounted = params.router + params.norms;
            let total = params.total() - uncounted;
            let active = params.active() - uncounted;
            assert!((at.n_total / total - 1.0).abs() < 1e-9, "{name}: {} {total}", at.n_total);
            assert!((at.n_active / active - 1.0).abs() < 1e-9, "{name}: {active}");
        }
    }

    #[test]
    fn fine_experts_keep_the_expansion() {
        let mut template = Template::ludziejewski2025();
        template.top_k = 8;
        template.expert_ratio = 3.0 / 8.0;
        let at = template.at_width(256, 2048.0);
        assert!((at.expansion() - 32.0).abs() < 1e-12);
        assert!((template.at_width(1, 2048.0).n_active / at.n_active - 1.0).abs() < 1e-12);
    }
}
