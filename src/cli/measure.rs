//! `measure`: times MoE layers on a device and writes a latency profile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::output::{Output, warn, write_stdout};
use crate::cli::parse::{CountList, count_list, duration};
use crate::cli::progress::Progress;
use crate::cli::signals::Stop;
use crate::cli::store;
use crate::config::DType;
use crate::files::{check_writable, write_atomic};
use crate::gpu::CudaDevice;
use crate::kernels::MoeBackend;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::gpu::{GpuBackend, MoeOptions, PRODUCTS, Product};
use crate::measure::record::{Cell, Profile};
use crate::measure::sampling::BlockRule;
use crate::measure::{
    CpuTarget, GpuTarget, Invocation, Observer, Plan, Request, Session, Target, preflight, routings,
};
use crate::profile::format;
use crate::profile::latency::{Ceilings, Source};
use crate::profile::validate::query_of;
use crate::units::Seconds;
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// How long `measure` waits for other programs to leave the processor alone.
const QUIET: Duration = Duration::from_secs(5);

/// Times MoE layers and the device's ceilings; writes a latency profile.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  moe-frontier measure --experts 4,8,16,32 --hidden 1024 --inter \
                        3584 --tokens 1-256*4 --out profile.json"
)]
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
    /// Storage of the weights: bf16, f32 on processors, fp8 (e4m3 in blocks of 128 x 128) on GPUs.
    #[arg(long, default_value = "bf16", value_parser = executed_dtype)]
    pub dtype: DType,
    /// Routing: balanced, uniform, zipf:S, power-law:A, dirichlet:C, hot:SHARE, all-to-one,
    /// prototype, trace:FILE.
    #[arg(long, default_value = "uniform")]
    pub routing: String,
    /// Time that the rounds may take; it cuts the list of cells, never the rounds.
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub time_budget: Seconds,
    /// Short blocks: more cells in the time, with wider intervals.
    #[arg(long)]
    pub quick: bool,
    /// Threads of the kernels [default: all that this process may use].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Seed of data and routing.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// File to write [default: a new file in the folder of measured profiles].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Kernel of one of a GPU's products instead of the planned one, by name; for both, give it twice.
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Also write which expert each token visits, of every cell, as JSON: for timing other programs'
    /// kernels on the same tokens.
    #[arg(long)]
    pub routing_out: Option<PathBuf>,
    /// Replace existing files.
    #[arg(long)]
    pub force: bool,
}

/// The device that a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The GPU if its kernels can run, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Gpu(u32),
}

/// Parses a [`DeviceChoice`].
///
/// # Errors
/// A message that names the accepted forms.
pub fn device_choice(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "gpu" => Ok(DeviceChoice::Gpu(0)),
        _ => text
            .strip_prefix("gpu:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Gpu)
            .ok_or_else(|| "write auto, cpu, gpu or gpu:N".into()),
    }
}

fn executed_dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" => Ok(DType::Bf16),
        "f32" => Ok(DType::F32),
        "fp8" => Ok(DType::Fp8),
        _ => Err("kernels execute bf16, f32 (processors) and fp8 (GPUs)".into()),
    }
}

impl DeviceChoice {
    /// Opens the device and hands its backend and what is measured of it to `work`.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU was asked for that is not there; whatever `work` reports.
    pub fn open<T>(
        self,
        kernels: &[String],
        work: impl FnOnce(&dyn MoeBackend, &dyn Target) -> Result<T>,
    ) -> Result<T> {
        let ordinal = match self {
            Self::Cpu => None,
            Self::Auto => crate::gpu::probe().ok().and_then(|found| Some(found.first()?.ordinal)),
            Self::Gpu(ordinal) => Some(ordinal),
        };
        let opened = match ordinal.map(|ordinal| open_gpu(ordinal, options(kernels)?)) {
            Some(Err(error)) if self == Self::Auto => {
                warn(&format!("the GPU is not used: {error}"));
                None
            }
            opened => opened.transpose()?,
        };
        match opened {
            Some(backend) => work(&backend, &GpuTarget::new(&backend)?),
            None if kernels.is_empty() => work(&CpuBackend::new(), &CpuTarget::default()),
            None => {
                Err(Error::usage("--kernel", "kernels are chosen on a GPU; the processor has one"))
            }
        }
    }
}

/// A GPU with the kernels loaded that every layer needs.
///
/// # Errors
/// [`Error::Device`] when it cannot be opened or has no kernels.
pub(super) fn open_gpu(ordinal: u32, options: MoeOptions) -> Result<GpuBackend<CudaDevice>> {
    let mut device = CudaDevice::open(ordinal)?;
    for kernel in ["router_topk_f32", "align_small", "combine_bf16"] {
        device.load(kernel)?;
    }
    let gpu = device.gpu();
    let description =
        format!("{}, compute capability {}, CUDA {}", gpu.name, gpu.sm, gpu.driver_cuda);
    GpuBackend::new(device, description, options)
}

