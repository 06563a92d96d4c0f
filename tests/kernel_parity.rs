//! Every stage of the CPU backend against the plain loops in double precision, element by element.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use half::{bf16, f16};
use moe_frontier::config::{DType, RouterConfig, Scoring};
use moe_frontier::kernels::cpu::simd::Isa;
use moe_frontier::kernels::cpu::{self, CpuBackend};
use moe_frontier::kernels::reference::DeviceRouting;
use moe_frontier::kernels::{
    Activations, Arithmetic, Int8Weights, LayerWeights, MoeBackend, MoeShape, Routed, RouterSpec,
    Stage, WeightData, reference,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Storage format of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    F32,
    Bf16,
    F16,
    Int8,
}

impl Format {
    const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::Int8];
}

fn normal(rng: &mut ChaCha8Rng, count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|_| rng.sample::<f32, _>(StandardNormal) * scale).collect()
}

/// Rows of `k` weights in a format.
fn stored(values: Vec<f32>, k: usize, format: Format) -> WeightData {
    match format {
        Format::F32 => WeightData::F32(values.into()),
        Format::Bf16 => WeightData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        Format::F16 => WeightData::F16(values.into_iter().map(f16::from_f32).collect()),
        Format::Int8 => WeightData::F32(values.into()).quantized(k).unwrap(),
    }
}

/// The same for integers, which 8 bits hold with a scale of 1.
fn stored_integers(values: Vec<f32>, k: usize, format: Format) -> WeightData {
    if format != Format::Int8 {
        return stored(values, k, format);
    }
    #[expect(clippy::cast_possible_truncation, reason = "they are small")]
    let narrow: Vec<i8> = values.iter().map(|v| *v as i8).collect();
    assert!(narrow.iter().zip(&values).all(|(n, v)| (f32::from(*n) - v).abs() <= 0.0));
    let scales = vec![1.0; values.len() / k];
    WeightData::Int8(Int8Weights::new(narrow, scales, k).unwrap())
}

fn random_weights(shape: MoeShape, format: Format, rng: &mut ChaCha8Rng) -> LayerWeights {
    let scale = |k: usize| 1.0 / f32::from(u16::try_from(k).unwrap()).sqrt();
    let w13 = normal(rng, shape.w13_len().unwrap(), scale(shape.hidden));
    let w2 = normal(rng, shape.w2_len().unwrap(), scale(shape.inter));
    let w13 = stored(w13, shape.hidden, format);
    LayerWeights::new(shape, w13, stored(w2, shape.inter, format)).unwrap()
}

/// Distinct random experts for each token with random weights.
fn random_routing(shape: &MoeShape, tokens: usize, rng: &mut ChaCha8Rng) -> Routed {
    let mut routed = Routed::default();
    for _ in 0..tokens {
        let ids = rand::seq::index::sample(rng, shape.experts, shape.top_k);
        routed.ids.extend(ids.iter().map(|i| u32::try_from(i).unwrap()));
        routed.weights.extend((0..shape.top_k).map(|_| rng.random::<f32>()));
    }
    routed
}

fn assert_within_bounds(got: &[f32], expected: &[reference::Exact], case: &str) {
    assert_eq!(got.len(), expected.len(), "{case}");
    for (i, (got, exact)) in got.iter().zip(expected).enumerate() {
        let off = (f64::from(*got) - exact.value).abs();
        assert!(
            off <= exact.bound,
            "{case}: element {i} is {got}, not {} +- {}",
            exact.value,
            exact.bound
        );
    }
}

fn shape(experts: usize, top_k: usize, hidden: usize, inter: usize) -> MoeShape {
    MoeShape { experts, top_k, hidden, inter, gated: true }
}

fn check_layer(shape: MoeShape, tokens: usize, format: Format, isa: Isa, seed: u64) {
    let case = format!("{shape:?} {tokens} tokens {format:?} {} seed {seed}", isa.label());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let weights = random_weights(shape, format, &mut rng);
    let x = normal(&mut rng, tokens * shape.hidden, 1.0);
    let routed = random_routing(&shape, tokens, &mut rng);
    let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
    assert_within_bounds(&out, &exact(&weights, &x, &routed, isa), &case);
}

/// The reference for the activations that an instruction set keeps.
fn exact(weights: &LayerWeights, x: &[f32], routed: &Routed, isa: Isa) -> Vec<reference::Exact> {
    reference::layer_in(weights, x, routed, isa.activations(weights.dtype()))
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        let available = isa.is_available();
        if !available {
            eprintln!("SKIPPED {}: this processor does not have it", isa.label());
        }
        available
    })
}

