//! Which mixture-of-experts (MoE) model to train, and what it costs to serve: from measurements.
//!
//! # The chain
//!
//! Data flows one way, and each module uses only modules that stand before it:
//!
//! ```text
//! units, error, bounds, files, stats       quantities, failures, their limits, whole files, order statistics
//!   config, workload                       models and devices; which token visits which expert
//!     gpu, kernels                         the CUDA driver; router, align, grouped GEMM
//!       measure                            timing that can be believed
//!         profile                          the latency profile, read and written
//!           law, cost                      loss laws; memory, step time, dollars
//!             plan                         candidates, ranking, frontier, crossovers
//!               report                     tables, plots, pages
//!                 cli                      the command line
//! ```
//!
//! `law`, `cost`, `plan` and `report` never touch `kernels`, `gpu` or `measure`: everything after
//! `profile` runs from a recorded file on a machine without a GPU, and no estimate can quietly
//! start a measurement. `tests/layering.rs` holds this order.

pub mod bounds;
pub mod constants;
pub mod error;
pub mod files;
pub mod stats;
pub mod units;

pub mod config;
pub mod workload;

#[expect(
    unsafe_code,
    reason = "the CUDA driver is a C library; each call is argued where it stands"
)]
pub mod gpu;
pub mod kernels;

pub mod measure;

pub mod latency;

pub mod law;
pub mod serving;

pub mod plan;

pub mod report;

pub mod cli;

pub use error::{Error, Result};
