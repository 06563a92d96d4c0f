//! The CUDA kernels from the host's side: which to launch, with what memory, in which order.
//!
//! Everything here is safe and free of CUDA: launches go through [`crate::gpu::Launcher`], which the
//! driver implements on a GPU and the host emulator anywhere else. [`Plan`] and [`WorkspaceLayout`]
//! are pure functions of numbers that the host knows, so that nothing waits for a device to decide.
//!
//! Order of one layer: router (which also aligns when there are few pairs), align, up, down, combine.

mod backend;
mod forward;
pub mod launches;
mod options;
mod plan;
mod registry;
mod workspace;

pub use backend::{Flush, GpuBackend};
pub use forward::{LayerBuffers, MoeInput, Routing, moe_forward, moe_stage};
pub use launches::Matrix;
pub use options::{Combine, LogitFormat, MoeOptions, RouterInput, WeightFormat};
pub use plan::{Plan, Thresholds};
pub use registry::{
    ALIGN, COMBINE, Family, PRODUCTS, Product, ProductKernel, ROUTER_GATE, ROUTERS, kernel_names,
};
pub use workspace::{Piece, Workspace, WorkspaceLayout};
