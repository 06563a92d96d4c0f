//! A made-up profile with a known truth behind it, for tests alone: nothing here was measured.

use super::layer::{Ceilings, LayerQuery};
use super::validate::query_of;
use crate::config::DType;
use crate::record::{
    AaVerdict, Block, Cell, CheckOutcome, CheckRecord, Counts, CpuDevice, Device, IntervalRecord,
    IntervalUnit, Key, LatencyRecord, Op, PROFILE_SCHEMA, PROFILE_VERSION, PROTOCOL_VERSION,
    PercentileRecord, Percentiles, Profile, Provenance, Recipe, RoutingRecord, RunCeilings,
    RunInfo, Status, TimingMode, WorkRecord,
};

/// Rates of the made-up device.
pub(crate) fn ceilings() -> Ceilings {
    Ceilings { read_bytes_per_s: 20e9, gemm_flops_per_s: 200e9, layer_overhead_s: 8e-6 }
}

/// Its true time of a layer: the roofline at a share that dips near the knee, plus 10 us.
pub(crate) fn truth(query: &LayerQuery) -> f64 {
    let rows = query.tokens * query.top_k as f64 / query.active_experts;
    let share = 0.85 - 0.25 * (-(rows.ln() - 2.5).powi(2) / 4.0).exp();
    query.roofline(&ceilings()).0 / share + 10e-6
}

/// Expected distinct experts and rows of the busiest one under uniform routing.
pub(crate) fn uniform(experts: usize, top_k: usize, tokens: usize) -> (f64, f64) {
    let (e, k, m) = (experts as f64, top_k as f64, tokens as f64);
    let active = e * (1.0 - (1.0 - k / e).powf(m));
    let mean = m * k / active;
    (active, (mean * 1.2).min(m).max(mean))
}

/// One cell whose blocks lie within `noise` (relative) around the truth.
pub(crate) fn cell(widths: (usize, usize), experts: usize, tokens: usize, noise: f64) -> Cell {
    let (active_experts, max_rows) = uniform(experts, 1, tokens);
    let mut cell = Cell {
        op: Op::MoeLayer,
        kernel: "synthetic".into(),
        plan: None,
        kernel_sha256: "0".repeat(64),
        timing: TimingMode::Cpu,
        status: Status::Valid,
        flags: vec![],
        hidden: widths.0,
        inter: widths.1,
        experts,
        top_k: 1,
        gated: true,
        tokens,
        dtype: DType::Bf16,
        weight_bits: 16.0,
        routing: RoutingRecord {
            kind: "uniform".into(),
            seed: "0x1".into(),
            realisations: 8,
            active_experts,
            max_rows,
            routing_spread_rel: None,
        },
        latency: LatencyRecord::Absent("not filled yet".into()),
        percentiles: Percentiles {
            p90: PercentileRecord::Withheld("needs 29 samples, has 12".into()),
            p99: PercentileRecord::Withheld("needs 299 samples, has 12".into()),
        },
        blocks: vec![],
        counts: Counts { samples: 12, tukey_mild: 0, tukey_severe: 0 },
        work: WorkRecord { flops: 0.0, bytes_min: 0.0, rows: tokens },
        check: CheckRecord { output: CheckOutcome::Pass, worst_ratio_to_bound: Some(0.2) },
    };
    let query = query_of(&cell);
    cell.work.flops = query.flops();
    cell.work.bytes_min = query.bytes();
    let offsets = [-1.0, -0.6, -0.2, 0.2, 0.6, 1.0];
    let times: Vec<u64> =
        offsets.iter().map(|o| picoseconds(truth(&query) * (1.0 + noise * o))).collect();
    cell.blocks = (1..)
        .zip(&times)
        .map(|(round, &median_ps)| Block {
            round,
            median_ps,
            samples: 2,
            launches_per_sample: 1,
            contended: false,
            sm_clock_mhz: None,
        })
        .collect();
    cell.latency = LatencyRecord::Interval(IntervalRecord {
        median_ps: u64::midpoint(times[2], times[3]),
        lo_ps: times[0],
        hi_ps: times[5],
        confidence: 0.968_75,
        n: 6,
        interval_unit: IntervalUnit::Block,
    });
    cell
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive test value"
)]
fn picoseconds(seconds: f64) -> u64 {
    (seconds * 1e12) as u64
}

/// A profile over the given widths, experts 1, 4, 8, 16, 32 and tokens 1 to 1024.
pub(crate) fn profile(widths: &[(usize, usize)], noise: f64) -> Profile {
    let mut cells = Vec::new();
    for &w in widths {
        for experts in [1, 4, 8, 16, 32] {
            for power in 0..=10 {
                cells.push(cell(w, experts, 1 << power, noise));
            }
        }
    }
    Profile {
        schema: PROFILE_SCHEMA.into(),
        schema_version: PROFILE_VERSION.into(),
        protocol_version: PROTOCOL_VERSION.into(),
        key: Key::new(
            Device::Cpu(CpuDevice {
                name: "made-up processor".into(),
                isa: vec!["avx2".into()],
                threads: 2,
                l2_bytes: Some(1 << 20),
                l3_bytes: Some(32 << 20),
                memory_bytes: 24 << 30,
            }),
            Recipe { data: "made up".into(), protocol_major: 1, seed: "0x1".into() },
        ),
        provenance: Provenance {
            program: "moe-frontier 0.1.0".into(),
            os: "none".into(),
            argv: vec![],
            start_unix_s: 0,
            end_unix_s: 1,
            load_1min: Some(0.1),
            libraries: Vec::new(),
            steal_rel: None,
        },
        run: RunInfo {
            id: "0x2".into(),
            rounds: 6,
            aa_effect_rel: 0.001,
            noise_floor_rel: 0.004,
            aa_verdict: AaVerdict::Clean,
            ceilings: RunCeilings {
                read_bytes_per_s: ceilings().read_bytes_per_s,
                read_best_bytes_per_s: 22e9,
                gemm_flops_per_s: ceilings().gemm_flops_per_s,
                gemm_best_flops_per_s: 220e9,
                gemm_dtype: DType::Bf16,
                gemm_kernel: "made up".into(),
                dispatch_ps: 1_000_000,
            },
            between_runs_rel: None,
            partial: None,
            sweep: None,
        },
        cells,
    }
}
