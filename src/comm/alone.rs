//! A group of one: what it sends it receives.

use super::{Group, check_parts, check_shares};
use crate::Result;

/// A process without others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn library(&self) -> String {
        "one process".into()
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _root: usize, _bytes: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        check_shares("all-gather", own.len(), all.len(), 1)?;
        all.copy_from_slice(own);
        Ok(())
    }

    fn all_to_all_v(
        &self,
        (send, send_bytes): (&[u8], &[usize]),
        (receive, receive_bytes): (&mut [u8], &[usize]),
    ) -> Result<()> {
        check_parts("all-to-all", send.len(), send_bytes, 1)?;
        check_parts("all-to-all", receive.len(), receive_bytes, 1)?;
        check_shares("all-to-all", send.len(), receive.len(), 1)?;
        receive.copy_from_slice(send);
        Ok(())
    }

    fn all_reduce(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        check_shares("reduce-scatter", own.len(), all.len(), 1)?;
        own.copy_from_slice(all);
        Ok(())
    }

    fn max(&self, _values: &mut [u64]) -> Result<()> {
        Ok(())
    }
}
