//! Results of `vllm bench serve --save-result` as measured points, and of other tools in its names.
//!
//! A file is one JSON object, or one a line when runs were appended. It tells the load and the times
//! but not the server: device, layout and number format come from the caller, or from keys that the
//! run was given with `--metadata`. Mean lengths are totals over completed requests. Older files
//! lack `failed`; other keys are of no concern here. `Infinity` is an unlimited rate.
//!
//! TPOT is the time of a request after its first token over its output tokens but one. Runs whose
//! outputs have one token have none; a TTFT without TPOT and the reverse are kept.

use std::path::Path;

use serde_json::Value;

use super::{Fields, normalised};
use crate::files::{masked_literal, read_capped, strict, without_literals};
use crate::{Error, Result};

/// Longest file that is read, in bytes: detailed results hold every request.
const CAP: u64 = 512 << 20;
/// Share of failed requests from which a run says little about its load.
const FAILED_SHARE: f64 = 0.01;
/// Output tokens per second and the totals they come from may differ by rounding alone.
const ROUNDING: f64 = 0.02;
/// Share of the offered rate from which an open loop kept up; below, its concurrency was the limit.
const KEPT_UP: f64 = 0.9;

/// Columns of the points, in their order.
pub const COLUMNS: [&str; 19] = [
    "source_id",
    "model",
    "gpu",
    "n_gpus",
    "parallelism",
    "engine",
    "engine_version",
    "weights_precision",
    "workload",
    "isl",
    "osl",
    "concurrency_or_rate",
    "requests_per_client",
    "output_tok_s_total",
    "ttft_ms",
    "tpot_ms",
    "source",
    "notes",
    "quality_flag",
];

/// Which value of the measured times is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// The mean over requests, which the model predicts.
    Mean,
    /// The median.
    Median,
}

/// What a result does not say about its server; `None` is looked for among its keys.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// Device, as `device list` names it. Key `gpu`.
    pub gpu: Option<String>,
    /// Layout: `tp2`, `tp4 ep4`, `DEP8`. Key `parallelism`.
    pub parallelism: Option<String>,
    /// Number format of the weights; as published when nobody says. Key `weights_precision`.
    pub weights: Option<String>,
    /// Version of the engine. Key `engine_version`.
    pub version: Option<String>,
    /// Model, where the server was given a name or folder of its own. Key `model_id`.
    pub model: Option<String>,
    /// Engine. Key `engine`, else the backend that the run names.
    pub engine: Option<String>,
}

