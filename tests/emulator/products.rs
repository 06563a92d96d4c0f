//! Each grouped product by itself, on tables that the reference made: exact on integers, within the
//! bounds on random numbers, padding rows zero, nothing written past the table.

use half::bf16;
use moe_frontier::gpu::params::WorkspaceHeader;
use moe_frontier::gpu::{DeviceFacts, Launcher, ParamBytes};
use moe_frontier::kernels::gpu::launches::{ProductLaunch, Split, product};
use moe_frontier::kernels::gpu::{Family, Matrix, Product, ProductKernel, WeightFormat};
use moe_frontier::kernels::reference::Exact;
use moe_frontier::kernels::stages::{self, PaddedAlignment};
use moe_frontier::kernels::{LayerWeights, MoeShape, WeightData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::board::Board;
use crate::suite::{self, Batch, DEVICE, Outcome, Run};

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Distinct random experts.
    Uniform,
    /// Every choice falls on the last `top_k` experts: those before are empty.
    Last,
    /// The first expert is empty and the second has one row more than a tile.
    TileEdge,
}

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Small integers: every order of summation gives the same bits.
    Integers,
    /// Normally distributed.
    Normal,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) shape: MoeShape,
    pub(crate) tokens: usize,
    pub(crate) spread: Spread,
    pub(crate) numbers: Numbers,
    pub(crate) gate_first: bool,
}

const fn shape(experts: usize, top_k: usize, hidden: usize, inter: usize) -> MoeShape {
    MoeShape { experts, top_k, hidden, inter, gated: true }
}

/// The cases of a kernel: tails in both sizes, rings that wrap twice, one token, one expert, empty
/// experts, a row more than a tile.
pub(crate) fn cases(kernel: &ProductKernel, small: bool) -> Vec<Case> {
    use Numbers::{Integers, Normal};
    use Spread::{Last, TileEdge, Uniform};
    let case = |shape, tokens, spread, numbers, gate_first| Case {
        shape,
        tokens,
        spread,
        numbers,
        gate_first,
    };
    // 8-bit rows start at 16 bytes, so their sizes are multiples of 16.
    let odd = if kernel.weights == WeightFormat::E4m3 { (80, 144) } else { (72, 136) };
    let up = kernel.product == Product::Up;
    let long = if up { (592, odd.0) } else { (odd.0, 592) };
    let mut cases = vec![
        case(shape(4, 2, odd.0, odd.1), 3, Uniform, Integers, true),
        case(shape(1, 1, 64, 64), 1, Uniform, Normal, false),
        case(shape(3, 1, odd.1, odd.0), 17, Last, Normal, true),
    ];
    if !small {
        let edge = kernel.block_m as usize + 1;
        cases.extend([
            case(shape(3, 1, 64, odd.0), edge, TileEdge, Integers, false),
            case(shape(3, 2, long.0, long.1), 5, Uniform, Normal, true),
            case(shape(2, 2, long.0, long.1), 2, Uniform, Integers, true),
            case(shape(8, 3, odd.0, 192), 9, Uniform, Normal, true),
        ]);
    }
    cases
}

/// Runs a kernel's cases in one batch.
pub(crate) fn check(kernel: &'static ProductKernel, run: &Run, small: bool) -> Outcome {
    let mut batch = Batch::new(run);
    for (i, case) in cases(kernel, small).into_iter().enumerate() {
        prepare(kernel, case, i as u64 + 100 * run.seed, &mut batch)?;
    }
    batch.finish()
}

/// One deep unit of work for four multiprocessors: those that split the depth of a unit do so here, and
/// add their parts. With the two of the other cases a split would never pay.
pub(crate) fn check_shared_unit(kernel: &'static ProductKernel, run: &Run) -> Outcome {
    if kernel.family != Family::SwapAb {
        return Ok(());
    }
    let mut batch = Batch::on(run, DeviceFacts { sm_count: 4, ..DEVICE });
    let shape =
        if kernel.product == Product::Up { shape(1, 1, 1296, 80) } else { shape(1, 1, 80, 2576) };
    for (i, numbers) in (0..).zip([Numbers::Integers, Numbers::Normal]) {
        let case = Case { shape, tokens: 3, spread: Spread::Uniform, numbers, gate_first: true };
        prepare(kernel, case, i + 100 * run.seed, &mut batch)?;
    }
    batch.finish()
}

