// Emission-absorption compositing along a ray, one sample at a time (specification E.2, E.4; Max 1995, "Optical Models
// for Direct Volume Rendering"), forward and backward.
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

constexpr float training_min_transmittance = 1e-4f;

// Opacity of a segment of length dt and density sigma: 1 - exp(-sigma*dt).
NGP_HD float segment_alpha(float sigma, float dt) { return 1.0f - std::exp(-sigma * dt); }

// Running state of a ray: colour so far (premultiplied) and transmittance.
struct BlendState {
    Vec3 rgb{};
    float transmittance = 1.0f;
};

// Adds a sample and returns its weight T*alpha.
NGP_HD float blend(BlendState& s, Vec3 color, float alpha) {
    float weight = s.transmittance * alpha;
    s.rgb += color * weight;
    s.transmittance *= 1.0f - alpha;
    return weight;
}

// dL/d(sigma*dt) of a sample, with g = dL/d(rgb of the ray), T_after the transmittance behind the sample, c its colour
// and suffix = (final rgb) - (rgb accumulated up to and including this sample), background included.
NGP_HD float blend_density_gradient(Vec3 g, float transmittance_after, Vec3 color, Vec3 suffix) {
    return dot(g, color * transmittance_after - suffix);
}

// The same for g = dL/d(expected distance), the sum of weight * t over the ray's samples; suffix is what those behind
// this one at t add to it.
NGP_HD float blend_distance_gradient(float g, float transmittance_after, float t, float suffix) {
    return g * (transmittance_after * t - suffix);
}

} // namespace ngp