#[test]
fn layers_of_many_shapes_stay_within_the_error_bound() {
    let shapes = [
        shape(1, 1, 64, 64),
        shape(1, 1, 1, 1),
        shape(3, 2, 7, 5),
        shape(4, 1, 64, 192),
        shape(8, 2, 65, 129),
        shape(8, 8, 33, 31),
        shape(16, 4, 128, 63),
        shape(32, 2, 96, 200),
        MoeShape { gated: false, ..shape(5, 3, 70, 66) },
    ];
    for isa in available() {
        for (seed, &shape) in shapes.iter().enumerate() {
            for tokens in [1, 2, 3, 7, 17, 64, 129] {
                for format in Format::ALL {
                    check_layer(shape, tokens, format, isa, seed as u64);
                }
            }
        }
    }
}

#[test]
fn experts_up_to_the_limit_work_and_more_are_refused() {
    check_layer(shape(1024, 8, 8, 8), 40, Format::Bf16, Isa::detect(), 3);
    assert_eq!(shape(1025, 8, 8, 8).validate().unwrap_err().exit_code(), 2);
    assert_eq!(shape(8, 9, 8, 8).validate().unwrap_err().exit_code(), 2);
    assert_eq!(shape(8, 0, 8, 8).validate().unwrap_err().exit_code(), 2);
    assert_eq!(shape(0, 0, 8, 8).validate().unwrap_err().exit_code(), 2);
    assert!(shape(1024, 1, usize::MAX / 2, 8).validate().is_err());
}

#[test]
fn empty_experts_and_one_hot_expert_are_computed_alike() {
    let shape = shape(6, 1, 40, 72);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let weights = random_weights(shape, Format::F32, &mut rng);
    let tokens = 19;
    let x = normal(&mut rng, tokens * shape.hidden, 1.0);
    for ids in [
        vec![0u32; tokens],
        vec![5; tokens],
        (0..tokens).map(|t| if t % 2 == 0 { 1 } else { 4 }).collect(),
    ] {
        let routed = Routed { ids, weights: vec![0.5; tokens] };
        let out = CpuBackend::new().forward(&weights, &x, &routed).unwrap();
        assert_within_bounds(&out, &reference::layer(&weights, &x, &routed), "hot expert");
    }
}

#[test]
fn no_tokens_give_no_output() {
    let shape = shape(4, 2, 8, 8);
    let weights = random_weights(shape, Format::F32, &mut ChaCha8Rng::seed_from_u64(1));
    assert!(CpuBackend::new().forward(&weights, &[], &Routed::default()).unwrap().is_empty());
}

/// Every format that an instruction set could treat differently.
fn cases() -> impl Iterator<Item = (Isa, Format)> {
    available().flat_map(|isa| Format::ALL.map(|format| (isa, format)))
}

/// Small integers: every sum is exact, so every order of summation must agree to the bit.
#[test]
fn integer_products_are_exact() {
    for (isa, format) in cases() {
        for (hidden, inter, tokens) in [(64, 64, 5), (130, 70, 33), (511, 65, 8)] {
            let shape = shape(4, 2, hidden, inter);
            let mut rng = ChaCha8Rng::seed_from_u64(hidden as u64);
            let mut small = |count: usize| -> Vec<f32> {
                (0..count).map(|_| f32::from(rng.random_range(-4i8..=4))).collect()
            };
            let mut x = small(tokens * hidden);
            let mut w13 = small(shape.w13_len().unwrap());
            // silu(v) is exactly v in f32 from 18 on, so gates are one fixed column of 32 times 1.
            for row in x.chunks_exact_mut(hidden) {
                row[0] = 1.0;
            }
            for (i, row) in w13.chunks_exact_mut(hidden).enumerate() {
                let gate = (i / inter).is_multiple_of(2);
                if gate {
                    row.fill(0.0);
                    row[0] = 32.0;
                } else {
                    // At most 15 products of up to 16: the sum stays below 256, which bf16 holds.
                    let every = hidden.div_ceil(15);
                    let sparse = |k: usize| k % every == i % every;
                    row.iter_mut()
                        .enumerate()
                        .filter(|(k, _)| !sparse(*k))
                        .for_each(|(_, w)| *w = 0.0);
                }
            }
            let w2 = small(shape.w2_len().unwrap());
            let w13 = stored_integers(w13, hidden, format);
            let w2 = stored_integers(w2, inter, format);
            let weights = LayerWeights::new(shape, w13, w2).unwrap();
            let mut routed = random_routing(&shape, tokens, &mut rng);
            for (i, w) in routed.weights.iter_mut().enumerate() {
                *w = [1.0, 0.5, 0.25][i % 3];
            }
            let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
            for (got, exact) in out.iter().zip(reference::layer(&weights, &x, &routed)) {
                // In double precision silu(32) is 32 less 4e-13; the sums are multiples of a quarter.
                let exact = (exact.value * 4.0).round() / 4.0;
                assert!(
                    (f64::from(*got) - exact).abs() <= 0.0,
                    "{} {format:?} {hidden}x{inter}: {got} against {exact}",
                    isa.label()
                );
            }
        }
    }
}

