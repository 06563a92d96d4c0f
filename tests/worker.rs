//! Worker processes that crash, hang, talk nonsense, stop in the middle of an answer or lose their
//! device, on the processor: each costs one cell, and the run goes on with another worker.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moe_frontier::config::DType;
use moe_frontier::latency::measured::{format, validate};
use moe_frontier::measure::plan::Machine;
use moe_frontier::measure::run::rounds;
use moe_frontier::measure::sampling::BlockRule;
use moe_frontier::measure::timing::MonotonicClock;
use moe_frontier::measure::worker::{Limits, Process};
use moe_frontier::measure::{Beginning, Invocation, Measured, Observer, Plan, Request, Run};
use moe_frontier::record::{Cell, LatencyRecord, Status, TimingMode};
use moe_frontier::{Error, Result};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-frontier");

/// Short enough for a test, long against a block of some milliseconds on a busy machine.
const LIMITS: Limits = Limits {
    opening: Duration::from_secs(60),
    block: Duration::from_secs(8),
    factor: 1,
    pauses: Duration::ZERO,
    other: Duration::from_secs(120),
    gigabyte: Duration::ZERO,
    pause: Duration::from_millis(1),
};

fn plan(tokens: &[usize]) -> Plan {
    let request = Request {
        widths: vec![(64, 192)],
        experts: vec![4],
        top_k: 1,
        gated: true,
        tokens: Some(tokens.to_vec()),
        dtype: DType::F32,
        routing: "uniform".parse().unwrap(),
        seed: 9,
        budget: Duration::from_secs(60),
        rule: BlockRule {
            min_samples: 3,
            min_busy_ns: 1_000_000,
            cap_ns: 2_000_000,
            shortest_sample_ns: 20_000,
        },
        modes: vec![TimingMode::Cpu],
    };
    let machine = Machine {
        cache_bytes: 1e6,
        available_bytes: 1e9,
        shared_copies: 1,
        own_copies: 0,
        read_bytes_per_s: 1e10,
        gemm_flops_per_s: 1e11,
    };
    Plan::new(request, &machine).unwrap()
}

fn worker(faults: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["worker", "--device", "cpu"]).env("MOE_FRONTIER_WORKER_FAULT", faults);
    command
}

fn rounds_of(
    process: &mut Process,
    plan: &Plan,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Measured> {
    let invocation = Invocation { program: "test".into(), argv: vec![] };
    let run = Run {
        beginning: &Beginning::now(invocation),
        clocks: &MonotonicClock::default(),
        began_ns: 0,
        ledger: &mut (),
        observer,
        stop,
    };
    rounds(process, plan, run)
}

fn run(command: Command, plan: &Plan) -> Result<Measured> {
    let stop = AtomicBool::new(false);
    rounds_of(&mut started(command, plan), plan, &mut (), &stop)
}

fn started(command: Command, plan: &Plan) -> Process {
    let stop = AtomicBool::new(false);
    let mut process = Process::start(command, LIMITS, &stop).unwrap();
    process.load(plan, &stop).unwrap();
    process
}

fn reason(cell: &Cell) -> &str {
    match &cell.latency {
        LatencyRecord::Absent(reason) => reason,
        LatencyRecord::Interval(_) => panic!("{cell:?}"),
    }
}

/// A worker that never becomes one is given up within seconds, however it fails.
#[test]
fn a_worker_that_fails_at_its_start_is_noticed_at_once() {
    let stop = AtomicBool::new(false);
    let limits = Limits { opening: Duration::from_secs(2), ..LIMITS };
    for (script, word) in [
        ("exit 3", "ended with code 3"),
        ("kill -SEGV $$", "ended by signal 11"),
        ("echo hello; sleep 100", "said `hello`"),
        ("exec >&-; sleep 100", "closed its output"),
        // Something that it has started holds its output open.
        ("sleep 100 & exit 4", "ended with code 4"),
        // Not asked again: it would stay silent as long.
        ("sleep 100", "no answer in 2 s"),
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stderr(std::process::Stdio::null());
        let start = Instant::now();
        let error = Process::start(command, limits, &stop).err().unwrap();
        assert!(error.exit_code() == 6 && error.to_string().contains(word), "{script}: {error}");
        assert!(start.elapsed() < Duration::from_secs(15), "{script}: {:?}", start.elapsed());
    }
}

#[test]
fn each_fault_costs_its_cell_and_no_other() {
    let plan = plan(&[1, 2, 3, 4, 5, 8, 16]);
    let faults = "crash@1,hang@2,garbage@3,partial@4:2,device@5:3";
    let Measured { profile, failure } = run(worker(faults), &plan).unwrap();
    assert!(failure.is_none(), "{failure:?}");
    validate::validate("test", &profile).unwrap();
    format::to_bytes(&profile).unwrap();
    assert_eq!(profile.cells.len(), 7);
    for cell in &profile.cells {
        let (why, blocks) = match cell.tokens {
            1 => ("ended by signal 6", 0),
            2 => ("timeout: no answer in 8 s", 0),
            // Shown without what it would do to a terminal.
            3 => (r"said `\u{1b}[2J not an answer`, which is no answer", 0),
            4 => ("in the middle of an answer", 1),
            5 => ("device planted: an illegal address", 2),
            _ => {
                assert!(matches!(cell.status, Status::Valid | Status::Noisy | Status::Refused));
                assert!(cell.blocks.len() >= 6, "{cell:?}");
                assert!(cell.check.worst_ratio_to_bound.unwrap() <= 1.0);
                continue;
            }
        };
        assert_eq!((cell.status, cell.blocks.len()), (Status::Failed, blocks), "{cell:?}");
        assert!(reason(cell).contains(why), "{}: {}", cell.tokens, reason(cell));
    }
}

#[test]
fn a_device_that_is_gone_ends_the_run_and_keeps_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let plan = plan(&[1, 2, 4]);
    // The first worker is well until it crashes; those after it end at once.
    let mut command = Command::new("sh");
    let script = r#"echo start >> "$0"; test $(wc -l < "$0") = 1 || exit 9; exec "$@""#;
    command.args(["-c", script]).arg(&starts).args([PROGRAM, "worker", "--device", "cpu"]);
    command.env("MOE_FRONTIER_WORKER_FAULT", "crash@2:3");
    let Measured { profile, failure } = run(command, &plan).unwrap();
    let failure = failure.unwrap();
    assert_eq!(failure.exit_code(), 6);
    assert!(failure.to_string().contains("ended with code 9"), "{failure}");
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 4, "three more attempts");
    validate::validate("test", &profile).unwrap();
    assert_eq!(profile.run.rounds, 2);
    for cell in &profile.cells {
        let expected = if cell.tokens == 2 { Status::Failed } else { Status::Incomplete };
        assert_eq!(cell.status, expected);
        assert!((2..=3).contains(&cell.blocks.len()), "{cell:?}");
    }
}

