# Parts of a run on a machine that is there for minutes: each has a limit, the run has a clock, and after
# every part, and every half minute of a long one, the results are packed. Sourced by run.sh and long.sh.
#
# Expects `here` (the folder of the bundle) and `out` (an absolute folder that exists).
#   BUNDLE_SECONDS   what the machine is there for, 600 unless told otherwise; the last part ends before
#   BUNDLE_SCALE     how many times faster than the clock on the wall time passes, for trials of the
#                    scripts; 1
#
# Clocks, power limits and modes of the device are read, never set. A part that fails does not stop those
# after it. Whatever ends the run, OUT/results.tar.gz is whole and holds what was there at the last packing.

export here out
total=${BUNDLE_SECONDS:-600}
scale=${BUNDLE_SCALE:-1}
bin="$here/bin"
# Kept for the last packing and the table.
reserve=8
# Less than this is no time for a part.
least=3
table=()
failed=0
began=${EPOCHREALTIME/[.,]/}
# Carried home one file at a time, and each no longer than this.
most_bytes=$((16 << 20))

# Seconds since the start.
elapsed() {
    echo $(((${EPOCHREALTIME/[.,]/} - began) * scale / 1000000))
}

# What is left of the run, for parts.
left() {
    echo $((total - reserve - $(elapsed)))
}

# Seconds as a command of this machine waits for them.
real() {
    local ms=$(($1 * 1000 / scale))
    printf '%d.%03d' $((ms / 1000)) $((ms % 1000))
}

# Packs what is there; a reader finds the archive of before or the new one, never a part of one. Reports of
# the profiler are large and have an archive of their own.
pack() {
    local name
    printf '%s\n' "${table[@]}" >"$out/summary.txt"
    for name in results profiler; do
        local new="$out/.$name.$BASHPID"
        if [ "$name" = results ]; then
            tar -C "$out" --exclude='*.tar.gz' --exclude='.results.*' --exclude='.profiler.*' --exclude='*.ncu-rep' \
                -czf "$new" . 2>/dev/null
        elif compgen -G "$out/*.ncu-rep" >/dev/null; then
            (cd "$out" && tar -czf "$new" -- *.ncu-rep 2>/dev/null)
        else
            continue
        fi
        # A file that grew meanwhile is no reason to have no archive.
        if tar -tzf "$new" >/dev/null 2>&1; then
            mv -f "$new" "$out/$name.tar.gz"
        else
            rm -f "$new"
        fi
    done
}

say() {
    table+=("$1")
    printf '%s\n' "$1"
}

# skip NAME REASON
skip() {
    say "$(printf '%-34s %5d s  SKIPPED: %s' "$1" 0 "$2")"
    pack
}

# part NAME SECONDS COMMAND...: runs a command with a time limit, its output in OUT/NAME.log.
part() {
    local name=$1 limit=$2 rest start took rc=0 state=ok
    shift 2
    rest=$(left)
    if [ "$rest" -lt "$least" ]; then
        skip "$name" "no time is left"
        return
    fi
    [ "$limit" -le "$rest" ] || limit=$rest
    start=$(elapsed)
    # The output says what runs while it runs.
    timeout --signal=TERM --kill-after="$(real 3)" "$(real "$limit")" "$@" >"$out/$name.log" 2>&1 &
    local running=$!
    # Long parts are packed on the way: nobody may be asked when the machine goes.
    while kill -0 "$running" 2>/dev/null; do
        local ticks=0
        while [ "$ticks" -lt 30 ] && kill -0 "$running" 2>/dev/null; do
            sleep "$(real 1)"
            ticks=$((ticks + 1))
        done
        kill -0 "$running" 2>/dev/null && pack
    done
    wait "$running" || rc=$?
    took=$(($(elapsed) - start))
    if grep -q '^SKIPPED' "$out/$name.log"; then
        state=$(grep -m1 '^SKIPPED' "$out/$name.log" | cut -c1-200)
    fi
    case $rc in
        0) ;;
        124 | 137)
            state="TIMEOUT after $limit s"
            failed=1
            ;;
        # The command found out that it cannot do its work here, and wrote the reason.
        77) [ "$state" != ok ] || state="SKIPPED: it cannot run here" ;;
        *)
            state="FAILED with $rc"
            failed=1
            ;;
    esac
    say "$(printf '%-34s %5d s  %s' "$name" "$took" "$state")"
    pack
}

