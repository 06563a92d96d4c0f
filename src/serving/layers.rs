//! The layers of a step, kind by kind: mixer and feed-forward block, with the model's own matrices.
//!
//! Mixers without attention are priced as GEMMs of their weights and, while decoding, the traffic of
//! their recurrent state at the rate of a GEMM; no engine's kernels for them are in the tables.

use crate::Result;
use crate::config::layers::{
    FeedForward, LayerGroup, LowRank, Mixer, MoeBlock, Reach, SelfAttention, TensorKind,
};
use crate::config::{Attention, DType};
use crate::latency::{AttentionQuery, GemmQuery, MlaPart, MlaQuery, MoeQuery, Phase, Query};
use crate::serving::breakdown::Tally;
use crate::serving::deployment::GroupLoad;
use crate::serving::{Deployment, LoadModel};

/// Bytes of one value in the GEMM that represents the traffic of a recurrent state.
const STATE_GEMM_BYTES: f64 = 2.0;

pub(super) const fn gemm(m: f64, n: usize, k: usize, weights: DType) -> Query {
    Query::Gemm(GemmQuery { m, n, k, weights })
}

impl Deployment<'_> {
    /// Mixers and feed-forward blocks of all layers.
    pub(super) fn layers(&self, group: &GroupLoad, tokens: f64, tally: &mut Tally) -> Result<()> {
        for of in self.model.layer_groups() {
            let layers = of.layers as f64;
            match &of.mixer {
                Mixer::Attention(attention) => self.attention(attention, layers, group, tally)?,
                _ => self.recurrent(&of, group, tally)?,
            }
            self.feed_forward(&of.ffn, layers, tokens, tally)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        of: &SelfAttention,
        layers: f64,
        group: &GroupLoad,
        tally: &mut Tally,
    ) -> Result<()> {
        if let Some(indexer) = of.indexer {
            let tokens = group.tokens();
            let project = |n, k| gemm(tokens, n, k, self.model.dense_dtype);
            let width = indexer.heads * indexer.head_dim;
            tally.dense(&project(width, indexer.query_input), layers)?;
            tally.dense(
                &project(indexer.head_dim + indexer.heads, self.model.hidden_size),
                layers,
            )?;
        }
        match of.projection {
            Attention::Gqa { .. } => self.grouped_query(of, layers, group, tally),
            Attention::Mla { .. } => self.latent(of, layers, group, tally),
        }
    }

    /// Projections and core of grouped-query attention.
    fn grouped_query(
        &self,
        of: &SelfAttention,
        layers: f64,
        group: &GroupLoad,
        tally: &mut Tally,
    ) -> Result<()> {
        let Attention::Gqa { heads, kv_heads, head_dim, .. } = of.projection else { return Ok(()) };
        let (model, tp) = (self.model, self.layout.attention_tp);
        let (heads, kv_heads) = (heads.div_ceil(tp), kv_heads.div_ceil(tp));
        let output = heads * of.value_dim.unwrap_or(head_dim);
        if let Some(rank) = of.low_rank {
            self.low_rank((rank, heads * head_dim, head_dim), (group.tokens(), layers), tally)?;
        } else {
            let value = if of.values_are_keys { 0 } else { of.value_dim.unwrap_or(head_dim) };
            let gate = if of.output_gate { output } else { 0 };
            let inputs = heads * head_dim + kv_heads * (head_dim + value) + gate;
            let project = |n, k| gemm(group.tokens(), n, k, model.dense_dtype);
            tally.dense(&project(inputs, model.hidden_size), layers)?;
            tally.dense(&project(model.hidden_size, output), layers)?;
        }
        let window = match of.reach {
            Reach::Window(most) | Reach::Chunk(most) => Some(most),
            Reach::Full | Reach::Compressed { .. } => None,
        };
        // Kernels with a window are asked for the whole context, others for what they read.
        let read = if window.is_some() { group.context } else { of.entries(group.context) };
        for (phase, sequences, context) in [
            (Phase::Decode, group.sequences, read),
            (Phase::Prefill, group.prompts, group.prompt_length),
        ] {
            let cache = self.cache();
            let query = AttentionQuery {
                phase,
                heads,
                kv_heads,
                head_dim,
                cache,
                window,
                sequences,
                context,
            };
            if sequences > 0.0 {
                tally.attention(&Query::Attention(query), layers)?;
            }
        }
        Ok(())
    }

    /// Query and output through low ranks, one projection to the latent head.
    fn low_rank(
        &self,
        (rank, width, head_dim): (LowRank, usize, usize),
        (tokens, layers): (f64, f64),
        tally: &mut Tally,
    ) -> Result<()> {
        let hidden = self.model.hidden_size;
        let project = |n, k| gemm(tokens, n, k, self.model.dense_dtype);
        tally.dense(&project(rank.query_rank + head_dim, hidden), layers)?;
        tally.dense(&project(width, rank.query_rank), layers)?;
        tally.dense(&project(rank.output_rank, width), layers)?;
        tally.dense(&project(hidden, rank.output_groups * rank.output_rank), layers)
    }

    /// Multi-head latent attention: the whole block where it was measured as one, else its parts.
    fn latent(
        &self,
        of: &SelfAttention,
        layers: f64,
        group: &GroupLoad,
        tally: &mut Tally,
    ) -> Result<()> {
        let chosen = of.indexer.map_or(f64::INFINITY, |i| i.top_k as f64);
        let phases = [
            (Phase::Decode, group.sequences, group.rows, of.entries(group.context).min(chosen)),
            (Phase::Prefill, group.prompts, group.prompt_tokens, group.prompt_length),
        ];
        for (phase, sequences, tokens, context) in phases {
            let query = self.mla(&of.projection, phase, sequences, context);
            let Some(query) = query else { continue };
            if sequences <= 0.0 {
                continue;
            }
            if tally.attention(&Query::Mla(MlaPart::Block, query), layers).is_ok() {
                continue;
            }
            latent_projections(&query, (tokens, layers), tally)?;
            tally.attention(&Query::Mla(MlaPart::Core, query), layers)?;
            if phase == Phase::Decode {
                tally.attention(&Query::Mla(MlaPart::Absorb, query), layers)?;
            }
        }
        Ok(())
    }

    fn mla(
        &self,
        attention: &Attention,
        phase: Phase,
        sequences: f64,
        context: f64,
    ) -> Option<MlaQuery> {
        let Attention::Mla {
            heads,
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        } = *attention
        else {
            return None;
        };
        Some(MlaQuery {
            phase,
            heads,
            tensor_parallel: self.layout.attention_tp,
            hidden: self.model.hidden_size,
            q_lora_rank,
            kv_lora_rank,
            nope: qk_nope_head_dim,
            rope: qk_rope_head_dim,
            value: v_head_dim,
            weights: self.model.dense_dtype,
            cache: self.cache(),
            sequences,
            context,
        })
    }

    /// A mixer without attention: its weights, and read and write of the states of the decoding
    /// sequences.
    fn recurrent(&self, of: &LayerGroup, group: &GroupLoad, tally: &mut Tally) -> Result<()> {
        let (layers, hidden) = (of.layers as f64, self.model.hidden_size);
        let parts = of.parts(hidden);
        let params: f64 =
            parts.iter().filter(|p| p.kind == TensorKind::Linear).map(|p| p.params).sum();
        if params > 0.0 {
            let project = self.bulk(group.tokens(), params, self.model.dense_dtype);
            tally.dense(&project, layers)?;
        }
        let state = 2.0 * group.sequences * of.state_bytes(hidden);
        if state > 0.0 {
            tally.attention(&self.bulk(1.0, state / STATE_GEMM_BYTES, DType::Bf16), layers)?;
        }
        Ok(())
    }

    /// A GEMM of `params` weights, split over the attention's ranks.
    fn bulk(&self, m: f64, params: f64, weights: DType) -> Query {
        let k = self.model.hidden_size;
        let n = params / (k * self.layout.attention_tp) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a width is positive and far below 2^53"
        )]
        let n = n.round().max(1.0) as usize;
        gemm(m, n, k, weights)
    }

    /// Routers, experts, shared experts and dense blocks.
    fn feed_forward(
        &self,
        of: &FeedForward,
        layers: f64,
        tokens: f64,
        tally: &mut Tally,
    ) -> Result<()> {
        let model = self.model;
        let here = (tokens / self.layout.attention_dp as f64, layers);
        match of {
            FeedForward::None => Ok(()),
            FeedForward::Dense { width, gated } => {
                // The block of a dense model is its one expert.
                let weights = if model.is_dense() { model.expert_dtype } else { model.dense_dtype };
                self.dense_block(here, (*width, *gated), weights, tally)
            }
            FeedForward::Moe(block) => {
                if let Some(shared) = block.shared {
                    let size = (shared.intermediate_size, block.gated);
                    self.dense_block(here, size, model.expert_dtype, tally)?;
                }
                if block.parallel > 0 {
                    self.dense_block(here, (block.parallel, true), model.dense_dtype, tally)?;
                }
                let project = |n, k, weights| gemm(here.0, n, k, weights);
                if let Some(latent) = block.latent {
                    let hidden = model.hidden_size;
                    tally.dense(&project(latent, hidden, model.expert_dtype), layers)?;
                    tally.dense(&project(hidden, latent, model.expert_dtype), layers)?;
                }
                let choices = block.experts + block.zero_experts;
                tally.dense(&project(choices, model.hidden_size, DType::Bf16), layers)?;
                tally.moe(&Query::Moe(self.experts(block, tokens, self.routing)), layers)?;
                if let Some(skewed) = self.skewed {
                    tally.moe_skewed(&Query::Moe(self.experts(block, tokens, skewed)), layers)?;
                }
                Ok(())
            }
        }
    }

    /// Two GEMMs of a feed-forward block that is split over the attention's ranks.
    fn dense_block(
        &self,
        (tokens, layers): (f64, f64),
        (width, gated): (usize, bool),
        weights: DType,
        tally: &mut Tally,
    ) -> Result<()> {
        let hidden = self.model.hidden_size;
        let matrices = if gated { 2 } else { 1 };
        let local = width.div_ceil(self.layout.attention_tp);
        tally.dense(&gemm(tokens, matrices * local, hidden, weights), layers)?;
        tally.dense(&gemm(tokens, hidden, local, weights), layers)
    }

    /// The routed experts of the busiest rank; choices of experts of no work cost nothing. Inside one
    /// scale-up domain engines gather all tokens on every rank by default; over nodes they dispatch.
    fn experts(&self, block: &MoeBlock, tokens: f64, routing: &LoadModel) -> MoeQuery {
        let copies = self.costs.redundant_experts;
        let busiest = routing.busiest_with(tokens, self.layout.moe_ep, copies);
        let working = block.mean_active() / block.top_k as f64;
        MoeQuery {
            hidden: block.expert_input(self.model.hidden_size),
            inter: block.width,
            experts: block.experts,
            top_k: block.top_k,
            gated: block.gated,
            weights: self.model.expert_dtype,
            weight_bits: self.model.expert_bits(),
            tensor_parallel: self.layout.moe_tp,
            expert_parallel: self.layout.moe_ep,
            dispatched: self.exchanges() && self.layout.nodes(self.domain) > 1,
            tokens,
            rows: busiest.rows * working,
            active: busiest.active,
            max_rows: busiest.max_rows * working,
        }
    }
}

