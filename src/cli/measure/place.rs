//! Where a run measures and where it is kept: starts the worker, plans, measures with a journal, and puts
//! the profile where it belongs.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::cli::embedded;
use crate::cli::measure::device::{DeviceChoice, KernelChoice, device_choice};
use crate::cli::measure::shard::SweepFolder;
use crate::cli::output::warn;
use crate::cli::progress::Progress;
use crate::cli::signals::Stop;
use crate::cli::store;
use crate::cli::worker::serve_on;
use crate::files::{check_writable, create_folder};
use crate::kernels::cpu::simd::Isa;
use crate::latency::measured::format;
use crate::measure::folder::{self, Destination, PROFILE_FILE, Planned, RunFolder};
use crate::measure::host;
use crate::measure::journal::Locking;
use crate::measure::run::{Clocks, rounds};
use crate::measure::shard::Shard;
use crate::measure::sweep::SweepPlan;
use crate::measure::timing::{Clock, MonotonicClock};
use crate::measure::worker::{Facts, Limits, Process, Serve, Worker};
use crate::measure::{Beginning, Invocation, Measured, Observer, Plan, Request, Run, preflight};
use crate::record::{Device, Profile, Status};
use crate::{Error, Result};

/// How long `measure` waits for other programs to leave the CPU alone.
const QUIET: Duration = Duration::from_secs(5);

/// Where and with what cells are measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) device: DeviceChoice,
    pub(super) kernels: KernelChoice<'a>,
    pub(super) threads: Option<u16>,
    /// In a process of its own also where the device does not ask for it.
    pub(super) isolate: bool,
}

impl Default for Place<'_> {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            kernels: KernelChoice::default(),
            threads: None,
            isolate: true,
        }
    }
}

impl Place<'_> {
    /// Who launches the kernels: another process. A kernel that breaks a GPU's context, or that the system
    /// ends for want of memory, takes its process along; and this one ends at once when it is asked to,
    /// without first giving back gigabytes of weights.
    pub(super) fn worker(&self, stop: &AtomicBool) -> Result<Process> {
        let Some(gpu) = self.device.gpu(self.kernels) else { return self.on_cpu(stop) };
        match Process::start(self.command(Some(gpu))?, Limits::default(), stop) {
            Err(error @ Error::Device { .. }) if self.device == DeviceChoice::Auto => {
                warn(&format!("the GPU is not used: {error}"));
                self.on_cpu(stop)
            }
            started => started,
        }
    }

    fn on_cpu(&self, stop: &AtomicBool) -> Result<Process> {
        // The program of a unit test is its harness, which has no such command.
        if cfg!(test) || !self.isolate {
            return Process::in_thread(self.serve_here(), stop);
        }
        match self.command(None).and_then(|it| Process::start(it, Limits::CPU, stop)) {
            // Without another process the CPU is still there.
            Err(error @ Error::Device { .. }) => {
                warn(&format!("measured in this process: {error}"));
                Process::in_thread(self.serve_here(), stop)
            }
            started => started,
        }
    }

    fn command(&self, gpu: Option<u32>) -> Result<Command> {
        let mut command = embedded::again()
            .map_err(|e| Error::device("worker", format!("this program is not found: {e}")))?;
        command.args(["worker", "--device"]);
        command.arg(gpu.map_or_else(|| "cpu".to_owned(), |ordinal| format!("gpu:{ordinal}")));
        let KernelChoice { products, isa, packed } = self.kernels;
        command.args(products.iter().flat_map(|kernel| ["--kernel", kernel]));
        command.args(isa.iter().flat_map(|isa| ["--isa", isa.flag()]));
        command.args(packed.then_some("--prepack"));
        command.args(self.threads.iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]));
        Ok(command)
    }

    /// A worker's work on this CPU.
    fn serve_here(&self) -> Arc<Serve> {
        let KernelChoice { products, isa, packed } = self.kernels;
        let (products, threads) = (products.to_vec(), self.threads);
        Arc::new(move |orders, out| {
            let kernels = KernelChoice { products: &products, isa, packed };
            // What is wrong with the device was told to the parent, which is this process.
            let _ = serve_on(DeviceChoice::Cpu, kernels, threads, orders, out, &[]);
        })
    }

    /// The same place as a plan file names it.
    fn record(&self, facts: &Facts) -> folder::Place {
        let gpu = matches!(facts.device, Device::Gpu(_)).then(|| self.device.gpu(self.kernels));
        folder::Place {
            device: gpu.flatten().map_or_else(|| "cpu".to_owned(), |n| format!("gpu:{n}")),
            kernels: self.kernels.products.to_vec(),
            isa: self.kernels.isa.map(|isa| isa.flag().to_owned()),
            packed: self.kernels.packed,
            threads: self.threads,
            isolate: self.isolate,
        }
    }

    /// The worker of a run that was planned before.
    fn again(place: &folder::Place, stop: &AtomicBool) -> Result<Process> {
        let wrong = |reason: String| Error::bad_file("plan.json", reason);
        let isa: Option<Isa> = place
            .isa
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e: Error| wrong(e.to_string()))?;
        let kernels = KernelChoice { products: &place.kernels, isa, packed: place.packed };
        let device = device_choice(&place.device).map_err(wrong)?;
        Place { device, kernels, threads: place.threads, isolate: place.isolate }.worker(stop)
    }
}

