//! The CUDA driver as a [`Launcher`]: one device, one stream, memory that is accounted for, kernels
//! that are loaded when first launched, graphs and events.
//!
//! Not here: which kernels are launched, and with what.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::result::memcpy_dtoh_sync;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DevicePtr,
    DriverError, result, sys,
};
use cudarc::nvrtc::Ptx;

use super::driver::{GpuFacts, elapsed_ms, probe};
use super::gate::Gate;
use super::images::{self, Capability};
use super::launch::{DeviceFacts, Launch, Launcher, Recording};
use super::memory::{DeviceAddress, Region};
use super::nvrtc;
use super::params::{ParamBytes, ProbeParams};
use super::tensor_map::{Element, Swizzle, TensorMap};
use crate::{Error, Result};

/// Shared memory of a block above which a kernel must opt in.
const SHARED_WITHOUT_OPT_IN: u32 = 48 << 10;
/// Share of a multiprocessor's first-level memory that kernels with more than that want as shared memory,
/// in per cent: as many of their blocks as fit.
const SHARED_CARVEOUT: i32 = 100;
/// Longest time that the device waits for the host to queue what is timed; longer queues are timed with
/// their gaps.
const GATE_NS: u64 = 20_000_000;

/// Where a kernel's machine code came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An image built in, for this architecture.
    Prebuilt(&'static str),
    /// Compiled from its source on this machine.
    Compiled,
    /// Portable code, compiled by the driver.
    Portable,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prebuilt(arch) => write!(f, "built in for {arch}"),
            Self::Compiled => write!(f, "compiled here by NVRTC"),
            Self::Portable => write!(f, "portable code, compiled by the driver"),
        }
    }
}

/// A CUDA device with one stream.
pub struct CudaDevice {
    gpu: GpuFacts,
    facts: DeviceFacts,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    memory: BTreeMap<u64, CudaSlice<u8>>,
    modules: HashMap<&'static str, (Arc<CudaModule>, Origin)>,
    /// Kernels with the dynamic shared memory that they were allowed.
    functions: HashMap<&'static str, (CudaFunction, u32)>,
    /// Kernels launched since the last time that all was known to be well: an asynchronous error
    /// does not say whose it is.
    in_flight: Vec<&'static str>,
    /// Recordings by number; forgotten ones leave a gap.
    graphs: Vec<Option<Graph>>,
    /// Holds the stream while what is timed is queued; made when first needed.
    gate: Option<Gate>,
}

/// A recorded sequence of launches that is replayed with one call.
struct Graph {
    graph: CudaGraph,
    /// Names of its kernels, each once.
    kernels: Vec<&'static str>,
}

// SAFETY: the driver's graph objects may be used from any thread, one at a time; this one is reached
// through `&mut CudaDevice` alone, and every call binds the context to its thread first.
unsafe impl Send for Graph {}

impl CudaDevice {
    /// Opens the device with this number.
    ///
    /// # Errors
    /// [`Error::Device`]: no driver, no such device, or the driver refuses.
    pub fn open(ordinal: u32) -> Result<Self> {
        let named = format!("gpu:{ordinal}");
        // Asked first because the CUDA crate panics without a driver.
        let found = probe().map_err(|reason| Error::device(&named, reason.to_string()))?;
        let count = found.len();
        let gpu = found
            .into_iter()
            .nth(ordinal as usize)
            .ok_or_else(|| Error::device(&named, format!("there are {count}, numbered from 0")))?;
        Self::with(gpu).map_err(|e| Error::device(named, failure(e)))
    }

