//! One run of `measure`: rounds in which every open cell gets one block, in a new random order, with
//! the device's ceilings and one kernel compared with itself in between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::ceilings::CeilingSamples;
use super::cell::{CellState, Common, refuse_impossible};
use super::data::{self, Inputs};
use super::plan::{CellSpec, Machine, Plan, ROUNDS};
use super::preflight::Load;
use super::record::{
    Key, PROFILE_SCHEMA, PROFILE_VERSION, PROTOCOL_VERSION, Profile, Provenance, Recipe,
    RunCeilings, RunInfo,
};
use super::sampling::{LOOKS, is_closed};
use super::target::{CeilingTests, Target};
use super::timing::MonotonicClock;
use super::{aa, host};
use crate::config::DType;
use crate::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};
use crate::{Error, Result};

/// Blocks between two samples of read bandwidth: its swings on shared machines last seconds.
const READ_EVERY: usize = 4;
/// A plan turned out slower than this much of its budget loses its least wanted cells.
const OVERRUN: f64 = 1.1;

/// Told what is going on.
pub trait Observer {
    /// `done` of `total` steps are over; `what` is being worked on.
    fn step(&mut self, done: usize, total: usize, what: &str);

    /// Something that the reader of the result should know.
    fn notice(&mut self, message: &str);
}

/// An observer that says nothing.
impl Observer for () {
    fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

    fn notice(&mut self, _message: &str) {}
}

/// The device, the backend and the host's clock of a run.
pub struct Session<'a> {
    backend: &'a dyn MoeBackend,
    target: &'a dyn Target,
    clock: MonotonicClock,
    cores: usize,
}

/// What a run was started with, for its provenance.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Program name and version.
    pub program: String,
    /// Arguments without the program's path.
    pub argv: Vec<String>,
}

impl<'a> Session<'a> {
    /// A session of a backend on the device that it runs on.
    pub fn new(backend: &'a dyn MoeBackend, target: &'a dyn Target) -> Self {
        let threads = target.host_threads();
        let cores = std::thread::available_parallelism().map_or(threads, usize::from);
        Self { backend, target, clock: MonotonicClock::default(), cores }
    }

    /// Rough rates and sizes of the device, for planning: some hundred milliseconds.
    ///
    /// # Errors
    /// Whatever the kernels report.
    pub fn machine(&self, dtype: DType) -> Result<Machine> {
        let weights = self.target.sizes().dense_weights(dtype, 1)?;
        let mut bench = self.bench(&weights)?;
        for _ in 0..3 {
            bench.sample_read()?;
        }
        bench.sample_rest()?;
        let found = bench.record(self.backend.kernel(Stage::GateUp), dtype)?;
        Ok(Machine {
            cache_bytes: self.target.cache_bytes(),
            available_bytes: self.target.available_bytes(),
            read_bytes_per_s: found.read_best_bytes_per_s,
            gemm_flops_per_s: found.gemm_best_flops_per_s,
        })
    }

    fn bench<'b>(&'b self, dense: &'b [LayerWeights]) -> Result<Bench<'b>> {
        let tests = self.target.ceilings(self.backend, dense)?;
        Ok(Bench { tests, samples: CeilingSamples::default() })
    }

