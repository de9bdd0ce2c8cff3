#include "../kernels/shrink.cuh"

#include "launch.cuh"

namespace ilora {
namespace {

// How many of a block's warps have rows of their own: more rows to a block read the factor less often,
// fewer leave no multiprocessor without a block.
int row_warps(int64_t rows, int multiprocessors) {
    const int64_t row_tiles = ceil_div<int64_t>(rows, kShrinkRows);
    if (row_tiles <= multiprocessors) return 1;
    return row_tiles <= 4 * multiprocessors ? 2 : 4;
}

template <typename T, int TILES>
cudaError_t with_tensor_cores(const Shrink& s, bool backward, const Place& place) {
    const int rows = row_warps(s.rows, place.multiprocessors);
    const dim3 blocks(blocks_of(ceil_div<int64_t>(s.rows, kShrinkRows * rows)),
                      ceil_div(s.padded_rank, 8 * TILES));
    const int threads = 32 * kShrinkWarps<TILES>;
    if (backward) return start(shrink_mma<T, TILES, true, false>, blocks, threads, place, s, rows);
    if (s.mask.seed) return start(shrink_mma<T, TILES, false, true>, blocks, threads, place, s, rows);
    return start(shrink_mma<T, TILES, false, false>, blocks, threads, place, s, rows);
}

template <typename T>
cudaError_t of_rank(const Shrink& s, bool backward, const Place& place) {
    if (s.padded_rank == 16) return with_tensor_cores<T, 2>(s, backward, place);
    if (s.padded_rank == 32) return with_tensor_cores<T, 4>(s, backward, place);
    return with_tensor_cores<T, 8>(s, backward, place);
}

template <typename T>
cudaError_t plain(const Shrink& s, bool backward, const Place& place) {
    const dim3 blocks(blocks_of(ceil_div<int64_t>(s.rows, kTileM)), ceil_div(s.padded_rank, kTileN));
    return start(backward ? shrink_fma<T, true> : shrink_fma<T, false>, blocks, kTileThreads, place, s);
}

template <typename T>
cudaError_t of_type(const Shrink& s, bool backward, const Place& place, bool tensor_cores) {
    return tensor_cores ? of_rank<T>(s, backward, place) : plain<T>(s, backward, place);
}

}  // namespace

cudaError_t shrink(const Shrink& s, Dtype dtype, bool backward, bool tensor_cores,
                   const Place& given) {
    // Anything may have come before, also what is no kernel: a graph allows no chain there.
    const Place place = {given.stream, given.multiprocessors, false};
    if (dtype == Dtype::float32) return of_type<float>(s, backward, place, tensor_cores);
    if (dtype == Dtype::float16) return of_type<__half>(s, backward, place, tensor_cores);
    return of_type<__nv_bfloat16>(s, backward, place, tensor_cores);
}

cudaError_t compiled_for(int* capability) {
    cudaFuncAttributes attributes = {};
    const cudaError_t error = cudaFuncGetAttributes(&attributes, shrink_fma<float, false>);
    *capability = attributes.ptxVersion;
    return error;
}

}  // namespace ilora
