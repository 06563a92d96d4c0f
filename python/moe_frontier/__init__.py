"""Which mixture-of-experts model to train and what it costs to serve.

Each function asks the program's code in this process and returns the document of ``--json`` as a dict.
Keyword arguments are the program's flags: ``train_flops=1e22`` is ``--train-flops 1e22``, ``True`` gives a
flag without a value, a list is joined by commas. ``rows`` makes rows for ``pandas.DataFrame``.

>>> import moe_frontier as mf
>>> mf.law("optimal", experts=8, train_flops=1e21)["loss_nats"]  # doctest: +SKIP
>>> mf.rows(mf.rank(profile="h100", train_flops=1e22))           # doctest: +SKIP

Nothing is measured in a Python process: ``moe-frontier measure``, the program that comes with this
package, writes a profile that ``profile`` names.
"""

import json
import os
import sys
import tempfile
import warnings

from . import _native

__all__ = ["Failure", "estimate", "law", "rank", "rows", "run", "size"]
__version__ = _native.__version__


class Failure(Exception):
    """The program refused; ``kind`` and ``exit_code`` are those of ``moe-frontier/error``."""

    def __init__(self, message, kind, exit_code):
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code


def run(*words, **flags):
    """Call a command, such as ``run("law", "list")``, and return its document."""
    line = ["moe-frontier", *map(str, words), "--json"]
    for name, value in flags.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            line.append(flag)
        elif isinstance(value, (list, tuple)):
            line.append(f"{flag}={','.join(map(str, value))}")
        else:
            line.append(f"{flag}={value}")
    succeeded, text, told = _native.document(line)
    for message in told:
        warnings.warn(message, stacklevel=3)
    document = json.loads(text)
    if not succeeded:
        raise Failure(document["message"], document["kind"], document["exit_code"])
    return document


def rank(**flags):
    """Rank expert counts; ``profile`` is needed. Without ``out`` plots and page are not kept."""
    if "out" in flags:
        return run("rank", **flags)
    with tempfile.TemporaryDirectory() as folder:
        return run("rank", out=os.path.join(folder, "out"), **flags)


def size(model, **flags):
    """Size a deployment of a model for a request rate under a service level."""
    return run("size", model=model, **flags)


def estimate(model=None, **flags):
    """Estimate one deployment, or with ``points`` one for each row of a file."""
    return run("estimate", model=model, **flags)


def law(question, **flags):
    """Ask a loss law: ``question`` is ``"eval"``, ``"optimal"``, ``"list"`` or ``"claims"``."""
    return run("law", question, **flags)


def rows(document):
    """The list of a document as flat rows, inner objects joined by dots: ready for ``pandas.DataFrame``."""
    lists = ("candidates", "rows", "alternatives", "laws", "presets", "devices", "cells", "terms")
    found = next((document[name] for name in lists if isinstance(document.get(name), list)), [document])

    def flat(value, path, into):
        if isinstance(value, dict):
            for key, inner in value.items():
                flat(inner, f"{path}.{key}" if path else key, into)
        else:
            into[path] = value
        return into

    return [flat(row, "", {}) for row in found]


def main():
    """The program ``moe-frontier``, with the words of ``sys.argv``."""
    again = [sys.executable, "-m", "moe_frontier"]
    return _native.main(["moe-frontier", *sys.argv[1:]], again)
