//! The CUDA kernels, executed without a GPU: the same sources, compiled by the host's C++ compiler and
//! run in the emulator of `kernels/emu`, held to the references in every delivery mode.
//!
//! `EMU_SEEDS=n` widens the search. Without a compiler the tests say that they were skipped; with `CI`
//! set that is a failure.

#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod driver;
mod products;
mod suite;

use driver::Build;
use moe_frontier::kernels::gpu::{Family, PRODUCTS};
use suite::Run;

/// The kernels of a family in one build.
fn check_family(family: Family, build: Build, seeds: u64) {
    let Some(driver) = driver::driver(build) else { return };
    let small = build != Build::Plain;
    for kernel in PRODUCTS.iter().filter(|k| k.family == family) {
        for run in Run::all(&driver, build, seeds) {
            products::check(kernel, &run, small).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

#[test]
fn matrix_vector_products_agree_with_the_reference() {
    check_family(Family::Gemv, Build::Plain, 2);
}

#[test]
fn generic_products_agree_with_the_reference() {
    check_family(Family::Generic, Build::Plain, 2);
}

#[test]
fn hopper_products_agree_with_the_reference() {
    check_family(Family::Sm90, Build::Plain, 2);
}

#[test]
fn products_with_swapped_operands_agree_with_the_reference() {
    check_family(Family::SwapAb, Build::Plain, 2);
}
