//! Result folders: written beside their place under a temporary name, then renamed into it, so that a
//! reader finds the old result or the new one, never a mixture.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::whole::{Registered, create_folder, folder_of, moving, sync_folder};
use super::{fault, read_capped, write_atomic};
use crate::{Error, Result};

/// File that marks a folder as written by this program; it may be replaced as a whole.
const MARK: &str = ".moe-frontier";
/// Longest mark that is read, in bytes: it lists the names of some dozen files.
const MARK_CAP: u64 = 1 << 20;

/// A result folder being written. Dropped without [`ResultFolder::finish`], it leaves the old result
/// as it was and nothing else.
#[derive(Debug)]
pub struct ResultFolder {
    place: PathBuf,
    /// Names of ours in folders that carry no mark.
    known: Vec<String>,
    /// Whether a process has it as its working directory: then its files are replaced one by one.
    in_place: bool,
    temporary: Option<tempfile::TempDir>,
    /// Removes the temporary folder when the process ends early.
    registered: Option<Registered>,
}

impl ResultFolder {
    /// Starts a folder that will stand at `place`. A folder that is there is replaced when it is empty
    /// or one of ours (`known` are the names of the files that mark it as such, besides the mark that
    /// [`Self::finish`] leaves); any other only with `overwrite`.
    ///
    /// # Errors
    /// [`Error::Io`] when `place` is a file or another's folder, or cannot be written beside.
    pub fn begin(place: &Path, known: &[&str], overwrite: bool) -> Result<Self> {
        refuse_foreign(place, known, overwrite)?;
        // `out/.` and `out/` name what `out` names.
        let place: PathBuf = place.components().collect();
        let in_place = holds_current(&place);
        let parent = if in_place { place.clone() } else { folder_of(&place) };
        create_folder(&parent)?;
        let failed = |source| Error::io("create", &place, source);
        fault::step().map_err(failed)?;
        let temporary = tempfile::Builder::new()
            .prefix(".moe-frontier-")
            .tempdir_in(&parent)
            .map_err(failed)?;
        open_to_others(temporary.path()).map_err(failed)?;
        let known = known.iter().map(|name| (*name).to_owned()).collect();
        let registered = Some(Registered::new(temporary.path()));
        Ok(Self { place, known, in_place, temporary: Some(temporary), registered })
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        self.temporary.as_ref().map_or(&self.place, tempfile::TempDir::path)
    }

    /// Puts the folder in its place.
    ///
    /// # Errors
    /// [`Error::Io`] when a step fails; the old folder is then still there.
    pub fn finish(mut self) -> Result<PathBuf> {
        let names = names_in(self.path())?.join("\n");
        write_atomic(&self.path().join(MARK), format!("{names}\n").as_bytes(), true)?;
        let failed = |source| Error::io("write", &self.place, source);
        let Some(temporary) = self.temporary.take() else { return Ok(self.place.clone()) };
        let _moving = moving();
        self.registered = None;
        if self.in_place {
            for name in names_in(temporary.path())? {
                let moved = fault::step().and_then(|()| {
                    fs::rename(temporary.path().join(&name), self.place.join(&name))
                });
                moved.map_err(failed)?;
            }
            sync_folder(self.place.clone()).map_err(failed)?;
            return Ok(self.place.clone());
        }
        put(temporary.path(), &self.place, &self.known).map_err(failed)?;
        // It has been renamed: there is nothing to remove any more.
        let _ = temporary.keep();
        sync_folder(folder_of(&self.place)).map_err(failed)?;
        Ok(self.place.clone())
    }
}

/// Renames `new` to `place`. What is there changes places with it where the system can do that in one step;
/// elsewhere it steps aside first and comes back when the renaming fails. Files in it that we did not write
/// move over.
fn put(new: &Path, place: &Path, known: &[String]) -> io::Result<()> {
    fault::step()?;
    if !place.exists() {
        return fs::rename(new, place);
    }
    let ours = read_capped(&place.join(MARK), MARK_CAP).unwrap_or_default();
    let ours = String::from_utf8_lossy(&ours);
    let aside = tempfile::Builder::new().prefix(".moe-frontier-").tempdir_in(folder_of(place))?;
    let old = aside.path().join("old");
    fault::step()?;
    if exchange(new, place) {
        // What was there is in `new` now, which its owner removes: back, if it cannot step aside.
        if let Err(error) = fault::step().and_then(|()| fs::rename(new, &old)) {
            exchange(new, place);
            return Err(error);
        }
    } else {
        fs::rename(place, &old)?;
        if let Err(error) = fault::step().and_then(|()| fs::rename(new, place)) {
            fs::rename(&old, place)?;
            return Err(error);
        }
    }
    for entry in fs::read_dir(&old)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let is_ours =
            text == MARK || ours.lines().chain(known.iter().map(String::as_str)).any(|n| n == text);
        if !is_ours
            && !place.join(&name).exists()
            && let Err(error) = fs::rename(old.join(&name), place.join(&name))
        {
            // Not removed with what is ours: it is somebody's.
            let _ = aside.keep();
            return Err(error);
        }
    }
    Ok(())
}