    /// Measures the cells of a plan.
    ///
    /// A single cell that fails leaves a record that says so; the others go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when `stop` was raised; whatever the ceilings report.
    pub fn run(
        &self,
        plan: &Plan,
        invocation: Invocation,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Profile> {
        let start = (unix_seconds(), Load::read());
        let request = &plan.request;
        observer.step(0, 1, "drawing weights");
        let sets = draw_sets(plan)?;
        let mut layers = self.load(plan, &sets)?;
        let kernel_sha256 = self.backend.kernel_sha256();
        let common = Common {
            kernel: (self.backend.kernel(Stage::Layer), &kernel_sha256),
            dtype: request.dtype,
            arithmetic: self.backend.arithmetic(request.dtype),
            routing: request.routing.to_string(),
            seed: request.seed,
            target: self.target,
            timing: self.target.timing(),
            width: self.target.width(),
            cache_bytes: self.target.cache_bytes(),
            clock: &self.clock,
            rule: self.target.rule(request.rule),
            threads: self.target.host_threads(),
            cores: self.cores,
        };
        let dense = self.target.sizes().dense_weights(request.dtype, request.seed)?;
        let mut bench = self.bench(&dense)?;
        let mut rounds = Rounds {
            plan,
            sets: &sets,
            layers: &mut layers,
            common: &common,
            cells: plan.cells.iter().map(|spec| cell(plan, *spec)).collect::<Result<_>>()?,
            aa: aa::Aa::default(),
            rng: ChaCha8Rng::seed_from_u64(request.seed),
            stop,
        };
        let done = rounds.measure(&mut bench, observer)?;
        let ceilings = bench.record(self.backend.kernel(Stage::GateUp), request.dtype)?;
        let cells = rounds.records();
        let (aa_effect_rel, noise_floor_rel, aa_verdict) = rounds.aa.verdict();
        Ok(Profile {
            schema: PROFILE_SCHEMA.into(),
            schema_version: PROFILE_VERSION.into(),
            protocol_version: PROTOCOL_VERSION.into(),
            key: self.key(request.seed),
            provenance: Provenance {
                program: invocation.program,
                os: host::os(),
                argv: invocation.argv,
                start_unix_s: start.0,
                end_unix_s: unix_seconds(),
                load_1min: start.1.load_1min,
                steal_rel: Load::read().steal_since(&start.1),
            },
            run: RunInfo {
                id: format!("{:#018x}", rand::random::<u64>()),
                rounds: done,
                aa_effect_rel,
                noise_floor_rel,
                aa_verdict,
                ceilings: ceilings.clone(),
            },
            cells: cells.into_iter().map(|c| refuse_impossible(c, &ceilings)).collect(),
        })
    }

    /// The key that a profile of this session carries.
    pub fn key(&self, seed: u64) -> Key {
        let recipe =
            Recipe { data: data::RECIPE.into(), protocol_major: 1, seed: format!("{seed:#x}") };
        Key::new(self.target.device(), recipe)
    }

    fn load<'s>(
        &'s self,
        plan: &Plan,
        sets: &'s [(MoeShape, Vec<LayerWeights>)],
    ) -> Result<Vec<Box<dyn LoadedLayer + 's>>> {
        sets.iter()
            .map(|(shape, sets)| {
                let tokens = plan.cells.iter().filter(|c| c.shape == *shape).map(|c| c.tokens);
                self.backend.load(sets, &RouterSpec::softmax(), tokens.max().unwrap_or(1))
            })
            .collect()
    }
}

fn cell(plan: &Plan, spec: CellSpec) -> Result<CellState> {
    Ok(CellState::new(spec, inputs(plan, &spec)?))
}

fn inputs(plan: &Plan, spec: &CellSpec) -> Result<Inputs> {
    let request = &plan.request;
    let seed = request.seed ^ (spec.tokens as u64) << 20 ^ (spec.shape.experts as u64) << 40;
    Inputs::draw(&spec.shape, spec.tokens, &request.routing, seed)
}

/// The routing of one cell as other programs read it, to time their kernels on the same tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CellRouting {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Experts.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens.
    pub tokens: usize,
    /// Expert of each (token, slot), of each draw that the samples rotate over.
    pub draws: Vec<Vec<u32>>,
}

/// The routings that a plan's cells are measured with.
///
/// # Errors
/// [`Error::Usage`] when the routing does not fit a shape.
pub fn routings(plan: &Plan) -> Result<Vec<CellRouting>> {
    let of_cell = |spec: &CellSpec| {
        let draws = inputs(plan, spec)?.draws.into_iter().map(|draw| draw.ids).collect();
        let MoeShape { hidden, inter, experts, top_k, .. } = spec.shape;
        Ok(CellRouting { hidden, inter, experts, top_k, tokens: spec.tokens, draws })
    };
    plan.cells.iter().map(of_cell).collect()
}

fn draw_sets(plan: &Plan) -> Result<Vec<(MoeShape, Vec<LayerWeights>)>> {
    let request = &plan.request;
    plan.shapes
        .iter()
        .map(|&(shape, count)| {
            let sets = (0..count)
                .map(|i| data::weights(shape, request.dtype, request.seed.wrapping_add(i as u64)))
                .collect::<Result<Vec<_>>>()?;
            Ok((shape, sets))
        })
        .collect()
}

