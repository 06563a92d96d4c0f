//! Shards of a sweep, measured on a made-up device, come to the profile of one run, byte for byte.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::folder::{PROFILE_FILE, RunFolder};
use super::journal::Locking;
use super::plan::{CellSpec, Plan};
use super::resume_tests::{Fake, measure_on, place};
use super::sampling::BlockRule;
use super::shard::Shard;
use super::sweep::SweepPlan;
use super::testing;
use crate::Result;
use crate::latency::measured::merge::{Merged, Share, Wanted, merge};
use crate::latency::measured::{format, validate};
use crate::record::{CellKey, Profile, Status};

fn plan() -> Plan {
    let mut plan =
        testing::plan(&[(64, 192), (128, 384)], &[1, 4, 8], &[1, 2, 3, 16], BlockRule::QUICK);
    // Long enough that no clock ends a run before its rounds do.
    plan.request.budget = Duration::from_secs(600);
    plan
}

fn sweep(folder: &Path) -> SweepPlan {
    let plan = plan();
    let facts = Fake::new(&plan).facts;
    let path = folder.join("plan.json");
    let written = SweepPlan::write(&path, place(), (&facts, "test"), plan, true).unwrap();
    let read = SweepPlan::read(&path).unwrap();
    assert_eq!((&read.sha256, &read.plan), (&written.sha256, &written.plan));
    read.check(&facts, "test").unwrap();
    read
}

/// Begins a shard or goes on with it, and ends after so many blocks.
fn measure(
    at: &Path,
    sweep: &SweepPlan,
    (shard, host): (Shard, &str),
    most: usize,
) -> Result<Profile> {
    let path = at.join(format!("shard-{}-of-{}", shard.index, shard.count));
    let planned = match RunFolder::planned(&path, Locking::Locked) {
        Ok(planned) => planned,
        Err(_) => RunFolder::prepare(&path, false, Locking::Locked)?
            .plan_shard(sweep, sweep.part(shard, &HashSet::new()))?,
    };
    let mut fake = Fake::new(&planned.plan);
    fake.stop_after = most;
    measure_on(host, &planned, &mut fake)
}

fn share(at: &Path, shard: Shard) -> Share {
    let name = format!("shard-{}-of-{}", shard.index, shard.count);
    let profile = format::read(&at.join(&name).join(PROFILE_FILE)).unwrap();
    Share { name, profile }
}

fn wanted(sweep: &SweepPlan) -> Wanted {
    Wanted {
        plan_sha256: sweep.sha256.clone(),
        cells: sweep.plan.cells.iter().map(CellSpec::key).collect(),
        anchors: sweep.anchors(),
    }
}

fn shards(count: u32) -> Vec<Shard> {
    (0..count).map(|index| Shard::new(index, count).unwrap()).collect()
}

#[test]
fn shards_merge_to_the_profile_of_one_run_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sweep = sweep(at);
    measure(at, &sweep, (Shard::WHOLE, "test"), usize::MAX).unwrap();
    let whole = std::fs::read(at.join("shard-0-of-1").join(PROFILE_FILE)).unwrap();
    let wanted = wanted(&sweep);
    let merged = |shares: Vec<Share>| {
        let Merged { profile, missing, notes } = merge(shares, &wanted).unwrap();
        validate::validate("merged", &profile).unwrap();
        assert_eq!((missing.len(), notes), (0, vec![]));
        format::to_bytes(&profile).unwrap()
    };
    assert!(merged(vec![share(at, Shard::WHOLE)]) == whole, "the merge of one is that one");
    for count in [2, 4] {
        let shards = shards(count);
        for (i, &shard) in shards.iter().enumerate() {
            // Some are ended on the way, once or more, and go on.
            for end in (0..i).map(|n| 3 + 5 * n) {
                let ended = measure(at, &sweep, (shard, "test"), end).unwrap_err();
                assert_eq!(ended.exit_code(), 130);
            }
            measure(at, &sweep, (shard, "test"), usize::MAX).unwrap();
        }
        let mut shares: Vec<Share> = shards.iter().map(|&s| share(at, s)).collect();
        for _ in 0..shares.len() {
            shares.rotate_left(1);
            assert!(merged(shares.clone()) == whole, "{count} shards");
        }
        shares.swap(0, 1);
        assert!(merged(shares.clone()) == whole);
        // Also beside the run of all, with which they have every cell in common.
        shares.push(share(at, Shard::WHOLE));
        assert!(merged(shares) == whole);
    }
    let profile = format::from_bytes(Path::new("p"), &whole).unwrap();
    assert_eq!(profile.cells.len(), 24);
    assert!(profile.cells.iter().any(|c| c.status == Status::Failed), "failures are records");
    let hosts = profile.run.sweep.unwrap().hosts;
    assert_eq!((hosts.len(), hosts[0].anchors.len()), (1, 2));
}

