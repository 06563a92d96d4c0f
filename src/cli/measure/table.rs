//! A profile as the text that `measure` prints: throughput by expert count first, cells after it.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::error::shown;
use crate::latency::Ceilings;
use crate::latency::measured::validate::query_of;
use crate::record::{Cell, Device, LatencyRecord, Profile, Status};
use crate::report::grid::{Column, grid, hanging};
use crate::units::{Seconds, count};

/// Token counts beside each other; of more, the first, the last and some between.
const TOKEN_COLUMNS: usize = 6;

/// Throughput by expert count, the ceilings and what is doubtful; every cell with `details`.
pub(in crate::cli) fn text(profile: &Profile, width: usize, details: bool) -> String {
    let run = &profile.run;
    let c = &run.ceilings;
    let mut text = hanging("", &headline(profile), width) + "\n";
    text += &throughput(&profile.cells, width);
    let threads = match &profile.key.device {
        Device::Cpu(cpu) => format!(" ({} threads)", cpu.threads),
        Device::Gpu(_) => String::new(),
    };
    let ceilings = format!(
        "{}{threads}; ceilings: read {:.1} GB/s, {} {:.0} GFLOP/s; noise floor {:.1} % ({:?}); {} rounds",
        shown(profile.key.device.name()),
        c.read_bytes_per_s / 1e9,
        shown(&c.gemm_kernel),
        c.gemm_flops_per_s / 1e9,
        100.0 * run.noise_floor_rel,
        run.aa_verdict,
        run.rounds,
    );
    text += &hanging("\n", &ceilings, width);
    let missing = profile.cells.iter().filter(|c| c.latency.interval().is_none()).count();
    if missing > 0 && !details {
        text += &hanging(
            "",
            &format!("{missing} cells have no time; --details has the reasons"),
            width,
        );
    }
    if details {
        let ceilings = Ceilings {
            read_bytes_per_s: c.read_bytes_per_s,
            gemm_flops_per_s: c.gemm_flops_per_s,
            layer_overhead_s: 0.0,
        };
        let _ = write!(text, "\n{}", cells(&profile.cells, &ceilings, width));
    }
    text
}

/// Tokens per second of a cell.
fn rate(cell: &Cell) -> Option<f64> {
    let interval = cell.latency.interval()?;
    Some(cell.tokens as f64 / (interval.median_ps as f64 * 1e-12))
}

/// The fastest expert count at the largest batch, and what the slowest keeps of it.
fn headline(profile: &Profile) -> String {
    let first = profile.cells.iter().filter(|c| rate(c).is_some());
    let Some(most) = first.map(|c| c.tokens).max() else {
        return "one MoE layer: no cell has a time".into();
    };
    let rates = || {
        let there = profile.cells.iter().filter(|c| c.tokens == most);
        there.filter_map(|c| Some((c, rate(c)?)))
    };
    let fastest = rates().max_by(|a, b| a.1.total_cmp(&b.1));
    let slowest = rates().min_by(|a, b| a.1.total_cmp(&b.1));
    match (fastest, slowest) {
        (Some((a, fast)), Some((b, slow))) if a.experts != b.experts => format!(
            "one MoE layer at {most} tokens: {} tokens/s with {} experts, {:.0}% of it with {}",
            count(fast),
            a.experts,
            100.0 * slow / fast,
            b.experts
        ),
        (Some((a, fast)), _) => {
            format!(
                "one MoE layer at {most} tokens: {} tokens/s with {} experts",
                count(fast),
                a.experts
            )
        }
        _ => "one MoE layer: no cell has a time".into(),
    }
}

