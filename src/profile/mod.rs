//! The latency profile: the wall between measuring and everything that is computed from it.

pub mod compare;
pub mod engine_tables;
pub mod flat_table;
pub mod format;
pub mod import;
mod interpolate;
pub mod kernel_times;
pub mod latency;
pub mod roofline;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod table;
pub mod validate;

pub use kernel_times::{AttentionWork, KernelTimes, MoeWork, Rates, Timed};
pub use latency::{Ceilings, Latency, LatencyModel, LayerQuery, Source};
pub use roofline::RooflineModel;
pub use table::{LatencyTable, Outside, Policy, Transfer, TransferError};
