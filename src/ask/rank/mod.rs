//! `rank`: laws, latencies and options come together in an answer.

mod architecture;
pub(crate) mod assumptions;
pub(crate) mod inputs;
mod laws;
pub(crate) mod mfu;
mod options;

pub use mfu::Mfu;
pub use options::RankOptions;

use std::sync::Arc;

use super::sources::{SourceOptions, Sources, origin_in};
use crate::config::{DType, DeviceSpec};
use crate::latency::{LatencyModel, LatencyTable};
use crate::law::Scaling;
use crate::plan::inputs::RankInputs;
use crate::plan::outcome::ProfileUsed;
use crate::plan::rank::{Provenance, Ranking};
use crate::record::{AaVerdict, Status};
use crate::units::Seconds;
use crate::{Error, Result, plan};
use assumptions::Ledger;
use inputs::Serving;
use laws::Laws;

/// Ranks expert counts by total cost: training plus serving.
///
/// Every candidate reaches the same loss under the first law; [`Ranking::report`] is the document that
/// `moe-frontier rank --json` prints, [`Ranking::models`] are the recommended models.
///
/// ```
/// use moe_frontier::units::Flops;
/// use moe_frontier::{RankOptions, rank};
///
/// let options = RankOptions {
///     train_flops: Some(Flops(1e21)),
///     experts: Some(vec![1, 8]),
///     law: "ludziejewski2025".into(),
///     draws: 20,
///     ..RankOptions::on("h100")
/// };
/// let report = rank(&options)?.report;
/// let best: Vec<_> = report.candidates.iter().filter(|c| c.best_of_experts).collect();
/// assert_eq!(best.len(), 2);
/// assert!(best.iter().all(|c| c.total_usd.is_some_and(|usd| usd > 0.0)));
/// # Ok::<(), moe_frontier::Error>(())
/// ```
///
/// # Errors
/// [`Error::Usage`] for options that are out of range or exclude each other, and for no source;
/// [`Error::Infeasible`] when no expert count can be trained and served within the limits; whatever a
/// file is refused for.
pub fn rank(options: &RankOptions) -> Result<Ranking> {
    Ok(answer(options, Named::find(options)?)?.ranking)
}

/// Where the latencies of a ranking come from.
pub(crate) trait Place {
    /// Whether it is the machine of whoever asks, which was measured for this ranking.
    fn is_here(&self) -> bool;

    /// The serving device as it is known now.
    ///
    /// # Errors
    /// For a device that is not known or has no constants.
    fn serving(&self, options: &RankOptions) -> Result<Serving>;

    /// The latencies; `inputs` learn what came with them.
    ///
    /// # Errors
    /// Whatever measuring reports.
    fn sources(
        self,
        options: &RankOptions,
        law: &Scaling,
        inputs: &mut RankInputs,
    ) -> Result<Sources>;
}

/// What the options name.
pub(crate) struct Named {
    pub(crate) sources: Sources,
    /// See [`Place::is_here`].
    pub(crate) is_here: bool,
}

impl Named {
    /// Reads the sources.
    ///
    /// # Errors
    /// [`Error::Usage`] without any; as [`Sources::read`].
    pub(crate) fn find(options: &RankOptions) -> Result<Self> {
        let SourceOptions { profile, own, .. } = &options.source;
        let measures = profile.iter().any(|name| name == "auto");
        if measures || (profile.is_empty() && (own.is_empty() || options.device.is_none())) {
            let reason = "names no source; give a file, a device with tables, or roofline:DEVICE";
            return Err(Error::usage("--profile", reason));
        }
        Ok(Self { sources: Sources::read(&options.source)?, is_here: false })
    }
}

impl Place for Named {
    fn is_here(&self) -> bool {
        self.is_here
    }

    fn serving(&self, options: &RankOptions) -> Result<Serving> {
        serving(&self.sources, options.device.as_deref())
    }

