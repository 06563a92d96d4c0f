//! A gate on a device's stream: a kernel that waits for a word of host memory, so that what is queued
//! behind it starts without the gaps of queuing.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::{DriverError, sys};

use super::memory::DeviceAddress;

/// One word of pinned host memory that the device sees.
pub(super) struct Gate {
    word: NonNull<AtomicU32>,
    seen_at: DeviceAddress,
}

// SAFETY: the word is reached through this type alone, as an atomic; page-locked memory of the whole
// process may be freed from any thread of it.
unsafe impl Send for Gate {}

impl Gate {
    /// A gate for the context that is current on this thread.
    pub(super) fn new() -> Result<Self, DriverError> {
        // Seen by every context; its address on a device is asked for below.
        const FLAGS: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let (mut host, mut seen_at) = (std::ptr::null_mut(), 0);
        // SAFETY: writes one pointer through a valid one; a context is current.
        unsafe { sys::cuMemHostAlloc(&raw mut host, size_of::<u64>(), FLAGS) }.result()?;
        let Some(word) = NonNull::new(host.cast::<AtomicU32>()) else {
            return Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        };
        let gate = Self { word, seen_at: DeviceAddress::NULL };
        gate.set(0);
        // SAFETY: writes one address through a valid pointer; `host` was allocated for mapping.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut seen_at, host, 0) }.result()?;
        Ok(Self { seen_at: DeviceAddress(seen_at), ..gate })
    }

    /// Where the device reads the word.
    pub(super) const fn seen_at(&self) -> DeviceAddress {
        self.seen_at
    }

    /// Makes the next kernel that looks wait.
    pub(super) fn close(&self) {
        self.set(0);
    }

    /// Lets it go on.
    pub(super) fn open(&self) {
        self.set(1);
    }

    fn set(&self, value: u32) {
        // SAFETY: the word is page-aligned memory of 8 bytes that lives as long as the gate, and is
        // only ever accessed as this atomic on the host.
        unsafe { self.word.as_ref() }.store(value, Ordering::Release);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // What still waits goes on: its memory is about to be gone.
        self.open();
        // SAFETY: allocated by `cuMemHostAlloc` and freed once. A failure leaks one page.
        let _ = unsafe { sys::cuMemFreeHost(self.word.as_ptr().cast()) };
    }
}