/// The ceiling tests with what they have found so far.
struct Bench<'a> {
    tests: Box<dyn CeilingTests + 'a>,
    samples: CeilingSamples,
}

impl Bench<'_> {
    fn sample_read(&mut self) -> Result<()> {
        self.tests.sample_read(&mut self.samples)
    }

    fn sample_rest(&mut self) -> Result<()> {
        self.tests.sample_rest(&mut self.samples)
    }

    fn record(&self, kernel: &str, dtype: DType) -> Result<RunCeilings> {
        self.samples.record((kernel, dtype), self.tests.peer())
    }
}

/// The rounds of one run.
struct Rounds<'a, 's> {
    plan: &'a Plan,
    sets: &'a [(MoeShape, Vec<LayerWeights>)],
    layers: &'a mut Vec<Box<dyn LoadedLayer + 's>>,
    common: &'a Common<'a>,
    cells: Vec<CellState>,
    aa: aa::Aa,
    rng: ChaCha8Rng,
    stop: &'a AtomicBool,
}

impl Rounds<'_, '_> {
    /// Runs rounds until every cell has closed or the time is over; returns their number.
    fn measure(&mut self, bench: &mut Bench, observer: &mut dyn Observer) -> Result<u32> {
        let start = Instant::now();
        let budget = self.plan.request.budget;
        let last = LOOKS[LOOKS.len() - 1];
        let mut round = 0;
        loop {
            round += 1;
            let open = self.open_cells(round - 1);
            if open.is_empty() {
                return Ok(round - 1);
            }
            self.one_round(bench, &open, round, observer)?;
            // Outputs are checked once, so that time does not come again.
            let repeated = start.elapsed().saturating_sub(self.checking());
            if round == 1 {
                let dropped = self.drop_least_wanted(repeated, budget);
                if dropped > 0 {
                    observer.notice(&format!(
                        "not measured: the {dropped} least wanted cells, after a first round that \
                         took longer than planned; raise --time-budget"
                    ));
                }
            }
            let next_end = start.elapsed() + repeated / round;
            if round == last || (round >= ROUNDS && next_end > budget) {
                return Ok(round);
            }
        }
    }

    /// Time that went into comparing outputs with the reference.
    fn checking(&self) -> Duration {
        self.cells.iter().map(CellState::checking).sum()
    }

    /// Cells that get a block in the round after `done` rounds, in a new random order.
    fn open_cells(&mut self, done: u32) -> Vec<usize> {
        let open = |cell: &CellState| {
            cell.is_alive() && !is_closed(cell.blocks(), done, self.common.width)
        };
        let mut indices: Vec<usize> =
            (0..self.cells.len()).filter(|&i| open(&self.cells[i])).collect();
        indices.shuffle(&mut self.rng);
        indices
    }

    fn one_round(
        &mut self,
        bench: &mut Bench,
        open: &[usize],
        round: u32,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let cells = self.cells.len();
        // Progress counts the rounds that every cell gets; later ones only narrow intervals.
        let rounds = usize::try_from(ROUNDS.max(round)).unwrap_or(1);
        let done = cells * usize::try_from(round - 1).unwrap_or(0);
        bench.sample_rest()?;
        for (i, &index) in open.iter().enumerate() {
            let spec = self.cells[index].spec;
            let what = format!(
                "round {round}, {} experts of {} x {}, {} tokens",
                spec.shape.experts, spec.shape.hidden, spec.shape.inter, spec.tokens
            );
            observer.step(done + i, cells * rounds, &what);
            if i % READ_EVERY == 0 {
                bench.sample_read()?;
            }
            self.block(index, round)?;
        }
        self.compare_with_itself(round)
    }

