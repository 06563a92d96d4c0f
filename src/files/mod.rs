//! The one door for files: whole files written as one step, input read within limits, result folders
//! replaced as one step, documents sealed with a checksum.
//!
//! Every step that changes the file system passes [`fault`], so that a test can make the k-th of them
//! fail.

pub mod csv;
pub mod fault;
pub mod folder;
mod literals;
pub mod parquet;
pub(crate) mod quiet;
pub mod read;
pub mod seal;
pub mod strict;
pub mod whole;

pub use folder::ResultFolder;
pub(crate) use literals::{masked_literal, without_literals};
pub use read::read_capped;
pub use seal::sha256_hex;
pub use whole::{check_writable, create_folder, write_atomic};
