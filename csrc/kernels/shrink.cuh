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
// Steps of 32 columns whose loads are under way together, as many as the registers hold.
template <int TILES>
constexpr int kShrinkSteps = TILES == 2 ? 4 : 2;

// A lane's share of 32 terms (8 of the matrix's columns) of the factor, for 8 * TILES ranks. Column g of
// tile j is rank TILES * g + j.
template <typename T, int TILES, bool BACKWARD>
__device__ void load_factor(const Shrink& s, int64_t column, int first_rank, uint4 (&tiles)[TILES]) {
    const T* const factor = static_cast<const T*>(s.factor);
    const int rank = first_rank + TILES * (static_cast<int>(threadIdx.x) % 32 / 4);
    const bool inside = column < s.width;  // below, & and not &&: a branch would keep loads waiting
    if constexpr (!BACKWARD) {  // A [R, D]: eight neighbours of each rank's row
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            tiles[j] = make_uint4(0, 0, 0, 0);
            if (inside & (rank + j < s.rank)) {
                const T* const address = factor + (rank + j) * s.factor_stride + column;
                tiles[j] = load<uint4>(address);
            }
        }
    } else {  // B [D, R]: TILES neighbours in each of eight rows, which are then turned
        uint32_t rows[8][TILES / 2];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const T* const address = factor + (column + i) * s.factor_stride + rank;
            const bool there = inside & (rank < s.factor_ranks);
            if constexpr (TILES == 2) {
                rows[i][0] = there ? load<uint32_t>(address) : 0;
            } else if constexpr (TILES == 4) {
                const uint2 two =
                    there ? load<uint2>(address) : make_uint2(0, 0);
                rows[i][0] = two.x, rows[i][1] = two.y;
            } else {
                const uint4 four =
                    there ? load<uint4>(address) : make_uint4(0, 0, 0, 0);
                rows[i][0] = four.x, rows[i][1] = four.y, rows[i][2] = four.z, rows[i][3] = four.w;
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            tiles[j].x = pair_halves(rows[0][j / 2], rows[1][j / 2], j % 2);
            tiles[j].y = pair_halves(rows[2][j / 2], rows[3][j / 2], j % 2);
            tiles[j].z = pair_halves(rows[4][j / 2], rows[5][j / 2], j % 2);
            tiles[j].w = pair_halves(rows[6][j / 2], rows[7][j / 2], j % 2);
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
    constexpr int kStride = 32 * kSteps;
    for (int64_t start = column_warp * kStride; start < s.width; start += column_warps * kStride) {
        uint4 x[kSteps][2];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int64_t column = start + 32 * step + 8 * q;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                x[step][i] = make_uint4(0, 0, 0, 0);
                if ((row[i] < s.rows) & (column < s.width)) {
                    const T* const address = matrix + row[i] * s.matrix_stride + column;
                    x[step][i] = load<uint4>(address);
                }
            }
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int64_t column = start + 32 * step + 8 * q;
            uint4 factor[TILES];
            load_factor<T, TILES, BACKWARD>(s, column, first_rank, factor);
            if (MASKED) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    x[step][i] = drop(x[step][i], key[i], column, s.mask.threshold);
                }
            }
            const uint32_t low[4] = {x[step][0].x, x[step][1].x, x[step][0].y, x[step][1].y};
            const uint32_t high[4] = {x[step][0].z, x[step][1].z, x[step][0].w, x[step][1].w};
#pragma unroll
            for (int j = 0; j < TILES; ++j) {
                mma<T>(total[j], low, factor[j].x, factor[j].y);
                mma<T>(total[j], high, factor[j].z, factor[j].w);
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
