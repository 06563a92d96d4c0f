//! `measure`: times MoE layers on a device and writes a latency profile.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use crate::cli::output::{Output, warn, width, write_stdout, write_text};
use crate::cli::parse::{CountList, byte_list, count_list, duration};
use crate::cli::signals::Stop;
use crate::config::DType;
use crate::files::{check_writable, read_capped, write_atomic};
use crate::kernels::cpu::simd::Isa;
use crate::kernels::exchange::Copies;
use crate::latency::measured::format;
use crate::measure::folder;
use crate::measure::journal::Locking;
use crate::measure::sampling::BlockRule;
use crate::measure::shard::ShardChoice;
use crate::measure::sweep::SweepPlan;
use crate::measure::worker::Facts;
use crate::measure::{Plan, Request, routings};
use crate::record::group::Collective;
use crate::record::{Profile, TimingMode};
use crate::units::Seconds;
use crate::workload::RoutingKind;
use crate::{Error, Result};

mod device;
pub(super) mod group;
mod place;
pub(super) mod shard;
pub(super) mod table;

pub(super) use device::open_gpu;
pub use device::{DeviceChoice, KernelChoice, device_choice, in_pool};
pub use group::GroupKind;
use place::{Delivered, Home, Place};

/// Longest time that rounds may be given, in seconds.
const LONGEST_BUDGET_S: f64 = 86_400.0;

