//! Whole files, written so that a reader finds the old content or the new, never a half.
//!
//! A temporary file is created beside the target (a rename does not cross file systems), written,
//! synchronised and renamed; then the folder is synchronised.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

use super::fault;
use crate::{Error, Result};

/// Held while a result moves into its place in more than one step, and by whoever ends the process early.
static MOVING: Mutex<()> = Mutex::new(());

/// Temporary files and folders that exist now, for whoever ends the process early.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Writes `content` to `path` as one step.
///
/// # Errors
/// [`Error::Io`] when anything fails, or when `path` exists and `force` is not set. The old file is
/// whole in every case, and no temporary file stays.
pub fn write_atomic(path: &Path, content: &[u8], force: bool) -> Result<()> {
    refuse_existing(path, force)?;
    let failed = |source| Error::io("write", path, source);
    let mut temporary = temporary_beside(path)?;
    let _registered = Registered::new(temporary.path());
    fault::write_all(temporary.as_file_mut(), content).map_err(failed)?;
    fault::step().and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
    fault::step().map_err(failed)?;
    if force {
        temporary.persist(path).map_err(|e| failed(e.error))?;
    } else {
        temporary.persist_noclobber(path).map_err(|e| failed(e.error))?;
    }
    sync_folder(folder_of(path)).map_err(failed)
}

/// Removes the temporary files and folders that exist now: the process is about to end without unwinding. A
/// result that is on its way into its place arrives there first, and none follows.
pub fn remove_temporary() {
    std::mem::forget(moving());
    let paths = std::mem::take(&mut *TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner));
    for path in paths {
        // It may have been renamed meanwhile; there is nobody to tell.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
    }
}

/// While this is held, nobody ends the process early.
pub(super) fn moving() -> MutexGuard<'static, ()> {
    MOVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file or folder that is known to [`remove_temporary`] while this exists.
#[derive(Debug)]
pub(super) struct Registered(PathBuf);

impl Registered {
    pub(super) fn new(path: &Path) -> Self {
        TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.0);
    }
}

/// Finds out before long work whether `path` could be written after it.
///
/// # Errors
/// [`Error::Io`] when the folder is missing or not writable, or when `path` exists and `force` is
/// not set.
pub fn check_writable(path: &Path, force: bool) -> Result<()> {
    refuse_existing(path, force)?;
    temporary_beside(path).map(drop)
}

fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io("write", path, io::Error::other("it is a folder")));
    }
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    if is_special {
        // A rename would put a file in place of a device or a pipe.
        return Err(Error::io(
            "write",
            path,
            io::Error::other("it is no file but a device or a pipe"),
        ));
    }
    if !force && path.exists() {
        let exists = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it exists; use --overwrite to replace it",
        );
        return Err(Error::io("write", path, exists));
    }
    Ok(())
}

fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".moe-frontier-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private by default; this one becomes the user's ordinary file.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    fault::step()
        .and_then(|()| builder.tempfile_in(folder_of(path)))
        .map_err(|e| Error::io("create", path, e))
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes a rename durable; folders cannot be opened on some systems, where this does nothing.
pub(crate) fn sync_folder(folder: PathBuf) -> io::Result<()> {
    fault::step()?;
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`Error::Io`] when it cannot be created.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn an_existing_file_is_kept_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"one", false).unwrap();
        let error = write_atomic(&path, b"two", false).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("--overwrite"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomic(&path, b"two", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_missing_folder_and_a_folder_as_target_are_refused_before_work() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check_writable(&folder.path().join("no/a"), true).unwrap_err().exit_code(), 7);
        assert_eq!(check_writable(folder.path(), true).unwrap_err().exit_code(), 7);
        assert!(check_writable(&folder.path().join("a"), false).is_ok());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_old_file_whole_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        for kind in [fault::Kind::Full, fault::Kind::Broken] {
            write_atomic(&path, b"old", true).unwrap();
            for at in 1.. {
                fault::plant(Some(fault::Fault { kind, at, lasting: true }));
                let written = write_atomic(&path, b"new content", true);
                let taken = fault::steps();
                fault::plant(None);
                assert_eq!(names(folder.path()), ["a.json"], "step {at}");
                let content = fs::read(&path).unwrap();
                if taken < at {
                    written.unwrap();
                    assert!(content == b"new content" && at == 6, "{at}");
                    break;
                }
                assert_eq!(written.unwrap_err().exit_code(), 7);
                // The last step only makes the renaming durable.
                assert_eq!(content == b"new content", at == 5, "step {at}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_written_file_is_readable_by_others_as_the_umask_says() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        write_atomic(&ours, b"", false).unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
