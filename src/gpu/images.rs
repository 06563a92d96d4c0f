//! The kernels' machine code: images built in for the common architectures, and the sources from
//! which the driver's compiler makes others.
//!
//! `kernels/cubins.py` writes both tables; nothing is compiled when this crate is built.

use std::collections::HashMap;
use std::sync::OnceLock;

/// One image that was compiled ahead of time.
#[derive(Clone, Copy, Debug)]
pub struct Prebuilt {
    /// Stem of the source file: `grouped_gemm`.
    pub stem: &'static str,
    /// What the image runs on: `sm_90a`, or `compute_80` for portable code (PTX).
    pub arch: &'static str,
    /// The image's bytes.
    pub image: &'static [u8],
}

/// One kernel source, for compilation at run time.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Stem of the source file.
    pub stem: &'static str,
    /// Whether it runs on every architecture since Ampere; otherwise on compute capability 9.0 alone.
    pub generic: bool,
    /// CUDA C++ that includes `ptx.cuh` and `common.cuh`.
    pub text: &'static str,
    /// Names of the kernels in it.
    pub kernels: &'static [&'static str],
}

impl Source {
    /// Whether it can be compiled for a device.
    pub const fn runs_on(&self, (major, minor): Capability) -> bool {
        self.generic || (major == 9 && minor == 0)
    }
}

/// Every image.
pub const PREBUILT: &[Prebuilt] = include!("../../kernels/prebuilt/index.rs");

/// Every source.
pub const SOURCES: &[Source] = include!("../../kernels/prebuilt/sources.rs");

/// Headers that sources include, as (name, text).
pub const HEADERS: &[(&str, &str)] = include!("../../kernels/prebuilt/headers.rs");

/// What the images say of their kernels: `kernel arch registers stack static_shared threads` a line.
const RESOURCES: &str = include_str!("../../kernels/prebuilt/resources.txt");

/// Portable code: the driver compiles it when nothing else fits.
pub const PORTABLE: &str = "compute_80";

/// A compute capability: major (8 Ampere and Ada, 9 Hopper, 10 and 12 Blackwell) and minor.
pub type Capability = (u32, u32);

/// What the compiler calls an architecture with all its own instructions: `sm_90a`, `sm_86`.
pub fn arch((major, minor): Capability) -> String {
    // Before 9.0 there are no instructions of one architecture alone.
    let own = if major >= 9 { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

/// The source that holds a kernel.
pub fn source_of(kernel: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.kernels.contains(&kernel))
}

/// The image of `stem` that runs on a device of this capability, best first: the architecture's own,
/// then the newest older one of the same generation. Images with the instructions of one
/// architecture alone (`a`) run on no other.
pub fn prebuilt(stem: &str, on: Capability) -> Option<&'static Prebuilt> {
    let runs = |image: &&Prebuilt| {
        let (arch, own) = architecture(image.arch)?;
        let fits = arch == on || (!own && arch.0 == on.0 && arch.1 <= on.1);
        fits.then_some((arch.1, own))
    };
    let candidates = PREBUILT.iter().filter(|image| image.stem == stem);
    candidates.filter_map(|image| Some((runs(&image)?, image))).max_by_key(|c| c.0).map(|c| c.1)
}

/// The portable code of `stem`, for any device from Ampere on.
pub fn portable(stem: &str) -> Option<&'static Prebuilt> {
    PREBUILT.iter().find(|image| image.stem == stem && image.arch == PORTABLE)
}

/// What the built image of a kernel says of it: a launch outside is refused by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Most threads of a block.
    pub threads: u32,
    /// Registers of a thread; none where the device has no image and the code is compiled for it.
    pub registers: Option<u32>,
    /// Shared memory of a block that is not asked for at the launch.
    pub static_shared_bytes: u32,
}

/// Shared memory of a block that the system keeps since compute capability 9.0. Images count it as
/// theirs; the devices' limits leave it out.
const RESERVED_SHARED_BYTES: u32 = 1024;

