//! `measure --group`: the ranks of a group, each a process of its own with a supervisor.
//!
//! What the launcher starts is the supervisor: it starts the worker that begins MPI and measures
//! ([`super::super::group_worker`]), and hears from it. A worker that ends, falls silent or does not get on is
//! found out by its own supervisor, which says so with rank and host and ends with exit code 6; the launcher
//! then ends the others. Rank 0's supervisor writes the file again after every cell.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::measure::MeasureArgs;
use crate::cli::output::{Output, write_stdout, write_text};
use crate::comm::launch::{Place, place};
use crate::comm::nccl::ID_VARIABLE;
use crate::comm::nodes;
use crate::files::seal::to_sealed;
use crate::files::{check_writable, write_atomic};
use crate::kernels::exchange::Copies;
use crate::measure::group::GroupRequest;
use crate::measure::host;
use crate::measure::run::Clocks;
use crate::measure::timing::MonotonicClock;
use crate::record::group::{
    CollectiveRecord, ExchangeRecord, GROUP_SCHEMA, GROUP_VERSION, GroupRecord, GroupTiming,
};
use crate::record::{Device, PROTOCOL_VERSION};
use crate::units::Seconds;
use crate::{Error, Result};

/// A worker that says nothing for so long has been stopped or hangs outside of a group's call.
const SILENCE: Duration = Duration::from_secs(6);
/// To begin MPI, with all others: they may be started one after the other.
const BEGINNING_S: f64 = 60.0;
/// How often a supervisor looks at the clock.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Busy time of a block.
const BLOCK_NS: u64 = 100_000_000;
const QUICK_BLOCK_NS: u64 = 20_000_000;
/// Tokens of each rank unless said otherwise: decoding steps to prompts.
const TOKENS: [usize; 5] = [1, 8, 32, 128, 1024];
/// Variables that steer what carries the bytes begin like this.
const STEERING: [&str; 6] = ["NCCL_", "OMPI_MCA_", "PMIX_MCA_", "UCX_", "MPICH_", "FI_"];

/// What ranks talk by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// MPI, between processors.
    Mpi,
    /// NCCL, between GPUs: --collectives.
    Nccl,
}

impl GroupKind {
    const fn label(self) -> &'static str {
        match self {
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

/// What a worker is given to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Task {
    pub(in crate::cli) group: GroupKind,
    pub(in crate::cli) threads: usize,
    /// Rank and size as the launcher told them.
    pub(in crate::cli) told: Option<(usize, usize)>,
    pub(in crate::cli) local_rank: Option<usize>,
    /// File by which ranks of NCCL meet.
    pub(in crate::cli) rendezvous: Option<PathBuf>,
    pub(in crate::cli) request: GroupRequest,
}

/// What a worker says, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Says {
    /// That it lives.
    Alive,
    /// What it begins, and how long that may take.
    At { what: String, seconds: f64 },
    /// What is known of the group.
    Head(Box<Head>),
    /// A cell.
    Exchange(Box<ExchangeRecord>),
    /// A cell.
    Collective(CollectiveRecord),
    /// Why it ends: exit code, what and why.
    Failed { code: u8, what: String, reason: String },
    /// That everything is measured.
    Done,
}

/// What is known once the group has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Head {
    pub(in crate::cli) rank: usize,
    pub(in crate::cli) hosts: Vec<String>,
    pub(in crate::cli) library: String,
    pub(in crate::cli) device: Device,
    pub(in crate::cli) kernel_sha256: String,
    pub(in crate::cli) binary_sha256: String,
}

impl Says {
    /// An error as a worker tells it.
    pub(in crate::cli) fn failed(error: &Error) -> Self {
        let (what, reason) = match error {
            Error::Usage { name, reason } => (name.clone(), reason.clone()),
            Error::Unfit { what, reason } => (what.clone(), reason.clone()),
            Error::Device { device, reason } => (device.clone(), reason.clone()),
            other => ("worker".to_owned(), other.to_string()),
        };
        Self::Failed { code: error.exit_code(), what, reason }
    }
}

