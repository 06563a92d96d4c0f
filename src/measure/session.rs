//! A device that this process has opened: what is known of it, and a plan's layers loaded on it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::aa;
use super::ceilings::CeilingSamples;
use super::data::{self, Inputs};
use super::launches::{Bed, CellLaunches, Drawn};
use super::plan::{CellSpec, Machine, Plan, Pool};
use super::run::{self, Beginning, Invocation, Observer, Run};
use super::target::{CeilingTests, Target};
use super::timing::{Clock, MonotonicClock};
use super::worker::{Answer, Ask, Facts, Trouble, Worker};
use crate::config::DType;
use crate::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};
use crate::record::{Device, Profile};
use crate::{Error, Result};

/// The device, the backend and the host's clock of a run.
pub struct Session<'a> {
    backend: &'a dyn MoeBackend,
    target: &'a dyn Target,
    clock: MonotonicClock,
    cores: usize,
}

impl<'a> Session<'a> {
    /// A session of a backend on the device that it runs on.
    pub fn new(backend: &'a dyn MoeBackend, target: &'a dyn Target) -> Self {
        let threads = target.host_threads();
        let cores = std::thread::available_parallelism().map_or(threads, usize::from);
        Self { backend, target, clock: MonotonicClock::default(), cores }
    }

    /// The device and the kernels on it.
    pub fn facts(&self) -> Facts {
        let (target, backend) = (self.target, self.backend);
        let (peer, peer_dtype) = target.peer();
        Facts {
            device: target.device(),
            kernel: backend.kernel(Stage::Layer).to_owned(),
            kernel_sha256: backend.kernel_sha256(),
            dense_kernel: backend.kernel(Stage::GateUp).to_owned(),
            peer: (peer.to_owned(), peer_dtype),
            modes: target.modes().to_vec(),
            width: target.width(),
            cache_bytes: target.cache_bytes(),
            host_threads: target.host_threads(),
            notes: target.notes(),
            libraries: target.libraries(),
        }
    }

    /// Rough rates and sizes of the device, for planning: some hundred milliseconds.
    ///
    /// # Errors
    /// Whatever the kernels report.
    pub fn machine(&self, dtype: DType) -> Result<Machine> {
        // Said before gigabytes of weights are drawn.
        self.backend.check_weights(dtype)?;
        let weights = self.target.sizes().dense_weights(dtype, 1)?;
        let mut tests = self.target.ceilings(self.backend, &weights)?;
        let mut samples = CeilingSamples::default();
        for _ in 0..3 {
            tests.sample_read(&mut samples)?;
        }
        tests.sample_rest(&mut samples)?;
        let kernel = (self.backend.kernel(Stage::GateUp), dtype);
        let found = samples.record(kernel, self.target.peer())?;
        Ok(Machine {
            cache_bytes: self.target.cache_bytes(),
            available_bytes: self.target.available_bytes(),
            shared_copies: self.shared_copies(),
            own_copies: self.backend.weight_copies(dtype) - self.shared_copies(),
            read_bytes_per_s: found.read_best_bytes_per_s,
            gemm_flops_per_s: found.gemm_best_flops_per_s,
        })
    }

    /// How often the weights that layers share lie in the memory of the device: a GPU has each layer's
    /// own.
    fn shared_copies(&self) -> usize {
        usize::from(matches!(self.target.device(), Device::Cpu(_)))
    }

