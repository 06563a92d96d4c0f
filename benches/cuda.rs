//! The CUDA kernels on a GPU, stage by stage, beside cuBLAS with one product per expert and grouped.
//!
//! `cargo bench --bench cuda` prints one row a cell: milliseconds of each stage and of the whole layer,
//! the roofline floor under ceilings measured in the same run, the share of it that the layer reaches,
//! and how many times longer cuBLAS takes for the products alone (one call an expert; grouped). Every
//! launch finds the second-level cache overwritten; times are the device's own, medians over interleaved
//! rounds, all of them recorded and replayed. Without a GPU it says why and measures nothing; without
//! cuBLAS its columns are empty and the floor is that of memory alone. `--quick` takes a few cells; `--once`
//! launches the products of four batches once each and times nothing: for a profiler.
//!
//! First it says what a cold launch costs after caches that were only overwritten, whose lines it must then
//! write back, and after caches that were read through as well, as everything else here is measured.
//!
//! With the feature `candle-cuda` candle's own `moe_gemm` is timed in the same rounds on the same tokens
//! and experts, in the faster of its two modes; `wrong` stands where its output is not ours up to
//! rounding.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]
#![expect(clippy::print_stdout, reason = "the table is the result")]

#[cfg(feature = "candle-cuda")]
#[path = "common/candle_moe.rs"]
mod candle_moe;
mod common;

use std::collections::BTreeMap;

use common::{Batch, Mode, median};
use moe_frontier::config::DType;
use moe_frontier::gpu::{
    Cublas, CudaDevice, GroupedProducts, Launcher, Product, Recording, Region,
};
use moe_frontier::kernels::gpu::launches::{ReadPath, ReadStream, flush, read_stream};
use moe_frontier::kernels::gpu::{Flush, GpuBackend, MoeOptions};
use moe_frontier::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};

/// Layers that people serve, and their names.
const SHAPES: [(&str, MoeShape); 3] = [
    ("Mixtral 8x7B", MoeShape { experts: 8, top_k: 2, hidden: 4096, inter: 14336, gated: true }),
    ("Qwen3 30B-A3B", MoeShape { experts: 128, top_k: 8, hidden: 2048, inter: 768, gated: true }),
    ("64 x 1408", MoeShape { experts: 64, top_k: 6, hidden: 2048, inter: 1408, gated: true }),
];
/// Decode, the region between, prefill.
const TOKENS: [usize; 9] = [1, 4, 16, 64, 256, 512, 1024, 4096, 16384];
/// The few shapes and tokens of `--quick`.
const FEW_SHAPES: usize = 2;
const FEW_TOKENS: [usize; 5] = [1, 16, 64, 1024, 16384];
/// Tokens of `--once`: one for each family of kernels.
const ONCE_TOKENS: [usize; 4] = [8, 64, 1024, 16384];
/// Interleaved rounds of a cell.
const ROUNDS: usize = 15;
/// The dense product whose rate is the ceiling.
const SQUARE: usize = 8192;

/// Products with the places of their two factors and of the result.
type Products = Vec<(Product, [Region; 3])>;

/// What the device reached in this run.
struct Ceilings {
    /// Through registers, and through shared memory where the device can.
    read: [Option<f64>; 2],
    gemm_flops_per_s: Option<f64>,
}

impl Ceilings {
    fn read_bytes_per_s(&self) -> f64 {
        self.read.into_iter().flatten().fold(0.0, f64::max)
    }
}

/// cuBLAS with one pair of products per expert that has rows.
struct PerExpert<'a> {
    blas: &'a Cublas,
    rows: Vec<usize>,
    shape: MoeShape,
    /// x gathered, h of both halves, h, y; weights of both products.
    x: Region,
    halves: Region,
    h: Region,
    y: Region,
    w13: Region,
    w2: Region,
}

