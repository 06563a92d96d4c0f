//! The launch sequence of one layer, on any launcher.
//!
//! No allocation on the device, no wait for it, and no count read back: the sequence can be captured
//! into a graph and replayed with new routing in the same buffers.

use crate::gpu::{Launcher, Region};
use crate::kernels::gpu::launches::{
    AlignBuffers, CombineLaunch, GateInput, ProductLaunch, RouterLaunch, Split, align, combine,
    product, router_topk,
};
use crate::kernels::gpu::{
    Combine, LogitFormat, Matrix, MoeOptions, Piece, Plan, Workspace, options,
};
use crate::kernels::{MoeShape, RouterSpec, Stage};
use crate::{Error, Result};

/// A layer's weights on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerBuffers {
    /// Sizes.
    pub shape: MoeShape,
    /// `[experts, 2, inter, hidden]`.
    pub w13: Region,
    /// `[experts, hidden, inter]`.
    pub w2: Region,
    /// Scales of 8-bit weights, of `w13` and `w2`.
    pub scales: Option<(Region, Region)>,
    /// The router's settings.
    pub router: RouterSpec,
    /// The router's bias `f32[experts]`, when its settings have one.
    pub bias: Option<Region>,
}

/// Where the experts of each token come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Logits `[tokens, experts]`, for the router.
    Logits {
        /// Where they lie.
        logits: Matrix,
        /// Their format.
        format: LogitFormat,
    },
    /// Logits that the router computes itself, from the layer's input, with a plan for
    /// [`RouterInput::Gate`](crate::kernels::gpu::RouterInput::Gate) of at most 16 tokens a pass.
    Gate {
        /// The router's weights, `bf16[experts, hidden]`.
        gate: Region,
        /// Where it puts the logits, `f32[tokens, experts]`.
        logits: Matrix,
    },
    /// Chosen by the caller. An id that is not below the number of experts sets a status bit and its
    /// pair counts as absent.
    Chosen {
        /// `i32[tokens, top_k]`.
        ids: Region,
        /// `f32[tokens, top_k]`.
        weights: Region,
    },
}

/// One batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeInput {
    /// Tokens; 0: nothing is launched.
    pub tokens: u32,
    /// `bf16[tokens, hidden]`.
    pub x: Matrix,
    /// Which experts.
    pub routing: Routing,
    /// `[tokens, hidden]`, overwritten as a whole; its format is that of the options.
    pub out: Matrix,
}

/// Runs a layer. What the router chose for the last chunk stays in the workspace.
///
/// # Errors
/// [`Error::Usage`] for sizes or buffers that do not fit, else as [`Launcher::launch`].
pub fn moe_forward(
    launcher: &mut dyn Launcher,
    plan: &Plan,
    layer: &LayerBuffers,
    opt: &MoeOptions,
    input: &MoeInput,
    workspace: &Workspace,
) -> Result<()> {
    options::validate(&layer.shape, opt.weights)?;
    if input.tokens == 0 {
        return Ok(());
    }
    if plan.chunk_tokens == 0 || plan.chunk_tokens > workspace.layout().max_tokens {
        return Err(Error::usage(
            "workspace",
            format!(
                "holds {} tokens, the plan takes {} at a time",
                workspace.layout().max_tokens,
                plan.chunk_tokens
            ),
        ));
    }
    if opt.combine == Combine::Fast {
        clear_output(launcher, layer, input)?;
    }
    let mut first = 0;
    while first < input.tokens {
        let tokens = plan.chunk_tokens.min(input.tokens - first);
        Chunk { plan, layer, opt, input, workspace, first, tokens }.run(launcher)?;
        first += tokens;
    }
    Ok(())
}

/// Runs one stage of a layer, on what the stages before it left in the workspace.
///
/// # Errors
/// [`Error::Usage`] for a batch that needs more than one pass, or for a router or combine that this
/// input or these options do without; else as [`moe_forward`].
pub fn moe_stage(
    launcher: &mut dyn Launcher,
    stage: Stage,
    plan: &Plan,
    layer: &LayerBuffers,
    opt: &MoeOptions,
    input: &MoeInput,
    workspace: &Workspace,
) -> Result<()> {
    if stage == Stage::Layer {
        return moe_forward(launcher, plan, layer, opt, input, workspace);
    }
    options::validate(&layer.shape, opt.weights)?;
    if input.tokens == 0 {
        return Ok(());
    }
    if plan.chunk_tokens < input.tokens || input.tokens > workspace.layout().max_tokens {
        return Err(Error::usage("stage", "a stage by itself takes a batch in one pass"));
    }
    // The router's last block would align as well.
    let apart = Plan { fuse_align: false, ..plan.clone() };
    let chunk =
        Chunk { plan: &apart, layer, opt, input, workspace, first: 0, tokens: input.tokens };
    chunk.stage(launcher, stage)
}

