//! Kernel tables that serving engines were measured with: import, file format, lookup.

pub mod engine_tables;
pub mod flat_table;
pub mod import;
pub mod kernel_times;

pub use kernel_times::{AttentionWork, KernelTimes, MoeWork, Rates, Timed};
