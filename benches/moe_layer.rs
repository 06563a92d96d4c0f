//! The whole layer: router, align, grouped products, weighted sum; beside candle's naive layer.
//!
//! `cargo bench --bench moe_layer` first lets criterion time our layer, then prints a table of
//! interleaved ratios against candle on identical weights and routing, and how far each cell is from
//! the time in which its weights could be read at the bandwidth measured in the same run.

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
use moe_frontier::profile::LayerQuery;

/// Experts of the layers. With bf16 weights an expert has 22 MB. In the interleaved table the other
/// contenders read at least 200 MB between two runs of ours, so weights come from memory also where a
/// token visits only two experts; criterion's one-token cell may find part of them in a large cache.
const EXPERTS: [usize; 3] = [8, 16, 32];
/// Decode of one and of eight sequences, a large decode batch, and a prefill chunk.
const TOKENS: [usize; 4] = [1, 8, 64, 512];
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

/// One weight format with both contenders ready to run.
struct Format<'a> {
    weights: &'a LayerWeights,
    layer: Box<dyn LoadedLayer + 'a>,
    naive: &'a NaiveLayer,
    x: Tensor,
}

impl<'a> Format<'a> {
    fn new(
        backend: &'a CpuBackend,
        sets: &'a [LayerWeights; 1],
        naive: &'a NaiveLayer,
        batch: &Batch,
    ) -> Self {
        let [weights] = sets;
        let hidden = weights.shape.hidden;
        let tokens = batch.x.len() / hidden;
        let mut layer = backend.load(sets, &RouterSpec::softmax(), tokens).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        let dtype = match weights.w13 {
            WeightData::F32(_) => DType::F32,
            WeightData::Bf16(_) => DType::BF16,
            WeightData::F16(_) => DType::F16,
            WeightData::Int8(_) | WeightData::Fp8(_) => {
                unreachable!("the naive layer takes no 8 bits")
            }
        };
        let x = Tensor::from_slice(&batch.x, (tokens, hidden), &Device::Cpu)
            .and_then(|x| x.to_dtype(dtype))
            .expect("tensor of x");
        Self { weights, layer, naive, x }
    }

    fn ours(&mut self) {
        self.layer.run(Stage::Layer, 0).expect("layer runs");
    }

    fn candle(&self, batch: &Batch) {
        self.naive.forward(&self.x, &batch.routed).expect("naive layer runs");
    }

    /// Relative distance of the two outputs: a bench that compares different things is worthless.
    fn distance(&mut self, batch: &Batch) -> f64 {
        self.ours();
        let ours = self.layer.output().expect("output");
        let naive = self.naive.forward(&self.x, &batch.routed).expect("naive layer runs");
        let naive: Vec<f32> = naive
            .to_dtype(DType::F32)
            .and_then(|t| t.flatten_all()?.to_vec1())
            .expect("values of the naive layer");
        let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v * v)).sum::<f64>();
        let off = squares(&mut ours.iter().zip(&naive).map(|(a, b)| a - b));
        (off / squares(&mut naive.iter().copied())).sqrt()
    }
}

fn ratios(mode: Mode) {
    let backend = CpuBackend::new();
    println!("\nwhole layer against candle's naive layer, {}", backend.description());
    let MoeShape { hidden, inter, .. } = shape(8, mode);
    println!(
        "hidden {hidden}, inter {inter}, top-2, uniform routing; medians of {ROUNDS} interleaved \
         rounds; ms a layer\n\
         x: how many times longer candle takes on the same weights; `f32/b`: candle f32 over ours bf16\n\
         floor: share of the time in which the active weights could be read or the FLOPs done"
    );
    println!(
        "{:>3} {:>4} {:>5} | {:>8} {:>8} {:>6} | {:>8} {:>8} {:>6} | {:>6} | {:>5} {:>6} {:>6}",
        "E",
        "T",
        "rows",
        "ours b",
        "candle b",
        "x",
        "ours f",
        "candle f",
        "x",
        "f32/b",
        "GB/s",
        "GFLOP",
        "of BW"
    );
    let mut worst = f64::INFINITY;
    for experts in EXPERTS {
        let bf16 = [common::weights_bf16(shape(experts, mode))];
        let f32 = [common::widened(&bf16[0])];
        let naive = [&bf16, &f32].map(|sets| NaiveLayer::new(&sets[0]).expect("naive layer"));
        let WeightData::F32(values) = &f32[0].w13 else { unreachable!("widened") };
        for tokens in TOKENS {
            let batch = Batch::new(&bf16[0].shape, tokens);
            let mut b = Format::new(&backend, &bf16, &naive[0], &batch);
            let mut f = Format::new(&backend, &f32, &naive[1], &batch);
            assert!(b.distance(&batch) < 2e-2, "bf16 outputs differ by {}", b.distance(&batch));
            assert!(f.distance(&batch) < 1e-5, "f32 outputs differ by {}", f.distance(&batch));
            let bandwidth = common::read_bandwidth(values);
            let query = query(b.weights, &batch);
            let (b, f) = (std::cell::RefCell::new(b), std::cell::RefCell::new(f));
            let rounds = if mode == Mode::Smoke { 1 } else { ROUNDS };
            let seconds = interleaved(
                rounds,
                &mut [
                    &mut || b.borrow_mut().ours(),
                    &mut || b.borrow().candle(&batch),
                    &mut || f.borrow_mut().ours(),
                    &mut || f.borrow().candle(&batch),
                ],
            );
            let [ours_b, candle_b, ours_f, candle_f] = seconds.as_slice() else { return };
            let (x_b, x_f) = (ratio(candle_b, ours_b), ratio(candle_f, ours_f));
            worst = worst.min(x_b).min(x_f);
            let rate = |amount: f64| amount / median(ours_b) / 1e9;
            println!(
                "{experts:>3} {tokens:>4} {:>5} | {:>8.2} {:>8.2} {x_b:>6.2} | {:>8.2} {:>8.2} {x_f:>6.2} | {:>6.2} | {:>5.1} {:>6.1} {:>6.2}",
                batch.load.max(),
                median(ours_b) * 1e3,
                median(candle_b) * 1e3,
                median(ours_f) * 1e3,
                median(candle_f) * 1e3,
                ratio(candle_f, ours_b),
                rate(query.bytes()),
                rate(query.flops()),
                query.bytes() / bandwidth / median(ours_b),
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
