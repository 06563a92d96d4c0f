"""Which mixture-of-experts model to train and what it costs to serve.

Each function calls the program that came with this package and returns the document of ``--json`` as a
dict. Keyword arguments are the program's flags: ``train_flops=1e22`` is ``--train-flops 1e22``, ``True``
gives a flag without a value, a list is joined by commas. ``rows`` makes rows for ``pandas.DataFrame``.

>>> import moe_frontier as mf
>>> mf.law("optimal", experts=8, train_flops=1e21)["loss_nats"]  # doctest: +SKIP
>>> mf.rows(mf.rank(profile="h100", train_flops=1e22))           # doctest: +SKIP
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

__all__ = ["Failure", "estimate", "law", "program", "rank", "rows", "run", "size"]


class Failure(Exception):
    """The program refused; ``kind`` and ``exit_code`` are those of ``moe-frontier/error``."""

    def __init__(self, message, kind, exit_code):
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code


def program():
    """Path of the program: ``MOE_FRONTIER_PROGRAM``, else the one of this environment, else of ``PATH``."""
    named = os.environ.get("MOE_FRONTIER_PROGRAM")
    if named:
        return named
    name = "moe-frontier" + (".exe" if os.name == "nt" else "")
    for scheme in (None, sysconfig.get_preferred_scheme("user")):
        folder = sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts")
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is neither in this environment nor in PATH")
    return found


def run(*words, **flags):
    """Call a command, such as ``run("law", "list")``, and return its document."""
    arguments = [program(), *map(str, words), "--json"]
    for name, value in flags.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            arguments.append(flag)
        elif isinstance(value, (list, tuple)):
            arguments.append(f"{flag}={','.join(map(str, value))}")
        else:
            arguments.append(f"{flag}={value}")
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", check=False)
    lines = done.stderr.splitlines()
    if done.returncode != 0:
        try:
            told = json.loads(lines[-1])
        except (IndexError, ValueError):
            told = {"message": done.stderr.strip(), "kind": "crash", "exit_code": done.returncode}
        raise Failure(told["message"], told["kind"], told["exit_code"])
    for line in lines:
        if line.startswith("warning: "):
            print(line, file=sys.stderr)
    return json.loads(done.stdout)


def rank(**flags):
    """Rank expert counts. Without ``out`` plots and page go to a folder that is removed again."""
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
