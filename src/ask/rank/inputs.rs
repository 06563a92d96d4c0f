//! From options to the inputs of a ranking: defaults filled in, each noted with its reason.

use std::sync::Arc;

use super::assumptions::Ledger;
use super::mfu::{self, Mfu};
use super::options::RankOptions;
use super::{ModelRead, architecture};
#[cfg(feature = "native")]
use crate::ask::sources::{SourceOptions, Sources};
use crate::ask::sources::{memory_rule, price};
use crate::config::device::DeviceKind;
use crate::config::{DType, DeviceSpec};
use crate::constants::residual;
use crate::law::Scaling;
use crate::law::beyond::{OWN_NATS, REALISED, SIZE_NATS, SLOPE_NATS};
use crate::law::downstream::Downstream;
use crate::law::precision::TrainedBits;
use crate::plan::budget;
use crate::plan::inputs::{
    Demand, Lifetime, Limits, Ranges, RankInputs, ServingDevice, Target, rounded_bits,
};
use crate::plan::points::precision;
#[cfg(feature = "native")]
use crate::plan::train_mfu::{LONGEST_DAYS, ModelledRun, modelled};
use crate::serving::{EngineCosts, Lengths, MemoryBudget, ServiceLevel, TrainingPrice};
use crate::units::{Flops, FlopsPerSecond, Seconds, Tokens, UsdPerMillionTokens, count};
use crate::{Error, Result};

/// Expert counts compared unless named.
const EXPERTS: [usize; 5] = [1, 4, 8, 16, 32];
/// Devices of one replica that are tried.
const REPLICA_SIZES: [usize; 4] = [1, 2, 4, 8];
/// Further ones, where no smaller replica holds the weights and keeps the service level.
const WIDE_SIZES: [usize; 3] = [16, 32, 64];
/// Training MFU: range reported for large runs.
pub(crate) const MFU: (f64, f64, f64) = (0.4, 0.3, 0.5);
/// Spread of the MFU of each expert count about what all share, in the logarithm; no published runs
/// differ in expert count alone, and a tenth is what imbalance and exchange cost or save.
const MFU_LOG_SIGMA: f64 = 0.1;
/// Prices move by this factor between offers of one device.
const PRICE_RANGE: (f64, f64) = (0.8, 1.25);
/// Device that trains unless named.
const TRAIN_DEVICE: &str = "h100";
/// The device that serves, as it is known before anything is measured on it.
pub(crate) struct Serving {
    pub(crate) spec: DeviceSpec,
    /// What the engine adds.
    pub(crate) costs: EngineCosts,
    /// Number format of the weights in the first profile, or what will be measured.
    pub(crate) dtype: DType,
    /// Whether the latencies are of this program's own kernels, in that format alone.
    pub(crate) is_own: bool,
}

impl Serving {
    fn is_cpu(&self) -> bool {
        self.spec.kind == DeviceKind::Cpu
    }
}

/// The inputs of a ranking with the ledger of where each came from.
pub(crate) struct Resolved {
    pub(crate) inputs: RankInputs,
    pub(crate) ledger: Ledger,
    /// What was read of `--model`.
    pub(crate) model: Option<ModelRead>,
    /// Whether the target's budget has still to be found.
    budget_is_open: bool,
    reference: usize,
}

