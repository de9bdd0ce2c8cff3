// The first half of the low-rank path: x̂ Aᵀ or dY B, and what the gates make of it (see Shrink in
// problems.h). It reads one tall matrix once and writes next to nothing.
#pragma once

#include "../problems.h"
#include "chain.cuh"
#include "gating.cuh"
#include "mask.cuh"
#include "mma.cuh"
#include "numbers.cuh"
#include "tile_product.cuh"

namespace ilora {

// From an element of the product, with dropout's factor, everything that is stored of it.
template <typename T, bool BACKWARD>
__device__ void store_shrunk(const Shrink& s, int64_t row, int rank, float product) {
    T* const h = static_cast<T*>(s.h) + row * s.padded_rank + rank;
    T* const u = static_cast<T*>(s.u) + row * s.padded_rank + rank;
    if (rank >= s.rank) {
        *h = from_float<T>(0.0f);
        if (BACKWARD) *u = from_float<T>(0.0f);
        return;
    }
    const int64_t thin = row * s.rank + rank;
    const float weight = gate_weight(s.gating, row, rank);
    if (BACKWARD) {
        const float xa = s.xa[thin];
        *u = from_float<T>(static_cast<float>(product * weight * s.mask.keep_scale));
        s.p[thin] = static_cast<float>(s.gating.scaling * xa * product);
        *h = from_float<T>(xa * weight);
    } else {
        const float xa = static_cast<float>(product * s.mask.keep_scale);
        s.xa[thin] = xa;
        *h = from_float<T>(xa * weight);
    }
}

template <int TILES>
constexpr int kShrinkWarps = TILES == 8 ? 8 : 16;
constexpr int kShrinkRows = 16;  // of a warp
// Steps of 64 bytes of each row whose loads are under way together, as many as the registers hold.
template <int TILES>
constexpr int kShrinkSteps = TILES == 2 ? 4 : 2;

// A lane's share of a step (16 bytes of the matrix's row) of the factor, for 8 * TILES ranks, into tiles of
// zeros. Column g of tile j is rank TILES * g + j.
template <typename T, int TILES, bool BACKWARD>
__device__ void load_factor(const Shrink& s, int64_t column, int first_rank, uint32_t (&tiles)[TILES][4]) {
    const T* const factor = static_cast<const T*>(s.factor);
    const int rank = first_rank + TILES * (static_cast<int>(threadIdx.x) % 32 / 4);
    const bool inside = column < s.width;  // below, & and not &&: a branch would keep loads waiting
    if constexpr (!BACKWARD) {  // A [R, D]: neighbours in each rank's row
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            const T* const address = factor + (rank + j) * s.factor_stride + column;
            if (inside & (rank + j < s.rank)) load_words<4>(address, tiles[j]);
        }
    } else {  // B [D, R]: TILES neighbours in each row, and the rows are then turned
        constexpr int kWords = TILES / kPerWord<T>;
        constexpr int kAccess = kWords < 4 ? kWords : 4;
        uint32_t rows[kUnit<T>][kWords] = {};
#pragma unroll
        for (int i = 0; i < kUnit<T>; ++i) {
#pragma unroll
            for (int word = 0; word < kWords; word += kAccess) {
                const int first = rank + kPerWord<T> * word;
                const T* const address = factor + (column + i) * s.factor_stride + first;
                if (inside & (first < s.factor_ranks)) load_words<kAccess>(address, rows[i] + word);
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) tiles[j][i] = turned<T>(rows, i, j);
        }
    }
}

