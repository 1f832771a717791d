// Lens models: pixel -> ray and back, in camera space with x right, y down, z forward (specification C.6).
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
    // OpenCV: k1 k2 p1 p2. Fisheye: k1..k4. FTheta: p0..p4 of the angle in radians off the axis, a polynomial in the
    // distance from the principal point, and the picture's width and height in the pixels of that distance.
    float params[7] = {};

    // All rays have the same direction, and each an origin of its own.
    NGP_HD bool parallel() const { return mode == LensMode::Orthographic; }
    // What the occupancy grid takes it for (E.3).
    NGP_HD bool sees_everything() const {
        return mode == LensMode::FTheta || mode == LensMode::LatLong || mode == LensMode::Equirectangular;
    }
};

constexpr float inverse_pi = 0.318309886f;

struct SinCos {
    float sin, cos;
};
// Of pi * x, each to 2 ulp near its zeros too.
NGP_HD SinCos sin_cos_pi(float x) {
    SinCos r;
#if defined(__CUDA_ARCH__)
    sincospif(x, &r.sin, &r.cos); // unlike sincosf, it has no slow path that takes local memory
#else
    const double angle = 3.14159265358979323846 * double(x);
    r = {float(std::sin(angle)), float(std::cos(angle))};
#endif
    return r;
}

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

// Derivatives of v + distortion(v): [0] along x, [1] along y. It is symmetric.
struct LensSlopes {
    Vec2 x{1, 0}, y{0, 1};
};
NGP_HD LensSlopes distortion_slopes(const Lens& lens, Vec2 v) {
    const float* k = lens.params;
    const float r2 = v.x * v.x + v.y * v.y;
    if (lens.mode == LensMode::OpenCV) {
        const float radial = r2 * (k[0] + k[1] * r2), slope = 2.0f * (k[0] + 2.0f * k[1] * r2);
        const float xy = v.x * v.y * slope + 2.0f * (k[2] * v.x + k[3] * v.y);
        return {{1.0f + radial + v.x * v.x * slope + 2.0f * k[2] * v.y + 6.0f * k[3] * v.x, xy},
                {xy, 1.0f + radial + v.y * v.y * slope + 2.0f * k[3] * v.x + 6.0f * k[2] * v.y}};
    }
    const float r = std::sqrt(r2);
    if (lens.mode != LensMode::OpenCVFisheye || r < 1e-4f) return {};
    const float theta = std::atan(r), t2 = theta * theta;
    const float ratio = theta * (1.0f + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3])))) / r;
    const float slope = 1.0f + t2 * (3.0f * k[0] + t2 * (5.0f * k[1] + t2 * (7.0f * k[2] + t2 * 9.0f * k[3])));
    const float along = (slope / (1.0f + r2) - ratio) / r2; // d ratio / dr / r
    const float xy = along * v.x * v.y;
    return {{ratio + along * v.x * v.x, xy}, {xy, ratio + along * v.y * v.y}};
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

// Angle off the axis at distance n from the principal point (FTheta).
NGP_HD float ftheta_angle(const Lens& lens, float n) {
    const float* p = lens.params;
    return p[0] + n * (p[1] + n * (p[2] + n * (p[3] + n * p[4])));
}
NGP_HD float ftheta_slope(const Lens& lens, float n) {
    const float* p = lens.params;
    return p[1] + n * (2.0f * p[2] + n * (3.0f * p[3] + n * (4.0f * p[4])));
}

// The least distance up to `reach` at which the angle grows to the given one, to the rounding of ftheta_angle(); NaN if
// it does not. Newton's method within a bracket, which is found in steps of reach / 32.
NGP_HD float ftheta_distance(const Lens& lens, float angle, float reach) {
    float lo = 0, hi = 0;
    for (int i = 1; i <= 32; ++i) {
        hi = reach * (float(i) * (1.0f / 32.0f));
        if (ftheta_angle(lens, hi) >= angle) break;
        lo = hi;
    }
    if (!(ftheta_angle(lens, lo) <= angle && ftheta_angle(lens, hi) >= angle)) return NAN;
    float n = 0.5f * (lo + hi);
    for (int i = 0; i < 100; ++i) {
        const float excess = ftheta_angle(lens, n) - angle;
        if (excess == 0.0f) break;
        (excess > 0.0f ? hi : lo) = n;
        float next = n - excess / ftheta_slope(lens, n);
        if (!(next >= lo && next <= hi)) next = 0.5f * (lo + hi);
        const float step = std::fabs(next - n);
        n = next;
        if (step <= 6e-8f * n) break;
    }
    return n;
}

