//! The CPU backend: every active expert's weights are read once per call, whatever the batch.
//!
//! Rows are gathered into blocks of 64 columns ([`blocks`]), so that one micro-kernel serves decode
//! and prefill: a few weight rows against a few token rows, accumulated in registers over the whole
//! length. Work is split over (expert, block of weight rows) and stolen between threads; every output
//! value is computed by one thread in one order, so results do not depend on the number of threads.

mod align;
mod blocks;
mod gemm;
mod router;
pub mod simd;

use sha2::{Digest, Sha256};

use crate::kernels::{
    Alignment, LayerWeights, LoadedLayer, MoeBackend, MoeShape, Routed, RouterSpec, Stage,
    WeightData,
};
use crate::{Error, Result};

pub use align::align;
pub use router::route;

/// Sources that decide what the kernels do, for their hash.
const SOURCES: [&str; 6] = [
    include_str!("mod.rs"),
    include_str!("align.rs"),
    include_str!("blocks.rs"),
    include_str!("gemm.rs"),
    include_str!("router.rs"),
    include_str!("simd/mod.rs"),
];

/// MoE layers on this machine's processor.
#[derive(Clone, Copy, Debug)]
pub struct CpuBackend {
    isa: simd::Isa,
}

impl CpuBackend {
    /// The backend with the widest instruction set found at run time.
    pub fn new() -> Self {
        Self { isa: simd::Isa::detect() }
    }

    /// The backend with a given instruction set.
    ///
    /// # Errors
    /// [`Error::Device`] when this processor does not have it.
    pub fn with_isa(isa: simd::Isa) -> Result<Self> {
        if isa.is_available() {
            Ok(Self { isa })
        } else {
            Err(Error::device("cpu", format!("this processor has no {}", isa.label())))
        }
    }

    /// Instruction set in use.
    pub const fn isa(&self) -> simd::Isa {
        self.isa
    }

    /// Runs the layer once on host slices: `x` `[tokens, hidden]`, ids and weights as chosen by a
    /// router; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when lengths or ids do not fit.
    pub fn forward(&self, weights: &LayerWeights, x: &[f32], routed: &Routed) -> Result<Vec<f32>> {
        let tokens = routed.ids.len() / weights.shape.top_k;
        let mut workspace = Workspace::new(&weights.shape, tokens)?;
        workspace.check_input(&weights.shape, x, routed)?;
        workspace.routed.clone_from(routed);
        workspace.x.copy_from_slice(x);
        workspace.tokens = tokens;
        workspace.align(&weights.shape)?;
        workspace.products(weights, self.isa);
        Ok(workspace.out)
    }

    /// Routes and runs the layer once in a workspace that the caller keeps: tokens, `x` and logits in,
    /// the layer's output out.
    pub(crate) fn route_and_forward<'w>(
        self,
        weights: &LayerWeights,
        router: &RouterSpec,
        (tokens, x, logits): (usize, &[f32], &[f32]),
        workspace: &'w mut Workspace,
    ) -> Result<&'w [f32]> {
        let shape = &weights.shape;
        Workspace::check_tokens(shape, tokens)?;
        workspace.set_tokens(shape, tokens);
        workspace.x.copy_from_slice(x);
        route(logits, shape.experts, shape.top_k, router, &mut workspace.routed)?;
        workspace.align(shape)?;
        workspace.products(weights, self.isa);
        Ok(&workspace.out)
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl MoeBackend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn description(&self) -> String {
        format!("{}, {} threads", self.isa.label(), rayon::current_num_threads())
    }

    fn kernel(&self, stage: Stage) -> &'static str {
        match stage {
            Stage::Router => "cpu_router_topk",
            Stage::Align => "cpu_align",
            Stage::GateUp | Stage::Down => "cpu_grouped_gemm",
            Stage::Combine => "cpu_combine",
            Stage::Layer => "cpu_moe_layer",
        }
    }

    fn kernel_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for source in SOURCES {
            hash.update(source);
        }
        hash.update(self.isa.label());
        format!("{:x}", hash.finalize())
    }

    fn load<'a>(
        &'a self,
        sets: &'a [LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Box<dyn LoadedLayer + 'a>> {
        let Some(first) = sets.first() else {
            return Err(Error::usage("weight sets", "need at least one"));
        };
        if sets.iter().any(|s| s.shape != first.shape || s.dtype() != first.dtype()) {
            return Err(Error::usage("weight sets", "differ in shape or format"));
        }
        router.validate(first.shape.experts, first.shape.top_k)?;
        let workspace = Workspace::new(&first.shape, max_tokens)?;
        Ok(Box::new(CpuLayer {
            isa: self.isa,
            sets,
            router: router.clone(),
            max_tokens,
            workspace,
        }))
    }
}

/// A layer ready to run.
struct CpuLayer<'a> {
    isa: simd::Isa,
    sets: &'a [LayerWeights],
    router: RouterSpec,
    max_tokens: usize,
    workspace: Workspace,
}

impl CpuLayer<'_> {
    fn shape(&self) -> MoeShape {
        self.sets[0].shape
    }
}

