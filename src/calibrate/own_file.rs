//! The file of own constants: what `calibrate --out` writes and `--calibrate` takes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::calibrate::Calibration;
use crate::files::{read_capped, write_atomic};
use crate::{Error, Result};

const SCHEMA: &str = "moe-frontier/own-constants";
const CAP: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct OwnFile {
    schema: String,
    schema_version: String,
    calibrations: Vec<Calibration>,
}

/// Writes the constants.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub(crate) fn write(path: &Path, calibrations: &[Calibration], overwrite: bool) -> Result<()> {
    let file = OwnFile {
        schema: SCHEMA.into(),
        schema_version: "1.0".into(),
        calibrations: calibrations.to_vec(),
    };
    let json = serde_json::to_vec_pretty(&file)
        .map_err(|e| Error::unfit("own constants", e.to_string()))?;
    write_atomic(path, &json, overwrite)
}

/// Reads them back.
///
/// # Errors
/// [`Error::BadFile`] when it is another file or a number in it is none.
pub(crate) fn read(path: &Path) -> Result<Vec<Calibration>> {
    let file: OwnFile = serde_json::from_slice(&read_capped(path, CAP)?)
        .map_err(|e| Error::bad_file(path, format!("not what `calibrate --out` writes: {e}")))?;
    if file.schema != SCHEMA {
        return Err(Error::bad_file(path, format!("schema `{}`, not `{SCHEMA}`", file.schema)));
    }
    let finite =
        |c: &Calibration| c.constants.tpot.iter().chain(&c.constants.ttft).all(|v| v.abs() < 20.0);
    if !file.calibrations.iter().all(finite) {
        return Err(Error::bad_file(path, "a constant is far from any engine's"));
    }
    Ok(file.calibrations)
}