/// Where a new run is kept and its profile goes.
#[derive(Debug)]
pub(super) struct Home {
    folder: RunFolder,
    destination: Destination,
    overwrite: bool,
}

impl Home {
    /// The home that `--out` names: a file that ends in `.json`, with the journal in a folder beside it,
    /// or a folder; without it the folder of measured profiles. It is tried before anything is measured.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written or holds something; [`Error::Usage`] when no folder is
    /// known.
    pub(super) fn prepare(out: Option<&Path>, overwrite: bool, locking: Locking) -> Result<Self> {
        let Some(out) = out else { return Self::in_store(locking) };
        if out.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            check_writable(out, overwrite)?;
            let folder = RunFolder::prepare(&out.with_extension("journal"), overwrite, locking)?;
            return Ok(Self { folder, destination: Destination::Beside, overwrite });
        }
        let folder = RunFolder::prepare(out, overwrite, locking)?;
        Ok(Self { folder, destination: Destination::Folder, overwrite })
    }

    fn in_store(locking: Locking) -> Result<Self> {
        let runs = store::folder()?.join("runs");
        create_folder(&runs)?;
        let unix_s = MonotonicClock::default().unix_s();
        let name = format!("{unix_s}-{}", std::process::id());
        let folder = RunFolder::prepare(&runs.join(name), false, locking)?;
        Ok(Self { folder, destination: Destination::Store, overwrite: false })
    }

    /// Removes what was made for a run that has not begun.
    fn abandon(&self) {
        leave(&self.folder, self.destination);
    }
}

/// Removes the folder of a run whose profile lies elsewhere, or that has brought nothing.
fn leave(folder: &RunFolder, destination: Destination) {
    folder.remove();
    if let (Destination::Store, Some(runs)) = (destination, folder.path().parent()) {
        // Empty ones alone: other runs and profiles may be in them.
        let _ = std::fs::remove_dir(runs);
        let _ = runs.parent().map(std::fs::remove_dir);
    }
}

/// A profile, where it lies, and why its run ended early if it did.
pub(super) struct Delivered {
    pub(super) profile: Profile,
    pub(super) path: PathBuf,
    pub(super) failure: Option<Error>,
}

/// Plans and measures, keeping the run in `home`.
///
/// # Errors
/// Why nothing was measured; then nothing was written.
pub(super) fn measure_new(
    place: &Place,
    home: &Home,
    request: impl FnOnce(&Facts) -> Result<Request>,
    planned: impl FnOnce(&Plan) -> Result<()>,
    stop: &Stop,
) -> Result<Delivered> {
    let begun = place.worker(stop.flag()).and_then(|mut process| {
        let plan = plan_on(&mut process, request, stop.flag())?;
        planned(&plan)?;
        let record = place.record(process.facts());
        let planned = home.folder.clone().plan(record, home.destination, plan)?;
        let measured = measure_planned(&mut process, &planned, stop)?;
        Ok((planned, measured))
    });
    match begun {
        Ok((planned, measured)) => deliver(&planned, measured, home.overwrite, stop),
        Err(error) => {
            home.abandon();
            Err(stop.explain(error, "; nothing was written"))
        }
    }
}

/// Plans for a sweep and measures nothing.
///
/// # Errors
/// Why there is no plan; [`Error::Io`] when it cannot be written.
pub(super) fn plan_sweep(
    place: &Place,
    request: impl FnOnce(&Facts) -> Result<Request>,
    (path, overwrite): (&Path, bool),
    stop: &Stop,
) -> Result<SweepPlan> {
    let planned = place.worker(stop.flag()).and_then(|mut process| {
        let plan = plan_on(&mut process, request, stop.flag())?;
        let (facts, record) = (process.facts(), place.record(process.facts()));
        SweepPlan::write(path, record, (facts, &invocation().program), plan, overwrite)
    });
    planned.map_err(|e| stop.explain(e, "; nothing was written"))
}

