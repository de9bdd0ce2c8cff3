// One launcher a kernel: it chooses the block sizes and the instance of the template, and returns the
// CUDA error of the launch. None of them waits, allocates, or looks at the memory of the GPU, so that all
// of them can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "problems.h"

namespace ilora {

// Where a kernel is launched.
struct Place {
    cudaStream_t stream;
    int multiprocessors;
    bool can_chain;  // see kernels/chain.cuh; code for compute capability 9.0, after another kernel
};

// Tensor cores want code for compute capability 8.0; every matrix at a multiple of 16 bytes, and tall ones and
// factors with rows of whole units of 16 bytes. Of float32 they see TF32. Without them any stride will do.
cudaError_t shrink(const Shrink& problem, Dtype dtype, bool backward, bool tensor_cores,
                   const Place& place);
cudaError_t expand(const Expand& problem, Dtype dtype, bool backward, bool tensor_cores,
                   const Place& place);
cudaError_t column_sums(const ColumnSums& problem, Dtype dtype, bool tensor_cores, const Place& place);
cudaError_t finish(const Finish& problem, Dtype dtype, const Place& place);

// The capability that the code for the current GPU was compiled for, as in 90; cudaSuccess, or why this build
// does not run there.
cudaError_t compiled_for(int* capability);

}  // namespace ilora