/// Times MoE layers and the device's ceilings; writes a latency profile.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier measure --experts 4,8,16,32 --hidden 1024 --inter \
                        3584 --tokens 1-256*4 --out profile.json"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct MeasureArgs {
    /// Device: auto, cpu, gpu or gpu:N.
    #[arg(long, default_value = "auto", value_parser = device_choice)]
    pub device: DeviceChoice,
    /// Expert counts.
    #[arg(long, default_value = "4,8,16,32", value_parser = count_list)]
    pub experts: CountList,
    /// Experts per token.
    #[arg(long, default_value_t = 2)]
    pub top_k: usize,
    /// Widths of the residual stream.
    #[arg(long, default_value = "1024", value_parser = count_list)]
    pub hidden: CountList,
    /// FFN width of one expert, one for all or one for each of --hidden [default: 3.5 x hidden].
    #[arg(long, value_parser = count_list)]
    pub inter: Option<CountList>,
    /// Tokens entering the layer, the most wanted first [default: what fits the time budget].
    #[arg(long, value_parser = count_list)]
    pub tokens: Option<CountList>,
    /// Storage of the weights: bf16; on CPUs also f32, and int8 with a scale per output channel;
    /// on GPUs fp8 (e4m3 in blocks of 128 x 128).
    #[arg(long, visible_alias = "weights", default_value = "bf16", value_parser = executed_dtype)]
    pub dtype: DType,
    /// Routing: balanced, uniform, zipf:S, power-law:A, dirichlet:C, hot:SHARE, all-to-one,
    /// prototype, trace:FILE.
    #[arg(long, default_value = "uniform")]
    pub routing: String,
    /// Time that the rounds may take, with the loading of weights, kept within 5 %; it cuts the list of cells,
    /// never the rounds.
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub time_budget: Seconds,
    /// Short blocks: more cells in the time, with wider intervals.
    #[arg(long)]
    pub quick: bool,
    /// Threads of the kernels [default: all that this process may use].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set of the CPU kernels: amx, avx512-bf16, avx512, avx2 or portable
    /// [default: the one that `doctor` names].
    #[arg(long, value_name = "NAME", value_parser = str::parse::<Isa>)]
    pub isa: Option<Isa>,
    /// Pack the CPU's weights once before they are measured, into a copy as large again.
    #[arg(long)]
    pub prepack: bool,
    /// How cells are timed on a GPU, one or more of cold (caches overwritten before each launch),
    /// stream (back to back over weights that rotate, as in serving) and hot (the same weights again
    /// and again: a bound, never a cost) [default: cold].
    #[arg(long = "mode", value_name = "MODE", value_delimiter = ',', value_parser = gpu_mode)]
    pub modes: Vec<TimingMode>,
    /// Seed of data and routing.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder of the run: plan, journal and profile; or, ending in .json, the file of the profile
    /// [default: a new file in the folder of measured profiles].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on with the run that is kept in this folder, with its plan.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "device", "experts", "top_k", "hidden", "inter", "tokens", "dtype", "routing", "time_budget",
        "quick", "threads", "isa", "prepack", "modes", "seed", "out", "kernels", "routing_out", "in_process",
    ])]
    pub resume: Option<PathBuf>,
    /// With --resume: copy the run up to the first damaged line of its journal into this new folder, and
    /// go on with that.
    #[arg(long, value_name = "NEW_DIR", requires = "resume")]
    pub repair: Option<PathBuf>,
    /// Write the journal without a lock, on file systems that have none.
    #[arg(long)]
    pub no_lock: bool,
    /// Only plan: write the cells into this file, for shards on machines of this kind.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "routing_out", "in_process", "no_lock"])]
    pub plan_out: Option<PathBuf>,
    /// Measure the plan of this file, which --plan-out wrote, into the folder --out; `merge` makes one
    /// profile of its shards. What is finished is not measured again.
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = [
        "device", "experts", "top_k", "hidden", "inter", "tokens", "dtype", "routing", "time_budget", "quick",
        "threads", "isa", "prepack", "modes", "seed", "kernels", "routing_out", "in_process", "plan_out",
        "resume", "overwrite",
    ])]
    pub plan: Option<PathBuf>,
    /// Which part of --plan: the first of eight is 0/8; auto takes it from a Slurm array, auto/8 from the
    /// task's number (Slurm, a Kubernetes indexed job, HyperQueue).
    #[arg(long, value_name = "I/N", requires = "plan", default_value = "0/1")]
    pub shard: ShardChoice,
    /// Measure layers whose experts are spread over the ranks of a group, and what goes between them. Started
    /// once a rank (mpirun, srun); the file --out is rank 0's.
    #[arg(long, value_name = "KIND", requires = "out", conflicts_with_all = [
        "plan", "shard", "plan_out", "resume", "modes", "kernels", "routing_out", "isa", "prepack", "in_process",
        "device", "time_budget", "no_lock", "details",
    ])]
    pub group: Option<GroupKind>,
    /// Ranks that the experts are spread over, to be sure: all of the group.
    #[arg(long, value_name = "N", requires = "group")]
    pub ep: Option<usize>,
    /// Number of this rank, from 0, where no launcher tells it.
    #[arg(long, requires = "group")]
    pub rank: Option<usize>,
    /// Ranks of the group, where no launcher tells it.
    #[arg(long, requires = "group")]
    pub world: Option<usize>,
    /// File by which the ranks of nccl meet, on a file system that all see; without it by `NCCL_COMM_ID`, or by what
    /// torchrun tells.
    #[arg(long, value_name = "FILE", requires = "group")]
    pub rendezvous: Option<PathBuf>,
    /// How often a token's row is sent: token-rank (once to each rank that has one of its experts or more) or
    /// token-expert (once for each expert).
    #[arg(long, default_value = "token-rank", value_parser = group::copies, requires = "group")]
    pub copies: Copies,
    /// Measure these collectives instead of layers: `all_reduce`, `all_to_all`, `all_gather`,
    /// `reduce_scatter`.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = collective, requires = "group",
        conflicts_with_all = ["experts", "top_k", "hidden", "inter", "tokens", "dtype", "routing", "copies"])]
    pub collectives: Vec<Collective>,
    /// Sizes of --collectives in bytes, as nccl-tests counts them.
    #[arg(long, default_value = "1K-16M*4", value_parser = byte_list, requires = "collectives")]
    pub bytes: CountList,
    /// Kernel of one of a GPU's products instead of the planned one, by name; for both, give it twice.
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Also write which expert each token visits, of every cell, as JSON: for timing other programs'
    /// kernels on the same tokens.
    #[arg(long)]
    pub routing_out: Option<PathBuf>,
    /// Replace existing files, and a run that is kept in --out.
    #[arg(long)]
    pub overwrite: bool,
    /// Print every cell with its interval and its share of the roofline too.
    #[arg(long)]
    pub details: bool,
    /// Measure on the CPU in this process instead of one of its own.
    #[arg(long, hide = true)]
    pub in_process: bool,
}

