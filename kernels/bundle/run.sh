#!/usr/bin/env bash
# Ten minutes on a GPU: single instructions, parity, the profile of the family that `rank` sweeps, its
# ranking, other programs' kernels, cuBLAS, the profiler and a sanitizer, in this order.
# Needs a CUDA driver; without one the parts are SKIPPED with the reason and the CPU is measured instead.
#
#   bash run.sh [OUT]        results and logs go to OUT (default ./out); OUT/results.tar.gz has them all
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-$PWD/out}}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
. "$here/parts.sh"
begin

if [ "$gpu" -gt 0 ]; then
    if command -v nvidia-smi >/dev/null; then
        part device 5 nvidia-smi -q -d CLOCK,POWER,ECC,TEMPERATURE
    fi
    part probes 15 "$bin/moe-frontier" doctor --probe
    parity small 20 120
    # The most wanted tokens first: what does not fit the time is left out from the end. Short blocks, so that
    # all of them fit; what time is left narrows intervals.
    part measure 200 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 4096 --inter 14336 \
        --experts 4,8,16,32 --top-k 2 --tokens 1,64,8,512,16384,256,4096,16,1024,4,128,32,2048,2,8192 \
        --quick --time-budget 170s --out "$out/family.profile.json" --routing-out "$out/family.routing.json" \
        --overwrite --details
    part rank 15 "$bin/moe-frontier" rank --profile "$out/family.profile.json" --out "$out/rank" --overwrite
    if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
        part peers 65 python3 "$here/peers/gpu.py" --routing "$out/family.routing.json" \
            --profile "$out/family.profile.json" --out "$out/peers.json" --seconds 50
    else
        skip peers 'python3 has no torch'
    fi
    part bench 65 "$bin/cuda" --bench --quick
    if command -v ncu >/dev/null; then
        part ncu 60 bash "$here/parts.sh" profiled "$out/products"
    else
        skip ncu 'ncu is not on the path'
    fi
    if command -v compute-sanitizer >/dev/null; then
        part memcheck 40 bash "$here/parts.sh" sanitized memcheck on_a_gpu::small_8_hopper_products
    else
        skip memcheck 'compute-sanitizer is not on the path'
    fi
else
    for name in probes parity measure rank peers bench ncu memcheck; do
        skip "$name" "${reason:-no GPU was found}"
    done
    # What needs no GPU shows that the executables of the bundle work here.
    part cpu 120 "$bin/moe-frontier" measure --device cpu --quick --time-budget 20s --tokens 1,8 --hidden 256 \
        --inter 512 --experts 4 --out "$out/cpu.profile.json" --overwrite
fi
finish
