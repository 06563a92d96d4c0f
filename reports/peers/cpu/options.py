"""The options of cpu.sh, read before anything is installed.

    python3 options.py [options]   prints the folder of the installed programs and the peers, one a line
"""

import argparse
import os
import pathlib

from machine import last_level_cache

PEERS = ["torch_loop", "vllm", "sglang", "zentorch", "ggml"]
ROOT = pathlib.Path(__file__).resolve().parents[3]
# Mean relative error up to which an output counts as the same layer's. Roundings of bf16 lead to 6e-3.
WORST_ERROR = 2e-2


def sizes(text):
    values = [int(word) for word in text.split(",")]
    if not all(0 < value <= 1 << 20 for value in values):
        raise argparse.ArgumentTypeError("need whole numbers from 1 on")
    return values


def size(text):
    (value,) = sizes(text)
    return value


def names(text):
    chosen = text.split(",")
    if unknown := set(chosen) - set(PEERS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(PEERS)}")
    return chosen


def parse():
    """The options, with their defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="cpu.sh",
        description="Times the MoE layer on this processor in turns: ours, and those of other programs.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, metavar="DIR", help="where programs are installed (default target/peers)"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="DIR", help="where cpu.md and cpu.json go (default: that folder)"
    )
    parser.add_argument("--quick", action="store_true", help="E = 8 and three batch sizes, to see that it works")
    parser.add_argument("--experts", type=sizes, metavar="LIST", help="default 4,8,16,32")
    parser.add_argument("--tokens", type=sizes, metavar="LIST", help="default 1,4,8,16,64,128,256,512,1024,2048")
    parser.add_argument("--hidden", type=size, default=1024, metavar="N", help="default 1024")
    parser.add_argument("--inter", type=size, default=3584, metavar="N", help="default 3584")
    parser.add_argument("--top-k", type=size, default=2, metavar="N", help="default 2")
    parser.add_argument("--threads", type=size, metavar="N", help="default: as many as the process may run on")
    parser.add_argument(
        "--rounds", type=size, default=7, metavar="N", help="at least 6, for an interval of 95 %% (default 7)"
    )
    parser.add_argument("--peers", type=names, default=PEERS, metavar="LIST", help=f"of {','.join(PEERS)}")
    parser.add_argument(
        "--in-rows", action="store_true", help="ours reads weights as they lie, instead of packing them once"
    )
    parser.add_argument("--cache-mib", type=size, metavar="N", help="last-level cache, where the system does not tell")
    arguments = parser.parse_args()
    arguments.experts = arguments.experts or ([8] if arguments.quick else [4, 8, 16, 32])
    arguments.tokens = arguments.tokens or (
        [1, 16, 128] if arguments.quick else [1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048]
    )
    arguments.folder = (arguments.folder or ROOT / "target" / "peers").resolve()
    arguments.out = arguments.out or arguments.folder
    arguments.cache = arguments.cache_mib << 20 if arguments.cache_mib else last_level_cache()
    allowed = len(os.sched_getaffinity(0))
    arguments.threads = arguments.threads or allowed
    if arguments.cache is None:
        parser.error("this system does not tell the size of its caches: give --cache-mib")
    if arguments.rounds < 6:
        parser.error("--rounds: at least 6")
    if arguments.threads > allowed:
        parser.error(f"--threads: the process may run on {allowed} processors")
    if min(arguments.experts) < arguments.top_k:
        parser.error("--top-k: more than there are experts")
    return arguments


if __name__ == "__main__":
    options = parse()
    print(options.folder)
    print(*options.peers)
