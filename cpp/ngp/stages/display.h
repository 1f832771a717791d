// Stage of rendering: what a pixel of a frame holds, and how it is finished for display (specification E.6).
#pragma once

#include <ngp/formulas/color.h>
#include <ngp/formulas/march.h>

namespace ngp {

// One pixel of a frame, averaged over its samples; colours premultiplied, without background.
struct FramePixel {
    Vec3 rgb;
    float alpha = 0;
    float depth_expected = 0; // alpha-weighted mean of z along the camera's forward axis, times alpha
    // z of the sample of largest weight in the last sample per pixel; alpha <= 0.2: max_depth
    float depth_max_weight = max_depth;
    Vec3 normal; // alpha-weighted sum of unit normals
};

struct DisplayOptions {
    ColorSpace space = ColorSpace::Linear; // of the frame
    Vec3 background;                       // in that space
    float background_alpha = 1;
    float gain = 1; // 2^exposure
    TonemapCurve curve = TonemapCurve::Identity;
    bool linear = true; // false: sRGB-encoded
};

// Body: pixel i over its background, exposed, tone-mapped and encoded.
struct FinishPixel {
    DisplayOptions options;
    const FramePixel* pixels;
    float* rgba;  // 4 a pixel
    float* depth; // may be null

    NGP_HD void operator()(int64_t i) const {
        const FramePixel& p = pixels[i];
        const float through = (1.0f - p.alpha) * options.background_alpha;
        Vec3 c = p.rgb + options.background * through;
        if (options.space == ColorSpace::SRGB) c = srgb_to_linear(c);
        c = tonemap(options.curve, c * options.gain);
        if (!options.linear) c = linear_to_srgb(c);
        float* out = rgba + 4 * i;
        out[0] = c.x, out[1] = c.y, out[2] = c.z, out[3] = p.alpha + through;
        if (depth) depth[i] = p.depth_max_weight;
    }
};

} // namespace ngp
