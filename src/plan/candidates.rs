//! Candidates are models that can be built: whole heads that divide over the ranks of a replica,
//! widths in multiples of 64, whole layers.
//!
//! The lattice of shapes is the same for every question: a more permissive limit only adds
//! candidates to it. A law says how long each must be trained to reach the target loss.

use crate::config::{Attention, DType, MoeModel, RouterConfig};
use crate::law::{Closure, ExpertScaling, PowerLawSlice};
use crate::plan::inputs::{Limits, RankInputs, Target};
use crate::plan::outcome::CandidateKind;
use crate::serving::training_flops;
use crate::units::{Flops, Nats};
use crate::{Error, Result};

/// Widths are multiples of this; the same is the smallest head.
const WIDTH_STEP: usize = 64;
/// From this width on steps double with each doubling of the width, and intermediate sizes are
/// multiples of 512: blocks of fp8 weights divide over four ranks.
const WIDE: usize = 2048;
/// Multiples of the intermediate size of wide models.
const WIDE_INTER_STEP: usize = 512;
/// Values of a large head, and the width that is a multiple of eight of them.
const LARGE_HEAD: (usize, usize) = (128, 1024);
/// Models with fewer layers than this are also tried one layer shallower and deeper: their widths
/// alone are far apart.
const SHALLOW: f64 = 24.0;
/// Sizes above the loss-optimal one that are still candidates: the nearest shapes to it.
const ABOVE_OPTIMAL: f64 = 1.1;
/// Narrowest and widest model.
const WIDTHS: (usize, usize) = (128, 65_536);

/// A shape of the lattice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Experts per layer.
    pub experts: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
}

/// A shape and a number of training tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The shape.
    pub shape: Shape,
    /// Active parameters as the law counts them (without routers and norms).
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
    /// The shape nearest to the loss-optimal model at the reference budget, trained with it.
    pub reference: Point,
    /// The equal-loss candidates, cheapest training first, then by falling size.
    pub curve: Vec<Point>,
    /// Why there are none, if so.
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

/// How densely the lattice is walked: every `stride`-th width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// 1 is every shape.
    pub stride: usize,
}

