//! What prompt tokens add to a step, by how many sequences decode beside them.
//!
//! The same prompt costs least on a busy engine: a step that reads every expert anyway only adds
//! arithmetic, while a prompt on an idle engine pays for the whole step.

use crate::{Error, Result};

/// Seconds that prompt tokens add to a step, on a grid of sequences and tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTimes {
    /// Decoding sequences (0 first, rising), and (prompt tokens, seconds), both rising.
    rows: Vec<(f64, Vec<(f64, f64)>)>,
}

impl PromptTimes {
    /// A grid of (decoding sequences, (prompt tokens, seconds)).
    ///
    /// # Errors
    /// [`Error::Usage`] when it is empty, does not start at no sequences or does not rise.
    pub fn new(rows: Vec<(f64, Vec<(f64, f64)>)>) -> Result<Self> {
        let rising = |row: &[(f64, f64)]| {
            let positive = row.first().is_some_and(|p| p.0 > 0.0 && p.1 >= 0.0);
            let finite = row.iter().all(|p| p.0.is_finite() && p.1.is_finite());
            positive && finite && row.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1)
        };
        let from_idle = rows.first().is_some_and(|r| r.0 == 0.0);
        let ordered = rows.windows(2).all(|w| w[0].0 < w[1].0);
        if !(from_idle && ordered && rows.iter().all(|r| rising(&r.1))) {
            let reason = "must start at no sequences and rise with the tokens";
            return Err(Error::usage("prompt times", reason));
        }
        Ok(Self { rows })
    }

    /// The same times a factor.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for (_, seconds) in self.rows.iter_mut().flat_map(|(_, row)| row) {
            *seconds *= factor;
        }
        self
    }

    /// Seconds that `tokens` prompt tokens add to a step with `running` decoding sequences: linear
    /// in between, in proportion beyond the last token, constant beyond the last sequence.
    pub fn seconds(&self, running: f64, tokens: f64) -> f64 {
        if tokens <= 0.0 {
            return 0.0;
        }
        let after = self.rows.partition_point(|r| r.0 < running);
        let before = after.checked_sub(1).and_then(|i| self.rows.get(i));
        match (before, self.rows.get(after)) {
            (Some(a), Some(b)) => {
                let (low, high) = (along(&a.1, tokens), along(&b.1, tokens));
                low + (high - low) * (running - a.0) / (b.0 - a.0)
            }
            (Some(row), None) | (None, Some(row)) => along(&row.1, tokens),
            (None, None) => 0.0,
        }
    }
}

/// Between the points of one row; below the first one its value, since a step has a floor.
fn along(points: &[(f64, f64)], tokens: f64) -> f64 {
    let after = points.partition_point(|p| p.0 < tokens);
    let before = after.checked_sub(1).and_then(|i| points.get(i));
    match (before, points.get(after)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (tokens - a.0) / (b.0 - a.0),
        (Some(a), None) => a.1 * tokens / a.0,
        (None, Some(b)) => b.1,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_linear_between_points_and_proportional_beyond() {
        let idle = vec![(100.0, 0.03), (200.0, 0.04)];
        let busy = vec![(100.0, 0.01), (200.0, 0.02)];
        let times = PromptTimes::new(vec![(0.0, idle), (10.0, busy)]).unwrap();
        for (running, tokens, expected) in [
            (0.0, 100.0, 0.03),
            (0.0, 150.0, 0.035),
            (5.0, 100.0, 0.02),
            (10.0, 400.0, 0.04),
            (99.0, 200.0, 0.02),
            (3.0, 0.0, 0.0),
        ] {
            assert!(
                (times.seconds(running, tokens) - expected).abs() < 1e-12,
                "{running} {tokens}"
            );
        }
    }

    #[test]
    fn grids_that_do_not_rise_are_refused() {
        let row = |points: &[(f64, f64)]| points.to_vec();
        for bad in [
            Vec::new(),
            vec![(1.0, row(&[(1.0, 1.0)]))],
            vec![(0.0, Vec::new())],
            vec![(0.0, row(&[(0.0, 1.0)]))],
            vec![(0.0, row(&[(1.0, 2.0), (2.0, 1.0)]))],
            vec![(0.0, row(&[(1.0, f64::NAN)]))],
            vec![(0.0, row(&[(1.0, 1.0)])), (0.0, row(&[(1.0, 1.0)]))],
        ] {
            assert_eq!(PromptTimes::new(bad).unwrap_err().exit_code(), 2);
        }
    }
}
