//! Time of one engine step of a model on the devices of one replica.
//!
//! Every operation is asked of the latency model by itself: the layers (`layers.rs`), head,
//! collectives, expert exchange. What no kernel explains is the engine's: [`EngineCosts`].

use crate::config::layers::TensorKind;
use crate::config::{DType, MoeModel};
use crate::constants::ACTIVATION_BYTES;
use crate::latency::{CollectiveKind, CollectiveQuery, ExchangeQuery, LatencyModel, Phase, Query};
use crate::serving::breakdown::{Breakdown, Tally};
use crate::serving::layers::gemm;
use crate::serving::memory::pages;
use crate::serving::{EngineCosts, Layers, Layout, Lengths, LoadModel, MemoryBudget};
use crate::units::Bytes;
use crate::{Error, Result};

/// Engines quantise what they dispatch where the experts are stored in 8 bits or fewer.
const QUANTISED_DISPATCH_BITS: f64 = 8.0;

/// A model on the devices of one replica.
#[derive(Clone, Copy)]
pub struct Deployment<'a> {
    /// The model, in the number formats it is served in.
    pub model: &'a MoeModel,
    /// How it is spread.
    pub layout: Layout,
    /// Latencies on the device.
    pub latency: &'a dyn LatencyModel,
    /// What the engine adds.
    pub costs: &'a EngineCosts,
    /// Load of the experts.
    pub routing: &'a LoadModel,
    /// Load at the far end of the range of skew, where that range matters.
    pub skewed: Option<&'a LoadModel>,
    /// Memory of each device.
    pub memory: MemoryBudget,
    /// Devices of one scale-up domain.
    pub domain: usize,
}

/// What one step carries, over all devices of the replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLoad {
    /// Decoding sequences.
    pub sequences: f64,
    /// Tokens that each of them attends to.
    pub context: f64,
    /// Prompt tokens.
    pub prompt_tokens: f64,
    /// Tokens of the prompts they belong to (attention of a prompt grows with its square).
    pub prompt_length: f64,
}

impl StepLoad {
    /// What a step carries with `sequences` at the mean context of their lengths and so many prompt
    /// tokens.
    pub fn of(lengths: &Lengths, sequences: f64, prompt_tokens: f64) -> Self {
        Self {
            sequences,
            context: lengths.mean_context(),
            prompt_tokens,
            prompt_length: if prompt_tokens > 0.0 { lengths.input } else { 0.0 },
        }
    }
}

/// One attention group's share of a step.
#[derive(Clone, Copy)]
pub(super) struct GroupLoad {
    pub(super) sequences: f64,
    /// Decoded rows: of each sequence its token and the drafts.
    pub(super) rows: f64,
    pub(super) context: f64,
    pub(super) prompt_tokens: f64,
    pub(super) prompts: f64,
    pub(super) prompt_length: f64,
}

impl GroupLoad {
    pub(super) fn tokens(&self) -> f64 {
        self.rows + self.prompt_tokens
    }
}

