//! Where a ranking's latencies come from: a stored profile, one measured now, or a device's published
//! peaks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::measure::{DeviceChoice, measure};
use crate::cli::output::warn;
use crate::cli::rank::RankArgs;
use crate::cli::store;
use crate::config::{DType, DeviceSpec};
use crate::latency::latency::LatencyModel;
use crate::latency::measured::format;
use crate::latency::measured::table::{Outside, Policy, Transfer};
use crate::latency::{LatencyTable, RooflineModel, Source};
use crate::measure::Request;
use crate::measure::record::{Cell, Device, Profile, TimingMode};
use crate::measure::sampling::BlockRule;
use crate::measure::worker::Facts;
use crate::plan::outcome::ProfileUsed;
use crate::units::{Bytes, UsdPerHour};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// Shares of a device's peaks that a roofline assumes, and its cost per layer and step: medians of
/// published serving kernels at decode and prefill, and of an engine's time per layer.
const ROOFLINE: (f64, f64, f64) = (0.8, 0.5, 60e-6);

/// A general-purpose cloud machine costs about this much per thread and hour: $0.2016 for the four of
/// an `m7i.xlarge`, on demand.
const USD_PER_THREAD_HOUR: f64 = 0.05;

/// What is known of the serving device before its latencies are.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    /// Name as its vendor or driver gives it.
    pub(super) name: String,
    /// All memory of one device.
    pub(super) memory: Bytes,
    /// Bits of one weight in the profile, or in what will be measured.
    pub(super) weight_bits: f64,
    /// Whether a profile was, or will be, measured on it.
    pub(super) is_measured: bool,
    /// Whether it is a host processor, alone by itself.
    pub(super) is_cpu: bool,
    /// Known price of one device, with its source.
    pub(super) price: Option<(UsdPerHour, String)>,
    /// Link bandwidth per direction, bytes per second, where known.
    pub(super) link_bytes_per_s: Option<f64>,
}

/// Latencies, what they rest on, and things to know about them.
pub(super) struct Latencies {
    pub(super) model: Box<dyn LatencyModel>,
    pub(super) used: ProfileUsed,
    pub(super) weight_bits: f64,
    pub(super) warnings: Vec<String>,
}

/// The profile that a user named, before anything is measured.
pub(super) enum Choice {
    /// A profile that was read.
    Stored { origin: String, profile: Box<Profile> },
    /// This machine's device, to be measured.
    MeasureNow(Box<Device>),
    /// A device known by its published peaks.
    Published(Box<DeviceSpec>),
}

impl Choice {
    /// Finds what `--profile` names.
    ///
    /// # Errors
    /// For a file that cannot be read or is no profile, and for an unknown name.
    pub(super) fn find(args: &RankArgs) -> Result<Self> {
        if args.profile == "auto" {
            return this_machine(args);
        }
        let path = Path::new(&args.profile);
        let is_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
            || args.profile.contains(std::path::MAIN_SEPARATOR);
        if is_file {
            let profile = Box::new(format::read(path)?);
            return Ok(Self::Stored { origin: args.profile.clone(), profile });
        }
        DeviceSpec::load(&args.profile).map(|spec| Self::Published(Box::new(spec))).map_err(|e| {
            match e {
                Error::Usage { reason, .. } => Error::usage(
                    "--profile",
                    format!("{reason}; a profile file ends in .json, `auto` is this machine"),
                ),
                other => other,
            }
        })
    }

    /// What is known of the serving device now.
    pub(super) fn serving(&self) -> Serving {
        match self {
            Self::Stored { profile, .. } => {
                let first = profile.cells.iter().find(|c| c.is_usable());
                let weight_bits = first.map_or(DType::Bf16.bits(), |c| c.weight_bits);
                Serving { weight_bits, ..of_device(&profile.key.device) }
            }
            Self::MeasureNow(device) => of_device(device),
            Self::Published(spec) => Serving {
                name: spec.name.clone(),
                memory: Bytes(spec.memory_bytes),
                weight_bits: DType::Bf16.bits(),
                is_cpu: false,
                is_measured: false,
                price: spec
                    .price()
                    .map(|(usd, p)| (usd, format!("{} ({}, {})", p.source, p.tier, p.date))),
                link_bytes_per_s: Some(spec.link_bytes_per_s),
            },
        }
    }

    /// Makes the latencies, measuring layers of `widths` if nothing was stored.
    ///
    /// # Errors
    /// See [`Session::run`] and [`LatencyTable::new`].
    pub(super) fn latencies(
        self,
        args: &RankArgs,
        widths: &[(usize, usize)],
        experts: &[usize],
    ) -> Result<Latencies> {
        let auto = args.profile == "auto";
        match self {
            Self::Stored { origin, profile } if !auto || covers(&profile, widths, experts) => {
                from_profile(&profile, origin, args.include_noisy || auto)
            }
            Self::Stored { .. } | Self::MeasureNow(_) => {
                let profile =
                    measure(DeviceChoice::Auto, |facts| request(args, widths, experts, facts))?;
                let origin = match keep(&profile) {
                    Ok(path) => format!("measured now, kept as {}", path.display()),
                    Err(error) => {
                        warn(&format!("the profile was not kept: {error}"));
                        "measured now".into()
                    }
                };
                from_profile(&profile, origin, true)
            }
            Self::Published(spec) => roofline(&spec),
        }
    }
}

