//! The two grouped products on their own, for each instruction set that this processor has.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

mod common;

use common::{Batch, Mode};
use criterion::{BenchmarkId, Criterion, Throughput};
use moe_frontier::kernels::cpu::{CpuBackend, simd::Isa};
use moe_frontier::kernels::{LayerWeights, MoeBackend, MoeShape, RouterSpec, Stage};

fn bench(c: &mut Criterion, mode: Mode) {
    let (hidden, inter) = if mode == Mode::Smoke { (64, 96) } else { (1024, 3584) };
    let shape = MoeShape { experts: 8, top_k: 2, hidden, inter, gated: true };
    let bf16 = [common::weights_bf16(shape)];
    let int8 = [bf16[0].quantized().expect("weights are finite")];
    for sets in [&bf16, &int8] {
        bench_format(c, sets);
    }
}

fn bench_format(c: &mut Criterion, sets: &[LayerWeights; 1]) {
    let shape = sets[0].shape;
    let (hidden, inter) = (shape.hidden, shape.inter);
    let format = sets[0].dtype().label();
    let mut group = c.benchmark_group(format!("grouped_gemm {format} E=8, elements are FLOP"));
    for tokens in [4, 256, 2048] {
        let batch = Batch::new(&shape, tokens);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let backend = CpuBackend::with_isa(isa).expect("instruction set is available");
            let mut layer =
                backend.load(sets, &RouterSpec::softmax(), tokens).expect("layer loads");
            layer.set_input(&batch.x, &batch.logits).expect("input fits");
            layer.run(Stage::Layer, 0).expect("layer runs");
            let flops = 2 * tokens * shape.top_k * hidden * inter;
            for (stage, matrices) in [(Stage::GateUp, 2), (Stage::Down, 1)] {
                group.throughput(Throughput::Elements((matrices * flops) as u64));
                let name = format!("{} {}", stage.label(), isa.label());
                group.bench_function(BenchmarkId::new(name, tokens), |b| {
                    b.iter(|| layer.run(stage, 0).expect("stage runs"));
                });
            }
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = common::settings();
    bench(&mut criterion, Mode::from_args());
    criterion.final_summary();
}
