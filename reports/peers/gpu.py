#!/usr/bin/env python3
"""Times other programs' MoE kernels on the tokens that `measure` used, and sets ours beside them.

    moe-frontier measure --device gpu ... --out ours.profile.json --routing-out routing.json
    python3 gpu.py --routing routing.json --profile ours.profile.json --out peers.json

Peers: PyTorch's grouped_mm (two products, SwiGLU and weighted sum as separate operations) and, when
its package is installed, vLLM's fused_experts. Both get expert ids and weights; a router is not part
of their time. Ours, from the profile, is the whole layer with router and align.

Each cell of the routing file is timed once, in both ways in which `measure` times ours, by replays of CUDA
graphs; the value is the median. `cold`: one launch after the L2 was overwritten and other
memory read through it, so that nothing waits to be written back. `stream`: one launch for each routing of the
cell, back to back over sets of weights that together outgrow the cache, the whole replayed twice and the second
time taken; per launch. Cells whose weights do not fit into the memory that is left are SKIPPED with the
reason; with --seconds the list ends where the time does, and says so.

Needs a CUDA device and PyTorch; says SKIPPED otherwise.
"""

import argparse
import json
import statistics
import sys
import time

# Times the L2 that are written, and then read, before a cold launch.
FLUSH_PER_CACHE = 2
# Samples of a cell, and the time after which fewer will do.
SAMPLES = 50
SECONDS_OF_SAMPLES = 1.0
# Cycles that the device is held for: about half a millisecond.
HOLD_CYCLES = 1_000_000
# Bytes of weights that pass before one is read again, in multiples of the cache.
CYCLE_PER_CACHE = 5


def grouped_mm_layer(torch, shape, x, w13, w2, ids, weights):
    """The layer by torch's grouped product, or None where this PyTorch has none."""
    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped_mm is None:
        return None
    top_k = shape["top_k"]
    order = torch.argsort(ids.flatten(), stable=True)
    counts = torch.bincount(ids.flatten(), minlength=shape["experts"])
    ends = torch.cumsum(counts, 0).to(torch.int32)
    tokens = order // top_k
    a, b = w13.transpose(1, 2), w2.transpose(1, 2)

    def run():
        gate, up = grouped_mm(x[tokens], a, offs=ends).chunk(2, dim=-1)
        rows = grouped_mm(torch.nn.functional.silu(gate) * up, b, offs=ends)
        rows = rows * weights.flatten()[order].unsqueeze(1).to(rows.dtype)
        return torch.zeros_like(x).index_add_(0, tokens, rows)

    return run


def vllm_layer(torch, shape, x, w13, w2, ids, weights):
    """vLLM's fused experts, or None where the package cannot be imported."""
    try:
        from vllm.model_executor.layers.fused_moe import fused_experts
    except Exception as reason:  # noqa: BLE001: a partial package fails in many ways
        print(f"vLLM is left out: {type(reason).__name__}: {reason}", file=sys.stderr)
        return None
    return lambda: fused_experts(x, w13, w2, weights, ids)


PEERS = {"torch_grouped_mm": grouped_mm_layer, "vllm_fused_experts": vllm_layer}


