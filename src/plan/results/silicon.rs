//! Server rows of aiconfigurator (`silicon_sample.csv`): aggregated and disaggregated, one closed loop
//! a row, as a table of points.

use crate::latency::tables::flat_table::{FlatTable, Row};
use crate::{Error, Result};

/// Columns of the points, in their order.
const COLUMNS: [&str; 19] = [
    "source_id",
    "model",
    "gpu",
    "n_gpus",
    "parallelism",
    "prefill_parallelism",
    "prefill_workers",
    "decode_workers",
    "engine",
    "engine_version",
    "weights_precision",
    "workload",
    "isl",
    "osl",
    "concurrency_or_rate",
    "ttft_ms",
    "tpot_ms",
    "source",
    "notes",
];

/// Devices of a node of the aggregated servers in the file.
const NODE: usize = 8;

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
fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let text = |name: &str| row.text(name).unwrap_or_default().to_owned();
    let disaggregated = row.text("mode") == Some("disagg");
    let weights = row.text("moe_quant_mode").or(row.text("precision")).unwrap_or_default();
    let decode = if disaggregated { Sizes::of(row, "decode_") } else { Sizes::of(row, "").once() };
    let only = |value: String| if disaggregated { value } else { String::new() };
    [
        text("id"),
        text("model_path"),
        text("system"),
        if disaggregated { String::new() } else { decode.devices().to_string() },
        decode.text(),
        only(Sizes::of(row, "prefill_").text()),
        only(workers(row, "prefill_num_workers")),
        only(workers(row, "decode_num_workers")),
        text("backend"),
        version(row),
        format_of(weights, row),
        "closed loop, fixed concurrency".into(),
        text("isl"),
        text("osl"),
        concurrency(row),
        text("silicon_ttft_ms"),
        text("silicon_tpot_ms"),
        format!("{}; via aiconfigurator", publisher(row)),
        text("silicon_data_source"),
    ]
}

/// Who measured: rows of the source's own runs name a folder, those of `InferenceX` a file or a dump.
fn publisher(row: &Row) -> &'static str {
    let source = row.text("silicon_data_source").unwrap_or_default();
    if source.starts_with("source_file=/") {
        "run by NVIDIA for aiconfigurator"
    } else {
        "InferenceX (SemiAnalysis) result"
    }
}

/// Version of the engine, where the row says.
fn version(row: &Row) -> String {
    row.text("backend_version").unwrap_or_default().to_owned()
}

/// Workers of a pool, where the row says.
fn workers(row: &Row, column: &str) -> String {
    row.text(column).and_then(|t| t.parse::<f64>().ok()).map_or(String::new(), |n| n.to_string())
}

/// Parallel sizes of an aggregated server or of one worker of a pool.
#[derive(Clone, Copy)]
struct Sizes {
    tp: usize,
    pp: usize,
    dp: usize,
    moe_tp: usize,
    moe_ep: usize,
}

impl Sizes {
    fn of(row: &Row, prefix: &str) -> Self {
        let size = |name: &str| {
            let cell = row.text(&format!("{prefix}{name}"));
            let value = cell.and_then(|t| t.parse::<f64>().ok()).unwrap_or(1.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of ranks: whole and small"
            )]
            let whole = value.clamp(1.0, 4096.0) as usize;
            whole
        };
        let (tp, pp, dp) = (size("tp_size"), size("pp_size"), size("attention_dp_size"));
        let (moe_tp, moe_ep) = (size("moe_tp_size"), size("moe_ep_size"));
        // Rows of dense models have 1 x 1 whatever the server.
        let moe_tp = if moe_tp * moe_ep == 1 { tp * dp } else { moe_tp };
        Self { tp, pp, dp, moe_tp, moe_ep }
    }

    const fn devices(&self) -> usize {
        self.tp * self.pp * self.dp
    }

    /// The sizes of the server that the file multiplies by themselves: `--tp n --ep n` over n
    /// devices is written there as n x n (64 devices on a node of 8), `--dp n --ep n` likewise.
    fn once(self) -> Self {
        let squared = |n: usize| n > 1 && n <= NODE && self.tp * self.dp == n * n;
        if self.moe_tp == self.moe_ep && squared(self.moe_ep) {
            let n = self.moe_ep;
            let (tp, dp) = if self.dp > 1 { (1, n) } else { (n, 1) };
            return Self { tp, dp, moe_tp: 1, moe_ep: n, ..self };
        }
        if self.tp == self.dp && self.moe_tp == 1 && squared(self.tp) {
            return Self { tp: 1, moe_ep: self.dp, ..self };
        }
        self
    }

    fn text(&self) -> String {
        let dp = if self.dp > 1 { format!(" dp{}", self.dp) } else { String::new() };
        format!("tp{}{dp} pp{} moe_tp{} moe_ep{}", self.tp, self.pp, self.moe_tp, self.moe_ep)
    }
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
    if row.text("model_path").is_some_and(|m| m.contains("gpt-oss")) {
        return "mxfp4".into();
    }
    let blackwell = row.text("system").is_some_and(|s| s.starts_with('b') || s.starts_with("gb"));
    match name.to_lowercase().as_str() {
        "fp4" if blackwell => "nvfp4".into(),
        "fp4" => "mxfp4".into(),
        name if name.contains("mxfp4") => "mxfp4".into(),
        name if name.contains("nvfp4") => "nvfp4".into(),
        name if name.starts_with("fp8") => "fp8".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_multiplied_by_themselves_are_read_once() {
        let read = |tp, dp, moe_tp, moe_ep| Sizes { tp, pp: 1, dp, moe_tp, moe_ep }.once().text();
        assert_eq!(read(64, 1, 8, 8), "tp8 pp1 moe_tp1 moe_ep8");
        assert_eq!(read(16, 1, 4, 4), "tp4 pp1 moe_tp1 moe_ep4");
        assert_eq!(read(1, 64, 8, 8), "tp1 dp8 pp1 moe_tp1 moe_ep8");
        assert_eq!(read(4, 4, 1, 16), "tp1 dp4 pp1 moe_tp1 moe_ep4");
        assert_eq!(read(8, 1, 2, 4), "tp8 pp1 moe_tp2 moe_ep4");
        assert_eq!(read(8, 1, 8, 1), "tp8 pp1 moe_tp8 moe_ep1");
        assert_eq!(read(1, 8, 1, 8), "tp1 dp8 pp1 moe_tp1 moe_ep8");
    }
}
