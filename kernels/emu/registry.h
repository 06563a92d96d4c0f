// Kernels by name, so that the capsule driver can launch what it has never heard of.
//
// build.sh puts each .cu into a unit of its own and appends one EMU_REGISTER line a kernel, with
// the name and bounds that KERNEL left in the preprocessed text. The function's type tells the
// rest: how many tensor maps lead the parameters, and how large the parameter struct is.

#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>

#include "../ptx.cuh"

struct EmuKernel {
    std::string name;
    u32 most_threads;
    u32 maps;
    u32 parameter_bytes;
    // Binds the tensor maps and the struct's bytes.
    std::function<std::function<void()>(const TensorMap* maps, const u8* parameters)> bind;
};

void emu_register(EmuKernel kernel);
// Null when no kernel has the name.
const EmuKernel* emu_find_kernel(const std::string& name);
const std::map<std::string, EmuKernel>& emu_all_kernels();

template <typename... P>
struct EmuSignature {
    static constexpr u32 kMaps =
        (0u + ... + (std::is_same_v<std::decay_t<P>, TensorMap> ? 1u : 0u));
    static constexpr u32 kStructs = sizeof...(P) - kMaps;
    static constexpr u32 kBytes =
        (0u + ... + (std::is_same_v<std::decay_t<P>, TensorMap> ? 0u : (u32)sizeof(P)));
    static_assert(kStructs <= 1, "a kernel takes tensor maps and then at most one struct");
    static_assert((std::is_trivially_copyable_v<P> && ...), "parameters are copied as bytes");
};

// The next parameter: the tensor maps in order, then the struct.
template <typename T>
T emu_next_parameter(const TensorMap*& maps, const u8*& parameters) {
    if constexpr (std::is_same_v<std::decay_t<T>, TensorMap>) {
        return *maps++;
    } else {
        T value;
        std::memcpy(&value, parameters, sizeof(T));
        return value;
    }
}

template <typename... P>
EmuKernel emu_describe(const char* name, u32 most_threads, void (*kernel)(P...)) {
    using Signature = EmuSignature<P...>;
    EmuKernel described;
    described.name = name;
    described.most_threads = most_threads;
    described.maps = Signature::kMaps;
    described.parameter_bytes = Signature::kBytes;
    described.bind = [kernel](const TensorMap* maps, const u8* parameters) {
        // In braces, so that the parameters are taken from left to right.
        std::tuple<P...> values{emu_next_parameter<P>(maps, parameters)...};
        return [kernel, values] { std::apply(kernel, values); };
    };
    return described;
}

#define EMU_REGISTER(kernel, most_threads, blocks) \
    static const bool emu_registered_##kernel =    \
        (emu_register(emu_describe(#kernel, most_threads, kernel)), true);
