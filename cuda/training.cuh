// What the kernels of a training step share: device memory that changes from step to step, samples, and prefix sums
// over blocks.
//
// A step (stages/training_step.h) is one CUDA graph: all counts stay on the device. Rays are drawn and marched into
// packed samples, ray after ray; one fused pass evaluates all of them and keeps their encodings; compositing finds the
// loss and which samples contribute, and packs those; the backward pass recomputes the networks from the kept
// encodings; a scatter adds encoding gradients to the table; the optimizer updates what has a gradient.
#pragma once

#include "memory.cuh"
#include "model.cuh"

#include <ngp/formulas/rng.h>
#include <ngp/stages/optimizer.h>
#include <ngp/stages/rays.h>
#include <ngp/stages/training_step.h>

namespace ngp::cuda {

// Gradients in halves keep their small values: all of a step's are this much larger than those of the loss summed over
// rays. Small enough that sums over a batch stay below the largest half.
constexpr float loss_scale = 4.0f;

constexpr int rays_per_tile = 64; // rays that a block marches or composites together

// Counters and settings of the step at hand.
struct StepState {
    uint32_t step;           // finished steps
    uint32_t matrix_steps;   // ... in which the networks were trained
    uint32_t encoding_steps; // ... in which the encoding was trained
    int32_t n_rays;          // planned for this step
    Pcg32 rng;               // of this step's rays
    uint32_t n_samples;      // marched
    uint32_t n_contributing; // of rays that were used
    uint32_t n_rays_used;    // whose samples fitted into the batch
    uint32_t march_ticket, composite_ticket;
    float occupancy_mean; // over cascade 0
};

// A marched sample.
struct Sample {
    float t, dt;
    uint32_t ray;
};

// Where a ray's samples are.
struct RaySpan {
    uint32_t first, count;
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
    TrainingRay* rays = nullptr; // of this step
    RaySpan* spans = nullptr;    // of rays: marched samples
    Sample* samples = nullptr;
    half* encodings = nullptr; // fused_encoded a sample; null without FusedNetwork
    RawSample* raw = nullptr;
    // Contributing samples: which they are, and the gradients of their raw outputs times loss_scale.
    uint32_t* contributing = nullptr;
    RawSample* d_raw = nullptr;
    int64_t sample_capacity = 0, batch_capacity = 0;
    unsigned long long* march_scan = nullptr;     // one word a tile of rays
    unsigned long long* composite_scan = nullptr; // likewise
    float* tile_loss = nullptr;                   // likewise
    int64_t max_rays = 0;
    float* visited = nullptr; // occupancy cells' fresh values, if training samples count as visits
};

// Draws the step's rays and marches them. `sample`: without ray count, generator and destination, which are the
// state's.
void launch_march(Context& context, const StepView& step, const SampleTrainingRays& sample,
                  const OccupancyView& occupancy);
// Composites every ray, forward and backward. `options`: regularizer and encourage_density are the step's own affair.
void launch_composite(Context& context, const StepView& step, const CompositeOptions& options);
// Sums the step up into `result` (host memory that the device can write), plans the next one and clears the counters.
void launch_finish(Context& context, const StepView& step, int64_t batch_size, NerfOptimizer::Trained trained,
                   StepResult* results, uint32_t n_results);

// Positions and directions of contributing samples, for GeneralBackward.
void launch_gather(Context& context, const StepView& step, Vec3* positions, Vec3* directions);

} // namespace ngp::cuda
