//! The journal of a run: one line per event, appended and never changed, so that a run that ends in any
//! way can go on.
//!
//! Each line is `{"seq":N,"crc32":"8 hex digits","rec":{...}}`, the CRC over the bytes of the value of
//! `rec`. Only the last line may be damaged, by a process that ended while it wrote: it moves to
//! `journal.torn` beside the journal. Damage anywhere else is an error that names the line. The file is
//! locked while it is open for writing; the lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Crc;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{fault, strict, whole};
use crate::{Error, Result};

/// Longest line, in bytes: the samples of one block are some kilobytes.
const LONGEST_LINE: u64 = 64 << 20;
/// Longest journal that is read.
const CAP: u64 = 2 << 30;

/// Attempts at a lock that somebody has, and the pause between them.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Whether a journal is locked while it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// It is; a file system without locks is an error.
    Locked,
    /// It is not, on the user's word that nobody else writes.
    Unlocked,
}

/// A journal open for writing.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// The file that names this process as the writer, removed at the end: before the lock is given up with
    /// the next field, or it could be the next writer's.
    #[expect(dead_code, reason = "it is removed when it is dropped")]
    named: Option<PidFile>,
    file: File,
    /// Number of the next line, from 1.
    seq: u64,
    /// Bytes of whole lines.
    length: u64,
}

/// What a journal holds.
#[derive(Debug)]
pub struct Contents<T> {
    /// Its records.
    pub records: Vec<T>,
    /// Bytes of the whole lines.
    length: u64,
    /// What follows them: the damaged last line.
    torn: Vec<u8>,
}

impl Journal {
    /// Starts a journal.
    ///
    /// # Errors
    /// [`Error::Io`] when the file exists, cannot be created or cannot be locked.
    pub fn create(path: &Path, locking: Locking) -> Result<Self> {
        let failed = |source| Error::io("create", path, source);
        fault::step().map_err(failed)?;
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let named = lock(&file, path, locking)?;
        whole::sync_folder(whole::folder_of(path)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, seq: 1, length: 0, named })
    }

    /// Opens a journal to go on with it, and what it holds. A damaged last line moves to `journal.torn`.
    ///
    /// # Errors
    /// [`Error::Io`] when another process has it open; [`Error::BadFile`] for damage elsewhere.
    pub fn open<T: DeserializeOwned>(path: &Path, locking: Locking) -> Result<(Self, Vec<T>)> {
        let failed = |source| Error::io("open", path, source);
        let file = open_file(OpenOptions::new().append(true).read(true), path).map_err(failed)?;
        let named = lock(&file, path, locking)?;
        let contents: Contents<T> = read(path)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            seq: contents.records.len() as u64 + 1,
            length: contents.length,
            named,
        };
        if !contents.torn.is_empty() {
            journal.set_aside(&contents.torn)?;
        }
        Ok((journal, contents.records))
    }

    /// Opens a journal that is about to be removed, whatever it holds. Nobody else has it while this exists,
    /// where the file system has locks; without them it takes the user's word.
    ///
    /// # Errors
    /// [`Error::Io`] when another process has it open.
    pub(super) fn take(path: &Path, locking: Locking) -> Result<Self> {
        let file = open_file(OpenOptions::new().append(true), path);
        let file = file.map_err(|source| Error::io("open", path, source))?;
        let named = match (locking, try_lock(&file)) {
            (Locking::Unlocked, Ok(()) | Err(TryLockError::Error(_))) => None,
            _ => lock(&file, path, Locking::Locked)?,
        };
        Ok(Self { path: path.to_owned(), file, seq: 1, length: 0, named })
    }

    /// Appends one record. After an error the journal holds what it held before.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let failed = |source| Error::io("write", &self.path, source);
        let record =
            serde_json::to_vec(record).map_err(|e| Error::unfit("journal", e.to_string()))?;
        let line = line(self.seq, &record);
        if let Err(error) = fault::write_all(&mut self.file, &line) {
            // Cut back what was written of the line; if that fails too, opening does it.
            let _ = fault::step().and_then(|()| self.file.set_len(self.length));
            return Err(failed(error));
        }
        self.seq += 1;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// [`Error::Io`]. It is final: a later call that succeeds proves nothing about the lost writes.
    pub fn sync(&mut self) -> Result<()> {
        let synced = fault::step().and_then(|()| self.file.sync_data());
        synced.map_err(|source| Error::io("synchronise", &self.path, source))
    }

    /// Moves the damaged tail into `journal.torn` and cuts the journal back.
    fn set_aside(&mut self, torn: &[u8]) -> Result<()> {
        let aside = self.path.with_extension("torn");
        let failed = |source| Error::io("write", &aside, source);
        fault::step().map_err(failed)?;
        let mut file =
            open_file(OpenOptions::new().append(true).create(true), &aside).map_err(failed)?;
        fault::write_all(&mut file, torn).map_err(failed)?;
        fault::step().and_then(|()| file.sync_all()).map_err(failed)?;
        let cut = fault::step().and_then(|()| self.file.set_len(self.length));
        cut.map_err(|source| Error::io("write", &self.path, source))?;
        self.sync()
    }
}

