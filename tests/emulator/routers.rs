//! The router: ids must be those of the reference, weights its bits; and align when fused.

use half::bf16;
use moe_frontier::config::{RouterConfig, Scoring};
use moe_frontier::gpu::params::{STATUS_NON_FINITE_LOGIT, WorkspaceHeader};
use moe_frontier::gpu::{Launcher, Region};
use moe_frontier::kernels::RouterSpec;
use moe_frontier::kernels::gpu::launches::{GateInput, RouterLaunch, router_topk};
use moe_frontier::kernels::gpu::{LogitFormat, Matrix};
use moe_frontier::kernels::reference::{self, DeviceRouting};
use moe_frontier::kernels::stages::PaddedAlignment;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::alignment::{self, Tables};
use crate::board::Board;
use crate::suite::{self, Batch, Outcome, Run};

/// What logits are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logits {
    Normal,
    /// Three values alone: ties everywhere.
    Ties,
    AllEqual,
    Negative,
    /// Infinities, NaN, huge and denormal values among others.
    Extreme,
    MinusInfinity,
}

#[derive(Clone, Debug)]
struct Case {
    experts: u32,
    top_k: u32,
    tokens: u32,
    spec: RouterSpec,
    logits: Logits,
    format: LogitFormat,
    device: DeviceRouting,
    /// Rows of a tile, when the router aligns as well.
    align: Option<u32>,
    /// Hidden size, when the router computes its logits.
    gate: Option<usize>,
}

fn spec(scoring: Scoring) -> RouterSpec {
    let config = RouterConfig { scoring, ..RouterSpec::softmax().config };
    RouterSpec { config, bias: Vec::new() }
}

fn grouped(scoring: Scoring, experts: u32, (n_group, topk_group): (usize, usize)) -> RouterSpec {
    let mut spec = spec(scoring);
    spec.config =
        RouterConfig { bias: true, n_group, topk_group, scaling_factor: 2.5, ..spec.config };
    // Large enough to move the choice, which must not show in the weights.
    spec.bias = (0..experts).map(|e| f32::from(u16::try_from(e * 7 % 11).unwrap()) / 8.0).collect();
    spec
}

fn cases(small: bool) -> Vec<Case> {
    let plain = |experts, top_k, tokens, logits| Case {
        experts,
        top_k,
        tokens,
        spec: RouterSpec::softmax(),
        logits,
        format: LogitFormat::F32,
        device: DeviceRouting::default(),
        align: None,
        gate: None,
    };
    let with = |case: Case, spec| Case { spec, ..case };
    let mut cases = vec![
        Case { align: Some(8), ..plain(8, 2, 17, Logits::Normal) },
        with(plain(72, 6, 3, Logits::Ties), spec(Scoring::SoftmaxOverTopK)),
        with(plain(64, 8, 5, Logits::Extreme), grouped(Scoring::Sigmoid, 64, (8, 4))),
        Case { gate: Some(72), align: Some(8), ..plain(9, 2, 5, Logits::Normal) },
    ];
    if small {
        return cases;
    }
    let shared = DeviceRouting { shared: true, ..DeviceRouting::default() };
    let top1 = DeviceRouting { group_top1: true, ..DeviceRouting::default() };
    let mut unscaled = spec(Scoring::Softmax);
    unscaled.config.renormalize = false;
    let mut bf16 = plain(128, 8, 9, Logits::Normal);
    bf16.format = LogitFormat::Bf16;
    cases.extend([
        plain(1, 1, 2, Logits::Normal),
        plain(3, 3, 130, Logits::Ties),
        plain(1024, 32, 2, Logits::Normal),
        plain(40, 4, 9, Logits::AllEqual),
        plain(5, 2, 66, Logits::MinusInfinity),
        plain(200, 7, 9, Logits::Extreme),
        with(bf16.clone(), unscaled),
        Case { format: LogitFormat::Bf16, ..plain(16, 4, 33, Logits::Extreme) },
        with(plain(12, 3, 20, Logits::Normal), spec(Scoring::Prototype)),
        with(plain(32, 2, 9, Logits::Extreme), spec(Scoring::Prototype)),
        with(plain(100, 5, 9, Logits::Extreme), spec(Scoring::SoftplusSqrt)),
        with(plain(48, 4, 9, Logits::Negative), grouped(Scoring::SoftplusSqrt, 48, (4, 2))),
        with(plain(30, 2, 9, Logits::Ties), grouped(Scoring::Softmax, 30, (3, 1))),
        Case {
            device: top1,
            ..with(plain(64, 4, 9, Logits::Normal), grouped(Scoring::Sigmoid, 64, (8, 3)))
        },
        Case { gate: Some(136), ..with(plain(40, 4, 16, Logits::Normal), spec(Scoring::Sigmoid)) },
        Case { gate: Some(2056), ..plain(3, 1, 1, Logits::Normal) },
        Case { device: shared, align: Some(16), ..plain(20, 3, 40, Logits::Normal) },
        Case { align: Some(4), ..plain(128, 8, 30, Logits::Extreme) },
    ]);
    cases
}

