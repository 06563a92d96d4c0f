//! Rows of `InferenceX`: one closed loop each, in seconds, with rates per GPU. Lengths are nominal: a
//! point of this source is known to draw 80 to 100 % of them.

use serde_json::Value;

use super::{Fields, number, run_of, text};

/// Whether an object is one.
pub(super) fn is(fields: &Fields) -> bool {
    fields.contains_key("conc")
        && (fields.contains_key("hw") || fields.contains_key("tput_per_gpu"))
}

/// A number that some files write as text.
fn loose(fields: &Fields, name: &str) -> Option<f64> {
    number(fields, &[name]).or_else(|| text(fields, &[name])?.parse().ok())
}

fn on(fields: &Fields, name: &str) -> bool {
    match fields.get(name) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(value)) => value.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// Its run.
pub(super) fn run(fields: &Fields) -> Result<Fields, String> {
    let need =
        |name: &str| loose(fields, name).ok_or_else(|| format!("this InferenceX row lacks {name}"));
    let (concurrency, tp) = (need("conc")?, need("tp")?);
    let (input, output) = (need("isl")?, need("osl")?);
    let ep = loose(fields, "ep").unwrap_or(1.0);
    let parallelism = match (on(fields, "dp_attention"), ep > 1.0) {
        (true, _) => format!("DEP{tp}"),
        (false, true) => format!("tp{tp} ep{ep}"),
        (false, false) => format!("tp{tp}"),
    };
    let ms = |name: &str| loose(fields, name).map(|seconds| Value::from(1e3 * seconds));
    let per_gpu = loose(fields, "output_tput_per_gpu");
    // Little's law where the row has no rate of outputs.
    let step = |of: &str| {
        Some((loose(fields, &format!("{of}_ttft"))?, loose(fields, &format!("{of}_tpot"))?))
    };
    let little = step("mean")
        .or_else(|| step("median"))
        .map(|(ttft, tpot)| concurrency * output / (ttft + tpot * (output - 1.0)));
    let tokens = per_gpu.map(|rate| rate * tp).or(little);
    let tokens = tokens.ok_or("this InferenceX row lacks output_tput_per_gpu")?;
    let rate = tokens / output;
    let words = |name: &str| text(fields, &[name]).map(Value::from);
    Ok(run_of([
        ("model_id", words("model").or_else(|| words("infmax_model_prefix"))),
        ("backend", words("framework")),
        ("tool", Some("InferenceX".into())),
        ("gpu", words("hw")),
        ("parallelism", Some(parallelism.into())),
        ("weights_precision", words("precision")),
        ("request_rate", Some("inf".into())),
        ("max_concurrency", Some(concurrency.into())),
        ("completed", Some((10.0 * concurrency).into())),
        ("duration", Some((10.0 * concurrency / rate).into())),
        ("total_input_tokens", Some((10.0 * concurrency * input).into())),
        ("total_output_tokens", Some((10.0 * concurrency * output).into())),
        ("request_throughput", Some(rate.into())),
        ("output_throughput", Some(tokens.into())),
        ("mean_ttft_ms", ms("mean_ttft")),
        ("median_ttft_ms", ms("median_ttft")),
        ("mean_tpot_ms", ms("mean_tpot")),
        ("median_tpot_ms", ms("median_tpot")),
    ]))
}
