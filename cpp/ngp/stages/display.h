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
    bool linear = true;         // false: sRGB-encoded
    int checkerboard_width = 0; // of the picture, if transparency shows as a checkerboard; else 0
    bool signed_values = false; // the frame holds (positive part, 0, negative part) instead of colours
};

// Grey (linear) of the checkerboard behind pixel (x, y): squares of 16 pixels, sRGB 0.4 and 0.6.
NGP_HD float checkerboard(int64_t x, int64_t y) { return (((x >> 4) ^ (y >> 4)) & 1) ? 0.31854677f : 0.13286832f; }

// A value of either sign as a colour: positive orange, negative blue, zero black; v/(1+|v|) decides how bright.
NGP_HD Vec3 signed_color(float v) {
    const float s = v / (1.0f + std::fabs(v));
    return s >= 0.0f ? Vec3{s, 0.5f * s, 0.0f} : Vec3{0.0f, -0.5f * s, -s};
}

// Body: pixel i over its background, exposed, tone-mapped and encoded.
struct FinishPixel {
    DisplayOptions options;
    const FramePixel* pixels;
    float* rgba;  // 4 a pixel
    float* depth; // may be null

    NGP_HD void operator()(int64_t i) const {
        const FramePixel& p = pixels[i];
        const float through = (1.0f - p.alpha) * options.background_alpha;
        const Vec3 seen = options.signed_values ? signed_color(p.rgb.x - p.rgb.z) : p.rgb;
        Vec3 c = seen + options.background * through;
        if (options.space == ColorSpace::SRGB) c = srgb_to_linear(c);
        c = tonemap(options.curve, c * options.gain);
        float alpha = p.alpha + through;
        if (options.checkerboard_width > 0) { // behind the finished picture
            const int64_t y = i / options.checkerboard_width, x = i - y * options.checkerboard_width;
            c += splat3(checkerboard(x, y) * (1.0f - alpha));
            alpha = 1.0f;
        }
        if (!options.linear) c = linear_to_srgb(c);
        float* out = rgba + 4 * i;
        out[0] = c.x, out[1] = c.y, out[2] = c.z, out[3] = alpha;
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

    NGP_HD void operator()(int64_t i) const {
        const FramePixel& p = pixels[i];
        const bool hit = p.alpha >= least_alpha;
        if (out.rgb) store(out.rgb + 3 * i, p.rgb);
        if (out.alpha) out.alpha[i] = p.alpha;
        if (out.depth) out.depth[i] = hit ? p.depth_expected / p.alpha * (1.0f / world.scale) : NAN;
        if (out.normal) store(out.normal + 3 * i, hit ? normalize(world.direction_to_world(p.normal)) : Vec3{});
    }
    NGP_HD static void store(float* at, Vec3 v) { at[0] = v.x, at[1] = v.y, at[2] = v.z; }
};

} // namespace ngp
