//! What a well-formed profile may still not say: sums that do not add up, intervals without the
//! blocks they need, speeds beyond the device's own ceilings.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::layer::LayerQuery;
use crate::bounds::Quantity;
use crate::config::DeviceSpec;
use crate::record::{
    AaVerdict, Cell, CheckOutcome, IntervalRecord, PROTOCOL_VERSION, Profile, RunCeilings, Status,
};
use crate::stats::interval::{MIN_BLOCKS, median_interval};
use crate::{Error, Result};

/// Largest size or count that a cell may name; beyond it index arithmetic is no longer meant.
const MAX_COUNT: usize = 1 << 31;
/// Most cells of a profile.
const MAX_CELLS: usize = 1 << 17;
/// A ceiling above this multiple of a device's published peak was not measured on that device.
const REFUSED_OVER_PEAK: f64 = 1.5;
/// Above this one it is doubtful: clocks were raised, or caches were read.
const DOUBTED_OVER_PEAK: f64 = 1.05;

/// Checks everything that can be checked without the device. `what` names the profile in messages.
///
/// # Errors
/// [`Error::Unfit`] with the first thing that cannot be true.
pub fn validate(what: &str, profile: &Profile) -> Result<()> {
    let unfit = |reason: String| Error::unfit(what, reason);
    check_head(profile).map_err(unfit)?;
    check_provenance(profile).map_err(unfit)?;
    check_ceilings(&profile.run.ceilings).map_err(unfit)?;
    check_peaks(profile).map_err(unfit)?;
    check(profile.cells.len() <= MAX_CELLS, || format!("more than {MAX_CELLS} cells"))
        .map_err(unfit)?;
    let between_runs = profile.run.between_runs_rel.unwrap_or(0.0);
    let mut seen = HashSet::new();
    for cell in &profile.cells {
        let named = |reason: String| unfit(format!("{}: {reason}", describe(cell)));
        check_sizes(cell).map_err(named)?;
        check_value(cell, between_runs).map_err(named)?;
        if matches!(cell.status, Status::Valid | Status::Noisy) {
            cell.check_physics(&profile.run.ceilings).map_err(named)?;
        }
        if !seen.insert(cell_key(cell)) {
            return Err(named("stands in the file twice".into()));
        }
    }
    Ok(())
}

/// The cell as messages name it.
pub fn describe(cell: &Cell) -> String {
    format!(
        "cell hidden {} inter {} experts {} top_k {} tokens {} {:?} {} {}",
        cell.hidden,
        cell.inter,
        cell.experts,
        cell.top_k,
        cell.tokens,
        cell.dtype,
        cell.routing.kind,
        cell.timing.label()
    )
}

/// The question that a cell answers.
pub fn query_of(cell: &Cell) -> LayerQuery {
    LayerQuery {
        hidden: cell.hidden,
        inter: cell.inter,
        experts: cell.experts,
        top_k: cell.top_k,
        gated: cell.gated,
        weight_bits: cell.weight_bits,
        tokens: cell.tokens as f64,
        active_experts: cell.routing.active_experts,
        max_rows: cell.routing.max_rows,
    }
}

fn cell_key(cell: &Cell) -> String {
    format!("{} {:?} {} {}", describe(cell), cell.op, cell.kernel, cell.gated)
}

type Checked = Result<(), String>;

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn check_head(profile: &Profile) -> Checked {
    check(profile.protocol_version == PROTOCOL_VERSION, || {
        format!(
            "measured under protocol {}, this program's is {PROTOCOL_VERSION}: measure again",
            profile.protocol_version
        )
    })?;
    let key = &profile.key;
    check(key.device_sha256 == key.device.sha256(), || "device hash and device differ".into())?;
    check(key.recipe_sha256 == key.recipe.sha256(), || "recipe hash and recipe differ".into())?;
    check(key.device.memory_bytes() > 0, || "the device has no memory".into())?;
    let run = &profile.run;
    check(run.aa_effect_rel.is_finite() && run.noise_floor_rel >= 0.0, || {
        "the noise floor is not a number of zero or more".into()
    })?;
    check(run.between_runs_rel.is_none_or(|share| (0.0..=1.0).contains(&share)), || {
        "what changes between runs is not a share".into()
    })?;
    check(run.aa_verdict == AaVerdict::Clean || run.noise_floor_rel > 0.0, || {
        "a biased run has a noise floor".into()
    })
}

