//! `size`: devices, layout, batch limit and replicas for a request rate under a service level.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::calibrated::{calibrations, chosen};
use super::check;
use super::server::ServerOptions;
use super::sources::{DevicePrice, SourceOptions, Sources, price};
use crate::calibrate::Calibration;
use crate::calibrate::predict::Chosen;
use crate::config::device::PriceKind;
use crate::config::{DeviceSpec, Loaded, load_model};
use crate::latency::tables::shipped;
use crate::plan;
use crate::plan::points::set_precision;
use crate::plan::request_trace::{Columns, RequestTrace};
use crate::plan::size::{Limit, Metric, Offer, SizeAnswer, SizeInputs, Statistic};
use crate::serving::{Lengths, LoadModel, Router, Spread};
use crate::units::Seconds;
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Fewest and most requests of a simulation.
const REQUESTS: std::ops::RangeInclusive<usize> = 1_000..=10_000_000;

/// More replicas than any deployment keeps in reserve.
const MOST_SPARE: usize = 1_000_000;

/// Options of [`size`](crate::size()), as the flags of `moe-frontier size`.
///
/// ```
/// use moe_frontier::SizeOptions;
/// use moe_frontier::plan::size::{Limit, Metric, Statistic};
/// use moe_frontier::units::Seconds;
///
/// let tpot = Limit { metric: Metric::Tpot, statistic: Statistic::P99, most: Seconds::from_ms(60.0) };
/// let options = SizeOptions {
///     device: vec!["h100".into()],
///     limits: vec![tpot],
///     ..SizeOptions::of("mixtral-8x7b", 20.0)
/// };
/// assert_eq!((options.isl, options.osl), (1000.0, 200.0));
/// ```
#[derive(Clone)]
pub struct SizeOptions {
    /// Model: a preset, a config.json, a folder or a Hub id.
    pub model: String,
    /// Devices to choose from (presets or TOML files); empty takes the device of the first source, else
    /// all those with shipped tables and a published cost of owning them.
    pub device: Vec<String>,
    /// Mean requests per second.
    pub rate: f64,
    /// Peak over mean rate, 1 or more: capacity is for the peak, dollars are over the mean.
    pub peak: f64,
    /// Recorded requests to simulate, stretched to the rate, in place of drawn lengths and gaps.
    pub trace: Option<PathBuf>,
    /// Names of the columns of `trace` where they are not the usual ones.
    pub columns: Columns,
    /// How requests find a replica.
    pub router: Router,
    /// Mean prompt tokens per request.
    pub isl: f64,
    /// Mean output tokens per request.
    pub osl: f64,
    /// Coefficient of variation of log-normal lengths; 0 makes all equal.
    pub length_cv: f64,
    /// Shape of the gaps between arrivals: 1 is Poisson, below is burstier.
    pub burstiness: f64,
    /// The service level; empty is the rule of `MLPerf` for Mixtral servers, TTFT 2 s and TPOT 200 ms at
    /// p99.
    pub limits: Vec<Limit>,
    /// Replicas beyond those needed (1 is N+1).
    pub spare: usize,
    /// Maximum devices of the deployment.
    pub max_gpus: usize,
    /// Format of the weights, such as `fp8`; by default as published.
    pub weights: Option<String>,
    /// Where latencies come from.
    pub source: SourceOptions,
    /// Routing of tokens over experts.
    pub routing: RoutingKind,
    /// How the server is run.
    pub server: ServerOptions,
    /// Own runs: a CSV of measured points, or what `calibrate --out` wrote.
    pub calibrate: Option<PathBuf>,
    /// Price of a device; by default its first published one.
    pub price: Option<DevicePrice>,
    /// Requests of each simulation, from 1,000 to 10 million.
    pub requests: usize,
    /// Seed of the simulations and of the router.
    pub seed: u64,
}

