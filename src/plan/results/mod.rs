//! Results of serving benchmarks, in the forms in which tools write them, as rows of points.
//!
//! Every JSON dialect is brought into the field names of `vllm bench serve` and read from there; a
//! file of another kind is refused by naming its kind.

mod aiperf;
mod guidellm;
mod inferencex;
mod sglang;
pub mod silicon;
pub mod vllm_bench;

use serde_json::{Map, Value};

/// Fields of one run.
type Fields = Map<String, Value>;

/// Runs of one JSON value in the names of `vllm bench serve`.
///
/// # Errors
/// A sentence that names the kind of file.
fn normalised(value: Value) -> Result<Vec<Fields>, String> {
    match value {
        Value::Array(rows) => {
            if rows.is_empty() {
                return Err("not an object of results: an empty list".into());
            }
            rows.into_iter().map(normalised).collect::<Result<Vec<_>, _>>().map(|r| r.concat())
        }
        Value::Object(fields) => one(fields),
        other => Err(format!("not an object of results: {other}")),
    }
}

fn one(fields: Fields) -> Result<Vec<Fields>, String> {
    if guidellm::is(&fields) {
        return guidellm::runs(&fields);
    }
    if aiperf::is(&fields) {
        return aiperf::run(&fields).map(|run| vec![run]);
    }
    if inferencex::is(&fields) {
        return inferencex::run(&fields).map(|run| vec![run]);
    }
    if sglang::is(&fields) {
        return Ok(vec![sglang::run(fields)]);
    }
    if let Some(kind) = other_kind(&fields) {
        return Err(format!("this is {kind}, not a serving benchmark"));
    }
    Ok(vec![fields])
}

/// What a file is that has none of the fields of a result.
fn other_kind(fields: &Fields) -> Option<&'static str> {
    let has = |name: &str| fields.contains_key(name);
    if has("avg_latency") && has("percentiles") {
        return Some("a result of `vllm bench latency` (one static batch)");
    }
    if has("tokens_per_second") && has("elapsed_time") {
        return Some("a result of `vllm bench throughput` (offline, without TTFT and TPOT)");
    }
    if has("model_type") || has("architectures") {
        return Some("a model's config.json");
    }
    if has("schema") {
        return Some("a file of this program");
    }
    None
}

/// A number at a path of objects.
fn number(fields: &Fields, path: &[&str]) -> Option<f64> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(fields.get(*first)?, |value, name| value.get(name))?.as_f64()
}

/// A text at a path of objects.
fn text(fields: &Fields, path: &[&str]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let value = rest.iter().try_fold(fields.get(*first)?, |value, name| value.get(name))?;
    value.as_str().map(str::to_owned)
}

/// A run in the names of `vllm bench serve` from values that may be missing.
fn run_of<const N: usize>(pairs: [(&str, Option<Value>); N]) -> Fields {
    pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.filter(|v| !v.is_null())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Result<Vec<Fields>, String> {
        normalised(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_file_of_another_kind_is_named() {
        for (text, named) in [
            (r#"{"avg_latency": 1, "percentiles": {}}"#, "vllm bench latency"),
            (r#"{"tokens_per_second": 1, "elapsed_time": 2}"#, "throughput"),
            (r#"{"model_type": "mixtral"}"#, "config.json"),
            ("[]", "empty"),
            ("7", "object"),
        ] {
            let error = kinds(text).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn guidellm_runs_are_read_by_strategy() {
        let text = r#"{"benchmarks": [{"args": {"strategy": {"type_": "concurrent", "streams": 8}},
            "run_stats": {"requests_made": {"successful": 80, "errored": 0}},
            "metrics": {"requests_per_second": {"successful": {"mean": 4.0}},
              "output_tokens_per_second": {"successful": {"mean": 512.0}},
              "prompt_token_count": {"successful": {"mean": 1000.0}},
              "output_token_count": {"successful": {"mean": 128.0}},
              "time_to_first_token_ms": {"successful": {"mean": 90.0, "median": 80.0}},
              "inter_token_latency_ms": {"successful": {"mean": 14.0, "median": 13.0}}}}]}"#;
        let runs = kinds(text).unwrap();
        assert_eq!(number(&runs[0], &["max_concurrency"]), Some(8.0));
        assert_eq!(number(&runs[0], &["mean_tpot_ms"]), Some(14.0));
        assert_eq!(number(&runs[0], &["total_output_tokens"]), Some(80.0 * 128.0));
    }

    #[test]
    fn inferencex_rows_are_in_seconds() {
        let text = r#"[{"hw": "h200", "tp": 8, "ep": 1, "dp_attention": "false", "conc": 64,
            "model": "deepseek-ai/DeepSeek-R1", "framework": "sglang", "precision": "fp8", "isl": 1024,
            "osl": 1024, "output_tput_per_gpu": 150.0, "median_ttft": 0.25, "median_tpot": 0.018,
            "mean_ttft": 0.3, "mean_tpot": 0.019}]"#;
        let run = &kinds(text).unwrap()[0];
        assert!((number(run, &["median_tpot_ms"]).unwrap() - 18.0).abs() < 1e-9);
        assert_eq!(text_of(run, "parallelism"), "tp8");
        assert_eq!(text_of(run, "backend"), "sglang");
    }

    fn text_of(run: &Fields, name: &str) -> String {
        text(run, &[name]).unwrap()
    }
}
