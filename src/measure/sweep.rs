//! Sweeps: a plan that several machines of one kind measure together, each its shard.
//!
//! A plan chooses its cells by the measured speed of a device, so two machines would choose differently: the
//! plan of a sweep is a file first. Its first cells are the anchors, which every shard measures, so that the
//! machines can be compared; the others are dealt by a hash of what they are.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::folder::{
    Destination, Place, Planned, PlannedOn, ReadPlan, RunFolder, plan_bytes, read_plan,
};
use super::plan::{CellSpec, Plan};
use super::shard::{Part, Shard};
use super::worker::Facts;
use crate::files::{sha256_hex, write_atomic};
use crate::kernels::MoeShape;
use crate::record::{AnchorRange, CellKey, Device, Profile, Sweep, SweepHost};
use crate::{Error, Result};

/// Cells that every shard measures, where a plan has as many.
const ANCHORS: usize = 2;
/// The second anchor takes at most this many times as long as the first: every shard pays for it.
const ANCHOR_COST: u32 = 2;

/// The plan of a sweep.
#[derive(Debug)]
pub struct SweepPlan {
    /// Where it is measured.
    pub place: Place,
    /// All cells, the anchors first.
    pub plan: Plan,
    /// SHA-256 of its file.
    pub sha256: String,
    planned_on: PlannedOn,
}