fn gpu_mode(text: &str) -> Result<TimingMode, String> {
    let modes = [TimingMode::Cold, TimingMode::Stream, TimingMode::Hot];
    modes
        .into_iter()
        .find(|mode| mode.label() == text)
        .ok_or_else(|| "modes are cold, stream and hot".into())
}

fn collective(text: &str) -> Result<Collective, String> {
    let known = Collective::ALL.into_iter().find(|kind| kind.label() == text);
    known.ok_or_else(|| {
        "collectives are all_reduce, all_to_all, all_gather and reduce_scatter".into()
    })
}

fn executed_dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" => Ok(DType::Bf16),
        "f32" => Ok(DType::F32),
        "int8" => Ok(DType::Int8),
        "fp8" => Ok(DType::Fp8),
        _ => Err("kernels execute bf16, f32 and int8 (CPUs) and fp8 (GPUs)".into()),
    }
}

/// Runs the command.
///
/// # Errors
/// See [`Error`]. A run that ends early leaves a profile of what it had measured, marked as partial, and
/// its journal; one that has measured nothing leaves nothing.
pub fn run(args: &MeasureArgs, output: Output) -> Result<()> {
    let locking = if args.no_lock { Locking::Unlocked } else { Locking::Locked };
    if let Some(kind) = args.group {
        return group::run(args, kind, output);
    }
    if let Some(file) = &args.plan_out {
        return plan_out(args, file, output);
    }
    if let (Some(file), Some(out)) = (&args.plan, &args.out) {
        let shard = args.shard.resolve(&|name| std::env::var(name).ok())?;
        let sweep = SweepPlan::read(file)?;
        let folder = shard::SweepFolder::new(out, file);
        let delivered = place::measure_shard(&sweep, shard, (&folder, locking))?;
        return print(delivered, args.details, output);
    }
    let delivered = match &args.resume {
        Some(folder) => resume(folder, args.repair.as_deref(), locking)?,
        None => measure_new(args, locking)?,
    };
    print(delivered, args.details, output)
}

/// Prints a profile, or ends as its run did.
fn print(delivered: Delivered, details: bool, output: Output) -> Result<()> {
    let Delivered { profile, path, failure } = delivered;
    if matches!(failure, Some(Error::Interrupted { .. })) {
        return failure.map_or(Ok(()), Err);
    }
    if output.is_json() {
        let document = format::to_bytes(&profile)?;
        write_stdout(&String::from_utf8_lossy(&document))?;
    } else {
        let path = crate::error::shown(&path.display().to_string());
        let text = table::text(&profile, width(), details);
        write_text(&format!("{text}\nwritten to {path}\n"))?;
    }
    failure.map_or(Ok(()), Err)
}

fn resume(folder: &Path, repair: Option<&Path>, locking: Locking) -> Result<Delivered> {
    let Some(repaired) = repair else { return place::resume(folder, locking) };
    let kept = folder::repair(folder, repaired)?;
    warn(&format!("{kept} lines of the journal were whole and are in {}", repaired.display()));
    place::resume(repaired, locking)
}