/// Measures a shard of a sweep into its folder in `out`, or goes on with it. What other shards in `out` have
/// finished is left out.
///
/// # Errors
/// [`Error::Unfit`] on a machine of another kind than the plan is for, or when `out` holds another plan's
/// shards; as [`resume`].
pub(super) fn measure_shard(
    sweep: &SweepPlan,
    shard: Shard,
    (out, locking): (&SweepFolder, Locking),
) -> Result<Delivered> {
    let stop = Stop::listen()?;
    out.adopt(sweep)?;
    let path = out.shard(shard);
    if let Some(profile) = SweepFolder::finished_profile(&path, sweep)? {
        warn(&format!("shard {shard} was finished before; nothing was measured"));
        return Ok(Delivered { profile, path: path.join(PROFILE_FILE), failure: None });
    }
    let mut process = Place::again(&sweep.place, stop.flag())
        .map_err(|e| stop.explain(e, "; nothing was written"))?;
    sweep.check(process.facts(), &invocation().program)?;
    let planned = if path.join(folder::PLAN_FILE).exists() {
        RunFolder::planned(&path, locking)?
    } else {
        let part = sweep.part(shard, &out.finished_cells(sweep)?);
        RunFolder::prepare(&path, false, locking)?.plan_shard(sweep, part)?
    };
    let of = planned.part.as_ref().map(|part| part.plan_sha256.as_str());
    if of != Some(sweep.sha256.as_str()) {
        return Err(Error::unfit(path.display().to_string(), "holds a run of another plan"));
    }
    settle(process.facts(), stop.flag())?;
    let hint = format!("; {}", go_on(&planned));
    let measured =
        measure_planned(&mut process, &planned, &stop).map_err(|e| stop.explain(e, &hint))?;
    deliver(&planned, measured, true, &stop)
}

/// Goes on with the run that is kept in `path`.
///
/// # Errors
/// [`Error::Unfit`] when plan, program or device differ from those it was begun with; why it ended early.
pub(super) fn resume(path: &Path, locking: Locking) -> Result<Delivered> {
    let stop = Stop::listen()?;
    let planned = RunFolder::planned(&run_folder(path), locking)?;
    let hint = format!("; {}", go_on(&planned));
    let mut process =
        Place::again(&planned.place, stop.flag()).map_err(|e| stop.explain(e, &hint))?;
    let measured =
        measure_planned(&mut process, &planned, &stop).map_err(|e| stop.explain(e, &hint))?;
    deliver(&planned, measured, false, &stop)
}

/// The folder of a run that is named by itself, by its plan or by its profile.
fn run_folder(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|e| e == "json") && !path.is_dir() {
        let beside = path.with_extension("journal");
        let within = path.parent().map(Path::to_path_buf).filter(|p| p.join("plan.json").exists());
        return within.unwrap_or(beside);
    }
    path.to_owned()
}

/// Measures without keeping anything on the way.
///
/// # Errors
/// See [`rounds`].
pub(super) fn measure_unkept(
    place: &Place,
    request: impl FnOnce(&Facts) -> Result<Request>,
    stop: &Stop,
) -> Result<Measured> {
    let measure = || {
        let mut process = place.worker(stop.flag())?;
        let plan = plan_on(&mut process, request, stop.flag())?;
        let _only = Alone::take(process.facts());
        let mut bar = Bar::new(&plan, process.facts());
        let clock = MonotonicClock::default();
        let began_ns = clock.now_ns();
        bar.step(0, 1, "drawing weights");
        process.load(&plan, stop.flag())?;
        let run = Run {
            beginning: &Beginning::now(invocation()),
            clocks: &clock,
            began_ns,
            ledger: &mut (),
            observer: &mut bar,
            stop: stop.flag(),
        };
        let measured = rounds(&mut process, &plan, run);
        bar.finish();
        measured
    };
    measure().map_err(|e| stop.explain(e, "; nothing was written"))
}

/// The plan of a request on a device that has become quiet.
fn plan_on(
    process: &mut Process,
    request: impl FnOnce(&Facts) -> Result<Request>,
    stop: &AtomicBool,
) -> Result<Plan> {
    let facts = process.facts().clone();
    let mut request = request(&facts)?;
    for note in request.without_repeats() {
        warn(&note);
    }
    facts.check_modes(&request.modes)?;
    let memory = match &facts.device {
        Device::Cpu(_) => host::memory().available_bytes,
        Device::Gpu(gpu) => gpu.memory_bytes,
    };
    request.check(memory as f64)?;
    settle(&facts, stop)?;
    let machine = process.machine(request.dtype, stop)?;
    let plan = Plan::new(request, &machine)?;
    for left_out in &plan.left_out {
        warn(&format!("not measured: {left_out}"));
    }
    Ok(plan)
}