    /// Measures the cells of a plan in this process.
    ///
    /// # Errors
    /// As [`run::rounds`], and its failure, with which the profile is lost.
    pub fn run(
        &self,
        plan: &Plan,
        invocation: Invocation,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Profile> {
        let beginning = &Beginning::now(invocation);
        let began_ns = self.clock.now_ns();
        observer.step(0, 1, "drawing weights");
        self.load(plan, |loaded| {
            let clocks = &self.clock;
            let run = Run { beginning, clocks, began_ns, ledger: &mut (), observer, stop };
            let measured = run::rounds(loaded, plan, run)?;
            measured.failure.map_or(Ok(measured.profile), Err)
        })
    }

    /// Draws and loads what a plan needs, and hands it to `work`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a timing mode that the device does not have; whatever the backend and
    /// `work` report.
    pub(super) fn load<T>(
        &self,
        plan: &Plan,
        work: impl FnOnce(&mut Loaded) -> Result<T>,
    ) -> Result<T> {
        let request = &plan.request;
        let facts = self.facts();
        facts.check_modes(&request.modes)?;
        let (pools, sets) = draw_sets(plan)?;
        let layers = self.layers(plan, &sets)?;
        let dense = self.target.sizes().dense_weights(request.dtype, request.seed)?;
        let ceilings = self.target.ceilings(self.backend, &dense)?;
        let bed = Bed {
            arithmetic: self.backend.arithmetic(request.dtype),
            target: self.target,
            clock: &self.clock,
            rule: self.target.rule(request.rule),
            threads: self.target.host_threads(),
            cores: self.cores,
        };
        let inputs = draw_inputs(plan)?;
        let mut cells = Vec::with_capacity(plan.cells.len());
        let mut drawn = Vec::with_capacity(plan.cells.len());
        for (spec, inputs) in plan.cells.iter().zip(inputs) {
            let place = sets.iter().position(|(shape, _)| *shape == spec.shape).unwrap_or(0);
            let of_shape = sets.get(place).map_or(1, |(_, sets)| sets.len());
            let cell = CellLaunches::new(*spec, inputs, of_shape);
            drawn.push(cell.drawn(of_shape));
            cells.push((place, cell));
        }
        let shared = if self.shared_copies() > 0 { pools } else { Vec::new() };
        let pools = shared.into_iter().map(|pool| (pool, 0)).collect();
        work(&mut Loaded { facts, drawn, sets: &sets, layers, ceilings, cells, pools, bed })
    }

    /// The layers of a plan. One that the device has no room for costs its own cells; without any there is
    /// nothing to measure.
    fn layers<'s>(
        &'s self,
        plan: &Plan,
        sets: &'s [(MoeShape, Vec<LayerWeights>)],
    ) -> Result<Vec<Layer<'s>>> {
        let mut layers = Vec::with_capacity(sets.len());
        let mut refused = None;
        for (shape, sets) in sets {
            let tokens = plan.cells.iter().filter(|c| c.shape == *shape).map(|c| c.tokens);
            let tokens = tokens.max().unwrap_or(1);
            match self.backend.load(sets, &RouterSpec::softmax(), tokens) {
                Ok(layer) => layers.push(Ok(layer)),
                Err(error @ Error::Device { .. }) => {
                    layers.push(Err(error.to_string()));
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(error) if layers.iter().all(Result::is_err) => Err(error),
            _ => Ok(layers),
        }
    }
}

/// A loaded layer, or why the device does not take it.
type Layer<'a> = Result<Box<dyn LoadedLayer + 'a>, String>;

/// The sets of weights of a layer.
type Sets = (MoeShape, Vec<LayerWeights>);

/// The weights of a plan's layers, with the pools whose parts they are.
fn draw_sets(plan: &Plan) -> Result<(Vec<Pool>, Vec<Sets>)> {
    let request = &plan.request;
    let pools = Pool::of(&plan.shapes);
    let mut all: Vec<Sets> = plan.shapes.iter().map(|(shape, _)| (*shape, Vec::new())).collect();
    for pool in &pools {
        let drawn = (0..pool.sets)
            .map(|i| data::weights(pool.shape, request.dtype, request.seed.wrapping_add(i as u64)))
            .collect::<Result<Vec<_>>>()?;
        for ((shape, sets), (_, count)) in all.iter_mut().zip(&plan.shapes) {
            if !pool.is_of(shape) {
                continue;
            }
            for set in 0..*count {
                let (of_pool, experts) = pool.place(shape, set);
                sets.push(drawn[of_pool].part(experts, shape.top_k)?);
            }
        }
    }
    Ok((pools, all))
}

/// The inputs of every cell, by all threads; cells that differ in nothing but their timing share them.
fn draw_inputs(plan: &Plan) -> Result<Vec<Arc<Inputs>>> {
    let same = |a: &CellSpec, b: &CellSpec| (a.shape, a.tokens) == (b.shape, b.tokens);
    let mut kinds: Vec<&CellSpec> = Vec::new();
    for spec in &plan.cells {
        if !kinds.iter().any(|kind| same(kind, spec)) {
            kinds.push(spec);
        }
    }
    let drawn = kinds.par_iter().map(|spec| run::inputs(plan, spec).map(Arc::new));
    let drawn: Vec<Arc<Inputs>> = drawn.collect::<Result<_>>()?;
    let of_cell = |spec: &CellSpec| kinds.iter().position(|kind| same(kind, spec)).unwrap_or(0);
    Ok(plan.cells.iter().map(|spec| Arc::clone(&drawn[of_cell(spec)])).collect())
}

/// A plan's layers on the device of this process.
pub(super) struct Loaded<'a> {
    facts: Facts,
    drawn: Vec<Drawn>,
    sets: &'a [(MoeShape, Vec<LayerWeights>)],
    layers: Vec<Layer<'a>>,
    ceilings: Box<dyn CeilingTests + 'a>,
    /// Each with the number of its layer.
    cells: Vec<(usize, CellLaunches)>,
    /// Memory that layers share, with the expert behind those that were last read.
    pools: Vec<(Pool, usize)>,
    bed: Bed<'a>,
}

