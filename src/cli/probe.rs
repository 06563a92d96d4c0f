//! What GPUs there are, asked in a child process with a deadline: a driver library that crashes, hangs or
//! lies costs a line of text, and this process never loads it.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::embedded;
use crate::cli::measure::open_gpu;
use crate::cli::output::{Output, warn};
use crate::cli::signals;
use crate::gpu::libraries::CudaLibrary;
use crate::gpu::{CudaDevice, GpuFacts, Launcher, NoGpu, driver, images};
use crate::kernels::gpu::MoeOptions;
use crate::{Error, Result};

/// How long a driver may take to list its devices; the first call after a boot takes seconds.
const LISTING: Duration = Duration::from_secs(20);
/// How long it may take to open them and to load every kernel.
const DETAILS: Duration = Duration::from_secs(120);
/// How often a waiting parent looks whether it was asked to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest answer, in bytes.
const LONGEST: u64 = 1 << 20;

/// Asks the driver, for this program alone.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// Also open the devices and load their kernels.
    #[arg(long)]
    pub details: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probed {
    /// The devices.
    pub(super) gpus: Vec<GpuFacts>,
    /// Why none can be used, or nothing.
    pub(super) unused_because: String,
    /// Whether that is worth a warning: the driver misbehaved.
    pub(super) is_trouble: bool,
    /// Of each device: where its kernels' code comes from.
    pub(super) kernels: Vec<String>,
    /// Where the run-time compiler lies, or why there is none.
    pub(super) nvrtc: String,
}

/// Runs the command, in the child.
///
/// # Errors
/// [`Error::Io`] when stdout cannot be written.
pub fn run(args: &ProbeArgs) -> Result<()> {
    Output::new(true).result(&look(args.details), String::new)
}

/// The devices, asked once a process. Trouble with the driver is a warning.
pub(super) fn gpus() -> &'static [GpuFacts] {
    static FOUND: OnceLock<Vec<GpuFacts>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let probed = ask(false);
        if probed.is_trouble && !signals::is_raised() {
            warn(&format!("the GPU is not used: {}", probed.unused_because));
        }
        probed.gpus
    })
}

/// Everything about the devices.
pub(super) fn details() -> Probed {
    ask(true)
}

fn ask(details: bool) -> Probed {
    // The program of a unit test is its harness, which has no such command.
    if cfg!(test) {
        return look(details);
    }
    let limit = if details { DETAILS } else { LISTING };
    let trouble = |unused_because: String| Probed {
        unused_because,
        is_trouble: true,
        nvrtc: "not looked for".into(),
        ..Probed::default()
    };
    match child(details).and_then(|child| answer(child, limit, signals::is_raised)) {
        Ok(text) => serde_json::from_slice(&text)
            .unwrap_or_else(|_| trouble("the driver's answer makes no sense".into())),
        Err(reason) => trouble(reason),
    }
}

