//! Layers by kind: which mixer and which feed-forward block a layer has, and what each costs.
//!
//! A stack is a list of [`LayerGroup`]s. A group holds equal layers, wherever they are in the stack.
//! Each block names its weight matrices as [`Part`]s, so that the parameter counter, the weight
//! bytes and the lists of modules a quantisation leaves alone read from one description.

use serde::{Deserialize, Serialize};

use crate::config::{Attention, SharedExperts};

/// Layers of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many layers of the stack are of this kind.
    pub layers: usize,
    /// What mixes tokens.
    pub mixer: Mixer,
    /// What follows the mixer.
    pub ffn: FeedForward,
}

/// The block of a layer in which tokens see each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// None: the layer is a feed-forward block alone.
    None,
    /// Softmax attention with a cache.
    Attention(SelfAttention),
    /// A state-space block (Mamba) with a recurrent state.
    Mamba(Mamba),
    /// Linear attention with a recurrent state of keys by values.
    Linear(LinearAttention),
    /// A gated short convolution (LFM2).
    ShortConv {
        /// Taps of the convolution.
        kernel: usize,
    },
}

/// Softmax attention and what its cache holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfAttention {
    /// Projections; a window is in `reach`, never in here.
    pub projection: Attention,
    /// Width of a value where it differs from the key's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_dim: Option<usize>,
    /// Which tokens are seen, and so cached.
    pub reach: Reach,
    /// Whether the output is gated by a projection of the input as wide as itself.
    #[serde(default, skip_serializing_if = "is_false")]
    pub output_gate: bool,
    /// Whether values are the unrotated keys, without a projection of their own (Gemma 4).
    #[serde(default, skip_serializing_if = "is_false")]
    pub values_are_keys: bool,
    /// Whether queries and keys are normed over all heads together (MiniMax-M2): ranks that share the
    /// heads must then exchange their squares.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wide_norm: bool,
    /// Low-rank query and output around one shared latent head (DeepSeek-V4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRank>,
    /// Selection of cached tokens by an indexer (DeepSeek sparse attention).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexer: Option<Indexer>,
}

/// Which tokens a layer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// All of them.
    Full,
    /// The last so many.
    Window(usize),
    /// Those of its own chunk of so many.
    Chunk(usize),
    /// The last `window`, and every `ratio` older ones as one entry.
    Compressed {
        /// Tokens in full.
        window: usize,
        /// Tokens in one compressed entry.
        ratio: usize,
    },
}

/// Low-rank query and output projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LowRank {
    /// Rank of the query.
    pub query_rank: usize,
    /// Rank of the output of each group.
    pub output_rank: usize,
    /// Groups of heads that share an output projection.
    pub output_groups: usize,
}

/// A small attention that chooses which cached tokens the large one reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexer {
    /// Its heads.
    pub heads: usize,
    /// Their width; one key of this width is cached for each token (or compressed entry).
    pub head_dim: usize,
    /// Tokens that it chooses.
    pub top_k: usize,
    /// Width of what its queries are projected from.
    pub query_input: usize,
}

/// Which state-space block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MambaKind {
    /// Mamba (one state per channel, low-rank step sizes).
    Mamba1 {
        /// Rank of the step sizes.
        dt_rank: usize,
    },
    /// Mamba-2 (one step size per head, groups of shared B and C).
    Mamba2 {
        /// Heads.
        heads: usize,
        /// Groups.
        groups: usize,
    },
}

/// A state-space block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mamba {
    /// Which one.
    pub kind: MambaKind,
    /// Channels.
    pub inner: usize,
    /// State values per channel.
    pub state: usize,
    /// Taps of the convolution.
    pub kernel: usize,
}

/// Which linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearKind {
    /// Gated delta net (Qwen3-Next, Qwen3.5).
    GatedDeltaNet,
    /// Kimi delta attention: gates per channel, made by low-rank projections.
    KimiDelta,
    /// Lightning attention (MiniMax-Text-01, Ling linear): fixed decay, gated output.
    Lightning,
}

/// Linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearAttention {
    /// Which one.
    pub kind: LinearKind,
    /// Key (and query) heads.
    pub key_heads: usize,
    /// Width of a key.
    pub key_dim: usize,
    /// Value heads; each has a state of keys by values.
    pub value_heads: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Taps of the convolution; 0 without one.
    pub kernel: usize,
}

/// The block after the mixer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// None: the layer is a mixer alone.
    None,
    /// One block for every token.
    Dense {
        /// Its width.
        width: usize,
        /// Three matrices instead of two.
        gated: bool,
    },
    /// Routed experts with what runs beside them.
    Moe(MoeBlock),
}

/// Routed experts and the blocks beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeBlock {
    /// Routed experts.
    pub experts: usize,
    /// Experts that a token is sent to.
    pub top_k: usize,
    /// Width of one expert.
    pub width: usize,
    /// Three matrices instead of two.
    pub gated: bool,
    /// Width that tokens are projected to before the experts and back from after them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<usize>,
    /// Experts of no work that the router may choose (`LongCat`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zero_experts: usize,
    /// Experts that every token visits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedExperts>,
    /// Width of a gated dense block in parallel (Arctic, Gemma 4, Grok 2), 0 without one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parallel: usize,
}

/// What a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKind {
    /// Routed experts.
    Experts,
    /// Shared experts, and the projections around latent experts.
    Shared,
    /// Projections of attention, its indexer included.
    Attention,
    /// Mixers without attention.
    Linear,
    /// Dense feed-forward blocks.
    Dense,
    /// Input embedding.
    Embedding,
    /// Output head.
    Head,
    /// Routers.
    Router,
    /// Norms.
    Norms,
}

/// One weight matrix, or several that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// What it belongs to.
    pub kind: TensorKind,
    /// Names of its module below the layer, in the spellings of checkpoints.
    pub modules: &'static [&'static str],
    /// Parameters.
    pub params: f64,
    /// Parameters that one token meets.
    pub active: f64,
}

/// For serde, which passes a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// A part that every token meets.
fn part(kind: TensorKind, modules: &'static [&'static str], params: f64) -> Part {
    Part { kind, modules, params, active: params }
}

impl TensorKind {
    /// Every kind, in the order of printing.
    pub const ALL: [Self; 9] = [
        Self::Experts,
        Self::Shared,
        Self::Attention,
        Self::Linear,
        Self::Dense,
        Self::Embedding,
        Self::Head,
        Self::Router,
        Self::Norms,
    ];

    /// The name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Experts => "routed experts",
            Self::Shared => "shared experts",
            Self::Attention => "attention",
            Self::Linear => "linear mixers",
            Self::Dense => "dense blocks",
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Router => "routers",
            Self::Norms => "norms",
        }
    }
}

impl LayerGroup {
    /// The weights of one layer for a residual stream of width `hidden`.
    pub fn parts(&self, hidden: usize) -> Vec<Part> {
        let width = hidden as f64;
        let mut parts = self.mixer.parts(width);
        parts.extend(self.ffn.parts(hidden));
        let norms = f64::from(u8::from(self.mixer != Mixer::None))
            + f64::from(u8::from(self.ffn != FeedForward::None));
        parts.push(part(TensorKind::Norms, &["input_layernorm"], norms * width));
        parts
    }

    /// Parameters of one layer.
    pub fn params(&self, hidden: usize) -> f64 {
        self.parts(hidden).iter().map(|p| p.params).sum()
    }

    /// FLOPs of one layer for one token: two per weight that it meets, and the scan of a recurrent
    /// state; what attention does with its cache is [`Self::context_flops`].
    pub fn flops_per_token(&self, hidden: usize) -> f64 {
        let weights: f64 = self
            .parts(hidden)
            .iter()
            .filter(|p| p.kind != TensorKind::Norms)
            .map(|p| p.active)
            .sum();
        2.0 * weights + self.mixer.state_flops()
    }

    /// FLOPs of scores and values of one layer for one token that sees `context` tokens.
    pub fn context_flops(&self, context: f64) -> f64 {
        match &self.mixer {
            Mixer::Attention(a) => a.context_flops(context),
            _ => 0.0,
        }
    }

