//! Whole layers through the launch sequence, every stage held to its reference on the inputs that the
//! emulated device itself had for that stage.

use std::collections::BTreeSet;

use half::bf16;
use moe_frontier::gpu::{Launcher, Region};
use moe_frontier::kernels::gpu::{
    Combine, LayerBuffers, LogitFormat, Matrix, MoeInput, MoeOptions, PRODUCTS, Piece, Plan,
    Product, RouterInput, Routing, WeightFormat, Workspace, moe_forward,
};
use moe_frontier::kernels::reference::{self, DeviceRouting};
use moe_frontier::kernels::stages::{self, PaddedAlignment};
use moe_frontier::kernels::{Fp8Weights, LayerWeights, MoeShape, Routed, RouterSpec, WeightData};

use crate::board::Board;
use crate::suite::{self, Outcome, Run};

/// Where the experts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Logits,
    /// The router computes its logits.
    Gate,
    /// The caller chose.
    Chosen,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    shape: MoeShape,
    tokens: u32,
    format: LogitFormat,
    source: Source,
    opt: MoeOptions,
}

const fn shape(experts: usize, top_k: usize, hidden: usize, inter: usize) -> MoeShape {
    MoeShape { experts, top_k, hidden, inter, gated: true }
}

/// A layer for every kernel of either product, and for every other path of the launch sequence.
pub(crate) fn cases() -> Vec<Case> {
    let case = |shape, tokens, opt| Case {
        shape,
        tokens,
        format: LogitFormat::F32,
        source: Source::Logits,
        opt,
    };
    let mut cases = Vec::new();
    for (i, kernel) in PRODUCTS.iter().enumerate() {
        let name = Some(kernel.name.to_owned());
        let opt = MoeOptions { weights: kernel.weights, ..MoeOptions::default() };
        let opt = match kernel.product {
            Product::Up => MoeOptions { up: name, ..opt },
            Product::Down => MoeOptions { down: name, ..opt },
            Product::DownFast => MoeOptions { down: name, combine: Combine::Fast, ..opt },
        };
        let tokens = [5, 1, 3][i % 3];
        // Rows of 8-bit weights start at 16 bytes; the larger size has two blocks of scales.
        let (hidden, inter) =
            if kernel.weights == WeightFormat::Bf16 { (72, 136) } else { (80, 144) };
        cases.push(case(shape(4, 2, hidden, inter), tokens, opt));
    }
    let plain = MoeOptions::default();
    cases.push(case(shape(3, 1, 64, 72), 2, plain.clone()));
    cases.push(Case { format: LogitFormat::Bf16, ..case(shape(8, 3, 72, 64), 17, plain.clone()) });
    cases.push(Case { source: Source::Chosen, ..case(shape(4, 4, 64, 72), 3, plain.clone()) });
    cases.push(Case { source: Source::Gate, ..case(shape(6, 2, 72, 64), 7, plain.clone()) });
    let wide =
        MoeOptions { combine: Combine::F32, gate_first: false, overlap: false, ..plain.clone() };
    cases.push(case(shape(5, 2, 72, 64), 9, wide.clone()));
    let narrow = MoeOptions { weights: WeightFormat::E4m3, ..wide };
    cases.push(case(shape(3, 2, 144, 272), 4, narrow));
    // More pairs than the router or one block aligns.
    cases.push(case(shape(6, 4, 8, 16), 1030, plain.clone()));
    cases.push(case(shape(6, 4, 8, 16), 300, plain));
    cases
}

/// The kernels that the cases of [`cases`] reach, run once.
pub(crate) fn check_all(run: &Run) -> Result<BTreeSet<&'static str>, String> {
    let mut reached = BTreeSet::new();
    for (i, case) in cases().into_iter().enumerate() {
        reached.extend(check(&case, i as u64 + 100 * run.seed, run)?);
    }
    Ok(reached)
}

/// A layer with its inputs, as the reference sees them.
struct Layer {
    case: Case,
    weights: LayerWeights,
    x: Vec<bf16>,
    logits: Vec<f32>,
    routed: Routed,
}

