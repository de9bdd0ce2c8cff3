#include "../kernels/expand.cuh"

#include "launch.cuh"

namespace ilora {
namespace {

template <typename T>
cudaError_t with_tensor_cores(const Expand& e, bool backward, const Place& place) {
    const int64_t blocks = ceil_div<int64_t>(e.columns, kExpandColumns) * ceil_div<int64_t>(e.rows, kExpandRows);
    const auto kernel = !backward       ? expand_mma<T, false, false>
                        : e.mask.seed ? expand_mma<T, true, true>
                                      : expand_mma<T, true, false>;
    return start(kernel, blocks_of(blocks), 32 * kExpandWarps, place, e);
}

template <typename T>
cudaError_t plain(const Expand& e, bool backward, const Place& place) {
    const int64_t blocks = ceil_div<int64_t>(e.columns, kTileN) * ceil_div<int64_t>(e.rows, kTileM);
    const auto kernel = backward ? expand_fma<T, true> : expand_fma<T, false>;
    return start(kernel, blocks_of(blocks), kTileThreads, place, e);
}

}  // namespace

cudaError_t expand(const Expand& e, Dtype dtype, bool backward, bool tensor_cores, const Place& place) {
    if (dtype == Dtype::float32) return plain<float>(e, backward, place);
    if (dtype == Dtype::float16) {
        return tensor_cores ? with_tensor_cores<__half>(e, backward, place)
                            : plain<__half>(e, backward, place);
    }
    return tensor_cores ? with_tensor_cores<__nv_bfloat16>(e, backward, place)
                        : plain<__nv_bfloat16>(e, backward, place);
}

}  // namespace ilora