/// Runs one rank.
///
/// # Errors
/// [`Error::Device`] naming rank and host when a rank comes to nothing; [`Error::Usage`] for a group that is not
/// what the flags say; [`Error::Unfit`] when ranks differ.
pub(super) fn run(args: &MeasureArgs, kind: GroupKind, output: Output) -> Result<()> {
    if kind == GroupKind::Nccl {
        if args.collectives.is_empty() {
            let reason = "nccl measures --collectives; layers over GPUs are not measured";
            return Err(Error::usage("--group", reason));
        }
        crate::comm::nccl::find()?;
    }
    if kind == GroupKind::Mpi && !cfg!(feature = "mpi") {
        return Err(Error::device(
            "MPI",
            "this program was built without it; `cargo install moe-frontier --features mpi` (mpicc and \
             libclang are needed)",
        ));
    }
    let told = place((args.rank, args.world), &|name| std::env::var(name).ok())?;
    let here = told.unwrap_or(Place::ALONE);
    if let Some(ranks) = args.ep.filter(|ranks| *ranks != here.size) {
        return Err(Error::usage(
            "--ep",
            format!("{ranks} ranks, but there are {}: start it with mpirun -n {ranks}", here.size),
        ));
    }
    let Some(out) = &args.out else {
        return Err(Error::usage("--out", "name the file of the results: --out group.json"));
    };
    if here.rank == 0 {
        check_writable(out, args.overwrite)?;
    }
    let threads = args.threads.map_or_else(|| shared_threads(here), usize::from);
    let task = Task {
        group: kind,
        threads,
        told: told.map(|place| (place.rank, place.size)),
        local_rank: here.local_rank,
        rendezvous: args.rendezvous.clone(),
        request: request(args)?,
    };
    let mut keeper = Keeper {
        kind,
        out,
        cells: task.request.cells(),
        threads,
        start_unix_s: MonotonicClock::default().unix_s(),
        record: None,
    };
    let mut rank = Rank::start(&task, here.rank)?;
    let ended = rank.follow(&mut keeper);
    rank.end();
    ended?;
    let Some(record) = keeper.finish()? else { return Ok(()) };
    if output.is_json() {
        return write_stdout(&String::from_utf8_lossy(&to_sealed("group", &record)?));
    }
    let shown = crate::error::shown(&out.display().to_string());
    write_text(&format!("{}\nwritten to {shown}\n", text(&record)))
}

/// Where ranks that torchrun started meet: beside its own port.
fn meeting_of_torchrun() -> Option<(&'static str, String)> {
    let variable = |name: &str| std::env::var(name).ok();
    if variable(ID_VARIABLE).is_some() {
        return None;
    }
    let port = variable("MASTER_PORT")?.parse::<u16>().ok()?.checked_add(1)?;
    Some((ID_VARIABLE, format!("{}:{port}", variable("MASTER_ADDR")?)))
}

/// The processors of a host are shared between its ranks.
fn shared_threads(here: Place) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let local = ["OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS"];
    let ranks = local.into_iter().find_map(number).unwrap_or(here.size).max(1);
    (cores / ranks).max(1)
}

fn request(args: &MeasureArgs) -> Result<GroupRequest> {
    let widths = super::widths(args)?;
    let is_layers = args.collectives.is_empty();
    if let Some(experts) = args.experts.0.iter().find(|e| **e < args.top_k)
        && is_layers
    {
        let reason = format!("{} exceeds the {experts} experts of one of the layers", args.top_k);
        return Err(Error::usage("--top-k", reason));
    }
    if args.top_k == 0 {
        return Err(Error::usage("--top-k", "a token visits at least one expert"));
    }
    let tokens = args.tokens.as_ref().map_or_else(|| TOKENS.to_vec(), |tokens| tokens.0.clone());
    Ok(GroupRequest {
        widths,
        experts: if is_layers { args.experts.0.clone() } else { Vec::new() },
        top_k: args.top_k,
        tokens,
        dtype: args.dtype,
        routing: args.routing.parse()?,
        seed: args.seed,
        copies: args.copies,
        collectives: args.collectives.clone(),
        bytes: args.bytes.0.clone(),
        block_ns: if args.quick { QUICK_BLOCK_NS } else { BLOCK_NS },
    })
}

