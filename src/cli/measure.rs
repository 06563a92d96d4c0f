//! `measure`: times MoE layers on a device and writes a latency profile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
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
use crate::kernels::cpu::simd::Isa;
use crate::kernels::gpu::{GpuBackend, MoeOptions, PRODUCTS, Product};
use crate::latency::Ceilings;
use crate::latency::measured::format;
use crate::latency::measured::validate::query_of;
use crate::measure::plan::Machine;
use crate::measure::record::{Cell, Profile, TimingMode};
use crate::measure::run::rounds;
use crate::measure::sampling::BlockRule;
use crate::measure::worker::{Facts, Limits, Process, Worker};
use crate::measure::{
    CpuTarget, GpuTarget, Invocation, Measured, Observer, Plan, Request, Session, Start, Target,
    preflight, routings,
};
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
    /// Storage of the weights: bf16; on processors also f32, and int8 with a scale per output channel;
    /// on GPUs fp8 (e4m3 in blocks of 128 x 128).
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
    /// Instruction set of the processor's kernels: amx, avx512-bf16, avx512, avx2 or portable
    /// [default: the one that `doctor` names].
    #[arg(long, value_name = "NAME", value_parser = str::parse::<Isa>)]
    pub isa: Option<Isa>,
    /// Pack the processor's weights once before they are measured, into a copy as large again.
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
    /// Measure in a process of its own, as on a GPU.
    #[arg(long, hide = true)]
    pub isolate: bool,
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

fn gpu_mode(text: &str) -> Result<TimingMode, String> {
    let modes = [TimingMode::Cold, TimingMode::Stream, TimingMode::Hot];
    modes
        .into_iter()
        .find(|mode| mode.label() == text)
        .ok_or_else(|| "modes are cold, stream and hot".into())
}

fn executed_dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" => Ok(DType::Bf16),
        "f32" => Ok(DType::F32),
        "int8" => Ok(DType::Int8),
        "fp8" => Ok(DType::Fp8),
        _ => Err("kernels execute bf16, f32 and int8 (processors) and fp8 (GPUs)".into()),
    }
}

/// Which of a device's kernels a user asked for; the default leaves the choice to the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelChoice<'a> {
    /// Names of a GPU's products.
    pub products: &'a [String],
    /// Instruction set of the processor.
    pub isa: Option<Isa>,
    /// Whether the processor's layers keep a packed copy of their weights.
    pub packed: bool,
}

impl KernelChoice<'_> {
    fn cpu(self) -> Result<CpuBackend> {
        if !self.products.is_empty() {
            return Err(Error::usage(
                "--kernel",
                "kernels are chosen on a GPU; for the processor, --isa",
            ));
        }
        let backend = self.isa.map_or_else(|| Ok(CpuBackend::new()), CpuBackend::with_isa)?;
        Ok(if self.packed { backend.with_packed_weights() } else { backend })
    }

    /// Whether kernels of the processor are chosen.
    const fn is_cpu(self) -> bool {
        self.isa.is_some() || self.packed
    }
}

impl DeviceChoice {
    /// The GPU that is meant, if one is: for `auto` the first that the driver lists, unless the
    /// processor's kernels are chosen.
    fn gpu(self, kernels: KernelChoice) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Auto if kernels.is_cpu() => None,
            Self::Auto => crate::gpu::probe().ok().and_then(|found| Some(found.first()?.ordinal)),
            Self::Gpu(ordinal) => Some(ordinal),
        }
    }

    /// Opens the device in this process and hands its backend and what is measured of it to `work`.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU or an instruction set was asked for that is not there;
    /// [`Error::Usage`] for kernels of another device; whatever `work` reports.
    pub(super) fn open<T>(
        self,
        kernels: KernelChoice,
        work: impl FnOnce(&dyn MoeBackend, &dyn Target) -> Result<T>,
    ) -> Result<T> {
        match self.gpu(kernels) {
            Some(_) if kernels.is_cpu() => Err(Error::usage(
                "--isa and --prepack",
                "are for the processor; a GPU has --kernel",
            )),
            Some(ordinal) => {
                let backend = open_gpu(ordinal, options(kernels.products)?)?;
                work(&backend, &GpuTarget::new(&backend)?)
            }
            None => work(&kernels.cpu()?, &CpuTarget::default()),
        }
    }

    /// The device and the kernels on it, as [`measure`] would find them.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU was asked for that is not there.
    pub(super) fn facts(self) -> Result<Facts> {
        let place = Place { device: self, ..Place::default() };
        match place.worker(&AtomicBool::new(false))? {
            Some(process) => Ok(process.facts().clone()),
            None => Self::Cpu.open(KernelChoice::default(), |backend, target| {
                Ok(Session::new(backend, target).facts())
            }),
        }
    }
}

