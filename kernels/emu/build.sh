#!/bin/sh
# Builds an emulator program: kernels and the runtime with a driver.
#
#   sh build.sh [-k plain|address|thread] [-D MACRO]... [-c CACHE] -o OUT SOURCE...
#
# SOURCE: .cu files (each its own unit, its kernels registered by name) and at most one .cpp with
# `main`; without one, driver.cpp, which runs launch capsules. `-D` goes to kernels and driver (for
# mutants). Objects are kept in CACHE (default OUT.cache) under a checksum of what they are made of.
# The compiler is $CXX, else c++.
set -eu

# In braces: read as a whole before it runs, whatever happens to the file meanwhile.
{
here=$(cd "$(dirname "$0")" && pwd)
kind=plain
defines=
cache=
out=
while getopts k:D:c:o: option; do
    case $option in
    k) kind=$OPTARG ;;
    D) defines="$defines -D$OPTARG" ;;
    c) cache=$OPTARG ;;
    o) out=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ -n "$out" ] && [ $# -gt 0 ] || { sed -n '2,10p' "$0" >&2; exit 2; }
cache=${cache:-$out.cache}
mkdir -p "$cache"

cxx=${CXX:-c++}
warnings="-Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas -Wno-maybe-uninitialized"
flags="-std=c++17 -g1 -ffp-contract=off $warnings -I$here/.. -I$here"
case $kind in
plain)
    kernel_flags="-O2" runtime_flags="-O2" link_flags="" ;;
address)
    sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    kernel_flags="-O1 $sanitize" runtime_flags="-O1 $sanitize" link_flags="$sanitize" ;;
thread)
    # The runtime is not watched itself: it tells the sanitizer what it does for the kernel.
    kernel_flags="-O1 -fsanitize=thread"
    runtime_flags="-O2 -DEMU_THREAD -include runtime/untracked.h"
    link_flags="-fsanitize=thread" ;;
*)
    echo "build.sh: no build of kind '$kind'" >&2; exit 2 ;;
esac

# compile NAME SOURCE FLAGS...: an object in the cache, named by a checksum of the preprocessed
# source; its path on standard output.
compile() {
    name=$1 source=$2
    shift 2
    key=$({ echo "$cxx $*"; "$cxx" "$@" -E -x c++ "$source"; } | cksum | tr ' ' -)
    object=$cache/$name-$kind-$key.o
    if [ ! -f "$object" ]; then
        # Renamed when complete, so that builds side by side never see half an object.
        "$cxx" "$@" -c -x c++ "$source" -o "$object.$$"
        mv "$object.$$" "$object"
    fi
    echo "$object"
}

objects=
driver=$here/driver.cpp
for source in "$@"; do
    case $source in
    *.cpp) driver=$source; continue ;;
    esac
    full=$(cd "$(dirname "$source")" && pwd)/$(basename "$source")
    name=$(basename "$source" .cu)
    # Kernels' names and bounds, from the preprocessed text: macros may have made them.
    # shellcheck disable=SC2086
    kernels=$("$cxx" $flags $defines -E -P -x c++ "$full" | tr '\n' ' ' |
        grep -o 'extern "C" emu_kernel<[^;{]*> *[A-Za-z0-9_]* *(' |
        sed 's/extern "C" emu_kernel<\(.*\)> *\([A-Za-z0-9_]*\) *($/EMU_REGISTER(\2, \1)/') || {
        echo "build.sh: no kernel in $source" >&2; exit 3; }
    unit=$cache/$name-$(printf '%s' "$full $defines $kernels" | cksum | tr ' ' -).unit.cpp
    printf '#include "%s"\n#include "registry.h"\n%s\n' "$full" "$kernels" > "$unit.$$"
    mv "$unit.$$" "$unit"
    # shellcheck disable=SC2086
    objects="$objects $(compile "$name" "$unit" $flags $kernel_flags $defines)"
done
for source in "$here"/runtime/*.cpp; do
    # shellcheck disable=SC2086
    objects="$objects $(compile "$(basename "$source" .cpp)" "$source" $flags $runtime_flags)"
done
# shellcheck disable=SC2086
objects="$objects $(compile "$(basename "$driver" .cpp)" "$driver" $flags $runtime_flags $defines)"
# shellcheck disable=SC2086
"$cxx" $link_flags $objects -o "$out.$$"
mv "$out.$$" "$out"
exit 0
}
