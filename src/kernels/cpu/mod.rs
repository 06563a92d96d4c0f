//! The CPU backend: every active expert's weights are read once per call, whatever the batch.
//!
//! Rows are gathered into blocks of 64 columns (`blocks`). Few rows an expert are multiplied as dot
//! products with weights where they lie; for more, panels of 64 weight rows are packed while they are
//! used, or all of them once when the layer is loaded ([`CpuBackend::with_packed_weights`]). Either way
//! sums stay in registers ([`simd`]). Work is split over (expert, block of weight rows) and stolen between
//! threads; every output value is computed by one thread in one order, so results do not depend on the
//! number of threads.

mod align;
mod blocks;
mod gemm;
mod int8;
mod prepacked;
mod router;
#[expect(
    unsafe_code,
    reason = "instructions found at run time; each use is argued where it stands"
)]
pub mod simd;

use std::sync::Arc;
use std::time::Instant;

use half::{bf16, f16};
use rayon::{ThreadPool, ThreadPoolBuilder};
use sha2::{Digest, Sha256};

use crate::config::DType;
use crate::kernels::{
    Activations, Alignment, Arithmetic, Int8Weights, LayerWeights, LoadedLayer, MoeBackend,
    MoeShape, Routed, RouterSpec, Stage, WeightData,
};
use crate::{Error, Result};

use gemm::Matrices;
use int8::IntegerRows;
use prepacked::{Packable, Packed, PackedWeights};
use simd::{Activation, Format, Int8Format, Wide};

pub use align::align;
pub use router::{route, route_in};

/// Sources that decide what the kernels do, for their hash.
const SOURCES: [&str; 8] = [
    include_str!("mod.rs"),
    include_str!("align.rs"),
    include_str!("blocks.rs"),
    include_str!("gemm.rs"),
    include_str!("int8.rs"),
    include_str!("prepacked.rs"),
    include_str!("router.rs"),
    include_str!("../math.rs"),
];

/// Most threads of a backend.
const MAX_THREADS: usize = 1024;

/// MoE layers on this machine's processor.
#[derive(Clone, Debug)]
pub struct CpuBackend {
    isa: simd::Isa,
    /// Threads of its own; without, rayon's common ones.
    pool: Option<Arc<ThreadPool>>,
    /// Whether loaded layers keep a packed copy of their weights.
    pack: bool,
}

impl CpuBackend {
    /// The backend with the fastest instruction set found at run time, on rayon's common threads (as
    /// many as the process may run on, or `RAYON_NUM_THREADS`).
    pub fn new() -> Self {
        Self { isa: simd::Isa::detect(), pool: None, pack: false }
    }

    /// The backend with a given instruction set.
    ///
    /// # Errors
    /// [`Error::Device`] when this processor does not have it.
    pub fn with_isa(isa: simd::Isa) -> Result<Self> {
        match isa.missing() {
            None => Ok(Self { isa, pool: None, pack: false }),
            Some(why) => Err(Error::device("cpu", format!("no {}: {why}", isa.label()))),
        }
    }

