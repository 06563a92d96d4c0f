//! A latency model over engine tables.

use std::sync::Arc;

use super::attention::AttentionTimes;
use super::carry::Carry;
use super::choose::{engine_rank, ranked, version_order};
use super::gemm::GemmTimes;
use super::links::{CollectiveTimes, ExchangeTimes, whose_collective};
use super::mla::MlaTimes;
use super::moe::MoeTimes;
use super::series::{EngineTables, Kernel, Table};
use crate::config::DeviceSpec;
use crate::latency::model::{Absent, Answer, LatencyModel};
use crate::latency::query::{Operation, Query};
use crate::latency::rates::Rates;
use crate::{Error, Result};

/// Latencies from engine tables, on their own device or carried to another one.
#[derive(Debug)]
pub struct TablesModel {
    tables: Arc<EngineTables>,
    engine: Option<Box<str>>,
    carry: Carry,
    moe: MoeTimes,
    gemm: GemmTimes,
    attention: AttentionTimes,
    mla: MlaTimes,
    collective: CollectiveTimes,
    exchange: ExchangeTimes,
}

impl TablesModel {
    /// Answers for `target` from `tables`; kernels of `engine` are preferred (`vllm` where none is
    /// named).
    ///
    /// # Errors
    /// [`Error::Unfit`] when the peaks of the tables' device are not known, so that nothing can be
    /// carried over.
    pub fn new(
        tables: Arc<EngineTables>,
        target: &DeviceSpec,
        engine: Option<&str>,
    ) -> Result<Self> {
        // A machine that no preset knows has its own tables.
        let same = || (tables.device == target.name).then(|| target.clone());
        let own = device(&tables).or_else(same).ok_or_else(|| {
            let reason = "its peaks are not known, so its times cannot be carried over";
            Error::unfit(format!("tables of `{}`", tables.device), reason)
        })?;
        let moved = !own.is_same(target);
        let carry = Carry { from: Rates::of(&own)?, to: Rates::of(target)?, moved };
        let ranks = ranked(&tables.kernels, engine);
        Ok(Self {
            moe: MoeTimes::new(&tables, &ranks, engine),
            gemm: GemmTimes::new(&tables, &ranks, engine),
            attention: AttentionTimes::new(&tables, &ranks, engine),
            mla: MlaTimes::new(&tables, &ranks, engine),
            collective: CollectiveTimes::new(&tables, &ranks, engine),
            exchange: ExchangeTimes::new(&tables, &ranks, engine),
            engine: engine.map(Into::into),
            tables,
            carry,
        })
    }

    /// The tables.
    pub fn tables(&self) -> &EngineTables {
        &self.tables
    }

    /// Whether times of another device are carried over.
    pub fn is_moved(&self) -> bool {
        self.carry.moved
    }
}

/// The device of some tables, if it is a known one.
pub fn device(tables: &EngineTables) -> Option<DeviceSpec> {
    DeviceSpec::recognised(&tables.device)
}

impl LatencyModel for TablesModel {
    fn answer(&self, query: &Query) -> Answer {
        let carry = &self.carry;
        match query {
            Query::Moe(_) if self.moe.is_empty() => Err(Absent::Operation),
            Query::Moe(q) if (q.weight_bits - q.weights.bits()).abs() > 1e-9 => {
                let reason = format!("no kernel of {} bits a weight was measured", q.weight_bits);
                Err(Absent::Key(reason.into()))
            }
            Query::Moe(q) => self.moe.answer(q, carry),
            Query::Gemm(_) if self.gemm.is_empty() => Err(Absent::Operation),
            Query::Gemm(q) => self.gemm.answer(q, carry),
            Query::Attention(q) if !self.attention.holds(q.phase) => Err(Absent::Operation),
            Query::Attention(q) => {
                self.attention.answer(q, carry, self.engine.as_deref().unwrap_or_default())
            }
            Query::Mla(_, q) if !self.mla.holds(q.phase) => Err(Absent::Operation),
            Query::Mla(part, q) => self.mla.answer(*part, q, carry),
            Query::Collective(_) if self.collective.is_empty() => Err(Absent::Operation),
            Query::Collective(q) => self.collective.answer(q, carry),
            Query::Exchange(_) if self.exchange.is_empty() => Err(Absent::Operation),
            Query::Exchange(q) => self.exchange.answer(q, carry),
        }
    }

