//! A profile as the table that `measure` prints.

use crate::error::shown;
use crate::latency::Ceilings;
use crate::latency::measured::validate::query_of;
use crate::record::{Cell, Profile};
use crate::units::Seconds;

/// The profile as a table.
pub(super) fn text(profile: &Profile) -> String {
    let run = &profile.run;
    let c = &run.ceilings;
    let ceilings = Ceilings {
        read_bytes_per_s: c.read_bytes_per_s,
        gemm_flops_per_s: c.gemm_flops_per_s,
        layer_overhead_s: 0.0,
    };
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    // Long reasons wrap within their column.
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic).set_width(100);
    table.set_header([
        "hidden",
        "inter",
        "experts",
        "top-k",
        "tokens",
        "mode",
        "time",
        "95 % interval",
        "GFLOP/s",
        "GB/s",
        "share",
        "status",
    ]);
    for cell in &profile.cells {
        table.add_row(row(cell, &ceilings));
    }
    format!(
        "{} ({} threads), MoE layer\nceilings: read {:.1} GB/s, {} {:.0} GFLOP/s; noise floor {:.1} % ({:?}); {} rounds\n\n{table}\n\nshare: of the roofline under these ceilings\n",
        shown(profile.key.device.name()),
        match &profile.key.device {
            crate::record::Device::Cpu(cpu) => cpu.threads,
            crate::record::Device::Gpu(_) => 1,
        },
        c.read_bytes_per_s / 1e9,
        shown(&c.gemm_kernel),
        c.gemm_flops_per_s / 1e9,
        100.0 * run.noise_floor_rel,
        run.aa_verdict,
        run.rounds,
    )
}

fn row(cell: &Cell, ceilings: &Ceilings) -> Vec<String> {
    let mut row: Vec<String> = [cell.hidden, cell.inter, cell.experts, cell.top_k, cell.tokens]
        .iter()
        .map(ToString::to_string)
        .collect();
    row.push(cell.timing.label().to_owned());
    let flags: Vec<String> = cell.flags.iter().map(|f| format!("{f:?}").to_lowercase()).collect();
    let status = [vec![format!("{:?}", cell.status).to_lowercase()], flags].concat().join(", ");
    if let Some(interval) = cell.latency.interval() {
        let seconds = |ps: u64| Seconds(ps as f64 * 1e-12);
        let time = seconds(interval.median_ps);
        row.extend([
            time.to_string(),
            format!("{} .. {}", seconds(interval.lo_ps), seconds(interval.hi_ps)),
            format!("{:.1}", cell.work.flops / time.0 / 1e9),
            format!("{:.1}", cell.work.bytes_min / time.0 / 1e9),
            format!("{:.2}", query_of(cell).roofline(ceilings) / time),
            status,
        ]);
    } else {
        let reason = match &cell.latency {
            crate::record::LatencyRecord::Absent(reason) => shown(reason),
            crate::record::LatencyRecord::Interval(_) => String::new(),
        };
        row.extend(["-".into(), reason, "-".into(), "-".into(), "-".into(), status]);
    }
    row
}
