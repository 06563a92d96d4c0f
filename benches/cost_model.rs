//! Everything after the profile: one law evaluation, one latency, one step, one whole ranking.
//!
//! Elements are evaluations, so criterion's rate is evaluations per second. The bars are a whole
//! ranking with 1,000 draws within a second and a law evaluation within 200 ns.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

#[path = "../tests/common/mod.rs"]
mod chain;
mod common;

use std::hint::black_box;

use chain::{h100, provenance};
use criterion::{Criterion, Throughput};
use moe_frontier::cost::{LoadModel, Replica, ServiceLevel};
use moe_frontier::law::{self, ExpertScaling};
use moe_frontier::plan::candidates::geometry;
use moe_frontier::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use moe_frontier::plan::rank::rank;
use moe_frontier::profile::{LatencyModel, LayerQuery};
use moe_frontier::units::{Flops, Seconds};

/// A ranking at a budget and a traffic that every expert count can serve.
fn inputs() -> RankInputs {
    RankInputs {
        target: Target::Budget { budget: Flops(1e21), experts: 4 },
        demand: Demand::Rate(20.0),
        level: ServiceLevel { tpot: Some(Seconds::from_ms(50.0)), ttft: None },
        lifetime: Lifetime::PerTrainingToken(1.0),
        draws: 1000,
        ..chain::inputs()
    }
}

fn parts(c: &mut Criterion, law: &dyn ExpertScaling) {
    let mut group = c.benchmark_group("parts, elements are evaluations");
    group.throughput(Throughput::Elements(1));
    group.bench_function("law, loss", |b| {
        b.iter(|| {
            let slice = law.slice(black_box(8)).expect("covered");
            slice.loss(black_box(1e9), black_box(2e10))
        });
    });
    group.bench_function("law, optimum at a budget", |b| {
        b.iter(|| law.slice(black_box(8)).expect("covered").optimum(black_box(Flops(1e21))));
    });
    let model = h100();
    let query = LayerQuery {
        hidden: 4096,
        inter: 14336,
        experts: 8,
        top_k: 2,
        gated: true,
        weight_bits: 16.0,
        tokens: 64.0,
        active_experts: 8.0,
        max_rows: 24.0,
    };
    group.bench_function("latency, roofline", |b| {
        b.iter(|| model.moe_layer(black_box(&query)).expect("answers"));
    });
    let inputs = inputs();
    let (load, skewed) = (LoadModel::uniform(8, 1), LoadModel::uniform(8, 1));
    let replica = Replica {
        geometry: geometry(law, 8, 4e9, &inputs).expect("covered"),
        devices: 2,
        latency: &model,
        load: &load,
        skewed: &skewed,
        link: inputs.device.link,
    };
    group.bench_function("step of one replica", |b| {
        b.iter(|| replica.step(black_box(32.0), black_box(32.0), &inputs.lengths).expect("prices"));
    });
    group.finish();
}

fn whole(c: &mut Criterion, law: &dyn ExpertScaling) {
    let (model, inputs) = (h100(), inputs());
    let mut group = c.benchmark_group("ranking, 5 expert counts, 1,000 draws");
    group.throughput(Throughput::Elements(1));
    group.bench_function("rank", |b| {
        b.iter(|| rank(law, &model, black_box(&inputs), provenance()).expect("feasible"));
    });
    group.finish();
}

fn main() {
    let law = law::load_scaling("ludziejewski2025").expect("published");
    let mut criterion = common::settings();
    parts(&mut criterion, law.as_ref());
    whole(&mut criterion, law.as_ref());
    criterion.final_summary();
}
