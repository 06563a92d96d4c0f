//! The CUDA kernels, executed without a GPU: the same sources, compiled by the host's C++ compiler and
//! run in the emulator of `kernels/emu`, held to the references in every delivery mode.
//!
//! `EMU_SEEDS=n` widens the search. Every failure names kernel, case, build, delivery and seed; the
//! same test with the same `EMU_SEEDS` repeats it exactly, and a run that the emulator itself ended
//! leaves its launch capsule in the target folder. Without a compiler the tests say that they were
//! skipped; with `CI` set that is a failure.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod alignment;
mod backend;
mod board;
mod driver;
mod layers;
mod layout;
mod models;
mod mutants;
mod probes;
mod products;
mod routers;
mod series;
mod suite;
mod sums;

use std::collections::BTreeSet;

use driver::Build;
use moe_frontier::gpu::{Launcher, images};
use moe_frontier::kernels::gpu::{Family, PRODUCTS, ProductKernel, kernel_names};
use suite::{Outcome, Place, Run};

/// Runs a check in every delivery mode of a build.
fn in_every_mode(build: Build, seeds: u64, check: impl Fn(&Run) -> Outcome) {
    let Some(driver) = driver::driver(build) else { return };
    for run in Run::all(&driver, build, seeds) {
        check(&run).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Runs a check on this machine's GPU; says why when there is none.
fn on_a_gpu(check: impl Fn(&Run) -> Outcome) {
    if let Err(reason) = moe_frontier::gpu::probe() {
        return eprintln!("SKIPPED: {reason}");
    }
    for seed in 1..=2 {
        check(&Run { place: Place::Gpu, seed }).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Checks each kernel. On a GPU one that is wrong does not end the rest: machines with one are there for
/// minutes.
fn each_kernel(
    run: &Run,
    kernels: impl Iterator<Item = &'static ProductKernel>,
    check: impl Fn(&'static ProductKernel) -> Outcome,
) -> Outcome {
    let mut wrong = Vec::new();
    for kernel in kernels {
        if let Err(reason) = check(kernel) {
            if !run.is_on_gpu() {
                return Err(reason);
            }
            eprintln!("WRONG: {reason}");
            wrong.push(reason);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn products_of(family: Family, run: &Run, small: bool) -> Outcome {
    if !family.runs_on(run.board().facts()) {
        eprintln!("SKIPPED: {} do not run on this device", family.label());
        return Ok(());
    }
    each_kernel(run, PRODUCTS.iter().filter(|k| k.family == family), |kernel| {
        products::check(kernel, run, small)?;
        products::check_shared_unit(kernel, run)
    })
}

const FAMILIES: [Family; 4] = [Family::Gemv, Family::Generic, Family::Sm90, Family::SwapAb];

#[test]
fn matrix_vector_products_agree_with_the_reference() {
    in_every_mode(Build::Plain, 1, |run| products_of(Family::Gemv, run, false));
}

#[test]
fn generic_products_agree_with_the_reference() {
    in_every_mode(Build::Plain, 1, |run| products_of(Family::Generic, run, false));
}

#[test]
fn hopper_products_agree_with_the_reference() {
    in_every_mode(Build::Plain, 1, |run| products_of(Family::Sm90, run, false));
}

#[test]
fn products_with_swapped_operands_agree_with_the_reference() {
    in_every_mode(Build::Plain, 1, |run| products_of(Family::SwapAb, run, false));
}

#[test]
fn routers_choose_and_weigh_bit_for_bit_as_the_reference() {
    in_every_mode(Build::Plain, 2, |run| routers::check(run, false));
}

#[test]
fn pairs_are_aligned_as_by_the_reference() {
    in_every_mode(Build::Plain, 2, |run| alignment::check(run, false));
}

#[test]
fn weighted_sums_agree_with_the_reference() {
    in_every_mode(Build::Plain, 2, |run| sums::check(run, false));
}

#[test]
fn probes_of_the_ceilings_run_as_they_are_launched() {
    in_every_mode(Build::Plain, 1, |run| probes::check(run).map(|_| ()));
}

#[test]
fn single_instructions_leave_the_words_that_are_kept() {
    in_every_mode(Build::Plain, 1, |run| probes::instructions(run).map(|_| ()));
}

/// Whatever is compiled is launched, through the table that a device is launched by and within the bounds
/// of its image: no kernel waits for a GPU to be run for the first time.
#[test]
fn every_kernel_outside_of_layers_is_launched() {
    let Some(driver) = driver::driver(Build::Plain) else { return };
    let run = &Run::all(&driver, Build::Plain, 1)[0];
    let mut launched = probes::check(run).unwrap_or_else(|e| panic!("{e}"));
    launched.extend(probes::instructions(run).unwrap_or_else(|e| panic!("{e}")));
    layout::check(run).unwrap_or_else(|e| panic!("{e}"));
    launched.insert("config_check");
    let of_layers = kernel_names();
    let apart = images::SOURCES.iter().flat_map(|source| source.kernels);
    let missed: Vec<_> =
        apart.filter(|name| !of_layers.contains(name) && !launched.contains(*name)).collect();
    assert!(missed.is_empty(), "nothing launches {missed:?}");
}

#[test]
fn a_series_leaves_what_its_last_launch_leaves_alone() {
    in_every_mode(Build::Plain, 1, series::check);
}

#[test]
fn chunks_and_reruns_give_the_same_bits() {
    in_every_mode(Build::Plain, 1, layers::check_repeats);
}

#[test]
fn layers_of_the_backend_agree_with_the_reference_in_both_formats() {
    in_every_mode(Build::Plain, 1, backend::check);
}

#[test]
fn weights_behind_four_billion_others_are_found() {
    let Some(driver) = driver::driver(Build::Plain) else { return };
    let run = &Run::all(&driver, Build::Plain, 1)[0];
    for kernel in PRODUCTS {
        products::check_large_stack(kernel, run).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Places are read the same whatever the order of events: one delivery mode shows them.
#[test]
fn every_weight_and_scale_is_read_from_its_place() {
    let Some(driver) = driver::driver(Build::Plain) else { return };
    let run = &Run::all(&driver, Build::Plain, 1)[0];
    for kernel in PRODUCTS {
        addresses::check(kernel, run).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A wrong place is named, not only noticed: another column, another block's scale.
#[test]
fn what_is_read_from_another_place_is_named() {
    for (switch, kernel, says) in [
        (
            "MUTANT_TOKENS_IN_ORDER",
            "swap_ab_sm90_e4m3_up_n8",
            "column 52) was read, not (expert 1, gate, row 0, column 50)",
        ),
        ("MUTANT_FIRST_SCALE", "swap_ab_sm90_e4m3_down_n8", "scale 0 was read, not 2"),
    ] {
        let Some(driver) = mutants::driver_with(Build::Plain, "swap_ab_sm90.cu", switch) else {
            return;
        };
        let run = &Run::all(&driver, Build::Plain, 1)[0];
        let kernel = PRODUCTS.iter().find(|k| k.name == kernel).unwrap();
        let said = addresses::check(kernel, run).expect_err(switch);
        assert!(said.contains(says), "{said}");
    }
}

/// Accesses that change no result are noticed at the edge of the buffer that they leave: a store in the
/// canary before it, a load by its address.
#[test]
fn accesses_outside_a_buffer_are_caught_though_results_are_right() {
    for (switch, edge) in
        [("MUTANT_STORE_BEFORE_ROWS", "byte -"), ("MUTANT_LOAD_BEHIND_WEIGHTS", "16 bytes at byte")]
    {
        let Some(driver) = mutants::driver_with(Build::Plain, "gemv.cu", switch) else { return };
        let kernel = PRODUCTS.iter().find(|k| k.name == "gemv_bf16_down").unwrap();
        for run in Run::all(&driver, Build::Plain, 1) {
            let said = products::check(kernel, &run, false).expect_err(switch);
            assert!(said.contains(edge) && said.contains("which has"), "{switch}: {said}");
        }
    }
}

/// Everything on small shapes in one build.
fn everything_small(run: &Run) -> Outcome {
    routers::check(run, true)?;
    alignment::check(run, true)?;
    sums::check(run, true)?;
    FAMILIES.into_iter().try_for_each(|family| products_of(family, run, true))
}

#[test]
fn the_address_and_undefined_behaviour_sanitizers_find_nothing() {
    in_every_mode(Build::Address, 1, everything_small);
}

#[test]
fn the_thread_sanitizer_finds_no_race() {
    let Some(driver) = driver::driver(Build::Thread) else { return };
    // Races are found from missing edges, whatever the order of events: one delivery mode shows them.
    let run = &Run::all(&driver, Build::Thread, 1)[0];
    everything_small(run).unwrap_or_else(|e| panic!("{e}"));
}

/// Whole layers reach every kernel of the registry, and every kernel that is compiled is known.
#[test]
fn whole_layers_agree_with_the_reference_and_reach_every_kernel() {
    let Some(driver) = driver::driver(Build::Plain) else { return };
    let mut reached = BTreeSet::new();
    for run in Run::all(&driver, Build::Plain, 1) {
        reached.extend(layers::check_all(&run).unwrap_or_else(|e| panic!("{e}")));
    }
    let missed: Vec<&str> =
        kernel_names().into_iter().filter(|name| !reached.contains(name)).collect();
    assert!(missed.is_empty(), "no layer reaches {missed:?}");
    let known = kernel_names();
    let apart = |name: &str| {
        name.starts_with("probe_") || name == "config_check" || name == "permute_gather_bf16"
    };
    let compiled = driver::kernels_of(&driver);
    let unknown: Vec<&String> =
        compiled.iter().filter(|n| !known.contains(&n.as_str()) && !apart(n)).collect();
    assert!(unknown.is_empty(), "in no registry: {unknown:?}");
    let absent: Vec<&&str> = known.iter().filter(|n| !compiled.iter().any(|c| c == *n)).collect();
    assert!(absent.is_empty(), "in no source: {absent:?}");
    eprintln!("reached: {}", reached.into_iter().collect::<Vec<_>>().join(" "));
}

#[test]
fn host_and_device_lay_out_their_structs_alike() {
    in_every_mode(Build::Plain, 1, layout::check);
}

/// Half of the planted faults; the other half is a test of its own, so that two build side by side.
fn every_second_fault_is_caught(first: usize) {
    if driver::driver(Build::Plain).is_none() {
        return;
    }
    let all = mutants::find();
    assert!(all.len() >= 20, "only {} faults are planted", all.len());
    let mut survived = Vec::new();
    for mutant in all.iter().skip(first).step_by(2) {
        let name = format!("{} in {}", mutant.switch, mutant.source.display());
        match mutants::caught(mutant) {
            Some(said) => eprintln!("{name}: {}", said.rsplit("]: ").next().unwrap_or(&said)),
            None => survived.push(name),
        }
    }
    assert!(survived.is_empty(), "not noticed: {survived:#?}");
}

#[test]
fn planted_faults_are_caught() {
    every_second_fault_is_caught(0);
}

#[test]
fn more_planted_faults_are_caught() {
    every_second_fault_is_caught(1);
}

/// One test of a GPU for each family of kernels, so that each can have a process of its own: a kernel that
/// breaks its context takes no other along. Their names are what the scripts of `kernels/bundle` run:
/// `small` in minutes, `full` with time.
mod on_a_gpu {
    use super::*;

    fn small(check: impl Fn(&Run) -> Outcome) {
        super::on_a_gpu(check);
    }

    #[test]
    fn small_1_instructions() {
        small(|run| probes::instructions(run).map(|_| ()));
    }

    #[test]
    fn small_2_structs_and_ceilings() {
        small(|run| layout::check(run).and_then(|()| probes::check(run).map(|_| ())));
    }

    #[test]
    fn small_3_routers() {
        small(|run| routers::check(run, true));
    }

    #[test]
    fn small_4_alignment() {
        small(|run| alignment::check(run, true));
    }

    #[test]
    fn small_5_sums() {
        small(|run| sums::check(run, true));
    }

    #[test]
    fn small_6_matrix_vector_products() {
        small(|run| products_of(Family::Gemv, run, true));
    }

    #[test]
    fn small_7_generic_products() {
        small(|run| products_of(Family::Generic, run, true));
    }

    #[test]
    fn small_8_hopper_products() {
        small(|run| products_of(Family::Sm90, run, true));
    }

    #[test]
    fn small_9_swapped_operands() {
        small(|run| products_of(Family::SwapAb, run, true));
    }

    #[test]
    fn full_1_routers() {
        super::on_a_gpu(|run| routers::check(run, false));
    }

    #[test]
    fn full_2_alignment() {
        super::on_a_gpu(|run| alignment::check(run, false));
    }

    #[test]
    fn full_3_sums() {
        super::on_a_gpu(|run| sums::check(run, false));
    }

    #[test]
    fn full_4_matrix_vector_products() {
        super::on_a_gpu(|run| products_of(Family::Gemv, run, false));
    }

    #[test]
    fn full_5_generic_products() {
        super::on_a_gpu(|run| products_of(Family::Generic, run, false));
    }

    #[test]
    fn full_6_hopper_products() {
        super::on_a_gpu(|run| products_of(Family::Sm90, run, false));
    }

    #[test]
    fn full_7_swapped_operands() {
        super::on_a_gpu(|run| products_of(Family::SwapAb, run, false));
    }

    #[test]
    fn full_8_every_weight_is_read_from_its_place() {
        super::on_a_gpu(|run| {
            let runs = |k: &&ProductKernel| k.family.runs_on(run.board().facts());
            each_kernel(run, PRODUCTS.iter().filter(runs), |kernel| addresses::check(kernel, run))
        });
    }

    #[test]
    fn full_9_whole_layers() {
        super::on_a_gpu(|run| {
            if !run.board().facts().is_hopper() {
                eprintln!("SKIPPED: these layers name Hopper kernels");
                return Ok(());
            }
            layers::check_all(run).map(|_| ())?;
            layers::check_repeats(run)
        });
    }

    #[test]
    fn full_a_models() {
        super::on_a_gpu(|run| if run.seed == 1 { models::check_all() } else { Ok(()) });
    }

    #[test]
    fn full_b_weights_behind_four_billion_others() {
        super::on_a_gpu(|run| {
            let runs = |k: &&ProductKernel| k.family.runs_on(run.board().facts());
            let kernels = PRODUCTS.iter().filter(runs);
            each_kernel(run, kernels, |kernel| products::check_large_stack(kernel, run))
        });
    }
}
