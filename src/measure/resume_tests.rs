//! A run that ends at any step of writing goes on to the profile that it would have had, byte for byte: a
//! worker and a clock that are made up take the place of the device.

use std::cell::Cell as Counter;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ceilings::CeilingSamples;
use super::folder::{Destination, PROFILE_FILE, Place, Planned, RunFolder};
use super::journal::Locking;
use super::launches::{Drawn, Taken};
use super::plan::Plan;
use super::preflight::Load;
use super::run::{Beginning, Clocks, Measured, Run, rounds};
use super::sampling::{BlockRule, CPU_WIDTH};
use super::testing;
use super::timing::Clock;
use super::timing::fake::FakeClock;
use super::worker::{Answer, Ask, Facts, Trouble, Worker};
use crate::config::DType;
use crate::files::{fault, write_atomic};
use crate::latency::measured::{format, validate};
use crate::record::{
    Block, CheckOutcome, CheckRecord, CpuDevice, Device, Profile, Status, TimingMode,
};
use crate::{Error, Result};

impl Clocks for FakeClock {
    fn unix_s(&self) -> u64 {
        2000
    }
}

/// A device whose times are made up: the same question has the same answer.
pub(super) struct Fake {
    pub(super) facts: Facts,
    drawn: Vec<Drawn>,
    plan: Plan,
    clock: FakeClock,
    blocks: Counter<usize>,
    /// Raises the flag after this many blocks.
    pub(super) stop_after: usize,
}

impl Fake {
    pub(super) fn new(plan: &Plan) -> Self {
        let device = Device::Cpu(CpuDevice {
            name: "made up".into(),
            isa: vec![],
            threads: 2,
            l2_bytes: None,
            l3_bytes: Some(1 << 20),
            memory_bytes: 1 << 34,
        });
        let facts = Facts {
            device,
            kernel: "fake".into(),
            kernel_sha256: "0".repeat(64),
            dense_kernel: "fake".into(),
            peer: ("peer".into(), DType::F32),
            modes: vec![TimingMode::Cpu],
            width: CPU_WIDTH,
            cache_bytes: 1e6,
            host_threads: 2,
            notes: vec![],
            libraries: vec!["/usr/lib/libcuda.so.1".into()],
        };
        let drawn = plan.cells.iter().map(|cell| {
            let active = cell.shape.experts.min(cell.tokens) as f64;
            let max_rows = (cell.tokens as f64 / cell.shape.experts as f64).max(1.0);
            Drawn { draws: 8, active_experts: active, max_rows, cycle_experts: 1e6 }
        });
        Self {
            facts,
            drawn: drawn.collect(),
            plan: plan.clone(),
            clock: FakeClock::default(),
            blocks: Counter::new(0),
            stop_after: usize::MAX,
        }
    }

    fn block(&self, cell: usize, round: u32) -> Taken {
        let spec = &self.plan.cells[cell];
        // Noise that follows from the question: some per mille, more in the widest cell.
        let sizes = spec.tokens + 3 * spec.shape.experts + 5 * spec.shape.hidden;
        let noise = (sizes as u64 * 7919 + u64::from(round) * 104_729) % 1000;
        let spread = if spec.tokens == 1 { 900 } else { 20 };
        let ps = 1_000_000_000 + 1_000_000 * spec.tokens as u64 + noise * spread * 1000;
        self.clock.advance(ps / 1000 * 30);
        let samples = vec![(0, ps as f64 * 1.01), (1, ps as f64), (2, ps as f64 * 1.003)];
        let median_ps = samples[2].1.round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a made-up time"
        )]
        let median_ps = median_ps as u64;
        Taken {
            block: Some(Block {
                round,
                median_ps,
                samples: 3,
                launches_per_sample: 1,
                contended: false,
                sm_clock_mhz: None,
            }),
            samples,
            launch_ns: Some(ps / 1000),
            throttled: false,
            power_limited: false,
            check: (round == 1).then_some(passed()),
            checking_ns: 1000,
            plan: None,
        }
    }
}

