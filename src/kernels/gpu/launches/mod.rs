//! One typed function a launch: arguments are checked for shape, length and alignment, then written
//! into the kernel's parameter struct. Grids depend on what the host knows alone, never on counts that
//! a kernel computes.

mod align;
mod combine;
mod instruction;
mod probe;
mod product;
mod router;

pub use align::{AlignBuffers, align};
pub use combine::{CombineLaunch, combine};
pub use instruction::{INSTRUCTIONS, Instruction, probe_instruction};
pub use probe::{ReadPath, ReadStream, clock_stamp, copy_stream, flush, read_stream};
pub(crate) use product::split_bytes;
pub use product::{ProductLaunch, Split, product};
pub(crate) use router::GATE_TOKENS;
pub use router::{GateInput, RouterLaunch, router_topk};

use crate::gpu::{DeviceAddress, Region};
use crate::{Error, Result};

/// Rows of a matrix in device memory, at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// From the first element of the first row on.
    pub region: Region,
    /// Elements from one row to the next.
    pub stride: u64,
}

impl Matrix {
    /// Rows of `width` elements without gaps.
    pub const fn dense(region: Region, width: u64) -> Self {
        Self { region, stride: width }
    }

    /// The address, once `rows` rows of `width` elements of `size` bytes are known to lie inside.
    /// Rows must start at multiples of `align` bytes.
    ///
    /// # Errors
    /// [`Error::Usage`] naming `what`.
    pub(crate) fn checked(
        self,
        what: &str,
        (rows, width): (u64, u64),
        size: u64,
        align: u64,
    ) -> Result<DeviceAddress> {
        let stride_bytes = self.stride.checked_mul(size);
        if self.stride < width || stride_bytes.is_none_or(|bytes| !bytes.is_multiple_of(align)) {
            return Err(Error::usage(
                what,
                format!(
                    "rows {} elements apart: need at least {width} and a multiple of {} bytes",
                    self.stride, align
                ),
            ));
        }
        let elements = match rows.checked_sub(1) {
            None => Some(0),
            Some(before) => before.checked_mul(self.stride).and_then(|n| n.checked_add(width)),
        };
        self.region.checked(what, elements.and_then(|n| n.checked_mul(size)), align)
    }

    /// Rows from `first` on.
    ///
    /// # Errors
    /// [`Error::Usage`] when the first lies behind the end.
    pub(crate) fn rows_from(self, first: u64, size: u64) -> Result<Self> {
        let offset = first.checked_mul(self.stride).and_then(|n| n.checked_mul(size));
        let rest = offset.and_then(|offset| self.region.bytes.checked_sub(offset));
        match (offset, rest) {
            (Some(offset), Some(rest)) => {
                Ok(Self { region: self.region.part(offset, rest)?, ..self })
            }
            _ => Err(Error::usage("rows", "start behind the end of their region")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(bytes: u64, stride: u64) -> Matrix {
        Matrix { region: Region { address: DeviceAddress(256), bytes }, stride }
    }

    #[test]
    fn the_last_row_needs_no_gap_behind_it() {
        let fits = |bytes| matrix(bytes, 16).checked("x", (3, 8), 2, 16).is_ok();
        assert!(fits(2 * 32 + 16));
        assert!(!fits(2 * 32 + 15));
        assert!(matrix(0, 16).checked("x", (0, 8), 2, 16).is_ok());
    }

    #[test]
    fn overlapping_odd_and_overflowing_rows_are_refused() {
        for (stride, rows) in [(7, 3), (12, 3), (u64::MAX / 2, 3), (1 << 40, 1 << 30)] {
            let error = matrix(1 << 20, stride).checked("x", (rows, 8), 2, 16).unwrap_err();
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn later_rows_start_where_the_stride_says() {
        let later = matrix(100, 16).rows_from(2, 2).unwrap();
        assert_eq!((later.region.address.0, later.region.bytes), (256 + 64, 36));
        assert!(matrix(100, 16).rows_from(4, 2).is_err());
    }
}