fn logits_of(case: &Case, rng: &mut ChaCha8Rng) -> Vec<f32> {
    const STRANGE: [f32; 8] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 1e-40, 0.0, -0.0];
    let count = (case.experts * case.tokens) as usize;
    let mut value = |_| match case.logits {
        Logits::Normal => suite::normal(rng, 2.0).to_f32() + rng.random_range(0.0..1e-3),
        Logits::Ties => [0.5, -0.25, 1.0][rng.random_range(0..3)],
        Logits::AllEqual => 0.75,
        Logits::Negative => -rng.random_range(1.0f32..40.0),
        Logits::Extreme if rng.random_range(0..4) == 0 => STRANGE[rng.random_range(0..8)],
        Logits::Extreme => rng.random_range(-20.0f32..20.0),
        Logits::MinusInfinity => f32::NEG_INFINITY,
    };
    let values = (0..count).map(&mut value);
    match case.format {
        LogitFormat::F32 => values.collect(),
        LogitFormat::Bf16 => values.map(|v| bf16::from_f32(v).to_f32()).collect(),
    }
}

/// Runs every case in one batch.
pub(crate) fn check(run: &Run, small: bool) -> Outcome {
    let mut batch = Batch::new(run);
    for (i, case) in cases(small).into_iter().enumerate() {
        prepare(case, i as u64 + 100 * run.seed, &mut batch)?;
    }
    batch.finish()
}

/// Rows of x and of the router's weights, when the router computes its logits.
struct Gate {
    x: Vec<bf16>,
    weights: Vec<bf16>,
    hidden: usize,
}

impl Gate {
    fn new(hidden: usize, case: &Case, rng: &mut ChaCha8Rng) -> Self {
        let mut rows = |count: u32, scale| -> Vec<bf16> {
            (0..count as usize * hidden).map(|_| suite::normal(rng, scale)).collect()
        };
        Self { x: rows(case.tokens, 1.0), weights: rows(case.experts, 0.25), hidden }
    }

    /// Whether logits `[tokens, experts]` are those of the rows.
    fn compare(&self, logits: &[f32], experts: usize) -> Outcome {
        for (i, &got) in logits.iter().enumerate() {
            let row = |of: &[bf16], at: usize| of[at * self.hidden..][..self.hidden].to_vec();
            let (x, gate) = (row(&self.x, i / experts), row(&self.weights, i % experts));
            let terms = || x.iter().zip(&gate).map(|(a, b)| a.to_f64() * b.to_f64());
            let (value, absolute): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
            let bound = 4.0 * (self.hidden as f64).sqrt() * f64::from(f32::EPSILON) * absolute;
            if !suite::within(f64::from(got), &reference::Exact { value, bound }) {
                return Err(format!("logit {i} is {got}, not {value} +- {bound}"));
            }
        }
        Ok(())
    }
}

/// Logits in device memory: given, or room for those that the router computes.
fn place_logits(board: &mut Board, case: &Case, logits: &[f32]) -> Matrix {
    let experts = case.experts as usize;
    match (case.gate, case.format) {
        (Some(_), _) => {
            let region = board.allocate(4 * logits.len() as u64).unwrap();
            Matrix::dense(region, u64::from(case.experts))
        }
        (None, LogitFormat::F32) => suite::input_view(board, &suite::bytes_f32(logits), experts, 4),
        (None, LogitFormat::Bf16) => {
            let narrow: Vec<bf16> = logits.iter().map(|&l| bf16::from_f32(l)).collect();
            suite::input_view(board, &suite::bytes_bf16(&narrow), experts, 2)
        }
    }
}

