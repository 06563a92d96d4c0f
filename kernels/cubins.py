#!/usr/bin/env python3
"""Compiles every kernel for every architecture, holds the results to their gates, and writes
kernels/prebuilt (or, with --check, compares with it byte for byte).

    python3 kernels/cubins.py            write kernels/prebuilt
    python3 kernels/cubins.py --check    compare; exit 1 on any difference

The compiler comes from the packages of kernels/toolkit.txt, in a virtual environment of its own
(.cuda-venv, or where MOE_FRONTIER_CUDA_VENV points); no CUDA toolkit and no GPU are needed. Gates:

- compiler warnings and register spills are errors;
- ptxas' notes on serialised wgmma (C7510, C7511) and ignored setmaxnreg (C7508) are errors. They are
  information only to ptxas, which would let them pass;
- kernels contain the instructions they are written for (HGMMA, UTMALDG, HMMA), and those that keep
  accumulators in registers do not touch local memory (LDL, STL);
- registers, stack, static shared memory and the most threads of a block of each kernel stand in
  prebuilt/resources.txt as the image itself states them, so that growth is a difference that someone
  reads. The library checks every launch against them.

Images are assembled by the ptxas of CUDA 12.9, from PTX of the newer front end whose version is
lowered to one that it reads: code that needed more would not pass it. Drivers run images of their own
major version and of older ones, so these load from CUDA 12.0 (driver 525) on, and on 13.x; images of
CUDA 13 load on 13.x alone. Architectures that came later need the driver that brought them (sm_100
and sm_120: CUDA 12.8, driver 570). Portable code is compiled by the driver, which must know its
version: CUDA 12.3 (driver 545).

Images hold no paths and no dates: two builds in different folders are equal byte for byte.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
PREBUILT = KERNELS / "prebuilt"
HEADERS = sorted(path.name for path in KERNELS.glob("*.cuh"))
FLAGS = ["-std=c++17", "-O3", "-Werror", "all-warnings"]
ASSEMBLER_FLAGS = ["-O3", "-v", "-warn-spills", "-Werror"]

# Every family since Ampere. The generic kernels use no feature of one architecture alone, so plain
# sm_100 and sm_120 also serve 10.3 and 12.1.
EVERY = ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]
HOPPER = ["sm_90a"]
# Catch-all for what the table has no image for: compiled by the driver at load.
PTX = "compute_80"
# What the front end writes, and what it is lowered to: for the assembler, and for the drivers that
# compile the portable code.
PTX_VERSION = "9.0"
ASSEMBLED_VERSION = "8.8"
PORTABLE_VERSION = "8.3"


@dataclasses.dataclass(frozen=True)
class Source:
    """One .cu file: where it runs, and the instructions that its machine code must (not) hold."""

    stem: str
    archs: list
    needs: tuple = ()
    forbids: tuple = ()


SOURCES = [
    Source("align", EVERY),
    Source("config_check", EVERY),
    Source("gemv", EVERY, forbids=("LDL", "STL")),
    Source("grouped_gemm", EVERY, needs=("HMMA", "LDSM", "LDGSTS"), forbids=("LDL", "STL")),
    Source("grouped_gemm_sm90", HOPPER, needs=("HGMMA", "UTMALDG", "UTMASTG"), forbids=("LDL", "STL")),
    Source("permute", EVERY, forbids=("LDL", "STL")),
    Source("probe", EVERY),
    Source("probe_sm90", HOPPER, needs=("HGMMA", "UTMALDG"), forbids=("LDL", "STL")),
    Source("router_topk", EVERY),
    Source("swap_ab_sm90", HOPPER, needs=("HGMMA", "UTMALDG"), forbids=("LDL", "STL")),
]

# Notes by which ptxas says that a Hopper kernel lost its overlap.
LOST_OVERLAP = re.compile(r"C7508|C7510|C7511|serialized")


class Failed(Exception):
    """A kernel does not compile or does not pass a gate."""


def toolkit():
    """The compiler's folder, installed when it is missing or its list of packages has changed."""
    default = KERNELS.parent / ".cuda-venv"
    where = Path(os.environ.get("MOE_FRONTIER_CUDA_VENV", default)).resolve()
    wanted = (KERNELS / "toolkit.txt").read_text()
    stamp = where / "toolkit.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the CUDA compiler into {where}", file=sys.stderr)
        venv.create(where, with_pip=True)
        pip = [where / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", KERNELS / "toolkit.txt"], check=True)
        stamp.write_text(wanted)
    found = list(where.glob("lib/python3*/site-packages/nvidia/cu13"))
    if len(found) != 1 or not assembler(found[0]).exists():
        raise Failed(f"{where} holds no CUDA compiler; remove it and run again")
    return found[0]


def assembler(cuda):
    """The older assembler beside the newer compiler."""
    return cuda.parent / "cuda_nvcc" / "bin" / "ptxas"


def run(cuda, arguments):
    """Runs a tool of the compiler inside kernels/, and returns what it printed."""
    environment = {**os.environ, "PATH": f"{cuda / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        arguments, cwd=KERNELS, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, arguments))}\n{done.stdout}")
    return done.stdout


def front_end(arch):
    """The compiler's words for the PTX of an image, or for portable PTX."""
    return [*FLAGS, f"-arch={arch.replace('sm', 'compute')}", "-ptx"]


def back_end(arch):
    """The assembler's words for an image; nothing for portable PTX."""
    return [] if arch == PTX else [*ASSEMBLER_FLAGS, f"-arch={arch}"]


def lowered(text, version):
    """PTX that declares an older version; what it does not have, the assembler refuses."""
    declared = f".version {PTX_VERSION}\n"
    if text.count(declared) != 1:
        raise Failed(f"the compiler's PTX is not of version {PTX_VERSION}")
    return text.replace(declared, f".version {version}\n")


def compile_one(cuda, source, arch, out, scratch):
    """Builds one image and holds it to the gates; returns its lines of the table of resources."""
    ptx = scratch / f"{source.stem}.{arch}.ptx"
    run(cuda, ["nvcc", *front_end(arch), "-o", ptx, f"{source.stem}.cu"])
    text = ptx.read_text()
    if arch == PTX:
        image = out / f"{source.stem}.{arch}.ptx"
        image.write_text(lowered(text, PORTABLE_VERSION))
        # Drivers compile it for what they know: here it is tried for one architecture.
        run(cuda, [assembler(cuda), *ASSEMBLER_FLAGS, "-arch=sm_80", "-o", scratch / f"{source.stem}.try", image])
        return [(source.stem, name, threads) for name, threads in bounds_of_ptx(text).items()]
    image = out / f"{source.stem}.{arch}.cubin"
    ptx.write_text(lowered(text, ASSEMBLED_VERSION))
    log = run(cuda, [assembler(cuda), *back_end(arch), "-o", image, ptx])
    lost = [line for line in log.splitlines() if LOST_OVERLAP.search(line)]
    if lost:
        raise Failed(f"{image.name}: " + "\n".join(lost))
    sass = run(cuda, ["cuobjdump", "-sass", image])
    count = {name: len(re.findall(rf"\b{name}\b", sass)) for name in (*source.needs, *source.forbids)}
    for name in source.needs:
        if count[name] == 0:
            raise Failed(f"{image.name}: no {name} in its machine code")
    for name in source.forbids:
        if count[name] != 0:
            raise Failed(f"{image.name}: {count[name]} {name} in its machine code: registers in memory")
    bounds = bounds_of_image(image.read_bytes())
    return resources(run(cuda, ["cuobjdump", "-res-usage", image]), source, arch, bounds)


def resources(report, source, arch, bounds):
    """(stem, kernel, `kernel arch registers stack static_shared threads`) of each kernel."""
    pattern = re.compile(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    found = pattern.findall(report)
    if not found or {name for name, *_ in found} != bounds.keys():
        raise Failed(f"{source.stem} {arch}: no kernel in it, or one without a bound of its threads")
    return [
        (source.stem, name, f"{name:<44} {arch:<8} {reg:>4} {stack:>6} {shared:>7} {bounds[name]:>8}")
        for name, reg, stack, shared in found
    ]


def bounds_of_ptx(text):
    """Most threads of a block of each kernel of a PTX text."""
    entries = re.findall(r"\.entry (\w+)\(.*?\)\s*\.maxntid (\d+)", text, re.DOTALL)
    return {name: int(threads) for name, threads in entries}


def bounds_of_image(image):
    """Most threads of a block of each kernel of an image: the product of the attribute MAX_THREADS in
    its sections `.nv.info.KERNEL`, which the driver holds launches to."""
    sections, = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, sections + size * i) for i in range(count)]
    strings = headers[names][4]
    bounds = {}
    for name, _, _, _, offset, length in headers:
        label = image[strings + name : image.index(b"\0", strings + name)].decode()
        if label.startswith(".nv.info."):
            bounds |= {label.removeprefix(".nv.info."): most_threads(image[offset : offset + length])}
    return {kernel: threads for kernel, threads in bounds.items() if threads}


