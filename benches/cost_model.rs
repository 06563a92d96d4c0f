//! Everything after the profile: one law evaluation, one latency, one step, one whole ranking.
//!
//! Elements are evaluations, so criterion's rate is evaluations per second. The bars are a whole
//! ranking with 1,000 draws within a second and a law evaluation within 200 ns.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use moe_frontier::cost::{
    Lengths, Link, LoadModel, MemoryBudget, Replica, ServiceLevel, TrainingPrice,
};
use moe_frontier::law::{self, ExpertScaling};
use moe_frontier::plan::candidates::geometry;
use moe_frontier::plan::inputs::{
    Demand, Lifetime, Limits, Ranges, RankInputs, ServingDevice, Target,
};
use moe_frontier::plan::outcome::ProfileUsed;
use moe_frontier::plan::rank::{Provenance, rank};
use moe_frontier::profile::{LatencyModel, LayerQuery, RooflineModel, Source};
use moe_frontier::units::{Bytes, Flops, FlopsPerSecond, Seconds, UsdPerHour};

/// H100 by its published peaks: nothing here is a statement about a device.
fn device() -> RooflineModel {
    RooflineModel::new(3.35e12, 989e12, 0.8, 0.5, 60e-6).expect("valid constants")
}

fn inputs() -> RankInputs {
    RankInputs {
        experts: vec![1, 4, 8, 16, 32],
        target: Target::Budget { budget: Flops(1e21), experts: 4 },
        limits: Limits { max_tokens_per_param: 414.0, max_train_factor: 3.5 },
        lengths: Lengths { input: 1000.0, output: 1000.0 },
        prefill_chunk: 2048.0,
        demand: Demand::Rate(20.0),
        level: ServiceLevel { tpot: Some(Seconds::from_ms(50.0)), ttft: None },
        lifetime: Lifetime::PerTrainingToken(1.0),
        device: ServingDevice {
            memory: MemoryBudget { device: Bytes(80e9), usable_share: 0.9, reserve: Bytes(3.5e9) },
            price: UsdPerHour(1.69),
            replica_sizes: vec![1, 2, 4, 8],
            link: Link { latency: Seconds(5e-6), bytes_per_s: 200e9 },
        },
        training: TrainingPrice {
            peak: FlopsPerSecond(989e12),
            mfu: 0.4,
            price: UsdPerHour(1.69),
            overhead: 0.0,
        },
        weight_bits: 16.0,
        kv_group: 1.0,
        ranges: Ranges {
            mfu: (0.3, 0.5),
            price: (0.8, 1.25),
            zipf: 0.5,
            dense_log_sigma: 0.1,
            overhead_log_sigma: 0.2,
            loss_sigma: 0.004,
        },
        draws: 1000,
        seed: 1,
    }
}

fn provenance() -> Provenance {
    Provenance {
        profile: ProfileUsed {
            origin: "bench".into(),
            device: "roofline".into(),
            source: Source::Roofline,
            dtype: "bf16".into(),
            measured_utc: None,
            cells: None,
            noise_floor_rel: None,
            transfer_error_rel: None,
            read_bytes_per_s: 0.8 * 3.35e12,
            gemm_flops_per_s: 0.5 * 989e12,
        },
        law_id: "ludziejewski2025".into(),
        law_source: "arXiv 2502.05172".into(),
        law_uncertainty: "bench".into(),
        assumptions: Vec::new(),
        warnings: Vec::new(),
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
    let model = device();
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
    let (model, inputs) = (device(), inputs());
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