impl Layer {
    fn new(case: Case, seed: u64) -> Self {
        let rng = &mut suite::rng(seed);
        let s = case.shape;
        let mut stack = |len: usize, rows: usize, depth: usize| {
            let scale = 1.0 / f32::from(u16::try_from(depth).unwrap()).sqrt();
            let values: Vec<bf16> = (0..len).map(|_| suite::normal(rng, scale)).collect();
            if case.opt.weights == WeightFormat::Bf16 {
                return WeightData::Bf16(values.into());
            }
            let wide: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
            WeightData::Fp8(Fp8Weights::quantize(&wide, rows, depth).unwrap())
        };
        let w13 = stack(s.w13_len().unwrap(), s.inter, s.hidden);
        let w2 = stack(s.w2_len().unwrap(), s.hidden, s.inter);
        let tokens = case.tokens as usize;
        let x = (0..tokens * s.hidden).map(|_| suite::normal(rng, 1.0)).collect();
        // Exact in bf16, so that both formats of logits say the same.
        let logits: Vec<f32> =
            (0..tokens * s.experts).map(|_| suite::normal(rng, 2.0).to_f32()).collect();
        let weights = LayerWeights::new(s, w13, w2).unwrap();
        let mut layer = Self { case, weights, x, logits: Vec::new(), routed: Routed::default() };
        layer.route(logits);
        layer
    }

    /// Chooses experts by these logits.
    fn route(&mut self, logits: Vec<f32>) {
        let s = &self.case.shape;
        let (spec, device) = (RouterSpec::softmax(), DeviceRouting::default());
        let routed = reference::route_as_device(&logits, s.experts, s.top_k, &spec, device);
        (self.logits, self.routed) = (logits, routed.unwrap().0);
    }

    fn ids(&self) -> Vec<i32> {
        self.routed.ids.iter().map(|id| id.cast_signed()).collect()
    }

    fn buffers(&self, board: &mut Board) -> LayerBuffers {
        let bytes = |data: &WeightData| match data {
            WeightData::Bf16(values) => (suite::bytes_bf16(values), Vec::new()),
            WeightData::Fp8(blocks) => (blocks.codes().to_vec(), suite::bytes_f32(blocks.scales())),
            _ => panic!("weights are bf16 or fp8"),
        };
        let ((mut w13, mut scales13), (w2, scales2)) =
            (bytes(&self.weights.w13), bytes(&self.weights.w2));
        if !self.case.opt.gate_first {
            // The same layer as a checkpoint with up rows first stores it.
            for stack in [&mut w13, &mut scales13].into_iter().filter(|s| !s.is_empty()) {
                let half = stack.len() / self.case.shape.experts / 2;
                stack.chunks_exact_mut(2 * half).for_each(|expert| expert.rotate_left(half));
            }
        }
        let scales = (!scales13.is_empty())
            .then(|| (suite::input(board, &scales13), suite::input(board, &scales2)));
        LayerBuffers {
            shape: self.case.shape,
            w13: suite::input(board, &w13),
            w2: suite::input(board, &w2),
            scales,
            router: RouterSpec::softmax(),
            bias: None,
        }
    }

    fn routing(&self, board: &mut Board) -> Routing {
        let experts = self.case.shape.experts;
        match self.case.source {
            Source::Logits => {}
            Source::Chosen => {
                let ids = suite::input(board, &suite::bytes_i32(&self.ids()));
                let weights = suite::input(board, &suite::bytes_f32(&self.routed.weights));
                return Routing::Chosen { ids, weights };
            }
            Source::Gate => {
                let rng = &mut suite::rng(99);
                let gate: Vec<bf16> = (0..experts * self.case.shape.hidden)
                    .map(|_| suite::normal(rng, 0.25))
                    .collect();
                let region = board.allocate(4 * self.logits.len() as u64).unwrap();
                let gate = suite::input(board, &suite::bytes_bf16(&gate));
                return Routing::Gate { gate, logits: Matrix::dense(region, experts as u64) };
            }
        }
        let (bytes, size) = match self.case.format {
            LogitFormat::F32 => (suite::bytes_f32(&self.logits), 4),
            LogitFormat::Bf16 => {
                let narrow: Vec<bf16> = self.logits.iter().map(|&l| bf16::from_f32(l)).collect();
                (suite::bytes_bf16(&narrow), 2)
            }
        };
        let logits = suite::input_view(board, &bytes, experts, size);
        Routing::Logits { logits, format: self.case.format }
    }
}

/// Runs a case and checks every stage; returns the kernels that were launched.
pub(crate) fn check(case: &Case, seed: u64, run: &Run) -> Result<Vec<&'static str>, String> {
    let name = format!("layer {case:?} data seed {seed} [{}]", run.label());
    check_stages(case, seed, run).map_err(|e| format!("{name}: {e}"))
}

