//! Mixers with a recurrent state: Mamba, linear attention, short convolutions.

use super::fields::Fields;
use super::json::Json;
use super::names;
use super::stack::MixerKind;
use crate::config::layers::{LinearAttention, LinearKind, Mamba, MambaKind, Mixer};

/// The recurrent mixer of this kind; the same in every layer that has it.
pub(super) fn recurrent(
    fields: &Fields,
    kind: &str,
    mixer: MixerKind,
    hidden: usize,
) -> Result<Mixer, String> {
    match mixer {
        MixerKind::Mamba => mamba(fields, hidden).map(Mixer::Mamba),
        MixerKind::Linear => linear(fields, kind, hidden).map(Mixer::Linear),
        MixerKind::Conv => {
            Ok(Mixer::ShortConv { kernel: fields.need(&["conv_L_cache", "conv_kernel"])? })
        }
        _ => Ok(Mixer::None),
    }
}

fn mamba(fields: &Fields, hidden: usize) -> Result<Mamba, String> {
    let state = fields.need(&["ssm_state_size", "mamba_d_state", "state_size"])?;
    let kernel = fields.need(&["conv_kernel", "mamba_d_conv"])?;
    let expand = fields.positive(&["mamba_expand", "expand"])?.unwrap_or(2);
    let heads = fields.positive(&["mamba_num_heads", "mamba_n_heads"])?;
    let Some(heads) = heads else {
        let dt_rank = fields.get(&["mamba_dt_rank"]).and_then(Json::number).is_some();
        let dt_rank = if dt_rank { fields.positive(&["mamba_dt_rank"])? } else { None };
        let dt_rank = dt_rank.unwrap_or(hidden.div_ceil(16));
        return Ok(Mamba {
            kind: MambaKind::Mamba1 { dt_rank },
            inner: expand * hidden,
            state,
            kernel,
        });
    };
    let width = fields.get(&["mamba_head_dim", "mamba_d_head"]);
    // "auto" divides the expanded width over the heads.
    let inner = match width {
        Some(Json::Number(_)) => heads * fields.need(&["mamba_head_dim", "mamba_d_head"])?,
        _ => expand * hidden,
    };
    let groups = fields.positive(&["n_groups", "mamba_n_groups"])?.unwrap_or(1);
    Ok(Mamba { kind: MambaKind::Mamba2 { heads, groups }, inner, state, kernel })
}

fn linear(fields: &Fields, kind: &str, hidden: usize) -> Result<LinearAttention, String> {
    if fields.get(&["linear_attn_config"]).is_some() {
        return kimi(fields);
    }
    if fields.get(&["linear_num_value_heads"]).is_some() {
        return Ok(LinearAttention {
            kind: LinearKind::GatedDeltaNet,
            key_heads: fields.need(&["linear_num_key_heads"])?,
            key_dim: fields.need(&["linear_key_head_dim"])?,
            value_heads: fields.need(&["linear_num_value_heads"])?,
            value_dim: fields.need(&["linear_value_head_dim"])?,
            kernel: fields.positive(&["linear_conv_kernel_dim"])?.unwrap_or(4),
        });
    }
    let lightning = ["minimax", "bailing", "ring"].iter().any(|k| kind.starts_with(k));
    if !lightning {
        return Err(format!("the linear attention of model type `{kind}` is not understood"));
    }
    let heads = fields.need(names::HEADS)?;
    let width = fields.positive(names::HEAD_DIM)?.unwrap_or(hidden / heads);
    Ok(LinearAttention {
        kind: LinearKind::Lightning,
        key_heads: heads,
        key_dim: width,
        value_heads: heads,
        value_dim: width,
        kernel: 0,
    })
}

fn kimi(fields: &Fields) -> Result<LinearAttention, String> {
    let heads = fields.positive(&["linear_attn_config.num_heads"])?;
    let heads = match heads {
        Some(heads) => heads,
        None => fields.need(names::HEADS)?,
    };
    let width = fields.need(&["linear_attn_config.head_dim"])?;
    Ok(LinearAttention {
        kind: LinearKind::KimiDelta,
        key_heads: heads,
        key_dim: width,
        value_heads: heads,
        value_dim: width,
        kernel: fields.positive(&["linear_attn_config.short_conv_kernel_size"])?.unwrap_or(4),
    })
}
