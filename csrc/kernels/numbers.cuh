// The three dtypes: conversion to float32, where everything is summed, and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace ilora {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Several numbers in one access. Not through the read-only cache: they may have been written by the kernel
// before this one after this one began (chain.cuh).
template <typename Wide, typename T>
__device__ Wide load(const T* address) {
    return *reinterpret_cast<const Wide*>(address);
}

// How many numbers 16 bytes hold, and a register.
template <typename T>
constexpr int kUnit = 16 / sizeof(T);
template <typename T>
constexpr int kPerWord = 4 / sizeof(T);

// One, two or four registers in one access.
template <int WORDS, typename T>
__device__ void load_words(const T* address, uint32_t* words) {
    if constexpr (WORDS == 1) {
        words[0] = load<uint32_t>(address);
    } else if constexpr (WORDS == 2) {
        const uint2 two = load<uint2>(address);
        words[0] = two.x, words[1] = two.y;
    } else {
        const uint4 four = load<uint4>(address);
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    }
}

// Sixteen bytes in one access; a plain assignment was seen to become four.
template <typename T>
__device__ void store(T* address, uint4 value) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#else
    *reinterpret_cast<uint4*>(address) = value;
#endif
}

// Two 16-bit numbers in a register, the first in its low half.
template <typename T>
__device__ uint32_t pack(float first, float second);
template <>
__device__ inline uint32_t pack<__half>(float first, float second) {
    const __half2 both = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(both);
}
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float first, float second) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(both);
}

template <typename T>
__device__ float2 unpack(uint32_t both);
template <>
__device__ inline float2 unpack<__half>(uint32_t both) {
    return __half22float2(reinterpret_cast<const __half2&>(both));
}
template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t both) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(both));
}

// 16 bytes of numbers, and a term for each.
template <typename T>
__device__ uint4 plus(const uint32_t (&numbers)[4], const float (&terms)[kUnit<T>]) {
    uint32_t sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(T) == 4) {
            const float sum = reinterpret_cast<const float&>(numbers[i]) + terms[i];
            sums[i] = reinterpret_cast<const uint32_t&>(sum);
        } else {
            const float2 pair = unpack<T>(numbers[i]);
            sums[i] = pack<T>(pair.x + terms[2 * i], pair.y + terms[2 * i + 1]);
        }
    }
    return make_uint4(sums[0], sums[1], sums[2], sums[3]);
}

// Register i of column j of the rows that a lane holds: the number of row i, or in 16 bits the two of
// rows 2i and 2i + 1 side by side.
template <typename T, int ROWS, int WORDS>
__device__ uint32_t turned(const uint32_t (&rows)[ROWS][WORDS], int i, int j) {
    if constexpr (sizeof(T) == 4) {
        return rows[i][j];
    } else {
        return __byte_perm(rows[2 * i][j / 2], rows[2 * i + 1][j / 2], j % 2 ? 0x7632 : 0x5410);
    }
}

}  // namespace ilora
