//! Kernel times of published serving engines, as imported from third-party tables.
//!
//! A series holds everything that identifies a kernel on one shape; its points run along one axis
//! (tokens, rows, batch or message size). Engine and version are part of the identity: the same
//! layer takes up to five times as long in one engine as in another. Files are sealed, versioned and
//! read as strictly as profiles.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{read_capped, write_atomic};
use crate::latency::measured::format::{END, SEAL, at, unseal};
use crate::measure::record::sha256_hex;
use crate::{Error, Result};

/// Value of `schema` in a file of engine tables.
pub const TABLES_SCHEMA: &str = "moe-frontier/engine-tables";
/// Version that is written and read.
pub const TABLES_VERSION: &str = "1.0";

/// Longest file that is read, in bytes.
const CAP: u64 = 256 << 20;

/// The kernel that was timed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Engine in lower case: `vllm`, `sglang`, `trtllm`.
    pub engine: String,
    /// Version of the engine (of NCCL for its collectives).
    pub version: String,
    /// Name that the table gives to the kernel.
    pub name: String,
    /// Number format as the table names it: `bfloat16`, `fp8_block`, `w4a16_mxfp4`.
    pub dtype: String,
}

/// A whole MoE layer (top-k to combine, router product outside) against tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSeries {
    /// What was timed.
    pub kernel: Kernel,
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one whole expert, before tensor parallel division.
    pub inter: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Routed experts over all ranks.
    pub experts: usize,
    /// Ranks that share each expert.
    pub tensor_parallel: usize,
    /// Ranks that the experts are spread over; the busiest one was timed.
    pub expert_parallel: usize,
    /// Synthetic routing: `balanced` is a deterministic even spread.
    pub distribution: String,
    /// Tokens over all expert-parallel ranks, rising.
    pub tokens: Vec<usize>,
    /// Time at each number of tokens, in milliseconds.
    pub latency_ms: Vec<f64>,
}

/// A dense product of an `m x k` activation with a `k x n` weight, against `m`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmSeries {
    /// What was timed.
    pub kernel: Kernel,
    /// Output width.
    pub n: usize,
    /// Inner width.
    pub k: usize,
    /// Rows, rising.
    pub m: Vec<usize>,
    /// Time at each number of rows, in milliseconds.
    pub latency_ms: Vec<f64>,
}

/// What an attention kernel works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Causal attention of whole prompts.
    Context,
    /// One new token per sequence against its cache.
    Generation,
}

/// Attention of one layer against batch, at one context length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSeries {
    /// What was timed.
    pub kernel: Kernel,
    /// Prompts or decoding.
    pub phase: Phase,
    /// Query heads on the device.
    pub heads: usize,
    /// Key/value heads on the device.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Number format of the cache as the table names it.
    pub kv_dtype: String,
    /// Sliding window; 0 is none.
    pub window: usize,
    /// Prompt length (context) or cached tokens with the new one (generation).
    pub context: usize,
    /// Sequences, rising.
    pub batch: Vec<usize>,
    /// Time at each batch, in milliseconds.
    pub latency_ms: Vec<f64>,
}

/// One collective between devices against message size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSeries {
    /// What was timed.
    pub kernel: Kernel,
    /// `all_reduce`, `all_gather`, `reduce_scatter` or `alltoall`.
    pub operation: String,
    /// How it was launched (`vllm_graph`, `vllm_eager`) or `nccl`.
    pub backend: String,
    /// Devices that take part.
    pub devices: usize,
    /// Message size in bytes, rising.
    pub message_bytes: Vec<f64>,
    /// Time at each size, in milliseconds.
    pub latency_ms: Vec<f64>,
}

/// A file that was read into the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportedFile {
    /// File name without its folder.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Rows in it.
    pub rows: usize,
    /// Rows that another file had already brought, with the same value.
    pub repeated: usize,
}

/// Rows that stand in the sources and cannot be true, left out visibly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Which rows.
    pub what: String,
    /// How many.
    pub rows: usize,
    /// Why.
    pub reason: String,
}

