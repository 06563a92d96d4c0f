//! One row of an aiconfigurator table as a cell: which of its tables a file is, by its columns, and
//! what each column means.
//!
//! Latencies are milliseconds (DeepEP's columns microseconds), message sizes elements. Decode
//! tables count the new token apart: context = `step` + 1. DeepEP and the all-to-all of
//! TensorRT-LLM count tokens of one rank, MoE tables tokens over all ranks.

use super::flat_table::{FlatTable, Row};
use super::narrow::whole;
use super::series::{AttentionSizes, ExchangeSizes, Kernel, MoeSizes, Point, Sizes, Table};
use crate::{Error, Result};

/// Devices of one node of the DeepEP tables.
const DEEPEP_NODE: u32 = 8;

/// One measured time and what identifies it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) table: Table,
    pub(super) kernel: Kernel,
    pub(super) sizes: Sizes,
    pub(super) point: Point,
    pub(super) seconds: f64,
}

/// Which of the known tables a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Moe,
    Gemm,
    Attention,
    Mla,
    MlaBlock,
    Absorb,
    AllReduce,
    Nccl,
    DeepEpLowLatency,
    DeepEpNormal,
    TrtllmAllToAll,
}

/// Dialects, the columns that tell them, and the columns that they need besides. The first whose
/// telling columns are all there is taken.
const DIALECTS: [(Dialect, &[&str], &[&str]); 11] = [
    (
        Dialect::Moe,
        &["moe_dtype", "inter_size"],
        &[
            "num_tokens",
            "hidden_size",
            "topk",
            "num_experts",
            "moe_tp_size",
            "moe_ep_size",
            "distribution",
            "latency",
        ],
    ),
    (
        Dialect::TrtllmAllToAll,
        &["moe_dtype", "moe_ep_size"],
        &["op_name", "num_tokens", "hidden_size", "topk", "num_experts", "latency"],
    ),
    (Dialect::Gemm, &["gemm_dtype"], &["m", "n", "k", "latency"]),
    (
        Dialect::Attention,
        &["attn_dtype"],
        &[
            "batch_size",
            "isl",
            "step",
            "num_heads",
            "num_key_value_heads",
            "head_dim",
            "kv_cache_dtype",
            "latency",
        ],
    ),
    (
        Dialect::MlaBlock,
        &["mla_dtype", "gemm_type"],
        &["op_name", "batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency"],
    ),
    (
        Dialect::Mla,
        &["mla_dtype"],
        &["op_name", "batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency"],
    ),
    (Dialect::Absorb, &["bmm_dtype"], &["op_name", "num_tokens", "num_heads", "latency"]),
    (Dialect::AllReduce, &["allreduce_dtype"], &["num_gpus", "message_size", "latency"]),
    (Dialect::Nccl, &["nccl_dtype"], &["op_name", "num_gpus", "message_size", "latency"]),
    (
        Dialect::DeepEpLowLatency,
        &["dispatch_avg_t_us"],
        &["combine_avg_t_us", "node_num", "hidden_size", "num_token", "num_topk", "num_experts"],
    ),
    (
        Dialect::DeepEpNormal,
        &["dispatch_transmit_us"],
        &[
            "dispatch_notify_us",
            "combine_transmit_us",
            "combine_notify_us",
            "dispatch_sms",
            "node_num",
            "hidden_size",
            "num_token",
            "num_topk",
            "num_experts",
        ],
    ),
];

impl Dialect {
    /// Which table a file is.
    ///
    /// # Errors
    /// [`Error::BadFile`] that names the columns which are missing.
    pub(super) fn of(table: &FlatTable) -> Result<Self> {
        let bad = |reason: String| Error::bad_file(table.location(), reason);
        let told = DIALECTS.iter().find(|(_, telling, _)| telling.iter().all(|c| table.has(c)));
        let Some((dialect, _, needed)) = told else {
            let telling: Vec<&str> = DIALECTS.iter().map(|(_, telling, _)| telling[0]).collect();
            let reason = format!("no aiconfigurator table: has none of {}", telling.join(", "));
            return Err(bad(reason));
        };
        let missing: Vec<&str> = needed.iter().copied().filter(|c| !table.has(c)).collect();
        if !missing.is_empty() {
            return Err(bad(format!("columns missing: {}", missing.join(", "))));
        }
        let named = table.has("engine_ver") || (table.has("framework") && table.has("version"));
        if !named {
            return Err(bad("columns missing: framework and version, or engine_ver".into()));
        }
        Ok(*dialect)
    }

