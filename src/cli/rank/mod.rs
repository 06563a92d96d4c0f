//! `rank`: the main job. Latencies, law and inputs come together; table, rank.json, plots and page go
//! out.

mod architecture;
mod args;
mod assumptions;
mod inputs;
mod laws;
mod machine;
mod mfu;
mod print;
mod serving_cost;

pub use args::RankArgs;
pub(super) use serving_cost::ServingCost;

use std::sync::Arc;

use crate::cli::output::{Output, warn, write_stdout, write_text};
use crate::cli::profile::{ProfileArgs, Sources, origin_in};
use crate::cli::repeat::recorded;
use crate::config::hf_write::to_hf_json;
use crate::config::{DType, DeviceSpec};
use crate::files::{ResultFolder, write_atomic};
use crate::latency::{LatencyModel, LatencyTable};
use crate::law::Scaling;
use crate::measure::Status;
use crate::measure::record::AaVerdict;
use crate::plan::budget::layer_widths;
use crate::plan::inputs::RankInputs;
use crate::plan::outcome::ProfileUsed;
use crate::plan::rank::{Provenance, Ranking, rank};
use crate::serving::EngineCosts;
use crate::units::{Seconds, nearest_whole};
use crate::{Error, Result, report};
use assumptions::Ledger;
use inputs::Serving;
use laws::Laws;
use machine::Machine;

/// Runs the command.
///
/// # Errors
/// See [`Error`]; the output folder is created before anything is measured.
pub fn run(args: &RankArgs, output: Output) -> Result<()> {
    let folder = ResultFolder::begin(&args.out, &["rank.json"], args.overwrite)?;
    let Answer { ranking: Ranking { report: mut answer, models }, model } = answer(args)?;
    answer.arguments = Some(recorded());
    if output.is_json() {
        // Printed text has them.
        for warning in &answer.warnings {
            warn(warning);
        }
    }
    for (index, model) in &models {
        let name = format!("config_e{}.json", model.num_experts);
        match to_hf_json(model) {
            Ok(json) => {
                write_atomic(&folder.path().join(&name), &json, true)?;
                answer.candidates[*index].config = Some(name);
            }
            // The ranking stands without it.
            Err(reason) => warn(&format!("{name} is not written: {reason}")),
        }
    }
    let configs = answer.candidates.iter().filter(|c| c.config.is_some()).count();
    let document = answer.to_bytes()?;
    write_atomic(&folder.path().join("rank.json"), &document, true)?;
    let written = report::write_all(&answer, folder.path())?;
    folder.finish()?;
    if output.is_json() {
        // The file itself: `report` reads what was kept from here as well.
        return write_stdout(&String::from_utf8_lossy(&document));
    }
    let files = written.len() + configs;
    write_text(&print::text(args, &answer, model.as_ref(), files))
}

/// What was read of the model whose size varies.
#[derive(Clone, Debug)]
struct ModelRead {
    summary: String,
    assumed: Vec<String>,
}

/// A ranking, and the model that it is about.
struct Answer {
    ranking: Ranking,
    model: Option<ModelRead>,
}