def reference(torch, x, w13, w2, ids, weights):
    """Plain loops in single precision over a few tokens."""
    rows = []
    for token in range(min(4, x.shape[0])):
        total = torch.zeros(x.shape[1], device=x.device)
        for expert, weight in zip(ids[token].tolist(), weights[token]):
            gate, up = (w13[expert].float() @ x[token].float()).chunk(2)
            total += weight * (w2[expert].float() @ (torch.nn.functional.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


class Flush:
    """Empties the L2: writes twice its size, then reads as much of other memory."""

    def __init__(self, torch):
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size or 64 << 20
        size = FLUSH_PER_CACHE * self.cache_bytes // 4
        self.written = torch.empty(size, dtype=torch.int32, device="cuda")
        self.read = torch.ones(size, dtype=torch.int32, device="cuda")
        self.count = 0

    def __call__(self):
        self.count += 1
        self.written.fill_(self.count)
        return self.read.sum()


def recorded(torch, run):
    """A graph of what `run` launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def milliseconds(torch, graph, before):
    """Median of replays, each behind what `before` does."""
    samples, start = [], time.monotonic()
    while len(samples) < SAMPLES and (len(samples) < 5 or time.monotonic() - start < SECONDS_OF_SAMPLES):
        before()
        # Holds the device until all is queued, as our own times do.
        torch.cuda._sleep(HOLD_CYCLES)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        samples.append(events[0].elapsed_time(events[1]))
    return statistics.median(samples)


def ours(profile, cell, timing):
    """Our median for the same cell and way of timing, in milliseconds."""
    keys = ["hidden", "inter", "experts", "top_k", "tokens"]
    for measured in profile["cells"]:
        interval = measured["latency"].get("interval")
        if interval and measured["timing"] == timing and all(measured[key] == cell[key] for key in keys):
            return interval["median_ps"] * 1e-9
    return None


def weight_sets(torch, cell, flush):
    """Weights of a layer, as many sets as outgrow the cache: as `measure` has them."""
    hidden, inter, experts = (cell[key] for key in ["hidden", "inter", "experts"])
    each = 3 * 2 * experts * hidden * inter
    count = max(1, -(-CYCLE_PER_CACHE * flush.cache_bytes // each))
    free, _ = torch.cuda.mem_get_info()
    if count * each > 0.8 * free:
        raise MemoryError(f"{count * each >> 20} MiB of weights, {free >> 20} MiB are free")
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        w13 = torch.randn(experts, 2 * inter, hidden, device="cuda", dtype=torch.bfloat16)
        w2 = torch.randn(experts, hidden, inter, device="cuda", dtype=torch.bfloat16)
        made.append((w13.mul_(hidden**-0.5), w2.mul_(inter**-0.5)))
    return made


def time_peer(torch, build, cell, sets, flush):
    """Milliseconds of one peer, cold and in a stream, or why it has none."""
    hidden, top_k, tokens = (cell[key] for key in ["hidden", "top_k", "tokens"])
    x = torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16)
    weights = torch.full((tokens, top_k), 1.0 / top_k, device="cuda")
    draws = [torch.tensor(d, device="cuda", dtype=torch.int32).view(tokens, top_k) for d in cell["draws"]]
    runs = []
    for i in range(max(len(draws), len(sets))):
        w13, w2 = sets[i % len(sets)]
        runs.append(build(torch, cell, x, w13, w2, draws[i % len(draws)], weights))
    if runs[0] is None:
        return None
    expected = reference(torch, x, *sets[0], draws[0], weights)
    error = (runs[0]()[: expected.shape[0]].float() - expected).norm() / expected.norm()
    if not error < 0.02:
        return {"error": f"wrong output: relative error {error:.3g}"}
    found = {"cold_ms": milliseconds(torch, recorded(torch, runs[0]), flush)}
    stream = recorded(torch, lambda: [run() for run in runs])
    found["stream_ms"] = milliseconds(torch, stream, stream.replay) / len(runs)
    return found


def time_cell(torch, cell, sets, flush):
    """Milliseconds of each peer on a cell."""
    found = {}
    for name, build in PEERS.items():
        try:
            times = time_peer(torch, build, cell, sets, flush)
        except Exception as reason:  # noqa: BLE001: one peer that fails leaves the others
            times = {"error": f"{type(reason).__name__}: {reason}".splitlines()[0]}
        if times is not None:
            found[name] = times
    return found


def time_all(torch, cells, profile, deadline):
    """A row a cell, until the time is over. Cells of one layer share its weights."""
    flush = Flush(torch)
    rows, layer, sets = [], None, []
    keys = ["hidden", "inter", "experts", "top_k"]
    for cell in sorted(cells, key=lambda cell: [cell[key] for key in keys]):
        row = {key: value for key, value in cell.items() if key != "draws"}
        row |= {f"ours_{timing}_ms": ours(profile, cell, timing) for timing in ["cold", "stream"]}
        try:
            if time.monotonic() > deadline:
                raise TimeoutError("no time was left")
            if layer != [cell[key] for key in keys]:
                layer, sets = None, []
                torch.cuda.empty_cache()
                sets = weight_sets(torch, cell, flush)
                layer = [cell[key] for key in keys]
            row["peers"] = time_cell(torch, cell, sets, flush)
        except (MemoryError, TimeoutError, torch.cuda.OutOfMemoryError) as reason:
            row["skipped"] = str(reason).splitlines()[0]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description="Time other programs' MoE kernels beside ours.")
    parser.add_argument("--routing", required=True, help="file that `measure --routing-out` wrote")
    parser.add_argument("--profile", required=True, help="profile of the same run")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time that the cells may take")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError as reason:
        print(f"SKIPPED: {reason}")
        return
    if not torch.cuda.is_available():
        print("SKIPPED: PyTorch sees no CUDA device")
        return
    with open(arguments.routing) as file:
        cells = json.load(file)
    with open(arguments.profile) as file:
        profile = json.load(file)
    rows = time_all(torch, cells, profile, time.monotonic() + arguments.seconds)
    document = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cells": rows}
    with open(arguments.out, "w") as file:
        json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
