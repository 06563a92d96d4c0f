//! What a group of ranks leaves behind: times of expert exchange and of collectives between them.
//!
//! One sample is the time of the slowest rank in an iteration that all began together; the fastest rank's
//! stands beside it, which leaves out who came late. Durations are whole picoseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Device;
use crate::config::DType;

/// Name that a file of a group declares.
pub const GROUP_SCHEMA: &str = "moe-frontier/group";
/// Version of its format.
pub const GROUP_VERSION: &str = "1.0";

/// What a group measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRecord {
    /// Always [`GROUP_SCHEMA`].
    pub schema: String,
    /// `major.minor` of the file format.
    pub schema_version: String,
    /// `major.minor` of the measuring protocol.
    pub protocol_version: String,
    /// Program name and version.
    pub program: String,
    /// Arguments without the program's path.
    pub argv: Vec<String>,
    /// What the ranks talk by: `mpi`, `nccl`.
    pub group: String,
    /// Its library, with its version.
    pub library: String,
    /// Where the bytes of an exchange lie: `host`, `device`.
    pub buffers: String,
    /// The device of every rank; they are of one kind.
    pub device: Device,
    /// Host of each rank.
    pub hosts: Vec<String>,
    /// Different hosts.
    pub nodes: usize,
    /// Threads of each rank's kernels.
    pub threads: usize,
    /// SHA-256 of the program's file, the same on every rank.
    pub binary_sha256: String,
    /// SHA-256 of the kernels, the same on every rank.
    pub kernel_sha256: String,
    /// Variables that steer the library, as they were set on rank 0.
    pub variables: BTreeMap<String, String>,
    /// Seconds since 1970-01-01 UTC at the start.
    pub start_unix_s: u64,
    /// The same at the end.
    pub end_unix_s: u64,
    /// Exchanges of MoE layers.
    pub exchanges: Vec<ExchangeRecord>,
    /// Collectives.
    pub collectives: Vec<CollectiveRecord>,
    /// Why cells are missing. Absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// One MoE layer over all ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExchangeRecord {
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Experts of the layer, over all ranks.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens that enter on each rank.
    pub tokens_per_rank: usize,
    /// Storage of the expert weights.
    pub dtype: DType,
    /// How tokens choose experts.
    pub routing: String,
    /// Seed of data and routing, as a hexadecimal string.
    pub seed: String,
    /// `token_expert` or `token_rank`: how often a row is sent.
    pub copies: String,
    /// Bits of a value on its way.
    pub wire_bits: u32,
    /// Rows that experts of the busiest rank have over the mean.
    pub busiest_over_mean: f64,
    /// Rows that all ranks send in one dispatch, to themselves included.
    pub rows_sent: usize,
    /// Of them, those that stay on their rank.
    pub rows_own: usize,
    /// Bytes of those rows in one dispatch and in one combine, own share included, of a rank on average.
    pub logical_bytes_per_rank: f64,
    /// Those bytes over the time of a pair, twice, in GB/s: both ways.
    pub logical_gb_per_s: f64,
    /// Tokens to their experts, with the counts that go before.
    pub dispatch: GroupTiming,
    /// The experts on their rows.
    pub expert: GroupTiming,
    /// Results back, and their sums.
    pub combine: GroupTiming,
    /// A dispatch and a combine without experts, many in a row: what decoding steps see.
    pub pair: GroupTiming,
    /// Everything from input to output.
    pub layer: GroupTiming,
    /// Largest deviation of checked outputs from the reference over what rounding explains.
    pub worst_ratio_to_bound: f64,
}

/// One collective at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectiveRecord {
    /// Which.
    pub kind: Collective,
    /// Size as nccl-tests counts it: the buffer of an all-reduce, else the larger of both buffers.
    pub bytes: usize,
    /// Time of one.
    pub time: GroupTiming,
    /// `bytes` over the time, in GB/s (10^9).
    pub algbw_gb_per_s: f64,
    /// That times [`Collective::bus_factor`]: what a link carries.
    pub busbw_gb_per_s: f64,
}

/// A collective that is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Sum over all, result on all.
    AllReduce,
    /// Every rank sends every rank its share.
    AllToAll,
    /// Concatenation of all on all.
    AllGather,
    /// Sum over all, one share each.
    ReduceScatter,
}

impl Collective {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::AllReduce, Self::AllToAll, Self::AllGather, Self::ReduceScatter];

    /// Its name in flags and files.
    pub const fn label(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllToAll => "all_to_all",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
        }
    }

    /// Bytes that a link carries, over those of the message (nccl-tests, `doc/PERFORMANCE.md`): 2 (n - 1) / n of
    /// an all-reduce, (n - 1) / n of the others.
    ///
    /// ```
    /// use moe_frontier::record::group::Collective;
    /// assert_eq!(Collective::AllReduce.bus_factor(8), 1.75);
    /// assert_eq!(Collective::AllGather.bus_factor(8), 0.875);
    /// ```
    pub fn bus_factor(self, ranks: usize) -> f64 {
        let away = (ranks as f64 - 1.0) / ranks as f64;
        if self == Self::AllReduce { 2.0 * away } else { away }
    }
}

/// A duration over a group: the median over blocks of the slowest rank's times, with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupTiming {
    /// Median of the block medians.
    pub median_ps: u64,
    /// Lower end of the 95 % interval.
    pub lo_ps: u64,
    /// Upper end.
    pub hi_ps: u64,
    /// Median of the fastest rank's times.
    pub fastest_rank_ps: u64,
    /// Iterations over all blocks.
    pub samples: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_bandwidths_follow_nccl_tests() {
        // The buffer of one second: what its documentation derives for n ranks.
        for n in [2, 4, 8, 72] {
            let f = n as f64;
            assert!((Collective::AllReduce.bus_factor(n) - 2.0 * (f - 1.0) / f).abs() < 1e-15);
            for other in [Collective::AllToAll, Collective::AllGather, Collective::ReduceScatter] {
                assert!((other.bus_factor(n) - (f - 1.0) / f).abs() < 1e-15);
            }
        }
        assert!(Collective::AllReduce.bus_factor(1).abs() < 1e-15);
    }
}
