// A CUDA driver without a GPU: it takes every kernel, launches none, and tells a callback of each launch.
// Only what Triton's compiler and launcher call is here, with the answers of a GPU of capability 9.0.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int Result;

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void *stream, *attributes;
  unsigned num_attributes;
} Launch;

typedef void (*Listener)(uint64_t function, void **parameters, const unsigned *shape);

enum { MAX_SHARED = 8, WARP = 10, REGISTERS = 12, MULTIPROCESSORS = 16, REGISTERS_OF_SM = 82, MAX_SHARED_OPTIN = 97 };

static Listener listener;
static uint64_t functions;

void listen(Listener to) { listener = to; }

Result cuInit(unsigned flags) { return 0; }
Result cuGetErrorString(Result result, const char **text) { *text = "refused"; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case MAX_SHARED: *value = 48 << 10; break;
  case WARP: *value = 32; break;
  case REGISTERS: case REGISTERS_OF_SM: *value = 65536; break;
  case MULTIPROCESSORS: *value = 132; break;
  case MAX_SHARED_OPTIN: *value = 227 << 10; break;
  default: *value = 1;
  }
  return 0;
}
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
Result cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
Result cuModuleGetFunction(uint64_t *function, void *module, const char *name) { *function = ++functions; return 0; }
Result cuFuncGetAttribute(int *value, int attribute, uint64_t function) { *value = attribute ? 0 : 1024; return 0; }
Result cuFuncSetAttribute(uint64_t function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(uint64_t function, int config) { return 0; }
Result cuOccupancyMaxActiveClusters(int *clusters, uint64_t function, const void *config) { *clusters = 1; return 0; }
Result cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) { memcpy(value, &pointer, 8); return 0; }

// A map is what it was made of, in sixteen words: the address first.
Result cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, uint64_t address, const uint64_t *sizes,
                              const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                              int swizzle, int promotion, int fill) {
  if (rank < 2 || rank > 3 || address % 16) return 1;
  uint64_t words[16] = {address, type, rank, 0x1000 * interleave + 0x100 * swizzle + 0x10 * promotion + fill};
  uint64_t *next = words + 4;
  for (unsigned i = 0; i < rank; i++) {
    *next++ = sizes[i];
    *next++ = (uint64_t)box[i] << 32 | steps[i];
  }
  for (unsigned i = 0; i < rank - 1; i++) {
    if (strides[i] % 16) return 1;
    *next++ = strides[i];
  }
  memcpy(map, words, sizeof words);
  return 0;
}

Result cuLaunchKernelEx(const Launch *launch, uint64_t function, void **parameters, void **extra) {
  const unsigned shape[] = {launch->grid[0],  launch->grid[1],      launch->grid[2],
                            launch->block[0], launch->shared_bytes, launch->num_attributes};
  if (listener) listener(function, parameters, shape);
  return 0;
}