    /// A row as a cell.
    ///
    /// # Errors
    /// [`Error::BadFile`] with the row and what is wrong in it.
    pub(super) fn cell(self, row: &Row) -> Result<Cell> {
        let cell = match self {
            Self::Moe => moe(row)?,
            Self::Gemm => gemm(row)?,
            Self::Attention => attention(row)?,
            Self::Mla => mla(row)?,
            Self::MlaBlock => mla_block(row)?,
            Self::Absorb => absorb(row)?,
            Self::AllReduce => all_reduce(row)?,
            Self::Nccl => nccl(row)?,
            Self::DeepEpLowLatency => low_latency(row)?,
            Self::DeepEpNormal => normal(row)?,
            Self::TrtllmAllToAll => trtllm_all_to_all(row)?,
        };
        // Times are kept in 32 bits, where anything shorter would be 0.
        if cell.seconds < 1e-9 {
            return Err(row.bad(format!("a latency of {} s", cell.seconds)));
        }
        Ok(cell)
    }
}

fn size(row: &Row, column: &str) -> Result<u32> {
    let value = row.whole(column)?;
    u32::try_from(value).map_err(|_| row.bad(format!("{value} in `{column}` is too large")))
}

fn positive_size(row: &Row, column: &str) -> Result<u32> {
    match size(row, column)? {
        0 => Err(row.bad(format!("0 in `{column}`"))),
        value => Ok(value),
    }
}

fn milliseconds(row: &Row) -> Result<f64> {
    Ok(row.number("latency")? / 1e3)
}

fn kernel(row: &Row, format: &str, cache: &str) -> Result<Kernel> {
    let (engine, version) = match row.text("engine_ver") {
        Some(both) => both
            .rsplit_once('_')
            .ok_or_else(|| row.bad(format!("`{both}` is no engine and version")))?,
        None => (row.need("framework")?, row.need("version")?),
    };
    Ok(Kernel {
        engine: engine.to_lowercase().replace(['-', '_'], ""),
        version: version.to_owned(),
        source: row.text("kernel_source").unwrap_or("unnamed").to_owned(),
        format: format.to_owned(),
        cache: cache.to_owned(),
    })
}

/// `balanced` is 0, `power_law_1.2` is 1200.
fn skew(row: &Row) -> Result<u32> {
    let name = row.need("distribution")?;
    if name == "balanced" {
        return Ok(0);
    }
    let exponent = name.strip_prefix("power_law_").and_then(|a| a.parse::<f64>().ok());
    match exponent.filter(|a| (0.001..100.0).contains(a)) {
        Some(exponent) => Ok(whole(exponent * 1e3)),
        None => Err(row.bad(format!("unknown distribution `{name}`"))),
    }
}

/// Hidden and intermediate sizes of Nemotron's experts, which have no gate: two matrices. The tables
/// do not say so, except in the names of TensorRT-LLM's kernels.
const UNGATED: [(u32, u32); 5] =
    [(2688, 1856), (1024, 2688), (4096, 2688), (2048, 5120), (8192, 5120)];

fn moe(row: &Row) -> Result<Cell> {
    let mut kernel = kernel(row, row.need("moe_dtype")?, "")?;
    let (hidden, inter) = (positive_size(row, "hidden_size")?, positive_size(row, "inter_size")?);
    // Wide-EP rows count tokens after dispatch over replicated experts: a layer of their own.
    if let Some(slots) = row.text("num_slots") {
        kernel.engine.push_str("-wideep");
        kernel.source = format!("{} {slots} slots", kernel.source);
    }
    let sizes = MoeSizes {
        hidden,
        inter,
        experts: positive_size(row, "num_experts")?,
        top_k: positive_size(row, "topk")?,
        tensor_parallel: positive_size(row, "moe_tp_size")?,
        expert_parallel: positive_size(row, "moe_ep_size")?,
        skew: skew(row)?,
        gated: !(kernel.source.contains("nongated") || UNGATED.contains(&(hidden, inter))),
    };
    Ok(Cell {
        table: Table::Moe,
        kernel,
        sizes: sizes.to_sizes(),
        point: (positive_size(row, "num_tokens")?, 0),
        seconds: milliseconds(row)?,
    })
}

