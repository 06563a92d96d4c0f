//! Which measured kernel answers a query: the one place that states the preferences.
//!
//! 1. The engine asked for; without one, [`ENGINES`] in order. Only when it holds nothing of the
//!    operation and number format does the next engine answer, and the answer is then a transfer.
//! 2. Of an engine the newest release that holds the shape; development builds come last.
//! 3. Of the number formats that serve a checkpoint's weights the first that the engine measured at
//!    that shape, see [`weight_formats`].
//! 4. Of several kernels that measured one cell the fastest. Engines switch kernels by size (vLLM's
//!    fp8 GEMM below and above 32 rows), and where a server must choose a backend (TensorRT-LLM's
//!    low-latency and throughput MoE kernels), whoever deploys it takes the faster one: on a B200
//!    the low-latency kernel takes 0.48 of the other's time at 1 to 32 tokens and 0.65 at 16,384 in
//!    the median of nvfp4 layers, but up to 5 times as long for some.

use super::series::Kernel;
use crate::config::DType;

/// Engines in order of preference when none is asked for.
pub const ENGINES: [&str; 3] = ["vllm", "sglang", "trtllm"];

/// Table names of the formats in which servers run weights stored as `weights`, the preferred one
/// first: fp8 checkpoints have blocks of 128 x 128; MXFP4 experts are multiplied in 16 bits on
/// Hopper and in 8 on Blackwell, whose tables hold the latter.
pub fn weight_formats(weights: DType) -> &'static [&'static str] {
    match weights {
        DType::F32 => &[],
        DType::F16 | DType::Bf16 => &["bfloat16"],
        DType::Fp8 => &["fp8_block", "fp8"],
        DType::Int8 => &["sq", "int8_wo"],
        DType::Mxfp4 => &["w4a8_mxfp4_mxfp8", "w4a16_mxfp4"],
        DType::Int4 => &["int4_wo"],
        DType::Nvfp4 => &["nvfp4"],
    }
}

/// Table names of a cache format.
pub fn cache_format(cache: DType) -> Option<&'static str> {
    match cache {
        DType::F16 | DType::Bf16 => Some("bfloat16"),
        DType::Fp8 => Some("fp8"),
        _ => None,
    }
}

/// Arithmetic of attention over a cache, the preferred one first. TensorRT-LLM multiplies an fp8
/// cache in fp8, the others convert it.
pub fn attention_formats(cache: DType, engine: &str) -> &'static [&'static str] {
    match (cache, engine) {
        (DType::Fp8, "trtllm") => &["fp8", "bfloat16"],
        (DType::Fp8, _) => &["bfloat16", "fp8"],
        _ => &["bfloat16"],
    }
}

/// Streaming multiprocessors that DeepEP's throughput kernels are given: its own default.
pub const DEEPEP_SMS: &str = "20 SMs";

/// Place of an engine in the order: 0 is the one asked for.
pub fn engine_rank(engine: &str, asked: Option<&str>) -> usize {
    if asked == Some(engine) {
        return 0;
    }
    1 + ENGINES.iter().position(|e| *e == engine).unwrap_or(ENGINES.len())
}

/// Sorts newest first: releases before development builds, then by the numbers of the version.
pub fn version_order(version: &str) -> impl Ord + use<> {
    let development = version.contains("dev") || version.contains('+');
    let mut numbers = [0u64; 6];
    let parts = version.split(|c: char| !c.is_ascii_digit()).filter(|p| !p.is_empty());
    for (place, part) in numbers.iter_mut().zip(parts) {
        *place = part.parse().unwrap_or(0);
    }
    // A release candidate precedes its release.
    let candidate = version.contains("rc");
    let release: [u64; 3] = [numbers[0], numbers[1], numbers[2]];
    let rest: [u64; 3] = [numbers[3], numbers[4], numbers[5]];
    (development, std::cmp::Reverse((release, !candidate, rest)))
}

/// Kernels in order of preference, each with its rank; equal engine and version share one.
pub(super) fn ranked(kernels: &[Kernel], asked: Option<&str>) -> Vec<u32> {
    let mut order: Vec<usize> = (0..kernels.len()).collect();
    let key = |k: &Kernel| (engine_rank(&k.engine, asked), version_order(&k.version));
    order.sort_by_key(|i| key(&kernels[*i]));
    let mut ranks = vec![0; kernels.len()];
    let (mut rank, mut before) = (0, None);
    for index in order {
        let this = key(&kernels[index]);
        if before.is_some_and(|before| before != this) {
            rank += 1;
        }
        ranks[index] = rank;
        before = Some(this);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_sort_newest_first_and_development_builds_last() {
        let mut versions =
            ["1.3.0rc15", "0.1.dev19262+gb6bbf29dd.d20260727", "1.3.0", "1.3.0rc20", "1.2.9"];
        versions.sort_by_key(|v| version_order(v));
        assert_eq!(
            versions,
            ["1.3.0", "1.3.0rc20", "1.3.0rc15", "1.2.9", "0.1.dev19262+gb6bbf29dd.d20260727"]
        );
    }

    #[test]
    fn the_engine_asked_for_comes_first() {
        assert!(engine_rank("trtllm", Some("trtllm")) < engine_rank("vllm", Some("trtllm")));
        assert!(engine_rank("vllm", None) < engine_rank("sglang", None));
    }
}