fn keep(profile: &Profile) -> Result<PathBuf> {
    store::save(&store::folder()?, profile)
}

/// The newest stored profile of this machine that says something about shapes it did not measure, or
/// the device that is to be measured.
fn this_machine(args: &RankArgs) -> Result<Choice> {
    let Facts { device, kernel_sha256: kernels, .. } = DeviceChoice::Auto.facts()?;
    let transfers = |profile: &Profile| {
        LatencyTable::new(profile, policy(true)).is_ok_and(|t| t.transfer_error().is_some())
    };
    let stored = store::folder()
        .ok()
        .filter(|_| !args.measure_again)
        .and_then(|folder| store::newest(&folder, &device.sha256(), &kernels, transfers));
    Ok(match stored {
        Some((path, profile)) => {
            Choice::Stored { origin: path.display().to_string(), profile: Box::new(profile) }
        }
        None => Choice::MeasureNow(Box::new(device)),
    })
}

/// Whether a profile's cells lie within a factor of two of every layer asked about.
fn covers(profile: &Profile, widths: &[(usize, usize)], experts: &[usize]) -> bool {
    let span = |of: fn(&Cell) -> usize| {
        let values = || profile.cells.iter().filter(|c| c.is_usable()).map(of);
        Some((values().min()?, values().max()?))
    };
    let within = |value: usize, span: Option<(usize, usize)>| {
        span.is_some_and(|(low, high)| low <= 2 * value && value <= 2 * high)
    };
    let (hidden, inter, most) = (span(|c| c.hidden), span(|c| c.inter), span(|c| c.experts));
    widths.iter().all(|w| within(w.0, hidden) && within(w.1, inter))
        && experts.iter().all(|e| most.is_some_and(|(_, high)| *e <= 2 * high))
}

fn of_device(device: &Device) -> Serving {
    let (is_cpu, price) = match device {
        Device::Cpu(cpu) => {
            let price = UsdPerHour(USD_PER_THREAD_HOUR * cpu.threads as f64);
            let source =
                "stated: $0.05 per thread and hour, a general-purpose cloud machine on demand";
            (true, Some((price, source.to_owned())))
        }
        Device::Gpu(_) => (false, None),
    };
    let spec = DeviceSpec::load(device.name()).ok();
    Serving {
        name: device.name().to_owned(),
        memory: Bytes(device.memory_bytes() as f64),
        weight_bits: DType::Bf16.bits(),
        is_cpu,
        is_measured: true,
        price: price.or_else(|| {
            let (usd, p) = spec.as_ref()?.price()?;
            Some((usd, format!("{} ({}, {})", p.source, p.tier, p.date)))
        }),
        link_bytes_per_s: spec.map(|s| s.link_bytes_per_s),
    }
}

const fn policy(include_noisy: bool) -> Policy {
    Policy { transfer: Transfer::AnyShape, outside: Outside::Refuse, include_noisy }
}

fn from_profile(profile: &Profile, origin: String, include_noisy: bool) -> Result<Latencies> {
    let table = LatencyTable::new(profile, policy(include_noisy))?;
    let cells: Vec<_> = profile.cells.iter().filter(|c| c.is_usable()).collect();
    let Some(first) = cells.first() else {
        return Err(Error::unfit("profile", "no usable cell"));
    };
    let origin = match table.timing() {
        (TimingMode::Cpu, _) => origin,
        (one, other) if one == other => format!("{origin} ({} cells)", one.label()),
        (decode, prompts) => format!(
            "{origin} ({} cells where memory is the limit, {} cells where arithmetic is)",
            decode.label(),
            prompts.label()
        ),
    };
    let mut warnings = Vec::new();
    let noisy = cells.iter().filter(|c| c.status == crate::measure::Status::Noisy).count();
    if include_noisy && noisy > 0 {
        warnings.push(format!(
            "{noisy} of {} cells are noisy (interval wider than 3 %, or other programs ran); they are used with their own intervals",
            cells.len()
        ));
    }
    if profile.run.aa_verdict == crate::measure::record::AaVerdict::Biased {
        warnings.push(
            "this machine finds differences between a kernel and itself: treat close calls as ties"
                .into(),
        );
    }
    let ceilings = &profile.run.ceilings;
    let used = ProfileUsed {
        origin,
        device: profile.key.device.name().to_owned(),
        source: Source::Transferred,
        dtype: first.dtype.label().to_owned(),
        measured_utc: Some(utc(profile.provenance.end_unix_s)),
        cells: Some(table.cells()),
        noise_floor_rel: Some(profile.run.noise_floor_rel),
        transfer_error_rel: table.transfer_error().map(|e| e.median.exp_m1()),
        read_bytes_per_s: ceilings.read_bytes_per_s,
        gemm_flops_per_s: ceilings.gemm_flops_per_s,
    };
    Ok(Latencies { model: Box::new(table), used, weight_bits: first.weight_bits, warnings })
}

