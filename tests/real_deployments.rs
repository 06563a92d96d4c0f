//! `size` against servers that ran: measured rate and latency in, devices out.
//!
//! Of each group of open rows (model, device, engine) the row with the most requests per second and
//! device is asked for: its rate, with its mean times as limits. Constants are those of the engine, which
//! were fitted to all open rows, these among them: the sizes rest on constants that know the rows. A step is a doubling: replicas and ranks come in powers of two.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "common/serving.rs"]
mod serving;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use moe_frontier::calibrate::{Group, Prior};
use moe_frontier::config::{DeviceSpec, preset};
use moe_frontier::latency::LatencyModel;
use moe_frontier::plan::points::{self, Point, typical_load};
use moe_frontier::plan::size::{Limit, Metric, Offer, SizeInputs, Statistic, size};
use moe_frontier::serving::{
    Deployment, EngineCosts, Layout, Lengths, MemoryBudget, Router, Spread, StepLoad, Traffic,
};
use moe_frontier::units::UsdPerHour;
use serving::shipped;

/// Constants of an engine, without those of any group.
fn costs(engine: &str, device: &DeviceSpec) -> EngineCosts {
    let prior = Prior { groups: Vec::new(), ..Prior::shipped().unwrap().clone() };
    let group = Group { engine: engine.into(), model: String::new(), gpu: String::new() };
    prior.of(&group).constants.costs(&EngineCosts::of(engine)).on(engine, device)
}

/// Requests per second and devices of an aggregated closed loop that counts.
fn measured(point: &Point) -> Option<(f64, f64)> {
    let setup = point.setup.as_ref().ok().filter(|s| s.pools.is_none())?;
    let (tpot, ttft) = (point.measured.tpot?, point.measured.ttft?);
    let Traffic::Closed { concurrency, .. } = setup.traffic else { return None };
    point.excluded.is_none().then_some(())?;
    let rate = concurrency / (ttft.0 + setup.lengths.decodes() * tpot.0);
    Some((rate, setup.layout.devices() as f64))
}

fn inputs(point: &Point, rate: f64) -> SizeInputs {
    let setup = point.setup.as_ref().unwrap();
    let mean = |metric, most| Limit { metric, statistic: Statistic::Mean, most };
    let costs = costs(&point.engine, &setup.device);
    SizeInputs {
        model: setup.model.clone(),
        devices: vec![Offer { device: setup.device.clone(), price: UsdPerHour(2.0), costs }],
        engine: point.engine.clone(),
        routing: typical_load(setup.model.num_experts, setup.model.top_k).unwrap(),
        lengths: setup.lengths,
        spread: Spread::Fixed,
        trace: None,
        rate,
        peak_over_mean: 1.0,
        burstiness: 1.0,
        router: Router::Random,
        limits: vec![
            mean(Metric::Tpot, point.measured.tpot.unwrap()),
            mean(Metric::Ttft, point.measured.ttft.unwrap()),
        ],
        spare: 0,
        max_gpus: 64,
        requests: 2_000,
        seed: 1,
    }
}

#[test]
fn measured_rates_and_latencies_take_about_the_measured_devices() {
    let mut best: BTreeMap<Group, (f64, f64, Point)> = BTreeMap::new();
    for file in ["published_rows.csv", "silicon_rows.csv"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/points").join(file);
        for point in points::read(&path).unwrap() {
            let (Some(group), Some((rate, gpus))) = (Group::of(&point), measured(&point)) else {
                continue;
            };
            let each = |known: &(f64, f64, Point)| known.0 / known.1;
            if best.get(&group).is_none_or(|known| rate / gpus > each(known)) {
                best.insert(group, (rate, gpus, point));
            }
        }
    }
    let built: Mutex<HashMap<(String, String), Arc<dyn LatencyModel>>> = Mutex::default();
    let latency = |device: &DeviceSpec, engine: &str| {
        let key = (device.name.clone(), engine.to_owned());
        let mut built = built.lock().unwrap();
        Ok(Arc::clone(built.entry(key).or_insert_with(|| shipped(device, engine).unwrap())))
    };
    let mut within = 0;
    for (group, (rate, gpus, point)) in &best {
        let answer = size(&inputs(point, *rate), &latency);
        let found = answer.as_ref().ok().map(|a| a.best.gpus() as f64);
        let near = found.is_some_and(|n| (0.5..=2.0).contains(&(n / gpus)));
        within += usize::from(near);
        let why = answer.err().map_or_else(String::new, |e| e.to_string());
        println!("{group}: {gpus} measured, {found:?} found {why}");
    }
    println!("{within} of {} within one step", best.len());
    assert!(best.len() >= 12 && within as f64 >= 0.8 * best.len() as f64, "{within}");
}

