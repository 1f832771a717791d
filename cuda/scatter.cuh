// Gradients of encodings to the table entries that they came from.
#pragma once

#include "training.cuh"

namespace ngp::cuda {

// A table's gradient. Where the result must not depend on the order of additions: integers in units of 2^-32. Else
// floats for the first, coarse levels, into whose entries thousands of samples are added up, and halves for the others:
// half the memory traffic, for sums of a few.
using FixedPoint = long long;
constexpr float fixed_point_unit = 1.0f / 4294967296.0f;
struct TableGradient {
    FixedPoint* fixed = nullptr; // of all entries; or
    float* floats = nullptr;     // of entries below n_float_entries
    half* halves = nullptr;      // of the others: entry n_float_entries is the first
    uint32_t n_float_entries = 0;
    int n_float_levels = 0;
};

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
    TableGradient gradient;
};

// Adds to the gradient. Launched in `context`'s stream; capturable.
void launch_scatter(Context& context, const ScatterJob& job);

} // namespace ngp::cuda
