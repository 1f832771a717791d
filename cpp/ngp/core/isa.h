// Instruction sets of the CPU kernels.
//
// cpu/kernels.cpp is compiled once per instruction set, with NGP_ISA defined to the set's name, and all of it
// lives in namespace ngp::NGP_ISA. What crosses the boundary is plain data and the function table of
// cpu/kernels.h. The best set that the processor has is chosen at the first use; PYNGP_CPU_ISA=baseline|avx2|avx512
// overrides it (an error if the build or the processor lacks it).
#pragma once

#include <string>
#include <vector>

namespace ngp {

struct NerfKernels;

// Kernels of the chosen instruction set.
const NerfKernels& cpu_kernels();
// Kernels of the named set; raises ngp::Error if it is not available.
const NerfKernels& cpu_kernels(const std::string& name);
// Names of the sets that this build and this processor support, best first.
std::vector<std::string> available_isas();

} // namespace ngp
