// The table of CPU kernels, one a supported instruction set (core/isa.h), and the plain structures they take. All
// positions and lengths are in NGP space.
#pragma once

#include <ngp/formulas/adam_update.h>
#include <ngp/stages/camera_gradient.h>
#include <ngp/stages/compositing.h>
#include <ngp/stages/encoding.h>
#include <ngp/stages/mlp.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/rays.h>
#include <ngp/stages/render_mode.h>

namespace ngp {

constexpr int kernel_tile = 64;         // samples that go through the networks together
constexpr int max_rays_per_chunk = 256; // rays that a training or rendering task handles

// Weights of one network in both packings (PackedMlp).
struct MlpParams {
    MlpShape shape;
    const float* forward = nullptr;
    const float* backward = nullptr;
};

// The radiance field: encoding -> density network -> [its outputs | direction encoding] -> rgb network.
struct NerfModelView {
    const EncodingShape* position = nullptr;
    const EncodingShape* direction = nullptr;
    const float* encoding_params = nullptr; // of the position encoding
    MlpParams density, rgb;
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    Aabb box;
    // Inputs of the direction encoding after the direction, n_extra_dims() of them: for sample or ray k at
    // k * extra_dims_stride. In training those of view k (ViewInputs).
    const float* extra_dims = nullptr;
    int64_t extra_dims_stride = 0;

    int n_extra_dims() const { return direction->n_in - 3; }
};

// Scratch memory of one worker. Rows are samples; row r of layer k starts at layer[k] + r*stride[k].
struct NerfWorkspace {
    static constexpr int max_layers = 2 * max_mlp_layers + 1;
    // Activations kept from the forward to the backward pass: inputs of the density layers, then of the rgb layers,
    // then the rgb network's output. The density network's output is the head of the rgb network's input.
    float* layer[max_layers] = {};
    int stride[max_layers] = {};
    int n_layers = 0;
    int64_t rows = 0;             // capacity
    float* tile[max_layers] = {}; // the same for one tile
    float* scratch[2] = {};       // tile x widest layer
    float* d_output = nullptr;    // tile x 16
    float* d_encoding = nullptr;  // tile x rgb network's input
    float* d_input = nullptr;     // tile x position encoding
    // Per ray, max_samples_per_ray apart.
    TrainingRay* rays = nullptr;
    RawSample* raw = nullptr;
    RawSample* d_raw = nullptr;
    float* dt = nullptr;
    float* t = nullptr;
    int32_t* row = nullptr; // row of a sample's activations
    int* count = nullptr;
    float* loss = nullptr;
    float* transmittance = nullptr;
    float* direction = nullptr;   // encoded, pad16(direction outputs) apart
    float* d_direction = nullptr; // gradient of that
    // Makes room for at least `rows` rows, keeping the contents.
    void (*grow)(NerfWorkspace&, int64_t rows) = nullptr;
    void* owner = nullptr;
};

// Encoding gradients of a step, waiting to be scattered: records of up to kernel_tile samples, each
//   [16: count as int32] [n_in][tile] positions [encoding outputs][tile], grid levels as [tile][features].
struct GradientTiles {
    float* data = nullptr;
    int64_t count = 0, capacity = 0;
    int64_t record = 0; // floats
    int n_in = 0;       // dimensions of positions
    void (*grow)(GradientTiles&) = nullptr;
    void* owner = nullptr;