/// Waits until the machine is quiet, and says what is to be known of it.
fn settle(facts: &Facts, stop: &AtomicBool) -> Result<()> {
    let threads = facts.host_threads;
    let cores = std::thread::available_parallelism().map_or(threads, usize::from);
    if !preflight::wait_until_quiet(threads, cores, QUIET, stop) {
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        warn("other programs use the CPU: intervals will be wide and cells flagged");
    }
    for note in &facts.notes {
        warn(note);
    }
    Ok(())
}

/// Measures a planned run and keeps it in its folder.
fn measure_planned(process: &mut Process, planned: &Planned, stop: &Stop) -> Result<Measured> {
    let facts = process.facts().clone();
    let (mut kept, beginning) = planned.open(&facts, Beginning::now(invocation()))?;
    let _only = Alone::take(&facts);
    let mut bar = Bar::new(&planned.plan, &facts);
    let clock = MonotonicClock::default();
    let began_ns = clock.now_ns();
    bar.step(0, 1, "drawing weights");
    process.load(&planned.plan, stop.flag())?;
    kept.loaded(process.drawn())?;
    let run = Run {
        beginning: &beginning,
        clocks: &clock,
        began_ns,
        ledger: &mut kept,
        observer: &mut bar,
        stop: stop.flag(),
    };
    let measured = rounds(process, &planned.plan, run);
    bar.finish();
    let mut measured = measured?;
    planned.label(&mut measured.profile, kept.hosts());
    Ok(measured)
}

/// Puts a profile where it belongs. The run's folder goes once the profile lies elsewhere, and stays
/// while there is something to go on with.
fn deliver(
    planned: &Planned,
    measured: Measured,
    overwrite: bool,
    stop: &Stop,
) -> Result<Delivered> {
    let Measured { profile, failure } = measured;
    let Some(failure) = failure else {
        let path = match planned.profile_path() {
            Some(path) => {
                format::write(&path, &profile, overwrite || store::is_of_run(&path, &profile))?;
                path
            }
            None => store::save(&store::folder()?, &profile)?,
        };
        if planned.destination != Destination::Folder {
            leave(&planned.folder, planned.destination);
        }
        return Ok(Delivered { profile, path, failure: None });
    };
    let path = planned.profile_path().unwrap_or_else(|| planned.folder.file(PROFILE_FILE));
    let whole = profile.cells.iter().filter(|c| c.status != Status::Incomplete).count();
    let is_ours = overwrite || store::is_of_run(&path, &profile);
    let kept = match format::write(&path, &profile, is_ours) {
        Ok(()) => format!(
            "{whole} of {} cells are whole, in {}",
            planned.plan.cells.len(),
            path.display()
        ),
        Err(error) => format!("no profile was written ({error})"),
    };
    let hint = format!("; {kept}; {}", go_on(planned));
    if !matches!(failure, Error::Interrupted { .. }) {
        warn(&format!("the run ended early{hint}"));
    }
    let failure = Some(stop.explain(failure, &hint));
    Ok(Delivered { profile, path, failure })
}

fn go_on(planned: &Planned) -> String {
    format!("go on with: moe-frontier measure --resume {}", planned.folder.path().display())
}

/// Held while a device is measured, so that a second measurement of it can be warned.
struct Alone {
    /// The locked file, removed at the end.
    path: Option<PathBuf>,
    #[expect(dead_code, reason = "its lock ends with it")]
    file: Option<File>,
}

impl Alone {
    /// Takes a device, with a warning when another process measures it. Without a place to note it,
    /// nothing is taken.
    fn take(facts: &Facts) -> Self {
        let none = Self { path: None, file: None };
        let Ok(folder) = store::folder() else { return none };
        let path = folder.join(format!(".device-{}.lock", &facts.device.sha256()[..8]));
        let Ok(file) = File::options().create(true).append(true).open(&path) else { return none };
        match file.try_lock() {
            Ok(()) => Self { path: Some(path), file: Some(file) },
            Err(TryLockError::WouldBlock) => {
                let name = facts.device.name();
                warn(&format!("another process measures {name} now: both will be noisy"));
                none
            }
            Err(TryLockError::Error(_)) => none,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // It only carried the lock.
        let _ = self.path.as_ref().map(std::fs::remove_file);
    }
}

fn invocation() -> Invocation {
    let program = concat!("moe-frontier ", env!("CARGO_PKG_VERSION")).into();
    let argv = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    Invocation { program, argv }
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