#[test]
fn a_worker_that_never_comes_up_is_tried_three_times() {
    let folder = tempfile::tempdir().unwrap();
    let starts = folder.path().join("starts");
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo start >> "$0"; exit 3"#]).arg(&starts);
    let stop = AtomicBool::new(false);
    let error = Process::start(command, LIMITS, &stop).err().unwrap();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("ended with code 3"), "{error}");
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 3);
}

#[test]
fn what_a_worker_says_of_its_device_is_believed_at_once() {
    let mut command = Command::new(PROGRAM);
    command.args(["worker", "--device", "gpu:99"]);
    let stop = AtomicBool::new(false);
    let error = Process::start(command, LIMITS, &stop).err().unwrap();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().starts_with("device gpu:99: "), "{error}");
}

/// Raises a flag when the rounds begin.
struct Impatient<'a>(&'a AtomicBool);

impl Observer for Impatient<'_> {
    fn step(&mut self, _done: usize, _total: usize, what: &str) {
        self.0.store(what.starts_with("round"), Ordering::Relaxed);
    }

    fn notice(&mut self, message: &str) {
        panic!("{message}");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_kernel_that_never_ends() {
    let plan = plan(&[1]);
    let mut process = started(worker("hang@1"), &plan);
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let mut observer = Impatient(&stop);
    let error = rounds_of(&mut process, &plan, &mut observer, &stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    assert!(start.elapsed() < LIMITS.other, "{:?}", start.elapsed());
}

fn measured(folder: &Path, extra: &[&str], faults: &str) -> Output {
    let flags = "measure --device cpu --quick --dtype f32 --experts 4 --top-k 1 --hidden 64 \
                 --tokens 1,16 --time-budget 8s";
    let mut command = Command::new(PROGRAM);
    command.args(flags.split_whitespace().chain(extra.iter().copied())).current_dir(folder);
    command.env("MOE_FRONTIER_PROFILES", folder.join("profiles"));
    command.env("MOE_FRONTIER_WORKER_FAULT", faults).output().unwrap()
}

#[test]
fn a_measurement_in_a_worker_measures_the_same_cells() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (out, more, faults) in [
        ("here.json", Some("--in-process"), "crash@1"),
        ("worker.json", None, ""),
        ("crashed.json", None, "crash@1"),
    ] {
        let extra: Vec<&str> = ["--out", out].into_iter().chain(more).collect();
        let output = measured(at, &extra, faults);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let read = |name: &str| format::read(&at.join(name)).unwrap();
    let (here, worker, crashed) = (read("here.json"), read("worker.json"), read("crashed.json"));
    assert_eq!(here.key, worker.key);
    // On a busy machine the second cell may have been left out.
    for (a, b) in here.cells.iter().zip(&worker.cells) {
        let drawn = |c: &Cell| (c.tokens, c.work, c.routing.realisations);
        assert_eq!(drawn(a), drawn(b));
        assert_eq!((&a.kernel, &a.kernel_sha256), (&b.kernel, &b.kernel_sha256));
        assert!(a.blocks.len() >= 6 && b.blocks.len() >= 6);
    }
    assert_eq!((crashed.cells[0].tokens, crashed.cells[0].status), (1, Status::Failed));
    assert!(reason(&crashed.cells[0]).contains("signal 6"));
    assert!(crashed.cells[1..].iter().all(|c| c.status != Status::Failed));
}
