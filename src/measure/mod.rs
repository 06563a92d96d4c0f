//! Timing kernels so that the numbers can be believed.

mod aa;
pub mod ceilings;
mod cell;
pub mod check;
pub mod data;
pub mod gpu_target;
pub mod host;
mod launches;
pub mod plan;
pub mod preflight;
pub mod record;
pub mod run;
pub mod sampling;
mod session;
pub mod target;
pub mod timing;
pub mod work;
pub mod worker;

pub use gpu_target::GpuTarget;
pub use launches::{Drawn, Taken};
pub use plan::{Plan, Request};
pub use record::{Cell, Profile, Status};
pub use run::{Invocation, Measured, Observer, Start, routings};
pub use session::Session;
pub use target::{CpuTarget, Target};
