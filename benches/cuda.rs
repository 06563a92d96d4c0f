//! The CUDA kernels on a GPU, stage by stage, beside cuBLAS with one product per expert and grouped.
//!
//! `cargo bench --bench cuda` prints one row a cell: milliseconds of each stage and of the whole layer,
//! the roofline floor under ceilings measured in the same run, the share of it that the layer reaches,
//! and how many times longer cuBLAS takes for the products alone (one call an expert; grouped). Every
//! launch finds the second-level cache overwritten; times are the device's own, medians over interleaved
//! rounds. Without a GPU it says why and measures nothing.
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
use moe_frontier::gpu::{Cublas, CudaDevice, GroupedProducts, Launcher, Product, Region};
use moe_frontier::kernels::gpu::launches::{ReadStream, read_stream};
use moe_frontier::kernels::gpu::{GpuBackend, MoeOptions};
use moe_frontier::kernels::{LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage};

/// Layers that people serve, and their names.
const SHAPES: [(&str, MoeShape); 3] = [
    ("Mixtral 8x7B", MoeShape { experts: 8, top_k: 2, hidden: 4096, inter: 14336, gated: true }),
    ("Qwen3 30B-A3B", MoeShape { experts: 128, top_k: 8, hidden: 2048, inter: 768, gated: true }),
    ("64 x 1408", MoeShape { experts: 64, top_k: 6, hidden: 2048, inter: 1408, gated: true }),
];
/// Decode, the region between, prefill.
const TOKENS: [usize; 9] = [1, 4, 16, 64, 256, 512, 1024, 4096, 16384];
/// Interleaved rounds of a cell.
const ROUNDS: usize = 15;
/// The dense product whose rate is the ceiling.
const SQUARE: usize = 8192;

/// Products with the places of their two factors and of the result.
type Products = Vec<(Product, [Region; 3])>;

/// What the device reached in this run.
struct Ceilings {
    read_bytes_per_s: f64,
    gemm_flops_per_s: f64,
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

fn ceilings(device: &mut CudaDevice, blas: &Cublas) -> Ceilings {
    let from = device.allocate(2 << 30).expect("2 GiB");
    let to = device.allocate(ReadStream::result_bytes(device)).expect("result");
    device.fill(from, 0x5a).expect("fill");
    let stream = ReadStream { from, to };
    let matrix = 2 * (SQUARE * SQUARE) as u64;
    let square = [(); 3].map(|()| device.allocate(matrix).expect("matrices"));
    for (region, seed) in square.iter().zip(11..) {
        let values = common::uniform(SQUARE * SQUARE, 1.0, seed);
        let bytes: Vec<u8> =
            values.iter().flat_map(|&v| half::bf16::from_f32(v).to_ne_bytes()).collect();
        device.upload(*region, &bytes).expect("upload");
    }
    let product = Product { m: SQUARE, n: SQUARE, k: SQUARE };
    let (mut read, mut dense) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ns = device.elapsed_ns(|d| read_stream(d, &stream)).expect("read");
        read.push(from.bytes as f64 * 1e9 / ns);
        let [a, b, c] = square;
        let ns = device.elapsed_ns(|_| blas.gemm_bf16(product, a, b, c)).expect("dense product");
        dense.push(product.flops() * 1e9 / ns);
    }
    for region in [from, to].into_iter().chain(square) {
        device.free(region).expect("freed once");
    }
    Ceilings { read_bytes_per_s: median(&read), gemm_flops_per_s: median(&dense) }
}

