#!/usr/bin/env python3
"""Makes libraries that stand in for those of CUDA, so that PyTorch's general wheel loads without them.

    python3 stubs.py <site-packages>/torch/lib

The wheel for x86-64 links CUDA's libraries, more than two gigabytes that a measurement of processors
has no use for. Here each of them that is missing becomes a library of the same name and versions
whose functions all return 100, CUDA's code for "no device".
"""

import pathlib
import re
import subprocess
import sys

CUDA = re.compile(r"^_*(cu|nv|nccl)")


def tool(*command):
    """What a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(library):
    """Names of the libraries that a library links."""
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", tool("readelf", "--dynamic", "--wide", library)))


def versions(library):
    """File that each version of a symbol comes from."""
    found, file = {}, None
    for line in tool("readelf", "--version-info", "--wide", library).splitlines():
        if match := re.search(r"\bFile: (\S+)", line):
            file = match[1]
        elif file and (match := re.search(r"\bName: (\S+)\s+Flags", line)):
            found[match[1]] = file
    return found


def symbols(library, kind):
    """Names of the dynamic symbols, `name` or `name@version`; `kind` is nm's flag."""
    lines = tool("nm", "--dynamic", kind, library).splitlines()
    return {line.split()[-1].replace("@@", "@") for line in lines if line}


def main():
    folder = pathlib.Path(sys.argv[1])
    libraries = sorted(str(path) for path in folder.glob("*.so"))
    present = {path.name for path in folder.iterdir()}
    missing = {name for library in libraries for name in needed(library)} - present
    missing = {name for name in missing if CUDA.match(name.removeprefix("lib"))}
    if not missing:
        return
    defined = set().union(*(symbols(library, "--defined-only") for library in libraries))
    defined = {name.split("@")[0] for name in defined}
    # Symbols without a version may come from any library: the first takes them.
    wanted = {name: {} for name in sorted(missing)}
    first = next(iter(wanted))
    for library in libraries:
        files = versions(library)
        for symbol in symbols(library, "--undefined-only"):
            name, _, version = symbol.partition("@")
            file = files.get(version, first)
            if file in wanted and CUDA.match(name) and name not in defined:
                wanted[file].setdefault(version, set()).add(name)
    for file, by_version in wanted.items():
        code = "".join(f"long {name}(void) {{ return 100; }}\n" for name in sorted(set().union(*by_version.values())))
        script = "".join(
            f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};\n"
            for version, names in by_version.items()
            if version
        )
        map_file = folder / f"{file}.map"
        map_file.write_text(script)
        flags = [f"-Wl,--version-script={map_file}"] if script else []
        command = ["cc", "-shared", "-nostdlib", "-fno-builtin", "-w", f"-Wl,-soname,{file}", *flags]
        subprocess.run([*command, "-o", str(folder / file), "-xc", "-"], input=code, text=True, check=True)
        map_file.unlink()
    print(f"stand-ins for {len(wanted)} libraries of CUDA: {' '.join(wanted)}")


if __name__ == "__main__":
    main()
