//! `compare --run` on this machine, with real kernels in real processes: how often a command compared with itself
//! is called different, and how often a tenth more work is found. Minutes long, so on demand:
//!
//! `cargo test --test compare_figures -- --ignored --nocapture figures` prints the counts;
//! `MOE_FRONTIER_COMPARISONS` is the number of the former, half of it of the latter;
//! `MOE_FRONTIER_COMPARISON_MS` is the time for each.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use moe_frontier::Result;
use moe_frontier::kernels::cpu::CpuBackend;
use moe_frontier::kernels::{LayerWeights, MoeShape, Routed, WeightData};
use moe_frontier::measure::pairs::{Paired, Printed, Shell, compare};
use moe_frontier::stats::interval::median;
use moe_frontier::stats::paired::Verdict;

/// Launches in a sample; a slower command makes one more, and says that they were as many.
const LAUNCHES: usize = 10;
/// Samples of a cell in one execution.
const SAMPLES: usize = 9;
/// Tokens of the cells.
const TOKENS: [usize; 2] = [1, 8];

/// One execution of a command: the median time of one launch of each cell. Not a test by itself.
#[test]
#[ignore = "run by `figures`, once for each execution"]
fn an_execution() {
    let extra = usize::from(std::env::var_os("MOE_FRONTIER_EXTRA_LAUNCH").is_some());
    let shape = MoeShape { experts: 4, top_k: 1, hidden: 32, inter: 64, gated: true };
    let values = |n: usize| (0..n).map(|i| ((i * 7) % 13) as f32 * 0.01 - 0.06).collect();
    let (w13, w2): (Vec<f32>, Vec<f32>) =
        (values(shape.w13_len().unwrap()), values(shape.w2_len().unwrap()));
    let weights =
        LayerWeights::new(shape, WeightData::F32(w13.into()), WeightData::F32(w2.into())).unwrap();
    let backend = CpuBackend::new();
    for tokens in TOKENS {
        let x: Vec<f32> = values(tokens * shape.hidden);
        let ids = (0..tokens).map(|token| u32::try_from(token % 4).unwrap()).collect();
        let routed = Routed { ids, weights: vec![1.0; tokens] };
        let sample = |launches: usize| {
            let start = Instant::now();
            for _ in 0..launches {
                std::hint::black_box(backend.forward(&weights, &x, &routed).unwrap());
            }
            start.elapsed().as_secs_f64() / LAUNCHES as f64
        };
        sample(3);
        let samples: Vec<f64> = (0..SAMPLES).map(|_| sample(LAUNCHES + extra)).collect();
        println!("\ncell {tokens} {:e}", median(&samples).unwrap());
    }
}

/// The cells that an execution prints.
#[expect(clippy::unnecessary_wraps, reason = "readers of other outputs can fail")]
fn read(_: &str, output: &[u8]) -> Result<Option<Printed>> {
    let text = String::from_utf8_lossy(output);
    let cells: BTreeMap<String, f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("cell ")?.split_once(' '))
        .filter_map(|(tokens, seconds)| Some((tokens.to_owned(), seconds.parse().ok()?)))
        .collect();
    Ok(Some(Printed { cells, partial: None }))
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

fn compared(extra: bool, budget: Duration) -> Paired {
    let program = std::env::current_exe().unwrap();
    let plain = format!("'{}' --ignored --exact an_execution --nocapture", program.display());
    let other = if extra { format!("MOE_FRONTIER_EXTRA_LAUNCH=1 {plain}") } else { plain.clone() };
    let stop = AtomicBool::new(false);
    compare(&mut Shell { read }, [&plain, &other], budget, &mut (), &stop).unwrap()
}

/// Verdicts over many comparisons: cells, those called different, those called slower, and comparisons with
/// a cell that is called different.
#[derive(Debug, Default)]
struct Counts {
    cells: usize,
    different: usize,
    slower: usize,
    comparisons: usize,
    with_a_difference: usize,
    rounds: u32,
}

fn counts(extra: bool, comparisons: u64, budget: Duration) -> Counts {
    let mut counts = Counts::default();
    for _ in 0..comparisons {
        let paired = compared(extra, budget);
        let verdicts: Vec<Verdict> =
            paired.cells.iter().map(|cell| cell.effect.unwrap().verdict(0.0)).collect();
        let is_different = |v: &&Verdict| matches!(v, Verdict::Faster | Verdict::Slower);
        let different = verdicts.iter().filter(is_different).count();
        counts.cells += verdicts.len();
        counts.different += different;
        counts.slower += verdicts.iter().filter(|v| **v == Verdict::Slower).count();
        counts.comparisons += 1;
        counts.with_a_difference += usize::from(different > 0);
        counts.rounds += paired.rounds;
        if counts.comparisons.is_multiple_of(10) {
            eprintln!("{} work: {counts:?}", if extra { "a tenth more" } else { "the same" });
        }
    }
    counts
}

#[test]
#[ignore = "takes minutes: figures for reports/compare.md"]
fn figures() {
    let comparisons = number("MOE_FRONTIER_COMPARISONS", 200);
    let budget = Duration::from_millis(number("MOE_FRONTIER_COMPARISON_MS", 4000));
    let same = counts(false, comparisons, budget);
    let slower = counts(true, comparisons.div_ceil(2), budget);
    eprintln!("the same work: {same:?}\na tenth more work: {slower:?}");
    let share = |part: usize, whole: usize| part as f64 / whole as f64;
    assert!(share(same.different, same.cells) <= 0.06, "{same:?}");
    assert!(share(slower.slower, slower.cells) >= 0.9, "{slower:?}");
}

/// A short form of the same: the processes, their cells and that each has an interval. No verdict is asserted
/// on a machine that others use.
#[test]
fn processes_are_compared_by_the_cells_that_they_print() {
    let paired = compared(false, Duration::from_secs(20));
    let names: Vec<&str> = paired.cells.iter().map(|cell| cell.name.as_str()).collect();
    assert_eq!(names, ["1", "8"]);
    assert!(paired.by_profile && paired.rounds >= 6 && paired.failure.is_none(), "{paired:?}");
    assert!(paired.cells.iter().all(|cell| cell.a_s > 0.0 && cell.effect.is_some()));
}
