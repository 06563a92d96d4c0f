//! Warm-up, blocks, and when a cell has been measured well enough.
//!
//! A block is a run of consecutive samples whose median counts as one value; a cell closes on the
//! width of the interval over its block medians, never on what the value is.

use std::sync::atomic::{AtomicBool, Ordering};

use super::timing::{Clock, Launch};
use crate::record::{
    Block, Counts, Flag, IntervalRecord, IntervalUnit, LatencyRecord, PercentileRecord,
    Percentiles, Status,
};
use crate::stats::interval::{MIN_BLOCKS, MedianInterval, median, median_interval, percentile};
use crate::stats::{Percentile, tukey_counts};
use crate::{Error, Result};

/// Rounds after which open cells are looked at; at the last one they close in any case.
pub const LOOKS: [u32; 4] = [6, 10, 14, 20];

/// Half-width of the interval at which a CPU cell closes as valid.
pub const CPU_WIDTH: f64 = 0.03;

/// The same for a GPU cell.
pub const GPU_WIDTH: f64 = 0.01;

/// Shortest sample by the host's clock: reading it takes some 25 ns, and this keeps it below 0.2 %.
const HOST_SAMPLE_NS: u64 = 20_000;

/// Shortest sample by a GPU's events, which resolve half a microsecond: 0.25 %.
const EVENT_SAMPLE_NS: u64 = 200_000;

/// How long one block lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRule {
    /// Samples that a block has at least, unless `cap_ns` is reached first.
    pub min_samples: usize,
    /// Busy time that it has at least.
    pub min_busy_ns: u64,
    /// Busy time after which it ends with at least three samples.
    pub cap_ns: u64,
    /// Launches shorter than this are batched into one sample.
    pub shortest_sample_ns: u64,
}

impl BlockRule {
    /// 20 samples and 200 ms, for cells that are kept and compared.
    pub const FULL: Self = Self {
        min_samples: 20,
        min_busy_ns: 200_000_000,
        cap_ns: 1_000_000_000,
        shortest_sample_ns: HOST_SAMPLE_NS,
    };

    /// 5 samples and 25 ms: many cells in a minute, with wider intervals.
    pub const QUICK: Self = Self {
        min_samples: 5,
        min_busy_ns: 25_000_000,
        cap_ns: 60_000_000,
        shortest_sample_ns: HOST_SAMPLE_NS,
    };

    /// The same rule for a device that is timed by its own events: half the time is enough on a
    /// processor that nobody else uses, and a few of the longest launches.
    pub const fn for_events(self) -> Self {
        Self {
            min_busy_ns: self.min_busy_ns / 2,
            cap_ns: self.cap_ns / 4,
            shortest_sample_ns: EVENT_SAMPLE_NS,
            ..self
        }
    }

    /// Whether a block with this much in it is complete.
    const fn is_complete(&self, samples: usize, busy_ns: u64) -> bool {
        (samples >= self.min_samples && busy_ns >= self.min_busy_ns)
            || (samples >= 3 && busy_ns >= self.cap_ns)
    }

    /// Expected busy time of a block whose launches take `launch_ns`.
    pub fn expected_ns(&self, launch_ns: f64) -> f64 {
        let full = (self.min_samples as f64 * launch_ns).max(self.min_busy_ns as f64);
        full.min((self.cap_ns as f64).max(3.0 * launch_ns))
    }
}

/// The samples of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSamples {
    /// Elapsed time of each sample, in nanoseconds.
    pub samples_ns: Vec<u64>,
    /// Launches in each sample.
    pub launches_per_sample: u32,
    /// Turn of the first launch; turns go on through the samples.
    pub first_turn: usize,
}

impl BlockSamples {
    /// Time of one launch in each sample, in picoseconds.
    pub fn per_launch_ps(&self) -> impl Iterator<Item = f64> + '_ {
        self.samples_ns.iter().map(|ns| *ns as f64 * 1000.0 / f64::from(self.launches_per_sample))
    }

    /// The block as the profile keeps it; `None` without samples.
    pub fn record(&self, round: u32, contended: bool) -> Option<Block> {
        let per_launch: Vec<f64> = self.per_launch_ps().collect();
        Some(Block {
            round,
            median_ps: whole(median(&per_launch)?),
            samples: self.samples_ns.len(),
            launches_per_sample: self.launches_per_sample,
            contended,
            sm_clock_mhz: None,
        })
    }
}