impl<'a> PerExpert<'a> {
    fn new(device: &mut CudaDevice, blas: &'a Cublas, shape: MoeShape, batch: &Batch) -> Self {
        let rows: Vec<usize> = batch.load.counts().iter().map(|&n| n as usize).collect();
        let pairs: usize = rows.iter().sum();
        let mut region = |elements: usize| {
            let region = device.allocate(2 * elements as u64).expect("room for the peer");
            // Bytes of 0x3c make bf16 of about 0.01: what is timed here does not depend on the values
            // beyond their not being zero.
            device.fill(region, 0x3c).expect("fill");
            region
        };
        let MoeShape { experts, hidden, inter, .. } = shape;
        Self {
            blas,
            shape,
            x: region(pairs * hidden),
            halves: region(pairs * 2 * inter),
            h: region(pairs * inter),
            y: region(pairs * hidden),
            w13: region(experts * 2 * inter * hidden),
            w2: region(experts * hidden * inter),
            rows,
        }
    }

    /// The two products of every expert that has rows: first those with `w13`, then those with `w2`.
    fn products(&self) -> moe_frontier::Result<[Products; 2]> {
        let MoeShape { hidden, inter, .. } = self.shape;
        let mut both = [Vec::new(), Vec::new()];
        let (mut first, at) = (0, |row: usize, width: usize| 2 * (row * width) as u64);
        let rest = |region: Region, offset: u64| region.part(offset, region.bytes - offset);
        for (expert, &m) in self.rows.iter().enumerate().filter(|(_, m)| **m > 0) {
            both[0].push((
                Product { m, n: 2 * inter, k: hidden },
                [
                    rest(self.x, at(first, hidden))?,
                    rest(self.w13, at(expert * 2 * inter, hidden))?,
                    rest(self.halves, at(first, 2 * inter))?,
                ],
            ));
            both[1].push((
                Product { m, n: hidden, k: inter },
                [
                    rest(self.h, at(first, inter))?,
                    rest(self.w2, at(expert * hidden, inter))?,
                    rest(self.y, at(first, hidden))?,
                ],
            ));
            first += m;
        }
        Ok(both)
    }

    /// One call an expert and product.
    fn run(&self) -> moe_frontier::Result<()> {
        self.products()?
            .iter()
            .flatten()
            .try_for_each(|(product, [a, b, c])| self.blas.gemm_bf16(*product, *a, *b, *c))
    }

    fn free(self, device: &mut CudaDevice) {
        for region in [self.x, self.halves, self.h, self.y, self.w13, self.w2] {
            device.free(region).expect("freed once");
        }
    }
}

fn ceilings(device: &mut CudaDevice, blas: Option<&Cublas>) -> Ceilings {
    let from = device.allocate(2 << 30).expect("2 GiB");
    let to = device.allocate(ReadStream::result_bytes(device)).expect("result");
    device.fill(from, 0x5a).expect("fill");
    let stream = ReadStream { from, to };
    let rate = |device: &mut CudaDevice, path| {
        let rates: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let ns = device.elapsed_ns(|d| read_stream(d, &stream, path)).expect("read");
                stream.bytes(path) as f64 * 1e9 / ns
            })
            .collect();
        median(&rates)
    };
    let bulk = device.facts().is_hopper();
    let read = [
        Some(rate(device, ReadPath::Registers)),
        bulk.then(|| rate(device, ReadPath::SharedMemory)),
    ];
    for region in [from, to] {
        device.free(region).expect("freed once");
    }
    Ceilings { read, gemm_flops_per_s: blas.map(|blas| dense_rate(device, blas)) }
}

/// cuBLAS' rate of a large product.
fn dense_rate(device: &mut CudaDevice, blas: &Cublas) -> f64 {
    let matrix = 2 * (SQUARE * SQUARE) as u64;
    let square = [(); 3].map(|()| device.allocate(matrix).expect("matrices"));
    for (region, seed) in square.iter().zip(11..) {
        let values = common::uniform(SQUARE * SQUARE, 1.0, seed);
        let bytes: Vec<u8> =
            values.iter().flat_map(|&v| half::bf16::from_f32(v).to_ne_bytes()).collect();
        device.upload(*region, &bytes).expect("upload");
    }
    let product = Product { m: SQUARE, n: SQUARE, k: SQUARE };
    let dense: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let [a, b, c] = square;
            let ns = device.elapsed_ns(|_| blas.gemm_bf16(product, a, b, c));
            product.flops() * 1e9 / ns.expect("dense product")
        })
        .collect();
    for region in square {
        device.free(region).expect("freed once");
    }
    median(&dense)
}

