//! Everything after the profile: one law evaluation, one latency, one step, one whole ranking.
//!
//! Elements are evaluations, so criterion's rate is evaluations per second. The bars are a whole
//! ranking with 1,000 draws within a second, a law evaluation within 200 ns; for serving, a size over
//! four devices and all layouts within a second, a warm estimate within 5 ms and 100,000 simulated
//! requests within a second.

#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing to report")]

#[path = "../tests/common/mod.rs"]
mod chain;
mod common;
#[path = "../tests/common/serving.rs"]
mod serving;

use std::hint::black_box;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use chain::{Sketch, provenance};
use criterion::{Criterion, Throughput};
use moe_frontier::config::{DType, DeviceSpec, preset};
use moe_frontier::latency::{GemmQuery, LatencyModel, MoeQuery, Operation, Query};
use moe_frontier::law::{self, Scaling};
use moe_frontier::plan::inputs::{Demand, Lifetime, RankInputs, Target};
use moe_frontier::plan::mixture::Member;
use moe_frontier::plan::points::{Setup, predict};
use moe_frontier::plan::rank::rank;
use moe_frontier::plan::size::{
    Limit, Metric, Offer, PlanCurve, SizeInputs, Statistic, Variability, size,
};
use moe_frontier::serving::{
    Arrivals, Deployment, EngineCosts, Layout, Lengths, LoadModel, MemoryBudget, Router,
    ServiceLevel, Spread, StepLoad, Traffic, simulate,
};
use moe_frontier::units::{Flops, Seconds, UsdPerHour};

/// A ranking at a budget and a traffic that every expert count can serve.
fn inputs() -> RankInputs {
    RankInputs {
        target: Target::Budget { budget: Flops(1e21), experts: 4 },
        demand: Demand { rate: Some(20.0), utilisation: 1.0 },
        level: ServiceLevel { tpot: Some(Seconds::from_ms(50.0)), ttft: None },
        lifetime: Lifetime::PerTrainingToken(1.0),
        draws: 1000,
        ..chain::inputs()
    }
}

fn h100() -> DeviceSpec {
    DeviceSpec::load("h100").expect("published")
}

/// Shipped tables of the H100, then its roofline.
fn tables() -> Arc<dyn LatencyModel> {
    serving::shipped(&h100(), "vllm").expect("shipped")
}

fn parts(c: &mut Criterion, law: &Scaling) {
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
    let moe = Query::Moe(MoeQuery {
        hidden: 4096,
        inter: 14336,
        experts: 8,
        top_k: 2,
        gated: true,
        weights: DType::Bf16,
        weight_bits: 16.0,
        tensor_parallel: 1,
        expert_parallel: 1,
        dispatched: false,
        tokens: 60.0,
        rows: 120.0,
        active: 8.0,
        max_rows: 24.0,
    });
    let gemm = Query::Gemm(GemmQuery { m: 60.0, n: 5120, k: 3456, weights: DType::Bf16 });
    for (name, latency) in
        [("roofline", serving::roofline(&h100()).expect("published")), ("shipped tables", tables())]
    {
        for (what, query) in [("routed experts", &moe), ("GEMM", &gemm)] {
            group.bench_function(format!("latency, {name}, {what}"), |b| {
                b.iter(|| latency.answer(black_box(query)).expect("answers"));
            });
        }
        on_h100("mixtral-8x7b", 2, latency.as_ref(), |d| {
            let load = StepLoad {
                sequences: 32.0,
                context: 1100.0,
                prompt_tokens: 0.0,
                prompt_length: 0.0,
            };
            group.bench_function(format!("decode step, {name}"), |b| {
                b.iter(|| d.step(black_box(&load)).expect("prices"));
            });
        });
    }
    group.finish();
}

/// Runs `check` on a preset model over tensor-parallel H100.
fn on_h100(
    model: &str,
    devices: usize,
    latency: &dyn LatencyModel,
    check: impl FnOnce(&Deployment),
) {
    let model = preset::load(model).expect("published").model;
    let costs = EngineCosts::of("vllm");
    let routing = LoadModel::uniform(model.num_experts, model.top_k).expect("sizes");
    check(&Deployment {
        model: &model,
        layout: Layout::tensor(devices),
        latency,
        costs: &costs,
        routing: &routing,
        skewed: None,
        memory: MemoryBudget::of(&h100()),
        domain: 8,
    });
}

