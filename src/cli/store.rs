//! Where measured profiles are kept, and which of them belongs to this machine.

use std::fs;
use std::path::{Path, PathBuf};

use etcetera::{BaseStrategy, choose_base_strategy};

use crate::cli::output::warn;
use crate::files::create_folder;
use crate::latency::measured::format;
use crate::measure::record::Profile;
use crate::{Error, Result};

/// Environment variable that names the folder of measured profiles.
pub const FOLDER_VARIABLE: &str = "MOE_FRONTIER_PROFILES";

/// The folder of measured profiles: `$MOE_FRONTIER_PROFILES`, else the user's data folder.
///
/// # Errors
/// [`Error::Usage`] when neither is known.
pub fn folder() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(FOLDER_VARIABLE).filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    let unknown = |_| Error::usage(FOLDER_VARIABLE, "is not set and there is no home folder");
    let base = choose_base_strategy().map_err(unknown)?;
    Ok(base.data_dir().join("moe-frontier").join("profiles"))
}

/// Writes a profile into the folder under a name that tells when and on what it was measured.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
pub fn save(folder: &Path, profile: &Profile) -> Result<PathBuf> {
    create_folder(folder)?;
    let device = &profile.key.device_sha256[..8];
    let path = folder.join(format!("{}-{device}.json", profile.provenance.end_unix_s));
    format::write(&path, profile, true)?;
    Ok(path)
}

/// The newest profile in the folder that was measured on this device with these kernels and
/// satisfies `fits`. Files that cannot be read are named in a warning and passed over.
pub fn newest(
    folder: &Path,
    device_sha256: &str,
    kernel_sha256: &str,
    fits: impl Fn(&Profile) -> bool,
) -> Option<(PathBuf, Profile)> {
    let entries = fs::read_dir(folder).ok()?;
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let json = paths.filter(|p| p.extension().is_some_and(|e| e == "json"));
    let profiles = json.filter_map(|path| match format::read(&path) {
        Ok(profile) => Some((path, profile)),
        Err(error) => {
            warn(&format!("passed over: {error}"));
            None
        }
    });
    profiles
        .filter(|(_, p)| p.key.device_sha256 == device_sha256)
        .filter(|(_, p)| p.cells.iter().all(|c| c.kernel_sha256 == kernel_sha256))
        .filter(|(_, p)| fits(p))
        .max_by_key(|(_, p)| p.provenance.end_unix_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::measured::synthetic;

    #[test]
    fn the_newest_profile_of_this_device_and_these_kernels_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = "0".repeat(64);
        let mut profile = synthetic::profile(&[(512, 1536)], 0.01);
        let device = profile.key.device_sha256.clone();
        assert!(newest(folder.path(), &device, &kernel, |_| true).is_none());
        for end in [5, 9, 7] {
            profile.provenance.end_unix_s = end;
            save(folder.path(), &profile).unwrap();
        }
        fs::write(folder.path().join("cut.json"), "{\"schema\": \"moe-frontier/profile\"").unwrap();
        let (path, found) = newest(folder.path(), &device, &kernel, |_| true).unwrap();
        assert_eq!(found.provenance.end_unix_s, 9);
        assert!(path.to_string_lossy().contains("9-"));
        assert!(newest(folder.path(), "another", &kernel, |_| true).is_none());
        assert!(newest(folder.path(), &device, "another", |_| true).is_none());
        assert!(newest(folder.path(), &device, &kernel, |_| false).is_none());
    }
}