    /// Values that one layer caches for a sequence of `tokens` tokens.
    pub fn cached_values(&self, tokens: f64) -> f64 {
        match &self.mixer {
            Mixer::Attention(a) => a.cached_values(tokens),
            _ => 0.0,
        }
    }

    /// Bytes of recurrent state of one layer and sequence: the state in f32, the last inputs of its
    /// convolution in 16 bits.
    pub fn state_bytes(&self, hidden: usize) -> f64 {
        let (state, tail) = self.mixer.state_values(hidden);
        4.0 * state + 2.0 * tail
    }
}

impl Mixer {
    /// A name to print.
    pub fn label(&self) -> String {
        match self {
            Self::None => "no mixer".into(),
            Self::Attention(a) => a.label(),
            Self::Mamba(m) => match m.kind {
                MambaKind::Mamba1 { .. } => format!("Mamba, {} channels x {}", m.inner, m.state),
                MambaKind::Mamba2 { heads, .. } => {
                    format!("Mamba-2, {heads} heads of {} x {}", m.inner / heads.max(1), m.state)
                }
            },
            Self::Linear(l) => {
                let name = match l.kind {
                    LinearKind::GatedDeltaNet => "gated delta net",
                    LinearKind::KimiDelta => "Kimi delta attention",
                    LinearKind::Lightning => "lightning attention",
                };
                format!("{name}, {} heads of {} x {}", l.value_heads, l.key_dim, l.value_dim)
            }
            Self::ShortConv { kernel } => format!("short convolution of {kernel}"),
        }
    }

    fn parts(&self, hidden: f64) -> Vec<Part> {
        match self {
            Self::None => Vec::new(),
            Self::Attention(a) => a.parts(hidden),
            Self::Mamba(m) => m.parts(hidden),
            Self::Linear(l) => l.parts(hidden),
            Self::ShortConv { kernel } => vec![
                part(TensorKind::Linear, &["conv.in_proj"], 3.0 * hidden * hidden),
                part(TensorKind::Linear, &["conv.out_proj"], hidden * hidden),
                part(TensorKind::Linear, &["conv.conv"], hidden * *kernel as f64),
            ],
        }
    }

    /// Values of the recurrent state, and of the inputs that its convolution remembers.
    fn state_values(&self, hidden: usize) -> (f64, f64) {
        match self {
            Self::None | Self::Attention(_) => (0.0, 0.0),
            Self::Mamba(m) => {
                ((m.inner * m.state) as f64, (m.convolved() * m.kernel.saturating_sub(1)) as f64)
            }
            Self::Linear(l) => (
                (l.value_heads * l.key_dim * l.value_dim) as f64,
                (l.convolved() * l.kernel.saturating_sub(1)) as f64,
            ),
            Self::ShortConv { kernel } => (0.0, (hidden * kernel.saturating_sub(1)) as f64),
        }
    }

    /// Update and read of the state for one token: three multiply-adds per value with the delta
    /// rule, two without.
    fn state_flops(&self) -> f64 {
        let per_value = match self {
            Self::Linear(l) if l.kind != LinearKind::Lightning => 6.0,
            _ => 4.0,
        };
        per_value * self.state_values(0).0
    }
}

impl SelfAttention {
    /// Plain attention over all tokens.
    pub const fn full(projection: Attention) -> Self {
        Self {
            projection,
            value_dim: None,
            reach: Reach::Full,
            output_gate: false,
            values_are_keys: false,
            wide_norm: false,
            low_rank: None,
            indexer: None,
        }
    }