impl LoadedLayer for CpuLayer<'_> {
    fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()> {
        let shape = self.shape();
        let tokens = logits.len() / shape.experts;
        let fits = tokens <= self.max_tokens
            && logits.len() == tokens * shape.experts
            && x.len() == tokens * shape.hidden;
        if !fits {
            return Err(Error::usage(
                "input",
                format!(
                    "x has {} and logits {} values, which is no input of at most {} tokens for {shape:?}",
                    x.len(),
                    logits.len(),
                    self.max_tokens
                ),
            ));
        }
        self.workspace.set_tokens(&shape, tokens);
        self.workspace.x.copy_from_slice(x);
        self.workspace.logits.clear();
        self.workspace.logits.extend_from_slice(logits);
        Ok(())
    }

    fn run(&mut self, stage: Stage, set: usize) -> Result<()> {
        let shape = self.shape();
        let weights = self
            .sets
            .get(set)
            .ok_or_else(|| Error::usage("weight set", format!("there is no set {set}")))?;
        let ws = &mut self.workspace;
        match stage {
            Stage::Router => ws.route(&shape, &self.router)?,
            Stage::Align => ws.align(&shape)?,
            Stage::GateUp => ws.gate_up(weights, self.isa),
            Stage::Down => ws.down(weights, self.isa),
            Stage::Combine => ws.combine(&shape),
            Stage::Layer => {
                ws.route(&shape, &self.router)?;
                ws.align(&shape)?;
                ws.products(weights, self.isa);
            }
        }
        Ok(())
    }

    fn routed(&mut self) -> Result<Routed> {
        Ok(self.workspace.routed.clone())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(self.workspace.out.clone())
    }

    fn poison(&mut self) -> Result<()> {
        let ws = &mut self.workspace;
        for buffer in [&mut ws.packed, &mut ws.h, &mut ws.y, &mut ws.out] {
            buffer.fill(f32::NAN);
        }
        ws.routed.weights.fill(f32::NAN);
        ws.routed.ids.fill(u32::MAX);
        Ok(())
    }
}

/// Buffers of one layer call; they only grow, so that a call of known size allocates nothing.
#[derive(Default)]
pub(crate) struct Workspace {
    tokens: usize,
    x: Vec<f32>,
    logits: Vec<f32>,
    routed: Routed,
    alignment: Alignment,
    /// Gathered input rows in column blocks.
    packed: Vec<f32>,
    /// Activated rows in column blocks.
    h: Vec<f32>,
    /// Output rows in column blocks.
    y: Vec<f32>,
    out: Vec<f32>,
}

impl Workspace {
    fn new(shape: &MoeShape, tokens: usize) -> Result<Self> {
        shape.validate()?;
        Self::check_tokens(shape, tokens)?;
        let mut workspace = Self::default();
        workspace.set_tokens(shape, tokens);
        Ok(workspace)
    }

    /// Whether buffers for so many tokens can be indexed.
    fn check_tokens(shape: &MoeShape, tokens: usize) -> Result<()> {
        let pairs = tokens.checked_mul(shape.top_k).filter(|&p| u32::try_from(p).is_ok());
        let widest = blocks::padded(shape.hidden.max(shape.inter));
        if pairs.and_then(|p| p.checked_mul(widest)).is_none() {
            return Err(Error::usage("tokens", format!("{tokens} is more than can be indexed")));
        }
        Ok(())
    }

    /// Sizes all buffers for `tokens` tokens.
    fn set_tokens(&mut self, shape: &MoeShape, tokens: usize) {
        let pairs = tokens * shape.top_k;
        self.tokens = tokens;
        self.x.resize(tokens * shape.hidden, 0.0);
        self.out.resize(tokens * shape.hidden, 0.0);
        self.packed.resize(pairs * blocks::padded(shape.hidden), 0.0);
        self.h.resize(pairs * blocks::padded(shape.inter), 0.0);
        self.y.resize(pairs * blocks::padded(shape.hidden), 0.0);
        self.routed.ids.resize(pairs, 0);
        self.routed.weights.resize(pairs, 0.0);
    }

    fn check_input(&self, shape: &MoeShape, x: &[f32], routed: &Routed) -> Result<()> {
        let pairs = self.tokens * shape.top_k;
        if x.len() != self.tokens * shape.hidden
            || routed.ids.len() != pairs
            || routed.weights.len() != pairs
        {
            return Err(Error::usage(
                "input",
                format!("x, ids and weights do not fit {} tokens of {shape:?}", self.tokens),
            ));
        }
        Ok(())
    }

    fn route(&mut self, shape: &MoeShape, spec: &RouterSpec) -> Result<()> {
        route(&self.logits, shape.experts, shape.top_k, spec, &mut self.routed)
    }

    fn align(&mut self, shape: &MoeShape) -> Result<()> {
        align(&self.routed.ids, shape.experts, &mut self.alignment)
    }

    fn products(&mut self, weights: &LayerWeights, isa: simd::Isa) {
        self.gate_up(weights, isa);
        self.down(weights, isa);
        self.combine(&weights.shape);
    }

    fn gate_up(&mut self, weights: &LayerWeights, isa: simd::Isa) {
        let shape = &weights.shape;
        let rows = &self.alignment;
        blocks::gather(&self.x, shape.hidden, shape.top_k, rows, &mut self.packed);
        let (a, h) = (&self.packed, &mut self.h);
        match &weights.w13 {
            WeightData::F32(w) => gemm::gate_up(shape, w, a, rows, h, isa),
            WeightData::Bf16(w) => gemm::gate_up(shape, w, a, rows, h, isa),
        }
    }

    fn down(&mut self, weights: &LayerWeights, isa: simd::Isa) {
        let shape = &weights.shape;
        match &weights.w2 {
            WeightData::F32(w) => gemm::down(shape, w, &self.h, &self.alignment, &mut self.y, isa),
            WeightData::Bf16(w) => gemm::down(shape, w, &self.h, &self.alignment, &mut self.y, isa),
        }
    }

    fn combine(&mut self, shape: &MoeShape) {
        gemm::combine(shape, &self.y, &self.routed, &self.alignment, &mut self.out);
    }
}
