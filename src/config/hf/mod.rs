//! Reading a Hugging Face `config.json` into a [`MoeModel`].
//!
//! Families name the same thing differently, nest it, or say it layer by layer. Each quantity has one
//! list of names (`names.rs`); what a layer consists of is read by `stack.rs`, `attention.rs`,
//! `mixers.rs` and `experts.rs`, the router by `router.rs`, number formats by `quant.rs`. A model type
//! that is not known is read by field names, and what was assumed is listed. What would change the
//! counts and is not understood is refused by name.

mod attention;
mod experts;
mod fields;
mod json;
mod mixers;
mod modules;
mod names;
mod quant;
mod router;
mod stack;

use std::path::{Path, PathBuf};

use self::fields::Fields;
use self::json::Json;
use self::quant::Scheme;
use self::stack::{FfnKind, MixerKind, Stack};
use crate::config::layers::{FeedForward, MoeBlock, Reach};
use crate::config::layers::{Mixer, Part, SelfAttention, TensorKind};
use crate::config::{Attention, DType, LayerGroup, MoeModel, SlidingWindow, TensorBits};
use crate::files::read_capped;
use crate::{Error, Result};

/// Longest file that is read; lists of quantised modules reach a few megabytes.
const CAP: u64 = 64 << 20;

/// Model types whose fields are known to mean what is read from them; others are read alike, and
/// said to be.
const KNOWN_TYPES: [&str; 66] = [
    "afmoe",
    "arctic",
    "bailing_hybrid",
    "bailing_moe",
    "bailing_moe_linear",
    "bailing_moe_v2",
    "dbrx",
    "deepseek",
    "deepseek_ref",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "ernie4_5_moe",
    "ernie4_5_moe_vl",
    "exaone_moe",
    "gemma4_text",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe_text",
    "glm_moe_dsa",
    "gpt_oss",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "grok-1",
    "hunyuan",
    "hunyuan_v1_moe",
    "jamba",
    "kimi_k2",
    "kimi_linear",
    "lfm2_moe",
    "llama",
    "llama4_text",
    "longcat_flash",
    "mimo",
    "mimo_v2_flash",
    "minimax",
    "minimax_m1",
    "minimax_m2",
    "minimax_m3",
    "minimax_text_01",
    "mistral",
    "mixtral",
    "nemotron-nas",
    "nemotron_h",
    "olmo2",
    "olmoe",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
    "seed_oss",
    "smollm3",
    "solar_open",
    "step3p5",
    "step3p7",
    "step3_text",
];

/// Fields that mark what changes the counts in ways that are not modelled.
const NOT_UNDERSTOOD: [(&str, &str); 7] = [
    ("is_encoder_decoder", "encoder-decoder models"),
    ("altup_num_inputs", "alternating updates (`altup_num_inputs`)"),
    ("laurel_rank", "learned augmented residuals (`laurel_rank`)"),
    ("hidden_size_per_layer_input", "embeddings of each layer (`hidden_size_per_layer_input`)"),
    ("num_mem_blocks", "attention blocks shared by layers (`num_mem_blocks`)"),
    ("rwkv", "RWKV mixers"),
    ("wkv_hidden_dim", "RWKV mixers"),
];

/// A model read from a file, with what had to be assumed.
#[derive(Clone, Debug, PartialEq)]
pub struct HfModel {
    /// The model.
    pub model: MoeModel,
    /// Assumptions that the file does not confirm.
    pub assumed: Vec<String>,
}

/// Reads a `config.json`, with the `hf_quant_config.json` beside it where there is one.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::BadFile`] when it is no such file, lacks a size, or
/// has something that would change the counts and is not understood.
pub fn from_hf_file(path: &Path) -> Result<HfModel> {
    let json = parse(&read_capped(path, CAP)?, path)?;
    let beside = quantisation_beside(path).filter(|_| quant::needs_beside(&Fields::of(&json)));
    let beside = match &beside {
        Some(path) => Some(parse(&read_capped(path, CAP)?, path)?),
        None => None,
    };
    read(&json, path, beside.as_ref())
}

/// Reads the bytes of a `config.json`; `path` is named in errors and names the model.
///
/// # Errors
/// As [`from_hf_file`].
pub fn from_hf_json(bytes: &[u8], path: &Path) -> Result<HfModel> {
    read(&parse(bytes, path)?, path, None)
}

/// `hf_quant_config.json` for `config.json`, and `X_hf_quant_config.json` for `X_config.json`.
fn quantisation_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let start = name.strip_suffix("config.json")?;
    let beside = path.with_file_name(format!("{start}hf_quant_config.json"));
    beside.is_file().then_some(beside)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Json> {
    if bytes.is_empty() {
        return Err(Error::bad_file(path, "empty"));
    }
    Json::parse(bytes).map_err(|e| Error::bad_file_at(path, e.line(), e.column(), reason(&e)))
}