fn check_stages(case: &Case, seed: u64, run: &Run) -> Result<Vec<&'static str>, String> {
    let mut layer = Layer::new(case.clone(), seed);
    let (s, opt) = (&case.shape, &case.opt);
    let board = &mut run.board();
    let facts = *board.facts();
    let told = |e: moe_frontier::Error| e.to_string();
    let router = match case.source {
        Source::Gate => RouterInput::Gate,
        Source::Logits | Source::Chosen => RouterInput::Logits(case.format),
    };
    let plan = Plan::choose(s, case.tokens, router, &facts, opt).map_err(told)?;
    let buffers = layer.buffers(board);
    let x = suite::input_view(board, &suite::bytes_bf16(&layer.x), s.hidden, 2);
    let routing = layer.routing(board);
    let layout = Workspace::bytes(s, case.tokens, &facts, opt).map_err(told)?;
    let workspace = Workspace::in_pieces(board, layout).map_err(told)?;
    let bytes = u64::from(case.tokens) * s.hidden as u64 * opt.combine.output_bytes();
    let out = board.allocate(bytes).map_err(told)?;
    let input =
        MoeInput { tokens: case.tokens, x, routing, out: Matrix::dense(out, s.hidden as u64) };
    moe_forward(board, &plan, &buffers, opt, &input, &workspace).map_err(told)?;
    board.synchronize().map_err(told)?;
    if let Routing::Gate { logits, .. } = routing {
        layer.route(suite::read_f32(board, logits.region)?);
    }
    Stages { layer: &layer, plan: &plan, workspace: &workspace, out }.check(board)?;
    Ok(board.launched())
}

/// What a run left behind.
struct Stages<'a> {
    layer: &'a Layer,
    plan: &'a Plan,
    workspace: &'a Workspace,
    out: Region,
}

impl Stages<'_> {
    fn check(&self, board: &mut Board) -> Outcome {
        let piece = |piece| self.workspace.piece(piece).map_err(|e| e.to_string());
        let layer = self.layer;
        if layer.case.source != Source::Chosen {
            let ids = suite::read_i32(board, piece(Piece::TopkIds)?)?;
            let weights = suite::read_f32(board, piece(Piece::TopkWeights)?)?;
            if ids != layer.ids() || weights != layer.routed.weights {
                return Err("the router chose otherwise than the reference".into());
            }
        }
        let experts = i32::try_from(layer.case.shape.experts).unwrap();
        let table = PaddedAlignment::new(&layer.ids(), experts, self.plan.block_m.cast_signed());
        let sorted = suite::read_i32(board, piece(Piece::SortedPairs)?)?;
        if sorted[..table.sorted_pairs.len()] != table.sorted_pairs {
            return Err("the pairs are sorted otherwise than by the reference".into());
        }
        let h = suite::read_bf16(board, piece(Piece::H)?)?;
        let fast = layer.case.opt.combine == Combine::Fast;
        let y = if fast { Vec::new() } else { suite::read_bf16(board, piece(Piece::Y)?)? };
        self.check_rows(&table, &h, &y)?;
        let out: Vec<f32> = match layer.case.opt.combine {
            Combine::Bf16 => {
                suite::read_bf16(board, self.out)?.into_iter().map(f32::from).collect()
            }
            Combine::F32 | Combine::Fast => suite::read_f32(board, self.out)?,
        };
        if !fast {
            self.check_sums(&table, &y, &out)?;
        }
        self.check_whole(&out)
    }

    fn check_rows(&self, table: &PaddedAlignment, h: &[bf16], y: &[bf16]) -> Outcome {
        let s = &self.layer.case.shape;
        let within = |what: &str, row: usize, got: &[bf16], exact: Vec<reference::Exact>| match got
            .iter()
            .zip(&exact)
            .position(|(g, e)| !suite::within(g.to_f64(), e))
        {
            Some(n) => Err(format!("{what} row {row}, column {n}: {}, not {:?}", got[n], exact[n])),
            None => Ok(()),
        };
        for (row, &pair) in table.sorted_pairs.iter().enumerate() {
            let Ok(pair) = usize::try_from(pair) else { continue };
            let expert = self.layer.routed.ids[pair] as usize;
            let token = pair / s.top_k;
            let x = &self.layer.x[token * s.hidden..(token + 1) * s.hidden];
            let h = &h[row * s.inter..(row + 1) * s.inter];
            within("h", row, h, stages::up(&self.layer.weights, true, expert, x))?;
            if !y.is_empty() {
                let y = &y[row * s.hidden..(row + 1) * s.hidden];
                within("y", row, y, stages::down(&self.layer.weights, expert, h))?;
            }
        }
        Ok(())
    }

    fn check_sums(&self, table: &PaddedAlignment, y: &[bf16], out: &[f32]) -> Outcome {
        let s = &self.layer.case.shape;
        let f32_out = self.layer.case.opt.combine == Combine::F32;
        for (i, &got) in out.iter().enumerate() {
            let (token, n) = (i / s.hidden, i % s.hidden);
            let terms = (token * s.top_k..(token + 1) * s.top_k).map(|pair| {
                let row = usize::try_from(table.pair_rows[pair]).unwrap();
                (self.layer.routed.weights[pair], y[row * s.hidden + n].to_f64())
            });
            let exact = stages::combine(terms, f32_out);
            if !suite::within(f64::from(got), &exact) {
                return Err(format!("token {token}, column {n}: {got}, not {exact:?}"));
            }
        }
        Ok(())
    }

    /// The whole layer, once, in norm: three roundings to bf16 stay far below one per cent.
    fn check_whole(&self, out: &[f32]) -> Outcome {
        let x: Vec<f32> = self.layer.x.iter().map(|v| v.to_f32()).collect();
        let exact = whole(&self.layer.weights, &x, &self.layer.routed);
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let off = squares(&mut out.iter().zip(&exact).map(|(o, e)| f64::from(*o) - e));
        let error = (off / squares(&mut exact.iter().copied())).sqrt();
        if error < 1e-2 { Ok(()) } else { Err(format!("relative error {error:.1e} of the layer")) }
    }
}