/// Where and with what cells are measured.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    device: DeviceChoice,
    kernels: KernelChoice<'a>,
    threads: Option<u16>,
    /// In a process of its own also where the device does not ask for it.
    isolate: bool,
}

impl Default for Place<'_> {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            kernels: KernelChoice::default(),
            threads: None,
            isolate: false,
        }
    }
}

impl Place<'_> {
    /// The process that measures: on a GPU always another one, because a kernel that breaks the context
    /// takes its process along. `None`: this process measures, on the processor.
    fn worker(&self, stop: &AtomicBool) -> Result<Option<Process>> {
        let gpu = self.device.gpu(self.kernels);
        if gpu.is_none() && !self.isolate {
            return Ok(None);
        }
        let program = std::env::current_exe()
            .map_err(|e| Error::device("worker", format!("this program is not found: {e}")))?;
        let mut command = Command::new(program);
        command.args(["worker", "--device"]);
        command.arg(gpu.map_or_else(|| "cpu".to_owned(), |ordinal| format!("gpu:{ordinal}")));
        let KernelChoice { products, isa, packed } = self.kernels;
        command.args(products.iter().flat_map(|kernel| ["--kernel", kernel]));
        command.args(isa.iter().flat_map(|isa| ["--isa", isa.flag()]));
        command.args(packed.then_some("--prepack"));
        command.args(self.threads.iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]));
        match Process::start(command, Limits::default(), stop) {
            Ok(process) => Ok(Some(process)),
            Err(error @ Error::Device { .. })
                if self.device == DeviceChoice::Auto && gpu.is_some() =>
            {
                warn(&format!("the GPU is not used: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Plans and measures, with progress on stderr.
    fn measure(
        &self,
        request: impl FnOnce(&Facts) -> Result<Request> + Send,
        planned: impl FnOnce(&Plan) -> Result<()> + Send,
    ) -> Result<Measured> {
        let stop = Stop::listen()?;
        let measured = match self.worker(stop.flag()) {
            Ok(Some(mut process)) => {
                let facts = process.facts().clone();
                let request = settled(&facts, request)?;
                let machine = process.machine(request.dtype, stop.flag());
                machine.and_then(|machine| {
                    let plan = plan(request, &machine, planned)?;
                    let mut bar = Bar::new(&plan, &facts);
                    let start = Start::now();
                    bar.step(0, 1, "drawing weights");
                    process.load(&plan, stop.flag())?;
                    let begun = (invocation(), start);
                    let measured = rounds(&mut process, &plan, begun, &mut bar, stop.flag());
                    bar.finish();
                    measured
                })
            }
            Ok(None) => in_pool(self.threads, || {
                DeviceChoice::Cpu.open(self.kernels, |backend, target| {
                    let session = Session::new(backend, target);
                    let facts = session.facts();
                    let request = settled(&facts, request)?;
                    let plan = plan(request.clone(), &session.machine(request.dtype)?, planned)?;
                    let mut bar = Bar::new(&plan, &facts);
                    let profile = session.run(&plan, invocation(), &mut bar, stop.flag());
                    bar.finish();
                    Ok(Measured { profile: profile?, failure: None })
                })
            }),
            Err(error) => Err(error),
        };
        measured.map_err(|e| stop.explain(e, "; nothing was written"))
    }
}

/// The request, on a machine that has become quiet.
fn settled(facts: &Facts, request: impl FnOnce(&Facts) -> Result<Request>) -> Result<Request> {
    let request = request(facts)?;
    facts.check_modes(&request.modes)?;
    let threads = facts.host_threads;
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    if !preflight::wait_until_quiet(threads, cores, QUIET) {
        warn("other programs use the processor: intervals will be wide and cells flagged");
    }
    for note in &facts.notes {
        warn(note);
    }
    Ok(request)
}

fn plan(
    request: Request,
    machine: &Machine,
    planned: impl FnOnce(&Plan) -> Result<()>,
) -> Result<Plan> {
    let plan = Plan::new(request, machine)?;
    for left_out in &plan.left_out {
        warn(&format!("not measured: {left_out}"));
    }
    planned(&plan)?;
    Ok(plan)
}

fn invocation() -> Invocation {
    let program = concat!("moe-frontier ", env!("CARGO_PKG_VERSION")).into();
    Invocation { program, argv: std::env::args().skip(1).collect() }
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
/// See [`Error`]. A device that fails leaves the profile of what it had brought; after anything else
/// nothing is written.
pub fn run(args: &MeasureArgs, output: Output) -> Result<()> {
    let routing: RoutingKind = args.routing.parse()?;
    for path in args.out.iter().chain(&args.routing_out) {
        check_writable(path, args.force)?;
    }
    if args.top_k == 0 {
        return Err(Error::usage("--top-k", "a token visits at least one expert"));
    }
    if let Some(experts) = args.experts.0.iter().find(|e| **e < args.top_k) {
        return Err(Error::usage(
            "--top-k",
            format!("{} exceeds the {experts} experts of one of the layers", args.top_k),
        ));
    }
    let widths = widths(args)?;
    let request = |facts: &Facts| {
        Ok(Request {
            widths,
            experts: args.experts.0.clone(),
            top_k: args.top_k,
            gated: true,
            tokens: args.tokens.as_ref().map(|t| t.0.clone()),
            dtype: args.dtype,
            routing,
            seed: args.seed,
            budget: Duration::from_secs_f64(args.time_budget.0.min(86_400.0)),
            rule: if args.quick { BlockRule::QUICK } else { BlockRule::FULL },
            modes: match args.modes.as_slice() {
                [] => facts.modes.iter().copied().take(1).collect(),
                asked => asked.to_vec(),
            },
        })
    };
    let MeasureArgs { device, threads, isolate, .. } = args;
    let kernels = KernelChoice { products: &args.kernels, isa: args.isa, packed: args.prepack };
    let place = Place { device: *device, kernels, threads: *threads, isolate: *isolate };
    let Measured { profile, failure } = place.measure(request, |plan| match &args.routing_out {
        Some(path) => write_routing(path, plan, args.force),
        None => Ok(()),
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
        write_stdout(&String::from_utf8_lossy(&document))?;
    } else {
        write_stdout(&format!("{}\nwritten to {}\n", text(&profile), path.display()))?;
    }
    failure.map_or(Ok(()), |error| {
        warn(&format!("the run ended early; what was measured is in {}", path.display()));
        Err(error)
    })
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
/// [`Error::Device`] when a GPU was asked for that is not there, or when it fails; see [`rounds`].
pub(super) fn measure(
    device: DeviceChoice,
    request: impl FnOnce(&Facts) -> Request + Send,
) -> Result<Profile> {
    let place = Place { device, ..Place::default() };
    let measured = place.measure(|facts| Ok(request(facts)), |_| Ok(()))?;
    measured.failure.map_or(Ok(measured.profile), Err)
}

/// Writes the routings of a plan's cells.
fn write_routing(path: &Path, plan: &Plan, force: bool) -> Result<()> {
    let mut document =
        serde_json::to_vec(&routings(plan)?).map_err(|e| Error::unfit("routing", e.to_string()))?;
    document.push(b'\n');
    write_atomic(path, &document, force)
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
    fn new(plan: &Plan, facts: &Facts) -> Self {
        let cells = plan.cells.len();
        Self { progress: None, what: format!("measuring {cells} cells on {}", facts.device.name()) }
    }

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
        "mode",
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
    row.push(cell.timing.label().to_owned());
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
    fn an_instruction_set_is_the_processor_s_and_a_profile_s_identity() {
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
        profile.cells[1].latency = crate::measure::record::LatencyRecord::Absent("oom".into());
        let text = text(&profile);
        assert!(text.contains("read 20.0 GB/s") && text.contains("oom"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}