fn gemm(row: &Row) -> Result<Cell> {
    Ok(Cell {
        table: Table::Gemm,
        kernel: kernel(row, row.need("gemm_dtype")?, "")?,
        sizes: [positive_size(row, "n")?, positive_size(row, "k")?, 0, 0, 0, 0, 0, 0],
        point: (positive_size(row, "m")?, 0),
        seconds: milliseconds(row)?,
    })
}

/// Whether a row times prompts or decoding.
fn is_prefill(row: &Row) -> Result<bool> {
    let name = row.text("phase").or_else(|| row.text("op_name")).unwrap_or_default();
    match (name.contains("context"), name.contains("generation")) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        _ => Err(row.bad("neither `phase` nor `op_name` says context or generation")),
    }
}

/// Sequences and context. Prompts that continue a cached prefix (`step` > 0) are another operation.
fn batch(row: &Row, prefill: bool, new_token: u32) -> Result<Point> {
    let sequences = positive_size(row, "batch_size")?;
    let step = size(row, "step")?;
    match prefill {
        true if step > 0 => Err(row.bad(format!("a prompt behind a prefix of {step} tokens"))),
        true => Ok((sequences, positive_size(row, "isl")?)),
        false => Ok((sequences, step + new_token)),
    }
}

fn attention(row: &Row) -> Result<Cell> {
    let prefill = is_prefill(row)?;
    let heads = positive_size(row, "num_heads")?;
    let kv_heads = match size(row, "num_key_value_heads")? {
        0 => heads,
        kv_heads => kv_heads,
    };
    let sizes = AttentionSizes {
        heads,
        kv_heads,
        head_dim: positive_size(row, "head_dim")?,
        window: row.text("window_size").map_or(Ok(0), |_| size(row, "window_size"))?,
    };
    Ok(Cell {
        table: if prefill { Table::PrefillAttention } else { Table::DecodeAttention },
        kernel: kernel(row, row.need("attn_dtype")?, row.need("kv_cache_dtype")?)?,
        sizes: sizes.to_sizes(),
        point: batch(row, prefill, 1)?,
        seconds: milliseconds(row)?,
    })
}

/// `num_heads` is per device; `tp_size` only says of how many heads a model it is the share.
fn mla(row: &Row) -> Result<Cell> {
    let prefill = is_prefill(row)?;
    Ok(Cell {
        table: if prefill { Table::PrefillMla } else { Table::DecodeMla },
        kernel: kernel(row, row.need("mla_dtype")?, row.need("kv_cache_dtype")?)?,
        sizes: [positive_size(row, "num_heads")?, 0, 0, 0, 0, 0, 0, 0],
        point: batch(row, prefill, 1)?,
        seconds: milliseconds(row)?,
    })
}

/// Rows of several checkpoints of DeepSeek-V3's architecture are repetitions of each other. `step`
/// counts the whole context here.
fn mla_block(row: &Row) -> Result<Cell> {
    let prefill = is_prefill(row)?;
    let mut kernel = kernel(row, row.need("gemm_type")?, row.need("kv_cache_dtype")?)?;
    if row.need("mla_dtype")? != "bfloat16" {
        kernel.source = format!("{} {}", kernel.source, row.need("mla_dtype")?);
    }
    Ok(Cell {
        table: if prefill { Table::PrefillMlaBlock } else { Table::DecodeMlaBlock },
        kernel,
        sizes: [positive_size(row, "num_heads")?, 0, 0, 0, 0, 0, 0, 0],
        point: batch(row, prefill, 0)?,
        seconds: milliseconds(row)?,
    })
}

fn absorb(row: &Row) -> Result<Cell> {
    let table = match row.need("op_name")? {
        "mla_gen_pre" => Table::AbsorbKey,
        "mla_gen_post" => Table::AbsorbValue,
        other => return Err(row.bad(format!("unknown operation `{other}`"))),
    };
    Ok(Cell {
        table,
        kernel: kernel(row, row.need("bmm_dtype")?, "")?,
        sizes: [positive_size(row, "num_heads")?, 0, 0, 0, 0, 0, 0, 0],
        point: (positive_size(row, "num_tokens")?, 0),
        seconds: milliseconds(row)?,
    })
}

fn message(row: &Row, format: &str) -> Result<Point> {
    let bytes = match format {
        "half" | "float16" | "bfloat16" => 2,
        "int8" | "fp8" => 1,
        "float" | "float32" => 4,
        _ => return Err(row.bad(format!("unknown element type `{format}`"))),
    };
    let elements = positive_size(row, "message_size")?;
    let bytes = elements.checked_mul(bytes);
    bytes.map(|b| (b, 0)).ok_or_else(|| row.bad("a message of more than 4 GiB"))
}

