//! A run on this CPU, and on backends that are wrong or have no room.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::plan::ROUNDS;
use super::run::{Invocation, Observer, inputs, routings};
use super::{Plan, testing};
use crate::config::DType;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::{
    Arithmetic, LayerWeights, LoadedLayer, MoeBackend, MoeShape, RouterSpec, Stage,
};
use crate::measure::Session;
use crate::measure::ceilings::Sizes;
use crate::measure::sampling::BlockRule;
use crate::measure::target::CpuTarget;
use crate::record::Status;
use crate::{Error, Result};

/// Blocks of a few milliseconds: what is tested here is the bookkeeping, not the times.
const RULE: BlockRule = BlockRule {
    min_samples: 3,
    min_busy_ns: 1_000_000,
    cap_ns: 2_000_000,
    shortest_sample_ns: 20_000,
};

fn plan() -> Plan {
    testing::plan(&[(64, 192), (128, 384)], &[1, 4], &[1, 9], RULE)
}

fn invocation() -> Invocation {
    Invocation { program: "test".into(), argv: vec![] }
}

/// This CPU with ceilings that take milliseconds, also without optimisation.
fn target() -> CpuTarget {
    let mut target = CpuTarget { read_at_least: 4e6, ..CpuTarget::default() };
    target.device.l3_bytes = Some(1 << 20);
    target.sizes = Sizes {
        read_bytes: 1 << 20,
        dense: MoeShape { hidden: 128, inter: 128, ..Sizes::USUAL.dense },
        dense_tokens: 64,
        square: 64,
    };
    target
}

#[test]
fn a_run_leaves_a_profile_that_its_own_reader_accepts() {
    let (backend, target) = (CpuBackend::new(), target());
    let session = Session::new(&backend, &target);
    let stop = AtomicBool::new(false);
    let profile = session.run(&plan(), invocation(), &mut (), &stop).unwrap();
    crate::latency::measured::validate::validate("test", &profile).unwrap();
    crate::latency::measured::format::to_bytes(&profile).unwrap();
    assert_eq!(profile.cells.len(), 8);
    assert!(profile.run.rounds >= ROUNDS);
    for cell in &profile.cells {
        assert!(matches!(cell.status, Status::Valid | Status::Noisy | Status::Refused));
        assert!(cell.blocks.len() >= 6, "{cell:?}");
        assert!(cell.routing.realisations >= 8);
        assert!(cell.check.worst_ratio_to_bound.unwrap() <= 1.0);
    }
}

#[test]
fn the_routing_written_for_others_is_the_one_that_is_measured() {
    let plan = plan();
    for (routing, spec) in routings(&plan, &AtomicBool::new(false)).unwrap().iter().zip(&plan.cells)
    {
        let measured = inputs(&plan, spec).unwrap();
        assert_eq!(routing.draws.len(), measured.draws.len());
        assert_eq!(routing.draws[0], measured.draws[0].ids);
        assert_eq!(routing.draws[0].len(), routing.tokens * routing.top_k);
    }
}

#[test]
fn a_raised_stop_flag_ends_the_run_without_a_profile() {
    let (backend, target) = (CpuBackend::new(), target());
    let session = Session::new(&backend, &target);
    let stop = AtomicBool::new(true);
    let error = session.run(&plan(), invocation(), &mut (), &stop).unwrap_err();
    assert_eq!(error.exit_code(), 130);
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

#[test]
fn cells_that_turn_out_too_slow_are_dropped_aloud() {
    let (backend, target) = (CpuBackend::new(), target());
    let session = Session::new(&backend, &target);
    let mut plan = plan();
    plan.request.budget = Duration::from_millis(1);
    let mut heard = Listener::default();
    let stop = AtomicBool::new(false);
    let profile = session.run(&plan, invocation(), &mut heard, &stop).unwrap();
    assert!(profile.cells.len() < plan.cells.len());
    let dropped = plan.cells.len() - profile.cells.len();
    assert_eq!(heard.0.len(), 1);
    assert!(heard.0[0].contains(&format!("the {dropped} least wanted")), "{:?}", heard.0);
    assert!(profile.cells.iter().all(|c| c.blocks.len() >= 6));
}

/// The CPU with one wrong value in every output.
struct Wrong(CpuBackend);

impl MoeBackend for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn description(&self) -> String {
        self.0.description()
    }
    fn kernel(&self, stage: Stage) -> &'static str {
        self.0.kernel(stage)
    }
    fn arithmetic(&self, weights: DType) -> Arithmetic {
        self.0.arithmetic(weights)
    }
    fn kernel_sha256(&self) -> String {
        self.0.kernel_sha256()
    }
    fn load<'a>(
        &'a self,
        sets: &'a [LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Box<dyn LoadedLayer + 'a>> {
        Ok(Box::new(WrongLayer(self.0.load(sets, router, max_tokens)?)))
    }
}