    static constexpr int header = 16;
    void set_shape(const EncodingShape& shape) {
        n_in = shape.n_in;
        record = header + (n_in + shape.n_out) * int64_t(kernel_tile);
    }
};

struct TrainChunk {
    const NerfModelView* model = nullptr;
    OccupancyView occupancy;
    SampleTrainingRays sample;
    CompositeOptions composite;
    RayError* errors = nullptr; // of rays from first_ray on; null: not wanted
    float* visited = nullptr;   // per occupancy cell: takes part in OccupancyGrid::fresh(); null: not wanted
    int64_t first_ray = 0;
    int n_rays = 0; // at most max_rays_per_chunk
    // Results for every ray of the step. Gradients of the extra dimensions, n_extra_dims() apart, and whose they are;
    // null: not wanted.
    float* d_extra_dims = nullptr;
    int32_t* view_of_ray = nullptr;
    bool only_extra_dims = false; // no gradients besides those; the pointers below to them may be null
    // Gradients of the rays and of their composited colours, ray i at i - first_ray; null: not wanted
    RayGradient* ray_gradients = nullptr;
    float finest_scale = FLT_MAX; // grid levels but the first with more cells along the box are constant to them
    Vec3* d_color = nullptr;
    // Results, added to what is there
    float* density_gradient = nullptr; // packed
    float* rgb_gradient = nullptr;
    GradientTiles* tiles = nullptr;
    double loss = 0;         // divided by the density of the rays' pixels
    int64_t samples = 0;     // that contributed
    int64_t evaluated = 0;   // by the networks
    int64_t marching_ns = 0; // drawing rays and marching, of the worker
};

struct RenderRay {
    RayMarcher march;
    float z_per_t = 1; // cosine of the angle to the camera's forward axis
};
struct TraceJob {
    const NerfModelView* model = nullptr;
    OccupancyView occupancy;
    Stepping stepping;
    float min_transmittance = 0.01f;
    bool normals = false;
    ModeOptions shows;
    float near_distance = 0; // t counts from there
    VisualizedActivation visualized;
    const RenderRay* rays = nullptr;
    RenderedRay* results = nullptr;
    int n_rays = 0; // at most max_rays_per_chunk
};

// Optimizer state of a table entry: features' first moments, second moments, averages, then two counters (updates so
// far; EMA step of the stored average), in one aligned record.
NGP_HD int optimizer_record(int n_features) {
    int size = 8;
    while (size < 3 * n_features + 2) size *= 2;
    return size;
}

struct AdamTables {                   // by number of updates or steps, the last value holding for all beyond
    const float* step_size = nullptr; // lr * sqrt(1-b2^t)/(1-b1^t), from t = 0
    int n_step_size = 0;
    const float* ema_power = nullptr; // decay^k, from k = 0
    int n_ema_power = 0;
};
struct AdamJob {
    AdamSettings settings;
    AdamTables tables;
    float gradient_scale = 1;
    uint32_t step = 1; // EMA step being made, from 1
    int n_features = 0;
    float* params = nullptr;   // of the first entry
    float* gradient = nullptr; // zeroed
    float* state = nullptr;
    int64_t n_entries = 0;
};

struct NerfKernels {
    const char* name;
    void (*train_chunk)(TrainChunk& chunk, NerfWorkspace& workspace);
    // Adds the gradients of all records to entries [first, last) of one level's gradient table.
    void (*scatter)(const EncodingPart& part, int level, const GradientTiles& tiles, float* gradient, uint32_t first,
                    uint32_t last);
    void (*adam)(const AdamJob& job);
    void (*trace)(const TraceJob& job, NerfWorkspace& workspace);
    // Raw network outputs at positions; `directions` (unit) may be null: then only density is written. Unclamped
    // positions outside the box are clamped to it. model.extra_dims are those of the samples.
    void (*evaluate)(const NerfModelView& model, const Vec3* positions, const Vec3* directions, int64_t n,
                     RawSample* out, NerfWorkspace& workspace);
    // Separate stages, for tests and benchmarks.
    void (*encode)(const EncodingShape& shape, const float* params, const float* in, int64_t n, float* out);
    void (*encoding_position_gradient)(const EncodingShape& shape, const float* params, const float* in,
                                       const float* d_out, int64_t n, float* d_in);
    // Adds the gradient of sum(d_out * outputs) to `gradient`, by way of one record of `tiles`, which has its shape and
    // memory.
    void (*encoding_params_gradient)(const EncodingShape& shape, const float* in, const float* d_out, int64_t n,
                                     GradientTiles& tiles, float* gradient);
    // Forward and backward through both networks for given upstream gradients: what train_chunk does between marching
    // and scattering. Adds weight gradients and gradient tiles to `results`; its d_extra_dims and ray_gradients, set,
    // are those of the samples, each a ray of its own.
    void (*forward_backward)(const NerfModelView& model, const Vec3* positions, const Vec3* directions,
                             const RawSample* d_raw, int64_t n, NerfWorkspace& workspace, TrainChunk& results);
    // input [n][pad16(in)], output [n][pad16(out)]; d_* may be null (forward only).
    void (*mlp)(const MlpParams& mlp, const float* input, int64_t n, float* output, const float* d_output,
                float* d_input, float* weight_gradient, float* scratch);
};

} // namespace ngp
