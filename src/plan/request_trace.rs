//! A recorded stream of requests, in the forms in which they are published.
//!
//! A CSV needs an arrival and two lengths under names of its own: ours (`arrival_s`, `input_tokens`,
//! `output_tokens`), Azure's (`TIMESTAMP,ContextTokens,GeneratedTokens` with date stamps) or
//! `BurstGPT`'s (`Timestamp`, `Request tokens`, `Response tokens`); others are named by [`Columns`].
//! JSON lines are Mooncake's (`timestamp` in ms, `input_length`, `output_length`; the hashes of shared
//! prefixes are not used). Requests without a prompt or without an output token failed: they are
//! counted and left out.

use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use crate::files::{read_capped, strict};
use crate::latency::tables::flat_table::{FlatTable, Row};
use crate::serving::{Lengths, Spread};
use crate::{Error, Result};

/// Requests that a file needs for a 99th percentile with an interval.
const LEAST: usize = 1000;
/// Longest file that is read, in bytes.
const CAP: u64 = 256 << 20;

/// Names of a quantity, ours first.
const ARRIVAL: &[&str] =
    &["arrival_s", "TIMESTAMP", "Timestamp", "timestamp", "arrival_time", "arrived_at", "arrival"];
const ARRIVAL_MS: &[&str] = &["arrival_ms", "timestamp_ms", "arrival_time_ms"];
const INPUT: &[&str] = &[
    "input_tokens",
    "ContextTokens",
    "Request tokens",
    "input_length",
    "prompt_tokens",
    "num_prefill_tokens",
    "prompt_len",
];
const OUTPUT: &[&str] = &[
    "output_tokens",
    "GeneratedTokens",
    "Response tokens",
    "output_length",
    "completion_tokens",
    "num_decode_tokens",
    "output_len",
];

/// Columns of a CSV with names of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// Arrival in seconds or as a date stamp.
    pub arrival: Option<String>,
    /// Prompt tokens.
    pub input: Option<String>,
    /// Output tokens.
    pub output: Option<String>,
}

impl Columns {
    /// Takes `arrival_s=NAME`, `input_tokens=NAME` or `output_tokens=NAME`.
    ///
    /// # Errors
    /// A sentence that names the three.
    pub fn set(&mut self, mapping: &str) -> Result<(), String> {
        let form = || {
            format!(
                "`{mapping}` is not a mapping; write arrival_s=NAME, input_tokens=NAME or output_tokens=NAME"
            )
        };
        let (name, column) = mapping.split_once('=').ok_or_else(form)?;
        let place = match name {
            "arrival_s" => &mut self.arrival,
            "input_tokens" => &mut self.input,
            "output_tokens" => &mut self.output,
            _ => return Err(form()),
        };
        *place = Some(column.to_owned());
        Ok(())
    }
}

impl FromStr for Columns {
    type Err = String;

    /// `arrival_s=time,input_tokens=prompt,output_tokens=completion`, any of them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::default();
        text.split(',').try_for_each(|mapping| columns.set(mapping))?;
        Ok(columns)
    }
}

impl Columns {
    /// Those of several flags, of which later ones win.
    pub fn joined(all: &[Self]) -> Self {
        all.iter().fold(Self::default(), |sum, one| Self {
            arrival: one.arrival.clone().or(sum.arrival),
            input: one.input.clone().or(sum.input),
            output: one.output.clone().or(sum.output),
        })
    }
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestTrace {
    /// Arrival in seconds, prompt and output tokens.
    rows: Vec<(f64, f64, f64)>,
    left_out: usize,
}

/// A request of Mooncake's traces.
#[derive(Deserialize)]
struct JsonRequest {
    timestamp: f64,
    input_length: f64,
    output_length: f64,
}

impl RequestTrace {
    /// Reads a file, its form told by its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::BadFile`] with the line for what is no number or
    /// date or out of order, and for fewer than 1,000 requests.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, &Columns::default())
    }

