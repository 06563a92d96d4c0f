// Runs a launch capsule in the emulator and writes a result file; formats and codes: capsule.md.

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "emu.h"
#include "registry.h"
#include "runtime/runtime.h"

namespace {

using emu::fail;
using emu::kCapsule;
using emu::kUsage;

constexpr u32 kVersion = 1;
constexpr u32 kBufferConstant = 1;
constexpr u32 kBufferSparse = 2;
constexpr u32 kLaunchOverlap = 1;
// Seconds; a loop without a wrapper in it gives the emulator nothing to see.
constexpr u32 kTimeLimit = 600;
constexpr u64 kCanaryBytes = 64 * 1024;
constexpr u8 kCanary = 0xc5;
// Buffers are 256-byte aligned and not more, as kernels may rely on no more.
constexpr u64 kBufferShift = 256;

// ---- the file ---------------------------------------------------------------------------------

class Reader {
public:
    Reader(const u8* bytes, size_t count) : at_(bytes), end_(bytes + count) {}

    const u8* bytes(u64 count) {
        if (count > (u64)(end_ - at_)) fail(kCapsule, "the file ends early");
        const u8* start = at_;
        at_ += count;
        return start;
    }
    template <typename T>
    T number() {
        T value;
        std::memcpy(&value, bytes(sizeof(T)), sizeof(T));
        return value;
    }
    u32 word() { return number<u32>(); }
    u64 size() { return number<u64>(); }
    std::string text() {
        u32 count = word();
        const u8* start = bytes(count);
        return std::string((const char*)start, count);
    }
    bool at_end() const { return at_ == end_; }

private:
    const u8* at_;
    const u8* end_;
};

std::vector<u8> read_file(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) fail(kCapsule, "%s cannot be opened", path);
    std::vector<u8> all;
    u8 chunk[65536];
    for (size_t got; (got = std::fread(chunk, 1, sizeof(chunk), file)) > 0;)
        all.insert(all.end(), chunk, chunk + got);
    if (std::ferror(file)) fail(kCapsule, "%s cannot be read", path);
    std::fclose(file);
    return all;
}

// ---- buffers ----------------------------------------------------------------------------------

struct Extent {
    u64 offset;
    u64 bytes;
};

struct HostBuffer {
    std::string name;
    u64 bytes = 0;
    u32 flags = 0;
    u8* start = nullptr;
    std::vector<Extent> extents;
    u64 sum = 0;  // of a constant's contents

    u8* front_canary() const { return start - kBufferShift - kCanaryBytes; }
    u8* back_canary() const { return start + bytes; }
};

u64 mix(u64 sum, u64 word) {
    sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
    return sum ^ (sum >> 29);
}

u64 sum_of(const u8* bytes, u64 count) {
    u64 sum = count;
    for (u64 i = 0; i + 8 <= count; i += 8) {
        u64 word;
        std::memcpy(&word, bytes + i, 8);
        sum = mix(sum, word);
    }
    for (u64 i = count & ~7ull; i < count; i++) sum = mix(sum, bytes[i]);
    return sum;
}

// A sparse buffer's bytes outside its extents are not summed: they may be more than memory holds.
u64 sum_of(const HostBuffer& buffer) {
    if (!(buffer.flags & kBufferSparse)) return sum_of(buffer.start, buffer.bytes);
    u64 sum = 0;
    for (const Extent& e : buffer.extents) sum = mix(sum, sum_of(buffer.start + e.offset, e.bytes));
    return sum;
}

