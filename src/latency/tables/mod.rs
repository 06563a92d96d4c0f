//! Kernel tables that serving engines were measured with: import, file format, lookup.

pub mod codec;
mod dialect;
pub mod engine_tables;
pub mod flat_table;
pub mod gather;
pub mod import;
pub mod kernel_times;
mod load;
pub mod rates;
pub mod series;

pub use kernel_times::{AttentionWork, KernelTimes, MoeWork, Rates, Timed};
