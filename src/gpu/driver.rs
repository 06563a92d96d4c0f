//! Finds the CUDA driver and lists its devices, without ever needing either.
//!
//! The driver library is opened by hand, because the CUDA crates panic when it is absent. Only the
//! functions below are called, all of them read-only: no context is created, no memory taken, no clock
//! touched.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt;
use std::sync::OnceLock;

use libloading::Library;
use serde::{Deserialize, Serialize};

/// Where the driver library may lie: the loader's own search, then containers and WSL.
const LIBRARIES: [&str; 4] = [
    "libcuda.so.1",
    "/usr/local/nvidia/lib64/libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "nvcuda.dll",
];

/// Oldest CUDA version (1000 major + 10 minor) whose drivers run the kernels of this program: their images
/// are made by an assembler of 12.x, which drivers of that major version and later ones load, and launches
/// with attributes and tensor maps came with 12.0 (driver 525).
const OLDEST_DRIVER: i32 = 12_000;

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGpu {
    /// No driver library was found.
    NoDriver,
    /// The library found is the toolkit's link-time stub.
    StubLibrary,
    /// The driver runs but sees no device.
    NoDevice,
    /// The driver is older than the kernels need.
    DriverTooOld {
        /// CUDA version it supports.
        supports: String,
    },
    /// The library lacks a function that every driver has.
    NotADriver {
        /// The missing function.
        function: &'static str,
    },
    /// The driver names more devices than a machine can hold.
    Implausible {
        /// How many.
        devices: i32,
    },
    /// A driver call failed.
    CallFailed {
        /// The function.
        function: &'static str,
        /// Its error number.
        code: i32,
    },
}

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => write!(f, "no CUDA driver (libcuda.so.1) was found"),
            Self::Implausible { devices } => write!(
                f,
                "the library found as libcuda.so.1 names {devices} devices, which cannot be"
            ),
            Self::StubLibrary => write!(
                f,
                "the libcuda found is the toolkit's stub; take its `stubs` folder off the library path"
            ),
            Self::NoDevice => write!(f, "the CUDA driver sees no device"),
            Self::DriverTooOld { supports } => write!(
                f,
                "the driver supports CUDA {supports}; at least {} is needed",
                version(OLDEST_DRIVER)
            ),
            Self::NotADriver { function } => write!(f, "the libcuda found has no `{function}`"),
            Self::CallFailed { function, code } => {
                write!(f, "`{function}` failed with CUDA error {code}")
            }
        }
    }
}

/// What the driver says about one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuFacts {
    /// Number that `--device gpu:N` takes.
    pub ordinal: u32,
    /// Product name.
    pub name: String,
    /// Compute capability, `major.minor`.
    pub sm: String,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Total memory.
    pub memory_bytes: u64,
    /// Second-level cache.
    pub l2_bytes: u64,
    /// CUDA version that the driver supports.
    pub driver_cuda: String,
}

/// The devices of this machine, or why none can be used.
///
/// # Errors
/// [`NoGpu`]; on success the list is not empty.
pub fn probe() -> Result<Vec<GpuFacts>, NoGpu> {
    devices(&Api::load()?)
}

