#include "network_kernels.cuh"

namespace ngp::cuda {

extern const NetworkFunctions fused_width_16[2];
const NetworkFunctions fused_width_16[2] = {fused_functions_of<16, 1>(), fused_functions_of<16, 2>()};

} // namespace ngp::cuda
