//! Launching the router (`kernels/router_topk.cu`): logits to experts and weights.

use crate::config::Scoring;
use crate::gpu::params::{
    AlignParams, MAX_GROUPS, MAX_TOP_K, RouterGateParams, RouterParams, RouterScoring,
};
use crate::gpu::{DeviceAddress, Launch, Launcher, ParamBytes, Region};
use crate::kernels::gpu::launches::{AlignBuffers, Matrix};
use crate::kernels::gpu::registry::{ROUTER_GATE, router_kernel};
use crate::kernels::gpu::{LogitFormat, options};
use crate::kernels::{MAX_EXPERTS, RouterSpec};
use crate::{Error, Result};

/// Threads of a block, in warps of one row or more.
const THREADS: u32 = 256;
const WARPS: u32 = THREADS / 32;
/// Experts whose logits one block computes, when the router does so.
const GATE_EXPERTS: u32 = 2;
/// Most tokens of a router that computes its logits: one block routes them all.
pub(crate) const GATE_TOKENS: u32 = 16;

/// What a router computes its logits from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateInput {
    /// `bf16[tokens, hidden]`.
    pub x: Matrix,
    /// `bf16[experts, hidden]`.
    pub gate: Region,
    /// Hidden size; a multiple of 8.
    pub hidden: u32,
}

/// One routing of all tokens.
#[derive(Clone, Copy, Debug)]
pub struct RouterLaunch<'a> {
    /// `[tokens, experts]`: read, or written where there is a `gate`.
    pub logits: Matrix,
    /// Their format.
    pub format: LogitFormat,
    /// For at most 16 tokens: computes the logits first, in single precision.
    pub gate: Option<GateInput>,
    /// Tokens; 0: nothing is launched.
    pub tokens: u32,
    /// Experts that are chosen from.
    pub experts: u32,
    /// Choices per token.
    pub top_k: u32,
    /// Scores and weights.
    pub spec: &'a RouterSpec,
    /// `f32[experts]`, when the settings have a bias.
    pub bias: Option<Region>,
    /// A group's score is its best expert's, not the sum of its two best.
    pub group_top1: bool,
    /// One more slot for each token: expert `experts` with weight 1.
    pub shared: bool,
    /// `i32[tokens, top_k + shared]`.
    pub topk_ids: Region,
    /// `f32[tokens, top_k + shared]`.
    pub topk_weights: Region,
    /// The workspace's header.
    pub header: Region,
    /// Where the last block aligns, and the rows of a tile.
    pub align: Option<(AlignBuffers, u32)>,
    /// Whether it may start while the launch before it ends.
    pub overlaps: bool,
}

impl RouterLaunch<'_> {
    fn validate(&self) -> Result<()> {
        self.spec.validate(self.experts as usize, self.top_k as usize)?;
        let invalid = |name: &str, reason: String| Err(Error::usage(name, reason));
        if self.top_k > MAX_TOP_K {
            return invalid("top_k", format!("{} is above the kernels' {MAX_TOP_K}", self.top_k));
        }
        if self.gate.is_some() && self.format != LogitFormat::F32 {
            return invalid("logits", "the router computes them in single precision".into());
        }
        if self.gate.is_some() && self.tokens > GATE_TOKENS {
            return invalid(
                "tokens",
                format!(
                    "{} are above the {GATE_TOKENS} whose logits a router computes",
                    self.tokens
                ),
            );
        }
        if self.spec.config.n_group > MAX_GROUPS as usize {
            return invalid(
                "n_group",
                format!("{} is above the kernels' {MAX_GROUPS}", self.spec.config.n_group),
            );
        }
        if self.shared && self.experts as usize == MAX_EXPERTS {
            return invalid("experts", format!("{MAX_EXPERTS} leave no room for a shared one"));
        }
        if self.spec.config.bias != self.bias.is_some() {
            return invalid("bias", "its buffer does not fit the router's settings".into());
        }
        Ok(())
    }

    fn pairs(&self) -> Result<u32> {
        let pairs = u64::from(self.tokens) * u64::from(self.top_k + u32::from(self.shared));
        u32::try_from(pairs)
            .ok()
            .filter(|&p| u64::from(p) <= options::MAX_PAIRS)
            .ok_or_else(|| Error::usage("tokens", format!("{pairs} pairs are too many")))
    }

    fn params(&self) -> Result<RouterParams> {
        let config = &self.spec.config;
        let pairs = self.pairs()?;
        let table = Some(4 * u64::from(pairs));
        let topk_ids = self.topk_ids.checked("topk_ids", table, 4)?;
        let align = self.align.map(|(buffers, block_m)| {
            AlignBuffers { topk_ids: self.topk_ids, ..buffers }.params(
                pairs,
                self.experts + u32::from(self.shared),
                block_m,
            )
        });
        let size = self.format.bytes();
        let bias = self.bias.map(|b| b.checked("bias", Some(4 * u64::from(self.experts)), 4));
        let group = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32 by definition")]
        let scaling = config.scaling_factor as f32;
        Ok(RouterParams {
            logits: self.logits.checked(
                "logits",
                (u64::from(self.tokens), u64::from(self.experts)),
                size,
                size,
            )?,
            bias: bias.transpose()?.unwrap_or(DeviceAddress::NULL),
            topk_ids,
            topk_weights: self.topk_weights.checked("topk_weights", table, 4)?,
            header: self.header.checked("header", Some(256), 16)?,
            logits_stride: self.logits.stride,
            tokens: self.tokens,
            experts: self.experts,
            top_k: self.top_k,
            scoring: scoring(config.scoring)?.value(),
            n_group: group(config.n_group),
            topk_group: group(config.topk_group),
            group_top1: u32::from(self.group_top1),
            renormalize: u32::from(config.renormalize),
            scaling,
            shared: u32::from(self.shared),
            fuse_align: u32::from(align.is_some()),
            unused: 0,
            align: align.transpose()?.unwrap_or(NO_ALIGN),
        })
    }
}

