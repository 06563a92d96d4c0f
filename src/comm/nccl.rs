//! A group that NCCL carries, found at run time.
//!
//! Operations take the host's buffers, as every group's do, and move them to the device and back; what is timed
//! is the operation between ([`Group::last_ns`], by the device's own clock). NCCL gives two ranks on one device
//! no communicator.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, DriverError};
use cudarc::nccl::result::{NcclError, get_nccl_version, group_end, group_start};
use cudarc::nccl::{Comm, Id, NcclType, ReduceOp};

use super::launch::Place;
use super::{Group, check_parts, check_shares};
use crate::files::{read_capped, write_atomic};
use crate::gpu::libraries::CudaLibrary;
use crate::gpu::{GpuFacts, probe};
use crate::{Error, Result};

/// Variable by which NCCL itself lets ranks meet, `host:port`.
pub const ID_VARIABLE: &str = "NCCL_COMM_ID";
/// Bytes of an identifier.
const ID_BYTES: usize = 128;
/// How long ranks wait for the identifier.
const MEETING: Duration = Duration::from_secs(60);

/// The processes of a group, each with a GPU.
pub struct Nccl {
    comm: Comm,
    stream: Arc<CudaStream>,
    version: String,
    /// The device of this rank.
    pub facts: GpuFacts,
    last_ns: Cell<u64>,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").field("version", &self.version).finish_non_exhaustive()
    }
}

fn failed(error: impl std::fmt::Debug) -> Error {
    Error::device("NCCL", format!("{error:?}"))
}

/// Opens the library.
///
/// # Errors
/// [`Error::Device`] with where it was looked for; or when there is no GPU for it.
pub fn find() -> Result<Vec<GpuFacts>> {
    CudaLibrary::Nccl.open().map_err(|reason| Error::device("NCCL", reason))?;
    probe().map_err(|why| Error::device("NCCL", format!("was found, but {why}")))
}

impl Nccl {
    /// Begins a group, each rank on the GPU of its number on the host. Ranks meet by [`ID_VARIABLE`], or by the
    /// file `rendezvous`, which must not exist before.
    ///
    /// # Errors
    /// As [`find`]; [`Error::Usage`] when nothing says where to meet; [`Error::Device`] when NCCL refuses.
    pub fn begin(place: Place, rendezvous: Option<&Path>) -> Result<Self> {
        let gpus = find()?;
        let version = get_nccl_version().map_err(failed)?;
        let local = place.local_rank.unwrap_or(place.rank) % gpus.len();
        let facts = gpus[local].clone();
        let context = CudaContext::new(local).map_err(failed)?;
        let stream = context.new_stream().map_err(failed)?;
        let id = meet(place, rendezvous)?;
        let comm =
            Comm::from_rank(Arc::clone(&stream), place.rank, place.size, id).map_err(failed)?;
        Ok(Self { comm, stream, version: version_text(version), facts, last_ns: Cell::new(0) })
    }

    fn upload<T: DeviceRepr + NcclType>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        self.stream.clone_htod(values).map_err(failed)
    }

    fn download<T: DeviceRepr + NcclType>(
        &self,
        from: &CudaSlice<T>,
        into: &mut [T],
    ) -> Result<()> {
        self.stream.memcpy_dtoh(from, into).map_err(failed)?;
        self.stream.synchronize().map_err(failed)
    }

    /// Runs and times one operation.
    fn timed<R>(&self, work: impl FnOnce() -> Result<R, NcclError>) -> Result<()> {
        let event = || {
            self.stream
                .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e: DriverError| failed(e))
        };
        self.stream.synchronize().map_err(failed)?;
        let before = event()?;
        work().map_err(failed)?;
        let after = event()?;
        let ms = before.elapsed_ms(&after).map_err(failed)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive duration of less than a day"
        )]
        self.last_ns.set((f64::from(ms) * 1e6).round().max(1.0) as u64);
        Ok(())
    }
}

/// The identifier of the group.
fn meet(place: Place, rendezvous: Option<&Path>) -> Result<Id> {
    // NCCL makes the same identifier of the variable on every rank.
    if place.size == 1 || std::env::var_os(ID_VARIABLE).is_some() {
        return Id::new().map_err(failed);
    }
    let Some(file) = rendezvous else {
        let reason =
            format!("set {ID_VARIABLE}=HOST:PORT, a free port of rank 0's host, or name a file");
        return Err(Error::usage("--rendezvous", reason));
    };
    if place.rank == 0 {
        let id = Id::new().map_err(failed)?;
        let bytes: Vec<u8> = id.internal().iter().map(|c| c.to_ne_bytes()[0]).collect();
        write_atomic(file, &bytes, false)?;
        return Ok(id);
    }
    let bytes = arrived(file)?;
    let mut internal = [0; ID_BYTES];
    for (c, byte) in internal.iter_mut().zip(bytes) {
        *c = std::ffi::c_char::from_ne_bytes([byte]);
    }
    Ok(Id::uninit(internal))
}

