//! The whole layer: router, align, grouped products, weighted sum; beside candle's naive layer.
//!
//! `cargo bench --bench moe_layer` first lets criterion time our layer, then prints a table of
//! interleaved ratios against candle on identical weights and routing, and how far each cell is from
//! the time in which its weights could be read and its FLOPs done at rates measured in the same run.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]
#![expect(clippy::print_stdout, reason = "the table is the result")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{Batch, Mode, interleaved, median, ratio};
use criterion::{BenchmarkId, Criterion, Throughput};
use moe_frontier::kernels::candle::NaiveLayer;
use moe_frontier::kernels::cpu::CpuBackend;
use moe_frontier::kernels::{
    LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage, WeightData,
};
use moe_frontier::latency::LayerQuery;

/// Experts of the layers. With bf16 weights an expert has 22 MB. In the interleaved table the other
/// contenders read at least 200 MB between two runs of ours, so weights come from memory also where a
/// token visits only two experts; criterion's one-token cell may find part of them in a large cache.
const EXPERTS: [usize; 4] = [4, 8, 16, 32];
/// Decode of one and of eight sequences, large decode batches, and prefill chunks.
const TOKENS: [usize; 6] = [1, 8, 64, 256, 512, 2048];
/// Interleaved rounds of a cell. Medians of seven survive three disturbed rounds.
const ROUNDS: usize = 7;

fn shape(experts: usize, mode: Mode) -> MoeShape {
    let (hidden, inter) = if mode == Mode::Smoke { (64, 96) } else { (1024, 3584) };
    MoeShape { experts, top_k: 2, hidden, inter, gated: true }
}

fn query(weights: &LayerWeights, batch: &Batch) -> LayerQuery {
    let shape = &weights.shape;
    LayerQuery {
        hidden: shape.hidden,
        inter: shape.inter,
        experts: shape.experts,
        top_k: shape.top_k,
        gated: shape.gated,
        weight_bits: 8.0 * weights.bytes() as f64 / (weights.w13.len() + weights.w2.len()) as f64,
        tokens: (batch.x.len() / shape.hidden) as f64,
        active_experts: batch.load.active() as f64,
        max_rows: f64::from(batch.load.max()),
    }
}

fn with_criterion(c: &mut Criterion, mode: Mode) {
    let backend = CpuBackend::new();
    let sets = [common::weights_bf16(shape(8, mode))];
    let mut group = c.benchmark_group("moe_layer, elements are FLOP");
    for tokens in TOKENS {
        let batch = Batch::new(&sets[0].shape, tokens);
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of operations, far below 2^53"
        )]
        group.throughput(Throughput::Elements(query(&sets[0], &batch).flops() as u64));
        group.bench_function(BenchmarkId::new("ours bf16, E=8", tokens), |b| {
            b.iter(|| layer.run(Stage::Layer, 0).expect("layer runs"));
        });
    }
    group.finish();
}

/// One weight format: our layer with weights as they lie and packed once, and candle's.
struct Format<'a> {
    weights: &'a LayerWeights,
    /// As they lie, and packed.
    layers: [Box<dyn LoadedLayer + 'a>; 2],
    naive: &'a NaiveLayer,
    x: Tensor,
    /// FLOPs per second of multiplications in registers; `None` where tiles multiply.
    rate: Option<f64>,
}

impl<'a> Format<'a> {
    fn new(
        backends: &'a [CpuBackend; 2],
        sets: &'a [LayerWeights; 1],
        naive: &'a NaiveLayer,
        batch: &Batch,
    ) -> Self {
        let [weights] = sets;
        let hidden = weights.shape.hidden;
        let tokens = batch.x.len() / hidden;
        let layers = backends.each_ref().map(|backend| {
            let mut layer =
                backend.load(sets, &RouterSpec::softmax(), tokens).expect("layer loads");
            layer.set_input(&batch.x, &batch.logits).expect("input fits");
            layer
        });
        let dtype = match weights.w13 {
            WeightData::F32(_) => DType::F32,
            _ => DType::BF16,
        };
        let x = Tensor::from_slice(&batch.x, (tokens, hidden), &Device::Cpu)
            .and_then(|x| x.to_dtype(dtype))
            .expect("tensor of x");
        let rate = common::register_rate(backends[0].isa(), weights.dtype());
        Self { weights, layers, naive, x, rate }
    }

    fn run(&mut self, layer: usize, stage: Stage) {
        self.layers[layer].run(stage, 0).expect("layer runs");
    }

    fn candle(&self, batch: &Batch) {
        self.naive.forward(&self.x, &batch.routed).expect("naive layer runs");
    }

