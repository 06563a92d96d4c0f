//! Timing kernels so that the numbers can be believed.

pub mod host;
pub mod preflight;
pub mod record;
pub mod sampling;
pub mod timing;

pub use record::{Cell, Profile, Status};