fn child(details: bool) -> Result<Child, String> {
    let failed = |e: std::io::Error| format!("this program cannot be started again: {e}");
    let mut command = embedded::again().map_err(failed)?;
    command.arg("probe").args(details.then_some("--details"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().map_err(failed)
}

/// What a child prints until it ends well, within the limit.
fn answer(mut child: Child, limit: Duration, is_over: fn() -> bool) -> Result<Vec<u8>, String> {
    let start = Instant::now();
    let Some(output) = child.stdout.take() else { return Err("it has no output".into()) };
    let (sender, texts) = channel();
    let reading = std::thread::Builder::new().name("probe".into()).spawn(move || {
        let mut text = Vec::new();
        let read = output.take(LONGEST).read_to_end(&mut text);
        // Nobody listens after the deadline.
        let _ = sender.send(read.map(|_| text));
    });
    let text = match reading {
        Ok(_) => heard(&texts, limit, is_over),
        Err(_) => None,
    };
    let Some(text) = text else {
        // One inside a call of its driver may not end; it is not waited for.
        let _ = child.kill();
        return Err(format!(
            "the CUDA driver did not answer in {:.0} s",
            start.elapsed().as_secs_f64()
        ));
    };
    let left = limit.saturating_sub(start.elapsed()).max(Duration::from_secs(1));
    match wait(&mut child, left) {
        Some(status) if status.success() => Ok(text),
        Some(status) => {
            Err(format!("the CUDA driver crashed: the process that asked it ended with {status}"))
        }
        None => {
            let _ = child.kill();
            Err("the CUDA driver did not end".into())
        }
    }
}

/// The text of a child within the limit, unless this process is asked to end.
fn heard(
    texts: &Receiver<std::io::Result<Vec<u8>>>,
    limit: Duration,
    is_over: fn() -> bool,
) -> Option<Vec<u8>> {
    let start = Instant::now();
    while start.elapsed() < limit && !is_over() {
        match texts.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            read => return read.ok()?.ok(),
        }
    }
    None
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

fn look(details: bool) -> Probed {
    let (gpus, refusal) = match driver::probe() {
        Ok(found) => (found, None),
        Err(refusal) => (Vec::new(), Some(refusal)),
    };
    let mut probed = Probed {
        is_trouble: matches!(
            refusal,
            Some(NoGpu::CallFailed { .. } | NoGpu::NotADriver { .. } | NoGpu::Implausible { .. })
        ),
        unused_because: refusal.map(|refusal| refusal.to_string()).unwrap_or_default(),
        gpus,
        ..Probed::default()
    };
    if details {
        probed.nvrtc =
            CudaLibrary::Nvrtc.open().map_or_else(|why| why, |at| at.display().to_string());
        probed.kernels = probed.gpus.iter().map(|gpu| kernels_of(gpu.ordinal)).collect();
        if let Some(gpu) = probed.gpus.first() {
            let opened: Result<()> = open_gpu(gpu.ordinal, MoeOptions::default()).map(drop);
            probed.unused_because = opened.err().map(|e: Error| e.to_string()).unwrap_or_default();
        }
    }
    probed
}

/// Where the code of a device's kernels comes from, each origin with the number of kernels.
fn kernels_of(ordinal: u32) -> String {
    let mut device = match CudaDevice::open(ordinal) {
        Ok(device) => device,
        Err(error) => return error.to_string(),
    };
    let on = device.facts().compute_capability;
    let runnable = images::SOURCES.iter().filter(|source| source.runs_on(on));
    let mut origins: BTreeMap<String, usize> = BTreeMap::new();
    for kernel in runnable.flat_map(|source| source.kernels) {
        let origin = match device.load(kernel) {
            Ok(origin) => origin.to_string(),
            Err(error) => format!("not loaded ({error})"),
        };
        *origins.entry(origin).or_default() += 1;
    }
    let counted = origins.iter().map(|(origin, count)| format!("{count} {origin}"));
    counted.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    use super::*;

    #[cfg(unix)]
    fn asked(script: &str, limit_ms: u64) -> Result<Vec<u8>, String> {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        answer(command.spawn().unwrap(), Duration::from_millis(limit_ms), || false)
    }

    #[cfg(unix)]
    #[test]
    fn a_driver_that_crashes_or_hangs_costs_a_line() {
        assert_eq!(asked("echo fine", 20_000).unwrap(), b"fine\n");
        assert!(asked("kill -SEGV $$", 20_000).unwrap_err().contains("crashed"));
        assert!(asked("exit 3", 20_000).unwrap_err().contains("exit status: 3"));
        let start = Instant::now();
        assert!(asked("exec sleep 100", 200).unwrap_err().contains("did not answer"));
        assert!(start.elapsed() < Duration::from_secs(20));
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "exec sleep 100"]).stdout(Stdio::piped());
        let start = Instant::now();
        answer(command.spawn().unwrap(), Duration::from_secs(20), || true).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10), "an interruption does not wait");
    }
}
