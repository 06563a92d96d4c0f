//! Faults planted in the kernels' sources by compile-time switches: the suite must fail for each. A
//! fault that survives is a missing test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use moe_frontier::kernels::gpu::{ALIGN, COMBINE, PRODUCTS, ROUTERS};

use crate::driver::{self, Build, Mutant};
use crate::suite::{Outcome, Run};
use crate::{alignment, products, routers, sums};

/// Every switch of every source; those of a shared header count for each source that includes it.
pub(crate) fn find() -> Vec<Mutant> {
    let mut found = BTreeSet::new();
    // The layout check includes headers for their constants alone and computes no stage.
    let computes = |source: &PathBuf| !source.ends_with("config_check.cu");
    for source in driver::sources().into_iter().filter(computes) {
        let text = fs::read_to_string(&source).unwrap();
        let mut switches = switches_of(&text);
        for line in text.lines().filter_map(|l| l.strip_prefix("#include \"")) {
            let name = line.trim_end_matches('"');
            // What all kernels share would be planted in all of them.
            if name != "common.cuh" && name != "ptx.cuh" {
                let header = fs::read_to_string(driver::kernels_folder().join(name)).unwrap();
                switches.extend(switches_of(&header));
            }
        }
        found.extend(switches.into_iter().map(|switch| Mutant { source: source.clone(), switch }));
    }
    found.into_iter().collect()
}

fn switches_of(text: &str) -> BTreeSet<String> {
    let conditions = text.lines().filter(|l| l.trim_start().starts_with("#if"));
    let words = conditions.flat_map(|l| l.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|w| w.starts_with("MUTANT_")).map(str::to_owned).collect()
}

/// The checks of every kernel that a driver has.
pub(crate) fn check(driver: &Path, run: &Run) -> Outcome {
    let names = driver::kernels_of(driver);
    let has = |name: &str| names.iter().any(|n| n == name);
    if has(ROUTERS[0]) {
        routers::check(run, false)?;
    }
    if has(ALIGN[0]) {
        alignment::check(run, false)?;
    }
    if has(COMBINE) {
        sums::check(run, false)?;
    }
    for kernel in PRODUCTS.iter().filter(|k| has(k.name)) {
        products::check(kernel, run, false)?;
        products::check_shared_unit(kernel, run)?;
        products::check_large_stack(kernel, run)?;
    }
    Ok(())
}

/// The driver of one source with a fault planted; `None` without a compiler.
pub(crate) fn driver_with(build: Build, source: &str, switch: &str) -> Option<PathBuf> {
    driver::driver(build)?;
    let source = driver::kernels_folder().join(source);
    let mutant = Mutant { source, switch: switch.to_owned() };
    Some(driver::mutant_driver(build, &mutant).unwrap_or_else(|log| panic!("{log}")))
}

/// What found a fault, or `None`: it survived.
pub(crate) fn caught(mutant: &Mutant) -> Option<String> {
    let driver = driver::mutant_driver(Build::Plain, mutant).unwrap_or_else(|log| panic!("{log}"));
    let plain = Run::all(&driver, Build::Plain, 2);
    if let Some(said) = plain.iter().find_map(|run| check(&driver, run).err()) {
        return Some(said);
    }
    // A missing barrier may do no harm in any order that was tried; the race detector needs no luck.
    let driver = driver::mutant_driver(Build::Thread, mutant).unwrap_or_else(|log| panic!("{log}"));
    Run::all(&driver, Build::Thread, 1).iter().find_map(|run| check(&driver, run).err())
}