/// One-hot activations and weights that name themselves: a wrong index shows what was read instead.
#[test]
fn every_weight_is_read_from_its_own_place() {
    let shape = MoeShape { gated: false, ..shape(3, 1, 70, 66) };
    let tokens = shape.hidden;
    let mut x = vec![0.0; tokens * shape.hidden];
    for t in 0..tokens {
        x[t * shape.hidden + t] = 1.0;
    }
    let ids = (0..tokens).map(|t| u32::try_from(t % 3).unwrap()).collect();
    let routed = Routed { ids, weights: vec![1.0; tokens] };
    for (isa, format) in cases() {
        // A digit of the index a pass: formats hold integers to 256, int8 to 127, and silu(v) = v from
        // 18 on.
        let base = if format == Format::Int8 { 64 } else { 128 };
        for digit in [1, base, base * base] {
            let w13: Vec<f32> = (0..shape.w13_len().unwrap())
                .map(|i| f32::from(u16::try_from(i / digit % base).unwrap()) + 32.0)
                .collect();
            for n in [0, 1, 31, 32, 63, 64, 65] {
                let mut w2 = vec![0.0; shape.w2_len().unwrap()];
                for expert in 0..shape.experts {
                    w2[(expert * shape.hidden + 69) * shape.inter + n] = 1.0;
                }
                let w2 = stored_integers(w2, shape.inter, format);
                let weights = stored_integers(w13.clone(), shape.hidden, format);
                let weights = LayerWeights::new(shape, weights, w2).unwrap();
                let backend = CpuBackend::with_isa(isa).unwrap();
                let out = backend.forward(&weights, &x, &routed).unwrap();
                for t in 0..tokens {
                    let expected = w13[((t % 3) * shape.inter + n) * shape.hidden + t];
                    let got = out[t * shape.hidden + 69];
                    let case = format!("{} {format:?} token {t}, column {n}", isa.label());
                    assert!((got - expected).abs() <= 0.0, "{case}: {got} not {expected}");
                }
            }
        }
    }
}

/// The bounds of bf16 activations are wide; the norm of the error must be far smaller.
#[test]
fn bf16_layers_are_close_in_norm() {
    let shape = shape(8, 2, 256, 320);
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let weights = random_weights(shape, Format::Bf16, &mut rng);
    let x = normal(&mut rng, 33 * shape.hidden, 1.0);
    let routed = random_routing(&shape, 33, &mut rng);
    let expected = reference::layer(&weights, &x, &routed);
    for isa in available() {
        let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
        let off: f64 =
            out.iter().zip(&expected).map(|(o, e)| (f64::from(*o) - e.value).powi(2)).sum();
        let norm: f64 = expected.iter().map(|e| e.value.powi(2)).sum();
        let bf16 = isa.activations(DType::Bf16) == Activations::Bf16;
        let limit = if bf16 { 1e-2 } else { 1e-6 };
        let off = (off / norm).sqrt();
        println!("{}: relative error {off:.1e}", isa.label());
        assert!(off < limit, "{}: {off}", isa.label());
    }
}

