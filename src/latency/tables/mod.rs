//! Kernel tables that serving engines were measured with: import, file format, lookup.

mod attention;
mod cache;
mod carry;
pub mod choose;
pub mod codec;
mod dialect;
pub mod errors;
pub mod flat_table;
pub mod from_group;
pub mod gather;
mod gemm;
mod lines;
mod links;
mod load;
mod mla;
mod moe;
mod narrow;
pub mod nccl_tests;
#[cfg(feature = "native")]
pub mod pack;
pub mod series;
pub mod shipped;
mod sigma;
pub mod tables_model;

pub use codec::{is_tables, read, write};
pub use series::EngineTables;
pub use shipped::shipped;
pub use tables_model::TablesModel;
