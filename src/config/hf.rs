//! Reading a Hugging Face `config.json` into a [`MoeModel`].
//!
//! Families name the same thing differently: experts are `num_local_experts` (Mixtral, gpt-oss,
//! Llama 4), `num_experts` (Qwen, OLMoE) or `n_routed_experts` (DeepSeek, Kimi, GLM), and
//! `intermediate_size` is the experts' width in the first group but the dense layers' in the others.
//! A model type that is not known is read by field names, and what was assumed is listed. Fields that
//! are not named here may stand in the file and are ignored.

use std::path::Path;

use serde::Deserialize;

use crate::config::{
    Attention, DType, MoeModel, RouterConfig, Scoring, SharedExperts, SlidingWindow,
};
use crate::files::read_capped;
use crate::{Error, Result};

/// Longest file that is read.
const CAP: u64 = 256 << 20;

/// Model types whose fields are known to mean what is read from them.
const KNOWN_TYPES: [&str; 11] = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
    "gpt_oss",
    "olmoe",
    "llama4_text",
    "glm4_moe",
];

/// A model read from a file, with what had to be assumed.
#[derive(Clone, Debug, PartialEq)]
pub struct HfModel {
    /// The model.
    pub model: MoeModel,
    /// Assumptions that the file does not confirm.
    pub assumed: Vec<String>,
}

/// Reads a `config.json`.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::BadFile`] when it is no such file, lacks experts,
/// experts per token, width or expert width, or its sizes make no model.
pub fn from_hf_file(path: &Path) -> Result<HfModel> {
    let bytes = read_capped(path, CAP)?;
    from_hf_json(&bytes, path)
}

/// Reads the bytes of a `config.json`; `path` is named in errors and names the model.
///
/// # Errors
/// As [`from_hf_file`].
pub fn from_hf_json(bytes: &[u8], path: &Path) -> Result<HfModel> {
    if bytes.is_empty() {
        return Err(Error::bad_file(path, "empty"));
    }
    let outer: Raw = serde_json::from_slice(bytes)
        .map_err(|e| Error::bad_file_at(path, e.line(), e.column(), reason(&e)))?;
    // Llama 4 keeps its language model one level down.
    let raw = match outer.text_config {
        Some(inner) => Raw {
            quantization_config: inner.quantization_config.clone().or(outer.quantization_config),
            ..*inner
        },
        None => outer,
    };
    let name = path.file_stem().map_or("model", |s| s.to_str().unwrap_or("model"));
    let name = name.trim_end_matches("_config").rsplit("--").next().unwrap_or(name);
    raw.into_model(name).map_err(|reason| Error::bad_file(path, reason))
}

/// The error's text without its position, which is printed in front.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// The fields that are read, all of them optional here; what must be there is checked afterwards.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    text_config: Option<Box<Raw>>,
    model_type: Option<String>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    attention_bias: Option<bool>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    q_lora_rank: Option<usize>,
    kv_lora_rank: Option<usize>,
    qk_nope_head_dim: Option<usize>,
    qk_rope_head_dim: Option<usize>,
    v_head_dim: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    n_routed_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    experts_per_token: Option<usize>,
    intermediate_size: Option<usize>,
    intermediate_size_mlp: Option<usize>,
    moe_intermediate_size: Option<usize>,
    n_shared_experts: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    first_k_dense_replace: Option<usize>,
    moe_layer_freq: Option<usize>,
    decoder_sparse_step: Option<usize>,
    interleave_moe_layer_step: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    scoring_func: Option<String>,
    topk_method: Option<String>,
    norm_topk_prob: Option<bool>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    routed_scaling_factor: Option<f64>,
    vocab_size: Option<usize>,
    tie_word_embeddings: Option<bool>,
    torch_dtype: Option<String>,
    dtype: Option<String>,
    quantization_config: Option<Quantization>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Quantization {
    quant_method: Option<String>,
    bits: Option<u32>,
    modules_to_not_convert: Option<Vec<String>>,
    ignore: Option<Vec<String>>,
}

impl Raw {
    fn into_model(self, name: &str) -> Result<HfModel, String> {
        let mut assumed = Vec::new();
        let kind = self.model_type.clone().unwrap_or_default();
        if !KNOWN_TYPES.contains(&kind.as_str()) {
            assumed.push(format!("model type `{kind}` is not known: read by field names"));
        }
        let need = |value: Option<usize>, names: &str| {
            value.filter(|&v| v > 0).ok_or_else(|| format!("lacks {names}"))
        };
        let num_experts = need(
            self.num_local_experts.or(self.num_experts).or(self.n_routed_experts),
            "num_local_experts, num_experts or n_routed_experts",
        )?;
        let hidden_size = need(self.hidden_size, "hidden_size")?;
        let num_layers = need(self.num_hidden_layers, "num_hidden_layers")?;
        let moe_intermediate_size = need(
            self.moe_intermediate_size.or(self.intermediate_size),
            "moe_intermediate_size or intermediate_size",
        )?;
        let dense_layers = self.dense_layers(num_layers);
        let (expert_dtype, dense_dtype) = self.dtypes(&mut assumed);
        let model = MoeModel {
            name: name.to_owned(),
            hidden_size,
            num_layers,
            dense_layers,
            dense_intermediate_size: if dense_layers == 0 {
                0
            } else {
                need(self.intermediate_size_mlp.or(self.intermediate_size), "intermediate_size")?
            },
            attention: self.attention(hidden_size, num_layers, &kind, &mut assumed)?,
            num_experts,
            top_k: need(
                self.num_experts_per_tok.or(self.experts_per_token),
                "num_experts_per_tok or experts_per_token",
            )?,
            moe_intermediate_size,
            shared_experts: self.shared_experts(moe_intermediate_size, &kind),
            gated: true,
            vocab_size: need(self.vocab_size, "vocab_size")?,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
            router: self.router(&kind),
            expert_dtype,
            dense_dtype,
            kv_dtype: DType::Bf16,
        };
        model.validate().map_err(|e| e.to_string())?;
        Ok(HfModel { model, assumed })
    }

