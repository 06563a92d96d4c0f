//! Two stored profiles, cell by cell.
//!
//! Runs that took no turns cannot be paired, so the bar is higher than in a live comparison: FASTER
//! or SLOWER only if the two intervals, widened by the larger noise floor, do not overlap and the change
//! of the medians exceeds 1 % and both noise floors; SAME only if both extreme ratios lie inside that
//! bound; else AMBIGUOUS. The widening stands for what changes between two runs and is constant in one:
//! intervals over the blocks of a run do not hold it. A cell compared with itself is SAME.

use serde::Serialize;
use serde_json::Value;

use super::validate::describe;
use crate::record::{
    AaVerdict, Cell, CpuDevice, Device, IntervalRecord, Profile, Status, TimingMode,
};
use crate::stats::paired::{PairedEffect, SMALLEST_EFFECT, Verdict};
use crate::{Error, Result};

/// What two profiles say about each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Always false: the two runs took no turns.
    pub paired: bool,
    /// The device that both were measured on.
    pub device: String,
    /// Changes of at most this are never called a difference: 1 % or the larger noise floor.
    pub bound_rel: f64,
    /// Why no verdict of these runs means anything, if so.
    pub biased: Option<String>,
    /// Cells of both profiles, in the order of the old one.
    pub cells: Vec<CellComparison>,
    /// Cells of the old profile alone.
    pub only_in_old: Vec<String>,
    /// Cells of the new profile alone.
    pub only_in_new: Vec<String>,
}

/// One cell of both profiles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CellComparison {
    /// Experts on the device.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width of one expert.
    pub inter: usize,
    /// Tokens entering the layer.
    pub tokens: usize,
    /// Bits of one stored expert weight, scales included.
    pub weight_bits: f64,
    /// Name of the routing distribution.
    pub routing: String,
    /// How it was timed.
    pub timing: TimingMode,
    /// Kernel of the old profile.
    pub old_kernel: String,
    /// Kernel of the new profile.
    pub new_kernel: String,
    /// Whether both were the same kernel to the byte; then a difference is the machine's.
    pub same_kernel: bool,
    /// Old median in microseconds, when there is one.
    pub old_us: Option<f64>,
    /// New median in microseconds, when there is one.
    pub new_us: Option<f64>,
    /// Change of the median; 0.02 is 2 % slower.
    pub effect_rel: Option<f64>,
    /// The verdict, unless `no_verdict` says why there is none.
    pub verdict: Option<Verdict>,
    /// Why there is no verdict.
    pub no_verdict: Option<String>,
}

impl Comparison {
    /// Cells with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cells.iter().filter(|c| c.verdict == Some(verdict)).count()
    }
}

/// Compares two profiles of one device and one recipe.
///
/// # Errors
/// [`Error::Unfit`] when device or recipe differ, naming the first field that does.
pub fn compare(old: &Profile, new: &Profile) -> Result<Comparison> {
    check_keys(old, new)?;
    let floor = old.run.noise_floor_rel.max(new.run.noise_floor_rel);
    let biased = biased(old, new);
    let between = |profile: &Profile| profile.run.between_runs_rel.unwrap_or(0.0);
    let runs = Runs { floor, is_biased: biased.is_some(), wider: [between(old), between(new)] };
    let mut free: Vec<bool> = vec![true; new.cells.len()];
    let mut cells = Vec::new();
    let mut only_in_old = Vec::new();
    for cell in &old.cells {
        match partner(cell, old, new, &free) {
            Some(index) => {
                free[index] = false;
                let other = &new.cells[index];
                let itself = old.run.id == new.run.id && cell == other;
                cells.push(compare_cells(cell, other, &runs, itself));
            }
            None => only_in_old.push(named(cell)),
        }
    }
    let rest = new.cells.iter().zip(&free).filter(|(_, free)| **free);
    Ok(Comparison {
        paired: false,
        device: old.key.device.name().to_owned(),
        bound_rel: floor.max(SMALLEST_EFFECT),
        biased,
        cells,
        only_in_old,
        only_in_new: rest.map(|(cell, _)| named(cell)).collect(),
    })
}

fn named(cell: &Cell) -> String {
    format!("{} by {}", describe(cell), cell.kernel)
}

fn biased(old: &Profile, new: &Profile) -> Option<String> {
    let which = [("old", old), ("new", new)];
    let names: Vec<&str> = which
        .into_iter()
        .filter(|(_, p)| p.run.aa_verdict == AaVerdict::Biased)
        .map(|(name, _)| name)
        .collect();
    (!names.is_empty()).then(|| {
        format!("one kernel differed from itself in the {} run", names.join(" and in the "))
    })
}

