//! The profiles of a sweep's shards as one.
//!
//! What was measured alike and belongs to one plan is put together; anything else is refused with what
//! differs. The order of the profiles changes nothing. Values from several hosts have intervals that are at
//! least as wide as the hosts' anchors lie apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::record::{
    AaVerdict, AnchorRange, Cell, CellKey, Device, LatencyRecord, Profile, Provenance, RunCeilings,
    Status, Sweep, SweepHost,
};
use crate::stats::interval::{median, median_interval};
use crate::{Error, Result};

/// What a merge must find.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// SHA-256 of the plan's file.
    pub plan_sha256: String,
    /// The plan's cells, in its order; the anchors are the first.
    pub cells: Vec<CellKey>,
    /// How many are anchors: every profile has them, so that two values of one are no surprise.
    pub anchors: usize,
}

/// One profile of the sweep, with the name that messages call it by.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its file.
    pub name: String,
    /// What it holds.
    pub profile: Profile,
}

/// What the shards come to.
#[derive(Clone, Debug)]
pub struct Merged {
    /// All cells, in the order of the plan.
    pub profile: Profile,
    /// Cells of the plan that no profile has.
    pub missing: Vec<CellKey>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Puts the profiles of a plan's shards together.
///
/// # Errors
/// [`Error::Unfit`] when there are none, when they were not measured alike or by one plan, or when the hosts'
/// anchors lie so far apart that these are not machines of one kind.
pub fn merge(mut shares: Vec<Share>, wanted: &Wanted) -> Result<Merged> {
    // Who is compared with whom must not depend on the order either.
    shares.sort_by(|a, b| a.name.cmp(&b.name));
    check_alike(&shares, wanted)?;
    let sweep = sweep_of(&shares, wanted)?;
    let own = |share: &Share| share.profile.run.between_runs_rel.unwrap_or(0.0);
    let between_runs = shares.iter().map(own).fold(sweep.hosts_spread_rel, f64::max);
    let (ceilings, aa) = (ceilings_of(&shares), aa_of(&shares));
    let provenance = provenance_of(&shares)?;
    let rounds = shares.iter().map(|s| s.profile.run.rounds).max().unwrap_or(0);
    let mut notes = Vec::new();
    if sweep.hosts_spread_rel > 0.0 {
        notes.push(format!(
            "the anchors of {} hosts lie up to {:.1} % apart; intervals are at least as wide",
            sweep.hosts.len(),
            100.0 * sweep.hosts_spread_rel
        ));
    }
    for share in shares.iter().filter(|s| s.profile.run.aa_verdict == AaVerdict::Biased) {
        notes.push(format!("{}: its comparisons of a kernel with itself are biased", share.name));
    }
    let device = shares
        .iter()
        .map(|s| s.profile.key.device.clone())
        .min_by_key(Device::memory_bytes)
        .ok_or_else(nothing)?;
    let mut profile = None;
    let mut values = Values::new(wanted, between_runs, &mut notes);
    for share in shares {
        let rest = values.take(share);
        profile = profile.or(Some(rest));
    }
    let (cells, missing) = values.finish();
    let mut profile = profile.ok_or_else(nothing)?;
    profile.key.device = device;
    profile.provenance = provenance;
    profile.cells = cells;
    let run = &mut profile.run;
    (run.aa_effect_rel, run.noise_floor_rel, run.aa_verdict) = aa;
    run.rounds = rounds;
    run.ceilings = ceilings;
    run.between_runs_rel = Some(between_runs);
    run.sweep = Some(sweep);
    run.partial = (!missing.is_empty()).then(|| {
        format!("{} of {} cells of the plan are missing", missing.len(), wanted.cells.len())
    });
    Ok(Merged { profile, missing, notes })
}

fn nothing() -> Error {
    Error::unfit("merge", "there is no profile to merge")
}

/// Refuses profiles that were not measured alike, and names what differs.
fn check_alike(shares: &[Share], wanted: &Wanted) -> Result<()> {
    let first = shares.first().ok_or_else(nothing)?;
    let mut differing = BTreeSet::new();
    for share in shares {
        let Some(sweep) = &share.profile.run.sweep else {
            let reason = "it was measured without --plan, so that its plan is not known";
            return Err(Error::unfit(&share.name, reason));
        };
        if sweep.plan_sha256 != wanted.plan_sha256 {
            differing.insert(format!(
                "plan `{}` of {}, `{}` of the folder",
                short(&sweep.plan_sha256),
                share.name,
                short(&wanted.plan_sha256)
            ));
        }
        let (a, b) = (identity(first), identity(share));
        for (what, ours) in &a {
            let theirs = b.get(what);
            if theirs != Some(ours) {
                let theirs = theirs.map_or("nothing", String::as_str);
                differing.insert(format!(
                    "{what} `{ours}` in {}, `{theirs}` in {}",
                    first.name, share.name
                ));
            }
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = differing.into_iter().collect();
    Err(Error::unfit("merge", format!("measured otherwise: {}", all.join("; "))))
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// What profiles must have in common, by name.
fn identity(share: &Share) -> BTreeMap<String, String> {
    let Profile { schema_version, protocol_version, key, run, cells, .. } = &share.profile;
    let mut all = BTreeMap::from([
        ("schema version".to_owned(), schema_version.clone()),
        ("protocol".to_owned(), protocol_version.clone()),
        ("dense kernel".to_owned(), run.ceilings.gemm_kernel.clone()),
        ("number format of the dense kernel".to_owned(), format!("{:?}", run.ceilings.gemm_dtype)),
        ("run".to_owned(), run.id.clone()),
    ]);
    add_fields("recipe", &key.recipe, &mut all);
    add_fields("device", &key.device, &mut all);
    // Recorded and not matched.
    all.remove("device.cpu.memory_bytes");
    let kernels: BTreeSet<&str> = cells.iter().map(|c| c.kernel_sha256.as_str()).collect();
    all.insert("kernels".into(), kernels.into_iter().collect::<Vec<_>>().join(" "));
    if let Some(cell) = cells.first() {
        all.insert("number format".into(), format!("{:?}", cell.dtype));
        all.insert("routing".into(), cell.routing.kind.clone());
    }
    all
}

/// The fields of a record, by their path.
fn add_fields<T: Serialize>(name: &str, record: &T, all: &mut BTreeMap<String, String>) {
    fn add(path: String, value: &Value, all: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    add(format!("{path}.{name}"), value, all);
                }
            }
            Value::String(text) => drop(all.insert(path, text.clone())),
            other => drop(all.insert(path, other.to_string())),
        }
    }
    // Plain records always are values.
    if let Ok(value) = serde_json::to_value(record) {
        add(name.to_owned(), &value, all);
    }
}

/// The hosts of all profiles and how far they lie apart.
fn sweep_of(shares: &[Share], wanted: &Wanted) -> Result<Sweep> {
    let mut hosts: BTreeMap<&str, BTreeMap<usize, (u64, u64)>> = BTreeMap::new();
    for host in shares.iter().filter_map(|s| s.profile.run.sweep.as_ref()).flat_map(|s| &s.hosts) {
        let anchors = hosts.entry(&host.name).or_default();
        for &AnchorRange { cell, lo_ps, hi_ps } in &host.anchors {
            let (lo, hi) = anchors.entry(cell).or_insert((lo_ps, hi_ps));
            (*lo, *hi) = ((*lo).min(lo_ps), (*hi).max(hi_ps));
        }
    }
    let middle = |(lo, hi): (u64, u64)| (lo as f64).sqrt() * (hi as f64).sqrt();
    let mut spread = 0.0_f64;
    for anchor in 0..wanted.anchors {
        let seen = hosts.values().filter_map(|anchors| anchors.get(&anchor).copied().map(middle));
        let (least, most) =
            seen.fold((f64::INFINITY, 0.0_f64), |(lo, hi), m| (lo.min(m), hi.max(m)));
        // A host alone is a rounding error apart from itself.
        if hosts.len() > 1 && least < most {
            spread = spread.max(most / least - 1.0);
        }
    }
    if spread > 1.0 {
        let names: Vec<&str> = hosts.keys().copied().collect();
        return Err(Error::unfit(
            "merge",
            format!(
                "the anchors of these hosts lie a factor of {:.1} apart, so that they are not machines \
                 of one kind or something else ran on one: {}",
                1.0 + spread,
                names.join(", ")
            ),
        ));
    }
    let hosts = hosts.into_iter().map(|(name, anchors)| SweepHost {
        name: name.to_owned(),
        anchors: anchors
            .into_iter()
            .map(|(cell, (lo_ps, hi_ps))| AnchorRange { cell, lo_ps, hi_ps })
            .collect(),
    });
    Ok(Sweep {
        plan_sha256: wanted.plan_sha256.clone(),
        hosts: hosts.collect(),
        hosts_spread_rel: spread,
    })
}

/// The usual rates are medians over the profiles, the best ones the best of all.
fn ceilings_of(shares: &[Share]) -> RunCeilings {
    let all = || shares.iter().map(|s| &s.profile.run.ceilings);
    let usual = |of: fn(&RunCeilings) -> f64| median(&all().map(of).collect::<Vec<_>>());
    let best = |of: fn(&RunCeilings) -> f64| all().map(of).fold(0.0, f64::max);
    let mut ceilings = shares[0].profile.run.ceilings.clone();
    ceilings.read_bytes_per_s = usual(|c| c.read_bytes_per_s).unwrap_or(ceilings.read_bytes_per_s);
    ceilings.gemm_flops_per_s = usual(|c| c.gemm_flops_per_s).unwrap_or(ceilings.gemm_flops_per_s);
    ceilings.read_best_bytes_per_s = best(|c| c.read_best_bytes_per_s);
    ceilings.gemm_best_flops_per_s = best(|c| c.gemm_best_flops_per_s);
    let mut dispatch: Vec<u64> = all().map(|c| c.dispatch_ps).collect();
    dispatch.sort_unstable();
    ceilings.dispatch_ps = dispatch[dispatch.len() / 2];
    ceilings
}

/// The largest effect, the highest floor, and the worst verdict.
fn aa_of(shares: &[Share]) -> (f64, f64, AaVerdict) {
    let runs = || shares.iter().map(|s| &s.profile.run);
    let effect = runs().map(|r| r.aa_effect_rel).reduce(|a, b| {
        // Of two as large the positive one.
        if (b.abs(), b) > (a.abs(), a) { b } else { a }
    });
    let floor = runs().map(|r| r.noise_floor_rel).fold(0.0, f64::max);
    let is_biased = runs().any(|r| r.aa_verdict == AaVerdict::Biased);
    let verdict = if is_biased { AaVerdict::Biased } else { AaVerdict::Clean };
    (effect.unwrap_or(0.0), floor, verdict)
}

/// From the first start to the last end; what differs is listed.
fn provenance_of(shares: &[Share]) -> Result<Provenance> {
    let all = || shares.iter().map(|s| &s.profile.provenance);
    let listed = |of: fn(&Provenance) -> &str| {
        all().map(of).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("; ")
    };
    let most = |of: fn(&Provenance) -> Option<f64>| all().filter_map(of).reduce(f64::max);
    let first = all().min_by_key(|p| (p.start_unix_s, &p.argv)).ok_or_else(nothing)?;
    Ok(Provenance {
        program: listed(|p| &p.program),
        os: listed(|p| &p.os),
        argv: first.argv.clone(),
        start_unix_s: first.start_unix_s,
        end_unix_s: all().map(|p| p.end_unix_s).max().unwrap_or(first.end_unix_s),
        load_1min: most(|p| p.load_1min),
        steal_rel: most(|p| p.steal_rel),
        libraries: all()
            .flat_map(|p| p.libraries.iter().cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
    })
}

/// The best value of each cell.
struct Values<'a> {
    wanted: &'a Wanted,
    places: HashMap<CellKey, usize>,
    cells: Vec<Option<(Cell, f64)>>,
    between_runs: f64,
    notes: &'a mut Vec<String>,
}

impl<'a> Values<'a> {
    fn new(wanted: &'a Wanted, between_runs: f64, notes: &'a mut Vec<String>) -> Self {
        let places = wanted.cells.iter().enumerate().map(|(i, key)| (*key, i)).collect();
        Self { wanted, places, cells: vec![None; wanted.cells.len()], between_runs, notes }
    }

