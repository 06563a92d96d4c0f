//! The attention of each layer.

use super::fields::{Fields, lacks};
use super::json::Json;
use super::names;
use super::stack::MixerKind;
use crate::config::Attention;
use crate::config::layers::{Indexer, LowRank, Reach, SelfAttention};

/// Reads the attention of layers one by one.
pub(super) struct Reader<'a> {
    fields: &'a Fields<'a>,
    kind: &'a str,
    hidden: usize,
    heads: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        fields: &'a Fields<'a>,
        kind: &'a str,
        hidden: usize,
    ) -> Result<Self, String> {
        let heads = fields.need(names::HEADS)?;
        Ok(Self { fields, kind, hidden, heads })
    }

    /// The attention of layer `index`.
    pub(super) fn layer(&self, index: usize, mixer: MixerKind) -> Result<SelfAttention, String> {
        if self.fields.positive(&["o_lora_rank"])?.is_some() {
            return self.low_rank(index);
        }
        let projection = match self.fields.positive(&["kv_lora_rank"])? {
            Some(rank) => self.mla(rank)?,
            None => self.gqa(index, mixer)?,
        };
        let reach = match mixer {
            MixerKind::Window => Reach::Window(self.fields.need(names::WINDOW)?),
            MixerKind::Chunk => Reach::Chunk(self.fields.need(&["attention_chunk_size"])?),
            _ => Reach::Full,
        };
        Ok(SelfAttention {
            value_dim: self.value_dim(&projection, mixer)?,
            reach,
            output_gate: self.output_gate(),
            values_are_keys: mixer == MixerKind::Full
                && self.fields.flag(&["attention_k_eq_v"]).unwrap_or(false),
            wide_norm: self.wide_norm(),
            low_rank: None,
            indexer: self.indexer(index)?,
            projection,
        })
    }

    fn wide_norm(&self) -> bool {
        self.kind.starts_with("minimax_m2") && self.fields.flag(&["use_qk_norm"]).unwrap_or(true)
    }

    fn output_gate(&self) -> bool {
        // Families whose attention is always gated do not say so.
        let always = ["qwen3_next", "afmoe"].iter().any(|k| self.kind.starts_with(k));
        let names = ["attn_output_gate", "attention_output_gate", "mla_use_output_gate"];
        self.fields.flag(&names).unwrap_or(always)
    }

    fn mla(&self, kv_lora_rank: usize) -> Result<Attention, String> {
        let need = |name: &str| self.fields.need(&[name]);
        let nope = match self.fields.positive(&["qk_nope_head_dim"])? {
            Some(nope) => nope,
            None => self
                .fields
                .need(&["qk_head_dim"])
                .map_err(|_| lacks(&["qk_nope_head_dim"]))?
                .saturating_sub(need("qk_rope_head_dim")?),
        };
        Ok(Attention::Mla {
            heads: self.heads,
            q_lora_rank: self.fields.positive(&["q_lora_rank"])?,
            kv_lora_rank,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: self
                .fields
                .size(&["qk_rope_head_dim"])?
                .ok_or_else(|| lacks(&["qk_rope_head_dim"]))?,
            v_head_dim: need("v_head_dim")?,
        })
    }

    /// Sizes that windowed or full layers have of their own, then those of every layer.
    fn own(
        &self,
        mixer: MixerKind,
        own: [&[&str]; 2],
        all: &[&str],
    ) -> Result<Option<usize>, String> {
        let own = if mixer == MixerKind::Window { own[0] } else { own[1] };
        match self.fields.positive(own)? {
            Some(value) => Ok(Some(value)),
            None => self.fields.positive(all),
        }
    }

    fn gqa(&self, index: usize, mixer: MixerKind) -> Result<Attention, String> {
        let heads = self
            .own(mixer, [&["swa_num_attention_heads"], &[]], names::HEADS)?
            .unwrap_or(self.heads);
        let full: &[&str] = &["num_global_key_value_heads"];
        let kv_heads = match self.grouped(index)? {
            Some(kv_heads) => kv_heads,
            None => self
                .own(mixer, [&["swa_num_key_value_heads"], full], names::KV_HEADS)?
                .unwrap_or(heads),
        };
        let head_dim = self
            .own(mixer, [&["swa_head_dim"], &["global_head_dim"]], names::HEAD_DIM)?
            .unwrap_or(self.hidden / heads.max(1));
        Ok(Attention::Gqa {
            heads,
            kv_heads,
            head_dim,
            // Only gpt-oss counts its attention biases as parameters worth naming.
            bias: self.kind == "gpt_oss" && self.fields.flag(&["attention_bias"]).unwrap_or(false),
            sliding_window: None,
        })
    }

    /// Key/value heads of a layer of a pruned stack, which says how many queries share one.
    fn grouped(&self, index: usize) -> Result<Option<usize>, String> {
        let Some(blocks) = self.fields.get(&["block_configs"]).and_then(Json::list) else {
            return Ok(None);
        };
        let attention = blocks.get(index).and_then(|b| b.get("attention"));
        if let Some(attention) = attention
            && attention.get("replace_with_linear").and_then(Json::bool).unwrap_or(false)
        {
            return Err("`replace_with_linear` of attention is not understood".into());
        }
        let group = attention.and_then(|a| a.get("n_heads_in_group"));
        group
            .filter(|g| **g != Json::Null)
            .map(|g| super::fields::whole("n_heads_in_group", g).map(|g| self.heads / g.max(1)))
            .transpose()
    }

    /// Width of a value where it is not the key's.
    fn value_dim(&self, projection: &Attention, mixer: MixerKind) -> Result<Option<usize>, String> {
        let Attention::Gqa { head_dim, .. } = projection else { return Ok(None) };
        let value = self.own(mixer, [&["swa_v_head_dim"], &[]], &["v_head_dim"])?;
        Ok(value.filter(|v| v != head_dim))
    }

    /// The indexer of a layer that chooses what it attends to.
    fn indexer(&self, index: usize) -> Result<Option<Indexer>, String> {
        if let Some(top_k) = self.fields.positive(&["index_topk"])? {
            // Layers that share the choice of an earlier one have no indexer of their own.
            let types = self.fields.get(&["indexer_types"]).and_then(Json::list);
            if types.and_then(|t| t.get(index)).and_then(Json::text) == Some("shared") {
                return Ok(None);
            }
            let query_input = self.fields.positive(&["q_lora_rank"])?.unwrap_or(self.hidden);
            return Ok(Some(Indexer {
                heads: self.fields.need(&["index_n_heads"])?,
                head_dim: self.fields.need(&["index_head_dim"])?,
                top_k,
                query_input,
            }));
        }
        self.block_indexer(index)
    }

    /// Block-sparse attention that scores blocks with heads of its own (MiniMax-M3).
    fn block_indexer(&self, index: usize) -> Result<Option<Indexer>, String> {
        let Some(sparse) = self.fields.get(&["sparse_attention_config"]) else { return Ok(None) };
        if sparse.get("use_sparse_attention").and_then(Json::bool) == Some(false) {
            return Ok(None);
        }
        let marks = sparse.get("sparse_attention_freq").and_then(Json::list);
        let here = marks.and_then(|m| m.get(index)).and_then(Json::number);
        if here.is_some_and(|mark| mark <= 0.0) {
            return Ok(None);
        }
        let need = |name: &str| match sparse.get(name) {
            Some(value) => super::fields::whole(name, value),
            None => Err(format!("`sparse_attention_config` lacks {name}")),
        };
        let block = need("sparse_block_size")?;
        Ok(Some(Indexer {
            heads: need("sparse_num_index_heads")?,
            head_dim: need("sparse_index_dim")?,
            top_k: need("sparse_topk_blocks")? * block,
            query_input: self.hidden,
        }))
    }

    /// One latent head with low-rank query and output, of which most layers compress old tokens.
    fn low_rank(&self, index: usize) -> Result<SelfAttention, String> {
        /// Tokens in one entry of the layers that an indexer chooses from.
        const INDEXED_RATIO: usize = 4;
        let fields = self.fields;
        let window = fields.need(names::WINDOW)?;
        let query_rank = fields.need(&["q_lora_rank"])?;
        let ratios = fields.indices(&["compress_ratios"])?;
        let ratio = *ratios.get(index).ok_or("`compress_ratios` is shorter than the stack")?;
        let reach = match ratio {
            0 => Reach::Window(window),
            ratio => Reach::Compressed { window, ratio },
        };
        let indexer = match fields.positive(&["index_topk"])? {
            Some(top_k) if ratio == INDEXED_RATIO => Some(Indexer {
                heads: fields.need(&["index_n_heads"])?,
                head_dim: fields.need(&["index_head_dim"])?,
                top_k,
                query_input: query_rank,
            }),
            _ => None,
        };
        let projection = Attention::Gqa {
            heads: self.heads,
            kv_heads: fields.need(names::KV_HEADS)?,
            head_dim: fields.need(names::HEAD_DIM)?,
            bias: false,
            sliding_window: None,
        };
        let low_rank = LowRank {
            query_rank,
            output_rank: fields.need(&["o_lora_rank"])?,
            output_groups: fields.positive(&["o_groups"])?.unwrap_or(1),
        };
        Ok(SelfAttention {
            reach,
            indexer,
            low_rank: Some(low_rank),
            ..SelfAttention::full(projection)
        })
    }
}
