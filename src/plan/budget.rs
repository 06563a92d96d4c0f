//! The training budget that a ranking refers to when the user names none: the largest power of ten
//! whose loss-optimal models all fit the device.

use crate::config::MoeModel;
use crate::law::Scaling;
use crate::plan::candidates::{Density, families, model, nearest};
use crate::plan::inputs::RankInputs;
use crate::serving::Layout;
use crate::units::Flops;
use crate::{Error, Result};

/// Powers of ten that are tried, from the largest: training runs of today down to a toy.
const POWERS: std::ops::RangeInclusive<i32> = 15..=26;

/// The largest power of ten (FLOPs) at which the loss-optimal model of every expert count in `inputs`
/// fits one device of `inputs` with at least one sequence.
///
/// # Errors
/// [`Error::Infeasible`] when not even the smallest fits; whatever the law reports.
pub fn largest_fitting(law: &Scaling, inputs: &RankInputs) -> Result<Flops> {
    let inputs = inputs.admitted_by(law)?;
    for power in POWERS.rev() {
        let budget = Flops(10f64.powi(power));
        if all_fit(law, &inputs, budget)? {
            return Ok(budget);
        }
    }
    Err(Error::infeasible(
        format!("no training budget's models fit {} of device memory", inputs.device.memory.device),
        "name a larger device with --profile",
    ))
}

fn all_fit(law: &Scaling, inputs: &RankInputs, budget: Flops) -> Result<bool> {
    for &experts in &inputs.experts {
        let optimum = law.slice(experts)?.optimum(budget);
        // Sizes off the lattice are toys or giants: neither decides which budget fits.
        let Ok((shape, _)) = nearest(&inputs.template, experts, optimum.n_active) else {
            return Ok(false);
        };
        if !fits(&model(&shape, inputs)?, inputs) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether weights and one whole sequence fit one device.
fn fits(model: &MoeModel, inputs: &RankInputs) -> bool {
    let sequence = model.kv_bytes(inputs.lengths.held());
    model.weight_bytes().0 + sequence.0 <= inputs.device.memory.usable().0
        && Layout::tensor(1).validate(model).is_ok()
}

/// (hidden size, intermediate size) of the narrowest and the widest layer among the candidates of
/// `inputs`: the layers worth measuring.
///
/// # Errors
/// Whatever the law reports.
pub fn layer_widths(law: &Scaling, inputs: &RankInputs) -> Result<[(usize, usize); 2]> {
    let inputs = &inputs.admitted_by(law)?;
    let (_, families) = families(law, inputs, Density::ALL)?;
    let shapes = || families.iter().flat_map(|f| f.curve.iter().map(|p| p.shape));
    let none = || Error::infeasible("no candidate to measure for", "raise --max-train-factor");
    let narrow = shapes().min_by_key(|s| s.hidden).ok_or_else(none)?;
    let wide = shapes().max_by_key(|s| s.hidden).ok_or_else(none)?;
    let layer = |shape| {
        let model = model(&shape, inputs)?;
        Ok((model.hidden_size, model.moe_intermediate_size))
    };
    Ok([layer(narrow)?, layer(wide)?])
}
