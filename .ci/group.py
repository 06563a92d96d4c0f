"""Groups under mpirun: what they measure, and how they end when a rank does. `.ci/group` starts it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

PROGRAM, SCRATCH = os.path.abspath(sys.argv[1]), sys.argv[2]
LAYERS = (
    "--group mpi --experts 4,8 --top-k 2 --hidden 64 --inter 128 --tokens 1,8 --routing zipf:1 --quick --threads 1"
)
LIMIT = 15.0


def started(ranks, flags, out, fault=None):
    """mpirun with so many ranks of `measure`."""
    environment = dict(os.environ)
    if fault:
        environment["MOE_FRONTIER_GROUP_FAULT"] = fault
    command = ["mpirun", "-n", str(ranks), PROGRAM, "measure", *flags.split(), "--overwrite", "--out", out]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children(pid):
    """Processes below one, with their words."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{entry}/cmdline", "rb") as words:
                found.setdefault(parent, []).append((int(entry), words.read().replace(b"\0", b" ").decode()))
        except OSError:
            pass
    below, look = [], [pid]
    while look:
        for child in found.get(look.pop(), []):
            below.append(child)
            look.append(child[0])
    return below


def workers(group):
    return sorted(pid for pid, words in children(group.pid) if "group-worker" in words)


def read(path):
    with open(path, encoding="utf-8") as text:
        return json.load(text)


def checked(condition, what):
    if not condition:
        sys.exit(f"FAILED {what}")
    print(f"ok {what}")


def measures(ranks):
    out = os.path.join(SCRATCH, f"g{ranks}.json")
    group = started(ranks, f"{LAYERS} --ep {ranks}", out)
    _, errors = group.communicate(timeout=300)
    checked(group.returncode == 0, f"{ranks} ranks measure {errors[-500:] if group.returncode else ''}")
    record = read(out)
    checked(len(record["exchanges"]) == 4 and "partial" not in record, f"{ranks} ranks have four cells")
    checked(len(record["hosts"]) == ranks and record["nodes"] == 1, f"{ranks} ranks are named")
    for cell in record["exchanges"]:
        if not (cell["worst_ratio_to_bound"] <= 1 and cell["layer"]["median_ps"] > 0):
            checked(False, f"{cell}")
    links = os.path.join(SCRATCH, f"l{ranks}.json")
    flags = "--group mpi --quick --collectives all_reduce,all_to_all,all_gather,reduce_scatter --bytes 1K-64K*8"
    group = started(ranks, flags, links)
    _, errors = group.communicate(timeout=300)
    checked(group.returncode == 0, f"{ranks} ranks measure collectives {errors[-500:] if group.returncode else ''}")
    for cell in read(links)["collectives"]:
        seconds = cell["time"]["median_ps"] * 1e-12
        factor = (2 if cell["kind"] == "all_reduce" else 1) * (ranks - 1) / ranks
        algbw = cell["bytes"] / seconds / 1e9
        near = lambda a, b: abs(a - b) <= 1e-9 * abs(b)
        if not (near(cell["algbw_gb_per_s"], algbw) and near(cell["busbw_gb_per_s"], algbw * factor)):
            checked(False, f"bandwidths by nccl-tests' formulae: {cell}")
    checked(True, f"bandwidths of {ranks} ranks follow nccl-tests' formulae")


def ends(name, out, group, since, rank=None, code=6):
    try:
        _, errors = group.communicate(timeout=LIMIT + 5)
    except subprocess.TimeoutExpired:
        os.killpg(group.pid, signal.SIGKILL)
        sys.exit(f"FAILED {name}: it has not ended")
    took = time.monotonic() - since
    checked(group.returncode == code and took < LIMIT, f"{name}: exit {group.returncode} after {took:.1f} s")
    wanted = r"rank \d+ on \S+" if rank is None else rf"rank {rank} on \S+"
    said = re.search(wanted, errors)
    checked(said is not None, f"{name}: {said.group(0) if said else errors[-800:]}")
    if os.path.exists(out):
        kept = read(out)
        checked("partial" in kept, f"{name}: keeps {len(kept['exchanges'])} finished cells")
    for _ in range(50):
        if not workers(group):
            return
        time.sleep(0.1)
    checked(False, f"{name}: workers are left")


def killed(ranks, cells, victim, how):
    """Ends one worker once so many cells are finished (-1: as soon as it is there)."""
    out = os.path.join(SCRATCH, f"k{ranks}-{cells}-{victim}-{how}.json")
    group = started(ranks, LAYERS.replace("--quick", "") + f" --ep {ranks}", out)
    start = time.monotonic()
    while time.monotonic() - start < 120:
        there = workers(group)
        done = len(read(out)["exchanges"]) if os.path.exists(out) else 0
        if len(there) == ranks and (cells < 0 or done >= max(cells, 1) or (cells == 0 and time.monotonic() - start > 2)):
            break
        time.sleep(0.02)
    os.kill(there[victim], how)
    ends(f"{ranks} ranks, {signal.Signals(how).name} of worker {victim} after {cells} cells", out, group, time.monotonic())


for ranks in (1, 2, 4):
    measures(ranks)
for cells in (-1, 0, 1, 2):
    for victim in (0, 1):
        killed(2, cells, victim, signal.SIGKILL)
killed(4, 1, 3, signal.SIGKILL)
killed(2, 1, 1, signal.SIGSTOP)
for fault in ("hang", "routing"):
    out = os.path.join(SCRATCH, f"{fault}.json")
    group = started(2, f"{LAYERS} --ep 2", out, f"{fault}@1")
    ends(f"{fault} on rank 1", out, group, time.monotonic() + (0 if fault == "routing" else 0), None)
group = started(2, f"{LAYERS} --ep 3", os.path.join(SCRATCH, "wrong.json"))
_, errors = group.communicate(timeout=60)
checked(group.returncode == 2 and "--ep" in errors, "another number of ranks than --ep is refused")
print("all groups ended as they should")
