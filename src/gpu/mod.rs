//! The CUDA driver, found at run time. One of the two places where `unsafe` is allowed.
//!
//! Promised to callers: nothing here panics or aborts when there is no driver, no device or a
//! driver that is too old; each of these is a value that says so.

pub mod driver;
pub mod monitor;

pub use driver::{GpuFacts, NoGpu, probe};
pub use monitor::{Condition, Monitor};