    fn label(&self) -> String {
        let projection = match &self.projection {
            Attention::Gqa { heads, kv_heads, head_dim, .. } if self.low_rank.is_some() => {
                format!("latent attention, {heads} heads on {kv_heads} of {head_dim}")
            }
            Attention::Gqa { heads, kv_heads, head_dim, .. } => {
                format!("{heads} heads, {kv_heads} KV heads of {head_dim}")
            }
            Attention::Mla { heads, kv_lora_rank, qk_rope_head_dim, .. } => {
                format!("MLA, {heads} heads, cached {kv_lora_rank} + {qk_rope_head_dim}")
            }
        };
        let reach = match self.reach {
            Reach::Full => String::new(),
            Reach::Window(w) => format!(", window {w}"),
            Reach::Chunk(c) => format!(", chunks of {c}"),
            Reach::Compressed { window, ratio } => {
                format!(", window {window} and 1/{ratio} of the rest")
            }
        };
        let indexer =
            self.indexer.map_or_else(String::new, |i| format!(", indexer picks {}", i.top_k));
        format!("{projection}{reach}{indexer}")
    }

    fn parts(&self, hidden: f64) -> Vec<Part> {
        let mut parts = match self.projection {
            Attention::Gqa { heads, kv_heads, head_dim, bias, .. } => match self.low_rank {
                Some(rank) => low_rank_parts(hidden, heads, head_dim, rank),
                None => self.gqa_parts(hidden, [heads, kv_heads, head_dim], bias),
            },
            Attention::Mla { .. } => mla_parts(hidden, &self.projection),
        };
        if let Some(indexer) = self.indexer {
            parts.extend(indexer.parts(hidden));
        }
        if self.output_gate {
            let modules: &[&str] = &["self_attn.q_proj", "self_attn.g_proj"];
            parts.push(part(TensorKind::Attention, modules, hidden * self.output_width()));
        }
        parts
    }

    fn gqa_parts(&self, hidden: f64, sizes: [usize; 3], bias: bool) -> Vec<Part> {
        const Q: &[&str] =
            &["self_attn.q_proj", "mixer.q_proj", "self_attn.qkv_proj", "attention.wq"];
        const K: &[&str] =
            &["self_attn.k_proj", "mixer.k_proj", "self_attn.qkv_proj", "attention.wk"];
        const V: &[&str] =
            &["self_attn.v_proj", "mixer.v_proj", "self_attn.qkv_proj", "attention.wv"];
        const O: &[&str] = &["self_attn.o_proj", "mixer.o_proj", "attention.wo"];
        let [heads, kv, key] = sizes.map(|s| s as f64);
        let value = self.value_dim.map_or(key, |v| v as f64);
        let biases = if bias { (heads + 2.0 * kv) * key + hidden } else { 0.0 };
        let values = if self.values_are_keys { 0.0 } else { hidden * kv * value };
        vec![
            part(TensorKind::Attention, Q, hidden * heads * key + biases),
            part(TensorKind::Attention, K, hidden * kv * key),
            part(TensorKind::Attention, V, values),
            part(TensorKind::Attention, O, heads * value * hidden),
        ]
    }

    /// Width of all heads' outputs together.
    fn output_width(&self) -> f64 {
        match self.projection {
            Attention::Gqa { heads, head_dim, .. } => {
                (heads * self.value_dim.unwrap_or(head_dim)) as f64
            }
            Attention::Mla { heads, v_head_dim, .. } => (heads * v_head_dim) as f64,
        }
    }

    /// Values of one cached entry, the indexer's key left out.
    pub fn entry_values(&self) -> f64 {
        match self.projection {
            // One latent vector serves as key and as value.
            Attention::Gqa { head_dim, .. } if self.low_rank.is_some() => head_dim as f64,
            Attention::Gqa { kv_heads, head_dim, .. } => {
                (kv_heads * (head_dim + self.value_dim.unwrap_or(head_dim))) as f64
            }
            Attention::Mla { kv_lora_rank, qk_rope_head_dim, .. } => {
                (kv_lora_rank + qk_rope_head_dim) as f64
            }
        }
    }

    /// Entries that are held for a sequence of `tokens` tokens.
    pub fn entries(&self, tokens: f64) -> f64 {
        match self.reach {
            Reach::Full => tokens,
            Reach::Window(most) | Reach::Chunk(most) => tokens.min(most as f64),
            Reach::Compressed { window, ratio } => {
                tokens.min(window as f64) + tokens / ratio.max(1) as f64
            }
        }
    }

