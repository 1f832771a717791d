// Devices of a build without CUDA: none. With CUDA, cuda/device.cu has the definitions.
#include <ngp/core/check.h>
#include <ngp/core/device.h>

#if !defined(NGP_HAVE_CUDA)
namespace ngp {

bool built_with_cuda() { return false; }

std::vector<CudaDevice> cuda_devices() { return {}; }

std::string cuda_unavailable_reason() {
    return "this build has no CUDA engine; build with -DNGP_CUDA=ON (pip: CMAKE_ARGS=-DNGP_CUDA=ON) and CUDA 12.2 or "
           "newer, or use device \"cpu\"";
}

CudaCeilings measure_cuda_ceilings(int) { fail("CUDA ceilings: ", cuda_unavailable_reason()); }

} // namespace ngp
#endif
