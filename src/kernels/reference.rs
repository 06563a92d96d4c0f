//! The oracle: every stage as plain loops in double precision. Slow, obvious, and never timed.

use half::bf16;
use rayon::prelude::*;

use crate::config::{DType, Scoring};
use crate::kernels::math::{self, LaneSum};
use crate::kernels::{Alignment, LayerWeights, Routed, RouterSpec};
use crate::{Error, Result};

/// Chooses `top_k` of `experts` experts for each token from `logits` `[tokens, experts]`.
///
/// Scores are computed in single precision, as routers do, with the operations and in the order of
/// [`math`]: the choice and the weights must agree exactly.
///
/// # Errors
/// [`Error::Usage`] for a NaN logit or settings that do not fit.
pub fn route(logits: &[f32], experts: usize, top_k: usize, spec: &RouterSpec) -> Result<Routed> {
    spec.validate(experts, top_k)?;
    let mut routed = Routed::default();
    for (token, row) in logits.chunks_exact(experts).enumerate() {
        if row.iter().any(|l| l.is_nan()) {
            return Err(nan_logit(token));
        }
        route_row(row, top_k, spec, false, &mut routed);
    }
    Ok(routed)
}

/// What GPU routers can do beyond [`RouterSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRouting {
    /// A group's score is its best expert's instead of the sum of its two best.
    pub group_top1: bool,
    /// Every token gets one more slot: expert `experts` with the weight 1.
    pub shared: bool,
}

/// The choice as a GPU makes it, `[tokens, top_k]` or `[tokens, top_k + 1]` with a shared expert; and
/// whether a logit was NaN. A GPU cannot refuse a logit in the middle of a launch: it takes NaN for
/// -infinity and says so afterwards.
///
/// # Errors
/// [`Error::Usage`] for settings that do not fit.
pub fn route_as_device(
    logits: &[f32],
    experts: usize,
    top_k: usize,
    spec: &RouterSpec,
    device: DeviceRouting,
) -> Result<(Routed, bool)> {
    spec.validate(experts, top_k)?;
    let (mut routed, mut nan) = (Routed::default(), false);
    for row in logits.chunks_exact(experts) {
        nan |= row.iter().any(|l| l.is_nan());
        let row: Vec<f32> = row.iter().map(|&l| ordered(l)).collect();
        route_row(&row, top_k, spec, device.group_top1, &mut routed);
        if device.shared {
            routed.ids.push(u32::try_from(experts).unwrap_or(u32::MAX));
            routed.weights.push(1.0);
        }
    }
    Ok((routed, nan))
}

