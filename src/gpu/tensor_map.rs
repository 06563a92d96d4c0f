//! Tensor maps as plain records: what a bulk copy of boxes needs to know about a tensor.
//!
//! Limits are those of `cuTensorMapEncodeTiled` in the CUDA driver API. The device's opaque form is
//! made by whoever launches.

use crate::gpu::DeviceAddress;
use crate::{Error, Result};

/// Most dimensions that a map can have here.
pub const MAX_RANK: usize = 4;
/// Longest edge of a box, in elements.
const MAX_BOX: u32 = 256;

/// Element type of a mapped tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// bfloat16.
    Bf16,
    /// One byte (8-bit floats travel as bytes).
    U8,
    /// Single precision.
    F32,
}

impl Element {
    /// Size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Bf16 => 2,
            Self::U8 => 1,
            Self::F32 => 4,
        }
    }
}

/// How a box lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// Row after row.
    None,
    /// Address bits 4 to 6 are exchanged by bits 7 to 9: rows of 128 bytes without bank conflicts.
    Bytes128,
}

/// A tensor and the box that one copy moves. Dimensions are innermost first; what lies outside the
/// tensor is read as zero and never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// First element; a multiple of 16 bytes.
    pub base: DeviceAddress,
    /// Element type.
    pub element: Element,
    /// Dimensions in use.
    pub rank: usize,
    /// Elements of each dimension; 1 beyond `rank`.
    pub dims: [u64; MAX_RANK],
    /// Bytes from one index of a dimension to the next; that of the innermost is the element's size.
    pub strides: [u64; MAX_RANK],
    /// Elements of the box; 1 beyond `rank`.
    pub box_dims: [u32; MAX_RANK],
    /// Layout in shared memory.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// A map of a bf16 tensor with 128-byte swizzle. Each dimension is (elements, elements to its next
    /// index, edge of the box), innermost first.
    ///
    /// # Errors
    /// [`Error::Usage`] when a size is outside what the driver encodes.
    pub fn bf16(base: DeviceAddress, dims: &[(u64, u64, u32)]) -> Result<Self> {
        Self::swizzled(Element::Bf16, base, dims)
    }

    /// The same of any element type.
    ///
    /// # Errors
    /// As [`Self::bf16`].
    pub fn swizzled(
        element: Element,
        base: DeviceAddress,
        dims: &[(u64, u64, u32)],
    ) -> Result<Self> {
        let mut map = Self {
            base,
            element,
            rank: dims.len(),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            box_dims: [1; MAX_RANK],
            swizzle: Swizzle::Bytes128,
        };
        if !(2..=MAX_RANK).contains(&dims.len()) {
            return Err(invalid(format!("{} dimensions, need 2 to {MAX_RANK}", dims.len())));
        }
        for (i, &(size, stride, edge)) in dims.iter().enumerate() {
            map.dims[i] = size;
            map.strides[i] = stride
                .checked_mul(u64::from(map.element.bytes()))
                .ok_or_else(|| invalid(format!("a stride of {stride} elements")))?;
            map.box_dims[i] = edge;
        }
        map.validate()?;
        Ok(map)
    }

    /// Bytes of one box, which a copy of it always announces.
    pub fn box_bytes(&self) -> u64 {
        let elements: u64 = self.box_dims.iter().map(|&edge| u64::from(edge)).product();
        elements * u64::from(self.element.bytes())
    }

    /// Checks every limit of the driver.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the size.
    pub fn validate(&self) -> Result<()> {
        let size = u64::from(self.element.bytes());
        if !(2..=MAX_RANK).contains(&self.rank) {
            return Err(invalid(format!("{} dimensions, need 2 to {MAX_RANK}", self.rank)));
        }
        if self.base.is_null() || !self.base.0.is_multiple_of(16) {
            return Err(invalid(format!("its base {:#x} is no multiple of 16", self.base.0)));
        }
        if self.strides[0] != size {
            return Err(invalid("its innermost dimension is not contiguous"));
        }
        for i in 0..self.rank {
            if !(1..=1 << 32).contains(&self.dims[i]) {
                return Err(invalid(format!("dimension {i} has {} elements", self.dims[i])));
            }
            if !(1..=MAX_BOX).contains(&self.box_dims[i]) {
                return Err(invalid(format!("box edge {i} is {}", self.box_dims[i])));
            }
            if i > 0 && (!self.strides[i].is_multiple_of(16) || self.strides[i] >= 1 << 40) {
                return Err(invalid(format!(
                    "stride {i} is {} bytes, need a multiple of 16 below 2^40",
                    self.strides[i]
                )));
            }
        }
        let row = u64::from(self.box_dims[0]) * size;
        let limit = if self.swizzle == Swizzle::Bytes128 { 128 } else { 1024 };
        if !row.is_multiple_of(16) || row > limit {
            return Err(invalid(format!("a box row of {row} bytes")));
        }
        Ok(())
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::usage("tensor map", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: DeviceAddress = DeviceAddress(1 << 20);

    #[test]
    fn a_weight_stack_of_odd_sizes_is_mapped_without_repacking() {
        let (hidden, inter, experts) = (136, 72, 3);
        let map = TensorMap::bf16(
            BASE,
            &[
                (hidden, 1, 64),
                (inter, hidden, 128),
                (2, inter * hidden, 2),
                (experts, 2 * inter * hidden, 1),
            ],
        )
        .unwrap();
        assert_eq!(map.strides, [2, 272, 2 * 72 * 136, 4 * 72 * 136]);
        assert_eq!(map.box_bytes(), 32 * 1024);
    }

    #[test]
    fn what_the_driver_would_refuse_is_refused_before() {
        let refused = |base: u64, dims: &[(u64, u64, u32)]| {
            let error = TensorMap::bf16(DeviceAddress(base), dims).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let good = (64, 1, 64);
        let outer = (4, 64, 4);
        assert!(refused(8, &[good, outer]).contains("multiple of 16"));
        assert!(refused(0, &[good, outer]).contains("multiple of 16"));
        assert!(refused(16, &[good]).contains("dimensions"));
        assert!(refused(16, &[good; 5]).contains("dimensions"));
        assert!(refused(16, &[(64, 2, 64), outer]).contains("contiguous"));
        assert!(refused(16, &[(0, 1, 64), outer]).contains("0 elements"));
        assert!(refused(16, &[good, (4, 60, 4)]).contains("stride 1 is 120"));
        assert!(refused(16, &[good, (4, 64, 257)]).contains("box edge 1"));
        assert!(refused(16, &[(128, 1, 128), outer]).contains("256 bytes"));
        assert!(refused(16, &[good, (4, u64::MAX, 4)]).contains("stride"));
    }
}