    fn dense_layers(&self, layers: usize) -> usize {
        let leading = self.first_k_dense_replace.unwrap_or(0).min(layers);
        let listed = self.mlp_only_layers.as_ref().map_or(0, Vec::len);
        let every = |step: Option<usize>| {
            step.filter(|&s| s > 1)
                .map_or(0, |step| (leading..layers).filter(|i| i % step != step - 1).count())
        };
        let step =
            self.decoder_sparse_step.or(self.interleave_moe_layer_step).or(self.moe_layer_freq);
        (leading + listed + every(step)).min(layers)
    }

    fn attention(
        &self,
        hidden: usize,
        layers: usize,
        kind: &str,
        assumed: &mut Vec<String>,
    ) -> Result<Attention, String> {
        let heads =
            self.num_attention_heads.filter(|&h| h > 0).ok_or("lacks num_attention_heads")?;
        if let Some(kv_lora_rank) = self.kv_lora_rank {
            let need =
                |value: Option<usize>, name: &str| value.ok_or_else(|| format!("lacks {name}"));
            return Ok(Attention::Mla {
                heads,
                q_lora_rank: self.q_lora_rank,
                kv_lora_rank,
                qk_nope_head_dim: need(self.qk_nope_head_dim, "qk_nope_head_dim")?,
                qk_rope_head_dim: need(self.qk_rope_head_dim, "qk_rope_head_dim")?,
                v_head_dim: need(self.v_head_dim, "v_head_dim")?,
            });
        }
        let kv_heads = self.num_key_value_heads.unwrap_or_else(|| {
            assumed.push("no num_key_value_heads: as many as query heads".into());
            heads
        });
        let limited = self
            .layer_types
            .as_ref()
            .map(|types| types.iter().filter(|t| t.as_str() == "sliding_attention").count());
        let sliding_window = self.sliding_window.and_then(|window| {
            // Without a list every layer slides, unless the family only carries the field along.
            let layers = limited.unwrap_or(if kind.starts_with("qwen") { 0 } else { layers });
            (layers > 0).then_some(SlidingWindow { window, layers })
        });
        Ok(Attention::Gqa {
            heads,
            kv_heads,
            head_dim: self.head_dim.unwrap_or(hidden / heads),
            // Only gpt-oss counts its attention biases as parameters worth naming.
            bias: kind == "gpt_oss" && self.attention_bias.unwrap_or(false),
            sliding_window,
        })
    }

    fn shared_experts(&self, expert_width: usize, kind: &str) -> Option<SharedExperts> {
        if let Some(intermediate_size) = self.shared_expert_intermediate_size.filter(|&s| s > 0) {
            return Some(SharedExperts { count: 1, intermediate_size });
        }
        // Llama 4 has one shared expert of the routed width without naming it.
        let count = self.n_shared_experts.unwrap_or(usize::from(kind == "llama4_text"));
        (count > 0).then(|| SharedExperts { count, intermediate_size: count * expert_width })
    }

    fn router(&self, kind: &str) -> RouterConfig {
        let scoring = match (kind, self.scoring_func.as_deref()) {
            ("gpt_oss", _) => Scoring::SoftmaxOverTopK,
            ("llama4_text", _) | (_, Some("sigmoid")) => Scoring::Sigmoid,
            (_, Some("sqrtsoftplus")) => Scoring::SoftplusSqrt,
            _ => Scoring::Softmax,
        };
        RouterConfig {
            scoring,
            renormalize: self.norm_topk_prob.unwrap_or(kind == "mixtral"),
            bias: self.topk_method.as_deref() == Some("noaux_tc"),
            n_group: self.n_group.unwrap_or(1).max(1),
            topk_group: self.topk_group.unwrap_or(1).max(1),
            scaling_factor: self.routed_scaling_factor.unwrap_or(1.0),
        }
    }

    /// Storage of experts and of everything else.
    fn dtypes(&self, assumed: &mut Vec<String>) -> (DType, DType) {
        let plain = match self.torch_dtype.as_deref().or(self.dtype.as_deref()) {
            Some("float32") => DType::F32,
            Some("float16") => DType::F16,
            Some("bfloat16") => DType::Bf16,
            _ => {
                assumed.push("no torch_dtype: bf16".into());
                DType::Bf16
            }
        };
        let Some(quantization) = &self.quantization_config else { return (plain, plain) };
        let experts = match (quantization.quant_method.as_deref(), quantization.bits) {
            (Some("fp8"), _) => DType::Fp8,
            (Some("mxfp4"), _) => DType::Mxfp4,
            (_, Some(8)) => DType::Int8,
            (_, Some(4)) => DType::Int4,
            (method, _) => {
                assumed
                    .push(format!("quantisation `{}` is not known: ignored", method.unwrap_or("")));
                plain
            }
        };
        let kept = [&quantization.modules_to_not_convert, &quantization.ignore];
        let attention_kept = kept.into_iter().flatten().flatten().any(|m| m.contains("attn"));
        (experts, if attention_kept || experts == DType::Mxfp4 { plain } else { experts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

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
        assert!(glm.assumed.iter().any(|a| a.contains("glm_moe_dsa")), "{:?}", glm.assumed);
        assert_eq!(glm.model.dense_layers, 3);
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
