//! Which cells are measured: what fits into the memory and the time that there are.
//!
//! A time budget cuts the list of cells, never the rounds that an interval needs.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::data::DRAWS;
use super::sampling::BlockRule;
use super::work::{expert_bytes, of_launch};
use crate::config::DType;
use crate::kernels::MoeShape;
use crate::record::{CellKey, TimingMode};
use crate::units::whole_part;
use crate::workload::{RoutingKind, expected_active};
use crate::{Error, Result};

/// Rounds that every cell gets: the fewest that carry a 95 % interval.
pub const ROUNDS: u32 = 6;

/// Weights that a shape's launches go through, in multiples of the last-level cache. Launches visit at
/// least half of each set before they take the next, and what they read in one cycle must be twice the
/// cache: caches do not evict strictly by age, and with one times the cache layers were seen 10 to 20 %
/// faster than memory. Layers whose experts are alike go through the same memory ([`Pool`]).
const POOL_PER_CACHE: f64 = 4.0;

/// What one cycle must read, in multiples of the last-level cache, to count as read from memory.
pub(super) const CYCLE_PER_CACHE: f64 = 2.0;

/// Share of the available memory that all weights together may take.
const MEMORY_SHARE: f64 = 0.5;

/// Share of the available memory that the inputs of all cells and the work space may take.
const BATCH_SHARE: f64 = 0.25;

/// Share of the time budget that the plan fills; drawing the data and checking outputs take the rest.
const PLANNED_SHARE: f64 = 0.75;

/// A single cell may take this share of the time at most, so that one slow cell does not displace many.
const CELL_SHARE: f64 = 0.04;

/// Share of the roofline assumed for a kernel that was not timed yet, and a fixed cost.
const ASSUMED_UTILISATION: f64 = 0.5;
const ASSUMED_FIXED_NS: f64 = 50_000.0;

/// What is written and read before a cold launch, in multiples of the cache, and what waiting for the
/// launch takes beside it. Not measured yet.
const FLUSHED: f64 = 4.0;
const COLD_LAUNCH_NS: f64 = 30_000.0;

/// Longest expected block; more is beyond any budget.
const LONGEST_S: f64 = 1e6;

/// Token counts in the order in which they are worth their time: the ends first, then the middle,
/// then what refines it.
const TOKEN_ORDER: [usize; 15] =
    [1, 64, 8, 512, 256, 16, 4, 128, 32, 2, 1024, 2048, 4096, 16384, 8192];

/// What is to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// (hidden, inter) of the layers, the most wanted first.
    pub widths: Vec<(usize, usize)>,
    /// Expert counts.
    pub experts: Vec<usize>,
    /// Experts per token.
    pub top_k: usize,
    /// Whether experts are gated.
    pub gated: bool,
    /// Token counts, the most wanted first; `None` chooses.
    pub tokens: Option<Vec<usize>>,
    /// Storage of the weights.
    pub dtype: DType,
    /// How tokens choose experts.
    pub routing: RoutingKind,
    /// Seed of everything random.
    pub seed: u64,
    /// Time that the rounds may take together, with the loading of weights before them.
    pub budget: Duration,
    /// How long one block lasts.
    pub rule: BlockRule,
    /// How cells are timed, the most wanted first.
    pub modes: Vec<TimingMode>,
}

/// Largest token count or width: beyond it index arithmetic is no longer meant.
const MAX_COUNT: usize = 1 << 31;

impl Request {
    /// Removes what a list names twice. Returns a sentence for each list that did.
    pub fn without_repeats(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |list: &str, removed: usize| {
            if removed > 0 {
                notes.push(format!("{list} names {removed} twice or more; each is measured once"));
            }
        };
        note("--experts", unique(&mut self.experts));
        note("--hidden", unique(&mut self.widths));
        note("--tokens", self.tokens.as_mut().map_or(0, unique));
        note("--mode", unique(&mut self.modes));
        notes
    }

