//! The training budget that a ranking refers to when the user names none: the largest power of ten
//! whose loss-optimal models all fit the device.

use crate::law::ExpertScaling;
use crate::plan::candidates::geometry;
use crate::plan::inputs::RankInputs;
use crate::serving::{Geometry, batch_cap};
use crate::units::Flops;
use crate::{Error, Result};

/// Powers of ten that are tried, from the largest: training runs of today down to a toy.
const POWERS: std::ops::RangeInclusive<i32> = 15..=26;

/// The largest power of ten (FLOPs) at which the loss-optimal model of every expert count in `inputs`
/// fits one device of `inputs` with at least one sequence.
///
/// # Errors
/// [`Error::Infeasible`] when not even the smallest fits; whatever the law reports.
pub fn largest_fitting(law: &dyn ExpertScaling, inputs: &RankInputs) -> Result<Flops> {
    for power in POWERS.rev() {
        let budget = Flops(10f64.powi(power));
        if all_fit(law, inputs, budget)? {
            return Ok(budget);
        }
    }
    Err(Error::infeasible(
        format!("no training budget's models fit {} of device memory", inputs.device.memory.device),
        "name a larger device with --profile",
    ))
}

fn all_fit(law: &dyn ExpertScaling, inputs: &RankInputs, budget: Flops) -> Result<bool> {
    for &experts in &inputs.experts {
        let optimum = law.slice(experts)?.optimum(budget);
        if !fits(&geometry(law, experts, optimum.n_active, inputs)?, inputs) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fits(geometry: &Geometry, inputs: &RankInputs) -> bool {
    batch_cap(geometry, &inputs.device.memory, 1, inputs.lengths.held()) >= 1.0
}

/// (width, FFN width) of the narrowest and the widest layer among the candidates of `inputs`, rounded
/// to multiples of 64 as the law's models have them: the layers worth measuring.
///
/// # Errors
/// Whatever the law reports.
pub fn layer_widths(law: &dyn ExpertScaling, inputs: &RankInputs) -> Result<[(usize, usize); 2]> {
    let (_, families) = crate::plan::candidates::families(law, inputs, 2)?;
    let sizes = families.iter().flat_map(|f| f.curve.iter().map(move |p| (f.experts, p.n_active)));
    let mut span = (f64::INFINITY, 0.0_f64, 1.0);
    for (experts, n_active) in sizes {
        let closure = law.closure(experts, n_active)?;
        span.0 = span.0.min(closure.hidden);
        span.1 = span.1.max(closure.hidden);
        span.2 = closure.inter / closure.hidden;
    }
    let layer = |hidden: f64| (round_to_64(hidden), round_to_64(hidden * span.2));
    Ok([layer(span.0), layer(span.1)])
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a width is positive and far below 2^31"
)]
fn round_to_64(width: f64) -> usize {
    ((width / 64.0).round().max(1.0) * 64.0) as usize
}