    fn block(&mut self, index: usize, round: u32) -> Result<()> {
        let place = self.place(index);
        let cell = &mut self.cells[index];
        let (layer, sets) = (self.layers[place].as_mut(), &self.sets[place].1);
        let taken = cell.take(layer, sets, self.common, round, self.stop);
        if !taken || self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted { signal: 2, hint: String::new() });
        }
        // The last timed output of each cell is looked at once its interval could be complete.
        if round == ROUNDS && self.cells[index].is_alive() {
            let (layer, sets) = (self.layers[place].as_mut(), &self.sets[place].1);
            self.cells[index].check_last(layer, sets, self.common);
        }
        Ok(())
    }

    /// Index of the layer that a cell runs on.
    fn place(&self, index: usize) -> usize {
        let shape = self.cells[index].spec.shape;
        self.sets.iter().position(|(s, _)| *s == shape).unwrap_or(0)
    }

    fn compare_with_itself(&mut self, round: u32) -> Result<()> {
        let Some(index) = aa::canary(&self.cells) else { return Ok(()) };
        let place = self.place(index);
        let sets = self.sets[place].1.len();
        let layer = self.layers[place].as_mut();
        let (aa, clock) = (&mut self.aa, self.common.clock);
        self.cells[index].borrow(layer, sets, |timed| aa.take(timed, clock, round))
    }

    /// After the first round the real cost is known: what the rest cannot hold is dropped, the least
    /// wanted first. Returns how many.
    fn drop_least_wanted(&mut self, round: Duration, budget: Duration) -> usize {
        let allowed = budget.as_secs_f64() * OVERRUN / f64::from(ROUNDS);
        let needed = round.as_secs_f64();
        let busy: f64 = self.cells.iter().map(CellState::busy_s).sum();
        // What is not spent in timed launches (ceilings, inputs) shrinks with the cells as well.
        let overhead = needed / busy.max(f64::MIN_POSITIVE);
        let mut left = needed;
        let planned = self.cells.len();
        while left > allowed && self.cells.len() > 1 {
            if let Some(cell) = self.cells.pop() {
                left -= cell.busy_s() * overhead;
            }
        }
        planned - self.cells.len()
    }

    fn records(&self) -> Vec<super::record::Cell> {
        (0..self.cells.len())
            .map(|i| self.cells[i].record(self.sets[self.place(i)].1.len(), self.common))
            .collect()
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Arithmetic;
    use crate::kernels::cpu::CpuBackend;
    use crate::measure::ceilings::Sizes;
    use crate::measure::plan::Request;
    use crate::measure::record::Status;
    use crate::measure::sampling::BlockRule;
    use crate::measure::target::CpuTarget;

    /// Blocks of a few milliseconds: what is tested here is the bookkeeping, not the times.
    const RULE: BlockRule = BlockRule {
        min_samples: 3,
        min_busy_ns: 1_000_000,
        cap_ns: 2_000_000,
        shortest_sample_ns: 20_000,
    };

    fn plan() -> Plan {
        let request = Request {
            widths: vec![(64, 192), (128, 384)],
            experts: vec![1, 4],
            top_k: 1,
            gated: true,
            tokens: Some(vec![1, 9]),
            dtype: DType::Bf16,
            routing: "uniform".parse().unwrap(),
            seed: 9,
            budget: Duration::from_secs(20),
            rule: RULE,
        };
        let machine = Machine {
            cache_bytes: 1e6,
            available_bytes: 1e9,
            read_bytes_per_s: 1e10,
            gemm_flops_per_s: 1e11,
        };
        Plan::new(request, &machine).unwrap()
    }

    fn invocation() -> Invocation {
        Invocation { program: "test".into(), argv: vec![] }
    }

    /// This processor with ceilings that take milliseconds, also without optimisation.
    fn target() -> CpuTarget {
        let mut target = CpuTarget { read_at_least: 4e6, ..CpuTarget::default() };
        target.device.l3_bytes = Some(1 << 20);
        target.sizes = Sizes {
            read_bytes: 1 << 20,
            dense: MoeShape { hidden: 128, inter: 128, ..Sizes::USUAL.dense },
            dense_tokens: 64,
            square: 64,
        };
        target
    }

    #[test]
    fn a_run_leaves_a_profile_that_its_own_reader_accepts() {
        let (backend, target) = (CpuBackend::new(), target());
        let session = Session::new(&backend, &target);
        let stop = AtomicBool::new(false);
        let profile = session.run(&plan(), invocation(), &mut (), &stop).unwrap();
        crate::profile::validate::validate("test", &profile).unwrap();
        crate::profile::format::to_bytes(&profile).unwrap();
        assert_eq!(profile.cells.len(), 8);
        assert!(profile.run.rounds >= ROUNDS);
        for cell in &profile.cells {
            assert!(matches!(cell.status, Status::Valid | Status::Noisy | Status::Refused));
            assert!(cell.blocks.len() >= 6, "{cell:?}");
            assert!(cell.routing.realisations >= 8);
            assert!(cell.check.worst_ratio_to_bound.unwrap() <= 1.0);
        }
    }

    #[test]
    fn the_routing_written_for_others_is_the_one_that_is_measured() {
        let plan = plan();
        for (routing, spec) in routings(&plan).unwrap().iter().zip(&plan.cells) {
            let measured = inputs(&plan, spec).unwrap();
            assert_eq!(routing.draws.len(), measured.draws.len());
            assert_eq!(routing.draws[0], measured.draws[0].ids);
            assert_eq!(routing.draws[0].len(), routing.tokens * routing.top_k);
        }
    }

    #[test]
    fn a_raised_stop_flag_ends_the_run_without_a_profile() {
        let (backend, target) = (CpuBackend::new(), target());
        let session = Session::new(&backend, &target);
        let stop = AtomicBool::new(true);
        let error = session.run(&plan(), invocation(), &mut (), &stop).unwrap_err();
        assert_eq!(error.exit_code(), 130);
    }

    /// Keeps what it is told.
    #[derive(Default)]
    struct Listener(Vec<String>);

    impl Observer for Listener {
        fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

        fn notice(&mut self, message: &str) {
            self.0.push(message.to_owned());
        }
    }

    #[test]
    fn cells_that_turn_out_too_slow_are_dropped_aloud() {
        let (backend, target) = (CpuBackend::new(), target());
        let session = Session::new(&backend, &target);
        let mut plan = plan();
        plan.request.budget = Duration::from_millis(1);
        let mut heard = Listener::default();
        let stop = AtomicBool::new(false);
        let profile = session.run(&plan, invocation(), &mut heard, &stop).unwrap();
        assert!(profile.cells.len() < plan.cells.len());
        let dropped = plan.cells.len() - profile.cells.len();
        assert_eq!(heard.0.len(), 1);
        assert!(heard.0[0].contains(&format!("the {dropped} least wanted")), "{:?}", heard.0);
        assert!(profile.cells.iter().all(|c| c.blocks.len() >= 6));
    }

    /// The processor with one wrong value in every output.
    struct Wrong(CpuBackend);

    impl MoeBackend for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn description(&self) -> String {
            self.0.description()
        }
        fn kernel(&self, stage: Stage) -> &'static str {
            self.0.kernel(stage)
        }
        fn arithmetic(&self, weights: DType) -> Arithmetic {
            self.0.arithmetic(weights)
        }
        fn kernel_sha256(&self) -> String {
            self.0.kernel_sha256()
        }
        fn load<'a>(
            &'a self,
            sets: &'a [LayerWeights],
            router: &RouterSpec,
            max_tokens: usize,
        ) -> Result<Box<dyn LoadedLayer + 'a>> {
            Ok(Box::new(WrongLayer(self.0.load(sets, router, max_tokens)?)))
        }
    }

    struct WrongLayer<'a>(Box<dyn LoadedLayer + 'a>);

    impl LoadedLayer for WrongLayer<'_> {
        fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()> {
            self.0.set_input(x, logits)
        }
        fn run(&mut self, stage: Stage, set: usize) -> Result<()> {
            self.0.run(stage, set)
        }
        fn routed(&mut self) -> Result<crate::kernels::Routed> {
            self.0.routed()
        }
        fn output(&mut self) -> Result<Vec<f32>> {
            let mut output = self.0.output()?;
            output[0] += 1.0;
            Ok(output)
        }
        fn poison(&mut self) -> Result<()> {
            self.0.poison()
        }
    }

    #[test]
    fn a_kernel_with_a_wrong_output_is_refused_and_not_timed() {
        let (backend, target) = (Wrong(CpuBackend::new()), target());
        let session = Session::new(&backend, &target);
        let stop = AtomicBool::new(false);
        let profile = session.run(&plan(), invocation(), &mut (), &stop).unwrap();
        for cell in &profile.cells {
            // With many tokens the spoilt one may not be among those compared.
            if cell.tokens == 1 {
                assert_eq!((cell.status, cell.blocks.len()), (Status::Refused, 0));
                assert!(cell.latency.interval().is_none());
            }
        }
        crate::profile::validate::validate("test", &profile).unwrap();
    }
}
