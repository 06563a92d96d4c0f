//! Predictions with 95 % intervals from one posterior.

use serde::Serialize;

use crate::Result;
use crate::calibrate::constants::{TPOT, with_tpot};
use crate::calibrate::own::row_sd;
use crate::calibrate::pool::Group;
use crate::calibrate::prior::{Errors, Prior};
use crate::calibrate::{Calibration, Constants};
use crate::latency::LatencyModel;
use crate::plan::points::{self, Point, Prediction, Setup};
use crate::serving::{EngineCosts, LoadModel, Traffic};

/// Step of the numerical slopes.
const H: f64 = 1e-3;

/// Half widths of 95 % intervals of logarithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Halves {
    /// Of TPOT.
    pub tpot: f64,
    /// Of TTFT.
    pub ttft: f64,
    /// Of requests and tokens per second, and so of dollars; 0 where the load fixes them.
    pub rate: f64,
}

/// The ends of an interval around a value with a half width of its logarithm.
pub fn ends(value: f64, half: f64) -> (f64, f64) {
    (value * (-half).exp(), value * half.exp())
}

/// Constants of a deployment with what scales its interval.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Deviations with covariances.
    pub constants: Constants,
    /// Scales of the interval.
    pub errors: Errors,
    /// The engine's defaults that they are deviations from, with what the device and the settings of
    /// the server make of them.
    pub default: EngineCosts,
    /// Whose they are.
    pub group: Group,
}

impl Chosen {
    /// Own runs of the same group where there are some, else the prior.
    ///
    /// # Errors
    /// When the shipped prior is damaged.
    pub fn of(group: &Group, own: &[Calibration]) -> Result<Self> {
        let (default, group) = (EngineCosts::of(&group.engine), group.clone());
        if let Some(calibration) = own.iter().find(|c| c.group == group) {
            let (constants, errors) = (calibration.constants.clone(), calibration.errors);
            return Ok(Self { constants, errors, default, group });
        }
        let known = Prior::shipped()?.of(&group);
        Ok(Self { constants: known.constants, errors: known.errors, default, group })
    }

    /// Constants to predict with.
    pub fn costs(&self) -> EngineCosts {
        self.constants.costs(&self.default)
    }

    /// A setup with these constants under a load of the experts, and the half widths of what is
    /// predicted.
    ///
    /// # Errors
    /// As [`points::predict`].
    pub fn predict(
        &self,
        setup: &Setup,
        latency: &dyn LatencyModel,
        routing: &LoadModel,
    ) -> Result<(Prediction, Halves)> {
        let costs = self.costs();
        let by = |costs: &EngineCosts| points::predict_under(setup, costs, latency, routing);
        let prediction = by(&costs)?;
        let served = &prediction.served;
        let mut slope = [0.0; TPOT];
        for (p, slope) in slope.iter_mut().enumerate() {
            let mut step = [0.0; TPOT];
            step[p] = H;
            *slope = (by(&with_tpot(&costs, &step))?.served.tpot / served.tpot).ln() / H;
        }
        // As the errors that scale it were judged.
        let kernels = served.step.log_sd(served.step.total().0);
        let sd = row_sd(&self.constants, &slope, kernels);
        let tpot = self.errors.tpot_z95 * sd;
        let ttft = self.errors.ttft_half;
        let decoding = setup.lengths.decodes() * served.tpot.0;
        let share = decoding / (decoding + served.ttft.0);
        let rate = match setup.traffic {
            Traffic::Open(_) if !served.saturated => 0.0,
            _ => (share * tpot).hypot((1.0 - share) * ttft),
        };
        Ok((prediction, Halves { tpot, ttft, rate }))
    }
}

/// Predicts a point with own runs where they fit, else with the prior.
///
/// # Errors
/// A sentence: why it cannot be predicted.
pub fn predict(
    point: &Point,
    own: &[Calibration],
    latency: &points::LatencyOf,
) -> std::result::Result<(Prediction, Halves), String> {
    let setup = point.setup.as_ref().map_err(Clone::clone)?;
    let group = Group::of(point).ok_or("model or device is not known")?;
    let text = |e: crate::Error| e.to_string();
    let mut chosen = Chosen::of(&group, own).map_err(text)?;
    chosen.default = chosen.default.on(&point.engine, &setup.device);
    let latency = latency(&setup.device, &point.engine).map_err(text)?;
    let (experts, top_k) = (setup.model.num_experts, setup.model.top_k);
    let routing = points::typical_load(experts, top_k).map_err(text)?;
    chosen.predict(setup, latency.as_ref(), &routing).map_err(text)
}

/// Predicts a point with given constants.
///
/// # Errors
/// A sentence: why it cannot be predicted.
pub fn apply(
    point: &Point,
    costs: &EngineCosts,
    latency: &points::LatencyOf,
) -> std::result::Result<Prediction, String> {
    let setup = point.setup.as_ref().map_err(Clone::clone)?;
    let costs = costs.clone().on(&point.engine, &setup.device);
    let latency = latency(&setup.device, &point.engine).map_err(|e| e.to_string())?;
    points::predict(setup, &costs, latency.as_ref()).map_err(|e| e.to_string())
}