    /// Checks, before anything is drawn or measured, that some layer and some batch fit into this many
    /// bytes of memory.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that make no layer, [`Error::Unfit`] when nothing fits.
    pub fn check(&self, memory_bytes: f64) -> Result<()> {
        let tokens = self.tokens.as_deref().unwrap_or(&[1]);
        let widths = self.widths.iter().flat_map(|w| [w.0, w.1]);
        for (name, value) in widths
            .map(|w| ("--hidden and --inter", w))
            .chain(tokens.iter().map(|t| ("--tokens", *t)))
        {
            if value > MAX_COUNT {
                return Err(Error::usage(name, format!("{value} exceeds {MAX_COUNT}")));
            }
        }
        let least_tokens = tokens.iter().copied().min().unwrap_or(1);
        let mut least = f64::INFINITY;
        for &(hidden, inter) in &self.widths {
            for &experts in &self.experts {
                let top_k = self.top_k.min(experts);
                let shape = MoeShape { experts, top_k, hidden, inter, gated: self.gated };
                shape.validate()?;
                let batch = input_bytes(&shape, least_tokens) + work_bytes(&shape, least_tokens);
                let bytes = layer_bytes(&shape, self.dtype) + batch;
                least = least.min(bytes);
            }
        }
        if least <= MEMORY_SHARE * memory_bytes {
            return Ok(());
        }
        let gib = f64::from(1 << 30);
        Err(Error::unfit(
            "plan",
            format!(
                "no layer fits into {:.1} GiB: the smallest needs {:.1} GiB; ask for fewer experts, \
                 smaller sizes or fewer tokens",
                MEMORY_SHARE * memory_bytes / gib,
                least / gib
            ),
        ))
    }
}

/// Removes values that stand before in the list; how many.
fn unique<T: PartialEq + Copy>(list: &mut Vec<T>) -> usize {
    let before = list.len();
    let mut kept: Vec<T> = Vec::with_capacity(before);
    for value in list.iter() {
        if !kept.contains(value) {
            kept.push(*value);
        }
    }
    *list = kept;
    before - list.len()
}

/// Bytes of one cell's inputs, which stay: activations in 32 bits and the logits of each draw.
fn input_bytes(shape: &MoeShape, tokens: usize) -> f64 {
    4.0 * tokens as f64 * (shape.hidden as f64 + DRAWS as f64 * shape.experts as f64)
}

/// Bytes that a layer works in, which its cells share: activations, output and the rows of both products.
fn work_bytes(shape: &MoeShape, tokens: usize) -> f64 {
    let (tokens, hidden, inter) = (tokens as f64, shape.hidden as f64, shape.inter as f64);
    4.0 * (2.0 * tokens * hidden + tokens * shape.top_k as f64 * (hidden + 3.0 * inter))
}

/// What the plan has to know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Last-level cache.
    pub cache_bytes: f64,
    /// Memory that weights can have.
    pub available_bytes: f64,
    /// How often the weights that layers share lie in it: not at all where the device has a memory of its
    /// own.
    pub shared_copies: usize,
    /// How often the weights of each layer by itself lie in it besides.
    pub own_copies: usize,
    /// Rough read bandwidth, bytes per second.
    pub read_bytes_per_s: f64,
    /// Rough dense rate, FLOP/s.
    pub gemm_flops_per_s: f64,
}

/// One cell to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellSpec {
    /// The layer.
    pub shape: MoeShape,
    /// Tokens entering it.
    pub tokens: usize,
    /// How it is timed.
    pub timing: TimingMode,
    /// What one block is expected to take.
    pub block: Duration,
}

impl CellSpec {
    /// What tells it from the others of its plan.
    pub const fn key(&self) -> CellKey {
        let MoeShape { experts, top_k, hidden, inter, gated } = self.shape;
        CellKey { hidden, inter, experts, top_k, gated, tokens: self.tokens, timing: self.timing }
    }
}