/// Appends the choice for one row without NaN.
fn route_row(row: &[f32], top_k: usize, spec: &RouterSpec, group_top1: bool, routed: &mut Routed) {
    let (scores, choice) = scores(row, top_k, spec);
    let ids = choose(&choice, top_k, spec, group_top1);
    let mut weights = chosen_weights(&ids, &scores, row, spec);
    let sum = LaneSum::of(&weights, 0);
    if spec.config.renormalize && sum > 0.0 {
        for w in &mut weights {
            *w /= sum;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32 by definition")]
    let scale = spec.config.scaling_factor as f32;
    routed.ids.extend(ids.iter().map(|&id| u32::try_from(id).unwrap_or(u32::MAX)));
    routed.weights.extend(weights.iter().map(|w| w * scale));
}

/// The error for a logit that is not a number.
pub(crate) fn nan_logit(token: usize) -> Error {
    Error::usage("router logits", format!("token {token} has a logit that is not a number"))
}

/// NaN counts as -infinity.
fn ordered(value: f32) -> f32 {
    if value.is_nan() { f32::NEG_INFINITY } else { value }
}

/// Score of each expert as returned, and as used for the choice.
fn scores(row: &[f32], top_k: usize, spec: &RouterSpec) -> (Vec<f32>, Vec<f32>) {
    let scores: Vec<f32> = match spec.config.scoring {
        Scoring::Sigmoid => row.iter().map(|&l| math::sigmoid(l)).collect(),
        Scoring::SoftplusSqrt => row.iter().map(|&l| math::sqrt_softplus(l)).collect(),
        Scoring::SoftmaxOverTopK => row.to_vec(),
        Scoring::Prototype => {
            let size = row.len() / top_k;
            row.chunks(size).enumerate().flat_map(|(g, group)| softmax(group, g * size)).collect()
        }
        Scoring::Softmax | Scoring::SparseMixer => softmax(row, 0),
    };
    let biased = |i: usize| scores[i] + spec.bias.get(i).copied().unwrap_or(0.0);
    let choice = match spec.config.scoring {
        Scoring::Sigmoid | Scoring::SoftplusSqrt => (0..row.len()).map(biased).collect(),
        // Softmax keeps the order of the logits but merges close ones by rounding: choose by logit.
        _ if spec.bias.is_empty() => row.to_vec(),
        _ => (0..row.len()).map(biased).collect(),
    };
    (scores, choice)
}

/// Softmax that is well defined for infinities: several +inf share equally, and where all are -inf the
/// weights are 0. The first value has the index `first` in the order of the sum.
fn softmax(row: &[f32], first: usize) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = row.iter().map(|&l| math::softmax_power(l, max)).collect();
    let sum = LaneSum::of(&powers, first);
    powers.iter().map(|&p| math::share_of(p, sum)).collect()
}

/// The `top_k` experts of highest score, highest first; ties go to the lowest id.
fn choose(choice: &[f32], top_k: usize, spec: &RouterSpec, group_top1: bool) -> Vec<usize> {
    let experts = choice.len();
    if spec.config.scoring == Scoring::Prototype {
        let size = experts / top_k;
        return (0..top_k).flat_map(|g| best(choice, g * size..(g + 1) * size, 1)).collect();
    }
    let (groups, size) = (spec.config.n_group, experts / spec.config.n_group);
    if groups == 1 {
        return best(choice, 0..experts, top_k);
    }
    // A group's score is the sum of its two best experts (DeepSeek-V3), or its best (DeepSeek-V2).
    // Infinities of both signs have no sum.
    let counted = if group_top1 { 1 } else { 2 };
    let score = |g: usize| -> f32 {
        best(choice, g * size..(g + 1) * size, counted).iter().map(|&i| choice[i]).sum()
    };
    let group_scores: Vec<f32> = (0..groups).map(|g| ordered(score(g))).collect();
    let kept = best(&group_scores, 0..groups, spec.config.topk_group);
    let mut order: Vec<usize> = (0..experts).filter(|i| kept.contains(&(i / size))).collect();
    sort_descending(&mut order, choice);
    order.truncate(top_k);
    order
}

fn best(values: &[f32], range: std::ops::Range<usize>, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = range.collect();
    sort_descending(&mut order, values);
    order.truncate(count);
    order
}

/// Highest value first, ties by lowest index.
fn sort_descending(order: &mut [usize], values: &[f32]) {
    // -0.0 and 0.0 are equal scores; adding 0.0 turns the former into the latter.
    order.sort_by(|&a, &b| (values[b] + 0.0).total_cmp(&(values[a] + 0.0)).then(a.cmp(&b)));
}

fn chosen_weights(ids: &[usize], scores: &[f32], row: &[f32], spec: &RouterSpec) -> Vec<f32> {
    match spec.config.scoring {
        Scoring::SoftmaxOverTopK => softmax(&ids.iter().map(|&i| row[i]).collect::<Vec<_>>(), 0),
        _ => ids.iter().map(|&i| scores[i]).collect(),
    }
}

/// Groups (token, slot) pairs by expert, keeping their order.
///
/// # Errors
/// [`Error::Usage`] for an id that is not below `experts`.
pub fn align(ids: &[u32], experts: usize) -> Result<Alignment> {
    let mut alignment = Alignment { pair_rows: vec![0; ids.len()], ..Alignment::default() };
    for expert in 0..experts {
        alignment.offsets.push(alignment.sorted_pairs.len());
        for (pair, &id) in ids.iter().enumerate() {
            if id as usize >= experts {
                return Err(bad_id(pair, id, experts));
            }
            if id as usize == expert {
                alignment.pair_rows[pair] =
                    u32::try_from(alignment.sorted_pairs.len()).map_err(|_| too_many_pairs())?;
                alignment.sorted_pairs.push(u32::try_from(pair).map_err(|_| too_many_pairs())?);
            }
        }
    }
    alignment.offsets.push(alignment.sorted_pairs.len());
    Ok(alignment)
}

/// The error for an expert id outside the table.
pub(crate) fn bad_id(pair: usize, id: u32, experts: usize) -> Error {
    Error::usage("expert ids", format!("pair {pair} names expert {id} of {experts}"))
}

/// The error for more pairs than 32 bits number.
pub(crate) fn too_many_pairs() -> Error {
    Error::usage("tokens", "more than 2^32 - 1 (token, slot) pairs")
}

/// A value and the sum of the absolute values it was added up from, which bounds rounding errors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exact {
    /// The value.
    pub value: f64,
    /// Bound on the error that single-precision arithmetic of this value may make.
    pub bound: f64,
}