    /// The device of somebody else's stream, on which everything here then runs: in order with what
    /// they launch. Their context keeps its settings; recordings may fail under them.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver refuses.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let ordinal = stream.context().ordinal();
        let named = format!("gpu:{ordinal}");
        let found = probe().map_err(|reason| Error::device(&named, reason.to_string()))?;
        let gpu = found
            .into_iter()
            .find(|gpu| gpu.ordinal as usize == ordinal)
            .ok_or_else(|| Error::device(&named, "the driver does not list it"))?;
        Self::of(gpu, stream).map_err(|e| Error::device(named, failure(e)))
    }

    fn with(gpu: GpuFacts) -> Result<Self, DriverError> {
        let context = CudaContext::new(gpu.ordinal as usize)?;
        // SAFETY: one stream is used and this type orders all its work; events between streams would
        // be recorded outside graph captures and make them fail.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        Self::of(gpu, stream)
    }

    fn of(gpu: GpuFacts, stream: Arc<CudaStream>) -> Result<Self, DriverError> {
        use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED;
        let context = Arc::clone(stream.context());
        let (major, minor) = context.compute_capability()?;
        let facts = DeviceFacts {
            compute_capability: (major.unsigned_abs(), minor.unsigned_abs()),
            sm_count: gpu.sm_count,
            shared_bytes: context.attribute(SHARED)?.unsigned_abs(),
            l2_bytes: gpu.l2_bytes,
        };
        Ok(Self {
            gpu,
            facts,
            context,
            stream,
            memory: BTreeMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            in_flight: Vec::new(),
            graphs: Vec::new(),
            gate: None,
        })
    }

    /// What the driver says about the device.
    pub const fn gpu(&self) -> &GpuFacts {
        &self.gpu
    }

    /// The stream that everything runs on, for libraries that launch by themselves.
    pub const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes that can be allocated, and bytes in all.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver does not tell.
    pub fn free_and_total_bytes(&self) -> Result<(u64, u64)> {
        let (free, total) = self.context.mem_get_info().map_err(|e| self.failed("memory", e))?;
        Ok((free as u64, total as u64))
    }

    /// The device's identity as the management library writes it.
    ///
    /// # Errors
    /// [`Error::Device`] when the driver does not tell.
    pub fn uuid(&self) -> Result<String> {
        let uuid = self.context.uuid().map_err(|e| self.failed("identity", e))?;
        let number = u128::from_be_bytes(uuid.bytes.map(c_char_bits));
        let hex = format!("{number:032x}");
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        Ok(format!("GPU-{a}-{b}-{c}-{d}-{e}"))
    }

    /// Loads a kernel and says where its code comes from.
    ///
    /// # Errors
    /// [`Error::Device`] when there is no code for this device.
    pub fn load(&mut self, kernel: &'static str) -> Result<Origin> {
        self.function(kernel, 0)?;
        let stem = images::source_of(kernel).map_or("", |source| source.stem);
        self.modules
            .get(stem)
            .map(|(_, origin)| origin.clone())
            .ok_or_else(|| self.error(format!("`{kernel}` was not loaded")))
    }

    /// Nanoseconds that `work` takes on the device, between two events on its stream. The device is held
    /// until all of it is queued, so that it starts without the gaps of queuing.
    ///
    /// # Errors
    /// Whatever `work` reports; [`Error::Device`] when the driver refuses.
    pub fn elapsed_ns(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<f64> {
        use sys::CUevent_flags::CU_EVENT_DEFAULT as WITH_TIMING;
        let record = |device: &Self| {
            let event = device.stream.record_event(Some(WITH_TIMING));
            event.map_err(|e| device.failed("event", e))
        };
        self.close_gate()?;
        let queued = record(self).and_then(|before| {
            work(self)?;
            Ok((before, record(self)?))
        });
        // In any case: what is queued would wait for its limit.
        if let Some(gate) = &self.gate {
            gate.open();
        }
        let (before, after) = queued?;
        self.synchronize()?;
        // SAFETY: both events were recorded with timing on the stream of this context, and live until here.
        let milliseconds = unsafe { elapsed_ms(before.cu_event().cast(), after.cu_event().cast()) };
        let milliseconds = milliseconds.map_err(|e| self.error(e.to_string()))?;
        Ok(f64::from(milliseconds) * 1e6)
    }

    /// Queues a kernel that waits until the gate is opened.
    fn close_gate(&mut self) -> Result<()> {
        self.bind("gate")?;
        if self.gate.is_none() {
            self.gate = Some(Gate::new().map_err(|e| self.failed("gate", e))?);
        }
        let Some(gate) = &self.gate else { return Ok(()) };
        gate.close();
        let params = ProbeParams {
            from: DeviceAddress::NULL,
            to: DeviceAddress::NULL,
            flag: gate.seen_at(),
            bytes: 0,
            limit_ns: GATE_NS,
            variant: 0,
            seed: 0,
        };
        self.launch(&Launch {
            kernel: "probe_gate",
            grid: [1, 1],
            threads: 1,
            shared_bytes: 0,
            maps: Vec::new(),
            params: ParamBytes::of(&params),
            overlaps: false,
        })
    }

    /// Makes this device's context that of the calling thread: callers may come from any.
    fn bind(&self, what: &str) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.failed(what, e))
    }

    fn replay(&mut self, recording: Recording) -> Result<()> {
        let graph = self.graphs.get(recording.0).and_then(Option::as_ref);
        let Some(Graph { graph, kernels }) = graph else {
            return Err(Error::usage("recording", "was not made by this device, or forgotten"));
        };
        self.bind("graph")?;
        self.in_flight.extend(kernels);
        graph.launch().map_err(|e| self.failed("graph", e))
    }

    fn function(&mut self, kernel: &'static str, shared_bytes: u32) -> Result<CudaFunction> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVEOUT;
        if !self.functions.contains_key(kernel) {
            let function = self.module_of(kernel)?.load_function(kernel);
            let function = function.map_err(|e| self.failed(kernel, e))?;
            self.functions.insert(kernel, (function, SHARED_WITHOUT_OPT_IN));
        }
        let Some((function, allowed)) = self.functions.get_mut(kernel) else {
            return Err(self.error(format!("`{kernel}` was not loaded")));
        };
        let function = function.clone();
        if shared_bytes > *allowed {
            *allowed = shared_bytes;
            // Below the device's limit: `Launch::check` compared the two.
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            // A wish: a driver that does not grant it runs fewer blocks at a time.
            let _ = function.set_attribute(CARVEOUT, SHARED_CARVEOUT);
            function.set_attribute(SHARED, bytes).map_err(|e| self.failed(kernel, e))?;
        }
        Ok(function)
    }

    /// Whether the code of a loaded kernel waits for the launch before it where it must. Portable code is
    /// that of an architecture without such a wait.
    fn waits(&self, kernel: &str) -> bool {
        let stem = images::source_of(kernel).map_or("", |source| source.stem);
        self.modules.get(stem).is_some_and(|(_, origin)| *origin != Origin::Portable)
    }

    fn module_of(&mut self, kernel: &str) -> Result<Arc<CudaModule>> {
        let source = images::source_of(kernel)
            .ok_or_else(|| self.error(format!("there is no kernel `{kernel}`")))?;
        if let Some((module, _)) = self.modules.get(source.stem) {
            return Ok(Arc::clone(module));
        }
        let context = &self.context;
        let load = |code: Code| context.load_module(code.into()).map_err(failure);
        let (module, origin) = first_that_loads(source, self.facts.compute_capability, load)
            .map_err(|reason| self.error(reason))?;
        self.modules.insert(source.stem, (Arc::clone(&module), origin));
        Ok(module)
    }

    fn failed(&self, what: &str, error: DriverError) -> Error {
        self.error(format!("{what}: {}", failure(error)))
    }

    fn error(&self, reason: String) -> Error {
        Error::device(&self.gpu.name, reason)
    }

    /// An error that may belong to any launch since the last good synchronisation.
    fn asynchronous(&self, error: DriverError) -> Error {
        let kernels = each_once(self.in_flight.clone());
        let since = if kernels.is_empty() { "nothing".to_owned() } else { kernels.join(", ") };
        self.error(format!("{} (launched since all was well: {since})", failure(error)))
    }

    /// The allocation that a region is part of.
    fn holder(&self, region: Region) -> Result<()> {
        let DeviceAddress(address) = region.address;
        let inside = self.memory.range(..=address).next_back().is_some_and(|(start, slice)| {
            let end = start + slice.len() as u64;
            address.checked_add(region.bytes).is_some_and(|last| last <= end)
        });
        if inside {
            return Ok(());
        }
        Err(Error::usage("device memory", "a region that was not allocated on this device"))
    }
}

