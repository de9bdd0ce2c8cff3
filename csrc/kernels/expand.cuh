// The second half of the low-rank path: y = base + mask ⊙ (h factorᵀ), one read and one write of y.
#pragma once

#include "../problems.h"
#include "chain.cuh"
#include "mask.cuh"
#include "mma.cuh"
#include "numbers.cuh"
#include "tile_product.cuh"

namespace ilora {

constexpr int kExpandTiles = 2;                 // of 16 rows, for a warp
constexpr int kExpandRows = 16 * kExpandTiles;  // of a block: its warps lie side by side
constexpr int kExpandWarps = 4;
constexpr int kExpandColumns = 32 * kExpandWarps;
// Of a multiprocessor, or more: a lane's base is 64 bytes in 16 bits, and twice as many in float32.
template <typename T>
constexpr int kExpandBlocks = sizeof(T) == 4 ? 3 : 4;

// Column g of tile j is this one + j. The results of lane q, columns 2q and 2q + 1 of four tiles, are then
// units of 16 bytes, which lie side by side with those of the other lanes: one at column 8q, or of float32
// two, at 4q and 16 + 4q.
template <typename T>
__device__ int column_of(int g) {
    return kUnit<T> == 8 ? 4 * g : g % 2 * 16 + g / 2 * 4;
}

// A lane's share of 16 ranks of the factor, for 32 columns, into tiles of zeros: lane q has the ranks
// 4q … 4q + 3.
template <typename T, bool BACKWARD>
__device__ void load_factor(const Expand& e, int64_t first_column, int first_rank, int g, int q,
                            uint32_t (&tiles)[4][4 / kPerWord<T>]) {
    constexpr int kWords = 4 / kPerWord<T>;
    const T* const factor = static_cast<const T*>(e.factor);
    const int rank = first_rank + 4 * q;
    const int64_t column = first_column + column_of<T>(g);
    // Below, & and not &&: a branch would keep loads waiting.
    if constexpr (!BACKWARD) {  // B [N, R]: four neighbours of each column's row
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const T* const address = factor + (column + j) * e.factor_stride + rank;
            const bool inside = (column + j < e.columns) & (rank < e.factor_ranks);
            if (inside) load_words<kWords>(address, tiles[j]);
        }
    } else {  // A [R, N]: four neighbours in each of four rows, which are then turned
        uint32_t rows[4][kWords] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const T* const address = factor + (rank + i) * e.factor_stride + column;
            const bool inside = (column < e.columns) & (rank + i < e.factor_ranks);
            if (inside) load_words<kWords>(address, rows[i]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int i = 0; i < kWords; ++i) tiles[j][i] = turned<T>(rows, i, j);
        }
    }
}

// Tensor cores. A warp has 32 rows of 32 columns: it loads the base first, so that those bytes, nearly
// all there are, are on their way while the product is computed.
template <typename T, bool BACKWARD, bool MASKED>
__global__ void __launch_bounds__(32 * kExpandWarps, kExpandBlocks<T>) expand_mma(const Expand e) {
    wait_for_earlier_kernels();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const auto column_blocks = static_cast<unsigned int>((e.columns + kExpandColumns - 1) / kExpandColumns);
    // From the end on: of a large base, the last rows are those that are still in the cache.
    const unsigned int block = gridDim.x - 1 - blockIdx.x;
    const int64_t first_column = static_cast<int64_t>(block % column_blocks) * kExpandColumns + 32 * warp;
    const int64_t first_row = static_cast<int64_t>(block / column_blocks) * kExpandRows + g;
    const int64_t column = first_column + kUnit<T> * q;  // of this lane's eight results, in units
    constexpr int kUnits = 8 / kUnit<T>;                 // the second 16 columns after the first
    const auto is_column = [&](int unit) { return unit == 0 || column + 16 * unit < e.columns; };
    // Rows from first_row on; this lane has every eighth.
    const int rows = static_cast<int>(min(e.rows - first_row, static_cast<int64_t>(kExpandRows)));
    const int own_rows = column < e.columns ? rows : 0;

    uint32_t old[kExpandTiles][2][kUnits][4] = {};
    const T* base = static_cast<const T*>(e.base) + first_row * e.base_stride + column;
#pragma unroll
    for (int tile = 0; tile < kExpandTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int unit = 0; unit < kUnits; ++unit) {
                const bool there = e.base != nullptr && 16 * tile + 8 * i < own_rows && is_column(unit);
                if (there) load_words<4>(base + 16 * unit, old[tile][i][unit]);
            }
            base += 8 * e.base_stride;
        }
    }

    constexpr int kWords = 4 / kPerWord<T>;  // of four ranks
    float total[kExpandTiles][4][4] = {};    // [tile of rows][tile of columns][c]