/// Kernel times of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineTables {
    /// [`TABLES_SCHEMA`].
    pub schema: String,
    /// [`TABLES_VERSION`].
    pub schema_version: String,
    /// Program that imported them.
    pub program: String,
    /// Device as its driver prints it.
    pub device: String,
    /// Sources.
    pub files: Vec<ImportedFile>,
    /// What was left out of them.
    pub left_out: Vec<LeftOut>,
    /// MoE layers.
    pub moe: Vec<MoeSeries>,
    /// Dense products.
    pub gemm: Vec<GemmSeries>,
    /// Attention.
    pub attention: Vec<AttentionSeries>,
    /// Collectives.
    pub links: Vec<LinkSeries>,
}

impl EngineTables {
    /// Rows of all series.
    pub fn rows(&self) -> usize {
        self.latencies().map(|(_, l)| l.len()).sum()
    }

    /// Axis and latencies of every series.
    fn latencies(&self) -> impl Iterator<Item = (Vec<f64>, &Vec<f64>)> {
        let real = |axis: &[usize]| axis.iter().map(|&v| v as f64).collect::<Vec<f64>>();
        let moe = self.moe.iter().map(move |s| (real(&s.tokens), &s.latency_ms));
        let gemm = self.gemm.iter().map(move |s| (real(&s.m), &s.latency_ms));
        let attention = self.attention.iter().map(move |s| (real(&s.batch), &s.latency_ms));
        let links = self.links.iter().map(|s| (s.message_bytes.clone(), &s.latency_ms));
        moe.chain(gemm).chain(attention).chain(links)
    }

    /// Checks what a well-formed file may still not say.
    ///
    /// # Errors
    /// [`Error::Unfit`] that names the series.
    pub fn validate(&self, location: &str) -> Result<()> {
        let unfit = |what: String| Err(Error::unfit(location, what));
        if self.schema != TABLES_SCHEMA || self.schema_version != TABLES_VERSION {
            return unfit(format!("schema `{}` {}", self.schema, self.schema_version));
        }
        for (index, (axis, latency)) in self.latencies().enumerate() {
            let rising = axis.windows(2).all(|w| w[0] < w[1]) && axis.iter().all(|v| *v > 0.0);
            if axis.is_empty() || axis.len() != latency.len() || !rising {
                return unfit(format!("series {index} does not rise along its axis"));
            }
            if !latency.iter().all(|l| l.is_finite() && *l > 0.0) {
                return unfit(format!("series {index} holds a time that is not above zero"));
            }
        }
        for s in &self.moe {
            let shape = (s.experts, s.top_k, s.inter, s.tensor_parallel, s.expert_parallel);
            let whole = s.hidden > 0
                && s.top_k > 0
                && s.tensor_parallel > 0
                && s.expert_parallel > 0
                && s.top_k <= s.experts
                && s.inter.is_multiple_of(s.tensor_parallel)
                && s.experts.is_multiple_of(s.expert_parallel);
            if !whole {
                return unfit(format!(
                    "no MoE layer has {shape:?} (experts, top-k, width, TP, EP)"
                ));
            }
        }
        for s in &self.attention {
            if s.kv_heads == 0 || s.head_dim == 0 || s.context == 0 || s.heads < s.kv_heads {
                return unfit(format!("{} heads cannot share {}", s.heads, s.kv_heads));
            }
        }
        if self.gemm.iter().any(|s| s.n == 0 || s.k == 0)
            || self.links.iter().any(|s| s.devices < 2)
        {
            return unfit("a product without width or a collective of one device".into());
        }
        Ok(())
    }
}

/// Whether the bytes claim to be a file of engine tables.
pub fn is_tables(bytes: &[u8]) -> bool {
    schema_of(bytes).as_deref() == Some(TABLES_SCHEMA)
}

fn schema_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    serde_json::from_slice::<Header>(bytes).ok().map(|h| h.schema)
}

/// Reads a file of engine tables.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is not what [`write()`] produces,
/// [`Error::Unfit`] when it is well-formed but cannot be true.
pub fn read(path: &Path) -> Result<EngineTables> {
    let tables = from_bytes(path, &read_capped(path, CAP)?)?;
    tables.validate(&path.display().to_string())?;
    Ok(tables)
}

