//! Model files as the Hub has them, against published or counted figures.
//!
//! `tests/data/configs` holds hyperparameters of public models, cut to the fields that matter for
//! their kind: facts without text of their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use moe_frontier::config::{Loaded, Scoring, TensorKind, load_model};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs").join(name)
}

fn load(name: &str) -> Loaded {
    let path = if name == "a12_nvfp4" { path(name) } else { path(&format!("{name}_config.json")) };
    load_model(path.to_str().unwrap()).unwrap()
}

/// Total and active parameters in 1e9.
fn billions(name: &str) -> (f64, f64) {
    let params = load(name).model.params();
    (params.total() / 1e9, params.active() / 1e9)
}

fn near(value: f64, expected: f64, within: f64) -> bool {
    (value / expected - 1.0).abs() <= within
}

#[test]
fn parameters_agree_with_the_published_ones() {
    for (name, total, active, within) in [
        ("a01_nested", 131.6, 36.5, 0.02),
        ("a02_lists", 80.4, 13.0, 0.05),
        ("a02_freq_list", 309.0, 15.0, 0.05),
        ("a03_infinity", 46.70, 12.88, 0.001),
        ("a04_linear", 34.66, 3.455, 0.02),
        ("a04_pattern", 31.58, 3.58, 0.02),
        ("a04_periods", 51.57, 12.11, 0.02),
        ("a06_shared", 16.8, 2.75, 0.02),
        ("a09_latent_query", 284.0, 13.0, 0.05),
        ("a13_dense", 8.19, 8.19, 0.02),
        ("a01_topk_experts", 25.75, 3.85, 0.03),
    ] {
        let got = billions(name);
        assert!(near(got.0, total, within) && near(got.1, active, within), "{name}: {got:?}");
    }
}

#[test]
fn caches_are_exact_and_states_are_counted() {
    for (name, cache) in [
        ("a04_linear", 20_480.0),
        ("a04_pattern", 6_144.0),
        ("a04_periods", 16_384.0),
        ("a13_dense", 147_456.0),
    ] {
        let got = load(name).model.kv_bytes(1.0).0;
        assert!((got - cache).abs() < 1e-6, "{name}: {got}");
    }
    for (name, state) in [("a04_linear", 64e6), ("a04_pattern", 49e6), ("a13_dense", 0.0)] {
        let got = load(name).model.state_bytes().0;
        assert!((got - state).abs() <= 0.02 * state, "{name}: {got}");
    }
}

#[test]
fn windowed_layers_stop_growing_at_their_window() {
    let model = load("a01_topk_experts").model;
    // 25 layers of 8 heads of 256 hold 1,024 tokens; 5 of 2 heads of 512 hold them all.
    let cache = |tokens: f64| {
        let windowed = 25.0 * 8.0 * 2.0 * 256.0 * tokens.min(1024.0);
        2.0 * (windowed + 5.0 * 2.0 * 2.0 * 512.0 * tokens)
    };
    for tokens in [1.0, 1024.0, 131_072.0] {
        assert!(near(model.kv_bytes(tokens).0, cache(tokens), 1e-12));
    }
}

#[test]
fn weights_are_sized_by_the_format_and_the_kept_modules_of_the_file() {
    for (name, low, high) in [
        ("a10_ct_fp8", 30.5, 31.5),
        ("a10_ct_int4", 16.0, 18.0),
        ("a12_nvfp4", 16.5, 19.5),
        ("a13_kept_norms", 30.5, 31.5),
        ("a09_latent_query", 150.0, 170.0),
    ] {
        let gigabytes = load(name).model.weight_bytes().0 / 1e9;
        assert!((low..=high).contains(&gigabytes), "{name}: {gigabytes}");
    }
    let kinds = load("a13_kept_norms").model.weights_by_kind();
    let attention = kinds.iter().find(|k| k.kind == TensorKind::Attention).unwrap();
    assert!(attention.bits < 8.1, "norms and routers are kept, projections are not");
}

#[test]
fn routers_follow_their_family_where_the_file_is_silent() {
    let router = load("a12_router").model.router;
    assert_eq!(router.scoring, Scoring::Sigmoid);
    assert!(router.bias && router.renormalize && near(router.scaling_factor, 2.5, 1e-9));
}

#[test]
fn layers_are_told_apart_by_kind() {
    let model = load("a02_freq_list").model;
    assert_eq!((model.dense_layers, model.moe_layers()), (1, 47));
    let hunyuan = load("a02_lists").model.shared_experts.unwrap();
    assert_eq!((hunyuan.count, hunyuan.intermediate_size), (1, 3072));
    let nemotron = load("a04_pattern").model;
    assert_eq!(
        (nemotron.moe_layers(), nemotron.attention_layers(), nemotron.gated),
        (23, 6, false)
    );
    assert_eq!(nemotron.shared_experts.unwrap().intermediate_size, 3712);
    assert!(load("a13_dense").model.is_dense());
}

#[test]
fn what_would_change_the_counts_and_is_not_understood_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(path("a13_dense_config.json")).unwrap();
    let refuse = |field: &str, named: &str| {
        let file = folder.path().join("config.json");
        std::fs::write(&file, text.replacen('{', &format!("{{ {field},"), 1)).unwrap();
        let error = load_model(file.to_str().unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    };
    refuse("\"quantization_config\": {\"quant_method\": \"aqlm\"}", "aqlm");
    refuse("\"hybrid_override_pattern\": \"MX*\"", "`X`");
    refuse("\"layer_types\": [\"hyena\"]", "layer_types");
    refuse("\"altup_num_inputs\": 4", "altup_num_inputs");
    refuse("\"head_dim\": Infinity, \"x\": {}", "duplicate");
    let routed = std::fs::read_to_string(path("a12_router_config.json")).unwrap();
    let file = folder.path().join("config.json");
    let field = "{\"scoring_func\":\"cosine\",";
    std::fs::write(&file, routed.replacen('{', field, 1)).unwrap();
    let error = load_model(file.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("cosine"), "{error}");
    std::fs::write(&file, routed.replace("5120", "Infinity")).unwrap();
    let error = load_model(file.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("hidden_size") && error.contains("Infinity"), "{error}");
}
