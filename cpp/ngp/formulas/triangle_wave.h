// Triangle waves of one coordinate, of rising frequency (specification D.3; Müller et al. 2021, "Real-time Neural
// Radiance Caching for Path Tracing", section 4.1).
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

// Wave k at x: with v = x 2^(k-1) + k/4, 4 |frac(v) - 1/2| - 1, in [-1, 1]. The product is exact; rounding the sum
// costs 2^-22 of v.
NGP_HD float triangle_phase(float x, int k) {
    const float v = 0.5f * float(1 << k) * x + 0.25f * float(k);
    return v - std::floor(v);
}
NGP_HD float triangle_wave(float x, int k) { return 4.0f * std::abs(triangle_phase(x, k) - 0.5f) - 1.0f; }

// Its derivative with respect to x: 2^(k+1), with the sign of the side that x is on; at a kink that of its right.
NGP_HD float triangle_wave_slope(float x, int k) {
    const float slope = 2.0f * float(1 << k);
    return triangle_phase(x, k) < 0.5f ? -slope : slope;
}

} // namespace ngp
