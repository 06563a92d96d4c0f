//! Files without a file system: those that a page brought along, by name.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

static BROUGHT: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// Adds a file.
pub fn bring(name: &str, bytes: Vec<u8>) {
    BROUGHT.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), bytes);
}

/// The content of a file that was brought along.
///
/// # Errors
/// [`Error::Io`] for any other file, [`Error::BadFile`] when it is longer than `cap` bytes.
pub fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let brought = BROUGHT.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = brought.get(path).ok_or_else(|| {
        Error::io("read", path, io::Error::other("the page did not bring it along"))
    })?;
    if bytes.len() as u64 > cap {
        return Err(Error::bad_file(path, format!("longer than {} MiB", cap >> 20)));
    }
    Ok(bytes.clone())
}
