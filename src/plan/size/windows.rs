//! How many replicas a recorded stream needs over time.

use serde::Serialize;

use super::{Choice, SizeInputs};

/// Lengths of the windows, in seconds: what a fleet that follows its load could react in.
const LENGTHS: [f64; 4] = [1.0, 10.0, 60.0, 600.0];

/// Replicas that the requests of each window of time need at steady state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Window {
    /// Length of a window in seconds.
    pub window_s: f64,
    /// Mean over the windows.
    pub mean: f64,
    /// Most of any window.
    pub peak: f64,
}

/// Replicas over the windows of the recorded stream, replayed at the rate that the deployment is
/// sized for; nothing of drawn requests, whose rate is constant. Windows of which fewer than two fit
/// are left out.
pub fn windows(inputs: &SizeInputs, choice: &Choice) -> Vec<Window> {
    let Some(trace) = &inputs.trace else { return Vec::new() };
    let arrivals: Vec<f64> = trace.replay(inputs.peak(), 1).iter().map(|r| r.0).collect();
    LENGTHS.iter().filter_map(|&length| window(&arrivals, length, choice.capacity)).collect()
}

/// One length of window over rising arrivals, at so many requests per second and replica.
fn window(arrivals: &[f64], length: f64, capacity: f64) -> Option<Window> {
    let span = arrivals.last()? - arrivals.first()?;
    if span < 2.0 * length {
        return None;
    }
    let (mut from, mut start) = (0, arrivals[0]);
    let (mut sum, mut count, mut peak) = (0.0, 0.0, 1.0_f64);
    while start + length <= arrivals[0] + span {
        start += length;
        let to = arrivals.partition_point(|at| *at < start);
        let needed = ((to - from) as f64 / length / capacity).ceil().max(1.0);
        (sum, count, peak) = (sum + needed, count + 1.0, peak.max(needed));
        from = to;
    }
    Some(Window { window_s: length, mean: sum / count, peak })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_the_peak_of_short_windows_and_fades_in_long_ones() {
        // 100 requests in the first second of every 20.
        let arrivals: Vec<f64> =
            (0..6000).map(|i| f64::from(i / 100) * 20.0 + f64::from(i % 100) / 100.0).collect();
        let of = |length| window(&arrivals, length, 2.0).unwrap();
        assert!((of(10.0).peak - 5.0).abs() < 1e-12 && (of(10.0).mean - 3.0).abs() < 0.05);
        assert!((of(60.0).peak - 3.0).abs() < 1e-12 && (of(60.0).mean - 3.0).abs() < 1e-12);
        assert!(window(&arrivals, 600.0, 2.0).is_none());
    }
}
