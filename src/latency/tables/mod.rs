//! Kernel tables that serving engines were measured with: import, file format, lookup.

pub mod flat_table;
mod stub;
pub use stub::*;