/// Names in order, each once.
fn each_once(mut names: Vec<&'static str>) -> Vec<&'static str> {
    names.sort_unstable();
    names.dedup();
    names
}

/// The bits of a C character, whose sign differs between platforms.
const fn c_char_bits(c: std::ffi::c_char) -> u8 {
    c.to_ne_bytes()[0]
}

/// Code for a device.
enum Code {
    /// Machine code.
    Image(Vec<u8>),
    /// Portable text.
    Text(String),
}

impl From<Code> for Ptx {
    fn from(code: Code) -> Self {
        match code {
            Code::Image(bytes) => Self::from_binary(bytes),
            Code::Text(text) => Self::from_src(text),
        }
    }
}

/// The code of a source that `load` takes on a device of this capability, or why there is none: its
/// image, else what the run-time compiler makes of it, else portable code. One that the driver refuses,
/// as an older driver does an image, is passed over for the next.
fn first_that_loads<M>(
    source: &images::Source,
    on: Capability,
    mut load: impl FnMut(Code) -> Result<M, String>,
) -> Result<(M, Origin), String> {
    let (major, minor) = on;
    let needs =
        |what: &str| Err(format!("{}.cu {what}, this device has {major}.{minor}", source.stem));
    if major < 8 {
        return needs("needs compute capability 8.0 or higher");
    }
    if !source.runs_on(on) {
        return needs("runs on compute capability 9.0 alone");
    }
    let mut reasons = Vec::new();
    let mut attempt = |code: Result<(Code, Origin), String>| {
        let loaded = code.and_then(|(code, origin)| match load(code) {
            Ok(loaded) => Ok((loaded, origin)),
            Err(reason) => Err(format!("code {origin}: {reason}")),
        });
        loaded.map_err(|reason| reasons.push(reason)).ok()
    };
    if let Some(image) = images::prebuilt(source.stem, on) {
        let origin = Origin::Prebuilt(image.arch);
        if let Some(loaded) = attempt(Ok((Code::Image(image.image.to_vec()), origin))) {
            return Ok(loaded);
        }
    }
    let compiled = nvrtc::compile(source, on);
    if let Some(loaded) = attempt(compiled.map(|image| (Code::Image(image), Origin::Compiled))) {
        return Ok(loaded);
    }
    if let Some(ptx) = images::portable(source.stem) {
        let text = String::from_utf8_lossy(ptx.image).into_owned();
        if let Some(loaded) = attempt(Ok((Code::Text(text), Origin::Portable))) {
            return Ok(loaded);
        }
    }
    Err(format!("no code for {}.cu: {}", source.stem, reasons.join("; ")))
}

/// A driver error in one line.
fn failure(error: DriverError) -> String {
    let name = error.error_name().ok().map(|n| n.to_string_lossy().into_owned());
    let text = error.error_string().ok().map(|t| t.to_string_lossy().into_owned());
    match (name, text) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        _ => format!("{error:?}"),
    }
}

