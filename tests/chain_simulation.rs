//! The analytic chain that sizes deployments against the simulation of the same engine.
//!
//! Outputs are exponential, for which the chain is derived; other lengths enter the chain through
//! the wait for a place alone, and there the simulation decides.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use moe_frontier::config::{DeviceSpec, preset};
use moe_frontier::latency::RooflineModel;
use moe_frontier::plan::size::{Load, PlanCurve, Variability};
use moe_frontier::serving::{
    Arrivals, Deployment, EngineCosts, Estimate, Layout, Lengths, LoadModel, MemoryBudget,
    Simulated, Spread, simulate,
};

/// Loads relative to what the engine can carry, and requests: waiting settles slowly near the top.
const LOADS: [(f64, usize); 7] = [
    (0.1, 100_000),
    (0.3, 100_000),
    (0.5, 100_000),
    (0.7, 100_000),
    (0.8, 200_000),
    (0.9, 400_000),
    (0.95, 1_200_000),
];

/// Rounding up to whole tokens adds half of one.
const ROUNDING: f64 = 0.5;

/// Runs chain and simulation of one engine over all loads.
fn over_loads(
    name: &str,
    lengths: Lengths,
    cap: usize,
    spread: Spread,
    check: impl Fn(f64, &Load, &Simulated),
) {
    let device = DeviceSpec::load("h100").unwrap();
    let latency = RooflineModel::published(&device).unwrap();
    let model = preset::load(name).unwrap().model;
    let (layout, costs) = (Layout::tensor(2), EngineCosts::of("vllm"));
    let routing = LoadModel::uniform(model.num_experts, model.top_k).unwrap();
    let deployment = Deployment {
        model: &model,
        layout,
        latency: &latency,
        costs: &costs,
        routing: &routing,
        skewed: None,
        memory: MemoryBudget::of(&device),
        domain: device.scale_up_devices,
    };
    let rounded = match spread {
        Spread::Geometric => Lengths { output: lengths.output + ROUNDING, ..lengths },
        _ => lengths,
    };
    let variability = Variability::of(1.0, spread);
    let curve = PlanCurve::new(&deployment, &rounded, variability).unwrap();
    assert!(curve.cap() >= cap);
    let capacity = curve.capacity(&[], cap);
    for (load, requests) in LOADS {
        let rate = load * capacity;
        let chain = curve.at(rate, cap).unwrap();
        let drawn = Arrivals::Drawn { rate, burstiness: 1.0, lengths, spread, requests, seed: 3 };
        check(load, &chain, &simulate(&curve.speed(cap), &drawn).unwrap());
    }
}

/// Relative difference.
fn off(chain: f64, simulated: f64) -> f64 {
    chain / simulated - 1.0
}

/// Within a share of the simulation, or within the simulation's own interval.
fn agrees(chain: f64, simulated: &Estimate, share: f64) -> bool {
    off(chain, simulated.value).abs() <= share || (simulated.lo..=simulated.hi).contains(&chain)
}

/// Means within 3 %, the 99th percentile of the time to first token within 10 %.
fn means_and_tails_agree(name: &str, lengths: Lengths, cap: usize) {
    over_loads(name, lengths, cap, Spread::Geometric, |load, chain, simulated| {
        let decoding = lengths.output + ROUNDING - 1.0;
        let whole = off(chain.ttft[0].0 + decoding * chain.tpot[0].0, simulated.e2e_s.mean.value);
        let batch = off(chain.mean_batch, simulated.mean_running);
        let p99 = off(chain.ttft[3].0, simulated.ttft_s.p99.value);
        eprintln!(
            "{name} {cap} load {load}: end to end {whole:+.4}, batch {batch:+.4}, ttft p99 {p99:+.4}"
        );
        assert!(whole.abs() <= 0.03, "{name} load {load}: end to end {whole:+.4}");
        assert!(batch.abs() <= 0.03, "{name} load {load}: batch {batch:+.4}");
        let p99_agrees = agrees(chain.ttft[3].0, &simulated.ttft_s.p99, 0.10);
        assert!(p99_agrees, "{name} load {load}: ttft p99 {p99:+.4}");
    });
}

#[test]
fn short_prompts_and_long_outputs_agree_up_to_high_loads() {
    means_and_tails_agree("mixtral-8x7b", Lengths { input: 200.0, output: 1000.0 }, 64);
}

#[test]
fn prompts_that_take_a_fifth_of_the_time_agree_up_to_high_loads() {
    means_and_tails_agree("mixtral-8x7b", Lengths { input: 1000.0, output: 200.0 }, 64);
}

#[test]
fn a_model_of_many_small_experts_agrees_up_to_high_loads() {
    means_and_tails_agree("gpt-oss-120b", Lengths { input: 1000.0, output: 1000.0 }, 128);
}

#[test]
fn time_per_token_of_equal_requests_agrees_in_mean_and_tail() {
    let lengths = Lengths { input: 1000.0, output: 200.0 };
    over_loads("mixtral-8x7b", lengths, 64, Spread::Fixed, |load, chain, simulated| {
        let mean = off(chain.tpot[0].0, simulated.tpot_s.mean.value);
        let p99 = off(chain.tpot[3].0, simulated.tpot_s.p99.value);
        println!("load {load}: tpot mean {mean:+.4}, p99 {p99:+.4}");
        assert!(mean.abs() <= 0.03, "load {load}: mean {mean:+.4}");
        assert!(p99.abs() <= 0.10, "load {load}: p99 {p99:+.4}");
    });
}
