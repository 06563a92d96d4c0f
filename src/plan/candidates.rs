//! Candidates are models that can be built: whole heads that divide over the ranks of a replica,
//! widths in multiples of 64, whole layers.
//!
//! The lattice of shapes is the same for every question: a more permissive limit only adds
//! candidates to it. A law says how long each must be trained to reach the target loss.

use std::sync::Arc;

use crate::config::{Attention, DType, MoeModel, SharedExperts};
use crate::law::beyond::{Data, REALISED, Standing};
use crate::law::{AttentionTemplate, Scaling, Slice, Template};
use crate::plan::inputs::{Limits, RankInputs, Target};
use crate::plan::outcome::CandidateKind;
use crate::serving::training_flops;
use crate::units::{Flops, Nats, nearest_whole};
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
    pub slice: Arc<dyn Slice>,
    /// The law at this expert count in every joint draw of its coefficients; empty without draws.
    pub drawn: Vec<Arc<dyn Slice>>,
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

/// Budget and loss that the candidates refer to: those of a training in 16 bits, whatever bits the
/// candidates are trained in.
///
/// # Errors
/// [`Error::Infeasible`] when a target loss lies below what the law can reach.
pub fn reference(law: &Scaling, target: &Target) -> Result<Reference> {
    let law = &law.worth(1.0);
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
    law: &Scaling,
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
    law: &Scaling,
    experts: usize,
    reference: &Reference,
    inputs: &RankInputs,
    density: Density,
) -> Result<Family> {
    let slice = law.slice(experts)?;
    let optimum = slice.optimum(reference.budget);
    let (shape, n_active) = nearest(&inputs.template, experts, optimum.n_active)?;
    let reference_point = Point {
        shape,
        n_active,
        tokens: reference.budget.0 / (6.0 * n_active),
        kind: CandidateKind::LossOptimal,
    };
    let (curve, unreachable) =
        match equal_loss(law, inputs, (slice.as_ref(), experts), reference, density)? {
            Ok(curve) => (curve, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
    let drawn = law.drawn_slices(experts);
    Ok(Family { experts, slice, drawn, reference: reference_point, curve, unreachable })
}

/// What one expert count needs for the loss of the reference, and what it may spend.
struct Reach<'a> {
    slice: &'a dyn Slice,
    reference: &'a Reference,
    limits: &'a Limits,
    data: Data,
    /// Tokens per active parameter at which the law's runs end.
    ratio_limit: f64,
}

impl Reach<'_> {
    /// Training tokens with which a size reaches the loss.
    fn tokens(&self, n_active: f64) -> Option<f64> {
        let curve = self.slice.curve(n_active);
        self.data.tokens_for(&curve, (n_active, self.ratio_limit), self.reference.loss.0)
    }

    /// The same within the limits.
    fn allowed(&self, n_active: f64) -> Option<f64> {
        let most = self.reference.budget * self.limits.max_train_factor;
        self.tokens(n_active).filter(|&tokens| {
            tokens / n_active <= self.limits.max_tokens_per_param
                && training_flops(n_active, tokens) <= most
        })
    }
}

