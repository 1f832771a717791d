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

// What a device reaches at most, measured in kernels that do nothing else; under a second.
struct CudaCeilings {
    double copy_bytes_per_second = 0; // of large arrays: bytes read and bytes written
    double tensor_flops = 0;          // a second: products of halves, summed as floats
    double gather_per_second = 0;     // 8-byte reads at random of a table of 24 MiB
    double add_per_second = 0;        // atomic half2 additions to such a table, two to an entry at random
};
CudaCeilings measure_cuda_ceilings(int device); // raises ngp::Error if it can't be used

} // namespace ngp