/// Launches until three launches and `busy_ns` have passed; returns the shortest launch, in ns.
///
/// # Errors
/// What the kernel reports.
pub fn warm_up(kernel: &mut dyn Launch, clock: &dyn Clock, busy_ns: u64) -> Result<u64> {
    let start = clock.now_ns();
    let mut shortest = u64::MAX;
    for turn in 0.. {
        kernel.prepare()?;
        let least = kernel.least_launches();
        shortest = shortest.min(kernel.time(clock, turn, least)? / u64::from(least));
        if turn >= 2 && clock.now_ns().saturating_sub(start) >= busy_ns {
            break;
        }
    }
    Ok(shortest)
}

/// Takes one block. `launch_ns` is the kernel's rough duration, `turn` goes on between blocks.
/// `None` when `stop` was raised: an abandoned block leaves nothing behind.
///
/// # Errors
/// What the kernel reports, and [`Error::Unfit`] for an interval that is not positive.
pub fn take_block(
    kernel: &mut dyn Launch,
    clock: &dyn Clock,
    rule: BlockRule,
    launch_ns: u64,
    turn: &mut usize,
    stop: &AtomicBool,
) -> Result<Option<BlockSamples>> {
    let batch = rule.shortest_sample_ns.div_ceil(launch_ns.max(20)).clamp(1, 1000);
    let least = kernel.least_launches();
    let launches_per_sample = u32::try_from(batch).unwrap_or(1).next_multiple_of(least);
    let (mut samples_ns, mut busy_ns) = (Vec::new(), 0);
    let first_turn = *turn;
    while !rule.is_complete(samples_ns.len(), busy_ns) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        kernel.prepare()?;
        let elapsed = kernel.time(clock, *turn, launches_per_sample)?;
        *turn += launches_per_sample as usize;
        if elapsed == 0 {
            return Err(Error::unfit("sample", "the clock did not advance during a launch"));
        }
        samples_ns.push(elapsed);
        busy_ns += elapsed;
    }
    Ok(Some(BlockSamples { samples_ns, launches_per_sample, first_turn }))
}

/// What the blocks of one cell amount to.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Status of the cell.
    pub status: Status,
    /// Circumstances that the samples show.
    pub flags: Vec<Flag>,
    /// The value, or why there is none.
    pub latency: LatencyRecord,
    /// Upper percentiles over single samples.
    pub percentiles: Percentiles,
    /// Counts over all samples.
    pub counts: Counts,
}

/// Whether a cell with these blocks may close at a look after `round` rounds.
pub fn is_closed(blocks: &[Block], round: u32, width: f64) -> bool {
    let last = LOOKS[LOOKS.len() - 1];
    round >= last
        || (LOOKS.contains(&round)
            && interval_of(blocks).is_some_and(|i| i.half_width_rel() <= width))
}

/// Summarises the blocks of one cell; `samples_ps` are the times of one launch in all samples. The cell is
/// graded by what its blocks say, up to a half-width of `width`; its interval is wider by `between_runs`.
pub fn summarise(blocks: &[Block], samples_ps: &[f64], width: f64, between_runs: f64) -> Summary {
    let tukey = tukey_counts(samples_ps);
    let counts =
        Counts { samples: samples_ps.len(), tukey_mild: tukey.mild, tukey_severe: tukey.severe };
    let mut flags = Vec::new();
    // One reading of the scheduler catches a passing thread; half of the blocks are no accident.
    if blocks.iter().filter(|b| b.contended).count() * 2 > blocks.len() {
        flags.push(Flag::Contended);
    }
    if tukey.severe * 20 > samples_ps.len() {
        flags.push(Flag::SevereOutliers);
    }
    let (status, latency) = match interval_of(blocks) {
        None => (
            Status::Incomplete,
            LatencyRecord::Absent(format!(
                "{} blocks; an interval needs {MIN_BLOCKS}",
                blocks.len()
            )),
        ),
        Some(interval) => {
            let quiet = interval.half_width_rel() <= width && !flags.contains(&Flag::Contended);
            let status = if quiet { Status::Valid } else { Status::Noisy };
            let interval = interval.widened(between_runs);
            (status, LatencyRecord::Interval(interval_record(&interval, blocks.len())))
        }
    };
    let percentiles = Percentiles {
        p90: percentile_record(samples_ps, 0.9),
        p99: percentile_record(samples_ps, 0.99),
    };
    Summary { status, flags, latency, percentiles, counts }
}

