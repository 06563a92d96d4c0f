//! Kernel times by device and engine, built once each.

use std::cell::OnceCell;

use crate::config::DeviceSpec;
use crate::latency::KernelTimes;
use crate::latency::tables::engine_tables::EngineTables;
use crate::plan::points::Setup;
use crate::{Error, Result};

/// Most pairs of device and engine in one run.
const SLOTS: usize = 256;

/// Builds [`KernelTimes`] when they are first asked for.
pub(crate) struct TimesCache<'a> {
    tables: Option<&'a EngineTables>,
    slots: Vec<OnceCell<((String, String), KernelTimes)>>,
}

impl<'a> TimesCache<'a> {
    pub(crate) fn new(tables: Option<&'a EngineTables>) -> Self {
        Self { tables, slots: (0..SLOTS).map(|_| OnceCell::new()).collect() }
    }

    /// Times on the setup's device with kernels of `engine` preferred.
    pub(crate) fn get(&self, setup: &Setup, engine: &str) -> Result<&KernelTimes> {
        self.of(&setup.device, engine)
    }

    /// Times on a device with kernels of `engine` preferred.
    pub(crate) fn of(&self, device: &DeviceSpec, engine: &str) -> Result<&KernelTimes> {
        let key = (device.name.clone(), engine.to_owned());
        for slot in &self.slots {
            match slot.get() {
                Some((known, times)) if *known == key => return Ok(times),
                Some(_) => {}
                None => {
                    let times = KernelTimes::new(self.tables, device, engine)?;
                    return Ok(&slot.get_or_init(|| (key, times)).1);
                }
            }
        }
        Err(Error::usage("FILE", format!("more than {SLOTS} pairs of device and engine")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_built_once() {
        let cache = TimesCache::new(None);
        let h100 = DeviceSpec::load("h100").unwrap();
        let h200 = DeviceSpec::load("h200").unwrap();
        let first = std::ptr::from_ref(cache.of(&h100, "vllm").unwrap());
        assert!(!std::ptr::eq(first, cache.of(&h200, "vllm").unwrap()));
        assert!(!std::ptr::eq(first, cache.of(&h100, "sglang").unwrap()));
        assert!(std::ptr::eq(first, cache.of(&h100, "vllm").unwrap()));
    }
}