/// Reads one file: a row of [`COLUMNS`] for each run in it.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::BadFile`] with the run and the field otherwise.
pub fn read(path: &Path, server: &Server, average: Average) -> Result<Vec<Vec<String>>> {
    let bytes = without_literals(&read_capped(path, CAP)?);
    let location = path.display().to_string();
    let mut runs: Vec<Fields> = Vec::new();
    for value in strict::values::<Value>(&bytes, CAP) {
        let value = value.map_err(|e| Error::bad_file(&location, format!("no JSON: {e}")))?;
        let place = place_of(&location, runs.len());
        runs.extend(normalised(value).map_err(|reason| Error::bad_file(place, reason))?);
    }
    if runs.is_empty() {
        return Err(Error::bad_file(location, "empty"));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let rows = runs.into_iter().enumerate().map(|(index, fields)| {
        let id = if index == 0 { name.to_string() } else { format!("{name}#{}", index + 1) };
        Run { place: place_of(&location, index), fields }.row(id, server, average)
    });
    rows.collect()
}

/// A run of a file, for errors.
fn place_of(location: &str, index: usize) -> String {
    if index == 0 { location.to_owned() } else { format!("{location}, run {}", index + 1) }
}

/// One benchmark run.
struct Run {
    place: String,
    fields: Fields,
}

/// How requests were sent.
enum Sent {
    Closed(f64),
    Open { offered: f64, done: f64 },
}

impl Run {
    fn bad(&self, field: &str, reason: impl std::fmt::Display) -> Error {
        Error::bad_file(&self.place, format!("field `{field}` {reason}"))
    }

    /// A number above zero.
    fn number(&self, field: &str) -> Result<f64> {
        let value = self.fields.get(field).ok_or_else(|| self.bad(field, "is missing"))?;
        let number = value.as_f64().ok_or_else(|| self.bad(field, "is no number"))?;
        if number > 0.0 { Ok(number) } else { Err(self.bad(field, "is not above zero")) }
    }

    /// A number above zero; absent and null are none.
    fn optional(&self, field: &str) -> Result<Option<f64>> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.number(field).map(Some),
        }
    }

    fn text(&self, given: Option<&String>, field: &str) -> Result<Option<String>> {
        match (given, self.fields.get(field)) {
            (Some(given), _) => Ok(Some(given.clone())),
            (None, Some(Value::String(text))) if !text.is_empty() => Ok(Some(text.clone())),
            (None, None | Some(Value::Null)) => Ok(None),
            (None, Some(_)) => Err(self.bad(field, "is no text")),
        }
    }

    fn need(&self, given: Option<&String>, field: &str, flag: &str) -> Result<String> {
        self.text(given, field)?
            .ok_or_else(|| self.bad(field, format!("is missing; {flag} says it for every file")))
    }

    /// The load of the run.
    fn sent(&self) -> Result<Sent> {
        let limit = self.optional("max_concurrency")?;
        let done = self.number("request_throughput")?;
        let rate = match self.fields.get("request_rate") {
            Some(Value::String(text)) if is_unlimited(text) => None,
            Some(Value::Number(_)) => Some(self.number("request_rate")?),
            None => return Err(self.bad("request_rate", "is missing")),
            Some(_) => return Err(self.bad("request_rate", "is neither a number nor \"inf\"")),
        };
        match (rate, limit) {
            (None, Some(limit)) => Ok(Sent::Closed(limit)),
            (Some(offered), Some(limit)) if done < KEPT_UP * offered => Ok(Sent::Closed(limit)),
            (Some(offered), _) => Ok(Sent::Open { offered, done }),
            (None, None) => Err(self.bad(
                "max_concurrency",
                "is missing and `request_rate` is \"inf\": all requests at once have no steady state",
            )),
        }
    }

    fn row(&self, id: String, server: &Server, average: Average) -> Result<Vec<String>> {
        let completed = self.number("completed")?;
        let outputs = self.number("total_output_tokens")?;
        let prefix = match average {
            Average::Mean => "mean",
            Average::Median => "median",
        };
        let (load, per_client) = match self.sent()? {
            Sent::Closed(limit) => (limit.to_string(), (completed / limit).max(1.0).to_string()),
            Sent::Open { offered, done } => {
                (format!("{offered} req/s offered, {done} done"), String::new())
            }
        };
        let parallelism = self.need(server.parallelism.as_ref(), "parallelism", "--parallelism")?;
        let (engine, guessed) = self.engine(server)?;
        let (ttft, tpot) = self.times(prefix, outputs / completed)?;
        let mut notes = self.notes()?;
        if guessed {
            notes = if notes.is_empty() {
                "engine not stated: vllm".into()
            } else {
                format!("{notes} engine not stated: vllm")
            };
        }
        Ok(vec![
            id,
            self.need(server.model.as_ref(), "model_id", "--model")?,
            self.need(server.gpu.as_ref(), "gpu", "--gpu")?,
            String::new(),
            parallelism,
            engine,
            self.text(server.version.as_ref(), "engine_version")?.unwrap_or_default(),
            self.text(server.weights.as_ref(), "weights_precision")?.unwrap_or_default(),
            String::new(),
            (self.number("total_input_tokens")? / completed).to_string(),
            (outputs / completed).to_string(),
            load,
            per_client,
            self.number("output_throughput")?.to_string(),
            ttft.map_or_else(String::new, |v| v.to_string()),
            tpot.map_or_else(String::new, |v| v.to_string()),
            self.text(None, "tool")?.unwrap_or_else(|| "vllm bench serve".into()),
            notes,
            self.flag(completed, outputs)?,
        ])
    }

    /// TTFT and TPOT in ms; one of them is enough.
    fn times(&self, prefix: &str, outputs: f64) -> Result<(Option<f64>, Option<f64>)> {
        let (ttft, tpot) = (format!("{prefix}_ttft_ms"), format!("{prefix}_tpot_ms"));
        // A request of one token has no token after its first: tools write 0.
        let single = outputs < 1.0 + 1e-9;
        let times = (self.optional(&ttft)?, if single { None } else { self.optional(&tpot)? });
        if times == (None, None) {
            return Err(self.bad(&ttft, format!("is missing, and so is `{tpot}`")));
        }
        Ok(times)
    }

    /// The engine, and whether nobody says it.
    fn engine(&self, server: &Server) -> Result<(String, bool)> {
        if let Some(engine) = self.text(server.engine.as_ref(), "engine")? {
            return Ok((engine.to_lowercase(), false));
        }
        let backend = self.text(None, "backend")?.unwrap_or_default().to_lowercase();
        Ok(match backend.as_str() {
            b if b.starts_with("sglang") => ("sglang".into(), false),
            b if b.starts_with("trt") || b.starts_with("tensorrt") => ("trtllm".into(), false),
            b if b.starts_with("vllm") => ("vllm".into(), false),
            // The protocol that `vllm bench serve` speaks with its own server by default.
            b if b.starts_with("openai") => ("vllm".into(), false),
            "" => ("vllm".into(), self.fields.contains_key("tool")),
            _ => (backend, false),
        })
    }

    fn notes(&self) -> Result<String> {
        let burstiness = self.optional("burstiness")?.filter(|b| (b - 1.0).abs() > 1e-9);
        Ok(burstiness.map_or_else(String::new, |b| format!("burstiness {b}")))
    }

    /// Why the run must stay out of fits, if it must.
    fn flag(&self, completed: f64, outputs: f64) -> Result<String> {
        let failed = self.fields.get("failed").and_then(Value::as_f64).unwrap_or(0.0);
        if failed > FAILED_SHARE * (completed + failed) {
            return Ok(format!("failed_requests ({failed} of {})", completed + failed));
        }
        let rate = outputs / self.number("duration")?;
        let stated = self.number("output_throughput")?;
        if (rate / stated - 1.0).abs() > ROUNDING {
            return Ok(format!("inconsistent (output_throughput {stated}, totals give {rate:.1})"));
        }
        Ok(String::new())
    }
}

