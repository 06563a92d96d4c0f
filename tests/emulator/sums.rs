//! The weighted sum of each token's rows.

use half::bf16;
use moe_frontier::gpu::Launcher;
use moe_frontier::kernels::gpu::Matrix;
use moe_frontier::kernels::gpu::launches::{CombineLaunch, combine};
use moe_frontier::kernels::stages;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::suite::{self, Batch, Outcome, Run};

/// (tokens, hidden, `top_k`, output in single precision).
const SMALL: [(usize, usize, usize, bool); 2] = [(1, 8, 1, false), (3, 72, 2, true)];
const LARGE: [(usize, usize, usize, bool); 4] =
    [(17, 136, 3, false), (66, 64, 9, true), (2, 2056, 8, false), (130, 192, 17, false)];

/// Runs every case in one batch.
pub(crate) fn check(run: &Run, small: bool) -> Outcome {
    let mut batch = Batch::new(run);
    let cases = SMALL.iter().chain(LARGE.iter().filter(|_| !small));
    for (i, &case) in cases.enumerate() {
        prepare(case, i as u64 + 100 * run.seed, &mut batch)?;
    }
    batch.finish()
}

fn prepare(
    (tokens, hidden, top_k, f32_out): (usize, usize, usize, bool),
    seed: u64,
    batch: &mut Batch,
) -> Outcome {
    let rng = &mut suite::rng(seed);
    let pairs = tokens * top_k;
    let y: Vec<bf16> = (0..(pairs + 3) * hidden).map(|_| suite::normal(rng, 1.0)).collect();
    let mut rows: Vec<i32> = (0..i32::try_from(pairs + 3).unwrap()).collect();
    rows.shuffle(rng);
    rows.truncate(pairs);
    // Some pairs were dropped, but for the first token: its sum shows every slot.
    rows.iter_mut().skip(top_k).step_by(5).for_each(|row| *row = -1);
    let weights: Vec<f32> = (0..pairs).map(|_| rng.random_range(-1.0..1.0)).collect();
    let (board, poison) = (&mut batch.board, batch.poison);
    let small = |n: usize| u32::try_from(n).unwrap();
    let (size, stride) = (if f32_out { 4 } else { 2 }, hidden + 8);
    let out = board.allocate((tokens * stride * size) as u64).unwrap();
    let launch = CombineLaunch {
        y: suite::input(board, &suite::bytes_bf16(&y)),
        rows: small(pairs + 3),
        pair_rows: suite::input(board, &suite::bytes_i32(&rows)),
        topk_weights: suite::input(board, &suite::bytes_f32(&weights)),
        out: Matrix { region: out, stride: stride as u64 },
        out_f32: f32_out,
        tokens: small(tokens),
        hidden: small(hidden),
        top_k: small(top_k),
        overlaps: true,
    };
    combine(board, &launch).map_err(|e| e.to_string())?;
    let name = format!("combine {tokens}x{hidden} top {top_k} f32 {f32_out} seed {seed}");
    batch.check(name, move |board| {
        let got: Vec<f32> = if f32_out {
            suite::read_f32(board, out)?
        } else {
            suite::read_bf16(board, out)?.into_iter().map(f32::from).collect()
        };
        let untouched = if f32_out { poison } else { poison << 16 };
        for (i, &got) in got.iter().enumerate() {
            let (token, n) = (i / stride, i % stride);
            if n >= hidden {
                if got.to_bits() != untouched {
                    return Err(format!("the gap behind token {token} was written"));
                }
                continue;
            }
            let slots = token * top_k..(token + 1) * top_k;
            let terms = slots.filter_map(|pair| {
                let row = usize::try_from(rows[pair]).ok()?;
                Some((weights[pair], y[row * hidden + n].to_f64()))
            });
            let exact = stages::combine(terms, f32_out);
            if !suite::within(f64::from(got), &exact) {
                return Err(format!("token {token}, column {n}: {got}, not {exact:?}"));
            }
        }
        Ok(())
    });
    Ok(())
}