fn roofline(spec: &DeviceSpec) -> Result<Latencies> {
    let peak = spec.peak(DType::Bf16).ok_or_else(|| {
        Error::unfit(
            &spec.name,
            "has no published bf16 rate; add one to its file under flops_per_s",
        )
    })?;
    let (eta, mu, overhead) = ROOFLINE;
    let model = RooflineModel::new(spec.read_bytes_per_s, peak, eta, mu, overhead)?;
    let rates = model.ceilings();
    let used = ProfileUsed {
        origin: format!("published peaks ({})", spec.source),
        device: spec.name.clone(),
        source: Source::Roofline,
        dtype: DType::Bf16.label().to_owned(),
        measured_utc: None,
        cells: None,
        noise_floor_rel: None,
        transfer_error_rel: None,
        read_bytes_per_s: rates.read_bytes_per_s,
        gemm_flops_per_s: rates.gemm_flops_per_s,
    };
    let warnings = vec![format!(
        "no measured profile of {} comes with this version; its latencies are a roofline at {:.0} % of bandwidth, {:.0} % of arithmetic and {:.0} us a layer",
        spec.name,
        100.0 * eta,
        100.0 * mu,
        1e6 * overhead
    )];
    Ok(Latencies { model: Box::new(model), used, weight_bits: 16.0, warnings })
}

/// What is measured for a ranking: quick blocks, one expert per token as the law's models have.
/// Cells are timed in every way that a cost may rest on.
fn request(
    args: &RankArgs,
    widths: &[(usize, usize)],
    experts: &[usize],
    facts: &Facts,
) -> Request {
    Request {
        widths: widths.to_vec(),
        experts: experts.to_vec(),
        top_k: 1,
        gated: true,
        tokens: None,
        dtype: DType::Bf16,
        routing: RoutingKind::Uniform,
        seed: args.seed,
        budget: Duration::from_secs_f64(args.time_budget.0.min(86_400.0)),
        rule: BlockRule::QUICK,
        modes: facts.modes.iter().copied().filter(|mode| mode.is_costed()).collect(),
    }
}

/// Seconds since 1970 as `2026-11-25T04:10:00Z`.
fn utc(unix_s: u64) -> String {
    let moment = std::time::UNIX_EPOCH + Duration::from_secs(unix_s);
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{CpuTarget, Target};

    #[test]
    fn a_processor_has_a_stated_price_and_stands_alone() {
        let device = CpuTarget::default().device();
        let serving = of_device(&device);
        assert!(serving.is_cpu && serving.memory.0 > 0.0);
        assert!(serving.price.unwrap().1.contains("stated"));
    }

    #[test]
    fn the_budget_is_sought_with_the_bits_of_the_stored_weights() {
        let mut profile = crate::latency::measured::synthetic::profile(&[(512, 1536)], 0.01);
        for cell in &mut profile.cells {
            cell.weight_bits = 32.0;
        }
        let stored = Choice::Stored { origin: "p.json".into(), profile: Box::new(profile) };
        assert!((stored.serving().weight_bits - 32.0).abs() < 1e-12);
    }

    #[test]
    fn a_profile_covers_layers_within_a_factor_of_two() {
        let profile =
            crate::latency::measured::synthetic::profile(&[(512, 1536), (1024, 3072)], 0.01);
        assert!(covers(&profile, &[(256, 768), (2048, 6144)], &[1, 64]));
        assert!(!covers(&profile, &[(200, 600)], &[8]));
        assert!(!covers(&profile, &[(4096, 6144)], &[8]));
        assert!(!covers(&profile, &[(512, 1536)], &[65]));
    }

    #[test]
    fn the_timing_modes_that_answer_are_told() {
        let mut profile =
            crate::latency::measured::synthetic::profile(&[(512, 1536), (1024, 3072)], 0.01);
        for cell in &mut profile.cells {
            cell.timing = TimingMode::Cold;
        }
        let origin =
            |profile: &Profile| from_profile(profile, "p.json".into(), false).unwrap().used.origin;
        assert_eq!(origin(&profile), "p.json (cold cells)");
        let more: Vec<Cell> = profile.cells.clone();
        let stream = |c: Cell| Cell { timing: TimingMode::Stream, ..c };
        profile.cells.extend(more.into_iter().map(stream));
        let both =
            "p.json (cold cells where memory is the limit, stream cells where arithmetic is)";
        assert_eq!(origin(&profile), both);
    }

    #[test]
    fn a_profile_says_what_it_is_used_for() {
        let profile =
            crate::latency::measured::synthetic::profile(&[(512, 1536), (1024, 3072)], 0.01);
        let latencies = from_profile(&profile, "p.json".into(), false).unwrap();
        assert_eq!((latencies.weight_bits, latencies.used.cells), (16.0, Some(110)));
        assert!(latencies.used.transfer_error_rel.unwrap() < 0.1);
        assert!(latencies.warnings.is_empty());
    }
}
