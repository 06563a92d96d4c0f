//! Deployment sizing: devices, layout, batch limit and replicas for a request rate under a service level.
//!
//! Every valid layout on every device is priced by the birth-death chain of its engine, which gives
//! a first number of replicas. The fewest replicas that keep all limits at the peak rate are then
//! searched on the simulation of the whole fleet, from the cheapest plan on. Only what the simulation
//! established is an answer or an alternative.

mod candidate;
mod choice;
mod curve;
mod mixture;
mod nearest;
mod reach;
mod replicas;
mod search;
mod settle;
mod steps;
mod windows;

pub use choice::{Choice, Failure};
pub use curve::{Load, PlanCurve};
pub use reach::{ModelError, Reach, reach};
pub use replicas::Miss;
pub use search::{SizeAnswer, size};
pub use steps::Variability;
pub use windows::{Window, windows};

use std::sync::Arc;

use serde::Serialize;

use crate::config::{DeviceSpec, MoeModel};
use crate::plan::request_trace::RequestTrace;
use crate::serving::{EngineCosts, Estimate, Lengths, LoadModel, Router, Simulated, Spread};
use crate::units::{Seconds, UsdPerHour};
use crate::{Error, Result};

/// What a limit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Arrival to first token, queue included.
    Ttft,
    /// (End-to-end - TTFT) / (outputs - 1): the first token excluded.
    Tpot,
}

/// Which value of the distribution over requests is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Mean.
    Mean,
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
}

impl Statistic {
    /// Every statistic.
    pub const ALL: [Self; 4] = [Self::Mean, Self::P50, Self::P90, Self::P99];

    /// The share of requests below it; `None` for the mean.
    pub const fn share(self) -> Option<f64> {
        match self {
            Self::Mean => None,
            Self::P50 => Some(0.5),
            Self::P90 => Some(0.9),
            Self::P99 => Some(0.99),
        }
    }

    /// Its name in flags.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
        }
    }
}

/// One promise to the clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// What is limited.
    pub metric: Metric,
    /// Which value of it.
    pub statistic: Statistic,
    /// The most it may be, in seconds.
    pub most: Seconds,
}

impl Limit {
    /// The simulated value that it is on, in seconds.
    pub fn simulated(&self, simulated: &Simulated) -> Estimate {
        let of = match self.metric {
            Metric::Ttft => &simulated.ttft_s,
            Metric::Tpot => &simulated.tpot_s,
        };
        match self.statistic {
            Statistic::Mean => of.mean,
            Statistic::P50 => of.p50,
            Statistic::P90 => of.p90,
            Statistic::P99 => of.p99,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metric = match self.metric {
            Metric::Ttft => "ttft",
            Metric::Tpot => "tpot",
        };
        write!(f, "{metric}_{}", self.statistic.label())
    }
}

/// A device to choose from.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The device.
    pub device: DeviceSpec,
    /// Its price.
    pub price: UsdPerHour,
    /// What the engine adds for the model on it.
    pub costs: EngineCosts,
}

/// Everything that a size depends on, resolved.
#[derive(Clone, Debug)]
pub struct SizeInputs {
    /// The model in the formats it is served in.
    pub model: MoeModel,
    /// Devices to choose from.
    pub devices: Vec<Offer>,
    /// Engine whose kernels and constants are used.
    pub engine: String,
    /// Load of the experts.
    pub routing: Arc<LoadModel>,
    /// Mean lengths.
    pub lengths: Lengths,
    /// How lengths vary, for the simulation.
    pub spread: Spread,
    /// Recorded requests to simulate instead of drawn ones.
    pub trace: Option<RequestTrace>,
    /// Mean requests per second.
    pub rate: f64,
    /// Peak over mean rate: capacity is for the peak, dollars are over the mean.
    pub peak_over_mean: f64,
    /// Shape of the gaps between arrivals: 1 is Poisson, below is burstier.
    pub burstiness: f64,
    /// How requests find a replica.
    pub router: Router,
    /// Promises.
    pub limits: Vec<Limit>,
    /// Replicas beyond those needed (1 is N+1).
    pub spare: usize,
    /// Most devices of a deployment.
    pub max_gpus: usize,
    /// Requests of each simulation.
    pub requests: usize,
    /// Seed of the simulations.
    pub seed: u64,
}

