#include <cuda_runtime.h>

#include "lk/device.h"

namespace lk::cuda {
namespace {

// Never launched: its attributes tell which of the embedded images the driver picked.
__global__ void probe(int* out) { *out = 1; }

}  // namespace

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int runtime_version() { return CUDART_VERSION; }

int driver_version(int* version) { return cudaDriverGetVersion(version); }

int device_count(int* count) {
  const cudaError_t error = cudaGetDeviceCount(count);
  if (error != cudaSuccess) {
    *count = 0;
    cudaGetLastError();
  }
  return error;
}

int image_arch(int device, int* arch) {
  *arch = 0;
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, probe);
  if (error == cudaSuccess) *arch = attributes.binaryVersion;
  cudaSetDevice(before);
  cudaGetLastError();
  return error;
}

int shared_memory(int device, int* bytes) {
  *bytes = 0;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

}  // namespace lk::cuda