/// Expert of each pair.
fn experts_of(case: &Case, rng: &mut ChaCha8Rng) -> Vec<i32> {
    let signed = |e: usize| i32::try_from(e).unwrap();
    let (experts, top_k) = (case.shape.experts, case.shape.top_k);
    let token = |_| -> Vec<i32> {
        match case.spread {
            Spread::Uniform => {
                rand::seq::index::sample(rng, experts, top_k).iter().map(signed).collect()
            }
            Spread::Last => (experts - top_k..experts).map(signed).collect(),
            Spread::TileEdge => vec![1; top_k],
        }
    };
    (0..case.tokens).flat_map(token).collect()
}

/// Weights of a layer: as the reference reads them, as the device does, and the scales.
struct Weights {
    exact: LayerWeights,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

/// Values of one half of `w13`, or of `w2`.
fn weight(case: &Case, rng: &mut ChaCha8Rng, gate: bool, (e, n, k): (usize, usize, usize)) -> f32 {
    match case.numbers {
        Numbers::Normal => rng.random_range(-1.0f32..1.0) / 4.0,
        Numbers::Integers if !gate => f32::from(rng.random_range(-4i8..=4)),
        // silu(v) is exactly v in f32 from 18 on: gates are a fixed column of 20 to 56 times 1, and up
        // to 7 in the last column. All are numbers that 8 bits hold.
        Numbers::Integers => {
            let small = |v: usize| f32::from(u8::try_from(v).unwrap());
            let first = if k == 0 { 20.0 + 4.0 * small((n + 3 * e) % 10) } else { 0.0 };
            let last = if k + 1 == case.shape.hidden { small(n % 8) } else { 0.0 };
            first + last
        }
    }
}

fn weights_of(kernel: &ProductKernel, case: &Case, rng: &mut ChaCha8Rng) -> Weights {
    let s = case.shape;
    let up = kernel.product == Product::Up;
    let (halves, rows, depth) = if up { (2, s.inter, s.hidden) } else { (1, s.hidden, s.inter) };
    let gate_half = usize::from(!case.gate_first);
    let blocks = |n: usize| n.div_ceil(128);
    let wide = kernel.weights == WeightFormat::Bf16;
    let scales: Vec<f32> = (0..s.experts * halves * blocks(rows) * blocks(depth))
        .map(|_| if wide { 1.0 } else { [1.0, 2.0][rng.random_range(0..2)] })
        .collect();
    let (mut exact, mut bytes) = (Vec::new(), Vec::new());
    for matrix in 0..s.experts * halves {
        let (e, gate) = (matrix / halves, up && matrix % halves == gate_half);
        for n in 0..rows {
            for k in 0..depth {
                let value = weight(case, rng, gate, (e, n, k));
                if wide {
                    let value = bf16::from_f32(value);
                    exact.push(value.to_f32());
                    bytes.extend(value.to_bits().to_ne_bytes());
                } else {
                    let (code, value) = e4m3(value);
                    let block = (matrix * blocks(rows) + n / 128) * blocks(depth) + k / 128;
                    exact.push(value * scales[block]);
                    bytes.push(code);
                }
            }
        }
    }
    let other = |len: usize| WeightData::F32(vec![0.0; len].into());
    let (w13, w2) = if up {
        (WeightData::F32(exact.into()), other(s.w2_len().unwrap()))
    } else {
        (other(s.w13_len().unwrap()), WeightData::F32(exact.into()))
    };
    Weights { exact: LayerWeights::new(s, w13, w2).unwrap(), bytes, scales }
}

/// The nearest 8-bit float below in magnitude (sign, 4 bits of exponent, 3 of mantissa), and its value.
pub(crate) fn e4m3(value: f32) -> (u8, f32) {
    let decode = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
        if exponent == 0 {
            mantissa / 512.0
        } else {
            (1.0 + mantissa / 8.0) * f32::exp2((exponent - 7) as f32)
        }
    };
    let code = (0..0x7f).rev().find(|&code| decode(code) <= value.abs()).unwrap();
    if value < 0.0 { (code | 0x80, -decode(code)) } else { (code, decode(code)) }
}

