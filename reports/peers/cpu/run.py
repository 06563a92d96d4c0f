#!/usr/bin/env python3
"""Times MoE layers on this processor in turns: ours and those of other programs; called by cpu.sh.

Every contender is a process of its own that answers one request a line:

    load <experts> <top_k> <hidden> <inter> <sets>   reads w13.<set>.bf16 and w2.<set>.bf16
    input <tokens> <sets>   reads x.bf16, logits.f32, ids.i32 and weights.f32; runs once with set 0 and
                            writes <name>.out.f32; later runs take turns through the first <sets> sets
    run <unmeasured> <measured>   answers the nanoseconds of each measured run
    read <reads>            (ours only) answers the bytes of a read of memory, and the nanoseconds of each

Each round gives every contender one turn of a few runs, in an order drawn anew; the median of the turn
is one sample. A contender that waits is stopped, so that threads that spin for work take no time from
the others. Weight sets take turns until twice the last-level cache was read. Outputs are compared with
a single-precision reference first.
"""

import datetime
import json
import math
import os
import pathlib
import random
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy
from data import SEED, reference, write_input, write_weights
from machine import Load, available_memory, machine, program
from options import WORST_ERROR, parse
from page import table

HERE = pathlib.Path(__file__).parent
# A turn lasts about this long: many runs of a short layer, one of a long one.
TURN_NS = 40e6
# Longer runs need none before them to wake threads and caches.
LONG_NS = 100e6
MOST_RUNS = 64
# Reads of memory in a turn.
READS = 16
# What one answer may take, loading gigabytes on a slow disk included.
PATIENCE_S = 300


def refuse(text):
    """Ends the program with one line."""
    sys.exit(f"cpu.sh: {text}")


class Failed(Exception):
    """A contender that cannot go on, and why: what it said, or how it ended."""

    def __init__(self, name, reason):
        super().__init__(reason)
        self.name = name


class Contender:
    """One process; it is stopped whenever no answer of it is awaited."""

    def __init__(self, name, command, folder, environment):
        self.name = name
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder.parent / f"{name}.log").open("wb"),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.used = 0
        self.versions = self.answer("ready")

    def answer(self, expected="ok"):
        """The rest of the next line, once the process is stopped again."""
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        if not ready:
            raise self.failed(f"no answer within {PATIENCE_S} s")
        word, _, rest = self.process.stdout.readline().decode().strip().partition(" ")
        if word == "failed":
            raise self.failed(rest)
        if word != expected:
            code = self.process.wait(PATIENCE_S)
            ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise self.failed(ended)
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return rest

    def ask(self, *request):
        """The answer to a request."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.stdin.write(" ".join(map(str, request)).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def failed(self, reason):
        self.kill()
        return Failed(self.name, reason)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ticks(self):
        """Processor time that the process has used, in clock ticks."""
        if self.process.poll() is None:
            with open(f"/proc/{self.process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            self.used = int(fields[11]) + int(fields[12])
        return self.used


def die_with_parent():
    """Nobody would continue or end a stopped process whose parent was killed."""
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def rank(n):
    """The r for which the r-th smallest and r-th largest of n enclose the median with 95 %."""
    below, best = 0.0, 1
    for r in range(1, n // 2 + 1):
        below += math.comb(n, r - 1) / 2**n
        if 1 - 2 * below >= 0.95:
            best = r
    return best


def estimate(values):
    """Median with its 95 % interval."""
    ordered, r = sorted(values), rank(len(values))
    return {"median": statistics.median(ordered), "lo": ordered[r - 1], "hi": ordered[-r]}


def rounds_of(turns, rounds):
    """Samples of each turn, in rounds whose order is drawn."""
    order, samples = random.Random(SEED), {name: [] for name in turns}
    for _ in range(rounds):
        for name in order.sample(list(turns), len(turns)):
            samples[name].append(turns[name]())
    return samples


def turn(contender):
    """A turn of a contender, in milliseconds a run, sized by a first one."""
    once = int(contender.ask("run", 1, 1))
    runs = min(MOST_RUNS, max(1, math.ceil(TURN_NS / once)))
    unmeasured = int(once < LONG_NS)
    return lambda: statistics.median(map(int, contender.ask("run", unmeasured, runs).split())) * 1e-6


def read_turn(ours):
    """Bytes per second of reads of memory by all threads, taken as a turn like the others'."""
    size, *times = map(float, ours.ask("read", READS).split())
    return size / statistics.median(times) * 1e9


