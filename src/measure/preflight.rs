//! Who else uses the processor: read before and between blocks, so that a time taken on a contended
//! machine says so.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Stolen time above this share makes a block contended.
const STEAL_LIMIT: f64 = 0.01;

/// Readings of the scheduler. `None` where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Load average over one minute.
    pub load_1min: Option<f64>,
    /// Threads that are running or waiting for a processor, this one included.
    pub runnable: Option<u32>,
    /// Ticks of all processors since boot: stolen by the hypervisor, and in total.
    pub ticks: Option<(u64, u64)>,
}

impl Load {
    /// Reads the kernel's counters.
    pub fn read() -> Self {
        let average = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self::parse(&average, &stat)
    }

    /// Reads the counters once this program's own threads, which look for work for a moment after
    /// their last, have gone to sleep: the fewest runnable threads of a few readings.
    pub fn read_settled() -> Self {
        const READINGS: usize = 3;
        const APART: Duration = Duration::from_micros(300);
        let mut settled = Self::default();
        for _ in 0..READINGS {
            std::thread::sleep(APART);
            let now = Self::read();
            let fewest = settled.runnable.into_iter().chain(now.runnable).min();
            settled = Self { runnable: fewest, ..now };
            if fewest.is_none_or(|runnable| runnable <= 1) {
                break;
            }
        }
        settled
    }

    /// Parses `/proc/loadavg` and the first line of `/proc/stat`.
    fn parse(average: &str, stat: &str) -> Self {
        let mut fields = average.split_whitespace();
        let load_1min = fields.next().and_then(|f| f.parse().ok()).filter(|l: &f64| l.is_finite());
        let runnable = fields.nth(2).and_then(|f| f.split('/').next()?.parse().ok());
        Self { load_1min, runnable, ticks: ticks(stat) }
    }

    /// Share of processor time stolen between an earlier reading and this one.
    pub fn steal_since(&self, earlier: &Self) -> Option<f64> {
        let ((stolen, total), (stolen_before, total_before)) = (self.ticks?, earlier.ticks?);
        let span = total.checked_sub(total_before).filter(|t| *t > 0)?;
        Some(stolen.saturating_sub(stolen_before) as f64 / span as f64)
    }

    /// Whether other threads leave fewer than `threads` of `cores` processors to the kernels, or
    /// time was stolen since an earlier reading. Taken while the kernels' own threads sleep.
    pub fn is_contended(&self, earlier: &Self, threads: usize, cores: usize) -> bool {
        let others = self.runnable.map_or(0, |r| r.saturating_sub(1)) as usize;
        others + threads > cores || self.steal_since(earlier).is_some_and(|s| s > STEAL_LIMIT)
    }
}

fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; the guest fields after them are already in user.
    let fields: Vec<u64> = line.split_whitespace().take(8).filter_map(|f| f.parse().ok()).collect();
    Some((*fields.get(7)?, fields.iter().sum()))
}

/// Waits until the machine is quiet, at most `limit` and until `stop` is raised; whether it became so.
pub fn wait_until_quiet(threads: usize, cores: usize, limit: Duration, stop: &AtomicBool) -> bool {
    let start = Instant::now();
    let mut earlier = Load::read();
    loop {
        std::thread::sleep(Duration::from_millis(50).min(limit));
        let now = Load::read();
        if !now.is_contended(&earlier, threads, cores) {
            return true;
        }
        if start.elapsed() >= limit || stop.load(Ordering::Relaxed) {
            return false;
        }
        earlier = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 10 0 0 40 7 0\ncpu0 1 2 3\n";

    #[test]
    fn the_kernel_s_counters_are_read() {
        let load = Load::parse("0.52 0.40 0.30 3/512 12345\n", STAT);
        assert_eq!(load.load_1min, Some(0.52));
        assert_eq!(load.runnable, Some(3));
        assert_eq!(load.ticks, Some((40, 1000)));
        assert_eq!(Load::parse("", ""), Load::default());
        assert_eq!(Load::parse("nan x y z", "cpu  1 2").load_1min, None);
    }

    #[test]
    fn contention_is_more_threads_than_cores_or_stolen_time() {
        let load = |runnable, steal, total| Load {
            load_1min: None,
            runnable: Some(runnable),
            ticks: Some((steal, total)),
        };
        let before = load(1, 0, 1000);
        assert!(!load(1, 1, 2000).is_contended(&before, 2, 2));
        assert!(load(2, 1, 2000).is_contended(&before, 2, 2));
        assert!(!load(2, 1, 2000).is_contended(&before, 2, 4));
        assert!(load(1, 50, 2000).is_contended(&before, 2, 2));
        assert!(!Load::default().is_contended(&Load::default(), 2, 2));
        assert_eq!(load(1, 5, 1000).steal_since(&before), None);
    }

    #[test]
    fn a_settled_reading_has_what_a_reading_has() {
        let (plain, settled) = (Load::read(), Load::read_settled());
        assert_eq!(plain.runnable.is_some(), settled.runnable.is_some());
        assert!(settled.ticks >= plain.ticks);
    }

    #[test]
    fn waiting_ends_at_its_limit() {
        let start = Instant::now();
        // More kernel threads than cores can never become quiet.
        let stop = AtomicBool::new(false);
        assert!(!wait_until_quiet(3, 2, Duration::from_millis(20), &stop));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