fn measure_new(args: &MeasureArgs, locking: Locking) -> Result<Delivered> {
    if let Some(path) = &args.routing_out {
        check_writable(path, args.overwrite)?;
    }
    let request = request(args)?;
    let place = args.place();
    // From here on a signal is asked for, so that no folder of a run that never began stays.
    let stop = Stop::listen()?;
    let home = Home::prepare(args.out.as_deref(), args.overwrite, locking)?;
    let planned = |plan: &Plan| match &args.routing_out {
        Some(path) => write_routing(path, plan, args.overwrite, stop.flag()),
        None => Ok(()),
    };
    place::measure_new(&place, &home, request, planned, &stop)
}

/// Writes the plan of a sweep.
fn plan_out(args: &MeasureArgs, file: &Path, output: Output) -> Result<()> {
    check_writable(file, args.overwrite)?;
    let request = request(args)?;
    let stop = Stop::listen()?;
    let sweep = place::plan_sweep(&args.place(), request, (file, args.overwrite), &stop)?;
    if output.is_json() {
        return write_stdout(&String::from_utf8_lossy(&read_capped(file, u64::MAX)?));
    }
    let (cells, shown) = (sweep.plan.cells.len(), crate::error::shown(&file.display().to_string()));
    write_text(&format!(
        "{cells} cells, of which every shard measures the first {}\nwritten to {shown}\nmeasure them with: \
         moe-frontier measure --plan {shown} --shard 0/4 --out DIR, to 3/4; then moe-frontier merge DIR\n",
        sweep.anchors()
    ))
}

impl MeasureArgs {
    fn place(&self) -> Place<'_> {
        let Self { device, threads, in_process, .. } = self;
        let kernels = KernelChoice { products: &self.kernels, isa: self.isa, packed: self.prepack };
        Place { device: *device, kernels, threads: *threads, isolate: !in_process }
    }
}

/// What is to be measured, once the device is known.
fn request(args: &MeasureArgs) -> Result<impl FnOnce(&Facts) -> Result<Request> + Send> {
    let routing: RoutingKind = args.routing.parse()?;
    if args.top_k == 0 {
        return Err(Error::usage("--top-k", "a token visits at least one expert"));
    }
    if let Some(experts) = args.experts.0.iter().find(|e| **e < args.top_k) {
        return Err(Error::usage(
            "--top-k",
            format!("{} exceeds the {experts} experts of one of the layers", args.top_k),
        ));
    }
    if args.time_budget.0 > LONGEST_BUDGET_S {
        return Err(Error::usage("--time-budget", "is longer than a day; write at most 1440m"));
    }
    let widths = widths(args)?;
    Ok(move |facts: &Facts| {
        Ok(Request {
            widths,
            experts: args.experts.0.clone(),
            top_k: args.top_k,
            gated: true,
            tokens: args.tokens.as_ref().map(|t| t.0.clone()),
            dtype: args.dtype,
            routing,
            seed: args.seed,
            budget: Duration::from_secs_f64(args.time_budget.0),
            rule: if args.quick { BlockRule::QUICK } else { BlockRule::FULL },
            modes: match args.modes.as_slice() {
                [] => facts.modes.iter().copied().take(1).collect(),
                asked => asked.to_vec(),
            },
        })
    })
}

/// Measures this machine for another command, with the file in the folder of measured profiles. The run
/// is kept as [`run`] keeps it; where that folder cannot be written, it is measured without one and
/// there is no file.
///
/// # Errors
/// [`Error::Device`] when a GPU was asked for that is not there, or when it fails;
/// [`Error::Interrupted`] with how to go on.
pub(super) fn measure(
    device: DeviceChoice,
    request: impl FnOnce(&Facts) -> Request + Send,
) -> Result<(Profile, Option<PathBuf>)> {
    let place = Place { device, ..Place::default() };
    let request = |facts: &Facts| Ok(request(facts));
    let stop = Stop::listen()?;
    let (profile, path, failure) = match Home::prepare(None, false, Locking::Locked) {
        Ok(home) => {
            let Delivered { profile, path, failure } =
                place::measure_new(&place, &home, request, |_| Ok(()), &stop)?;
            (profile, Some(path), failure)
        }
        Err(error) => {
            warn(&format!("measured without a journal, an interruption loses it: {error}"));
            let measured = place::measure_unkept(&place, request, &stop)?;
            (measured.profile, None, measured.failure)
        }
    };
    failure.map_or(Ok((profile, path)), Err)
}

