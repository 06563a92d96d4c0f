//! Which files a run read: a page that computes brings them along.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Files that were read since [`begin`]; `None` while nobody asks.
static SEEN: Mutex<Option<BTreeMap<PathBuf, Vec<u8>>>> = Mutex::new(None);

/// Begins to keep what is read.
pub fn begin() {
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(BTreeMap::new());
}

/// The files read since, by the names they were read by; nothing is kept from here on.
pub fn end() -> BTreeMap<PathBuf, Vec<u8>> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
}

/// Says that a file was read.
pub(super) fn note(path: &Path, bytes: &[u8]) {
    if let Some(seen) = SEEN.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        seen.insert(path.to_owned(), bytes.to_vec());
    }
}
