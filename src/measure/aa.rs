//! One kernel compared with itself: what this machine cannot tell apart, and whether its comparisons
//! are biased.

use super::cell::CellState;
use super::timing::{Clock, Launch};
use crate::Result;
use crate::record::{AaVerdict, Device};
use crate::stats::paired::{SMALLEST_EFFECT, block_log_ratio, paired_effect};

/// Samples in one slot of A B B A.
const SLOT_SAMPLES: usize = 5;
/// Duration of the canary's launch that is looked for: long against the clock, short against a round.
const CANARY_NS: f64 = 1e6;

/// A cell is never graded valid with a half-width above this, whatever the machine's own noise.
pub(super) const WIDEST_GRADE: f64 = 0.10;
/// What changes between two runs of one device at least, as a share: memory lies elsewhere, clocks start
/// elsewhere, neighbours come and go. Repeats of runs on quiet shared CPUs lay 2 % apart, outside of one
/// interval in two; for GPUs it is the smallest effect that is ever called a difference.
const BETWEEN_RUNS_CPU: f64 = 0.02;
const BETWEEN_RUNS_GPU: f64 = SMALLEST_EFFECT;

/// What changes between runs and is constant in this one: on a machine that others use, as much as it moves
/// one kernel against itself within the run.
pub(super) fn between_runs(device: &Device, noise_floor_rel: f64) -> f64 {
    let least = match device {
        Device::Cpu(_) => BETWEEN_RUNS_CPU,
        Device::Gpu(_) => BETWEEN_RUNS_GPU,
    };
    least.max(noise_floor_rel.min(WIDEST_GRADE))
}

/// A noise floor at which every effect counts as noise: nothing is known, or two rounds lie so far apart that
/// their interval says as little. A profile does not carry more.
const NOTHING_KNOWN: f64 = 1.0;

/// Log ratios of one kernel against itself, one a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Aa {
    log_ratios: Vec<f64>,
}

impl Aa {
    /// Adds one round.
    pub(super) fn add(&mut self, log_ratio: Option<f64>) {
        self.log_ratios.extend(log_ratio);
    }

    /// Effect, half-width and verdict. A clean run's interval misses zero in one run of twenty: only
    /// when it does so in both halves of the rounds too is the run called biased.
    pub(super) fn verdict(&self) -> (f64, f64, AaVerdict) {
        let Some(all) = paired_effect(&self.log_ratios) else {
            return (0.0, NOTHING_KNOWN, AaVerdict::Clean);
        };
        let half_width = (all.hi - all.lo) / 2.0;
        let misses =
            |ratios: &[f64]| paired_effect(ratios).is_some_and(|e| e.lo > 0.0 || e.hi < 0.0);
        let (first, second) = self.log_ratios.split_at(self.log_ratios.len() / 2);
        let biased = misses(&self.log_ratios) && misses(first) && misses(second);
        let verdict = if biased { AaVerdict::Biased } else { AaVerdict::Clean };
        let effect = all.effect.clamp(-NOTHING_KNOWN, NOTHING_KNOWN);
        (effect, half_width.clamp(f64::MIN_POSITIVE, NOTHING_KNOWN), verdict)
    }
}

/// The log ratio of a kernel against itself in the four slots of one round: A B B A in odd rounds,
/// B A A B in even ones; `None` when a slot has no time.
///
/// # Errors
/// What the kernel reports.
pub(super) fn log_ratio(
    kernel: &mut dyn Launch,
    clock: &dyn Clock,
    round: u32,
) -> Result<Option<f64>> {
    let mut slots: Vec<Vec<f64>> = Vec::with_capacity(4);
    for _ in 0..4 {
        let mut slot = Vec::with_capacity(SLOT_SAMPLES);
        for turn in 0..SLOT_SAMPLES {
            kernel.prepare()?;
            let launches = kernel.least_launches();
            slot.push(kernel.time(clock, turn, launches)?.max(1) as f64);
        }
        slots.push(slot);
    }
    let (outer, inner) = ([&*slots[0], &*slots[3]], [&*slots[1], &*slots[2]]);
    let (a, b) = if round % 2 == 1 { (outer, inner) } else { (inner, outer) };
    Ok(block_log_ratio(a, b))
}

/// The cell whose launch is nearest to a millisecond.
pub(super) fn canary(cells: &[CellState]) -> Option<usize> {
    let distance = |cell: &CellState| (cell.launch_ns().unwrap_or(1e18) / CANARY_NS).ln().abs();
    let alive = cells.iter().enumerate().filter(|(_, c)| c.is_alive() && c.launch_ns().is_some());
    alive.min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    use super::super::timing::fake::FakeClock;
    use super::*;

    fn verdicts(drift: f64, bias: f64) -> (usize, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (mut biased, mut widths) = (0, 0.0);
        for _ in 0..300 {
            let clock = FakeClock::default();
            let mut aa = Aa::default();
            let mut launch = 0_u32;
            for round in 1..=8 {
                let mut kernel = |_: usize| {
                    let slot = launch / 5 % 4;
                    let inner = slot == 1 || slot == 2;
                    let second = inner == (round % 2 == 1);
                    let noise: f64 = rng.sample(StandardNormal);
                    let time = 1e6
                        * (1.0 + drift * f64::from(launch) + 0.01 * noise)
                        * if second { 1.0 + bias } else { 1.0 };
                    launch += 1;
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "made-up time"
                    )]
                    clock.advance(time as u64);
                    Ok(())
                };
                aa.add(log_ratio(&mut kernel, &clock, round).unwrap());
            }
            let (_, width, verdict) = aa.verdict();
            biased += usize::from(verdict == AaVerdict::Biased);
            widths += width / 300.0;
        }
        (biased, widths)
    }

    #[test]
    fn two_rounds_far_apart_say_nothing_and_can_be_written() {
        for ratios in [[1.4, -1.4], [700.0, -700.0], [5.0, 5.1], [0.0, 0.0]] {
            let (effect, floor, verdict) = Aa { log_ratios: ratios.to_vec() }.verdict();
            assert!(effect.abs() <= 1.0 && floor > 0.0 && floor <= 1.0, "{effect} {floor}");
            assert_eq!(verdict, AaVerdict::Clean);
        }
    }

    #[test]
    fn a_kernel_against_itself_is_rarely_called_biased_even_under_drift() {
        for drift in [0.0, 0.001] {
            let (biased, width) = verdicts(drift, 0.0);
            assert!(biased <= 6, "{biased} of 300 clean runs");
            assert!(width > 0.001 && width < 0.02, "{width}");
        }
    }

    #[test]
    fn a_real_bias_is_found() {
        assert!(verdicts(0.0, 0.1).0 >= 290);
    }

    #[test]
    fn without_rounds_everything_is_noise() {
        let (effect, width, verdict) = Aa::default().verdict();
        assert_eq!((effect, width, verdict), (0.0, 1.0, AaVerdict::Clean));
    }
}
