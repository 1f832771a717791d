// Devices that this build and this machine offer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ngp {

// A CUDA device. Raises nothing: a machine without a driver has none.
struct CudaDevice {
    int index = 0;
    std::string name;
    int compute_capability = 0; // 10 * major + minor
    int64_t total_bytes = 0, free_bytes = 0;
};
bool built_with_cuda();
std::vector<CudaDevice> cuda_devices(); // usable ones
// Why cuda_devices() is empty, in one line with the remedy; empty if it is not.
std::string cuda_unavailable_reason();

} // namespace ngp
