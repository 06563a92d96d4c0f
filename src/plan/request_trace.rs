//! A recorded stream of requests: a CSV with `arrival_s`, `input_tokens` and `output_tokens`.

use std::path::Path;

use crate::latency::tables::flat_table::FlatTable;
use crate::serving::{Lengths, Spread};
use crate::{Error, Result};

/// Requests that a file needs for a 99th percentile with an interval.
const LEAST: usize = 1000;

/// Requests in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestTrace {
    /// Arrival in seconds, prompt and output tokens.
    rows: Vec<(f64, f64, f64)>,
}

impl RequestTrace {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::BadFile`] with the line for what is no number,
    /// no token or out of order, and for fewer than 1,000 requests.
    pub fn read(path: &Path) -> Result<Self> {
        let table = FlatTable::read(path)?;
        for column in ["arrival_s", "input_tokens", "output_tokens"] {
            if !table.has(column) {
                return Err(Error::bad_file(table.location(), format!("no column `{column}`")));
            }
        }
        let mut rows: Vec<(f64, f64, f64)> = Vec::new();
        for row in table.rows() {
            let at = row.number("arrival_s")?;
            let (input, output) = (row.number("input_tokens")?, row.number("output_tokens")?);
            if input < 1.0 || output < 1.0 {
                return Err(row.bad("a request has at least one prompt and one output token"));
            }
            if rows.last().is_some_and(|before| at < before.0) {
                return Err(row.bad("`arrival_s` falls"));
            }
            rows.push((at, input, output));
        }
        let span = rows.last().map_or(0.0, |l| l.0) - rows.first().map_or(0.0, |f| f.0);
        if rows.len() < LEAST || span <= 0.0 {
            let reason =
                format!("{} requests over {span} s; at least {LEAST} are needed", rows.len());
            return Err(Error::bad_file(table.location(), reason));
        }
        Ok(Self { rows })
    }

    /// Mean lengths.
    pub fn lengths(&self) -> Lengths {
        let n = self.rows.len() as f64;
        let mean = |of: fn(&(f64, f64, f64)) -> f64| self.rows.iter().map(of).sum::<f64>() / n;
        Lengths { input: mean(|r| r.1), output: mean(|r| r.2) }
    }

    /// How outputs vary, for the chain.
    pub fn spread(&self) -> Spread {
        let mean = self.lengths().output;
        let squares: f64 = self.rows.iter().map(|r| (r.2 / mean - 1.0).powi(2)).sum();
        Spread::LogNormal((squares / self.rows.len() as f64).sqrt())
    }

    /// What one of `replicas` gets when requests go round: every so many-th one, stretched in time
    /// to a mean rate.
    pub fn share(&self, replicas: usize, rate: f64) -> Vec<(f64, f64, f64)> {
        let own: Vec<_> = self.rows.iter().step_by(replicas.max(1)).collect();
        let start = own.first().map_or(0.0, |r| r.0);
        let span = own.last().map_or(0.0, |r| r.0) - start;
        let stretch = if span > 0.0 { (own.len() as f64 - 1.0) / span / rate } else { 0.0 };
        own.into_iter().map(|r| ((r.0 - start) * stretch, r.1, r.2)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RequestTrace> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        std::fs::write(&path, format!("arrival_s,input_tokens,output_tokens\n{text}")).unwrap();
        RequestTrace::read(&path)
    }

    fn steady(rows: usize) -> String {
        let row = |i: usize| format!("{},100,{}", i as f64 / 2.0, 10 + 20 * (i % 2));
        (0..rows).map(row).collect::<Vec<String>>().join("\n")
    }

    #[test]
    fn a_replica_gets_its_share_at_the_rate_asked_for() {
        let trace = read(&steady(2000)).unwrap();
        assert_eq!(trace.lengths(), Lengths { input: 100.0, output: 20.0 });
        assert_eq!(trace.spread(), Spread::LogNormal(0.5));
        let share = trace.share(5, 4.0);
        assert_eq!(share.len(), 400);
        assert!((share[1].0 - 0.25).abs() < 1e-9 && share[0].0.abs() < 1e-12);
    }

    #[test]
    fn bad_traces_name_the_line() {
        for (text, why) in [
            ("0,1\n", "t.csv"),
            ("0,1,x\n", "t.csv:2"),
            ("0,1,0\n", "t.csv:2"),
            ("5,1,1\n4,1,1\n", "t.csv:3"),
            ("0,1,1\n", "1000"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
