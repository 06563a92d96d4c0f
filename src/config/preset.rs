//! Models that exist, each with the source of its numbers.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::config::MoeModel;
use crate::config::nearest::unknown_name;
use crate::{Error, Result};

/// Name and embedded file of every preset.
const FILES: [(&str, &str); 32] = [
    ("Mixtral-8x7B", include_str!("presets/models/mixtral_8x7b.toml")),
    ("Mixtral-8x22B", include_str!("presets/models/mixtral_8x22b.toml")),
    ("DeepSeekMoE-16B", include_str!("presets/models/deepseekmoe_16b.toml")),
    ("DeepSeek-V2-Lite", include_str!("presets/models/deepseek_v2_lite.toml")),
    ("DeepSeek-V3", include_str!("presets/models/deepseek_v3.toml")),
    ("Qwen1.5-MoE-A2.7B", include_str!("presets/models/qwen1_5_moe_a2_7b.toml")),
    ("Qwen3-30B-A3B", include_str!("presets/models/qwen3_30b_a3b.toml")),
    ("Qwen3-235B-A22B", include_str!("presets/models/qwen3_235b_a22b.toml")),
    ("OLMoE-1B-7B", include_str!("presets/models/olmoe_1b_7b.toml")),
    ("gpt-oss-20b", include_str!("presets/models/gpt_oss_20b.toml")),
    ("gpt-oss-120b", include_str!("presets/models/gpt_oss_120b.toml")),
    ("Phi-3.5-MoE", include_str!("presets/models/phi_3_5_moe.toml")),
    ("GLM-4.5-Air", include_str!("presets/models/glm_4_5_air.toml")),
    ("Kimi-K2", include_str!("presets/models/kimi_k2.toml")),
    ("Ling-mini-2.0", include_str!("presets/models/ling_mini_2_0.toml")),
    ("Llama-3.1-8B", include_str!("presets/models/llama_3_1_8b.toml")),
    ("Llama-4-Scout", include_str!("presets/models/llama_4_scout.toml")),
    ("Llama-4-Maverick", include_str!("presets/models/llama_4_maverick.toml")),
    ("MiniMax-M2.5", include_str!("presets/models/minimax_m2_5.toml")),
    ("Qwen3.5-397B-A17B", include_str!("presets/models/qwen3_5_397b_a17b.toml")),
    ("Qwen3.5-35B-A3B", include_str!("presets/models/qwen3_5_35b_a3b.toml")),
    ("Qwen3-Next-80B-A3B", include_str!("presets/models/qwen3_next_80b_a3b.toml")),
    ("GLM-4.6", include_str!("presets/models/glm_4_6.toml")),
    ("GLM-5", include_str!("presets/models/glm_5.toml")),
    ("Kimi-K2.5", include_str!("presets/models/kimi_k2_5.toml")),
    ("DeepSeek-V3.2", include_str!("presets/models/deepseek_v3_2.toml")),
    ("DeepSeek-V4-Flash", include_str!("presets/models/deepseek_v4_flash.toml")),
    ("Nemotron-3-Nano", include_str!("presets/models/nemotron_3_nano.toml")),
    ("Nemotron-3-Super", include_str!("presets/models/nemotron_3_super.toml")),
    ("Qwen3-32B", include_str!("presets/models/qwen3_32b.toml")),
    ("Qwen3-8B", include_str!("presets/models/qwen3_8b.toml")),
    ("Llama-3.1-70B", include_str!("presets/models/llama_3_1_70b.toml")),
];

/// A model with the source of its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPreset {
    /// Where the sizes were published.
    pub source: String,
    /// Fields without a confirmed source.
    #[serde(default)]
    pub unverified: Vec<String>,
    /// Repositories of the Hub with this model in this form.
    #[serde(default)]
    pub hub: Vec<String>,
    /// Published parameter counts that the sizes are checked against.
    #[serde(default)]
    pub published: Option<Published>,
    /// The model.
    pub model: MoeModel,
}

/// Parameter counts as the authors print them, in 1e9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// All parameters.
    pub total_b: f64,
    /// Parameters that one token meets.
    pub active_b: f64,
    /// Largest relative difference between these rounded figures and the counted ones.
    pub within: f64,
}

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The preset of this name, upper and lower case alike.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, with the nearest ones.
pub fn load(name: &str) -> Result<ModelPreset> {
    let found = FILES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let (known, text) = found.ok_or_else(|| unknown_name("model", name, names()))?;
    let preset: ModelPreset =
        toml::from_str(text).map_err(|e| Error::bad_file(known, e.message().to_owned()))?;
    preset.model.validate()?;
    Ok(preset)
}

/// The preset made from a repository of the Hub.
pub fn of_hub_id(id: &str) -> Option<&'static str> {
    static IDS: OnceLock<Vec<(String, &'static str)>> = OnceLock::new();
    let ids = IDS.get_or_init(|| {
        let of = |name: &'static str| load(name).map(|p| (p.hub, name));
        let presets = names().filter_map(|name| of(name).ok());
        presets.flat_map(|(ids, name)| ids.into_iter().map(move |id| (id, name))).collect()
    });
    ids.iter().find(|(known, _)| known.eq_ignore_ascii_case(id)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_loads_under_its_own_name() {
        for name in names() {
            let preset = load(name).unwrap();
            assert_eq!(preset.model.name, name);
            assert!(!preset.source.is_empty());
        }
    }

    #[test]
    fn sizes_agree_with_the_published_parameter_counts() {
        for name in names() {
            let preset = load(name).unwrap();
            let Some(published) = preset.published else { continue };
            let params = preset.model.params();
            // Authors count active parameters with both vocabulary matrices, one or none.
            let active =
                [params.active(), params.active_head_only(), params.active_non_embedding()];
            let near = |value: f64, expected: f64| {
                (value / 1e9 / expected - 1.0).abs() <= published.within
            };
            assert!(near(params.total(), published.total_b), "{name}: {}", params.total());
            let fits = active.iter().any(|&a| near(a, published.active_b));
            assert!(fits, "{name}: {active:?}");
        }
    }

    #[test]
    fn hub_ids_mean_one_preset_each() {
        assert_eq!(of_hub_id("openai/gpt-oss-120b"), Some("gpt-oss-120b"));
        assert_eq!(of_hub_id("deepseek-ai/DeepSeek-R1"), Some("DeepSeek-V3"));
        let ids: Vec<String> = names().flat_map(|n| load(n).unwrap().hub).collect();
        let mut unique = ids.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), ids.len());
    }

    #[test]
    fn names_are_found_in_any_case_and_unknown_ones_get_suggestions() {
        assert_eq!(load("mixtral-8x7b").unwrap().model.name, "Mixtral-8x7B");
        let error = load("mixtral-8x7").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("Mixtral-8x7B"), "{error}");
    }

    #[test]
    fn a_preset_without_a_key_is_refused_by_its_name() {
        let text = FILES[0].1.replace("top_k = 2\n", "");
        let error = toml::from_str::<ModelPreset>(&text).unwrap_err();
        assert!(error.message().contains("top_k"), "{error}");
    }
}
