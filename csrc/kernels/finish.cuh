// The end of the backward pass, in one launch: dA and dB from their partial sums, and the gates'
// gradients from p. Every sum runs in an order that depends on nothing but the shapes.
#pragma once

#include "../problems.h"
#include "chain.cuh"
#include "numbers.cuh"

namespace ilora {

constexpr int kFinishThreads = 1024;  // few blocks sum the gates' rows, and each is alone with its own

template <typename T>
__device__ void add_splits(const float* partial, T* out, int64_t elements, int splits, int64_t i) {
    if (i >= elements) return;
    float sum = 0.0f;
    for (int split = 0; split < splits; ++split) sum += partial[split * elements + i];
    out[i] = from_float<T>(sum);
}

// dgate[g, k] where a gate has one row: a thread each.
__device__ inline void sum_row(const Finish& f, int64_t i) {
    if (i >= f.gating.num_gates * f.gating.num_experts) return;
    const float* const p = f.p + i * f.gating.rank_of_expert;  // experts tile the ranks of a row
    float sum = 0.0f;
    for (int rank = 0; rank < f.gating.rank_of_expert; ++rank) sum += p[rank];
    f.dgate[i] = sum;
}

// dgate[g, k] where a gate has many rows: a block each.
__device__ inline void sum_rows(const Finish& f, int64_t i) {
    __shared__ float sums[kFinishThreads];
    const int64_t gate = i / f.gating.num_experts;
    const int expert = static_cast<int>(i % f.gating.num_experts);
    const int width = f.gating.rank_of_expert;
    int64_t first = gate * f.gating.rows_per_gate, last = first + f.gating.rows_per_gate;
    if (f.gating.cu_seqlens != nullptr) {
        first = max(f.gating.cu_seqlens[gate], 0);
        last = f.gating.cu_seqlens[gate + 1];
    }
    last = min(last, f.rows);
    const float* const p = f.p + expert * width;
    // Element threadIdx.x, and each kFinishThreads-th after it, of the rows' widths laid end to end.
    int64_t row = first + threadIdx.x / width;
    int rank = threadIdx.x % width;
    float sum = 0.0f;
#pragma unroll 8
    while (row < last) {
        sum += p[row * f.rank + rank];
        row += kFinishThreads / width;
        rank += kFinishThreads % width;
        if (rank >= width) {
            rank -= width;
            ++row;
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned int half = kFinishThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) f.dgate[i] = sums[0];
}

// Blocks of three kinds, one after another: the gates' (which take longest), dB's, dA's.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish(const Finish f, const int64_t blocks_gate, const int64_t blocks_dB, const bool one_row) {
    wait_for_earlier_kernels();
    int64_t block = blockIdx.x;
    if (block < blocks_gate) {
        if (one_row) {
            sum_row(f, block * kFinishThreads + threadIdx.x);
        } else {
            sum_rows(f, block);
        }
        return;
    }
    block -= blocks_gate;
    if (block < blocks_dB) {
        add_splits(f.partial_dB, static_cast<T*>(f.dB), f.elements_dB, f.splits,
                   block * kFinishThreads + threadIdx.x);
        return;
    }
    add_splits(f.partial_dA, static_cast<T*>(f.dA), f.elements_dA, f.splits,
               (block - blocks_dB) * kFinishThreads + threadIdx.x);
}

}  // namespace ilora
