#include "../kernels/column_sums.cuh"

#include "launch.cuh"

namespace ilora {
namespace {

dim3 blocks_for(const ColumnSums& s, int width, int ranks) {
    const int64_t columns = ceil_div<int64_t>(s.dB.columns, width) + ceil_div<int64_t>(s.dA.columns, width);
    return dim3(blocks_of(columns), s.splits, ceil_div(s.padded_rank, ranks));
}

template <typename T, int RANK_TILES>
cudaError_t with_tensor_cores(const ColumnSums& s, const Place& place) {
    const bool masked = s.dA.columns > 0 && s.dA.mask.seed != nullptr;
    const auto kernel = masked ? column_sums_mma<T, RANK_TILES, true> : column_sums_mma<T, RANK_TILES, false>;
    return start(kernel, blocks_for(s, kSumsColumns, 16 * RANK_TILES), 32 * kSumsWarps, place, s);
}

template <typename T>
cudaError_t of_rank(const ColumnSums& s, const Place& place) {
    if (s.padded_rank == 16) return with_tensor_cores<T, 1>(s, place);
    if (s.padded_rank == 32) return with_tensor_cores<T, 2>(s, place);
    return with_tensor_cores<T, 4>(s, place);
}

template <typename T>
cudaError_t plain(const ColumnSums& s, const Place& place) {
    return start(column_sums_fma<T>, blocks_for(s, kTileM, kTileN), kTileThreads, place, s);
}

template <typename T>
cudaError_t of_type(const ColumnSums& s, const Place& place, bool tensor_cores) {
    return tensor_cores ? of_rank<T>(s, place) : plain<T>(s, place);
}

}  // namespace

cudaError_t column_sums(const ColumnSums& s, Dtype dtype, bool tensor_cores, const Place& place) {
    if (dtype == Dtype::float32) return of_type<float>(s, place, tensor_cores);
    if (dtype == Dtype::float16) return of_type<__half>(s, place, tensor_cores);
    return of_type<__nv_bfloat16>(s, place, tensor_cores);
}

}  // namespace ilora