const fn passed() -> CheckRecord {
    CheckRecord { output: CheckOutcome::Pass, worst_ratio_to_bound: Some(0.5) }
}

impl Worker for Fake {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn drawn(&self) -> &[Drawn] {
        &self.drawn
    }

    fn ask(&mut self, ask: Ask, stop: &AtomicBool) -> Result<Answer, Trouble> {
        self.clock.advance(1_000_000);
        Ok(match ask {
            Ask::ReadRate => {
                Answer::Rates(CeilingSamples { read: vec![1e13 / 3.0], ..Default::default() })
            }
            Ask::OtherRates => Answer::Rates(CeilingSamples {
                dense: vec![1e15 / 7.0],
                peer: vec![1e14],
                dispatch_ns: vec![1000.1],
                ..Default::default()
            }),
            Ask::Block { cell, round } => {
                if self.plan.cells[cell].tokens == 3 && round == 2 {
                    return Err(Trouble::Lost("crashed: ended by signal 11".into()));
                }
                let taken = self.block(cell, round);
                self.blocks.set(self.blocks.get() + 1);
                stop.store(self.blocks.get() >= self.stop_after, Ordering::Relaxed);
                Answer::Block(taken)
            }
            Ask::CheckLast { .. } => Answer::Check { record: passed(), ns: 500 },
            Ask::Itself { round, .. } => Answer::Itself(Some(1e-3 / f64::from(round) - 3e-4)),
        })
    }
}

fn plan() -> Plan {
    testing::plan(&[(64, 192)], &[4], &[1, 3, 16], BlockRule::QUICK)
}

pub(super) fn place() -> Place {
    Place {
        device: "cpu".into(),
        kernels: vec![],
        isa: None,
        packed: false,
        threads: None,
        isolate: false,
    }
}

pub(super) fn beginning() -> Beginning {
    Beginning {
        id: "0x1".into(),
        program: "test".into(),
        argv: vec![],
        os: "test".into(),
        host: "test".into(),
        unix_s: 1000,
        load: Load::default(),
    }
}

/// Measures what is planned, and writes the profile.
fn measure(planned: &Planned, fake: &mut Fake) -> Result<Profile> {
    measure_on("test", planned, fake)
}

/// The same on a host of this name.
pub(super) fn measure_on(host: &str, planned: &Planned, fake: &mut Fake) -> Result<Profile> {
    let now = Beginning { host: host.into(), ..beginning() };
    let (mut kept, beginning) = planned.open(&fake.facts, now)?;
    kept.loaded(&fake.drawn)?;
    let clock = fake.clock.clone();
    let stop = AtomicBool::new(false);
    let run = Run {
        beginning: &beginning,
        clocks: &clock,
        began_ns: clock.now_ns(),
        ledger: &mut kept,
        observer: &mut (),
        stop: &stop,
    };
    let Measured { mut profile, failure } = rounds(fake, &planned.plan, run)?;
    planned.label(&mut profile, kept.hosts());
    let bytes = format::to_bytes(&profile)?;
    write_atomic(&planned.folder.file(PROFILE_FILE), &bytes, true)?;
    failure.map_or(Ok(profile), Err)
}

fn begin(path: &Path, fake: &mut Fake) -> Result<Profile> {
    let planned = RunFolder::prepare(path, false, Locking::Locked)?.plan(
        place(),
        Destination::Folder,
        plan(),
    )?;
    measure(&planned, fake)
}

/// Goes on, or begins where nothing had begun.
fn go_on(path: &Path, fake: &mut Fake) -> Result<Profile> {
    match RunFolder::planned(path, Locking::Locked) {
        Ok(planned) => measure(&planned, fake),
        Err(Error::Io { .. }) => begin(path, fake),
        Err(error) => Err(error),
    }
}

