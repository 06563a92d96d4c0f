//! `group-worker`: the process of one rank that `measure --group` starts under itself. Not for the command
//! line: it reads its task on stdin and says on stdout what it does.

use std::io::{BufRead, Write};
use std::time::Duration;

use crate::cli::measure::GroupKind;
use crate::cli::measure::group::{Head, Says, Task};
use crate::cli::measure::in_pool;
use crate::cli::output::stdout_lines;
use crate::comm::launch::Place;
use crate::comm::nccl::Nccl;
use crate::comm::{Group, texts};
use crate::files::{read_capped, sha256_hex};
use crate::gpu::GpuFacts;
use crate::kernels::MoeBackend;
use crate::kernels::cpu::CpuBackend;
use crate::measure::group::{Listener, STEP_S, agree, measure};
use crate::measure::host;
use crate::record::group::{CollectiveRecord, ExchangeRecord};
use crate::record::{Device, GpuDevice};
use crate::{Error, Result};

/// How often it says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// Environment variable that plants a fault: `hang@RANK` or `routing@RANK`, for tests of the supervisor.
pub const FAULT_VARIABLE: &str = "MOE_FRONTIER_GROUP_FAULT";

/// Runs the command.
///
/// # Errors
/// [`Error::BadFile`] for a task that is none, [`Error::Io`] when the supervisor does not listen. What is wrong
/// with the group is told to the supervisor.
pub fn run() -> Result<()> {
    let task = task()?;
    std::thread::spawn(|| {
        while say(&Says::Alive).is_ok() {
            std::thread::sleep(SIGN_OF_LIFE);
        }
    });
    let threads = u16::try_from(task.threads).ok();
    match in_pool(threads, move || work(task)) {
        Ok(()) => say(&Says::Done),
        Err(error) => {
            say(&Says::failed(&error))?;
            // Not the usual end: that would wait for ranks that are gone.
            std::process::exit(error.exit_code().into());
        }
    }
}

/// The task; the end of what follows it is this process's.
fn task() -> Result<Task> {
    let wrong = |reason: String| Error::bad_file("task", reason);
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|e| wrong(e.to_string()))?;
    let task = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
    std::thread::spawn(|| {
        let mut rest = String::new();
        while std::io::stdin().lock().read_line(&mut rest).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    });
    Ok(task)
}

fn say(says: &Says) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("write", "stdout", e);
    let mut line = serde_json::to_vec(says).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    let mut out = stdout_lines();
    out.write_all(&line).and_then(|()| out.flush()).map_err(failed)
}

/// Passes on what is measured.
struct Speaker {
    is_first: bool,
}

impl Listener for Speaker {
    fn at(&mut self, what: &str, seconds: f64) -> Result<()> {
        say(&Says::At { what: what.to_owned(), seconds })
    }

    fn exchange(&mut self, record: ExchangeRecord) -> Result<()> {
        if self.is_first { say(&Says::Exchange(Box::new(record))) } else { Ok(()) }
    }

    fn collective(&mut self, record: CollectiveRecord) -> Result<()> {
        if self.is_first { say(&Says::Collective(record)) } else { Ok(()) }
    }
}

fn work(mut task: Task) -> Result<()> {
    let told = task.told.map(|(rank, size)| Place { rank, size, local_rank: task.local_rank });
    let backend = CpuBackend::new();
    if task.group == GroupKind::Nccl {
        let place = told.unwrap_or(Place::ALONE);
        let group = Nccl::begin(place, task.rendezvous.as_deref())?;
        let GpuFacts { name, sm, sm_count, memory_bytes, l2_bytes, driver_cuda, .. } =
            group.facts.clone();
        let (ecc, power_limit_mw) = (None, None);
        let device = Device::Gpu(GpuDevice {
            name,
            sm,
            sm_count,
            memory_bytes,
            l2_bytes,
            driver_cuda,
            ecc,
            power_limit_mw,
        });
        return measured(&group, device, &backend, &mut task);
    }
    let group = begin_mpi(told)?;
    let device = Device::Cpu(host::cpu(backend.threads()));
    measured(group.as_ref(), device, &backend, &mut task)
}

/// Compares the ranks and measures.
fn measured(
    group: &dyn Group,
    device: Device,
    backend: &CpuBackend,
    task: &mut Task,
) -> Result<()> {
    let hosts = texts(group, &host::name())?;
    let program = std::env::current_exe()
        .map_err(|e| Error::device("worker", format!("this program is not found: {e}")))?;
    let binary_sha256 = sha256_hex(read_capped(&program, u64::MAX)?);
    let kernel_sha256 = backend.kernel_sha256();
    let kind = match &device {
        Device::Cpu(cpu) => format!("{} {}", cpu.name, cpu.isa.join(" ")),
        Device::Gpu(gpu) => format!("{} CUDA {}", gpu.name, gpu.driver_cuda),
    };
    say(&Says::At { what: "comparing the ranks".into(), seconds: STEP_S })?;
    agree(
        group,
        &hosts,
        &[
            ("program file", binary_sha256.clone()),
            ("kernels", kernel_sha256.clone()),
            ("device", kind),
            ("library", group.library()),
            ("number of threads", backend.threads().to_string()),
            ("task", sha256_hex(format!("{:?}", task.request))),
        ],
    )?;
    let rank = group.rank();
    plant(task, rank)?;
    let library = group.library();
    let head = Head { rank, hosts: hosts.clone(), library, device, kernel_sha256, binary_sha256 };
    say(&Says::Head(Box::new(head)))?;
    let mut speaker = Speaker { is_first: rank == 0 };
    measure((group, &hosts), backend, &task.request, &mut speaker)?;
    group.barrier()
}

/// Does what [`FAULT_VARIABLE`] says.
fn plant(task: &mut Task, rank: usize) -> Result<()> {
    let Ok(text) = std::env::var(FAULT_VARIABLE) else { return Ok(()) };
    let wrong = || Error::usage(FAULT_VARIABLE, "write hang@RANK or routing@RANK");
    let (kind, of) = text.split_once('@').ok_or_else(wrong)?;
    if of.parse::<usize>().map_err(|_| wrong())? != rank {
        return Ok(());
    }
    match kind {
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "routing" => task.request.seed ^= 1,
        _ => return Err(wrong()),
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn begin_mpi(place: Option<Place>) -> Result<Box<dyn Group>> {
    Ok(Box::new(crate::comm::mpi::Mpi::begin(place)?))
}

#[cfg(not(feature = "mpi"))]
fn begin_mpi(_place: Option<Place>) -> Result<Box<dyn Group>> {
    Err(Error::device("MPI", "this program was built without it"))
}
