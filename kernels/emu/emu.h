// How a driver launches kernels in the emulator: options, buffers, tensor maps, launches.
//
// Include the kernel's .cu (or declare the kernel) before this. See README.md for an example.

#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "../ptx.cuh"

// When asynchronous work is delivered. Each finds other faults: run all three.
enum EmuMode {
    // Everything at the wait for it, or when no thread can move: finds reads before the wait.
    kEmuLate,
    // Loads (cp.async, TMA) at issue, what reads shared memory (wgmma, TMA stores) late: finds
    // stages that are filled again while they are still being read.
    kEmuEarly,
    // Any time and order.
    kEmuRandom,
};

struct EmuOptions {
    EmuMode mode;      // EMU_MODE=late|early|random; late unless set
    u64 seed;          // EMU_SEED; 1 unless set
    u32 live;          // EMU_LIVE: blocks live together in emu_launch; 1 unless set, 0 is all
    u32 yield_one_in;  // EMU_YIELD: a wrapper lets others run once in this many times; 4 unless set
};

// The options of the next launches; read from the environment at first use.
EmuOptions& emu_options();

struct EmuDim {
    u32 x = 1;
    u32 y = 1;
};

// One launch, its parameters bound.
struct EmuLaunch {
    std::string name;
    EmuDim grid;
    u32 block = 0;
    u32 shared_bytes = 0;
    u32 live = 1;
    bool overlap = false;  // programmatic dependent launch on the launch before
    std::function<void()> body;
};

// Runs the launches in order, as one stream does, until all have ended. A finding ends the process
// with one line on standard error and the exit code of its kind (capsule.md).
void emu_run(const std::vector<EmuLaunch>& launches);

// Launches `kernel` (the function, whose name goes into messages) and waits for it.
#define emu_launch(kernel, grid, block, shared_bytes, ...) \
    emu_run({emu_bind(#kernel, kernel, grid, block, shared_bytes, ##__VA_ARGS__)})

template <typename... P, typename... A>
EmuLaunch emu_bind(const char* name, void (*kernel)(P...), EmuDim grid, u32 block, u32 shared_bytes,
                   const A&... parameters) {
    EmuLaunch launch;
    launch.name = name;
    launch.grid = grid;
    launch.block = block;
    launch.shared_bytes = shared_bytes;
    launch.live = emu_options().live;
    launch.body = [kernel, parameters...] { kernel(parameters...); };
    return launch;
}

// Names a buffer: from then on, wrappers refuse global addresses outside all named buffers.
void emu_buffer(const void* start, size_t bytes, const char* name);
void emu_forget_buffers();

// A tensor map as cuTensorMapEncodeTiled would make it; checks the same limits. `strides` are those
// of dimensions 1 and up, in bytes. `swizzle` is 0 or 128.
TensorMap emu_tensor_map(const void* base, u32 element_bytes, const std::vector<u64>& dims,
                         const std::vector<u64>& strides, const std::vector<u32>& box, u32 swizzle);