impl Density {
    /// Every shape.
    pub const ALL: Self = Self { stride: 1 };
    /// For maps and sensitivities, which ask for many sets of candidates.
    pub const COARSE: Self = Self { stride: 4 };
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

/// The candidates of every expert count in `inputs`.
///
/// # Errors
/// When the law does not cover an expert count or the target.
pub fn families(
    law: &dyn ExpertScaling,
    inputs: &RankInputs,
    density: Density,
) -> Result<(Reference, Vec<Family>)> {
    let reference = reference(law, &inputs.target)?;
    let families = inputs
        .experts
        .iter()
        .map(|&experts| family(law, experts, &reference, inputs, density))
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
    law: &dyn ExpertScaling,
    experts: usize,
    reference: &Reference,
    inputs: &RankInputs,
    density: Density,
) -> Result<Family> {
    let slice = law.slice(experts)?;
    let optimum = slice.optimum(reference.budget);
    let (shape, n_active) = nearest(law, experts, optimum.n_active)?;
    let reference_point = Point {
        shape,
        n_active,
        tokens: reference.budget.0 / (6.0 * n_active),
        kind: CandidateKind::LossOptimal,
    };
    let (curve, unreachable) =
        match equal_loss(law, &slice, experts, (reference, &inputs.limits), density)? {
            Ok(curve) => (curve, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
    let drawn = law.drawn_slices(experts);
    Ok(Family { experts, slice, drawn, reference: reference_point, curve, unreachable })
}

/// The shapes that reach the loss within the limits, cheapest training first; the inner error says
/// why there are none.
fn equal_loss(
    law: &dyn ExpertScaling,
    slice: &PowerLawSlice,
    experts: usize,
    (reference, limits): (&Reference, &Limits),
    density: Density,
) -> Result<Result<Vec<Point>, String>> {
    let budget = match slice.budget_for_loss(reference.loss) {
        Ok(budget) => budget,
        Err(reason) => return Ok(Err(reason.to_string())),
    };
    let largest = slice.optimum(budget).n_active;
    let most = reference.budget * limits.max_train_factor;
    let mut points: Vec<Point> = Vec::new();
    let span =
        (largest * smallest_share(slice, reference, limits, largest), largest * ABOVE_OPTIMAL);
    for (shape, n_active) in shapes(law, experts, span, density)? {
        let Ok(tokens) = slice.tokens_for_loss(n_active, reference.loss) else { continue };
        let allowed = tokens / n_active <= limits.max_tokens_per_param
            && training_flops(n_active, tokens) <= most;
        if allowed {
            points.push(Point { shape, n_active, tokens, kind: CandidateKind::OverTrained });
        }
    }
    let cheapest = points
        .iter()
        .enumerate()
        .min_by(|a, b| a.1.train_flops().0.total_cmp(&b.1.train_flops().0))
        .map(|(i, _)| i);
    let Some(cheapest) = cheapest else {
        return Ok(Err(format!(
            "needs {:.2} times the reference budget, over the limit of {}, or more than {} tokens \
             a parameter",
            budget / reference.budget,
            limits.max_train_factor,
            limits.max_tokens_per_param
        )));
    };
    let mut first = points.swap_remove(cheapest);
    first.kind = CandidateKind::IsoLoss;
    // Larger than the cheapest to train is dearer in both costs.
    points.retain(|p| p.n_active < first.n_active);
    points.sort_by(|a, b| b.n_active.total_cmp(&a.n_active));
    points.insert(0, first);
    Ok(Ok(points))
}

/// The smallest allowed size over the largest. Below the cheapest training both limits tighten with
/// falling size, so bisection in ln N finds it.
fn smallest_share(
    slice: &PowerLawSlice,
    reference: &Reference,
    limits: &Limits,
    largest: f64,
) -> f64 {
    let most = reference.budget * limits.max_train_factor;
    let allowed = |share: f64| {
        let n = share * largest;
        slice.tokens_for_loss(n, reference.loss).is_ok_and(|tokens| {
            tokens / n <= limits.max_tokens_per_param && training_flops(n, tokens) <= most
        })
    };
    let (mut ok, mut bad): (f64, f64) = (1.0, 1e-6);
    for _ in 0..40 {
        let middle = (ok * bad).sqrt();
        if allowed(middle) { ok = middle } else { bad = middle }
    }
    bad
}

/// All shapes whose active parameters lie in `span`, with their number, by rising width.
fn shapes(
    law: &dyn ExpertScaling,
    experts: usize,
    (low, high): (f64, f64),
    density: Density,
) -> Result<Vec<(Shape, f64)>> {
    let mut found = Vec::new();
    let start = law.closure(experts, low)?.hidden;
    let end = law.closure(experts, high)?.hidden;
    // A layer more or less moves the width of the same size by less than a third.
    let mut hidden = below(start * 0.7);
    while hidden as f64 <= end * 1.3 && hidden <= WIDTHS.1 {
        if is_walked(hidden, density) {
            let closure = closure_at(law, experts, hidden)?;
            for layers in depths(closure.layers) {
                let n_active = law_params(&closure, hidden, layers);
                if (low..=high).contains(&n_active) {
                    found.push((Shape { experts, hidden, layers }, n_active));
                }
            }
        }
        hidden += width_step(hidden);
    }
    Ok(found)
}

/// Shapes of any size with their active parameters, rising, one a walked width.
///
/// # Errors
/// When the law's closure has no such size.
pub fn ladder(law: &dyn ExpertScaling, experts: usize) -> Result<Vec<(f64, Shape)>> {
    let mut rungs = Vec::new();
    let mut hidden = WIDTHS.0;
    while hidden <= WIDTHS.1 {
        if is_walked(hidden, Density::COARSE) {
            let closure = closure_at(law, experts, hidden)?;
            let layers = whole(closure.layers);
            rungs.push((law_params(&closure, hidden, layers), Shape { experts, hidden, layers }));
        }
        hidden += width_step(hidden);
    }
    rungs.dedup_by(|b, a| b.0 <= a.0);
    Ok(rungs)
}

/// The width of the lattice at or below `hidden`.
fn below(hidden: f64) -> usize {
    let mut width = WIDTHS.0;
    while width + width_step(width) <= WIDTHS.1 && (width + width_step(width)) as f64 <= hidden {
        width += width_step(width);
    }
    width
}

/// Steps of the width: 64 up to 4,096, then twice as wide at each doubling.
fn width_step(hidden: usize) -> usize {
    let doublings = (hidden / (WIDE * 2)).checked_ilog2().map_or(0, |d| d + 1);
    WIDTH_STEP << doublings.min(6)
}

fn is_walked(hidden: usize, density: Density) -> bool {
    (hidden / width_step(hidden)).is_multiple_of(density.stride)
}

/// Whole numbers of layers about the law's own.
fn depths(layers: f64) -> std::ops::RangeInclusive<usize> {
    let middle = whole(layers);
    if layers >= SHALLOW {
        return middle..=middle;
    }
    middle.saturating_sub(1).max(1)..=middle + 1
}

/// The law's architecture at a width, by bisection of its size.
fn closure_at(law: &dyn ExpertScaling, experts: usize, hidden: usize) -> Result<Closure> {
    let (mut low, mut high) = (1e3_f64, 1e15_f64);
    let mut closure = law.closure(experts, low)?;
    for _ in 0..80 {
        let middle = (low * high).sqrt();
        closure = law.closure(experts, middle)?;
        if closure.hidden < hidden as f64 {
            low = middle;
        } else {
            high = middle;
        }
        if (closure.hidden / hidden as f64 - 1.0).abs() < 1e-9 {
            break;
        }
    }
    Ok(Closure { hidden: hidden as f64, ..closure })
}

/// Active parameters as the laws count them: embedding and head, attention with as many key/value as
/// query heads, active experts, dense layers.
fn law_params(closure: &Closure, hidden: usize, layers: usize) -> f64 {
    let (heads, head_dim) = heads(hidden);
    let width = hidden as f64;
    let ffn = 3.0 * width * intermediate(closure, hidden) as f64;
    let dense = dense_layers(closure, layers) as f64;
    let routed = (layers as f64 - dense) * closure.top_k as f64;
    let attention = layers as f64 * 4.0 * width * (heads * head_dim) as f64;
    2.0 * width * closure.vocab.round() + attention + (routed + dense) * ffn
}

/// Query heads and their size: heads of 128 where the ranks of a replica can share them, else the
/// number of heads of 64 nearest to the width that they can. Models wider than 4,096 are served on two
/// nodes' sixteen ranks, others on one node's eight.
fn heads(hidden: usize) -> (usize, usize) {
    let plain = hidden / WIDTH_STEP;
    let ranks = match plain {
        65.. => 16,
        16..=64 => 8,
        8..=15 => 4,
        4..=7 => 2,
        _ => 1,
    };
    let (large, multiple) = LARGE_HEAD;
    if hidden.is_multiple_of(multiple) && (hidden / large).is_multiple_of(ranks) {
        return (hidden / large, large);
    }
    (whole(plain as f64 / ranks as f64) * ranks, WIDTH_STEP)
}

/// Intermediate size of an expert, in whole steps.
fn intermediate(closure: &Closure, hidden: usize) -> usize {
    let step = if hidden >= WIDE { WIDE_INTER_STEP } else { WIDTH_STEP };
    whole(closure.inter / step as f64) * step
}

/// Layers without experts, in the law's proportion.
fn dense_layers(closure: &Closure, layers: usize) -> usize {
    layers - whole(layers as f64 * closure.moe_layers / closure.layers).min(layers)
}

/// The shape whose active parameters are nearest to `n_active` in the logarithm.
///
/// # Errors
/// When the law's closure has no such size.
pub fn nearest(law: &dyn ExpertScaling, experts: usize, n_active: f64) -> Result<(Shape, f64)> {
    let span = (n_active * 0.5, n_active * 2.0);
    let all = shapes(law, experts, span, Density::ALL)?;
    let distance = |n: f64| (n / n_active).ln().abs();
    all.into_iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).ok_or_else(|| {
        let size = crate::units::count(n_active);
        Error::infeasible(
            format!("no model of about {size} active parameters has whole heads and layers"),
            "raise the training budget",
        )
    })
}

/// The model of a shape in the formats of `inputs`.
///
/// # Errors
/// When the law's closure has no such size.
pub fn model(law: &dyn ExpertScaling, shape: &Shape, inputs: &RankInputs) -> Result<MoeModel> {
    let closure = closure_at(law, shape.experts, shape.hidden)?;
    let (heads, head_dim) = heads(shape.hidden);
    let inter = intermediate(&closure, shape.hidden);
    let dense_layers = dense_layers(&closure, shape.layers);
    let model = MoeModel {
        name: format!("e{}-d{}-l{}", shape.experts, shape.hidden, shape.layers),
        hidden_size: shape.hidden,
        num_layers: shape.layers,
        dense_layers,
        dense_intermediate_size: if dense_layers > 0 { inter } else { 0 },
        attention: Attention::Gqa {
            heads,
            kv_heads: kv_heads(heads, inputs.kv_group),
            head_dim,
            bias: false,
            sliding_window: None,
        },
        num_experts: shape.experts,
        top_k: closure.top_k,
        moe_intermediate_size: inter,
        shared_experts: None,
        gated: true,
        vocab_size: whole(closure.vocab),
        tied_embeddings: false,
        router: RouterConfig { renormalize: false, ..RouterConfig::SOFTMAX },
        expert_dtype: inputs.expert_dtype,
        expert_bits: inputs.expert_bits,
        dense_dtype: inputs.dense_dtype,
        kv_dtype: DType::Bf16,
        groups: Vec::new(),
        bits: None,
    };
    model.validate()?;
    Ok(model)
}

/// Key/value heads for about `group` query heads each: the divisor of `heads` nearest to that.
fn kv_heads(heads: usize, group: f64) -> usize {
    let wanted = (heads as f64 / group).max(1.0);
    let distance = |n: usize| (n as f64 / wanted).ln().abs();
    (1..=heads)
        .filter(|n| heads.is_multiple_of(*n))
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
        .unwrap_or(heads)
}

/// The nearest whole number, at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are positive and far below 2^53"
)]
fn whole(value: f64) -> usize {
    value.round().max(1.0) as usize
}
