// Frequency encoding of one coordinate: sines and cosines of rising frequency (Mildenhall et al. 2020, "NeRF", section
// 5.1; order of specification D.3).
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

constexpr int max_frequencies = 24; // of this encoding and of the triangle wave

NGP_HD float frequency_factor(int k) { return float(1 << k) * 3.14159265358979f; }

// Output j of coordinate x: sin(2^k pi x) for j = 2k, cos(2^k pi x) for j = 2k + 1. Off by what rounding the angle
// costs, 3 * 2^-24 of it, and 2^-23.
NGP_HD float frequency_output(float x, int j) {
    const float angle = frequency_factor(j / 2) * x;
    return j & 1 ? std::cos(angle) : std::sin(angle);
}
// Its derivative with respect to x.
NGP_HD float frequency_slope(float x, int j) {
    const float factor = frequency_factor(j / 2), angle = factor * x;
    return j & 1 ? -factor * std::sin(angle) : factor * std::cos(angle);
}

} // namespace ngp