/// Compressions are replicated on every rank, expansions are split by heads.
fn latent_projections(q: &MlaQuery, (tokens, layers): (f64, f64), tally: &mut Tally) -> Result<()> {
    let project = |n, k| gemm(tokens, n, k, q.weights);
    let (heads, latent) = (q.local_heads(), q.kv_lora_rank + q.rope);
    let query_width = heads * (q.nope + q.rope);
    if let Some(rank) = q.q_lora_rank {
        tally.dense(&project(rank + latent, q.hidden), layers)?;
        tally.dense(&project(query_width, rank), layers)?;
    } else {
        tally.dense(&project(latent, q.hidden), layers)?;
        tally.dense(&project(query_width, q.hidden), layers)?;
    }
    if q.phase == Phase::Prefill {
        tally.dense(&project(heads * (q.nope + q.value), q.kv_lora_rank), layers)?;
    }
    tally.dense(&project(q.hidden, heads * q.value), layers)
}

#[cfg(test)]
mod tests {
    use crate::config::layers::{FeedForward, LayerGroup, Mixer};
    use crate::config::{MoeModel, preset};
    use crate::serving::testing::on_roofline;
    use crate::serving::{Breakdown, Deployment, StepLoad};

    const LOAD: StepLoad =
        StepLoad { sequences: 32.0, context: 1000.0, prompt_tokens: 512.0, prompt_length: 512.0 };

