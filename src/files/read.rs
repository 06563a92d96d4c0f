//! Reading within limits: bytes are counted as they come, pipes have deadlines, and nothing hangs.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::seal;
use super::strict::{Elements, check_length};
use crate::{Error, Result};

/// How long opening a pipe may take: one without a writer opens when the writer comes, or never.
const OPENING: Duration = Duration::from_secs(2);
/// How long a pipe may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes read from a pipe at a time.
const CHUNK: usize = 1 << 16;
/// Deepest nesting of a JSON document.
const DEPTH: usize = 64;

/// Reads a file or a pipe of at most `cap` bytes. The bytes are counted as they come, because the length
/// that a file system reports is 0 for pipes and devices.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, is a folder, or is a pipe that nobody writes to within 2 s or
/// that is silent for 10 s; [`Error::BadFile`] when it is longer.
pub fn read_capped(path: &Path, cap: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::io("read", path, source);
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        return Err(failed(io::Error::other("it is a folder")));
    }
    let bytes = if kind.is_file() {
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(cap + 1).read_to_end(&mut bytes)).map_err(failed)?;
        bytes
    } else {
        read_pipe(path, cap).map_err(failed)?
    };
    if bytes.len() as u64 > cap {
        return Err(Error::bad_file(path, format!("longer than {} MiB", cap >> 20)));
    }
    Ok(bytes)
}

/// Reads at most one byte more than `cap` from what may block, in a thread that is left behind when it
/// does.
fn read_pipe(path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let (sender, chunks) = sync_channel(4);
    let path = path.to_owned();
    std::thread::Builder::new().name("pipe".into()).spawn(move || send_chunks(&path, &sender))?;
    let silent = |limit: Duration, what: &str| {
        io::Error::new(io::ErrorKind::TimedOut, format!("{what} for {} s", limit.as_secs()))
    };
    // The first message says that it is open.
    let mut bytes =
        next(&chunks, OPENING)?.ok_or_else(|| silent(OPENING, "nobody writes to it"))?;
    while bytes.len() as u64 <= cap {
        match next(&chunks, SILENCE)?.ok_or_else(|| silent(SILENCE, "nothing came from it"))? {
            chunk if chunk.is_empty() => break,
            chunk => bytes.extend(chunk),
        }
    }
    Ok(bytes)
}

/// What comes next; `None` when nothing does in time, no bytes at the end.
fn next(chunks: &Receiver<io::Result<Vec<u8>>>, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    match chunks.recv_timeout(limit) {
        Ok(chunk) => chunk.map(Some),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Ok(Some(Vec::new())),
    }
}

fn send_chunks(path: &Path, chunks: &SyncSender<io::Result<Vec<u8>>>) {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return drop(chunks.send(Err(error))),
    };
    let mut chunk = Ok(Vec::new());
    // Whoever stops listening has all that is wanted.
    while chunks.send(chunk).is_ok() {
        let mut bytes = vec![0; CHUNK];
        chunk = match file.read(&mut bytes) {
            Ok(0) => return,
            Ok(read) => {
                bytes.truncate(read);
                Ok(bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        };
    }
}

/// Checks a JSON document before it is read into types: one document, an object at its root, no key
/// twice in any object, nesting of at most 64. Maps and trees would keep the last of two keys in
/// silence, and a struct would take an array for its fields. A reader that takes at most `cap` bytes also
/// bounds the number of elements.
///
/// # Errors
/// [`Error::BadFile`] with line and column.
pub fn check_json(path: &Path, bytes: &[u8], cap: u64) -> Result<()> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::bad_file(path, "empty"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let left = Elements::within(cap);
    let root = Checked { depth: 0, left: &left };
    root.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|e| seal::at(path, &e))
}

/// A value whose objects have every key once.
#[derive(Clone, Copy)]
struct Checked<'a> {
    depth: usize,
    left: &'a Elements,
}

impl Checked<'_> {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH {
            return Err(E::custom(format!("nested deeper than {DEPTH}")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        if self.depth == 0 { reader.deserialize_map(self) } else { reader.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let below = self.below()?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            check_length(&key)?;
            map.next_value_seed(below)?;
            self.left.count()?;
            if let Some(twice) = keys.replace(key) {
                let shown = crate::error::shown(&twice);
                return Err(A::Error::custom(format!("duplicate field `{shown}`")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while seq.next_element_seed(below)?.is_some() {
            self.left.count()?;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        check_length(text)
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Checks that no column of a table has the name of another.
///
/// # Errors
/// [`Error::BadFile`] that names the column.
pub fn check_columns<'a>(path: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name.trim()) {
            let reason = format!("column `{}` appears twice", crate::error::shown(name));
            return Err(Error::bad_file_at(path, 1, 1, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_cap_counts_bytes_that_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, [0; 10]).unwrap();
        assert_eq!(read_capped(&path, 10).unwrap().len(), 10);
        assert_eq!(read_capped(&path, 9).unwrap_err().exit_code(), 3);
        assert_eq!(read_capped(&folder.path().join("b"), 9).unwrap_err().exit_code(), 7);
        assert_eq!(read_capped(folder.path(), 9).unwrap_err().exit_code(), 7);
        if Path::new("/dev/zero").exists() {
            assert_eq!(read_capped(Path::new("/dev/zero"), 1 << 20).unwrap_err().exit_code(), 3);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_read_and_one_without_a_writer_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let start = Instant::now();
        let error = read_capped(&path, 100).unwrap_err();
        assert!(error.exit_code() == 7 && error.to_string().contains("nobody writes"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // The reader that was left behind would take a writer's bytes: another pipe.
        let path = folder.path().join("written");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || fs::write(path, vec![b'x'; 100_000]))
        };
        assert_eq!(read_capped(&path, 1 << 20).unwrap().len(), 100_000);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_document_has_every_key_once_and_is_not_deep() {
        let check = |text: &str| check_json(Path::new("a.json"), text.as_bytes(), 1 << 20);
        check(r#"{"a": [1, -2, 3.5, true, null, "x", {"a": 1}], "b": {"a": 1}}"#).unwrap();
        for (text, word) in [
            ("", "empty"),
            (" \n", "empty"),
            (r#"{"a": {"b": 1, "b": 2}}"#, "duplicate field `b`"),
            (r#"[{"a": 1, "a": 2}]"#, "expected an object"),
            (r#"{"a": 1} {"b": 1}"#, "trailing"),
            (r#"{"a": 1"#, "EOF"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.exit_code() == 3 && error.to_string().contains(word), "{error}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100));
        assert!(check(&deep).unwrap_err().to_string().contains("nested deeper"));
        let long = "x".repeat(5 << 20);
        for text in [format!("{{\"a\": \"{long}\"}}"), format!("{{\"{long}\": 1}}")] {
            let error = check_json(Path::new("a.json"), text.as_bytes(), 64 << 20).unwrap_err();
            assert!(error.to_string().contains("a string longer than 4 MiB"), "{error}");
            let read = super::super::strict::from_slice::<serde_json::Value>;
            let error = read(text.as_bytes(), 64 << 20).unwrap_err();
            assert!(error.to_string().contains("a string longer than 4 MiB"), "{error}");
        }
    }

    #[test]
    fn a_column_s_name_appears_once() {
        let check = |names: &[&str]| check_columns(Path::new("a.csv"), names.iter().copied());
        check(&["a", "b"]).unwrap();
        let error = check(&["a", "b", "a "]).unwrap_err();
        assert!(error.exit_code() == 3 && error.to_string().contains("twice"), "{error}");
    }
}
