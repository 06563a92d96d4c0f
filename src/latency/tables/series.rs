//! Kernel times of serving engines as series: one kernel on one shape along its free sizes.
//!
//! A series holds everything that identifies what was timed ([`Table`], [`Kernel`], sizes); its
//! points run along one or two axes (tokens; rows; sequences and context; bytes). Times of all
//! series lie in one array, and series with the same points share one axis, so that a million cells
//! open in milliseconds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What was timed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Routed experts, top-k to combine. Sizes: see [`MoeSizes`]; points: tokens over all EP ranks.
    Moe,
    /// Dense GEMM. Sizes: `n`, `k`; points: `m`.
    Gemm,
    /// Attention of prompts. Sizes: see [`AttentionSizes`]; points: prompts, prompt length.
    PrefillAttention,
    /// Attention of decoding sequences. Points: sequences, context with the new token.
    DecodeAttention,
    /// MLA core of prompts. Sizes: query heads on the device; points: prompts, prompt length.
    PrefillMla,
    /// MLA core of decoding sequences. Points: sequences, context.
    DecodeMla,
    /// Whole MLA block (DeepSeek-V3's sizes), prompts.
    PrefillMlaBlock,
    /// Whole MLA block, decoding.
    DecodeMlaBlock,
    /// Absorption of the key expansion. Sizes: query heads on the device; points: tokens.
    AbsorbKey,
    /// Absorption of the value expansion.
    AbsorbValue,
    /// All-reduce. Sizes: devices; points: message bytes.
    AllReduce,
    /// All-gather.
    AllGather,
    /// Reduce-scatter.
    ReduceScatter,
    /// All-to-all; the message holds the own share too.
    AllToAll,
    /// Dispatch and combine, kernels of decode steps. Sizes: see [`ExchangeSizes`]; points: tokens of one rank.
    DecodeExchange,
    /// Dispatch and combine, kernels of steps with prompts.
    PrefillExchange,
    /// A part of an exchange that serves both kinds of step.
    ExchangePart,
}

impl Table {
    /// Every table, in the order of files.
    pub const ALL: [Self; 17] = [
        Self::Moe,
        Self::Gemm,
        Self::PrefillAttention,
        Self::DecodeAttention,
        Self::PrefillMla,
        Self::DecodeMla,
        Self::PrefillMlaBlock,
        Self::DecodeMlaBlock,
        Self::AbsorbKey,
        Self::AbsorbValue,
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::AllToAll,
        Self::DecodeExchange,
        Self::PrefillExchange,
        Self::ExchangePart,
    ];

    /// The word that summaries use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Moe => "MoE",
            Self::Gemm => "GEMM",
            Self::PrefillAttention => "prefill attention",
            Self::DecodeAttention => "decode attention",
            Self::PrefillMla => "prefill MLA",
            Self::DecodeMla => "decode MLA",
            Self::PrefillMlaBlock => "prefill MLA block",
            Self::DecodeMlaBlock => "decode MLA block",
            Self::AbsorbKey => "MLA key absorption",
            Self::AbsorbValue => "MLA value absorption",
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllToAll => "all-to-all",
            Self::DecodeExchange => "decode exchange",
            Self::PrefillExchange => "prefill exchange",
            Self::ExchangePart => "exchange part",
        }
    }
}

/// The kernel that was timed: part of the identity, since the same layer takes up to five times as
/// long in one engine as in another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Engine in lower case: `vllm`, `sglang`, `trtllm`, `nccl`.
    pub engine: String,
    /// Version of the engine (of NCCL for its collectives).
    pub version: String,
    /// Name that the table gives to the kernel.
    pub source: String,
    /// Number format of weights and activations as the table names it: `bfloat16`, `fp8_block`,
    /// `w4a16_mxfp4`; of the arithmetic for attention; of the message for collectives.
    pub format: String,
    /// Number format of the cache as the table names it; empty where there is none.
    pub cache: String,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.engine, self.version, self.source, self.format)?;
        if self.cache.is_empty() { Ok(()) } else { write!(f, " cache {}", self.cache) }
    }
}

/// Sizes that identify a series; unused ones are 0.
pub type Sizes = [u32; 8];

/// Sizes of a MoE layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MoeSizes {
    /// Hidden size.
    pub hidden: u32,
    /// Intermediate size of one whole expert.
    pub inter: u32,
    /// Routed experts over all ranks.
    pub experts: u32,
    /// Experts per token.
    pub top_k: u32,
    /// Ranks that share each expert.
    pub tensor_parallel: u32,
    /// Ranks that the experts are spread over; the busiest one was timed.
    pub expert_parallel: u32,
    /// Exponent of the power law of the routing times 1000; 0 is the deterministic even spread.
    pub skew: u32,
    /// Whether experts have three matrices or two.
    pub gated: bool,
}

impl MoeSizes {
    /// As the sizes of a series.
    pub fn to_sizes(self) -> Sizes {
        [
            self.hidden,
            self.inter,
            self.experts,
            self.top_k,
            self.tensor_parallel,
            self.expert_parallel,
            self.skew,
            u32::from(self.gated),
        ]
    }

    /// From the sizes of a series.
    pub fn of(sizes: &Sizes) -> Self {
        let [hidden, inter, experts, top_k, tensor_parallel, expert_parallel, skew, gated] = *sizes;
        Self {
            hidden,
            inter,
            experts,
            top_k,
            tensor_parallel,
            expert_parallel,
            skew,
            gated: gated != 0,
        }
    }

    /// Experts on one rank.
    pub fn local_experts(&self) -> f64 {
        f64::from(self.experts) / f64::from(self.expert_parallel)
    }

