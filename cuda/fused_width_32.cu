#include "network_kernels.cuh"

namespace ngp::cuda {

extern const NetworkFunctions fused_width_32[2];
const NetworkFunctions fused_width_32[2] = {fused_functions_of<32, 1>(), fused_functions_of<32, 2>()};

} // namespace ngp::cuda
