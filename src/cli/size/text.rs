//! `size` as text.

use std::fmt::Write;

use super::document::Document;
use crate::cli::output::model_lines;

/// Alternatives that are printed; `--json` has all.
const ALTERNATIVES: usize = 4;

/// What `size` prints.
pub(super) fn text(d: &Document) -> String {
    let mut text = model_lines(&d.model_summary, &d.assumptions.model_assumed);
    let _ = writeln!(
        text,
        "{} GPUs: {} replica(s) of {} on {} (tensor parallel {}, expert parallel {}, data parallel {})",
        d.gpus,
        d.replicas,
        d.model,
        d.device,
        d.tensor_parallel,
        d.expert_parallel,
        d.data_parallel
    );
    let _ = writeln!(
        text,
        "batch {:.1} on average, at most {}; utilisation {:.0} %; binding: {}",
        d.mean_batch,
        d.max_batch,
        d.utilisation * 100.0,
        d.binding_constraint
    );
    for (name, v) in [("TTFT", &d.ttft_ms), ("TPOT", &d.tpot_ms), ("E2E", &d.e2e_ms)] {
        let _ = writeln!(
            text,
            "{name:>4} ms: mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1} ({:.1} to {:.1})",
            v.mean, v.p50, v.p90, v.p99, v.p99_lo, v.p99_hi
        );
    }
    for m in &d.margins {
        let _ = writeln!(
            text,
            "{}: at most {:.1} ms of {:.1} ms promised, {:.0} % left",
            m.limit,
            m.upper_ms,
            m.limit_ms,
            m.left * 100.0
        );
    }
    let model = &d.model_interval;
    let range = |r: &super::interval::Range| format!("{:.1} to {:.1} ms", r.lo, r.hi);
    let most = model.gpus_hi.map_or("no allowed number of".to_owned(), |n| n.to_string());
    let _ = writeln!(
        text,
        "95 % interval of the model: TTFT p99 {}, TPOT p99 {}, {} to {most} GPUs",
        range(&model.ttft_ms.p99),
        range(&model.tpot_ms.p99),
        model.gpus_lo
    );
    let _ = writeln!(text, "goodput: {:.2} % of the requests", d.goodput * 100.0);
    trace(&mut text, d);
    let _ = writeln!(
        text,
        "${:.2}/h: ${:.3}/M input, ${:.3}/M output, ${:.3}/M total tokens at {:.0} % utilisation ({}; ${}/h each, {})",
        d.usd_per_hour,
        d.usd_per_million_input_tokens,
        d.usd_per_million_output_tokens,
        d.usd_per_million_total_tokens,
        d.utilisation * 100.0,
        d.assumptions.cost_basis,
        d.assumptions.usd_per_gpu_hour,
        d.assumptions.price_source
    );
    let _ = writeln!(
        text,
        "kernel times: {}, {}; {} routing of requests; {} plan(s) fail, see --json",
        d.latency_source.label(),
        d.assumptions.calibration,
        d.assumptions.router,
        d.failed.len()
    );
    for a in d.alternatives.iter().take(ALTERNATIVES) {
        let _ = writeln!(
            text,
            "  else {} x {} {} ({} replicas): ${:.2}/h, TTFT p99 {:.0} ms, TPOT p99 {:.1} ms",
            a.gpus, a.device, a.layout, a.replicas, a.usd_per_hour, a.ttft_p99_ms, a.tpot_p99_ms
        );
    }
    text
}

/// What is said of a recorded stream.
fn trace(text: &mut String, d: &Document) {
    if let Some(left_out) = d.assumptions.trace_left_out.filter(|n| *n > 0) {
        let _ = writeln!(
            text,
            "trace: {left_out} request(s) without a prompt or an output token left out"
        );
    }
    if !d.replicas_over_time.is_empty() {
        let windows = d.replicas_over_time.iter().map(|w| {
            format!("mean {:.1}, peak {:.0} in windows of {:.0} s", w.mean, w.peak, w.window_s)
        });
        let _ = writeln!(text, "replicas over time: {}", windows.collect::<Vec<_>>().join("; "));
    }
}
