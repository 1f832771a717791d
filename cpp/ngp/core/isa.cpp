#include <cstdlib>
#include <ngp/core/check.h>
#include <ngp/core/isa.h>
#include <ngp/cpu/kernels.h>

namespace ngp {

#define NGP_DECLARE_KERNELS(isa)                                                                                       \
    namespace isa {                                                                                                    \
    extern const NerfKernels kernels;                                                                                  \
    }
NGP_DECLARE_KERNELS(baseline)
#if defined(NGP_HAVE_AVX)
NGP_DECLARE_KERNELS(avx2)
NGP_DECLARE_KERNELS(avx512)
#endif
#undef NGP_DECLARE_KERNELS

namespace {

std::vector<const NerfKernels*> available() {
    std::vector<const NerfKernels*> found;
#if defined(NGP_HAVE_AVX)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        found.push_back(&avx512::kernels);
    if (has_avx2) found.push_back(&avx2::kernels);
#endif
    found.push_back(&baseline::kernels);
    return found;
}

} // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const NerfKernels* k : available()) names.push_back(k->name);
    return names;
}

const NerfKernels& cpu_kernels(const std::string& name) {
    std::string names;
    for (const NerfKernels* k : available()) {
        if (name == k->name) return *k;
        names += std::string(names.empty() ? "" : ", ") + k->name;
    }
    fail("PYNGP_CPU_ISA is '", name, "'; this build and processor support: ", names);
}

const NerfKernels& cpu_kernels() {
    static const NerfKernels& chosen = []() -> const NerfKernels& {
        const char* name = std::getenv("PYNGP_CPU_ISA");
        return name && *name ? cpu_kernels(std::string(name)) : *available().front();
    }();
    return chosen;
}

} // namespace ngp
