// Real spherical harmonics up to degree 4 (16 coefficients) of a unit direction, in the order and signs of
// specification D.3. Exact polynomials; float error below 1e-6 for unit input.
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

constexpr int sh_coefficients(int degree) { return degree * degree; }

// Writes degree*degree values, degree in 1..4.
NGP_HD void sh_basis(int degree, Vec3 d, float* out) {
    const float x = d.x, y = d.y, z = d.z;
    out[0] = 0.28209479177387814f;
    if (degree <= 1) return;
    out[1] = -0.48860251190291987f * y;
    out[2] = 0.48860251190291987f * z;
    out[3] = -0.48860251190291987f * x;
    if (degree <= 2) return;
    const float xy = x * y, yz = y * z, xz = x * z, x2 = x * x, y2 = y * y, z2 = z * z;
    out[4] = 1.0925484305920792f * xy;
    out[5] = -1.0925484305920792f * yz;
    out[6] = 0.94617469575755997f * z2 - 0.31539156525251999f;
    out[7] = -1.0925484305920792f * xz;
    out[8] = 0.54627421529603959f * (x2 - y2);
    if (degree <= 3) return;
    out[9] = 0.59004358992664352f * y * (y2 - 3.0f * x2);
    out[10] = 2.8906114426405538f * xy * z;
    out[11] = 0.45704579946446572f * y * (1.0f - 5.0f * z2);
    out[12] = 0.3731763325901154f * z * (5.0f * z2 - 3.0f);
    out[13] = 0.45704579946446572f * x * (1.0f - 5.0f * z2);
    out[14] = 1.4453057213202769f * z * (x2 - y2);
    out[15] = 0.59004358992664352f * x * (3.0f * y2 - x2);
}

// Gradient of sum_i weights[i] * basis_i with respect to the direction, as polynomials in three independent variables.
NGP_HD Vec3 sh_basis_gradient(int degree, Vec3 d, const float* weights) {
    const float x = d.x, y = d.y, z = d.z;
    const float* w = weights;
    Vec3 g{};
    if (degree <= 1) return g;
    g += 0.48860251190291987f * Vec3{-w[3], -w[1], w[2]};
    if (degree <= 2) return g;
    g += 1.0925484305920792f *
         Vec3{w[4] * y - w[7] * z + w[8] * x, w[4] * x - w[5] * z - w[8] * y, -w[5] * y - w[7] * x};
    g.z += 2.0f * 0.94617469575755997f * w[6] * z;
    if (degree <= 3) return g;
    const float x2 = x * x, y2 = y * y, z2 = z * z, xy = x * y, yz = y * z, xz = x * z;
    g += 3.0f * 0.59004358992664352f *
         Vec3{w[15] * (y2 - x2) - 2.0f * w[9] * xy, w[9] * (y2 - x2) + 2.0f * w[15] * xy, 0.0f};
    g += 2.8906114426405538f *
         Vec3{w[10] * yz + w[14] * xz, w[10] * xz - w[14] * yz, w[10] * xy + w[14] * 0.5f * (x2 - y2)};
    g += 0.45704579946446572f *
         Vec3{w[13] * (1.0f - 5.0f * z2), w[11] * (1.0f - 5.0f * z2), -10.0f * (w[11] * yz + w[13] * xz)};
    g.z += 0.3731763325901154f * w[12] * (15.0f * z2 - 3.0f);
    return g;
}

} // namespace ngp
