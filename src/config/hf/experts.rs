//! The feed-forward block of each layer.

use super::fields::{Fields, lacks};
use super::json::Json;
use super::names;
use super::stack::FfnKind;
use crate::config::SharedExperts;
use crate::config::layers::{FeedForward, MoeBlock};

/// Widths of pruned blocks are multiples of this.
const PRUNED_MULTIPLE: usize = 256;
/// Families whose blocks have two matrices, from before gated ones.
const PLAIN_FAMILIES: [&str; 13] = [
    "gpt2",
    "gpt_neo",
    "gptj",
    "opt",
    "bloom",
    "falcon",
    "phi-msft",
    "phi",
    "starcoder2",
    "mpt",
    "persimmon",
    "gpt_bigcode",
    "switch_transformers",
];

/// Sizes of the feed-forward blocks, layer by layer.
pub(super) struct Reader<'a> {
    fields: &'a Fields<'a>,
    kind: &'a str,
    hidden: usize,
    gated: bool,
    routed: Option<Routed>,
}

/// What routed layers have.
struct Routed {
    experts: Vec<usize>,
    top_k: Vec<usize>,
    width: Vec<usize>,
    shared: Vec<usize>,
    shared_width: Option<usize>,
}

/// How many routed experts a file has, at most over its layers; `None` for a dense model.
pub(super) fn count(fields: &Fields) -> Result<Option<usize>, String> {
    // A family with dense and routed models marks which one this is.
    if fields.flag(&["enable_moe_block"]) == Some(false) {
        return Ok(None);
    }
    if fields.get(names::EXPERTS).is_none() && fields.positive(names::TOP_K)?.is_some() {
        return Err(lacks(names::EXPERTS));
    }
    Ok(fields.positive(names::EXPERTS)?.filter(|&e| e > 1))
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        fields: &'a Fields<'a>,
        kind: &'a str,
        hidden: usize,
        layers: usize,
    ) -> Result<Self, String> {
        let routed = match count(fields)? {
            None => None,
            Some(_) => Some(Routed::read(fields, layers)?),
        };
        let activation = fields.text(names::ACTIVATION).unwrap_or("silu").to_lowercase();
        let plain =
            ["relu2", "squared_relu", "relu_squared"].iter().any(|a| activation.contains(a))
                || PLAIN_FAMILIES.contains(&kind);
        Ok(Self { fields, kind, hidden, gated: !plain, routed })
    }

    /// The block of layer `index`.
    pub(super) fn layer(&self, index: usize, kind: FfnKind) -> Result<FeedForward, String> {
        match (kind, &self.routed) {
            (FfnKind::None, _) => Ok(FeedForward::None),
            (FfnKind::Dense, _) => self.dense(index),
            (FfnKind::Moe, None) => Err(lacks(names::EXPERTS)),
            (FfnKind::Moe, Some(routed)) => self.moe(index, routed).map(FeedForward::Moe),
        }
    }

    fn dense(&self, index: usize) -> Result<FeedForward, String> {
        let width = match self.pruned(index)? {
            Some(width) => width,
            None => self.dense_width()?,
        };
        Ok(FeedForward::Dense { width, gated: self.gated })
    }

    fn dense_width(&self) -> Result<usize, String> {
        match self.fields.positive(names::DENSE_WIDTH)? {
            Some(width) => Ok(width),
            None => self.fields.need(names::WIDTH),
        }
    }

    /// Width of a pruned block: a multiple of the hidden size, times two thirds, rounded up.
    fn pruned(&self, index: usize) -> Result<Option<usize>, String> {
        let Some(blocks) = self.fields.get(&["block_configs"]).and_then(Json::list) else {
            return Ok(None);
        };
        let ffn =
            blocks.get(index).and_then(|b| b.get("ffn")).ok_or("`block_configs` lacks ffn")?;
        if let Some(width) = ffn.get("intermediate_size").and_then(Json::number) {
            return Ok(Some(rounded(width)));
        }
        let multiple = ffn.get("ffn_mult").and_then(Json::number);
        let multiple = multiple.ok_or("`block_configs` has an ffn without ffn_mult")?;
        let width = rounded((2.0 * multiple * self.hidden as f64 / 3.0).floor());
        Ok(Some(width.div_ceil(PRUNED_MULTIPLE) * PRUNED_MULTIPLE))
    }

    fn moe(&self, index: usize, routed: &Routed) -> Result<MoeBlock, String> {
        let width = routed.width[index];
        let block = MoeBlock {
            experts: routed.experts[index],
            top_k: routed.top_k[index],
            width,
            gated: self.gated,
            latent: self.fields.positive(names::LATENT)?,
            zero_experts: self.fields.size(names::ZERO_EXPERTS)?.unwrap_or(0),
            shared: self.shared(index, routed),
            parallel: self.parallel()?,
        };
        if block.experts == 0 || block.top_k == 0 || width == 0 {
            return Err(format!(
                "layer {index} routes, with no experts, none per token or no width"
            ));
        }
        if block.top_k > block.experts {
            let reason = format!("{} is more than the {} experts", block.top_k, block.experts);
            return Err(format!("top_k: {reason}"));
        }
        Ok(block)
    }

    fn shared(&self, index: usize, routed: &Routed) -> Option<SharedExperts> {
        // Llama 4 has one shared expert of the routed width without naming it.
        let unnamed = usize::from(self.kind.starts_with("llama4"));
        let count = routed.shared.get(index).copied();
        match (count, routed.shared_width) {
            (Some(0), _) | (_, Some(0)) => None,
            (count, Some(width)) => {
                let count = count.unwrap_or(1);
                Some(SharedExperts { count, intermediate_size: count * width })
            }
            (count, None) => {
                let count = count.unwrap_or(unnamed);
                let intermediate_size = count * routed.width[index];
                (count > 0).then_some(SharedExperts { count, intermediate_size })
            }
        }
    }

    /// Width of the dense block that runs beside the experts.
    fn parallel(&self) -> Result<usize, String> {
        let on = |name: &str| self.fields.flag(&[name]).unwrap_or(false);
        if on("parallel_attn_mlp_res") {
            // Arctic's residual block is as wide as the stream.
            return Ok(self.hidden);
        }
        if on("enable_moe_block") || on("residual_moe") {
            return self.dense_width();
        }
        if self.kind.starts_with("longcat") {
            return self.fields.need(&["ffn_hidden_size", "intermediate_size"]);
        }
        Ok(0)
    }
}

impl Routed {
    fn read(fields: &Fields, layers: usize) -> Result<Self, String> {
        let each = |names: &[&str]| fields.layered(names, layers)?.ok_or_else(|| lacks(names));
        let width = match fields.layered(names::EXPERT_WIDTH, layers)? {
            Some(width) => width,
            None => each(names::WIDTH)
                .map_err(|_| "lacks moe_intermediate_size or intermediate_size".to_owned())?,
        };
        Ok(Self {
            experts: each(names::EXPERTS)?,
            top_k: each(names::TOP_K)?,
            width,
            shared: fields.layered(names::SHARED, layers)?.unwrap_or_default(),
            shared_width: fields.size(names::SHARED_WIDTH)?,
        })
    }
}

/// A width that is a small number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what a width can be"
)]
fn rounded(width: f64) -> usize {
    width.clamp(0.0, 1e9) as usize
}