/// Tokens per second: a row for each expert count of each shape and mode, a column for each token count.
fn throughput(cells: &[Cell], width: usize) -> String {
    let key = |c: &Cell| (c.hidden, c.inter, c.top_k, c.timing.label(), c.experts);
    let rows: BTreeSet<_> = cells.iter().map(key).collect();
    let tokens = chosen(&cells.iter().map(|c| c.tokens).collect());
    let many = |of: fn(&Cell) -> String| cells.iter().map(of).collect::<BTreeSet<_>>().len() > 1;
    let shapes = many(|c| format!("{} x {}", c.hidden, c.inter));
    let visits = many(|c| c.top_k.to_string());
    let modes = many(|c| c.timing.label().to_owned());
    let mut columns = Vec::new();
    columns.extend(shapes.then(|| Column::numbers("hidden x inter")));
    columns.extend(visits.then(|| Column::numbers("top-k")));
    columns.extend(modes.then(|| Column::words("mode")));
    columns.push(Column::numbers("experts"));
    for (at, tokens) in tokens.iter().enumerate() {
        let column = Column::numbers(format!("tokens/s\nat {tokens}"));
        // Both ends stay longest.
        let order = at.min(TOKEN_COLUMNS - 1);
        columns.push(if at == 0 {
            column
        } else {
            column.left_out(u8::try_from(order).unwrap_or(9))
        });
    }
    let row = |key_of: &(usize, usize, usize, &str, usize)| {
        let (hidden, inter, top_k, mode, experts) = *key_of;
        let mut row = Vec::new();
        row.extend(shapes.then(|| format!("{hidden} x {inter}")));
        row.extend(visits.then(|| top_k.to_string()));
        row.extend(modes.then(|| mode.to_owned()));
        row.push(experts.to_string());
        row.extend(tokens.iter().map(|&t| {
            let cell = cells.iter().find(|c| key(c) == *key_of && c.tokens == t);
            cell.and_then(|c| Some((c, rate(c)?))).map_or_else(
                || "-".into(),
                |(c, rate)| {
                    let mark = if c.status == Status::Noisy { "~" } else { "" };
                    format!("{}{mark}", count(rate))
                },
            )
        }));
        row
    };
    let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
    let mut text = grid(&columns, &rows, width);
    if rows.iter().flatten().any(|cell| cell.ends_with('~')) {
        text +=
            &hanging("", "~ noisy: its interval is wider than 3 %, or other programs ran", width);
    }
    text
}

/// At most [`TOKEN_COLUMNS`] of the token counts, both ends among them.
fn chosen(all: &BTreeSet<usize>) -> Vec<usize> {
    let all: Vec<usize> = all.iter().copied().collect();
    let last = all.len().saturating_sub(1);
    if all.len() <= TOKEN_COLUMNS {
        return all;
    }
    (0..TOKEN_COLUMNS).map(|i| all[i * last / (TOKEN_COLUMNS - 1)]).collect()
}

/// Every cell with its time and its share of the roofline.
fn cells(cells: &[Cell], ceilings: &Ceilings, width: usize) -> String {
    let rows: Vec<Vec<String>> = cells.iter().map(|cell| row(cell, ceilings)).collect();
    let columns = [
        Column::numbers("hidden").left_out(4),
        Column::numbers("inter").left_out(5),
        Column::numbers("experts"),
        Column::numbers("top-k").left_out(6),
        Column::numbers("tokens"),
        Column::words("mode").left_out(7),
        Column::numbers("time"),
        Column::words("95 % interval").left_out(3),
        Column::numbers("GFLOP/s").left_out(2),
        Column::numbers("GB/s").left_out(1),
        Column::numbers("share"),
        Column::words("status"),
    ];
    grid(&columns, &rows, width) + "share: of the roofline under these ceilings\n"
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
            LatencyRecord::Absent(reason) => format!("{status}: {}", shown(reason)),
            LatencyRecord::Interval(_) => status,
        };
        row.extend(["-", "-", "-", "-", "-"].map(String::from));
        row.push(reason);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::measured::synthetic;

    #[test]
    fn throughput_by_expert_count_comes_first() {
        let profile = synthetic::profile(&[(512, 1536)], 0.002);
        let short = text(&profile, 80, false);
        insta::assert_snapshot!(short);
        assert!(!short.contains("share: of the roofline"));
        let details = text(&profile, 80, true);
        assert!(details.contains("share: of the roofline"), "{details}");
    }

    #[test]
    fn of_many_token_counts_both_ends_are_kept() {
        assert_eq!(chosen(&(1..=26).collect()), [1, 6, 11, 16, 21, 26]);
        assert_eq!(chosen(&[4, 8].into()), [4, 8]);
    }
}
