//! What the operating system says about this machine: the processor for the key, its load for the
//! decision whether a time can be believed. Only read, never set.

use std::fs;

use sysinfo::System;

use super::cgroup;
use crate::record::CpuDevice;

/// The processor that kernels run on with `threads` threads.
pub fn cpu(threads: usize) -> CpuDevice {
    let mut system = System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let brand = system.cpus().first().map_or("", |c| c.brand().trim());
    CpuDevice {
        name: if brand.is_empty() { std::env::consts::ARCH.into() } else { brand.into() },
        isa: isa(),
        threads,
        l2_bytes: cache_bytes(2),
        l3_bytes: cache_bytes(3),
        memory_bytes: memory().total_bytes,
    }
}

/// Operating system and kernel release.
pub fn os() -> String {
    let name = System::name().unwrap_or_else(|| std::env::consts::OS.into());
    format!("{name}, kernel {}", System::kernel_version().unwrap_or_else(|| "unknown".into()))
}

/// The host as its scheduler calls it (`SLURMD_NODENAME`, or `NODE_NAME`, by which manifests tell a pod where
/// it is), else as it calls itself.
pub fn name() -> String {
    let told = ["SLURMD_NODENAME", "NODE_NAME"]
        .into_iter()
        .find_map(|variable| std::env::var(variable).ok().filter(|name| !name.trim().is_empty()));
    told.or_else(System::host_name).unwrap_or_else(|| "unknown".into())
}

/// Memory that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Installed, or what the control groups allow if that is less.
    pub total_bytes: u64,
    /// Of it, what can be had now without swapping.
    pub available_bytes: u64,
}

/// Reads [`Memory`].
pub fn memory() -> Memory {
    let mut system = System::new();
    system.refresh_memory();
    let (mut total, mut available) = (system.total_memory(), system.available_memory());
    if let Some(group) = cgroup::memory() {
        total = total.min(group.limit);
        available = available.min(group.left).min(total);
    }
    Memory { total_bytes: total, available_bytes: available }
}

/// Size of one data or unified cache of a level, where the system tells it.
fn cache_bytes(level: u32) -> Option<u64> {
    (0..8).find_map(|index| {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).ok();
        let this_level = read("level")?.trim().parse::<u32>().ok()? == level;
        let holds_data = read("type")?.trim() != "Instruction";
        if this_level && holds_data { size(read("size")?.trim()) } else { None }
    })
}

/// A cache size as the kernel writes it: `32768K`, `32M`.
fn size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let factor = match &text[split..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Instruction sets that matter to the kernels, as found at run time.
fn isa() -> Vec<String> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
            ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
            ("avx512fp16", std::is_x86_feature_detected!("avx512fp16")),
        ];
        found.extend(sets.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let sets = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        found.extend(sets.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_same_on_every_reading() {
        let (a, b) = (cpu(2), cpu(2));
        assert_eq!((&a.name, &a.isa, a.l3_bytes), (&b.name, &b.isa, b.l3_bytes));
        assert!(!a.name.is_empty() && a.memory_bytes > 0);
        assert!(!os().contains('\n'));
    }

    #[test]
    fn available_memory_is_part_of_the_total() {
        let memory = memory();
        assert!(0 < memory.available_bytes && memory.available_bytes <= memory.total_bytes);
    }

    #[test]
    fn cache_sizes_have_the_kernel_s_suffixes() {
        assert_eq!(size("1024K"), Some(1 << 20));
        assert_eq!(size("32M"), Some(32 << 20));
        assert_eq!(size("64"), Some(64));
        assert_eq!((size("K"), size("3X"), size("")), (None, None, None));
    }
}