/// The kernel is what is compared; device and recipe must be the same.
fn check_keys(old: &Profile, new: &Profile) -> Result<()> {
    let parts = [
        ("device", to_value(&matched(&old.key.device))?, to_value(&matched(&new.key.device))?),
        ("recipe", to_value(&old.key.recipe)?, to_value(&new.key.recipe)?),
    ];
    for (name, a, b) in &parts {
        if let Some(difference) = difference(name, a, b) {
            return Err(Error::unfit("profiles cannot be compared", difference));
        }
    }
    Ok(())
}

/// The device without what is recorded but never matched.
fn matched(device: &Device) -> Device {
    match device {
        Device::Cpu(cpu) => Device::Cpu(CpuDevice { memory_bytes: 0, ..cpu.clone() }),
        Device::Gpu(gpu) => Device::Gpu(gpu.clone()),
    }
}

fn to_value(part: &impl Serialize) -> Result<Value> {
    serde_json::to_value(part).map_err(|e| Error::unfit("profile key", e.to_string()))
}

/// The first field in which two values differ, as a sentence.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(old), Value::Object(new)) if old.keys().eq(new.keys()) => old
            .iter()
            .find_map(|(key, value)| difference(&format!("{path}.{key}"), value, &new[key])),
        (Value::Object(old), Value::Object(new)) => {
            let kind = |o: &serde_json::Map<String, Value>| {
                o.keys().next().map_or_else(String::new, String::clone)
            };
            Some(format!(
                "{path} is {} in the old profile, {} in the new one",
                kind(old),
                kind(new)
            ))
        }
        _ if a == b => None,
        _ => Some(format!("{path} is {a} in the old profile, {b} in the new one")),
    }
}

/// The same work measured in the same way.
fn same_work(a: &Cell, b: &Cell) -> bool {
    let sizes = |c: &Cell| (c.hidden, c.inter, c.experts, c.top_k, c.tokens);
    let storage = |c: &Cell| (c.gated, c.dtype, c.weight_bits.to_bits());
    let routing =
        |c: &Cell| (c.routing.kind.clone(), c.routing.seed.clone(), c.routing.realisations);
    a.op == b.op
        && a.timing == b.timing
        && sizes(a) == sizes(b)
        && storage(a) == storage(b)
        && routing(a) == routing(b)
}

/// The new cell to compare an old one with: the one by a kernel of the same name, else the only one
/// of the same work on either side.
fn partner(cell: &Cell, old: &Profile, new: &Profile, free: &[bool]) -> Option<usize> {
    let same: Vec<usize> =
        (0..new.cells.len()).filter(|&i| free[i] && same_work(cell, &new.cells[i])).collect();
    let by_name = same.iter().copied().find(|&i| new.cells[i].kernel == cell.kernel);
    by_name.or_else(|| {
        let alone = old.cells.iter().filter(|c| same_work(cell, c)).count() == 1;
        let only = same.first().copied().filter(|_| same.len() == 1);
        only.filter(|_| alone)
    })
}

/// What holds for all cells of two runs.
struct Runs {
    /// The larger noise floor.
    floor: f64,
    /// Whether no verdict means anything.
    is_biased: bool,
    /// By how much the intervals of each are wider than its blocks make them.
    wider: [f64; 2],
}

fn compare_cells(old: &Cell, new: &Cell, runs: &Runs, itself: bool) -> CellComparison {
    let Runs { floor, is_biased, wider: [wider_old, wider_new] } = *runs;
    let (a, b) = (old.latency.interval(), new.latency.interval());
    let us = |i: &IntervalRecord| i.median_ps as f64 * 1e-6;
    // What changes between two runs enters once, by the noise floor below.
    let effect =
        a.zip(b).map(|(a, b)| unpaired_effect(of_blocks(a, wider_old), of_blocks(b, wider_new)));
    let no_verdict = if itself && effect.is_some() {
        None
    } else {
        unfit("old", old).or_else(|| unfit("new", new))
    };
    let verdict = effect.filter(|_| no_verdict.is_none()).map(|effect| match () {
        () if is_biased => Verdict::Ambiguous,
        () if itself => Verdict::Same,
        () => unpaired_verdict(effect, floor),
    });
    CellComparison {
        experts: old.experts,
        top_k: old.top_k,
        hidden: old.hidden,
        inter: old.inter,
        tokens: old.tokens,
        weight_bits: old.weight_bits,
        routing: old.routing.kind.clone(),
        timing: old.timing,
        old_kernel: old.kernel.clone(),
        new_kernel: new.kernel.clone(),
        same_kernel: old.kernel_sha256 == new.kernel_sha256,
        old_us: a.map(us),
        new_us: b.map(us),
        effect_rel: effect.map(|e| e.effect),
        verdict,
        no_verdict,
    }
}

