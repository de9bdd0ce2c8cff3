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

template <typename T>
cudaError_t of_type(const Expand& e, bool backward, const Place& place, bool tensor_cores) {
    return tensor_cores ? with_tensor_cores<T>(e, backward, place) : plain<T>(e, backward, place);
}

}  // namespace

cudaError_t expand(const Expand& e, Dtype dtype, bool backward, bool tensor_cores, const Place& place) {
    if (dtype == Dtype::float32) return of_type<float>(e, backward, place, tensor_cores);
    if (dtype == Dtype::float16) return of_type<__half>(e, backward, place, tensor_cores);
    return of_type<__nv_bfloat16>(e, backward, place, tensor_cores);
}

}  // namespace ilora
