//! Everything after the profile: one law evaluation, one latency, one step, one whole ranking.
//!
//! Elements are evaluations, so criterion's rate is evaluations per second. The bars are a whole
//! ranking with 1,000 draws within a second, a law evaluation within 200 ns; for serving, a size over
//! four devices and all layouts within a second, a warm estimate within 5 ms and 100,000 simulated
//! requests within a second. Serving is timed on the recorded kernel tables where they are found
//! (`MOE_FRONTIER_DATA`), which cost most to look up, else on rooflines; the group's name says which.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

#[path = "../tests/common/mod.rs"]
mod chain;
mod common;
#[path = "../tests/common/serving.rs"]
mod serving;

use std::hint::black_box;

use chain::{h100, provenance};
use criterion::{Criterion, Throughput};
use moe_frontier::config::{DeviceSpec, preset};
use moe_frontier::latency::latency::LatencyModel;
use moe_frontier::latency::{KernelTimes, LayerQuery};
use moe_frontier::law::{self, ExpertScaling};
use moe_frontier::plan::candidates::geometry;
use moe_frontier::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use moe_frontier::plan::points::{Setup, predict_with};
use moe_frontier::plan::rank::rank;
use moe_frontier::plan::size::{
    Limit, Metric, PlanCurve, SizeInputs, Statistic, Variability, size,
};
use moe_frontier::serving::{
    Arrivals, Deployment, EngineCosts, Layout, Lengths, LoadModel, Replica, ServiceLevel, Spread,
    Traffic, simulate,
};
use moe_frontier::units::{Bytes, Flops, Seconds, UsdPerHour};

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

/// Four devices, every layout of a node, batch limits and replicas: the question of `size`.
fn sizing(model: &str) -> SizeInputs {
    let device = |name| (DeviceSpec::load(name).expect("published"), UsdPerHour(2.0));
    let limit = |metric, most| Limit { metric, statistic: Statistic::P99, most: Seconds(most) };
    SizeInputs {
        model: preset::load(model).expect("published").model,
        devices: ["h100", "h200", "a100", "b200"].map(device).to_vec(),
        engine: "vllm".into(),
        costs: EngineCosts::of("vllm"),
        lengths: Lengths { input: 1000.0, output: 200.0 },
        spread: Spread::LogNormal(0.5),
        trace: None,
        rate: 20.0,
        peak_over_mean: 1.2,
        burstiness: 1.0,
        limits: vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.06)],
        spare: 1,
        max_gpus: 1024,
        requests: 20_000,
        seed: 1,
    }
}

fn serving(c: &mut Criterion) {
    let tables = serving::data().map(|folder| serving::tables(&folder));
    let times = |device: &DeviceSpec| {
        KernelTimes::new(tables.as_ref(), device, "vllm").expect("the tables' device is known")
    };
    let kind = if tables.is_some() { "kernel tables" } else { "rooflines" };
    let mut group = c.benchmark_group(format!("serving, {kind}"));
    for model in ["mixtral-8x7b", "gpt-oss-120b", "deepseek-v3"] {
        let inputs = sizing(model);
        let all: Vec<_> = inputs.devices.iter().map(|(d, _)| (d.name.clone(), times(d))).collect();
        let of = |device: &DeviceSpec| {
            Ok(&all.iter().find(|(name, _)| *name == device.name).expect("one of the four").1)
        };
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("size, 4 devices, {model}"), |b| {
            b.iter(|| size(black_box(&inputs), &of).expect("feasible"));
        });
    }
    let inputs = sizing("mixtral-8x7b");
    let device = DeviceSpec::load("h100").expect("published");
    let (model, layout, lengths) = (inputs.model, Layout::tensor(2), inputs.lengths);
    let kernels = times(&device);
    let traffic = Traffic::Closed { concurrency: 32.0, requests_per_client: 10.0 };
    let setup = Setup { model: model.clone(), device, layout, lengths, traffic };
    group.bench_function("one estimate, closed loop", |b| {
        b.iter(|| predict_with(black_box(&setup), &inputs.costs, &kernels).expect("predicts"));
    });
    let open = Setup { traffic: Traffic::Open(5.0), ..setup };
    group.bench_function("one estimate, open loop", |b| {
        b.iter(|| predict_with(black_box(&open), &inputs.costs, &kernels).expect("predicts"));
    });
    let deployment = Deployment { model: &model, layout, times: &kernels, costs: &inputs.costs };
    let variability = Variability::of(1.0, Spread::LogNormal(0.5));
    let curve = PlanCurve::new(&deployment, Bytes(70e9), &lengths, variability).expect("fits");
    let (speed, requests) = (curve.speed(curve.cap()), 100_000);
    for (name, load) in [("half", 0.5), ("95 %", 0.95)] {
        let rate = load * curve.capacity(&[], curve.cap());
        let spread = Spread::LogNormal(0.5);
        let drawn = Arrivals::Drawn { rate, burstiness: 1.0, lengths, spread, requests, seed: 1 };
        group.throughput(Throughput::Elements(requests as u64));
        group.bench_function(format!("100,000 simulated requests, {name} load"), |b| {
            b.iter(|| simulate(black_box(&speed), &drawn).expect("runs"));
        });
    }
    group.finish();
}

fn main() {
    let law = law::load_scaling("ludziejewski2025").expect("published");
    let mut criterion = common::settings();
    parts(&mut criterion, law.as_ref());
    whole(&mut criterion, law.as_ref());
    serving(&mut criterion);
    criterion.final_summary();
}
