//! Groups of ranks that move bytes between each other: one process alone, MPI, NCCL.
//!
//! A program is started once a rank by what people start such programs with; [`launch`] finds out which
//! rank a process is. Everything above this module sees a [`Group`] and not what carries it.

pub mod alone;
pub mod launch;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
#[cfg(test)]
pub(crate) mod threads;

pub use alone::Alone;
pub use launch::Place;

use std::collections::BTreeSet;

use crate::{Error, Result};

/// Longest name of a host that is exchanged, in bytes.
const NAME: usize = 256;

/// Processes that work together. Every operation is called by all of them, in the same order, with sizes that
/// fit each other.
pub trait Group {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// What carries the bytes, with its version.
    fn library(&self) -> String;

    /// Nanoseconds of the last operation by the device's own clock, without what goes to the device before and
    /// comes from it after. `None` where the host's clock tells.
    fn last_ns(&self) -> Option<u64> {
        None
    }

    /// Waits until all have come here.
    ///
    /// # Errors
    /// [`Error::Device`] when the group is broken.
    fn barrier(&self) -> Result<()>;

    /// Fills `bytes` everywhere with those of the rank `root`.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()>;

    /// Puts the bytes of all ranks, as many of each, side by side.
    ///
    /// # Errors
    /// As [`Self::barrier`]; [`Error::Usage`] when `all` has not [`Self::size`] times the length of `own`.
    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// Sends each rank its part of `send`, in the order of ranks; what comes lies in `receive` in the order of
    /// ranks. `send_bytes` and `receive_bytes` are the lengths of the parts.
    ///
    /// # Errors
    /// As [`Self::barrier`]; [`Error::Usage`] for lengths that do not fit the buffers.
    fn all_to_all_v(&self, send: (&[u8], &[usize]), receive: (&mut [u8], &[usize])) -> Result<()>;

    /// Sums values over all ranks, everywhere.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// Sums values over all ranks; each keeps its share.
    ///
    /// # Errors
    /// As [`Self::barrier`]; [`Error::Usage`] when `all` has not [`Self::size`] times the length of `own`.
    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()>;

    /// The largest of each value over all ranks, everywhere.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn max(&self, values: &mut [u64]) -> Result<()>;
}

/// The same text of every rank, in their order; what is longer than 256 bytes is cut.
///
/// # Errors
/// As [`Group::barrier`].
pub fn texts(group: &dyn Group, own: &str) -> Result<Vec<String>> {
    let mut padded = [0; NAME];
    let length = own.len().min(NAME);
    padded[..length].copy_from_slice(&own.as_bytes()[..length]);
    let mut all = vec![0; NAME * group.size()];
    group.all_gather(&padded, &mut all)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    Ok(all.chunks_exact(NAME).map(text).collect())
}

/// How many different hosts there are.
pub fn nodes(hosts: &[String]) -> usize {
    hosts.iter().collect::<BTreeSet<_>>().len()
}

/// Checks that parts of these lengths fill a buffer, one a rank.
pub(crate) fn check_parts(what: &str, bytes: usize, parts: &[usize], ranks: usize) -> Result<()> {
    let sum = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(*part));
    if parts.len() == ranks && sum == Some(bytes) {
        return Ok(());
    }
    let reason = format!("{} parts of {sum:?} bytes for {ranks} ranks and {bytes}", parts.len());
    Err(Error::usage(what, reason))
}

/// Checks that a buffer holds as much of every rank.
pub(crate) fn check_shares(what: &str, own: usize, all: usize, ranks: usize) -> Result<()> {
    if own.checked_mul(ranks) == Some(all) {
        return Ok(());
    }
    Err(Error::usage(what, format!("{own} of each of {ranks} ranks are not {all}")))
}
