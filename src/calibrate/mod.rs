//! Constants of serving engines from measured servers, by partial pooling.
//!
//! A tree of levels: all engines, an engine, a model on a device under it, a source of rows, own runs.
//! Every level adds a deviation with a stated spread to its parent's constants; rows pull their own
//! branch and, less, what is above it. A group without rows has its engine's constants and the full
//! spread of what is below; no group ever gets another's.

pub mod constants;
pub mod features;
pub mod fit;
pub mod judge;
pub mod own;
pub(crate) mod own_file;
pub mod pool;
pub mod predict;
pub mod prior;

pub use constants::Constants;
pub use own::{Calibration, Fitted};
pub use pool::Group;
pub use prior::{Known, Prior};