def most_threads(attributes):
    """The attribute MAX_THREADS (5) among those of one kernel: pairs of a format and a number, then a
    value; only format 4 has one longer than two bytes, with its length in front."""
    at = 0
    while at + 4 <= len(attributes):
        form, number, value = struct.unpack_from("<BBH", attributes, at)
        at += 4
        if form == 4:
            if number == 5:
                x, y, z = struct.unpack_from("<III", attributes, at)
                return x * y * z
            at += value
    return None


def sha256(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def build(cuda, out):
    """Builds everything into `out`."""
    strangers = {path.stem for path in KERNELS.glob("*.cu")} ^ {source.stem for source in SOURCES}
    if strangers:
        raise Failed(f"sources and the table of this script differ: {', '.join(sorted(strangers))}")
    jobs = [(s, arch) for s in SOURCES for arch in s.archs + ([PTX] if s.archs == EVERY else [])]
    failures, table = [], []
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(compile_one, cuda, s, arch, out, Path(scratch)): (s, arch) for s, arch in jobs}
        for job in concurrent.futures.as_completed(running):
            try:
                table += job.result()
            except Failed as failure:
                failures.append(str(failure))
    if failures:
        raise Failed("\n".join(sorted(failures)))
    # Portable code states the same bounds, from the same source, and has no other resources yet.
    lines = sorted((stem, line) for stem, _, line in table if isinstance(line, str))
    threads = {line.split()[0]: int(line.split()[-1]) for _, line in lines}
    for _, name, bound in table:
        if isinstance(bound, int) and threads.get(name) != bound:
            raise Failed(f"{name}: {bound} threads a block in portable code, {threads.get(name)} in an image")
    head = f"{'kernel':<44} {'arch':<8} {'regs':>4} {'stack':>6} {'static':>7} {'threads':>8}"
    (out / "resources.txt").write_text("\n".join([head, *(line for _, line in lines)]) + "\n")
    write_index(out, jobs, {s.stem: {line.split()[0] for stem, line in lines if stem == s.stem} for s in SOURCES})


