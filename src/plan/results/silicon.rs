//! Server rows of aiconfigurator (`silicon_sample.csv`): aggregated and disaggregated, one closed loop
//! a row, as a table of points.

use crate::latency::tables::flat_table::{FlatTable, Row};
use crate::plan::results::vllm_bench::COLUMNS;
use crate::{Error, Result};

/// Whether a table is one.
fn is(table: &FlatTable) -> bool {
    table.has("silicon_tpot_ms") && table.has("model_path") && table.has("system")
}

/// The table itself or, for server rows of aiconfigurator, its rows as points.
///
/// # Errors
/// [`Error::BadFile`] with the row for a number that is none.
pub fn as_points(table: FlatTable) -> Result<FlatTable> {
    if !is(&table) {
        return Ok(table);
    }
    let location = table.location().to_owned();
    let failed = |e: String| Error::bad_file(&location, e);
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|e| failed(e.to_string()))?;
    for row in table.rows() {
        writer.write_record(cells(&row)).map_err(|e| failed(e.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|e| failed(e.to_string()))?;
    FlatTable::csv(&location, bytes)
}

/// One row in the columns of points.
fn cells(row: &Row) -> [String; 19] {
    let text = |name: &str| row.text(name).unwrap_or_default().to_owned();
    let size = |name: &str| row.text(name).and_then(|t| t.parse::<f64>().ok()).unwrap_or(1.0);
    let disaggregated = row.text("mode") == Some("disagg");
    let parallelism = if disaggregated {
        format!("disaggregated: {} and {}", pool(row, "prefill_"), pool(row, "decode_"))
    } else {
        pool(row, "")
    };
    let weights = row.text("moe_quant_mode").or(row.text("precision")).unwrap_or_default();
    [
        text("id"),
        text("model_path"),
        text("system"),
        if disaggregated { String::new() } else { devices(row) },
        parallelism,
        text("backend"),
        text("backend_version"),
        format_of(weights, row),
        if size("isl") > 0.0 { "closed loop, fixed concurrency".into() } else { String::new() },
        text("isl"),
        text("osl"),
        concurrency(row),
        String::new(),
        String::new(),
        text("silicon_ttft_ms"),
        text("silicon_tpot_ms"),
        "InferenceX (SemiAnalysis) result; via aiconfigurator".into(),
        text("silicon_data_source"),
        String::new(),
    ]
}

/// Parallel sizes of an aggregated server or of one pool.
fn pool(row: &Row, prefix: &str) -> String {
    let size = |name: &str| {
        let column = format!("{prefix}{name}");
        row.text(&column).and_then(|t| t.parse::<f64>().ok()).filter(|v| *v >= 1.0).unwrap_or(1.0)
    };
    let workers =
        if prefix.is_empty() { String::new() } else { format!("{} x ", size("num_workers")) };
    let dp = size("attention_dp_size");
    let data_parallel = if dp > 1.0 { format!(" dp{dp}") } else { String::new() };
    format!(
        "{workers}tp{}{data_parallel} pp{} moe_tp{} moe_ep{}",
        size("tp_size"),
        size("pp_size"),
        size("moe_tp_size"),
        size("moe_ep_size")
    )
}

fn devices(row: &Row) -> String {
    let size = |name: &str| row.text(name).and_then(|t| t.parse::<f64>().ok()).unwrap_or(1.0);
    (size("tp_size") * size("pp_size") * size("attention_dp_size")).to_string()
}

/// Sequences in flight over the whole server: what the source names, else the batch.
fn concurrency(row: &Row) -> String {
    let named = row.text("silicon_data_source").and_then(|source| {
        let (_, rest) = source.split_once("silicon_concurrency=")?;
        rest.split(';').next().map(|t| t.trim().to_owned())
    });
    named.or_else(|| row.text("batch_size").map(str::to_owned)).unwrap_or_default()
}

/// The format of the weights in the names of points: 4 bits are nvfp4 on Blackwell, else mxfp4.
fn format_of(name: &str, row: &Row) -> String {
    let blackwell = row.text("system").is_some_and(|s| s.starts_with('b') || s.starts_with("gb"));
    match name.to_lowercase().as_str() {
        "fp4" if blackwell && !row.text("model_path").is_some_and(|m| m.contains("gpt-oss")) => {
            "nvfp4".into()
        }
        "fp4" => "mxfp4".into(),
        name if name.contains("mxfp4") => "mxfp4".into(),
        name if name.contains("nvfp4") => "nvfp4".into(),
        name if name.starts_with("fp8") => "fp8".into(),
        other => other.to_owned(),
    }
}
