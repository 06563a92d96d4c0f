//! `size` as text: the deployment, the plans beside it, what binds; the rest with `--details`.

use super::document::{Alternative, Document, Milliseconds};
use crate::cli::output::model_lines;
use crate::report::grid::{Column, grid, hanging};

/// Plans in the table; `--details` and `--json` have all.
const PLANS: usize = 5;

/// What `size` prints.
pub(super) fn text(d: &Document, width: usize, details: bool) -> String {
    let mut text = hanging("Answer  ", &answer(d), width);
    text += &plans(d, width, if details { usize::MAX } else { PLANS });
    for m in &d.margins {
        let limit = format!(
            "{}: at most {:.1} ms of {:.1} ms promised, {:.0} % left",
            m.limit,
            m.upper_ms,
            m.limit_ms,
            m.left * 100.0
        );
        text += &hanging("Limit   ", &limit, width);
    }
    let model = &d.model_interval;
    let range = |r: &super::interval::Range| format!("{:.1} to {:.1} ms", r.lo, r.hi);
    let most = model.gpus_hi.map_or("no allowed number of".to_owned(), |n| n.to_string());
    let interval = format!(
        "95 % interval: TTFT p99 {}, TPOT p99 {}, {} to {most} GPUs",
        range(&model.ttft_ms.p99),
        range(&model.tpot_ms.p99),
        model.gpus_lo
    );
    text += &hanging("Model   ", &interval, width);
    text += &hanging("Binds   ", &d.binding_constraint, width);
    text += &trace(d, width);
    text += &model_lines(&d.model_summary, &d.assumptions.model_assumed);
    if details {
        text += &more(d, width);
    } else {
        let next = format!(
            "--details (percentiles, basis of the dollars, {} plan(s) that fail), --emit vllm (what starts it)",
            d.failed.len()
        );
        text += &hanging("Next    ", &next, width);
    }
    text
}

/// The deployment in one sentence.
fn answer(d: &Document) -> String {
    format!(
        "{} x {}: {} replica(s) of {} (tensor parallel {}, expert parallel {}, data parallel {}), \
         ${:.2}/h, ${:.3}/M output tokens at {:.0} % utilisation; {:.2} % of the requests within the \
         service level",
        d.gpus,
        d.device,
        d.replicas,
        d.model,
        d.tensor_parallel,
        d.expert_parallel,
        d.data_parallel,
        d.usd_per_hour,
        d.usd_per_million_output_tokens,
        d.utilisation * 100.0,
        d.goodput * 100.0
    )
}

/// The plan chosen and those beside it, the cheapest first.
fn plans(d: &Document, width: usize, most: usize) -> String {
    let chosen = vec![
        d.device.clone(),
        d.layout.clone(),
        d.gpus.to_string(),
        d.replicas.to_string(),
        format!("${:.2}", d.usd_per_hour),
        format!("{:.0}", d.ttft_ms.p99),
        format!("{:.1}", d.tpot_ms.p99),
    ];
    let other = |a: &Alternative| {
        vec![
            a.device.clone(),
            a.layout.clone(),
            a.gpus.to_string(),
            a.replicas.to_string(),
            format!("${:.2}", a.usd_per_hour),
            format!("{:.0}", a.ttft_p99_ms),
            format!("{:.1}", a.tpot_p99_ms),
        ]
    };
    let others = d.alternatives.iter().take(most.saturating_sub(1)).map(other);
    let rows: Vec<Vec<String>> = std::iter::once(chosen).chain(others).collect();
    let columns = [
        Column::words("device"),
        Column::words("layout"),
        Column::numbers("GPUs"),
        Column::numbers("replicas").left_out(1),
        Column::numbers("$/h"),
        Column::numbers("TTFT p99\nms"),
        Column::numbers("TPOT p99\nms"),
    ];
    grid(&columns, &rows, width)
}

/// What is said of a recorded stream.
fn trace(d: &Document, width: usize) -> String {
    let mut text = String::new();
    if let Some(left_out) = d.assumptions.trace_left_out.filter(|n| *n > 0) {
        let why = format!("{left_out} request(s) without a prompt or an output token left out");
        text += &hanging("Trace   ", &why, width);
    }
    if !d.replicas_over_time.is_empty() {
        let windows = d.replicas_over_time.iter().map(|w| {
            format!("mean {:.1}, peak {:.0} in windows of {:.0} s", w.mean, w.peak, w.window_s)
        });
        let windows = windows.collect::<Vec<_>>().join("; ");
        text += &hanging("Trace   ", &format!("replicas over time: {windows}"), width);
    }
    text
}

/// Percentiles, batch, the basis of the dollars and of the times, plans that fail.
fn more(d: &Document, width: usize) -> String {
    let row = |name: &str, v: &Milliseconds| {
        let p99 = format!("{:.1} to {:.1}", v.p99_lo, v.p99_hi);
        let values = [v.mean, v.p50, v.p90, v.p99].map(|ms| format!("{ms:.1}"));
        [vec![name.to_owned()], values.to_vec(), vec![p99]].concat()
    };
    let rows = [row("TTFT ms", &d.ttft_ms), row("TPOT ms", &d.tpot_ms), row("E2E ms", &d.e2e_ms)];
    let columns = [
        Column::words("over requests"),
        Column::numbers("mean"),
        Column::numbers("p50"),
        Column::numbers("p90"),
        Column::numbers("p99"),
        Column::numbers("p99, 95 %").left_out(1),
    ];
    let mut text = "\n".to_owned() + &grid(&columns, &rows, width);
    let batch = format!("{:.1} on average, at most {}", d.mean_batch, d.max_batch);
    text += &hanging("Batch   ", &batch, width);
    let dollars = format!(
        "${:.3}/M input, ${:.3}/M output, ${:.3}/M total tokens at {:.0} % utilisation ({}; ${}/h \
         each, {})",
        d.usd_per_million_input_tokens,
        d.usd_per_million_output_tokens,
        d.usd_per_million_total_tokens,
        d.utilisation * 100.0,
        d.assumptions.cost_basis,
        d.assumptions.usd_per_gpu_hour,
        d.assumptions.price_source
    );
    text += &hanging("Dollars ", &dollars, width);
    let times = format!(
        "{}, {}; {} routing of requests",
        d.latency_source.label(),
        d.assumptions.calibration,
        d.assumptions.router
    );
    text += &hanging("Times   ", &times, width);
    for failure in &d.failed {
        text += &hanging("Fails   ", &format!("{}: {}", failure.plan, failure.reason), width);
    }
    text
}