    fn cached_values(&self, tokens: f64) -> f64 {
        let indexed = match self.reach {
            Reach::Compressed { ratio, .. } => tokens / ratio.max(1) as f64,
            _ => tokens,
        };
        let keys = self.indexer.map_or(0.0, |i| i.head_dim as f64 * indexed);
        self.entry_values() * self.entries(tokens) + keys
    }

    fn context_flops(&self, context: f64) -> f64 {
        let mut seen = self.entries(context);
        let mut flops = 0.0;
        if let Some(indexer) = self.indexer {
            flops += 2.0 * (indexer.heads * indexer.head_dim) as f64 * seen;
            seen = seen.min(indexer.top_k as f64);
        }
        let per_entry = match self.projection {
            Attention::Gqa { heads, head_dim, .. } => {
                2.0 * (heads * (head_dim + self.value_dim.unwrap_or(head_dim))) as f64
            }
            Attention::Mla { .. } => self.projection.flops(),
        };
        flops + per_entry * seen
    }
}

/// Query and output through low ranks, one projection to the latent head.
fn low_rank_parts(hidden: f64, heads: usize, head_dim: usize, rank: LowRank) -> Vec<Part> {
    const Q: &[&str] = &["attn.wq_b", "self_attn.q_b_proj"];
    const QA: &[&str] = &["attn.wq_a", "self_attn.q_a_proj"];
    const KV: &[&str] = &["attn.wkv", "self_attn.kv_proj"];
    const O: &[&str] = &["attn.wo_a", "self_attn.o_a_proj"];
    let width = (heads * head_dim) as f64;
    let (query, output) = (rank.query_rank as f64, rank.output_rank as f64);
    let groups = rank.output_groups as f64;
    vec![
        part(TensorKind::Attention, QA, hidden * query),
        part(TensorKind::Attention, Q, query * width),
        part(TensorKind::Attention, KV, hidden * head_dim as f64),
        part(TensorKind::Attention, O, width * output + groups * output * hidden),
    ]
}

/// Multi-head latent attention, matrix by matrix.
fn mla_parts(hidden: f64, projection: &Attention) -> Vec<Part> {
    let &Attention::Mla {
        heads,
        q_lora_rank,
        kv_lora_rank,
        qk_nope_head_dim,
        qk_rope_head_dim,
        v_head_dim,
    } = projection
    else {
        return Vec::new();
    };
    let (heads, latent) = (heads as f64, kv_lora_rank as f64);
    let (nope, rope) = (qk_nope_head_dim as f64, qk_rope_head_dim as f64);
    let value = v_head_dim as f64;
    let mut parts = match q_lora_rank {
        Some(rank) => vec![
            part(TensorKind::Attention, &["self_attn.q_a_proj"], hidden * rank as f64),
            part(
                TensorKind::Attention,
                &["self_attn.q_b_proj"],
                rank as f64 * heads * (nope + rope),
            ),
        ],
        None => {
            vec![part(TensorKind::Attention, &["self_attn.q_proj"], hidden * heads * (nope + rope))]
        }
    };
    parts.extend([
        part(TensorKind::Attention, &["self_attn.kv_a_proj_with_mqa"], hidden * (latent + rope)),
        part(TensorKind::Attention, &["self_attn.kv_b_proj"], latent * heads * (nope + value)),
        part(TensorKind::Attention, &["self_attn.o_proj"], heads * value * hidden),
    ]);
    parts
}

impl Indexer {
    fn parts(self, hidden: f64) -> [Part; 2] {
        let (heads, width) = (self.heads as f64, self.head_dim as f64);
        [
            part(
                TensorKind::Attention,
                &["self_attn.indexer.wq_b"],
                self.query_input as f64 * heads * width,
            ),
            part(
                TensorKind::Attention,
                &["self_attn.indexer.wk", "self_attn.indexers_proj"],
                hidden * (width + heads),
            ),
        ]
    }
}

