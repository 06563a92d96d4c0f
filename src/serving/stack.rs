//! Steps of stacks that are not all alike: layers by kind, each with its own mixer and feed-forward
//! block.
//!
//! Mixers without attention are priced as GEMMs of their weights and, while decoding, the traffic of
//! their recurrent state at the rate of a GEMM; no engine's kernels for them are in the tables.

use crate::Result;
use crate::config::layers::{
    FeedForward, LayerGroup, Mixer, MoeBlock, Reach, SelfAttention, TensorKind,
};
use crate::config::{Attention, DType};
use crate::latency::{AttentionQuery, GemmQuery, MlaPart, MoeQuery, Phase, Query};
use crate::serving::Deployment;
use crate::serving::breakdown::Tally;
use crate::serving::deployment::GroupLoad;

/// Bytes of one value in the GEMM that stands for the traffic of a recurrent state.
const STATE_GEMM_BYTES: f64 = 2.0;

impl Deployment<'_> {
    /// Mixers and feed-forward blocks of all layers, group by group.
    pub(super) fn stack(&self, group: &GroupLoad, tokens: f64, tally: &mut Tally) -> Result<()> {
        for layers in &self.model.groups {
            self.mixer(layers, group, tally)?;
            self.block_of(layers, tokens, tally)?;
        }
        Ok(())
    }

    /// A GEMM of `params` weights, split over the attention's ranks.
    fn weights_gemm(&self, m: f64, params: f64, weights: DType) -> Query {
        let k = self.model.hidden_size;
        let n = params / (k * self.layout.attention_tp) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a width is positive and far below 2^53"
        )]
        let n = n.round().max(1.0) as usize;
        Query::Gemm(GemmQuery { m, n, k, weights })
    }

    fn mixer(&self, of: &LayerGroup, group: &GroupLoad, tally: &mut Tally) -> Result<()> {
        let layers = of.layers as f64;
        let parts = of.parts(self.model.hidden_size);
        let mixing = |kind: TensorKind| matches!(kind, TensorKind::Attention | TensorKind::Linear);
        let params: f64 = parts.iter().filter(|p| mixing(p.kind)).map(|p| p.params).sum();
        if params > 0.0 {
            let project = self.weights_gemm(group.tokens(), params, self.model.dense_dtype);
            tally.dense(&project, layers)?;
        }
        match &of.mixer {
            Mixer::Attention(attention) => self.core(attention, layers, group, tally),
            _ => self.state(of, layers, group, tally),
        }
    }

    /// Read and write of the recurrent states of the decoding sequences.
    fn state(
        &self,
        of: &LayerGroup,
        layers: f64,
        group: &GroupLoad,
        tally: &mut Tally,
    ) -> Result<()> {
        let bytes = 2.0 * group.sequences * of.state_bytes(self.model.hidden_size);
        if bytes <= 0.0 {
            return Ok(());
        }
        tally.attention(&self.weights_gemm(1.0, bytes / STATE_GEMM_BYTES, DType::Bf16), layers)
    }

    /// The attention core of one group.
    fn core(
        &self,
        attention: &SelfAttention,
        layers: f64,
        group: &GroupLoad,
        tally: &mut Tally,
    ) -> Result<()> {
        let tp = self.layout.attention_tp;
        let window = match attention.reach {
            Reach::Window(most) | Reach::Chunk(most) => Some(most),
            Reach::Full | Reach::Compressed { .. } => None,
        };
        for (phase, sequences, context) in [
            (Phase::Decode, group.sequences, attention.entries(group.context)),
            (Phase::Prefill, group.prompts, group.prompt_length),
        ] {
            if sequences <= 0.0 {
                continue;
            }
            let query = match attention.projection {
                Attention::Gqa { heads, kv_heads, head_dim, .. } => {
                    Query::Attention(AttentionQuery {
                        phase,
                        heads: heads.div_ceil(tp),
                        kv_heads: kv_heads.div_ceil(tp),
                        head_dim,
                        cache: self.model.kv_dtype,
                        window,
                        sequences,
                        context,
                    })
                }
                Attention::Mla { .. } => {
                    let mla = self.mla(&attention.projection, phase, sequences, context);
                    let Some(mla) = mla else { continue };
                    Query::Mla(MlaPart::Core, mla)
                }
            };
            tally.attention(&query, layers)?;
        }
        Ok(())
    }

    fn block_of(&self, of: &LayerGroup, tokens: f64, tally: &mut Tally) -> Result<()> {
        let layers = of.layers as f64;
        let local = tokens / self.layout.attention_dp as f64;
        let parts = of.parts(self.model.hidden_size);
        let sum = |kind: TensorKind| -> f64 {
            parts.iter().filter(|p| p.kind == kind).map(|p| p.params).sum()
        };
        for (kind, weights) in [
            (TensorKind::Dense, self.model.dense_dtype),
            (TensorKind::Shared, self.model.expert_dtype),
            (TensorKind::Router, DType::Bf16),
        ] {
            let params = sum(kind);
            if params > 0.0 {
                tally.dense(&self.weights_gemm(local, params, weights), layers)?;
            }
        }
        match &of.ffn {
            FeedForward::Moe(block) => {
                let query = self.experts_of(block, tokens);
                tally.moe(&Query::Moe(query), layers)
            }
            FeedForward::None | FeedForward::Dense { .. } => Ok(()),
        }
    }

    /// The routed experts of one group on the busiest rank.
    fn experts_of(&self, block: &MoeBlock, tokens: f64) -> MoeQuery {
        let plain = self.experts(tokens, self.routing);
        let chosen = block.mean_active() / block.top_k as f64;
        MoeQuery {
            hidden: block.expert_input(self.model.hidden_size),
            inter: block.width,
            experts: block.experts,
            top_k: block.top_k,
            gated: block.gated,
            rows: plain.rows * chosen,
            max_rows: plain.max_rows * chosen,
            ..plain
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::preset;
    use crate::serving::{StepLoad, testing::on_roofline};

    #[test]
    fn a_stack_of_one_kind_costs_what_the_plain_model_costs() {
        on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let load = StepLoad {
                sequences: 32.0,
                context: 1000.0,
                prompt_tokens: 0.0,
                prompt_length: 0.0,
            };
            let plain = d.step(&load).unwrap().total();
            let mut model = preset::load("mixtral-8x7b").unwrap().model;
            model.groups = model.layer_groups();
            let listed = crate::serving::Deployment { model: &model, ..*d };
            let listed = listed.step(&load).unwrap().total();
            assert!((listed / plain - 1.0).abs() < 0.02, "{listed} {plain}");
        });
    }
}
