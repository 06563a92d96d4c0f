//! The host emulator held to its own tests: every instruction wrapper against plain loops, and planted
//! faults that each build must report as `kernels/emu/selftest.cpp` says.
//!
//! Without a C++ compiler the tests say that they were skipped; with `CI` set that is a failure.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

/// Compiles the self-tests in one kind of build, and runs them.
fn selftest(build: &str) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut version = Command::new(&compiler);
    version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !version.status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no C++ compiler `{compiler}` for the emulator");
        eprintln!("SKIPPED: no C++ compiler `{compiler}` (set CXX); the emulator was not tested");
        return;
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let emulator = kernels.join("emu");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    fs::create_dir_all(&folder).unwrap();
    // The compiler takes most of the time, and memory: one build after another.
    let lock = File::create(folder.join("lock-selftest")).unwrap();
    lock.lock().unwrap();
    let program = folder.join(format!("selftest-{build}"));
    let compiled = Command::new("sh")
        .arg(emulator.join("build.sh"))
        .args(["-k", build, "-c"])
        .arg(folder.join("objects"))
        .arg("-o")
        .arg(&program)
        .args([emulator.join("selftest.cu"), emulator.join("selftest.cpp")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    drop(lock);
    let log = String::from_utf8_lossy(&compiled.stderr).into_owned();
    assert!(compiled.status.success(), "{build} build failed:\n{log}");
    let run = Command::new(&program).arg(&kernels).stdin(Stdio::null()).output().unwrap();
    let table = String::from_utf8_lossy(&run.stdout).into_owned();
    eprintln!("{table}");
    assert!(run.status.success(), "{build}:\n{table}\n{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn wrappers_and_planted_faults_behave_as_told_in_the_plain_build() {
    selftest("plain");
}

#[test]
fn wrappers_and_planted_faults_behave_as_told_under_the_address_sanitizer() {
    selftest("address");
}

#[test]
fn wrappers_and_planted_faults_behave_as_told_under_the_thread_sanitizer() {
    selftest("thread");
}
