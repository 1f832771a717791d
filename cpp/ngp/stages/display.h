// Stage of rendering: what a pixel of a frame holds, and how it is finished: for display (specification E.6), or as
// channels in world units.
#pragma once

#include <ngp/formulas/color.h>
#include <ngp/formulas/march.h>
#include <ngp/formulas/pose.h>

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

constexpr float least_alpha = 1e-3f; // below it, depth and normals mean nothing

// Channels of a picture; those that are null are not wanted.
struct ChannelPointers {
    float* rgb = nullptr;    // 3 a pixel: linear, premultiplied, no background
    float* alpha = nullptr;  // 1
    float* depth = nullptr;  // 1: expected z along the camera's forward axis / alpha, world units; NaN: nothing there
    float* normal = nullptr; // 3: unit, world axes; zero: nothing there
};

// Body: pixel i as channels.
struct FinishChannels {
    WorldTransform world;
    const FramePixel* pixels;
    ChannelPointers out;
    Vec3 gain{1, 1, 1}; // of rgb

    NGP_HD void operator()(int64_t i) const {
        const FramePixel& p = pixels[i];
        const bool hit = p.alpha >= least_alpha;
        if (out.rgb) store(out.rgb + 3 * i, p.rgb * gain);
        if (out.alpha) out.alpha[i] = p.alpha;
        if (out.depth) out.depth[i] = hit ? p.depth_expected / p.alpha * (1.0f / world.scale) : NAN;
        if (out.normal) store(out.normal + 3 * i, hit ? normalize(world.direction_to_world(p.normal)) : Vec3{});
    }
    NGP_HD static void store(float* at, Vec3 v) { at[0] = v.x, at[1] = v.y, at[2] = v.z; }
};

} // namespace ngp
