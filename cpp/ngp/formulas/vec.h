// Small fixed-size vectors and camera matrices.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

struct Vec2 {
    float x = 0, y = 0;
};
NGP_HD Vec2 operator+(Vec2 a, Vec2 b) { return {a.x + b.x, a.y + b.y}; }
NGP_HD Vec2 operator-(Vec2 a, Vec2 b) { return {a.x - b.x, a.y - b.y}; }
NGP_HD Vec2 operator*(Vec2 a, float s) { return {a.x * s, a.y * s}; }

struct Vec3 {
    float x = 0, y = 0, z = 0;
    NGP_HD float& operator[](int i) { return i == 0 ? x : (i == 1 ? y : z); }
    NGP_HD float operator[](int i) const { return i == 0 ? x : (i == 1 ? y : z); }
};
NGP_HD Vec3 splat3(float s) { return {s, s, s}; }
NGP_HD Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
NGP_HD Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
NGP_HD Vec3 operator-(Vec3 a) { return {-a.x, -a.y, -a.z}; }
NGP_HD Vec3 operator*(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
NGP_HD Vec3 operator*(Vec3 a, float s) { return {a.x * s, a.y * s, a.z * s}; }
NGP_HD Vec3 operator*(float s, Vec3 a) { return a * s; }
NGP_HD Vec3 operator/(Vec3 a, float s) { return a * (1.0f / s); }
NGP_HD Vec3& operator+=(Vec3& a, Vec3 b) { return a = a + b; }
NGP_HD bool operator==(Vec3 a, Vec3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }
NGP_HD float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
NGP_HD Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
NGP_HD float length(Vec3 a) { return std::sqrt(dot(a, a)); }
NGP_HD Vec3 normalize(Vec3 a) {
    float l = length(a);
    return l > 0.0f ? a * (1.0f / l) : a;
}
NGP_HD float max_component(Vec3 a) { return max_of(a.x, max_of(a.y, a.z)); }
NGP_HD Vec3 abs3(Vec3 a) { return {std::fabs(a.x), std::fabs(a.y), std::fabs(a.z)}; }

// 3x3 matrix, stored by columns.
struct Mat3 {
    Vec3 c[3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
};
NGP_HD Vec3 operator*(const Mat3& m, Vec3 v) { return m.c[0] * v.x + m.c[1] * v.y + m.c[2] * v.z; }
NGP_HD Vec3 transpose_mul(const Mat3& m, Vec3 v) { return {dot(m.c[0], v), dot(m.c[1], v), dot(m.c[2], v)}; }
NGP_HD float determinant(const Mat3& m) { return dot(m.c[0], cross(m.c[1], m.c[2])); }

// Camera-to-world matrix [rotation | position], stored by columns: right, down, forward, position (NGP convention:
// y down, z forward). numpy shape (3, 4).
struct CameraMatrix {
    Vec3 right{1, 0, 0}, down{0, 1, 0}, forward{0, 0, 1}, position{0, 0, 0};
    NGP_HD Vec3 rotate(Vec3 v) const { return right * v.x + down * v.y + forward * v.z; }
    NGP_HD Vec3 rotate_inverse(Vec3 v) const { return {dot(right, v), dot(down, v), dot(forward, v)}; }
    NGP_HD Mat3 rotation() const { return {{right, down, forward}}; }
};

} // namespace ngp