/// What the kernel does not read.
const NO_ALIGN: AlignParams = AlignParams {
    topk_ids: DeviceAddress::NULL,
    expert_count: DeviceAddress::NULL,
    expert_offsets: DeviceAddress::NULL,
    sorted_pairs: DeviceAddress::NULL,
    pair_rows: DeviceAddress::NULL,
    tiles: DeviceAddress::NULL,
    block_counts: DeviceAddress::NULL,
    header: DeviceAddress::NULL,
    pairs: 0,
    experts: 0,
    block_m: 0,
    capacity_rows: 0,
    capacity_tiles: 0,
    pairs_per_block: 0,
};

/// The kernels' number for a scoring.
fn scoring(scoring: Scoring) -> Result<RouterScoring> {
    Ok(match scoring {
        Scoring::Softmax => RouterScoring::Softmax,
        Scoring::SoftmaxOverTopK => RouterScoring::SoftmaxOverTopK,
        Scoring::Sigmoid => RouterScoring::Sigmoid,
        Scoring::SoftplusSqrt => RouterScoring::SoftplusSqrt,
        Scoring::Prototype => RouterScoring::Prototype,
        Scoring::SparseMixer => {
            return Err(Error::usage("scoring", "sparse_mixer is counted but not executed here"));
        }
    })
}

/// Shared memory of a block: scores of eight rows, or later the counters of align.
fn shared_bytes(router: &RouterLaunch<'_>) -> u32 {
    let scores = 1024 * router.experts.div_ceil(32);
    let (scores_slack, align_slack) = if router.gate.is_some() { (20, 144) } else { (16, 148) };
    let counters = match router.align {
        Some(_) => 22 * (router.experts + u32::from(router.shared)) + align_slack,
        None => 0,
    };
    counters.max(scores + scores_slack)
}

fn gate_params(router: &RouterLaunch<'_>, gate: &GateInput) -> Result<RouterGateParams> {
    if gate.hidden == 0 || !gate.hidden.is_multiple_of(8) {
        return Err(Error::usage(
            "hidden",
            format!("{} is no positive multiple of 8", gate.hidden),
        ));
    }
    let (tokens, hidden) = (u64::from(router.tokens), u64::from(gate.hidden));
    let bytes = (2 * hidden).checked_mul(u64::from(router.experts));
    Ok(RouterGateParams {
        router: router.params()?,
        x: gate.x.checked("x", (tokens, hidden), 2, 16)?,
        gate: gate.gate.checked("gate", bytes, 16)?,
        x_stride: gate.x.stride,
        hidden: gate.hidden,
        unused: 0,
    })
}

/// Chooses experts and weights for every token.
///
/// # Errors
/// [`Error::Usage`] for settings or buffers that do not fit, else as [`Launcher::launch`].
pub fn router_topk(launcher: &mut dyn Launcher, router: &RouterLaunch<'_>) -> Result<()> {
    router.validate()?;
    if router.tokens == 0 {
        return Ok(());
    }
    // Rows of few experts share a warp, each in the next power of two of lanes.
    let lanes = router.experts.next_power_of_two().min(32);
    let rows = WARPS * (32 / lanes);
    let (kernel, blocks, params) = match &router.gate {
        None => {
            let params = ParamBytes::of(&router.params()?);
            (router_kernel(router.format), router.tokens.div_ceil(rows), params)
        }
        Some(gate) => {
            let params = ParamBytes::of(&gate_params(router, gate)?);
            (ROUTER_GATE, router.experts.div_ceil(GATE_EXPERTS), params)
        }
    };
    launcher.launch(&Launch {
        kernel,
        grid: [blocks, 1],
        threads: THREADS,
        shared_bytes: shared_bytes(router),
        maps: Vec::new(),
        params,
        overlaps: router.overlaps,
    })
}
