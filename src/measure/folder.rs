//! The folder of one run: `plan.json`, sealed, and `journal.jsonl`, from which a run that ended goes on.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::{self, Journal, Locking};
use super::ledger::{Event, Kept};
use super::plan::Plan;
use super::run::Beginning;
use super::shard::Part;
use super::worker::Facts;
use crate::files::seal::{from_sealed, to_sealed};
use crate::files::{check_writable, read_capped, sha256_hex, whole, write_atomic};
use crate::record::Device;
use crate::{Error, Result};

/// Name that a plan file declares.
pub const PLAN_SCHEMA: &str = "moe-frontier/plan";
/// Name that a journal declares in its first record.
pub const JOURNAL_SCHEMA: &str = "moe-frontier/journal";
/// Version of both.
const VERSION: &str = "1.0";

/// The plan of a run.
pub const PLAN_FILE: &str = "plan.json";
/// Its journal.
pub const JOURNAL_FILE: &str = "journal.jsonl";
/// Its profile, once there is one.
pub const PROFILE_FILE: &str = "profile.json";

/// How the names of temporary files begin.
const TEMPORARY: &str = ".moe-frontier";

/// Longest plan that is read.
const CAP: u64 = 256 << 20;
/// Most cells of a plan.
const MOST_CELLS: usize = 1 << 17;

/// Where and with what kernels a run measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// `cpu` or `gpu:N`.
    pub device: String,
    /// Chosen GEMM kernels of a GPU, by name.
    pub kernels: Vec<String>,
    /// Chosen instruction set of the CPU, by the word of its flag.
    pub isa: Option<String>,
    /// Whether CPU weights are packed before they are measured.
    pub packed: bool,
    /// Chosen number of threads.
    pub threads: Option<u16>,
    /// Whether kernels run in a process of their own where the device does not ask for it.
    pub isolate: bool,
}

/// Where the profile of a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Into the run's folder, which stays.
    Folder,
    /// Beside the folder: `p.json` for `p.journal`.
    Beside,
    /// Into the folder of measured profiles.
    Store,
}

/// What a plan file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    schema: String,
    schema_version: String,
    place: Place,
    destination: Destination,
    /// The plan of a sweep that is a file first: what it was planned on. Its runs must be of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    planned_on: Option<PlannedOn>,
    /// The part of a sweep's plan that this one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<Part>,
    plan: Plan,
}

/// What a plan of a sweep was made with: cells are chosen by the speed of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlannedOn {
    pub(super) program: String,
    pub(super) device: Device,
    pub(super) kernel_sha256: String,
}

/// The first record of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    schema: String,
    schema_version: String,
    /// SHA-256 of the plan file.
    plan_sha256: String,
    /// The device and the kernels on it.
    facts: Facts,
    /// How the run began.
    pub beginning: Beginning,
}

impl Head {
    /// Checks that a run may go on with another worker.
    ///
    /// # Errors
    /// [`Error::Unfit`] with what differs.
    fn check(&self, path: &Path, now: &Facts, program: &str) -> Result<()> {
        let before = &self.facts;
        let device = |facts: &Facts| format!("{:?}", facts.device);
        let differing: Vec<String> = [
            ("program", self.beginning.program.clone(), program.to_owned()),
            ("kernels", before.kernel_sha256.clone(), now.kernel_sha256.clone()),
            ("dense kernel", before.dense_kernel.clone(), now.dense_kernel.clone()),
        ]
        .into_iter()
        .filter(|(_, before, now)| before != now)
        .map(|(what, before, now)| format!("{what} `{before}`, now `{now}`"))
        .chain(
            (before.device.sha256() != now.device.sha256())
                .then(|| format!("device `{}`, now `{}`", device(before), device(now))),
        )
        .collect();
        if differing.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "was begun otherwise: {}; go on where it was begun, or start a new run with --out",
            differing.join("; ")
        );
        Err(Error::unfit(path.display().to_string(), reason))
    }
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
    locking: Locking,
}

/// A run that has been planned before.
#[derive(Debug)]
pub struct Planned {
    /// Its folder.
    pub folder: RunFolder,
    /// Where it measures.
    pub place: Place,
    /// Where its profile goes.
    pub destination: Destination,
    /// Its plan.
    pub plan: Plan,
    /// The part of a sweep that it is.
    pub part: Option<Part>,
    plan_sha256: String,
}

/// A plan file that was read.
pub(super) struct ReadPlan {
    pub(super) place: Place,
    pub(super) destination: Destination,
    pub(super) planned_on: Option<PlannedOn>,
    pub(super) part: Option<Part>,
    pub(super) plan: Plan,
    pub(super) sha256: String,
}