/// The error's text without its position, which is printed in front.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn read(json: &Json, path: &Path, beside: Option<&Json>) -> Result<HfModel> {
    if json.object().is_none() {
        return Err(Error::bad_file(path, "not an object of settings"));
    }
    model(json, &name_of(path), beside).map_err(|reason| Error::bad_file(path, reason))
}

/// The model's name: that of the file or, for a bare `config.json`, of its folder.
fn name_of(path: &Path) -> String {
    let stem = |p: &Path| p.file_stem().and_then(|s| s.to_str()).map(str::to_owned);
    let name = match stem(path) {
        Some(name) if name == "config" => path
            .parent()
            .and_then(Path::file_name)
            .and_then(|s| s.to_str())
            .map_or(name, str::to_owned),
        Some(name) => name,
        None => "model".into(),
    };
    let name = name.trim_end_matches("_config");
    name.rsplit("--").next().unwrap_or(name).to_owned()
}

/// Reads the settings.
fn model(json: &Json, name: &str, beside: Option<&Json>) -> Result<HfModel, String> {
    let mut assumed = Vec::new();
    let fields = Fields::of(json);
    let kind = fields.text(&["model_type"]).unwrap_or_default();
    if !KNOWN_TYPES.contains(&kind) {
        assumed.push(format!("model type `{kind}` is not known: read by field names"));
    }
    refuse(&fields)?;
    let hidden = fields.need(names::HIDDEN)?;
    let experts = experts::count(&fields)?;
    let stack = doubled(stack::stack(&fields, kind, experts.is_some())?, kind);
    let layers = layers(&fields, kind, hidden, &stack)?;
    let plain = plain_dtype(&fields, &mut assumed)?;
    let scheme = quant::scheme(&fields, beside, plain, &mut assumed)?;
    let router = router::router(&fields, kind, experts.unwrap_or(1), &mut assumed)?;
    let main = Main::of(&layers)
        .ok_or("no layer with attention: state-space models alone are not priced")?;
    main.notes(&fields, &layers, &mut assumed);
    let mut model = MoeModel {
        name: name.to_owned(),
        hidden_size: hidden,
        num_layers: layers.len(),
        dense_layers: main.dense_layers,
        dense_intermediate_size: main.dense_width,
        attention: main.attention,
        num_experts: main.block.as_ref().map_or(1, |m| m.experts),
        top_k: main.block.as_ref().map_or(1, |m| m.top_k),
        moe_intermediate_size: main.width,
        shared_experts: main.block.as_ref().and_then(|m| m.shared),
        gated: main.gated,
        vocab_size: fields.need(names::VOCAB)?,
        tied_embeddings: fields.flag(names::TIED).unwrap_or_else(|| ties(kind)),
        router,
        expert_dtype: plain,
        expert_bits: fields.number(&["moe_frontier_expert_bits"])?,
        dense_dtype: plain,
        kv_dtype: DType::Bf16,
        groups: Vec::new(),
        bits: None,
    };
    let groups = merged(&layers);
    if !same_groups(&model.plain_groups(), &groups) {
        model.groups = groups;
    }
    set_formats(&mut model, &layers, &scheme);
    model.validate().map_err(|e| e.to_string())?;
    Ok(HfModel { model, assumed })
}

/// Families whose embedding is the head unless the file says otherwise.
fn ties(kind: &str) -> bool {
    kind.starts_with("gemma")
}

/// Refuses what would change the counts.
fn refuse(fields: &Fields) -> Result<(), String> {
    for (field, what) in NOT_UNDERSTOOD {
        let value = fields.get(&[field]);
        if value.is_some_and(|v| v.bool() == Some(true) || v.number().is_some_and(|n| n > 0.0)) {
            return Err(format!("{what} are not understood"));
        }
    }
    Ok(())
}

/// Layers of two attention and two dense blocks around one block of experts (`LongCat`) as two layers.
fn doubled(stack: Stack, kind: &str) -> Stack {
    if !kind.starts_with("longcat") {
        return stack;
    }
    let both = |mixers: Vec<MixerKind>| mixers.into_iter().flat_map(|m| [m, m]).collect();
    let ffns = stack.ffns.into_iter().flat_map(|f| [FfnKind::Dense, f]).collect();
    Stack { mixers: both(stack.mixers), ffns }
}

