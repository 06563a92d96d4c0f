//! Clocks and throttling of a GPU while kernels are timed on it, from the driver's management
//! library. Read only: nothing is ever set, since the card may belong to somebody else.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// 20 readings a second: a few in each block, each some 10 us of the host's time.
const INTERVAL: Duration = Duration::from_millis(50);
/// Readings between two looks at who computes on the device.
const PROCESSES_EVERY: u32 = 4;

/// What slows a device down for a reason that has nothing to do with the kernel.
const SLOWDOWN: ThrottleReasons = ThrottleReasons::HW_SLOWDOWN
    .union(ThrottleReasons::SW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN);

/// What was seen since the last time it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The device was slowed down: heat, power brake. Times of this moment are void.
    pub throttled: bool,
    /// The clock was held by the power limit, as it is in nearly every busy moment of large cards.
    pub power_limited: bool,
    /// Another process computed on the device.
    pub shared: bool,
    /// Clock of the multiprocessors at the last reading, in MHz.
    pub sm_clock_mhz: Option<u32>,
}

/// State of a device that does not change during a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Processes that compute on the device, this one included.
    pub compute_processes: Option<usize>,
    /// Whether errors of the memory are corrected.
    pub ecc: Option<bool>,
    /// Power limit that is enforced, in milliwatts.
    pub power_limit_mw: Option<u32>,
}

/// Readings shared with the thread that takes them.
#[derive(Debug, Default)]
struct Readings {
    reasons: AtomicU64,
    clock_mhz: AtomicU32,
    shared: AtomicBool,
    stop: AtomicBool,
}

impl Readings {
    fn take(&self) -> Condition {
        let seen = ThrottleReasons::from_bits_truncate(self.reasons.swap(0, Ordering::Relaxed));
        let clock = self.clock_mhz.load(Ordering::Relaxed);
        Condition {
            throttled: seen.intersects(SLOWDOWN),
            power_limited: seen.contains(ThrottleReasons::SW_POWER_CAP),
            shared: self.shared.swap(false, Ordering::Relaxed),
            sm_clock_mhz: (clock > 0).then_some(clock),
        }
    }
}

/// A thread that reads a device's state until dropped.
#[derive(Debug)]
pub struct Monitor {
    readings: Arc<Readings>,
    standing: Standing,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Watches the device with this UUID (`GPU-` and hexadecimal groups).
    ///
    /// # Errors
    /// One line: no management library, or no such device.
    pub fn start(uuid: &str) -> Result<Self, String> {
        let nvml =
            Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|e| one_line(&e))?;
        let standing = standing(&nvml, uuid).map_err(|e| one_line(&e))?;
        let readings = Arc::new(Readings::default());
        let (shared, uuid) = (Arc::clone(&readings), uuid.to_owned());
        let thread = std::thread::Builder::new()
            .name("gpu monitor".into())
            .spawn(move || watch(&nvml, &uuid, &shared))
            .map_err(|e| e.to_string())?;
        Ok(Self { readings, standing, thread: Some(thread) })
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Condition {
        self.readings.take()
    }

    /// What held when the watch began.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.readings.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A watch that panicked has nothing to say any more.
            let _ = thread.join();
        }
    }
}

fn standing(nvml: &Nvml, uuid: &str) -> Result<Standing, NvmlError> {
    let device = nvml.device_by_uuid(uuid)?;
    Ok(Standing {
        compute_processes: device.running_compute_processes().ok().map(|p| p.len()),
        ecc: device.is_ecc_enabled().ok().map(|e| e.currently_enabled),
        power_limit_mw: device.enforced_power_limit().ok(),
    })
}

fn watch(nvml: &Nvml, uuid: &str, readings: &Readings) {
    let Ok(device) = nvml.device_by_uuid(uuid) else { return };
    let mut reading = 0_u32;
    while !readings.stop.load(Ordering::Relaxed) {
        if let Ok(reasons) = device.current_throttle_reasons() {
            readings.reasons.fetch_or(reasons.bits(), Ordering::Relaxed);
        }
        if let Ok(clock) = device.clock_info(Clock::SM) {
            readings.clock_mhz.store(clock, Ordering::Relaxed);
        }
        // The list of processes takes longer to get than the other readings.
        if reading.is_multiple_of(PROCESSES_EVERY)
            && let Ok(processes) = device.running_compute_processes()
        {
            // This process has a context of its own on the device.
            readings.shared.fetch_or(processes.len() > 1, Ordering::Relaxed);
        }
        reading = reading.wrapping_add(1);
        std::thread::sleep(INTERVAL);
    }
}

fn one_line(error: &NvmlError) -> String {
    format!("{LIBRARY}: {error}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_voids_a_time_and_the_power_limit_does_not() {
        let readings = Readings::default();
        assert_eq!(readings.take(), Condition::default());
        readings.reasons.fetch_or(ThrottleReasons::SW_POWER_CAP.bits(), Ordering::Relaxed);
        readings.clock_mhz.store(1755, Ordering::Relaxed);
        let limited = readings.take();
        assert!(limited.power_limited && !limited.throttled);
        assert_eq!(limited.sm_clock_mhz, Some(1755));
        readings.reasons.fetch_or(ThrottleReasons::HW_SLOWDOWN.bits(), Ordering::Relaxed);
        assert!(readings.take().throttled);
        assert!(!readings.take().throttled, "a reading counts once");
    }

    #[test]
    fn another_process_on_the_device_is_seen_once() {
        let readings = Readings::default();
        readings.shared.store(true, Ordering::Relaxed);
        let seen = readings.take();
        assert!(seen.shared && !seen.throttled);
        assert!(!readings.take().shared, "a reading counts once");
    }

    #[test]
    fn without_the_library_or_the_device_there_is_one_line() {
        let error = Monitor::start("GPU-00000000-0000-0000-0000-000000000000").unwrap_err();
        assert!(error.contains("libnvidia-ml") && !error.contains('\n'), "{error}");
    }
}