    /// The same with columns that have names of their own.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_with(path: &Path, columns: &Columns) -> Result<Self> {
        let bytes = read_capped(path, CAP)?;
        let location = path.display().to_string();
        let is_json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let (requests, place) = if is_json {
            (json_requests(&location, &bytes)?, location)
        } else {
            let table = FlatTable::csv(&location, bytes)?;
            (csv_requests(&table, columns)?, location)
        };
        Self::of(&place, requests)
    }

    fn of(location: &str, requests: Vec<(f64, f64, f64)>) -> Result<Self> {
        let all = requests.len();
        let rows: Vec<_> = requests.into_iter().filter(|r| r.1 >= 1.0 && r.2 >= 1.0).collect();
        let span = rows.last().map_or(0.0, |l| l.0) - rows.first().map_or(0.0, |f| f.0);
        if rows.len() < LEAST || span <= 0.0 {
            let reason =
                format!("{} requests over {span} s; at least {LEAST} are needed", rows.len());
            return Err(Error::bad_file(location, reason));
        }
        Ok(Self { left_out: all - rows.len(), rows })
    }

    /// Requests without a prompt or an output token, which are not in the trace.
    pub const fn left_out(&self) -> usize {
        self.left_out
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

    /// All requests, stretched in time to a mean rate and repeated until there are at least so many.
    pub fn replay(&self, rate: f64, at_least: usize) -> Vec<(f64, f64, f64)> {
        let start = self.rows.first().map_or(0.0, |r| r.0);
        let span = self.rows.last().map_or(0.0, |r| r.0) - start;
        let count = self.rows.len() as f64;
        let stretch = if span > 0.0 { (count - 1.0) / span / rate } else { 0.0 };
        // From the last request to the first one of the next round it takes one mean gap.
        let round = span * stretch + 1.0 / rate;
        let rounds = at_least.div_ceil(self.rows.len()).max(1);
        (0..rounds)
            .flat_map(|i| {
                let offset = i as f64 * round;
                self.rows.iter().map(move |r| (offset + (r.0 - start) * stretch, r.1, r.2))
            })
            .collect()
    }
}

/// Requests of a table in the order of its rows.
fn csv_requests(table: &FlatTable, columns: &Columns) -> Result<Vec<(f64, f64, f64)>> {
    let find = |own: &Option<String>, names: &[&'static str]| -> Option<String> {
        let own = own.clone().or_else(|| names.iter().find(|n| table.has(n)).map(|n| (*n).into()));
        own.filter(|name| table.has(name))
    };
    let lacks = |own: &Option<String>, names: &[&str]| {
        let quantity = names[0];
        let name = own.as_deref().unwrap_or(quantity);
        Error::bad_file(
            table.location(),
            format!("no column `{name}`; name it with --column {quantity}=NAME"),
        )
    };
    let in_ms = columns.arrival.is_none() && ARRIVAL_MS.iter().any(|n| table.has(n));
    let names = if in_ms { ARRIVAL_MS } else { ARRIVAL };
    let arrival = find(&columns.arrival, names).ok_or_else(|| lacks(&columns.arrival, ARRIVAL))?;
    let input = find(&columns.input, INPUT).ok_or_else(|| lacks(&columns.input, INPUT))?;
    let output = find(&columns.output, OUTPUT).ok_or_else(|| lacks(&columns.output, OUTPUT))?;
    let unit = if in_ms { 1e-3 } else { 1.0 };
    let mut rows: Vec<(f64, f64, f64)> = Vec::new();
    for row in table.rows() {
        let at = unit * seconds(&row, &arrival)?;
        if rows.last().is_some_and(|before| at < before.0) {
            return Err(row.bad(format!("`{arrival}` falls")));
        }
        let lengths = (row.number(&input)?, row.number(&output)?);
        if lengths.0 < 0.0 || lengths.1 < 0.0 {
            return Err(row.bad("a request has no fewer than 0 tokens"));
        }
        rows.push((at, lengths.0, lengths.1));
    }
    Ok(rows)
}

/// Seconds of a cell that holds them or a date stamp.
fn seconds(row: &Row, column: &str) -> Result<f64> {
    let text = row.need(column)?;
    if text.bytes().filter(|b| *b == b'-').count() >= 2 {
        let reason = format!("`{text}` in `{column}` is neither seconds nor a date");
        return date_stamp(text).ok_or_else(|| row.bad(reason));
    }
    row.number(column)
}

/// Seconds since 1970 of `2023-11-16 18:15:46.6805900`, with `T` and a zone of whole minutes as well.
fn date_stamp(text: &str) -> Option<f64> {
    let clock = text.find([' ', 'T'])?;
    let zone = text[clock..].find(['+', '-']).map(|at| text.split_at(clock + at));
    let (plain, offset) = match zone {
        Some((plain, zone)) => (plain, zone_seconds(zone)?),
        None => (text, 0.0),
    };
    let moment = humantime::parse_rfc3339_weak(plain).ok()?;
    let since = moment.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64() - offset)
}

