//! What GPUs there are, asked in a child process with a deadline: a driver library that crashes, hangs or
//! lies costs a line of text, and this process never loads it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::embedded;
use crate::cli::measure::open_gpu;
use crate::cli::output::{Output, warn, write_stdout};
use crate::cli::signals;
use crate::error::tidy;
use crate::gpu::libraries::CudaLibrary;
use crate::gpu::{CudaDevice, GpuFacts, Launcher, NoGpu, driver, images};
use crate::kernels::gpu::MoeOptions;
use crate::kernels::gpu::launches::{INSTRUCTIONS, probe_instruction};
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
    /// Run single instructions on the first device and compare what they leave, a line each.
    #[arg(long, conflicts_with = "details")]
    pub instructions: bool,
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
    if args.instructions {
        return run_instructions();
    }
    Output::new(true).result(&look(args.details), String::new)
}

/// What became of one instruction on the first device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Tried {
    /// The probe: instruction and form.
    pub(super) name: String,
    /// What is wrong with it; nothing when it leaves what the emulator does.
    pub(super) wrong: Option<String>,
}

/// How long all instructions may take, their device opened and their code loaded.
const INSTRUCTIONS_LIMIT: Duration = Duration::from_secs(60);

/// In the child: tells of each instruction before it runs, and what became of it.
fn run_instructions() -> Result<()> {
    let mut device = match CudaDevice::open(0) {
        Ok(device) => device,
        Err(error) => return write_stdout(&format!("! the device: {error}\n")),
    };
    let facts = *device.facts();
    for instruction in INSTRUCTIONS.iter().filter(|i| i.runs_on(&facts)) {
        write_stdout(&format!("? {}\n", instruction.name))?;
        let left = probe_instruction(&mut device, instruction).map_err(|e| e.to_string());
        let wrong = left.and_then(|words| instruction.compare(&words)).err();
        let wrong = wrong.map_or_else(String::new, |wrong| format!(" {}", tidy(&wrong)));
        write_stdout(&format!("={wrong}\n"))?;
    }
    Ok(())
}

/// What single instructions leave on the first device, each compared with the emulator.
///
/// # Errors
/// One line when the child cannot be started.
pub(super) fn instructions() -> Result<Vec<Tried>, String> {
    let failed = |e: std::io::Error| format!("this program cannot be started again: {e}");
    let mut command = embedded::again().map_err(failed)?;
    command.args(["probe", "--instructions"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(tried(command.spawn().map_err(failed)?, INSTRUCTIONS_LIMIT))
}

/// Reads what a child tells until it ends or the limit is over; the instruction that it began and did not
/// end is wrong.
fn tried(mut child: Child, limit: Duration) -> Vec<Tried> {
    let start = Instant::now();
    let (sender, lines) = channel();
    if let Some(output) = child.stdout.take() {
        let read = move || {
            for line in BufReader::new(output.take(LONGEST)).lines().map_while(io::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        };
        // Without a thread nothing is heard, and the child is found to have said nothing.
        let _ = std::thread::Builder::new().name("probe".into()).spawn(read);
    }
    let (mut all, mut begun) = (Vec::new(), None::<String>);
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left.min(LOOK_EVERY)) {
            Ok(line) => match line.split_at_checked(1) {
                Some(("?", name)) => begun = Some(name.trim().to_owned()),
                Some(("=", wrong)) => {
                    let wrong = Some(wrong.trim().to_owned()).filter(|wrong| !wrong.is_empty());
                    all.extend(begun.take().map(|name| Tried { name, wrong }));
                }
                _ => all.push(Tried {
                    name: "device".into(),
                    wrong: Some(line.trim_start_matches('!').trim().to_owned()),
                }),
            },
            Err(RecvTimeoutError::Timeout) if !left.is_zero() && !signals::is_raised() => {}
            Err(ended) => {
                let why = match ended {
                    RecvTimeoutError::Timeout => {
                        format!("did not end in {:.0} s", start.elapsed().as_secs_f64())
                    }
                    RecvTimeoutError::Disconnected => "ended the process that ran it".into(),
                };
                all.extend(begun.map(|name| Tried { name, wrong: Some(why) }));
                break;
            }
        }
    }
    // One inside a call of its driver may not end; it is not waited for.
    let _ = child.kill();
    let _ = wait(&mut child, Duration::from_secs(1));
    all
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
    fn an_instruction_that_never_ends_or_ends_its_process_is_named() {
        let told = |script: &str, limit_ms: u64| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            tried(command.spawn().unwrap(), Duration::from_millis(limit_ms))
        };
        let row = |name: &str, wrong: Option<&str>| Tried {
            name: name.into(),
            wrong: wrong.map(str::to_owned),
        };
        let two = "echo '? shuffle'; echo '='; echo '? mma'; echo '= 1 of 4 words differ'";
        let good = [row("shuffle", None), row("mma", Some("1 of 4 words differ"))];
        assert_eq!(told(two, 20_000), good);
        let hangs = told("echo '? tma'; exec sleep 100", 300);
        assert!(hangs.len() == 1 && hangs[0].name == "tma", "{hangs:?}");
        assert!(hangs[0].wrong.as_ref().unwrap().contains("did not end"), "{hangs:?}");
        let crashes = told("echo '? wgmma'; kill -SEGV $$", 20_000);
        assert_eq!(crashes, [row("wgmma", Some("ended the process that ran it"))]);
        assert_eq!(
            told("echo '! the device: none'", 20_000),
            [row("device", Some("the device: none"))]
        );
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
