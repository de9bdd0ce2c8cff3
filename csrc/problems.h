// What the launchers are told: addresses, sizes and strides (in elements), one struct a kernel.
//
// T rows, R total rank, K experts; "padded" ranks are whole multiples of 16, zeros after R. Addresses
// are of the GPU. Nothing here owns memory.
#pragma once

#include <cstdint>

namespace ilora {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// The dropout mask of ilora_kernels/dropout.py; a null seed means that nothing is dropped.
struct Mask {
    const int64_t* seed;
    uint32_t threshold;
    double keep_scale;  // in double, as scaling below: the rounding of a factor that all share adds up
};

// G[t, j] = scaling * gate[b(t), j / rank_of_expert].
struct Gating {
    const float* gate;          // [num_gates, num_experts]
    const int32_t* cu_seqlens;  // [num_gates + 1], or null: rows_per_gate rows for each gate
    int64_t num_gates;
    int64_t rows_per_gate;
    int num_experts;
    int rank_of_expert;
    double scaling;
};

// Forward:   xa = x̂ Aᵀ,   h = xa ⊙ G.                      matrix = x,  factor = A [R, D]
// Backward:  v  = dY B,    u = v ⊙ G / (1-p),  h = xa ⊙ G,  p = s xa ⊙ v.
//                                                           matrix = dY, factor = B [D, R]
struct Shrink {
    const void* matrix;  // [rows, width]
    int64_t matrix_stride;
    const void* factor;
    int64_t factor_stride;
    int factor_ranks;  // ranks that may be read of B: R, or more of them if those are zeros
    float* xa;         // [rows, rank]; written forward, read backward
    void* h;           // [rows, padded_rank]
    void* u;           // the same; backward only
    float* p;          // [rows, rank]; backward only
    int64_t rows;
    int64_t width;
    int rank;
    int padded_rank;
    Gating gating;
    Mask mask;  // of x forward; backward only its keep_scale counts
};

// y = base + mask ⊙ (h factorᵀ);   forward: factor = B [N, R], no mask;   backward: h = u, factor = A [R, N].
struct Expand {
    const void* base;  // [rows, columns], may be y itself, or null
    int64_t base_stride;
    const void* h;  // [rows, padded_rank]
    const void* factor;
    int64_t factor_stride;
    int factor_ranks;  // ranks that may be read of the factor, as in Shrink
    void* y;           // [rows, columns], without gaps
    int64_t rows;
    int64_t columns;
    int padded_rank;
    Mask mask;
};

// partial[s] = Σ_t thin[t, j] tall[t, d] over the rows of split s, with the mask on tall.
struct ColumnSum {
    const void* tall;  // [rows, columns]
    int64_t tall_stride;
    int64_t columns;  // 0: there is nothing to do
    const void* thin;  // [rows, padded_rank]
    float* partial;    // [splits, rank, columns] if ranks_first, else [splits, columns, rank]
    bool ranks_first;
    Mask mask;
};

// dB = dYᵀ h and dA = uᵀ x̂, as sums over splits of the rows.
struct ColumnSums {
    ColumnSum dB;
    ColumnSum dA;
    int64_t rows;
    int64_t rows_per_split;
    int splits;
    int rank;
    int padded_rank;
};

// The last step of the gradients: sums over splits in order, and dG[g, k] = Σ_{t in g, j in k} p[t, j].
struct Finish {
    const float* partial_dB;  // [splits, elements_dB]
    const float* partial_dA;
    void* dB;
    void* dA;
    int64_t elements_dB;  // 0: nobody asks, as below
    int64_t elements_dA;
    int splits;
    const float* p;  // [rows, rank]
    float* dgate;    // [num_gates, num_experts], or null
    int64_t rows;
    int rank;
    Gating gating;
};

}  // namespace ilora
