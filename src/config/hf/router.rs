//! The router: what a file says, and what its family does where the file is silent.

use super::fields::Fields;
use super::names;
use crate::config::{RouterConfig, Scoring};

/// What a family does without being told.
struct Defaults {
    families: &'static [&'static str],
    scoring: Scoring,
    renormalize: bool,
    bias: bool,
}

const fn defaults(
    families: &'static [&'static str],
    scoring: Scoring,
    renormalize: bool,
    bias: bool,
) -> Defaults {
    Defaults { families, scoring, renormalize, bias }
}

/// By the start of the model type; the first match counts.
const FAMILIES: [Defaults; 14] = [
    defaults(&["gpt_oss"], Scoring::SoftmaxOverTopK, false, false),
    defaults(&["granitemoe"], Scoring::SoftmaxOverTopK, false, false),
    defaults(&["phimoe"], Scoring::SparseMixer, false, false),
    defaults(&["llama4"], Scoring::Sigmoid, false, false),
    defaults(&["deepseek_v3", "kimi_k2", "kimi_k25"], Scoring::Sigmoid, true, true),
    defaults(&["deepseek_v4", "deepseek_ref"], Scoring::SoftplusSqrt, true, true),
    defaults(
        &["kimi_linear", "kimi_k3", "glm", "minimax_m", "nemotron_h"],
        Scoring::Sigmoid,
        true,
        true,
    ),
    defaults(
        &["bailing_moe_v2", "bailing_moe_linear", "bailing_hybrid"],
        Scoring::Sigmoid,
        true,
        true,
    ),
    defaults(
        &["lfm2_moe", "afmoe", "exaone_moe", "dots1", "step3", "mimo_v2", "solar_open"],
        Scoring::Sigmoid,
        true,
        true,
    ),
    defaults(&["ernie4_5"], Scoring::Softmax, true, true),
    defaults(&["longcat"], Scoring::Softmax, false, true),
    defaults(
        &[
            "mixtral",
            "minimax",
            "dbrx",
            "hunyuan",
            "arctic",
            "gemma4",
            "qwen3_next",
            "qwen3_5",
            "qwen3_vl_moe",
            "qwen3_omni",
        ],
        Scoring::Softmax,
        true,
        false,
    ),
    defaults(&["bailing_moe"], Scoring::Softmax, true, false),
    defaults(
        &["qwen2_moe", "qwen3_moe", "olmoe", "jamba", "deepseek", "grok"],
        Scoring::Softmax,
        false,
        false,
    ),
];

/// Reads the router of `experts` experts.
pub(super) fn router(
    fields: &Fields,
    kind: &str,
    experts: usize,
    assumed: &mut Vec<String>,
) -> Result<RouterConfig, String> {
    if experts == 1 {
        return Ok(RouterConfig::SOFTMAX);
    }
    let family = FAMILIES.iter().find(|d| d.families.iter().any(|f| kind.starts_with(f)));
    let declared = fields.text(names::SCORING);
    let (scoring, scoring_bias) = match declared {
        None => (family.map(|d| d.scoring), false),
        Some(name) => {
            let (scoring, bias) = scoring(name)?;
            // A family whose softmax covers the chosen experts alone declares it as softmax too.
            let own = family.map(|d| d.scoring).filter(|_| scoring == Scoring::Softmax);
            let own = own.filter(|s| matches!(s, Scoring::SoftmaxOverTopK | Scoring::SparseMixer));
            (Some(own.unwrap_or(scoring)), bias)
        }
    };
    let scoring = scoring.unwrap_or_else(|| {
        assumed.push("router scoring not stated: softmax".into());
        Scoring::Softmax
    });
    let method = fields.text(&["topk_method"]);
    let family_bias = family.is_some_and(|d| d.bias && d.scoring == scoring);
    let bias = match (fields.flag(names::BIAS), method) {
        (Some(flag), _) => flag,
        (None, Some(method)) => method == "noaux_tc",
        (None, None) => scoring_bias || family_bias,
    };
    let (n_group, topk_group) = groups(fields, kind, experts)?;
    let scaling_factor = fields.number(names::SCALING)?.unwrap_or(match kind {
        "deepseek_v3" => 2.5,
        _ => 1.0,
    });
    if !(scaling_factor.is_finite() && scaling_factor > 0.0) {
        return Err(format!("routed scaling factor {scaling_factor} is not above zero"));
    }
    Ok(RouterConfig {
        scoring,
        renormalize: fields
            .flag(names::RENORMALIZE)
            .unwrap_or_else(|| family.is_some_and(|d| d.renormalize)),
        bias,
        n_group,
        topk_group,
        scaling_factor,
    })
}

/// The score of a name, and whether the name says that a bias moves the choice.
fn scoring(name: &str) -> Result<(Scoring, bool), String> {
    match name.to_lowercase().as_str() {
        "softmax" => Ok((Scoring::Softmax, false)),
        "sigmoid" => Ok((Scoring::Sigmoid, false)),
        "noaux_tc" => Ok((Scoring::Sigmoid, true)),
        "sqrtsoftplus" | "softplus_sqrt" => Ok((Scoring::SoftplusSqrt, false)),
        "sparsemixer" => Ok((Scoring::SparseMixer, false)),
        _ => Err(format!(
            "router scoring `{name}` is not understood; softmax, sigmoid, sqrtsoftplus and noaux_tc are"
        )),
    }
}

/// Expert groups and how many of them a token may choose from.
fn groups(fields: &Fields, kind: &str, experts: usize) -> Result<(usize, usize), String> {
    // DeepSeek-V3 files that leave the groups out mean the family's eight, of which four.
    let family = (kind == "deepseek_v3" && experts.is_multiple_of(8)).then_some((8, 4));
    let group = fields.positive(names::GROUPS)?.or(family.map(|f| f.0)).unwrap_or(1);
    let chosen = fields.positive(names::TOP_GROUPS)?.or(family.map(|f| f.1)).unwrap_or(1);
    Ok((group, chosen))
}
