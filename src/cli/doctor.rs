//! `doctor`: what was found on this machine and what the other commands will therefore do.

use serde::Serialize;

use crate::cli::output::Output;
use crate::cli::{probe, store};
use crate::error::{shown, tidy};
use crate::gpu::GpuFacts;
use crate::kernels::MoeBackend;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::cpu::simd::Isa;
use crate::measure::host;
use crate::measure::preflight::Load;
use crate::record::{CpuDevice, Device};
use crate::report::grid::hanging;
use crate::units::Bytes;
use crate::{Error, Result};

/// What was found: CPU, kernels, GPU driver, stored profiles.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  moe-frontier doctor --json\n  moe-frontier doctor --probe\n  moe-frontier \
                  doctor --prune"
)]
pub struct Args {
    /// Remove stored profiles that cannot be read, and runs that were begun in the folder of profiles and
    /// not gone on with for 30 days.
    #[arg(long)]
    pub prune: bool,
    /// Run single instructions on the first GPU and compare what they leave with what the kernels were
    /// tested with: a wrong reading of the manual shows before any kernel does. Fails when one differs.
    #[arg(long, conflicts_with = "prune")]
    pub probe: bool,
    /// Print CPU features, caches, every instruction set, kernels of GPUs and folders too.
    #[arg(long, conflicts_with = "prune")]
    pub details: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Findings {
    schema: &'static str,
    schema_version: &'static str,
    program_version: &'static str,
    os: String,
    cpu: CpuDevice,
    cores: usize,
    /// Threads that the CPU kernels take unless told otherwise.
    threads: usize,
    kernels: String,
    /// Every instruction set that the CPU kernels are written for, the preferred first.
    instruction_sets: Vec<InstructionSet>,
    available_memory_bytes: u64,
    load_1min: Option<f64>,
    gpus: Vec<String>,
    /// Of each GPU: where its kernels' code comes from.
    gpu_kernels: Vec<String>,
    /// Where the run-time compiler lies, or why there is none.
    nvrtc: String,
    gpu_unused_because: String,
    /// Of `--probe`: each instruction on the first GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<Vec<probe::Tried>>,
    profiles_folder: Option<String>,
    profile: Option<Stored>,
}

/// An instruction set of the CPU kernels.
#[derive(Debug, Serialize)]
struct InstructionSet {
    /// The word that `measure --isa` takes.
    name: &'static str,
    label: &'static str,
    chosen: bool,
    /// Null where it can be used.
    missing_because: Option<&'static str>,
}

/// The newest profile of this machine.
#[derive(Debug, Serialize)]
struct Stored {
    path: String,
    cells: usize,
    read_bytes_per_s: f64,
    gemm_flops_per_s: f64,
    noise_floor_rel: f64,
}

/// Runs the command.
///
/// # Errors
/// [`crate::Error::Io`] when stdout cannot be written; [`crate::Error::Device`] when `--probe` finds an
/// instruction that leaves something else than it should.
pub fn run(args: &Args, output: Output) -> Result<()> {
    if args.prune {
        return prune(output);
    }
    let mut findings = look();
    if args.probe && !findings.gpus.is_empty() {
        let tried = probe::instructions().map_err(|why| Error::device("gpu:0", why))?;
        findings.instructions = Some(tried);
    }
    output.result(&findings, || {
        let width = crate::cli::output::width();
        let told = probed(args.probe, &findings, width);
        if args.details {
            text(&findings, width) + &told
        } else {
            summary(&findings, width) + &told
        }
    })?;
    let wrong =
        findings.instructions.iter().flatten().filter(|tried| tried.wrong.is_some()).count();
    if wrong > 0 {
        let reason = format!("{wrong} instructions do not leave what they should");
        return Err(Error::device("gpu:0", reason));
    }
    Ok(())
}

/// What `--probe` has to say.
fn probed(asked: bool, f: &Findings, width: usize) -> String {
    let label = "Probe   ";
    let Some(tried) = &f.instructions else {
        let skipped = format!("SKIPPED: {}", f.gpu_unused_because);
        return if asked { hanging(label, &skipped, width) } else { String::new() };
    };
    let right = tried.iter().filter(|tried| tried.wrong.is_none()).count();
    let counted = format!("{right} of {} instructions leave what they should", tried.len());
    let wrong = tried.iter().filter_map(|tried| Some((&tried.name, tried.wrong.as_ref()?)));
    let lines = wrong.map(|(name, wrong)| hanging("        ", &format!("{name}: {wrong}"), width));
    hanging(label, &counted, width) + &lines.collect::<String>()
}

/// What `--prune --json` prints.
#[derive(Debug, Serialize)]
struct Pruned {
    schema: &'static str,
    schema_version: &'static str,
    folder: String,
    /// Each file or run that was removed, with the reason.
    removed: Vec<(String, String)>,
}

fn prune(output: Output) -> Result<()> {
    let folder = store::folder()?;
    let removed = store::prune(&folder)?;
    let removed: Vec<(String, String)> = removed
        .into_iter()
        .map(|(path, why)| (shown(&path.display().to_string()), tidy(&why)))
        .collect();
    let folder = shown(&folder.display().to_string());
    let pruned =
        Pruned { schema: "moe-frontier/doctor-prune", schema_version: "1.0", folder, removed };
    output.result(&pruned, || {
        let lines = pruned.removed.iter().map(|(path, why)| format!("removed {path}: {why}\n"));
        let total = format!("{} removed from {}\n", pruned.removed.len(), pruned.folder);
        lines.chain([total]).collect()
    })
}

fn look() -> Findings {
    let backend = CpuBackend::new();
    let cpu = host::cpu(backend.threads());
    let probed = probe::details();
    let gpus = probed.gpus.iter().map(describe).collect();
    let folder = store::folder().ok();
    let device = Device::Cpu(cpu.clone()).sha256();
    let newest = folder
        .as_ref()
        .and_then(|folder| store::newest(folder, &device, &backend.kernel_sha256(), |_| true));
    Findings {
        schema: "moe-frontier/doctor",
        schema_version: "1.2",
        program_version: env!("CARGO_PKG_VERSION"),
        os: host::os(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: backend.threads(),
        kernels: backend.description(),
        instruction_sets: Isa::ALL.map(|isa| instruction_set(isa, backend.isa())).into(),
        available_memory_bytes: host::memory().available_bytes,
        load_1min: Load::read().load_1min,
        gpus,
        gpu_kernels: probed.kernels,
        nvrtc: probed.nvrtc,
        gpu_unused_because: probed.unused_because,
        instructions: None,
        profiles_folder: folder.map(|f| f.display().to_string()),
        profile: newest.map(|(path, profile)| Stored {
            path: path.display().to_string(),
            cells: profile.cells.len(),
            read_bytes_per_s: profile.run.ceilings.read_bytes_per_s,
            gemm_flops_per_s: profile.run.ceilings.gemm_flops_per_s,
            noise_floor_rel: profile.run.noise_floor_rel,
        }),
        cpu,
    }
}

fn instruction_set(isa: Isa, chosen: Isa) -> InstructionSet {
    InstructionSet {
        name: isa.flag(),
        label: isa.label(),
        chosen: isa == chosen,
        missing_because: isa.missing(),
    }
}

fn describe(gpu: &GpuFacts) -> String {
    let memory = Bytes(gpu.memory_bytes as f64);
    format!("gpu:{} {}, sm {}, {memory}, CUDA {}", gpu.ordinal, gpu.name, gpu.sm, gpu.driver_cuda)
}

/// Columns of the words before each finding.
const LABEL: usize = 15;

fn text(f: &Findings, width: usize) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        text += &hanging(&format!("{label:<LABEL$}"), value, width);
    };
    let size = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".to_owned(), |b| Bytes(b as f64).to_string())
    };
    line("program", &format!("moe-frontier {}, {}", f.program_version, f.os));
    line("CPU", &format!("{}, {} cores for this process", f.cpu.name, f.cores));
    line("features", &f.cpu.isa.join(" "));
    line("caches", &format!("L2 {}, L3 {}", size(f.cpu.l2_bytes), size(f.cpu.l3_bytes)));
    let available = Bytes(f.available_memory_bytes as f64);
    line("memory", &format!("{available} of {} available", Bytes(f.cpu.memory_bytes as f64)));
    line("kernels", &f.kernels);
    for (i, set) in f.instruction_sets.iter().enumerate() {
        let title = if i == 0 { "instructions" } else { "" };
        let state = match set.missing_because {
            Some(why) => format!("no: {why}"),
            None if set.chosen => "available, chosen".to_owned(),
            None => "available".to_owned(),
        };
        line(title, &format!("{} ({}): {state}", set.name, set.label));
    }
    for (gpu, kernels) in f.gpus.iter().zip(&f.gpu_kernels) {
        line("GPU", gpu);
        line("CUDA kernels", kernels);
    }
    line("NVRTC", &f.nvrtc);
    if !f.gpu_unused_because.is_empty() {
        line("GPU not used", &f.gpu_unused_because);
    }
    line("profiles", f.profiles_folder.as_deref().unwrap_or("no folder is known"));
    line("newest", &newest(f.profile.as_ref()));
    if let Some(load) = f.load_1min.filter(|l| *l > 0.5) {
        line("load", &format!("{load:.1} over the last minute: times taken now are noisy"));
    }
    text
}