    /// The step of a model as it is, and of the same model with its groups changed.
    fn changed(name: &str, change: impl Fn(&mut Vec<LayerGroup>)) -> [Breakdown; 2] {
        on_roofline(name, "h100", 8, |d| {
            let mut model: MoeModel = preset::load(name).unwrap().model;
            model.groups = model.layer_groups();
            change(&mut model.groups);
            let listed = Deployment { model: &model, ..*d };
            [d.step(&LOAD).unwrap(), listed.step(&LOAD).unwrap()]
        })
    }

    #[test]
    fn a_model_costs_the_same_by_its_groups() {
        for name in ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "llama-3.1-8b"] {
            let [plain, listed] = changed(name, |_| ()).map(|step| step.total().0);
            assert!((listed / plain - 1.0).abs() < 1e-12, "{name}: {listed} {plain}");
        }
    }

    #[test]
    fn what_a_layer_lacks_costs_nothing() {
        // Of the kernels: the whole step is not shorter than its launches.
        let kernels = |change: fn(&mut LayerGroup)| {
            changed("mixtral-8x7b", |groups| groups.iter_mut().for_each(change))
                .map(|step| step.kernels())
        };
        let [whole, no_mixer] = kernels(|g| g.mixer = Mixer::None);
        let [_, no_experts] = kernels(|g| g.ffn = FeedForward::None);
        assert!(no_mixer < whole && no_experts < whole, "{whole} {no_mixer} {no_experts}");
    }
}