impl Launcher for CudaDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        if bytes == 0 {
            return Err(Error::usage("device memory", "an allocation of 0 bytes"));
        }
        let length = usize::try_from(bytes)
            .map_err(|_| Error::usage("device memory", format!("{bytes} bytes")))?;
        self.bind("allocation")?;
        // SAFETY: the content is unspecified by contract, and `u8` has no invalid value.
        let slice = unsafe { self.stream.alloc::<u8>(length) }.map_err(|e| {
            let free = self.context.mem_get_info().map_or(0, |m| m.0);
            self.error(format!("{bytes} bytes: {}; {free} are free", failure(e)))
        })?;
        let (address, _) = slice.device_ptr(&self.stream);
        let region = Region { address: DeviceAddress(address), bytes };
        self.memory.insert(address, slice);
        Ok(region)
    }

    fn free(&mut self, region: Region) -> Result<()> {
        let DeviceAddress(address) = region.address;
        if self.memory.get(&address).is_none_or(|slice| slice.len() as u64 != region.bytes) {
            return Err(Error::usage("device memory", "freed a region that was not allocated"));
        }
        self.bind("free")?;
        self.memory.remove(&address);
        Ok(())
    }

    fn upload(&mut self, to: Region, bytes: &[u8]) -> Result<()> {
        self.holder(to)?;
        if bytes.len() as u64 > to.bytes {
            return Err(Error::usage("upload", format!("{} bytes into {}", bytes.len(), to.bytes)));
        }
        self.bind("upload")?;
        // SAFETY: the destination lies inside an allocation of this device and is long enough; the
        // source is read before the synchronisation below returns.
        let copied =
            unsafe { result::memcpy_htod_async(to.address.0, bytes, self.stream.cu_stream()) };
        copied.map_err(|e| self.failed("upload", e))?;
        self.synchronize()
    }

    fn download(&mut self, from: Region, bytes: &mut [u8]) -> Result<()> {
        self.holder(from)?;
        if bytes.len() as u64 > from.bytes {
            let has = from.bytes;
            return Err(Error::usage("download", format!("{} bytes from {has}", bytes.len())));
        }
        self.synchronize()?;
        // SAFETY: the source lies inside an allocation of this device and is long enough; everything
        // that writes to it has ended.
        unsafe { memcpy_dtoh_sync(bytes, from.address.0) }.map_err(|e| self.failed("download", e))
    }

    fn fill(&mut self, region: Region, byte: u8) -> Result<()> {
        self.holder(region)?;
        self.bind("fill")?;
        let length = usize::try_from(region.bytes).unwrap_or(usize::MAX);
        // SAFETY: the region lies inside an allocation of this device.
        unsafe { result::memset_d8_async(region.address.0, byte, length, self.stream.cu_stream()) }
            .map_err(|e| self.failed("fill", e))
    }

    fn copy(&mut self, from: Region, to: Region) -> Result<()> {
        self.holder(from)?;
        self.holder(to)?;
        if from.bytes > to.bytes {
            return Err(Error::usage("copy", format!("{} bytes into {}", from.bytes, to.bytes)));
        }
        self.bind("copy")?;
        let length = usize::try_from(from.bytes).unwrap_or(usize::MAX);
        let stream = self.stream.cu_stream();
        // SAFETY: both regions lie inside allocations of this device, and the destination is long enough.
        unsafe { result::memcpy_dtod_async(to.address.0, from.address.0, length, stream) }
            .map_err(|e| self.failed("copy", e))
    }

    fn enqueue(&mut self, launch: &Launch) -> Result<()> {
        self.bind(launch.kernel)?;
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        let maps: Vec<sys::CUtensorMap> =
            launch.maps.iter().map(|map| self.encode(map)).collect::<Result<_>>()?;
        // The driver reads 8-byte addresses out of it: aligned as the widest field.
        let mut params: Vec<u64> = vec![0; launch.params.bytes.len().div_ceil(8)];
        for (word, bytes) in params.iter_mut().zip(launch.params.bytes.chunks(8)) {
            let mut whole = [0_u8; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let mut arguments: Vec<*mut c_void> =
            maps.iter().map(|map| std::ptr::from_ref(map).cast_mut().cast()).collect();
        if !params.is_empty() {
            arguments.push(params.as_mut_ptr().cast());
        }
        let mut overlap = overlapping();
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: 1,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            // Without a wait in its code a kernel must not start early.
            numAttrs: u32::from(launch.overlaps && self.waits(launch.kernel)),
        };
        self.in_flight.push(launch.kernel);
        // SAFETY: the function belongs to this context; grid, block, shared memory and parameter
        // bytes passed `Launch::check`, the parameter struct is the mirror of the kernel's own
        // (a test compares the two), the maps precede it as the kernel declares them, and the arrays
        // outlive the call, which copies them. Addresses in the parameters are those of allocations
        // that the caller checked for length and alignment.
        let status = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        status.result().map_err(|e| self.failed(launch.kernel, e))
    }

    fn record(
        &mut self,
        work: &mut dyn FnMut(&mut dyn Launcher) -> Result<()>,
    ) -> Result<Option<Recording>> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THIS_THREAD;
        // Kernels are loaded when first launched, which a recording does not allow.
        work(self)?;
        self.synchronize()?;
        self.bind("capture")?;
        self.stream.begin_capture(THIS_THREAD).map_err(|e| self.failed("capture", e))?;
        let done = work(self);
        // Ended in any case: a stream left in capture runs nothing any more.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        done?;
        let graph = graph
            .map_err(|e| self.failed("capture", e))?
            .ok_or_else(|| self.error("nothing was captured".into()))?;
        graph.upload().map_err(|e| self.failed("graph", e))?;
        // Captured launches have not run.
        let kernels = each_once(std::mem::take(&mut self.in_flight));
        self.graphs.push(Some(Graph { graph, kernels }));
        Ok(Some(Recording(self.graphs.len() - 1)))
    }

    fn time(&mut self, recording: Recording, before: Option<Recording>) -> Result<f64> {
        self.replay(before.unwrap_or(recording))?;
        self.elapsed_ns(|device| device.replay(recording))
    }

    fn forget(&mut self, recording: Recording) {
        // Without its context on this thread the driver could not take it back: it would leak.
        let _ = self.bind("graph");
        if let Some(graph) = self.graphs.get_mut(recording.0) {
            *graph = None;
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.asynchronous(e))?;
        self.context.check_err().map_err(|e| self.asynchronous(e))?;
        self.in_flight.clear();
        Ok(())
    }
}