    /// Largest relative distance of our outputs from candle's: a bench that compares different things
    /// is worthless.
    fn distance(&mut self, batch: &Batch) -> f64 {
        let naive = self.naive.forward(&self.x, &batch.routed).expect("naive layer runs");
        let naive: Vec<f32> = naive
            .to_dtype(DType::F32)
            .and_then(|t| t.flatten_all()?.to_vec1())
            .expect("values of the naive layer");
        let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v * v)).sum::<f64>();
        let mut distance = |layer| {
            self.run(layer, Stage::Layer);
            let ours = self.layers[layer].output().expect("output");
            let off = squares(&mut ours.iter().zip(&naive).map(|(a, b)| a - b));
            (off / squares(&mut naive.iter().copied())).sqrt()
        };
        distance(0).max(distance(1))
    }

    /// Seconds in which the active weights can be read and the FLOPs done, whichever takes longer.
    fn floor(&self, query: &LayerQuery, bandwidth: f64) -> f64 {
        (query.bytes() / bandwidth).max(self.rate.map_or(0.0, |rate| query.flops() / rate))
    }
}

/// What is shown of one format: milliseconds as weights lie and packed, the packed layer's share of the
/// floor, and how many times longer candle takes than the layer whose weights lie as candle's do.
fn columns(seconds: [&[f64]; 3], floor: f64) -> String {
    let [ours, packed, candle] = seconds;
    format!(
        "{:>8.2} {:>8.2} {:>5.2} {:>8.2} {:>6.2}",
        median(ours) * 1e3,
        median(packed) * 1e3,
        floor / median(packed),
        median(candle) * 1e3,
        ratio(candle, ours)
    )
}

fn ratios(mode: Mode) {
    let backends = [CpuBackend::new(), CpuBackend::new().with_packed_weights()];
    println!("\nwhole layer against candle's naive layer, {}", backends[0].description());
    let MoeShape { hidden, inter, .. } = shape(8, mode);
    println!(
        "hidden {hidden}, inter {inter}, top-2, uniform routing; medians of {ROUNDS} interleaved \
         rounds; ms a layer\n\
         packed: weights packed once before; x: how many times longer candle takes on the same weights, \
         as they lie\n\
         share: of the packed layer's time, that in which the active weights are read at the bandwidth \
         of the\n  same minute or the FLOPs done as fast as registers multiply, whichever is longer\n\
         f/b: candle f32 over ours bf16; r+a: router and align, share of the bf16 layer"
    );
    let group =
        |name| format!("{name:>8} {:>8} {:>5} {:>8} {:>6}", "packed", "share", "candle", "x");
    println!(
        "{:>3} {:>4} {:>4} {:>5} | {} | {} | {:>5} {:>6}",
        "E",
        "T",
        "rows",
        "GB/s",
        group("bf16"),
        group("f32"),
        "f/b",
        "r+a"
    );
    let mut worst = f64::INFINITY;
    for experts in EXPERTS {
        let bf16 = [common::weights_bf16(shape(experts, mode))];
        let f32 = [common::widened(&bf16[0])];
        let naive = [&bf16, &f32].map(|sets| NaiveLayer::new(&sets[0]).expect("naive layer"));
        let WeightData::F32(values) = &f32[0].w13 else { unreachable!("widened") };
        for tokens in TOKENS {
            let batch = Batch::new(&bf16[0].shape, tokens);
            let mut b = Format::new(&backends, &bf16, &naive[0], &batch);
            let mut f = Format::new(&backends, &f32, &naive[1], &batch);
            assert!(b.distance(&batch) < 2e-2, "bf16 outputs differ by {}", b.distance(&batch));
            assert!(f.distance(&batch) < 1e-5, "f32 outputs differ by {}", f.distance(&batch));
            let bandwidth = common::read_bandwidth(values);
            let floors = [&b, &f].map(|x| x.floor(&query(x.weights, &batch), bandwidth));
            let (b, f) = (std::cell::RefCell::new(b), std::cell::RefCell::new(f));
            let rounds = if mode == Mode::Smoke { 1 } else { ROUNDS };
            let seconds = interleaved(
                rounds,
                &mut [
                    &mut || b.borrow_mut().run(0, Stage::Layer),
                    &mut || f.borrow_mut().run(0, Stage::Layer),
                    &mut || b.borrow_mut().run(1, Stage::Layer),
                    &mut || f.borrow_mut().run(1, Stage::Layer),
                    &mut || b.borrow().candle(&batch),
                    &mut || f.borrow().candle(&batch),
                    &mut || {
                        b.borrow_mut().run(0, Stage::Router);
                        b.borrow_mut().run(0, Stage::Align);
                    },
                ],
            );
            let [b, f, b_packed, f_packed, b_candle, f_candle, routing] = seconds.as_slice() else {
                return;
            };
            worst = worst.min(ratio(b_candle, b)).min(ratio(f_candle, f));
            println!(
                "{experts:>3} {tokens:>4} {:>4} {:>5.1} | {} | {} | {:>5.2} {:>5.1}%",
                batch.load.max(),
                bandwidth / 1e9,
                columns([b, b_packed, b_candle], floors[0]),
                columns([f, f_packed, f_candle], floors[1]),
                ratio(f_candle, b),
                100.0 / ratio(b, routing),
            );
        }
    }
    println!("smallest ratio against candle in the same format: {worst:.2}");
}

fn main() {
    let mode = Mode::from_args();
    let mut criterion = common::settings();
    with_criterion(&mut criterion, mode);
    criterion.final_summary();
    if mode != Mode::CriterionOnly {
        ratios(mode);
    }
}