/// How `--copies` is written.
pub(super) fn copies(text: &str) -> Result<Copies, String> {
    match text {
        "token-rank" => Ok(Copies::TokenRank),
        "token-expert" => Ok(Copies::TokenExpert),
        _ => Err("copies are token-rank and token-expert".into()),
    }
}

/// Keeps what rank 0 hears.
struct Keeper<'a> {
    kind: GroupKind,
    out: &'a Path,
    cells: usize,
    threads: usize,
    start_unix_s: u64,
    record: Option<GroupRecord>,
}

impl Keeper<'_> {
    fn begin(&mut self, head: Head) {
        let argv = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
        let steers = |name: &str| STEERING.iter().any(|start| name.starts_with(start));
        let variables: BTreeMap<String, String> =
            std::env::vars().filter(|(name, _)| steers(name)).collect();
        self.record = Some(GroupRecord {
            schema: GROUP_SCHEMA.into(),
            schema_version: GROUP_VERSION.into(),
            protocol_version: PROTOCOL_VERSION.into(),
            program: concat!("moe-frontier ", env!("CARGO_PKG_VERSION")).into(),
            argv: argv.collect(),
            group: self.kind.label().into(),
            library: head.library,
            buffers: if self.kind == GroupKind::Mpi { "host".into() } else { "device".into() },
            device: head.device,
            nodes: nodes(&head.hosts),
            hosts: head.hosts,
            threads: self.threads,
            binary_sha256: head.binary_sha256,
            kernel_sha256: head.kernel_sha256,
            variables,
            start_unix_s: self.start_unix_s,
            end_unix_s: self.start_unix_s,
            exchanges: Vec::new(),
            collectives: Vec::new(),
            partial: None,
        });
    }

    /// Writes what there is so far.
    fn keep(&mut self) -> Result<()> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let done = record.exchanges.len() + record.collectives.len();
        record.end_unix_s = MonotonicClock::default().unix_s().max(record.start_unix_s);
        record.partial =
            (done < self.cells).then(|| format!("{done} of {} cells were measured", self.cells));
        write_atomic(self.out, &to_sealed("group", record)?, true)
    }

    fn finish(self) -> Result<Option<GroupRecord>> {
        match self.record {
            Some(record) if record.partial.is_some() => {
                let reason = record.partial.unwrap_or_default();
                Err(Error::device("worker", format!("ended before it was done: {reason}")))
            }
            record => Ok(record),
        }
    }
}

/// The worker of one rank, as its supervisor sees it.
struct Rank {
    name: String,
    child: Child,
    lines: Receiver<String>,
    /// What it does now, since when, and until when it must be done.
    at: (String, Instant, Duration),
    heard: Instant,
}