/// Milliseconds of cuBLAS: a call an expert, and one grouped call a product whose sizes the host knows;
/// and of candle.
struct PeerTimes {
    per_expert: f64,
    grouped: f64,
    candle: f64,
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

/// Milliseconds of every stage, of cuBLAS and of candle, over interleaved rounds.
fn cell(
    backend: &GpuBackend<CudaDevice>,
    layer: &mut dyn LoadedLayer,
    (peer, candle): (&PerExpert, &mut Candle),
    flush: Region,
) -> (BTreeMap<&'static str, f64>, PeerTimes) {
    let mut ours: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let (mut per_expert, mut grouped_ms, mut candle_ms) = (Vec::new(), Vec::new(), Vec::new());
    let grouped = {
        let mut device = backend.launcher();
        let products = peer.products().expect("regions fit");
        products.map(|list| GroupedProducts::new(&mut device, &list).expect("products"))
    };
    for round in 0..ROUNDS {
        for stage in Stage::ALL {
            let ns = layer.time(stage, &[0]).expect("stage runs").expect("a GPU has a clock");
            ours.entry(stage.label()).or_default().push(ns as f64 * 1e-6);
        }
        let mut device = backend.launcher();
        let byte = u8::try_from(round % 250 + 1).unwrap_or(1);
        device.fill(flush, byte).expect("flush");
        per_expert.push(device.elapsed_ns(|_| peer.run()).expect("cuBLAS runs") * 1e-6);
        device.fill(flush, byte).expect("flush");
        let both = |_: &mut CudaDevice| {
            grouped.iter().try_for_each(|products| peer.blas.grouped_gemm_bf16(products))
        };
        grouped_ms.push(device.elapsed_ns(both).expect("cuBLAS runs") * 1e-6);
        drop(device);
        candle_ms.extend(candle.time());
    }
    for products in grouped {
        products.free(&mut backend.launcher()).expect("freed once");
    }
    let times = PeerTimes {
        per_expert: median(&per_expert),
        grouped: median(&grouped_ms),
        candle: median(&candle_ms),
    };
    (ours.into_iter().map(|(stage, ms)| (stage, median(&ms))).collect(), times)
}

fn shape_table(backend: &GpuBackend<CudaDevice>, blas: &Cublas, name: &str, shape: MoeShape) {
    let found = ceilings(&mut backend.launcher(), blas);
    println!(
        "\n{name}: {} experts of {} x {}, top-{}; read {:.2} TB/s, cuBLAS {:.0} TFLOP/s",
        shape.experts,
        shape.hidden,
        shape.inter,
        shape.top_k,
        found.read_bytes_per_s / 1e12,
        found.gemm_flops_per_s / 1e12
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
    for tokens in TOKENS {
        let batch = Batch::new(&shape, tokens);
        let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens).expect("layer loads");
        layer.set_input(&batch.x, &batch.logits).expect("input fits");
        layer.run(Stage::Layer, 0).expect("layer runs");
        assert_eq!(layer.routed().expect("routed").ids, batch.routed.ids, "another routing");
        let (peer, flush) = {
            let mut device = backend.launcher();
            let bytes = 2 * device.facts().l2_bytes;
            let peer = PerExpert::new(&mut device, blas, shape, &batch);
            (peer, device.allocate(bytes).expect("flush buffer"))
        };
        let agrees = candle.put(&batch, &layer.output().expect("output"));
        let (ms, peers) = cell(backend, layer.as_mut(), (&peer, &mut candle), flush);
        let mut device = backend.launcher();
        peer.free(&mut device);
        device.free(flush).expect("freed once");
        drop(device);
        let expert = 3.0 * (shape.hidden * shape.inter) as f64;
        let rows = (tokens * shape.top_k) as f64;
        let bytes =
            2.0 * expert * batch.load.active() as f64 + 4.0 * (tokens * shape.hidden) as f64;
        let floor = (bytes / found.read_bytes_per_s)
            .max(2.0 * expert * rows / found.gemm_flops_per_s)
            * 1e3;
        let whole = ms["moe_layer"];
        let tokens_u32 = u32::try_from(tokens).expect("few");
        let plan = backend.plan(&shape, tokens_u32, DType::Bf16).expect("plan");
        println!(
            "{tokens:>6} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.4} | {whole:>8.4} {floor:>8.4} \
             {:>6.2} | {:>6.2}x {:>6.2}x {:>7} | {plan}",
            ms["router"],
            ms["align"],
            ms["gate_up"],
            ms["down"],
            ms["combine"],
            floor / whole,
            peers.per_expert / (ms["gate_up"] + ms["down"]),
            peers.grouped / (ms["gate_up"] + ms["down"]),
            match peers.candle / (ms["gate_up"] + ms["down"]) {
                _ if !agrees => "wrong".into(),
                ratio if ratio.is_nan() => "-".into(),
                ratio => format!("{ratio:.2}x"),
            },
        );
    }
}

fn main() {
    let opened = CudaDevice::open(0).and_then(|device| Ok((Cublas::new(&device)?, device)));
    let (blas, device) = match opened {
        Ok(opened) => opened,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    if Mode::from_args() == Mode::CriterionOnly {
        return println!("SKIPPED: nothing here is timed by criterion");
    }
    let name = device.gpu().name.clone();
    println!("{name}; milliseconds, medians of {ROUNDS} interleaved rounds, cold cache");
    let backend =
        GpuBackend::new(device, name, MoeOptions::default()).expect("default options are accepted");
    for (name, shape) in SHAPES {
        shape_table(&backend, &blas, name, shape);
    }
}