/// Words for a rate without limit: all requests at once, or as fast as clients ask.
fn is_unlimited(text: &str) -> bool {
    matches!(text, "inf" | "Infinity") || masked_literal(text) == Some("Infinity")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of ten requests, in the form that vLLM 0.6-0.24 writes.
    fn run() -> Value {
        serde_json::json!({
            "date": "20260101-000000", "backend": "vllm", "model_id": "mistralai/Mixtral-8x7B-v0.1",
            "num_prompts": 320, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 32,
            "duration": 100.0, "completed": 320, "total_input_tokens": 320_000,
            "total_output_tokens": 64_000, "request_throughput": 3.2, "request_goodput": null,
            "output_throughput": 640.0, "total_token_throughput": 3840.0, "mean_ttft_ms": 90.0,
            "median_ttft_ms": 80.0, "mean_tpot_ms": 25.0, "median_tpot_ms": 24.0
        })
    }

    fn server() -> Server {
        let text = |t: &str| Some(t.to_owned());
        Server { gpu: text("h100"), parallelism: text("tp2"), ..Server::default() }
    }

    fn read_text(text: &str, server: &Server) -> Result<Vec<Vec<String>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.json");
        std::fs::write(&path, text).unwrap();
        read(&path, server, Average::Mean)
    }

    fn changed(field: &str, value: Value) -> String {
        let mut run = run();
        run[field] = value;
        run.to_string()
    }

    fn cell<'a>(row: &'a [String], column: &str) -> &'a str {
        &row[COLUMNS.iter().position(|c| *c == column).unwrap()]
    }

    #[test]
    fn a_closed_loop_becomes_one_point_with_its_mean_lengths() {
        let rows = read_text(&run().to_string(), &server()).unwrap();
        let row = &rows[0];
        assert_eq!(row.len(), COLUMNS.len());
        for (column, expected) in [
            ("source_id", "r"),
            ("isl", "1000"),
            ("osl", "200"),
            ("concurrency_or_rate", "32"),
            ("requests_per_client", "10"),
            ("tpot_ms", "25"),
            ("quality_flag", ""),
        ] {
            assert_eq!(cell(row, column), expected, "{column}");
        }
    }

    #[test]
    fn appended_runs_and_open_loops_are_told_apart() {
        let mut open = run();
        open["request_rate"] = 3.3.into();
        open["max_concurrency"] = Value::Null;
        let mut limited = run();
        limited["request_rate"] = 50.0.into();
        let rows = read_text(&format!("{open}\n{limited}\n"), &server()).unwrap();
        assert_eq!(cell(&rows[0], "concurrency_or_rate"), "3.3 req/s offered, 3.2 done");
        assert_eq!(cell(&rows[1], "concurrency_or_rate"), "32");
        assert_eq!(cell(&rows[1], "source_id"), "r#2");
    }

    #[test]
    fn metadata_of_the_run_says_what_the_caller_does_not() {
        let mut with = run();
        with["gpu"] = "h200".into();
        with["parallelism"] = "tp4".into();
        let rows = read_text(&with.to_string(), &Server::default()).unwrap();
        assert_eq!((cell(&rows[0], "gpu"), cell(&rows[0], "parallelism")), ("h200", "tp4"));
        let rows = read_text(&with.to_string(), &server()).unwrap();
        assert_eq!(cell(&rows[0], "gpu"), "h100");
    }

    #[test]
    fn runs_that_say_little_about_their_load_are_flagged() {
        let rows = read_text(&changed("failed", 40.into()), &server()).unwrap();
        assert!(cell(&rows[0], "quality_flag").starts_with("failed_requests"));
        let rows = read_text(&changed("output_throughput", 900.0.into()), &server()).unwrap();
        assert!(cell(&rows[0], "quality_flag").starts_with("inconsistent"));
    }

    #[test]
    fn errors_name_the_file_and_the_field() {
        for (text, named) in [
            (changed("mean_ttft_ms", (-1.0).into()), "mean_ttft_ms"),
            (changed("completed", 0.into()), "completed"),
            (changed("duration", "long".into()), "duration"),
            (changed("request_rate", "fast".into()), "request_rate"),
            (changed("max_concurrency", Value::Null), "max_concurrency"),
            (changed("model_id", 7.into()), "model_id"),
            ("[1]".into(), "object"),
            ("{".into(), "JSON"),
            (String::new(), "empty"),
            (run().to_string().replace("25.0", "NaN"), "mean_tpot_ms"),
        ] {
            let error = read_text(&text, &server()).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{error}");
            let message = error.to_string();
            assert!(message.contains(named) && message.contains("r.json"), "{named}: {message}");
        }
        let error = read_text(&run().to_string(), &Server::default()).unwrap_err();
        assert!(error.to_string().contains("--parallelism"), "{error}");
    }

    #[test]
    fn one_of_ttft_and_tpot_is_enough() {
        let rows = read_text(&changed("mean_tpot_ms", Value::Null), &server()).unwrap();
        assert_eq!((cell(&rows[0], "tpot_ms"), cell(&rows[0], "ttft_ms")), ("", "90"));
        let mut single = run();
        single["total_output_tokens"] = 320.into();
        single["output_throughput"] = 3.2.into();
        single["mean_tpot_ms"] = 0.0.into();
        let rows = read_text(&single.to_string(), &server()).unwrap();
        assert_eq!((cell(&rows[0], "tpot_ms"), cell(&rows[0], "osl")), ("", "1"));
    }

    #[test]
    fn the_engine_is_taken_from_the_file_and_infinity_is_no_limit() {
        let text = changed("backend", "sglang-oai".into()).replace("\"inf\"", "Infinity");
        let rows = read_text(&text, &server()).unwrap();
        assert_eq!(cell(&rows[0], "engine"), "sglang");
        assert_eq!(cell(&rows[0], "concurrency_or_rate"), "32");
        let named = Server { engine: Some("TRTLLM".into()), ..server() };
        assert_eq!(cell(&read_text(&text, &named).unwrap()[0], "engine"), "trtllm");
    }
}
