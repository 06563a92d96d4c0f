//! A latency model over engine tables.

use std::sync::Arc;

use super::attention::AttentionTimes;
use super::carry::Carry;
use super::choose::{engine_rank, ranked, version_order};
use super::gemm::GemmTimes;
use super::links::{CollectiveTimes, ExchangeTimes};
use super::mla::MlaTimes;
use super::moe::MoeTimes;
use super::rates::Rates;
use super::series::{EngineTables, Kernel, Table};
use crate::config::DeviceSpec;
use crate::latency::model::{Absent, Answer, LatencyModel};
use crate::latency::query::{Operation, Query};
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
        let own = device(&tables).ok_or_else(|| {
            let reason = "its peaks are not known, so its times cannot be carried over";
            Error::unfit(format!("tables of `{}`", tables.device), reason)
        })?;
        let moved = own.name != target.name;
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
    DeviceSpec::of_driver_name(&tables.device).or_else(|| DeviceSpec::named(&tables.device))
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
        let holds = tables_of(operation);
        let mut used: Vec<&Kernel> = Vec::new();
        for table in holds {
            let series = self.tables.of(*table).iter();
            let kernels = series.map(|s| self.tables.kernel(s));
            used.extend(kernels.min_by_key(|k| {
                let nccl = k.engine == "nccl";
                (nccl, engine_rank(&k.engine, self.engine.as_deref()), version_order(&k.version))
            }));
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
        Operation::Collective => &[Table::AllReduce, Table::AllGather],
        Operation::Exchange => {
            &[Table::DecodeExchange, Table::PrefillExchange, Table::ExchangePart]
        }
    }
}