# parity PREFIX SECONDS ALL: each family of kernels in a process of its own, the smallest shapes first.
parity() {
    local prefix=$1 limit=$2 end test
    end=$(($(elapsed) + $3))
    for test in $("$bin/emulator" --list 2>/dev/null | sed -n "s/^\(on_a_gpu::${prefix}_.*\): test$/\1/p"); do
        if [ "$(elapsed)" -ge "$end" ]; then
            skip "parity-${test#on_a_gpu::}" "the time of these parts is over"
        else
            part "parity-${test#on_a_gpu::}" "$limit" "$bin/emulator" --exact "$test" --nocapture --test-threads=1
        fi
    done
}

# sanitized TOOL TEST: a family under a tool of compute-sanitizer; exit 77 where the tool does not work.
sanitized() {
    local tool=$1 test=$2 rc=0 log
    log=$(mktemp)
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$bin/emulator" --exact "$test" --nocapture \
        --test-threads=1 >"$log" 2>&1 || rc=$?
    cat "$log"
    if ! grep -q 'ERROR SUMMARY' "$log"; then
        printf 'SKIPPED: compute-sanitizer does not work here: %s\n' \
            "$(grep -m1 -E '^=========|[Ee]rror' "$log" || tail -n1 "$log")"
        rm -f "$log"
        return 77
    fi
    rm -f "$log"
    return "$rc"
}

# profiled REPORT: the products of four batches under the profiler; exit 77 where it does not work.
profiled() {
    local rc=0 log
    log=$(mktemp)
    ncu --clock-control none --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy \
        --section SchedulerStats --section WarpStateStats -k 'regex:^(gemv|grouped_gemm|swap_ab)' \
        -f -o "$1" "$bin/cuda" --bench --once >"$log" 2>&1 || rc=$?
    cat "$log"
    if [ ! -s "$1.ncu-rep" ]; then
        printf 'SKIPPED: ncu does not work here: %s\n' "$(grep -m1 '^==ERROR==' "$log" || tail -n1 "$log")"
        rm -f "$log"
        return 77
    fi
    rm -f "$log"
    ncu --import "$1.ncu-rep" --page details --csv >"$1.csv" 2>/dev/null
    return "$rc"
}

# What is at hand, and what is not.
begin() {
    trap 'pack; exit 143' TERM
    trap 'pack; exit 130' INT
    (cd "$here" && sha256sum --quiet -c SHA256SUMS) || {
        printf 'the bundle is damaged: copy it again\n' >&2
        exit 1
    }
    export MOE_FRONTIER_PROFILES="$out/profiles"
    part doctor 20 "$bin/moe-frontier" doctor --details
    sed 's/^/    /' "$out/doctor.log"
    gpu=$(grep -c '^GPU  *gpu:0' "$out/doctor.log")
    reason=$(sed -n 's/^GPU not used *//p' "$out/doctor.log")
}

finish() {
    say "$(printf '%-34s %5d s' 'in all' "$(elapsed)")"
    local file size
    for file in "$out"/*.tar.gz; do
        size=$(stat -c %s "$file" 2>/dev/null || echo 0)
        [ "$size" -le "$most_bytes" ] ||
            say "$(basename "$file") has $size bytes, more than the $most_bytes that are carried: split it"
    done
    pack
    printf '\nresults: %s\n' "$out/results.tar.gz"
    exit "$failed"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    "$@"
fi
