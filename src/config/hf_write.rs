//! A [`MoeModel`] as a `config.json` in the field names of Qwen3-MoE, which engines and
//! [`crate::config::hf`] read.

use serde_json::{Value, json};

use crate::config::{Attention, DType, MoeModel};
use crate::{Error, Result};

/// What stays in 16 bits where experts alone are quantised.
const KEPT: [&str; 5] = ["lm_head", "self_attn", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// The bytes of a `config.json`.
///
/// # Errors
/// [`Error::Usage`] for attention, experts or formats that this form does not express.
pub fn to_hf_json(model: &MoeModel) -> Result<Vec<u8>> {
    let inexpressible = |what: &str| Error::usage("config.json", format!("cannot express {what}"));
    let Attention::Gqa { heads, kv_heads, head_dim, bias: false, sliding_window: None } =
        model.attention
    else {
        return Err(inexpressible("this attention"));
    };
    if model.shared_experts.is_some() || !model.gated {
        return Err(inexpressible("shared or ungated experts"));
    }
    let dense = model.dense_layers;
    let mut config = json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.top_k,
        "moe_intermediate_size": model.moe_intermediate_size,
        "intermediate_size": if dense > 0 { model.dense_intermediate_size } else { model.moe_intermediate_size },
        "mlp_only_layers": (0..dense).collect::<Vec<_>>(),
        "norm_topk_prob": model.router.renormalize,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": match model.dense_dtype {
            DType::F16 => "float16",
            DType::F32 => "float32",
            _ => "bfloat16",
        },
    });
    if let (Some(quantised), Value::Object(fields)) = (quantization(model)?, &mut config) {
        fields.insert("quantization_config".into(), quantised);
    }
    if let (Some(bits), Value::Object(fields)) = (model.expert_bits, &mut config) {
        fields.insert("moe_frontier_expert_bits".into(), json!(bits));
    }
    let mut bytes = serde_json::to_vec_pretty(&config)
        .map_err(|e| Error::usage("config.json", e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// How the weights are quantised, if they are.
fn quantization(model: &MoeModel) -> Result<Option<Value>> {
    let both = model.expert_dtype == model.dense_dtype;
    Ok(Some(match (model.expert_dtype, both) {
        (DType::Bf16 | DType::F16 | DType::F32, true) => return Ok(None),
        (DType::Fp8, true) => json!({"quant_method": "fp8", "weight_block_size": [128, 128]}),
        (DType::Mxfp4, false) => json!({"quant_method": "mxfp4"}),
        (DType::Int4, true) => json!({"quant_method": "awq", "bits": 4, "group_size": 128}),
        (DType::Int4, false) => json!({
            "quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": KEPT,
        }),
        (DType::Int8, true) => json!({
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
            }},
        }),
        (DType::Nvfp4, false) => json!({
            "quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": KEPT,
        }),
        (format, _) => {
            let reason = format!("{} weights", format.label());
            return Err(Error::usage("config.json", format!("cannot express {reason}")));
        }
    }))
}
