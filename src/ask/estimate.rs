//! `estimate`: what one deployment is predicted to do.

use std::path::PathBuf;
use std::sync::Arc;

use super::calibrated::{calibrations, chosen};
use super::check;
use super::server::ServerOptions;
use super::sources::{DevicePrice, SourceOptions, Sources, price};
use crate::calibrate::Calibration;
use crate::calibrate::predict::{Chosen, Halves};
use crate::config::{DeviceSpec, Loaded, load_model};
use crate::latency::Stack;
use crate::plan::points::{Prediction, Setup, deployment, set_precision};
use crate::serving::{
    EngineCosts, Layout, Lengths, LoadModel, MemoryBudget, Served, Traffic, usd_per_million_output,
    usd_per_million_split,
};
use crate::units::{Bytes, TokensPerSecond, UsdPerHour};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// More devices than any deployment has.
const MOST_DEVICES: usize = 10_000_000;

/// Options of [`estimate`](crate::estimate()), as the flags of `moe-frontier estimate`.
///
/// ```
/// use moe_frontier::EstimateOptions;
/// use moe_frontier::serving::Traffic;
///
/// let options = EstimateOptions {
///     device: Some("h100".into()),
///     tp: 2,
///     ..EstimateOptions::of("mixtral-8x7b", Traffic::Open(4.0))
/// };
/// assert_eq!((options.ep, options.dp), (1, 1));
/// ```
#[derive(Clone)]
pub struct EstimateOptions {
    /// Model: a preset, a config.json, a folder or a Hub id.
    pub model: String,
    /// Device (preset or TOML file); by default the one of the first source.
    pub device: Option<String>,
    /// Tensor-parallel ranks of the attention.
    pub tp: usize,
    /// Expert-parallel ranks.
    pub ep: usize,
    /// Attention data-parallel groups.
    pub dp: usize,
    /// Format of the weights, such as `fp8`; by default as published.
    pub weights: Option<String>,
    /// Where latencies come from.
    pub source: SourceOptions,
    /// How the server is run.
    pub server: ServerOptions,
    /// Routing of tokens over experts.
    pub routing: RoutingKind,
    /// The load.
    pub traffic: Traffic,
    /// Prompt tokens per request.
    pub isl: f64,
    /// Output tokens per request.
    pub osl: f64,
    /// Price of a device; by default its first published one.
    pub price: Option<DevicePrice>,
    /// Own runs: a CSV of measured points, or what `calibrate --out` wrote.
    pub calibrate: Option<PathBuf>,
}

impl EstimateOptions {
    /// The defaults for a model under a load, on one device.
    pub fn of(model: &str, traffic: Traffic) -> Self {
        Self {
            model: model.into(),
            device: None,
            tp: 1,
            ep: 1,
            dp: 1,
            weights: None,
            source: SourceOptions::default(),
            server: ServerOptions::default(),
            routing: RoutingKind::TYPICAL,
            traffic,
            isl: 1000.0,
            osl: 200.0,
            price: None,
            calibrate: None,
        }
    }

    fn check(&self) -> Result<()> {
        let load = match self.traffic {
            Traffic::Open(rate) => ("--rate", Some(rate)),
            Traffic::Closed { concurrency, .. } | Traffic::Burst(concurrency) => {
                ("--concurrency", Some(concurrency))
            }
            Traffic::Offline => ("--concurrency", None),
        };
        check::positive(&[load, ("--isl", Some(self.isl)), ("--osl", Some(self.osl))])?;
        if self.isl < 1.0 || self.osl < 1.0 {
            return Err(Error::usage("--isl and --osl", "a request has one token or more of each"));
        }
        if let Some(DevicePrice::PerHour(price)) = self.price {
            check::positive(&[("--price", Some(price.0))])?;
        }
        if self.tp == 0 || self.ep == 0 || self.dp == 0 {
            return Err(Error::usage(
                "--tp, --ep and --dp",
                "a layout has one rank or more of each",
            ));
        }
        Ok(())
    }

    fn setup(&self, sources: &Sources) -> Result<(Setup, Vec<String>)> {
        let Loaded { mut model, assumed, .. } = load_model(&self.model)?;
        let device = match &self.device {
            Some(name) => DeviceSpec::load(name)?,
            None => sources
                .device()?
                .ok_or_else(|| Error::usage("--device", "is needed (or --points FILE)"))?,
        };
        if let Some(weights) = &self.weights {
            set_precision(&mut model, &weights.to_lowercase())
                .map_err(|reason| Error::usage("--weights", reason))?;
        }
        let ranks = self
            .tp
            .checked_mul(self.dp)
            .filter(|ranks| *ranks <= MOST_DEVICES && self.ep <= MOST_DEVICES);
        let Some(ranks) = ranks else {
            let reason = format!("--tp x --dp and --ep are at most {MOST_DEVICES} devices");
            return Err(Error::usage("--tp", reason));
        };
        if !ranks.is_multiple_of(self.ep) {
            let reason = format!("{} does not divide the {ranks} devices of --tp x --dp", self.ep);
            return Err(Error::usage("--ep", reason));
        }
        let layout = Layout {
            attention_tp: self.tp,
            attention_dp: self.dp,
            moe_tp: ranks / self.ep,
            moe_ep: self.ep,
        };
        let lengths = Lengths { input: self.isl, output: self.osl };
        Ok((Setup { model, device, layout, lengths, traffic: self.traffic, pools: None }, assumed))
    }
}