/// The activations that a product reads: x by token, or h by padded row.
fn activations(
    kernel: &ProductKernel,
    case: &Case,
    table: &PaddedAlignment,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<bf16>> {
    let up = kernel.product == Product::Up;
    let (rows, width) = if up {
        (case.tokens, case.shape.hidden)
    } else {
        (table.sorted_pairs.len(), case.shape.inter)
    };
    let value = |rng: &mut ChaCha8Rng| match case.numbers {
        Numbers::Integers => suite::small_integer(rng),
        Numbers::Normal => suite::normal(rng, 1.0),
    };
    let mut values: Vec<Vec<bf16>> =
        (0..rows).map(|_| (0..width).map(|_| value(rng)).collect()).collect();
    for (i, row) in values.iter_mut().enumerate() {
        if !up && table.sorted_pairs[i] < 0 {
            row.fill(bf16::ZERO);
        } else if up && case.numbers == Numbers::Integers {
            // Both gate columns meet 1.
            (row[0], row[width - 1]) = (bf16::ONE, bf16::ONE);
        }
    }
    values
}

/// Everything that a check needs of a case.
struct Expected {
    kernel: &'static ProductKernel,
    case: Case,
    table: PaddedAlignment,
    weights: LayerWeights,
    input: Vec<Vec<bf16>>,
    topk_weights: Vec<f32>,
    poison: u32,
}

fn prepare(kernel: &'static ProductKernel, case: Case, seed: u64, batch: &mut Batch) -> Outcome {
    let rng = &mut suite::rng(seed);
    let s = case.shape;
    let ids = experts_of(&case, rng);
    let table = table_of(&ids, s.experts, kernel);
    let weights = weights_of(kernel, &case, rng);
    let input = activations(kernel, &case, &table, rng);
    let topk_weights: Vec<f32> =
        ids.iter().map(|_| [1.0, 0.5, 0.25][rng.random_range(0..3)]).collect();
    let poison = batch.poison;
    let problem = Problem {
        kernel,
        shape: s,
        tokens: case.tokens,
        gate_first: case.gate_first,
        table: &table,
        bytes: &weights.bytes,
        scales: &weights.scales,
        input: &input,
        topk_weights: &topk_weights,
        shares: case.gate_first,
    };
    let launch = problem.launch(&mut batch.board)?;
    let weights = weights.exact;
    let expected = Expected { kernel, case, table, weights, input, topk_weights, poison };
    let tickets = launch.split.map(|s| s.tickets);
    let out = launch.y.unwrap_or(launch.h);
    let name = format!("{} {case:?} data seed {seed}", kernel.name);
    batch.check(name, move |board| {
        if let Some(tickets) = tickets {
            let left = suite::read_i32(board, tickets)?;
            if left.iter().any(|&t| t != 0) {
                return Err(format!("tickets are left at {left:?}"));
            }
        }
        match launch.accumulate {
            Some((sums, _)) => {
                expected.check_sums(&suite::read_f32(board, sums.region)?, sums.stride)
            }
            None => expected.check_rows(&suite::read_bf16(board, out)?),
        }
    });
    Ok(())
}

/// The tables of pairs with these experts, for the tiles of a kernel.
pub(crate) fn table_of(ids: &[i32], experts: usize, kernel: &ProductKernel) -> PaddedAlignment {
    let signed = |n: u32| i32::try_from(n).unwrap();
    PaddedAlignment::new(ids, signed(u32::try_from(experts).unwrap()), signed(kernel.block_m))
}

/// One product with its data, on the host.
pub(crate) struct Problem<'a> {
    pub(crate) kernel: &'static ProductKernel,
    pub(crate) shape: MoeShape,
    pub(crate) tokens: usize,
    pub(crate) gate_first: bool,
    pub(crate) table: &'a PaddedAlignment,
    /// Weights as they lie in memory.
    pub(crate) bytes: &'a [u8],
    /// Scales of 8-bit weights.
    pub(crate) scales: &'a [f32],
    /// x by token, or h by padded row.
    pub(crate) input: &'a [Vec<bf16>],
    pub(crate) topk_weights: &'a [f32],
    /// Whether there is scratch for sharing units of work.
    pub(crate) shares: bool,
}

