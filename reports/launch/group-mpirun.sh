#!/usr/bin/env bash
# Experts over the ranks of one host or several, by MPI; one rank a socket, pinned to it. The program is built
# with `--features mpi`. On several hosts: HOSTS=node1:2,node2:2
set -euo pipefail
: "${RANKS:=2}" "${OUT:=group.json}" "${HOSTS:=localhost:$RANKS}"
mpirun -n "$RANKS" --host "$HOSTS" --map-by socket --bind-to socket \
    moe-frontier measure --group mpi --ep "$RANKS" --experts 8,16,32 --routing zipf:0.8 --out "$OUT"