/// A file that names this process as the writer of a journal. Whoever writes without a lock names nobody.
#[derive(Debug)]
struct PidFile(PathBuf);

impl Drop for PidFile {
    fn drop(&mut self) {
        // It names nobody any more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a file, and nothing else that lies under its name: to open a pipe waits for who is at its other end.
fn open_file(how: &OpenOptions, path: &Path) -> io::Result<File> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::other("it is not a file")),
        _ => how.open(path),
    }
}

fn line(seq: u64, record: &[u8]) -> Vec<u8> {
    let mut line =
        format!("{{\"seq\":{seq},\"crc32\":\"{:08x}\",\"rec\":", crc32(record)).into_bytes();
    line.extend(record);
    line.extend(b"}\n");
    line
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// The record in one line without its end; `None` when it is not what [`line`] makes with this number.
fn record_of(line: &[u8], seq: u64) -> Option<&[u8]> {
    let rest = line.strip_prefix(format!("{{\"seq\":{seq},\"crc32\":\"").as_bytes())?;
    let (crc, rest) = rest.split_at_checked(8)?;
    let record = rest.strip_prefix(b"\",\"rec\":")?.strip_suffix(b"}")?;
    (format!("{:08x}", crc32(record)).as_bytes() == crc).then_some(record)
}

/// Reads a journal without changing it.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] that names the line for damage before the
/// last line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Contents<T>> {
    let failed = |source| Error::io("read", path, source);
    let file = open_file(OpenOptions::new().read(true), path).map_err(failed)?;
    let mut input = BufReader::new(file.take(CAP + 1));
    let mut contents = Contents { records: Vec::new(), length: 0, torn: Vec::new() };
    loop {
        let mut bytes = Vec::new();
        input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes).map_err(failed)?;
        if bytes.is_empty() {
            return Ok(contents);
        }
        let number = contents.records.len() + 1;
        let text = bytes.strip_suffix(b"\n");
        let record = text.and_then(|line| record_of(line, number as u64));
        let Some(record) = record else {
            let is_last = input.fill_buf().map_err(failed)?.is_empty();
            if is_last && contents.length < CAP {
                return Ok(Contents { torn: bytes, ..contents });
            }
            let reason = "this line is damaged and others follow; `measure --repair` keeps the lines \
                          before it";
            return Err(Error::bad_file_at(path, number, 1, reason));
        };
        let record = strict::from_slice(record, LONGEST_LINE).map_err(|e| {
            Error::bad_file_at(path, number, 1, format!("not a record of a run: {e}"))
        })?;
        contents.records.push(record);
        contents.length += bytes.len() as u64;
    }
}

/// The whole lines before the first damage, and how many they are.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub(super) fn whole_lines(from: &Path) -> Result<(Vec<u8>, usize)> {
    let failed = |source| Error::io("read", from, source);
    let mut bytes = crate::files::read_capped(from, CAP)?;
    let mut input = BufReader::new(bytes.as_slice());
    let (mut good, mut line) = (0, Vec::new());
    let mut end = 0;
    while input.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let text = line.strip_suffix(b"\n");
        if text.and_then(|l| record_of(l, good as u64 + 1)).is_none() {
            break;
        }
        good += 1;
        end += line.len();
        line.clear();
    }
    bytes.truncate(end);
    Ok((bytes, good))
}

fn lock(file: &File, path: &Path, locking: Locking) -> Result<Option<PidFile>> {
    if locking == Locking::Unlocked {
        return Ok(None);
    }
    let why = match try_lock(file) {
        Ok(()) => {
            // Only for the message of who comes second: the lock is what holds.
            let named = pid_file(path);
            let how = open_file(OpenOptions::new().write(true).create(true).truncate(true), &named);
            let _ = how.and_then(|mut file| writeln!(file, "{}", std::process::id()));
            return Ok(Some(PidFile(named)));
        }
        Err(TryLockError::WouldBlock) => match holder(path) {
            Some(pid) => format!("locked by process {pid}, which measures into it"),
            None => "locked by another process, which measures into it".to_owned(),
        },
        Err(TryLockError::Error(error)) => no_locks(&error),
    };
    Err(Error::io("open", path, io::Error::other(why)))
}

fn try_lock(file: &File) -> Result<(), TryLockError> {
    fault::lock().map_err(TryLockError::Error)?;
    // A process that another thread is starting has copies of all open files, locks included, for a moment.
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            tried => return tried,
        }
    }
    file.try_lock()
}

fn no_locks(error: &io::Error) -> String {
    format!("cannot be locked ({error}); --no-lock goes on without")
}

