//! Third-party kernel tables into [`EngineTables`].
//!
//! Formats: aiconfigurator's `moe_perf`, `gemm_perf`, `context_attention_perf`,
//! `generation_attention_perf`, `custom_allreduce_perf` and `nccl_perf` (CSV or Parquet), told apart
//! by their columns. Its latencies are milliseconds and its message sizes elements. A cell that two
//! files give differently is refused: nothing tells the two runs apart.

use std::collections::BTreeMap;
use std::path::Path;

use super::engine_tables::{
    AttentionSeries, EngineTables, GemmSeries, ImportedFile, Kernel, LeftOut, LinkSeries,
    MoeSeries, Phase, TABLES_SCHEMA, TABLES_VERSION,
};
use super::flat_table::{FlatTable, Row};
use crate::config::DeviceSpec;
use crate::measure::record::sha256_hex;
use crate::{Error, Result};

/// A measured time below this share of the published roofline is no measurement of this layer.
const FASTER_THAN_POSSIBLE: f64 = 1.0 / 1.02;

type MoeKey = (Kernel, [usize; 6], String);
type AttentionKey = (Kernel, Phase, [usize; 5], String);
type LinkKey = (Kernel, String, String, usize);

/// Rows gathered by what identifies a series.
#[derive(Default)]
struct Gathered {
    moe: BTreeMap<MoeKey, BTreeMap<usize, f64>>,
    gemm: BTreeMap<(Kernel, usize, usize), BTreeMap<usize, f64>>,
    attention: BTreeMap<AttentionKey, BTreeMap<usize, f64>>,
    links: BTreeMap<LinkKey, BTreeMap<usize, f64>>,
    device: Option<String>,
}

/// Which of the tables a file holds.
#[derive(Clone, Copy)]
enum Kind {
    Moe,
    Gemm,
    Attention,
    CustomAllReduce,
    Nccl,
}

/// Reads aiconfigurator tables of one device into one.
///
/// # Errors
/// [`Error::Io`] and [`Error::BadFile`] for a file that cannot be read or is none of the known
/// tables; [`Error::Unfit`] when files are of different devices or contradict each other.
pub fn aiconfigurator<P: AsRef<Path>>(paths: &[P], program: &str) -> Result<EngineTables> {
    let mut gathered = Gathered::default();
    let mut files = Vec::new();
    for path in paths {
        files.push(gathered.read(path.as_ref())?);
    }
    let device = gathered.device.clone().ok_or_else(|| Error::usage("FILE", "none given"))?;
    let mut tables = EngineTables {
        schema: TABLES_SCHEMA.into(),
        schema_version: TABLES_VERSION.into(),
        program: program.into(),
        device,
        files,
        left_out: Vec::new(),
        moe: Vec::new(),
        gemm: Vec::new(),
        attention: Vec::new(),
        links: Vec::new(),
    };
    gathered.fill(&mut tables);
    leave_out_impossible(&mut tables);
    tables.validate("imported tables")?;
    Ok(tables)
}

impl Gathered {
    fn read(&mut self, path: &Path) -> Result<ImportedFile> {
        let table = FlatTable::read(path)?;
        let kind = kind(&table)?;
        let mut repeated = 0;
        for row in table.rows() {
            self.same_device(&row)?;
            if !self.add(kind, &row)? {
                repeated += 1;
            }
        }
        let rows = table.rows().len();
        if rows == 0 {
            return Err(Error::bad_file(table.location(), "no rows"));
        }
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(ImportedFile { name, sha256: sha256_hex(&table.bytes), rows, repeated })
    }

    fn same_device(&mut self, row: &Row) -> Result<()> {
        let device = row.need("device")?;
        let known = self.device.get_or_insert_with(|| device.to_owned());
        if known == device {
            return Ok(());
        }
        let reason = format!("`{device}` beside `{known}`; import each device into its own file");
        Err(Error::unfit("imported tables", reason))
    }

