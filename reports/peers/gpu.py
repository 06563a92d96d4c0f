#!/usr/bin/env python3
"""Times other programs' MoE kernels on the tokens that `measure` used, and sets ours beside them.

    moe-frontier measure --device gpu ... --out ours.profile.json --routing-out routing.json
    python3 gpu.py --routing routing.json --profile ours.profile.json --out peers.json

Peers: PyTorch's grouped_mm (two products, SwiGLU and weighted sum as separate operations) and, when
its package is installed, vLLM's fused_experts. Both get expert ids and weights; a router is not part
of their time. Ours, from the profile, is the whole layer with router and align.

Each sample is one CUDA graph replay after the second-level cache was overwritten; the value is the
median. Needs a CUDA device and PyTorch; says SKIPPED otherwise.
"""

import argparse
import json
import statistics
import sys

FLUSH_BYTES = 256 << 20
SAMPLES = 50


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


def milliseconds(torch, run, flush):
    """Median of graph replays, each behind an overwritten cache."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    samples = []
    for i in range(SAMPLES):
        flush.fill_(i % 250 + 1)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        samples.append(before.elapsed_time(after))
    return statistics.median(samples)


def ours(profile, cell):
    """Our median for the same cell in milliseconds."""
    keys = ["hidden", "inter", "experts", "top_k", "tokens"]
    for measured in profile["cells"]:
        interval = measured["latency"].get("interval")
        if interval and all(measured[key] == cell[key] for key in keys):
            return interval["median_ps"] * 1e-9
    return None


def time_cell(torch, cell, flush):
    """Milliseconds of each peer on the first draw of a cell."""
    device, dtype = "cuda", torch.bfloat16
    hidden, inter, experts, top_k, tokens = (
        cell[key] for key in ["hidden", "inter", "experts", "top_k", "tokens"]
    )
    torch.manual_seed(1)
    x = torch.randn(tokens, hidden, device=device, dtype=dtype)
    w13 = torch.randn(experts, 2 * inter, hidden, device=device, dtype=dtype) / hidden**0.5
    w2 = torch.randn(experts, hidden, inter, device=device, dtype=dtype) / inter**0.5
    ids = torch.tensor(cell["draws"][0], device=device, dtype=torch.int32).view(tokens, top_k)
    weights = torch.full((tokens, top_k), 1.0 / top_k, device=device)
    expected = reference(torch, x, w13, w2, ids, weights)
    found = {}
    for name, build in PEERS.items():
        try:
            run = build(torch, cell, x, w13, w2, ids, weights)
            if run is None:
                continue
            error = (run()[: expected.shape[0]].float() - expected).norm() / expected.norm()
            if not error < 0.02:
                found[name] = {"error": f"wrong output: relative error {error:.3g}"}
                continue
            found[name] = {"ms": milliseconds(torch, run, flush)}
        except Exception as reason:  # noqa: BLE001: one peer that fails leaves the others
            found[name] = {"error": f"{type(reason).__name__}: {reason}".splitlines()[0]}
    return found


def main():
    parser = argparse.ArgumentParser(description="Time other programs' MoE kernels beside ours.")
    parser.add_argument("--routing", required=True, help="file that `measure --routing-out` wrote")
    parser.add_argument("--profile", required=True, help="profile of the same run")
    parser.add_argument("--out", required=True, help="file to write")
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
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    rows = []
    for cell in cells:
        row = {key: value for key, value in cell.items() if key != "draws"}
        row |= {"ours_ms": ours(profile, cell), "peers": time_cell(torch, cell, flush)}
        rows.append(row)
        times = {name: peer.get("ms", peer.get("error")) for name, peer in row["peers"].items()}
        print(row["experts"], row["hidden"], row["inter"], row["tokens"], row["ours_ms"], times, flush=True)
    document = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cells": rows}
    with open(arguments.out, "w") as file:
        json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
