// Thread build only, included before everything else in the runtime's units: block copies that the
// thread sanitizer does not see. It intercepts the C library's, which compilers also call on their
// own, and would take the runtime's bookkeeping for accesses of the kernel.

#pragma once

#include <cstddef>

extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("emu_untracked_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("emu_untracked_memmove");
void* memset(void*, int, size_t) noexcept __asm__("emu_untracked_memset");
int memcmp(const void*, const void*, size_t) noexcept __asm__("emu_untracked_memcmp");
}
