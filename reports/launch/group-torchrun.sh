#!/usr/bin/env bash
# Collectives between the GPUs of one node or several, by NCCL. The same command on every node.
set -euo pipefail
: "${NODES:=1}" "${NODE:=0}" "${GPUS:=8}" "${HEAD:=localhost}" "${OUT:=links.json}"
torchrun --no-python --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$GPUS" \
    --master-addr "$HEAD" --master-port 29500 \
    moe-frontier measure --group nccl --ep "$((NODES * GPUS))" \
    --collectives all_reduce,all_to_all,all_gather,reduce_scatter --bytes 1K-256M*4 --out "$OUT"
