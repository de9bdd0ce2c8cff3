// A tile of a product by plain multiply-adds: float32 that is not to be rounded to TF32, and matrices whose
// rows do not come in whole units of 16 bytes.
#pragma once

#include <cstdint>

namespace ilora {

constexpr int kTileM = 64;
constexpr int kTileN = 32;
constexpr int kTileK = 64;
constexpr int kTileThreads = 256;

// Where a thread's sums lie: total[i][j] is of row tile_row(i) and column tile_column(j).
constexpr int kTileRows = 4;
constexpr int kTileColumns = 2;
__device__ inline int tile_row(int i) { return static_cast<int>(threadIdx.x) / 16 + 16 * i; }
__device__ inline int tile_column(int j) { return static_cast<int>(threadIdx.x) % 16 + 16 * j; }

// Element i of a tile of WIDTH x kTileK, counted along the direction in which memory runs.
template <int WIDTH, bool ALONG_K>
__device__ inline void place(int i, int& outer, int& k) {
    outer = ALONG_K ? i / kTileK : i % WIDTH;
    k = ALONG_K ? i % kTileK : i / WIDTH;
}

// total[m, n] = Σ_k a(m, k) b(k, n) over first <= k < last. a and b are called for every element of the
// tile and return zero outside of their matrices. Memory runs along k, or else along m or n.
//
// Each step's 64 products are summed first and then added: that errs less than one chain over thousands.
template <bool A_ALONG_K, bool B_ALONG_K, typename A, typename B>
__device__ void tile_product(int64_t first, int64_t last, const A& a, const B& b,
                             float (&total)[kTileRows][kTileColumns]) {
    __shared__ float tile_a[kTileK][kTileM + 1];
    __shared__ float tile_b[kTileK][kTileN + 1];
    for (int i = 0; i < kTileRows; ++i) {
        for (int j = 0; j < kTileColumns; ++j) total[i][j] = 0.0f;
    }
    for (int64_t step = first; step < last; step += kTileK) {
        int outer, k;
#pragma unroll
        for (int i = threadIdx.x; i < kTileM * kTileK; i += kTileThreads) {
            place<kTileM, A_ALONG_K>(i, outer, k);
            tile_a[k][outer] = step + k < last ? a(outer, step + k) : 0.0f;
        }
#pragma unroll
        for (int i = threadIdx.x; i < kTileN * kTileK; i += kTileThreads) {
            place<kTileN, B_ALONG_K>(i, outer, k);
            tile_b[k][outer] = step + k < last ? b(step + k, outer) : 0.0f;
        }
        __syncthreads();
        float sum[kTileRows][kTileColumns] = {};
        const int terms = static_cast<int>(min(last - step, static_cast<int64_t>(kTileK)));
#pragma unroll 8
        for (k = 0; k < terms; ++k) {
#pragma unroll
            for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
                for (int j = 0; j < kTileColumns; ++j) {
                    sum[i][j] += tile_a[k][tile_row(i)] * tile_b[k][tile_column(j)];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kTileRows; ++i) {
#pragma unroll
            for (int j = 0; j < kTileColumns; ++j) total[i][j] += sum[i][j];
        }
        __syncthreads();
    }
}

}  // namespace ilora
