// Lens models: pixel -> ray direction and back, in camera space with x right, y down, z forward (specification C.6).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

enum class LensMode : uint8_t {
    Perspective = 0,
    OpenCV = 1,
    FTheta = 2,
    LatLong = 3,
    OpenCVFisheye = 4,
    Equirectangular = 5,
    Orthographic = 6
};

struct Lens {
    LensMode mode = LensMode::Perspective;
    float params[7] = {}; // OpenCV: k1 k2 p1 p2; fisheye: k1..k4
};

// Distorted minus undistorted image-plane position.
NGP_HD Vec2 distortion(const Lens& lens, Vec2 v) {
    const float* k = lens.params;
    const float r2 = v.x * v.x + v.y * v.y;
    if (lens.mode == LensMode::OpenCV) {
        float radial = r2 * (k[0] + k[1] * r2), xy = v.x * v.y;
        return {v.x * radial + 2.0f * k[2] * xy + k[3] * (r2 + 2.0f * v.x * v.x),
                v.y * radial + 2.0f * k[3] * xy + k[2] * (r2 + 2.0f * v.y * v.y)};
    }
    if (lens.mode == LensMode::OpenCVFisheye) {
        float r = std::sqrt(r2);
        if (r < 1e-6f) return {0, 0};
        float theta = std::atan(r), t2 = theta * theta;
        float distorted = theta * (1.0f + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))));
        return v * (distorted / r - 1.0f);
    }
    return {0, 0};
}

// Inverse of v + distortion(v) by Newton's method; Jacobian by central differences. Converges to 1e-6 within the
// monotonic range of the polynomial; beyond it the last iterate is returned.
NGP_HD Vec2 undistort(const Lens& lens, Vec2 distorted) {
    Vec2 v = distorted;
    for (int i = 0; i < 100; ++i) {
        const float h = max_of(1e-3f, 1e-3f * std::sqrt(v.x * v.x + v.y * v.y));
        Vec2 d = distortion(lens, v);
        Vec2 dx = (distortion(lens, {v.x + h, v.y}) - distortion(lens, {v.x - h, v.y})) * (0.5f / h);
        Vec2 dy = (distortion(lens, {v.x, v.y + h}) - distortion(lens, {v.x, v.y - h})) * (0.5f / h);
        float a = 1.0f + dx.x, b = dy.x, c = dx.y, e = 1.0f + dy.y;
        Vec2 f = v + d - distorted;
        float det = a * e - b * c;
        if (std::fabs(det) < 1e-12f) break;
        Vec2 step{(e * f.x - b * f.y) / det, (a * f.y - c * f.x) / det};
        v = v - step;
        if (step.x * step.x + step.y * step.y < 1e-13f) break;
    }
    return v;
}

// Intrinsics of one view: focal length in pixels, principal point relative to the image size, lens.
struct CameraModel {
    Vec2 focal{1000, 1000};
    Vec2 principal{0.5f, 0.5f};
    Lens lens{};
    int width = 0, height = 0;

    // Unnormalised direction (z = 1) of the ray through image position uv in [0,1]^2.
    NGP_HD Vec3 ray_direction(Vec2 uv) const {
        Vec2 v{(uv.x - principal.x) * float(width) / focal.x, (uv.y - principal.y) * float(height) / focal.y};
        if (lens.mode != LensMode::Perspective) v = undistort(lens, v);
        return {v.x, v.y, 1.0f};
    }
    // Image position of a camera-space point with z > 0.
    NGP_HD Vec2 project(Vec3 p) const {
        Vec2 v{p.x / p.z, p.y / p.z};
        v = v + distortion(lens, v);
        return {v.x * focal.x / float(width) + principal.x, v.y * focal.y / float(height) + principal.y};
    }
};

} // namespace ngp
