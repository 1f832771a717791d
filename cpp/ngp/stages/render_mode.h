// Stage of rendering: what a picture shows (specification E.6) - what each sample of a ray adds, and what each ray adds
// to its pixel. Both devices' renderers call these.
#pragma once

#include <ngp/stages/display.h>

namespace ngp {

enum class RenderMode : uint8_t {
    AO = 0,        // each sample's opacity
    Shade = 1,     // the model's colours
    Normals = 2,   // n/2 + 1/2, NGP axes
    Positions = 3, // (p - 1/2)/2 + 1/2, NGP space
    Depth = 4,     // distance along the camera's forward axis, world units
    Distortion =
        5,     // how far the lens moves a ray's pixel: direction as hue, 64 times the share of the picture as value
    Cost = 6,  // samples of the ray / 128, where it meets anything
    Slice = 7, // the field on a plane in front of the camera
};

// What a picture by marching shows.
struct ModeOptions {
    RenderMode mode = RenderMode::Shade;
    bool hard_edges = false; // Positions, Depth: of the sample of largest weight rather than blended
    float depth_scale = 1;   // Depth: displayed value per NGP unit
};

// Value of a sample in place of the model's colour; not for mode Shade. z: along the camera's forward axis, NGP units.
NGP_HD Vec3 geometry_value(const ModeOptions& shows, float alpha, Vec3 position, float z) {
    switch (shows.mode) {
    case RenderMode::AO: return splat3(alpha);
    case RenderMode::Positions: return position * 0.5f + splat3(0.25f);
    case RenderMode::Depth: return splat3(z * shows.depth_scale);
    default: return {}; // of rays, not of samples
    }
}
// An activation that takes the place of colours: column `dimension` of layer `layer`. Layers are the inputs of the
// density network's layers, then those of the rgb network's, then its output.
struct VisualizedActivation {
    int layer = 0, dimension = -1; // -1: none

    NGP_HD bool wanted() const { return dimension >= 0; }
    // Value of a sample: signs apart, so that both can be blended (DisplayOptions::signed_values).
    NGP_HD static Vec3 value(float activation) { return {max_of(activation, 0.0f), 0.0f, max_of(-activation, 0.0f)}; }
};
// In mode Cost a ray's colour is this times its samples, whatever their weights.
constexpr float cost_of_sample = 1.0f / 128.0f;

// What came of a ray.
struct RenderedRay {
    Vec3 rgb; // in the network's compositing space, premultiplied; or the mode's values
    float alpha = 0;
    float t_expected = 0;   // sum of weight * t
    float t_max_weight = 0; // t of the sample of the largest weight
    Vec3 normal;            // sum of weight * unit normal

    // Closes the sums at a transmittance. Below the least, the ray stopped early: as if the rest were like what was
    // seen.
    NGP_HD void finish(RenderMode mode, float transmittance, float min_transmittance) {
        alpha = 1.0f - transmittance;
        if (!(alpha > 1.0f - min_transmittance)) return;
        const float s = 1.0f / alpha;
        if (mode != RenderMode::Cost) rgb = rgb * s;
        t_expected *= s;
        normal = normal * s;
        alpha = 1.0f;
    }
};

// How rays are added to pixels.
struct AddRay {
    ModeOptions shows;
    bool linear_colors = false;            // of the network
    ColorSpace space = ColorSpace::Linear; // of the frame
    float near_distance = 0;               // t counts from there, depth from the camera

    // `origin`, `direction`: of the ray's t; z_per_t: cosine of its angle to the camera's forward axis.
    NGP_HD void operator()(FramePixel& sum, const RenderedRay& ray, Vec3 origin, Vec3 direction, float z_per_t) const {
        const float z = (ray.t_max_weight + near_distance) * z_per_t;
        sum.depth_max_weight = ray.alpha > 0.2f ? z : max_depth;
        if (ray.alpha <= 0.001f) return;
        Vec3 rgb = ray.rgb;
        float alpha = ray.alpha;
        if (shows.mode == RenderMode::Shade) {
            if (linear_colors && space == ColorSpace::SRGB) rgb = linear_to_srgb(rgb);
            if (!linear_colors && space == ColorSpace::Linear) rgb = srgb_to_linear(rgb);
        } else if (shows.mode == RenderMode::Normals) {
            rgb = (normalize(ray.normal) * 0.5f + splat3(0.5f)) * alpha;
        } else if (shows.mode == RenderMode::Cost) {
            alpha = 1.0f;
        } else if (shows.hard_edges && shows.mode != RenderMode::AO) {
            rgb = geometry_value(shows, alpha, origin + direction * ray.t_max_weight, z) * alpha;
        }
        sum.rgb += rgb;
        sum.alpha += alpha;
        sum.depth_expected += (ray.t_expected + ray.alpha * near_distance) * z_per_t;
        sum.normal += ray.normal;
    }
};

} // namespace ngp