/// Unit roundoff of f32, 2^-24.
const F32: f64 = 5.960_464_477_539_063e-8;
/// Unit of one addition inside tensor cores. 2^-22 is assumed until it is measured.
pub(crate) const TENSOR_CORE: f64 = 2.384_185_791_015_625e-7;
/// Unit roundoff of bf16, 2^-9.
const BF16: f64 = 1.953_125e-3;

/// Output of the whole layer, `[tokens, hidden]`, with the error that f32 arithmetic may make.
///
/// Bounds follow `u |r| + 4 sqrt(K) u (|A| |B|)` for each product of length K, carried through the
/// activation (`1.1 |up| e_gate + |silu(gate)| e_up`) and the weighted sum.
pub fn layer(weights: &LayerWeights, x: &[f32], routed: &Routed) -> Vec<Exact> {
    layer_in(weights, x, routed, Arithmetic::SINGLE)
}

/// Format in which activations meet weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Single precision, whatever the weights are.
    F32,
    /// bf16 products.
    Bf16,
    /// Integers of 16 bits with one unit for each row, a power of two; products with int8 weights and
    /// their sums are exact.
    Int16,
}

/// Where a backend rounds, for the bounds that its results are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// Format in which activations meet weights.
    pub activations: Activations,
    /// Format of each expert's rows before their weighted sum, and of the output.
    pub rows: DType,
    /// Whether sums run in tensor cores, which do not round each addition to nearest.
    pub tensor_cores: bool,
}

impl Arithmetic {
    /// Single precision throughout.
    pub const SINGLE: Self =
        Self { activations: Activations::F32, rows: DType::F32, tensor_cores: false };

    /// What the CUDA kernels do: bf16 between the stages, sums in single precision.
    pub const CUDA: Self =
        Self { activations: Activations::Bf16, rows: DType::Bf16, tensor_cores: true };
}

impl From<Activations> for Arithmetic {
    /// Single precision but for the activations.
    fn from(activations: Activations) -> Self {
        Self { activations, ..Self::SINGLE }
    }
}