impl Mamba {
    /// Channels that pass the convolution.
    const fn convolved(&self) -> usize {
        match self.kind {
            MambaKind::Mamba1 { .. } => self.inner,
            MambaKind::Mamba2 { groups, .. } => self.inner + 2 * groups * self.state,
        }
    }

    fn parts(self, hidden: f64) -> Vec<Part> {
        const IN: &[&str] = &["mixer.in_proj", "mamba.in_proj"];
        const OUT: &[&str] = &["mixer.out_proj", "mamba.out_proj"];
        const SMALL: &[&str] = &["mixer.conv1d", "mamba.conv1d"];
        let (inner, state) = (self.inner as f64, self.state as f64);
        // Taps and a bias for each convolved channel.
        let convolution = self.convolved() as f64 * (self.kernel as f64 + 1.0);
        let (input, small) = match self.kind {
            MambaKind::Mamba1 { dt_rank } => {
                let rank = dt_rank as f64;
                let steps = inner * (rank + 2.0 * state) + rank * inner + inner;
                (2.0 * inner, steps + inner * state + inner)
            }
            MambaKind::Mamba2 { heads, groups } => {
                let shared = 2.0 * groups as f64 * state;
                (2.0 * inner + shared + heads as f64, 3.0 * heads as f64 + inner)
            }
        };
        vec![
            part(TensorKind::Linear, IN, hidden * input),
            part(TensorKind::Linear, OUT, inner * hidden),
            part(TensorKind::Linear, SMALL, convolution + small),
        ]
    }
}

impl LinearAttention {
    fn keys(&self) -> f64 {
        (self.key_heads * self.key_dim) as f64
    }

    fn values(&self) -> f64 {
        (self.value_heads * self.value_dim) as f64
    }

    /// Channels that pass the convolution: queries, keys and values.
    const fn convolved(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    fn parts(self, hidden: f64) -> Vec<Part> {
        const QKV: &[&str] = &[
            "linear_attn.in_proj_qkv",
            "linear_attn.in_proj_qkvz",
            "self_attn.q_proj",
            "self_attn.qkv_proj",
        ];
        const GATE: &[&str] = &["linear_attn.in_proj_z", "linear_attn.in_proj_qkvz"];
        const OUT: &[&str] = &["linear_attn.out_proj", "self_attn.o_proj", "self_attn.out_proj"];
        const SMALL: &[&str] = &["linear_attn.in_proj_ba", "linear_attn.in_proj_a"];
        let (keys, values, heads) = (self.keys(), self.values(), self.value_heads as f64);
        let low = self.value_dim as f64;
        let (gate, small) = match self.kind {
            LinearKind::GatedDeltaNet => {
                (hidden * values, 2.0 * hidden * heads + 2.0 * heads + low)
            }
            LinearKind::KimiDelta => {
                (2.0 * (hidden * low + low * values), hidden * heads + heads + values + low)
            }
            LinearKind::Lightning => (hidden * values, values),
        };
        let convolution = (self.convolved() * self.kernel) as f64;
        vec![
            part(TensorKind::Linear, QKV, hidden * (2.0 * keys + values)),
            part(TensorKind::Linear, GATE, gate),
            part(TensorKind::Linear, OUT, values * hidden),
            part(TensorKind::Linear, SMALL, small + convolution),
        ]
    }
}

impl FeedForward {
    /// A name to print.
    pub fn label(&self) -> String {
        match self {
            Self::None => "no feed-forward".into(),
            Self::Dense { width, gated } => format!("dense {width}{}", plain(*gated)),
            Self::Moe(m) => m.label(),
        }
    }

    /// The routed block, if it is one.
    pub const fn moe(&self) -> Option<&MoeBlock> {
        match self {
            Self::Moe(block) => Some(block),
            Self::None | Self::Dense { .. } => None,
        }
    }

    fn parts(&self, hidden: usize) -> Vec<Part> {
        match self {
            Self::None => Vec::new(),
            Self::Dense { width, gated } => vec![dense_part(hidden as f64, *width, *gated)],
            Self::Moe(m) => m.parts(hidden),
        }
    }
}

/// What is said of blocks with two matrices.
const fn plain(gated: bool) -> &'static str {
    if gated { "" } else { " without gate" }
}