/// Seconds that a clock is ahead by in the zone `+08:00`.
fn zone_seconds(zone: &str) -> Option<f64> {
    let (hours, minutes) = zone.split_once(':').unwrap_or((zone, "0"));
    let (hours, minutes): (f64, f64) = (hours.parse().ok()?, minutes.parse().ok()?);
    Some(60.0 * (60.0 * hours + minutes.copysign(hours)))
}

/// Requests of JSON lines.
fn json_requests(location: &str, bytes: &[u8]) -> Result<Vec<(f64, f64, f64)>> {
    let mut rows: Vec<(f64, f64, f64)> = Vec::new();
    for request in strict::values::<JsonRequest>(bytes, CAP) {
        let request = request.map_err(|e| {
            let place = format!("{location}:{}:{}", e.line(), e.column());
            let text = e.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
            Error::bad_file(
                place,
                format!("no request of timestamp, input_length and output_length: {reason}"),
            )
        })?;
        let at = 1e-3 * request.timestamp;
        if rows.last().is_some_and(|before| at < before.0) {
            let place = format!("{location}, request {}", rows.len() + 1);
            return Err(Error::bad_file(place, "`timestamp` falls"));
        }
        rows.push((at, request.input_length, request.output_length));
    }
    Ok(rows)
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
    fn a_trace_is_replayed_at_the_rate_asked_for_until_there_are_enough() {
        let trace = read(&steady(2000)).unwrap();
        assert_eq!(trace.lengths(), Lengths { input: 100.0, output: 20.0 });
        assert_eq!(trace.spread(), Spread::LogNormal(0.5));
        let once = trace.replay(4.0, 1);
        assert_eq!(once.len(), 2000);
        assert!((once[1].0 - 0.25).abs() < 1e-9 && once[0].0.abs() < 1e-12);
        let twice = trace.replay(4.0, 2001);
        assert_eq!(twice.len(), 4000);
        assert!((twice[2000].0 - 500.0).abs() < 1e-9);
        assert!(twice.windows(2).all(|w| (w[1].0 - w[0].0 - 0.25).abs() < 1e-9));
    }

    #[test]
    fn bad_traces_name_the_line() {
        for (text, why) in [
            ("0,1\n", "t.csv"),
            ("0,1,x\n", "t.csv:2"),
            ("0,1,-1\n", "t.csv:2"),
            ("5,1,1\n4,1,1\n", "t.csv:3"),
            ("0,1,1\n", "1000"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn published_forms_are_read_by_their_header() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str, columns: &Columns| {
            let path = folder.path().join("t");
            std::fs::write(&path, text).unwrap();
            RequestTrace::read_with(&path, columns)
        };
        let rows =
            |of: &dyn Fn(usize) -> String| (0..1200).map(of).collect::<Vec<String>>().join("\n");
        let none = Columns::default();
        let azure = rows(&|i| format!("2023-11-16 18:{:02}:{:02}.6805900,100,20", i / 60, i % 60));
        let azure =
            read(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{azure}"), &none).unwrap();
        assert!((azure.replay(1.0, 1)[60].0 - 60.0).abs() < 1e-6);
        let header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type";
        let burst = rows(&|i| format!("{i},GPT-4,100,{},0,API", usize::from(i % 10 > 0)));
        assert_eq!(read(&format!("{header}\n{burst}"), &none).unwrap().left_out(), 120);
        let mooncake = rows(&|i| {
            format!(
                "{{\"timestamp\": {}, \"input_length\": 10, \"output_length\": 5, \"hash_ids\": [1]}}",
                500 * i
            )
        });
        let mooncake = read(&mooncake, &none).unwrap();
        assert!((mooncake.replay(2.0, 1)[2].0 - 1.0).abs() < 1e-9);
        let own = rows(&|i| format!("{i},7,8"));
        let columns: Columns = "arrival_s=t,input_tokens=p,output_tokens=o".parse().unwrap();
        let own = read(&format!("t,p,o\n{own}"), &columns).unwrap();
        assert_eq!(own.lengths(), Lengths { input: 7.0, output: 8.0 });
    }

    #[test]
    fn date_stamps_count_leap_days_and_zones() {
        let at = |text: &str| date_stamp(text);
        assert_eq!(at("1970-01-02 00:00:00"), Some(86_400.0));
        assert_eq!(at("2024-03-01T00:00:00Z"), Some(1_709_251_200.0));
        assert_eq!(at("2024-03-01T08:00:00+08:00"), Some(1_709_251_200.0));
        assert_eq!(at("2024-02-29T18:30:00-05:30"), Some(1_709_251_200.0));
        assert!(at("2024-13-01 00:00:00").is_none() && at("2024-03-01").is_none());
    }
}
