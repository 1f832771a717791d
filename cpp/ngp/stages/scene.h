// Stage: what training rays are drawn from. Images and their cameras, as both devices read them (specification C).
#pragma once

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/color.h>
#include <ngp/formulas/distortion_map.h>
#include <ngp/formulas/lens.h>
#include <ngp/formulas/pose.h>
#include <ngp/formulas/rotation.h>
#include <string>

namespace ngp {

enum class PixelType : uint8_t {
    U8,  // sRGB, straight alpha
    F32, // linear, straight alpha
};

struct ImageView {
    const void* pixels = nullptr; // row-major height x width x channels
    PixelType type = PixelType::U8;
    int channels = 4; // 3 or 4
    int width = 0, height = 0;
    int device = -1; // number of the CUDA device whose memory holds the pixels; -1: the host's
};

// Linear light premultiplied by alpha, and alpha.
struct LinearPixel {
    Vec3 rgb;
    float alpha;
};
NGP_HD LinearPixel read_pixel(const ImageView& image, int x, int y) {
    const size_t at = (size_t(y) * size_t(image.width) + size_t(x)) * size_t(image.channels);
    LinearPixel p;
    if (image.type == PixelType::U8) {
        const uint8_t* c = static_cast<const uint8_t*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? float(c[3]) * (1.0f / 255.0f) : 1.0f;
        p.rgb = srgb_to_linear(Vec3{float(c[0]), float(c[1]), float(c[2])} * (1.0f / 255.0f)) * p.alpha;
    } else {
        const float* c = static_cast<const float*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? c[3] : 1.0f;
        p.rgb = Vec3{c[0], c[1], c[2]} * p.alpha;
    }
    return p;
}

// How a camera moves while it takes its picture, by a rolling shutter (C.5): position and rotation at the share
// s = A + B u + C v + D tau of the way, which need not lie within [0, 1].
struct CameraMotion {
    Vec3 shift;            // of the position from s = 0 to s = 1
    Vec3 turn;             // rotation vector likewise, in NGP space
    float weights[4] = {}; // A, B, C, D

    NGP_HD bool exists() const { return !(shift == Vec3{} && turn == Vec3{}); }
    // tau: of the exposure, within [0, 1].
    NGP_HD float share(Vec2 uv, float tau) const {
        return weights[0] + weights[1] * uv.x + weights[2] * uv.y + weights[3] * tau;
    }
    // The least and the largest share.
    NGP_HD Vec2 shares() const {
        Vec2 range{weights[0], weights[0]};
        for (int i = 1; i < 4; ++i) (weights[i] < 0.0f ? range.x : range.y) += weights[i];
        return range;
    }
    NGP_HD CameraMatrix pose(const CameraMatrix& start, float share) const {
        CameraMatrix c = rotate(turn * share, start);
        c.position += shift * share;
        return c;
    }
};
// From pose `start` (s = 0) to `end`; none if they are equal or all weights zero.
CameraMotion camera_motion(const CameraMatrix& start, const CameraMatrix& end, const float weights[4]);

// One training view; camera in NGP space.
struct TrainingView {
    ImageView image;
    CameraModel camera;
    CameraMatrix pose; // where its motion starts
    CameraMotion motion;
    Vec3 exposure{1, 1, 1}; // learned: factor that brings the image's linear colours to the scene's (E.4)

    NGP_HD CameraMatrix pose_at(Vec2 uv, float tau) const {
        return motion.exists() ? motion.pose(pose, motion.share(uv, tau)) : pose;
    }
};

struct SceneView {
    const TrainingView* views = nullptr;
    int n_views = 0;
    Aabb box;            // scene box, NGP space
    int max_cascade = 0; // log2(aabb_scale)
    DistortionMap distortion;
};

// A ray in NGP space with unit direction; or with none, which misses every box: the lens sees nothing there.
struct Ray {
    Vec3 origin, direction;

    NGP_HD bool exists() const { return !(direction == Vec3{}); }
};
// Camera-space direction of the ray through uv; zero: there is none. A learned distortion leaves parallel rays
// parallel.
NGP_HD Vec3 camera_direction(const CameraModel& camera, const DistortionMap& distortion, Vec2 uv) {
    Vec3 d = camera.ray_direction(uv);
    if (distortion.offsets && !camera.lens.parallel() && !(d == Vec3{})) {
        const Vec2 offset = distortion.at(uv);
        d.x += offset.x;
        d.y += offset.y;
    }
    return d;
}
NGP_HD Ray camera_ray(const CameraModel& camera, const CameraMatrix& pose, Vec2 uv,
                      const DistortionMap& distortion = {}) {
    Ray ray{pose.position, normalize(pose.rotate(camera_direction(camera, distortion, uv)))};
    if (camera.lens.parallel()) ray.origin += pose.rotate(camera.ray_origin(uv));
    return ray;
}

// Raises ngp::Error, which begins with `where`, unless lens, focal length and principal point make sense.
void check_camera(const CameraModel& camera, const std::string& where);

} // namespace ngp
