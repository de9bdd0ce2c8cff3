// Programmatic dependent launch (compute capability 9.0): the next kernel's blocks take their places while
// this one's last ones still run, and no time is lost between the two.
#pragma once

namespace ilora {

// The first thing that every kernel does. Whoever has passed it sees all that earlier kernels wrote: each of
// them had passed it too, so that the end of the last one is the end of all.
__device__ inline void wait_for_earlier_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace ilora