// Tensor cores. A block takes 16 * row_warps rows; the warps that share rows split the columns among
// them, and their sums are added in order at the end.
template <typename T, int TILES, bool BACKWARD, bool MASKED>
__global__ void __launch_bounds__(32 * kShrinkWarps<TILES>, 1)
    shrink_mma(const Shrink s, const int row_warps) {
    wait_for_earlier_kernels();
    constexpr int kWarps = kShrinkWarps<TILES>;
    constexpr int kRanks = 8 * TILES;
    __shared__ float sums[kWarps][kShrinkRows][kRanks + 2];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int row_warp = warp % row_warps, column_warp = warp / row_warps;
    const int column_warps = kWarps / row_warps;
    const int64_t block_row = static_cast<int64_t>(blockIdx.x) * kShrinkRows * row_warps;
    const int first_rank = blockIdx.y * kRanks;
    const int64_t row[2] = {block_row + row_warp * kShrinkRows + g,
                            block_row + row_warp * kShrinkRows + g + 8};
    const T* const matrix = static_cast<const T*>(s.matrix);
    uint32_t key[2] = {0, 0};
    if (MASKED) {
        const uint32_t shared_key = mask_key(s.mask);
        key[0] = row_key(shared_key, row[0]);
        key[1] = row_key(shared_key, row[1]);
    }

    float total[TILES][4] = {};
    constexpr int kSteps = kShrinkSteps<TILES>;
    constexpr int kStep = 4 * kUnit<T>;  // columns
    constexpr int kStride = kStep * kSteps;
    for (int64_t start = column_warp * kStride; start < s.width; start += column_warps * kStride) {
        uint32_t x[kSteps][2][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int64_t column = start + kStep * step + kUnit<T> * q;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const T* const address = matrix + row[i] * s.matrix_stride + column;
                if ((row[i] < s.rows) & (column < s.width)) load_words<4>(address, x[step][i]);
            }
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int64_t column = start + kStep * step + kUnit<T> * q;
            uint32_t factor[TILES][4] = {};
            load_factor<T, TILES, BACKWARD>(s, column, first_rank, factor);
            uint32_t(&part)[2][4] = x[step];
            if (MASKED) {
#pragma unroll
                for (int i = 0; i < 2; ++i) drop<T>(part[i], key[i], column, s.mask.threshold);
            }
            const uint32_t low[4] = {part[0][0], part[1][0], part[0][1], part[1][1]};
            const uint32_t high[4] = {part[0][2], part[1][2], part[0][3], part[1][3]};
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
                mma<T>(total[j], low, factor[j][0], factor[j][1]);
                mma<T>(total[j], high, factor[j][2], factor[j][3]);
            }
        }
    }

#pragma unroll
    for (int j = 0; j < TILES; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // c[i]: row g or g + 8, column 2q or 2q + 1 of tile j
            sums[warp][g + 8 * (i / 2)][TILES * (2 * q + i % 2) + j] = total[j][i];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kShrinkRows * row_warps * kRanks; i += 32 * kWarps) {
        const int local_row = i / kRanks, local_rank = i % kRanks;
        const int64_t out_row = block_row + local_row;
        const int out_rank = first_rank + local_rank;
        if (out_row >= s.rows || out_rank >= s.padded_rank) continue;
        float product = 0.0f;
        for (int w = local_row / kShrinkRows; w < kWarps; w += row_warps) {
            product += sums[w][local_row % kShrinkRows][local_rank];
        }
        store_shrunk<T, BACKWARD>(s, out_row, out_rank, product);
    }
}

// Plain multiply-adds: any dtype, any stride.
template <typename T, bool BACKWARD>
__global__ void __launch_bounds__(kTileThreads, 2) shrink_fma(const Shrink s) {
    wait_for_earlier_kernels();
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileM;
    const int first_rank = blockIdx.y * kTileN;
    const T* const matrix = static_cast<const T*>(s.matrix);
    const T* const factor = static_cast<const T*>(s.factor);
    const bool masked = !BACKWARD && s.mask.seed != nullptr;
    const uint32_t key = masked ? mask_key(s.mask) : 0;
    const auto x = [&](int m, int64_t column) {
        const int64_t row = first_row + m;
        if (row >= s.rows) return 0.0f;
        if (masked && !keeps(row_key(key, row), column, s.mask.threshold)) return 0.0f;
        return to_float(matrix[row * s.matrix_stride + column]);
    };
    const auto f = [&](int64_t column, int n) {
        const int rank = first_rank + n;
        if (rank >= s.rank) return 0.0f;
        return to_float(BACKWARD ? factor[column * s.factor_stride + rank]
                                 : factor[rank * s.factor_stride + column]);
    };
    float total[kTileRows][kTileColumns];
    tile_product<true, !BACKWARD>(0, s.width, x, f, total);
    for (int i = 0; i < kTileRows; ++i) {
        for (int j = 0; j < kTileColumns; ++j) {
            const int64_t row = first_row + tile_row(i);
            const int rank = first_rank + tile_column(j);
            if (row < s.rows && rank < s.padded_rank) {
                store_shrunk<T, BACKWARD>(s, row, rank, total[i][j]);
            }
        }
    }
}

}  // namespace ilora
