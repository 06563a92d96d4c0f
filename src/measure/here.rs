//! Measuring in the process that asks, without a folder: for programs that use this library.
//!
//! `moe-frontier measure` runs kernels in a process of their own and keeps a journal; here a crash of a
//! kernel is a crash of the caller, and an interruption loses what was measured.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::plan::{Plan, Request};
use super::run::{Invocation, Observer};
use super::sampling::BlockRule;
use super::session::Session;
use super::target::{CpuTarget, Target};
use crate::Result;
use crate::config::DType;
use crate::kernels::MoeBackend;
use crate::kernels::cpu::CpuBackend;
use crate::record::{Profile, TimingMode};
use crate::workload::RoutingKind;

impl Default for Request {
    /// What `moe-frontier measure` asks without flags, on a CPU: layers of 4 to 32 experts of width 1024,
    /// top-2, bf16, two minutes.
    fn default() -> Self {
        Self {
            widths: vec![(1024, 3584)],
            experts: vec![4, 8, 16, 32],
            top_k: 2,
            gated: true,
            tokens: None,
            dtype: DType::Bf16,
            routing: RoutingKind::Uniform,
            seed: 1,
            budget: Duration::from_secs(120),
            rule: BlockRule::FULL,
            modes: vec![TimingMode::Cpu],
        }
    }
}

/// Times MoE layers on this CPU with its widest instructions; returns a latency profile.
///
/// ```no_run
/// use std::time::Duration;
/// use moe_frontier::measure;
/// use moe_frontier::measure::Request;
///
/// let profile = measure(&Request { budget: Duration::from_secs(30), ..Request::default() })?;
/// for cell in &profile.cells {
///     println!("{} experts, {} tokens: {:?}", cell.experts, cell.tokens, cell.latency);
/// }
/// # Ok::<(), moe_frontier::Error>(())
/// ```
///
/// # Errors
/// [`crate::Error::Usage`] for sizes that make no layer, [`crate::Error::Unfit`] when none fits into
/// memory.
pub fn measure(request: &Request) -> Result<Profile> {
    measure_on(&CpuBackend::new(), &CpuTarget::default(), request, &mut ())
}

/// The same on any device that is open, told to an observer.
///
/// # Errors
/// As [`measure`]; whatever the device reports.
pub fn measure_on(
    backend: &dyn MoeBackend,
    target: &dyn Target,
    request: &Request,
    observer: &mut dyn Observer,
) -> Result<Profile> {
    let mut request = request.clone();
    for note in request.without_repeats() {
        observer.notice(&note);
    }
    let session = Session::new(backend, target);
    session.facts().check_modes(&request.modes)?;
    request.check(target.available_bytes())?;
    let machine = session.machine(request.dtype)?;
    let plan = Plan::new(request, &machine)?;
    for left_out in &plan.left_out {
        observer.notice(&format!("not measured: {left_out}"));
    }
    let invocation = Invocation {
        program: concat!("moe-frontier ", env!("CARGO_PKG_VERSION")).into(),
        argv: Vec::new(),
    };
    session.run(&plan, invocation, observer, &AtomicBool::new(false))
}
