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

// Half number `odd` (0: low, 1: high) of two registers, side by side.
__device__ inline uint32_t pair_halves(uint32_t first, uint32_t second, int odd) {
    return __byte_perm(first, second, odd ? 0x7632 : 0x5410);
}

}  // namespace ilora