    fn provenance(&self, operation: Operation) -> Option<String> {
        let asked = self.engine.as_deref();
        let order = |k: &&Kernel| {
            let whose = match operation {
                Operation::Collective => whose_collective(&k.engine, asked),
                _ => engine_rank(&k.engine, asked),
            };
            (whose, version_order(&k.version))
        };
        let mut used: Vec<&Kernel> = Vec::new();
        for table in tables_of(operation) {
            let kernels = self.tables.of(*table).iter().map(|s| self.tables.kernel(s));
            used.extend(kernels.filter(|k| !k.source.contains("eager")).min_by_key(order));
        }
        let mut names: Vec<String> =
            used.iter().map(|k| format!("{} {}", k.engine, k.version)).collect();
        names.dedup();
        if names.is_empty() {
            return None;
        }
        let device = if self.carry.moved {
            format!(", carried over from {}", self.tables.device)
        } else {
            String::new()
        };
        Some(format!("{}, {}{device}", self.tables.origin.name, names.join(" and ")))
    }
}

/// Tables that answer an operation.
pub(super) const fn tables_of(operation: Operation) -> &'static [Table] {
    match operation {
        Operation::Moe => &[Table::Moe],
        Operation::Gemm => &[Table::Gemm],
        Operation::PrefillAttention => &[Table::PrefillAttention],
        Operation::DecodeAttention => &[Table::DecodeAttention],
        Operation::PrefillMla => &[Table::PrefillMlaBlock, Table::PrefillMla],
        Operation::DecodeMla => &[Table::DecodeMlaBlock, Table::DecodeMla],
        Operation::Collective => {
            &[Table::AllReduce, Table::AllGather, Table::ReduceScatter, Table::AllToAll]
        }
        Operation::Exchange => {
            &[Table::DecodeExchange, Table::PrefillExchange, Table::ExchangePart]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gather::tests::{H100, MOE, one, row};
    use super::*;
    use crate::config::DType;
    use crate::latency::query::{
        AttentionQuery, CollectiveKind, CollectiveQuery, ExchangeQuery, GemmQuery, MoeQuery, Phase,
    };
    use crate::latency::source::{Latency, Source};

    const GEMM: &str = "framework,version,device,op_name,kernel_source,gemm_dtype,m,n,k,latency\n";
    const ATTENTION: &str = "framework,version,device,op_name,kernel_source,batch_size,isl,\
num_heads,num_key_value_heads,head_dim,beam_width,attn_dtype,kv_cache_dtype,step,window_size,latency\n";

    fn model(files: &[&str], target: &str) -> TablesModel {
        let target = DeviceSpec::load(target).unwrap();
        TablesModel::new(Arc::new(one(files)), &target, None).unwrap()
    }

    /// Mixtral's layer with the load of an even spread.
    fn layer(tokens: f64, tensor_parallel: usize) -> MoeQuery {
        let rows = 2.0 * tokens;
        let active = rows.ceil().min(8.0);
        MoeQuery {
            hidden: 4096,
            inter: 14336,
            experts: 8,
            top_k: 2,
            gated: true,
            weights: DType::Bf16,
            weight_bits: 16.0,
            tensor_parallel,
            expert_parallel: 1,
            dispatched: false,
            tokens,
            rows,
            active,
            max_rows: (rows / active).ceil(),
        }
    }

    fn moe(model: &TablesModel, query: MoeQuery) -> Latency {
        model.answer(&Query::Moe(query)).unwrap()
    }

    /// A series that follows the roofline of an H100 at 85 % plus 30 us, at some TP size.
    fn series(tp: usize) -> String {
        let tokens = [1, 2, 4, 8, 16, 64, 256, 1024, 4096];
        let line = |m: usize| {
            let q = layer(m as f64, tp);
            let roofline = (q.bytes() / 3.35e12).max(q.flops() / 989e12);
            row(m, 0.03 + roofline / 0.85 * 1e3).replace(",2,8,1,1,", &format!(",2,8,{tp},1,"))
        };
        tokens.map(line).concat()
    }

    fn gemm_row(format: &str, m: usize, n: usize, k: usize, latency: f64) -> String {
        format!("VLLM,0.24.0,{H100},gemm,cutlass,{format},{m},{n},{k},{latency}\n")
    }

    fn attention_row(head_dim: usize, cache: &str, batch: usize, step: usize, ms: f64) -> String {
        format!(
            "VLLM,0.24.0,{H100},generation_attention,fa3,{batch},1,32,8,{head_dim},1,bfloat16,{cache},{step},0,{ms}\n"
        )
    }

    fn attention(model: &TablesModel, head_dim: usize, cache: DType) -> Answer {
        model.answer(&Query::Attention(AttentionQuery {
            phase: Phase::Decode,
            heads: 32,
            kv_heads: 8,
            head_dim,
            cache,
            window: None,
            sequences: 8.0,
            context: 1024.0,
        }))
    }

    #[test]
    fn a_measured_cell_is_given_back_and_labelled_so() {
        let model = model(&[&format!("{MOE}{}", series(1))], "h100");
        for tokens in [1.0, 2.0, 4.0, 64.0, 4096.0] {
            let query = layer(tokens, 1);
            let latency = moe(&model, query);
            let expected = 30e-6 + (query.bytes() / 3.35e12).max(query.flops() / 989e12) / 0.85;
            assert!((latency.value.0 / expected - 1.0).abs() < 1e-5, "{tokens}: {latency:?}");
            assert_eq!(latency.source, Source::Measured);
            assert!(latency.floor <= latency.value && latency.log_sigma > 0.0);
        }
        assert_eq!(moe(&model, layer(100.0, 1)).source, Source::Interpolated);
        assert_eq!(model.provenance(Operation::Moe).unwrap(), "aiconfigurator, vllm 0.24.0");
        assert!(model.provenance(Operation::Gemm).is_none());
    }

    #[test]
    fn more_ranks_are_never_slower_whatever_was_measured() {
        for measured in [&[1][..], &[1, 4], &[2], &[1, 8], &[4]] {
            let rows: String = measured.iter().map(|tp| series(*tp)).collect();
            let model = model(&[&format!("{MOE}{rows}")], "h100");
            for tokens in [1.0, 3.0, 8.0, 100.0, 3000.0] {
                let times = [1, 2, 4, 8, 16].map(|tp| moe(&model, layer(tokens, tp)).value.0);
                assert!(
                    times.windows(2).all(|w| w[1] <= w[0] * 1.000_001),
                    "{measured:?} {times:?}"
                );
            }
        }
        // Nor for a shape that was not measured at all.
        let model = model(&[&format!("{MOE}{}{}", series(1), series(2))], "h100");
        for tokens in [1.0, 64.0, 4096.0] {
            let other = |tp| MoeQuery { inter: 10240, hidden: 5120, ..layer(tokens, tp) };
            let times = [1, 2, 4, 8].map(|tp| moe(&model, other(tp)).value.0);
            assert!(times.windows(2).all(|w| w[1] <= w[0] * 1.000_001), "{times:?}");
            assert_eq!(moe(&model, other(1)).source, Source::Transferred);
        }
    }

    #[test]
    fn another_device_moves_the_bytes_and_keeps_the_floor() {
        let model = model(&[&format!("{MOE}{}", series(1))], "h200");
        assert!(model.is_moved());
        let query = layer(64.0, 1);
        let bytes = query.bytes();
        let expected = 30e-6 + bytes / 3.35e12 / 0.85 - bytes / 3.35e12 + bytes / 4.8e12;
        let latency = moe(&model, query);
        assert!((latency.value.0 / expected - 1.0).abs() < 1e-4, "{latency:?}");
        assert_eq!(latency.source, Source::Transferred);
        assert!(latency.log_sigma > 0.05);
    }

    #[test]
    fn adding_a_table_never_changes_the_answer_of_another_key() {
        let moe_rows = format!("{MOE}{}", series(1));
        let gemm = format!("{GEMM}{}", gemm_row("bfloat16", 8, 4096, 4096, 0.02));
        let heads = format!("{ATTENTION}{}", attention_row(128, "bfloat16", 8, 1023, 0.05));
        let base = model(&[&moe_rows, &gemm, &heads], "h100");
        let fp8 = format!("{GEMM}{}", gemm_row("fp8", 8, 4096, 4096, 0.01));
        let fp8_layer = moe_rows.replace("bfloat16", "fp8_block");
        let other_heads = format!(
            "{ATTENTION}{}{}",
            attention_row(64, "bfloat16", 8, 1023, 0.5),
            attention_row(128, "fp8", 8, 1023, 0.7)
        );
        let more = model(&[&moe_rows, &gemm, &heads, &fp8, &fp8_layer, &other_heads], "h100");
        let query = Query::Gemm(GemmQuery { m: 8.0, n: 4096, k: 4096, weights: DType::Bf16 });
        assert_eq!(base.answer(&query), more.answer(&query));
        assert_eq!(moe(&base, layer(5.0, 1)), moe(&more, layer(5.0, 1)));
        let old = attention(&base, 128, DType::Bf16);
        assert_eq!(old, attention(&more, 128, DType::Bf16));
        assert!((old.unwrap().value.0 - 0.05e-3).abs() < 1e-9);
        assert!((attention(&more, 128, DType::Fp8).unwrap().value.0 - 0.7e-3).abs() < 1e-9);
        let Err(Absent::Key(reason)) = attention(&base, 128, DType::Fp8) else { panic!() };
        assert!(reason.contains("fp8"), "{reason}");
    }

    #[test]
    fn power_law_rows_answer_for_uneven_loads_alone() {
        let skewed: String = [8, 64, 512]
            .map(|m| {
                let even = 2.0 * f64::from(m);
                row(usize::try_from(m).unwrap(), 1.5 + even * 1e-3)
                    .replace("balanced", "power_law_1.2")
            })
            .concat();
        let plain = model(&[&format!("{MOE}{}", series(1))], "h100");
        let both = model(&[&format!("{MOE}{}{skewed}", series(1))], "h100");
        let even = layer(64.0, 1);
        assert_eq!(moe(&plain, even), moe(&both, even));
        let uneven = MoeQuery { max_rows: 50.0, ..even };
        assert!(moe(&both, uneven).value > moe(&plain, uneven).value);
    }

    #[test]
    fn dispatched_rows_cost_what_they_do_in_a_layer_without_ranks() {
        let model = model(&[&format!("{MOE}{}", series(1))], "h100");
        let alone = layer(64.0, 1);
        let rank = MoeQuery { expert_parallel: 8, tokens: 512.0, dispatched: true, ..alone };
        assert!((moe(&model, rank).value.0 / moe(&model, alone).value.0 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_number_format_that_was_left_out_says_so() {
        let row = row(512, 0.1).replace("bfloat16", "fp8_block");
        let text = format!("{MOE}{row}{}", series(1));
        let model = model(&[&text], "h100");
        let query = Query::Moe(MoeQuery {
            weights: DType::Fp8,
            weight_bits: DType::Fp8.bits(),
            ..layer(512.0, 1)
        });
        let Err(Absent::Key(reason)) = model.answer(&query) else { panic!() };
        assert!(reason.contains("left out") && reason.contains("faster"), "{reason}");
        let query = Query::Gemm(GemmQuery { m: 1.0, n: 64, k: 64, weights: DType::Bf16 });
        assert_eq!(model.answer(&query), Err(Absent::Operation));
    }

    #[test]
    fn collectives_take_the_engines_own_in_a_graph_and_go_on_with_the_last_slope() {
        let own = format!(
            "framework,version,device,op_name,kernel_source,allreduce_dtype,num_gpus,message_size,latency,backend\n\
vLLM,0.24.0,{H100},all_reduce,custom,bfloat16,8,512,0.005,vllm_graph\n\
vLLM,0.24.0,{H100},all_reduce,custom,bfloat16,8,512,0.02,vllm_eager\n"
        );
        let nccl = format!(
            "framework,version,device,op_name,kernel_source,nccl_dtype,num_gpus,message_size,latency\n\
TRTLLM,2.29.2,{H100},all_reduce,NCCL,half,8,512,0.03\n\
TRTLLM,2.29.2,{H100},alltoall,NCCL,half,8,500000,0.02\n\
TRTLLM,2.29.2,{H100},alltoall,NCCL,half,8,1000000,0.03\n"
        );
        let model = model(&[&own, &nccl], "h100");
        let ask = |kind, devices, nodes, bytes| {
            model.answer(&Query::Collective(CollectiveQuery { kind, devices, nodes, bytes }))
        };
        let sum = ask(CollectiveKind::AllReduce, 8, 1, 1024.0).unwrap();
        assert!((sum.value.0 - 5e-6).abs() < 1e-9 && sum.source == Source::Measured);
        let large = ask(CollectiveKind::AllToAll, 8, 1, 4e6).unwrap();
        assert!((large.value.0 - 50e-6).abs() < 1e-8, "{large:?}");
        assert_eq!(ask(CollectiveKind::AllReduce, 4, 1, 1e3).unwrap().source, Source::Transferred);
        assert!(matches!(ask(CollectiveKind::AllReduce, 16, 2, 1e3), Err(Absent::Key(_))));
        let both = model.provenance(Operation::Collective).unwrap();
        assert!(both.contains("vllm 0.24.0"), "{both}");
    }

    #[test]
    fn an_exchange_beyond_the_measured_nodes_is_not_guessed() {
        let text = format!(
            "framework,version,device,op_name,kernel_source,node_num,hidden_size,num_token,num_topk,num_experts,combine_avg_t_us,dispatch_avg_t_us\n\
sglang,0.5.12,{H100},ll,deepep,1,7168,1,8,256,14,13\n\
sglang,0.5.12,{H100},ll,deepep,1,7168,128,8,256,67,37\n\
sglang,0.5.12,{H100},ll,deepep,8,7168,1,8,256,30,28\n\
sglang,0.5.12,{H100},ll,deepep,8,7168,128,8,256,305,167\n"
        );
        let model = model(&[&text], "h100");
        let ask = |ranks, nodes, tokens| {
            model.answer(&Query::Exchange(ExchangeQuery {
                phase: Phase::Decode,
                ranks,
                nodes,
                tokens,
                hidden: 7168,
                top_k: 8,
                experts: 256,
                dispatch_bits: 8.0,
                skew: 1.0,
            }))
        };
        let one = ask(8, 1, 128.0).unwrap();
        assert!((one.value.0 - 104e-6).abs() < 1e-9 && one.source == Source::Measured);
        let four = ask(32, 4, 128.0).unwrap();
        assert!(four.value > one.value && four.value.0 < 472e-6, "{four:?}");
        assert_eq!(four.source, Source::Transferred);
        assert!(matches!(ask(128, 16, 128.0), Err(Absent::Key(_))));
        assert!(ask(4, 1, 128.0).unwrap().value < one.value);
    }
}