    /// The same backend on `threads` threads of its own.
    ///
    /// # Errors
    /// [`Error::Usage`] for none or more than 1,024; [`Error::Device`] when they cannot be started.
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::usage(
                "threads",
                format!("{threads} does not lie between 1 and {MAX_THREADS}"),
            ));
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::device("cpu", format!("{threads} threads: {e}")))?;
        Ok(Self { pool: Some(Arc::new(pool)), ..self })
    }

    /// The same backend, whose loaded layers pack their weights once: a copy as large as the weights,
    /// in the order in which they are multiplied. What it takes is part of [`LoadedLayer::plan`]. A
    /// token's result then does not depend on the batch that it is part of; without, it is summed in
    /// another order where an expert has more than a dozen rows. AMX multiplies bf16 weights as they lie,
    /// int8 weights are summed exactly in any order, and neither is copied.
    pub fn with_packed_weights(self) -> Self {
        Self { pack: true, ..self }
    }

    /// Instruction set in use.
    pub const fn isa(&self) -> simd::Isa {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |p| p.current_num_threads())
    }

    /// Runs the layer once on host slices: `x` `[tokens, hidden]`, ids and weights as chosen by a
    /// router; returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`Error::Usage`] when lengths or ids do not fit.
    pub fn forward(&self, weights: &LayerWeights, x: &[f32], routed: &Routed) -> Result<Vec<f32>> {
        self.forward_with(weights.into(), x, routed)
    }

    fn forward_with(&self, weights: Weights, x: &[f32], routed: &Routed) -> Result<Vec<f32>> {
        let shape = &weights.rows.shape;
        let tokens = routed.ids.len() / shape.top_k;
        let mut workspace = Workspace::new(weights.rows, self.isa, tokens)?;
        workspace.check_input(shape, x, routed)?;
        workspace.routed.clone_from(routed);
        workspace.x.copy_from_slice(x);
        self.install(|| {
            workspace.align(shape)?;
            workspace.products(weights, self.isa);
            Ok(())
        })?;
        Ok(workspace.out)
    }

    /// Routes and runs the layer once in a workspace that the caller keeps: tokens, `x` and logits in,
    /// the layer's output out.
    #[cfg(feature = "candle")]
    pub(crate) fn route_and_forward<'w>(
        &self,
        weights: &LayerWeights,
        router: &RouterSpec,
        (tokens, x, logits): (usize, &[f32], &[f32]),
        workspace: &'w mut Workspace,
    ) -> Result<&'w [f32]> {
        let shape = &weights.shape;
        Workspace::check_tokens(weights, self.isa, tokens)?;
        workspace.set_tokens(weights, self.isa, tokens);
        workspace.x.copy_from_slice(x);
        self.install(|| {
            let (experts, top_k) = (shape.experts, shape.top_k);
            route_in(self.isa, logits, experts, top_k, router, &mut workspace.routed)?;
            workspace.align(shape)?;
            workspace.products(weights.into(), self.isa);
            Ok(())
        })?;
        Ok(&workspace.out)
    }

    /// Runs `work` on this backend's threads.
    fn install<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
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
        let packed = if self.pack { ", packed weights" } else { "" };
        format!("{}, {} threads{packed}", self.isa.label(), self.threads())
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

    fn check_weights(&self, weights: DType) -> Result<()> {
        executes(weights)
    }

    fn weight_copies(&self, weights: DType) -> usize {
        if self.pack && self.isa.packed_per_lane(weights).is_some() { 2 } else { 1 }
    }

    fn arithmetic(&self, weights: DType) -> Arithmetic {
        self.isa.activations(weights).into()
    }

    fn kernel_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for source in SOURCES.iter().chain(&simd::SOURCES) {
            hash.update(source);
        }
        hash.update(self.isa.label());
        if self.pack {
            hash.update("packed weights");
        }
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
        let workspace = Workspace::new(first, self.isa, max_tokens)?;
        let start = Instant::now();
        let packed = if self.pack {
            self.install(|| sets.iter().map(|set| PackedWeights::new(set, self.isa)).collect())?
        } else {
            vec![]
        };
        let plan = self.pack.then(|| {
            let bytes: usize = packed.iter().flatten().map(|p: &PackedWeights| p.bytes).sum();
            if bytes == 0 {
                return format!(
                    "{} weights multiplied as they lie: no copy",
                    first.dtype().label()
                );
            }
            let (gb, seconds) = (bytes as f64 / 1e9, start.elapsed().as_secs_f64());
            format!("weights packed once: {gb:.3} GB more, in {seconds:.3} s")
        });
        Ok(Box::new(CpuLayer {
            backend: self,
            sets,
            packed,
            plan,
            router: router.clone(),
            max_tokens,
            workspace,
        }))
    }
}