fn check_provenance(profile: &Profile) -> Checked {
    let (provenance, run) = (&profile.provenance, &profile.run);
    let (start, end) = (provenance.start_unix_s, provenance.end_unix_s);
    Quantity::UnixSeconds.check(end as f64)?;
    check(start <= end, || format!("ended at {end}, before it began at {start}"))?;
    for (quantity, value) in [
        (Quantity::LoadAverage, provenance.load_1min),
        (Quantity::Share, provenance.steal_rel),
        (Quantity::RelativeError, Some(run.noise_floor_rel)),
        (Quantity::RelativeError, Some(run.aa_effect_rel.abs())),
        (Quantity::Rounds, Some(f64::from(run.rounds))),
        (Quantity::MemoryBytes, Some(profile.key.device.memory_bytes() as f64)),
    ] {
        value.map_or(Ok(()), |value| quantity.check(value))?;
    }
    Ok(())
}

/// Compares the ceilings with the published peaks of a device that is known.
fn check_peaks(profile: &Profile) -> Checked {
    above_peaks(profile, REFUSED_OVER_PEAK, "far above").into_iter().next().map_or(Ok(()), Err)
}

/// What a reader of a valid profile should know: ceilings somewhat above the published peaks of its device.
pub fn doubts(profile: &Profile) -> Vec<String> {
    above_peaks(profile, DOUBTED_OVER_PEAK, "above")
}

/// Ceilings above a multiple of the published peaks of a device that is known.
fn above_peaks(profile: &Profile, factor: f64, how: &str) -> Vec<String> {
    let Some(spec) = DeviceSpec::of_driver_name(profile.key.device.name()) else { return vec![] };
    let ceilings = &profile.run.ceilings;
    let peak = spec.peak(ceilings.gemm_dtype).unwrap_or(f64::INFINITY);
    let rates = [
        ("read bandwidth", ceilings.read_best_bytes_per_s, spec.read_bytes_per_s),
        ("GEMM rate", ceilings.gemm_best_flops_per_s, peak),
    ];
    // Not `>`: what is not a number is above everything.
    let above = rates.into_iter().filter(|(_, measured, published)| {
        !matches!(
            measured.partial_cmp(&(factor * published)),
            Some(Ordering::Less | Ordering::Equal)
        )
    });
    above
        .map(|(what, measured, published)| {
            format!("{what}: {measured:e} is {how} the {published:e} of a {}", spec.name)
        })
        .collect()
}

fn check_ceilings(ceilings: &RunCeilings) -> Checked {
    let pairs = [
        ("read bandwidth", ceilings.read_bytes_per_s, ceilings.read_best_bytes_per_s),
        ("GEMM rate", ceilings.gemm_flops_per_s, ceilings.gemm_best_flops_per_s),
    ];
    for (name, usual, best) in pairs {
        check(usual.is_finite() && usual > 0.0 && best.is_finite() && best >= usual, || {
            format!("{name}: {usual} (best {best}) is not a measured rate")
        })?;
        let quantity =
            if name == "GEMM rate" { Quantity::FlopsPerSecond } else { Quantity::BytesPerSecond };
        quantity.check(usual).and_then(|()| quantity.check(best))?;
    }
    Ok(())
}

fn check_sizes(cell: &Cell) -> Checked {
    let sizes = [cell.hidden, cell.inter, cell.experts, cell.top_k, cell.tokens];
    check(sizes.iter().all(|n| (1..=MAX_COUNT).contains(n)), || {
        format!("a size lies outside 1 to {MAX_COUNT}")
    })?;
    check(cell.top_k <= cell.experts, || "top_k exceeds the experts".into())?;
    check(cell.weight_bits > 0.0 && cell.weight_bits <= 64.0, || {
        format!("{} bits a weight", cell.weight_bits)
    })?;
    let rows = cell.tokens.checked_mul(cell.top_k).ok_or("tokens x top_k overflows")?;
    check(cell.work.rows == rows, || format!("{} rows are not tokens x top_k", cell.work.rows))?;
    check_routing(cell, rows as f64)?;
    let query = query_of(cell);
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
    check(close(cell.work.flops, query.flops()), || "FLOPs do not follow from the sizes".into())?;
    check(close(cell.work.bytes_min, query.bytes()), || "bytes do not follow from the sizes".into())
}

