"""The processor that is measured on, and who else uses it."""

import os
import pathlib
import platform
import subprocess


def system_ticks():
    """Ticks in all states, ticks at work, and ticks taken by other guests of the machine."""
    with open("/proc/stat") as file:
        user, nice, system, idle, wait, interrupts, soft, steal = map(int, file.readline().split()[1:9])
    busy = user + nice + system + interrupts + soft
    return busy + idle + wait + steal, busy, steal


class Load:
    """What others took of the processors while the contenders ran."""

    def __init__(self, contenders):
        self.contenders = list(contenders)
        self.start, self.used = system_ticks(), self.ticks()

    def ticks(self):
        return sum(contender.ticks() for contender in self.contenders)

    def shares(self):
        """Shares of all processor time: other programs, other guests."""
        total, busy, steal = (now - start for now, start in zip(system_ticks(), self.start))
        others = max(0, busy - (self.ticks() - self.used))
        return {"others_rel": others / max(1, total), "steal_rel": steal / max(1, total)}


def available_memory():
    """Bytes that programs can have without swapping."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def last_level_cache():
    """Bytes of the largest cache of the first processor; None where the system does not tell."""
    sizes = []
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes, default=None)


def first_line(*command):
    """What a command says first, or an empty text."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent).stdout.splitlines()[0]
    except (OSError, IndexError):
        return ""


def text_of(path, otherwise):
    path = pathlib.Path(path)
    return path.read_text().strip() if path.exists() else otherwise


def machine(cache):
    """What everything runs on; `cache` has the bytes of the last level."""
    cpuinfo = text_of("/proc/cpuinfo", "").splitlines()
    names = dict(line.split(":", 1) for line in cpuinfo if ":" in line)
    names = {key.strip(): value.strip() for key, value in names.items()}
    flags = names.get("flags", names.get("Features", "")).split()
    known = "avx2 avx512f avx512_bf16 avx512_fp16 avx512_vnni amx_bf16 amx_int8 bf16 sve".split()
    pages = text_of("/sys/kernel/mm/transparent_hugepage/enabled", "[unknown]")
    return {
        "processor": names.get("model name", platform.processor() or platform.machine()),
        "instructions": [flag for flag in known if flag in flags],
        "processors": os.cpu_count(),
        "last_level_cache_bytes": cache,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "huge_pages": pages[pages.find("[") + 1 : pages.find("]")],
        "governor": text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "not shown"),
        "compiler": first_line("cc", "--version"),
        "rustc": first_line("rustc", "--version"),
        "python": platform.python_version(),
    }


def program():
    """The commit that ours was built from."""
    commit = first_line("git", "rev-parse", "--short=12", "HEAD") or "no commit"
    return commit + (" with changes" if first_line("git", "status", "--porcelain") else "")
