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

// A lane's share of 16 ranks of the factor, for 32 columns. Column g of tile j is column 4g + j of the
// 32, and lane q has the ranks 4q … 4q + 3: then a lane's eight results of a row are neighbours.
template <typename T, bool BACKWARD>
__device__ void load_factor(const Expand& e, int64_t first_column, int first_rank, int g, int q,
                            uint2 (&tiles)[4]) {
    const T* const factor = static_cast<const T*>(e.factor);
    const int rank = first_rank + 4 * q;
    const int64_t column = first_column + 4 * g;
    // Below, & and not &&: a branch would keep loads waiting.
    if constexpr (!BACKWARD) {  // B [N, R]: four neighbours of each column's row
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            tiles[j] = make_uint2(0, 0);
            if ((column + j < e.columns) & (rank < e.factor_ranks)) {
                const T* const address = factor + (column + j) * e.factor_stride + rank;
                tiles[j] = load<uint2>(address);
            }
        }
    } else {  // A [R, N]: four neighbours in each of four rows, which are then turned
        uint2 rows[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            rows[i] = make_uint2(0, 0);
            if ((column < e.columns) & (rank + i < e.factor_ranks)) {
                const T* const address = factor + (rank + i) * e.factor_stride + column;
                rows[i] = load<uint2>(address);
            }
        }
        tiles[0] = make_uint2(pair_halves(rows[0].x, rows[1].x, 0), pair_halves(rows[2].x, rows[3].x, 0));
        tiles[1] = make_uint2(pair_halves(rows[0].x, rows[1].x, 1), pair_halves(rows[2].x, rows[3].x, 1));
        tiles[2] = make_uint2(pair_halves(rows[0].y, rows[1].y, 0), pair_halves(rows[2].y, rows[3].y, 0));
        tiles[3] = make_uint2(pair_halves(rows[0].y, rows[1].y, 1), pair_halves(rows[2].y, rows[3].y, 1));
    }
}

// Tensor cores. A warp has 32 rows of 32 columns: it loads the base first, so that those bytes, nearly
// all there are, are on their way while the product is computed.
template <typename T, bool BACKWARD, bool MASKED>
__global__ void __launch_bounds__(32 * kExpandWarps, 4) expand_mma(const Expand e) {
    wait_for_earlier_kernels();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const auto column_blocks = static_cast<unsigned int>((e.columns + kExpandColumns - 1) / kExpandColumns);
    // From the end on: of a large base, the last rows are those that are still in the cache.
    const unsigned int block = gridDim.x - 1 - blockIdx.x;
    const int64_t first_column = static_cast<int64_t>(block % column_blocks) * kExpandColumns + 32 * warp;
    const int64_t first_row = static_cast<int64_t>(block / column_blocks) * kExpandRows + g;
    const int64_t column = first_column + 8 * q;  // of this lane's eight results
    // Rows from first_row on; this lane has every eighth.
    const int rows = static_cast<int>(min(e.rows - first_row, static_cast<int64_t>(kExpandRows)));
    const int own_rows = column < e.columns ? rows : 0;

    uint4 old[kExpandTiles][2];
    const T* base = static_cast<const T*>(e.base) + first_row * e.base_stride + column;
#pragma unroll
    for (int tile = 0; tile < kExpandTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            old[tile][i] = make_uint4(0, 0, 0, 0);
            if (e.base != nullptr && 16 * tile + 8 * i < own_rows) {
                old[tile][i] = load<uint4>(base);
            }
            base += 8 * e.base_stride;
        }
    }

    float total[kExpandTiles][4][4] = {};  // [tile of rows][tile of columns][c]
#pragma unroll 1
    for (int rank = 0; rank < e.padded_rank; rank += 16) {
        uint2 factor[4];
        load_factor<T, BACKWARD>(e, first_column, rank, g, q, factor);
        const T* h = static_cast<const T*>(e.h) + first_row * e.padded_rank + rank + 4 * q;
#pragma unroll
        for (int tile = 0; tile < kExpandTiles; ++tile) {
            uint2 part[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                part[i] = make_uint2(0, 0);
                if (16 * tile + 8 * i < rows) part[i] = load<uint2>(h);
                h += 8 * e.padded_rank;
            }
            const uint32_t a[4] = {part[0].x, part[1].x, part[0].y, part[1].y};
#pragma unroll
            for (int j = 0; j < 4; ++j) mma<T>(total[tile][j], a, factor[j].x, factor[j].y);
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
            const uint4 before = old[tile][i];
            const uint32_t pairs[4] = {before.x, before.y, before.z, before.w};
            uint32_t after[4];
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {  // columns 2 pair and 2 pair + 1 of the eight
                const int c = 2 * i + pair / 2, j = 2 * pair % 4;
                float first = total[tile][j][c], second = total[tile][j + 1][c];
                if (MASKED) {
                    const uint32_t bits = pair_bits(key_of_row, (column >> 1) + pair);
                    if ((bits & 0xFFFFu) < e.mask.threshold) first = 0.0f;
                    if ((bits >> 16) < e.mask.threshold) second = 0.0f;
                }
                const float2 base_pair = unpack<T>(pairs[pair]);
                after[pair] = pack<T>(base_pair.x + first, base_pair.y + second);
            }
            store(y, make_uint4(after[0], after[1], after[2], after[3]));
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