impl Rank {
    fn start(task: &Task, rank: usize) -> Result<Self> {
        let name = format!("rank {rank} on {}", host::name());
        let failed = |e: std::io::Error| Error::device(name.clone(), format!("not started: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        if task.group == GroupKind::Nccl && task.rendezvous.is_none() {
            command.envs(meeting_of_torchrun());
        }
        let mut child = command
            .arg("group-worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut order = serde_json::to_string(task)
            .map_err(|e| Error::device(name.clone(), format!("its task: {e}")))?;
        order.push('\n');
        // It stays open: its end tells the worker that nobody listens any more.
        if let Some(stdin) = child.stdin.as_mut() {
            stdin.write_all(order.as_bytes()).and_then(|()| stdin.flush()).map_err(failed)?;
        }
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let now = Instant::now();
        let at = ("beginning".to_owned(), now, Duration::from_secs_f64(BEGINNING_S));
        Ok(Self { name, child, lines, at, heard: now })
    }

    /// Listens until it is done.
    fn follow(&mut self, keeper: &mut Keeper) -> Result<()> {
        loop {
            match self.lines.recv_timeout(LOOK_EVERY) {
                Ok(line) => {
                    self.heard = Instant::now();
                    if self.hear(&line, keeper)? {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.look()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            }
        }
    }

    /// Takes a line; whether it was the last.
    fn hear(&mut self, line: &str, keeper: &mut Keeper) -> Result<bool> {
        // Libraries print where they should not; that is for the user.
        let Ok(says) = serde_json::from_str::<Says>(line) else {
            crate::cli::output::warn(line);
            return Ok(false);
        };
        match says {
            Says::Alive => self.look()?,
            Says::At { what, seconds } => {
                self.at = (what, Instant::now(), Duration::from_secs_f64(seconds.clamp(0.1, 1e6)));
            }
            Says::Head(head) => {
                if head.rank == 0 {
                    keeper.begin(*head);
                }
            }
            Says::Exchange(record) => {
                if let Some(all) = &mut keeper.record {
                    all.exchanges.push(*record);
                    keeper.keep()?;
                }
            }
            Says::Collective(record) => {
                if let Some(all) = &mut keeper.record {
                    all.collectives.push(record);
                    keeper.keep()?;
                }
            }
            Says::Failed { code, what, reason } => {
                return Err(match code {
                    2 => Error::usage(&what, reason),
                    4 => Error::unfit(what, reason),
                    _ => Error::device(what, reason),
                });
            }
            Says::Done => return Ok(true),
        }
        Ok(false)
    }

    /// Ends a worker that has fallen silent or does not get on.
    fn look(&mut self) -> Result<()> {
        let (what, since, most) = &self.at;
        let why = if self.heard.elapsed() > SILENCE {
            format!("gave no sign of life for {:.0} s in: {what}", SILENCE.as_secs_f64())
        } else if since.elapsed() > *most {
            format!("did not get on for {} in: {what}", Seconds(most.as_secs_f64()))
        } else {
            return Ok(());
        };
        Err(Error::device(self.name.clone(), why))
    }

    fn gone(&mut self) -> Error {
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Error::device(self.name.clone(), format!("its worker ended ({how}) in: {}", self.at.0))
    }

    /// Does away with the worker, if it has not ended.
    fn end(&mut self) {
        // Rank 0 has its result; the end of the others' input ends them.
        drop(self.child.stdin.take());
        for _ in 0..50 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(record: &GroupRecord) -> String {
    use std::fmt::Write as _;
    let us = |timing: &GroupTiming| timing.median_ps as f64 * 1e-6;
    let mut text = format!(
        "{} ranks on {} nodes of {} by {}, buffers of the {}\n",
        record.hosts.len(),
        record.nodes,
        record.device.name(),
        record.library,
        record.buffers
    );
    for r in &record.exchanges {
        let _ = writeln!(
            text,
            "{} experts of {} x {}, top-{}, {} tokens a rank, {}, busiest rank {:.2} of the mean:\n  dispatch \
             {:.1} us, experts {:.1} us, combine {:.1} us; pair in a chain {:.1} us ({:.3} GB/s of logical bytes, \
             {:.0} % of them a rank's own); layer {:.1} us ({:.1} to {:.1}), fastest rank {:.1} us",
            r.experts,
            r.hidden,
            r.inter,
            r.top_k,
            r.tokens_per_rank,
            r.routing,
            r.busiest_over_mean,
            us(&r.dispatch),
            us(&r.expert),
            us(&r.combine),
            us(&r.pair),
            r.logical_gb_per_s,
            100.0 * r.rows_own as f64 / r.rows_sent.max(1) as f64,
            us(&r.layer),
            r.layer.lo_ps as f64 * 1e-6,
            r.layer.hi_ps as f64 * 1e-6,
            r.layer.fastest_rank_ps as f64 * 1e-6,
        );
    }
    for r in &record.collectives {
        let _ = writeln!(
            text,
            "{} {} bytes: {:.1} us, algbw {:.3} GB/s, busbw {:.3} GB/s",
            r.kind.label(),
            r.bytes,
            us(&r.time),
            r.algbw_gb_per_s,
            r.busbw_gb_per_s
        );
    }
    text
}
