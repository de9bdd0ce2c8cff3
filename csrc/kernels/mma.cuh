// One step of the tensor cores: c[16, 8] += a[16, 16] b[16, 8], float32 sums of 16-bit products; or
// c[16, 8] += a[16, 8] b[8, 8] of float32, of which the products see 10 bits of fraction (TF32).
//
// What a lane holds, with g = lane / 4 and q = lane % 4, two 16-bit numbers a register:
//   a[0], a[2]: row g,      columns 2q, 2q+1 and 2q+8, 2q+9      a[1], a[3]: row g + 8, the same
//   b[0], b[1]: column g,   rows    2q, 2q+1 and 2q+8, 2q+9
//   c[0], c[1]: row g,      columns 2q, 2q+1                     c[2], c[3]: row g + 8, the same
// Of float32 one a register: columns of a and rows of b are q and q + 4.
//
// The terms of a sum may be numbered at will, if a and b agree, and so may the rows of a and the
// columns of b, if the one who stores c agrees. The kernels number them so that a lane's share lies in
// one piece in memory: it is loaded straight into registers, 8 or 16 bytes at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace ilora {

template <typename T>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// The nearest number of TF32; of two, the larger in magnitude.
__device__ inline uint32_t to_tf32(uint32_t number) {
#if defined(ILORA_ON_CPU)  // in tests without a GPU
    return on_cpu::to_tf32(number);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(number));
    return rounded;
#else
    return number;
#endif
}

#if defined(ILORA_ON_CPU)
#define ILORA_MMA(TYPE) on_cpu::mma(c, a, b0, b1, on_cpu::TYPE())
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define ILORA_MMA(TYPE) ILORA_MMA_OF(ILORA_SHAPE_OF_##TYPE, ILORA_NAME_OF_##TYPE)
#define ILORA_SHAPE_OF_half "m16n8k16"
#define ILORA_SHAPE_OF_bf16 "m16n8k16"
#define ILORA_SHAPE_OF_tf32 "m16n8k8"
#define ILORA_NAME_OF_half "f16"
#define ILORA_NAME_OF_bf16 "bf16"
#define ILORA_NAME_OF_tf32 "tf32"
#define ILORA_MMA_OF(SHAPE, NAME)                                         \
    asm("mma.sync.aligned." SHAPE ".row.col.f32." NAME "." NAME ".f32 "   \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else  // there is no such instruction, and the launchers take other kernels
#define ILORA_MMA(TYPE) __trap()
#endif

template <>
__device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ILORA_MMA(half);
}
template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
    ILORA_MMA(bf16);
}
template <>
__device__ inline void mma<float>(float (&c)[4], const uint32_t (&exact)[4], uint32_t b0, uint32_t b1) {
    const uint32_t a[4] = {to_tf32(exact[0]), to_tf32(exact[1]), to_tf32(exact[2]), to_tf32(exact[3])};
    b0 = to_tf32(b0), b1 = to_tf32(b1);
    ILORA_MMA(tf32);
}

#undef ILORA_MMA

}  // namespace ilora
