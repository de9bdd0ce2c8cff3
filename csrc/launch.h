// One launcher a kernel: it chooses the block sizes and the instance of the template, and returns the
// CUDA error of the launch. None of them waits, allocates, or looks at the memory of the GPU, so that all
// of them can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "problems.h"

namespace ilora {

// Tensor cores want 16-bit numbers and compute capability 8.0; every matrix at a multiple of 16 bytes, and
// tall ones and factors with rows of whole units of 16 bytes. Without them any stride will do.
cudaError_t shrink(const Shrink& problem, Dtype dtype, bool backward, bool tensor_cores,
                   int multiprocessors, cudaStream_t stream);
cudaError_t expand(const Expand& problem, Dtype dtype, bool backward, bool tensor_cores,
                   cudaStream_t stream);
cudaError_t column_sums(const ColumnSums& problem, Dtype dtype, bool tensor_cores, cudaStream_t stream);
cudaError_t finish(const Finish& problem, Dtype dtype, cudaStream_t stream);

// Whether this build has code that the current GPU and its driver can run: cudaSuccess, or why not.
cudaError_t runs_here();

}  // namespace ilora