// Intrinsics of one view: focal length in pixels, principal point relative to the image size, lens. FTheta, LatLong and
// Equirectangular have no use for the focal length, the last two none for the principal point; an orthographic lens'
// focal length is in pixels per NGP unit of length.
struct CameraModel {
    Vec2 focal{1000, 1000};
    Vec2 principal{0.5f, 0.5f};
    Lens lens{};
    int width = 0, height = 0;

    // Unnormalised direction of the ray through image position uv in [0,1]^2: z is 1, but for FTheta and the 360 degree
    // lenses, which give unit vectors. Zero: no ray goes there. That is so for FTheta at the principal point itself and
    // where the angle reaches 90 degrees; such a ray misses every box (aabb.h).
    NGP_HD Vec3 ray_direction(Vec2 uv) const {
        if (lens.mode == LensMode::Orthographic) return {0, 0, 1};
        if (lens.mode == LensMode::FTheta) {
            const Vec2 v = from_principal(uv);
            const float n = std::sqrt(v.x * v.x + v.y * v.y);
            const float turn = ftheta_angle(lens, n) * inverse_pi;
            if (!(n > 0.0f && std::fabs(turn) < 0.5f)) return {};
            const SinCos a = sin_cos_pi(turn);
            return {a.sin * (v.x / n), a.sin * (v.y / n), a.cos};
        }
        if (lens.mode == LensMode::LatLong || lens.mode == LensMode::Equirectangular) {
            const SinCos longitude = sin_cos_pi(2.0f * (uv.x - 0.5f));
            SinCos latitude;
            if (lens.mode == LensMode::LatLong) {
                latitude = sin_cos_pi(uv.y - 0.5f);
            } else {
                const float y = 2.0f * (uv.y - 0.5f);
                latitude = {y, std::sqrt(max_of(0.0f, (1.0f - y) * (1.0f + y)))};
            }
            return {longitude.sin * latitude.cos, latitude.sin, longitude.cos * latitude.cos};
        }
        Vec2 v = on_plane(uv);
        if (lens.mode != LensMode::Perspective) v = undistort(lens, v);
        return {v.x, v.y, 1.0f};
    }
    // Where that ray starts: the camera's centre, except with an orthographic lens. NGP units.
    NGP_HD Vec3 ray_origin(Vec2 uv) const {
        if (!lens.parallel()) return {};
        const Vec2 v = on_plane(uv);
        return {v.x, v.y, 0.0f};
    }
    // Image position of a camera-space point; NaN if no ray goes there: it lies behind a lens that looks ahead only, or
    // FTheta does not reach its angle within the image. Any finite value may lie outside the image.
    NGP_HD Vec2 project(Vec3 p) const {
        if (lens.mode == LensMode::LatLong || lens.mode == LensMode::Equirectangular) {
            const float across = std::sqrt(p.x * p.x + p.z * p.z), distance = length(p);
            if (!(distance > 0.0f)) return {NAN, NAN};
            const float u = std::atan2(p.x, p.z) * (0.5f * inverse_pi) + 0.5f;
            if (lens.mode == LensMode::Equirectangular) return {u, 0.5f * (p.y / distance) + 0.5f};
            return {u, std::atan2(p.y, across) * inverse_pi + 0.5f};
        }
        if (!(p.z > 0.0f)) return {NAN, NAN};
        if (lens.mode == LensMode::FTheta) {
            const float across = std::sqrt(p.x * p.x + p.y * p.y);
            if (!(across > 0.0f)) return {NAN, NAN};
            const Vec2 corner{max_of(principal.x, 1.0f - principal.x) * lens.params[5],
                              max_of(principal.y, 1.0f - principal.y) * lens.params[6]};
            const float reach = 1.0001f * std::sqrt(corner.x * corner.x + corner.y * corner.y);
            const float n = ftheta_distance(lens, std::atan2(across, p.z), reach) / across;
            return {n * p.x / lens.params[5] + principal.x, n * p.y / lens.params[6] + principal.y};
        }
        Vec2 v{p.x, p.y};
        if (!lens.parallel()) v = {p.x / p.z, p.y / p.z};
        v = v + distortion(lens, v);
        return {v.x * focal.x / float(width) + principal.x, v.y * focal.y / float(height) + principal.y};
    }

    // uv as a point of the image plane at z = 1, before the lens' distortion is undone.
    NGP_HD Vec2 on_plane(Vec2 uv) const {
        return {(uv.x - principal.x) * float(width) / focal.x, (uv.y - principal.y) * float(height) / focal.y};
    }

  private:
    NGP_HD Vec2 from_principal(Vec2 uv) const {
        return {(uv.x - principal.x) * lens.params[5], (uv.y - principal.y) * lens.params[6]};
    }
};

} // namespace ngp