fn all_reduce(row: &Row) -> Result<Cell> {
    let format = row.need("allreduce_dtype")?;
    let mut kernel = kernel(row, format, "")?;
    if let Some(how) = row.text("backend").or_else(|| row.text("implementation")) {
        how.clone_into(&mut kernel.source);
    }
    Ok(Cell {
        table: Table::AllReduce,
        kernel,
        sizes: [positive_size(row, "num_gpus")?, 0, 0, 0, 0, 0, 0, 0],
        point: message(row, format)?,
        seconds: milliseconds(row)?,
    })
}

/// NCCL's version is its own; the framework column only says who started it.
fn nccl(row: &Row) -> Result<Cell> {
    let table = match row.need("op_name")? {
        "all_reduce" => Table::AllReduce,
        "all_gather" => Table::AllGather,
        "reduce_scatter" => Table::ReduceScatter,
        "alltoall" => Table::AllToAll,
        other => return Err(row.bad(format!("unknown operation `{other}`"))),
    };
    let format = row.need("nccl_dtype")?;
    let kernel = Kernel { engine: "nccl".into(), ..kernel(row, format, "")? };
    Ok(Cell {
        table,
        kernel,
        sizes: [positive_size(row, "num_gpus")?, 0, 0, 0, 0, 0, 0, 0],
        point: message(row, format)?,
        seconds: milliseconds(row)?,
    })
}

fn deepep_sizes(row: &Row) -> Result<Sizes> {
    let nodes = positive_size(row, "node_num")?;
    let sizes = ExchangeSizes {
        ranks: nodes * DEEPEP_NODE,
        nodes,
        hidden: positive_size(row, "hidden_size")?,
        top_k: positive_size(row, "num_topk")?,
        experts: positive_size(row, "num_experts")?,
        part: 0,
    };
    Ok(sizes.to_sizes())
}

/// Sum of some columns in microseconds.
fn microseconds(row: &Row, columns: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for column in columns {
        sum += row.number(column)?;
    }
    Ok(sum / 1e6)
}

/// DeepEP dispatches in fp8 and combines in bf16.
fn low_latency(row: &Row) -> Result<Cell> {
    Ok(Cell {
        table: Table::DecodeExchange,
        kernel: kernel(row, "fp8", "")?,
        sizes: deepep_sizes(row)?,
        point: (positive_size(row, "num_token")?, 0),
        seconds: microseconds(row, &["dispatch_avg_t_us", "combine_avg_t_us"])?,
    })
}

fn normal(row: &Row) -> Result<Cell> {
    let mut kernel = kernel(row, "fp8", "")?;
    kernel.source = format!("{} {} SMs", kernel.source, size(row, "dispatch_sms")?);
    let columns =
        ["dispatch_transmit_us", "dispatch_notify_us", "combine_transmit_us", "combine_notify_us"];
    Ok(Cell {
        table: Table::PrefillExchange,
        kernel,
        sizes: deepep_sizes(row)?,
        point: (positive_size(row, "num_token")?, 0),
        seconds: microseconds(row, &columns)?,
    })
}

/// All ranks of the NVLink domain: one node, however many trays it has.
fn trtllm_all_to_all(row: &Row) -> Result<Cell> {
    let part = match row.need("op_name")? {
        "alltoall_dispatch" => ExchangeSizes::DISPATCH,
        "alltoall_combine" => ExchangeSizes::COMBINE,
        "alltoall_prepare" => ExchangeSizes::PREPARE,
        "alltoall_combine_low_precision" => ExchangeSizes::COMBINE_LOW,
        other => return Err(row.bad(format!("unknown operation `{other}`"))),
    };
    let sizes = ExchangeSizes {
        ranks: positive_size(row, "moe_ep_size")?,
        nodes: 1,
        hidden: positive_size(row, "hidden_size")?,
        top_k: positive_size(row, "topk")?,
        experts: positive_size(row, "num_experts")?,
        part,
    };
    Ok(Cell {
        table: Table::ExchangePart,
        kernel: kernel(row, row.need("moe_dtype")?, "")?,
        sizes: sizes.to_sizes(),
        point: (positive_size(row, "num_tokens")?, 0),
        seconds: milliseconds(row)?,
    })
}
