// Settings of the sanitizers: the exit codes that capsule.md promises.

#include <cstdio>

#include "runtime.h"

#if defined(EMU_THREAD)

extern "C" const char* __tsan_default_options() {
    // `history_size`: both stacks of a race, even when one access lies far back.
    return "exitcode=66:halt_on_error=1:report_signal_unsafe=0:history_size=4";
}

extern "C" void __tsan_on_report(void*) {
    const EmuThread* thread = emu_self;
    if (thread)
        std::fprintf(stderr, "emulator: race: see above (block %u,%u, thread %u, in %s)\n",
                     thread->block, thread->block_y, thread->thread, emu::self()->wrapper);
}

#elif defined(__SANITIZE_ADDRESS__)

extern "C" const char* __asan_default_options() { return "exitcode=77:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() {
    return "exitcode=77:halt_on_error=1:print_stacktrace=1";
}

#endif