fn whole() -> (Vec<u8>, usize, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(&plan());
    fault::plant(None);
    let profile = begin(&folder.path().join("run"), &mut fake).unwrap();
    let steps = fault::steps();
    validate::validate("test", &profile).unwrap();
    assert_eq!(profile.cells.len(), 3);
    assert_eq!(profile.cells[1].status, Status::Failed, "the crash is part of the run");
    assert!(profile.run.rounds > 6, "an open cell takes more rounds");
    assert_eq!(profile.provenance.libraries, ["/usr/lib/libcuda.so.1"]);
    (std::fs::read(folder.path().join("run/profile.json")).unwrap(), fake.blocks.get(), steps)
}

#[test]
fn a_run_that_ends_at_any_write_goes_on_to_the_same_profile() {
    let (expected, blocks, steps) = whole();
    assert!(steps > 60, "{steps}");
    let mut at = 0;
    loop {
        at += 1;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        // From here on every step fails, as for a process that has been killed.
        fault::plant(Some(fault::Fault { kind: fault::Kind::Full, at, lasting: true }));
        let mut first = Fake::new(&plan());
        let ended = begin(&path, &mut first);
        let taken = fault::steps();
        fault::plant(None);
        let mut second = Fake::new(&plan());
        go_on(&path, &mut second).unwrap_or_else(|e| panic!("step {at}: {e}"));
        assert_eq!(std::fs::read(path.join(PROFILE_FILE)).unwrap(), expected, "step {at}");
        let measured = first.blocks.get() + second.blocks.get();
        assert!(measured <= blocks + 1, "step {at}: {measured} blocks instead of {blocks}");
        if taken < at {
            ended.unwrap();
            assert_eq!(second.blocks.get(), 0, "a finished run has nothing left to measure");
            break;
        }
        assert_eq!(ended.unwrap_err().exit_code(), 7, "step {at}");
    }
    assert_eq!(at, steps + 1);
}

#[test]
fn a_run_that_is_broken_again_and_again_still_ends_with_the_same_profile() {
    let (expected, _, _) = whole();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    for sessions in 1.. {
        fault::plant(Some(fault::Fault { kind: fault::Kind::Full, at: 12, lasting: true }));
        let ended = go_on(&path, &mut Fake::new(&plan()));
        fault::plant(None);
        if ended.is_ok() {
            assert!(sessions > 3, "{sessions}");
            break;
        }
        assert!(sessions < 200, "no progress");
    }
    go_on(&path, &mut Fake::new(&plan())).unwrap();
    assert_eq!(std::fs::read(path.join(PROFILE_FILE)).unwrap(), expected);
}

#[test]
fn a_stop_leaves_a_sealed_partial_profile_and_the_run_goes_on_from_it() {
    let (expected, blocks, _) = whole();
    let folder = tempfile::tempdir().unwrap();
    for stop_after in [1, 5, blocks - 1] {
        let path = folder.path().join(format!("run{stop_after}"));
        let mut first = Fake { stop_after, ..Fake::new(&plan()) };
        let error = begin(&path, &mut first).unwrap_err();
        assert_eq!(error.exit_code(), 130);
        assert_eq!(first.blocks.get(), stop_after, "no block is begun after the stop");
        let partial = format::read(&path.join(PROFILE_FILE)).unwrap();
        assert!(partial.run.partial.as_deref().is_some_and(|p| p.contains("signal 2")));
        for cell in &partial.cells {
            assert!(cell.blocks.len() >= 6 || cell.latency.interval().is_none(), "{cell:?}");
        }
        let mut second = Fake::new(&plan());
        go_on(&path, &mut second).unwrap();
        assert_eq!(std::fs::read(path.join(PROFILE_FILE)).unwrap(), expected);
        assert_eq!(first.blocks.get() + second.blocks.get(), blocks);
    }
}

