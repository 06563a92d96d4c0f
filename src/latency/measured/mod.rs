//! Latencies that this program measured: the profile file, its checks, and the lookup in it.

pub mod compare;
pub mod format;
mod interpolate;
pub mod layer;
pub mod merge;
#[cfg(test)]
pub(crate) mod synthetic;
pub mod table;
pub mod validate;

pub use layer::{Ceilings, LayerQuery};
pub use table::{LatencyTable, Policy, Transfer, TransferError};