#pragma unroll 1
    for (int rank = 0; rank < e.padded_rank; rank += 16) {
        uint32_t factor[4][kWords] = {};
        load_factor<T, BACKWARD>(e, first_column, rank, g, q, factor);
        const T* h = static_cast<const T*>(e.h) + first_row * e.padded_rank + rank + 4 * q;
#pragma unroll
        for (int tile = 0; tile < kExpandTiles; ++tile) {
            uint32_t part[2][kWords] = {};
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (16 * tile + 8 * i < rows) load_words<kWords>(h, part[i]);
                h += 8 * e.padded_rank;
            }
#pragma unroll
            for (int word = 0; word < kWords; word += 2) {
                const uint32_t a[4] = {part[0][word], part[1][word], part[0][word + 1], part[1][word + 1]};
#pragma unroll
                for (int j = 0; j < 4; ++j) mma<T>(total[tile][j], a, factor[j][word], factor[j][word + 1]);
            }
        }
    }

    const uint32_t key = MASKED ? mask_key(e.mask) : 0;
    T* y = static_cast<T*>(e.y) + first_row * e.columns + column;
#pragma unroll
    for (int tile = 0; tile < kExpandTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (16 * tile + 8 * i >= own_rows) return;
            const uint32_t key_of_row = MASKED ? row_key(key, first_row + 16 * tile + 8 * i) : 0;
#pragma unroll
            for (int unit = 0; unit < kUnits; ++unit) {
                float terms[kUnit<T>];
#pragma unroll
                for (int k = 0; k < kUnit<T>; ++k) terms[k] = total[tile][k % 4][2 * i + unit + k / 4];
                if (MASKED) {
#pragma unroll
                    for (int k = 0; k < kUnit<T>; k += 2) {
                        const uint32_t bits = pair_bits(key_of_row, (column + 16 * unit + k) >> 1);
                        if ((bits & 0xFFFFu) < e.mask.threshold) terms[k] = 0.0f;
                        if ((bits >> 16) < e.mask.threshold) terms[k + 1] = 0.0f;
                    }
                }
                if (is_column(unit)) store(y + 16 * unit, plus<T>(old[tile][i][unit], terms));
            }
            y += 8 * e.columns;
        }
    }
}

// Plain multiply-adds: any dtype, any stride.
template <typename T, bool BACKWARD>
__global__ void __launch_bounds__(kTileThreads, 2) expand_fma(const Expand e) {
    wait_for_earlier_kernels();
    const auto column_blocks = static_cast<unsigned int>((e.columns + kTileN - 1) / kTileN);
    const int64_t first_column = static_cast<int64_t>(blockIdx.x % column_blocks) * kTileN;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x / column_blocks) * kTileM;
    const T* const base = static_cast<const T*>(e.base);
    const T* const h = static_cast<const T*>(e.h);
    const T* const factor = static_cast<const T*>(e.factor);
    T* const y = static_cast<T*>(e.y);
    const auto thin = [&](int m, int64_t rank) {
        const int64_t row = first_row + m;
        return row < e.rows ? to_float(h[row * e.padded_rank + rank]) : 0.0f;
    };
    const auto f = [&](int64_t rank, int n) {
        const int64_t column = first_column + n;
        if (column >= e.columns || rank >= e.factor_ranks) return 0.0f;
        return to_float(BACKWARD ? factor[rank * e.factor_stride + column]
                                 : factor[column * e.factor_stride + rank]);
    };
    float total[kTileRows][kTileColumns];
    tile_product<true, !BACKWARD>(0, e.padded_rank, thin, f, total);
    const bool masked = BACKWARD && e.mask.seed != nullptr;
    const uint32_t key = masked ? mask_key(e.mask) : 0;
    for (int i = 0; i < kTileRows; ++i) {
        for (int j = 0; j < kTileColumns; ++j) {
            const int64_t row = first_row + tile_row(i), column = first_column + tile_column(j);
            if (row >= e.rows || column >= e.columns) continue;
            float value = total[i][j];
            if (masked && !keeps(row_key(key, row), column, e.mask.threshold)) value = 0.0f;
            if (base != nullptr) value += to_float(base[row * e.base_stride + column]);
            y[row * e.columns + column] = from_float<T>(value);
        }
    }
}

}  // namespace ilora