/// Reads a plan file.
///
/// # Errors
/// [`Error::Io`] when there is none, [`Error::BadFile`] when it is not what [`plan_bytes`] writes.
pub(super) fn read_plan(file: &Path) -> Result<ReadPlan> {
    let bytes = read_capped(file, CAP)?;
    let sha256 = sha256_hex(&bytes);
    let read: PlanFile = from_sealed(file, bytes, CAP)?;
    let refused = |reason: String| Err(Error::bad_file(file, reason));
    if read.schema != PLAN_SCHEMA || read.schema_version != VERSION {
        return refused(format!(
            "schema `{}` {}; this program reads {PLAN_SCHEMA} {VERSION}",
            read.schema, read.schema_version
        ));
    }
    let PlanFile { place, destination, planned_on, part, plan, .. } = read;
    if plan.cells.is_empty() || plan.cells.len() > MOST_CELLS {
        return refused(format!("{} cells; a plan has 1 to {MOST_CELLS}", plan.cells.len()));
    }
    for (shape, _) in &plan.shapes {
        shape.validate().map_err(|e| Error::bad_file(file, e.to_string()))?;
    }
    let shapes: HashSet<_> = plan.shapes.iter().map(|s| s.0).collect();
    if !plan.cells.iter().all(|cell| shapes.contains(&cell.shape))
        || plan.shapes.iter().any(|s| !(1..=4096).contains(&s.1))
    {
        return refused("its cells and its layers differ".into());
    }
    Ok(ReadPlan { place, destination, planned_on, part, plan, sha256 })
}

/// The sealed plan file of some cells.
///
/// # Errors
/// [`Error::Unfit`] when it does not survive being written and read.
pub(super) fn plan_bytes(
    place: Place,
    destination: Destination,
    planned_on: Option<PlannedOn>,
    part: Option<Part>,
    plan: Plan,
) -> Result<Vec<u8>> {
    to_sealed(
        "plan",
        &PlanFile {
            schema: PLAN_SCHEMA.into(),
            schema_version: VERSION.into(),
            place,
            destination,
            planned_on,
            part,
            plan,
        },
    )
}

impl RunFolder {
    /// Makes sure, before anything is measured, that a run can be kept in `path`: the folder is created
    /// and a file in it is tried, and locks where they are wanted. With `overwrite` an earlier run in it is
    /// removed.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written, has no locks, holds a run that was not finished, or
    /// holds files of others.
    pub fn prepare(path: &Path, overwrite: bool, locking: Locking) -> Result<Self> {
        let folder = Self { path: path.to_owned(), locking };
        let refused = |why: String| Err(Error::io("write", path, io::Error::other(why)));
        if path.is_file() {
            return refused("it is a file; a run is kept in a folder".into());
        }
        let is_new = !path.is_dir();
        if is_new {
            // Parents are the user's to create: a mistyped path must not grow folders.
            fs::create_dir(path).map_err(|e| Error::io("create", path, e))?;
            // Else a power cut could take the folder, with a synchronised journal in it.
            whole::sync_folder(whole::folder_of(path)).map_err(|e| Error::io("create", path, e))?;
        }
        let is_run = folder.file(PLAN_FILE).exists() || folder.file(JOURNAL_FILE).exists();
        if is_run && !overwrite {
            let again = format!("measure --resume {}", path.display());
            return refused(if folder.file(PROFILE_FILE).exists() {
                format!("it holds a run; `{again}` goes on with it, --overwrite replaces it")
            } else {
                format!(
                    "it holds a run that was not finished; `{again}` goes on with it, --overwrite \
                         replaces it"
                )
            });
        }
        let others = fs::read_dir(path).map_err(|e| Error::io("read", path, e))?;
        let is_foreign = |name: &str| !is_ours(name);
        let foreign = others
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .find(|name| is_foreign(name));
        if let (Some(name), false) = (foreign, overwrite || is_run) {
            return refused(format!(
                "it is a folder that holds other files (`{name}`); name a new folder, or a file that \
                 ends in .json"
            ));
        }
        if is_run {
            folder.remove_run()?;
        }
        let tried = check_writable(&folder.file(PLAN_FILE), true).and_then(|()| match locking {
            Locking::Locked => journal::check_locks(path),
            Locking::Unlocked => Ok(()),
        });
        if let Err(error) = tried {
            if is_new {
                // Made for nothing.
                let _ = fs::remove_dir(path);
            }
            return Err(error);
        }
        Ok(folder)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes the plan of a new run.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn plan(self, place: Place, destination: Destination, plan: Plan) -> Result<Planned> {
        self.plan_part(place, destination, plan, None)
    }

    /// Writes the plan of a new run that is a part of a sweep, or a run on its own.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub(super) fn plan_part(
        self,
        place: Place,
        destination: Destination,
        plan: Plan,
        part: Option<Part>,
    ) -> Result<Planned> {
        let bytes = plan_bytes(place.clone(), destination, None, part.clone(), plan.clone())?;
        write_atomic(&self.file(PLAN_FILE), &bytes, false)?;
        let plan_sha256 = sha256_hex(bytes);
        Ok(Planned { folder: self, place, destination, plan, part, plan_sha256 })
    }