#[test]
fn what_is_missing_is_listed_and_comes_with_the_last_shard() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sweep = sweep(at);
    let wanted = wanted(&sweep);
    let all = shards(4);
    for &shard in &all[..3] {
        measure(at, &sweep, (shard, "test"), usize::MAX).unwrap();
    }
    // The last is ended in its first rounds.
    measure(at, &sweep, (all[3], "test"), 9).unwrap_err();
    let shares = |n: usize| all[..n].iter().map(|&s| share(at, s)).collect::<Vec<_>>();
    let own: Vec<_> =
        sweep.part(all[3], &HashSet::new()).0.cells[2..].iter().map(CellSpec::key).collect();
    for n in [3, 4] {
        let mut merged = merge(shares(n), &wanted).unwrap();
        validate::validate("merged", &merged.profile).unwrap();
        let partial = merged.profile.run.partial.take().unwrap();
        // No cell of the last shard had its rounds; that some crashed is known already.
        let known = |share: Share| {
            let known = share.profile.cells.into_iter().filter(|c| c.status != Status::Incomplete);
            known.inspect(|c| assert_eq!(c.status, Status::Failed, "{c:?}")).map(|c| c.key())
        };
        let last: Vec<CellKey> = shares(n)[3..].iter().cloned().flat_map(known).collect();
        let mut expected = own.clone();
        expected.retain(|key| !last.contains(key));
        assert_eq!(partial, format!("{} of 24 cells of the plan are missing", expected.len()));
        let mut missing = merged.missing;
        missing.sort_unstable();
        expected.sort_unstable();
        assert_eq!(missing, expected);
    }
    measure(at, &sweep, (all[3], "test"), usize::MAX).unwrap();
    let merged = merge(shares(4), &wanted).unwrap();
    assert!(merged.missing.is_empty() && merged.profile.run.partial.is_none());
}

#[test]
fn a_shard_that_went_from_host_to_host_names_both() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sweep = sweep(at);
    let shard = Shard::WHOLE;
    // What a process that was killed while it wrote has left goes when the next one begins.
    let orphan = at.join("shard-0-of-1/.moe-frontier-abc");
    measure(at, &sweep, (shard, "b"), 5).unwrap_err();
    std::fs::write(&orphan, "half").unwrap();
    let profile = measure(at, &sweep, (shard, "a"), usize::MAX).unwrap();
    assert_eq!(profile.run.sweep.unwrap().hosts[0].name, "a+b");
    assert!(!orphan.exists());
}

#[test]
fn another_kind_of_machine_is_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = sweep(folder.path());
    let mut facts = Fake::new(&plan()).facts;
    facts.kernel_sha256 = "1".repeat(64);
    if let crate::record::Device::Cpu(cpu) = &mut facts.device {
        cpu.threads = 64;
    }
    let error = sweep.check(&facts, "moe-frontier 9").unwrap_err();
    assert_eq!(error.exit_code(), 4);
    for word in ["moe-frontier 9", "kernels", "threads: 64"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    // The plan of a run is no plan of a sweep.
    let at = folder.path().join("run");
    RunFolder::prepare(&at, false, Locking::Locked)
        .unwrap()
        .plan(place(), super::folder::Destination::Folder, plan())
        .unwrap();
    let error = SweepPlan::read(&at.join("plan.json")).unwrap_err();
    assert!(error.exit_code() == 3 && error.to_string().contains("--plan-out"), "{error}");
}
