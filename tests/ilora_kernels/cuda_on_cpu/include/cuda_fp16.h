#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

struct __half { uint16_t bits; };
struct __half2 { __half x, y; };

inline float __half2float(__half value) {
    _Float16 number;
    std::memcpy(&number, &value, 2);
    return static_cast<float>(number);
}
inline __half __float2half_rn(float value) {
    const _Float16 number = static_cast<_Float16>(value);
    __half half;
    std::memcpy(&half, &number, 2);
    return half;
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 both) { return {__half2float(both.x), __half2float(both.y)}; }

namespace on_cpu {
struct half {
    static constexpr int kPerWord = 2;
    static float number(uint32_t word, int i) { return __half2float({static_cast<uint16_t>(word >> 16 * i)}); }
};
}  // namespace on_cpu