/// Files of NVIDIA's libraries that this process has loaded, whoever named their folder: `LD_LIBRARY_PATH` can
/// put another one in front of the driver's.
pub fn loaded_libraries() -> Vec<String> {
    libraries_in(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

/// The same out of the kernel's list of mappings: address, rights, offset, device, inode, file.
fn libraries_in(maps: &str) -> Vec<String> {
    const NAMES: [&str; 5] =
        ["libcuda.so", "libnvidia-ml", "libnvrtc", "libcublas", "libnvidia-ptxjit"];
    let file = |line: &str| line.splitn(6, ' ').nth(5).map(|file| file.trim().to_owned());
    let is_theirs = |file: &String| {
        let name = file.rsplit('/').next().unwrap_or_default();
        NAMES.iter().any(|start| name.starts_with(start))
    };
    let mut files: Vec<String> = maps.lines().filter_map(file).filter(is_theirs).collect();
    files.sort();
    files.dedup();
    files
}

type Status = c_int;

/// Most devices of one machine that are believed.
const MOST_DEVICES: c_int = 1024;

/// The driver's functions that are called. Signatures as in `cuda.h` of CUDA 13.0.
struct Api {
    init: unsafe extern "C" fn(c_uint) -> Status,
    driver_version: unsafe extern "C" fn(*mut c_int) -> Status,
    count: unsafe extern "C" fn(*mut c_int) -> Status,
    get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    memory: unsafe extern "C" fn(*mut usize, c_int) -> Status,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    elapsed: unsafe extern "C" fn(*mut f32, *mut c_void, *mut c_void) -> Status,
}

/// Milliseconds between two events of the driver. The newer function that the CUDA crate's bindings call
/// is missing before CUDA 12.8.
///
/// # Errors
/// [`NoGpu::CallFailed`] with the driver's error.
///
/// # Safety
/// Both are events of the current context that were recorded with timing and have not been destroyed.
pub(super) unsafe fn elapsed_ms(before: *mut c_void, after: *mut c_void) -> Result<f32, NoGpu> {
    let api = Api::load()?;
    let mut milliseconds = 0.0;
    // SAFETY: writes one float through a valid pointer; the events are what the caller promises.
    let status = unsafe { (api.elapsed)(&raw mut milliseconds, before, after) };
    succeeded("cuEventElapsedTime", status)?;
    Ok(milliseconds)
}

impl Api {
    fn load() -> Result<Self, NoGpu> {
        // Never closed: unloading a driver that has been initialised is not supported.
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        let library = LIBRARY.get_or_init(open).as_ref().ok_or(NoGpu::NoDriver)?;
        Ok(Self {
            init: function(library, "cuInit")?,
            driver_version: function(library, "cuDriverGetVersion")?,
            count: function(library, "cuDeviceGetCount")?,
            get: function(library, "cuDeviceGet")?,
            name: function(library, "cuDeviceGetName")?,
            memory: function(library, "cuDeviceTotalMem_v2")?,
            attribute: function(library, "cuDeviceGetAttribute")?,
            elapsed: function(library, "cuEventElapsedTime")?,
        })
    }
}

fn open() -> Option<Library> {
    LIBRARIES.into_iter().find_map(|name| {
        // SAFETY: opening runs the library's initialisers. The names are those of the NVIDIA driver,
        // whose initialisers have no precondition; a library planted under that name could do
        // anything, but then so could one planted for any other library this program links.
        unsafe { Library::new(name) }.ok()
    })
}

/// Looks up one function. `F` is the function-pointer type of the field that it is stored in.
fn function<F: Copy>(library: &Library, name: &'static str) -> Result<F, NoGpu> {
    // SAFETY: `F` is the signature that `cuda.h` gives for `name`, and `Api::load` keeps the library
    // open for the rest of the process, so that the copied pointer stays valid.
    unsafe { library.get::<F>(name.as_bytes()) }
        .map(|symbol| *symbol)
        .map_err(|_| NoGpu::NotADriver { function: name })
}

fn devices(api: &Api) -> Result<Vec<GpuFacts>, NoGpu> {
    const NO_DEVICE: Status = 100;
    const STUB: Status = 34;
    // SAFETY: `cuInit` takes a flags word that must be 0.
    match unsafe { (api.init)(0) } {
        0 => {}
        STUB => return Err(NoGpu::StubLibrary),
        NO_DEVICE => return Err(NoGpu::NoDevice),
        code => return Err(NoGpu::CallFailed { function: "cuInit", code }),
    }
    // SAFETY: writes one int through a valid pointer, as for each closure below.
    let supports = read("cuDriverGetVersion", |out| unsafe { (api.driver_version)(out) })?;
    if supports < OLDEST_DRIVER {
        return Err(NoGpu::DriverTooOld { supports: version(supports) });
    }
    // SAFETY: writes one int.
    let count = read("cuDeviceGetCount", |out| unsafe { (api.count)(out) })?;
    if count <= 0 {
        return Err(NoGpu::NoDevice);
    }
    if count > MOST_DEVICES {
        return Err(NoGpu::Implausible { devices: count });
    }
    (0..count).map(|ordinal| facts(api, ordinal, supports)).collect()
}

fn facts(api: &Api, ordinal: c_int, supports: i32) -> Result<GpuFacts, NoGpu> {
    const SM_COUNT: c_int = 16;
    const L2_BYTES: c_int = 38;
    const SM_MAJOR: c_int = 75;
    const SM_MINOR: c_int = 76;
    // SAFETY: writes one int; `ordinal` is below the count that the driver gave.
    let device = read("cuDeviceGet", |out| unsafe { (api.get)(out, ordinal) })?;
    let attribute = |which| {
        // SAFETY: writes one int; `device` comes from `cuDeviceGet`.
        read("cuDeviceGetAttribute", |out| unsafe { (api.attribute)(out, which, device) })
    };
    let mut memory = 0_usize;
    // SAFETY: writes one size_t through a valid pointer; `device` comes from `cuDeviceGet`.
    succeeded("cuDeviceTotalMem_v2", unsafe { (api.memory)(&raw mut memory, device) })?;
    Ok(GpuFacts {
        ordinal: ordinal.unsigned_abs(),
        name: name_of(api, device)?,
        sm: format!("{}.{}", attribute(SM_MAJOR)?, attribute(SM_MINOR)?),
        sm_count: attribute(SM_COUNT)?.unsigned_abs(),
        memory_bytes: memory as u64,
        l2_bytes: u64::from(attribute(L2_BYTES)?.unsigned_abs()),
        driver_cuda: version(supports),
    })
}

fn name_of(api: &Api, device: c_int) -> Result<String, NoGpu> {
    const LENGTH: usize = 256;
    let mut bytes = [0_u8; LENGTH];
    let start = bytes.as_mut_ptr().cast::<c_char>();
    // SAFETY: writes at most 255 bytes and a NUL into the buffer of 256; `device` is valid.
    succeeded("cuDeviceGetName", unsafe { (api.name)(start, 255, device) })?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(LENGTH);
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn read(function: &'static str, call: impl FnOnce(*mut c_int) -> Status) -> Result<i32, NoGpu> {
    let mut value = 0;
    succeeded(function, call(&raw mut value))?;
    Ok(value)
}

fn succeeded(function: &'static str, code: Status) -> Result<(), NoGpu> {
    if code == 0 { Ok(()) } else { Err(NoGpu::CallFailed { function, code }) }
}

fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver made of Rust functions: one device, CUDA 13.0.
    fn working() -> Api {
        unsafe extern "C" fn init(_: c_uint) -> Status {
            0
        }
        unsafe extern "C" fn driver_version(out: *mut c_int) -> Status {
            // SAFETY: the caller passes a valid pointer, here and below.
            unsafe { *out = 13_000 };
            0
        }
        unsafe extern "C" fn count(out: *mut c_int) -> Status {
            // SAFETY: as above.
            unsafe { *out = 1 };
            0
        }
        unsafe extern "C" fn get(out: *mut c_int, ordinal: c_int) -> Status {
            // SAFETY: as above.
            unsafe { *out = ordinal };
            0
        }
        unsafe extern "C" fn name(out: *mut c_char, length: c_int, _: c_int) -> Status {
            assert_eq!(length, 255);
            for (i, byte) in b"Made-up GPU".iter().enumerate() {
                // SAFETY: the caller's buffer holds 255 bytes.
                unsafe { *out.add(i) = c_char::from_ne_bytes([*byte]) };
            }
            0
        }
        unsafe extern "C" fn memory(out: *mut usize, _: c_int) -> Status {
            // SAFETY: as above.
            unsafe { *out = 80 << 30 };
            0
        }
        unsafe extern "C" fn attribute(out: *mut c_int, which: c_int, _: c_int) -> Status {
            // SAFETY: as above.
            unsafe { *out = which };
            0
        }
        unsafe extern "C" fn elapsed(_: *mut f32, _: *mut c_void, _: *mut c_void) -> Status {
            400
        }
        Api { init, driver_version, count, get, name, memory, attribute, elapsed }
    }

    #[test]
    fn a_device_is_described_by_its_driver() {
        let found = devices(&working()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "Made-up GPU");
        assert_eq!((found[0].sm.as_str(), found[0].sm_count), ("75.76", 16));
        assert_eq!((found[0].memory_bytes, found[0].driver_cuda.as_str()), (80 << 30, "13.0"));
    }

    #[test]
    fn each_way_to_have_no_device_has_its_reason() {
        unsafe extern "C" fn no_device(_: c_uint) -> Status {
            100
        }
        unsafe extern "C" fn stub(_: c_uint) -> Status {
            34
        }
        unsafe extern "C" fn broken(_: c_uint) -> Status {
            999
        }
        unsafe extern "C" fn old(out: *mut c_int) -> Status {
            // SAFETY: the caller passes a valid pointer.
            unsafe { *out = 11_080 };
            0
        }
        unsafe extern "C" fn none(_: *mut c_int) -> Status {
            0
        }
        let reason = |api: Api| devices(&api).unwrap_err();
        assert_eq!(reason(Api { init: no_device, ..working() }), NoGpu::NoDevice);
        assert_eq!(reason(Api { init: stub, ..working() }), NoGpu::StubLibrary);
        assert_eq!(
            reason(Api { init: broken, ..working() }),
            NoGpu::CallFailed { function: "cuInit", code: 999 }
        );
        assert_eq!(reason(Api { count: none, ..working() }), NoGpu::NoDevice);
        let too_old = reason(Api { driver_version: old, ..working() });
        assert_eq!(too_old.to_string(), "the driver supports CUDA 11.8; at least 12.0 is needed");
    }

    #[test]
    fn the_file_of_the_loaded_driver_is_known() {
        let maps = "7f10-7f20 r--p 00000000 fe:00 11 /usr/lib/x/libcuda.so.580.65\n\
                    7f20-7f30 r-xp 00010000 fe:00 11 /usr/lib/x/libcuda.so.580.65\n\
                    7f30-7f40 rw-p 00000000 00:00 0 \n\
                    7f40-7f50 r-xp 00000000 fe:00 12 /home/a b/libnvrtc.so.13\n\
                    7f50-7f60 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6\n";
        let expected = ["/home/a b/libnvrtc.so.13", "/usr/lib/x/libcuda.so.580.65"];
        assert_eq!(libraries_in(maps), expected);
        assert!(libraries_in("").is_empty());
    }

    #[test]
    fn the_probe_answers_on_any_machine() {
        match probe() {
            Ok(found) => assert!(!found.is_empty() && found[0].memory_bytes > 0),
            Err(reason) => assert!(!reason.to_string().contains('\n')),
        }
    }
}