fn check_routing(cell: &Cell, rows: f64) -> Checked {
    let (active, max_rows) = (cell.routing.active_experts, cell.routing.max_rows);
    let most = rows.min(cell.experts as f64);
    check(active >= cell.top_k as f64 && active <= most, || {
        format!("{active} active experts for {rows} rows over {} experts", cell.experts)
    })?;
    // The mean over draws of max x active is at least rows; a little slack for the product of means.
    let least = rows / cell.experts as f64;
    check(max_rows >= least && max_rows <= cell.tokens as f64, || {
        format!("the busiest expert cannot have {max_rows} of {rows} rows")
    })
}

fn check_value(cell: &Cell, between_runs: f64) -> Checked {
    let samples = cell.blocks.iter().try_fold(0_usize, |sum, b| sum.checked_add(b.samples));
    check(samples == Some(cell.counts.samples), || "samples do not add up over the blocks".into())?;
    check(cell.blocks.iter().all(|b| b.median_ps > 0 && b.samples > 0), || {
        "a block without duration or samples".into()
    })?;
    check(cell.blocks.windows(2).all(|b| b[0].round < b[1].round), || {
        "two blocks of one round, or rounds out of order".into()
    })?;
    check_percentiles(cell)?;
    match (cell.status, cell.latency.interval()) {
        (Status::Valid | Status::Noisy, Some(interval)) => {
            check(cell.check.output == CheckOutcome::Pass, || "its output was not checked".into())?;
            check_interval(cell, interval, between_runs)
        }
        (Status::Valid | Status::Noisy, None) => Err("no value for a finished cell".into()),
        (Status::Incomplete | Status::Throttled | Status::Failed | Status::Refused, None) => Ok(()),
        (status, Some(_)) => Err(format!("a value for a cell that is {status:?}")),
    }
}

fn check_percentiles(cell: &Cell) -> Checked {
    use crate::record::PercentileRecord::ValuePs;
    match (&cell.percentiles.p90, &cell.percentiles.p99) {
        (ValuePs(p90), ValuePs(p99)) if p90 > p99 => {
            Err(format!("its 90th percentile {p90} ps exceeds its 99th {p99} ps"))
        }
        _ => Ok(()),
    }
}