    /// Reads the plan of a run that was begun in `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::BadFile`] when it is not what [`Self::plan`] writes.
    pub fn planned(path: &Path, locking: Locking) -> Result<Planned> {
        let folder = Self { path: path.to_owned(), locking };
        let ReadPlan { place, destination, part, plan, sha256, .. } =
            read_plan(&folder.file(PLAN_FILE))?;
        Ok(Planned { folder, place, destination, plan, part, plan_sha256: sha256 })
    }

    /// Removes the run and the folder, once the profile lies elsewhere. What cannot be removed stays.
    pub fn remove(&self) {
        if self.remove_run().is_ok() {
            let _ = fs::remove_file(self.file(PROFILE_FILE));
            let _ = fs::remove_dir(&self.path);
        }
    }

    fn remove_run(&self) -> Result<()> {
        // A run that is being measured keeps its files, and none begins while they go.
        let journal = self.file(JOURNAL_FILE);
        let _held = journal.exists().then(|| Journal::take(&journal, self.locking)).transpose()?;
        for name in ["journal.torn", "journal.pid", PLAN_FILE, PROFILE_FILE, JOURNAL_FILE] {
            match fs::remove_file(self.file(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", self.file(name), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes what processes that were killed while they wrote have left in a folder.
pub fn remove_temporary_in(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // What cannot be removed stays: nobody reads it.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_ours(name: &str) -> bool {
    let files = [JOURNAL_FILE, "journal.torn", "journal.pid", PLAN_FILE, PROFILE_FILE];
    files.contains(&name) || name.starts_with(TEMPORARY)
}

impl Planned {
    /// Opens the journal and goes on from it, or starts it. Returns how the run began.
    ///
    /// # Errors
    /// [`Error::Io`] when another process has it; [`Error::BadFile`] when it is damaged;
    /// [`Error::Unfit`] when plan, device or program differ from those it was begun with.
    pub fn open(&self, facts: &Facts, now: Beginning) -> Result<(Kept, Beginning)> {
        let (path, locking) = (self.folder.file(JOURNAL_FILE), self.folder.locking);
        let (mut journal, mut events) = if path.exists() {
            Journal::open::<Event>(&path, locking)?
        } else {
            (Journal::create(&path, locking)?, Vec::new())
        };
        let opened = Event::Opened {
            pid: std::process::id(),
            unix_s: now.unix_s,
            locked: locking == Locking::Locked,
            host: now.host.clone(),
        };
        let mut now = now;
        if let Some(part) = &self.part {
            // All runs of a sweep are one run.
            now.id = part.run_id();
        }
        let beginning = if events.is_empty() {
            let head = Head {
                schema: JOURNAL_SCHEMA.into(),
                schema_version: VERSION.into(),
                plan_sha256: self.plan_sha256.clone(),
                facts: facts.clone(),
                beginning: now.clone(),
            };
            journal.append(&Event::Begun(Box::new(head)))?;
            now
        } else {
            let Event::Begun(head) = events.remove(0) else {
                return Err(Error::bad_file_at(&path, 1, 1, "does not begin as a journal does"));
            };
            if head.schema != JOURNAL_SCHEMA || head.schema_version != VERSION {
                let reason = format!(
                    "schema `{}` {}; this program reads {JOURNAL_SCHEMA} {VERSION}",
                    head.schema, head.schema_version
                );
                return Err(Error::bad_file_at(&path, 1, 1, reason));
            }
            if head.plan_sha256 != self.plan_sha256 {
                let reason = format!("belongs to another plan than {PLAN_FILE} beside it");
                return Err(Error::unfit(path.display().to_string(), reason));
            }
            head.check(&path, facts, &now.program)?;
            head.beginning
        };
        journal.append(&opened)?;
        journal.sync()?;
        if locking == Locking::Locked {
            remove_temporary_in(self.folder.path());
        }
        events.push(opened);
        Ok((Kept::new(journal, events), beginning))
    }

    /// Where the profile goes, with the store's folder for runs that belong there.
    pub fn profile_path(&self) -> Option<PathBuf> {
        match self.destination {
            Destination::Folder => Some(self.folder.file(PROFILE_FILE)),
            Destination::Beside => Some(self.folder.path.with_extension("json")),
            Destination::Store => None,
        }
    }
}

/// Copies the lines of a damaged journal before the damage into a new folder, with its plan.
///
/// # Errors
/// [`Error::Io`] when a file fails or `to` exists. Returns the number of lines kept.
pub fn repair(from: &Path, to: &Path) -> Result<usize> {
    // Everything is read before anything is created.
    let plan = read_capped(&from.join(PLAN_FILE), CAP)?;
    let (lines, kept) = journal::whole_lines(&from.join(JOURNAL_FILE))?;
    let failed = |source| Error::io("create", to, source);
    fs::create_dir(to).map_err(failed)?;
    whole::sync_folder(whole::folder_of(to)).map_err(failed)?;
    write_atomic(&to.join(PLAN_FILE), &plan, false)?;
    write_atomic(&to.join(JOURNAL_FILE), &lines, false)?;
    Ok(kept)
}
