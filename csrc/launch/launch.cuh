// What the launchers share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../launch.h"

namespace ilora {

template <typename Integer>
Integer ceil_div(Integer number, Integer unit) {
    return (number + unit - 1) / unit;
}

template <typename... Parameters, typename... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 blocks, int threads, const Place& place,
                  const Arguments&... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.stream = place.stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = place.can_chain ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

inline unsigned int blocks_of(int64_t count) { return static_cast<unsigned int>(count); }

}  // namespace ilora
