//! Device memory as numbers: addresses, and regions whose length is known.

use crate::{Error, Result};

/// Where something lies in device memory; 0 is null. The host never follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// No address: the parameter is not used.
    pub const NULL: Self = Self(0);

    /// Whether there is no address.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// A run of bytes in device memory. Kernels are given addresses out of regions alone, so that every
/// launch can be checked against the length of what it reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// First byte.
    pub address: DeviceAddress,
    /// Length in bytes.
    pub bytes: u64,
}

impl Region {
    /// `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] when they reach past the end.
    pub fn part(self, offset: u64, bytes: u64) -> Result<Self> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => {
                Ok(Self { address: DeviceAddress(self.address.0 + offset), bytes })
            }
            _ => Err(Error::usage(
                "device memory",
                format!("bytes {offset} to {offset} + {bytes} of a region of {}", self.bytes),
            )),
        }
    }

    /// The address, once the region is known to be long enough and aligned.
    ///
    /// # Errors
    /// [`Error::Usage`] naming `what` when it is shorter than `bytes` (`None`: a product that
    /// overflowed) or its address is no multiple of `align`.
    pub fn checked(self, what: &str, bytes: Option<u64>, align: u64) -> Result<DeviceAddress> {
        let Some(bytes) = bytes else {
            return Err(Error::usage(what, "its size exceeds 64 bits"));
        };
        if self.bytes < bytes {
            let has = self.bytes;
            return Err(Error::usage(what, format!("needs {bytes} bytes, has {has}")));
        }
        if !self.address.0.is_multiple_of(align) {
            let address = self.address.0;
            return Err(Error::usage(
                what,
                format!("its address {address:#x} is no multiple of {align} bytes"),
            ));
        }
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: Region = Region { address: DeviceAddress(4096), bytes: 100 };

    #[test]
    fn parts_stay_inside_their_region() {
        assert_eq!(REGION.part(4, 96).unwrap().address, DeviceAddress(4100));
        assert_eq!(REGION.part(100, 0).unwrap().bytes, 0);
        for (offset, bytes) in [(5, 96), (101, 0), (u64::MAX, 2)] {
            assert_eq!(REGION.part(offset, bytes).unwrap_err().exit_code(), 2);
        }
    }

    #[test]
    fn short_misaligned_and_overflowing_regions_are_refused_by_name() {
        assert_eq!(REGION.checked("x", Some(100), 16).unwrap(), DeviceAddress(4096));
        let message = |bytes, align| REGION.checked("x", bytes, align).unwrap_err().to_string();
        assert_eq!(message(Some(101), 16), "x: needs 101 bytes, has 100");
        assert_eq!(message(None, 16), "x: its size exceeds 64 bits");
        let odd = REGION.part(8, 16).unwrap().checked("x", Some(16), 16).unwrap_err();
        assert_eq!(odd.to_string(), "x: its address 0x1008 is no multiple of 16 bytes");
    }
}
