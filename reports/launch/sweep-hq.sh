#!/usr/bin/env bash
# A sweep as HyperQueue tasks, one a node (`hq worker start` runs on each). First, on one node of the kind:
#   moe-frontier measure --experts 8,16,32 --hidden 1024 --plan-out plan.json
set -euo pipefail
: "${PLAN:=plan.json}" "${OUT:=shards}" "${SHARDS:=4}"
hq submit --array "0-$((SHARDS - 1))" --cpus all --crash-limit 5 --wait -- \
    moe-frontier measure --plan "$PLAN" --shard "auto/$SHARDS" --out "$OUT"
moe-frontier merge "$OUT" --out profile.json --complete
