//! Where measured profiles are kept, and which of them belongs to this machine.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::{BaseStrategy, choose_base_strategy};

use crate::ask::sources::{Item, Sources};
use crate::cli::output::warn;
use crate::files::create_folder;
use crate::files::quiet::without_message;
use crate::latency::measured::{format, validate};
use crate::record::Profile;
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

/// Writes a profile into the folder under a name that tells when and on what it was measured. A profile of
/// another run that ended in the same second keeps its file.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
pub fn save(folder: &Path, profile: &Profile) -> Result<PathBuf> {
    create_folder(folder)?;
    let device = &profile.key.device_sha256[..8];
    let name = format!("{}-{device}", profile.provenance.end_unix_s);
    let mut number = 1;
    loop {
        let further = if number == 1 { String::new() } else { format!("-{number}") };
        let path = folder.join(format!("{name}{further}.json"));
        let is_ours = is_of_run(&path, profile);
        match format::write(&path, profile, is_ours) {
            Err(Error::Io { .. }) if !is_ours && number < MOST_IN_A_SECOND && path.exists() => {
                number += 1;
            }
            written => return written.map(|()| path),
        }
    }
}

/// Profiles that may have ended in one second.
const MOST_IN_A_SECOND: u32 = 1000;

/// Whether what lies at `path` is an earlier profile of the same run.
pub fn is_of_run(path: &Path, profile: &Profile) -> bool {
    format::read(path).is_ok_and(|before| before.run.id == profile.run.id)
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
    let profiles = json.filter_map(|path| match read_caught(&path) {
        Ok(profile) => Some((path, profile)),
        Err(error) => {
            warn(&format!("passed over: {error}; `doctor --prune` removes it"));
            None
        }
    });
    profiles
        .filter(|(_, p)| p.key.device_sha256 == device_sha256)
        .filter(|(_, p)| p.cells.iter().all(|c| c.kernel_sha256 == kernel_sha256))
        .filter(|(_, p)| fits(p))
        .max_by_key(|(_, p)| p.provenance.end_unix_s)
        .inspect(|(path, profile)| warn_of(path, profile))
}

/// Says what a reader of a profile should know.
pub fn warn_of(path: &Path, profile: &Profile) {
    for doubt in validate::doubts(profile) {
        warn(&format!("{}: {doubt}", path.display()));
    }
}

/// The same of every profile among these sources.
pub(super) fn warn_of_sources(sources: &Sources) {
    for item in sources.items() {
        if let Item::Own { origin, profile } = item {
            warn_of(Path::new(origin), profile);
        }
    }
}

/// How long a run in the store may lie before it counts as given up.
const GIVEN_UP: Duration = Duration::from_secs(30 * 86_400);

/// Removes profiles of the folder that cannot be read, are not true or make the reader fail, and runs that
/// were given up. Returns what was removed, and why. Files that are no profiles of this program stay.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read or something in it cannot be removed.
pub fn prune(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut removed = Vec::new();
    for path in entries(folder)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "json"))
    {
        match read_caught(&path) {
            Err(error @ (Error::BadFile { .. } | Error::Unfit { .. })) if is_profile(&path) => {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                removed.push((path, error.to_string()));
            }
            Ok(_) | Err(_) => {}
        }
    }
    for run in entries(&folder.join("runs")).unwrap_or_default() {
        let age = fs::metadata(run.join("journal.jsonl")).and_then(|m| m.modified()).ok();
        if age.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > GIVEN_UP) {
            fs::remove_dir_all(&run).map_err(|e| Error::io("remove", &run, e))?;
            removed.push((run, "a run that was not gone on with for 30 days".into()));
        }
    }
    Ok(removed)
}

/// Whether a file was written as a profile: it says so at its start.
fn is_profile(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(256).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains("\"moe-frontier/profile\"")
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// Reads a profile; a reader that fails on it is an error of the file.
fn read_caught(path: &Path) -> Result<Profile> {
    without_message(|| std::panic::catch_unwind(|| format::read(path)))
        .unwrap_or_else(|_| Err(Error::bad_file(path, "makes the reader fail")))
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
            let path = save(folder.path(), &profile).unwrap();
            assert_eq!(save(folder.path(), &profile).unwrap(), path, "it is the same run");
        }
        fs::write(folder.path().join("cut.json"), "{\"schema\": \"moe-frontier/profile\"").unwrap();
        let (path, found) = newest(folder.path(), &device, &kernel, |_| true).unwrap();
        assert_eq!(found.provenance.end_unix_s, 9);
        assert!(path.to_string_lossy().contains("9-"));
        assert!(newest(folder.path(), "another", &kernel, |_| true).is_none());
        assert!(newest(folder.path(), &device, "another", |_| true).is_none());
        assert!(newest(folder.path(), &device, &kernel, |_| false).is_none());
        let other = Profile {
            run: crate::record::RunInfo { id: "0x77".into(), ..profile.run.clone() },
            ..profile.clone()
        };
        let beside = save(folder.path(), &other).unwrap();
        assert!(beside.to_string_lossy().ends_with("-2.json"), "{}", beside.display());
        assert_eq!(format::read(&beside).unwrap().run.id, "0x77");
        fs::write(folder.path().join("notes.json"), "{\"mine\": true}").unwrap();
        let removed = prune(folder.path()).unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(removed[0].0.ends_with("cut.json") && removed[0].1.contains("cut.json"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }
}
