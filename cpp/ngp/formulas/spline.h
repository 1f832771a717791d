// Weights of uniform B-splines (de Boor 1978), and of the kernels that spread a change over a camera path.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

constexpr int max_spline_order = 3;

// Which control points count, and how much: point first + k has weight[k]. Sums to 1.
struct SplineWeights {
    int first = 0, n = 1;
    float weight[4] = {1, 0, 0, 0};
};
// At t in [0, 1] between control points 0 and 1. Order 0: the nearer; 1: linear; 2, 3: quadratic and cubic, which
// smooth rather than pass through the points. Even orders have their knots half-way between points, so that every order
// is centred: symmetric under t -> 1 - t.
NGP_HD SplineWeights bspline_weights(int order, float t) {
    SplineWeights w;
    const int nearer = t >= 0.5f ? 1 : 0;
    if (order <= 0) {
        w.first = nearer;
    } else if (order == 1) {
        w.n = 2;
        w.weight[0] = 1.0f - t, w.weight[1] = t;
    } else if (order == 2) {
        const float u = t - float(nearer) + 0.5f, v = 1.0f - u;
        w.first = nearer - 1;
        w.n = 3;
        w.weight[0] = 0.5f * v * v, w.weight[1] = 0.5f + u * v, w.weight[2] = 0.5f * u * u;
    } else {
        const float v = 1.0f - t, t2 = t * t, v2 = v * v;
        w.first = -1;
        w.n = 4;
        w.weight[0] = v2 * v * (1.0f / 6.0f);
        w.weight[1] = (4.0f + t2 * (3.0f * t - 6.0f)) * (1.0f / 6.0f);
        w.weight[2] = (4.0f + v2 * (3.0f * v - 6.0f)) * (1.0f / 6.0f);
        w.weight[3] = t2 * t * (1.0f / 6.0f);
    }
    return w;
}

enum class EditingKernel : uint8_t { None = 0, Gaussian = 1, Quartic = 2, Hat = 3, Box = 4 };

// Share of a keyframe's change that another takes, x radii away: 1 at 0. All but the Gaussian end at one radius.
NGP_HD float editing_weight(EditingKernel kernel, float x) {
    const float a = std::fabs(x), inside = a < 1.0f ? 1.0f : 0.0f;
    switch (kernel) {
    case EditingKernel::Gaussian: return std::exp(-2.0f * x * x);
    case EditingKernel::Quartic: return inside * (1.0f - x * x) * (1.0f - x * x);
    case EditingKernel::Hat: return inside * (1.0f - a);
    case EditingKernel::Box: return inside;
    case EditingKernel::None: break;
    }
    return x == 0.0f ? 1.0f : 0.0f;
}

} // namespace ngp
