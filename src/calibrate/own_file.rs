//! The file of own constants: what `calibrate --out` writes and `--calibrate` takes.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::calibrate::{Calibration, Fitted};
use crate::files::seal::{from_sealed, to_sealed};
use crate::files::{read_capped, write_atomic};
use crate::{Error, Result};

const SCHEMA: &str = "moe-frontier/own-constants";
const VERSION: &str = "1.0";
/// Longest file that is read: a group takes some kilobytes.
const CAP: u64 = 16 << 20;
/// Logarithms of factors on an engine's defaults beyond this are no constants of any engine.
const LARGEST: f64 = 20.0;

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        schema_version: VERSION.into(),
        calibrations: calibrations.to_vec(),
    };
    write_atomic(path, &to_sealed("own constants", &file)?, overwrite)
}

/// Reads them back.
///
/// # Errors
/// [`Error::BadFile`] when it is another file, was changed, or a number in it cannot be.
pub(crate) fn read(path: &Path) -> Result<Vec<Calibration>> {
    let bad = |reason: String| Error::bad_file(path, reason);
    let file: OwnFile = from_sealed(path, read_capped(path, CAP)?, CAP).map_err(|e| match e {
        Error::BadFile { location, reason } => Error::BadFile {
            location,
            reason: format!("not what `calibrate --out` writes: {reason}"),
        },
        other => other,
    })?;
    if file.schema != SCHEMA || file.schema_version != VERSION {
        return Err(bad(format!(
            "schema `{}` {}; this program reads {SCHEMA} {VERSION}",
            file.schema, file.schema_version
        )));
    }
    for (index, calibration) in file.calibrations.iter().enumerate() {
        check(calibration).map_err(bad)?;
        if file.calibrations[..index].iter().any(|before| before.group == calibration.group) {
            return Err(bad(format!("{} appears twice", calibration.group)));
        }
    }
    Ok(file.calibrations)
}

/// What the types alone do not say.
fn check(calibration: &Calibration) -> Result<(), String> {
    let Calibration { constants, errors, .. } = calibration;
    if !constants.tpot.iter().chain(&constants.ttft).all(|v| v.abs() < LARGEST) {
        return Err("a constant is far from any engine's".into());
    }
    let variances = |covariance: &[f64], values: usize| {
        (0..values).all(|i| (0.0..LARGEST * LARGEST).contains(&covariance[i * (values + 1)]))
    };
    if !variances(constants.tpot_covariance.as_flattened(), constants.tpot.len())
        || !variances(constants.ttft_covariance.as_flattened(), constants.ttft.len())
    {
        return Err("a variance is none".into());
    }
    if ![errors.tpot_z95, errors.ttft_half].iter().all(|e| (0.0..LARGEST).contains(e)) {
        return Err("the errors of predictions are not numbers of zero to 20".into());
    }
    let is_inside = |f: &Fitted| f.lo <= f.value && f.value <= f.hi;
    match calibration.fitted.iter().find(|f| !is_inside(f)) {
        Some(f) => Err(format!("{}: {} is not between {} and {}", f.name, f.value, f.lo, f.hi)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::prior::Errors;
    use crate::calibrate::{Constants, Group};
    use crate::files::seal::sealed;

    fn calibration() -> Calibration {
        let group = Group { engine: "vllm".into(), model: "m".into(), gpu: "h100".into() };
        let constants = Constants {
            tpot: [0.1; 5],
            tpot_covariance: [[0.01; 5]; 5],
            ttft: [0.2; 4],
            ttft_covariance: [[0.02; 4]; 4],
        };
        let errors = Errors { tpot_z95: 2.0, ttft_half: 0.5 };
        let fitted = vec![Fitted { name: "x".into(), value: 1.0, lo: 0.5, hi: 2.0 }];
        Calibration { group, rows: 9, left_out: vec![], constants, fitted, errors }
    }

    #[test]
    fn own_constants_are_read_back_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.json");
        write(&path, &[calibration()], false).unwrap();
        assert_eq!(read(&path).unwrap(), [calibration()]);
        let refused = |bytes: &[u8], word: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(word), "{error}");
        };
        let good = std::fs::read_to_string(&path).unwrap();
        refused(good.replace("0.1", "0.3").as_bytes(), "checksum mismatch");
        refused(&good.as_bytes()[..good.len() / 2], "checksum");
        let changed = |edit: fn(&mut OwnFile)| {
            let mut file = OwnFile {
                schema: SCHEMA.into(),
                schema_version: VERSION.into(),
                calibrations: vec![calibration()],
            };
            edit(&mut file);
            sealed("test", &file).unwrap()
        };
        refused(&changed(|f| f.schema_version = "2.0".into()), "reads moe-frontier/own-constants");
        refused(&changed(|f| f.calibrations.push(calibration())), "appears twice");
        refused(&changed(|f| f.calibrations[0].constants.ttft[1] = 40.0), "far from any");
        refused(&changed(|f| f.calibrations[0].constants.tpot_covariance[4][4] = -1.0), "variance");
        refused(&changed(|f| f.calibrations[0].fitted[0].hi = 0.7), "is not between");
        refused(&changed(|f| f.calibrations[0].errors.ttft_half = -1.0), "errors of predictions");
        let text = String::from_utf8(changed(|_| {})).unwrap();
        let body = text.split(",\n  \"sha256\"").next().unwrap();
        let resealed = |body: String| {
            let sum = crate::files::sha256_hex(&body);
            format!("{body},\n  \"sha256\": \"{sum}\"\n}}\n").into_bytes()
        };
        refused(&resealed(body.replace("\"rows\": 9", "\"rows\": 9, \"x\": 1")), "unknown field");
        let array = body.replace("\"value\": 1.0,\n", "").replace("\"name\": \"x\",", "\"x\",");
        refused(&resealed(array), "");
    }
}
