//! One ranking question for tests and benches: H100 as a roofline of round constants, five expert
//! counts.

#![allow(dead_code, reason = "each test is a crate of its own and uses a part of this file")]

use std::sync::Arc;

use moe_frontier::Result;
use moe_frontier::config::{DType, DeviceSpec};
use moe_frontier::latency::{
    Absent, Answer, Latency, LatencyModel, MlaPart, Operation, Query, Source,
};
use moe_frontier::law::precision::TrainedBits;
use moe_frontier::law::{Scaling, Template};
use moe_frontier::plan::inputs::{
    Demand, Lifetime, Limits, Ranges, RankInputs, ServingDevice, Target,
};
use moe_frontier::plan::mixture::Member;
use moe_frontier::plan::outcome::{ProfileUsed, RankReport};
use moe_frontier::plan::rank::{Provenance, rank};
use moe_frontier::serving::{EngineCosts, Lengths, MemoryBudget, ServiceLevel, TrainingPrice};
use moe_frontier::units::{Bytes, Flops, FlopsPerSecond, Seconds, UsdPerHour};
use moe_frontier::workload::RoutingKind;

/// Read rate: 0.8 of 3.35 TB/s.
pub(crate) const READ: f64 = 0.8 * 3.35e12;
/// Arithmetic: 0.5 of 989 TFLOP/s.
pub(crate) const ARITHMETIC: f64 = 0.5 * 989e12;
/// Fixed time of a layer and step.
pub(crate) const LAYER: f64 = 60e-6;
/// All-reduce: fixed time and rate.
pub(crate) const LINK: (f64, f64) = (5e-6, 200e9);

/// H100 as a roofline of round constants.
#[derive(Clone, Copy)]
pub(crate) struct Sketch;

impl LatencyModel for Sketch {
    fn answer(&self, query: &Query) -> Answer {
        let (bytes, flops) = match query {
            Query::Moe(q) => (q.weight_bytes(), q.flops()),
            Query::Gemm(q) => (q.n as f64 * q.k as f64 * 2.0, q.flops()),
            Query::Attention(q) => (q.bytes(), q.flops()),
            Query::Mla(MlaPart::Core, q) => (q.core_bytes(), q.core_flops()),
            Query::Mla(..) => return Err(Absent::Operation),
            Query::Collective(q) => {
                let value = Seconds(LINK.0 + q.bytes / LINK.1);
                return Ok(Latency { value, source: Source::Roofline, ..Latency::ZERO });
            }
            Query::Exchange(q) => {
                let value = Seconds(2.0 * LINK.0 + q.bytes() / LINK.1);
                return Ok(Latency { value, source: Source::Roofline, ..Latency::ZERO });
            }
        };
        let value = Seconds((bytes / READ).max(flops / ARITHMETIC));
        let arithmetic = if flops / ARITHMETIC > bytes / READ { 1.0 } else { 0.0 };
        let log_sigma = 0.18;
        Ok(Latency { value, log_sigma, arithmetic, source: Source::Roofline, ..Latency::ZERO })
    }

    fn provenance(&self, _: Operation) -> Option<String> {
        Some("round constants".into())
    }
}

/// The question behind the table of the ranking's design: equal loss at 1e23 FLOPs, 100 requests/s.
pub(crate) fn inputs() -> RankInputs {
    RankInputs {
        experts: vec![1, 4, 8, 16, 32],
        target: Target::Budget { budget: Flops(1e23), experts: 4 },
        limits: Limits { max_tokens_per_param: 414.0, max_train_factor: 3.5, unique_tokens: None },
        lengths: Lengths { input: 1000.0, output: 1000.0 },
        demand: Demand { rate: Some(100.0), utilisation: 1.0 },
        level: ServiceLevel { tpot: Some(Seconds::from_ms(20.0)), ttft: None },
        max_serve: None,
        lifetime: Lifetime::Tokens(1e12),
        device: ServingDevice {
            spec: DeviceSpec::load("h100").expect("a preset"),
            memory: MemoryBudget { device: Bytes(80e9), usable_share: 0.9, reserve: Bytes(3.5e9) },
            price: UsdPerHour(1.69),
            replica_sizes: vec![1, 2, 4, 8],
            wide_sizes: Vec::new(),
            costs: EngineCosts::bare(LAYER),
        },
        training: TrainingPrice {
            peak: FlopsPerSecond(989e12),
            mfu: 0.4,
            price: UsdPerHour(1.69),
            overhead: 0.0,
        },
        mfu_by_experts: Vec::new(),
        trained_bits: TrainedBits::FULL,
        rounded_bits: None,
        expert_dtype: DType::Bf16,
        expert_bits: None,
        dense_dtype: DType::Bf16,
        routing: RoutingKind::Uniform,
        template: Arc::new(Template::ludziejewski2025()),
        ranges: Ranges {
            mfu: (0.3, 0.5),
            mfu_log_sigma: 0.1,
            price: (0.8, 1.25),
            zipf: 0.5,
            shared_log_sigma: 0.1,
            own_log_sigma: 0.1,
        },
        downstream: None,
        exits: None,
        draws: 300,
        seed: 1,
    }
}

/// What such a ranking says of its origin.
pub(crate) fn provenance() -> Provenance {
    Provenance {
        profile: ProfileUsed {
            origin: "test".into(),
            device: "H100 roofline".into(),
            engine: "none".into(),
            operations: Vec::new(),
            dtype: "bf16".into(),
            measured_utc: None,
            cells: None,
            noise_floor_rel: None,
            transfer_error_rel: None,
            read_bytes_per_s: READ,
            gemm_flops_per_s: ARITHMETIC,
        },
        law_id: "ludziejewski2025".into(),
        law_source: "arXiv 2502.05172".into(),
        law_uncertainty: "test".into(),
        assumptions: Vec::new(),
        warnings: Vec::new(),
    }
}

/// The answer to a question under a law.
///
/// # Errors
/// As [`rank`].
pub(crate) fn report(law: &Scaling, inputs: &RankInputs) -> Result<RankReport> {
    let sketch = Arc::new(Sketch) as Arc<dyn LatencyModel>;
    let origin = |operation: Operation, _: u8| Sketch.provenance(operation);
    let alone = [Member { law: law.clone(), weight: 1.0 }];
    Ok(rank(&alone, (sketch, &origin), inputs, provenance())?.report)
}