impl SweepPlan {
    /// Writes a plan as a file, for runs on devices of this kind with this program.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn write(
        path: &Path,
        place: Place,
        (facts, program): (&Facts, &str),
        mut plan: Plan,
        overwrite: bool,
    ) -> Result<Self> {
        anchors_first(&mut plan.cells);
        let planned_on = PlannedOn {
            program: program.to_owned(),
            device: facts.device.clone(),
            kernel_sha256: facts.kernel_sha256.clone(),
        };
        let on = Some(planned_on.clone());
        let bytes = plan_bytes(place.clone(), Destination::Folder, on, None, plan.clone())?;
        write_atomic(path, &bytes, overwrite)?;
        Ok(Self { place, plan, sha256: sha256_hex(bytes), planned_on })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::BadFile`] when it is not what [`Self::write`] writes.
    pub fn read(path: &Path) -> Result<Self> {
        let ReadPlan { place, planned_on, plan, sha256, .. } = read_plan(path)?;
        let Some(planned_on) = planned_on else {
            let reason = "the plan of a run that began; `measure --plan-out` writes plans to share";
            return Err(Error::bad_file(path, reason));
        };
        Ok(Self { place, plan, sha256, planned_on })
    }

    /// Checks that a device is of the kind that the plan is for.
    ///
    /// # Errors
    /// [`Error::Unfit`] with what differs.
    pub fn check(&self, facts: &Facts, program: &str) -> Result<()> {
        let on = &self.planned_on;
        let mut differing: Vec<String> = [
            ("program", on.program.as_str(), program),
            ("kernels", &on.kernel_sha256, &facts.kernel_sha256),
        ]
        .into_iter()
        .filter(|(_, planned, here)| planned != here)
        .map(|(what, planned, here)| format!("{what} `{planned}`, here `{here}`"))
        .collect();
        if on.device.sha256() != facts.device.sha256() {
            let shown = |device: &Device| format!("{device:?}");
            differing.push(format!(
                "device `{}`, here `{}`",
                shown(&on.device),
                shown(&facts.device)
            ));
        }
        if differing.is_empty() {
            return Ok(());
        }
        let reason = format!("was made for another kind of machine: {}", differing.join("; "));
        Err(Error::unfit("plan", reason))
    }

    /// Cells that every shard measures.
    pub fn anchors(&self) -> usize {
        ANCHORS.min(self.plan.cells.len())
    }

    /// The anchors and the cells of a shard, without those that are finished, and what the run knows of the
    /// sweep. A shard without cells of its own still says what its machine makes of the anchors.
    pub fn part(&self, shard: Shard, finished: &HashSet<CellKey>) -> (Plan, Part) {
        let anchors = self.anchors();
        let (first, others) = self.plan.cells.split_at(anchors);
        let dealt = dealt(others, shard);
        let is_left = |cell: &&CellSpec| {
            let key = cell.key();
            dealt.contains(&key) && !finished.contains(&key)
        };
        let cells = first.iter().chain(others.iter().filter(is_left)).copied().collect();
        let mut plan = Plan { cells, left_out: vec![], ..self.plan.clone() };
        let shapes: HashSet<MoeShape> = plan.cells.iter().map(|c| c.shape).collect();
        plan.shapes.retain(|(shape, _)| shapes.contains(shape));
        (plan, Part { plan_sha256: self.sha256.clone(), shard, anchors })
    }
}

/// Puts two cells to the front that every shard can afford: the most wanted, and the one with the most tokens
/// of those that take about as long. One waits for memory, the other rather for arithmetic.
fn anchors_first(cells: &mut Vec<CellSpec>) {
    let Some(first) = cells.first().copied() else { return };
    let cheap = |cell: &CellSpec| cell.block <= first.block * ANCHOR_COST;
    let second = (1..cells.len())
        .filter(|&i| cheap(&cells[i]))
        // Of several with as many tokens the most wanted.
        .max_by_key(|&i| (cells[i].tokens, std::cmp::Reverse(i)));
    if let Some(second) = second {
        let cell = cells.remove(second);
        cells.insert(1, cell);
    }
}

/// The cells of a shard: in the order of their hashes every `count`-th.
fn dealt(cells: &[CellSpec], shard: Shard) -> HashSet<CellKey> {
    let mut hashed: Vec<(String, CellKey)> =
        cells.iter().map(|cell| (sha256_hex(cell.key().to_string()), cell.key())).collect();
    hashed.sort_unstable();
    let (index, count) = (shard.index as usize, shard.count as usize);
    hashed.into_iter().skip(index).step_by(count).map(|(_, key)| key).collect()
}

impl RunFolder {
    /// Writes the plan of a run that is a part of a sweep.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn plan_shard(self, sweep: &SweepPlan, (plan, part): (Plan, Part)) -> Result<Planned> {
        self.plan_part(sweep.place.clone(), Destination::Folder, plan, Some(part))
    }
}

impl Planned {
    /// Says in a profile which sweep it is a part of, and what its anchors took on these hosts. A run on its
    /// own says nothing.
    pub fn label(&self, profile: &mut Profile, hosts: &BTreeSet<String>) {
        let Some(part) = &self.part else { return };
        let anchors =
            profile.cells.iter().take(part.anchors).enumerate().filter_map(|(cell, c)| {
                let median_ps = c.latency.interval()?.median_ps;
                Some(AnchorRange { cell, lo_ps: median_ps, hi_ps: median_ps })
            });
        let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let host = SweepHost { name: names.join("+"), anchors: anchors.collect() };
        profile.run.sweep = Some(Sweep {
            plan_sha256: part.plan_sha256.clone(),
            hosts: vec![host],
            hosts_spread_rel: 0.0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sampling::BlockRule;
    use crate::measure::testing;

    #[test]
    fn every_cell_is_dealt_once_and_every_shard_has_the_anchors() {
        let mut plan =
            testing::plan(&[(64, 192), (128, 384)], &[1, 4, 8], &[1, 2, 3, 16], BlockRule::QUICK);
        anchors_first(&mut plan.cells);
        assert_eq!((plan.cells[0].tokens, plan.cells[1].tokens), (1, 16));
        let whole = plan.cells.clone();
        let sweep = SweepPlan {
            place: Place {
                device: "cpu".into(),
                kernels: vec![],
                isa: None,
                packed: false,
                threads: None,
                isolate: false,
            },
            plan,
            sha256: "ab".repeat(32),
            planned_on: PlannedOn {
                program: String::new(),
                device: Device::Cpu(crate::measure::host::cpu(1)),
                kernel_sha256: String::new(),
            },
        };
        for count in [1, 2, 5, 22] {
            let mut seen = Vec::new();
            for index in 0..count {
                let shard = Shard::new(index, count).unwrap();
                let (part, label) = sweep.part(shard, &HashSet::new());
                assert_eq!(part.cells[..2], whole[..2], "{shard}");
                assert_eq!(label.run_id(), "0xabababababababab");
                let own = part.cells.len() - 2;
                assert!((22 / count as usize..=22 / count as usize + 1).contains(&own), "{shard}");
                assert!(part.cells.iter().all(|c| part.shapes.iter().any(|s| s.0 == c.shape)));
                seen.extend(part.cells[2..].iter().map(CellSpec::key));
            }
            let mut expected: Vec<CellKey> = whole[2..].iter().map(CellSpec::key).collect();
            seen.sort_unstable();
            expected.sort_unstable();
            assert_eq!(seen, expected, "{count}");
        }
        // What is finished is left out; the anchors never are.
        let done: HashSet<CellKey> = whole.iter().skip(3).map(CellSpec::key).collect();
        let left = (0..4).map(|i| sweep.part(Shard::new(i, 4).unwrap(), &done).0.cells.len());
        let mut left: Vec<usize> = left.collect();
        left.sort_unstable();
        assert_eq!(left, [2, 2, 2, 3]);
    }
}
