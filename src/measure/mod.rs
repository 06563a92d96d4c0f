//! Timing kernels so that the numbers can be believed.

mod aa;
#[cfg(test)]
mod budget_tests;
pub mod ceilings;
mod cell;
mod cgroup;
pub mod check;
pub mod data;
pub mod folder;
pub mod gpu_target;
pub mod group;
mod here;
pub mod host;
pub mod journal;
mod launches;
pub mod ledger;
pub mod pairs;
pub mod plan;
pub mod preflight;
#[cfg(test)]
mod resume_tests;
pub mod run;
#[cfg(test)]
mod run_tests;
pub mod sampling;
mod session;
pub mod shard;
pub mod sweep;
#[cfg(test)]
mod sweep_tests;
pub mod target;
#[cfg(test)]
mod testing;
pub mod timing;
pub mod work;
pub mod worker;

pub use gpu_target::GpuTarget;
pub use here::{measure, measure_on};
pub use launches::{Drawn, Taken};
pub use plan::{Plan, Request};
pub use run::{Beginning, Invocation, Measured, Observer, Run, routings};
pub use session::Session;
pub use target::{CpuTarget, Target};
