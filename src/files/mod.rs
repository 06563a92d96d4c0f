//! The one door for files: whole files written as one step, input read within limits, result folders
//! replaced as one step, documents sealed with a checksum.
//!
//! Every step that changes the file system passes [`fault`], so that a test can make the k-th of them
//! fail.

#[cfg(not(feature = "native"))]
pub mod brought;
pub mod checks;
pub mod csv;
pub mod fault;
#[cfg(feature = "native")]
pub mod folder;
mod literals;
#[cfg(feature = "native")]
pub mod parquet;
pub(crate) mod quiet;
#[cfg(feature = "native")]
pub mod read;
pub mod seal;
pub mod strict;
pub mod whole;
#[cfg(feature = "native")]
pub mod witness;

#[cfg(not(feature = "native"))]
pub use brought::read_capped;
#[cfg(feature = "native")]
pub use folder::ResultFolder;
pub(crate) use literals::{masked_literal, without_literals};
#[cfg(feature = "native")]
pub use read::read_capped;
pub use seal::sha256_hex;
pub use whole::{check_writable, create_folder, write_atomic};
