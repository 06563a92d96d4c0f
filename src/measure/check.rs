//! Whether a layer that is about to be timed computes the right thing.
//!
//! Before anything is timed, outputs and workspace are filled with NaN, the layer runs, and single
//! tokens are compared element by element with the plain loops in double precision, within the bound
//! that the backend's arithmetic allows. After the last timed launch its output is compared in the same
//! way.

use super::data::Inputs;
use crate::Result;
use crate::kernels::{Arithmetic, LayerWeights, LoadedLayer, Routed, Stage, reference};
use crate::record::{CheckOutcome, CheckRecord};

/// Tokens compared with the reference at most: the first, the last and one in the middle.
const TOKENS: usize = 3;
/// Weights that the reference reads for one comparison, beyond at least one token: it takes some
/// nanoseconds for each, and every token takes the same path.
const WEIGHTS: usize = 8 << 20;

/// Poisons, runs and compares one draw with one set of weights.
///
/// # Errors
/// Whatever the layer reports; a wrong output is a [`CheckOutcome::Fail`], not an error.
pub fn run(
    layer: &mut dyn LoadedLayer,
    sets: &[LayerWeights],
    inputs: &Inputs,
    (draw, set): (usize, usize),
    arithmetic: Arithmetic,
) -> Result<CheckRecord> {
    layer.set_input(&inputs.x, &inputs.draws[draw].logits)?;
    layer.poison()?;
    layer.run(Stage::Layer, set)?;
    output(layer, &sets[set], inputs, draw, arithmetic)
}

/// Compares the output that stands in the layer with what it should be for a draw.
///
/// # Errors
/// Whatever the layer reports; a wrong output is a [`CheckOutcome::Fail`], not an error.
pub fn output(
    layer: &mut dyn LoadedLayer,
    weights: &LayerWeights,
    inputs: &Inputs,
    draw: usize,
    arithmetic: Arithmetic,
) -> Result<CheckRecord> {
    let (routed, output) = (layer.routed()?, layer.output()?);
    let shape = &weights.shape;
    if routed.ids != inputs.draws[draw].ids || output.len() != inputs.x.len() {
        return Ok(CheckRecord { output: CheckOutcome::Fail, worst_ratio_to_bound: None });
    }
    let mut worst = 0.0_f64;
    let per_token = shape.top_k * (shape.halves() + 1) * shape.hidden * shape.inter;
    let most = (WEIGHTS / per_token).clamp(1, TOKENS);
    for token in some_tokens(routed.ids.len() / shape.top_k, most) {
        let pairs = token * shape.top_k..(token + 1) * shape.top_k;
        let columns = token * shape.hidden..(token + 1) * shape.hidden;
        let one = Routed {
            ids: routed.ids[pairs.clone()].to_vec(),
            weights: routed.weights[pairs].to_vec(),
        };
        let exact = reference::layer_in(weights, &inputs.x[columns.clone()], &one, arithmetic);
        worst = worst.max(worst_ratio(&output[columns], &exact));
    }
    let pass = worst <= 1.0;
    Ok(CheckRecord {
        output: if pass { CheckOutcome::Pass } else { CheckOutcome::Fail },
        worst_ratio_to_bound: worst.is_finite().then_some(worst),
    })
}

/// Both records together: a failure of either, the larger deviation.
pub fn both(before: CheckRecord, after: CheckRecord) -> CheckRecord {
    let failed = [before.output, after.output].iter().any(|o| *o != CheckOutcome::Pass);
    let worst = before.worst_ratio_to_bound.zip(after.worst_ratio_to_bound);
    CheckRecord {
        output: if failed { CheckOutcome::Fail } else { CheckOutcome::Pass },
        worst_ratio_to_bound: worst.map(|(a, b)| a.max(b)),
    }
}

/// Largest deviation over its bound; infinite for a value that is not a number.
fn worst_ratio(got: &[f32], exact: &[reference::Exact]) -> f64 {
    got.iter().zip(exact).fold(0.0, |worst, (got, exact)| {
        let ratio = (f64::from(*got) - exact.value).abs() / exact.bound;
        if ratio.is_nan() { f64::INFINITY } else { worst.max(ratio) }
    })
}

/// The last token, the first, and the one in the middle, as many as are wanted and there.
fn some_tokens(tokens: usize, most: usize) -> impl Iterator<Item = usize> {
    let last = tokens.saturating_sub(1);
    let mut chosen = vec![last, 0, last / 2];
    chosen.truncate(most.min(tokens));
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter()
}

#[cfg(test)]
mod tests {
    use super::super::data;
    use super::*;
    use crate::Error;
    use crate::config::DType;
    use crate::kernels::cpu::CpuBackend;
    use crate::kernels::{MoeBackend, MoeShape, RouterSpec};

    const SHAPE: MoeShape = MoeShape { experts: 4, top_k: 2, hidden: 70, inter: 50, gated: true };

    /// A layer that spoils one value of what another computes.
    struct Spoilt<'a> {
        inner: Box<dyn LoadedLayer + 'a>,
        element: usize,
        value: f32,
    }

    impl LoadedLayer for Spoilt<'_> {
        fn set_input(&mut self, x: &[f32], logits: &[f32]) -> Result<()> {
            self.inner.set_input(x, logits)
        }
        fn run(&mut self, stage: Stage, set: usize) -> Result<()> {
            self.inner.run(stage, set)
        }
        fn routed(&mut self) -> Result<Routed> {
            self.inner.routed()
        }
        fn output(&mut self) -> Result<Vec<f32>, Error> {
            let mut out = self.inner.output()?;
            out[self.element] = self.value;
            Ok(out)
        }
        fn poison(&mut self) -> Result<()> {
            self.inner.poison()
        }
    }

    #[test]
    fn the_right_output_passes_and_a_spoilt_value_fails() {
        for dtype in [DType::Bf16, DType::Int8] {
            a_spoilt_value_fails(dtype);
        }
    }

    fn a_spoilt_value_fails(dtype: DType) {
        let backend = CpuBackend::new();
        let sets = vec![data::weights(SHAPE, dtype, 1).unwrap()];
        let inputs = Inputs::draw(&SHAPE, 9, &"uniform".parse().unwrap(), 2).unwrap();
        let arithmetic = backend.arithmetic(dtype);
        let load = || backend.load(&sets, &RouterSpec::softmax(), 9).unwrap();
        let right = run(load().as_mut(), &sets, &inputs, (0, 0), arithmetic).unwrap();
        assert_eq!(right.output, CheckOutcome::Pass);
        assert!(right.worst_ratio_to_bound.unwrap() < 1.0);
        for (element, value) in [(3, 0.5), (8 * 70 + 69, f32::NAN), (4 * 70, f32::INFINITY)] {
            let mut spoilt = Spoilt { inner: load(), element, value };
            let record = run(&mut spoilt, &sets, &inputs, (0, 0), arithmetic).unwrap();
            assert_eq!(record.output, CheckOutcome::Fail, "{element} {value}");
            assert_eq!(both(right, record).output, CheckOutcome::Fail);
        }
    }

    #[test]
    fn few_tokens_are_checked_once_each() {
        let chosen = |tokens, most| some_tokens(tokens, most).collect::<Vec<_>>();
        assert_eq!(chosen(1, 3), [0]);
        assert_eq!(chosen(2, 3), [0, 1]);
        assert_eq!(chosen(100, 3), [0, 49, 99]);
        assert_eq!(chosen(100, 1), [99]);
        assert_eq!(chosen(0, 3), [0; 0]);
    }
}