class Bench:
    """A run over all cells."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.contenders, self.left_out, self.versions, self.cells = {}, {}, {}, []

    def start(self, name, command, environment):
        """Starts a contender; cpu.sh left a note where it could not be installed."""
        note = self.arguments.folder / "left-out" / name
        try:
            if note.exists():
                raise Failed(name, note.read_text().strip())
            self.contenders[name] = Contender(name, command, self.folder, environment)
            self.versions[name] = self.contenders[name].versions
            print(f"{name}: {self.versions[name]}", file=sys.stderr)
        except Failed as failed:
            self.leave_out(failed)

    def leave_out(self, failed, where=""):
        """Goes on without a contender. Without ours there is nothing to compare with."""
        reason = f"{where}: {failed}" if where else str(failed)
        if failed.name == "ours":
            refuse(f"our layer failed: {reason}")
        self.left_out[failed.name] = reason
        self.contenders.pop(failed.name, None)
        print(f"{failed.name} is left out: {reason}", file=sys.stderr)

    def ask_all(self, where, *request):
        for contender in list(self.contenders.values()):
            try:
                contender.ask(*request)
            except Failed as failed:
                self.leave_out(failed, where)

    def experts(self, plan):
        """All cells with one number of experts."""
        shape = plan.shape
        write_weights(self.folder, shape, max(plan.sets.values()))
        self.ask_all(f"E={shape['experts']}", "load", *shape.values(), max(plan.sets.values()))
        for tokens in plan.sets:
            self.cell(shape, tokens, plan.sets[tokens], plan.active_bytes[tokens])
        for path in self.folder.glob("w*.bf16"):
            path.unlink()

    def cell(self, shape, tokens, sets, active_bytes):
        where = f"E={shape['experts']}, {tokens} tokens"
        expected = reference(self.folder, shape, *write_input(self.folder, shape, tokens))
        self.ask_all(where, "input", tokens, sets)
        load = Load(self.contenders.values())
        turns, errors = {"read": lambda: read_turn(self.contenders["ours"])}, {}
        for name, contender in list(self.contenders.items()):
            out = numpy.fromfile(self.folder / f"{name}.out.f32", dtype=numpy.float32)
            off = numpy.abs(out.reshape(expected.shape) - expected).mean() / numpy.abs(expected).mean()
            # NaN, which JSON has not, is an infinite error.
            errors[name] = float(off) if math.isfinite(off) else None
            if not off <= WORST_ERROR:
                if name == "ours":
                    refuse(f"our output is off by {off:.2g} at {where}")
                continue
            try:
                turns[name] = turn(contender)
            except Failed as failed:
                self.leave_out(failed, where)
        samples = self.rounds(where, turns)
        read = samples.pop("read")
        bandwidth = statistics.median(read)
        ours = samples["ours"]
        cell = shape | {
            "tokens": tokens,
            "weight_sets": sets,
            "active_weight_bytes": active_bytes,
            "read_bytes_per_s": estimate(read),
            "read_floor_ms": active_bytes / bandwidth * 1e3,
            **load.shares(),
            "mean_relative_error": errors,
            "ms": {name: estimate(values) | {"rounds": values} for name, values in samples.items()},
            "ours_over_peer": {
                name: estimate([o / p for o, p in zip(ours, values)])
                for name, values in samples.items()
                if name != "ours"
            },
        }
        self.cells.append(cell)
        times = "  ".join(f"{name} {cell['ms'][name]['median']:.2f}" for name in samples)
        worst = "  ".join(f"{name} {error if error is None else f'{error:.1e}'}" for name, error in errors.items())
        print(f"{where}: read {bandwidth / 1e9:.1f} GB/s, ms: {times}", file=sys.stderr)
        print(f"  mean relative errors: {worst}", file=sys.stderr)

    def rounds(self, where, turns):
        """Samples of all who last; where one ends in the middle, the cell starts again without it."""
        while True:
            try:
                return rounds_of(turns, self.arguments.rounds)
            except Failed as failed:
                self.leave_out(failed, where)
                del turns[failed.name]


class Plan:
    """How many weight sets each number of tokens takes, for one number of experts."""

    def __init__(self, arguments, experts, folder):
        names = {"top_k": arguments.top_k, "hidden": arguments.hidden, "inter": arguments.inter}
        self.shape = {"experts": experts} | names
        expert_bytes = 3 * arguments.hidden * arguments.inter * 2
        self.active_bytes = {}
        for tokens in arguments.tokens:
            _, ids, _ = write_input(folder, self.shape, tokens)
            self.active_bytes[tokens] = len(numpy.unique(ids)) * expert_bytes
        self.sets = {tokens: math.ceil(2 * arguments.cache / n) for tokens, n in self.active_bytes.items()}
        self.bytes = max(self.sets.values()) * experts * expert_bytes

    def check_memory(self, contenders):
        """Everybody holds all sets in its own form, and the page cache their files."""
        # One set twice while it is packed, and activations.
        needed = self.bytes * (contenders + 1) + (2 << 30)
        available = available_memory()
        if needed > available:
            refuse(
                f"E={self.shape['experts']} needs {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} "
                "are available: give fewer --experts or --peers"
            )


def document(arguments, bench, started):
    """Everything that was found until now."""
    return {
        "schema": "moe-frontier/cpu-peers",
        "schema_version": "1.0",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["bash", "reports/peers/cpu.sh", *sys.argv[1:]]),
        "commit": program(),
        "seconds": round(time.monotonic() - started),
        "machine": machine(arguments.cache),
        "protocol": {
            "hidden": arguments.hidden,
            "inter": arguments.inter,
            "top_k": arguments.top_k,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "turn_ms": TURN_NS * 1e-6,
            "worst_error": WORST_ERROR,
            "seed": SEED,
        },
        "versions": bench.versions,
        "left_out": bench.left_out,
        "cells": bench.cells,
    }


def measure(arguments, folder):
    """Runs everything; writes what is there after each number of experts."""
    started = time.monotonic()
    threads = str(arguments.threads)
    environment = {name: threads for name in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"]}
    environment["MOE_PEERS_GGML"] = str(arguments.folder / "ggml" / "bin")
    plans = [Plan(arguments, experts, folder) for experts in arguments.experts]
    for plan in plans:
        plan.check_memory(1 + len(arguments.peers))
    bench = Bench(arguments, folder)
    try:
        layer = arguments.folder / "layer"
        form = [] if arguments.in_rows else ["packed"]
        bench.start("ours", [str(layer), str(max(192 << 20, 2 * arguments.cache)), *form], environment)
        for name in arguments.peers:
            bench.start(name, [sys.executable, str(HERE / "contenders.py"), name, threads], environment)
        for plan in plans:
            bench.experts(plan)
            found = document(arguments, bench, started)
            (arguments.out / "cpu.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
            (arguments.out / "cpu.md").write_text(table(found))
    finally:
        for contender in bench.contenders.values():
            contender.kill()
    print(table(found))
    print(f"{arguments.out / 'cpu.md'} and cpu.json, in {found['seconds']} s", file=sys.stderr)


def main():
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Everybody gets the same processors, and as many threads as there are of them.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    folder = arguments.folder / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Exceptions end the contenders and remove gigabytes of weights; a signal alone would not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        measure(arguments, folder)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
