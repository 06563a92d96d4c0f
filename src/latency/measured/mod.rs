//! Latencies that this program measured: the profile file, its checks, and the lookup in it.

pub mod compare;
pub mod format;
mod interpolate;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod table;
pub mod validate;

pub use table::{LatencyTable, Outside, Policy, Transfer, TransferError};
