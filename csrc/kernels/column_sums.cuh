// The gradients of the factors: dB = dYᵀ h and dA = uᵀ x̂, sums over the rows of two tall matrices.
//
// The rows are split among blocks, whose float32 sums `finish` adds in order: the same bits every time,
// without atomics.
#pragma once

#include "../problems.h"
#include "chain.cuh"
#include "mask.cuh"
#include "mma.cuh"
#include "numbers.cuh"
#include "tile_product.cuh"

namespace ilora {

// From the end on: shrink has just read the last rows of dY, and they are still in the cache.
__device__ inline int64_t split_of_block() { return gridDim.y - 1 - blockIdx.y; }

__device__ inline void store_sum(const ColumnSums& s, const ColumnSum& one, int rank, int64_t column,
                                 float value) {
    if (rank >= s.rank || column >= one.columns) return;
    const int64_t split = split_of_block();
    if (one.ranks_first) {
        one.partial[(split * s.rank + rank) * one.columns + column] = value;
    } else {
        one.partial[(split * one.columns + column) * s.rank + rank] = value;
    }
}

// Which of the two sums this block works on, and which block of its columns.
__device__ inline bool is_dB(const ColumnSums& s, int width, int64_t& first_column) {
    const int64_t blocks_dB = (s.dB.columns + width - 1) / width;
    const bool of_dB = blockIdx.x < blocks_dB;
    first_column = (of_dB ? blockIdx.x : blockIdx.x - blocks_dB) * width;
    return of_dB;
}

constexpr int kSumsWarps = 8;
constexpr int kSumsColumns = 64;  // of a block
// A step of the tensor cores sums over so many rows, at which the warps take turns.
template <typename T>
constexpr int kSumsRows = 8 * kPerWord<T>;

// Column g of tile j, so that lanes lie side by side in units of 16 bytes.
template <typename T>
__device__ int column_of(int g, int j) {
    return j / kUnit<T> * 8 * kUnit<T> + g * kUnit<T> + j % kUnit<T>;
}

// Tensor cores: ranks are the rows of the products, columns their columns, and rows what is summed
// over: lane q has four that follow each other, or two of float32. Row g and row g + 8 of rank tile k are
// the ranks 2g and 2g + 1.
template <typename T, int RANK_TILES>
struct SumsTile {
    float total[RANK_TILES][8][4];

    __device__ void add_rows(const ColumnSums& s, const ColumnSum& one, int64_t first_row,
                             int64_t last_row, int64_t lane_column, int first_rank, int g, int q,
                             bool masked, uint32_t key) {
        constexpr int kRows = kSumsRows<T> / 4;  // of a lane
        constexpr int kWords = 2 / kPerWord<T>;  // of two ranks
        constexpr int kUnits = 8 / kUnit<T>;
        const T* const tall = static_cast<const T*>(one.tall);
        const T* const thin = static_cast<const T*>(one.thin);
        uint32_t x[kRows][4 * kUnits] = {};
        uint32_t c[RANK_TILES][kRows][kWords] = {};
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            const int64_t row = first_row + kRows * q + i;
#pragma unroll
            for (int unit = 0; unit < kUnits; ++unit) {
                const int64_t column = lane_column + column_of<T>(0, unit * kUnit<T>);
                if ((row < last_row) & (column < one.columns)) {
                    load_words<4>(tall + row * one.tall_stride + column, x[i] + 4 * unit);
                }
            }
#pragma unroll
            for (int k = 0; k < RANK_TILES; ++k) {
                const int rank = first_rank + 16 * k + 2 * g;
                if ((row < last_row) & (rank < s.padded_rank)) {
                    load_words<kWords>(thin + row * s.padded_rank + rank, c[k][i]);
                }
            }
        }
        if (masked) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const uint32_t key_of_row = row_key(key, first_row + kRows * q + i);
#pragma unroll
                for (int unit = 0; unit < kUnits; ++unit) {
                    const int64_t column = lane_column + column_of<T>(0, unit * kUnit<T>);
                    drop<T>(x[i] + 4 * unit, key_of_row, column, one.mask.threshold);
                }
            }
        }
        uint32_t a[RANK_TILES][4];
