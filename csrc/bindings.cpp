// The edge to Python: integers become addresses, CUDA errors become exceptions. The kernels know nothing
// of it, and it knows nothing of torch: a stream is an address too.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);  // 0 becomes a null pointer
}

std::string text(cudaError_t error) {
    return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

void check(cudaError_t error, const char* doing) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(doing) + ": " + text(error));
}

// Makes a GPU the current one, and the one before it again at the end.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device) {
        check(cudaGetDevice(&previous_), "Asking for the current GPU");
        if (previous_ != device_) check(cudaSetDevice(device_), "Choosing the GPU");
    }
    ~DeviceGuard() {
        if (previous_ != device_) static_cast<void>(cudaSetDevice(previous_));
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int device_;
    int previous_ = 0;
};

// Where a kernel is launched: a GPU, and what the launchers want to know of it.
struct Place {
    Place(int device, Address stream, int multiprocessors, bool can_chain)
        : device(device), place{at<CUstream_st>(stream), multiprocessors, can_chain} {}

    int device;
    ilora::Place place;
};

ilora::Mask mask(Address seed, uint32_t threshold, double keep_scale) {
    return {at<const int64_t>(seed), threshold, keep_scale};
}

ilora::Gating gating(Address gate, Address cu_seqlens, int64_t num_gates, int64_t rows_per_gate,
                     int num_experts, int rank_of_expert, double scaling) {
    return {at<const float>(gate), at<const int32_t>(cu_seqlens), num_gates, rows_per_gate, num_experts,
            rank_of_expert,        scaling};
}

void shrink(const Place& place, int dtype, bool backward, bool tensor_cores, Address matrix,
            int64_t matrix_stride, Address factor, int64_t factor_stride, int factor_ranks, Address xa,
            Address h, Address u, Address p, int64_t rows, int64_t width, int rank, int padded_rank,
            const ilora::Gating& gates, const ilora::Mask& dropout) {
    const ilora::Shrink problem{at<const void>(matrix), matrix_stride, at<const void>(factor), factor_stride,
                                factor_ranks, at<float>(xa), at<void>(h), at<void>(u), at<float>(p), rows,
                                width, rank, padded_rank, gates, dropout};
    const DeviceGuard guard(place.device);
    check(ilora::shrink(problem, static_cast<ilora::Dtype>(dtype), backward, tensor_cores,
                        place.place),
          "Launching the kernel shrink");
}

void expand(const Place& place, int dtype, bool backward, bool tensor_cores, Address base,
            int64_t base_stride, Address h, Address factor, int64_t factor_stride, int factor_ranks,
            Address y, int64_t rows, int64_t columns, int padded_rank, const ilora::Mask& dropout) {
    const ilora::Expand problem{at<const void>(base), base_stride, at<const void>(h), at<const void>(factor),
                                factor_stride, factor_ranks, at<void>(y), rows, columns, padded_rank,
                                dropout};
    const DeviceGuard guard(place.device);
    check(ilora::expand(problem, static_cast<ilora::Dtype>(dtype), backward, tensor_cores,
                        place.place),
          "Launching the kernel expand");
}

void column_sums(const Place& place, int dtype, bool tensor_cores, Address dy, int64_t dy_stride,
                 int64_t dy_columns, Address h, Address partial_dB, Address x, int64_t x_stride,
                 int64_t x_columns, Address u, Address partial_dA, const ilora::Mask& dropout, int64_t rows,
                 int64_t rows_per_split, int splits, int rank, int padded_rank) {
    const ilora::ColumnSum dB{at<const void>(dy), dy_stride, dy_columns, at<const void>(h),
                              at<float>(partial_dB), false, mask(0, 0, 1.0)};
    const ilora::ColumnSum dA{at<const void>(x), x_stride, x_columns, at<const void>(u),
                              at<float>(partial_dA), true, dropout};
    const ilora::ColumnSums problem{dB, dA, rows, rows_per_split, splits, rank, padded_rank};
    const DeviceGuard guard(place.device);
    check(ilora::column_sums(problem, static_cast<ilora::Dtype>(dtype), tensor_cores, place.place),
          "Launching the kernel column_sums");
}

void finish(const Place& place, int dtype, Address partial_dB, Address partial_dA, Address dB, Address dA,
            int64_t elements_dB, int64_t elements_dA, int splits, Address p, Address dgate, int64_t rows,
            int rank, const ilora::Gating& gates) {
    const ilora::Finish problem{at<const float>(partial_dB), at<const float>(partial_dA), at<void>(dB),
                                at<void>(dA), elements_dB, elements_dA, splits, at<const float>(p),
                                at<float>(dgate), rows, rank, gates};
    const DeviceGuard guard(place.device);
    check(ilora::finish(problem, static_cast<ilora::Dtype>(dtype), place.place),
          "Launching the kernel finish");
}

std::optional<std::string> why_unusable(int device) {
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) return text(error);
    const DeviceGuard guard(device);
    int capability;
    const cudaError_t error = ilora::compiled_for(&capability);
    if (error == cudaSuccess) return std::nullopt;
    static_cast<void>(cudaGetLastError());  // reported here: nobody else shall find it
    return text(error);
}

int compiled_for(int device) {
    const DeviceGuard guard(device);
    int capability;
    check(ilora::compiled_for(&capability), "Asking what the kernels were compiled for");
    return capability;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "The CUDA kernels of ilora_kernels; csrc/README.md describes them.";
    m.attr("SOURCE_HASH") = ILORA_SOURCE_HASH;
    // Local to this module: another build of it may be loaded in the same process.
    py::class_<Place>(m, "Place", py::module_local()).def(py::init<int, Address, int, bool>());
    py::class_<ilora::Mask>(m, "Mask", py::module_local()).def(py::init(&mask));
    py::class_<ilora::Gating>(m, "Gating", py::module_local()).def(py::init(&gating));
    m.def("shrink", &shrink);
    m.def("expand", &expand);
    m.def("column_sums", &column_sums);
    m.def("finish", &finish);
    m.def("why_unusable", &why_unusable, "None if a GPU can run this build, else CUDA's message.");
    m.def("compiled_for", &compiled_for, "The capability of the code that a GPU runs, as in 90.");
}
