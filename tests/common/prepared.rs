//! The program in a folder of its own, with the files that most commands can be tried on.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// This repository.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The program in a folder, without the user's settings and profiles; `{root}` is this repository.
pub(crate) fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe-frontier"));
    command.args(line.replace("{root}", ROOT).split_whitespace()).current_dir(folder);
    command.env("MOE_FRONTIER_PROFILES", folder.join("profiles"));
    command.env("XDG_CONFIG_HOME", folder.join("settings")).env_remove("COLUMNS");
    command
}

/// A folder with a few measured servers (`few.csv`), made-up training runs (`runs.csv`) and downstream errors
/// (`errors.csv`), and a profile of this machine (`p.json`).
pub(crate) fn prepared() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("profiles")).unwrap();
    let rows = Path::new(ROOT).join("reports/points/published_rows.csv");
    let few: Vec<String> =
        fs::read_to_string(rows).unwrap().lines().take(9).map(|l| format!("{l}\n")).collect();
    fs::write(at.join("few.csv"), few.concat()).unwrap();
    let mut runs = String::from("n_active,tokens,loss\n");
    for (n, d) in (0..24).map(|i| (1e8 * f64::from(1 + i % 6), 2e9 * f64::from(1 + i / 6))) {
        let loss = 1.7 + 406.0 / n.powf(0.34) + 410.0 / d.powf(0.28);
        writeln!(runs, "{n},{d},{loss}").unwrap();
    }
    fs::write(at.join("runs.csv"), runs).unwrap();
    let mut errors = String::from("loss,error\n");
    for loss in (0..16).map(|i| 2.0 + 0.2 * f64::from(i)) {
        writeln!(errors, "{loss},{}", 0.76 - 1.9 * (-1.1 * loss).exp()).unwrap();
    }
    fs::write(at.join("errors.csv"), errors).unwrap();
    let line = "measure --device cpu --quick --dtype f32 --experts 4,8 --top-k 1 --hidden 64,128 \
                --tokens 1,16 --time-budget 3s --out p.json";
    let output = program(at, line).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}