/// Of packed weights a row's result depends neither on its neighbours nor on how many there are. Weights
/// that lie in rows are summed in another order for few rows an expert than for many, int8 ones exactly.
#[test]
fn a_token_gets_the_same_bits_in_any_batch() {
    let shape = shape(4, 2, 96, 72);
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let tokens = 60;
    let x = normal(&mut rng, tokens * shape.hidden, 1.0);
    let logits = normal(&mut rng, tokens * shape.experts, 1.0);
    for (isa, format) in cases() {
        let sets = [random_weights(shape, format, &mut rng)];
        let backend = CpuBackend::with_isa(isa).unwrap().with_packed_weights();
        let run = |tokens: std::ops::Range<usize>| {
            let mut layer = backend.load(&sets, &RouterSpec::softmax(), tokens.len()).unwrap();
            let part = |values: &[f32], width: usize| {
                values[tokens.start * width..tokens.end * width].to_vec()
            };
            layer.set_input(&part(&x, shape.hidden), &part(&logits, shape.experts)).unwrap();
            layer.run(Stage::Layer, 0).unwrap();
            layer.output().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let all = run(0..tokens);
        for tokens in [0..1, 7..20, 33..60] {
            let expected = &all[tokens.start * shape.hidden..tokens.end * shape.hidden];
            assert_eq!(run(tokens.clone()), expected, "{} {format:?} {tokens:?}", isa.label());
        }
    }
}

#[test]
fn a_value_that_is_not_a_number_reaches_its_own_token_alone() {
    let shape = shape(2, 1, 40, 24);
    let mut rng = ChaCha8Rng::seed_from_u64(29);
    let mut x = normal(&mut rng, 5 * shape.hidden, 1.0);
    x[2 * shape.hidden + 7] = f32::NAN;
    let routed = Routed { ids: vec![0; 5], weights: vec![1.0; 5] };
    for (isa, format) in cases() {
        let weights = random_weights(shape, format, &mut rng);
        let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
        for (token, row) in out.chunks_exact(shape.hidden).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (token == 2)), "{} {token}", isa.label());
        }
    }
}

