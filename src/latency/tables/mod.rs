//! Kernel tables that serving engines were measured with: import, file format, lookup.

mod attention;
mod cache;
mod carry;
pub mod choose;
pub mod codec;
mod dialect;
pub mod errors;
pub mod flat_table;
pub mod gather;
mod gemm;
mod lines;
mod links;
mod load;
mod mla;
mod moe;
pub mod pack;
pub mod rates;
pub mod series;
mod sigma;
pub mod tables_model;

pub use codec::{is_tables, read, write};
pub use series::EngineTables;
pub use tables_model::TablesModel;

use std::sync::Arc;

/// stub
pub fn shipped(_d: &crate::config::DeviceSpec) -> crate::Result<Option<Arc<EngineTables>>> {
    Ok(None)
}
