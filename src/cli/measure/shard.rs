//! The folder that the shards of a sweep are measured into: the plan, and a folder for each shard.
//!
//! `plan.json` in it is the whole plan, `shard-2-of-8` a run like any other. Nothing is written outside of a
//! shard's own folder but the plan, once, and that in one step: shards need no lock between them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::read_capped;
use crate::latency::measured::format;
use crate::measure::folder::{PLAN_FILE, PROFILE_FILE, remove_temporary_in};
use crate::measure::shard::Shard;
use crate::measure::sweep::SweepPlan;
use crate::record::{CellKey, Profile, Status};
use crate::{Error, Result};

/// How the names of the shards' folders begin.
const PREFIX: &str = "shard-";

/// The folder of a sweep's shards.
#[derive(Debug)]
pub(in crate::cli) struct SweepFolder {
    path: PathBuf,
    /// The plan's file as it was named.
    plan_file: PathBuf,
}

impl SweepFolder {
    /// The folder `path` for shards of the plan in `plan_file`.
    pub(in crate::cli) fn new(path: &Path, plan_file: &Path) -> Self {
        Self { path: path.to_owned(), plan_file: plan_file.to_owned() }
    }

    /// The folder of a shard.
    pub(in crate::cli) fn shard(&self, shard: Shard) -> PathBuf {
        self.path.join(format!("{PREFIX}{}-of-{}", shard.index, shard.count))
    }

    /// Makes sure that the folder exists and holds this plan. Shards that begin at once may all do it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Unfit`] when it holds another plan.
    pub(in crate::cli) fn adopt(&self, sweep: &SweepPlan) -> Result<()> {
        // Parents are the user's to create: a mistyped path must not grow folders.
        match fs::create_dir(&self.path) {
            Err(_) if self.path.is_dir() => {}
            made => made.map_err(|e| Error::io("create", &self.path, e))?,
        }
        let file = self.path.join(PLAN_FILE);
        if !file.exists() {
            let bytes = read_capped(&self.plan_file, u64::MAX)?;
            match crate::files::write_atomic(&file, &bytes, false) {
                // Another shard was first.
                Err(_) if file.exists() => {}
                written => written?,
            }
        }
        if SweepPlan::read(&file)?.sha256 == sweep.sha256 {
            // What is still being written, or was by a process that was killed, is of no use beside it.
            remove_temporary_in(&self.path);
            return Ok(());
        }
        let reason = format!("holds shards of another plan than {}", self.plan_file.display());
        Err(Error::unfit(self.path.display().to_string(), reason))
    }

    /// The profile of a shard that has ended, if it has.
    ///
    /// # Errors
    /// What reading it reports.
    pub(in crate::cli) fn finished_profile(
        shard: &Path,
        sweep: &SweepPlan,
    ) -> Result<Option<Profile>> {
        let file = shard.join(PROFILE_FILE);
        if !file.exists() {
            return Ok(None);
        }
        let profile = format::read(&file)?;
        let is_ours = profile.run.sweep.as_ref().is_some_and(|s| s.plan_sha256 == sweep.sha256);
        Ok(Some(profile).filter(|p| is_ours && p.run.partial.is_none()))
    }

    /// Cells that other shards have finished, also those of another number of shards.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be read. A profile that cannot be read has finished nothing.
    pub(in crate::cli) fn finished_cells(&self, sweep: &SweepPlan) -> Result<HashSet<CellKey>> {
        let mut finished = HashSet::new();
        for shard in shards_in(&self.path)? {
            let Ok(Some(profile)) = Self::finished_profile(&shard, sweep) else { continue };
            let ended = profile.cells.iter().filter(|c| c.status != Status::Incomplete);
            finished.extend(ended.map(crate::record::Cell::key));
        }
        Ok(finished)
    }
}

/// The folders of shards in a folder, in the order of their names.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
pub(in crate::cli) fn shards_in(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
    let mut shards: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            (name.starts_with(PREFIX) && entry.path().is_dir()).then(|| entry.path())
        })
        .collect();
    shards.sort();
    Ok(shards)
}
