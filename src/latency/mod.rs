//! How long one operation of a model takes on a device, and where that figure comes from.
//!
//! A [`Query`] describes one operation (routed experts, a GEMM, attention, a collective, an expert
//! exchange); a [`LatencyModel`] answers it with a [`Latency`]: value, spread, floor and
//! [`Source`]. Three kinds of model exist: [`measured`] (this program's own profile), [`tables`]
//! (engines' kernel tables) and the roofline. A stack asks several in order, operation by operation.

pub mod measured;
pub mod model;
pub mod query;
pub mod rates;
pub mod roofline;
pub mod source;
pub mod stack;
pub mod tables;

pub use measured::{Ceilings, LatencyTable, LayerQuery, Policy, Transfer, TransferError};
pub use model::{Absent, Answer, LatencyModel};
pub use query::{
    AttentionQuery, CollectiveKind, CollectiveQuery, ExchangeQuery, GemmQuery, MlaPart, MlaQuery,
    MoeQuery, Operation, Phase, Query,
};
pub use rates::Rates;
pub use roofline::RooflineModel;
pub use source::{Latency, Source};
pub use stack::Stack;