struct WrongLayer<'a>(Box<dyn LoadedLayer + 'a>);

impl LoadedLayer for WrongLayer<'_> {
    fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()> {
        self.0.set_input(x, logits)
    }
    fn run(&mut self, stage: Stage, set: usize) -> Result<()> {
        self.0.run(stage, set)
    }
    fn routed(&mut self) -> Result<crate::kernels::Routed> {
        self.0.routed()
    }
    fn output(&mut self) -> Result<Vec<f32>> {
        let mut output = self.0.output()?;
        output[0] += 1.0;
        Ok(output)
    }
    fn poison(&mut self) -> Result<()> {
        self.0.poison()
    }
}

#[test]
fn a_kernel_with_a_wrong_output_is_refused_and_not_timed() {
    let (backend, target) = (Wrong(CpuBackend::new()), target());
    let session = Session::new(&backend, &target);
    let stop = AtomicBool::new(false);
    let profile = session.run(&plan(), invocation(), &mut (), &stop).unwrap();
    for cell in &profile.cells {
        // With many tokens the spoilt one may not be among those compared.
        if cell.tokens == 1 {
            assert_eq!((cell.status, cell.blocks.len()), (Status::Refused, 0));
            assert!(cell.latency.interval().is_none());
        }
    }
    crate::latency::measured::validate::validate("test", &profile).unwrap();
}

/// The CPU without room for layers of some width.
struct Scarce {
    cpu: CpuBackend,
    fits: fn(usize) -> bool,
}

impl MoeBackend for Scarce {
    fn name(&self) -> &'static str {
        "scarce"
    }
    fn description(&self) -> String {
        self.cpu.description()
    }
    fn kernel(&self, stage: Stage) -> &'static str {
        self.cpu.kernel(stage)
    }
    fn arithmetic(&self, weights: DType) -> Arithmetic {
        self.cpu.arithmetic(weights)
    }
    fn kernel_sha256(&self) -> String {
        self.cpu.kernel_sha256()
    }
    fn load<'a>(
        &'a self,
        sets: &'a [LayerWeights],
        router: &RouterSpec,
        max_tokens: usize,
    ) -> Result<Box<dyn LoadedLayer + 'a>> {
        // The dense ceiling has 64 tokens.
        if max_tokens < 64 && !(self.fits)(sets[0].shape.hidden) {
            return Err(Error::device("scarce", "98304 bytes: out of memory; 4096 are free"));
        }
        self.cpu.load(sets, router, max_tokens)
    }
}

#[test]
fn a_layer_without_room_on_the_device_costs_its_own_cells() {
    let target = target();
    let backend = Scarce { cpu: CpuBackend::new(), fits: |hidden| hidden != 128 };
    let session = Session::new(&backend, &target);
    let stop = AtomicBool::new(false);
    let profile = session.run(&plan(), invocation(), &mut (), &stop).unwrap();
    assert_eq!(profile.cells.len(), 8);
    for cell in &profile.cells {
        if cell.hidden == 128 {
            assert_eq!((cell.status, cell.blocks.len()), (Status::Failed, 0));
            let reason = format!("{:?}", cell.latency);
            assert!(reason.contains("98304 bytes") && reason.contains("4096 are free"), "{reason}");
        } else {
            assert!(matches!(cell.status, Status::Valid | Status::Noisy | Status::Refused));
            assert!(cell.blocks.len() >= 6);
        }
    }
    crate::latency::measured::validate::validate("test", &profile).unwrap();
    let backend = Scarce { cpu: CpuBackend::new(), fits: |_| false };
    let session = Session::new(&backend, &target);
    let error = session.run(&plan(), invocation(), &mut (), &stop).unwrap_err();
    assert!(error.exit_code() == 6 && error.to_string().contains("out of memory"), "{error}");
}