impl CudaDevice {
    /// The driver's form of a tensor map.
    fn encode(&self, map: &TensorMap) -> Result<sys::CUtensorMap> {
        use sys::CUtensorMapDataType as Type;
        let element = match map.element {
            Element::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Element::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Element::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        let swizzle = match map.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let rank = u32::try_from(map.rank).unwrap_or(0);
        // The innermost stride is the element size and not stated.
        let strides = &map.strides[1..];
        let steps = [1_u32; super::tensor_map::MAX_RANK];
        let mut encoded = MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: all arrays hold at least `rank` entries (`rank - 1` strides) and outlive the call;
        // the map passed `TensorMap::validate` in `Launch::check`. The base is only recorded here.
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                encoded.as_mut_ptr(),
                element,
                rank,
                map.base.0 as *mut c_void,
                map.dims.as_ptr(),
                strides.as_ptr(),
                map.box_dims.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        status.result().map_err(|e| self.failed("tensor map", e))?;
        // SAFETY: the call succeeded and wrote the whole map.
        Ok(unsafe { encoded.assume_init() })
    }
}

/// The attribute that lets a kernel start before the one before it has ended.
fn overlapping() -> sys::CUlaunchAttribute {
    // SAFETY: a struct of integers and a union of plain data, for which all-zero is a value.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    attribute
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first device; says why there is none.
    fn device() -> Option<CudaDevice> {
        match CudaDevice::open(0) {
            Ok(device) => Some(device),
            Err(reason) => {
                println!("SKIPPED: {reason}");
                assert_eq!(reason.exit_code(), 6);
                assert!(!reason.to_string().contains('\n'), "{reason}");
                None
            }
        }
    }

    #[test]
    fn a_device_without_code_for_a_kernel_is_told_which_one_it_needs() {
        let code = |stem: &str, on| {
            let source = images::SOURCES.iter().find(|s| s.stem == stem).unwrap();
            first_that_loads(source, on, |_| Ok(())).map(|((), origin)| origin.to_string())
        };
        assert_eq!(code("align", (9, 0)).unwrap(), "built in for sm_90a");
        for (stem, on, word) in [
            ("align", (7, 5), "needs compute capability 8.0"),
            ("swap_ab_sm90", (8, 0), "9.0 alone"),
            ("swap_ab_sm90", (12, 0), "9.0 alone"),
        ] {
            let reason = code(stem, on).unwrap_err();
            assert!(reason.contains(word) && !reason.contains('\n'), "{reason}");
        }
    }

    #[test]
    fn an_image_that_the_driver_refuses_is_passed_over_for_the_next_code() {
        let find = |stem: &str| images::SOURCES.iter().find(|s| s.stem == stem).unwrap();
        let mut refused = 0;
        let refuse_images = |code| match code {
            Code::Image(_) => {
                refused += 1;
                Err("CUDA_ERROR_INVALID_IMAGE: no".to_owned())
            }
            Code::Text(text) => {
                assert!(text.contains(".target sm_80"));
                Ok(())
            }
        };
        let ((), origin) = first_that_loads(find("align"), (9, 0), refuse_images).unwrap();
        // What NVRTC made, where there is one, was refused as well.
        assert!(origin == Origin::Portable && (1..=2).contains(&refused), "{origin} {refused}");
        let all = |_| Err::<(), _>("CUDA_ERROR_INVALID_IMAGE: no".to_owned());
        let reason = first_that_loads(find("swap_ab_sm90"), (9, 0), all).unwrap_err();
        assert!(reason.contains("built in for sm_90a: CUDA_ERROR_INVALID_IMAGE"), "{reason}");
        assert!(!reason.contains('\n'), "{reason}");
    }

    #[test]
    fn bytes_come_back_as_they_were_sent() {
        let Some(mut device) = device() else { return };
        let region = device.store(&[1, 2, 3, 4]).unwrap();
        device.fill(region.part(1, 2).unwrap(), 9).unwrap();
        let mut back = [0; 4];
        device.download(region, &mut back).unwrap();
        assert_eq!(back, [1, 9, 9, 4]);
        device.free(region).unwrap();
        assert_eq!(device.upload(region, &[0]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn every_kernel_that_runs_on_the_device_loads() {
        let Some(mut device) = device() else { return };
        let on = device.facts.compute_capability;
        for kernel in images::SOURCES.iter().filter(|s| s.runs_on(on)).flat_map(|s| s.kernels) {
            device.load(kernel).unwrap();
        }
    }
}
