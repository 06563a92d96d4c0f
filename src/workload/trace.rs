//! Recorded expert loads: a CSV file with one line per layer and one count per expert.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::files::read_capped;
use crate::{Error, Result};

/// Largest trace that is read.
const CAP: u64 = 256 << 20;
/// Most layers and most experts of one: some dozen times those of any model.
const MOST_LAYERS: usize = 4096;
const MOST_EXPERTS: usize = 1 << 14;

/// Most tokens of one expert: their sums stay far from the end of 64 bits.
const MOST_TOKENS: u64 = 1 << 40;

/// Token counts per expert, one row per layer, from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Counts of each layer; all layers have the same number of experts.
    pub layers: Vec<Vec<u64>>,
    /// SHA-256 of the file's bytes.
    pub sha256: String,
}

impl Trace {
    /// Reads a trace file: comma-separated counts, one layer a line, no header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::BadFile`] with line and column for a value that
    /// is no count, layers of unequal length, a layer without tokens, or an empty file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, CAP)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| Error::bad_file(path, "is not UTF-8"))?;
        let layers = text
            .lines()
            .take(MOST_LAYERS + 1)
            .enumerate()
            .map(|(line, text)| layer(path, line + 1, text))
            .collect::<Result<Vec<_>>>()?;
        if layers.len() > MOST_LAYERS {
            return Err(Error::bad_file(path, format!("more than {MOST_LAYERS} layers")));
        }
        let Some(experts) = layers.first().map(Vec::len) else {
            return Err(Error::bad_file(path, "empty"));
        };
        if let Some(line) = layers.iter().position(|l| l.len() != experts) {
            let found = layers[line].len();
            let reason = format!("has {found} experts where the first line has {experts}");
            return Err(Error::bad_file_at(path, line + 1, 1, reason));
        }
        Ok(Self { layers, sha256: format!("{:x}", Sha256::digest(&bytes)) })
    }

    /// Share of each expert over all layers, in the order of the file.
    pub fn shares(&self) -> Vec<f64> {
        let experts = self.layers.first().map_or(0, Vec::len);
        let mut shares = vec![0.0; experts];
        for layer in &self.layers {
            let total = layer.iter().sum::<u64>() as f64;
            for (share, &count) in shares.iter_mut().zip(layer) {
                *share += count as f64 / total / self.layers.len() as f64;
            }
        }
        shares
    }
}

fn layer(path: &Path, line: usize, text: &str) -> Result<Vec<u64>> {
    let mut column = 1;
    let mut counts = Vec::new();
    for field in text.split(',') {
        let count = field.trim().parse().ok().filter(|count| *count <= MOST_TOKENS);
        let count = count.ok_or_else(|| {
            let reason = format!("`{field}` is not a count of at most {MOST_TOKENS} tokens");
            Error::bad_file_at(path, line, column, reason)
        })?;
        counts.push(count);
        if counts.len() > MOST_EXPERTS {
            let reason = format!("more than {MOST_EXPERTS} experts");
            return Err(Error::bad_file_at(path, line, column, reason));
        }
        column += field.len() + 1;
    }
    if counts.iter().all(|&c| c == 0) {
        return Err(Error::bad_file_at(path, line, 1, "a layer without tokens"));
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Trace::read(file.path())
    }

    #[test]
    fn shares_are_averaged_over_layers() {
        let trace = read("1,3\n2,2\n").unwrap();
        assert_eq!(trace.layers, [[1, 3], [2, 2]]);
        assert!((trace.shares()[0] - 0.375).abs() < 1e-12);
        assert_eq!(trace.sha256.len(), 64);
    }

    #[test]
    fn anything_else_is_refused_with_its_place() {
        for (text, place) in [
            ("", "empty"),
            ("1,x\n", ":1:3"),
            ("1,2\n1\n", ":2:1"),
            ("1,-2\n", ":1:3"),
            ("0,0\n", ":1:1"),
            ("1,2\n\n", ":2:1"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(place), "{error}");
        }
        assert_eq!(Trace::read(Path::new("no/such/file")).unwrap_err().exit_code(), 7);
    }
}