/// A layer ready to run.
struct CpuLayer<'a> {
    backend: &'a CpuBackend,
    sets: &'a [LayerWeights],
    /// Packed weights of each set, where they are packed.
    packed: Vec<Option<PackedWeights>>,
    plan: Option<String>,
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
        self.workspace.set_tokens(&self.sets[0], self.backend.isa, tokens);
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
        let weights =
            Weights { rows: weights, packed: self.packed.get(set).and_then(Option::as_ref) };
        let (ws, router, isa) = (&mut self.workspace, &self.router, self.backend.isa);
        self.backend.install(|| {
            match stage {
                Stage::Router => ws.route(&shape, router, isa)?,
                Stage::Align => ws.align(&shape)?,
                Stage::GateUp => ws.gate_up(weights, isa),
                Stage::Down => ws.down(weights, isa),
                Stage::Combine => ws.combine(&shape),
                Stage::Layer => {
                    ws.route(&shape, router, isa)?;
                    ws.align(&shape)?;
                    ws.products(weights, isa);
                }
            }
            Ok(())
        })
    }

    fn plan(&self) -> Option<String> {
        self.plan.clone()
    }

    fn routed(&mut self) -> Result<Routed> {
        Ok(self.workspace.routed.clone())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(self.workspace.out.clone())
    }

    fn poison(&mut self) -> Result<()> {
        let ws = &mut self.workspace;
        for buffer in [&mut ws.y, &mut ws.out] {
            buffer.fill(f32::NAN);
        }
        ws.wide.poison();
        ws.narrow.poison();
        ws.integers.poison();
        ws.routed.weights.fill(f32::NAN);
        ws.routed.ids.fill(u32::MAX);
        Ok(())
    }
}

/// A layer's weights, and their packed copy where there is one.
#[derive(Clone, Copy)]
struct Weights<'a> {
    rows: &'a LayerWeights,
    packed: Option<&'a PackedWeights>,
}

impl<'a> From<&'a LayerWeights> for Weights<'a> {
    fn from(rows: &'a LayerWeights) -> Self {
        Self { rows, packed: None }
    }
}

/// Activations between the stages, column-blocked.
#[derive(Default)]
struct Rows<A> {
    /// Gathered input rows.
    packed: Vec<A>,
    /// Activated rows.
    h: Vec<A>,
}

impl<A: Activation> Rows<A> {
    fn resize(&mut self, rows: usize, shape: &MoeShape) {
        self.packed.resize(rows * blocks::padded(shape.hidden), A::ZERO);
        self.h.resize(rows * blocks::padded(shape.inter), A::ZERO);
    }

    fn poison(&mut self) {
        self.packed.fill(A::NAN);
        self.h.fill(A::NAN);
    }
}

/// Picks the buffers of an activation format.
trait Kept: Activation {
    fn rows<'a>(wide: &'a mut Rows<f32>, narrow: &'a mut Rows<bf16>) -> &'a mut Rows<Self>;
}

impl Kept for f32 {
    fn rows<'a>(wide: &'a mut Rows<f32>, _: &'a mut Rows<bf16>) -> &'a mut Rows<Self> {
        wide
    }
}

impl Kept for bf16 {
    fn rows<'a>(_: &'a mut Rows<f32>, narrow: &'a mut Rows<bf16>) -> &'a mut Rows<Self> {
        narrow
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
    /// First row of each expert in `wide` or `narrow`.
    starts: Vec<usize>,
    /// Activations in single precision, where the kernel takes them.
    wide: Rows<f32>,
    /// Activations in bf16, where the kernel takes them.
    narrow: Rows<bf16>,
    /// Activations as integers, for int8 weights.
    integers: IntegerRows,
    /// Output rows in column blocks.
    y: Vec<f32>,
    out: Vec<f32>,
}

impl Workspace {
    fn new(weights: &LayerWeights, isa: simd::Isa, tokens: usize) -> Result<Self> {
        weights.shape.validate()?;
        Self::check_tokens(weights, isa, tokens)?;
        let mut workspace = Self::default();
        workspace.set_tokens(weights, isa, tokens);
        Ok(workspace)
    }

