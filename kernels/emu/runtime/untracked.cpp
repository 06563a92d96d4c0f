// Thread build only: memory functions that the thread sanitizer does not intercept (untracked.h),
// and allocation from a pool of the runtime's own for the same reason.

#include <cstddef>

#if defined(EMU_THREAD)

#include <sys/mman.h>

#include <cstdlib>
#include <new>

// Loops stay loops: the compiler would turn them into the calls they replace.
#define PLAIN_LOOP __attribute__((optimize("no-tree-loop-distribute-patterns")))

extern "C" {

PLAIN_LOOP void* emu_untracked_memcpy(void* to, const void* from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((char*)to)[i] = ((const char*)from)[i];
    return to;
}

PLAIN_LOOP void* emu_untracked_memmove(void* to, const void* from, size_t bytes) {
    if ((char*)to <= (const char*)from) return emu_untracked_memcpy(to, from, bytes);
    for (size_t i = bytes; i > 0; i--) ((char*)to)[i - 1] = ((const char*)from)[i - 1];
    return to;
}

PLAIN_LOOP void* emu_untracked_memset(void* to, int value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) ((char*)to)[i] = (char)value;
    return to;
}

PLAIN_LOOP int emu_untracked_memcmp(const void* one, const void* other, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        int difference = ((const unsigned char*)one)[i] - ((const unsigned char*)other)[i];
        if (difference != 0) return difference;
    }
    return 0;
}

}  // extern "C"

namespace {

// Never given back: a place that was freed and used again would carry the history of its first
// user, and a run is one process. Large allocations come from the system one by one.
void* allocate(size_t bytes) {
    constexpr size_t kChunk = 64ul << 20;
    static char* at = nullptr;
    static char* end = nullptr;
    bytes = (bytes + 63) & ~63ul;
    if (bytes > (size_t)(end - at)) {
        size_t chunk = bytes > kChunk ? bytes : kChunk;
        void* memory = mmap(nullptr, chunk, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) std::abort();
        at = (char*)memory;
        end = at + chunk;
    }
    char* start = at;
    at += bytes;
    return start;
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void operator delete(void*) noexcept {}
void operator delete[](void*) noexcept {}
void operator delete(void*, size_t) noexcept {}
void operator delete[](void*, size_t) noexcept {}

#endif
