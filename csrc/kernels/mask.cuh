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

// 16 bytes of them, or of float32; `column` is the first one's, a multiple of how many they are.
template <typename T>
__device__ void drop(uint32_t* words, uint32_t key_of_row, int64_t column, uint32_t threshold) {
    const int64_t pair = column >> 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
            const uint32_t bits = pair_bits(key_of_row, pair + i / 2);
            if ((i % 2 ? bits >> 16 : bits & 0xFFFFu) < threshold) words[i] = 0;
        } else {
            words[i] = drop(words[i], pair_bits(key_of_row, pair + i), threshold);
        }
    }
}

}  // namespace ilora