fn whole(c: &mut Criterion, law: &Scaling) {
    let laws = [Member { law: law.clone(), weight: 1.0 }];
    let mut group = c.benchmark_group("ranking, 5 expert counts, 1,000 draws");
    group.throughput(Throughput::Elements(1));
    let engine = EngineCosts::of("vllm");
    for (name, latency, costs) in [
        ("round constants", Arc::new(Sketch) as Arc<dyn LatencyModel>, None),
        ("shipped tables", tables(), Some(engine)),
    ] {
        let mut inputs = inputs();
        inputs.device.costs = costs.unwrap_or(inputs.device.costs);
        let origin = |operation: Operation, _: u8| Some(operation.label().to_owned());
        group.bench_function(name, |b| {
            b.iter(|| {
                let latency = Arc::clone(&latency);
                rank(&laws, (latency, &origin), black_box(&inputs), provenance()).expect("feasible")
            });
        });
    }
    group.finish();
}

/// Four devices, every layout of a node, batch limits and replicas: the question of `size`.
fn sizing(model: &str) -> SizeInputs {
    let device = |name| {
        let device = DeviceSpec::load(name).expect("published");
        let costs = EngineCosts::of("vllm").on("vllm", &device);
        Offer { device, price: UsdPerHour(2.0), costs }
    };
    let limit = |metric, most| Limit { metric, statistic: Statistic::P99, most: Seconds(most) };
    SizeInputs {
        model: preset::load(model).expect("published").model,
        devices: ["h100", "h200", "a100", "b200"].map(device).to_vec(),
        engine: "vllm".into(),
        routing: {
            let model = preset::load(model).expect("published").model;
            Arc::new(LoadModel::uniform(model.num_experts, model.top_k).expect("sizes"))
        },
        lengths: Lengths { input: 1000.0, output: 200.0 },
        spread: Spread::LogNormal(0.5),
        trace: None,
        rate: 20.0,
        peak_over_mean: 1.2,
        burstiness: 1.0,
        router: Router::Random,
        limits: vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.06)],
        spare: 1,
        max_gpus: 1024,
        requests: 20_000,
        seed: 1,
    }
}

fn serving(c: &mut Criterion) {
    let mut group = c.benchmark_group("serving, shipped tables");
    let built: Mutex<HashMap<String, Arc<dyn LatencyModel>>> = Mutex::default();
    let latency = |device: &DeviceSpec, engine: &str| {
        let mut built = built.lock().expect("not poisoned");
        let known = built.entry(device.name.clone());
        Ok(Arc::clone(known.or_insert_with(|| serving::shipped(device, engine).expect("shipped"))))
    };
    for model in ["mixtral-8x7b", "gpt-oss-120b", "deepseek-v3"] {
        let inputs = sizing(model);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("size, 4 devices, {model}"), |b| {
            b.iter(|| size(black_box(&inputs), &latency).expect("feasible"));
        });
    }
    let inputs = sizing("mixtral-8x7b");
    let costs = EngineCosts::of("vllm");
    let (model, layout, lengths) = (inputs.model, Layout::tensor(2), inputs.lengths);
    let kernels = tables();
    let traffic = Traffic::Closed { concurrency: 32.0, requests_per_client: 10.0 };
    let setup = Setup { model, device: h100(), layout, lengths, traffic, pools: None };
    group.bench_function("one estimate, closed loop", |b| {
        b.iter(|| predict(black_box(&setup), &costs, kernels.as_ref()).expect("predicts"));
    });
    let open = Setup { traffic: Traffic::Open(5.0), ..setup };
    group.bench_function("one estimate, open loop", |b| {
        b.iter(|| predict(black_box(&open), &costs, kernels.as_ref()).expect("predicts"));
    });
    let variability = Variability::of(1.0, Spread::LogNormal(0.5));
    let mut curve = None;
    on_h100("mixtral-8x7b", 2, kernels.as_ref(), |d| {
        curve = PlanCurve::new(d, &lengths, variability).ok();
    });
    let curve = curve.expect("fits");
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
    parts(&mut criterion, &law);
    whole(&mut criterion, &law);
    serving(&mut criterion);
    criterion.final_summary();
}