    /// Adds one row; `false` when it was there already.
    fn add(&mut self, kind: Kind, row: &Row) -> Result<bool> {
        let latency = row.number("latency")?;
        if latency <= 0.0 {
            return Err(row.bad(format!("a latency of {latency} ms")));
        }
        match kind {
            Kind::Moe => {
                let sizes = [
                    row.whole("hidden_size")?,
                    row.whole("inter_size")?,
                    row.whole("topk")?,
                    row.whole("num_experts")?,
                    row.whole("moe_tp_size")?,
                    row.whole("moe_ep_size")?,
                ];
                let key = (kernel(row, "moe_dtype")?, sizes, row.need("distribution")?.to_owned());
                insert(self.moe.entry(key).or_default(), row.whole("num_tokens")?, latency, row)
            }
            Kind::Gemm => {
                let key = (kernel(row, "gemm_dtype")?, row.whole("n")?, row.whole("k")?);
                insert(self.gemm.entry(key).or_default(), row.whole("m")?, latency, row)
            }
            Kind::Attention => {
                let phase = phase(row)?;
                let context = match phase {
                    Phase::Context => row.whole("isl")?,
                    Phase::Generation => row.whole("step")? + 1,
                };
                let window = row.text("window_size").map_or(Ok(0), |_| row.whole("window_size"))?;
                let sizes = [
                    row.whole("num_heads")?,
                    row.whole("num_key_value_heads")?,
                    row.whole("head_dim")?,
                    window,
                    context,
                ];
                let kv = row.need("kv_cache_dtype")?.to_owned();
                let key = (kernel(row, "attn_dtype")?, phase, sizes, kv);
                insert(
                    self.attention.entry(key).or_default(),
                    row.whole("batch_size")?,
                    latency,
                    row,
                )
            }
            Kind::CustomAllReduce | Kind::Nccl => {
                let (column, backend) = match kind {
                    Kind::Nccl => ("nccl_dtype", "nccl"),
                    _ => ("allreduce_dtype", row.need("backend")?),
                };
                let kernel = kernel(row, column)?;
                let operation = row.need("op_name")?.to_owned();
                let bytes = row.whole("message_size")? * element_bytes(&kernel.dtype, row)?;
                let key = (kernel, operation, backend.to_owned(), row.whole("num_gpus")?);
                insert(self.links.entry(key).or_default(), bytes, latency, row)
            }
        }
    }

    fn fill(self, tables: &mut EngineTables) {
        for ((kernel, sizes, distribution), points) in self.moe {
            let [hidden, inter, top_k, experts, tensor_parallel, expert_parallel] = sizes;
            let (tokens, latency_ms) = points.into_iter().unzip();
            tables.moe.push(MoeSeries {
                kernel,
                hidden,
                inter,
                top_k,
                experts,
                tensor_parallel,
                expert_parallel,
                distribution,
                tokens,
                latency_ms,
            });
        }
        for ((kernel, n, k), points) in self.gemm {
            let (m, latency_ms) = points.into_iter().unzip();
            tables.gemm.push(GemmSeries { kernel, n, k, m, latency_ms });
        }
        for ((kernel, phase, sizes, kv_dtype), points) in self.attention {
            let [heads, kv_heads, head_dim, window, context] = sizes;
            let (batch, latency_ms) = points.into_iter().unzip();
            tables.attention.push(AttentionSeries {
                kernel,
                phase,
                heads,
                kv_heads,
                head_dim,
                kv_dtype,
                window,
                context,
                batch,
                latency_ms,
            });
        }
        for ((kernel, operation, backend, devices), points) in self.links {
            let (message_bytes, latency_ms) =
                points.into_iter().map(|(bytes, latency)| (bytes as f64, latency)).unzip();
            tables.links.push(LinkSeries {
                kernel,
                operation,
                backend,
                devices,
                message_bytes,
                latency_ms,
            });
        }
    }
}

/// Adds a point; `false` when the same value stands there.
fn insert(points: &mut BTreeMap<usize, f64>, at: usize, latency: f64, row: &Row) -> Result<bool> {
    match points.insert(at, latency) {
        None => Ok(true),
        Some(before) if before.to_bits() == latency.to_bits() => Ok(false),
        Some(before) => {
            let place = row.bad("").to_string();
            let reason = format!(
                "{before} ms and {latency} ms for one cell, and nothing tells the two runs apart"
            );
            Err(Error::unfit(place.trim_end_matches([':', ' ']), reason))
        }
    }
}

fn kind(table: &FlatTable) -> Result<Kind> {
    let kinds = [
        ("moe_dtype", Kind::Moe),
        ("gemm_dtype", Kind::Gemm),
        ("attn_dtype", Kind::Attention),
        ("allreduce_dtype", Kind::CustomAllReduce),
        ("nccl_dtype", Kind::Nccl),
    ];
    kinds.into_iter().find(|(column, _)| table.has(column)).map(|(_, kind)| kind).ok_or_else(|| {
        let names = kinds.map(|(column, _)| column).join(", ");
        Error::bad_file(table.location(), format!("no aiconfigurator table: has none of {names}"))
    })
}

