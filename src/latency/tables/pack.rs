//! Compact tables that the program embeds.

use std::path::{Path, PathBuf};

use super::codec::{Encoding, to_bytes};
use super::series::EngineTables;
use super::tables_model::device;
use crate::files::{create_folder, write_atomic};
use crate::{Error, Result};

/// Step of ln(time) that compact tables keep: at most 1 % off, 0.5 % in the median.
const STEP: f64 = 0.02;

/// Writes the compact form of some tables into a folder; its path and length.
///
/// # Errors
/// [`Error::Unfit`] for a device that the program does not know, [`Error::Io`] when it cannot be
/// written.
pub fn write(folder: &Path, tables: &EngineTables) -> Result<(PathBuf, usize)> {
    let device = device(tables)
        .ok_or_else(|| Error::unfit(&tables.device, "only tables of known devices are embedded"))?;
    create_folder(folder)?;
    let path = folder.join(format!("{}.tables", device.short_name()));
    let bytes = to_bytes(tables, Encoding::Quantised(STEP))?;
    write_atomic(&path, &bytes, true)?;
    Ok((path, bytes.len()))
}