/// Options that name the kernels of `--kernel`.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, and for two of one product.
fn options(kernels: &[String]) -> Result<MoeOptions> {
    let mut options = MoeOptions::default();
    for name in kernels {
        let Some(kernel) = PRODUCTS.iter().find(|k| k.name == name) else {
            let known: Vec<&str> = PRODUCTS.iter().map(|k| k.name).collect();
            return Err(Error::usage(
                "--kernel",
                format!("`{name}` is unknown; there are {}", known.join(", ")),
            ));
        };
        let place = match kernel.product {
            Product::Up => &mut options.up,
            Product::Down | Product::DownFast => &mut options.down,
        };
        if place.replace(name.clone()).is_some() {
            return Err(Error::usage("--kernel", "names two kernels of one product"));
        }
    }
    Ok(options)
}

/// Runs the command.
///
/// # Errors
/// See [`Error`]; nothing is written unless the profile is complete.
pub fn run(args: &MeasureArgs, output: Output) -> Result<()> {
    let routing: RoutingKind = args.routing.parse()?;
    for path in args.out.iter().chain(&args.routing_out) {
        check_writable(path, args.force)?;
    }
    let request = Request {
        widths: widths(args)?,
        experts: args.experts.0.clone(),
        top_k: args.top_k,
        gated: true,
        tokens: args.tokens.as_ref().map(|t| t.0.clone()),
        dtype: args.dtype,
        routing,
        seed: args.seed,
        budget: Duration::from_secs_f64(args.time_budget.0.min(86_400.0)),
        rule: if args.quick { BlockRule::QUICK } else { BlockRule::FULL },
    };
    if args.top_k == 0 {
        return Err(Error::usage("--top-k", "a token visits at least one expert"));
    }
    if let Some(experts) = request.experts.iter().find(|e| **e < args.top_k) {
        return Err(Error::usage(
            "--top-k",
            format!("{} exceeds the {experts} experts of one of the layers", args.top_k),
        ));
    }
    let profile = in_pool(args.threads, || {
        args.device.open(&args.kernels, |backend, target| {
            measure_on(backend, target, request, |plan| match &args.routing_out {
                Some(path) => write_routing(path, plan, args.force),
                None => Ok(()),
            })
        })
    })?;
    let path = match &args.out {
        Some(path) => {
            format::write(path, &profile, args.force)?;
            path.clone()
        }
        None => store::save(&store::folder()?, &profile)?,
    };
    if output.is_json() {
        let document = format::to_bytes(&profile)?;
        return write_stdout(&String::from_utf8_lossy(&document));
    }
    write_stdout(&format!("{}\nwritten to {}\n", text(&profile), path.display()))
}