/// A list of cells that fits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The request that it serves.
    pub request: Request,
    /// Cells, the most wanted first.
    pub cells: Vec<CellSpec>,
    /// Layers with the number of weight sets of each.
    pub shapes: Vec<(MoeShape, usize)>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

impl Plan {
    /// Chooses the cells of `request` that fit `machine`.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that make no layer, [`Error::Unfit`] when nothing fits.
    pub fn new(request: Request, machine: &Machine) -> Result<Self> {
        let mut plan = Self { cells: vec![], shapes: vec![], left_out: vec![], request };
        let fitting = plan.fitting_shapes(machine)?;
        let shapes: Vec<MoeShape> = fitting.iter().map(|(shape, _)| *shape).collect();
        let planned = plan.request.budget.as_secs_f64() * PLANNED_SHARE;
        let mut left = planned;
        let mut memory = BATCH_SHARE * machine.available_bytes;
        // What each layer works in so far, by its place in the list.
        let mut works = vec![0.0_f64; shapes.len()];
        let explicit = plan.request.tokens.is_some();
        let order = plan.request.tokens.clone().unwrap_or_else(|| TOKEN_ORDER.to_vec());
        for tokens in order {
            let (mut cut, mut too_large) = (0, 0);
            let modes = plan.request.modes.iter();
            for (&timing, work) in modes.flat_map(|m| (0..shapes.len()).map(move |i| (m, i))) {
                let shape = shapes[work];
                let more = (work_bytes(&shape, tokens) - works[work]).max(0.0);
                let bytes = input_bytes(&shape, tokens) + more;
                if bytes > memory {
                    too_large += 1;
                    continue;
                }
                let block = plan.expected_block_s(&shape, tokens, timing, machine)?;
                let cost = f64::from(ROUNDS) * block;
                if cost <= left && (explicit || cost <= CELL_SHARE * planned) {
                    left -= cost;
                    memory -= bytes;
                    works[work] += more;
                    let block = Duration::from_secs_f64(block.min(LONGEST_S));
                    plan.cells.push(CellSpec { shape, tokens, timing, block });
                } else {
                    cut += 1;
                }
            }
            if too_large > 0 && explicit {
                plan.left_out.push(format!("{too_large} cells at {tokens} tokens: memory"));
            }
            if cut > 0 && explicit {
                plan.left_out.push(format!("{cut} cells at {tokens} tokens: time budget"));
            }
        }
        if plan.cells.is_empty() {
            return Err(Error::unfit(
                "plan",
                format!(
                    "no cell can be measured {ROUNDS} times in {:.0} s; raise --time-budget",
                    plan.request.budget.as_secs_f64()
                ),
            ));
        }
        plan.shapes = fitting;
        plan.shapes.retain(|(shape, _)| plan.cells.iter().any(|c| c.shape == *shape));
        Ok(plan)
    }

    /// The layers whose weights fit together, the most wanted first.
    fn fitting_shapes(&mut self, machine: &Machine) -> Result<Vec<(MoeShape, usize)>> {
        let request = &self.request;
        let most = MEMORY_SHARE * machine.available_bytes;
        let mut shapes = Vec::new();
        for &(hidden, inter) in &request.widths {
            for &experts in &request.experts {
                let top_k = request.top_k.min(experts);
                let shape = MoeShape { experts, top_k, hidden, inter, gated: request.gated };
                shape.validate()?;
                shapes.push((shape, self.sets(&shape, machine)));
                if needed_bytes(&shapes, request.dtype, machine) > most {
                    shapes.pop();
                    self.left_out.push(format!("{experts} experts of {hidden} x {inter}: memory"));
                }
            }
        }
        if shapes.is_empty() {
            let most = most / f64::from(1 << 30);
            return Err(Error::unfit(
                "plan",
                format!("no layer fits into {most:.1} GiB; ask for fewer experts or smaller sizes"),
            ));
        }
        Ok(shapes)
    }

