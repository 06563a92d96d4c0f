//! Whole files, written so that a reader finds the old content or the new, never a half.
//!
//! A temporary file is created beside the target (a rename does not cross file systems), written,
//! synchronised and renamed; then the folder is synchronised.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Writes `content` to `path` as one step.
///
/// # Errors
/// [`Error::Io`] when anything fails, or when `path` exists and `force` is not set. The old file is
/// whole in every case, and no temporary file stays.
pub fn write_atomic(path: &Path, content: &[u8], force: bool) -> Result<()> {
    refuse_existing(path, force)?;
    let failed = |source| Error::io("write", path, source);
    let mut temporary = temporary_beside(path)?;
    temporary.write_all(content).map_err(failed)?;
    temporary.flush().map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    if force {
        temporary.persist(path).map_err(|e| failed(e.error))?;
    } else {
        temporary.persist_noclobber(path).map_err(|e| failed(e.error))?;
    }
    sync_folder(folder_of(path)).map_err(failed)
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

/// Reads a file of at most `cap` bytes. The bytes are counted as they come, because the length that
/// a file system reports is 0 for pipes and devices.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is longer.
pub fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::io("read", path, source);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(cap + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > cap {
        return Err(Error::bad_file(path, format!("longer than {} MiB", cap >> 20)));
    }
    Ok(bytes)
}

/// A byte that stands in strings for the letters of a literal; files do not hold it.
const MARK: u8 = 0x7f;

/// JSON text with each literal that Python writes beside it (`NaN`, `Infinity`, `-Infinity`) replaced by
/// a marked string of the same length, so that places in errors stay.
pub(crate) fn without_literals(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let (mut at, mut in_string) = (0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let names: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
                if let Some(name) = names.into_iter().find(|n| bytes[at..].starts_with(n)) {
                    let end = at + name.len() - 1;
                    out[at..=end].fill(MARK);
                    (out[at], out[end]) = (b'"', b'"');
                    at = end;
                }
            }
            _ => {}
        }
        at += 1;
    }
    out
}

/// The literal that a marked string stands for.
pub(crate) fn masked_literal(text: &str) -> Option<&'static str> {
    let marked = !text.is_empty() && text.bytes().all(|b| b == MARK);
    match text.len() {
        1 if marked => Some("NaN"),
        6 if marked => Some("Infinity"),
        7 if marked => Some("-Infinity"),
        _ => None,
    }
}

fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if path.is_dir() {
        return Err(Error::io("write", path, io::Error::other("it is a folder")));
    }
    if !force && path.exists() {
        let exists = io::Error::new(io::ErrorKind::AlreadyExists, "it exists; use --force");
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
    builder.tempfile_in(folder_of(path)).map_err(|e| Error::io("create", path, e))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes a rename durable; folders cannot be opened on some systems, where this does nothing.
fn sync_folder(folder: PathBuf) -> io::Result<()> {
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
        assert!(error.to_string().contains("--force"), "{error}");
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
    fn the_cap_counts_bytes_that_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, [0; 10]).unwrap();
        assert_eq!(read_capped(&path, 10).unwrap().len(), 10);
        assert_eq!(read_capped(&path, 9).unwrap_err().exit_code(), 3);
        assert_eq!(read_capped(&folder.path().join("b"), 9).unwrap_err().exit_code(), 7);
        if Path::new("/dev/zero").exists() {
            assert_eq!(read_capped(Path::new("/dev/zero"), 1 << 20).unwrap_err().exit_code(), 3);
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