/// Milliseconds of cuBLAS: a call an expert, and one grouped call a product whose sizes the host knows;
/// and of candle.
struct PeerTimes {
    per_expert: Option<f64>,
    grouped: Option<f64>,
    candle: Option<f64>,
}

/// candle's own products of a layer and a batch, beside ours; nothing without the feature.
struct Candle {
    #[cfg(feature = "candle-cuda")]
    layer: candle_moe::CandleMoe,
    #[cfg(feature = "candle-cuda")]
    batch: Option<(candle_moe::CandleBatch, bool)>,
}

#[cfg_attr(
    not(feature = "candle-cuda"),
    expect(clippy::unused_self, reason = "without the feature there is nothing to run")
)]
impl Candle {
    fn new(weights: &LayerWeights) -> Self {
        #[cfg(not(feature = "candle-cuda"))]
        let _ = weights;
        Self {
            #[cfg(feature = "candle-cuda")]
            layer: candle_moe::CandleMoe::new(0, weights).expect("candle loads the layer"),
            #[cfg(feature = "candle-cuda")]
            batch: None,
        }
    }

    /// Takes a batch; whether candle's output of it is ours.
    #[cfg(feature = "candle-cuda")]
    fn put(&mut self, batch: &Batch, ours: &[f32]) -> bool {
        let batch = self.layer.batch(batch).expect("candle loads the batch");
        let prefill = self.layer.faster_mode(&batch).expect("candle runs");
        let agrees = self.layer.agrees(&batch, prefill, ours).expect("candle runs");
        self.batch = Some((batch, prefill));
        agrees
    }

    #[cfg(not(feature = "candle-cuda"))]
    fn put(&mut self, _: &Batch, _: &[f32]) -> bool {
        true
    }

    /// Milliseconds, once.
    #[cfg(feature = "candle-cuda")]
    fn time(&mut self) -> Option<f64> {
        let (batch, prefill) = self.batch.as_ref()?;
        Some(self.layer.time(batch, *prefill).expect("candle runs"))
    }

    #[cfg(not(feature = "candle-cuda"))]
    fn time(&mut self) -> Option<f64> {
        None
    }
}

/// What is timed of cuBLAS: recordings of a call an expert and of one grouped call a product, and what
/// empties the caches before each. A library that cannot be recorded has no times.
struct Recorded {
    per_expert: Option<Recording>,
    grouped: Option<Recording>,
    cooling: Option<Recording>,
    products: [GroupedProducts; 2],
    flush: [Region; 3],
}

impl Recorded {
    fn new(device: &mut CudaDevice, peer: &PerExpert) -> Self {
        let products = peer.products().expect("regions fit");
        let products = products.map(|list| GroupedProducts::new(device, &list).expect("products"));
        let bytes = 2 * device.facts().l2_bytes;
        let words = ReadStream::result_bytes(device);
        let flush =
            [bytes, bytes, words].map(|bytes| device.allocate(bytes).expect("flush buffer"));
        let [written, from, to] = flush;
        let cooling = device.record(&mut |d| {
            launches_flush(d, written)?;
            read_stream(d, &ReadStream { from, to }, ReadPath::Caches)
        });
        let mut record = |work: &dyn Fn() -> moe_frontier::Result<()>| {
            let made = device.record(&mut |_| work());
            made.unwrap_or_else(|reason| {
                println!("cuBLAS is left out: {reason}");
                None
            })
        };
        let per_expert = record(&|| peer.run());
        let blas = peer.blas;
        let grouped = record(&|| products.iter().try_for_each(|p| blas.grouped_gemm_bf16(p)));
        let cooling = cooling.expect("the flush is recorded");
        Self { per_expert, grouped, cooling, products, flush }
    }