/// The same for a backend with an arithmetic of its own ([`MoeBackend::arithmetic`]).
///
/// With bf16 the reference is fed the rounded inputs, so that their rounding is no error. Rounding the
/// activated values is: each is off by at most `2^-9 |h|`, independently of the others, so a product
/// over them may be off by `4 sqrt(sum (2^-9 h w)^2)`, almost seven standard deviations, in addition to
/// the bound for f32 arithmetic. Rows and output in bf16 add `2^-9` of each value.
///
/// With 16-bit integers a row's unit is the smallest power of two, from `2^-126` on, by which its largest
/// magnitude m rounds to 32,767 or less, and so at most `2^-14 m` but for the last half step. The
/// reference is again fed the rounded inputs. Sums are exact, and a product is rounded twice: `2^-23 |r|`,
/// without a term in K. Rounding the activated values is an error of at most half a unit each, whatever
/// their own size, and so, as above, one of `4 sqrt(sum (2^-15 m w)^2)` in the second product.
///
/// [`MoeBackend::arithmetic`]: crate::kernels::MoeBackend::arithmetic
pub fn layer_in(
    weights: &LayerWeights,
    x: &[f32],
    routed: &Routed,
    arithmetic: impl Into<Arithmetic>,
) -> Vec<Exact> {
    let Arithmetic { activations, rows, tensor_cores } = arithmetic.into();
    let row_unit = if rows == DType::Bf16 { BF16 } else { 0.0 };
    let sum_unit = match activations {
        Activations::Int16 => 0.0,
        _ if tensor_cores => TENSOR_CORE,
        _ => F32,
    };
    let s = &weights.shape;
    let x: Vec<f32> = x.chunks(s.hidden).flat_map(|row| activations.rounded(row)).collect();
    let tokens = routed.ids.len() / s.top_k;
    let mut out =
        vec![Exact { value: 0.0, bound: f64::from(f32::MIN_POSITIVE) }; tokens * s.hidden];
    for (pair, (&id, &weight)) in routed.ids.iter().zip(&routed.weights).enumerate() {
        let (expert, token) = (id as usize, pair / s.top_k);
        let x = &x[token * s.hidden..(token + 1) * s.hidden];
        let h = gate_up_in(weights, expert, x, sum_unit);
        let steps = activations.steps(&h);
        let weight = f64::from(weight);
        let row = &mut out[token * s.hidden..(token + 1) * s.hidden];
        row.par_iter_mut().enumerate().for_each(|(n, out)| {
            let y = down(weights, expert, &h, n, (&steps, sum_unit));
            let term = weight * y.value;
            out.value += term;
            let row_bound = y.bound + row_unit * (y.value.abs() + y.bound);
            // Rounding of the product and of the running sum, at most top_k additions.
            out.bound += weight.abs() * row_bound + (s.top_k as f64 + 2.0) * F32 * term.abs();
        });
    }
    for exact in &mut out {
        exact.bound += F32 * exact.value.abs() + row_unit * (exact.value.abs() + exact.bound);
    }
    out
}

impl Activations {
    /// A row as it meets the weights.
    fn rounded(self, row: &[f32]) -> Vec<f32> {
        match self {
            Self::F32 => row.to_vec(),
            Self::Bf16 => row.iter().map(|&v| bf16::from_f32(v).to_f32()).collect(),
            Self::Int16 => {
                let largest = row.iter().fold(0.0, |most: f64, v| most.max(f64::from(v.abs())));
                let unit = unit_of(largest);
                #[expect(clippy::cast_possible_truncation, reason = "15 bits are exact in f32")]
                let nearest = |v: f32| ((f64::from(v) / unit).round_ties_even() * unit) as f32;
                row.iter().map(|&v| nearest(v)).collect()
            }
        }
    }

    /// By how much each activated value may be off when it is rounded.
    fn steps(self, h: &[Exact]) -> Vec<f64> {
        let magnitude = |h: &Exact| h.value.abs() + h.bound;
        match self {
            Self::F32 => vec![0.0; h.len()],
            Self::Bf16 => h.iter().map(|h| BF16 * magnitude(h)).collect(),
            // A value of the row itself may be off: the unit cannot be known, only its bound.
            Self::Int16 => {
                let largest = h.iter().map(magnitude).fold(0.0, f64::max);
                vec![HALF_UNIT * largest + f64::from(f32::MIN_POSITIVE); h.len()]
            }
        }
    }
}

