//! `worker`: the process that `measure` starts to run kernels in. Not for the command line: it reads orders
//! on stdin and answers on stdout, see [`crate::measure::worker`].

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, channel};

use clap::Args;

use crate::cli::measure::{DeviceChoice, KernelChoice, device_choice, in_pool};
use crate::cli::output::stdout_lines;
use crate::kernels::cpu::simd::Isa;
use crate::measure::Session;
use crate::measure::worker::{Fault, refuse, serve};
use crate::{Error, Result};

/// Environment variable that plants faults, see [`Fault`], joined by commas: for the parent's tests.
pub const FAULT_VARIABLE: &str = "MOE_FRONTIER_WORKER_FAULT";

/// Runs kernels for `measure`, which starts it by itself.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Device: cpu or gpu:N.
    #[arg(long, value_parser = device_choice)]
    pub device: DeviceChoice,
    /// Kernel of one of a GPU's products.
    #[arg(long = "kernel")]
    pub kernels: Vec<String>,
    /// Instruction set of the processor's kernels.
    #[arg(long)]
    pub isa: Option<Isa>,
    /// Pack the processor's weights once.
    #[arg(long)]
    pub prepack: bool,
    /// Threads of the kernels.
    #[arg(long)]
    pub threads: Option<u16>,
}

/// Runs the command.
///
/// # Errors
/// [`Error::BadFile`] for orders that are none, [`Error::Io`] when the parent does not listen. What is
/// wrong with the device is told to the parent.
pub fn run(args: &WorkerArgs) -> Result<()> {
    let planted = std::env::var(FAULT_VARIABLE).unwrap_or_default();
    let faults = planted.split(',').filter(|text| !text.is_empty()).map(str::parse);
    let faults: Vec<Fault> = faults.collect::<Result<_>>()?;
    let orders = orders()?;
    let kernels = KernelChoice { products: &args.kernels, isa: args.isa, packed: args.prepack };
    serve_on(args.device, kernels, args.threads, orders, &mut stdout_lines(), &faults)
}

/// Opens a device and serves orders on it. A device that cannot be opened is told in the answer.
///
/// # Errors
/// As [`serve`].
pub(super) fn serve_on(
    device: DeviceChoice,
    kernels: KernelChoice,
    threads: Option<u16>,
    orders: Receiver<String>,
    out: &mut (dyn Write + Send),
    faults: &[Fault],
) -> Result<()> {
    in_pool(threads, move || {
        let mut is_open = false;
        let served = device.open(kernels, |backend, target| {
            is_open = true;
            serve(&Session::new(backend, target), orders.into_iter(), out, faults)
        });
        match served {
            Err(error) if !is_open => refuse(out, &error),
            served => served,
        }
    })
}

/// Orders as they come. Their end is this process's, also in the middle of a kernel: the parent is gone.
fn orders() -> Result<Receiver<String>> {
    let (sender, orders) = channel();
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
            std::process::exit(0);
        })
        .map_err(|e| Error::device("worker", e.to_string()))?;
    Ok(orders)
}
