// Owen-scrambled Sobol points in two dimensions by hashing (Burley 2020, "Practical Hash-based Owen Scrambling"; the
// permutation is Laine & Karras 2011 with Vegdahl's constants).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

NGP_HD uint32_t reverse_bits(uint32_t v) {
    v = ((v >> 1) & 0x55555555u) | ((v & 0x55555555u) << 1);
    v = ((v >> 2) & 0x33333333u) | ((v & 0x33333333u) << 2);
    v = ((v >> 4) & 0x0f0f0f0fu) | ((v & 0x0f0f0f0fu) << 4);
    v = ((v >> 8) & 0x00ff00ffu) | ((v & 0x00ff00ffu) << 8);
    return (v >> 16) | (v << 16);
}
NGP_HD uint32_t hash_combine(uint32_t seed, uint32_t v) { return seed ^ (v + (seed << 6) + (seed >> 2) + 0x9e3779b9u); }

// Nested uniform (Owen) scramble of a 32-bit fraction.
NGP_HD uint32_t owen_scramble(uint32_t v, uint32_t seed) {
    v = reverse_bits(v);
    v ^= v * 0x3d20adeau;
    v += seed;
    v *= (seed >> 16) | 1u;
    v ^= v * 0x05526c56u;
    v ^= v * 0x53a22864u;
    return reverse_bits(v);
}

// Second Sobol dimension: direction numbers of the primitive polynomial x + 1.
NGP_HD uint32_t sobol_dimension1(uint32_t index) {
    uint32_t result = 0;
    for (uint32_t v = 0x80000000u; index; index >>= 1, v ^= v >> 1)
        if (index & 1u) result ^= v;
    return result;
}

NGP_HD float fraction_of_bits(uint32_t bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }

// Point `index` of the scrambled sequence, in [0,1)^2.
NGP_HD Vec2 sobol2(uint32_t index, uint32_t seed) {
    index = owen_scramble(index, seed); // shuffles within aligned blocks of powers of two
    uint32_t x = owen_scramble(reverse_bits(index), hash_combine(seed, 0u));
    uint32_t y = owen_scramble(sobol_dimension1(index), hash_combine(seed, 1u));
    return {fraction_of_bits(x), fraction_of_bits(y)};
}

NGP_HD float fract(float v) { return v - std::floor(v); }

// Offset of sample `index` within its pixel, in [0,1)^2; sample 0 is the pixel centre (E.6).
NGP_HD Vec2 pixel_offset(uint32_t index, bool snap_to_centre) {
    constexpr uint32_t seed = 0xdeadbeefu;
    if (snap_to_centre || index == 0) return {0.5f, 0.5f};
    Vec2 first = sobol2(0, seed), p = sobol2(index, seed);
    return {fract(p.x - first.x + 0.5f), fract(p.y - first.y + 0.5f)};
}

} // namespace ngp