/// What other commands will do here, and why.
fn summary(f: &Findings, width: usize) -> String {
    let device = match f.gpus.first() {
        Some(gpu) if f.gpu_unused_because.is_empty() => format!("measures on {gpu}"),
        _ => format!("measures on the CPU: {}", f.cpu.name),
    };
    let profile = if f.profile.is_some() { "has a profile" } else { "not measured yet" };
    let mut text = hanging("Answer  ", &format!("this machine {device}; {profile}"), width);
    text += &hanging("Kernels ", &f.kernels, width);
    if !f.gpu_unused_because.is_empty() {
        text += &hanging("GPU     ", &format!("not used: {}", f.gpu_unused_because), width);
    }
    text += &hanging("Profile ", &newest(f.profile.as_ref()), width);
    if let Some(load) = f.load_1min.filter(|l| *l > 0.5) {
        let noisy = format!("{load:.1} over the last minute: times taken now are noisy");
        text += &hanging("Load    ", &noisy, width);
    }
    text + &hanging("Next    ", "rank; measure --quick; doctor --details", width)
}

fn newest(profile: Option<&Stored>) -> String {
    let Some(p) = profile else {
        return "none of this machine and these kernels: `rank` will measure first".into();
    };
    format!(
        "{}, {} cells; read {:.1} GB/s, dense GEMM {:.0} GFLOP/s, noise floor {:.1} %",
        p.path,
        p.cells,
        p.read_bytes_per_s / 1e9,
        p.gemm_flops_per_s / 1e9,
        100.0 * p.noise_floor_rel
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_name_cpu_kernels_and_why_no_gpu_is_used() {
        let findings = look();
        let text = text(&findings, 100);
        for part in ["CPU", "kernels", "NVRTC", "profiles"] {
            assert!(text.contains(part), "{text}");
        }
        for isa in Isa::ALL {
            assert!(text.contains(isa.flag()), "{text}");
        }
        let short = summary(&findings, 80);
        assert!(short.starts_with("Answer  this machine measures on"), "{short}");
        assert!(short.contains(&findings.kernels) || short.lines().count() > 4, "{short}");
        let chosen: Vec<_> = findings.instruction_sets.iter().filter(|s| s.chosen).collect();
        assert!(matches!(chosen[..], [set] if set.missing_because.is_none()), "{text}");
        assert!(text.contains(&format!("{}, {} threads", chosen[0].label, findings.threads)));
        assert_eq!(findings.gpus.is_empty(), !findings.gpu_unused_because.is_empty());
        assert!(probed(false, &findings, 80).is_empty());
        let tried = |name: &str, wrong: Option<&str>| probe::Tried {
            name: name.into(),
            wrong: wrong.map(str::to_owned),
        };
        let two = vec![tried("mma", None), tried("tma", Some("1 of 8 words differ"))];
        let told = probed(true, &Findings { instructions: Some(two), ..look() }, 80);
        assert!(told.contains("1 of 2 instructions") && told.contains("tma: 1 of 8"), "{told}");
        assert!(serde_json::to_string(&findings).unwrap().starts_with("{\"schema\""));
    }
}