/// The shapes that reach the loss within the limits, cheapest training first; the inner error says
/// why there are none.
fn equal_loss(
    law: &Scaling,
    inputs: &RankInputs,
    (slice, experts): (&dyn Slice, usize),
    reference: &Reference,
    density: Density,
) -> Result<Result<Vec<Point>, String>> {
    let limits = &inputs.limits;
    let budget = match slice.budget_for_loss(reference.loss) {
        Ok(budget) => budget,
        Err(reason) => return Ok(Err(reason.to_string())),
    };
    let largest = slice.optimum(budget).n_active;
    let standing = Standing::of(law, experts, largest, inputs.target.base_experts());
    let data = inputs.data(REALISED.0);
    let reach = Reach { slice, reference, limits, data, ratio_limit: standing.ratio_limit };
    let mut points: Vec<Point> = Vec::new();
    for (shape, n_active) in shapes(&inputs.template, experts, span(&reach, largest), density)? {
        if let Some(tokens) = reach.allowed(n_active) {
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

/// Sizes that can be within the limits. Below the cheapest training both limits tighten with falling
/// size, so bisection in ln N finds the smallest; where a corpus has to be repeated, larger models
/// than the law's optimum may be cheaper to train.
fn span(reach: &Reach, largest: f64) -> (f64, f64) {
    /// A corpus too small for the optimum, or a loss from rounding, moves the size at most this far.
    const MOVED: f64 = 8.0;
    let is_moved = reach.limits.unique_tokens.is_some() || reach.data.rounded_bits.is_some();
    let upper = if is_moved { MOVED } else { ABOVE_OPTIMAL };
    let start = [1.0, 2.0, 4.0, MOVED].into_iter().filter(|s| *s <= upper);
    let start = start.map(|s| s * largest).find(|&n| reach.allowed(n).is_some()).unwrap_or(largest);
    let (mut ok, mut bad): (f64, f64) = (start, start * 1e-6);
    for _ in 0..40 {
        let middle = (ok * bad).sqrt();
        if reach.allowed(middle).is_some() { ok = middle } else { bad = middle }
    }
    (bad, largest * upper)
}

/// All shapes whose active parameters lie in `span`, with their number, by rising width.
fn shapes(
    template: &Template,
    experts: usize,
    (low, high): (f64, f64),
    density: Density,
) -> Result<Vec<(Shape, f64)>> {
    let mut found = Vec::new();
    let start = template.at_size(experts, low)?.hidden;
    let end = template.at_size(experts, high)?.hidden;
    // A layer more or less moves the width of the same size by less than a third.
    let mut hidden = below(start * 0.7);
    while hidden as f64 <= end * 1.3 && hidden <= WIDTHS.1 {
        if is_walked(hidden, density) {
            for layers in depths(hidden as f64 / template.aspect) {
                let shape = Shape { experts, hidden, layers };
                let n_active = counted(&built(template, &shape));
                if (low..=high).contains(&n_active) {
                    found.push((shape, n_active));
                }
            }
        }
        hidden += width_step(hidden);
    }
    Ok(found)
}

/// Shapes of any size with their active parameters, rising, one a walked width.
pub fn ladder(template: &Template, experts: usize) -> Vec<(f64, Shape)> {
    let mut rungs = Vec::new();
    let mut hidden = WIDTHS.0;
    while hidden <= WIDTHS.1 {
        if is_walked(hidden, Density::COARSE) {
            let layers = nearest_whole(hidden as f64 / template.aspect).max(1);
            let shape = Shape { experts, hidden, layers };
            rungs.push((counted(&built(template, &shape)), shape));
        }
        hidden += width_step(hidden);
    }
    rungs.dedup_by(|b, a| b.0 <= a.0);
    rungs
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
    let middle = nearest_whole(layers).max(1);
    if layers >= SHALLOW {
        return middle..=middle;
    }
    middle.saturating_sub(1).max(1)..=middle + 1
}

/// Active parameters as the laws count them: everything that a token meets but routers and norms.
fn counted(model: &MoeModel) -> f64 {
    let params = model.params();
    params.active() - params.router - params.norms
}

/// Query heads and their size: heads of 128 where the ranks of a replica can share them, else the
/// number of heads of 64 nearest to the width that they can; or heads of the template's own size.
fn heads(template: &Template, hidden: usize) -> (usize, usize) {
    let (ratio, head_dim) = match template.attention {
        AttentionTemplate::Grouped { width_ratio, head_dim, .. } => (width_ratio, head_dim),
        AttentionTemplate::Latent { hidden_per_head, v_head_dim, .. } => {
            (v_head_dim as f64 / hidden_per_head, Some(v_head_dim))
        }
    };
    let size = head_dim.unwrap_or(WIDTH_STEP);
    let plain = ratio * hidden as f64 / size as f64;
    let ranks = ranks(hidden);
    let (large, multiple) = LARGE_HEAD;
    if head_dim.is_none()
        && hidden.is_multiple_of(multiple)
        && (hidden / large).is_multiple_of(ranks)
    {
        return (hidden / large, large);
    }
    (nearest_whole(plain / ranks as f64).max(1) * ranks, size)
}

/// Ranks of a replica that heads must divide over: models wider than 4,096 are served on two nodes'
/// sixteen, others on one node's eight.
const fn ranks(hidden: usize) -> usize {
    match hidden / WIDTH_STEP {
        65.. => 16,
        16..=64 => 8,
        8..=15 => 4,
        4..=7 => 2,
        _ => 1,
    }
}

/// A feed-forward width in whole steps, coarser for wide blocks of wide models.
fn intermediate(ratio: f64, hidden: usize) -> usize {
    let width = ratio * hidden as f64;
    let step = match (hidden >= WIDE, width >= WIDE as f64) {
        (true, true) => WIDE_INTER_STEP,
        (true, false) => 2 * WIDTH_STEP,
        (false, _) => WIDTH_STEP,
    };
    nearest_whole(width / step as f64).max(1) * step
}

/// Layers without experts, in the template's proportion.
fn dense_layers(template: &Template, layers: usize) -> usize {
    layers - nearest_whole(layers as f64 * template.moe_share).max(1).min(layers)
}

/// The attention of a width.
fn attention(template: &Template, hidden: usize) -> Attention {
    let (heads, head_dim) = heads(template, hidden);
    match template.attention {
        AttentionTemplate::Grouped { group, .. } => Attention::Gqa {
            heads,
            kv_heads: kv_heads(heads, group),
            head_dim,
            bias: false,
            sliding_window: None,
        },
        AttentionTemplate::Latent {
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
            ..
        } => Attention::Mla {
            heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        },
    }
}

/// The model of a shape in 16 bits.
fn built(template: &Template, shape: &Shape) -> MoeModel {
    let &Shape { experts, hidden, layers } = shape;
    let is_dense = experts == 1;
    let dense_layers = if is_dense { 0 } else { dense_layers(template, layers) };
    let ratio = if is_dense { template.active_ratio() } else { template.expert_ratio };
    let shared = template.shared_experts > 0 && !is_dense;
    MoeModel {
        name: format!("e{experts}-d{hidden}-l{layers}"),
        hidden_size: hidden,
        num_layers: layers,
        dense_layers,
        dense_intermediate_size: if dense_layers > 0 {
            intermediate(template.dense_ratio, hidden)
        } else {
            0
        },
        attention: attention(template, hidden),
        num_experts: experts,
        top_k: template.top_k.min(experts),
        moe_intermediate_size: intermediate(ratio, hidden),
        shared_experts: shared.then(|| SharedExperts {
            count: template.shared_experts,
            intermediate_size: intermediate(template.shared_ratio, hidden),
        }),
        gated: true,
        vocab_size: template.vocab,
        tied_embeddings: template.tied_embeddings,
        router: template.router,
        expert_dtype: DType::Bf16,
        expert_bits: None,
        dense_dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        groups: Vec::new(),
        bits: None,
    }
}

/// The shape whose active parameters are nearest to `n_active` in the logarithm.
///
/// # Errors
/// When the law's closure has no such size.
pub fn nearest(template: &Template, experts: usize, n_active: f64) -> Result<(Shape, f64)> {
    let span = (n_active * 0.5, n_active * 2.0);
    let all = shapes(template, experts, span, Density::ALL)?;
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
/// [`Error::Usage`] for a shape that is no model.
pub fn model(shape: &Shape, inputs: &RankInputs) -> Result<MoeModel> {
    let model = MoeModel {
        expert_dtype: inputs.expert_dtype,
        expert_bits: inputs.expert_bits,
        dense_dtype: inputs.dense_dtype,
        ..built(&inputs.template, shape)
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