/// Half the unit of a row of integers over its largest magnitude: `2^-15`, and a little more where
/// rounding the largest would have left 15 bits.
const HALF_UNIT: f64 = 3.052e-5;

/// The unit of a row of 16-bit integers with this largest magnitude.
fn unit_of(largest: f64) -> f64 {
    let fits = |unit: &f64| (largest / unit).round_ties_even() <= 32_767.0;
    (-126..128).map(|exponent| 2.0_f64.powi(exponent)).find(fits).unwrap_or(f64::NAN)
}

/// Activated hidden values of one token in one expert, `[inter]`.
pub fn gate_up(weights: &LayerWeights, expert: usize, x: &[f32]) -> Vec<Exact> {
    gate_up_in(weights, expert, x, F32)
}

/// The same where one addition is good to `sum_unit`.
fn gate_up_in(weights: &LayerWeights, expert: usize, x: &[f32], sum_unit: f64) -> Vec<Exact> {
    let s = &weights.shape;
    let row = |half: usize, i: usize| {
        let start = ((expert * s.halves() + half) * s.inter + i) * s.hidden;
        dot(s.hidden, sum_unit, |k| (f64::from(x[k]), weights.w13.get(start + k)))
    };
    let activated = |i: usize| {
        let gate = row(0, i);
        let silu = gate.value / (1.0 + (-gate.value).exp());
        // The activation's slope is at most 1.1; exp and division cost a few roundings.
        let silu_bound = 1.1 * gate.bound + 8.0 * F32 * silu.abs();
        if !s.gated {
            return Exact { value: silu, bound: silu_bound };
        }
        let up = row(1, i);
        let value = silu * up.value;
        let bound = silu_bound * (up.value.abs() + up.bound) + silu.abs() * up.bound;
        Exact { value, bound: bound + F32 * value.abs() }
    };
    // One after another the elements of a large expert take a second.
    (0..s.inter).into_par_iter().map(activated).collect()
}

/// One output value of the second product for one token in one expert, whose activated values are
/// rounded by at most `steps`, where one addition is good to `sum_unit`.
fn down(
    weights: &LayerWeights,
    expert: usize,
    h: &[Exact],
    n: usize,
    (steps, sum_unit): (&[f64], f64),
) -> Exact {
    let s = &weights.shape;
    let start = (expert * s.hidden + n) * s.inter;
    let product = dot(s.inter, sum_unit, |k| (h[k].value, weights.w2.get(start + k)));
    let (mut carried, mut squares) = (0.0, 0.0);
    for (k, (h, step)) in h.iter().zip(steps).enumerate() {
        let w = weights.w2.get(start + k).abs();
        carried += h.bound * w;
        squares += (step * w).powi(2);
    }
    Exact { value: product.value, bound: product.bound + carried + 4.0 * squares.sqrt() }
}

/// Sum of products with its error bound: where one addition is good to `sum_unit`, or for 0 where sums
/// are exact and their scale is a second rounding.
fn dot(length: usize, sum_unit: f64, pair: impl Fn(usize) -> (f64, f64)) -> Exact {
    /// Rounding of an addition in double precision, which is all that an exact sum differs by here.
    const F64: f64 = f64::EPSILON / 2.0;
    let (mut value, mut absolute) = (0.0, 0.0);
    for k in 0..length {
        let (a, b) = pair(k);
        value += a * b;
        absolute += (a * b).abs();
    }
    let length = length as f64;
    let (roundings, sums) = if sum_unit > 0.0 {
        (1.0, 4.0 * length.sqrt() * sum_unit * absolute)
    } else {
        // A denormal result has fewer bits.
        (2.0, length * F64 * absolute + f64::from(f32::MIN_POSITIVE))
    };
    Exact { value, bound: roundings * F32 * value.abs() + sums }
}