/// Resolves every flag.
///
/// # Errors
/// [`Error::Usage`] for values that contradict each other, [`Error::Unfit`] for a device without a
/// price.
pub(crate) fn resolve(options: &RankOptions, law: &Scaling, serving: &Serving) -> Result<Resolved> {
    let mut ledger = Ledger::default();
    let experts = experts(options, &mut ledger)?;
    let own = law.template().as_ref().clone();
    let architecture = architecture::resolve(options, own, &mut ledger)?;
    let law = &law.on(&architecture.template);
    let reference = reference_experts(options, &experts, &mut ledger)?;
    let lengths = Lengths {
        input: ledger.take("--isl", options.isl, (1000.0, "a long chat turn"), tokens),
        output: ledger.take("--osl", options.osl, (1000.0, "a long chat turn"), tokens),
    };
    let demand = demand(options, &mut ledger);
    let level = service_level(options, serving, &mut ledger);
    let max_serve = max_serve(options, &mut ledger);
    let lifetime = lifetime(options, &mut ledger);
    let limits = Limits {
        max_tokens_per_param: ledger.take(
            "--max-tokens-per-param",
            options.max_tokens_per_param,
            (
                1000.0,
                "beyond nearly all runs behind the laws; their errors and --unique-tokens limit before",
            ),
            |v| format!("{v}"),
        ),
        max_train_factor: ledger.take(
            "--max-train-factor",
            options.max_train_factor,
            (3.5, "range of arXiv 2404.02852"),
            |v| format!("{v} x the budget"),
        ),
        unique_tokens: options.unique_tokens,
    };
    let supply = options.unique_tokens.map_or_else(|| "no limit".to_owned(), tokens);
    let why = "beyond them data are repeated (arXiv 2305.16264, R* = 15.39)";
    ledger.note("--unique-tokens", &supply, None, why, options.unique_tokens.is_none());
    let device = device(options, serving, &mut ledger)?;
    let training = training(options, &mut ledger)?;
    let (expert_dtype, dense_dtype) = formats(options, serving, architecture.formats, &mut ledger)?;
    let expert_bits = expert_bits(options, &mut ledger)?;
    let trained_bits = trained_bits(options, &mut ledger)?;
    let zipf = ledger.take(
        "--skew",
        options.skew,
        (1.2, "routers of served models lie around 0.8"),
        |v| format!("{} routing; up to zipf:{v}, and as much more even", options.routing),
    );
    let ranges = ranges(options, law, zipf, &mut ledger);
    let inputs = RankInputs {
        experts,
        target: target(options, reference),
        limits,
        lengths,
        demand,
        level,
        max_serve,
        lifetime,
        device,
        training,
        mfu_by_experts: options.mfu.as_ref().map(Mfu::pairs).unwrap_or_default(),
        rounded_bits: rounding(options, (expert_dtype, expert_bits), &trained_bits),
        trained_bits,
        expert_dtype,
        expert_bits,
        dense_dtype,
        template: architecture.template,
        routing: options.routing.clone(),
        ranges,
        downstream: downstream(options, &mut ledger)?,
        exits: options.exits,
        draws: options.draws,
        seed: options.seed,
    };
    let budget_is_open = options.train_flops.is_none() && options.target_loss.is_none();
    let mut resolved =
        Resolved { inputs, ledger, model: architecture.read, budget_is_open, reference };
    resolved.settle_budget(options, law)?;
    if options.mfu.as_ref().is_some_and(Mfu::is_modelled) {
        resolved.model_training(options, law)?;
    }
    Ok(resolved)
}

impl Resolved {
    /// The MFU of each expert count by its training step.
    #[cfg(feature = "native")]
    fn model_training(&mut self, options: &RankOptions, law: &Scaling) -> Result<()> {
        let device = DeviceSpec::load(options.train_device.as_deref().unwrap_or(TRAIN_DEVICE))?;
        let sources = Sources::new(Vec::new(), &SourceOptions::default())?;
        let latency = sources.stack(&device, sources.engine())?;
        let runs = modelled(law, &self.inputs, latency.as_ref(), &device)?;
        // Three digits are more than the model is good for.
        let rounded = |share: f64| (share * 1e3).round() / 1e3;
        let shares: Vec<(usize, f64)> =
            runs.iter().map(|r| (r.experts, rounded(r.step.mfu))).collect();
        let mean = mfu::mean(&shares);
        let plan = |r: &ModelledRun| {
            let p = r.step.plan;
            format!(
                "{}: {} devices ({} hold it) as tp{} ep{} pp{}",
                r.experts, p.devices, r.fewest_devices, p.tensor, p.expert, p.pipeline
            )
        };
        let plans: Vec<String> = runs.iter().map(plan).collect();
        let source = format!(
            "training step of the loss-optimal models, kernels of {}, at most {LONGEST_DAYS} days; by experts, \
             {}; {}",
            sources.names(&device),
            plans.join(", "),
            mfu::CHECKED
        );
        note_mfu(&mfu::pairs(&shares), mean, &source, false, &mut self.ledger);
        self.inputs.training.mfu = mean;
        self.inputs.ranges.mfu = mfu_range(mean);
        self.inputs.mfu_by_experts = shares;
        Ok(())
    }