impl Problem<'_> {
    /// Puts everything on a board and launches the kernel.
    pub(crate) fn launch(&self, board: &mut Board) -> Result<ProductLaunch, String> {
        let (s, kernel, table) = (self.shape, self.kernel, self.table);
        let small = |n: usize| u32::try_from(n).unwrap();
        // One tile more than needed: what lies behind the table must not be touched.
        let capacity_rows = table.sorted_pairs.len() + kernel.block_m as usize;
        let mut sorted = table.sorted_pairs.clone();
        sorted.resize(capacity_rows, i32::MAX);
        let rows = |width: usize| (capacity_rows * width * 2) as u64;
        let flat: Vec<u8> = self.input.iter().flat_map(|row| suite::bytes_bf16(row)).collect();
        let up = kernel.product == Product::Up;
        let x = up.then(|| suite::input_view(board, &flat, s.hidden, 2));
        let h = board.allocate(rows(s.inter)).unwrap();
        if !up {
            board.upload(h, &flat).unwrap();
            board.protect(h).unwrap();
        }
        let y = (kernel.product == Product::Down).then(|| board.allocate(rows(s.hidden)).unwrap());
        let accumulate = (kernel.product == Product::DownFast).then(|| {
            let stride = s.hidden + 8;
            let sums = board.store(&vec![0; self.tokens * stride * 4]).unwrap();
            let weights = suite::input(board, &suite::bytes_f32(self.topk_weights));
            (Matrix { region: sums, stride: stride as u64 }, weights)
        });
        let launch = ProductLaunch {
            kernel,
            tokens: small(self.tokens),
            experts: small(s.experts),
            top_k: small(s.top_k),
            hidden: small(s.hidden),
            inter: small(s.inter),
            x,
            weights: suite::input(board, self.bytes),
            scales: (kernel.weights == WeightFormat::E4m3)
                .then(|| suite::input(board, &suite::bytes_f32(self.scales))),
            gate_first: self.gate_first,
            h,
            y,
            accumulate,
            header: suite::input(board, &header(table)),
            tiles: suite::input(board, &tiles(table)),
            sorted_pairs: suite::input(board, &suite::bytes_i32(&sorted)),
            capacity_rows: small(capacity_rows),
            capacity_tiles: small(table.tiles.len()),
            split: self.shares.then(|| split(board, kernel)),
            overlaps: true,
        };
        product(board, &launch).map_err(|e| e.to_string())?;
        Ok(launch)
    }
}

/// Scratch for shared units of work.
fn split(board: &mut Board, kernel: &ProductKernel) -> Split {
    let blocks = u64::from(board.facts().sm_count);
    Split {
        partials: board.allocate(2 * blocks * 256 * u64::from(kernel.block_m) * 4).unwrap(),
        tickets: board.store(&vec![0; usize::try_from(8 * blocks).unwrap()]).unwrap(),
    }
}

fn header(table: &PaddedAlignment) -> Vec<u8> {
    let count = |n: usize| u32::try_from(n).unwrap();
    ParamBytes::of(&WorkspaceHeader {
        num_tiles: count(table.tiles.len()),
        padded_rows: count(table.sorted_pairs.len()),
        status: 0,
        active_experts: count(table.expert_count.iter().filter(|&&c| c > 0).count()),
        tickets: [0; 60],
    })
    .bytes
}

fn tiles(table: &PaddedAlignment) -> Vec<u8> {
    table.tiles.iter().flat_map(|t| suite::bytes_i32(&[t[0], t[1], t[2], 0])).collect()
}

