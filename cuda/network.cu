#include "general_network.cuh"
#include "network_kernels.cuh"

namespace ngp::cuda {

extern const NetworkFunctions fused_width_16[2], fused_width_32[2], fused_width_64[2], fused_width_128[2];

const NetworkFunctions& fused_functions(int width, int rgb_hidden) {
    switch (width) {
    case 16: return fused_width_16[rgb_hidden - 1];
    case 32: return fused_width_32[rgb_hidden - 1];
    case 64: return fused_width_64[rgb_hidden - 1];
    default: return fused_width_128[rgb_hidden - 1];
    }
}

const NetworkFunctions& general_functions() {
    static const NetworkFunctions functions = functions_of<GeneralNetwork>();
    return functions;
}

} // namespace ngp::cuda