/// The layers one by one, each as a group of its own.
fn layers(
    fields: &Fields,
    kind: &str,
    hidden: usize,
    stack: &Stack,
) -> Result<Vec<LayerGroup>, String> {
    let attention = attention::Reader::new(fields, kind, hidden)?;
    let blocks = experts::Reader::new(fields, kind, hidden, stack.ffns.len())?;
    let pairs = stack.mixers.iter().zip(&stack.ffns).enumerate();
    pairs
        .map(|(index, (&mixer, &ffn))| {
            let mixer = match mixer {
                MixerKind::Full | MixerKind::Window | MixerKind::Chunk => {
                    Mixer::Attention(attention.layer(index, mixer)?)
                }
                other => mixers::recurrent(fields, kind, other, hidden)?,
            };
            Ok(LayerGroup { layers: 1, mixer, ffn: blocks.layer(index, ffn)? })
        })
        .collect()
}

/// Equal layers as one group, in the order of their first.
fn merged(layers: &[LayerGroup]) -> Vec<LayerGroup> {
    let mut groups: Vec<LayerGroup> = Vec::new();
    for layer in layers {
        match groups.iter_mut().find(|g| g.mixer == layer.mixer && g.ffn == layer.ffn) {
            Some(group) => group.layers += layer.layers,
            None => groups.push(layer.clone()),
        }
    }
    groups
}

/// Whether two stacks have the same groups, in any order.
fn same_groups(one: &[LayerGroup], other: &[LayerGroup]) -> bool {
    one.len() == other.len() && one.iter().all(|g| other.contains(g))
}

/// What the plain fields of a model say of a stack: its most usual layers.
struct Main {
    attention: Attention,
    block: Option<MoeBlock>,
    width: usize,
    gated: bool,
    dense_layers: usize,
    dense_width: usize,
}

impl Main {
    fn of(layers: &[LayerGroup]) -> Option<Self> {
        let attentions: Vec<&SelfAttention> = layers
            .iter()
            .filter_map(|l| match &l.mixer {
                Mixer::Attention(a) => Some(a),
                _ => None,
            })
            .collect();
        let full = attentions.iter().find(|a| a.reach == Reach::Full);
        let mut attention = full.or(attentions.first())?.projection.clone();
        if let Attention::Gqa { sliding_window, .. } = &mut attention {
            *sliding_window = window(&attentions);
        }
        let block = layers.iter().find_map(|l| l.ffn.moe()).cloned();
        let dense: Vec<(usize, bool)> = layers
            .iter()
            .filter_map(|l| match l.ffn {
                FeedForward::Dense { width, gated } => Some((width, gated)),
                _ => None,
            })
            .collect();
        let (first_width, first_gated) = dense.first().copied().unwrap_or((0, true));
        let routed = block.is_some();
        Some(Self {
            attention,
            width: block.as_ref().map_or(first_width, |m| m.width),
            gated: block.as_ref().map_or(first_gated, |m| m.gated),
            dense_layers: if routed { dense.len() } else { 0 },
            dense_width: if routed { first_width } else { 0 },
            block,
        })
    }

    /// What was assumed about the layers.
    fn notes(&self, fields: &Fields, layers: &[LayerGroup], assumed: &mut Vec<String>) {
        let attention = |test: &dyn Fn(&SelfAttention) -> bool| {
            layers.iter().any(|l| matches!(&l.mixer, Mixer::Attention(a) if test(a)))
        };
        if attention(&|a| a.low_rank.is_some()) {
            assumed.push(
                "compressors of old tokens and hyper-connections are not counted (below 2 %)"
                    .into(),
            );
        } else if matches!(self.attention, Attention::Gqa { .. })
            && fields.get(names::KV_HEADS).is_none()
            && fields.get(&["block_configs"]).is_none()
        {
            assumed.push("no num_key_value_heads: as many as query heads".into());
        }
        if fields.get(&["sparse_attention_config"]).is_some() {
            assumed.push("block-sparse attention is read as an indexer that picks tokens".into());
        }
        if fields.positive(&["num_kv_shared_layers"]).is_ok_and(|n| n.is_some()) {
            assumed.push("caches that layers share are counted for each of them".into());
        }
        if self.block.as_ref().is_some_and(|m| m.zero_experts > 0) {
            assumed.push("choices of experts without work are taken as even".into());
        }
        if fields.get(&["swiglu_limit"]).is_some() {
            assumed.push("SwiGLU is clamped (`swiglu_limit`): counted as plain SwiGLU".into());
        }
    }
}