impl Deployment<'_> {
    /// Checks layout and engine constants.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what is wrong.
    pub fn validate(&self) -> Result<()> {
        self.layout.validate_with(self.model, self.costs.redundant_experts)?;
        self.costs.validate()
    }

    /// One step.
    ///
    /// # Errors
    /// [`Error::Unfit`] that names the operation no latency model answers.
    pub fn step(&self, load: &StepLoad) -> Result<Breakdown> {
        let mut tally = Tally::new(self.latency);
        let halves = if self.overlaps() { 2.0 } else { 1.0 };
        let part = StepLoad {
            sequences: load.sequences / halves,
            prompt_tokens: load.prompt_tokens / halves,
            ..*load
        };
        let group = self.group(&part);
        self.layers(&group, self.rows(&part), &mut tally)?;
        self.communication(&part, &mut tally)?;
        let passes = self.passes();
        tally.repeat(passes);
        self.head(&group, &mut tally)?;
        if self.overlaps() {
            tally.repeat(halves);
            tally.hide_communication();
        }
        let group = self.group(load);
        let layers = Layers::of(self.model, self.layout.attention_tp).repeated(passes * halves);
        // Each attention group schedules its own sequences and prompts.
        let GroupLoad { sequences, prompt_tokens, .. } = group;
        let own = StepLoad { sequences, prompt_tokens: prompt_tokens / halves, ..*load };
        Ok(tally.finish(self.costs, &layers, &own))
    }

    /// Whether steps run as two halves; only what is exchanged between ranks can be hidden.
    fn overlaps(&self) -> bool {
        self.costs.overlap && self.exchanges()
    }

    /// Whether ranks hold different sequences, so that tokens travel to their experts.
    pub(super) fn exchanges(&self) -> bool {
        self.layout.attention_dp > 1 && !self.model.is_dense()
    }

    /// Rows of a step: drafts are checked like tokens.
    fn rows(&self, load: &StepLoad) -> f64 {
        load.sequences * self.costs.speculation.rows() + load.prompt_tokens
    }

    /// How often a step runs its layers: each draft takes one further layer.
    fn passes(&self) -> f64 {
        1.0 + self.costs.speculation.drafts / self.model.num_layers as f64
    }

    /// The busiest attention group has at least one whole sequence.
    pub(super) fn group(&self, load: &StepLoad) -> GroupLoad {
        let groups = self.layout.attention_dp as f64;
        let prompt_tokens = load.prompt_tokens / groups;
        // The tokens after a prefix attend to it: of the square 1 - q^2 is left for 1 - q of the
        // tokens.
        let squares = 1.0 + self.costs.prefix_hit;
        let prompts = if load.prompt_length > 0.0 {
            squares * prompt_tokens / load.prompt_length
        } else {
            0.0
        };
        let sequences = (load.sequences / groups).max(load.sequences.min(1.0));
        GroupLoad {
            sequences,
            rows: sequences * self.costs.speculation.rows(),
            context: load.context,
            prompt_tokens,
            prompts,
            prompt_length: load.prompt_length,
        }
    }

    /// Only the last position of a prompt needs logits; those sequences decode the step after. Every
    /// draft takes a head of its own before it is checked.
    fn head(&self, group: &GroupLoad, tally: &mut Tally) -> Result<()> {
        let vocabulary = self.model.vocab_size.div_ceil(self.layout.attention_tp);
        let hidden = self.model.hidden_size;
        let head = |rows: f64| gemm(rows.max(1.0), vocabulary, hidden, DType::Bf16);
        tally.dense(&head(group.rows), 1.0)?;
        let drafts = self.costs.speculation.drafts;
        if drafts > 0.0 { tally.dense(&head(group.sequences), drafts) } else { Ok(()) }
    }

    /// Collectives of all layers, and the exchange of the MoE layers where ranks hold different
    /// sequences.
    pub(super) fn communication(&self, load: &StepLoad, tally: &mut Tally) -> Result<()> {
        let (layout, model) = (&self.layout, self.model);
        let layers = model.num_layers as f64;
        let exchanging = self.exchanges();
        let moe_layers = if exchanging { model.moe_layers() as f64 } else { 0.0 };
        let rows = self.rows(load);
        let local = rows / layout.attention_dp as f64;
        if layout.attention_tp > 1 {
            let sum = CollectiveQuery {
                kind: CollectiveKind::AllReduce,
                devices: layout.attention_tp,
                nodes: layout.attention_tp.div_ceil(self.domain),
                bytes: local * model.hidden_size as f64 * ACTIVATION_BYTES,
            };
            // Once after attention, once after each feed-forward block that is not exchanged.
            tally.communication(&Query::Collective(sum), layers + layers - moe_layers)?;
        }
        if !exchanging {
            return Ok(());
        }
        let bits = if model.expert_bits() < 16.0 { QUANTISED_DISPATCH_BITS } else { 16.0 };
        let exchange = ExchangeQuery {
            phase: if load.prompt_tokens > 0.0 { Phase::Prefill } else { Phase::Decode },
            ranks: layout.devices(),
            nodes: layout.nodes(self.domain),
            tokens: local.max(rows.min(1.0)),
            hidden: model.hidden_size,
            top_k: model.top_k,
            experts: model.num_experts,
            dispatch_bits: bits,
            skew: self.routing.copies_skew(layout.devices(), self.costs.redundant_experts),
        };
        tally.communication(&Query::Exchange(exchange), moe_layers)
    }

    /// Weights on one device: experts and their copies are spread over all devices, routers and norms
    /// on each, the rest over the attention's ranks.
    pub fn weights_per_device(&self) -> Bytes {
        let devices = self.layout.devices() as f64;
        let tp = self.layout.attention_tp as f64;
        let spread = if self.model.is_dense() { tp } else { devices };
        let copies = self.costs.redundant_experts as f64 / self.model.num_experts as f64;
        let mixed = (1.0 + copies) * self.model.expert_bits() / self.model.tensor_bits().experts;
        let on_one = self.model.weights_by_kind().into_iter().map(|part| match part.kind {
            TensorKind::Experts => part.bytes().0 * mixed / spread,
            TensorKind::Router | TensorKind::Norms => part.bytes().0,
            _ => part.bytes().0 / tp,
        });
        Bytes(on_one.sum())
    }

    /// Cache and recurrent state of one sequence of `tokens` tokens on one device that holds it.
    pub fn cache_per_sequence(&self, tokens: f64) -> Bytes {
        let splits = self.model.attention.kv_splits().min(self.layout.attention_tp) as f64;
        let state = self.model.state_bytes() / self.layout.attention_tp as f64;
        let kept = self.cache().bits() / self.model.kv_dtype.bits();
        self.model.kv_bytes(tokens) * kept / splits + state
    }

    /// Format of the cache.
    pub fn cache(&self) -> DType {
        self.costs.cache(self.model)
    }

    /// Sequences that fit beside the weights, over all devices, each at its mean length.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when the weights and one sequence do not fit.
    pub fn batch_cap(&self, lengths: &Lengths) -> Result<f64> {
        self.cap_at(lengths.mean_context())
    }

    /// The same with each sequence at its whole length: none is ever pushed out.
    ///
    /// # Errors
    /// As [`Self::batch_cap`].
    pub fn guaranteed_cap(&self, lengths: &Lengths) -> Result<f64> {
        self.cap_at(lengths.held())
    }

    fn cap_at(&self, tokens: f64) -> Result<f64> {
        let (usable, weights) = (self.memory.usable(), self.weights_per_device());
        let groups = self.layout.attention_dp as f64;
        let each = self.cache_per_sequence(pages(tokens));
        let cap = ((usable - weights) / each).floor() * groups;
        if cap < 1.0 {
            let devices = self.layout.devices();
            return Err(Error::infeasible(
                format!(
                    "{weights} of weights on each of {devices} device(s) leave no room for a \
                     sequence in {usable}"
                ),
                "use more devices or fewer bits",
            ));
        }
        Ok(cap.min(self.costs.max_sequences * groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Attention;
    use crate::serving::testing::on_roofline;

    fn decode(sequences: f64) -> StepLoad {
        StepLoad { sequences, context: 1000.0, prompt_tokens: 0.0, prompt_length: 0.0 }
    }

    #[test]
    fn parts_add_up_and_grow_with_the_batch() {
        for (name, devices) in [("mixtral-8x7b", 2), ("deepseek-v3", 8), ("gpt-oss-120b", 1)] {
            on_roofline(name, "h100", devices, |d| {
                d.validate().unwrap();
                let mut before = 0.0;
                for sequences in [1.0, 2.0, 8.0, 64.0, 256.0] {
                    let step = d.step(&decode(sequences)).unwrap();
                    let sum: f64 = step.parts().iter().map(|p| p.seconds).sum();
                    assert!((step.total().0 - sum - step.overhead_s).abs() < 1e-12);
                    assert!(step.total().0 > before, "{name} {sequences}");
                    before = step.total().0;
                }
            });
        }
    }

    #[test]
    fn a_window_makes_long_contexts_cheaper() {
        let attention = |full: bool| {
            on_roofline("gpt-oss-120b", "h100", 1, |d| {
                let mut model = d.model.clone();
                if let Attention::Gqa { sliding_window, .. } = &mut model.attention
                    && full
                {
                    *sliding_window = None;
                }
                let d = Deployment { model: &model, ..*d };
                let load = StepLoad { context: 50_000.0, ..decode(32.0) };
                d.step(&load).unwrap().attention.seconds
            })
        };
        assert!(attention(false) < 0.6 * attention(true));
    }

    #[test]
    fn weights_of_all_devices_are_the_model() {
        on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let both = 2.0 * d.weights_per_device().0;
            assert!((both / d.model.weight_bytes().0 - 1.0).abs() < 1e-3, "{both}");
        });
    }

    #[test]
    fn guaranteed_admission_holds_fewer_sequences_than_the_steady_state() {
        on_roofline("mixtral-8x7b", "h100", 2, |d| {
            let lengths = Lengths { input: 4000.0, output: 4000.0 };
            assert!(d.guaranteed_cap(&lengths).unwrap() < d.batch_cap(&lengths).unwrap());
        });
    }

    #[test]
    fn halves_that_overlap_hide_the_exchange_and_read_the_weights_twice() {
        on_roofline("deepseek-v3", "h100", 8, |d| {
            let plain = Deployment { layout: Layout::data_expert(16), ..*d };
            let costs = EngineCosts { overlap: true, ..d.costs.clone() };
            let halves = Deployment { costs: &costs, ..plain };
            let step = |d: &Deployment, sequences| d.step(&decode(sequences)).unwrap();
            let (a, b) = (step(&plain, 4096.0), step(&halves, 4096.0));
            assert!(b.communication.seconds < 0.5 * a.communication.seconds, "{a:?} {b:?}");
            assert!(b.total().0 < a.total().0, "{a:?} {b:?}");
            // Few sequences: the second reading of the weights costs more than it hides.
            let (a, b) = (step(&plain, 16.0), step(&halves, 16.0));
            assert!(b.moe.seconds > a.moe.seconds, "{a:?} {b:?}");
        });
    }

    #[test]
    fn copies_of_experts_take_memory_and_let_more_ranks_divide() {
        on_roofline("deepseek-v3", "h100", 8, |d| {
            let layout = Layout::data_expert(144);
            assert!(Deployment { layout, ..*d }.validate().is_err());
            let costs = EngineCosts { redundant_experts: 32, ..d.costs.clone() };
            Deployment { layout, costs: &costs, ..*d }.validate().unwrap();
            let plain = d.weights_per_device().0;
            let more = Deployment { costs: &costs, ..*d }.weights_per_device().0;
            assert!(more > 1.1 * plain && more < 1.125 * plain, "{plain} {more}");
        });
    }

    #[test]
    fn more_nodes_than_the_link_is_stated_for_are_refused() {
        on_roofline("deepseek-v3", "h100_nvl", 16, |d| {
            let d = Deployment { layout: Layout::data_expert(16), ..*d };
            let error = d.step(&decode(64.0)).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains("between nodes"), "{error}");
        });
    }
}