fn prepare(case: Case, seed: u64, batch: &mut Batch) -> Outcome {
    let rng = &mut suite::rng(seed);
    let logits = logits_of(&case, rng);
    let gate = case.gate.map(|hidden| Gate::new(hidden, &case, rng));
    let board = &mut batch.board;
    let view = place_logits(board, &case, &logits);
    let pairs = case.tokens * (case.top_k + u32::from(case.device.shared));
    let bias = case.spec.config.bias;
    let bias = bias.then(|| suite::input(board, &suite::bytes_f32(&case.spec.bias)));
    let experts = case.experts + u32::from(case.device.shared);
    let tables = Tables::for_any(board, pairs, experts, case.align.unwrap_or(1));
    let launch = RouterLaunch {
        logits: view,
        format: case.format,
        gate: gate.as_ref().map(|g| GateInput {
            x: suite::input_view(board, &suite::bytes_bf16(&g.x), g.hidden, 2),
            gate: suite::input(board, &suite::bytes_bf16(&g.weights)),
            hidden: u32::try_from(g.hidden).unwrap(),
        }),
        tokens: case.tokens,
        experts: case.experts,
        top_k: case.top_k,
        spec: &case.spec,
        bias,
        group_top1: case.device.group_top1,
        shared: case.device.shared,
        topk_ids: board.allocate(4 * u64::from(pairs)).unwrap(),
        topk_weights: board.allocate(4 * u64::from(pairs)).unwrap(),
        header: tables.buffers.header,
        align: case.align.map(|block_m| (tables.buffers, block_m)),
        overlaps: true,
    };
    router_topk(board, &launch).map_err(|e| e.to_string())?;
    let (topk_ids, topk_weights) = (launch.topk_ids, launch.topk_weights);
    let name = format!("router {case:?} data seed {seed}");
    batch.check(name, move |board| {
        let mut logits = logits;
        if let Some(gate) = gate {
            logits = suite::read_f32(board, view.region)?;
            gate.compare(&logits, case.experts as usize)?;
        }
        let ids = suite::read_i32(board, topk_ids)?;
        let weights = suite::read_f32(board, topk_weights)?;
        compare_choice(board, &case, &logits, (&ids, &weights), &tables)
    });
    Ok(())
}

/// Whether ids, weights, status and tables follow from the logits.
fn compare_choice(
    board: &mut Board,
    case: &Case,
    logits: &[f32],
    (ids, weights): (&[i32], &[f32]),
    tables: &Tables,
) -> Outcome {
    let (experts, top_k) = (case.experts as usize, case.top_k as usize);
    let (routed, nan) = reference::route_as_device(logits, experts, top_k, &case.spec, case.device)
        .map_err(|e| e.to_string())?;
    let wanted: Vec<i32> = routed.ids.iter().map(|id| id.cast_signed()).collect();
    let slots = case.top_k + u32::from(case.device.shared);
    compare_ids(ids, &wanted, slots)?;
    compare_weights(weights, &routed.weights, slots)?;
    let header = header(board, tables.buffers.header)?;
    let status = if nan { STATUS_NON_FINITE_LOGIT } else { 0 };
    if header.status != status {
        return Err(format!("status {} instead of {status}", header.status));
    }
    if header.tickets.iter().any(|&t| t != 0) {
        return Err(format!("tickets are left at {:?}", header.tickets));
    }
    let Some(block_m) = case.align else { return Ok(()) };
    let experts = case.experts + u32::from(case.device.shared);
    let table = PaddedAlignment::new(&wanted, experts.cast_signed(), block_m.cast_signed());
    alignment::compare(board, tables, &table)
}

pub(crate) fn header(board: &mut dyn Launcher, region: Region) -> Result<WorkspaceHeader, String> {
    let mut bytes = [0; size_of::<WorkspaceHeader>()];
    board.download(region, &mut bytes).map_err(|e| e.to_string())?;
    Ok(WorkspaceHeader::from_bytes(&bytes))
}

pub(crate) fn compare_ids(got: &[i32], wanted: &[i32], slots: u32) -> Outcome {
    match got.iter().zip(wanted).position(|(a, b)| a != b) {
        Some(pair) => Err(format!(
            "token {}, slot {}: expert {} instead of {}",
            pair / slots as usize,
            pair % slots as usize,
            got[pair],
            wanted[pair]
        )),
        None => Ok(()),
    }
}

pub(crate) fn compare_weights(got: &[f32], wanted: &[f32], slots: u32) -> Outcome {
    // Both zeros and every NaN are one; everything else must be the same bits.
    let same = |a: f32, b: f32| {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || (a == 0.0 && b == 0.0)
    };
    match got.iter().zip(wanted).position(|(&a, &b)| !same(a, b)) {
        Some(pair) => Err(format!(
            "token {}, slot {}: weight {} ({:#x}) instead of {} ({:#x})",
            pair / slots as usize,
            pair % slots as usize,
            got[pair],
            got[pair].to_bits(),
            wanted[pair],
            wanted[pair].to_bits()
        )),
        None => Ok(()),
    }
}
