//! One ranking question for tests and benches: H100 as a roofline, five expert counts.

use moe_frontier::latency::{RooflineModel, Source};
use moe_frontier::plan::inputs::{
    Demand, Lifetime, Limits, Ranges, RankInputs, ServingDevice, Target,
};
use moe_frontier::plan::outcome::ProfileUsed;
use moe_frontier::plan::rank::Provenance;
use moe_frontier::serving::{Lengths, Link, MemoryBudget, ServiceLevel, TrainingPrice};
use moe_frontier::units::{Bytes, Flops, FlopsPerSecond, Seconds, UsdPerHour};

/// H100 as a roofline: 0.8 of 3.35 TB/s, 0.5 of 989 TFLOP/s, 60 us a layer and step.
pub(crate) fn h100() -> RooflineModel {
    RooflineModel::new(3.35e12, 989e12, 0.8, 0.5, 60e-6).expect("valid constants")
}

/// The question behind the table of the ranking's design: equal loss at 1e23 FLOPs, 100 requests/s.
pub(crate) fn inputs() -> RankInputs {
    RankInputs {
        experts: vec![1, 4, 8, 16, 32],
        target: Target::Budget { budget: Flops(1e23), experts: 4 },
        limits: Limits { max_tokens_per_param: 414.0, max_train_factor: 3.5 },
        lengths: Lengths { input: 1000.0, output: 1000.0 },
        prefill_chunk: 2048.0,
        demand: Demand::Rate(100.0),
        level: ServiceLevel { tpot: Some(Seconds::from_ms(20.0)), ttft: None },
        max_serve: None,
        lifetime: Lifetime::Tokens(1e12),
        device: ServingDevice {
            memory: MemoryBudget { device: Bytes(80e9), usable_share: 0.9, reserve: Bytes(3.5e9) },
            price: UsdPerHour(1.69),
            replica_sizes: vec![1, 2, 4, 8],
            link: Link { latency: Seconds(5e-6), bytes_per_s: 200e9 },
        },
        training: TrainingPrice {
            peak: FlopsPerSecond(989e12),
            mfu: 0.4,
            price: UsdPerHour(1.69),
            overhead: 0.0,
        },
        weight_bits: 16.0,
        expert_bits: 16.0,
        kv_group: 1.0,
        ranges: Ranges {
            mfu: (0.3, 0.5),
            price: (0.8, 1.25),
            zipf: 0.5,
            dense_log_sigma: 0.1,
            overhead_log_sigma: 0.2,
            loss_sigma: 0.004,
        },
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
            source: Source::Roofline,
            dtype: "bf16".into(),
            measured_utc: None,
            cells: None,
            noise_floor_rel: None,
            transfer_error_rel: None,
            read_bytes_per_s: 0.8 * 3.35e12,
            gemm_flops_per_s: 0.5 * 989e12,
        },
        law_id: "ludziejewski2025".into(),
        law_source: "arXiv 2502.05172".into(),
        law_uncertainty: "test".into(),
        assumptions: Vec::new(),
        warnings: Vec::new(),
    }
}