impl Expected {
    /// Expert of each padded row that belongs to a tile.
    fn expert_of(&self, row: usize) -> usize {
        let row = i32::try_from(row).unwrap();
        let expert = self.table.expert_offsets.partition_point(|&start| start <= row) - 1;
        // Empty experts share their start with the next one: the last that starts here has the row.
        expert.min(self.case.shape.experts - 1)
    }

    fn exact(&self, row: usize, pair: usize) -> Vec<Exact> {
        let expert = self.expert_of(row);
        match self.kernel.product {
            Product::Up => {
                let x = &self.input[pair / self.case.shape.top_k];
                stages::up(&self.weights, self.case.gate_first, expert, x)
            }
            Product::Down => stages::down(&self.weights, expert, &self.input[row]),
            Product::DownFast => stages::down_sums(&self.weights, expert, &self.input[row]),
        }
    }

    fn check_rows(&self, out: &[bf16]) -> Outcome {
        let up = self.kernel.product == Product::Up;
        let width = if up { self.case.shape.inter } else { self.case.shape.hidden };
        for (row, values) in out.chunks_exact(width).enumerate() {
            let Some(&pair) = self.table.sorted_pairs.get(row) else {
                if let Some(n) = values.iter().position(|&v| !suite::is_untouched(v, self.poison)) {
                    return Err(format!("row {row} behind the table was written at column {n}"));
                }
                continue;
            };
            let Ok(pair) = usize::try_from(pair) else {
                if let Some(n) = values.iter().position(|v| v.to_f32() != 0.0) {
                    let got = values[n];
                    return Err(format!("padding row {row} holds {got} at column {n}, not zero"));
                }
                continue;
            };
            for (n, (got, exact)) in values.iter().zip(self.exact(row, pair)).enumerate() {
                self.compare(f64::from(got.to_f32()), exact, true).map_err(|e| {
                    let expert = self.expert_of(row);
                    format!("row {row} (pair {pair}, expert {expert}), column {n}: {e}")
                })?;
            }
        }
        Ok(())
    }

    fn check_sums(&self, out: &[f32], stride: u64) -> Outcome {
        let s = &self.case.shape;
        let mut exact = vec![
            Exact { value: 0.0, bound: f64::from(f32::MIN_POSITIVE) };
            s.hidden * self.case.tokens
        ];
        for (row, &pair) in self.table.sorted_pairs.iter().enumerate() {
            let Ok(pair) = usize::try_from(pair) else { continue };
            let weight = f64::from(self.topk_weights[pair]);
            let start = pair / s.top_k * s.hidden;
            for (sum, term) in exact[start..start + s.hidden].iter_mut().zip(self.exact(row, pair))
            {
                sum.value += weight * term.value;
                // Product and sum are rounded once each, whatever the order of the slots.
                let rounded = 2.0 * s.top_k as f64 * f64::from(f32::EPSILON) * term.value.abs();
                sum.bound += weight * (term.bound + rounded);
            }
        }
        let stride = usize::try_from(stride).unwrap();
        for (i, exact) in exact.into_iter().enumerate() {
            let (token, n) = (i / s.hidden, i % s.hidden);
            let got = f64::from(out[token * stride + n]);
            self.compare(got, exact, false)
                .map_err(|e| format!("token {token}, column {n}: {e}"))?;
        }
        let gap = (0..self.case.tokens).flat_map(|t| &out[t * stride + s.hidden..(t + 1) * stride]);
        match gap.into_iter().position(|&v| v.to_bits() != 0) {
            Some(at) => Err(format!("the gap between rows was written ({at})")),
            None => Ok(()),
        }
    }

    fn compare(&self, got: f64, exact: Exact, rounds: bool) -> Outcome {
        let fits = match self.case.numbers {
            Numbers::Normal => suite::within(got, &exact),
            Numbers::Integers => {
                // In double precision silu(20) is 20 less 4e-8; results are multiples of a quarter.
                #[expect(clippy::cast_possible_truncation, reason = "small multiples of a quarter")]
                let whole = ((exact.value * 4.0).round() / 4.0) as f32;
                let wanted = if rounds { bf16::from_f32(whole).to_f32() } else { whole };
                (got - f64::from(wanted)).abs() <= 0.0
            }
        };
        if fits { Ok(()) } else { Err(format!("{got}, not {} +- {}", exact.value, exact.bound)) }
    }
}