/// The verdict of two runs: a difference must survive a shift of one of them by the noise floor.
fn unpaired_verdict(effect: PairedEffect, floor: f64) -> Verdict {
    let widened = PairedEffect {
        lo: (1.0 + effect.lo) / (1.0 + floor) - 1.0,
        hi: (1.0 + effect.hi) * (1.0 + floor) - 1.0,
        ..effect
    };
    match effect.verdict(floor) {
        Verdict::Same => Verdict::Same,
        _ => match widened.verdict(floor) {
            clear @ (Verdict::Faster | Verdict::Slower) => clear,
            _ => Verdict::Ambiguous,
        },
    }
}

/// The median and the ends of an interval as the blocks of its run alone make them, in picoseconds.
fn of_blocks(interval: &IntervalRecord, between_runs: f64) -> [f64; 3] {
    let [median, lo, hi] = [interval.median_ps, interval.lo_ps, interval.hi_ps].map(|ps| ps as f64);
    [median, lo * (1.0 + between_runs), hi / (1.0 + between_runs)]
}

/// Change of the medians, between the extreme ratios of the two intervals: they exclude zero exactly
/// when the intervals do not overlap.
fn unpaired_effect(a: [f64; 3], b: [f64; 3]) -> PairedEffect {
    let ([median_a, lo_a, hi_a], [median_b, lo_b, hi_b]) = (a, b);
    PairedEffect { effect: median_b / median_a - 1.0, lo: lo_b / hi_a - 1.0, hi: hi_b / lo_a - 1.0 }
}