    fn sources(self, _: &RankOptions, _: &Scaling, _: &mut RankInputs) -> Result<Sources> {
        Ok(self.sources)
    }
}

/// What was read of the model whose size varies.
#[derive(Clone, Debug)]
pub(crate) struct ModelRead {
    pub(crate) summary: String,
    pub(crate) assumed: Vec<String>,
}

/// Everything up to the answer.
///
/// # Errors
/// See [`Error`].
pub(crate) fn answer(options: &RankOptions, place: impl Place) -> Result<Answer> {
    options.check()?;
    let mut laws = Laws::read(options)?;
    let serving = place.serving(options)?;
    // Runs may leave out the law that the question was resolved for: then it is the next one's.
    let (resolved, weighed) = loop {
        let resolved = inputs::resolve(options, laws.first()?, &serving)?;
        let first = laws.first()?.id().to_owned();
        let weighed = laws.weigh(options, &resolved.inputs.template)?;
        if laws.first()?.id() == first {
            break (resolved, weighed);
        }
    };
    let (mut inputs, mut ledger, model) = (resolved.inputs, resolved.ledger, resolved.model);
    let law = laws.first()?;
    // No other promise or bound was given that a doubled limit would break.
    let is_slow_allowed = options.tpot.is_none()
        && options.ttft.is_none()
        && options.max_serve_cost.is_none()
        && place.is_here();
    // A target out of reach is found before minutes of measuring.
    let sources = place.sources(options, &law.on(&inputs.template), &mut inputs)?;
    let device = inputs.device.spec.clone();
    let stack = sources.stack(&device, sources.engine())?;
    note_sources(&mut ledger, &sources, &device);
    let is_default = options.law == laws::ALL && options.law_weights.is_none();
    ledger.note("--law", &laws.names(), None, "the first lists its candidates", is_default);
    if let Some(errors) = &weighed {
        let why = "errors on the largest quarter of the runs that all answer, an offset set by the others";
        ledger.note("--law-weights", errors, None, why, false);
    }
    let mut provenance = Provenance {
        profile: used(&sources, &inputs)?,
        law_id: laws.info()?.id.clone(),
        law_source: laws.info()?.source.clone(),
        law_uncertainty: uncertainty(law),
        assumptions: ledger.into_entries(),
        warnings: warnings(&sources),
    };
    let latency = Arc::clone(&stack) as Arc<dyn LatencyModel>;
    let origin = origin_in(&stack);
    for _ in 0..SLOWER_LIMITS {
        let told = provenance.clone();
        match plan::rank::rank(&laws.members, (Arc::clone(&latency), &origin), &inputs, told) {
            Err(Error::Infeasible { .. }) if is_slow_allowed => {
                double_limit(&mut inputs.level.tpot, &mut provenance);
            }
            done => return Ok(Answer { ranking: done?, model, inputs, sources }),
        }
    }
    let ranking = plan::rank::rank(&laws.members, (latency, &origin), &inputs, provenance)?;
    Ok(Answer { ranking, model, inputs, sources })
}

/// An answer with what it was made of.
pub(crate) struct Answer {
    pub(crate) ranking: Ranking,
    pub(crate) model: Option<ModelRead>,
    pub(crate) inputs: RankInputs,
    pub(crate) sources: Sources,
}

/// How often the default limit on TPOT is doubled for a slow or busy machine of one's own.
const SLOWER_LIMITS: usize = 3;

/// How the warning about a doubled limit begins.
const SLOW: &str = "no model keeps the usual TPOT on this machine; ranked at ";

/// Doubles a limit that nobody asked for, and says so: minutes of measuring shall not end in nothing.
fn double_limit(tpot: &mut Option<Seconds>, provenance: &mut Provenance) {
    let Some(limit) = tpot else { return };
    *limit = *limit * 2.0;
    let noted = provenance.assumptions.iter_mut().find(|a| a.name == "--tpot");
    if let Some(entry) = noted {
        entry.value = format!("{limit} on the mean");
        entry.source = "the usual limit, doubled until this machine keeps it".into();
    }
    provenance.warnings.retain(|w| !w.starts_with(SLOW));
    provenance.warnings.push(format!("{SLOW}{limit}"));
}

