//! Reading within limits: bytes are counted as they come, pipes have deadlines, and nothing hangs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::witness;
use crate::{Error, Result};

/// How long opening a pipe may take: one without a writer opens when the writer comes, or never.
const OPENING: Duration = Duration::from_secs(2);
/// How long a pipe may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes read from a pipe at a time.
const CHUNK: usize = 1 << 16;
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
        File::open(path)
            .and_then(|f| f.take(cap.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(failed)?;
        bytes
    } else {
        read_pipe(path, cap).map_err(failed)?
    };
    if bytes.len() as u64 > cap {
        return Err(Error::bad_file(path, format!("longer than {} MiB", cap >> 20)));
    }
    witness::note(path, &bytes);
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
}
