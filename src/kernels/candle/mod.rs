//! The layer for candle users, and candle's own way of computing it as a peer.
//!
//! [`MoeLayer`] is a `candle_nn`-style module over this crate's CPU kernels: router, grouped products
//! and weighted sum in one call on tensors of any strides. [`RoutedExperts`] is the operation inside
//! it, for a caller who has router logits already. [`NaiveLayer`] computes the same from candle's own
//! operations, expert by expert, as models written with candle do; it is what the benches compare with.
//!
//! Functions here return candle's `Result`, so that they can be used inside a candle model; errors of
//! this crate travel inside it unchanged.

#[cfg(feature = "candle-cuda")]
mod cuda;
mod layer;
mod naive;
mod op;
mod view;

pub use layer::{MoeLayer, MoeLayerConfig};
pub use naive::NaiveLayer;
pub use op::RoutedExperts;

/// Carries an error of this crate through candle's `Result`.
fn wrapped(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