    /// Milliseconds of a recording behind emptied caches.
    fn time(&self, device: &mut CudaDevice, recording: Option<Recording>) -> Option<f64> {
        Some(device.time(recording?, self.cooling).expect("cuBLAS runs") * 1e-6)
    }

    fn free(self, device: &mut CudaDevice) {
        for recording in [self.per_expert, self.grouped, self.cooling].into_iter().flatten() {
            device.forget(recording);
        }
        for products in self.products {
            products.free(device).expect("freed once");
        }
        for region in self.flush {
            device.free(region).expect("freed once");
        }
    }
}

fn launches_flush(device: &mut dyn Launcher, written: Region) -> moe_frontier::Result<()> {
    flush(device, written, 1)
}

/// Milliseconds of every stage, of cuBLAS and of candle, over interleaved rounds.
fn cell(
    backend: &GpuBackend<CudaDevice>,
    layer: &mut dyn LoadedLayer,
    (peer, candle): (Option<&PerExpert>, &mut Candle),
) -> (BTreeMap<&'static str, f64>, PeerTimes) {
    let mut ours: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let (mut per_expert, mut grouped, mut candle_ms) = (Vec::new(), Vec::new(), Vec::new());
    let recorded = peer.map(|peer| Recorded::new(&mut backend.launcher(), peer));
    for _ in 0..ROUNDS {
        for stage in Stage::ALL {
            let ns = layer.time(stage, &[0]).expect("stage runs").expect("a GPU has a clock");
            ours.entry(stage.label()).or_default().push(ns as f64 * 1e-6);
        }
        if let Some(recorded) = &recorded {
            let mut device = backend.launcher();
            per_expert.extend(recorded.time(&mut device, recorded.per_expert));
            grouped.extend(recorded.time(&mut device, recorded.grouped));
        }
        candle_ms.extend(candle.time());
    }
    if let Some(recorded) = recorded {
        recorded.free(&mut backend.launcher());
    }
    let some = |ms: &[f64]| (!ms.is_empty()).then(|| median(ms));
    let times = PeerTimes {
        per_expert: some(&per_expert),
        grouped: some(&grouped),
        candle: some(&candle_ms),
    };
    (ours.into_iter().map(|(stage, ms)| (stage, median(&ms))).collect(), times)
}

/// A ratio to ours as the table has it.
fn ratio(peer: Option<f64>, ours: f64) -> String {
    peer.map_or_else(|| "-".into(), |peer| format!("{:.2}x", peer / ours))
}

fn shape_table(
    backend: &GpuBackend<CudaDevice>,
    blas: Option<&Cublas>,
    (name, shape): (&str, MoeShape),
    all_tokens: &[usize],
) {
    let found = ceilings(&mut backend.launcher(), blas);
    let terabytes =
        |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{:.2}", rate / 1e12));
    println!(
        "\n{name}: {} experts of {} x {}, top-{}; read {} TB/s through registers, {} through shared \
         memory; cuBLAS {} TFLOP/s",
        shape.experts,
        shape.hidden,
        shape.inter,
        shape.top_k,
        terabytes(found.read[0]),
        terabytes(found.read[1]),
        found.gemm_flops_per_s.map_or_else(|| "-".into(), |rate| format!("{:.0}", rate / 1e12)),
    );
    println!(
        "{:>6} {:>8} {:>8} {:>8} {:>8} {:>8} | {:>8} {:>8} {:>6} | {:>7} {:>7} {:>7} | kernels",
        "tokens",
        "router",
        "align",
        "gate_up",
        "down",
        "combine",
        "layer",
        "floor",
        "share",
        "loop",
        "grouped",
        "candle"
    );
    let sets = [common::weights_bf16(shape)];
    let mut candle = Candle::new(&sets[0]);
    for &tokens in all_tokens {
        let batch = Batch::new(&shape, tokens);
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        layer.run(Stage::Layer, 0).expect("layer runs");
        assert_eq!(layer.routed().expect("routed").ids, batch.routed.ids, "another routing");
        let peer = blas.map(|blas| PerExpert::new(&mut backend.launcher(), blas, shape, &batch));
        let agrees = candle.put(&batch, &layer.output().expect("output"));
        let (ms, peers) = cell(backend, layer.as_mut(), (peer.as_ref(), &mut candle));
        if let Some(peer) = peer {
            peer.free(&mut backend.launcher());
        }
        let expert = 3.0 * (shape.hidden * shape.inter) as f64;
        let rows = (tokens * shape.top_k) as f64;
        let bytes =
            2.0 * expert * batch.load.active() as f64 + 4.0 * (tokens * shape.hidden) as f64;
        let dense = found.gemm_flops_per_s.map_or(0.0, |rate| 2.0 * expert * rows / rate);
        let floor = (bytes / found.read_bytes_per_s()).max(dense) * 1e3;
        let whole = ms["moe_layer"];
        let products = ms["gate_up"] + ms["down"];
        let tokens_u32 = u32::try_from(tokens).expect("few");
        let plan = backend.plan(&shape, tokens_u32, DType::Bf16).expect("plan");
        println!(
            "{tokens:>6} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.4} | {whole:>8.4} {floor:>8.4} \
             {:>6.2} | {:>7} {:>7} {:>7} | {plan}",
            ms["router"],
            ms["align"],
            ms["gate_up"],
            ms["down"],
            ms["combine"],
            floor / whole,
            ratio(peers.per_expert, products),
            ratio(peers.grouped, products),
            if agrees { ratio(peers.candle, products) } else { "wrong".into() },
        );
    }
}

