// Ways between two camera poses (specification A.6, E.6), and points of a lens' disc. Poses have orthonormal axes.
#pragma once

#include <ngp/formulas/rotation.h>

namespace ngp {

// A camera that moves while the shutter is open: turned by share * turn about itself and moved by share * shift, for
// shares from 0 to 1. Slerp of the rotation and lerp of the position.
struct ShutterMotion {
    Vec3 turn, shift;

    NGP_HD static ShutterMotion between(const CameraMatrix& from, const CameraMatrix& to) {
        return {rotation_between(from, to), to.position - from.position};
    }
    NGP_HD bool exists() const { return !(turn == Vec3{} && shift == Vec3{}); }
    NGP_HD CameraMatrix pose(const CameraMatrix& start, float share) const {
        CameraMatrix c = rotate(turn * share, start);
        c.position += shift * share;
        return c;
    }
};

// (V(r)) p and its inverse, with V(r) = I + (1 - cos a) / a^2 [r] + (a - sin a) / a^3 [r]^2 and a = |r|: what the
// exponential of a twist (r, u) moves the origin by is V(r) u (Murray, Li & Sastry 1994, proposition 2.9).
NGP_HD Vec3 twist_to_shift(Vec3 r, Vec3 u) {
    const double a = length(r), a2 = a * a;
    const double k1 = a > 1e-3 ? (1.0 - std::cos(a)) / a2 : 0.5 - a2 / 24.0;
    const double k2 = a > 1e-3 ? (a - std::sin(a)) / (a2 * a) : 1.0 / 6.0 - a2 / 120.0;
    const Vec3 c = cross(r, u);
    return u + c * float(k1) + cross(r, c) * float(k2);
}
NGP_HD Vec3 shift_to_twist(Vec3 r, Vec3 p) {
    const double a = length(r), a2 = a * a;
    const double k = a > 1e-2 ? (1.0 - 0.5 * a * std::sin(a) / (1.0 - std::cos(a))) / a2 : 1.0 / 12.0 + a2 / 720.0;
    const Vec3 c = cross(r, p);
    return p - c * 0.5f + cross(r, c) * float(k);
}

// exp(t log(b a^-1)) a: the pose at t on the screw motion from a (t = 0) to b (t = 1); rotations of less than pi.
NGP_HD CameraMatrix screw_between(const CameraMatrix& a, const CameraMatrix& b, float t) {
    const Vec3 r = rotation_between(a, b);
    // About the first camera rather than the world's origin, where rounding is least.
    const Vec3 u = shift_to_twist(r, b.position - a.position);
    CameraMatrix c = rotate(r * t, a);
    c.position = a.position + twist_to_shift(r * t, u * t);
    return c;
}

// The unit square onto the unit disc, keeping relative areas (Shirley & Chiu 1997, concentric map).
NGP_HD Vec2 disc_point(Vec2 square) {
    const float a = 2.0f * square.x - 1.0f, b = 2.0f * square.y - 1.0f;
    if (a == 0.0f && b == 0.0f) return {0, 0};
    const bool wide = std::fabs(a) > std::fabs(b);
    const float radius = wide ? a : b;
    const SinCos s = sin_cos_pi(wide ? 0.25f * (b / a) : 0.5f - 0.25f * (a / b));
    return {radius * s.cos, radius * s.sin};
}

} // namespace ngp
