#!/usr/bin/env python3
"""Builds target/gpu-bundle: everything that a machine with only a CUDA driver needs to check and time
the kernels. `just gpu-bundle`

Executables are stripped release builds that open CUDA at run time; nothing in the folder needs cargo,
a toolkit or a network. `run.sh` is what is started there, `long.sh` with more time.

With --vllm WHEEL also target/gpu-bundle-vllm.tar.xz: those parts of a vLLM wheel whose kernels the peers
time, to be unpacked beside the bundle. It is optional, and large.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "target" / "gpu-bundle"
# What is copied, by hand and by slow links, is the archive. The folder holds the kernels' images three times,
# once in each executable.
LIMIT_BYTES = 30 << 20
# The oldest C library of a machine that the executables are for: Ubuntu 22.04.
LIMIT_GLIBC = (2, 35)
SCRIPTS = ["run.sh", "long.sh", "parts.sh"]
# The fused experts of vLLM, their tuned tables and the libraries that they load.
VLLM_PARTS = ("vllm/model_executor/layers/fused_moe/", "vllm/_moe_C", "vllm/triton_utils/", "vllm/platforms/")
# Runs the kernels on a GPU with the cases that the emulator runs.
TESTS = ["emulator"]
BENCHES = ["cuda"]


def cargo(*arguments):
    """Runs cargo and returns the executables that it built, by target name."""
    command = ["cargo", *arguments, "--locked", "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    artifacts = (m for m in messages if m.get("reason") == "compiler-artifact" and m.get("executable"))
    return {m["target"]["name"]: Path(m["executable"]) for m in artifacts}


def output(*command):
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def needed_glibc(executable):
    """Newest version of the C library whose symbols an executable asks for."""
    symbols = output("objdump", "-T", str(executable))
    found = {tuple(map(int, word.strip("()").removeprefix("GLIBC_").split("."))) for word in symbols.split()
             if word.strip("()").startswith("GLIBC_") and word.strip("()")[6:7].isdigit()}
    return max(found, default=(0, 0))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def executables():
    built = cargo("build", "--release", "--bin", "moe-frontier")
    for name in TESTS:
        built |= cargo("test", "--release", "--no-run", "--test", name)
    for name in BENCHES:
        built |= cargo("bench", "--no-run", "--bench", name)
    missing = {"moe-frontier", *TESTS, *BENCHES} - built.keys()
    if missing:
        sys.exit(f"bundle: cargo built no {', '.join(sorted(missing))}")
    return {name: built[name] for name in ["moe-frontier", *TESTS, *BENCHES]}


def pack(folder, archive):
    """An archive of a folder, no larger than what is carried; its size."""
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, folder.name)
    packed = archive.stat().st_size
    if packed > LIMIT_BYTES:
        sys.exit(f"bundle: {archive.name} has {packed / 2**20:.1f} MiB, more than {LIMIT_BYTES >> 20}")
    print(f"{archive.relative_to(ROOT)}: {packed / 2**20:.1f} MiB")


def prune_vllm(wheel):
    """The parts of a wheel that the peers need, in an archive of their own."""
    folder = ROOT / "target" / "gpu-bundle-vllm"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as file:
        wanted = [name for name in file.namelist() if name.startswith(VLLM_PARTS) or name == "vllm/__init__.py"]
        if not any("fused_moe" in name for name in wanted):
            sys.exit(f"bundle: {wheel} holds no fused experts")
        file.extractall(folder / "vllm-parts", wanted)
    (folder / "vllm-parts").rename(folder / "vllm")
    archive = folder.with_suffix(".tar.xz")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder / "vllm", "gpu-bundle/vllm")
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 2**20:.1f} MiB")


def main():
    parser = argparse.ArgumentParser(description="Build what a machine with only a CUDA driver needs.")
    parser.add_argument("--vllm", type=Path, metavar="WHEEL", help="a vLLM wheel to take the peers' parts from")
    wheel = parser.parse_args().vllm
    built = executables()
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "bin").mkdir(parents=True)
    for name, path in built.items():
        subprocess.run(["strip", "--strip-all", "-o", OUT / "bin" / name, path], check=True)
    for script in SCRIPTS:
        shutil.copy(ROOT / "kernels" / "bundle" / script, OUT / script)
    shutil.copytree(ROOT / "reports" / "peers", OUT / "peers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "kernels" / "prebuilt" / "index.toml", OUT / "kernels.toml")
    needed = max(needed_glibc(OUT / "bin" / name) for name in built)
    if needed > LIMIT_GLIBC:
        sys.exit(f"bundle: the executables need glibc {'.'.join(map(str, needed))}: build on an older system")
    files = sorted(path for path in OUT.rglob("*") if path.is_file())
    manifest = {
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": output("git", "status", "--porcelain") != "",
        "rustc": output("rustc", "--version"),
        "needs": f"glibc {'.'.join(map(str, needed))}",
        "sha256": {str(path.relative_to(OUT)): sha256(path) for path in files},
    }
    (OUT / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
    sums = "".join(f"{digest}  {name}\n" for name, digest in manifest["sha256"].items())
    (OUT / "SHA256SUMS").write_text(sums)
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{OUT.relative_to(ROOT)}: {size / 2**20:.1f} MiB, {manifest['needs']} or newer")
    pack(OUT, OUT.with_suffix(".tar.xz"))
    if wheel:
        prune_vllm(wheel)


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"bundle: {failure}")