    /// A page has no tables of training devices.
    #[cfg(not(feature = "native"))]
    #[expect(clippy::unused_self, reason = "elsewhere its inputs learn what is modelled")]
    fn model_training(&mut self, _: &RankOptions, _: &Scaling) -> Result<()> {
        let reason = "a page models no training; give experts:share pairs";
        Err(Error::usage("--mfu", reason))
    }

    /// Finds the budget if none was given, and notes what is compared.
    fn settle_budget(&mut self, options: &RankOptions, law: &Scaling) -> Result<()> {
        if self.budget_is_open {
            let budget = budget::largest_fitting(law, &self.inputs)?;
            self.inputs.target = Target::Budget { budget, experts: self.reference };
        }
        match self.inputs.target {
            Target::Budget { budget, .. } => self.ledger.note(
                "--train-flops",
                &format!("{:e} FLOPs", budget.0),
                None,
                if self.budget_is_open {
                    "largest power of ten whose models fit one device"
                } else {
                    "given"
                },
                options.train_flops.is_none(),
            ),
            Target::Loss { loss, .. } => {
                self.ledger.note("--target-loss", &loss.to_string(), None, "given", false);
            }
        }
        Ok(())
    }
}

fn target(options: &RankOptions, experts: usize) -> Target {
    match (options.target_loss, options.train_flops) {
        (Some(loss), _) => Target::Loss { loss, experts },
        // Replaced by the fitting budget when none was given.
        (None, flops) => Target::Budget { budget: flops.unwrap_or(Flops(1e21)), experts },
    }
}

fn experts(options: &RankOptions, ledger: &mut Ledger) -> Result<Vec<usize>> {
    let mut experts = options.experts.clone().unwrap_or_else(|| EXPERTS.to_vec());
    experts.sort_unstable();
    experts.dedup();
    if experts.len() > 64 {
        return Err(Error::usage("--experts", "more than 64 expert counts in one ranking"));
    }
    let shown: Vec<String> = experts.iter().map(ToString::to_string).collect();
    let (source, is_default) = match options.experts {
        Some(_) => ("given", false),
        None => ("the counts that the law was fitted to; 1 is dense", true),
    };
    ledger.note("--experts", &shown.join(", "), None, source, is_default);
    Ok(experts)
}

fn reference_experts(
    options: &RankOptions,
    experts: &[usize],
    ledger: &mut Ledger,
) -> Result<usize> {
    let fewest = experts.iter().copied().find(|e| *e > 1).unwrap_or(1);
    let usual = if experts.contains(&4) { 4 } else { fewest };
    let reference = options.reference_experts.unwrap_or(usual);
    if !experts.contains(&reference) {
        return Err(Error::usage(
            "--reference-experts",
            format!("{reference} is not among the expert counts compared"),
        ));
    }
    let source = if options.reference_experts.is_some() {
        "given"
    } else {
        "reference of arXiv 2404.02852; sets loss and budget of the comparison"
    };
    let is_default = options.reference_experts.is_none();
    ledger.note("--reference-experts", &reference.to_string(), None, source, is_default);
    Ok(reference)
}

fn demand(options: &RankOptions, ledger: &mut Ledger) -> Demand {
    let usual = if let Some(rate) = options.rate {
        let given = format!("{rate} requests/s");
        ledger.note("--rate", &given, None, "given: whole replicas", false);
        (1.0, "the rate given is the peak")
    } else {
        let why = "at scale, replicas counted in fractions; --rate takes whole ones";
        ledger.note("--rate", "none", None, why, true);
        (0.7, "room for peaks")
    };
    let utilisation = ledger.take("--utilisation", options.utilisation, usual, |v| {
        format!("{v} of a replica's capacity at most")
    });
    Demand { rate: options.rate, utilisation }
}