/// (hidden, inter) of the layers asked for.
fn widths(args: &MeasureArgs) -> Result<Vec<(usize, usize)>> {
    let hidden = &args.hidden.0;
    let inter: Vec<usize> = match &args.inter {
        None => hidden.iter().map(|h| h * 7 / 2).collect(),
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

/// Runs `work` on a pool with the given number of threads, or on the common one.
///
/// # Errors
/// Whatever `work` reports; [`Error::Device`] when threads cannot be started.
pub fn in_pool<T: Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(threads) = threads else { return work() };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(usize::from(threads))
        .build()
        .map_err(|e| Error::device("cpu", e.to_string()))?;
    pool.install(work)
}

/// Plans and measures on a device, with progress on stderr.
///
/// # Errors
/// See [`DeviceChoice::open`] and [`Session::run`].
pub fn measure(device: DeviceChoice, request: Request) -> Result<Profile> {
    device.open(&[], |backend, target| measure_on(backend, target, request, |_| Ok(())))
}

/// Writes the routings of a plan's cells.
fn write_routing(path: &Path, plan: &Plan, force: bool) -> Result<()> {
    let mut document =
        serde_json::to_vec(&routings(plan)?).map_err(|e| Error::unfit("routing", e.to_string()))?;
    document.push(b'\n');
    write_atomic(path, &document, force)
}

fn measure_on(
    backend: &dyn MoeBackend,
    target: &dyn Target,
    request: Request,
    planned: impl FnOnce(&Plan) -> Result<()>,
) -> Result<Profile> {
    // Said before gigabytes of weights are drawn.
    backend.check_weights(request.dtype)?;
    let session = Session::new(backend, target);
    let threads = target.host_threads();
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    if !preflight::wait_until_quiet(threads, cores, QUIET) {
        warn("other programs use the processor: intervals will be wide and cells flagged");
    }
    for note in target.notes() {
        warn(&note);
    }
    let machine = session.machine(request.dtype)?;
    let plan = Plan::new(request, &machine)?;
    for left_out in &plan.left_out {
        warn(&format!("not measured: {left_out}"));
    }
    planned(&plan)?;
    let stop = Stop::listen()?;
    let what = format!("measuring {} cells on {}", plan.cells.len(), target.device().name());
    let mut bar = Bar { progress: None, what };
    let argv = std::env::args().skip(1).collect();
    let invocation =
        Invocation { program: concat!("moe-frontier ", env!("CARGO_PKG_VERSION")).into(), argv };
    let profile = session
        .run(&plan, invocation, &mut bar, stop.flag())
        .map_err(|e| stop.explain(e, "; nothing was written"));
    bar.finish();
    profile
}

/// The observer that draws the progress bar.
struct Bar {
    progress: Option<Progress>,
    what: String,
}

impl Observer for Bar {
    fn step(&mut self, done: usize, total: usize, what: &str) {
        let progress = self.progress.get_or_insert_with(|| Progress::new(&self.what, total as u64));
        progress.update(done as u64, total as u64, what);
    }

    fn notice(&mut self, message: &str) {
        match &self.progress {
            Some(progress) => progress.aside(|| warn(message)),
            None => warn(message),
        }
    }
}

impl Bar {
    fn finish(self) {
        if let Some(progress) = self.progress {
            progress.finish();
        }
    }
}

/// The profile as a table.
fn text(profile: &Profile) -> String {
    let run = &profile.run;
    let c = &run.ceilings;
    let ceilings = Ceilings {
        read_bytes_per_s: c.read_bytes_per_s,
        gemm_flops_per_s: c.gemm_flops_per_s,
        layer_overhead_s: 0.0,
        source: Source::Measured,
    };
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    // Long reasons wrap within their column.
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic).set_width(100);
    table.set_header([
        "hidden",
        "inter",
        "experts",
        "top-k",
        "tokens",
        "time",
        "95 % interval",
        "GFLOP/s",
        "GB/s",
        "share",
        "status",
    ]);
    for cell in &profile.cells {
        table.add_row(row(cell, &ceilings));
    }
    format!(
        "{} ({} threads), MoE layer\nceilings: read {:.1} GB/s, {} {:.0} GFLOP/s; noise floor {:.1} % ({:?}); {} rounds\n\n{table}\n\nshare: of the roofline under these ceilings\n",
        profile.key.device.name(),
        match &profile.key.device {
            crate::measure::record::Device::Cpu(cpu) => cpu.threads,
            crate::measure::record::Device::Gpu(_) => 1,
        },
        c.read_bytes_per_s / 1e9,
        c.gemm_kernel,
        c.gemm_flops_per_s / 1e9,
        100.0 * run.noise_floor_rel,
        run.aa_verdict,
        run.rounds,
    )
}

fn row(cell: &Cell, ceilings: &Ceilings) -> Vec<String> {
    let mut row: Vec<String> = [cell.hidden, cell.inter, cell.experts, cell.top_k, cell.tokens]
        .iter()
        .map(ToString::to_string)
        .collect();
    let flags: Vec<String> = cell.flags.iter().map(|f| format!("{f:?}").to_lowercase()).collect();
    let status = [vec![format!("{:?}", cell.status).to_lowercase()], flags].concat().join(", ");
    if let Some(interval) = cell.latency.interval() {
        let seconds = |ps: u64| Seconds(ps as f64 * 1e-12);
        let time = seconds(interval.median_ps);
        row.extend([
            time.to_string(),
            format!("{} .. {}", seconds(interval.lo_ps), seconds(interval.hi_ps)),
            format!("{:.1}", cell.work.flops / time.0 / 1e9),
            format!("{:.1}", cell.work.bytes_min / time.0 / 1e9),
            format!("{:.2}", query_of(cell).roofline(ceilings) / time),
            status,
        ]);
    } else {
        let reason = match &cell.latency {
            crate::measure::record::LatencyRecord::Absent(reason) => reason.clone(),
            crate::measure::record::LatencyRecord::Interval(_) => String::new(),
        };
        row.extend(["-".into(), reason, "-".into(), "-".into(), "-".into(), status]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        assert_eq!(device_choice("gpu:3"), Ok(DeviceChoice::Gpu(3)));
        assert_eq!(device_choice("gpu"), Ok(DeviceChoice::Gpu(0)));
        assert!(device_choice("gpu:x").is_err() && device_choice("tpu").is_err());
        assert!(executed_dtype("fp8").is_err());
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
        let ignored = DeviceChoice::Cpu.open(&names(&["gemv_bf16_up"]), |_, _| Ok(()));
        assert_eq!(ignored.unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_table_names_every_cell_and_the_ceilings() {
        let mut profile = crate::profile::synthetic::profile(&[(512, 1536)], 0.01);
        profile.cells.truncate(2);
        profile.cells[1].latency = crate::measure::record::LatencyRecord::Absent("oom".into());
        let text = text(&profile);
        assert!(text.contains("read 20.0 GB/s") && text.contains("oom"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}