impl Loaded<'_> {
    /// Tokens of a cell.
    pub(super) fn tokens(&self, cell: usize) -> Option<usize> {
        self.cells.get(cell).map(|(_, cell)| cell.spec().tokens)
    }

    /// Lets a cell begin behind what was last read of the memory that its layer shares with others:
    /// what they have left in the cache.
    fn go_on(&mut self, cell: usize) {
        let Some((layer, cell)) = self.cells.get_mut(cell) else { return };
        let shape = cell.spec().shape;
        let sets = self.sets.get(*layer).map_or(1, |(_, sets)| sets.len());
        if let Some((pool, read)) = self.pools.iter().find(|(pool, _)| pool.is_of(&shape)) {
            cell.go_on_at(pool.set_after(&shape, sets, *read), sets);
        }
    }

    /// Does one piece of the run.
    ///
    /// # Errors
    /// [`Error::Usage`] for a cell that the plan does not have; [`Error::Interrupted`] when `stop` was
    /// raised; whatever the device reports.
    pub(super) fn answer(&mut self, ask: Ask, stop: &AtomicBool) -> Result<Answer> {
        let mut samples = CeilingSamples::default();
        if let Ask::Block { cell, .. } | Ask::Itself { cell, .. } = ask {
            self.go_on(cell);
        }
        match ask {
            Ask::ReadRate => self.ceilings.sample_read(&mut samples)?,
            Ask::OtherRates => self.ceilings.sample_rest(&mut samples)?,
            Ask::Block { cell, round } => {
                let bed = &self.bed;
                let (cell, layer, sets) =
                    place(&mut self.cells, &mut self.layers, self.sets, cell)?;
                let taken = cell.take(layer, sets, bed, round, stop)?;
                note_read(&mut self.pools, cell);
                return Ok(Answer::Block(taken));
            }
            Ask::CheckLast { cell } => {
                let bed = &self.bed;
                let (cell, layer, sets) =
                    place(&mut self.cells, &mut self.layers, self.sets, cell)?;
                let (record, ns) = cell.check_last(layer, sets, bed)?;
                return Ok(Answer::Check { record, ns });
            }
            Ask::Itself { cell, round } => {
                let clock = self.bed.clock;
                let (cell, layer, sets) =
                    place(&mut self.cells, &mut self.layers, self.sets, cell)?;
                let ratio =
                    |timed: &mut dyn super::timing::Launch| aa::log_ratio(timed, clock, round);
                let ratio = cell.borrow(layer, sets.len(), ratio)?;
                note_read(&mut self.pools, cell);
                return Ok(Answer::Itself(ratio));
            }
        }
        Ok(Answer::Rates(samples))
    }
}

/// Remembers where a cell's launches have ended in the memory that its layer shares.
fn note_read(pools: &mut [(Pool, usize)], cell: &CellLaunches) {
    let shape = &cell.spec().shape;
    if let Some((pool, read)) = pools.iter_mut().find(|(pool, _)| pool.is_of(shape)) {
        let (set, experts) = cell.last_read();
        *read = pool.expert(shape, set, experts);
    }
}

/// A cell with its layer and the layer's weights.
fn place<'c, 's>(
    cells: &'c mut [(usize, CellLaunches)],
    layers: &'c mut [Layer<'s>],
    sets: &'s [(MoeShape, Vec<LayerWeights>)],
    number: usize,
) -> Result<(&'c mut CellLaunches, &'c mut (dyn LoadedLayer + 's), &'s [LayerWeights])> {
    let unknown = || Error::usage("cell", format!("there is none with number {number}"));
    let (place, cell) = cells.get_mut(number).ok_or_else(unknown)?;
    let layer = layers.get_mut(*place).ok_or_else(unknown)?;
    let layer =
        layer.as_mut().map_err(|why| Error::unfit("layer", format!("not loaded: {why}")))?;
    let (_, sets) = sets.get(*place).ok_or_else(unknown)?;
    Ok((cell, layer.as_mut(), sets))
}

impl Worker for Loaded<'_> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn drawn(&self) -> &[Drawn] {
        &self.drawn
    }

    fn ask(&mut self, ask: Ask, stop: &AtomicBool) -> Result<Answer, Trouble> {
        self.answer(ask, stop).map_err(|error| match (ask, error) {
            (_, error @ Error::Interrupted { .. }) => Trouble::Over(error),
            (Ask::Block { .. } | Ask::CheckLast { .. }, error) => Trouble::Lost(error.to_string()),
            (_, error) => Trouble::Over(error),
        })
    }
}
