// b(t), the gate that governs a row, and its weight for a rank.
#pragma once

#include <cstdint>

#include "../problems.h"

namespace ilora {

// How many of the sequences after the first have begun. Never outside [0, num_gates), whatever
// cu_seqlens holds.
__device__ inline int64_t gate_of_row(const Gating& gating, int64_t row) {
    if (gating.cu_seqlens == nullptr) return row / gating.rows_per_gate;
    int64_t first = 1, last = gating.num_gates;  // the first start that lies after the row is in between
    while (first < last) {
        const int64_t middle = (first + last) / 2;
        if (gating.cu_seqlens[middle] <= row) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first - 1;
}

__device__ inline float gate_weight(const Gating& gating, int64_t row, int rank) {
    const int64_t gate = gate_of_row(gating, row);
    const float weight = gating.gate[gate * gating.num_experts + rank / gating.rank_of_expert];
    return static_cast<float>(gating.scaling * weight);
}

}  // namespace ilora