impl SizeOptions {
    /// The defaults for a model and a mean number of requests per second.
    pub fn of(model: &str, rate: f64) -> Self {
        Self {
            model: model.into(),
            device: Vec::new(),
            rate,
            peak: 1.0,
            trace: None,
            columns: Columns::default(),
            router: Router::Random,
            isl: 1000.0,
            osl: 200.0,
            length_cv: 0.5,
            burstiness: 1.0,
            limits: Vec::new(),
            spare: 0,
            max_gpus: 1024,
            weights: None,
            source: SourceOptions::default(),
            routing: RoutingKind::TYPICAL,
            server: ServerOptions::default(),
            calibrate: None,
            price: None,
            requests: 20_000,
            seed: 1,
        }
    }

    fn check(&self) -> Result<()> {
        check::positive(&[
            ("--rate", Some(self.rate)),
            ("--isl", Some(self.isl)),
            ("--osl", Some(self.osl)),
            ("--burstiness", Some(self.burstiness)),
        ])?;
        if !(self.length_cv.is_finite() && self.length_cv >= 0.0) {
            return Err(Error::usage("--length-cv", "not a finite number of zero or more"));
        }
        if self.isl < 1.0 || self.osl < 1.0 {
            return Err(Error::usage("--isl and --osl", "a request has one token or more of each"));
        }
        if !(self.peak.is_finite() && self.peak >= 1.0) {
            return Err(Error::usage("--peak", "the peak is at least the mean: 1 or more"));
        }
        if self.spare > MOST_SPARE {
            return Err(Error::usage("--spare", format!("is more than {MOST_SPARE} replicas")));
        }
        if !REQUESTS.contains(&self.requests) {
            return Err(Error::usage("--requests", "not a whole number from 1000 to 10000000"));
        }
        if let Some(DevicePrice::PerHour(price)) = self.price {
            check::positive(&[("--price", Some(price.0))])?;
        }
        for limit in &self.limits {
            crate::error::positive(&limit.to_string(), limit.most.0)?;
        }
        Ok(())
    }
}

/// A sized deployment.
pub struct Sizing {
    /// Everything that it depends on, resolved.
    pub inputs: SizeInputs,
    /// The cheapest plan, others, and what failed.
    pub answer: SizeAnswer,
    /// What was assumed in reading the model.
    pub assumed: Vec<String>,
    /// By the name of the device.
    terms: BTreeMap<String, Terms>,
    pub(crate) calibrations: Vec<Calibration>,
    pub(crate) sources: Sources,
}

/// What the answer says of a device beside its offer.
pub(crate) struct Terms {
    /// Where its price comes from.
    pub(crate) price_source: String,
    /// Constants on it with their errors.
    pub(crate) chosen: Chosen,
}

impl Sizing {
    /// The terms of a device.
    pub(crate) fn terms(&self, device: &str) -> Result<&Terms> {
        let unknown = || Error::usage("--device", format!("{device} is not among the offers"));
        self.terms.get(device).ok_or_else(unknown)
    }

    /// Whether the constants on a device are fitted to own runs.
    pub(crate) fn calibration(&self, device: &str) -> &'static str {
        let own = |c: &Calibration| {
            c.group.gpu == device
                && c.group.model == self.inputs.model.name
                && c.group.engine == self.inputs.engine
        };
        if self.calibrations.iter().any(own) { "calibrated" } else { "uncalibrated" }
    }
}

