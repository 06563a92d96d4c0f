//! Which mixture-of-experts (MoE) model to train, and what it costs to serve: measured kernel latencies
//! joined with loss laws.
//!
//! ```
//! use moe_frontier::units::{Flops, Seconds};
//! use moe_frontier::{RankOptions, rank};
//!
//! let ranking = rank(&RankOptions {
//!     train_flops: Some(Flops(1e22)),
//!     rate: Some(20.0),
//!     tpot: Some(Seconds::from_ms(50.0)),
//!     # law: "ludziejewski2025".into(),
//!     # draws: 20,
//!     ..RankOptions::on("h100")
//! })?;
//! for c in ranking.report.candidates.iter().filter(|c| c.best_of_experts) {
//!     println!("{} experts: {:?} dollars, P(best) {:?}", c.experts, c.total_usd, c.p_best);
//! }
//! # Ok::<(), moe_frontier::Error>(())
//! ```
//!
//! # Start here
//!
//! | to | use | runnable example |
//! |---|---|---|
//! | rank expert counts by training plus serving cost | [`rank()`] | `examples/rank.rs` |
//! | size a deployment for a request rate | [`size()`] | `examples/size.rs` |
//! | predict one deployment | [`estimate()`] | `examples/calibrate.rs` |
//! | measure MoE layers on this CPU | [`measure()`](fn@measure) | `examples/profile.rs` |
//! | read a profile that `moe-frontier measure` wrote | [`read_profile`], [`Profile`], [`LatencyTable`] | `examples/profile.rs` |
//! | ask a loss law | [`law::load`], [`law::ask`] | `examples/own_law.rs` |
//! | rank with a law of your own | [`ArchitectureLaw`], [`Scaling`] | `examples/own_law.rs` |
//! | price with latencies of your own | [`LatencyModel`] | `examples/own_latency.rs` |
//! | fit an engine's constants to your runs | [`EstimateOptions::calibrate`] | `examples/calibrate.rs` |
//! | run an MoE layer inside a candle model | [`kernels::candle::MoeLayer`] | `examples/candle_layer.rs` |
//!
//! The names at this root are the front door: options with defaults, and what they are answered with. The
//! command line turns its flags into the same options. The modules below hold what the answers are made
//! of.
//!
//! # The chain
//!
//! Data flows one way, and each module uses only modules that come before it:
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
//!                   ask                           options with defaults, answered
//!                     report                      tables, plots, pages
//!                       cli                       the command line
//! ```
//!
//! `latency`, `law`, `serving`, `plan`, `calibrate`, `ask` and `report` never touch `kernels`, `gpu`,
//! `comm` or `measure`: they run from a recorded file on a machine without a GPU, and no estimate can quietly start
//! a measurement. `tests/layering.rs` holds this order.
//!
//! # Features
//!
//! `cli` (default) is the program, `candle` (default) the layer as a candle module. `native` alone is the
//! library with kernels and measuring; without any feature what is left needs neither threads nor a
//! system, and compiles for `wasm32-unknown-unknown`.

#![cfg_attr(
    not(feature = "cli"),
    allow(dead_code, reason = "the program writes more than a page or the library alone shows")
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

pub mod ask;

pub mod report;

#[cfg(feature = "cli")]
pub mod cli;
// The part of it that a page computes with.
#[cfg(all(feature = "page", not(feature = "cli")))]
#[path = "cli/page.rs"]
pub mod cli;

pub use ask::{
    DevicePrice, EstimateOptions, Estimated, Mfu, RankOptions, ServerOptions, SizeOptions, Sizing,
    SourceOptions, SplitUsd, estimate, rank, size,
};
pub use config::{DType, DeviceSpec, MoeModel};
pub use error::{Error, Result};
pub use latency::measured::format::read as read_profile;
pub use latency::{LatencyModel, LatencyTable};
pub use law::{ArchitectureLaw, LossLaw, Scaling};
#[cfg(feature = "native")]
#[doc(inline)]
pub use measure::measure;
pub use plan::outcome::{Candidate, RankReport};
pub use plan::rank::Ranking;
pub use plan::size::{Choice, SizeAnswer};
pub use record::Profile;
pub use serving::{Deployment, Layout, Served, Traffic};
