// Qualifiers for code that runs on every device.
//
// NGP_HD marks a function that both the host compiler and nvcc accept. On the host it is always inlined: the CPU
// kernels are compiled once per instruction set, and an out-of-line copy of an AVX-512 build that the linker shared
// with the baseline build would crash on older processors (see core/isa.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define NGP_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define NGP_HD inline __attribute__((always_inline))
#else
#define NGP_HD inline
#endif

namespace ngp {

// Product and sum, each rounded on its own: the same bits on every device and instruction set. Used where a result
// decides a cell; nvcc would otherwise contract the two into one fused operation.
NGP_HD float mul_then_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(__fmul_rn(a, b), c);
#else
    return a * b + c; // -ffp-contract=off
#endif
}

// The bits of a float, and back.
NGP_HD uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}
NGP_HD float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <typename T>
NGP_HD T min_of(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
NGP_HD T max_of(T a, T b) {
    return a < b ? b : a;
}
template <typename T>
NGP_HD T clamp_to(T v, T lo, T hi) {
    return v < lo ? lo : (hi < v ? hi : v);
}

} // namespace ngp