/// The windows of a stack as one: the most usual width over all limited layers.
fn window(attentions: &[&SelfAttention]) -> Option<SlidingWindow> {
    let limits: Vec<usize> = attentions
        .iter()
        .filter_map(|a| match a.reach {
            Reach::Window(most) | Reach::Chunk(most) => Some(most),
            Reach::Full | Reach::Compressed { .. } => None,
        })
        .collect();
    limits.first().map(|&window| SlidingWindow { window, layers: limits.len() })
}

/// Storage of what is not quantised.
fn plain_dtype(fields: &Fields, assumed: &mut Vec<String>) -> Result<DType, String> {
    let name = fields.text(names::DTYPE).map(|t| t.trim_start_matches("torch."));
    match name {
        Some("float32") => Ok(DType::F32),
        Some("float16") => Ok(DType::F16),
        Some("bfloat16") => Ok(DType::Bf16),
        Some("auto") | None => {
            assumed.push("no torch_dtype: bf16".into());
            Ok(DType::Bf16)
        }
        Some(other) => Err(format!(
            "torch_dtype `{other}` is not known; there are float32, float16 and bfloat16"
        )),
    }
}

/// Sets the formats of a model from the scheme, module by module.
fn set_formats(model: &mut MoeModel, layers: &[LayerGroup], scheme: &Scheme) {
    let mut sums: Vec<(TensorKind, DType, f64, f64)> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        for part in layer.parts(model.hidden_size) {
            if part.params <= 0.0 || matches!(part.kind, TensorKind::Router | TensorKind::Norms) {
                continue;
            }
            add(&mut sums, scheme, index, &part);
        }
    }
    let of = |kinds: &[TensorKind]| -> Option<(f64, DType)> {
        let those = || sums.iter().filter(|s| kinds.contains(&s.0));
        let params: f64 = those().map(|s| s.2).sum();
        let bits: f64 = those().map(|s| s.2 * s.3).sum();
        let most = those().max_by(|a, b| a.2.total_cmp(&b.2))?;
        Some((bits / params, most.1))
    };
    let rest = [TensorKind::Attention, TensorKind::Linear, TensorKind::Dense];
    let dense = of(&rest).map_or(model.dense_dtype, |d| d.1);
    let experts = of(&[TensorKind::Experts]);
    // A dense model has its blocks where others have experts.
    let experts_dtype = experts.or_else(|| of(&[TensorKind::Dense])).map_or(dense, |e| e.1);
    (model.expert_dtype, model.dense_dtype) = (experts_dtype, dense);
    let plain = TensorBits::of(experts_dtype, dense);
    let bits = |kinds: &[TensorKind], otherwise: f64| of(kinds).map_or(otherwise, |b| b.0);
    let blocks: &[TensorKind] =
        if experts.is_some() { &[TensorKind::Experts] } else { &[TensorKind::Dense] };
    let own = TensorBits {
        experts: bits(blocks, plain.experts),
        shared: bits(&[TensorKind::Shared], plain.shared),
        attention: bits(&[TensorKind::Attention], plain.attention),
        linear: bits(&[TensorKind::Linear], plain.linear),
        dense: bits(&[TensorKind::Dense], plain.dense),
        embedding: scheme.of_vocabulary(&["embed_tokens", "embeddings", "embed"]).bits,
        head: scheme.of_vocabulary(&["lm_head", "head"]).bits,
    };
    let equal = TensorKind::ALL
        .into_iter()
        .all(|kind| (own.of_kind(kind) - plain.of_kind(kind)).abs() < 1e-9);
    model.bits = (!equal).then_some(own);
}

