// cp.async: 16-byte copies that arrive when the delivery mode says so, at the latest at the wait.

#include <cstring>

#include "runtime.h"

namespace emu {
namespace {

// Writes one copy's bytes, as an ordinary (generic proxy) store of its issuer.
void deliver(Thread& thread, size_t index) {
    Copy copy = thread.copies[index];
    thread.copies[index] = thread.copies.back();
    thread.copies.pop_back();
    Block& b = *thread.owner;
    u8* to = shared_pointer(b, copy.to);
    thread.copy_context.enter();
    thread.copy_issued.acquire();
    if (copy.bytes > 0) note_read(copy.from, copy.bytes);
    note_write(to, 16);
    thread.copy_done.release();
    thread.copy_context.leave();
    u8 value[16] = {};
    std::memcpy(value, copy.from, copy.bytes);
    std::memcpy(to, value, 16);
    mark_store(b, copy.to, 16, &thread);
}

}  // namespace

bool deliver_copy(Block& block) {
    Thread& thread = block.threads[random_u32() % block.threads.size()];
    if (thread.copies.empty()) return false;
    deliver(thread, random_u32() % thread.copies.size());
    return true;
}

void check_copies_ended(Thread& thread) {
    if (!thread.copies.empty())
        fail(kInFlight, "a thread ended with %zu cp_async16 that it has not waited for",
             thread.copies.size());
}

}  // namespace emu

using namespace emu;

void emu_cp_async16(u32 to, const void* from, u32 bytes) {
    point("cp_async16");
    if (bytes > 16) fail(kShared, "cp_async16 of %u bytes", bytes);
    Thread* thread = self();
    checked_shared(block(), to, 16, 16);
    if (bytes > 0) check_global(from, bytes, 16);
    thread->copy_issued.release();
    thread->copies.push_back({to, from, bytes, thread->copy_groups});
    if (emu_options().mode == kEmuEarly) deliver(*thread, thread->copies.size() - 1);
}

void emu_cp_async_commit() {
    point("cp_async_commit");
    self()->copy_groups++;
}

void emu_cp_async_wait(u32 newest) {
    point("cp_async_wait");
    Thread* thread = self();
    // Groups below this number must be finished; copies that were not committed belong to none.
    u32 groups = thread->copy_groups > newest ? thread->copy_groups - newest : 0;
    for (size_t i = 0; i < thread->copies.size();) {
        if (thread->copies[i].group < groups) deliver(*thread, i);
        else i++;
    }
    thread->copy_done.acquire();
}
