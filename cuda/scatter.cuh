// Gradients of encodings to the table entries that they came from.
#pragma once

#include "training.cuh"

namespace ngp::cuda {

// A table's gradient: floats; or, where the result must not depend on the order of additions, integers in units of
// 2^-32.
using FixedPoint = long long;
constexpr float fixed_point_unit = 1.0f / 4294967296.0f;

struct ScatterJob {
    GridShape grid;
    Vec3 box_min, inverse_size;
    const Sample* samples;        // null: row i is at positions[i]
    const TrainingRay* rays;      // of samples
    const Vec3* positions;        // without samples, NGP space
    const uint32_t* contributing; // sample of each row; null: all, in order
    const uint32_t* n;            // rows
    const half* d_encodings;      // rows of d_stride; or
    const float* d_encodings_f32; // the same
    int d_stride, d_begin;        // columns of the grid's outputs start at d_begin
    float* gradient;              // of the grid's entries; or
    FixedPoint* fixed_gradient;
};

// Adds to the gradient. Launched in `context`'s stream; capturable.
void launch_scatter(Context& context, const ScatterJob& job);

} // namespace ngp::cuda