fn check_interval(cell: &Cell, interval: &IntervalRecord, between_runs: f64) -> Checked {
    Quantity::Confidence.check(interval.confidence)?;
    for ps in [interval.lo_ps, interval.median_ps, interval.hi_ps] {
        Quantity::LatencySeconds.check(ps as f64 * 1e-12)?;
    }
    check(interval.lo_ps <= interval.median_ps && interval.median_ps <= interval.hi_ps, || {
        "the median lies outside its interval".into()
    })?;
    check(interval.n == cell.blocks.len() && interval.n >= MIN_BLOCKS, || {
        format!("{} blocks carry no 95 % interval (at least {MIN_BLOCKS})", cell.blocks.len())
    })?;
    let medians: Vec<f64> = cell.blocks.iter().map(|b| b.median_ps as f64).collect();
    let again = median_interval(&medians).ok_or("no interval follows from the blocks")?;
    let again = again.widened(between_runs);
    let near = |stored: u64, computed: f64| (stored as f64 - computed).abs() <= 1.0;
    check(
        near(interval.median_ps, again.median)
            && near(interval.lo_ps, again.lo)
            && near(interval.hi_ps, again.hi),
        || "the interval does not follow from the blocks".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::synthetic;
    use super::*;
    use crate::record::{Flag, LatencyRecord};

    fn good() -> Profile {
        let mut profile = synthetic::profile(&[(512, 1536)], 0.01);
        profile.cells.truncate(3);
        profile
    }

    #[test]
    fn a_sound_profile_passes() {
        validate("profile", &synthetic::profile(&[(512, 1536), (1024, 3072)], 0.01)).unwrap();
    }

    #[test]
    fn each_thing_that_cannot_be_true_is_refused() {
        type Edit = fn(&mut Profile);
        let edits: Vec<(&str, Edit)> = vec![
            ("protocol", |p| p.protocol_version = "2.0".into()),
            ("device hash", |p| p.key.device_sha256 = "0".repeat(64)),
            ("recipe hash", |p| p.key.recipe.seed = "0x7".into()),
            ("noise floor", |p| p.run.noise_floor_rel = -0.1),
            ("relative error", |p| p.run.noise_floor_rel = 1e9),
            ("between runs", |p| p.run.between_runs_rel = Some(f64::NAN)),
            ("follow from the blocks", |p| p.run.between_runs_rel = Some(0.02)),
            ("bandwidth", |p| p.run.ceilings.read_best_bytes_per_s = 1e300),
            ("FLOP/s: 1e300", |p| p.run.ceilings.gemm_best_flops_per_s = 1e300),
            ("before it began", |p| p.provenance.start_unix_s = p.provenance.end_unix_s + 1),
            ("share", |p| p.provenance.steal_rel = Some(7.0)),
            ("rounds", |p| p.run.rounds = 4_000_000_000),
            ("of one round", |p| p.cells[0].blocks[1].round = p.cells[0].blocks[0].round),
            ("confidence", |p| {
                if let LatencyRecord::Interval(interval) = &mut p.cells[0].latency {
                    interval.confidence = 7.0;
                }
            }),
            ("percentile", |p| {
                use crate::record::PercentileRecord::ValuePs;
                p.cells[0].percentiles.p90 = ValuePs(9);
                p.cells[0].percentiles.p99 = ValuePs(8);
            }),
            ("read bandwidth", |p| p.run.ceilings.read_bytes_per_s = 0.0),
            ("GEMM rate", |p| p.run.ceilings.gemm_best_flops_per_s = 1.0),
            ("outside", |p| p.cells[0].hidden = 0),
            ("top_k exceeds", |p| p.cells[0].top_k = 2),
            ("bits", |p| p.cells[0].weight_bits = 0.0),
            ("rows", |p| p.cells[2].work.rows = 5),
            ("active experts", |p| p.cells[2].routing.active_experts = 3.0),
            ("busiest", |p| p.cells[2].routing.max_rows = 9.0),
            ("FLOPs", |p| p.cells[0].work.flops *= 2.0),
            ("bytes do not", |p| p.cells[0].work.bytes_min *= 2.0),
            ("samples", |p| p.cells[0].counts.samples = 1),
            ("without duration", |p| p.cells[0].blocks[1].median_ps = 0),
            ("output", |p| p.cells[0].check.output = CheckOutcome::NotRun),
            ("follow from the blocks", |p| p.cells[0].blocks[0].median_ps = 1),
            ("no value", |p| p.cells[0].latency = LatencyRecord::Absent("lost".into())),
            ("a value for", |p| p.cells[0].status = Status::Failed),
            ("twice", |p| p.cells[1] = p.cells[0].clone()),
        ];
        for (word, edit) in edits {
            let mut profile = good();
            edit(&mut profile);
            let error = validate("profile", &profile).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn ceilings_far_above_the_published_peaks_are_not_of_that_device() {
        use crate::record::{Device, GpuDevice, Key};
        let with_read = |read: f64| {
            let mut profile = good();
            let device = Device::Gpu(GpuDevice {
                name: "NVIDIA H100 80GB HBM3".into(),
                sm: "9.0".into(),
                sm_count: 132,
                memory_bytes: 85_520_809_984,
                l2_bytes: 52_428_800,
                driver_cuda: "13.0".into(),
                ecc: None,
                power_limit_mw: None,
            });
            profile.key = Key::new(device, profile.key.recipe.clone());
            profile.run.ceilings.read_best_bytes_per_s = read;
            (validate("profile", &profile), doubts(&profile))
        };
        let (accepted, none) = with_read(3.4e12);
        accepted.unwrap();
        assert!(none.is_empty(), "{none:?}");
        let (accepted, doubted) = with_read(3.6e12);
        accepted.unwrap();
        assert!(doubted[0].contains("3.6e12 is above the 3.35e12"), "{doubted:?}");
        assert!(with_read(6e12).0.unwrap_err().to_string().contains("far above"));
    }

    #[test]
    fn fewer_than_six_blocks_carry_no_value() {
        let mut profile = good();
        let cell = &mut profile.cells[0];
        cell.blocks.pop();
        cell.counts.samples -= 2;
        assert!(validate("profile", &profile).unwrap_err().to_string().contains("5 blocks"));
    }

    #[test]
    fn a_speed_beyond_the_ceilings_is_refused_unless_the_cache_explains_it() {
        let mut profile = good();
        profile.run.ceilings.read_bytes_per_s = 1e9;
        profile.run.ceilings.read_best_bytes_per_s = 1.1e9;
        assert!(validate("profile", &profile).unwrap_err().to_string().contains("bytes/s"));
        for cell in &mut profile.cells {
            cell.flags.push(Flag::CacheResident);
        }
        validate("profile", &profile).unwrap();
        profile.run.ceilings.gemm_flops_per_s = 1e6;
        profile.run.ceilings.gemm_best_flops_per_s = 1e6;
        assert!(validate("profile", &profile).unwrap_err().to_string().contains("FLOP/s"));
    }
}
