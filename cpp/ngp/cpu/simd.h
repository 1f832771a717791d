// Vectors of the instruction set being compiled (NGP_ISA), through the compilers' vector extensions; intrinsics only
// where the language has no operator. Included by the per-instruction-set sources alone.
#pragma once

#include <cstring>
#include <ngp/formulas/hd.h>

#if !defined(NGP_ISA)
#error "compile the CPU kernels through the build's per-instruction-set targets, which define NGP_ISA"
#endif

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ngp::NGP_ISA {

#if defined(__AVX512F__)
constexpr int vector_width = 16;
#elif defined(__AVX2__)
constexpr int vector_width = 8;
#else
constexpr int vector_width = 4;
#endif

typedef float VecF __attribute__((vector_size(4 * vector_width)));
typedef int32_t VecI __attribute__((vector_size(4 * vector_width)));
typedef uint32_t VecU __attribute__((vector_size(4 * vector_width)));

template <typename V, typename T>
NGP_HD V load(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <typename V, typename T>
NGP_HD void store(T* p, V v) {
    memcpy(p, &v, sizeof v);
}

NGP_HD VecF splat(float x) { return x - VecF{}; }
NGP_HD VecU splat(uint32_t x) { return x - VecU{}; }

// a*b + c, fused where the instruction set can.
NGP_HD VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
    return VecF(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__FMA__)
    return VecF(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__ARM_NEON)
    return VecF(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
    return a * b + c;
#endif
}
NGP_HD VecF positive_part(VecF a) { return a > 0.0f ? a : VecF{}; }

} // namespace ngp::NGP_ISA
