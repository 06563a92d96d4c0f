//! Summaries of genai-perf and aiperf: each metric is an object with its unit and statistics.

use serde_json::Value;

use super::{Fields, number, run_of, text};

/// Whether a file is one.
pub(super) fn is(fields: &Fields) -> bool {
    let metric = |name: &str| fields.get(name).is_some_and(|m| m.get("avg").is_some());
    metric("time_to_first_token") || metric("request_latency")
}

/// Its run.
pub(super) fn run(fields: &Fields) -> Result<Fields, String> {
    let of = |name: &str, statistic: &str| number(fields, &[name, statistic]);
    let need =
        |name: &str| of(name, "avg").ok_or_else(|| format!("this genai-perf summary lacks {name}"));
    let rate = need("request_throughput")?;
    let (input, output) = (need("input_sequence_length")?, need("output_sequence_length")?);
    let tokens = of("output_token_throughput", "avg").unwrap_or(rate * output);
    let stimulus = ["input_config", "perf_analyzer", "stimulus"];
    let settings = |name: &str| {
        number(fields, &[&stimulus[..], &[name]].concat())
            .or_else(|| number(fields, &["input_config", "loadgen", name]))
    };
    let concurrency = settings("concurrency");
    let offered = settings("request_rate");
    // Without a count the mean lengths of one request stand for all.
    let completed = of("request_count", "avg").unwrap_or(1.0);
    let milliseconds = |name: &str, statistic: &str| {
        let scale = match text(fields, &[name, "unit"]).as_deref() {
            Some("ns" | "nanoseconds") => 1e-6,
            Some("us" | "microseconds") => 1e-3,
            Some("s" | "sec" | "seconds") => 1e3,
            _ => 1.0,
        };
        of(name, statistic).map(|value| Value::from(value * scale))
    };
    let model = fields
        .get("input_config")
        .and_then(|c| c.get("model_names").or_else(|| c.get("endpoint")?.get("model_names")))
        .and_then(|names| names.get(0))
        .cloned();
    let request_rate = offered.map_or_else(|| Value::from("inf"), Value::from);
    Ok(run_of([
        ("model_id", model),
        ("backend", text(fields, &["input_config", "backend"]).map(Value::from)),
        ("tool", Some("genai-perf".into())),
        ("request_rate", Some(request_rate)),
        ("max_concurrency", concurrency.map(Value::from)),
        ("completed", Some(completed.into())),
        ("duration", Some((completed / rate).into())),
        ("total_input_tokens", Some((completed * input).into())),
        ("total_output_tokens", Some((completed * output).into())),
        ("request_throughput", Some(rate.into())),
        ("output_throughput", Some(tokens.into())),
        ("mean_ttft_ms", milliseconds("time_to_first_token", "avg")),
        ("median_ttft_ms", milliseconds("time_to_first_token", "p50")),
        ("mean_tpot_ms", milliseconds("inter_token_latency", "avg")),
        ("median_tpot_ms", milliseconds("inter_token_latency", "p50")),
    ]))
}
