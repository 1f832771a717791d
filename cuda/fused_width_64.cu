#include "network_kernels.cuh"

namespace ngp::cuda {

extern const NetworkFunctions fused_width_64[2];
const NetworkFunctions fused_width_64[2] = {fused_functions_of<64, 1>(), fused_functions_of<64, 2>()};

} // namespace ngp::cuda