    /// Weight sets of a shape: enough that a cycle through them outgrows the last-level cache.
    fn sets(&self, shape: &MoeShape, machine: &Machine) -> usize {
        let pool = POOL_PER_CACHE * machine.cache_bytes;
        let sets = (pool / layer_bytes(shape, self.request.dtype)).ceil();
        // Tiny layers in a huge cache: beyond this many sets, bookkeeping is what is measured.
        whole_part(sets).clamp(1, 4096)
    }

    /// Expected time of one block of a cell, in seconds.
    fn expected_block_s(
        &self,
        shape: &MoeShape,
        tokens: usize,
        timing: TimingMode,
        machine: &Machine,
    ) -> Result<f64> {
        let inclusion = self.request.routing.inclusion(shape.experts, shape.top_k)?;
        let active = expected_active(&inclusion, tokens as f64);
        let work = of_launch(shape, tokens, active, self.request.dtype.bits());
        let roofline =
            (work.bytes_min / machine.read_bytes_per_s).max(work.flops / machine.gemm_flops_per_s);
        let launch_ns = roofline * 1e9 / ASSUMED_UTILISATION + ASSUMED_FIXED_NS;
        let rule = &self.request.rule;
        let once = rule.expected_ns(launch_ns) + launch_ns;
        Ok(1e-9
            * match timing {
                TimingMode::Cpu => once,
                // Before each launch the cache is overwritten and read through, which is not timed.
                TimingMode::Cold => {
                    let moved = FLUSHED * machine.cache_bytes / machine.read_bytes_per_s * 1e9;
                    once + (once / launch_ns).ceil() * (moved + COLD_LAUNCH_NS)
                }
                // Each sample is a series that runs once before it is timed.
                TimingMode::Stream => 2.0 * rule.expected_ns(launch_ns * DRAWS as f64),
                TimingMode::Hot => 2.0 * rule.expected_ns(launch_ns),
            })
    }
}

/// Weights that the layers of one width share: sets of the one with most experts, of which the others
/// take parts. All go through the same memory, so that it need outgrow the cache only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The layer with most experts.
    pub shape: MoeShape,
    /// Sets of it.
    pub sets: usize,
}

impl Pool {
    /// The pools of some layers with their numbers of sets.
    pub fn of(shapes: &[(MoeShape, usize)]) -> Vec<Self> {
        let mut pools: Vec<Self> = Vec::new();
        for &(shape, _) in shapes {
            match pools.iter_mut().find(|p| p.is_of(&shape)) {
                Some(pool) if pool.shape.experts < shape.experts => pool.shape = shape,
                Some(_) => {}
                None => pools.push(Self { shape, sets: 0 }),
            }
        }
        for pool in &mut pools {
            let needed = |(shape, sets): &(MoeShape, usize)| sets.div_ceil(pool.parts(shape));
            let own = shapes.iter().filter(|(shape, _)| pool.is_of(shape));
            pool.sets = own.map(needed).max().unwrap_or(0);
        }
        pools
    }

    /// Whether a layer's experts are those of the pool.
    pub fn is_of(&self, shape: &MoeShape) -> bool {
        let of = |s: &MoeShape| (s.hidden, s.inter, s.gated);
        of(&self.shape) == of(shape)
    }

    /// Sets of a layer in one set of the pool.
    pub const fn parts(&self, shape: &MoeShape) -> usize {
        self.shape.experts / shape.experts
    }

    /// The set of the pool that holds a layer's set, and the place of its experts there.
    pub fn place(&self, shape: &MoeShape, set: usize) -> (usize, Range<usize>) {
        let parts = self.parts(shape);
        let first = set % parts * shape.experts;
        (set / parts, first..first + shape.experts)
    }

    /// The first of a layer's `sets` sets whose weights were not read since those before the expert
    /// `read` of the pool, counted over all of its sets.
    pub fn set_after(&self, shape: &MoeShape, sets: usize, read: usize) -> usize {
        let (whole, rest) = (read / self.shape.experts, read % self.shape.experts);
        let parts = self.parts(shape);
        let set = whole * parts + rest.div_ceil(shape.experts).min(parts);
        if set < sets { set } else { 0 }
    }