void reserve(HostBuffer& buffer) {
    u64 total = kCanaryBytes + kBufferShift + buffer.bytes + kCanaryBytes;
    void* memory = mmap(nullptr, total, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fail(kCapsule, "buffer %s: %llu bytes cannot be reserved", buffer.name.c_str(),
             buffer.bytes);
    buffer.start = (u8*)memory + kCanaryBytes + kBufferShift;
    std::memset(buffer.front_canary(), kCanary, kCanaryBytes + kBufferShift);
    std::memset(buffer.back_canary(), kCanary, kCanaryBytes);
}

HostBuffer read_buffer(Reader& file) {
    HostBuffer buffer;
    buffer.name = file.text();
    const char* name = buffer.name.c_str();
    buffer.bytes = file.size();
    buffer.flags = file.word();
    u32 fill = file.word();
    if (buffer.flags & ~(kBufferConstant | kBufferSparse))
        fail(kCapsule, "buffer %s: unknown flags 0x%x", name, buffer.flags);
    if (buffer.bytes > (1ull << 46)) fail(kCapsule, "buffer %s: %llu bytes", name, buffer.bytes);
    reserve(buffer);
    if (!(buffer.flags & kBufferSparse))
        for (u64 i = 0; i < buffer.bytes; i += 4)
            std::memcpy(buffer.start + i, &fill, std::min<u64>(4, buffer.bytes - i));
    u32 extents = file.word();
    for (u32 i = 0; i < extents; i++) {
        Extent e = {file.size(), file.size()};
        if (e.offset > buffer.bytes || e.bytes > buffer.bytes - e.offset)
            fail(kCapsule, "buffer %s: an extent of %llu bytes at %llu lies outside its %llu bytes",
                 name, e.bytes, e.offset, buffer.bytes);
        if (e.bytes > 0) std::memcpy(buffer.start + e.offset, file.bytes(e.bytes), e.bytes);
        buffer.extents.push_back(e);
    }
    if (buffer.flags & kBufferConstant) buffer.sum = sum_of(buffer);
    emu::poison(buffer.front_canary(), kCanaryBytes + kBufferShift);
    emu::poison(buffer.back_canary(), kCanaryBytes);
    emu::name_buffer(buffer.start, buffer.bytes, name, (buffer.flags & kBufferConstant) != 0);
    return buffer;
}

void check_canary(const HostBuffer& buffer, const u8* canary, u64 bytes,
                  const std::string& kernel) {
    emu::unpoison(canary, bytes);
    for (u64 i = 0; i < bytes; i++) {
        if (canary[i] == kCanary) continue;
        fail(emu::kGlobal, "byte %lld of buffer %s, which has %llu, was written (kernel %s)",
             (i64)(canary + i - buffer.start), buffer.name.c_str(), buffer.bytes, kernel.c_str());
    }
    emu::poison(canary, bytes);
}

void check_buffers(const std::vector<HostBuffer>& buffers, const std::string& kernel) {
    for (const HostBuffer& buffer : buffers) {
        check_canary(buffer, buffer.front_canary(), kCanaryBytes + kBufferShift, kernel);
        check_canary(buffer, buffer.back_canary(), kCanaryBytes, kernel);
        if ((buffer.flags & kBufferConstant) && sum_of(buffer) != buffer.sum)
            fail(emu::kConstant, "buffer %s was changed (kernel %s)", buffer.name.c_str(),
                 kernel.c_str());
    }
}

// ---- launches ---------------------------------------------------------------------------------

const HostBuffer& buffer_at(const std::vector<HostBuffer>& buffers, u32 id,
                            const std::string& who) {
    if (id >= buffers.size())
        fail(kCapsule, "%s: buffer %u; the capsule has %zu", who.c_str(), id, buffers.size());
    return buffers[id];
}

TensorMap read_map(Reader& file, const std::vector<HostBuffer>& buffers,
                   const std::string& kernel) {
    u32 id = file.word();
    u64 offset = file.size();
    const HostBuffer& buffer = buffer_at(buffers, id, kernel);
    if (offset > buffer.bytes)
        fail(kCapsule, "%s: a tensor map begins %llu bytes into buffer %s, which has %llu",
             kernel.c_str(), offset, buffer.name.c_str(), buffer.bytes);
    u32 element_bytes = file.word();
    u32 rank = file.word();
    if (rank < 2 || rank > 4) fail(kCapsule, "%s: a tensor map of rank %u", kernel.c_str(), rank);
    std::vector<u64> dims, strides;
    std::vector<u32> box;
    for (u32 i = 0; i < rank; i++) dims.push_back(file.size());
    for (u32 i = 1; i < rank; i++) strides.push_back(file.size());
    for (u32 i = 0; i < rank; i++) box.push_back(file.word());
    u32 swizzle = file.word();
    return emu_tensor_map(buffer.start + offset, element_bytes, dims, strides, box, swizzle);
}

EmuLaunch read_launch(Reader& file, const std::vector<HostBuffer>& buffers) {
    EmuLaunch launch;
    launch.name = file.text();
    const char* name = launch.name.c_str();
    launch.grid.x = file.word();
    launch.grid.y = file.word();
    launch.block = file.word();
    launch.shared_bytes = file.word();
    launch.live = file.word();
    u32 flags = file.word();
    if (flags & ~kLaunchOverlap) fail(kCapsule, "%s: unknown launch flags 0x%x", name, flags);
    launch.overlap = (flags & kLaunchOverlap) != 0;
    std::vector<TensorMap> maps;
    for (u32 i = 0, count = file.word(); i < count; i++)
        maps.push_back(read_map(file, buffers, launch.name));
    u32 bytes = file.word();
    const u8* start = file.bytes(bytes);
    std::vector<u8> parameters(start, start + bytes);
    for (u32 i = 0, count = file.word(); i < count; i++) {
        u32 at = file.word();
        const HostBuffer& buffer = buffer_at(buffers, file.word(), launch.name);
        u64 offset = file.size();
        if (at % 8 != 0 || (u64)at + 8 > bytes)
            fail(kCapsule, "%s: a relocation at byte %u of %u", name, at, bytes);
        if (offset > buffer.bytes)
            fail(kCapsule, "%s: a pointer %llu bytes into buffer %s, which has %llu", name, offset,
                 buffer.name.c_str(), buffer.bytes);
        const u8* pointer = buffer.start + offset;
        std::memcpy(parameters.data() + at, &pointer, 8);
    }
    const EmuKernel* kernel = emu_find_kernel(launch.name);
    if (!kernel) fail(kUsage, "no kernel has the name %s", name);
    if (bytes != kernel->parameter_bytes)
        fail(kUsage, "%s takes %u parameter bytes; the capsule has %u", name,
             kernel->parameter_bytes, bytes);
    if (maps.size() != kernel->maps)
        fail(kUsage, "%s takes %u tensor maps; the capsule has %zu", name, kernel->maps,
             maps.size());
    if (launch.block > kernel->most_threads)
        fail(kUsage, "%s is bound to %u threads a block; the capsule asks for %u", name,
             kernel->most_threads, launch.block);
    launch.body = kernel->bind(maps.data(), parameters.data());
    return launch;
}

// Runs launches that may overlap together, and looks at the buffers after each such run.
void run(const std::vector<EmuLaunch>& launches, const std::vector<HostBuffer>& buffers) {
    for (size_t first = 0; first < launches.size();) {
        size_t end = first + 1;
        std::string names = launches[first].name;
        for (; end < launches.size() && launches[end].overlap; end++)
            names += ", " + launches[end].name;
        emu_run({launches.begin() + (long)first, launches.begin() + (long)end});
        check_buffers(buffers, names);
        first = end;
    }
}

void write_results(Reader& file, const std::vector<HostBuffer>& buffers, const char* path) {
    std::FILE* out = std::fopen(path, "wb");
    if (!out) fail(kCapsule, "%s cannot be written", path);
    u32 count = file.word();
    std::fwrite("MOERESLT", 1, 8, out);
    std::fwrite(&kVersion, 4, 1, out);
    std::fwrite(&count, 4, 1, out);
    for (u32 i = 0; i < count; i++) {
        const HostBuffer& buffer = buffer_at(buffers, file.word(), "output");
        u64 offset = file.size();
        u64 bytes = file.size();
        if (offset > buffer.bytes || bytes > buffer.bytes - offset)
            fail(kCapsule, "output: %llu bytes at %llu lie outside buffer %s, which has %llu",
                 bytes, offset, buffer.name.c_str(), buffer.bytes);
        std::fwrite(&bytes, 8, 1, out);
        if (bytes > 0) std::fwrite(buffer.start + offset, 1, bytes, out);
    }
    bool failed = std::ferror(out) != 0;
    if (std::fclose(out) != 0 || failed) fail(kCapsule, "%s cannot be written", path);
}

// ---- the command line -------------------------------------------------------------------------

void list() {
    for (const auto& [name, kernel] : emu_all_kernels())
        std::printf("%s threads %u maps %u parameter_bytes %u\n", name.c_str(), kernel.most_threads,
                    kernel.maps, kernel.parameter_bytes);
}

u64 whole_number(const char* text, const char* option) {
    char* end = nullptr;
    u64 value = std::strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0')
        fail(kUsage, "%s takes a whole number, not '%s'", option, text);
    return value;
}

}  // namespace

