//! Compact tables that the program embeds.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::choose::weight_formats;
use super::codec::{Encoding, to_bytes};
use super::gather::keep_only;
use super::series::{EngineTables, Series, Table};
use super::tables_model::device;
use crate::config::DType;
use crate::files::{create_folder, write_atomic};
use crate::{Error, Result};

/// Step of ln(time) that compact tables keep: at most 0.75 % off, 0.4 % in the median. Five devices
/// with 4.3 million cells take 2.8 MB; a step of 0.02 takes 2.6 MB, one of 0.01 takes 3.1 MB.
const STEP: f64 = 0.015;

/// Writes the compact form of some tables into a folder; its path and length.
///
/// # Errors
/// [`Error::Unfit`] for a device that the program does not know, [`Error::Io`] when it cannot be
/// written, or exists and `force` is not set.
pub fn write(folder: &Path, tables: &EngineTables, force: bool) -> Result<(PathBuf, usize)> {
    let device = device(tables)
        .ok_or_else(|| Error::unfit(&tables.device, "only tables of known devices are embedded"))?;
    create_folder(folder)?;
    let path = folder.join(format!("{}.tables", device.short_name()));
    let bytes = to_bytes(tables, Encoding::Quantised(STEP))?;
    write_atomic(&path, &bytes, force)?;
    Ok((path, bytes.len()))
}

/// The compact form of what answers for one engine with weights in some formats: its own series, and those
/// of other engines where it has none of an operation and format.
///
/// # Errors
/// [`Error::Unfit`] for times that are none.
pub fn excerpt(tables: &EngineTables, engine: &str, weights: &[DType]) -> Result<Vec<u8>> {
    let formats: HashSet<&str> =
        weights.iter().flat_map(|dtype| weight_formats(*dtype)).copied().collect();
    let kind = |series: &Series| {
        let kernel = tables.kernel(series);
        (series.table, kernel.format.as_str(), kernel.cache.as_str())
    };
    let own: HashSet<_> =
        tables.series.iter().filter(|s| tables.kernel(s).engine == engine).map(kind).collect();
    let is_kept = |series: &&Series| {
        let kernel = tables.kernel(series);
        let is_asked = !matches!(series.table, Table::Moe | Table::Gemm)
            || formats.contains(kernel.format.as_str());
        is_asked && (kernel.engine == engine || !own.contains(&kind(series)))
    };
    let mut kept: Vec<Series> = tables.series.iter().filter(is_kept).copied().collect();
    let mut axes = Vec::new();
    let mut places: HashMap<u32, u32> = HashMap::new();
    let mut few = tables.clone();
    for series in &kept {
        places.entry(series.axis).or_insert_with(|| {
            axes.push(tables.axes[series.axis as usize].clone());
            u32::try_from(axes.len() - 1).unwrap_or(u32::MAX)
        });
    }
    keep_only(&mut few, std::mem::take(&mut kept));
    for series in &mut few.series {
        series.axis = places[&series.axis];
    }
    few.axes = axes;
    to_bytes(&few, Encoding::Quantised(STEP))
}