/// A stack of more than 2^32 weights whose last expert alone is used: offsets must be 64-bit. For the
/// kernels whose tile is small enough to multiply that many columns here.
pub(crate) fn check_large_stack(kernel: &'static ProductKernel, run: &Run) -> Outcome {
    const EXPERTS: u32 = 1024;
    let up = kernel.product == Product::Up;
    let names = ["gemv_bf16_up", "gemv_bf16_down", "grouped_gemm_bf16_up_m16"];
    if !names.contains(&kernel.name) && kernel.name != "grouped_gemm_bf16_down_m16" {
        return Ok(());
    }
    let (hidden, inter) = if up { (1024_usize, 2056_usize) } else { (1024, 4112) };
    let (columns, depth) = if up { (2 * inter, hidden) } else { (hidden, inter) };
    let rng = &mut suite::rng(run.seed);
    let last: Vec<bf16> = (0..columns * depth).map(|_| suite::normal(rng, 0.03)).collect();
    let input: Vec<bf16> = (0..depth).map(|_| suite::normal(rng, 1.0)).collect();
    let small = |n: usize| u32::try_from(n).unwrap();
    let signed = |n: u32| i32::try_from(n).unwrap();
    let table =
        PaddedAlignment::new(&[signed(EXPERTS) - 1], signed(EXPERTS), signed(kernel.block_m));
    let mut batch = Batch::new(run);
    let board = &mut batch.board;
    let expert_bytes = (columns * depth * 2) as u64;
    let weights = board.allocate_sparse(u64::from(EXPERTS) * expert_bytes).unwrap();
    let place = weights.part(u64::from(EXPERTS - 1) * expert_bytes, expert_bytes).unwrap();
    board.upload(place, &suite::bytes_bf16(&last)).unwrap();
    let rows = table.sorted_pairs.len();
    let mut h = board.allocate((rows * inter * 2) as u64).unwrap();
    let x = up.then(|| Matrix::dense(suite::input(board, &suite::bytes_bf16(&input)), 1024));
    if !up {
        let mut padded = input.clone();
        padded.resize(rows * inter, bf16::ZERO);
        h = suite::input(board, &suite::bytes_bf16(&padded));
    }
    let y = (!up).then(|| board.allocate((rows * hidden * 2) as u64).unwrap());
    let launch = ProductLaunch {
        kernel,
        tokens: 1,
        experts: EXPERTS,
        top_k: 1,
        hidden: small(hidden),
        inter: small(inter),
        x,
        weights,
        scales: None,
        gate_first: true,
        h,
        y,
        accumulate: None,
        header: suite::input(board, &header(&table)),
        tiles: suite::input(board, &tiles(&table)),
        sorted_pairs: suite::input(board, &suite::bytes_i32(&table.sorted_pairs)),
        capacity_rows: small(rows),
        capacity_tiles: 1,
        split: None,
        overlaps: true,
    };
    product(board, &launch).map_err(|e| e.to_string())?;
    // The reference sees the last expert by itself.
    let one = MoeShape { experts: 1, top_k: 1, hidden, inter, gated: true };
    let other = |len: usize| WeightData::Bf16(vec![bf16::ZERO; len].into());
    let exact = if up {
        let alone =
            LayerWeights::new(one, WeightData::Bf16(last.into()), other(hidden * inter)).unwrap();
        stages::up(&alone, true, 0, &input)
    } else {
        let alone =
            LayerWeights::new(one, other(2 * hidden * inter), WeightData::Bf16(last.into()))
                .unwrap();
        stages::down(&alone, 0, &input)
    };
    let out = y.unwrap_or(h);
    batch.check(format!("{} with a stack of 2^32 weights", kernel.name), move |board| {
        let got = suite::read_bf16(board, out)?;
        match got.iter().zip(&exact).position(|(g, e)| !suite::within(g.to_f64(), e)) {
            Some(n) => Err(format!("column {n}: {}, not {:?}", got[n], exact[n])),
            None => Ok(()),
        }
    });
    batch.finish()
}