fn service_level(options: &RankOptions, serving: &Serving, ledger: &mut Ledger) -> ServiceLevel {
    let usual = if serving.is_cpu() {
        (Seconds(0.2), "about as fast as people read")
    } else {
        (Seconds(0.05), "usual for interactive services")
    };
    let tpot = ledger.take("--tpot", options.tpot, usual, |v| format!("{v} on the mean"));
    match options.ttft {
        Some(limit) => {
            ledger.note("--ttft", &format!("{limit} on the mean"), None, "given", false);
        }
        None => ledger.note("--ttft", "no limit", None, "not asked for", true),
    }
    ServiceLevel { tpot: Some(tpot), ttft: options.ttft }
}

/// Storage of experts and of everything else.
fn formats(
    options: &RankOptions,
    serving: &Serving,
    of_model: Option<(DType, DType)>,
    ledger: &mut Ledger,
) -> Result<(DType, DType)> {
    let (formats, source) = match (&options.weights, of_model) {
        (None, Some(formats)) => (formats, "those of --model"),
        (None, None) if serving.is_own => ((serving.dtype, serving.dtype), "format of the profile"),
        (None, None) => ((DType::Bf16, DType::Bf16), "the format models are trained in"),
        (Some(name), _) => {
            let formats = precision(&name.to_lowercase())
                .map_err(|reason| Error::usage("--weights", reason))?
                .unwrap_or((serving.dtype, serving.dtype));
            (formats, "given; below 16 bits the loss as served by arXiv 2411.04330")
        }
    };
    let shown = format!("experts {}, others {}", formats.0.label(), formats.1.label());
    ledger.note("--weights", &shown, None, source, options.weights.is_none());
    Ok(formats)
}

/// Bits that weights are rounded to after training; formats of `--model` are those that it was trained
/// for.
fn rounding(
    options: &RankOptions,
    (format, mixed): (DType, Option<f64>),
    trained: &TrainedBits,
) -> Option<f64> {
    let is_trained = options.model.is_some() && options.weights.is_none() && mixed.is_none();
    if is_trained { None } else { rounded_bits(format, mixed, trained) }
}

/// Bits of the training; at their default the ledger is silent, as nothing rests on them.
fn trained_bits(options: &RankOptions, ledger: &mut Ledger) -> Result<TrainedBits> {
    let Some(bits) = options.train_bits else { return Ok(TrainedBits::FULL) };
    bits.validate()?;
    let TrainedBits { weights, activations, cache } = bits;
    ledger.note(
        "--train-bits",
        &format!("weights {weights}, activations {activations}, cache {cache}"),
        None,
        &format!(
            "given; by arXiv 2411.04330 worth {:.3} of the parameters, and trained at the speed that --mfu says",
            bits.effective(),
        ),
        false,
    );
    Ok(bits)
}

/// Bits of expert weights where the user mixes precisions.
fn expert_bits(options: &RankOptions, ledger: &mut Ledger) -> Result<Option<f64>> {
    /// No format in use stores a weight in more.
    const MOST: f64 = 32.0;
    let Some(bits) = options.weight_bits else { return Ok(None) };
    if bits > MOST {
        return Err(Error::usage("--weight-bits", format!("{bits} is more than {MOST}")));
    }
    ledger.note(
        "--weight-bits",
        &format!("{bits} bits per expert weight"),
        None,
        "given; bytes and bandwidth follow, the loss as served by arXiv 2411.04330",
        false,
    );
    Ok(Some(bits))
}

