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
use moe_frontier::config::DeviceSpec;
use moe_frontier::latency::LatencyModel;
use moe_frontier::plan::points::{self, Point, typical_load};
use moe_frontier::plan::size::{Limit, Metric, Offer, SizeInputs, Statistic, size};
use moe_frontier::serving::{EngineCosts, Router, Spread, Traffic};
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
