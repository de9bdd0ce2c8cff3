// The dropout mask: the same bits as ilora_kernels/dropout.py, whose docstring has the formula.
#pragma once

#include <cstdint>

#include "../problems.h"

namespace ilora {

__device__ inline uint32_t scramble(uint32_t z) {
    z ^= z >> 16;
    z *= 0x7FEB352Du;
    z ^= z >> 15;
    return z * 0x846CA68Bu;
}

__device__ inline uint32_t mix(uint32_t z) {
    z = scramble(z);
    return z ^ (z >> 16);
}

__device__ inline uint32_t mask_key(const Mask& mask) {
    const uint64_t seed = static_cast<uint64_t>(*mask.seed);
    return mix(mix(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(seed >> 32));
}

__device__ inline uint32_t row_key(uint32_t key, int64_t row) {
    return mix(mix(static_cast<uint32_t>(row)) ^ key);
}

// Two times 16 bits: the low half for column 2 * pair, the high half for the one after it.
__device__ inline uint32_t pair_bits(uint32_t key_of_row, int64_t pair) {
    return scramble(key_of_row + static_cast<uint32_t>(pair) * 0x9E3779B9u);
}

__device__ inline bool keeps(uint32_t key_of_row, int64_t column, uint32_t threshold) {
    const uint32_t bits = pair_bits(key_of_row, column >> 1);
    return ((column & 1) ? bits >> 16 : bits & 0xFFFFu) >= threshold;
}

// Two 16-bit numbers of neighbouring columns, zero where they are dropped.
__device__ inline uint32_t drop(uint32_t both, uint32_t bits, uint32_t threshold) {
    return both & __vcmpgeu2(bits, threshold * 0x10001u);
}

// Eight of them: `column` is a multiple of eight.
__device__ inline uint4 drop(uint4 eight, uint32_t key_of_row, int64_t column, uint32_t threshold) {
    const int64_t pair = column >> 1;
    eight.x = drop(eight.x, pair_bits(key_of_row, pair), threshold);
    eight.y = drop(eight.y, pair_bits(key_of_row, pair + 1), threshold);
    eight.z = drop(eight.z, pair_bits(key_of_row, pair + 2), threshold);
    eight.w = drop(eight.w, pair_bits(key_of_row, pair + 3), threshold);
    return eight;
}

}  // namespace ilora
