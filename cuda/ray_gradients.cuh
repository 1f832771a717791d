// Gradients of training rays (stages/camera_gradient.h) from what a backward pass leaves of their samples; and what
// random levels (formulas/level_cut.h) take from it.
#pragma once

#include "training.cuh"

#include <ngp/stages/camera_gradient.h>

namespace ngp::cuda {

struct RayGradientsJob {
    ModelView model; // as in the backward pass
    StepView step;   // its rays, with their samples in order; or, if step.state is null, every row is a ray of its own:
    const Vec3 *positions, *directions; // ... with its sample at the origin
    const uint32_t* n;                  // ... rows
    CompositeOptions options;           // of the step
    // Of rows, times loss_scale: gradients of the encoded position, halves of a fused model or floats in rows of
    // d_stride; of the encoded direction, in rows of fused_harmonics, or of the direction itself.
    const half* d_encodings;
    const half* d_harmonics;
    const float* d_encodings_f32;
    const Vec3* d_directions;
    int d_stride;
    float finest_scale; // grid levels but the first that are finer count as constant
    // Rays that are not used are left out. `d_color`: CompositeAndLoss::d_color; null without a step.
    RayGradient* rays;
    Vec3* d_color;
};
// Sums over a ray's samples have a fixed order. Capturable.
void launch_ray_gradients(Context& context, const RayGradientsJob& job);

// Zeroes gradients of the levels that a step's rays don't see: rows of fused_encoded halves. Capturable.
void launch_cut_levels(Context& context, const ModelView& model, const StepView& step, half* d_encodings);

} // namespace ngp::cuda
