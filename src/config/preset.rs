//! Models that exist, each with the source of its numbers.

use serde::{Deserialize, Serialize};

use crate::config::MoeModel;
use crate::config::nearest::unknown_name;
use crate::{Error, Result};

/// Name and embedded file of every preset.
const FILES: [(&str, &str); 16] = [
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
    names().find(|name| {
        load(name).is_ok_and(|p| p.hub.iter().any(|known| known.eq_ignore_ascii_case(id)))
    })
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