/// (hidden, inter) of the layers asked for.
fn widths(args: &MeasureArgs) -> Result<Vec<(usize, usize)>> {
    let hidden = &args.hidden.0;
    let inter: Vec<usize> = match &args.inter {
        None => hidden.iter().map(|h| h.saturating_mul(7) / 2).collect(),
        Some(list) if list.0.len() == 1 => vec![list.0[0]; hidden.len()],
        Some(list) if list.0.len() == hidden.len() => list.0.clone(),
        Some(list) => {
            return Err(Error::usage(
                "--inter",
                format!(
                    "{} values for {} of --hidden; give one or as many",
                    list.0.len(),
                    hidden.len()
                ),
            ));
        }
    };
    Ok(hidden.iter().copied().zip(inter).collect())
}

/// Writes the routings of a plan's cells.
fn write_routing(path: &Path, plan: &Plan, force: bool, stop: &AtomicBool) -> Result<()> {
    let mut document = serde_json::to_vec(&routings(plan, stop)?)
        .map_err(|e| Error::unfit("routing", e.to_string()))?;
    document.push(b'\n');
    write_atomic(path, &document, force)
}

#[cfg(test)]
mod tests {
    use super::device::options;
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        assert_eq!(device_choice("gpu:3"), Ok(DeviceChoice::Gpu(3)));
        assert_eq!(device_choice("gpu"), Ok(DeviceChoice::Gpu(0)));
        assert!(device_choice("gpu:x").is_err() && device_choice("tpu").is_err());
        assert!(executed_dtype("fp4").is_err());
    }

    #[test]
    fn kernels_are_named_once_a_product() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = options(&names(&["gemv_bf16_up", "gemv_bf16_down"])).unwrap();
        assert_eq!(both.up.as_deref(), Some("gemv_bf16_up"));
        assert_eq!(both.down.as_deref(), Some("gemv_bf16_down"));
        for wrong in [&["gemv_bf16_up", "gemv_bf16_up"][..], &["gemm"][..]] {
            assert_eq!(options(&names(wrong)).unwrap_err().exit_code(), 2);
        }
        let products = &names(&["gemv_bf16_up"]);
        let ignored = KernelChoice { products, ..KernelChoice::default() };
        assert_eq!(DeviceChoice::Cpu.open(ignored, |_, _| Ok(())).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn an_instruction_set_is_the_cpu_s_and_a_profile_s_identity() {
        let open = |device: DeviceChoice, isa| {
            let kernels = KernelChoice { isa: Some(isa), ..KernelChoice::default() };
            device.open(kernels, |backend, _| Ok((backend.description(), backend.kernel_sha256())))
        };
        let mut hashes = Vec::new();
        for isa in Isa::ALL {
            assert_eq!(open(DeviceChoice::Gpu(0), isa).unwrap_err().exit_code(), 2);
            match open(DeviceChoice::Auto, isa) {
                Ok((description, hash)) => {
                    assert!(description.starts_with(isa.label()), "{description}");
                    assert!(!hashes.contains(&hash), "{description} has another's hash");
                    hashes.push(hash);
                }
                Err(error) => {
                    assert!(!isa.is_available() && error.exit_code() == 6, "{error}");
                    assert!(error.to_string().contains(isa.label()), "{error}");
                }
            }
        }
        assert!(!hashes.is_empty());
    }

    #[test]
    fn the_table_names_every_cell_and_the_ceilings() {
        let mut profile = crate::latency::measured::synthetic::profile(&[(512, 1536)], 0.01);
        profile.cells.truncate(2);
        profile.cells[1].latency = crate::record::LatencyRecord::Absent("oom".into());
        let text = table::text(&profile, 100, true);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("read 20.0 GB/s") && flat.contains("oom"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}
