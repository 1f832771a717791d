// Rotations as vectors: about the vector's direction, by its length in radians.
#pragma once

#include <ngp/formulas/lens.h>

namespace ngp {

// v turned by rotation vector r (Rodrigues' formula); to 4 ulp of |v| for angles up to pi.
NGP_HD Vec3 rotate(Vec3 r, Vec3 v) {
    const float angle = length(r);
    float a = 1.0f, b = 0.5f; // sin(angle) / angle, (1 - cos(angle)) / angle^2
    if (angle > 1e-4f) {
        const SinCos half = sin_cos_pi(0.5f * inverse_pi * angle);
        a = 2.0f * half.sin * half.cos / angle;
        b = 2.0f * half.sin * half.sin / (angle * angle);
    }
    const Vec3 c = cross(r, v);
    return v + c * a + cross(r, c) * b;
}

// A camera turned in place. No rotation leaves it as it is.
NGP_HD CameraMatrix rotate(Vec3 r, const CameraMatrix& c) {
    if (r == Vec3{}) return c;
    return {rotate(r, c.right), rotate(r, c.down), rotate(r, c.forward), c.position};
}

// Unit quaternion w + xi + yj + zk, in double so that compositions do not drift.
struct Quaternion {
    double w = 1, x = 0, y = 0, z = 0;
};
NGP_HD Quaternion quaternion(Vec3 r) {
    const double angle = std::sqrt(double(r.x) * r.x + double(r.y) * r.y + double(r.z) * r.z);
    const double s = angle > 1e-9 ? std::sin(0.5 * angle) / angle : 0.5;
    return {std::cos(0.5 * angle), s * r.x, s * r.y, s * r.z};
}
NGP_HD Vec3 rotation_vector(Quaternion q) {
    if (q.w < 0) q = {-q.w, -q.x, -q.y, -q.z}; // the shorter way
    const double s = std::sqrt(q.x * q.x + q.y * q.y + q.z * q.z);
    const double k = s > 1e-12 ? 2.0 * std::atan2(s, q.w) / s : 2.0;
    return {float(k * q.x), float(k * q.y), float(k * q.z)};
}
// Of a matrix whose columns are orthonormal; the angle is at most pi. The largest of the four squares is taken, so that
// nothing is divided by little (Shepperd 1978).
NGP_HD Vec3 rotation_vector(const Mat3& m) {
    const double xx = m.c[0].x, yy = m.c[1].y, zz = m.c[2].z;
    const double dx = double(m.c[1].z) - m.c[2].y, dy = double(m.c[2].x) - m.c[0].z, dz = double(m.c[0].y) - m.c[1].x;
    const double sx = double(m.c[1].z) + m.c[2].y, sy = double(m.c[2].x) + m.c[0].z, sz = double(m.c[0].y) + m.c[1].x;
    Quaternion q{1 + xx + yy + zz, dx, dy, dz};
    if (xx > yy && xx > zz && xx > xx + yy + zz)
        q = {dx, 1 + xx - yy - zz, sz, sy};
    else if (yy > zz && yy > xx + yy + zz)
        q = {dy, sz, 1 + yy - xx - zz, sx};
    else if (zz > xx + yy + zz)
        q = {dz, sy, sx, 1 + zz - xx - yy};
    const double n = 1.0 / std::sqrt(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z);
    return rotation_vector(Quaternion{q.w * n, q.x * n, q.y * n, q.z * n});
}
// First b, then a.
NGP_HD Vec3 compose_rotations(Vec3 a, Vec3 b) {
    const Quaternion p = quaternion(a), q = quaternion(b);
    return rotation_vector(
        Quaternion{p.w * q.w - p.x * q.x - p.y * q.y - p.z * q.z, p.w * q.x + p.x * q.w + p.y * q.z - p.z * q.y,
                   p.w * q.y - p.x * q.z + p.y * q.w + p.z * q.x, p.w * q.z + p.x * q.y - p.y * q.x + p.z * q.w});
}
// What turns camera `from` to `to`: rotate(r, from) has the axes of `to`. Slerp between them is rotate(s * r, from).
NGP_HD Vec3 rotation_between(const CameraMatrix& from, const CameraMatrix& to) {
    const Mat3 inverse{{{from.right.x, from.down.x, from.forward.x},
                        {from.right.y, from.down.y, from.forward.y},
                        {from.right.z, from.down.z, from.forward.z}}};
    const Mat3 end = to.rotation();
    return rotation_vector(Mat3{{end * inverse.c[0], end * inverse.c[1], end * inverse.c[2]}});
}

} // namespace ngp
