//! The device that a user asked for, its kernels, and opening both.

use std::sync::atomic::AtomicBool;

use crate::cli::measure::place::Place;
use crate::gpu::CudaDevice;
use crate::kernels::MoeBackend;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::cpu::simd::Isa;
use crate::kernels::gpu::{GpuBackend, MoeOptions, PRODUCTS, Product};
use crate::measure::worker::{Facts, Worker};
use crate::measure::{CpuTarget, GpuTarget, Target};
use crate::{Error, Result};

/// The device that a user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The GPU if its kernels can run, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Gpu(u32),
}

/// Parses a [`DeviceChoice`].
///
/// # Errors
/// A message that names the accepted forms.
pub fn device_choice(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "gpu" => Ok(DeviceChoice::Gpu(0)),
        _ => text
            .strip_prefix("gpu:")
            .and_then(|n| n.parse().ok())
            .map(DeviceChoice::Gpu)
            .ok_or_else(|| "write auto, cpu, gpu or gpu:N".into()),
    }
}

/// Which of a device's kernels a user asked for; the default leaves the choice to the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelChoice<'a> {
    /// Names of a GPU's products.
    pub products: &'a [String],
    /// Instruction set of the CPU.
    pub isa: Option<Isa>,
    /// Whether the CPU's layers keep a packed copy of their weights.
    pub packed: bool,
}

impl KernelChoice<'_> {
    fn cpu(self) -> Result<CpuBackend> {
        if !self.products.is_empty() {
            return Err(Error::usage(
                "--kernel",
                "kernels are chosen on a GPU; for the CPU, --isa",
            ));
        }
        let backend = self.isa.map_or_else(|| Ok(CpuBackend::new()), CpuBackend::with_isa)?;
        Ok(if self.packed { backend.with_packed_weights() } else { backend })
    }

    /// Whether kernels of the CPU are chosen.
    const fn is_cpu(self) -> bool {
        self.isa.is_some() || self.packed
    }
}

impl DeviceChoice {
    /// The GPU that is meant, if one is: for `auto` the first that the driver lists, unless the
    /// CPU's kernels are chosen.
    pub(super) fn gpu(self, kernels: KernelChoice) -> Option<u32> {
        match self {
            Self::Cpu => None,
            Self::Auto if kernels.is_cpu() => None,
            Self::Auto => crate::cli::probe::gpus().first().map(|gpu| gpu.ordinal),
            Self::Gpu(ordinal) => Some(ordinal),
        }
    }

    /// Opens the device in this process and hands its backend and what is measured of it to `work`.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU or an instruction set was asked for that is not there;
    /// [`Error::Usage`] for kernels of another device; whatever `work` reports.
    pub(in crate::cli) fn open<T>(
        self,
        kernels: KernelChoice,
        work: impl FnOnce(&dyn MoeBackend, &dyn Target) -> Result<T>,
    ) -> Result<T> {
        match self.gpu(kernels) {
            Some(_) if kernels.is_cpu() => {
                Err(Error::usage("--isa and --prepack", "are for the CPU; a GPU has --kernel"))
            }
            Some(ordinal) => {
                let backend = open_gpu(ordinal, options(kernels.products)?)?;
                work(&backend, &GpuTarget::new(&backend)?)
            }
            None => work(&kernels.cpu()?, &CpuTarget::default()),
        }
    }

    /// The device and the kernels on it, as [`measure`] would find them.
    ///
    /// # Errors
    /// [`Error::Device`] when a GPU was asked for that is not there.
    pub(in crate::cli) fn facts(self) -> Result<Facts> {
        // Facts of a CPU need no process of their own; a GPU is given one whatever is asked.
        let place = Place { device: self, isolate: false, ..Place::default() };
        Ok(place.worker(&AtomicBool::new(false))?.facts().clone())
    }
}

/// A GPU with the kernels loaded that every layer needs.
///
/// # Errors
/// [`Error::Device`] when it cannot be opened or has no kernels.
pub(in crate::cli) fn open_gpu(
    ordinal: u32,
    options: MoeOptions,
) -> Result<GpuBackend<CudaDevice>> {
    let mut device = CudaDevice::open(ordinal)?;
    for kernel in ["router_topk_f32", "align_small", "combine_bf16"] {
        device.load(kernel)?;
    }
    let gpu = device.gpu();
    let description =
        format!("{}, compute capability {}, CUDA {}", gpu.name, gpu.sm, gpu.driver_cuda);
    GpuBackend::new(device, description, options)
}

/// Options that name the kernels of `--kernel`.
///
/// # Errors
/// [`Error::Usage`] for an unknown name, and for two of one product.
pub(super) fn options(kernels: &[String]) -> Result<MoeOptions> {
    let mut options = MoeOptions::default();
    for name in kernels {
        let Some(kernel) = PRODUCTS.iter().find(|k| k.name == name) else {
            let known: Vec<&str> = PRODUCTS.iter().map(|k| k.name).collect();
            return Err(Error::usage(
                "--kernel",
                format!("`{name}` is unknown; there are {}", known.join(", ")),
            ));
        };
        let place = match kernel.product {
            Product::Up => &mut options.up,
            Product::Down | Product::DownFast => &mut options.down,
        };
        if place.replace(name.clone()).is_some() {
            return Err(Error::usage("--kernel", "names two kernels of one product"));
        }
    }
    Ok(options)
}

/// Runs `work` on a pool with the given number of threads, or on the common one.
///
/// # Errors
/// Whatever `work` reports; [`Error::Device`] when threads cannot be started.
pub fn in_pool<T: Send>(
    threads: Option<u16>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(threads) = threads else { return work() };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(usize::from(threads))
        .build()
        .map_err(|e| Error::device("cpu", e.to_string()))?;
    pool.install(work)
}
