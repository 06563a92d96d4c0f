//! Models and devices as data: what is counted, from which file or preset it came.

pub mod device;
pub mod formats;
pub mod hf;
pub mod hf_write;
#[cfg(feature = "native")]
mod hub;
pub mod layers;
mod load;
pub mod model;
mod nearest;
mod params;
pub mod preset;
mod summary;

pub use device::DeviceSpec;
pub use formats::TensorBits;
pub use layers::{LayerGroup, TensorKind};
pub use load::{Loaded, load_model, local_model};
pub use model::{Attention, DType, MoeModel, RouterConfig, Scoring, SharedExperts, SlidingWindow};
pub(crate) use nearest::unknown_name;
pub use params::{KindBytes, ParamCount};
