#include "../kernels/finish.cuh"

#include "launch.cuh"

namespace ilora {

cudaError_t finish(const Finish& f, Dtype dtype, const Place& place) {
    const bool one_row = f.gating.cu_seqlens == nullptr && f.gating.rows_per_gate == 1;
    const int64_t gates = f.dgate == nullptr ? 0 : f.gating.num_gates * f.gating.num_experts;
    const int64_t blocks_gate = one_row ? ceil_div<int64_t>(gates, kFinishThreads) : gates;
    const int64_t blocks_dB = ceil_div<int64_t>(f.elements_dB, kFinishThreads);
    const int64_t blocks_dA = ceil_div<int64_t>(f.elements_dA, kFinishThreads);
    const int64_t blocks = blocks_gate + blocks_dB + blocks_dA;
    if (blocks == 0) return cudaSuccess;
    const auto kernel = dtype == Dtype::float32   ? finish<float>
                        : dtype == Dtype::float16 ? finish<__half>
                                                  : finish<__nv_bfloat16>;
    return start(kernel, blocks_of(blocks), kFinishThreads, place, f, blocks_gate, blocks_dB, one_row);
}

}  // namespace ilora
