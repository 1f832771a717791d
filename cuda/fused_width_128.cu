#include "network_kernels.cuh"

namespace ngp::cuda {

extern const NetworkFunctions fused_width_128[2];
const NetworkFunctions fused_width_128[2] = {fused_functions_of<128, 1>(), fused_functions_of<128, 2>()};

} // namespace ngp::cuda
