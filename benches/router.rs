//! Router and align on their own; elements are tokens, so criterion's rate is tokens per second.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

mod common;

use common::{Batch, Mode};
use criterion::{BenchmarkId, Criterion, Throughput};
use moe_frontier::kernels::{Alignment, MoeShape, Routed, RouterSpec, cpu};

/// Experts and experts per token: Mixtral, the largest default candidate, Qwen3, DeepSeek-V3.
const ROUTERS: [(usize, usize); 4] = [(8, 2), (32, 2), (128, 8), (256, 8)];

fn bench(c: &mut Criterion, mode: Mode) {
    let tokens = if mode == Mode::Smoke { 8 } else { 4096 };
    let mut group = c.benchmark_group("router, elements are tokens");
    group.throughput(Throughput::Elements(tokens as u64));
    for (experts, top_k) in ROUTERS {
        let shape = MoeShape { experts, top_k, hidden: 1, inter: 1, gated: true };
        let batch = Batch::new(&shape, tokens);
        let spec = RouterSpec::softmax();
        let mut routed = Routed::default();
        let name = format!("E={experts} k={top_k}");
        group.bench_function(BenchmarkId::new("top-k", &name), |b| {
            b.iter(|| {
                cpu::route(&batch.logits, experts, top_k, &spec, &mut routed).expect("routes");
            });
        });
        let mut alignment = Alignment::default();
        group.bench_function(BenchmarkId::new("align", &name), |b| {
            b.iter(|| cpu::align(&batch.routed.ids, experts, &mut alignment).expect("aligns"));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = common::settings();
    bench(&mut criterion, Mode::from_args());
    criterion.final_summary();
}
