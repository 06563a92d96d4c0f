//! Which mixture-of-experts (MoE) model to train, and what it costs to serve: from measurements.
//!
//! # The chain
//!
//! Data flows one way, and each module uses only modules that stand before it:
//!
//! ```text
//! units, constants, error, bounds, files, stats   quantities, failures, their limits, whole files
//!   config, workload                              models and devices; which token visits which expert
//!     record                                      what a measurement leaves behind
//!     gpu, comm, kernels                          the CUDA driver; groups of ranks; router, align, GEMM
//!       measure                                   timing that can be believed
//!         latency                                 how long one operation of a step takes
//!           law                                   loss of a model from its size, tokens and experts
//!             serving                             one deployment: layout, memory, step, queue, dollars
//!               plan                              candidates, ranking, frontier, sizing
//!                 calibrate                       engine constants from measured servers
//!                   report                        tables, plots, pages
//!                     cli                         the command line
//! ```
//!
//! `law`, `serving`, `plan`, `calibrate` and `report` never touch `kernels`, `gpu`, `comm` or `measure`: everything after
//! `latency` runs from a recorded file on a machine without a GPU, and no estimate can quietly
//! start a measurement. `tests/layering.rs` holds this order.

#![cfg_attr(
    not(feature = "native"),
    allow(dead_code, reason = "a page shows less than the program writes")
)]

pub mod bounds;
pub mod constants;
pub mod error;
pub mod files;
pub mod stats;
pub mod units;

pub mod config;
pub mod workload;

#[cfg(feature = "native")]
pub mod comm;
#[cfg(feature = "native")]
#[expect(
    unsafe_code,
    reason = "the CUDA driver is a C library; each call is argued where it stands"
)]
pub mod gpu;
#[cfg(feature = "native")]
pub mod kernels;

pub mod record;

#[cfg(feature = "native")]
pub mod measure;

pub mod latency;

pub mod law;
pub mod serving;

pub mod plan;

pub mod calibrate;

pub mod report;

#[cfg(feature = "cli")]
pub mod cli;
// The part of it that a page computes with.
#[cfg(all(feature = "page", not(feature = "cli")))]
#[path = "cli/page.rs"]
pub mod cli;

pub use error::{Error, Result};