/// What is known of a kernel on a device of this capability; nothing of one that was not built.
pub fn resources(kernel: &str, on: Capability) -> Option<Resources> {
    static TABLE: OnceLock<HashMap<(&str, &str), Resources>> = OnceLock::new();
    let table: &HashMap<(&str, &str), Resources> =
        TABLE.get_or_init(|| RESOURCES.lines().skip(1).filter_map(resources_of).collect());
    let source = source_of(kernel)?;
    if let Some(image) = prebuilt(source.stem, on) {
        return table.get(&(kernel, image.arch)).copied();
    }
    // Bounds of threads stand in the source; registers are those that another architecture has.
    let mut any = PREBUILT.iter().filter(|image| image.stem == source.stem);
    let known = any.find_map(|image| table.get(&(kernel, image.arch)))?;
    Some(Resources { registers: None, static_shared_bytes: 0, ..*known })
}

/// One line of the table.
fn resources_of(line: &'static str) -> Option<((&'static str, &'static str), Resources)> {
    let mut words = line.split_whitespace();
    let (kernel, arch) = (words.next()?, words.next()?);
    let mut number = || words.next()?.parse::<u32>().ok();
    let (registers, _stack, shared, threads) = (number()?, number()?, number()?, number()?);
    let ((major, _), _) = architecture(arch)?;
    let reserved = if major >= 9 { RESERVED_SHARED_BYTES } else { 0 };
    let static_shared_bytes = shared.saturating_sub(reserved);
    Some(((kernel, arch), Resources { threads, registers: Some(registers), static_shared_bytes }))
}

/// Capability of an image's architecture, and whether it holds instructions of that one alone.
fn architecture(arch: &str) -> Option<(Capability, bool)> {
    let digits = arch.strip_prefix("sm_")?;
    let own = digits.ends_with('a');
    let number: u32 = digits.trim_end_matches('a').parse().ok()?;
    Some(((number / 10, number % 10), own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_since_ampere_gets_the_nearest_image() {
        for (on, arch) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_80"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90a"),
            ((10, 0), "sm_100"),
            ((10, 3), "sm_100"),
            ((12, 1), "sm_120"),
        ] {
            assert_eq!(prebuilt("align", on).map(|image| image.arch), Some(arch), "{on:?}");
        }
    }

    #[test]
    fn a_hopper_image_runs_on_hopper_alone() {
        let source = SOURCES.iter().find(|s| s.stem == "swap_ab_sm90").unwrap();
        assert!(prebuilt("swap_ab_sm90", (9, 0)).is_some() && source.runs_on((9, 0)));
        for other in [(8, 9), (10, 0), (12, 0)] {
            assert!(prebuilt("swap_ab_sm90", other).is_none(), "{other:?}");
            assert!(!source.runs_on(other), "{other:?}");
        }
    }

    #[test]
    fn what_has_no_image_has_portable_code() {
        assert!(prebuilt("align", (11, 0)).is_none());
        assert!(portable("align").is_some() && portable("swap_ab_sm90").is_none());
    }

    #[test]
    fn images_are_what_their_tables_say() {
        for image in PREBUILT {
            let elf = image.image.starts_with(b"\x7fELF");
            assert_eq!(elf, image.arch != PORTABLE, "{} {}", image.stem, image.arch);
            assert!(SOURCES.iter().any(|s| s.stem == image.stem), "{}", image.stem);
        }
    }

    #[test]
    fn every_kernel_of_every_image_has_its_bounds() {
        for source in SOURCES {
            for kernel in source.kernels {
                let on_hopper = resources(kernel, (9, 0)).unwrap();
                assert!((1..=1024).contains(&on_hopper.threads), "{kernel}");
                assert!((1..=255).contains(&on_hopper.registers.unwrap()), "{kernel}");
                if source.generic {
                    // No image there: the code is compiled for the device.
                    let compiled = resources(kernel, (11, 0)).unwrap();
                    assert_eq!((compiled.threads, compiled.registers), (on_hopper.threads, None));
                }
            }
        }
        assert_eq!(resources("probe_clock_stamp", (9, 0)).unwrap().threads, 1);
        assert_eq!(resources("no_such_kernel", (9, 0)), None);
    }

    #[test]
    fn a_kernel_stands_in_one_source() {
        let names: Vec<&str> = SOURCES.iter().flat_map(|s| s.kernels).copied().collect();
        let unique: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(unique.len(), names.len());
        assert_eq!(source_of("combine_bf16").map(|s| s.stem), Some("permute"));
        assert!(source_of("no_such_kernel").is_none());
    }

    #[test]
    fn architectures_have_their_own_instructions_since_hopper() {
        assert_eq!((arch((9, 0)), arch((8, 6))), ("sm_90a".to_owned(), "sm_86".to_owned()));
    }
}