/// What loss means for tasks; without a fit the ledger is silent.
fn downstream(options: &RankOptions, ledger: &mut Ledger) -> Result<Option<Arc<Downstream>>> {
    let Some(path) = &options.downstream else { return Ok(None) };
    let fit = Downstream::load(path)?;
    let (low, high) = fit.loss_range_nats;
    ledger.note(
        "--downstream",
        &path.display().to_string(),
        None,
        &format!(
            "given; {} runs with losses of {low:.2} to {high:.2} nats, of use where these are losses of the \
             first law",
            fit.runs
        ),
        false,
    );
    Ok(Some(Arc::new(fit)))
}

/// A bound on serving cost; without one the ledger is silent, as nothing rests on it.
fn max_serve(options: &RankOptions, ledger: &mut Ledger) -> Option<UsdPerMillionTokens> {
    let bound = options.max_serve_cost?;
    ledger.note("--max-serve-cost", &bound.to_string(), None, "given", false);
    Some(bound)
}

fn lifetime(options: &RankOptions, ledger: &mut Ledger) -> Lifetime {
    if let Some(served) = options.lifetime_tokens {
        ledger.note("--lifetime-tokens", &Tokens(served).to_string(), None, "given", false);
        return Lifetime::Tokens(served);
    }
    ledger.note(
        "--lifetime-tokens",
        "as many as the reference model is trained on",
        None,
        "no better guess; the total-cost plot shows all others",
        true,
    );
    Lifetime::PerTrainingToken(1.0)
}

fn device(options: &RankOptions, serving: &Serving, ledger: &mut Ledger) -> Result<ServingDevice> {
    let (price, source) = price(options.price.as_ref(), &serving.spec)?;
    ledger.note("--price", &price.to_string(), None, &source, options.price.is_none());
    ledger.drawn(format!("x {} to x {}", PRICE_RANGE.0, PRICE_RANGE.1));
    let (replica_sizes, wide_sizes) = replica_sizes(options, serving, ledger)?;
    let memory = MemoryBudget::of(&serving.spec);
    let rule = if serving.is_cpu() { "the system keeps the rest" } else { "engines' default" };
    ledger.note("memory for weights and cache", &memory_rule(&memory), None, rule, true);
    let cap = "each sequence holds its prompt and half of its output";
    ledger.note("sequences in memory", cap, None, "mean over a steady state", true);
    let mut costs = serving.costs.clone();
    costs.chunk_tokens = ledger.take(
        "--prefill-chunk",
        options.prefill_chunk,
        (costs.chunk_tokens, "default of the engine"),
        tokens,
    );
    Ok(ServingDevice {
        spec: serving.spec.clone(),
        memory,
        price,
        replica_sizes,
        wide_sizes,
        costs,
    })
}

/// Devices of a replica that are always tried, and those tried where none of them does.
fn replica_sizes(
    options: &RankOptions,
    serving: &Serving,
    ledger: &mut Ledger,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let (sizes, wide) = match &options.replica_sizes {
        Some(list) if serving.is_cpu() && *list != [1] => {
            let reason = "a CPU deployment uses exactly one host; use 1";
            return Err(Error::usage("--replica-sizes", reason));
        }
        Some(list) => (list.clone(), Vec::new()),
        None if serving.is_cpu() => (vec![1], Vec::new()),
        None => (REPLICA_SIZES.to_vec(), WIDE_SIZES.to_vec()),
    };
    let listed =
        |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut shown = format!("{} devices", listed(&sizes));
    if !wide.is_empty() {
        shown = format!("{shown}; {} where those do not do", listed(&wide));
    }
    let is_default = options.replica_sizes.is_none();
    let source = if is_default { "powers of two" } else { "given" };
    ledger.note("--replica-sizes", &shown, None, source, is_default);
    Ok((sizes, wide))
}

