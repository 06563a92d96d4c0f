//! The built program in a folder of its own, and the smallest run of `measure`.

#![allow(dead_code, reason = "each test is a crate of its own and uses a part of this file")]

use std::path::Path;
use std::process::{Command, Output};

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-frontier");
/// A measurement of one cell.
pub(crate) const TINY: &str = "measure --device cpu --quick --dtype f32 --experts 4 --top-k 1 --hidden 64 \
                        --tokens 1 --time-budget 20s";

/// The program with `arguments`, run in `folder`, which also holds its store of profiles.
pub(crate) fn program(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments.split_whitespace()).current_dir(folder);
    command.env("MOE_FRONTIER_PROFILES", folder.join("profiles"));
    command
}

/// What a run printed on stderr.
pub(crate) fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