/// Matrices of a block.
const fn matrices(gated: bool) -> f64 {
    if gated { 3.0 } else { 2.0 }
}

fn dense_part(hidden: f64, width: usize, gated: bool) -> Part {
    const DENSE: &[&str] =
        &["mlp.down_proj", "mixer.down_proj", "feed_forward.down_proj", "mlp.gate_proj"];
    part(TensorKind::Dense, DENSE, matrices(gated) * hidden * width as f64)
}

impl MoeBlock {
    fn label(&self) -> String {
        let shared = self.shared.map_or_else(String::new, |s| format!(", {} shared", s.count));
        let latent = self.latent.map_or_else(String::new, |l| format!(" in {l}"));
        let zero = if self.zero_experts == 0 {
            String::new()
        } else {
            format!(", {} of no work", self.zero_experts)
        };
        let parallel = if self.parallel == 0 {
            String::new()
        } else {
            format!(", dense {} beside", self.parallel)
        };
        let Self { experts, top_k, width, .. } = self;
        let gate = plain(self.gated);
        format!("{top_k} of {experts} experts of {width}{latent}{gate}{zero}{shared}{parallel}")
    }

    /// Width that an expert reads and writes for a residual stream of width `hidden`.
    pub fn expert_input(&self, hidden: usize) -> usize {
        self.latent.unwrap_or(hidden)
    }

    /// Parameters of one expert.
    pub fn expert_params(&self, hidden: usize) -> f64 {
        // In floats: a page counts in 32 bits.
        matrices(self.gated) * (self.expert_input(hidden) as f64 * self.width as f64)
    }

    /// Experts with work that a token meets on average: choices of zero experts are free.
    pub fn mean_active(&self) -> f64 {
        let choices = (self.experts + self.zero_experts) as f64;
        self.top_k as f64 * self.experts as f64 / choices.max(1.0)
    }

    fn parts(&self, width: usize) -> Vec<Part> {
        const EXPERTS: &[&str] = &[
            "mlp.experts.0.down_proj",
            "mlp.experts",
            "mixer.experts.0.down_proj",
            "block_sparse_moe.experts.0.w1",
            "feed_forward.experts.0.down_proj",
            "ffn.experts",
            "experts.0.down_proj",
            "moe.experts.0.down_proj",
        ];
        // Where a dense block has the name `mlp`, the experts have another.
        const BESIDE: &[&str] = &[
            "experts.0.down_proj",
            "experts.down_proj",
            "moe.experts.0.down_proj",
            "block_sparse_moe.experts.0.w1",
        ];
        const SHARED: &[&str] = &[
            "mlp.shared_experts.down_proj",
            "mlp.shared_expert.down_proj",
            "mixer.shared_experts.down_proj",
            "block_sparse_moe.shared_experts.down_proj",
            "feed_forward.shared_expert.down_proj",
            "ffn.shared_experts.w1",
        ];
        const LATENT: &[&str] = &["mixer.fc1_latent_proj", "mixer.fc2_latent_proj"];
        let (hidden, expert) = (width as f64, self.expert_params(width));
        let mut parts = vec![
            Part {
                kind: TensorKind::Experts,
                modules: if self.parallel > 0 { BESIDE } else { EXPERTS },
                params: self.experts as f64 * expert,
                active: self.mean_active() * expert,
            },
            part(
                TensorKind::Router,
                &["mlp.gate", "mlp.router"],
                hidden * (self.experts + self.zero_experts) as f64,
            ),
        ];
        if let Some(shared) = self.shared {
            let params = matrices(self.gated) * hidden * shared.intermediate_size as f64;
            parts.push(part(TensorKind::Shared, SHARED, params));
        }
        if let Some(latent) = self.latent {
            parts.push(part(TensorKind::Shared, LATENT, 2.0 * hidden * latent as f64));
        }
        if self.parallel > 0 {
            parts.push(dense_part(hidden, self.parallel, true));
        }
        parts
    }
}