/// Engine, version, kernel and number format of a row.
fn kernel(row: &Row, dtype_column: &str) -> Result<Kernel> {
    let (engine, version) = match row.text("engine_ver") {
        Some(both) => both
            .rsplit_once('_')
            .ok_or_else(|| row.bad(format!("`{both}` is no engine and version")))?,
        None => (row.need("framework")?, row.need("version")?),
    };
    Ok(Kernel {
        engine: engine.to_lowercase().replace(['-', '_'], ""),
        version: version.to_owned(),
        name: row.text("kernel_source").unwrap_or("unnamed").to_owned(),
        dtype: row.need(dtype_column)?.to_owned(),
    })
}

fn phase(row: &Row) -> Result<Phase> {
    let name = row.text("phase").or_else(|| row.text("op_name")).unwrap_or_default();
    match name {
        _ if name.contains("context") => Ok(Phase::Context),
        _ if name.contains("generation") => Ok(Phase::Generation),
        _ => Err(row.bad("neither `phase` nor `op_name` says context or generation")),
    }
}

fn element_bytes(dtype: &str, row: &Row) -> Result<usize> {
    match dtype {
        "half" | "float16" | "bfloat16" => Ok(2),
        "int8" | "fp8" => Ok(1),
        "float" | "float32" => Ok(4),
        _ => Err(row.bad(format!("unknown element type `{dtype}`"))),
    }
}

/// Removes MoE series that beat the device's published roofline: their layer is another one than
/// the columns say (experts without a gate), or reads fewer experts (group-limited routing of even
/// logits, as in the rows of DeepSeek-V3's shape, which hit half of them).
fn leave_out_impossible(tables: &mut EngineTables) {
    let Some(device) = DeviceSpec::of_driver_name(&tables.device) else { return };
    let mut left: BTreeMap<[usize; 4], usize> = BTreeMap::new();
    let impossible = |s: &MoeSeries| {
        let shared = s.tensor_parallel as f64;
        // 4 bits is the least that any format here stores; the bound is loose on purpose.
        let bits = if s.kernel.dtype.contains('4') {
            4.0
        } else if s.kernel.dtype.contains("fp8") {
            8.0
        } else {
            16.0
        };
        let expert = 3.0 * s.hidden as f64 * s.inter as f64 / shared * bits / 8.0;
        let local = s.experts as f64 / s.expert_parallel as f64;
        s.distribution == "balanced"
            && s.tokens.iter().zip(&s.latency_ms).any(|(&tokens, &latency)| {
                let rows = (tokens * s.top_k) as f64 / s.expert_parallel as f64;
                // Below two rows an expert the synthetic spread may miss some of them; and weights
                // that stay in the cache between repetitions are read faster than memory.
                let bytes = expert * rows.min(local);
                rows >= 2.0 * local
                    && bytes > CACHE_FREE_BYTES
                    && latency / 1e3 < FASTER_THAN_POSSIBLE * bytes / device.read_bytes_per_s
            })
    };
    let bad: Vec<[usize; 4]> = tables
        .moe
        .iter()
        .filter(|s| impossible(s))
        .map(|s| [s.hidden, s.inter, s.top_k, s.experts])
        .collect();
    tables.moe.retain(|s| {
        let shape = [s.hidden, s.inter, s.top_k, s.experts];
        let drop = bad.contains(&shape);
        if drop {
            *left.entry(shape).or_default() += s.tokens.len();
        }
        !drop
    });
    for ([hidden, inter, top_k, experts], rows) in left {
        tables.left_out.push(LeftOut {
            what: format!("moe {hidden}x{inter}, {experts} experts, top-{top_k}"),
            rows,
            reason: format!("faster than {} can read gated experts of this size", device.name),
        });
    }
}

/// Weights of this size do not fit the last cache of any device here (50 MB on an H100).
const CACHE_FREE_BYTES: f64 = 200e6;

#[cfg(test)]
mod tests {
    use super::*;

    const MOE: &str = "framework,version,device,op_name,kernel_source,moe_dtype,num_tokens,\
hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency\n";

