//! The plan that tests of runs share.

use std::time::Duration;

use super::plan::{Machine, Plan, Request};
use super::sampling::BlockRule;
use crate::config::DType;
use crate::record::TimingMode;

/// Top-1 layers of these widths and expert counts, on a made-up machine that has room for them.
pub(super) fn plan(
    widths: &[(usize, usize)],
    experts: &[usize],
    tokens: &[usize],
    rule: BlockRule,
) -> Plan {
    let request = Request {
        widths: widths.to_vec(),
        experts: experts.to_vec(),
        top_k: 1,
        gated: true,
        tokens: Some(tokens.to_vec()),
        dtype: DType::Bf16,
        routing: "uniform".parse().unwrap(),
        seed: 9,
        budget: Duration::from_secs(20),
        rule,
        modes: vec![TimingMode::Cpu],
    };
    let machine = Machine {
        cache_bytes: 1e6,
        available_bytes: 1e9,
        shared_copies: 1,
        own_copies: 0,
        read_bytes_per_s: 1e10,
        gemm_flops_per_s: 1e11,
    };
    Plan::new(request, &machine).unwrap()
}
