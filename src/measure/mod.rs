//! Timing kernels so that the numbers can be believed.

mod aa;
pub mod ceilings;
mod cell;
pub mod check;
pub mod data;
pub mod gpu_target;
pub mod host;
pub mod plan;
pub mod preflight;
pub mod record;
pub mod run;
pub mod sampling;
pub mod target;
pub mod timing;
pub mod work;

pub use gpu_target::GpuTarget;
pub use plan::{Plan, Request};
pub use record::{Cell, Profile, Status};
pub use run::{Invocation, Observer, Session, routings};
pub use target::{CpuTarget, Target};
