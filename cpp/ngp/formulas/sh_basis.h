// Real spherical harmonics up to degree 8 (64 coefficients) of a unit direction: band l = 0 .. degree-1 has orders m =
// -l
// .. l at l^2 + l + m. Order and signs are those of specification D.3, that is with the Condon-Shortley phase (-1)^m.
// Float error below 1e-6 up to degree 4, 2e-6 up to degree 8, for unit input.
//
// Up to degree 4 they are written out. From there on,
//   Y(l, m) = q(l,|m|)(z) * Re (x + iy)^m  for m >= 0,   q(l,|m|)(z) * Im (x + iy)^|m|  for m < 0,
// where q(l,m) is the associated Legendre function P_l^m over sin^m, normalised, a polynomial in z, by its recurrence
// in l (Press et al., "Numerical Recipes", 3rd edition, section 6.7, equations 6.7.8 and 6.7.9; the real basis and the
// factor sqrt 2 of m != 0 as in Sloan 2008, "Stupid Spherical Harmonics Tricks", appendix A1).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

constexpr int max_sh_degree = 8;
constexpr int sh_coefficients(int degree) { return degree * degree; }

namespace sh {

// Square root of v > 0, for constants.
NGP_HD constexpr double root(double v) {
    double r = v > 1 ? v : 1;
    for (int i = 0; i < 64; ++i) r = 0.5 * (r + v / r);
    return r;
}
// q(m,m), a constant: (-1)^m (2m-1)!! sqrt((2m+1) / (4 pi (2m)!)), times sqrt 2 if m > 0.
NGP_HD constexpr double first_of_order(int m) {
    double square = (m > 0 ? 2.0 : 1.0) * (2 * m + 1) / (4 * 3.14159265358979323846);
    for (int k = 1; k <= m; ++k) square *= double(2 * k - 1) / double(2 * k); // (2m-1)!!^2 / (2m)!
    return (m % 2 ? -1 : 1) * root(square);
}
// q(l,m) = up z q(l-1,m) - down q(l-2,m).
NGP_HD constexpr double up(int l, int m) { return root(double(4 * l * l - 1) / double(l * l - m * m)); }
NGP_HD constexpr double down(int l, int m) { return l - 1 == m ? 0.0 : up(l, m) / up(l - 1, m); }

// A polynomial in z at one z, and its derivative.
struct Value {
    float v = 0, slope = 0;
};

// Calls visit(l, q(l,M)) for l = max(4, M) .. degree-1.
template <int M, int L, typename Visit>
NGP_HD void bands(int degree, float z, Value q, Value before, const Visit& visit) {
    if (degree <= L) return;
    if constexpr (L >= 4) visit(L, q);
    if constexpr (L + 1 < max_sh_degree) {
        constexpr float a = float(up(L + 1, M)), b = float(down(L + 1, M));
        const Value next{a * z * q.v - b * before.v, a * (q.v + z * q.slope) - b * before.slope};
        bands<M, L + 1>(degree, z, next, q, visit);
    }
}

// The powers (x + iy)^(m-1), real and imaginary, and (x + iy)^m.
struct Powers {
    float re_before, im_before, re, im;
};

// Calls visit(l, m, q(l,m), powers) for l = 4 .. degree-1 and m = 0 .. l.
template <int M, typename Visit>
NGP_HD void orders(int degree, Vec3 d, Powers p, const Visit& visit) {
    if (degree <= M) return;
    constexpr float first = float(first_of_order(M));
    bands<M, M>(degree, d.z, {first, 0.0f}, {}, [&](int l, Value q) { visit(l, M, q, p); });
    if constexpr (M + 1 < max_sh_degree) {
        const Powers next{p.re, p.im, d.x * p.re - d.y * p.im, d.x * p.im + d.y * p.re};
        orders<M + 1>(degree, d, next, visit);
    }
}

} // namespace sh

// Writes degree*degree values, degree in 1..8, to out[0], ...
template <typename Out>
NGP_HD void sh_basis(int degree, Vec3 d, Out out) {
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
    if (degree <= 4) return;
    sh::orders<0>(degree, d, {0.0f, 0.0f, 1.0f, 0.0f}, [&](int l, int m, sh::Value q, const sh::Powers& p) {
        const int middle = l * (l + 1);
        out[middle + m] = q.v * p.re;
        if (m > 0) out[middle - m] = q.v * p.im;
    });
}

// Gradient of sum_i w[i] * basis_i with respect to the direction, as polynomials in three independent variables.
template <typename Weights>
NGP_HD Vec3 sh_basis_gradient(int degree, Vec3 d, Weights w) {
    const float x = d.x, y = d.y, z = d.z;
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
    if (degree <= 4) return g;
    sh::orders<0>(degree, d, {0.0f, 0.0f, 1.0f, 0.0f}, [&](int l, int m, sh::Value q, const sh::Powers& p) {
        const int middle = l * (l + 1);
        const float along = w[middle + m], across = m > 0 ? w[middle - m] : 0.0f;
        const float k = float(m) * q.v; // d (x+iy)^m = m (x+iy)^(m-1) (dx + i dy)
        g += {k * (along * p.re_before + across * p.im_before), k * (across * p.re_before - along * p.im_before),
              q.slope * (along * p.re + across * p.im)};
    });
    return g;
}

} // namespace ngp
