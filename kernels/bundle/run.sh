#!/usr/bin/env bash
# Checks and times the kernels on this machine: parity, sanitizers, ceilings, benches, profiles, peers.
# Needs a CUDA driver for the GPU parts; without one they are SKIPPED with the reason and the rest runs.
#
#   bash run.sh [OUT]        results and logs go to OUT (default ./out)
#
# Clocks, power limits and modes of the device are read, never set. A part that fails does not stop
# those after it; the table at the end names every part, and the exit code is 1 if any failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-$PWD/out}}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
export MOE_FRONTIER_PROFILES="$out/profiles"
bin="$here/bin"
table=()
failed=0

# part NAME SECONDS COMMAND...: runs a command with a time limit, its output in OUT/NAME.log.
part() {
    local name=$1 limit=$2 began=$SECONDS rc=0
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || rc=$?
    local took=$((SECONDS - began)) state=ok
    if [ "$rc" -eq 124 ] || [ "$rc" -eq 137 ]; then
        state="TIMEOUT after $limit s"
        failed=1
    elif [ "$rc" -ne 0 ]; then
        state="FAILED with $rc"
        failed=1
    elif grep -q '^SKIPPED' "$out/$name.log"; then
        state=$(grep -m1 '^SKIPPED' "$out/$name.log")
    fi
    table+=("$(printf '%-24s %5d s  %s' "$name" "$took" "$state")")
    printf '%s\n' "${table[-1]}"
}

skip() {
    table+=("$(printf '%-24s %5d s  SKIPPED: %s' "$1" 0 "$2")")
    printf '%s\n' "${table[-1]}"
}

(cd "$here" && sha256sum --quiet -c SHA256SUMS) || {
    printf 'the bundle is damaged: copy it again\n' >&2
    exit 1
}

part doctor 60 "$bin/moe-frontier" doctor
sed 's/^/    /' "$out/doctor.log"
gpu=$("$bin/moe-frontier" doctor --json 2>/dev/null | grep -c '"gpu:0')
reason=$(sed -n 's/^GPU not used *//p' "$out/doctor.log")

if [ "$gpu" -gt 0 ]; then
    command -v nvidia-smi >/dev/null && part device 30 nvidia-smi -q -d CLOCK,POWER,ECC,TEMPERATURE
    part parity 480 "$bin/emulator" on_a_gpu --test-threads=1 --nocapture
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck initcheck synccheck; do
            part "$tool" 480 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$bin/emulator" on_a_gpu_small --test-threads=1 --nocapture
        done
    else
        skip sanitizers 'compute-sanitizer is not on the path'
    fi
    # The layers of models that people serve, then the family that `rank` sweeps.
    part mixtral 300 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 4096 --inter 14336 \
        --experts 8 --top-k 2 --out "$out/mixtral.profile.json" \
        --routing-out "$out/mixtral.routing.json" --force
    part qwen3 300 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 2048 --inter 768 \
        --experts 128 --top-k 8 --out "$out/qwen3.profile.json" --force
    part family 300 "$bin/moe-frontier" measure --device gpu --mode cold,stream --hidden 4096 --inter 14336 \
        --experts 4,16,32 --top-k 2 --out "$out/family.profile.json" --force
    part rank 300 "$bin/moe-frontier" rank --profile "$out/family.profile.json" --out "$out/rank"
    part bench 500 "$bin/cuda" --bench
    if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
        part peers 400 python3 "$here/peers/gpu.py" --routing "$out/mixtral.routing.json" \
            --profile "$out/mixtral.profile.json" --out "$out/peers.json"
    else
        skip peers 'python3 has no torch'
    fi
else
    for name in parity sanitizers mixtral qwen3 family rank bench peers; do
        skip "$name" "${reason:-no GPU was found}"
    done
    # What needs no GPU shows that the executables of the bundle work here.
    part cpu 120 "$bin/moe-frontier" measure --device cpu --quick --time-budget 20s --tokens 1,8 --hidden 256 \
        --inter 512 --experts 4 --out "$out/cpu.profile.json" --force
fi

printf '\n%s\n' "results in $out"
printf '%s\n' "${table[@]}" | tee "$out/summary.txt"
exit "$failed"
