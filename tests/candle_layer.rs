//! The candle module and candle's naive layer against the plain loops in double precision.

#![cfg(feature = "candle")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::VarBuilder;
use half::{bf16, f16};
use moe_frontier::config::Scoring;
use moe_frontier::kernels::candle::{MoeLayer, MoeLayerConfig, NaiveLayer, RoutedExperts};
use moe_frontier::kernels::cpu::CpuBackend;
use moe_frontier::kernels::{
    Arithmetic, LayerWeights, MoeBackend, MoeShape, Routed, RouterSpec, WeightData, reference,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

const SHAPE: MoeShape = MoeShape { experts: 6, top_k: 2, hidden: 40, inter: 56, gated: true };
const CPU: &Device = &Device::Cpu;

fn normal(seed: u64, dims: &[usize], scale: f32) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = dims.iter().product();
    let values: Vec<f32> =
        (0..count).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect();
    Tensor::from_vec(values, dims, CPU).unwrap()
}

/// Gate, gate-up and down weights of a layer, in the names of [`MoeLayer::new`].
fn tensors(shape: MoeShape, dtype: DType) -> HashMap<String, Tensor> {
    let MoeShape { experts, hidden, inter, .. } = shape;
    let rows = shape.halves() * inter;
    let named = |name: &str, tensor: Tensor| (name.to_owned(), tensor.to_dtype(dtype).unwrap());
    HashMap::from([
        named("gate.weight", normal(1, &[experts, hidden], 0.5)),
        named("experts.gate_up_proj", normal(2, &[experts, rows, hidden], 0.15)),
        named("experts.down_proj", normal(3, &[experts, hidden, inter], 0.13)),
    ])
}

fn config(shape: MoeShape) -> MoeLayerConfig {
    MoeLayerConfig { shape, router: RouterSpec::softmax().config }
}

fn layer(shape: MoeShape, dtype: DType) -> MoeLayer {
    MoeLayer::new(config(shape), VarBuilder::from_tensors(tensors(shape, dtype), dtype, CPU))
        .unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn weights(shape: MoeShape, dtype: DType) -> LayerWeights {
    let tensors = tensors(shape, dtype);
    let data = |name: &str| match dtype {
        DType::F32 => WeightData::F32(values(&tensors[name]).into()),
        DType::F16 => {
            WeightData::F16(values(&tensors[name]).into_iter().map(f16::from_f32).collect())
        }
        _ => WeightData::Bf16(values(&tensors[name]).into_iter().map(bf16::from_f32).collect()),
    };
    LayerWeights::new(shape, data("experts.gate_up_proj"), data("experts.down_proj")).unwrap()
}

/// The exact output for the values of `x` and `logits` as they are, with the module's bounds.
fn exact(weights: &LayerWeights, x: &Tensor, logits: &Tensor) -> Vec<reference::Exact> {
    exact_in(weights, x, logits, CpuBackend::new().arithmetic(weights.dtype()))
}

fn exact_in(
    weights: &LayerWeights,
    x: &Tensor,
    logits: &Tensor,
    arithmetic: Arithmetic,
) -> Vec<reference::Exact> {
    let s = weights.shape;
    let routed =
        reference::route(&values(logits), s.experts, s.top_k, &RouterSpec::softmax()).unwrap();
    reference::layer_in(weights, &values(x), &routed, arithmetic)
}

/// `unit` is the unit roundoff of the output's format, on top of the bound for f32 arithmetic.
fn assert_close(got: &Tensor, exact: &[reference::Exact], unit: f64) {
    let got = values(got);
    assert_eq!(got.len(), exact.len());
    for (i, (&got, exact)) in got.iter().zip(exact).enumerate() {
        let bound = exact.bound + unit * exact.value.abs();
        let off = (f64::from(got) - exact.value).abs();
        assert!(off <= bound, "element {i} is {got}, not {} +- {bound}", exact.value);
    }
}

#[test]
fn the_module_computes_the_layer_in_every_format() {
    let (f16_unit, bf16_unit) = (f16::EPSILON.to_f64() / 2.0, bf16::EPSILON.to_f64() / 2.0);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for gated in [true, false] {
            let shape = MoeShape { gated, ..SHAPE };
            let layer = layer(shape, dtype);
            let weights = weights(shape, dtype);
            for (format, unit) in
                [(DType::F32, 0.0), (DType::BF16, bf16_unit), (DType::F16, f16_unit)]
            {
                let x = normal(4, &[2, 9, shape.hidden], 1.0).to_dtype(format).unwrap();
                let out = layer.forward(&x).unwrap();
                assert_eq!((out.dims(), out.dtype()), (x.dims(), format));
                let logits = layer.router_logits(&x).unwrap();
                assert_eq!(logits.dims(), [2, 9, shape.experts]);
                assert_close(&out, &exact(&weights, &x, &logits), unit);
            }
        }
    }
}