fn whole(weights: &LayerWeights, x: &[f32], routed: &Routed) -> Vec<f64> {
    reference::layer(weights, x, routed).iter().map(|e| e.value).collect()
}

/// The same batch in one pass and in chunks, and once more in the same workspace: the same bits.
pub(crate) fn check_repeats(run: &Run) -> Outcome {
    let told = |e: moe_frontier::Error| e.to_string();
    let case = Case {
        shape: shape(4, 2, 72, 64),
        tokens: 23,
        format: LogitFormat::F32,
        source: Source::Logits,
        opt: MoeOptions { up: Some("grouped_gemm_bf16_up_m16".into()), ..MoeOptions::default() },
    };
    let layer = Layer::new(case.clone(), run.seed);
    let facts = *run.board().facts();
    let s = &case.shape;
    let mut outputs = Vec::new();
    let part = Workspace::bytes(s, case.tokens / 3, &facts, &case.opt).map_err(told)?;
    for limit in [None, Some(part.bytes)] {
        let opt = MoeOptions { workspace_limit: limit, ..case.opt.clone() };
        let plan = Plan::choose(s, case.tokens, case.format, &facts, &opt).map_err(told)?;
        if limit.is_some() && plan.chunk_tokens >= case.tokens {
            return Err(format!("the limit makes no chunks: {plan}"));
        }
        let board = &mut run.board();
        let buffers = layer.buffers(board);
        let x = suite::input_view(board, &suite::bytes_bf16(&layer.x), s.hidden, 2);
        let routing = layer.routing(board);
        let layout = Workspace::bytes(s, plan.chunk_tokens, &facts, &opt).map_err(told)?;
        // As one region, this time.
        let workspace = Workspace::new(board, layout).map_err(told)?;
        for _ in 0..2 {
            let out = board.allocate(u64::from(case.tokens) * 2 * s.hidden as u64).unwrap();
            let out_matrix = Matrix::dense(out, s.hidden as u64);
            let input = MoeInput { tokens: case.tokens, x, routing, out: out_matrix };
            moe_forward(board, &plan, &buffers, &opt, &input, &workspace).map_err(told)?;
            outputs.push(suite::read_bf16(board, out)?);
        }
        workspace.free(board).map_err(told)?;
    }
    if outputs.iter().any(|o| *o != outputs[0]) {
        return Err(format!("chunks or reruns differ [{}]", run.label()));
    }
    Ok(())
}