    /// Parameters of one expert on one rank.
    pub fn expert_params(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        matrices * f64::from(self.hidden) * f64::from(self.inter) / f64::from(self.tensor_parallel)
    }
}

/// Sizes of an attention core on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttentionSizes {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Values per head.
    pub head_dim: u32,
    /// Sliding window; 0 is none.
    pub window: u32,
}

impl AttentionSizes {
    /// As the sizes of a series.
    pub fn to_sizes(self) -> Sizes {
        [self.heads, self.kv_heads, self.head_dim, self.window, 0, 0, 0, 0]
    }

    /// From the sizes of a series.
    pub fn of(sizes: &Sizes) -> Self {
        let [heads, kv_heads, head_dim, window, ..] = *sizes;
        Self { heads, kv_heads, head_dim, window }
    }
}

/// Sizes of an expert-parallel exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeSizes {
    /// Ranks.
    pub ranks: u32,
    /// Scale-up domains that they span.
    pub nodes: u32,
    /// Hidden size.
    pub hidden: u32,
    /// Experts per token.
    pub top_k: u32,
    /// Routed experts.
    pub experts: u32,
    /// Which part of the exchange: 0 all, else one of [`ExchangeSizes::DISPATCH`] and so on.
    pub part: u32,
}

impl ExchangeSizes {
    /// Tokens to their experts.
    pub const DISPATCH: u32 = 1;
    /// Partial sums back.
    pub const COMBINE: u32 = 2;
    /// Index computation before the dispatch.
    pub const PREPARE: u32 = 3;
    /// Partial sums back in fewer bits.
    pub const COMBINE_LOW: u32 = 4;

    /// As the sizes of a series.
    pub fn to_sizes(self) -> Sizes {
        let Self { ranks, nodes, hidden, top_k, experts, part } = self;
        [ranks, nodes, hidden, top_k, experts, part, 0, 0]
    }

    /// From the sizes of a series.
    pub fn of(sizes: &Sizes) -> Self {
        let [ranks, nodes, hidden, top_k, experts, part, ..] = *sizes;
        Self { ranks, nodes, hidden, top_k, experts, part }
    }
}

/// A point of a series: along its first axis and its second (0 where there is none).
pub type Point = (u32, u32);

/// One kernel on one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Series {
    /// What was timed.
    pub table: Table,
    /// Index into [`EngineTables::kernels`].
    pub kernel: u32,
    /// Sizes, by table.
    pub sizes: Sizes,
    /// Index into [`EngineTables::axes`].
    pub axis: u32,
    /// Index of the first time in [`EngineTables::seconds`].
    pub start: u32,
    /// Standard deviation of ln(time) between repetitions of one cell; 0 where none was repeated.
    pub spread: f32,
}

/// Where tables come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Who measured: `aiconfigurator`.
    pub name: String,
    /// Commit of the source, if known.
    pub commit: Option<String>,
    /// Date of that commit, `yyyy-mm-dd`.
    pub date: Option<String>,
    /// Licence of the figures.
    pub licence: String,
    /// Program that imported them.
    pub program: String,
}

/// A file that was imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedFile {
    /// Its name, with its folder.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Rows that were read.
    pub rows: usize,
    /// Rows that could not be.
    pub refused: usize,
}

/// Rows that are not used, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Which, in words: engine, kernel and sizes, or the file.
    pub what: String,
    /// What they would have told, if they were read.
    pub table: Option<Table>,
    /// How many.
    pub rows: usize,
    /// Why.
    pub reason: String,
}

/// Kernel times of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineTables {
    /// Device as its driver names it.
    pub device: String,
    /// Where they come from.
    pub origin: Origin,
    /// Files that were read.
    pub files: Vec<ImportedFile>,
    /// What was left out.
    pub left_out: Vec<LeftOut>,
    /// Kernels, sorted.
    pub kernels: Vec<Kernel>,
    /// Points of series, each sorted by the second axis, then the first.
    pub axes: Vec<Vec<Point>>,
    /// Series, sorted by table, kernel and sizes.
    pub series: Vec<Series>,
    /// Times in seconds.
    pub seconds: Vec<f32>,
}

impl EngineTables {
    /// Cells.
    pub fn cells(&self) -> usize {
        self.seconds.len()
    }

    /// The kernel of a series.
    pub fn kernel(&self, series: &Series) -> &Kernel {
        &self.kernels[series.kernel as usize]
    }

    /// Points and times in seconds of a series, by the second axis, then the first.
    pub fn points(&self, series: &Series) -> (&[Point], &[f32]) {
        let axis = &self.axes[series.axis as usize];
        let start = series.start as usize;
        (axis, &self.seconds[start..start + axis.len()])
    }

    /// The series of a table; they lie side by side.
    pub fn of(&self, table: Table) -> &[Series] {
        let from = self.series.partition_point(|s| s.table < table);
        let to = self.series.partition_point(|s| s.table <= table);
        &self.series[from..to]
    }

    /// Every engine of some tables with its version, sorted.
    pub fn engines(&self, holds: impl Fn(Table) -> bool) -> Vec<String> {
        let mut seen = vec![false; self.kernels.len()];
        for series in self.series.iter().filter(|s| holds(s.table)) {
            seen[series.kernel as usize] = true;
        }
        let used = self.kernels.iter().zip(seen).filter(|(_, seen)| *seen);
        let mut names: Vec<String> =
            used.map(|(k, _)| format!("{} {}", k.engine, k.version)).collect();
        names.sort();
        names.dedup();
        names
    }
}