int main(int count, char** words) {
    std::vector<const char*> paths;
    u32 limit = kTimeLimit;
    for (int i = 1; i < count; i++) {
        std::string word = words[i];
        if (word == "--list") {
            list();
            return 0;
        }
        if (word.compare(0, 2, "--") != 0) {
            paths.push_back(words[i]);
            continue;
        }
        if (i + 1 == count) fail(kUsage, "%s takes a value", word.c_str());
        std::string value = words[++i];
        EmuOptions& options = emu_options();
        if (word == "--mode" && value == "late") options.mode = kEmuLate;
        else if (word == "--mode" && value == "early") options.mode = kEmuEarly;
        else if (word == "--mode" && value == "random") options.mode = kEmuRandom;
        else if (word == "--mode")
            fail(kUsage, "--mode is late, early or random, not '%s'", value.c_str());
        else if (word == "--seed") options.seed = whole_number(value.c_str(), "--seed");
        else if (word == "--limit") limit = (u32)whole_number(value.c_str(), "--limit");
        else fail(kUsage, "unknown option %s", word.c_str());
    }
    if (paths.size() != 2)
        fail(kUsage,
             "driver [--mode late|early|random] [--seed N] [--limit SECONDS] CAPSULE RESULT, or "
             "--list");
    emu::limit_time(limit);

    std::vector<u8> bytes = read_file(paths[0]);
    Reader file(bytes.data(), bytes.size());
    if (std::memcmp(file.bytes(8), "MOECAPSU", 8) != 0)
        fail(kCapsule, "%s is not a launch capsule", paths[0]);
    u32 version = file.word();
    if (version != kVersion) fail(kCapsule, "version %u; this driver reads %u", version, kVersion);
    std::vector<HostBuffer> buffers;
    for (u32 i = 0, all = file.word(); i < all; i++) buffers.push_back(read_buffer(file));
    std::vector<EmuLaunch> launches;
    for (u32 i = 0, all = file.word(); i < all; i++) launches.push_back(read_launch(file, buffers));
    run(launches, buffers);
    write_results(file, buffers, paths[1]);
    if (!file.at_end()) fail(kCapsule, "%s goes on after its outputs", paths[0]);
    return 0;
}
