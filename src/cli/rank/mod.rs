//! `rank`: flags to options, this machine as a source, and what is printed and written.

mod args;
#[cfg(feature = "cli")]
mod command;
#[cfg(feature = "cli")]
mod machine;
mod mfu;
#[cfg(feature = "cli")]
mod place;
#[cfg(feature = "cli")]
mod print;
#[cfg(feature = "cli")]
mod serving_cost;

pub use args::RankArgs;
#[cfg(feature = "cli")]
pub use command::run;
#[cfg(feature = "cli")]
pub(super) use serving_cost::ServingCost;
