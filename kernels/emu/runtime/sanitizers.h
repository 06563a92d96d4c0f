// What the sanitizers are told: fibers, synchronisation edges, accesses made on behalf of the
// kernel.
//
// In the thread build the runtime itself is compiled without the sanitizer (EMU_THREAD is defined
// instead), so that only kernel code is watched, and happens-before edges exist only where this
// file is asked for them. In all other builds the calls are empty.

#pragma once

#include <cstddef>

#if defined(EMU_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#endif

namespace emu {

// Whether anyone asks for happens-before edges.
#if defined(EMU_THREAD)
constexpr bool kWatchesEdges = true;
inline void release_at(const void* place) { __tsan_release(const_cast<void*>(place)); }
inline void acquire_at(const void* place) { __tsan_acquire(const_cast<void*>(place)); }
#else
constexpr bool kWatchesEdges = false;
inline void release_at(const void*) {}
inline void acquire_at(const void*) {}
#endif

// A place that edges go through: what is released here is before what is acquired here.
struct SyncToken {
    void release() { release_at(place_); }
    void acquire() { acquire_at(place_); }

private:
    alignas(8) char place_[kWatchesEdges ? 8 : 1];
};

// A fiber as the sanitizers know it.
struct FiberContext {
    void* thread_fiber = nullptr;
    void* fake_stack = nullptr;
};

#if defined(EMU_THREAD)
// The scheduler's own fiber, which has seen nothing of the running blocks.
extern void* scheduler_fiber;
#endif

// The thread sanitizer's view of an asynchronous engine: accesses between `enter` and `leave` are
// its own and not the running thread's.
struct OpContext {
#if defined(EMU_THREAD)
    void enter() {
        caller_ = __tsan_get_current_fiber();
        if (!fiber_) {
            // A new fiber has seen all that its creator has: that must not be the running thread.
            __tsan_switch_to_fiber(scheduler_fiber, 1);
            fiber_ = __tsan_create_fiber(0);
        }
        __tsan_switch_to_fiber(fiber_, 1);
    }
    void leave() { __tsan_switch_to_fiber(caller_, 1); }
    void destroy() {
        if (fiber_) __tsan_destroy_fiber(fiber_);
        fiber_ = nullptr;
    }

private:
    void* fiber_ = nullptr;
    void* caller_ = nullptr;
#else
    void enter() {}
    void leave() {}
    void destroy() {}
#endif
};

inline void note_read(const void* pointer, size_t bytes) {
#if defined(EMU_THREAD)
    __tsan_read_range(const_cast<void*>(pointer), bytes);
#else
    (void)pointer, (void)bytes;
#endif
}

inline void note_write(const void* pointer, size_t bytes) {
#if defined(EMU_THREAD)
    __tsan_write_range(const_cast<void*>(pointer), bytes);
#else
    (void)pointer, (void)bytes;
#endif
}

// Makes bytes unreadable, or readable, for the address sanitizer.
inline void poison(const void* pointer, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(pointer, bytes);
#else
    (void)pointer, (void)bytes;
#endif
}

inline void unpoison(const void* pointer, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(pointer, bytes);
#else
    (void)pointer, (void)bytes;
#endif
}

}  // namespace emu
