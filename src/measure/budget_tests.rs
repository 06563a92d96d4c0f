//! The time budget is kept, whatever a device's blocks take: a worker and a clock that are made up take its
//! place.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::ceilings::CeilingSamples;
use super::launches::{Drawn, Taken};
use super::plan::{Plan, ROUNDS};
use super::preflight::Load;
use super::run::{Beginning, Measured, Observer, Run, rounds};
use super::sampling::{BlockRule, CPU_WIDTH};
use super::testing;
use super::timing::Clock;
use super::timing::fake::FakeClock;
use super::worker::{Answer, Ask, Facts, Trouble, Worker};
use crate::config::DType;
use crate::record::{Block, CheckOutcome, CheckRecord, CpuDevice, Device, Profile, TimingMode};

/// A device whose blocks take a multiple of what was planned for them.
struct Slow {
    facts: Facts,
    drawn: Vec<Drawn>,
    plan: Plan,
    clock: FakeClock,
    /// The multiple, by cell and round.
    factor: fn(usize, u32) -> f64,
}

impl Slow {
    fn new(plan: &Plan, factor: fn(usize, u32) -> f64) -> Self {
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
            libraries: vec![],
        };
        let drawn = Drawn { draws: 8, active_experts: 1.0, max_rows: 1.0, cycle_experts: 1e6 };
        let drawn = vec![drawn; plan.cells.len()];
        Self { facts, drawn, plan: plan.clone(), clock: FakeClock::default(), factor }
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(u64::try_from(time.as_nanos()).unwrap());
    }
}

const fn passed() -> CheckRecord {
    CheckRecord { output: CheckOutcome::Pass, worst_ratio_to_bound: Some(0.5) }
}

/// What comparing an output with the reference takes.
const CHECK: Duration = Duration::from_millis(4);

impl Worker for Slow {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn drawn(&self) -> &[Drawn] {
        &self.drawn
    }

    fn ask(&mut self, ask: Ask, _stop: &AtomicBool) -> Result<Answer, Trouble> {
        self.pass(Duration::from_millis(1));
        Ok(match ask {
            Ask::ReadRate => {
                Answer::Rates(CeilingSamples { read: vec![1e15], ..CeilingSamples::default() })
            }
            Ask::OtherRates => Answer::Rates(CeilingSamples {
                dense: vec![1e17],
                dispatch_ns: vec![1000.0],
                ..CeilingSamples::default()
            }),
            Ask::Block { cell, round } => {
                self.pass(self.plan.cells[cell].block.mul_f64((self.factor)(cell, round)));
                let first = round == 1;
                if first {
                    self.pass(CHECK);
                }
                // Intervals that never close: the run goes on as long as it may.
                let median_ps = 1_000_000_000 + u64::from(round % 5) * 400_000_000;
                let block = Block {
                    round,
                    median_ps,
                    samples: 3,
                    launches_per_sample: 1,
                    contended: false,
                    sm_clock_mhz: None,
                };
                Answer::Block(Taken {
                    block: Some(block),
                    samples: vec![(0, median_ps as f64); 3],
                    launch_ns: Some(median_ps / 1000),
                    throttled: false,
                    power_limited: false,
                    check: first.then_some(passed()),
                    checking_ns: if first { 4_000_000 } else { 0 },
                    plan: None,
                })
            }
            Ask::CheckLast { .. } => {
                self.pass(CHECK);
                Answer::Check { record: passed(), ns: 4_000_000 }
            }
            Ask::Itself { .. } => Answer::Itself(Some(1e-3)),
        })
    }
}

/// Keeps what it is told.
#[derive(Default)]
struct Listener(Vec<String>);

impl Observer for Listener {
    fn step(&mut self, _done: usize, _total: usize, _what: &str) {}

    fn notice(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

/// Cells, time taken, and what was said, of a plan of 48 cells that `budget` holds as planned.
fn measure(budget: Duration, factor: fn(usize, u32) -> f64) -> (Profile, Duration, Vec<String>) {
    let tokens = [1, 3, 9, 33, 65, 129, 200, 300];
    let mut plan = testing::plan(&[(64, 192), (128, 384)], &[4, 8, 16], &tokens, BlockRule::QUICK);
    assert_eq!(plan.cells.len(), 48);
    plan.request.budget = budget;
    let mut device = Slow::new(&plan, factor);
    let clock = device.clock.clone();
    // What loading takes is part of the budget.
    device.pass(budget / 20);
    let beginning = Beginning {
        id: "0x1".into(),
        program: "test".into(),
        argv: vec![],
        os: "test".into(),
        host: "test".into(),
        unix_s: 1000,
        load: Load::default(),
    };
    let mut heard = Listener::default();
    let run = Run {
        beginning: &beginning,
        clocks: &clock,
        began_ns: 0,
        ledger: &mut (),
        observer: &mut heard,
        stop: &AtomicBool::new(false),
    };
    let Measured { profile, failure } = rounds(&mut device, &plan, run).unwrap();
    assert!(failure.is_none());
    (profile, Duration::from_nanos(clock.now_ns()), heard.0)
}

/// What is slower than planned, and how much by cell and round.
type Slowness = (&'static str, fn(usize, u32) -> f64);

#[test]
fn a_budget_is_kept_within_five_percent_however_wrong_the_plan_was() {
    let budget = Duration::from_secs(12);
    let devices: [Slowness; 7] = [
        ("as planned", |_, _| 1.0),
        ("twice as fast", |_, _| 0.5),
        ("somewhat slower", |_, _| 1.4),
        ("three times slower", |_, _| 3.0),
        ("ten times slower", |_, _| 10.0),
        ("some cells slower", |cell, _| if cell % 5 == 4 { 8.0 } else { 1.0 }),
        ("slower from the third round on", |_, round| if round > 2 { 2.0 } else { 1.0 }),
    ];
    for (name, factor) in devices {
        let (profile, taken, heard) = measure(budget, factor);
        let share = taken.as_secs_f64() / budget.as_secs_f64();
        assert!(share <= 1.05, "{name}: {share:.3} of the budget");
        assert!(share >= 0.6, "{name}: {share:.3} of the budget");
        // Never the rounds, always the cells, and aloud.
        for cell in &profile.cells {
            assert!(cell.blocks.len() >= usize::try_from(ROUNDS).unwrap(), "{name}: {cell:?}");
        }
        let dropped = 48 - profile.cells.len();
        let told: usize = heard
            .iter()
            .filter_map(|line| line.strip_prefix("not measured: the "))
            .filter_map(|line| line.split(' ').next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(told, dropped, "{name}: {heard:?}");
        println!("{name}: {share:.3} of the budget, {} cells", profile.cells.len());
    }
}

#[test]
fn the_most_wanted_cell_is_measured_whatever_it_takes() {
    let (profile, taken, _) = measure(Duration::from_millis(100), |_, _| 1.0);
    assert_eq!(profile.cells.len(), 1);
    assert_eq!(profile.cells[0].tokens, 1);
    assert!(taken < Duration::from_secs(1), "{taken:?}");
}