def write_index(out, jobs, kernels):
    """The table that the library includes, and the hashes that say what an image was made from."""
    rust = ["// Written by kernels/cubins.py: every image of this folder.", "&["]
    toml = ["# Written by kernels/cubins.py. source: SHA-256 over the kernel and its headers."]
    for source, arch in sorted(jobs, key=lambda job: (job[0].stem, job[1])):
        name = f"{source.stem}.{arch}.{'ptx' if arch == PTX else 'cubin'}"
        texts = [(KERNELS / file).read_bytes() for file in [f"{source.stem}.cu", *HEADERS]]
        flags = " ".join([*front_end(arch), *back_end(arch)])
        rust.append(
            f'    Prebuilt {{ stem: "{source.stem}", arch: "{arch}", image: include_bytes!("{name}") }},'
        )
        toml += [
            "",
            f'["{name}"]',
            f'source = "{sha256(*texts)}"',
            f'flags = "{flags}"',
            f'image = "{sha256((out / name).read_bytes())}"',
        ]
    (out / "index.rs").write_text("\n".join([*rust, "]"]) + "\n")
    sources = ["// Written by kernels/cubins.py: what images are compiled from at run time.", "&["]
    for source in SOURCES:
        generic = "true" if source.archs == EVERY else "false"
        names = ", ".join(f'"{name}"' for name in sorted(kernels[source.stem]))
        sources += [
            "    Source {",
            f'        stem: "{source.stem}",',
            f"        generic: {generic},",
            f'        text: include_str!("../{source.stem}.cu"),',
            f"        kernels: &[{names}],",
            "    },",
        ]
    headers = [f'    ("{name}", include_str!("../{name}")),' for name in HEADERS]
    head = "// Written by kernels/cubins.py: what sources include."
    (out / "headers.rs").write_text("\n".join([head, "&[", *headers, "]"]) + "\n")
    (out / "sources.rs").write_text("\n".join([*sources, "]"]) + "\n")
    (out / "index.toml").write_text("\n".join(toml) + "\n")


def differences(fresh):
    """Names that differ between a fresh build and kernels/prebuilt."""
    names = {path.name for path in fresh.iterdir()} | {path.name for path in PREBUILT.iterdir()}
    read = lambda path: path.read_bytes() if path.exists() else None
    return sorted(name for name in names if read(fresh / name) != read(PREBUILT / name))


def main():
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels.")
    parser.add_argument("--check", action="store_true", help="compare with kernels/prebuilt, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        build(toolkit(), fresh)
        images = len(list(fresh.glob("*.cubin")) + list(fresh.glob("*.ptx")))
        if check:
            stale = differences(fresh)
            for name in stale:
                print(f"stale: kernels/prebuilt/{name}", file=sys.stderr)
            if stale:
                raise Failed("run `just cubins` and commit kernels/prebuilt")
            print(f"kernels/prebuilt is what the sources compile to: {images} images")
            return
        PREBUILT.mkdir(exist_ok=True)
        for path in PREBUILT.iterdir():
            path.unlink()
        for path in fresh.iterdir():
            (PREBUILT / path.name).write_bytes(path.read_bytes())
        print(f"wrote {images} images to kernels/prebuilt")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"cubins: {failure}")
    except (OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"cubins: {failure}")