/// Everything up to the answer.
fn answer(args: &RankArgs) -> Result<Answer> {
    let laws = Laws::read(args)?;
    let law = laws.first()?;
    let place = Place::find(args)?;
    let resolved = inputs::resolve(args, law, &place.serving(args)?)?;
    let (mut inputs, mut ledger, model) = (resolved.inputs, resolved.ledger, resolved.model);
    // No other promise or bound was given that a doubled limit would break.
    let is_slow_allowed = args.tpot.is_none()
        && args.ttft.is_none()
        && args.max_serve_cost.is_none()
        && matches!(place, Place::Here(_));
    // A target out of reach is found before minutes of measuring.
    let sources = place.sources(args, &law.on(&inputs.template), &mut inputs)?;
    let device = inputs.device.spec.clone();
    let stack = sources.stack(&device, sources.engine())?;
    note_sources(&mut ledger, &sources, &device);
    let is_default = args.law == "all" && args.law_weights.is_none();
    ledger.note("--law", &laws.names(), None, "the first lists its candidates", is_default);
    let mut provenance = Provenance {
        profile: used(&sources, &inputs)?,
        law_id: laws.info.id.clone(),
        law_source: laws.info.source.clone(),
        law_uncertainty: uncertainty(law),
        assumptions: ledger.into_entries(),
        warnings: warnings(&sources),
    };
    let latency = Arc::clone(&stack) as Arc<dyn LatencyModel>;
    let origin = origin_in(&stack);
    for _ in 0..SLOWER_LIMITS {
        let told = provenance.clone();
        match rank(&laws.members, (Arc::clone(&latency), &origin), &inputs, told) {
            Err(Error::Infeasible { .. }) if is_slow_allowed => {
                double_limit(&mut inputs.level.tpot, &mut provenance);
            }
            done => return Ok(Answer { ranking: done?, model }),
        }
    }
    let ranking = rank(&laws.members, (latency, &origin), &inputs, provenance)?;
    Ok(Answer { ranking, model })
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

/// Where latencies will come from.
enum Place {
    /// What `--profile` names.
    Named(Sources),
    /// This machine.
    Here(Machine),
}

impl Place {
    fn find(args: &RankArgs) -> Result<Self> {
        if args.source.profile.is_empty() || args.source.profile == ["auto"] {
            return Ok(Self::Here(Machine::find(args.measure_again)?));
        }
        Sources::read(&args.source).map(Self::Named)
    }

    /// The serving device as it is known now.
    fn serving(&self, args: &RankArgs) -> Result<Serving> {
        match self {
            Self::Named(sources) => serving(sources, args.device.as_deref()),
            Self::Here(machine) => Ok(Serving {
                spec: machine.device()?,
                costs: EngineCosts::bare(0.0),
                dtype: DType::Bf16,
                is_own: true,
            }),
        }
    }

    /// The latencies, with this machine measured if it has to be; `inputs` learn what that told.
    fn sources(self, args: &RankArgs, law: &Scaling, inputs: &mut RankInputs) -> Result<Sources> {
        let machine = match self {
            Self::Named(sources) => return Ok(sources),
            Self::Here(machine) => machine,
        };
        let widths = middle_too(layer_widths(law, inputs)?);
        let item = machine.profile(args, &widths, (&inputs.experts, inputs.template.top_k))?;
        let flags = ProfileArgs { include_noisy: true, ..args.source.clone() };
        let sources = Sources::new(vec![item], &flags)?;
        if let Some(device) = sources.device()? {
            let chunk_tokens = inputs.device.costs.chunk_tokens;
            inputs.device.costs = EngineCosts { chunk_tokens, ..sources.costs()? };
            inputs.device.spec = device;
        }
        Ok(sources)
    }
}

/// The device that named sources price, and what is known of it.
fn serving(sources: &Sources, named: Option<&str>) -> Result<Serving> {
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
fn warnings(sources: &Sources) -> Vec<String> {
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

fn note_sources(ledger: &mut Ledger, sources: &Sources, device: &DeviceSpec) {
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

/// The two outer layers and the one between them: three widths tell how well one predicts another.
/// The middle comes first, because most candidates lie around it.
fn middle_too([low, high]: [(usize, usize); 2]) -> Vec<(usize, usize)> {
    let between = |a: usize, b: usize| {
        let product = (a as f64 * b as f64).sqrt() / 64.0;
        nearest_whole(product) * 64
    };
    let middle = (between(low.0, high.0), between(low.1, high.1));
    let mut widths = vec![middle, low, high];
    widths.dedup();
    if widths.len() < 2 {
        // A single width would say nothing about its neighbours.
        widths.push((low.0 / 2, low.1 / 2));
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_widths_lie_in_order_around_the_middle() {
        assert_eq!(
            middle_too([(512, 1536), (2048, 6144)]),
            [(1024, 3072), (512, 1536), (2048, 6144)]
        );
        let same = middle_too([(512, 1536), (512, 1536)]);
        assert_eq!(same, [(512, 1536), (256, 768)]);
    }
}
