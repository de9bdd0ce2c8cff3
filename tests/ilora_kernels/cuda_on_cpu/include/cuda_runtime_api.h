// As much of CUDA's runtime as csrc/ uses, on a CPU: the kernels' own code then runs in tests that have
// no GPU. Blocks run one after another; the threads of a block are fibers, which change places at
// barriers and at the collective steps of the tensor cores, and nowhere else.
#pragma once

#include <cstdint>
#include <type_traits>

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t) { return "the error of the tests"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorUnknown"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// No such GPU, where a test wants to see an error.
inline cudaError_t cudaSetDevice(int) { return cudaErrorUnknown; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
