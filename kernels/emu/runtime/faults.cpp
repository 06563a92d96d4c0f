// Faults of memory and of time, told as findings with the running thread's place.
//
// The sanitizers have better words for bad accesses, so that only the plain build listens to them.

#include <signal.h>
#include <unistd.h>

#include <cstdlib>

#include "runtime.h"

namespace emu {
namespace {

#if !defined(EMU_THREAD) && !defined(__SANITIZE_ADDRESS__)
void bad_access(int, siginfo_t* info, void*) {
    const u8* address = (const u8*)info->si_addr;
    const Thread* thread = self();
    // The page below the stack is the guard.
    if (thread && address < thread->stack && address + 4096 >= thread->stack)
        fail(kUsage, "a thread has used up its stack of %zu bytes", thread->stack_bytes);
    fail(kGlobal, "an access to %p, where nothing is", address);
}
#endif

void too_long(int) { fail(kDeadlock, "the launches do not end within the time limit"); }

}  // namespace

void listen_for_faults() {
#if !defined(EMU_THREAD) && !defined(__SANITIZE_ADDRESS__)
    static bool listening = false;
    if (listening) return;
    listening = true;
    // A stack of its own: the thread's may be what has run out.
    static u8 alternate[64 * 1024];
    stack_t stack = {};
    stack.ss_sp = alternate;
    stack.ss_size = sizeof(alternate);
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = bad_access;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
#endif
}

void limit_time(u32 seconds) {
    struct sigaction action = {};
    action.sa_handler = too_long;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGALRM, &action, nullptr);
    alarm(seconds);
}

}  // namespace emu