/// What one token of a layer takes behind caches that were emptied in either way.
fn flushes(mut backend: GpuBackend<CudaDevice>) -> GpuBackend<CudaDevice> {
    let (name, shape) = SHAPES[1];
    let sets = [common::weights_bf16(shape)];
    let batch = Batch::new(&shape, 1);
    for (flush, words) in [
        (Flush::Write, "overwritten"),
        (Flush::WriteThenRead, "overwritten and read through, as below"),
    ] {
        backend = backend.with_flush(flush);
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), 1).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        let times: Vec<f64> = (0..4 * ROUNDS)
            .filter_map(|_| layer.time(Stage::Layer, &[0]).expect("layer runs"))
            .map(|ns| ns as f64 * 1e-6)
            .collect();
        println!("{name}, 1 token, caches {words}: {:.4} ms", median(&times));
    }
    backend
}

/// Launches the products of each batch once.
fn once(backend: &GpuBackend<CudaDevice>) {
    let (name, shape) = SHAPES[0];
    let sets = [common::weights_bf16(shape)];
    for tokens in ONCE_TOKENS {
        let batch = Batch::new(&shape, tokens);
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        for stage in [Stage::Router, Stage::Align, Stage::GateUp, Stage::Down] {
            layer.run(stage, 0).expect("stage runs");
        }
        println!("{name}, {tokens} tokens: {}", layer.plan().unwrap_or_default());
    }
}

fn main() {
    let device = match CudaDevice::open(0) {
        Ok(device) => device,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    if Mode::from_args() == Mode::CriterionOnly {
        return println!("SKIPPED: nothing here is timed by criterion");
    }
    let blas = Cublas::new(&device);
    if let Err(reason) = &blas {
        println!("cuBLAS is left out: {reason}");
    }
    if std::env::args().any(|argument| argument == "--once") {
        let backend = GpuBackend::new(device, "once".into(), MoeOptions::default());
        return once(&backend.expect("default options are accepted"));
    }
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let name = device.gpu().name.clone();
    println!("{name}; milliseconds, medians of {ROUNDS} interleaved rounds, cold cache");
    let backend =
        GpuBackend::new(device, name, MoeOptions::default()).expect("default options are accepted");
    let backend = flushes(backend);
    let shapes = if is_quick { &SHAPES[..FEW_SHAPES] } else { &SHAPES[..] };
    for shape in shapes {
        let tokens = if is_quick { &FEW_TOKENS[..] } else { &TOKENS[..] };
        shape_table(&backend, blas.as_ref().ok(), *shape, tokens);
    }
}