#[test]
fn another_device_plan_or_program_is_refused_with_the_difference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut first = Fake { stop_after: 4, ..Fake::new(&plan()) };
    begin(&path, &mut first).unwrap_err();
    let journal = path.join("journal.jsonl");
    let before = std::fs::read(&journal).unwrap();
    let refused = |edit: fn(&mut Fake), word: &str| {
        let mut fake = Fake::new(&plan());
        edit(&mut fake);
        let error = go_on(&path, &mut fake).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(std::fs::read(&journal).unwrap(), before);
    };
    refused(|f| f.facts.kernel_sha256 = "1".repeat(64), "kernels");
    refused(
        |f| {
            if let Device::Cpu(cpu) = &mut f.facts.device {
                cpu.threads = 64;
            }
        },
        "threads: 64",
    );
    let planned = RunFolder::planned(&path, Locking::Locked).unwrap();
    let newer = Beginning { program: "moe-frontier 9".into(), ..beginning() };
    let error = planned.open(&first.facts, newer).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("moe-frontier 9"), "{error}");
    // Another plan under the same journal.
    let other = folder.path().join("other");
    let longer = Plan { left_out: vec!["x".into()], ..plan() };
    RunFolder::prepare(&other, false, Locking::Locked)
        .unwrap()
        .plan(place(), Destination::Folder, longer)
        .unwrap();
    std::fs::copy(other.join("plan.json"), path.join("plan.json")).unwrap();
    refused(|_| {}, "another plan");
    std::fs::write(path.join("plan.json"), "{}").unwrap();
    assert_eq!(go_on(&path, &mut Fake::new(&plan())).unwrap_err().exit_code(), 3);
}

#[test]
fn a_folder_with_a_run_or_with_files_of_others_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    begin(&path, &mut Fake::new(&plan())).unwrap();
    let refused = |path: &Path, word: &str| {
        let error = RunFolder::prepare(path, false, Locking::Locked).unwrap_err();
        assert!(error.exit_code() == 7 && error.to_string().contains(word), "{error}");
    };
    refused(&path, "--resume");
    refused(folder.path(), "other files");
    refused(&path.join("profile.json"), "it is a file");
    refused(&folder.path().join("no/run"), "no/run");
    RunFolder::prepare(&path, true, Locking::Locked).unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

/// A clock whose time of day is set back by an hour at some reading.
struct Jumping {
    clock: FakeClock,
    readings: Counter<u32>,
    jump_at: u32,
}

impl Clock for Jumping {
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }
}

impl Clocks for Jumping {
    fn unix_s(&self) -> u64 {
        2000
    }

    fn wall_ns(&self) -> Option<u64> {
        self.readings.set(self.readings.get() + 1);
        let hour = if self.readings.get() >= self.jump_at { 3_600_000_000_000 } else { 0 };
        Some(10_000_000_000_000 + self.clock.now_ns() - hour)
    }
}

/// Keeps what it is told.
#[derive(Default)]
struct Listener(Vec<String>);

impl super::run::Observer for Listener {
    fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

    fn notice(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

#[test]
fn a_block_during_which_the_clock_jumps_is_void_and_taken_again() {
    let plan = plan();
    let measured = |jump_at: u32| {
        let mut fake = Fake::new(&plan);
        let clocks = Jumping { clock: fake.clock.clone(), readings: Counter::new(0), jump_at };
        let (mut heard, stop) = (Listener::default(), AtomicBool::new(false));
        let run = Run {
            beginning: &beginning(),
            clocks: &clocks,
            began_ns: 0,
            ledger: &mut (),
            observer: &mut heard,
            stop: &stop,
        };
        let profile = rounds(&mut fake, &plan, run).unwrap().profile;
        (profile, fake.blocks.get(), heard.0.len())
    };
    let (steady, blocks, _) = measured(u32::MAX);
    // Two readings a question: some jump between them, some fall between questions and do no harm.
    let mut voided = 0;
    for jump_at in 2..20 {
        let (profile, again, notices) = measured(jump_at);
        assert_eq!(profile.cells.len(), steady.cells.len());
        assert_eq!(again, blocks + notices, "{jump_at}");
        assert!(notices <= 1);
        voided += notices;
        for (a, b) in profile.cells.iter().zip(&steady.cells) {
            assert_eq!((&a.blocks, a.check), (&b.blocks, b.check), "{jump_at}");
        }
    }
    assert!(voided > 0);
}