/// Dollars per million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitUsd {
    /// Per million prompt tokens, by the time that prefill takes.
    pub input: f64,
    /// Per million output tokens, by the time that decoding takes.
    pub output: f64,
    /// Per million output tokens where these carry everything.
    pub all_on_output: f64,
}

/// What a deployment is predicted to do.
pub struct Estimated {
    /// Model, device, layout, lengths and load.
    pub setup: Setup,
    /// Times, rates and the step that they come from.
    pub served: Served,
    /// Half widths of the 95 % intervals of the logarithms of TPOT, TTFT and rates.
    pub halves: Halves,
    /// Price of a device and where it comes from; `None` where none is published.
    pub price: Option<UsdPerHour>,
    /// Where the price comes from, or why there is none.
    pub price_source: String,
    /// What the engine adds to its kernels.
    pub costs: EngineCosts,
    /// Memory of each device.
    pub memory: MemoryBudget,
    /// Weights on each device.
    pub weights_per_device: Bytes,
    /// KV cache in use on each device.
    pub cache_per_device: Bytes,
    /// What was assumed in reading the model.
    pub assumed: Vec<String>,
    /// Storage of the KV cache.
    pub(crate) cache: &'static str,
    pub(crate) chosen: Chosen,
    pub(crate) calibrations: Vec<Calibration>,
    pub(crate) stack: Arc<Stack>,
    pub(crate) sources: Sources,
}

impl Estimated {
    /// Devices of the deployment.
    pub fn gpus(&self) -> usize {
        self.setup.layout.devices()
    }

    /// Output tokens per second of the deployment.
    pub fn output_rate(&self) -> TokensPerSecond {
        TokensPerSecond(self.served.requests_per_s * self.setup.lengths.output)
    }

    /// Dollars per million tokens at this load, where a price is known.
    pub fn usd_per_million(&self) -> Option<SplitUsd> {
        let price = self.price?;
        let (gpus, lengths) = (self.gpus() as f64, self.setup.lengths);
        let (input, output) = usd_per_million_split(
            gpus,
            price,
            self.served.requests_per_s,
            lengths.input,
            lengths.output,
            self.served.prompt_share,
        );
        let all = usd_per_million_output(gpus, price, self.output_rate());
        Some(SplitUsd { input: input.0, output: output.0, all_on_output: all.0 })
    }
}

/// Predicts TTFT, TPOT, throughput, memory and cost of one deployment.
///
/// ```
/// use moe_frontier::serving::Traffic;
/// use moe_frontier::{EstimateOptions, estimate};
///
/// // 32 clients that each send their next request when the last one is answered.
/// let traffic = Traffic::Closed { concurrency: 32.0, requests_per_client: f64::INFINITY };
/// let estimated = estimate(&EstimateOptions {
///     device: Some("h100".into()),
///     tp: 2,
///     ..EstimateOptions::of("mixtral-8x7b", traffic)
/// })?;
/// assert!(estimated.served.tpot < estimated.served.ttft);
/// assert!(estimated.usd_per_million().is_some_and(|usd| usd.output > usd.input));
/// # Ok::<(), moe_frontier::Error>(())
/// ```
///
/// # Errors
/// [`Error::Usage`] for options out of range, [`Error::Unfit`] for tables that cannot answer and a model
/// that does not fit; whatever a file is refused for.
pub fn estimate(options: &EstimateOptions) -> Result<Estimated> {
    options.check()?;
    let sources = Sources::read(&options.source)?;
    let calibrations = match &options.calibrate {
        Some(path) => calibrations(path, &sources)?,
        None => Vec::new(),
    };
    let (setup, assumed) = options.setup(&sources)?;
    let stack = sources.stack(&setup.device, sources.engine())?;
    let named = (setup.model.name.as_str(), &setup.device);
    let chosen = chosen(&sources, &calibrations, &options.server, named)?;
    let costs = chosen.costs();
    let routing = LoadModel::new(&options.routing, setup.model.num_experts, setup.model.top_k)?;
    let deployment = deployment(&setup, &costs, stack.as_ref(), &routing);
    let (Prediction { served, .. }, halves) = chosen.predict(&setup, stack.as_ref(), &routing)?;
    let (price, price_source) = match price(options.price.as_ref(), &setup.device) {
        Ok((price, source)) => (Some(price), source),
        Err(error) if options.price.is_some() => return Err(error),
        Err(_) => (None, "none published; --price sets one".into()),
    };
    let cache_per_device = deployment.cache_per_sequence(setup.lengths.mean_context()).0
        * served.batch
        / setup.layout.attention_dp as f64;
    let (memory, weights_per_device) = (deployment.memory, deployment.weights_per_device());
    let cache = deployment.cache().label();
    Ok(Estimated {
        served,
        halves,
        price,
        price_source,
        memory,
        weights_per_device,
        cache_per_device: Bytes(cache_per_device),
        assumed,
        cache,
        chosen,
        calibrations,
        stack,
        sources,
        costs,
        setup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_flag_takes_are_refused_by_name() {
        let wrong = |change: &dyn Fn(&mut EstimateOptions)| {
            let mut options = EstimateOptions::of("mixtral-8x7b", Traffic::Open(1.0));
            options.device = Some("h100".into());
            change(&mut options);
            let error = estimate(&options).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(wrong(&|o| o.traffic = Traffic::Open(-1.0)).contains("--rate"));
        assert!(wrong(&|o| o.isl = f64::INFINITY).contains("--isl"));
        assert!(wrong(&|o| o.tp = 0).contains("--tp"));
        assert!(wrong(&|o| o.ep = 3).contains("--ep"));
        assert!(wrong(&|o| o.device = None).contains("--device"));
    }
}
