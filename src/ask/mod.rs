//! Questions with their defaults: what [`rank()`], [`size()`] and [`estimate()`] take, resolved and answered.
//!
//! Options name what a person would name: a model, a device, a law, a limit. Here they become the
//! resolved inputs of [`crate::plan`] and [`crate::serving`], each default with its reason. The command
//! line turns its flags into the same options, so that a program and a terminal get the same answer.
//! Nothing is measured here: latencies come from files, shipped tables or published peaks.

mod calibrated;
mod check;
mod estimate;
pub(crate) mod rank;
mod server;
mod size;
pub(crate) mod sources;

pub(crate) use calibrated::{calibrate_all, calibrations};
pub use estimate::{EstimateOptions, Estimated, SplitUsd, estimate};
pub use rank::{Mfu, RankOptions, rank};
pub use server::ServerOptions;
pub use size::{SizeOptions, Sizing, size};
pub use sources::{DevicePrice, SourceOptions};