#[test]
fn views_give_the_answer_of_their_contiguous_copies() {
    let layer = layer(SHAPE, DType::BF16);
    let MoeShape { experts, hidden, .. } = SHAPE;
    let wide = normal(5, &[7, 2 * hidden], 1.0);
    let deep = normal(6, &[hidden, 3, 5], 1.0);
    let views = [
        ("columns", wide.narrow(1, 13, hidden).unwrap()),
        ("rows", wide.narrow(0, 2, 3).unwrap().narrow(1, hidden, hidden).unwrap()),
        ("transposed", normal(7, &[hidden, 4], 1.0).t().unwrap()),
        ("permuted", deep.permute((2, 1, 0)).unwrap()),
        ("repeated", normal(8, &[hidden], 1.0).broadcast_as((3, hidden)).unwrap()),
        ("one token", wide.narrow(1, 1, hidden).unwrap().get(4).unwrap()),
    ];
    for (name, x) in views {
        let copy = x.force_contiguous().unwrap();
        let expected = values(&layer.forward(&copy).unwrap());
        assert_eq!(values(&layer.forward(&x).unwrap()), expected, "{name}");

        // The operation itself is handed the views, of both inputs.
        let mut dims = x.dims().to_vec();
        *dims.last_mut().unwrap() = experts;
        let logits = layer.router_logits(&x).unwrap();
        let twice = Tensor::stack(&[&logits, &logits.neg().unwrap()], logits.rank()).unwrap();
        let logits = twice.narrow(logits.rank(), 0, 1).unwrap().squeeze(logits.rank()).unwrap();
        assert_eq!(logits.dims(), dims);
        let out = layer.forward_with_logits(&x, &logits).unwrap();
        assert_eq!(values(&out), expected, "{name}");
    }
}

#[test]
fn no_tokens_give_an_empty_output() {
    let x = Tensor::zeros((2, 0, SHAPE.hidden), DType::F32, CPU).unwrap();
    assert_eq!(layer(SHAPE, DType::F32).forward(&x).unwrap().dims(), [2, 0, SHAPE.hidden]);
}

#[test]
fn calls_of_any_size_share_one_layer() {
    let layer = layer(SHAPE, DType::F32);
    let weights = weights(SHAPE, DType::F32);
    std::thread::scope(|scope| {
        for tokens in [33usize, 1, 8, 64] {
            let (layer, weights) = (layer.clone(), &weights);
            scope.spawn(move || {
                let x = normal(tokens as u64, &[tokens, SHAPE.hidden], 1.0);
                let out = layer.forward(&x).unwrap();
                let logits = layer.router_logits(&x).unwrap();
                assert_close(&out, &exact(weights, &x, &logits), 0.0);
            });
        }
    });
}

