//! Downstream error from loss (Gadre et al. 2024, arXiv 2403.08540): `Err(L) = epsilon - k exp(-gamma L)`,
//! the mean top-1 error over a set of tasks of a model with loss L in nats per token.
//!
//! A fit holds for the tokenizer, the corpus of the loss and the tasks of its own runs; no coefficients come
//! with the program. Beyond the lowest loss of the runs its error is that of a fit to the other runs on the
//! quarter with the lowest losses.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::stats::{Z95, quantile};
use crate::{Error, Result, files};

/// Identifier of the form.
pub const ID: &str = "gadre2024";
/// Schema of the file.
pub const SCHEMA: &str = "moe-frontier/downstream";
/// Version of the schema.
pub const SCHEMA_VERSION: &str = "1.0";
/// Longest file that is read.
const CAP: u64 = 16 << 20;
/// Most joint draws.
const MOST_DRAWS: usize = 100_000;
/// Largest coefficient.
const LARGEST: f64 = 1e9;

/// The coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the letters of the formula at the head of this file")]
pub struct Coefficients {
    pub epsilon: f64,
    pub k: f64,
    pub gamma: f64,
}

impl Coefficients {
    /// Error at a loss, between 0 and 1.
    pub fn error(&self, loss: f64) -> f64 {
        (self.epsilon - self.k * (-self.gamma * loss).exp()).clamp(0.0, 1.0)
    }
}

/// A fit, as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Downstream {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// [`ID`].
    pub form: String,
    /// Where the runs are from.
    pub source: String,
    /// The coefficients.
    pub coefficients: Coefficients,
    /// Root mean square error of the fit.
    pub rmse: f64,
    /// The same on the quarter of the runs with the lowest losses, of a fit to the others.
    pub held_out_rmse: f64,
    /// Runs fitted.
    pub runs: usize,
    /// Lowest and highest loss of the runs, in nats per token.
    pub loss_range_nats: (f64, f64),
    /// Joint draws of the coefficients.
    #[serde(default)]
    pub draws: Vec<Coefficients>,
}

/// A downstream error with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Mean error over the tasks of the fit.
    pub error: f64,
    /// Low end.
    pub lo: f64,
    /// High end.
    pub hi: f64,
    /// Whether the loss lies outside those of the fitted runs.
    pub is_outside: bool,
}

impl Downstream {
    /// The error at a loss, with the spread of the draws and the error of the fit there.
    pub fn at(&self, loss: f64) -> Predicted {
        let error = self.coefficients.error(loss);
        let mut drawn: Vec<f64> = self.draws.iter().map(|d| d.error(loss)).collect();
        drawn.sort_by(f64::total_cmp);
        let end = |share: f64| quantile(&drawn, share).map_or(0.0, |v| v - error);
        let (low, high) = self.loss_range_nats;
        let is_outside = !(low..=high).contains(&loss);
        let own = Z95 * if loss < low { self.rmse.max(self.held_out_rmse) } else { self.rmse };
        let lo = error - end(0.025).min(0.0).hypot(own);
        let hi = error + end(0.975).max(0.0).hypot(own);
        Predicted { error, lo: lo.max(0.0), hi: hi.min(1.0), is_outside }
    }

    /// Reads a fit.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::BadFile`] when it is no such file.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read_capped(path, CAP)?;
        files::checks::check_json(path, &bytes, CAP)?;
        let file: Self = files::strict::from_slice(&bytes, CAP).map_err(|e| {
            let text = e.to_string();
            let reason = text.split(" at line ").next().unwrap_or(&text).to_owned();
            Error::bad_file_at(path, e.line(), e.column(), reason)
        })?;
        file.check().map_err(|reason| Error::bad_file(path, reason))?;
        Ok(file)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.schema != SCHEMA || !self.schema_version.starts_with("1.") || self.form != ID {
            return Err(format!("is no {SCHEMA} 1.x of form {ID}"));
        }
        if self.draws.len() > MOST_DRAWS {
            return Err(format!("{} draws; at most {MOST_DRAWS}", self.draws.len()));
        }
        for c in self.draws.iter().chain([&self.coefficients]) {
            let numbers = [c.epsilon, c.k, c.gamma];
            if numbers.iter().any(|v| !(v.is_finite() && v.abs() <= LARGEST)) {
                return Err("a coefficient is no number of a usual size".into());
            }
            if !(c.k > 0.0 && c.gamma > 0.0 && (0.0..=1.0).contains(&c.epsilon)) {
                return Err("the error does not rise with the loss to at most 1".into());
            }
        }
        let (low, high) = self.loss_range_nats;
        let errors = [self.rmse, self.held_out_rmse];
        let is_share = |v: &f64| (0.0..=1.0).contains(v);
        if !(low > 0.0 && high >= low && high.is_finite() && errors.iter().all(is_share)) {
            return Err("losses or errors are out of range".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up() -> Downstream {
        let coefficients = Coefficients { epsilon: 0.76, k: 1.86, gamma: 1.09 };
        Downstream {
            schema: SCHEMA.into(),
            schema_version: SCHEMA_VERSION.into(),
            form: ID.into(),
            source: "made up".into(),
            coefficients,
            rmse: 0.004,
            held_out_rmse: 0.01,
            runs: 30,
            loss_range_nats: (2.4, 6.0),
            draws: vec![
                Coefficients { gamma: 1.07, ..coefficients },
                Coefficients { gamma: 1.11, ..coefficients },
            ],
        }
    }

    #[test]
    fn errors_rise_with_the_loss_and_are_least_known_below_the_runs() {
        let fit = made_up();
        let (low, inside) = (fit.at(2.0), fit.at(3.0));
        assert!(low.error < inside.error && inside.error < 0.76);
        assert!(low.is_outside && !inside.is_outside);
        assert!((inside.error - (0.76 - 1.86 * (-1.09_f64 * 3.0).exp())).abs() < 1e-12);
        let half = |p: Predicted| p.hi - p.lo;
        assert!(half(low) > half(inside), "{low:?} {inside:?}");
        assert!(fit.at(1e-3).error >= 0.0);
    }

    #[test]
    fn a_file_is_read_back_and_a_wrong_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("errors.json");
        let write = |fit: &Downstream| {
            std::fs::write(&path, serde_json::to_vec(fit).unwrap()).unwrap();
            Downstream::load(&path)
        };
        assert_eq!(write(&made_up()).unwrap(), made_up());
        let falling = Coefficients { k: -1.0, ..made_up().coefficients };
        for bad in [
            Downstream { schema: "moe-frontier/law".into(), ..made_up() },
            Downstream { coefficients: falling, ..made_up() },
            Downstream { draws: vec![falling], ..made_up() },
            Downstream { loss_range_nats: (3.0, 2.0), ..made_up() },
            Downstream { rmse: 2.0, ..made_up() },
        ] {
            assert_eq!(write(&bad).unwrap_err().exit_code(), 3);
        }
    }
}