fn training(options: &RankOptions, ledger: &mut Ledger) -> Result<TrainingPrice> {
    let name = options.train_device.as_deref().unwrap_or(TRAIN_DEVICE);
    let spec = DeviceSpec::load(name).map_err(|e| match e {
        Error::Usage { reason, .. } => Error::usage("--train-device", reason),
        other => other,
    })?;
    let peak = spec.peak(DType::Bf16).ok_or_else(|| {
        Error::usage("--train-device", format!("{} has no published bf16 rate", spec.name))
    })?;
    let is_default = options.train_device.is_none();
    ledger.note(
        "--train-device",
        &format!("{}, peak {}", spec.name, FlopsPerSecond(peak)),
        None,
        &spec.source,
        is_default,
    );
    let price = match (options.train_price, spec.price()) {
        (Some(given), _) => {
            ledger.note("--train-price", &given.to_string(), None, "given", false);
            given
        }
        (None, Some((price, from))) => {
            let source = format!("{} ({}, {})", from.source, from.tier, from.date);
            ledger.note("--train-price", &price.to_string(), None, &source, true);
            price
        }
        (None, None) => {
            return Err(Error::usage(
                "--train-price",
                format!("no price of {} is known; give its dollars per hour", spec.name),
            ));
        }
    };
    let mfu = options.mfu.as_ref().and_then(Mfu::mean).unwrap_or(MFU.0);
    if !options.mfu.as_ref().is_some_and(Mfu::is_modelled) {
        let shown = options.mfu.as_ref().map_or_else(|| MFU.0.to_string(), ToString::to_string);
        let source = match &options.mfu {
            Some(_) => "given".to_owned(),
            None => format!(
                "usual for large runs; published: {} {}",
                mfu::PUBLISHED.0,
                mfu::PUBLISHED.1
            ),
        };
        note_mfu(&shown, mfu, &source, options.mfu.is_none(), ledger);
    }
    Ok(TrainingPrice { peak: FlopsPerSecond(peak), mfu, price, overhead: 0.0 })
}

fn note_mfu(shown: &str, mean: f64, source: &str, is_default: bool, ledger: &mut Ledger) {
    ledger.note("--mfu", shown, None, source, is_default);
    let (low, high) = mfu_range(mean);
    ledger.drawn(format!("{low:.2} to {high:.2} for all, log-normal {MFU_LOG_SIGMA} each"));
}

/// Range of MFU around the one in use, in the proportions of the usual range.
fn mfu_range(mfu: f64) -> (f64, f64) {
    (mfu * MFU.1 / MFU.0, (mfu * MFU.2 / MFU.0).min(1.0))
}

fn ranges(options: &RankOptions, law: &Scaling, zipf: f64, ledger: &mut Ledger) -> Ranges {
    let residual = law.residual_nats();
    let source = if law.draws() == 0 {
        "held-out RMSE of the law; no covariance of its coefficients is published"
    } else {
        "error of the fit, beside the joint draws of its coefficients"
    };
    ledger.note(
        "loss residual of each expert count",
        &format!("0 +- {residual} nats"),
        Some("normal".into()),
        source,
        true,
    );
    ledger.note(
        "law beyond its runs",
        &format!("over-training pays {:.0}% of what the law says", 100.0 * REALISED.0),
        Some(format!(
            "share normal with sd {}; {SIZE_NATS} nats an e-fold of size shared, {SLOPE_NATS} an \
             e-fold and unit of ln E, {OWN_NATS} each",
            REALISED.1
        )),
        "largest runs of arXiv 2202.01169 and 2403.08540 left out and predicted",
        true,
    );
    ledger.note(
        "serving model",
        "as predicted",
        Some(format!(
            "ln of it Student's t of 3 degrees with the quartiles of a normal: {} shared by all candidates, {} each",
            residual::BETWEEN_GROUPS,
            residual::WITHIN_GROUPS
        )),
        "its error against servers (accuracy page)",
        true,
    );
    Ranges {
        mfu: mfu_range(options.mfu.as_ref().and_then(Mfu::mean).unwrap_or(MFU.0)),
        mfu_log_sigma: MFU_LOG_SIGMA,
        price: PRICE_RANGE,
        zipf,
        shared_log_sigma: residual::BETWEEN_GROUPS,
        own_log_sigma: residual::WITHIN_GROUPS,
    }
}

fn tokens(value: f64) -> String {
    format!("{} tokens", count(value))
}