#pragma unroll
        for (int k = 0; k < RANK_TILES; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[k][i] = turned<T>(c[k], i / 2, i % 2);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const uint32_t b0 = turned<T>(x, 0, j), b1 = turned<T>(x, 1, j);
#pragma unroll
            for (int k = 0; k < RANK_TILES; ++k) mma<T>(total[k][j], a[k], b0, b1);
        }
    }
};

template <typename T, int RANK_TILES, bool MASKED>
__global__ void __launch_bounds__(32 * kSumsWarps, RANK_TILES == 4 ? 1 : 2)
    column_sums_mma(const ColumnSums s) {
    wait_for_earlier_kernels();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    int64_t first_column;
    const bool of_dB = is_dB(s, kSumsColumns, first_column);
    const ColumnSum& one = of_dB ? s.dB : s.dA;
    const bool masked = MASKED && !of_dB;
    const uint32_t key = masked ? mask_key(one.mask) : 0;
    const int first_rank = blockIdx.z * 16 * RANK_TILES;
    const int64_t first_row = split_of_block() * s.rows_per_split;
    const int64_t last_row = min(first_row + s.rows_per_split, s.rows);

    const int64_t lane_column = first_column + column_of<T>(g, 0);
    SumsTile<T, RANK_TILES> tile = {};
#pragma unroll(RANK_TILES == 1 ? 2 : 1)
    for (int64_t row = first_row + kSumsRows<T> * warp; row < last_row; row += kSumsRows<T> * kSumsWarps) {
        tile.add_rows(s, one, row, last_row, lane_column, first_rank, g, q, masked, key);
    }
    // The sums of the warps, in order.
    __shared__ float sums[kSumsWarps][16][kSumsColumns + 1];
#pragma unroll
    for (int k = 0; k < RANK_TILES; ++k) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {  // c[i % 4]: row g or g + 8, column 2q or 2q + 1 of tile i / 4
            const int rank = 2 * g + i % 4 / 2;
            sums[warp][rank][column_of<T>(2 * q + i % 2, i / 4)] = tile.total[k][i / 4][i % 4];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < 16 * kSumsColumns; i += 32 * kSumsWarps) {
            const int rank = one.ranks_first ? i / kSumsColumns : i % 16;
            const int local_column = one.ranks_first ? i % kSumsColumns : i / 16;
            float sum = 0.0f;
            for (int w = 0; w < kSumsWarps; ++w) sum += sums[w][rank][local_column];
            store_sum(s, one, first_rank + 16 * k + rank, first_column + local_column, sum);
        }
        __syncthreads();
    }
}

// Plain multiply-adds: any dtype, any stride.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 2) column_sums_fma(const ColumnSums s) {
    wait_for_earlier_kernels();
    int64_t first_column;
    const bool of_dB = is_dB(s, kTileM, first_column);
    const ColumnSum& one = of_dB ? s.dB : s.dA;
    const bool masked = one.mask.seed != nullptr;
    const uint32_t key = masked ? mask_key(one.mask) : 0;
    const int first_rank = blockIdx.z * kTileN;
    const int64_t first_row = split_of_block() * s.rows_per_split;
    const int64_t last_row = min(first_row + s.rows_per_split, s.rows);
    const T* const tall = static_cast<const T*>(one.tall);
    const T* const thin = static_cast<const T*>(one.thin);
    const auto x = [&](int m, int64_t row) {
        const int64_t column = first_column + m;
        if (column >= one.columns) return 0.0f;
        if (masked && !keeps(row_key(key, row), column, one.mask.threshold)) return 0.0f;
        return to_float(tall[row * one.tall_stride + column]);
    };
    const auto c = [&](int64_t row, int n) {
        const int rank = first_rank + n;
        return rank < s.padded_rank ? to_float(thin[row * s.padded_rank + rank]) : 0.0f;
    };
    float total[kTileRows][kTileColumns];
    tile_product<false, false>(first_row, last_row, x, c, total);
    for (int i = 0; i < kTileRows; ++i) {
        for (int j = 0; j < kTileColumns; ++j) {
            store_sum(s, one, first_rank + tile_column(j), first_column + tile_row(i), total[i][j]);
        }
    }
}

}  // namespace ilora