/// Lets two folders change places in one step; whether the system could.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_one: &Path, _other: &Path) -> bool {
    false
}

/// Whether the working folder of this process is `place` or lies in it: renaming it would leave the shell
/// behind in a removed folder.
fn holds_current(place: &Path) -> bool {
    match (fs::canonicalize(place), std::env::current_dir()) {
        (Ok(place), Ok(current)) => current.starts_with(place),
        _ => false,
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect())
}

fn refuse_foreign(place: &Path, known: &[&str], overwrite: bool) -> Result<()> {
    let refused = |why: &str| Err(Error::io("write", place, io::Error::other(why.to_owned())));
    if !place.exists() {
        return Ok(());
    }
    if !place.is_dir() {
        return refused("it is a file");
    }
    let mut names = names_in(place)?;
    // What an interrupted run may have left.
    names.retain(|name| name == MARK || !name.starts_with(MARK));
    let ours = names.iter().any(|name| name == MARK || known.contains(&name.as_str()));
    if names.is_empty() || ours || overwrite {
        return Ok(());
    }
    refused("it holds files of others; name another folder, or use --overwrite to replace it")
}

/// Temporary folders are private; a result is as open as the umask says.
fn open_to_others(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A folder made the ordinary way shows the umask.
        let probe = folder.join("umask");
        fs::create_dir(&probe)?;
        let mode = fs::metadata(&probe)?.permissions().mode();
        fs::remove_dir(&probe)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(place: &Path, content: &str, overwrite: bool) -> Result<()> {
        let folder = ResultFolder::begin(place, &["rank.json"], overwrite)?;
        write_atomic(&folder.path().join("a.csv"), content.as_bytes(), false)?;
        folder.finish().map(drop)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_of_ours_is_replaced_whole_and_another_s_is_not() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("out");
        write(&place, "one", false).unwrap();
        fs::write(place.join("notes.txt"), "the user's").unwrap();
        write(&place, "two", false).unwrap();
        assert_eq!(fs::read_to_string(place.join("a.csv")).unwrap(), "two");
        assert_eq!(names(&place), [MARK, "a.csv", "notes.txt"]);
        let foreign = root.path().join("home");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "").unwrap();
        let error = write(&foreign, "x", false).unwrap_err();
        assert!(error.exit_code() == 7 && error.to_string().contains("--overwrite"), "{error}");
        assert_eq!(names(&foreign), ["thesis.tex"]);
        fs::write(foreign.join("rank.json"), "").unwrap();
        write(&foreign, "x", false).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(write(&root.path().join("file"), "x", true).unwrap_err().exit_code(), 7);
        assert_eq!(names(root.path()), ["file", "home", "out"]);
    }

    #[test]
    fn a_failure_at_any_step_leaves_the_old_result_and_no_other_file() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("out");
        write(&place, "old", false).unwrap();
        for step in 1.. {
            fault::plant(Some(fault::Fault { kind: fault::Kind::Full, at: step, lasting: false }));
            let written = write(&place, "new", false);
            let taken = fault::steps();
            fault::plant(None);
            assert_eq!(names(root.path()), ["out"], "step {step}");
            let content = fs::read_to_string(place.join("a.csv")).unwrap();
            if taken < step {
                written.unwrap();
                assert_eq!(content, "new");
                assert!(step > 10, "{step} steps");
                break;
            }
            // The last step only makes the renaming durable.
            let last = content == "new";
            assert!(written.is_err() && (content == "old" || last), "step {step}: {content}");
            if last {
                write(&place, "old", false).unwrap();
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_result_folder_is_as_open_as_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        write(&root.path().join("out"), "x", false).unwrap();
        fs::create_dir(root.path().join("plain")).unwrap();
        let mode = |n: &str| fs::metadata(root.path().join(n)).unwrap().permissions().mode();
        assert_eq!(mode("out"), mode("plain"));
    }
}