    /// Takes the cells out of a profile.
    fn take(&mut self, share: Share) -> Profile {
        let Share { name, mut profile } = share;
        let own = profile.run.between_runs_rel.unwrap_or(0.0);
        for cell in std::mem::take(&mut profile.cells) {
            // What was not finished is not there.
            if cell.status == Status::Incomplete {
                continue;
            }
            let key = cell.key();
            let Some(&place) = self.places.get(&key) else {
                self.notes.push(format!("{name}: {key} is not in the plan and was left out"));
                continue;
            };
            let slot = &mut self.cells[place];
            let Some((before, before_own)) = slot else {
                *slot = Some((cell, own));
                continue;
            };
            if *before == cell && before_own.total_cmp(&own).is_eq() {
                continue;
            }
            if place >= self.wanted.anchors {
                let (a, b) = (shown(before), shown(&cell));
                let (a, b) = if a <= b { (a, b) } else { (b, a) };
                self.notes.push(format!("{key}: {a} and {b}; the narrower is kept"));
            }
            if order(&cell) < order(before) {
                *slot = Some((cell, own));
            }
        }
        profile
    }

    /// The cells in the order of the plan, with their intervals, and what is missing.
    fn finish(self) -> (Vec<Cell>, Vec<CellKey>) {
        let Self { wanted, cells, between_runs, notes, .. } = self;
        notes.sort();
        let missing = cells.iter().zip(&wanted.cells).filter(|(cell, _)| cell.is_none());
        let missing = missing.map(|(_, key)| *key).collect();
        let cells = cells.into_par_iter().flatten().map(|(mut cell, own)| {
            if own.total_cmp(&between_runs).is_ne() {
                widen(&mut cell, between_runs);
            }
            cell
        });
        (cells.collect(), missing)
    }
}

/// The narrower of two values comes first; of two as wide the one whose text does.
fn order(cell: &Cell) -> (u64, String) {
    let width = cell.latency.interval().map_or(f64::INFINITY, |i| {
        (i.hi_ps as f64 - i.lo_ps as f64) / (i.median_ps as f64).max(1.0)
    });
    // Bits of floats that are not negative are ordered as they are.
    (width.to_bits(), serde_json::to_string(cell).unwrap_or_default())
}

fn shown(cell: &Cell) -> String {
    match &cell.latency {
        LatencyRecord::Interval(i) => {
            let us = |ps: u64| ps as f64 * 1e-6;
            format!("{:.3} us ({:.3} to {:.3})", us(i.median_ps), us(i.lo_ps), us(i.hi_ps))
        }
        LatencyRecord::Absent(why) => format!("no value ({why})"),
    }
}

/// The interval that follows from the blocks, wider by `between_runs`.
fn widen(cell: &mut Cell, between_runs: f64) {
    let medians: Vec<f64> = cell.blocks.iter().map(|b| b.median_ps as f64).collect();
    let LatencyRecord::Interval(interval) = &mut cell.latency else { return };
    let Some(again) = median_interval(&medians).map(|i| i.widened(between_runs)) else { return };
    (interval.lo_ps, interval.hi_ps) = (whole(again.lo), whole(again.hi));
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "durations are positive and far below 2^63 ps (106 days); the cast saturates"
)]
fn whole(ps: f64) -> u64 {
    ps.round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::{synthetic, validate};
    use super::*;
    use crate::record::{CpuDevice, Key};

    const PLAN: &str = "00112233445566778899aabbccddeeff";

    fn profile(host: &str) -> Profile {
        let mut profile = synthetic::profile(&[(512, 1536)], 0.01);
        profile.cells.truncate(6);
        let anchors = profile.cells[..2].iter().enumerate().map(|(cell, c)| {
            let ps = c.latency.interval().unwrap().median_ps;
            AnchorRange { cell, lo_ps: ps, hi_ps: ps }
        });
        profile.run.sweep = Some(Sweep {
            plan_sha256: PLAN.into(),
            hosts: vec![SweepHost { name: host.into(), anchors: anchors.collect() }],
            hosts_spread_rel: 0.0,
        });
        profile
    }

    fn wanted() -> Wanted {
        let cells = profile("a").cells.iter().map(Cell::key).collect();
        Wanted { plan_sha256: PLAN.into(), cells, anchors: 2 }
    }

    fn shares(profiles: Vec<Profile>) -> Vec<Share> {
        let named = |(i, profile)| Share { name: format!("s{i}"), profile };
        profiles.into_iter().enumerate().map(named).collect()
    }

    /// A cell that took `factor` times as long.
    fn slower(cell: &mut Cell, factor: f64) {
        let scaled = |ps: u64| whole(ps as f64 * factor);
        for block in &mut cell.blocks {
            block.median_ps = scaled(block.median_ps);
        }
        let LatencyRecord::Interval(interval) = &mut cell.latency else { return };
        for ps in [&mut interval.lo_ps, &mut interval.median_ps, &mut interval.hi_ps] {
            *ps = scaled(*ps);
        }
    }

    #[test]
    fn hosts_that_lie_apart_widen_every_interval() {
        let (mut a, mut b) = (profile("a"), profile("b"));
        for cell in &mut b.cells {
            slower(cell, 1.05);
        }
        b.cells.truncate(4);
        for (anchor, cell) in
            b.run.sweep.as_mut().unwrap().hosts[0].anchors.iter_mut().zip(&b.cells)
        {
            let ps = cell.latency.interval().unwrap().median_ps;
            (anchor.lo_ps, anchor.hi_ps) = (ps, ps);
        }
        a.cells.drain(2..4);
        let merged = merge(shares(vec![a.clone(), b.clone()]), &wanted()).unwrap();
        let spread = merged.profile.run.sweep.as_ref().unwrap().hosts_spread_rel;
        assert!((spread - 0.05).abs() < 1e-6, "{spread}");
        assert!(merged.notes[0].contains("2 hosts") && merged.notes[0].contains("5.0 %"));
        validate::validate("merged", &merged.profile).unwrap();
        for (cell, before) in
            merged.profile.cells[2..].iter().zip(b.cells[2..].iter().chain(&a.cells[2..]))
        {
            let (wide, narrow) =
                (cell.latency.interval().unwrap(), before.latency.interval().unwrap());
            assert_eq!(wide.median_ps, narrow.median_ps);
            let ratio = wide.hi_ps as f64 / narrow.hi_ps as f64;
            assert!((ratio - 1.05).abs() < 1e-6, "{ratio}");
        }
        // Turned around it is the same.
        let mut turned = shares(vec![a.clone(), b.clone()]);
        turned.reverse();
        assert_eq!(merge(turned, &wanted()).unwrap().profile, merged.profile);
        // Machines of two kinds are no hosts of one sweep.
        for anchor in &mut b.run.sweep.as_mut().unwrap().hosts[0].anchors {
            (anchor.lo_ps, anchor.hi_ps) = (3 * anchor.lo_ps, 3 * anchor.hi_ps);
        }
        let error = merge(shares(vec![a, b]), &wanted()).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("a, b"), "{error}");
    }

    #[test]
    fn a_cell_twice_is_kept_once_and_of_two_values_the_narrower() {
        let whole = profile("a");
        let merged = merge(shares(vec![whole.clone(), whole.clone()]), &wanted()).unwrap();
        assert_eq!((merged.profile.cells, merged.notes), (whole.cells.clone(), vec![]));
        let mut other = whole.clone();
        // One block more apart than the others: the interval is wider.
        let cell = &mut other.cells[4];
        cell.blocks[5].median_ps *= 2;
        let median = |cell: &Cell| {
            median_interval(&cell.blocks.iter().map(|b| b.median_ps as f64).collect::<Vec<_>>())
        };
        let again = median(cell).unwrap();
        let LatencyRecord::Interval(interval) = &mut cell.latency else { panic!("no value") };
        interval.hi_ps = super::whole(again.hi);
        for order in [[&whole, &other], [&other, &whole]] {
            let merged = merge(shares(order.map(Clone::clone).to_vec()), &wanted()).unwrap();
            assert_eq!(merged.profile.cells, whole.cells);
            assert!(merged.notes[0].contains("the narrower is kept"), "{:?}", merged.notes);
            assert_eq!(merged.notes.len(), 1);
        }
    }

    #[test]
    fn what_was_measured_otherwise_is_refused_by_name() {
        type Edit = fn(&mut Profile);
        let edits: [(&str, Edit); 9] = [
            ("schema version `1.6` in s0, `1.5`", |p| p.schema_version = "1.5".into()),
            ("protocol `1.0` in s0, `2.0`", |p| p.protocol_version = "2.0".into()),
            ("device.cpu.threads `2` in s0, `64`", |p| {
                let Device::Cpu(cpu) = &p.key.device else { return };
                let device = Device::Cpu(CpuDevice { threads: 64, ..cpu.clone() });
                p.key = Key::new(device, p.key.recipe.clone());
            }),
            ("recipe.seed `0x1` in s0, `0x7`", |p| p.key.recipe.seed = "0x7".into()),
            ("kernels", |p| p.cells[3].kernel_sha256 = "1".repeat(64)),
            ("plan `ffff", |p| p.run.sweep.as_mut().unwrap().plan_sha256 = "f".repeat(64)),
            ("run `0x2` in s0, `0x3`", |p| p.run.id = "0x3".into()),
            ("routing", |p| p.cells[0].routing.kind = "balanced".into()),
            ("without --plan", |p| p.run.sweep = None),
        ];
        for (words, edit) in edits {
            let mut other = profile("a");
            edit(&mut other);
            let error = merge(shares(vec![profile("a"), other]), &wanted()).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{words}");
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        assert_eq!(merge(vec![], &wanted()).unwrap_err().exit_code(), 4);
        // Installed memory is recorded and not matched.
        let mut other = profile("a");
        if let Device::Cpu(cpu) = &mut other.key.device {
            cpu.memory_bytes -= 4096;
        }
        let least = other.key.device.memory_bytes();
        let merged = merge(shares(vec![profile("a"), other]), &wanted()).unwrap();
        assert_eq!(merged.profile.key.device.memory_bytes(), least);
    }
}
