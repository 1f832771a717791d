// One-blob encoding of one coordinate (Müller et al. 2019, "Neural Importance Sampling", section 4.3; with the quartic
// kernel of specification D.3): a bump around x, integrated over equal bins of [0,1], which wraps around.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

constexpr int max_blob_bins = 256;

// The quartic (biweight) kernel of half width 1, 15/16 (1 - u^2)^2, and its integral from -1 to u.
NGP_HD float quartic_kernel(float u) {
    const float w = max_of(1.0f - u * u, 0.0f);
    return 0.9375f * w * w;
}
NGP_HD float quartic_integral(float u) {
    const float c = clamp_to(u, -1.0f, 1.0f), c2 = c * c;
    return 0.5f + 0.9375f * c * (1.0f + c2 * (0.2f * c2 - 2.0f / 3.0f));
}

// Integral over bin `bin` of n_bins of kernels of half width 1 / n_bins around x - 1, x and x + 1, for x in [0,1]. All
// bins of an x sum up to 1. Off by (2 n_bins + 4) 2^-23 at most.
NGP_HD float one_blob(float x, int bin, int n_bins) {
    const float n = float(n_bins), left = float(bin) - n * x;
    float sum = 0.0f;
    for (int turn = -1; turn <= 1; ++turn) {
        const float u = left + float(turn) * n;
        sum += quartic_integral(u + 1.0f) - quartic_integral(u);
    }
    return sum;
}
// Its derivative with respect to x.
NGP_HD float one_blob_slope(float x, int bin, int n_bins) {
    const float n = float(n_bins), left = float(bin) - n * x;
    float sum = 0.0f;
    for (int turn = -1; turn <= 1; ++turn) {
        const float u = left + float(turn) * n;
        sum += quartic_kernel(u) - quartic_kernel(u + 1.0f);
    }
    return n * sum;
}

} // namespace ngp
