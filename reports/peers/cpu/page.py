"""A run as a page of tables."""

from options import PEERS, WORST_ERROR


def table(document):
    """The document as a page."""
    machine, protocol, cells = (document[key] for key in ["machine", "protocol", "cells"])
    peers = [name for name in PEERS if name in document["versions"]]
    others = max(cell["others_rel"] + cell["steal_rel"] for cell in cells)
    lines = [
        "# The MoE layer on a processor, beside other programs",
        "",
        f"{machine['processor']}, {machine['processors']} processors, {protocol['threads']} threads, last-level cache "
        f"{machine['last_level_cache_bytes'] / 2**20:.0f} MiB, {' '.join(machine['instructions'])}; "
        f"kernel {machine['kernel']}, huge pages {machine['huge_pages']}, governor {machine['governor']}; "
        f"{document['date']}.",
        "",
        f"`{document['command']}`",
        "",
        f"hidden {protocol['hidden']}, inter {protocol['inter']}, top-{protocol['top_k']}, bf16. Milliseconds a layer, "
        f"medians of {protocol['rounds']} rounds in which all took turns; in parentheses our time over the peer's "
        "(below 1: ours is faster) with the 95 % interval of its median over rounds. Ours includes router and align; "
        "the others are given expert ids and weights. Weights are in the form in which each program keeps them: packed "
        "once by ours (unless --in-rows), vLLM and SGLang. They come from memory: sets take turns until twice the "
        "last-level cache was read. Read floor: the time in which the weights of the visited experts can be read at "
        "the bandwidth measured in the same rounds. Others: what other programs and guests took of the processors.",
        "",
    ]
    if others > 0.05:
        lines += [
            f"**Up to {100 * others:.0f} % of the processor went to other programs or guests while a cell ran: "
            "this is no quiet machine's table.**",
            "",
        ]
    lines += [
        f"| E | tokens | read GB/s | read floor | ours | floor / ours | {' | '.join(peers)} | others |",
        "|---" * (7 + len(peers)) + "|",
    ]
    for cell in cells:
        ours = cell["ms"]["ours"]["median"]
        row = [
            str(cell["experts"]),
            str(cell["tokens"]),
            f"{cell['read_bytes_per_s']['median'] / 1e9:.1f}",
            f"{cell['read_floor_ms']:.2f}",
            f"{ours:.2f}",
            f"{cell['read_floor_ms'] / ours:.2f}",
        ]
        for name in peers:
            if name in cell["ms"]:
                ratio = cell["ours_over_peer"][name]
                row.append(
                    f"{cell['ms'][name]['median']:.2f} "
                    f"({ratio['median']:.2f}, {ratio['lo']:.2f} to {ratio['hi']:.2f})"
                )
            else:
                row.append("not timed")
        row.append(f"{100 * (cell['others_rel'] + cell['steal_rel']):.0f} %")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| contender | version | worst mean relative error |", "|---|---|---|"]
    for name, version in document["versions"].items():
        errors = [cell["mean_relative_error"][name] for cell in cells if name in cell["mean_relative_error"]]
        worst = "not a number" if None in errors else f"{max(errors):.1e}" if errors else "none"
        lines.append(f"| {name} | {version} | {worst} |")
    wrong = [
        f"- {name} at E={cell['experts']}, {cell['tokens']} tokens: output off by "
        f"{'a value that is no number' if error is None else f'{error:.2g}'}, not timed"
        for cell in cells
        for name, error in cell["mean_relative_error"].items()
        if error is None or error > WORST_ERROR
    ]
    left = [f"- {name}: {reason}" for name, reason in document["left_out"].items()]
    if wrong or left:
        lines += ["", "Not timed:", "", *left, *wrong]
    lines += ["", f"Built from {document['commit']}; {machine['rustc']}; {machine['compiler']}.", ""]
    return "\n".join(lines)
