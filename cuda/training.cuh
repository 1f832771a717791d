// What the kernels of a training step share: device memory that changes from step to step, samples, and prefix sums
// over blocks.
//
// A step (stages/training_step.h) is one CUDA graph: all counts stay on the device. Rays are drawn and marched, a
// thread a ray, as far as most need; those that meet nothing end there. The others are traced (trace_rays.cuh): groups
// of lanes evaluate and composite a few samples at a time until the ray is opaque; samples are kept with their
// encodings. Where each of these puts what it finds depends on timing, so then samples get an order, ray after ray,
// that does not; the backward pass forms their gradients and recomputes the networks from the kept encodings; a scatter
// adds encoding gradients to the table; the optimizer updates what has a gradient. Beside the last two, the next step's
// rays are marched.
//
// What options learn or keep besides adds kernels to the graph, after the backward pass: error maps (error_maps.cuh),
// cameras (ray_gradients.cuh, cameras.cuh), latents (view_inputs.cuh). They add up integers (fixed_point.cuh), so that
// results don't depend on timing. The host's part (an interval's distributions, updates of cameras) is between steps.
#pragma once

#include "memory.cuh"
#include "model.cuh"

#include <ngp/formulas/rng.h>
#include <ngp/stages/compositing.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/optimizer.h>
#include <ngp/stages/rays.h>
#include <ngp/stages/training_step.h>

