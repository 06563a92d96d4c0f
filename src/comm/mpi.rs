//! A group that MPI carries, with buffers in the host's memory.
//!
//! MPI is linked when the program is built with the feature `mpi`; which one is up to the machine (`mpicc`).

use std::ops::Deref;

use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Count, Threading};

use super::launch::Place;
use super::{Group, check_parts, check_shares};
use crate::{Error, Result};

/// The processes that one `mpirun` or `srun` has started.
pub struct Mpi {
    world: SimpleCommunicator,
    library: String,
    /// Ends MPI when it goes, after everything that uses it.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("library", &self.library).finish_non_exhaustive()
    }
}

impl Mpi {
    /// Begins MPI, once a process.
    ///
    /// # Errors
    /// [`Error::Device`] when it has begun before; [`Error::Usage`] when it has another opinion of which rank
    /// this is than the launcher: then the launcher is of another MPI than the one that was linked.
    pub fn begin(told: Option<Place>) -> Result<Self> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::device("MPI", "has begun before"))?;
        let world = universe.world();
        let (rank, size) = (index(world.rank()), index(world.size()));
        let library = mpi::environment::library_version().unwrap_or_default();
        let library = library.lines().next().unwrap_or("").trim_end_matches('\0').trim().to_owned();
        if let Some(place) = told
            && (place.rank, place.size) != (rank, size)
        {
            return Err(Error::usage(
                "launcher",
                format!(
                    "says rank {} of {}, MPI says rank {rank} of {size}: it is not the launcher of {library}, \
                     which this program was built with",
                    place.rank, place.size
                ),
            ));
        }
        Ok(Self { world, library, _universe: universe })
    }
}

/// Ranks and sizes of MPI are not negative.
fn index(value: mpi::Rank) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// Counts of MPI have 31 bits.
fn count(bytes: usize) -> Result<Count> {
    Count::try_from(bytes).map_err(|_| {
        Error::usage("bytes", format!("{bytes} are more than MPI counts in one message"))
    })
}

/// Lengths of parts with the place of each.
fn placed(parts: &[usize]) -> Result<(Vec<Count>, Vec<Count>)> {
    let mut at = 0;
    let mut places = Vec::with_capacity(parts.len());
    let mut lengths = Vec::with_capacity(parts.len());
    for &part in parts {
        places.push(count(at)?);
        lengths.push(count(part)?);
        at += part;
    }
    Ok((lengths, places))
}

impl Group for Mpi {
    fn rank(&self) -> usize {
        index(self.world.rank())
    }

    fn size(&self) -> usize {
        index(self.world.size())
    }

    fn library(&self) -> String {
        self.library.clone()
    }

    fn barrier(&self) -> Result<()> {
        self.world.barrier();
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        count(bytes.len())?;
        self.world.process_at_rank(count(root)?).broadcast_into(bytes);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_shares("all-gather", own.len(), all.len(), self.size())?;
        count(own.len())?;
        self.world.all_gather_into(own, all);
        Ok(())
    }

    fn all_to_all_v(
        &self,
        (send, send_bytes): (&[u8], &[usize]),
        (receive, receive_bytes): (&mut [u8], &[usize]),
    ) -> Result<()> {
        check_parts("all-to-all", send.len(), send_bytes, self.size())?;
        check_parts("all-to-all", receive.len(), receive_bytes, self.size())?;
        let (lengths, places) = placed(send_bytes)?;
        let from = Partition::new(send, lengths, places);
        let (lengths, places) = placed(receive_bytes)?;
        let mut into = PartitionMut::new(receive, lengths.deref(), places.deref());
        self.world.all_to_all_varcount_into(&from, &mut into);
        Ok(())
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        count(values.len())?;
        let own = values.to_vec();
        self.world.all_reduce_into(own.as_slice(), values, mpi::collective::SystemOperation::sum());
        Ok(())
    }

    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        check_shares("reduce-scatter", own.len(), all.len(), self.size())?;
        count(all.len())?;
        let sum = mpi::collective::SystemOperation::sum();
        self.world.reduce_scatter_block_into(all, own, sum);
        Ok(())
    }

    fn max(&self, values: &mut [u64]) -> Result<()> {
        count(values.len())?;
        let own = values.to_vec();
        self.world.all_reduce_into(own.as_slice(), values, mpi::collective::SystemOperation::max());
        Ok(())
    }
}