#[test]
fn what_does_not_fit_is_an_error() {
    let layer = layer(SHAPE, DType::F32);
    let fails = |x: &Tensor| layer.forward(x).unwrap_err().to_string();
    assert!(fails(&normal(1, &[3, 41], 1.0)).contains("hidden size 40"));
    assert!(fails(&Tensor::new(1f32, CPU).unwrap()).contains("scalar"));
    assert!(layer.forward(&Tensor::zeros((3, 40), DType::U32, CPU).unwrap()).is_err());

    let x = normal(1, &[3, 40], 1.0);
    for dims in [[2, 6], [3, 5]] {
        assert!(layer.forward_with_logits(&x, &normal(1, &dims, 1.0)).is_err());
    }
    let nan = Tensor::new(&[[0f32; 6], [0.0, 1.0, f32::NAN, 0.0, 0.0, 0.0], [0.0; 6]], CPU);
    let error = layer.forward_with_logits(&x, &nan.unwrap()).unwrap_err().to_string();
    assert!(error.contains("token 1 has a logit that is not a number"), "{error}");
    // A value that is not a number reaches the router through the gate.
    let x = Tensor::full(f32::NAN, (1, 40), CPU).unwrap();
    assert!(fails(&x).contains("token 0"));
}

#[test]
fn configurations_and_weights_that_make_no_layer_are_refused() {
    let with = |config: MoeLayerConfig, tensors: HashMap<String, Tensor>| {
        let vb = VarBuilder::from_tensors(tensors, DType::F32, CPU);
        MoeLayer::new(config, vb).map(|_| ()).unwrap_err().to_string()
    };
    let good = || tensors(SHAPE, DType::F32);
    let k_above_experts = MoeShape { top_k: 7, ..SHAPE };
    assert!(with(config(k_above_experts), good()).contains("top_k: 7"));
    assert!(with(config(MoeShape { inter: 55, ..SHAPE }), good()).contains("gate_up_proj"));
    let mut missing = good();
    missing.remove("experts.down_proj");
    assert!(with(config(SHAPE), missing).contains("down_proj"));
    let mut biased = config(SHAPE);
    biased.router.scoring = Scoring::Sigmoid;
    biased.router.bias = true;
    assert!(with(biased, good()).contains("e_score_correction_bias"));

    let t = tensors(SHAPE, DType::F32);
    let (gate, w13, w2) = (&t["gate.weight"], &t["experts.gate_up_proj"], &t["experts.down_proj"]);
    let made = |w13: &Tensor, w2: &Tensor| {
        MoeLayer::from_tensors(config(SHAPE), gate, None, w13, w2).map(|_| ())
    };
    assert!(made(w13, w2).is_ok());
    assert!(made(w2, w13).is_err());
    assert!(made(&w13.to_dtype(DType::BF16).unwrap(), w2).is_err());
    assert!(made(&w13.to_dtype(DType::F64).unwrap(), &w2.to_dtype(DType::F64).unwrap()).is_err());
}

#[test]
fn strided_weights_are_copied_in_their_logical_order() {
    let t = tensors(SHAPE, DType::F32);
    let transposed = |name: &str| t[name].transpose(1, 2).unwrap().force_contiguous().unwrap();
    let (w13, w2) = (transposed("experts.gate_up_proj"), transposed("experts.down_proj"));
    let strided = MoeLayer::from_tensors(
        config(SHAPE),
        &t["gate.weight"],
        None,
        &w13.transpose(1, 2).unwrap(),
        &w2.transpose(1, 2).unwrap(),
    )
    .unwrap();
    let x = normal(4, &[5, SHAPE.hidden], 1.0);
    let expected = values(&layer(SHAPE, DType::F32).forward(&x).unwrap());
    assert_eq!(values(&strided.forward(&x).unwrap()), expected);
}

