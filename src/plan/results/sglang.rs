//! Lines of `sglang.bench_serving`: the names of `vllm bench serve`, with the server in a block.

use serde_json::Value;

use super::{Fields, number, text};

/// Whether an object is one.
pub(super) fn is(fields: &Fields) -> bool {
    fields.contains_key("server_info") || fields.contains_key("total_output_tokens_retokenized")
}

/// Its run, with what its server says of itself.
pub(super) fn run(mut fields: Fields) -> Fields {
    let of = |name: &str| number(&fields, &["server_info", name]).filter(|v| *v >= 1.0);
    let (tp, dp, ep) = (of("tp_size"), of("dp_size"), of("ep_size"));
    let data_parallel = fields
        .get("server_info")
        .and_then(|s| s.get("enable_dp_attention"))
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let parallelism = tp.map(|tp| match (data_parallel, ep.filter(|e| *e > 1.0)) {
        (true, _) => format!("DEP{tp}"),
        (false, Some(ep)) => format!("tp{tp} ep{ep}"),
        (false, None) => {
            dp.filter(|d| *d > 1.0).map_or_else(|| format!("tp{tp}"), |dp| format!("tp{tp} dp{dp}"))
        }
    });
    let named = [
        ("model_id", text(&fields, &["server_info", "model_path"])),
        ("engine_version", text(&fields, &["server_info", "version"])),
        ("weights_precision", text(&fields, &["server_info", "quantization"])),
        ("parallelism", parallelism),
        ("tool", Some("sglang.bench_serving".into())),
        ("backend", Some("sglang".into())),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            fields.entry(name).or_insert_with(|| Value::from(value));
        }
    }
    fields
}
