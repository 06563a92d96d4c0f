//! Builds the emulator's driver with the host's C++ compiler, once for each kind of build.
//!
//! `kernels/emu/build.sh` does the compiling and keeps objects under a checksum of their preprocessed
//! sources and flags, so that a second run compiles nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Build {
    /// Optimised.
    Plain,
    /// Address and undefined-behaviour sanitizers.
    Address,
    /// Thread sanitizer.
    Thread,
}

impl Build {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }
}

/// A fault planted by a compile-time switch, and the source that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mutant {
    pub(crate) source: PathBuf,
    pub(crate) switch: String,
}

pub(crate) fn kernels_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// All `.cu` files, sorted.
pub(crate) fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir(kernels_folder()).unwrap();
    let mut sources: Vec<PathBuf> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    sources
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn has_compiler() -> bool {
    let mut command = Command::new(compiler());
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Folder of everything that is built here.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The driver with every kernel; `None`, after saying so, on a machine without a compiler. On the
/// machines that decide whether a change is good that is a failure.
pub(crate) fn driver(build: Build) -> Option<PathBuf> {
    if !has_compiler() {
        let compiler = compiler();
        assert!(
            std::env::var_os("CI").is_none(),
            "no C++ compiler `{compiler}` to run the kernels"
        );
        eprintln!("SKIPPED: no C++ compiler `{compiler}` (set CXX); the kernels were not run");
        return None;
    }
    let path = folder().join(format!("driver-{}", build.label()));
    // Tests run side by side: the first builds, the others find its objects.
    let lock = File::create(folder().join(format!("lock-{}", build.label()))).unwrap();
    lock.lock().unwrap();
    run_build(build, None, &sources(), &path).unwrap_or_else(|log| panic!("{log}"));
    Some(path)
}

/// The driver with the kernels of one source, a fault planted in it.
pub(crate) fn mutant_driver(build: Build, mutant: &Mutant) -> Result<PathBuf, String> {
    let stem = mutant.source.file_stem().unwrap().to_str().unwrap().to_owned();
    let path = folder().join(format!("{stem}-{}-{}", mutant.switch, build.label()));
    run_build(build, Some(&mutant.switch), std::slice::from_ref(&mutant.source), &path)?;
    Ok(path)
}

fn run_build(
    build: Build,
    switch: Option<&str>,
    sources: &[PathBuf],
    path: &Path,
) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.arg(kernels_folder().join("emu/build.sh"));
    command.args(["-k", build.label()]);
    if let Some(switch) = switch {
        command.args(["-D", switch]);
    }
    command.arg("-c").arg(folder().join("objects")).arg("-o").arg(path).args(sources);
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("sh: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} build of {} failed:\n{log}", build.label(), path.display()))
}

/// Names of the kernels that a driver has.
pub(crate) fn kernels_of(driver: &Path) -> Vec<String> {
    let output = Command::new(driver).arg("--list").output().unwrap();
    assert!(output.status.success(), "{} --list", driver.display());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}
