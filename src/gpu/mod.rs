//! The CUDA driver, found at run time, and what it is given. One of the two places where `unsafe` is
//! allowed.
//!
//! Promised to callers: nothing here panics or aborts when there is no driver, no device or a
//! driver that is too old; each of these is a value that says so. No kernel is launched that was not
//! checked against the limits of its device.

pub mod capsule;
pub mod cublas;
pub mod cuda;
pub mod driver;
mod gate;
pub mod images;
pub mod launch;
pub mod libraries;
mod memory;
pub mod monitor;
mod nvrtc;
pub mod params;
mod tensor_map;

pub use capsule::{Capsule, CapsuleOptions, Delivery};
pub use cublas::{Cublas, GroupedProducts, Product};
pub use cuda::{CudaDevice, Origin};
pub use driver::{GpuFacts, NoGpu, probe};
pub use launch::{DeviceFacts, Launch, Launcher, Recording};
pub use memory::{DeviceAddress, Region};
pub use monitor::{Condition, Monitor};
pub use params::ParamBytes;
pub use tensor_map::{Element, MAX_RANK, Swizzle, TensorMap};