/// Writes a file of engine tables as one step.
///
/// # Errors
/// [`Error::Unfit`] when they cannot be true, [`Error::Io`] when the file cannot be written or
/// exists and `force` is not set.
pub fn write(path: &Path, tables: &EngineTables, force: bool) -> Result<()> {
    tables.validate(&path.display().to_string())?;
    write_atomic(path, &to_bytes(tables)?, force)
}

/// The sealed document.
///
/// # Errors
/// [`Error::Unfit`] when it cannot be written.
pub fn to_bytes(tables: &EngineTables) -> Result<Vec<u8>> {
    let unfit = |reason: String| Error::unfit("engine tables", reason);
    let body = serde_json::to_string_pretty(tables).map_err(|e| unfit(e.to_string()))?;
    let body = body.strip_suffix("\n}").ok_or_else(|| unfit("no JSON object".into()))?;
    Ok(format!("{body}{SEAL}{}{END}", sha256_hex(body)).into_bytes())
}

/// Parses the bytes of a file of engine tables; `path` is for messages only.
///
/// # Errors
/// [`Error::BadFile`] with line and column.
pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<EngineTables> {
    let bytes: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\r').collect();
    if bytes.is_empty() {
        return Err(Error::bad_file(path, "empty"));
    }
    match schema_of(&bytes) {
        Some(schema) if schema != TABLES_SCHEMA => {
            let reason = format!("not engine tables ({TABLES_SCHEMA}): schema is `{schema}`");
            return Err(Error::bad_file(path, reason));
        }
        _ => {}
    }
    let body = unseal(path, &bytes)?;
    let tables: EngineTables = serde_json::from_slice(&body).map_err(|e| at(path, &e))?;
    if tables.schema_version != TABLES_VERSION {
        let found = &tables.schema_version;
        let reason = format!("written as version {found}; this program reads {TABLES_VERSION}");
        return Err(Error::bad_file(path, reason));
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        Kernel {
            engine: "vllm".into(),
            version: "0.24.0".into(),
            name: "triton".into(),
            dtype: "bfloat16".into(),
        }
    }

    fn small() -> EngineTables {
        EngineTables {
            schema: TABLES_SCHEMA.into(),
            schema_version: TABLES_VERSION.into(),
            program: "moe-frontier".into(),
            device: "NVIDIA H100 80GB HBM3".into(),
            files: Vec::new(),
            left_out: Vec::new(),
            moe: vec![MoeSeries {
                kernel: kernel(),
                hidden: 4096,
                inter: 14336,
                top_k: 2,
                experts: 8,
                tensor_parallel: 1,
                expert_parallel: 1,
                distribution: "balanced".into(),
                tokens: vec![1, 2],
                latency_ms: vec![0.259, 0.573],
            }],
            gemm: Vec::new(),
            attention: Vec::new(),
            links: Vec::new(),
        }
    }

    #[test]
    fn tables_are_read_back_exactly_and_every_cut_is_refused() {
        let bytes = to_bytes(&small()).unwrap();
        assert!(is_tables(&bytes));
        assert_eq!(from_bytes(Path::new("t"), &bytes).unwrap(), small());
        for end in 0..bytes.len() {
            assert_eq!(from_bytes(Path::new("t"), &bytes[..end]).unwrap_err().exit_code(), 3);
        }
    }

    #[test]
    fn an_edited_number_is_noticed() {
        let text = String::from_utf8(to_bytes(&small()).unwrap()).unwrap();
        let error = from_bytes(Path::new("t"), text.replace("0.259", "0.159").as_bytes());
        assert!(error.unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn what_cannot_be_true_is_refused() {
        let broken: [fn(&mut EngineTables); 5] = [
            |t| t.moe[0].latency_ms[0] = 0.0,
            |t| t.moe[0].tokens = vec![2, 1],
            |t| t.moe[0].top_k = 9,
            |t| t.moe[0].expert_parallel = 3,
            |t| t.schema_version = "2.0".into(),
        ];
        for edit in broken {
            let mut tables = small();
            edit(&mut tables);
            assert_eq!(tables.validate("t").unwrap_err().exit_code(), 4);
        }
    }
}