/// Zeroes the output that fast mode adds to.
fn clear_output(launcher: &mut dyn Launcher, layer: &LayerBuffers, input: &MoeInput) -> Result<()> {
    let hidden = layer.shape.hidden as u64;
    if input.out.stride != hidden {
        return Err(Error::usage("out", "fast mode needs rows without gaps"));
    }
    let bytes = u64::from(input.tokens).checked_mul(4 * hidden);
    input.out.region.checked("out", bytes, 16)?;
    launcher.fill(input.out.region.part(0, bytes.unwrap_or(0))?, 0)
}

/// Tokens that pass through the workspace together.
struct Chunk<'a> {
    plan: &'a Plan,
    layer: &'a LayerBuffers,
    opt: &'a MoeOptions,
    input: &'a MoeInput,
    workspace: &'a Workspace,
    first: u32,
    tokens: u32,
}

impl Chunk<'_> {
    fn run(&self, launcher: &mut dyn Launcher) -> Result<()> {
        let overlaps = self.overlaps(launcher);
        let weights = self.route(launcher, overlaps)?;
        let up = self.up(overlaps)?;
        product(launcher, &up)?;
        let down = self.down(&up, weights)?;
        product(launcher, &down)?;
        if self.opt.combine == Combine::Fast {
            return Ok(());
        }
        self.combine(launcher, weights, overlaps)
    }

    fn overlaps(&self, launcher: &dyn Launcher) -> bool {
        self.opt.overlap && launcher.facts().compute_capability.0 >= 9
    }

    fn stage(&self, launcher: &mut dyn Launcher, stage: Stage) -> Result<()> {
        let overlaps = self.overlaps(launcher);
        let refused = |what: &str| Err(Error::usage("stage", what.to_owned()));
        match stage {
            Stage::Layer => self.run(launcher),
            Stage::Router => match self.input.routing {
                Routing::Chosen { .. } => refused("the caller chose the experts: no router runs"),
                Routing::Logits { .. } | Routing::Gate { .. } => self.router(launcher, overlaps),
            },
            Stage::Align => self.align(launcher, overlaps),
            Stage::GateUp => product(launcher, &self.up(overlaps)?),
            Stage::Down => {
                let up = self.up(overlaps)?;
                product(launcher, &self.down(&up, self.pair_weights()?)?)
            }
            Stage::Combine if self.opt.combine == Combine::Fast => {
                refused("fast mode has no combine: the second product adds")
            }
            Stage::Combine => self.combine(launcher, self.pair_weights()?, overlaps),
        }
    }

    fn combine(&self, launcher: &mut dyn Launcher, weights: Region, overlaps: bool) -> Result<()> {
        let shape = &self.layer.shape;
        let size = self.opt.combine.output_bytes();
        combine(
            launcher,
            &CombineLaunch {
                y: self.workspace.piece(Piece::Y)?,
                rows: self.workspace.layout().capacity_rows,
                pair_rows: self.workspace.piece(Piece::PairRows)?,
                topk_weights: weights,
                out: self.input.out.rows_from(u64::from(self.first), size)?,
                out_f32: self.opt.combine == Combine::F32,
                tokens: self.tokens,
                hidden: self::size(shape.hidden)?,
                top_k: self::size(shape.top_k)?,
                overlaps,
            },
        )
    }

    /// Routes if need be, aligns, and returns where the weights of the pairs lie.
    fn route(&self, launcher: &mut dyn Launcher, overlaps: bool) -> Result<Region> {
        if !matches!(self.input.routing, Routing::Chosen { .. }) {
            self.router(launcher, overlaps)?;
            if self.plan.fuse_align {
                return self.pair_weights();
            }
        }
        self.align(launcher, overlaps)?;
        self.pair_weights()
    }

    fn router(&self, launcher: &mut dyn Launcher, overlaps: bool) -> Result<()> {
        let shape = &self.layer.shape;
        let has_gate = matches!(self.input.routing, Routing::Gate { .. });
        if has_gate != self.plan.computes_logits() {
            let does = if has_gate {
                "reads logits: a product before it computes them"
            } else {
                "computes the logits: it wants the router's weights"
            };
            return Err(Error::usage("routing", format!("the plan's {} {does}", self.plan.router)));
        }
        let (logits, format, gate) = match self.input.routing {
            Routing::Chosen { .. } => return Ok(()),
            Routing::Logits { logits, format } => (logits, format, None),
            Routing::Gate { gate, logits } => {
                let x = self.input.x.rows_from(u64::from(self.first), 2)?;
                let gate = GateInput { x, gate, hidden: size(shape.hidden)? };
                (logits, LogitFormat::F32, Some(gate))
            }
        };
        let buffers = AlignBuffers::of(self.workspace)?;
        let router = RouterLaunch {
            logits: logits.rows_from(u64::from(self.first), format.bytes())?,
            format,
            gate,
            tokens: self.tokens,
            experts: size(shape.experts)?,
            top_k: size(shape.top_k)?,
            spec: &self.layer.router,
            bias: self.layer.bias,
            group_top1: false,
            shared: false,
            topk_ids: buffers.topk_ids,
            topk_weights: self.workspace.piece(Piece::TopkWeights)?,
            header: buffers.header,
            align: self.plan.fuse_align.then_some((buffers, self.plan.block_m)),
            overlaps,
        };
        router_topk(launcher, &router)
    }

    fn align(&self, launcher: &mut dyn Launcher, overlaps: bool) -> Result<()> {
        let shape = &self.layer.shape;
        let pairs = options::pairs(shape, self.tokens)?;
        let mut buffers = AlignBuffers::of(self.workspace)?;
        if let Routing::Chosen { ids, .. } = self.input.routing {
            buffers.topk_ids = self.of_pairs(ids)?;
        }
        align(launcher, &buffers, (pairs, size(shape.experts)?, self.plan.block_m), overlaps)
    }

    /// Where the weights of this chunk's pairs lie: the router's, or the caller's.
    fn pair_weights(&self) -> Result<Region> {
        match self.input.routing {
            Routing::Logits { .. } | Routing::Gate { .. } => {
                self.workspace.piece(Piece::TopkWeights)
            }
            Routing::Chosen { weights, .. } => self.of_pairs(weights),
        }
    }

    /// This chunk's part of the caller's 4-byte values, one a pair.
    fn of_pairs(&self, values: Region) -> Result<Region> {
        let top_k = self.layer.shape.top_k as u64;
        values.part(
            4 * u64::from(self.first) * top_k,
            4 * u64::from(options::pairs(&self.layer.shape, self.tokens)?),
        )
    }

    fn up(&self, overlaps: bool) -> Result<ProductLaunch> {
        let shape = &self.layer.shape;
        Ok(ProductLaunch {
            kernel: self.plan.up,
            tokens: self.tokens,
            experts: size(shape.experts)?,
            top_k: size(shape.top_k)?,
            hidden: size(shape.hidden)?,
            inter: size(shape.inter)?,
            x: Some(self.input.x.rows_from(u64::from(self.first), 2)?),
            weights: self.layer.w13,
            scales: self.layer.scales.map(|s| s.0),
            gate_first: self.opt.gate_first,
            h: self.workspace.piece(Piece::H)?,
            y: None,
            accumulate: None,
            header: self.workspace.piece(Piece::Header)?,
            tiles: self.workspace.piece(Piece::Tiles)?,
            sorted_pairs: self.workspace.piece(Piece::SortedPairs)?,
            capacity_rows: self.workspace.layout().capacity_rows,
            capacity_tiles: self.workspace.layout().capacity_tiles,
            split: Split::of(self.workspace),
            overlaps,
        })
    }

    fn down(&self, up: &ProductLaunch, weights: Region) -> Result<ProductLaunch> {
        let fast = self.opt.combine == Combine::Fast;
        let out = self.input.out.rows_from(u64::from(self.first), 4);
        Ok(ProductLaunch {
            kernel: self.plan.down,
            x: None,
            weights: self.layer.w2,
            scales: self.layer.scales.map(|s| s.1),
            y: if fast { None } else { Some(self.workspace.piece(Piece::Y)?) },
            accumulate: if fast { Some((out?, weights)) } else { None },
            ..*up
        })
    }
}

fn size(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::usage("shape", format!("{value} exceeds 32 bits")))
}
