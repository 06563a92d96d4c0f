// Kernels by name; see registry.h.

#include "../registry.h"

#include "runtime.h"

namespace {

std::map<std::string, EmuKernel>& kernels() {
    static std::map<std::string, EmuKernel> all;
    return all;
}

}  // namespace

void emu_register(EmuKernel kernel) {
    std::string name = kernel.name;
    if (!kernels().emplace(name, std::move(kernel)).second)
        emu::fail(emu::kUsage, "two kernels have the name %s", name.c_str());
}

const EmuKernel* emu_find_kernel(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

const std::map<std::string, EmuKernel>& emu_all_kernels() { return kernels(); }
