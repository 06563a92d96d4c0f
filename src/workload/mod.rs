//! What a MoE layer is given: which token visits which expert.

mod load;
mod routing;
mod trace;

pub use load::ExpertLoad;
pub use routing::{Routing, RoutingKind, expected_active};
pub use trace::Trace;
