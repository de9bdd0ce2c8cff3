#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __trap() std::abort()

using std::max;
using std::min;

struct dim3 {
    unsigned int x, y, z;
    dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
struct uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct float2 { float x, y; };
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

inline uint32_t __byte_perm(uint32_t first, uint32_t second, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(second) << 32 | first;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t chosen = selector >> (4 * i) & 7;
        result |= static_cast<uint32_t>(bytes >> (8 * chosen) & 0xFF) << (8 * i);
    }
    return result;
}

inline uint32_t __vcmpgeu2(uint32_t first, uint32_t second) {
    const uint32_t low = (first & 0xFFFF) >= (second & 0xFFFF) ? 0xFFFFu : 0;
    const uint32_t high = first >> 16 >= second >> 16 ? 0xFFFF0000u : 0;
    return low | high;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_cpu {

constexpr std::size_t kStack = 1 << 16;

struct Fiber {
    ucontext_t context;
    bool done = false;
    bool waiting = false;  // at the block's barrier, or at its warp's
    bool at_warp = false;
};

// What the lanes of a warp bring to one step of the tensor cores.
struct Step {
    int arrived = 0;
    float* c[32];
    const uint32_t* a[32];
    uint32_t b[32][2];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Step> steps;
    std::unique_ptr<char[]> stacks;
    ucontext_t scheduler;
    std::function<void()> body;
    int current = 0;
};
inline Block block;

inline void wait(bool at_warp) {
    Fiber& fiber = block.fibers[block.current];
    fiber.waiting = true;
    fiber.at_warp = at_warp;
    swapcontext(&fiber.context, &block.scheduler);
}

inline void enter() {
    block.body();
    block.fibers[block.current].done = true;
    swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

// Runs every thread of a block to its end. Threads of odd blocks take turns in the opposite order: a
// result that depends on the order differs then.
inline void run_block(int threads, bool backwards) {
    block.fibers.assign(threads, Fiber());
    block.steps.assign(threads / 32, Step());
    for (int i = 0; i < threads; ++i) {
        ucontext_t& context = block.fibers[i].context;
        getcontext(&context);
        context.uc_stack.ss_sp = block.stacks.get() + i * kStack;
        context.uc_stack.ss_size = kStack;
        context.uc_link = nullptr;
        makecontext(&context, &enter, 0);
    }
    for (;;) {
        bool moved = false, alive = false;
        for (int i = 0; i < threads; ++i) {
            block.current = backwards ? threads - 1 - i : i;
            Fiber& fiber = block.fibers[block.current];
            if (fiber.done || fiber.waiting) continue;
            threadIdx = dim3(block.current);
            swapcontext(&block.scheduler, &fiber.context);
            moved = true;
        }
        for (const Fiber& fiber : block.fibers) alive = alive || !fiber.done;
        if (!alive) return;
        if (moved) continue;
        // Everyone waits: at the block's barrier, or some thread will never come.
        for (Fiber& fiber : block.fibers) {
            if (fiber.done) continue;
            if (fiber.at_warp) {
                std::fputs("a barrier or a step of the tensor cores was not reached by all\n", stderr);
                std::abort();
            }
            fiber.waiting = false;
        }
    }
}

// Nothing but 10 bits of the fraction: the tensor cores ignore the others, whoever rounded or did not.
struct tf32 {
    static constexpr int kPerWord = 1;
    static float number(uint32_t word, int) {
        word &= ~0x1FFFu;
        float number;
        std::memcpy(&number, &word, 4);
        return number;
    }
};

// cvt.rna.tf32.f32: to the nearest, of two to the one that is larger in magnitude.
inline uint32_t to_tf32(uint32_t bits) {
    const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
    return finite ? (bits + 0x1000u) & ~0x1FFFu : bits;
}

// c += a b, by the last of the 32 lanes that comes; csrc/kernels/mma.cuh says who holds what.
template <typename Numbers>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Numbers) {
    constexpr int kPerWord = Numbers::kPerWord;
    constexpr int kTerms = 8 * kPerWord;
    const int warp = block.current / 32, lane = block.current % 32;
    Step& step = block.steps[warp];
    step.c[lane] = c;
    step.a[lane] = a;
    step.b[lane][0] = b0;
    step.b[lane][1] = b1;
    if (++step.arrived < 32) return wait(true);
    float left[16][kTerms], right[kTerms][8];
    for (int i = 0; i < 32; ++i) {
        const int g = i / 4, q = i % 4;
        for (int r = 0; r < 4; ++r) {
            for (int n = 0; n < kPerWord; ++n) {
                const int term = kPerWord * q + n;
                left[g + 8 * (r % 2)][term + kTerms / 2 * (r / 2)] = Numbers::number(step.a[i][r], n);
                if (r < 2) right[term + kTerms / 2 * r][g] = Numbers::number(step.b[i][r], n);
            }
        }
    }
    for (int i = 0; i < 32; ++i) {
        for (int r = 0; r < 4; ++r) {
            double sum = step.c[i][r];
            for (int k = 0; k < kTerms; ++k) {
                sum += static_cast<double>(left[i / 4 + 8 * (r / 2)][k]) * right[k][2 * (i % 4) + r % 2];
            }
            step.c[i][r] = static_cast<float>(sum);
        }
    }
    step.arrived = 0;
    for (int i = 0; i < 32; ++i) block.fibers[32 * warp + i].waiting = false;
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(false); }

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    struct cudaLaunchAttribute* attrs;
    unsigned int numAttrs;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct { int programmaticStreamSerializationAllowed; } val;
};
struct cudaFuncAttributes { int ptxVersion; };
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    using namespace on_cpu;
    const int threads = static_cast<int>(config->blockDim.x);
    block.stacks.reset(new char[threads * kStack]);
    block.body = [&] { kernel(arguments...); };
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (unsigned int z = 0; z < gridDim.z; ++z) {
        for (unsigned int y = 0; y < gridDim.y; ++y) {
            for (unsigned int x = 0; x < gridDim.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(threads, (x + y + z) % 2 == 1);
            }
        }
    }
    return cudaSuccess;
}