#[test]
fn a_backend_has_the_threads_it_was_given() {
    let backend = CpuBackend::new().with_threads(3).unwrap();
    assert_eq!(backend.threads(), 3);
    assert!(backend.description().ends_with("3 threads"), "{}", backend.description());
    for threads in [0, 1025] {
        assert_eq!(CpuBackend::new().with_threads(threads).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn reruns_and_thread_counts_agree_to_the_bit() {
    let shape = shape(8, 2, 96, 160);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let x = normal(&mut rng, 50 * shape.hidden, 1.0);
    let routed = random_routing(&shape, 50, &mut rng);
    let cases = cases().filter(|(_, format)| matches!(format, Format::Bf16 | Format::Int8));
    for (isa, format) in cases {
        let weights = random_weights(shape, format, &mut rng);
        let run = |threads: usize| {
            let backend = CpuBackend::with_isa(isa).unwrap().with_threads(threads).unwrap();
            let out = backend.forward(&weights, &x, &routed).unwrap();
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let first = run(1);
        for threads in [1, 2, 3, 7, 64, 256] {
            for _ in 0..2 {
                assert_eq!(first, run(threads), "{} {format:?} {threads} threads", isa.label());
            }
        }
    }
}

/// Sums of int8 products are integers: the instruction set decides their speed alone.
#[test]
fn int8_layers_have_the_same_bits_on_every_instruction_set() {
    for (seed, shape) in [
        shape(8, 2, 96, 160),
        shape(3, 1, 65, 129),
        shape(2, 2, 2100, 40),
        MoeShape { gated: false, ..shape(5, 3, 70, 66) },
    ]
    .into_iter()
    .enumerate()
    {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let weights = random_weights(shape, Format::Int8, &mut rng);
        for tokens in [1, 6, 40] {
            let x = normal(&mut rng, tokens * shape.hidden, 1.0);
            let routed = random_routing(&shape, tokens, &mut rng);
            let run = |isa| {
                let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed);
                out.unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let expected = run(Isa::Portable);
            for isa in available() {
                assert_eq!(run(isa), expected, "{} {shape:?} {tokens} tokens", isa.label());
            }
        }
    }
}

/// Rows that are hard on a common unit: outliers, all zeros, values at both ends of the exponents; and
/// weight rows of zeros, of -128, and with scales far apart.
#[test]
fn int8_layers_with_planted_rows_stay_within_the_error_bound() {
    let shape = shape(4, 2, 150, 90);
    let mut rng = ChaCha8Rng::seed_from_u64(31);
    let (h, tokens) = (shape.hidden, 24);
    let planted = |data: WeightData| {
        let WeightData::Int8(rows) = data else { unreachable!("quantised above") };
        let (mut values, mut scales) = (rows.values().to_vec(), rows.scales().to_vec());
        values[..rows.k()].fill(0);
        values[rows.k()..2 * rows.k()].fill(-128);
        (scales[2], scales[3], scales[4]) = (0.0, 1e-9, 3.0);
        WeightData::Int8(Int8Weights::new(values, scales, rows.k()).unwrap())
    };
    let weights = random_weights(shape, Format::Int8, &mut rng);
    let weights = LayerWeights::new(shape, planted(weights.w13), planted(weights.w2)).unwrap();
    let mut x = normal(&mut rng, tokens * h, 1.0);
    x[3] = 1e4;
    x[h..2 * h].fill(0.0);
    x[2 * h..3 * h].iter_mut().for_each(|v| *v *= 1e-30);
    x[3 * h..4 * h].iter_mut().for_each(|v| *v *= 1e-42);
    x[4 * h..5 * h].fill(1.0);
    x[5 * h..6 * h].fill(f32::from_bits(2.0_f32.to_bits() - 256));
    let routed = random_routing(&shape, tokens, &mut rng);
    for isa in available() {
        let out = CpuBackend::with_isa(isa).unwrap().forward(&weights, &x, &routed).unwrap();
        assert_within_bounds(&out, &exact(&weights, &x, &routed, isa), isa.label());
        let zeros = &out[h..2 * h];
        assert!(zeros.iter().all(|v| v.abs() <= 0.0), "a token of zeros gives zeros");
    }
}

/// Against activations that are not rounded at all: 16 bits a row cost next to nothing.
#[test]
fn int8_layers_are_close_in_norm_to_unrounded_activations() {
    let shape = shape(8, 2, 256, 320);
    let mut rng = ChaCha8Rng::seed_from_u64(19);
    let weights = random_weights(shape, Format::Int8, &mut rng);
    let x = normal(&mut rng, 33 * shape.hidden, 1.0);
    let routed = random_routing(&shape, 33, &mut rng);
    let expected = reference::layer_in(&weights, &x, &routed, Arithmetic::SINGLE);
    let out = CpuBackend::new().forward(&weights, &x, &routed).unwrap();
    let off: f64 = out.iter().zip(&expected).map(|(o, e)| (f64::from(*o) - e.value).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e.value.powi(2)).sum();
    let off = (off / norm).sqrt();
    println!("relative error {off:.1e}");
    assert!(off < 2e-4, "{off}");
}

#[test]
fn scales_belong_to_the_rows_of_the_matrices() {
    let shape = shape(2, 1, 8, 6);
    let rows = |len: usize, k: usize| {
        WeightData::Int8(Int8Weights::new(vec![1; len], vec![1.0; len / k], k).unwrap())
    };
    let (n13, n2) = (shape.w13_len().unwrap(), shape.w2_len().unwrap());
    let weights = LayerWeights::new(shape, rows(n13, 8), rows(n2, 6)).unwrap();
    assert_eq!(weights.bytes(), n13 + n2 + 4 * (n13 / 8 + n2 / 6));
    for (k13, k2) in [(6, 6), (8, 8), (4, 6)] {
        let error = LayerWeights::new(shape, rows(n13, k13), rows(n2, k2)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains("a scale for every"), "{error}");
    }
}

#[test]
fn a_loaded_layer_routes_aligns_and_computes_after_being_poisoned() {
    let shape = shape(8, 2, 72, 100);
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    for (isa, format) in cases() {
        run_a_loaded_layer(shape, isa, format, &mut rng);
    }
}

fn run_a_loaded_layer(shape: MoeShape, isa: Isa, format: Format, rng: &mut ChaCha8Rng) {
    let sets = [random_weights(shape, format, rng), random_weights(shape, format, rng)];
    let backend = CpuBackend::with_isa(isa).unwrap();
    let spec = RouterSpec::softmax();
    let mut layer = backend.load(&sets, &spec, 64).unwrap();
    // Large, then small, then large through the same workspace.
    for tokens in [64, 3, 17, 64] {
        let x = normal(rng, tokens * shape.hidden, 1.0);
        let logits = normal(rng, tokens * shape.experts, 2.0);
        let routed = reference::route(&logits, 8, 2, &spec).unwrap();
        for (set, weights) in sets.iter().enumerate() {
            let expected = exact(weights, &x, &routed, isa);
            layer.set_input(&x, &logits).unwrap();
            layer.poison().unwrap();
            layer.run(Stage::Layer, set).unwrap();
            assert_within_bounds(&layer.output().unwrap(), &expected, "whole layer");
            assert_eq!(layer.routed().unwrap(), routed);
            layer.poison().unwrap();
            for stage in &Stage::ALL[..5] {
                layer.run(*stage, set).unwrap();
            }
            assert_within_bounds(&layer.output().unwrap(), &expected, "stage by stage");
        }
    }
    assert_eq!(layer.set_input(&vec![0.0; 72 * 65], &[0.0; 8 * 65]).unwrap_err().exit_code(), 2);
    assert_eq!(layer.set_input(&[0.0; 71], &[0.0; 8]).unwrap_err().exit_code(), 2);
    assert_eq!(layer.run(Stage::Layer, 2).unwrap_err().exit_code(), 2);
}

#[test]
fn bad_ids_are_refused_before_anything_is_read() {
    let shape = shape(4, 1, 8, 8);
    let weights = random_weights(shape, Format::F32, &mut ChaCha8Rng::seed_from_u64(2));
    for id in [4, 123_456_789, u32::MAX] {
        let routed = Routed { ids: vec![id], weights: vec![1.0] };
        let error = CpuBackend::new().forward(&weights, &[0.0; 8], &routed).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    let routed = Routed { ids: vec![0], weights: vec![1.0] };
    assert!(CpuBackend::new().forward(&weights, &[0.0; 7], &routed).is_err());
}

/// Every score that is executed.
const SCORINGS: [Scoring; 5] = [
    Scoring::Softmax,
    Scoring::SoftmaxOverTopK,
    Scoring::Sigmoid,
    Scoring::SoftplusSqrt,
    Scoring::Prototype,
];

fn config(scoring: Scoring) -> RouterConfig {
    RouterConfig { scoring, ..RouterSpec::softmax().config }
}

fn route_both(logits: &[f32], experts: usize, top_k: usize, spec: &RouterSpec) -> Routed {
    let expected = reference::route(logits, experts, top_k, spec).unwrap();
    let bits = |r: &Routed| r.weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
    let mut got = Routed::default();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        cpu::route_in(isa, logits, experts, top_k, spec, &mut got).unwrap();
        assert_eq!(got.ids, expected.ids, "{}", isa.label());
        assert_eq!(bits(&got), bits(&expected), "{}", isa.label());
    }
    for ids in got.ids.chunks_exact(top_k) {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), top_k, "experts of one token are distinct");
    }
    got
}

#[test]
fn routers_of_known_models_agree_with_the_plain_loops() {
    // (experts, groups, groups kept, top_k, scoring, bias)
    let models = [
        (8, 1, 1, 2, Scoring::Softmax, false),
        (256, 8, 4, 8, Scoring::Sigmoid, true),
        (384, 1, 1, 8, Scoring::Sigmoid, true),
        (72, 1, 1, 6, Scoring::Softmax, false),
        (128, 1, 1, 8, Scoring::Softmax, false),
        (512, 1, 1, 10, Scoring::Softmax, false),
        (128, 1, 1, 1, Scoring::Softmax, false),
        (32, 1, 1, 4, Scoring::SoftmaxOverTopK, false),
        (16, 1, 1, 4, Scoring::Prototype, false),
        (32, 1, 1, 2, Scoring::Prototype, false),
        (12, 1, 1, 3, Scoring::Prototype, true),
        (96, 1, 1, 32, Scoring::SoftplusSqrt, true),
        (160, 8, 3, 6, Scoring::Softmax, true),
        (160, 8, 3, 6, Scoring::Softmax, false),
        (96, 3, 2, 4, Scoring::SoftmaxOverTopK, true),
        (1024, 1, 1, 32, Scoring::Softmax, false),
        (1024, 8, 4, 8, Scoring::Sigmoid, true),
        (40, 1, 1, 40, Scoring::Softmax, false),
        // Groups of two: more registers than are kept, which the plain loops choose from.
        (1000, 500, 9, 4, Scoring::Sigmoid, true),
        (24, 24, 5, 3, Scoring::SoftplusSqrt, false),
    ];
    for (experts, n_group, topk_group, top_k, scoring, bias) in models {
        let mut rng = ChaCha8Rng::seed_from_u64(experts as u64);
        for tokens in [1, 8, 150] {
            let spec = RouterSpec {
                config: RouterConfig {
                    n_group,
                    topk_group,
                    bias,
                    scaling_factor: 2.5,
                    ..config(scoring)
                },
                bias: if bias { normal(&mut rng, experts, 0.3) } else { Vec::new() },
            };
            for scale in [1.0, 1e30] {
                let logits = normal(&mut rng, tokens * experts, scale);
                let routed = route_both(&logits, experts, top_k, &spec);
                for weights in routed.weights.chunks_exact(top_k) {
                    let sum: f32 = weights.iter().sum();
                    assert!((sum - 2.5).abs() < 1e-4 || sum.abs() < 1e-4, "renormalised: {sum}");
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let spec = RouterSpec::softmax();
    assert_eq!(route_both(&[1.0; 8], 8, 3, &spec).ids, [0, 1, 2]);
    assert_eq!(route_both(&[f32::NEG_INFINITY; 4], 4, 2, &spec).ids, [0, 1]);
    assert_eq!(route_both(&[-3.0, -1.0, -1.0, -2.0], 4, 2, &spec).ids, [1, 2]);
    assert_eq!(route_both(&[-0.0, 0.0, -0.0], 3, 2, &spec).ids, [0, 1]);
    assert_eq!(route_both(&[0.0, f32::INFINITY, 1.0], 3, 2, &spec).ids, [1, 2]);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let few: Vec<f32> = (0..64 * 32).map(|_| f32::from(rng.random_range(0i8..3))).collect();
    route_both(&few, 32, 5, &spec);
}

/// Logits that routers get wrong: ties, both zeros, infinities, denormals, whole rows of them.
#[test]
fn routers_agree_on_awkward_rows_of_every_length() {
    let values = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 1e30, f32::INFINITY, f32::NEG_INFINITY];
    let mut rng = ChaCha8Rng::seed_from_u64(41);
    for experts in (1..=80usize).chain([127, 128, 129, 255, 256, 257, 1000]) {
        for scoring in SCORINGS {
            for renormalize in [false, true] {
                let spec = RouterSpec {
                    config: RouterConfig { renormalize, ..config(scoring) },
                    bias: Vec::new(),
                };
                // As many prototypes as divide the experts.
                let top_k = (1..=experts.min(9)).rfind(|k| experts.is_multiple_of(*k)).unwrap();
                let few = rng.random_range(1..=values.len());
                let logits: Vec<f32> =
                    (0..19 * experts).map(|_| values[rng.random_range(0..few)]).collect();
                route_both(&logits, experts, top_k, &spec);
            }
        }
    }
}

#[test]
fn routers_agree_on_any_number_of_threads() {
    let (experts, top_k, tokens) = (64, 6, 3001);
    let mut rng = ChaCha8Rng::seed_from_u64(43);
    let mut logits = normal(&mut rng, tokens * experts, 1.0);
    let spec = RouterSpec::softmax();
    let expected = reference::route(&logits, experts, top_k, &spec).unwrap();
    for threads in [1, 2, 3, 7, 64, 256] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut got = Routed::default();
        pool.install(|| cpu::route(&logits, experts, top_k, &spec, &mut got)).unwrap();
        assert_eq!(got, expected, "{threads} threads");
    }
    // Whichever thread finds one, the error names the first.
    (logits[2000 * experts], logits[2900 * experts]) = (f32::NAN, f32::NAN);
    let error = cpu::route(&logits, experts, top_k, &spec, &mut Routed::default()).unwrap_err();
    assert!(error.to_string().contains("token 2000 "), "{error}");
}

#[test]
fn a_bias_moves_the_choice_but_not_the_weight() {
    let spec = RouterSpec {
        config: RouterConfig { bias: true, renormalize: false, ..config(Scoring::Sigmoid) },
        bias: vec![0.0, 0.0, 10.0],
    };
    let routed = route_both(&[2.0, 1.0, -2.0], 3, 1, &spec);
    assert_eq!(routed.ids, [2]);
    assert!((routed.weights[0] - 1.0 / (1.0 + 2f32.exp())).abs() < 1e-6, "{:?}", routed.weights);
}

#[test]
fn prototypes_choose_one_expert_in_every_group() {
    let spec = RouterSpec { config: config(Scoring::Prototype), bias: Vec::new() };
    let routed = route_both(&[9.0, 8.0, 1.0, 2.0, 0.0, -1.0], 6, 3, &spec);
    assert_eq!(routed.ids, [0, 3, 4]);
}

#[test]
fn a_logit_that_is_not_a_number_is_an_error() {
    for scoring in SCORINGS {
        let spec = RouterSpec { config: config(scoring), bias: Vec::new() };
        let logits = [0.0, 1.0, 2.0, 3.0, 0.0, f32::NAN, 2.0, 3.0];
        let error = cpu::route(&logits, 4, 2, &spec, &mut Routed::default()).unwrap_err();
        assert!(error.to_string().contains("token 1"), "{error}");
    }
}

#[test]
fn a_row_with_nothing_above_minus_infinity_has_no_weight() {
    for scoring in SCORINGS {
        for renormalize in [false, true] {
            let spec = RouterSpec {
                config: RouterConfig { renormalize, ..config(scoring) },
                bias: Vec::new(),
            };
            let routed = route_both(&[f32::NEG_INFINITY; 8], 8, 2, &spec);
            assert_eq!(routed.weights, [0.0, 0.0], "{scoring:?}");
        }
        let spec = RouterSpec { config: config(scoring), bias: Vec::new() };
        let rows = [f32::INFINITY, 1.0, f32::NEG_INFINITY, f32::INFINITY];
        let routed = route_both(&rows, 4, 2, &spec);
        assert_eq!((routed.ids, routed.weights), (vec![0, 3], vec![0.5, 0.5]), "{scoring:?}");
    }
}

#[test]
fn a_device_takes_what_is_not_a_number_for_minus_infinity() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for scoring in SCORINGS {
        let spec = RouterSpec { config: config(scoring), bias: Vec::new() };
        let mut logits = normal(&mut rng, 16 * 8, 2.0);
        let plain = DeviceRouting::default();
        let (routed, nan) = reference::route_as_device(&logits, 8, 2, &spec, plain).unwrap();
        assert_eq!((routed, nan), (reference::route(&logits, 8, 2, &spec).unwrap(), false));
        let mut low = logits.clone();
        for i in (0..logits.len()).step_by(3) {
            (logits[i], low[i]) = (f32::NAN, f32::NEG_INFINITY);
        }
        let (routed, nan) = reference::route_as_device(&logits, 8, 2, &spec, plain).unwrap();
        assert_eq!((routed, nan), (reference::route(&low, 8, 2, &spec).unwrap(), true));
    }
}

#[test]
fn a_device_adds_the_shared_expert_and_counts_a_groups_best_alone() {
    let spec = RouterSpec {
        config: RouterConfig { n_group: 2, topk_group: 1, ..config(Scoring::Softmax) },
        bias: Vec::new(),
    };
    // The first group has the best expert, the second the best pair.
    let logits = [3.0, 0.0, 2.0, 2.0];
    let ids = |group_top1, shared| {
        let device = DeviceRouting { group_top1, shared };
        reference::route_as_device(&logits, 4, 1, &spec, device).unwrap().0.ids
    };
    assert_eq!(ids(false, false), [2]);
    assert_eq!(ids(true, false), [0]);
    assert_eq!(ids(true, true), [0, 4]);
    let (routed, _) = reference::route_as_device(
        &logits,
        4,
        1,
        &RouterSpec {
            config: RouterConfig { scaling_factor: 2.5, ..spec.config },
            bias: Vec::new(),
        },
        DeviceRouting { group_top1: false, shared: true },
    )
    .unwrap();
    assert_eq!(routed.weights, [2.5, 1.0], "the shared expert is not scaled");
    // A group of both infinities has no sum, and comes last.
    let (high, low) = (f32::INFINITY, f32::NEG_INFINITY);
    assert_eq!(route_both(&[high, low, -5.0, -5.0], 4, 1, &spec).ids, [2]);
}

#[test]
fn router_settings_that_do_not_fit_are_refused() {
    let spec = RouterSpec::softmax();
    let refused = |spec: &RouterSpec, experts, top_k| {
        cpu::route(&[], experts, top_k, spec, &mut Routed::default()).unwrap_err().exit_code() == 2
    };
    assert!(refused(&spec, 2048, 32));
    assert!(refused(&spec, 4, 5));
    let groups =
        RouterSpec { config: RouterConfig { n_group: 3, ..spec.config }, bias: Vec::new() };
    assert!(refused(&groups, 8, 2));
    let biased =
        RouterSpec { config: RouterConfig { bias: true, ..spec.config }, bias: vec![0.0; 3] };
    assert!(refused(&biased, 8, 2));
    let sparse = RouterSpec { config: config(Scoring::SparseMixer), bias: Vec::new() };
    assert!(refused(&sparse, 8, 2));
    let prototypes = RouterSpec { config: config(Scoring::Prototype), bias: Vec::new() };
    assert!(refused(&prototypes, 8, 3));
}
