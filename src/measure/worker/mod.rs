//! Who launches the kernels of a run, one question at a time: this process ([`super::Session`]), or one
//! that is started for it ([`Process`]), so that a kernel that breaks its device, crashes or never ends
//! takes one cell along and not the run.
//!
//! Between processes questions and answers are lines of JSON, on the worker's standard input and output
//! ([`serve()`]). The worker knows the kernels and the clock; what its times amount to, which cell comes
//! next and when the run is over is decided on this side.

mod process;
mod serve;

use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use super::ceilings::CeilingSamples;
use super::launches::{Drawn, Taken};
use super::plan::{Machine, Plan};
use crate::config::DType;
use crate::record::{CheckRecord, Device, TimingMode};
use crate::{Error, Result};

pub use process::{Limits, Process, Serve};
pub use serve::{Fault, FaultKind, refuse, serve};

/// What a run has to know of the device and of the kernels on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The device as the key of a profile names it.
    pub device: Device,
    /// Name of the kernels of a whole layer.
    pub kernel: String,
    /// SHA-256 of the kernels.
    pub kernel_sha256: String,
    /// Name of the kernel of the dense ceiling.
    pub dense_kernel: String,
    /// The dense product by somebody else: its name and number format.
    pub peer: (String, DType),
    /// How cells can be timed, the usual way first.
    pub modes: Vec<TimingMode>,
    /// Half-width of the interval at which a cell closes as valid.
    pub width: f64,
    /// Last-level cache, in bytes.
    pub cache_bytes: f64,
    /// Threads of the host that the kernels keep busy.
    pub host_threads: usize,
    /// What a reader of the results should know of the device.
    pub notes: Vec<String>,
    /// Files of the driver's libraries that were loaded.
    #[serde(default)]
    pub libraries: Vec<String>,
}

impl Facts {
    /// Checks that cells can be timed in these ways.
    ///
    /// # Errors
    /// [`Error::Usage`] for the first that the device does not have, and when there is none.
    pub fn check_modes(&self, modes: &[TimingMode]) -> Result<()> {
        let labels =
            |modes: &[TimingMode]| modes.iter().map(|m| m.label()).collect::<Vec<_>>().join(", ");
        if let Some(twice) = (1..modes.len()).find(|&i| modes[..i].contains(&modes[i])) {
            let label = modes[twice].label();
            return Err(Error::usage("--mode", format!("names {label} twice")));
        }
        let name = self.device.name();
        match modes.iter().find(|mode| !self.modes.contains(mode)) {
            None if modes.is_empty() => Err(Error::usage("--mode", "name at least one")),
            None => Ok(()),
            Some(_) if self.modes == [TimingMode::Cpu] => Err(Error::usage(
                "--mode",
                format!(
                    "only GPUs are timed as {}; {name} is timed in one way, without a name",
                    labels(modes)
                ),
            )),
            Some(mode) => Err(Error::usage(
                "--mode",
                format!("{name} is not timed as {}; it has {}", mode.label(), labels(&self.modes)),
            )),
        }
    }
}

/// One piece of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// One sample of read bandwidth.
    ReadRate,
    /// One round's samples of the other ceilings.
    OtherRates,
    /// One block of a cell, by its number in the plan.
    Block {
        /// The cell.
        cell: usize,
        /// The round that it counts for, from 1.
        round: u32,
    },
    /// The comparison of the output that the cell's last timed launch has left.
    CheckLast {
        /// The cell.
        cell: usize,
    },
    /// A cell's kernel against itself.
    Itself {
        /// The cell.
        cell: usize,
        /// The round that it counts for, from 1.
        round: u32,
    },
}

impl Ask {
    /// The cell that is asked about.
    pub const fn cell(&self) -> Option<usize> {
        match *self {
            Self::ReadRate | Self::OtherRates => None,
            Self::Block { cell, .. } | Self::CheckLast { cell } | Self::Itself { cell, .. } => {
                Some(cell)
            }
        }
    }
}

/// What a piece of a run brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To [`Ask::ReadRate`] and [`Ask::OtherRates`].
    Rates(CeilingSamples),
    /// To [`Ask::Block`].
    Block(Taken),
    /// To [`Ask::CheckLast`].
    Check {
        /// The comparison.
        record: CheckRecord,
        /// Time that it took.
        ns: u64,
    },
    /// To [`Ask::Itself`]: the log ratio of the two halves, when each has a time.
    Itself(Option<f64>),
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Trouble {
    /// What was asked for cannot be had; the run goes on. One line that says why.
    Lost(String),
    /// The run is over.
    Over(Error),
}

/// Whoever launches the kernels of one plan.
pub trait Worker {
    /// The device.
    fn facts(&self) -> &Facts;

    /// What was drawn for each cell of the plan.
    fn drawn(&self) -> &[Drawn];

    /// Does one piece of the run. Given up when `stop` is raised.
    ///
    /// # Errors
    /// See [`Trouble`]; a raised `stop` is [`Error::Interrupted`].
    fn ask(&mut self, ask: Ask, stop: &AtomicBool) -> Result<Answer, Trouble>;

    /// Makes ready for the next question after one that was lost. The default has nothing to do.
    ///
    /// # Errors
    /// Why the run is over.
    fn recover(&mut self, stop: &AtomicBool) -> Result<()> {
        let _ = stop;
        Ok(())
    }
}

/// What is sent to a worker process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Order {
    /// Rough rates and sizes, for planning.
    Machine {
        /// Storage of the weights.
        dtype: DType,
    },
    /// Draws and loads the weights of a plan; once.
    Load(Box<Plan>),
    /// A piece of the loaded plan.
    Ask(Ask),
}

/// What comes back from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Reply {
    /// The first line.
    Ready(Box<Facts>),
    /// To [`Order::Machine`].
    Machine(Machine),
    /// To [`Order::Load`].
    Loaded(Vec<Drawn>),
    /// To [`Order::Ask`].
    Answer(Answer),
    /// Instead of any of them.
    Failed {
        /// Exit code of the error.
        code: u8,
        /// What it is about.
        what: String,
        /// Why.
        reason: String,
        /// Whether the worker ends with this line: its device may be in any state.
        over: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::super::{CpuTarget, Session, Target};
    use super::*;
    use crate::kernels::cpu::CpuBackend;
    use crate::record::GpuDevice;

    #[test]
    fn modes_are_those_of_the_device_each_once() {
        use TimingMode::{Cold, Cpu, Hot, Stream};
        let (backend, target) = (CpuBackend::new(), CpuTarget::default());
        let cpu = Session::new(&backend, &target).facts();
        assert_eq!(cpu.device, target.device());
        let gpu = Facts {
            device: Device::Gpu(GpuDevice {
                name: "made-up GPU".into(),
                sm: "9.0".into(),
                sm_count: 4,
                memory_bytes: 1 << 30,
                l2_bytes: 1 << 20,
                driver_cuda: "13.0".into(),
                ecc: None,
                power_limit_mw: None,
            }),
            modes: vec![Cold, Stream],
            ..cpu.clone()
        };
        cpu.check_modes(&[Cpu]).unwrap();
        gpu.check_modes(&[Stream, Cold]).unwrap();
        for (facts, modes, word) in [
            (&cpu, vec![Stream, Hot], "only GPUs are timed as stream, hot"),
            (&gpu, vec![Cold, Hot], "not timed as hot; it has cold, stream"),
            (&gpu, vec![Cold, Stream, Cold], "cold twice"),
            (&gpu, vec![], "at least one"),
        ] {
            let error = facts.check_modes(&modes).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(word), "{error}");
        }
    }
}