impl SizeInputs {
    /// The offer of a device by its name.
    ///
    /// # Errors
    /// [`Error::Usage`] for a device that is not among them.
    pub fn offer(&self, device: &str) -> Result<&Offer> {
        let found = self.devices.iter().find(|offer| offer.device.name == device);
        found.ok_or_else(|| Error::usage("--device", format!("{device} is not among the offers")))
    }

    /// Requests per second that the deployment is sized for.
    pub fn peak(&self) -> f64 {
        self.rate * self.peak_over_mean
    }

    /// What a single request is held to, in seconds to first token and per output token: of the
    /// limits on each the one on the highest percentile, or on the mean where no other is; infinite
    /// where there is none.
    fn thresholds(&self) -> (f64, f64) {
        let of = |metric: Metric| {
            let own = self.limits.iter().filter(|l| l.metric == metric);
            let last = own.max_by_key(|l| Statistic::ALL.iter().position(|s| *s == l.statistic));
            last.map_or(f64::INFINITY, |l| l.most.0)
        };
        (of(Metric::Ttft), of(Metric::Tpot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;
    use crate::latency::{LatencyModel, RooflineModel};
    use crate::units::Tokens;

    fn inputs(rate: f64) -> SizeInputs {
        let device = DeviceSpec::load("h100").unwrap();
        let price = device.price().unwrap().0;
        let costs = EngineCosts::of("vllm").on("vllm", &device);
        let limit =
            |metric, seconds| Limit { metric, statistic: Statistic::P99, most: Seconds(seconds) };
        SizeInputs {
            model: preset::load("mixtral-8x7b").unwrap().model,
            devices: vec![Offer { device, price, costs }],
            engine: "vllm".into(),
            routing: Arc::new(LoadModel::uniform(8, 2).unwrap()),
            lengths: Lengths { input: 1000.0, output: 200.0 },
            spread: Spread::Geometric,
            trace: None,
            rate,
            peak_over_mean: 1.2,
            burstiness: 1.0,
            router: Router::Random,
            limits: vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.06)],
            spare: 1,
            max_gpus: 512,
            requests: 4_000,
            seed: 1,
        }
    }

    fn run(inputs: &SizeInputs) -> Result<SizeAnswer> {
        size(inputs, &|device, _| {
            Ok(Arc::new(RooflineModel::published(device)?) as Arc<dyn LatencyModel>)
        })
    }

    #[test]
    fn a_sized_deployment_keeps_its_limits_in_the_simulation_and_has_its_spare() {
        let inputs = inputs(20.0);
        let answer = run(&inputs).unwrap();
        let best = &answer.best;
        for choice in std::iter::once(best).chain(&answer.others) {
            let kept = |l: &Limit| l.simulated(&choice.simulated).hi <= l.most.0;
            assert!(inputs.limits.iter().all(kept), "{}", choice.name());
            assert!(choice.total_price() >= best.total_price());
            assert!(choice.goodput >= 0.98 && choice.goodput <= 1.0);
        }
        assert!(best.replicas >= 2 && !answer.others.is_empty());
        let utilisation = best.utilisation(&inputs);
        assert!(utilisation > 0.0 && utilisation <= 1.0 / 1.2 + 1e-3, "{utilisation}");
        // What a request costs does not depend on how it is split.
        let (input, output) = best.token_prices(&inputs);
        let per_request = best.total_price() * Seconds(1.0) / inputs.rate;
        let split = input * Tokens(1000.0) + output * Tokens(200.0);
        assert!((split / per_request - 1.0).abs() < 1e-9);
    }

    #[test]
    fn more_traffic_never_costs_less_and_tighter_limits_never_do() {
        let cost = |rate: f64, tpot: f64| {
            let mut inputs = inputs(rate);
            inputs.limits[1].most = Seconds(tpot);
            run(&inputs).unwrap().best.total_price()
        };
        assert!(cost(5.0, 0.06) <= cost(20.0, 0.06) && cost(20.0, 0.06) < cost(100.0, 0.06));
        assert!(cost(20.0, 0.06) <= cost(20.0, 0.02));
    }

    #[test]
    fn an_impossible_level_names_the_nearest_one() {
        let mut inputs = inputs(20.0);
        inputs.limits[1].most = Seconds(0.0005);
        let error = run(&inputs).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("tpot_p99"), "{error}");
        inputs.limits[1].most = Seconds(0.06);
        inputs.max_gpus = 2;
        let error = run(&inputs).unwrap_err();
        assert!(error.exit_code() == 5 && error.to_string().contains("--max-gpus"), "{error}");
        inputs.max_gpus = 1;
        let error = run(&inputs).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    #[test]
    fn the_nearest_level_is_one_that_can_be_had() {
        let mut inputs = inputs(20.0);
        inputs.max_gpus = 8;
        inputs.limits[1].most = Seconds(0.0005);
        let error = run(&inputs).unwrap_err().to_string();
        assert!(error.contains("nearest feasible service level: ttft_p99 "), "{error}");
        assert!(error.contains("; binding: tpot_p99: "), "{error}");
        let level = |name: &str| -> f64 {
            let after = error.split(&format!("{name} ")).nth(1).unwrap();
            after.split(' ').next().unwrap().parse().unwrap()
        };
        let (ttft, tpot) = (level("ttft_p99"), level("tpot_p99"));
        for (limit, ms) in inputs.limits.iter_mut().zip([ttft, tpot]) {
            limit.most = Seconds::from_ms(ms);
        }
        assert!(run(&inputs).is_ok(), "{error}");
    }

    #[test]
    fn a_slower_engine_takes_more_devices_and_a_faster_one_fewer() {
        let inputs = inputs(60.0);
        let best = run(&inputs).unwrap().best;
        let exact = reach(&inputs, &best, &ModelError::default()).unwrap();
        assert_eq!((exact.least, exact.most), (best.gpus(), Some(best.gpus())));
        let wide = reach(&inputs, &best, &ModelError { tpot: 0.4, ttft: 0.4 }).unwrap();
        assert!(wide.least < best.gpus() && wide.most.unwrap() > best.gpus(), "{wide:?}");
        let hopeless = reach(&inputs, &best, &ModelError { tpot: 6.0, ttft: 6.0 }).unwrap();
        assert_eq!(hopeless.most, None);
    }

    #[test]
    fn a_limit_that_does_not_bind_changes_nothing() {
        let mut inputs = inputs(20.0);
        let before = run(&inputs).unwrap();
        for (metric, statistic) in [(Metric::Ttft, Statistic::Mean), (Metric::Tpot, Statistic::P50)]
        {
            inputs.limits.push(Limit { metric, statistic, most: Seconds(1e4) });
            let after = run(&inputs).unwrap();
            assert_eq!(after.best.name(), before.best.name());
            assert_eq!(after.best.replicas, before.best.replicas);
            assert_eq!(
                (after.best.max_batch, &after.binding),
                (before.best.max_batch, &before.binding)
            );
            assert_eq!(after.best.simulated, before.best.simulated);
        }
    }

    #[test]
    fn a_router_that_knows_the_load_needs_no_more_replicas() {
        let mut inputs = inputs(100.0);
        inputs.requests = 2_000;
        let random = run(&inputs).unwrap().best.gpus();
        inputs.router = Router::LeastLoaded;
        let loaded = run(&inputs).unwrap().best.gpus();
        assert!(loaded <= random, "{loaded} {random}");
    }
}
