//! Compiles a kernel source for the device at hand, when no image was built for it.
//!
//! NVRTC turns the source straight into machine code, not into PTX: the driver compiles nothing then,
//! so that NVRTC may be newer than the driver. Headers are handed over from memory.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys;

use super::images::{Capability, HEADERS, Source, arch};
use super::libraries::CudaLibrary;

/// Options beside the architecture; those of `kernels/cubins.py` that concern the language.
const OPTIONS: [&str; 2] = ["--std=c++17", "-default-device"];

/// Machine code of `source` for `on`.
///
/// # Errors
/// One line: where NVRTC was looked for, or the first error of the compiler.
pub(super) fn compile(source: &Source, on: Capability) -> Result<Vec<u8>, String> {
    CudaLibrary::Nvrtc.open()?;
    Program::new(source)?.compile(&arch(on))
}

/// A program that is destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Self, String> {
        let text = c_string(source.text)?;
        let name = c_string(&format!("{}.cu", source.stem))?;
        let names: Vec<CString> =
            HEADERS.iter().map(|h| c_string(h.0)).collect::<Result<_, _>>()?;
        let texts: Vec<CString> =
            HEADERS.iter().map(|h| c_string(h.1)).collect::<Result<_, _>>()?;
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut program = ptr::null_mut();
        // SAFETY: all strings are NUL-terminated and live until the call returns, which copies them;
        // both tables have as many entries as the count says; `program` is a valid place.
        let status = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                i32::try_from(names.len()).map_err(|e| e.to_string())?,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        succeeded("nvrtcCreateProgram", status)?;
        Ok(Self(program))
    }

    fn compile(self, arch: &str) -> Result<Vec<u8>, String> {
        let target = format!("--gpu-architecture={arch}");
        let options = std::iter::once(target.as_str()).chain(OPTIONS);
        let options: Vec<CString> = options.map(c_string).collect::<Result<_, _>>()?;
        let table = pointers(&options);
        let count = i32::try_from(table.len()).map_err(|e| e.to_string())?;
        // SAFETY: the program is valid until dropped; `table` holds `count` NUL-terminated strings.
        let status = unsafe { sys::nvrtcCompileProgram(self.0, count, table.as_ptr()) };
        if status != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!("NVRTC refuses the source for {arch}: {}", self.first_error()));
        }
        let mut length = 0;
        // SAFETY: writes one size through a valid pointer.
        let status = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut length) };
        succeeded("nvrtcGetCUBINSize", status)?;
        let mut image = vec![0_u8; length];
        // SAFETY: `image` has the length that the program gave.
        let status = unsafe { sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()) };
        succeeded("nvrtcGetCUBIN", status)?;
        Ok(image)
    }

    /// The first line of the log that names an error.
    fn first_error(&self) -> String {
        let mut length = 0;
        // SAFETY: writes one size through a valid pointer.
        let status = unsafe { sys::nvrtcGetProgramLogSize(self.0, &raw mut length) };
        let mut log = vec![0_u8; length.max(1)];
        if status == sys::nvrtcResult::NVRTC_SUCCESS && length > 0 {
            // SAFETY: `log` has the length that the program gave, the final NUL included. When the
            // call fails the buffer stays empty text.
            let _ = unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        }
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        let error = log.lines().find(|line| line.contains("error"));
        error.or_else(|| log.lines().next()).unwrap_or("no reason given").to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once. A failure leaks it, no more.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn succeeded(function: &str, status: sys::nvrtcResult) -> Result<(), String> {
    if status == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(format!("`{function}` failed: {status:?}"))
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a source or option holds a NUL".to_owned())
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::images::SOURCES;
    use super::*;

    /// Whether NVRTC is at hand; says so when not.
    fn nvrtc() -> bool {
        let opened = CudaLibrary::Nvrtc.open();
        if let Err(reason) = &opened {
            println!("SKIPPED: {reason}");
        }
        opened.is_ok()
    }

    #[test]
    fn every_source_compiles_for_hopper_at_run_time() {
        if !nvrtc() {
            return;
        }
        for source in SOURCES {
            let image = compile(source, (9, 0));
            let image = image.unwrap_or_else(|e| panic!("{}: {e}", source.stem));
            assert!(image.starts_with(b"\x7fELF"), "{}", source.stem);
        }
    }

    #[test]
    fn a_wrong_source_is_one_line_that_names_the_error() {
        if !nvrtc() {
            return;
        }
        let wrong =
            Source { stem: "wrong", generic: true, text: "int f() { return x; }", kernels: &[] };
        let error = compile(&wrong, (8, 0)).unwrap_err();
        assert!(error.contains("wrong.cu") && error.contains("sm_80"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