/// The device that named sources price, and what is known of it.
pub(crate) fn serving(sources: &Sources, named: Option<&str>) -> Result<Serving> {
    let spec = match named {
        Some(name) => DeviceSpec::load(name)?,
        None => sources.device()?.ok_or_else(|| Error::usage("--profile", "names nothing"))?,
    };
    let costs = sources.costs()?.on(sources.engine(), &spec);
    let own = sources.own().and_then(|(_, p)| p.cells.iter().find(|c| c.is_usable()));
    let dtype = own.map_or(DType::Bf16, |cell| cell.dtype);
    Ok(Serving { spec, costs, dtype, is_own: own.is_some() })
}

/// What a report says of its latencies; where each operation came from is filled in by the ranking.
fn used(sources: &Sources, inputs: &RankInputs) -> Result<ProfileUsed> {
    let device = &inputs.device.spec;
    let own = sources.own().map(|(_, profile)| profile);
    let table = own.map(|p| LatencyTable::new(p, sources.policy())).transpose()?;
    Ok(ProfileUsed {
        origin: sources.names(device),
        device: device.name.clone(),
        engine: sources.engine().to_owned(),
        operations: Vec::new(),
        dtype: inputs.expert_dtype.label().to_owned(),
        measured_utc: own.map(|p| utc(p.provenance.end_unix_s)),
        cells: table.as_ref().map(LatencyTable::cells),
        noise_floor_rel: own.map(|p| p.run.noise_floor_rel),
        transfer_error_rel: table
            .as_ref()
            .and_then(LatencyTable::transfer_error)
            .map(|e| e.median.exp_m1()),
        read_bytes_per_s: device.read_bytes_per_s,
        gemm_flops_per_s: device
            .peak(inputs.expert_dtype)
            .or(device.peak(DType::Bf16))
            .unwrap_or(0.0),
    })
}

/// What a reader must know of a profile of this program.
pub(crate) fn warnings(sources: &Sources) -> Vec<String> {
    let Some((_, profile)) = sources.own() else { return Vec::new() };
    let usable = || profile.cells.iter().filter(|c| c.is_usable());
    let noisy = usable().filter(|c| c.status == Status::Noisy).count();
    let mut warnings = Vec::new();
    if sources.policy().include_noisy && noisy > 0 {
        warnings.push(format!(
            "{noisy} of {} cells are noisy (interval wider than 3%, or other programs ran); they \
             are used with their own intervals",
            usable().count()
        ));
    }
    if profile.run.aa_verdict == AaVerdict::Biased {
        warnings.push(
            "this machine finds differences between a kernel and itself: treat close calls as ties"
                .into(),
        );
    }
    warnings
}

/// Seconds since 1970 as `2026-11-25T04:10:00Z`.
fn utc(unix_s: u64) -> String {
    let moment = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_s);
    humantime::format_rfc3339_seconds(moment).to_string()
}

pub(crate) fn note_sources(ledger: &mut Ledger, sources: &Sources, device: &DeviceSpec) {
    let given = !sources.items().is_empty();
    ledger.note("--profile", &sources.names(device), None, "asked in this order", !given);
    ledger.note("--engine", sources.engine(), None, "kernels and what an engine adds", true);
}

/// How the law's coefficients are drawn for the probabilities.
fn uncertainty(law: &Scaling) -> String {
    let residual = law.residual_nats();
    let drawn = law.draws();
    if drawn > 0 {
        return format!(
            "{drawn} joint resamples of the fitted coefficients, and independent normal residuals of {residual} nats for each expert count"
        );
    }
    format!(
        "independent normal residuals of {residual} nats for each expert count; no covariance of the coefficients is published"
    )
}