    fn import(files: &[&str]) -> Result<EngineTables> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            (0..files.len()).map(|i| folder.path().join(format!("{i}.csv"))).collect();
        for (path, text) in paths.iter().zip(files) {
            std::fs::write(path, text).unwrap();
        }
        aiconfigurator(&paths, "test")
    }

    fn row(tokens: usize, latency: f64) -> String {
        format!(
            "VLLM,0.24.0,H,moe,triton,bfloat16,{tokens},4096,14336,2,8,1,1,balanced,{latency}\n"
        )
    }

    #[test]
    fn rows_of_one_layer_become_one_series_and_repeated_rows_are_counted() {
        let first = format!("{MOE}{}{}", row(2, 0.5), row(1, 0.25));
        let second = format!("{MOE}{}", row(2, 0.5));
        let tables = import(&[&first, &second]).unwrap();
        assert_eq!((tables.moe.len(), tables.rows()), (1, 2));
        assert_eq!(tables.moe[0].tokens, [1, 2]);
        assert_eq!(tables.moe[0].kernel.engine, "vllm");
        assert_eq!((tables.files[0].repeated, tables.files[1].repeated), (0, 1));
    }

    #[test]
    fn contradictions_mixed_devices_and_unknown_tables_are_refused() {
        let first = format!("{MOE}{}", row(2, 0.5));
        let other = format!("{MOE}{}", row(2, 0.6));
        let error = import(&[&first, &other]).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("0.6"), "{error}");
        let moved = other.replace(",H,", ",G,");
        assert!(import(&[&first, &moved]).unwrap_err().to_string().contains("own file"));
        assert_eq!(import(&["a,b\n1,2\n"]).unwrap_err().exit_code(), 3);
        assert_eq!(import(&[MOE]).unwrap_err().exit_code(), 3);
        let negative = format!("{MOE}{}", row(2, -0.5));
        assert!(import(&[&negative]).unwrap_err().to_string().contains("0.csv:2"));
    }

    /// The folder of recorded tables, or `None` with a loud note.
    fn data() -> Option<std::path::PathBuf> {
        let data = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
        let folder = Path::new(&data).join("aiconfigurator");
        if folder.is_dir() {
            return Some(folder);
        }
        eprintln!("SKIPPED: no {} (set MOE_FRONTIER_DATA)", folder.display());
        None
    }

    #[test]
    fn recorded_tables_import_and_the_two_formats_agree() {
        let Some(folder) = data() else { return };
        let files = [
            "moe_perf_h100_vllm_0.24.0.parquet",
            "moe_bf16_h100.csv",
            "gemm_bf16_h100.csv",
            "attention_bf16_hd128_h100.csv",
            "custom_allreduce_h100_vllm_0.24.0.csv",
            "nccl_h100_2.29.2.csv",
        ]
        .map(|name| folder.join(name));
        let tables = aiconfigurator(&files, "test").unwrap();
        assert_eq!(tables.files[0].rows, 49_862);
        // The CSV's vLLM 0.24 rows stand in the Parquet file bit for bit.
        assert_eq!(tables.files[1].repeated, 2_268);
        assert_eq!(tables.files[2].rows, 8_232);
        let read: usize = tables.files.iter().map(|f| f.rows - f.repeated).sum();
        let left: usize = tables.left_out.iter().map(|l| l.rows).sum();
        assert_eq!(tables.rows() + left, read);
        for left in &tables.left_out {
            println!("left out: {left:?}");
        }
        // One token of a Mixtral layer on one H100 with vLLM 0.24, as printed in the table.
        let series = tables.moe.iter().find(|s| {
            s.kernel.engine == "vllm"
                && s.kernel.version == "0.24.0"
                && s.kernel.dtype == "bfloat16"
                && (s.hidden, s.inter, s.tensor_parallel, s.expert_parallel) == (4096, 14336, 1, 1)
                && s.distribution == "balanced"
        });
        assert!((series.unwrap().latency_ms[0] - 0.259).abs() < 0.001);
    }

    #[test]
    fn damaged_parquet_files_are_refused_without_a_panic() {
        let Some(folder) = data() else { return };
        let bytes = std::fs::read(folder.join("moe_perf_h100_vllm_0.24.0.parquet")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("cut.parquet");
        for keep in [4, 5, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..keep]).unwrap();
            assert_eq!(aiconfigurator(&[&path], "test").unwrap_err().exit_code(), 3, "{keep}");
        }
        // Damage in the footer and in the pages.
        for step in 1..40 {
            let mut damaged = bytes.clone();
            let at = bytes.len() - step * 97;
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = aiconfigurator(&[&path], "test") {
                assert!([3, 4].contains(&error.exit_code()), "{error}");
            }
        }
    }
}
