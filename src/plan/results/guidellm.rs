//! Reports of guidellm: a list of benchmarks, each with its strategy and statistics by outcome.

use serde_json::Value;

use super::{Fields, number, run_of, text};

/// Whether a file is one.
pub(super) fn is(fields: &Fields) -> bool {
    fields.get("benchmarks").is_some_and(Value::is_array)
}

/// Its runs.
pub(super) fn runs(fields: &Fields) -> Result<Vec<Fields>, String> {
    let list = fields.get("benchmarks").and_then(Value::as_array);
    let list = list.filter(|l| !l.is_empty()).ok_or("this guidellm report has no benchmarks")?;
    let object = |b: &Value| {
        let fields = b.as_object().ok_or("a benchmark of this guidellm report is not an object")?;
        run(fields)
    };
    list.iter().map(object).collect()
}

fn run(fields: &Fields) -> Result<Fields, String> {
    let of =
        |name: &str, statistic: &str| number(fields, &["metrics", name, "successful", statistic]);
    let need = |name: &str| {
        of(name, "mean").ok_or_else(|| format!("this guidellm report lacks metrics.{name}"))
    };
    let rate = need("requests_per_second")?;
    let (input, output) = (need("prompt_token_count")?, need("output_token_count")?);
    let tokens = of("output_tokens_per_second", "mean").unwrap_or(rate * output);
    let strategy = |name: &str| {
        number(fields, &["args", "strategy", name])
            .or_else(|| number(fields, &["config", "strategy", name]))
            .or_else(|| number(fields, &["scheduler", "strategy", name]))
    };
    let kind = ["args", "config", "scheduler"]
        .iter()
        .find_map(|at| text(fields, &[at, "strategy", "type_"]))
        .unwrap_or_default();
    let streams = match kind.as_str() {
        "synchronous" => Some(1.0),
        _ => strategy("streams"),
    };
    let offered = if streams.is_some() { None } else { strategy("rate") };
    let made = number(fields, &["run_stats", "requests_made", "successful"])
        .or_else(|| number(fields, &["metrics", "request_totals", "successful"]));
    let failed = number(fields, &["run_stats", "requests_made", "errored"])
        .or_else(|| number(fields, &["metrics", "request_totals", "errored"]));
    let completed = made.unwrap_or(1.0);
    let tpot = |statistic: &str| {
        // The time per token of guidellm counts the first one; the time between tokens does not.
        of("inter_token_latency_ms", statistic).map(Value::from)
    };
    let model = text(fields, &["worker", "backend_model"]).or_else(|| text(fields, &["model"]));
    Ok(run_of([
        ("model_id", model.map(Value::from)),
        ("tool", Some("guidellm".into())),
        ("request_rate", Some(offered.map_or_else(|| "inf".into(), Value::from))),
        ("max_concurrency", streams.map(Value::from)),
        ("completed", Some(completed.into())),
        ("failed", failed.map(Value::from)),
        ("duration", Some((completed / rate).into())),
        ("total_input_tokens", Some((completed * input).into())),
        ("total_output_tokens", Some((completed * output).into())),
        ("request_throughput", Some(rate.into())),
        ("output_throughput", Some(tokens.into())),
        ("mean_ttft_ms", of("time_to_first_token_ms", "mean").map(Value::from)),
        ("median_ttft_ms", of("time_to_first_token_ms", "median").map(Value::from)),
        ("mean_tpot_ms", tpot("mean")),
        ("median_tpot_ms", tpot("median")),
    ]))
}