fn interval_of(blocks: &[Block]) -> Option<MedianInterval> {
    let medians: Vec<f64> = blocks.iter().map(|b| b.median_ps as f64).collect();
    median_interval(&medians)
}

fn interval_record(interval: &MedianInterval, n: usize) -> IntervalRecord {
    IntervalRecord {
        median_ps: whole(interval.median),
        lo_ps: whole(interval.lo),
        hi_ps: whole(interval.hi),
        confidence: interval.confidence,
        n,
        interval_unit: IntervalUnit::Block,
    }
}

fn percentile_record(samples_ps: &[f64], p: f64) -> PercentileRecord {
    match percentile(samples_ps, p) {
        Some(Percentile::Value(v)) => PercentileRecord::ValuePs(whole(v)),
        Some(Percentile::Withheld { needs, has }) => {
            PercentileRecord::Withheld(format!("needs {needs} samples, has {has}"))
        }
        None => PercentileRecord::Withheld("no samples".into()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "durations are positive and far below 2^63 ps (106 days); the cast saturates"
)]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::super::timing::fake::FakeClock;
    use super::*;

    fn blocks(medians: &[u64]) -> Vec<Block> {
        (1..)
            .zip(medians)
            .map(|(round, &median_ps)| Block {
                round,
                median_ps,
                samples: 1,
                launches_per_sample: 1,
                contended: false,
                sm_clock_mhz: None,
            })
            .collect()
    }

    fn take(launch_ns: u64, rule: BlockRule) -> BlockSamples {
        let clock = FakeClock::default();
        let mut kernel = |_: usize| {
            clock.advance(launch_ns);
            Ok(())
        };
        let stop = AtomicBool::new(false);
        take_block(&mut kernel, &clock, rule, launch_ns, &mut 0, &stop).unwrap().unwrap()
    }

    #[test]
    fn a_block_has_enough_samples_and_enough_time() {
        let short = take(1_000_000, BlockRule::FULL);
        assert_eq!((short.samples_ns.len(), short.launches_per_sample), (200, 1));
        let medium = take(30_000_000, BlockRule::FULL);
        assert_eq!(medium.samples_ns.len(), 20);
        let long = take(400_000_000, BlockRule::FULL);
        assert_eq!(long.samples_ns.len(), 3);
        for ns in [1_000_000, 30_000_000, 400_000_000_u64] {
            let busy: u64 = take(ns, BlockRule::FULL).samples_ns.iter().sum();
            assert!((BlockRule::FULL.expected_ns(ns as f64) / busy as f64 - 1.0).abs() < 0.01);
        }
    }

    #[test]
    fn launches_shorter_than_the_clock_can_tell_are_batched() {
        let tiny = take(100, BlockRule::QUICK);
        assert_eq!(tiny.launches_per_sample, 200);
        assert_eq!(tiny.record(1, false).unwrap().median_ps, 100_000);
    }

    #[test]
    fn warm_up_launches_at_least_three_times() {
        let clock = FakeClock::default();
        let mut launches = 0;
        let mut kernel = |_: usize| {
            launches += 1;
            clock.advance(50_000_000 / launches);
            Ok(())
        };
        assert_eq!(warm_up(&mut kernel, &clock, 25_000_000).unwrap(), 50_000_000 / 3);
        assert_eq!(launches, 3);
    }

    #[test]
    fn a_raised_stop_flag_abandons_the_block() {
        let clock = FakeClock::default();
        let stop = AtomicBool::new(false);
        let mut launches = 0;
        let mut kernel = |_: usize| {
            launches += 1;
            stop.store(launches == 2, Ordering::Relaxed);
            clock.advance(1_000_000);
            Ok(())
        };
        let taken = take_block(&mut kernel, &clock, BlockRule::FULL, 1_000_000, &mut 0, &stop);
        assert_eq!(taken.unwrap(), None);
        assert_eq!(launches, 2);
    }

    #[test]
    fn a_clock_that_stands_still_is_an_error() {
        let clock = FakeClock::default();
        let mut kernel = |_: usize| Ok(());
        let stop = AtomicBool::new(false);
        let taken = take_block(&mut kernel, &clock, BlockRule::QUICK, 1000, &mut 0, &stop);
        assert_eq!(taken.unwrap_err().exit_code(), 4);
    }

    #[test]
    fn cells_close_on_width_at_the_looks_only() {
        let tight = blocks(&[1000, 1001, 1002, 1003, 1004, 1005]);
        let wide = blocks(&[1000, 1100, 1200, 1300, 1400, 1500]);
        assert!(is_closed(&tight, 6, CPU_WIDTH));
        assert!(!is_closed(&tight, 7, CPU_WIDTH));
        assert!(!is_closed(&tight[..5], 6, CPU_WIDTH));
        assert!(!is_closed(&wide, 6, CPU_WIDTH));
        assert!(is_closed(&wide, 20, CPU_WIDTH));
    }

    #[test]
    fn the_status_follows_from_blocks_width_and_contention() {
        let status = |b: &[Block]| summarise(b, &[1.0; 30], CPU_WIDTH, 0.0).status;
        let tight = blocks(&[1000, 1001, 1002, 1003, 1004, 1005]);
        assert_eq!(status(&tight), Status::Valid);
        assert_eq!(status(&tight[..5]), Status::Incomplete);
        assert_eq!(status(&blocks(&[1000, 1100, 1200, 1300, 1400, 1500])), Status::Noisy);
        let mut contended = tight.clone();
        for block in contended.iter_mut().take(4) {
            block.contended = true;
        }
        let summary = summarise(&contended, &[1.0; 30], CPU_WIDTH, 0.0);
        assert_eq!((summary.status, summary.flags), (Status::Noisy, vec![Flag::Contended]));
    }

    #[test]
    fn severe_outliers_are_counted_and_flagged_not_dropped() {
        let mut samples: Vec<f64> = (0..100).map(|i| 1000.0 + f64::from(i % 7)).collect();
        samples.extend([1e6; 10]);
        let tight = blocks(&[1000, 1001, 1002, 1003, 1004, 1005]);
        let summary = summarise(&tight, &samples, CPU_WIDTH, 0.0);
        assert_eq!((summary.counts.samples, summary.counts.tukey_severe), (110, 10));
        assert_eq!(summary.flags, [Flag::SevereOutliers]);
        assert_eq!(summary.percentiles.p90, PercentileRecord::ValuePs(1006));
        assert_eq!(
            summary.percentiles.p99,
            PercentileRecord::Withheld("needs 299 samples, has 110".into())
        );
    }

    #[test]
    fn linear_drift_over_the_rounds_stays_inside_the_interval() {
        // A kernel that slows by 1 % a round: the true median over the run is in the middle.
        let drifting: Vec<u64> = (0..6).map(|r| 1_000_000 + 10_000 * r).collect();
        let interval = |between_runs| {
            let summary = summarise(&blocks(&drifting), &[1.0; 6], CPU_WIDTH, between_runs);
            (summary.status, *summary.latency.interval().unwrap())
        };
        let (status, alone) = interval(0.0);
        assert!(alone.lo_ps <= 1_025_000 && 1_025_000 <= alone.hi_ps);
        // What changes between runs widens the interval and not the grade.
        let (same_status, wider) = interval(0.02);
        assert_eq!((status, alone.median_ps), (same_status, wider.median_ps));
        assert_eq!((wider.lo_ps, wider.hi_ps), (980_392, 1_071_000));
    }
}
