//! Speed of the laws: one full evaluation, one optimum, and a million candidate evaluations.
//!
//! A ranking with a thousand draws evaluates about a million candidates; the bar is 200 ns for one
//! evaluation and half a second for a million on one core.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moe_frontier::law::{self, Inputs, Question, Scaling, Variable};
use moe_frontier::units::Flops;

/// Candidates in the large case.
const CANDIDATES: u32 = 1_000_000;

fn default_law() -> Option<Scaling> {
    law::load_scaling("ludziejewski2025").ok()
}

fn evaluation(c: &mut Criterion) {
    let Some(law) = default_law() else { return };
    c.bench_function("law/evaluation", |b| {
        // Experts to loss, with nothing kept from one evaluation to the next.
        b.iter(|| {
            let slice = law.slice(black_box(16)).ok()?;
            Some(slice.loss(black_box(1e9), black_box(2e10)))
        });
    });
    c.bench_function("law/optimum", |b| {
        b.iter(|| law.slice(black_box(16)).ok().map(|s| s.optimum(black_box(Flops(1e21)))));
    });
}

fn candidates(c: &mut Criterion) {
    let Some(law) = default_law() else { return };
    let slices: Vec<_> = [4, 8, 16, 32].iter().filter_map(|&e| law.slice(e).ok()).collect();
    let mut group = c.benchmark_group("law/candidates");
    group.throughput(Throughput::Elements(u64::from(CANDIDATES)));
    group.bench_function("1e6", |b| {
        b.iter(|| {
            let mut sum = 0.0;
            for i in 0..CANDIDATES {
                let slice = &slices[i as usize % slices.len()];
                let n = 1e8 + f64::from(i) * 1e3;
                sum += slice.loss(black_box(n), black_box(1e21 / 6.0 / n)).0;
            }
            sum
        });
    });
    group.finish();
}

/// What `law optimal` does after parsing: load the law, and answer.
fn command(c: &mut Criterion) {
    c.bench_function("law/optimal_command", |b| {
        b.iter(|| {
            let law = law::load(black_box("ludziejewski2025"), None)?;
            let inputs = Inputs::new([(Variable::Experts, 8.0)])?;
            law::ask(law.as_ref(), &inputs, Question::Budget(Flops(1e21)))
        });
    });
}

/// Each case is far below a microsecond or a few milliseconds: three seconds are plenty.
fn settings() -> Criterion {
    Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(30)
}

criterion_group! { name = laws; config = settings(); targets = evaluation, candidates, command }
criterion_main!(laws);