    /// Where an expert of a layer's set lies among those of the pool, counted over all of its sets.
    pub fn expert(&self, shape: &MoeShape, set: usize, expert: usize) -> usize {
        let (of_pool, experts) = self.place(shape, set);
        of_pool * self.shape.experts + experts.start + expert
    }
}

/// Memory that the weights of some layers take.
fn needed_bytes(shapes: &[(MoeShape, usize)], dtype: DType, machine: &Machine) -> f64 {
    let bytes = |shape: &MoeShape, sets: usize| sets as f64 * layer_bytes(shape, dtype);
    let shared: f64 = Pool::of(shapes).iter().map(|p| bytes(&p.shape, p.sets)).sum();
    let own: f64 = shapes.iter().map(|(shape, sets)| bytes(shape, *sets)).sum();
    machine.shared_copies as f64 * shared + machine.own_copies as f64 * own
}

/// Bytes of one set of weights.
pub fn layer_bytes(shape: &MoeShape, dtype: DType) -> f64 {
    shape.experts as f64 * expert_bytes(shape, dtype.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        cache_bytes: 32e6,
        available_bytes: 16e9,
        shared_copies: 1,
        own_copies: 0,
        read_bytes_per_s: 20e9,
        gemm_flops_per_s: 200e9,
    };

    fn request() -> Request {
        Request {
            widths: vec![(512, 1536), (1024, 3072)],
            experts: vec![1, 4, 8, 16, 32],
            top_k: 1,
            gated: true,
            tokens: None,
            dtype: DType::Bf16,
            routing: RoutingKind::Uniform,
            seed: 1,
            budget: Duration::from_secs(60),
            rule: BlockRule::QUICK,
            modes: vec![TimingMode::Cpu],
        }
    }

    #[test]
    fn a_plan_fills_the_time_with_the_most_wanted_cells() {
        let plan = Plan::new(request(), &MACHINE).unwrap();
        assert!(plan.cells.len() > 60, "{}", plan.cells.len());
        assert_eq!(plan.cells[0].tokens, 1);
        assert_eq!(plan.shapes.len(), 10);
        let time: f64 = plan.cells.iter().map(|c| 6.0 * c.block.as_secs_f64()).sum();
        assert!(time <= 0.75 * 60.0, "{time}");
        let short = Request { budget: Duration::from_secs(10), ..request() };
        let fewer = Plan::new(short, &MACHINE).unwrap();
        assert!(fewer.cells.len() < plan.cells.len());
    }

    #[test]
    fn sets_outgrow_the_cache() {
        let plan = Plan::new(request(), &MACHINE).unwrap();
        for (shape, sets) in &plan.shapes {
            assert!(*sets as f64 * layer_bytes(shape, DType::Bf16) >= 4.0 * MACHINE.cache_bytes);
        }
    }

    #[test]
    fn layers_of_one_width_share_memory_whatever_the_cache() {
        // 2 GB for each of 10 layers would not fit by far.
        let machine = Machine { cache_bytes: 512e6, ..MACHINE };
        let plan = Plan::new(request(), &machine).unwrap();
        assert!(plan.left_out.is_empty(), "{:?}", plan.left_out);
        assert_eq!(plan.shapes.len(), 10);
        let bytes = |machine: &Machine| needed_bytes(&plan.shapes, DType::Bf16, machine);
        assert!((4e9..5e9).contains(&bytes(&machine)), "{:e}", bytes(&machine));
        // A device that has a memory of its own holds each layer's.
        let apart = Machine { shared_copies: 0, own_copies: 1, ..machine };
        assert!(bytes(&apart) > 19e9, "{:e}", bytes(&apart));
        assert!(!Plan::new(request(), &apart).unwrap().left_out.is_empty());
    }

    #[test]
    fn a_layers_sets_are_parts_of_the_pool_one_after_the_other() {
        let shape = |experts| MoeShape { experts, top_k: 1, hidden: 8, inter: 8, gated: true };
        let shapes = [(shape(1), 40), (shape(4), 10), (shape(32), 2), (shape(8), 9)];
        let pools = Pool::of(&shapes);
        assert_eq!(pools, [Pool { shape: shape(32), sets: 3 }]);
        let pool = pools[0];
        assert_eq!(pool.place(&shape(4), 9), (1, 4..8));
        assert_eq!(pool.expert(&shape(4), 9, 3), 39);
        for (shape, sets) in shapes {
            for set in 0..sets {
                let end = pool.expert(&shape, set, shape.experts);
                let after = pool.set_after(&shape, sets, end);
                assert_eq!(after, (set + 1) % sets, "{shape:?} {set}");
            }
        }
        // Behind what another layer has read: not the set that it was in the middle of.
        assert_eq!(pool.set_after(&shape(8), 9, 33), 5);
        assert_eq!(pool.set_after(&shape(8), 9, 32), 4);
        assert_eq!(pool.set_after(&shape(32), 2, 36), 0);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let little = Machine { available_bytes: 1.5e9, ..MACHINE };
        let plan = Plan::new(request(), &little).unwrap();
        assert!(plan.left_out.iter().any(|l| l.contains("32 experts of 1024 x 3072: memory")));
        let none = Machine { available_bytes: 1e6, ..MACHINE };
        let error = Plan::new(request(), &none).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("no layer fits"));
        let rushed = Request { budget: Duration::from_millis(20), ..request() };
        assert!(Plan::new(rushed, &MACHINE).unwrap_err().to_string().contains("--time-budget"));
    }

    #[test]
    fn the_family_that_is_ranked_fits_one_run_of_a_gpu_up_to_its_longest_prefill() {
        // An H200: 141 GB, 60 MB of second-level cache (data sheet); rates below its peaks.
        let machine = Machine {
            cache_bytes: 60e6,
            available_bytes: 138e9,
            read_bytes_per_s: 4e12,
            gemm_flops_per_s: 7e14,
            shared_copies: 0,
            own_copies: 1,
        };
        let tokens = [1, 64, 8, 512, 16384, 256, 4096, 16, 1024, 4, 128, 32, 2048, 2, 8192];
        for dtype in [DType::Bf16, DType::Fp8] {
            let family = Request {
                widths: vec![(4096, 14336)],
                experts: vec![4, 8, 16, 32],
                top_k: 2,
                tokens: Some(tokens.to_vec()),
                dtype,
                budget: Duration::from_secs(170),
                rule: BlockRule::QUICK.for_events(),
                modes: vec![TimingMode::Cold, TimingMode::Stream],
                ..request()
            };
            let plan = Plan::new(family, &machine).unwrap();
            assert!(plan.left_out.is_empty(), "{:?}", plan.left_out);
            assert_eq!((plan.cells.len(), plan.shapes.len()), (15 * 4 * 2, 4));
        }
    }

    #[test]
    fn asked_for_tokens_are_kept_or_reported() {
        let asked = Request { tokens: Some(vec![3, 100_000]), ..request() };
        let plan = Plan::new(asked, &MACHINE).unwrap();
        assert!(plan.cells.iter().filter(|c| c.tokens == 3).count() == 10);
        assert!(plan.left_out.iter().any(|l| l.contains("100000 tokens: time budget")));
    }

    #[test]
    fn top_k_beyond_the_experts_means_all_of_them_for_the_dense_neighbour_only() {
        let dense = Request { top_k: 2, experts: vec![1, 8], ..request() };
        let plan = Plan::new(dense, &MACHINE).unwrap();
        assert!(plan.cells.iter().all(|c| c.shape.top_k == 2.min(c.shape.experts)));
        let bad = Request { widths: vec![(0, 1)], ..request() };
        assert_eq!(Plan::new(bad, &MACHINE).unwrap_err().exit_code(), 2);
    }
}