    /// Whether buffers for so many tokens can be indexed.
    fn check_tokens(weights: &LayerWeights, isa: simd::Isa, tokens: usize) -> Result<()> {
        executes(weights.dtype())?;
        let shape = &weights.shape;
        // What filling up rows adds is bounded by the experts, and so far from overflow.
        let filled = shape.experts * isa.row_multiple(weights.dtype());
        let pairs = tokens.checked_mul(shape.top_k).filter(|&p| u32::try_from(p).is_ok());
        let rows = pairs.and_then(|p| p.checked_add(filled));
        let widest = blocks::padded(shape.hidden.max(shape.inter));
        if rows.and_then(|p| p.checked_mul(widest)).is_none() {
            return Err(Error::usage("tokens", format!("{tokens} is more than can be indexed")));
        }
        Ok(())
    }

    /// Sizes all buffers for `tokens` tokens.
    fn set_tokens(&mut self, weights: &LayerWeights, isa: simd::Isa, tokens: usize) {
        let (shape, dtype) = (&weights.shape, weights.dtype());
        let pairs = tokens * shape.top_k;
        self.tokens = tokens;
        self.x.resize(tokens * shape.hidden, 0.0);
        self.out.resize(tokens * shape.hidden, 0.0);
        let rows = blocks::most_rows(pairs, shape.experts, isa.row_multiple(dtype));
        match isa.activations(dtype) {
            Activations::F32 => self.wide.resize(rows, shape),
            Activations::Bf16 => self.narrow.resize(rows, shape),
            Activations::Int16 => self.integers.resize(shape, tokens, pairs, rows),
        }
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

    fn route(&mut self, shape: &MoeShape, spec: &RouterSpec, isa: simd::Isa) -> Result<()> {
        route_in(isa, &self.logits, shape.experts, shape.top_k, spec, &mut self.routed)
    }

    fn align(&mut self, shape: &MoeShape) -> Result<()> {
        align(&self.routed.ids, shape.experts, &mut self.alignment)
    }

    fn products(&mut self, weights: Weights, isa: simd::Isa) {
        self.gate_up(weights, isa);
        self.down(weights, isa);
        self.combine(&weights.rows.shape);
    }

    fn gate_up(&mut self, Weights { rows, packed }: Weights, isa: simd::Isa) {
        let shape = &rows.shape;
        let packed = packed.map(|p| &p.w13);
        match &rows.w13 {
            WeightData::F32(w) => self.gate_up_in::<Wide<f32>>(shape, (w, packed), isa),
            WeightData::F16(w) => self.gate_up_in::<Wide<f16>>(shape, (w, packed), isa),
            // Refused by `check_tokens`.
            WeightData::Fp8(_) => {}
            WeightData::Int8(w) => match isa.has_byte_tiles() {
                #[cfg(target_arch = "x86_64")]
                true => self.gate_up_int8::<simd::Int8Tiles>(shape, w, isa),
                _ => self.gate_up_int8::<simd::Words>(shape, w, isa),
            },
            WeightData::Bf16(w) => match isa {
                #[cfg(target_arch = "x86_64")]
                simd::Isa::Amx => self.gate_up_in::<simd::Tiles>(shape, (w, packed), isa),
                #[cfg(target_arch = "x86_64")]
                simd::Isa::Avx512Bf16 => self.gate_up_in::<simd::Pairs>(shape, (w, packed), isa),
                _ => self.gate_up_in::<Wide<bf16>>(shape, (w, packed), isa),
            },
        }
    }

    fn gate_up_in<F>(&mut self, shape: &MoeShape, w13: Values<F::Weight>, isa: simd::Isa)
    where
        F: Format<Activation: Kept, Weight: Packable>,
    {
        let rows = F::Activation::rows(&mut self.wide, &mut self.narrow);
        blocks::starts(&self.alignment, F::ROWS, &mut self.starts);
        let sizes = (shape.hidden, shape.top_k);
        blocks::gather::<F>(&self.x, sizes, &self.alignment, &self.starts, &mut rows.packed);
        let w13 = matrices(w13, (shape.inter, shape.hidden), isa);
        gemm::gate_up::<F>(shape, &w13, &rows.packed, &self.starts, &mut rows.h, isa);
    }

    fn down(&mut self, Weights { rows, packed }: Weights, isa: simd::Isa) {
        let shape = &rows.shape;
        let packed = packed.map(|p| &p.w2);
        match &rows.w2 {
            WeightData::F32(w) => self.down_in::<Wide<f32>>(shape, (w, packed), isa),
            WeightData::F16(w) => self.down_in::<Wide<f16>>(shape, (w, packed), isa),
            WeightData::Fp8(_) => {}
            WeightData::Int8(w) => match isa.has_byte_tiles() {
                #[cfg(target_arch = "x86_64")]
                true => self.down_int8::<simd::Int8Tiles>(shape, w, isa),
                _ => self.down_int8::<simd::Words>(shape, w, isa),
            },
            WeightData::Bf16(w) => match isa {
                #[cfg(target_arch = "x86_64")]
                simd::Isa::Amx => self.down_in::<simd::Tiles>(shape, (w, packed), isa),
                #[cfg(target_arch = "x86_64")]
                simd::Isa::Avx512Bf16 => self.down_in::<simd::Pairs>(shape, (w, packed), isa),
                _ => self.down_in::<Wide<bf16>>(shape, (w, packed), isa),
            },
        }
    }

    fn down_in<F>(&mut self, shape: &MoeShape, w2: Values<F::Weight>, isa: simd::Isa)
    where
        F: Format<Activation: Kept, Weight: Packable>,
    {
        let rows = F::Activation::rows(&mut self.wide, &mut self.narrow);
        blocks::starts(&self.alignment, F::ROWS, &mut self.starts);
        let (alignment, starts) = (&self.alignment, &self.starts);
        let w2 = matrices(w2, (shape.hidden, shape.inter), isa);
        gemm::down::<F>(shape, &w2, &rows.h, starts, alignment, &mut self.y, isa);
    }

    fn gate_up_int8<F: Int8Format>(&mut self, shape: &MoeShape, w13: &Int8Weights, isa: simd::Isa) {
        blocks::starts(&self.alignment, F::ROWS, &mut self.starts);
        self.integers.gate_up::<F>(shape, w13, &self.x, (&self.alignment, &self.starts), isa);
    }

    fn down_int8<F: Int8Format>(&mut self, shape: &MoeShape, w2: &Int8Weights, isa: simd::Isa) {
        blocks::starts(&self.alignment, F::ROWS, &mut self.starts);
        let rows = (&self.alignment, self.starts.as_slice());
        self.integers.down::<F>(shape, w2, rows, &mut self.y, isa);
    }

    fn combine(&mut self, shape: &MoeShape) {
        gemm::combine(shape, &self.y, &self.routed, &self.alignment, &mut self.out);
    }
}

/// Weights of one product in rows, and packed where they are.
type Values<'a, W> = (&'a [W], Option<&'a Packed>);

/// The packed weights if there are any, else the rows.
fn matrices<W: Packable>(
    (rows, packed): Values<'_, W>,
    size: (usize, usize),
    isa: simd::Isa,
) -> Matrices<'_, W> {
    let per_lane = isa.packed_per_lane(W::DTYPE);
    match packed.and_then(W::of).zip(per_lane) {
        Some((packed, per_lane)) => Matrices::new(packed, size, Some(per_lane)),
        None => Matrices::new(rows, size, None),
    }
}

/// Whether there are kernels for weights of a format.
fn executes(weights: DType) -> Result<()> {
    match weights {
        DType::Fp8 => {
            Err(Error::usage("weights", "processors multiply no fp8 weights here; GPUs do"))
        }
        _ => Ok(()),
    }
}
