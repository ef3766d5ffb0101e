// Facts about the CUDA side that do not need a kernel launch. Error codes are cudaError_t values; 0 is success.
#pragma once

namespace lk::cuda {

const char* error_string(int error);
int runtime_version();
int driver_version(int* version);
int device_count(int* count);

// The architecture (90 for sm_90) of the code that would run on `device`, PTX counting as its own architecture.
// An error such as "no kernel image is available" means that this build has nothing for that device.
int image_arch(int device, int* arch);

// Bytes of shared memory that a block of threads may ask for.
int shared_memory(int device, int* bytes);

}  // namespace lk::cuda
