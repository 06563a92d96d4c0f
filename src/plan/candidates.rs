//! Candidates are curves, not points: for each expert count every size on the equal-loss curve,
//! from the cheapest to train down to the smallest that the over-training limits allow.

use crate::law::{ExpertScaling, PowerLawSlice};
use crate::plan::inputs::{Limits, RankInputs, Target};
use crate::plan::outcome::CandidateKind;
use crate::serving::{Geometry, training_flops};
use crate::units::{Flops, Nats};
use crate::{Error, Result};

/// Width of one attention head in the laws' architectures.
const HEAD_DIM: f64 = 64.0;

/// A size and a number of training tokens for one expert count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// How it was chosen.
    pub kind: CandidateKind,
}

impl Point {
    /// Training work.
    pub fn train_flops(&self) -> Flops {
        training_flops(self.n_active, self.tokens)
    }

    /// Training tokens per active parameter.
    pub fn tokens_per_param(&self) -> f64 {
        self.tokens / self.n_active
    }
}

/// The candidates of one expert count.
#[derive(Clone, Debug)]
pub struct Family {
    /// Experts per layer.
    pub experts: usize,
    /// The law at this expert count.
    pub slice: PowerLawSlice,
    /// The law at this expert count in every joint draw of its coefficients; empty without draws.
    pub drawn: Vec<PowerLawSlice>,
    /// The loss-optimal model at the reference budget.
    pub reference: Point,
    /// The equal-loss curve, by falling size; the first point is the cheapest to train.
    pub curve: Vec<Point>,
    /// Why the curve is empty, if it is.
    pub unreachable: Option<String>,
}

/// What all candidates are measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reference {
    /// Budget that the over-training limit refers to.
    pub budget: Flops,
    /// Loss that the equal-loss candidates reach.
    pub loss: Nats,
    /// Training tokens of the model that sets both.
    pub tokens: f64,
}

/// Budget and loss that the candidates refer to.
///
/// # Errors
/// [`Error::Infeasible`] when a target loss lies below what the law can reach.
pub fn reference(law: &dyn ExpertScaling, target: &Target) -> Result<Reference> {
    match *target {
        Target::Budget { budget, experts } => {
            let optimum = law.slice(experts)?.optimum(budget);
            Ok(Reference { budget, loss: Nats(optimum.loss.0), tokens: optimum.tokens })
        }
        Target::Loss { loss, experts } => {
            let slice = law.slice(experts)?;
            let budget = slice.budget_for_loss(loss)?;
            Ok(Reference { budget, loss, tokens: slice.optimum(budget).tokens })
        }
    }
}

/// The candidates of every expert count in `inputs`, `points` sizes on each equal-loss curve.
///
/// # Errors
/// When the law does not cover an expert count or the target.
pub fn families(
    law: &dyn ExpertScaling,
    inputs: &RankInputs,
    points: usize,
) -> Result<(Reference, Vec<Family>)> {
    let reference = reference(law, &inputs.target)?;
    let families = inputs
        .experts
        .iter()
        .map(|&experts| {
            let slice = law.slice(experts)?;
            let family = family(experts, slice, &reference, &inputs.limits, points);
            Ok(Family { drawn: law.drawn_slices(experts), ..family })
        })
        .collect::<Result<Vec<_>>>()?;
    if families.iter().all(|f| f.curve.is_empty()) {
        return Err(Error::infeasible(
            format!(
                "no expert count reaches a loss of {} within the over-training limits",
                reference.loss
            ),
            "raise --max-train-factor or --max-tokens-per-param, or the target loss",
        ));
    }
    Ok((reference, families))
}

fn family(
    experts: usize,
    slice: PowerLawSlice,
    reference: &Reference,
    limits: &Limits,
    points: usize,
) -> Family {
    let optimum = slice.optimum(reference.budget);
    let reference_point = Point {
        n_active: optimum.n_active,
        tokens: optimum.tokens,
        kind: CandidateKind::LossOptimal,
    };
    let (curve, unreachable) = match equal_loss_curve(&slice, reference, limits, points) {
        Ok(curve) => (curve, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    Family { experts, slice, drawn: Vec::new(), reference: reference_point, curve, unreachable }
}

/// Sizes from the cheapest training down to the smallest allowed, evenly in the logarithm.
fn equal_loss_curve(
    slice: &PowerLawSlice,
    reference: &Reference,
    limits: &Limits,
    points: usize,
) -> Result<Vec<Point>, String> {
    let budget = slice.budget_for_loss(reference.loss).map_err(|e| e.to_string())?;
    let largest = slice.optimum(budget).n_active;
    let most = reference.budget * limits.max_train_factor;
    let allowed = |n: f64| {
        slice.tokens_for_loss(n, reference.loss).is_ok_and(|tokens| {
            tokens / n <= limits.max_tokens_per_param && training_flops(n, tokens) <= most
        })
    };
    if !allowed(largest) {
        let needs = budget / reference.budget;
        return Err(format!(
            "needs {needs:.2} times the reference budget, over the limit of {}",
            limits.max_train_factor
        ));
    }
    let smallest = smallest_allowed(largest, allowed);
    let step = (smallest / largest).powf(1.0 / (points - 1) as f64);
    let curve = (0..points)
        .filter_map(|i| {
            let n_active = if i + 1 == points { smallest } else { largest * step.powf(i as f64) };
            let tokens = slice.tokens_for_loss(n_active, reference.loss).ok()?;
            let kind = if i == 0 { CandidateKind::IsoLoss } else { CandidateKind::OverTrained };
            Some(Point { n_active, tokens, kind })
        })
        .collect();
    Ok(curve)
}

/// The smallest size that is still allowed. Below the cheapest training both limits tighten
/// monotonically with falling size, so bisection in ln N finds it.
fn smallest_allowed(largest: f64, allowed: impl Fn(f64) -> bool) -> f64 {
    let (mut ok, mut bad) = (largest, largest * 1e-6);
    for _ in 0..60 {
        let middle = (ok * bad).sqrt();
        if allowed(middle) { ok = middle } else { bad = middle }
    }
    ok
}

/// Sizes of the law's own architecture at `n_active`, for pricing.
///
/// # Errors
/// When the law's closure has no such size.
pub fn geometry(
    law: &dyn ExpertScaling,
    experts: usize,
    n_active: f64,
    inputs: &RankInputs,
) -> Result<Geometry> {
    let closure = law.closure(experts, n_active)?;
    let width = closure.hidden;
    let heads = width / HEAD_DIM;
    // Fewer key/value heads shrink the cache; the law's loss and size are kept as they are.
    let kv_values = 2.0 * width / inputs.kv_group;
    Ok(Geometry {
        layers: closure.layers,
        moe_layers: closure.moe_layers,
        hidden: width,
        inter: closure.inter,
        experts,
        top_k: closure.top_k,
        gated: true,
        shared_inter: 0.0,
        dense_inter: closure.inter,
        attention_params: 4.0 * width * width,
        attention_flops: 4.0 * width,
        kv_values,
        kv_splits: kv_splits(heads / inputs.kv_group),
        vocab: closure.vocab,
        untied_head: true,
        expert_bits: inputs.expert_bits,
        dense_bits: inputs.weight_bits,
        kv_bits: inputs.weight_bits,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a head count is positive and small"
)]
fn kv_splits(heads: f64) -> usize {
    heads.round().max(1.0) as usize
}