/// Why a cell carries no verdict. Noisy cells keep their value but are out of verdicts.
fn unfit(which: &str, cell: &Cell) -> Option<String> {
    match (cell.status, cell.latency.interval()) {
        (Status::Valid, Some(_)) => None,
        (status, _) => Some(format!("{which} cell is {}", format!("{status:?}").to_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic;
    use super::*;
    use crate::record::{GpuDevice, Key, LatencyRecord};

    fn profile() -> Profile {
        let mut profile = synthetic::profile(&[(512, 1536)], 0.002);
        profile.cells.truncate(4);
        profile
    }

    /// All times of a cell multiplied.
    fn scale(cell: &mut Cell, by: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive test value"
        )]
        let scaled = |ps: u64| (ps as f64 * by) as u64;
        if let LatencyRecord::Interval(i) = &mut cell.latency {
            (i.median_ps, i.lo_ps, i.hi_ps) =
                (scaled(i.median_ps), scaled(i.lo_ps), scaled(i.hi_ps));
        }
    }

    fn verdict_of(by: f64, width: f64) -> Verdict {
        let (mut old, mut new) = (profile(), profile());
        for p in [&mut old, &mut new] {
            p.cells.truncate(1);
            if let LatencyRecord::Interval(i) = &mut p.cells[0].latency {
                (i.median_ps, i.lo_ps, i.hi_ps) = (100_000_000, 100_000_000, 100_000_000);
                i.lo_ps -= 1_000_000;
                i.hi_ps += 1_000_000;
            }
        }
        if let LatencyRecord::Interval(i) = &mut new.cells[0].latency {
            let half = i.median_ps as f64 * width;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive test value"
            )]
            let at = |v: f64| v as u64;
            let middle = i.median_ps as f64 * by;
            (i.median_ps, i.lo_ps, i.hi_ps) = (at(middle), at(middle - half), at(middle + half));
        }
        new.run.noise_floor_rel = 0.03;
        compare(&old, &new).unwrap().cells[0].verdict.unwrap()
    }

    #[test]
    fn verdicts_follow_intervals_and_the_larger_floor() {
        assert_eq!(verdict_of(1.10, 0.01), Verdict::Slower);
        assert_eq!(verdict_of(0.90, 0.01), Verdict::Faster);
        assert_eq!(verdict_of(1.00, 0.01), Verdict::Same);
        // Apart, but by less than the floor of 3 %.
        assert_eq!(verdict_of(1.025, 0.001), Verdict::Ambiguous);
        // Beyond the floor, but the intervals overlap.
        assert_eq!(verdict_of(1.05, 0.06), Verdict::Ambiguous);
        // Apart beyond the floor, but a shift between the runs by the floor joins them.
        assert_eq!(verdict_of(1.04, 0.001), Verdict::Ambiguous);
        // Equal medians, but an extreme ratio lies outside the bound.
        assert_eq!(verdict_of(1.00, 0.05), Verdict::Ambiguous);
    }

    #[test]
    fn a_profile_is_the_same_as_itself() {
        let comparison = compare(&profile(), &profile()).unwrap();
        assert_eq!(comparison.count(Verdict::Same), 4);
        assert!(!comparison.paired && comparison.cells.iter().all(|c| c.same_kernel));
        assert!(comparison.only_in_old.is_empty() && comparison.only_in_new.is_empty());
    }

    #[test]
    fn noisy_cells_of_one_run_are_the_same_as_themselves() {
        let mut noisy = profile();
        for cell in &mut noisy.cells {
            cell.status = Status::Noisy;
        }
        assert_eq!(compare(&noisy, &noisy).unwrap().count(Verdict::Same), 4);
        let mut again = noisy.clone();
        again.run.id = "0x3".into();
        assert_eq!(compare(&noisy, &again).unwrap().count(Verdict::Same), 0);
    }

    #[test]
    fn the_kernel_may_differ_in_hash_and_name() {
        let (old, mut new) = (profile(), profile());
        for cell in &mut new.cells {
            cell.kernel = "better".into();
            cell.kernel_sha256 = "1".repeat(64);
            scale(cell, 0.8);
        }
        let comparison = compare(&old, &new).unwrap();
        assert_eq!(comparison.count(Verdict::Faster), 4);
        assert!(comparison.cells.iter().all(|c| !c.same_kernel && c.new_kernel == "better"));
    }

    #[test]
    fn two_kernels_of_one_profile_are_matched_by_name_alone() {
        let (mut old, new) = (profile(), profile());
        let mut peer = old.cells[0].clone();
        peer.kernel = "peer".into();
        old.cells.push(peer);
        let comparison = compare(&old, &new).unwrap();
        assert_eq!(comparison.cells.len(), 4);
        assert_eq!(comparison.only_in_old.len(), 1);
        assert!(comparison.only_in_old[0].ends_with("by peer"));
    }

    #[test]
    fn cells_of_one_profile_alone_are_listed() {
        let (mut old, mut new) = (profile(), profile());
        old.cells.remove(0);
        new.cells.remove(3);
        let comparison = compare(&old, &new).unwrap();
        assert_eq!(comparison.cells.len(), 2);
        assert!(comparison.only_in_old[0].contains("tokens 8"));
        assert!(comparison.only_in_new[0].contains("tokens 1"));
    }

    #[test]
    fn another_device_or_recipe_is_refused_by_the_name_of_the_field() {
        type Edit = fn(&mut Profile);
        let threads: Edit = |p| {
            if let Device::Cpu(cpu) = &mut p.key.device {
                cpu.threads = 64;
            }
        };
        let kind: Edit = |p| {
            p.key.device = Device::Gpu(GpuDevice {
                name: "made-up".into(),
                sm: "9.0".into(),
                sm_count: 1,
                memory_bytes: 1,
                l2_bytes: 1,
                driver_cuda: "13.0".into(),
                ecc: None,
                power_limit_mw: None,
            });
        };
        let seed: Edit = |p| p.key.recipe.seed = "0x9".into();
        for (edit, words) in [
            (threads, "device.cpu.threads is 2 in the old profile, 64 in the new one"),
            (kind, "device is cpu in the old profile, gpu in the new one"),
            (seed, "recipe.seed is \"0x1\" in the old profile, \"0x9\" in the new one"),
        ] {
            let mut new = profile();
            edit(&mut new);
            let error = compare(&profile(), &new).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn installed_memory_is_not_matched() {
        let mut new = profile();
        if let Device::Cpu(cpu) = &mut new.key.device {
            cpu.memory_bytes += 4096;
        }
        new.key = Key::new(new.key.device.clone(), new.key.recipe.clone());
        assert!(compare(&profile(), &new).is_ok());
    }

    #[test]
    fn noisy_and_absent_cells_get_no_verdict_and_biased_runs_no_clear_one() {
        let (mut old, mut new) = (profile(), profile());
        old.cells[0].status = Status::Noisy;
        new.cells[1].status = Status::Failed;
        new.cells[1].latency = LatencyRecord::Absent("lost".into());
        let comparison = compare(&old, &new).unwrap();
        assert_eq!(comparison.cells[0].no_verdict.as_deref(), Some("old cell is noisy"));
        assert_eq!(comparison.cells[1].no_verdict.as_deref(), Some("new cell is failed"));
        assert_eq!(comparison.cells[1].new_us, None);
        assert_eq!(comparison.count(Verdict::Same), 2);
        new.run.aa_verdict = AaVerdict::Biased;
        let comparison = compare(&old, &new).unwrap();
        assert_eq!(comparison.count(Verdict::Ambiguous), 2);
        assert!(comparison.biased.unwrap().contains("new run"));
    }
}