namespace ngp::cuda {

// Gradients in halves keep their small values: all of a step's are this much larger than those of the loss summed over
// rays. Small enough that sums over a batch stay below the largest half.
constexpr float loss_scale = 4.0f;

constexpr int marched_ahead = 32;            // samples of a ray that are found before it is traced: most need no more
constexpr int rays_per_tile = 256;           // that a block brings into order together
constexpr uint32_t unused_ray = 0xffffffffu; // count of a ray whose samples did not fit

// Counters and settings of the step at hand.
struct StepState {
    uint32_t step;           // finished steps
    uint32_t matrix_steps;   // ... in which the networks were trained
    uint32_t encoding_steps; // ... in which the encoding was trained
    int32_t n_rays;          // planned for this step
    Pcg32 rng;               // of this step's rays
    int32_t next_n_rays;     // the same of the next step
    Pcg32 next_rng;
    uint32_t n_times; // samples marched ahead
    uint32_t n_hits;  // rays with samples
    uint32_t n_evaluated;
    uint32_t n_samples;      // kept
    uint32_t n_contributing; // of rays that are used
    uint32_t n_rays_used;    // whose samples fit into the batch
    uint32_t hit_ticket, order_ticket;
    float occupancy_mean; // over cascade 0
};

// A sample that contributes to its ray.
struct alignas(16) Sample {
    float t, dt;
    uint32_t ray;
    uint32_t index; // along the ray
};
// The state of compositing at a sample: what was added up (colours, or as train_mode.h says), itself included, and the
// transmittance in front of it.
struct alignas(16) SampleBlend {
    Vec3 upto;
    float before;
};

// A ray's first stepping positions in occupied cells: where they are, and how many.
struct RaySpan {
    uint32_t first = 0, count = 0;
};

// What compositing a ray gave.
struct RayOutcome {
    Vec3 total, gradient; // what was added up (train_mode.h), with background; dL/d total
    uint32_t count;       // contributing samples, or unused_ray
    float loss;           // mean over channels
};

// The same of its distance, where depths are supervised.
struct RayDistance {
    float total = 0, gradient = 0; // expected distance; dL/d of it
};

// Sum over a warp's lower lanes, and over the lane itself.
template <typename T>
__device__ __forceinline__ T warp_inclusive_sum(T v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const T below = __shfl_up_sync(0xffffffffu, v, offset);
        if (lane >= offset) v += below;
    }
    return v;
}
__device__ __forceinline__ float warp_inclusive_product(float v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const float below = __shfl_up_sync(0xffffffffu, v, offset);
        if (lane >= offset) v *= below;
    }
    return v;
}
template <typename T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}
__device__ __forceinline__ uint32_t warp_max(uint32_t v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v = max_of(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// Prefix sums over the tiles of a grid-wide loop in one pass: "decoupled look-back" (Merrill & Garland 2016). Tiles are
// taken in order of a ticket, so that every earlier tile is at work or done. The sums do not depend on timing.
class TileScan {
  public:
    // One word a tile, zero at the start: status in the upper half, value in the lower.
    __device__ explicit TileScan(unsigned long long* words) : words_(words) {}

    // By a whole warp: the sum of the aggregates of all tiles before this one.
    __device__ uint32_t exclusive(uint32_t tile, uint32_t aggregate) const {
        const int lane = threadIdx.x & 31;
        if (tile == 0) {
            if (lane == 0) publish(tile, prefix, aggregate);
            return 0;
        }
        if (lane == 0) publish(tile, own, aggregate);
        uint32_t sum = 0;
        for (int64_t last = int64_t(tile) - 1;; last -= 32) {
            const int64_t at = last - lane;
            unsigned long long word = uint64_t(prefix) << 32; // before the first tile: sum 0
            if (at >= 0) do
                    word = *const_cast<volatile unsigned long long*>(words_ + at);
                while (word >> 32 == 0);
            const bool is_prefix = uint32_t(word >> 32) == prefix;
            const uint32_t prefixes = __ballot_sync(0xffffffffu, is_prefix);
            // Aggregates up to the nearest tile whose prefix is known.
            const int nearest = prefixes ? __ffs(int(prefixes)) - 1 : 31;
            sum += warp_sum(lane <= nearest ? uint32_t(word) : 0u);
            if (prefixes) break;
        }
        if (lane == 0) publish(tile, prefix, sum + aggregate);
        return sum;
    }

  private:
    enum Status : uint32_t { own = 1, prefix = 2 };
    __device__ void publish(uint32_t tile, Status status, uint32_t value) const {
        atomicExch(words_ + tile, uint64_t(status) << 32 | value);
    }
    unsigned long long* words_;
};

// Everything of a step on the device. Pointers; the engine owns the memory.
struct StepView {
    StepState* state = nullptr;
    TrainingRay* rays = nullptr;
    RaySpan* spans = nullptr;             // of rays
    float* times = nullptr;               // t of their samples that were marched ahead, a ray's side by side
    RayOutcome* outcomes = nullptr;       // of rays
    RayDistance* ray_distances = nullptr; // of rays with samples; null as above
    uint32_t* hits = nullptr;             // rays with samples
    RayPixel* ray_pixels = nullptr;       // of rays; null: cameras are not learned
    // Contributing samples, in the order of their evaluation.
    Sample* samples = nullptr;
    RawSample* raw = nullptr;
    SampleBlend* blends = nullptr;
    float* distances = nullptr; // the sum of weight * t up to a sample; null: depths are not supervised
    half* encodings = nullptr;  // fused_encoded a sample; null without FusedNetwork
    // The same, ray after ray: place of the ray's first in `order`, or unused_ray; which sample is there.
    uint32_t* first = nullptr;
    uint32_t* order = nullptr;
    int64_t time_capacity = 0, sample_capacity = 0, batch_capacity = 0, max_rays = 0;
    unsigned long long* scan = nullptr; // one word a tile of rays
    float* tile_loss = nullptr;         // likewise
    float* visited = nullptr;           // occupancy cells' fresh values, if training samples count as visits
};

// Body(i) for every ray i of the step at hand, whose number only the device knows.
constexpr int ray_threads = 256;
template <typename Body>
__global__ void __launch_bounds__(ray_threads)
    for_each_ray_kernel(const StepState* state, const __grid_constant__ Body body) {
    const int n = state->n_rays, stride = int(gridDim.x) * ray_threads;
    for (int i = int(blockIdx.x) * ray_threads + int(threadIdx.x); i < n; i += stride) body(i);
}
template <typename Body>
void for_each_ray(Context& context, const StepState* state, const Body& body) {
    const auto blocks = unsigned(8 * context.multiprocessors());
    for_each_ray_kernel<<<blocks, ray_threads, 0, context.stream()>>>(state, body);
    check(cudaGetLastError(), "launch of a body over rays");
}

// The options of a step, of which two depend on what only the device knows.
__device__ inline CompositeOptions step_options(const StepState& state, CompositeOptions options) {
    // E.4 adds 1e-4 to gradients that are scaled by 128/n_rays; ours are those of the sum over rays.
    options.regularizer = 1e-4f * float(state.n_rays) / 128.0f;
    options.encourage_density = options.objective.mode == TrainMode::Nerf && state.occupancy_mean < occupancy_threshold;
    return options;
}

// Ends a ray, of which compositing has added up `blend`. `transmittance` 0: nothing of the background is seen.
__device__ inline RayOutcome ray_outcome(const Objective& objective, const TrainingRay& ray, Vec3 blend,
                                         float transmittance, uint32_t count) {
    RayOutcome out;
    out.total = blend + blended_quantity(objective, ray.background, ray.target) * transmittance;
    const RayLoss loss = ray_loss(objective, out.total, ray.target);
    out.loss = loss.value;
    out.gradient = loss.gradient;
    out.count = count;
    return out;
}

// Gradient of the raw outputs of a sample, times loss_scale: what CompositeAndLoss (stages/compositing.h) writes.
// `options` are step_options().
__device__ inline RawSample sample_gradient(const StepView& step, const CompositeOptions& options, uint32_t sample) {
    const Sample s = step.samples[sample];
    const RawSample raw = step.raw[sample];
    const SampleBlend blend = step.blends[sample];
    const RayOutcome& ray = step.outcomes[s.ray];
    const Vec3 color = sample_color(options.rgb_activation, raw);
    const float alpha = segment_alpha(density_from_raw(options.density_activation, raw.density), s.dt);
    const float weight = blend.before * alpha, after = blend.before * (1.0f - alpha);
    const Objective& objective = options.objective;
    const Vec3 target = objective.mode == TrainMode::Nerf ? Vec3{} : step.rays[s.ray].target; // unused in Nerf
    const Vec3 quantity = blended_quantity(objective, color, target), suffix = ray.total - blend.upto;
    const SampleGradients g = sample_gradients(objective, ray.gradient, color, target, alpha, after, suffix);
    RawSample d;
    for (int c = 0; c < 3; ++c) {
        d.rgb[c] = weight * g.color[c] * color_derivative(options.rgb_activation, raw.rgb[c], color[c]);
        if (options.rgb_activation == Activation::Exponential) d.rgb[c] += max_of(0.0f, 1e-4f * raw.rgb[c]);
        d.rgb[c] *= loss_scale;
    }
    float along = blend_density_gradient(g.blend, after, quantity, suffix);
    if (step.distances) {
        const RayDistance& distance = step.ray_distances[s.ray];
        along += blend_distance_gradient(distance.gradient, after, s.t, distance.total - step.distances[sample]);
    }
    d.density = density_derivative(options.density_activation, raw.density) * s.dt * along;
    if (options.encourage_density && raw.density < 0.0f) d.density -= options.regularizer;
    if (s.t < options.near_distance && raw.density > -10.0f) d.density += options.regularizer;
    d.density *= loss_scale;
    return d;
}

// Draws rays and marches them: this step's, or, once launch_order() is done, the next one's,
// into arrays of its own. `sample`: without ray count, generator and destination, which are the state's.
void launch_march(Context& context, cudaStream_t stream, const StepView& step, const SampleTrainingRays& sample,
                  const OccupancyView& occupancy, const Objective& objective, bool ahead);
// Before this step's rays are marched, if they were not marched ahead.
void launch_restart(Context& context, const StepView& step);
// After tracing: which rays are used, their samples' order, and the number of rays of the next step.
void launch_order(Context& context, const StepView& step, int64_t batch_size);
// Sums the step up into `results` (host memory that the device can write; step k's at k % n_results) and goes over to
// the next one.
void launch_finish(Context& context, const StepView& step, NerfOptimizer::Trained trained, StepResult* results,
                   uint32_t n_results);

// Contributing samples in order, for GeneralBackward, each with the view of its ray. All are the device's.
struct GatheredSamples {
    Vec3 *positions, *directions;
    RawSample* d_raw;
    int32_t* views;
    float* max_levels; // null: not wanted
};
void launch_gather(Context& context, const StepView& step, const CompositeOptions& options, const GatheredSamples& to);

} // namespace ngp::cuda