/// Finds out before long work whether a journal in `folder` can be locked.
///
/// # Errors
/// [`Error::Io`] when its file system has no locks.
pub(super) fn check_locks(folder: &Path) -> Result<()> {
    let failed = |source| Error::io("create", folder, source);
    let file = tempfile::tempfile_in(folder).map_err(failed)?;
    match try_lock(&file) {
        Err(TryLockError::Error(error)) => {
            Err(Error::io("open", folder, io::Error::other(no_locks(&error))))
        }
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(()),
    }
}

/// File beside a journal that names the process that writes it.
fn pid_file(journal: &Path) -> PathBuf {
    journal.with_extension("pid")
}

/// Process that writes a journal, where it has said so.
fn holder(journal: &Path) -> Option<u32> {
    let mut text = String::new();
    let file = open_file(OpenOptions::new().read(true), &pid_file(journal)).ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn journal(folder: &Path, records: &[&str]) -> PathBuf {
        let path = folder.join("journal.jsonl");
        let mut journal = Journal::create(&path, Locking::Locked).unwrap();
        for record in records {
            journal.append(record).unwrap();
        }
        journal.sync().unwrap();
        path
    }

    fn open(path: &Path) -> Result<(Journal, Vec<String>)> {
        Journal::open(path, Locking::Locked)
    }

    #[test]
    fn lines_carry_number_and_checksum() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path(), &["a", "b"]);
        let text = fs::read_to_string(&path).unwrap();
        // CRC-32 of `"a"`, quotes included.
        assert_eq!(text.lines().next().unwrap(), r#"{"seq":1,"crc32":"6d0e509e","rec":"a"}"#);
        let (mut journal, records) = open(&path).unwrap();
        assert_eq!(records, ["a", "b"]);
        journal.append(&"c").unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, ["a", "b", "c"]);
        assert!(Journal::create(&path, Locking::Locked).is_err());
    }

    #[test]
    fn every_prefix_opens_with_its_whole_lines_and_keeps_the_rest_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path(), &["one", "two", "three"]);
        let bytes = fs::read(&path).unwrap();
        for length in 0..=bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let torn = folder.path().join("journal.torn");
            let _ = fs::remove_file(&torn);
            let (mut journal, records) = open(&path).unwrap();
            let whole = String::from_utf8_lossy(&bytes[..length]).matches('\n').count();
            assert_eq!(records.len(), whole, "{length}");
            let end = bytes[..length].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            let aside = fs::read(&torn).unwrap_or_default();
            assert_eq!(aside, &bytes[end..length], "{length}");
            journal.append(&"next").unwrap();
            drop(journal);
            assert_eq!(open(&path).unwrap().1.len(), whole + 1);
        }
    }

    #[test]
    fn damage_before_the_last_line_is_named_and_can_be_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path(), &["one", "two", "three"]);
        let good = fs::read(&path).unwrap();
        let first = good.iter().position(|b| *b == b'\n').unwrap() + 1;
        for at in first..first + 10 {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            let error = open(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("journal.jsonl:2:1"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was changed");
        }
        let repaired = folder.path().join("repaired.jsonl");
        let (lines, kept) = whole_lines(&path).unwrap();
        assert_eq!((lines.as_slice(), kept), (&good[..first], 1));
        fs::write(&repaired, lines).unwrap();
        assert_eq!(open(&repaired).unwrap().1, ["one"]);
        // A whole line with the wrong number is damage as well: a line was lost or repeated.
        let second = first + good[first..].iter().position(|b| *b == b'\n').unwrap() + 1;
        fs::write(&path, [&good[..first], &good[second..], &good[second..]].concat()).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("journal.jsonl:2:1"));
    }

    #[test]
    fn a_second_writer_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path(), &[]);
        let (mut journal, _) = open(&path).unwrap();
        journal.append(&"one").unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        let pid = format!("locked by process {}", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        let (_, records) = Journal::open::<String>(&path, Locking::Unlocked).unwrap();
        assert_eq!(records, ["one"]);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(&pid), "who looked without a lock changed nothing: {error}");
        drop(journal);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the writer is named no more");
    }

    #[test]
    fn a_failed_write_leaves_the_journal_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path(), &["one"]);
        let before = fs::read(&path).unwrap();
        let (mut journal, _) = open(&path).unwrap();
        fault::plant(Some("enospc@1".parse().unwrap()));
        assert_eq!(journal.append(&"two").unwrap_err().exit_code(), 7);
        fault::plant(None);
        assert_eq!(fs::read(&path).unwrap(), before);
        journal.append(&"two").unwrap();
        drop(journal);
        assert_eq!(open(&path).unwrap().1, ["one", "two"]);
        let (mut journal, _) = open(&path).unwrap();
        fault::plant(Some("eio@1".parse().unwrap()));
        assert_eq!(journal.sync().unwrap_err().exit_code(), 7);
        fault::plant(None);
    }
}
