#!/usr/bin/env bash
# What the first ten minutes leave out: parity of every stage and of whole models, the family with 8-bit
# weights, a model of many small experts with other programs beside it, and the other sanitizers. The same
# clock as run.sh; with more time at hand, BUNDLE_SECONDS says so.
#
#   bash long.sh [OUT]       results and logs go to OUT (default ./out-long); OUT/results.tar.gz has them all
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-$PWD/out-long}}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
. "$here/parts.sh"
begin

# A vLLM wheel that lies beside the bundle (optional archive) is used by the peers.
[ ! -d "$here/vllm" ] || export PYTHONPATH="$here/vllm${PYTHONPATH:+:$PYTHONPATH}"

if [ "$gpu" -gt 0 ]; then
    parity full 60 240
    part fp8 110 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 4096 --inter 14336 \
        --experts 4,8,16,32 --top-k 2 --dtype fp8 --tokens 1,64,8,512,16384,256,4096,16,1024 --quick \
        --time-budget 90s --out "$out/fp8.profile.json" --overwrite
    part qwen3 80 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 2048 --inter 768 \
        --experts 128 --top-k 8 --tokens 1,64,8,512,4096,256,16384,16,1024 --quick --time-budget 60s \
        --out "$out/qwen3.profile.json" --routing-out "$out/qwen3.routing.json" --overwrite
    if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
        part peers 70 python3 "$here/peers/gpu.py" --routing "$out/qwen3.routing.json" \
            --profile "$out/qwen3.profile.json" --out "$out/peers.json" --seconds 55
    else
        skip peers 'python3 has no torch'
    fi
    if command -v compute-sanitizer >/dev/null; then
        # racecheck knows nothing of bulk copies and their barriers: it is for the kernels without them.
        part memcheck 60 bash "$here/parts.sh" sanitized memcheck on_a_gpu::small_9_swapped_operands
        part initcheck 60 bash "$here/parts.sh" sanitized initcheck on_a_gpu::small_7_generic_products
        part synccheck 60 bash "$here/parts.sh" sanitized synccheck on_a_gpu::small_8_hopper_products
        part racecheck 60 bash "$here/parts.sh" sanitized racecheck on_a_gpu::small_4_alignment
    else
        skip sanitizers 'compute-sanitizer is not on the path'
    fi
else
    for name in parity fp8 qwen3 peers sanitizers; do
        skip "$name" "${reason:-no GPU was found}"
    done
fi
finish