#[test]
fn a_router_with_bias_reads_it_from_the_checkpoint() {
    let mut tensors = tensors(SHAPE, DType::F32);
    // Only experts 2 and 5 can be chosen.
    let bias = Tensor::new(&[0f32, 0.0, 9.0, 0.0, 0.0, 9.0], CPU).unwrap();
    tensors.insert("gate.e_score_correction_bias".into(), bias);
    let mut config = config(SHAPE);
    config.router.scoring = Scoring::Sigmoid;
    config.router.bias = true;
    let layer = MoeLayer::new(config, VarBuilder::from_tensors(tensors, DType::F32, CPU)).unwrap();
    let x = normal(4, &[5, SHAPE.hidden], 1.0);
    let logits = values(&layer.router_logits(&x).unwrap());
    let spec = RouterSpec { config: config.router, bias: vec![0.0, 0.0, 9.0, 0.0, 0.0, 9.0] };
    let routed = reference::route(&logits, 6, 2, &spec).unwrap();
    assert!(routed.ids.iter().all(|&id| id == 2 || id == 5));
    let expected = reference::layer(&weights(SHAPE, DType::F32), &values(&x), &routed);
    assert_close(&layer.forward(&x).unwrap(), &expected, 0.0);
}

#[test]
fn gradients_are_refused_and_not_silently_missing() {
    let layer = layer(SHAPE, DType::F32);
    let x = Var::from_tensor(&normal(4, &[5, SHAPE.hidden], 1.0)).unwrap();
    let loss = layer.forward(x.as_tensor()).unwrap().sum_all().unwrap();
    assert!(loss.backward().is_err());
}

#[test]
fn the_operation_refuses_a_router_that_does_not_fit() {
    let spec = RouterSpec { bias: vec![0.0; 3], ..RouterSpec::softmax() };
    let weights = Arc::new(weights(SHAPE, DType::F32));
    assert!(RoutedExperts::new(weights, spec, CpuBackend::new()).is_err());
}

#[test]
fn the_naive_layer_computes_the_same() {
    for gated in [true, false] {
        let shape = MoeShape { gated, ..SHAPE };
        let x = normal(4, &[9, shape.hidden], 1.0);
        let logits = normal(5, &[9, shape.experts], 1.0);
        let routed =
            reference::route(&values(&logits), shape.experts, 2, &RouterSpec::softmax()).unwrap();
        let naive = NaiveLayer::new(&weights(shape, DType::F32)).unwrap();
        let out = naive.forward(&x, &routed).unwrap();
        assert_close(&out, &exact(&weights(shape, DType::F32), &x, &logits), 0.0);

        // candle rounds every intermediate tensor to bf16, so only its norm is close.
        let naive = NaiveLayer::new(&weights(shape, DType::BF16)).unwrap();
        let x = x.to_dtype(DType::BF16).unwrap();
        let out = values(&naive.forward(&x, &routed).unwrap());
        let expected = exact(&weights(shape, DType::BF16), &x, &logits);
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let off = squares(&mut out.iter().zip(&expected).map(|(o, e)| f64::from(*o) - e.value));
        let norm = squares(&mut expected.iter().map(|e| e.value));
        assert!((off / norm).sqrt() < 1e-2, "{}", (off / norm).sqrt());
    }
}

#[test]
fn int8_weights_run_in_the_operation_and_are_refused_by_the_naive_layer() {
    let int8 = weights(SHAPE, DType::F32).quantized().unwrap();
    let error = NaiveLayer::new(&int8).err().unwrap();
    assert!(error.to_string().contains("int8"), "{error}");
    let (x, logits) = (normal(4, &[9, SHAPE.hidden], 1.0), normal(5, &[9, SHAPE.experts], 1.0));
    let routed =
        reference::route(&values(&logits), SHAPE.experts, 2, &RouterSpec::softmax()).unwrap();
    let expected = CpuBackend::new().forward(&int8, &values(&x), &routed).unwrap();
    let experts = RoutedExperts::new(Arc::new(int8), RouterSpec::softmax(), CpuBackend::new());
    let out = x.apply_op2(&logits, experts.unwrap()).unwrap();
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&values(&out)), bits(&expected));
}

#[test]
fn the_naive_layer_refuses_ids_outside_the_table() {
    let naive = NaiveLayer::new(&weights(SHAPE, DType::F32)).unwrap();
    let routed = Routed { ids: vec![0, 6], weights: vec![0.5; 2] };
    let error = naive.forward(&normal(1, &[1, 40], 1.0), &routed).unwrap_err().to_string();
    assert!(error.contains("names expert 6 of 6"), "{error}");
}