/// Sizes a deployment: devices, layout, batch limit and replicas for a request rate under a service level.
///
/// ```
/// use moe_frontier::{SizeOptions, size};
///
/// let options = SizeOptions {
///     device: vec!["h100".into()],
///     requests: 2000,
///     ..SizeOptions::of("mixtral-8x7b", 20.0)
/// };
/// let sized = size(&options)?;
/// let best = &sized.answer.best;
/// assert!(best.gpus() >= 1 && best.total_price().0 > 0.0);
/// let (_input, output) = best.token_prices(&sized.inputs);
/// assert!(output.0 > 0.0);
/// # Ok::<(), moe_frontier::Error>(())
/// ```
///
/// # Errors
/// [`Error::Usage`] for options out of range; [`Error::Infeasible`] with the nearest service level when
/// nothing keeps the limits; whatever a file is refused for.
pub fn size(options: &SizeOptions) -> Result<Sizing> {
    options.check()?;
    let sources = Sources::read(&options.source)?;
    let calibrations = match &options.calibrate {
        Some(path) => calibrations(path, &sources)?,
        None => Vec::new(),
    };
    let Loaded { mut model, assumed, .. } = load_model(&options.model)?;
    if let Some(weights) = &options.weights {
        set_precision(&mut model, &weights.to_lowercase())
            .map_err(|reason| Error::usage("--weights", reason))?;
    }
    let (mut devices, mut terms) = (Vec::new(), BTreeMap::new());
    for device in named(options, &sources)? {
        let (price, price_source) = price(options.price.as_ref(), &device)?;
        let chosen = chosen(&sources, &calibrations, &options.server, (&model.name, &device))?;
        let costs = chosen.costs();
        terms.insert(device.name.clone(), Terms { price_source, chosen });
        devices.push(Offer { device, price, costs });
    }
    let read = |path| RequestTrace::read_with(path, &options.columns);
    let trace = options.trace.as_deref().map(read).transpose()?;
    let drawn = Lengths { input: options.isl, output: options.osl };
    let spread =
        if options.length_cv > 0.0 { Spread::LogNormal(options.length_cv) } else { Spread::Fixed };
    let routing = LoadModel::new(&options.routing, model.num_experts, model.top_k)?;
    let inputs = SizeInputs {
        model,
        devices,
        engine: sources.engine().to_owned(),
        routing: Arc::new(routing),
        lengths: trace.as_ref().map_or(drawn, RequestTrace::lengths),
        spread: trace.as_ref().map_or(spread, RequestTrace::spread),
        trace,
        rate: options.rate,
        peak_over_mean: options.peak,
        burstiness: options.burstiness,
        router: options.router,
        limits: limits(options),
        spare: options.spare,
        max_gpus: options.max_gpus,
        requests: options.requests,
        seed: options.seed,
    };
    let answer = plan::size::size(&inputs, &sources.latency_of())?;
    Ok(Sizing { inputs, answer, assumed, terms, calibrations, sources })
}

/// The devices to choose from.
fn named(options: &SizeOptions, sources: &Sources) -> Result<Vec<DeviceSpec>> {
    Ok(match (options.device.is_empty(), sources.device()?) {
        (true, Some(device)) => vec![device],
        (true, None) => DeviceSpec::known()?.into_iter().filter(is_comparable).collect(),
        (false, _) => {
            options.device.iter().map(|name| DeviceSpec::load(name)).collect::<Result<_>>()?
        }
    })
}

/// Whether a device is compared with others without being named: measured like them, and priced on
/// the same basis.
fn is_comparable(device: &DeviceSpec) -> bool {
    let is_owned = device.price().is_some_and(|(_, p)| p.kind == PriceKind::Ownership);
    is_owned && shipped(device).is_some()
}

/// The promised limits; without any, the rule of `MLPerf` for Mixtral servers (2 s and 200 ms at p99).
fn limits(options: &SizeOptions) -> Vec<Limit> {
    if !options.limits.is_empty() {
        return options.limits.clone();
    }
    let limit = |metric, most| Limit { metric, statistic: Statistic::P99, most: Seconds(most) };
    vec![limit(Metric::Ttft, 2.0), limit(Metric::Tpot, 0.2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_flag_takes_are_refused_by_name() {
        let wrong = |change: &dyn Fn(&mut SizeOptions)| {
            let mut options = SizeOptions::of("mixtral-8x7b", 20.0);
            change(&mut options);
            let error = size(&options).err().unwrap();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(wrong(&|o| o.rate = f64::NAN).contains("--rate"));
        assert!(wrong(&|o| o.osl = 0.5).contains("--osl"));
        assert!(wrong(&|o| o.peak = 0.5).contains("--peak"));
        assert!(wrong(&|o| o.length_cv = -1.0).contains("--length-cv"));
        assert!(wrong(&|o| o.requests = 10).contains("--requests"));
        assert!(wrong(&|o| o.spare = usize::MAX).contains("--spare"));
        let limit =
            Limit { metric: Metric::Tpot, statistic: Statistic::P99, most: Seconds(f64::NAN) };
        assert!(wrong(&|o| o.limits = vec![limit]).contains("tpot_p99"));
    }
}