/// Waits for rank 0's identifier.
fn arrived(file: &Path) -> Result<Vec<u8>> {
    let start = Instant::now();
    loop {
        match read_capped(file, 4096) {
            Ok(bytes) if bytes.len() == ID_BYTES => return Ok(bytes),
            Ok(_) => {
                return Err(Error::bad_file(file, "no identifier of a group: name a new file"));
            }
            Err(error) if start.elapsed() > MEETING => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// 23203 is 2.32.3.
fn version_text(number: i32) -> String {
    format!("NCCL {}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

impl Group for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.world_size()
    }

    fn library(&self) -> String {
        self.version.clone()
    }

    fn last_ns(&self) -> Option<u64> {
        Some(self.last_ns.get())
    }

    fn barrier(&self) -> Result<()> {
        let kept = self.last_ns.get();
        let mut one = self.upload(&[0.0_f32])?;
        self.timed(|| self.comm.all_reduce_in_place(&mut one, &ReduceOp::Sum))?;
        self.last_ns.set(kept);
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let root = i32::try_from(root).map_err(failed)?;
        let mut device = self.upload(bytes)?;
        self.timed(|| self.comm.broadcast_in_place(&mut device, root))?;
        self.download(&device, bytes)
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_shares("all-gather", own.len(), all.len(), self.size())?;
        let send = self.upload(own)?;
        let mut receive = self.stream.alloc_zeros(all.len()).map_err(failed)?;
        self.timed(|| self.comm.all_gather(&send, &mut receive))?;
        self.download(&receive, all)
    }

    fn all_to_all_v(
        &self,
        (send, send_bytes): (&[u8], &[usize]),
        (receive, receive_bytes): (&mut [u8], &[usize]),
    ) -> Result<()> {
        check_parts("all-to-all", send.len(), send_bytes, self.size())?;
        check_parts("all-to-all", receive.len(), receive_bytes, self.size())?;
        // Devices give no memory of no bytes.
        let mut padded = send.to_vec();
        padded.push(0);
        let from = self.upload(&padded)?;
        let mut into: CudaSlice<u8> = self.stream.alloc_zeros(receive.len() + 1).map_err(failed)?;
        self.timed(|| {
            group_start()?;
            let (mut sent, mut received) = (0, 0);
            for (peer, (out, back)) in (0_i32..).zip(send_bytes.iter().zip(receive_bytes)) {
                if *out > 0 {
                    self.comm.send(&from.slice(sent..sent + out), peer)?;
                }
                if *back > 0 {
                    self.comm.recv(&mut into.slice_mut(received..received + back), peer)?;
                }
                (sent, received) = (sent + out, received + back);
            }
            group_end()
        })?;
        let mut back = vec![0; receive.len() + 1];
        self.download(&into, &mut back)?;
        receive.copy_from_slice(&back[..receive.len()]);
        Ok(())
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let mut device = self.upload(values)?;
        self.timed(|| self.comm.all_reduce_in_place(&mut device, &ReduceOp::Sum))?;
        self.download(&device, values)
    }

    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        check_shares("reduce-scatter", own.len(), all.len(), self.size())?;
        let send = self.upload(all)?;
        let mut receive = self.stream.alloc_zeros(own.len()).map_err(failed)?;
        self.timed(|| self.comm.reduce_scatter(&send, &mut receive, &ReduceOp::Sum))?;
        self.download(&receive, own)
    }

    fn max(&self, values: &mut [u64]) -> Result<()> {
        let mut device = self.upload(values)?;
        self.timed(|| self.comm.all_reduce_in_place(&mut device, &ReduceOp::Max))?;
        self.download(&device, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_it_is_said_where_it_was_looked_for() {
        // Where it is installed, the driver may still be missing; with both there is nothing to say.
        match find() {
            Err(error) => {
                assert_eq!(error.exit_code(), 6);
                let text = error.to_string();
                assert!(text.contains("libnccl.so.2") || text.contains("was found, but"), "{text}");
            }
            Ok(gpus) => assert!(!gpus.is_empty()),
        }
    }

    #[test]
    fn versions_are_read_as_nccl_writes_them() {
        assert_eq!(version_text(23_203), "NCCL 2.32.3");
    }

    #[test]
    fn a_rank_waits_for_the_identifier_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        let write = file.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(120));
            write_atomic(&write, &[7; ID_BYTES], false).unwrap();
        });
        assert_eq!(arrived(&file).unwrap(), vec![7; ID_BYTES]);
        writer.join().unwrap();
        std::fs::write(&file, "else").unwrap();
        assert_eq!(arrived(&file).unwrap_err().exit_code(), 3);
    }
}