/// DeepSeek's production day of 27 to 28 February 2025 (open-infra-index, day 6): H800, prompts on nodes
/// of EP32 with 32 redundant experts, decoding on EP144 with 32, two halves of a batch overlapping;
/// 608 G prompt tokens, 56.3 % of them in the cache, 168 G output tokens at 20 to 22 tokens a second, 4,989
/// tokens held a token in the mean; a node of eight read 73.7 k prompt tokens a second, those in the
/// cache included, or wrote 14.8 k.
#[test]
fn deepseeks_production_day_takes_about_its_nodes() {
    const HIT: f64 = 0.563;
    const NODE: f64 = 8.0;
    let device = DeviceSpec::load("h800").unwrap();
    let model = preset::load("deepseek-v3").unwrap().model;
    let latency = shipped(&device, "sglang").unwrap();
    let routing = typical_load(model.num_experts, model.top_k).unwrap();
    let costs = EngineCosts {
        redundant_experts: 32,
        overlap: true,
        prefix_hit: HIT,
        ..costs("sglang", &device)
    };
    // Prompts and answers in the day's proportion that hold 4,989 tokens in the mean.
    let output = 4989.0 / (608.0 / 168.0 + 0.5);
    let lengths = Lengths { input: 4989.0 - 0.5 * output, output };
    let on = |ranks| Deployment {
        model: &model,
        layout: Layout::data_expert(ranks),
        latency: latency.as_ref(),
        costs: &costs,
        routing: &routing,
        skewed: None,
        memory: MemoryBudget::of(&device),
        domain: device.scale_up_devices,
    };
    let decode = on(144);
    decode.validate().unwrap();
    let cap = decode.batch_cap(&lengths).unwrap();
    let tpot = |batch: f64| decode.decode_step(batch, &lengths).unwrap().total().0;
    let asked = 1.0 / 21.0;
    let (mut low, mut high) = (1.0, cap);
    while high - low > 1.0 {
        let middle = f64::midpoint(low, high);
        if tpot(middle) < asked { low = middle } else { high = middle }
    }
    let written = low / tpot(low) * NODE / 144.0;
    println!("{:?}", decode.decode_step(low, &lengths).unwrap());
    println!(
        "batch {low} of at most {cap}, {:.1} ms, {written:.0} output tokens/s a node",
        1e3 * tpot(low)
    );
    let prefill = on(32);
    prefill.validate().unwrap();
    let tokens = costs.chunk_tokens * 32.0;
    let load = StepLoad {
        sequences: 0.0,
        context: lengths.input,
        prompt_tokens: tokens,
        prompt_length: lengths.input,
    };
    let step = prefill.step(&load).unwrap();
    let read = tokens / (1.0 - HIT) / step.total().0 * NODE / 32.0;
    println!("{step:?}\n{read:.0} prompt tokens/s a node");
    // The aim is 25 %. The day's engine had kernels of its own (FlashMLA, DeepGEMM behind DeepEP); those of
    // the tables take 1.6 times the former's time, and small products twice their floor.
    assert!((0.3..=1.25).contains(&(written / 14_800.0)), "{written}");
    assert!((0.65..=1.25).contains(&(read / 73_700.0)), "{read}");
}