/// Adds a part of a layer to the sums over kind and format.
fn add(sums: &mut Vec<(TensorKind, DType, f64, f64)>, scheme: &Scheme, layer: usize, part: &Part) {
    let format = scheme.of(layer, part.modules, part.kind == TensorKind::Experts);
    let same = |s: &&mut (TensorKind, DType, f64, f64)| {
        s.0 == part.kind && s.1 == format.dtype && (s.3 - format.bits).abs() < 1e-12
    };
    match sums.iter_mut().find(same) {
        Some(sum) => sum.2 += part.params,
        None => sums.push((part.kind, format.dtype, part.params, format.bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Scoring, preset};

    /// The folder of recorded configuration files, or `None` with a loud note.
    fn configs() -> Option<std::path::PathBuf> {
        let data = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
        let folder = Path::new(&data).join("hf_configs");
        if folder.is_dir() {
            return Some(folder);
        }
        eprintln!("SKIPPED: no {} (set MOE_FRONTIER_DATA)", folder.display());
        None
    }

    #[test]
    fn recorded_files_agree_with_the_presets() {
        let Some(folder) = configs() else { return };
        for (file, name) in [
            ("mistralai--Mixtral-8x7B-v0.1", "Mixtral-8x7B"),
            ("mistralai--Mixtral-8x22B-v0.1", "Mixtral-8x22B"),
            ("Qwen--Qwen3-30B-A3B", "Qwen3-30B-A3B"),
            ("Qwen--Qwen3-235B-A22B", "Qwen3-235B-A22B"),
            ("deepseek-ai--DeepSeek-V3", "DeepSeek-V3"),
            ("moonshotai--Kimi-K2-Instruct", "Kimi-K2"),
            ("openai--gpt-oss-20b", "gpt-oss-20b"),
            ("openai--gpt-oss-120b", "gpt-oss-120b"),
        ] {
            let read = from_hf_file(&folder.join(format!("{file}_config.json"))).unwrap();
            let preset = preset::load(name).unwrap().model;
            assert_eq!(MoeModel { name: name.into(), ..read.model }, preset, "{file}");
        }
    }

    #[test]
    fn other_recorded_families_are_read_or_named() {
        let Some(folder) = configs() else { return };
        let scout = "meta-llama--Llama-4-Scout-17B-16E-Instruct_config.json";
        let scout = from_hf_file(&folder.join(scout)).unwrap().model;
        // Published as 109B total (with vision) and 17B active.
        assert!((scout.params().total() / 1e9 - 107.8).abs() < 1.0, "{}", scout.params().total());
        assert_eq!((scout.num_experts, scout.top_k, scout.moe_layers()), (16, 1, 48));
        let glm = from_hf_file(&folder.join("zai-org--GLM-5_config.json")).unwrap();
        assert!(glm.assumed.is_empty(), "{:?}", glm.assumed);
        assert_eq!(glm.model.dense_layers, 3);
        // Published as 744B; the cache holds a key of the indexer beside the latent vector.
        assert!((glm.model.params().total() / 744e9 - 1.0).abs() < 0.02);
        assert!((glm.model.kv_bytes(1.0).0 - 2.0 * 78.0 * (512.0 + 64.0 + 128.0)).abs() < 1e-6);
    }

    const MINIMAL: &str = r#"{"model_type":"mixtral","hidden_size":64,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"num_local_experts":8,"num_experts_per_tok":2,
"intermediate_size":128,"vocab_size":100,"torch_dtype":"bfloat16","extra":[1,2]}"#;

    fn read(text: &str) -> Result<HfModel> {
        from_hf_json(text.as_bytes(), Path::new("org--Tiny_config.json"))
    }

    #[test]
    fn a_minimal_file_is_enough_and_names_the_model() {
        let read = read(MINIMAL).unwrap();
        assert_eq!(read.model.name, "Tiny");
        assert!(read.assumed.is_empty(), "{:?}", read.assumed);
        let unknown = MINIMAL.replace("mixtral", "newmoe");
        assert!(!super::tests::read(&unknown).unwrap().assumed.is_empty());
    }

    #[test]
    fn a_declared_score_is_read() {
        for (declared, scoring) in [
            ("softmax", Scoring::Softmax),
            ("sigmoid", Scoring::Sigmoid),
            ("sqrtsoftplus", Scoring::SoftplusSqrt),
        ] {
            let score = format!("\"scoring_func\":\"{declared}\",\"vocab_size\"");
            let read = read(&MINIMAL.replace("\"vocab_size\"", &score)).unwrap();
            assert_eq!(read.model.router.scoring, scoring);
        }
    }

    #[test]
    fn every_prefix_is_refused_with_its_place() {
        for end in 0..MINIMAL.len() {
            let error = read(&MINIMAL[..end]).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{end}: {error}");
        }
    }

    #[test]
    fn missing_doubled_or_impossible_sizes_are_refused() {
        for (from, to, named) in [
            ("\"num_local_experts\":8,", "", "num_local_experts"),
            ("\"num_experts_per_tok\":2,", "", "num_experts_per_tok"),
            ("\"hidden_size\":64,", "", "hidden_size"),
            ("\"intermediate_size\":128,", "", "intermediate_size"),
            ("\"num_experts_per_tok\":2", "\"num_experts_per_tok\":9", "top_k"),
            ("\"num_experts_per_tok\":2", "\"num_experts_per_tok\":-2", "invalid value"),
            ("\"hidden_size\":64", "\"hidden_size\":1e400", "number out of range"),
            ("\"hidden_size\":64", "\"hidden_size\":64,\"hidden_size\":65", "duplicate field"),
            ("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "key/value heads"),
            ("\"hidden_size\":64", "\"hidden_size\":99999999999", "hidden_size"),
        ] {
            let error = read(&MINIMAL.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(named), "{from}: {error}");
        }
    }
}
