//! Router and align on their own: first a table of both against the plain loops, interleaved, then
//! criterion, whose elements are tokens.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints its table, and one that cannot run has nothing to report"
)]

mod common;

use std::hint::black_box;

use common::{Batch, Mode, interleaved, median};
use criterion::{BenchmarkId, Criterion, Throughput};
use moe_frontier::config::{RouterConfig, Scoring};
use moe_frontier::kernels::{Alignment, MoeShape, Routed, RouterSpec, cpu, reference};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Experts and experts per token: Mixtral, the largest default candidate, Qwen3, DeepSeek-V3.
const ROUTERS: [(usize, usize); 4] = [(8, 2), (32, 2), (128, 8), (256, 8)];
/// Rounds of a table: enough for a median on a shared machine, within a few minutes.
const ROUNDS: usize = 11;

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start")
}

/// One row of a table: name, tokens, and what the three contenders do once.
struct Contest<'a> {
    name: String,
    tokens: usize,
    plain: &'a mut (dyn FnMut() + Send),
    ours: &'a mut (dyn FnMut() + Send),
}

impl Contest<'_> {
    /// Prints nanoseconds a token of the plain loops, of ours on one thread and on all.
    fn print(self, one: &ThreadPool, all: &ThreadPool) {
        let Self { name, tokens, plain, ours } = self;
        // About a millisecond a sample, so that neither the clock nor entering the pool shows.
        let repeats = (20_000 / tokens).max(1);
        let few = (2_000 / tokens).max(1);
        let ours = std::cell::RefCell::new(ours);
        let times = {
            let mut plain = || (0..few).for_each(|_| plain());
            let mut single = || {
                let ours = &mut **ours.borrow_mut();
                one.install(|| (0..repeats).for_each(|_| ours()));
            };
            let mut pooled = || {
                let ours = &mut **ours.borrow_mut();
                all.install(|| (0..repeats).for_each(|_| ours()));
            };
            interleaved(ROUNDS, &mut [&mut plain, &mut single, &mut pooled])
        };
        let ns = |i: usize, repeats: usize| median(&times[i]) * 1e9 / (repeats * tokens) as f64;
        let (plain, single, pooled) = (ns(0, few), ns(1, repeats), ns(2, repeats));
        let ratio = plain / single;
        println!("{name:<34} {tokens:>6} {plain:>9.1} {single:>9.1} {pooled:>9.1} {ratio:>9.1}");
    }
}

/// Nanoseconds a token, the plain loops against ours.
fn tables() {
    let (one, all) = (pool(1), pool(rayon::current_num_threads()));
    println!(
        "ns a token, median of {ROUNDS} interleaved rounds; {} threads\n\n{:<34} {:>6} {:>9} {:>9} {:>9} {:>9}",
        all.current_num_threads(),
        "",
        "tokens",
        "plain",
        "1 thread",
        "pool",
        "plain/1"
    );
    let softmax = RouterSpec::softmax();
    let grouped = RouterSpec {
        config: RouterConfig {
            scoring: Scoring::Sigmoid,
            bias: true,
            n_group: 8,
            topk_group: 4,
            scaling_factor: 2.5,
            ..softmax.config
        },
        bias: common::uniform(256, 0.1, 5),
    };
    let routers = [8, 32, 128, 256]
        .into_iter()
        .flat_map(|experts| [2, 8].map(|top_k| (experts, top_k, "softmax", &softmax)))
        .chain([(256, 8, "sigmoid, 8 groups", &grouped)]);
    for (experts, top_k, mode, spec) in routers {
        for tokens in [1, 64, 4096] {
            let shape = MoeShape { experts, top_k, hidden: 1, inter: 1, gated: true };
            let batch = Batch::new(&shape, tokens);
            let (logits, mut routed) = (&batch.logits, Routed::default());
            Contest {
                name: format!("router E={experts} k={top_k} {mode}"),
                tokens,
                plain: &mut || {
                    black_box(reference::route(logits, experts, top_k, spec).expect("routes"));
                },
                ours: &mut || {
                    cpu::route(logits, experts, top_k, spec, &mut routed).expect("routes");
                },
            }
            .print(&one, &all);
            let (ids, mut alignment) = (&batch.routed.ids, Alignment::default());
            if mode == "softmax" {
                Contest {
                    name: format!("align  E={experts} k={top_k}"),
                    tokens,
                    plain: &mut || {
                        black_box(reference::align(ids, experts).expect("aligns"));
                    },
                    ours: &mut || cpu::align(ids, experts, &mut alignment).expect("aligns"),
                }
                .print(&one, &all);
            }
        }
    }
    println!();
}

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
    let mode = Mode::from_args();
    if mode == Mode::Full {
        tables();
    }
    let mut criterion = common::settings();
    bench(&mut criterion, mode);
    criterion.final_summary();
}
