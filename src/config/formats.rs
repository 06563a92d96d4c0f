//! Bits of stored weights by tensor kind.

use serde::{Deserialize, Serialize};

use crate::config::DType;
use crate::config::layers::TensorKind;

/// Bits of one weight by tensor kind, scales and zero points included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorBits {
    /// Routed experts.
    pub experts: f64,
    /// Shared experts and latent projections.
    pub shared: f64,
    /// Attention.
    pub attention: f64,
    /// Mixers without attention.
    pub linear: f64,
    /// Dense feed-forward blocks.
    pub dense: f64,
    /// Input embedding.
    pub embedding: f64,
    /// Output head.
    pub head: f64,
}

impl TensorBits {
    /// Experts in one format and the rest in another; the vocabulary is never below 16 bits.
    pub const fn of(experts: DType, dense: DType) -> Self {
        let (experts, dense) = (experts.bits(), dense.bits());
        let vocabulary = dense.max(16.0);
        Self {
            experts,
            shared: experts,
            attention: dense,
            linear: dense,
            dense,
            embedding: vocabulary,
            head: vocabulary,
        }
    }

    /// Those of one kind. Routers and norms are in 16 bits.
    pub const fn of_kind(&self, kind: TensorKind) -> f64 {
        match kind {
            TensorKind::Experts => self.experts,
            TensorKind::Shared => self.shared,
            TensorKind::Attention => self.attention,
            TensorKind::Linear => self.linear,
            TensorKind::Dense => self.dense,
            TensorKind::Embedding => self.embedding,
            TensorKind::Head => self.head,
            TensorKind::Router | TensorKind::Norms => 16.0,
        }
    }
}
