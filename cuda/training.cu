#include "training.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

// --- marching ----------------------------------------------------------------------------------------------------

constexpr int march_threads = 64;

struct MarchJob {
    StepView step;
    SampleTrainingRays sample;
    OccupancyView occupancy;
    Objective objective;
    bool ahead; // for the step after this one
};

// A thread a ray: draws it, finds its first samples, and, once the warp knows where they go, writes them. `Options`:
// with those of drawing that are off by default; the kernel without them has none of their code.
template <bool Options>
__global__ void __launch_bounds__(march_threads) march_kernel(const __grid_constant__ MarchJob job) {
    __shared__ float kept[march_threads][marched_ahead + 1];
    const StepView& step = job.step;
    StepState& state = *step.state;
    const int n_rays = job.ahead ? state.next_n_rays : state.n_rays, lane = threadIdx.x & 31;
    SampleTrainingRays sample = job.sample;
    sample.rng = job.ahead ? state.next_rng : state.rng;
    sample.n_rays = n_rays;
    if constexpr (!Options) {
        sample.errors = {};
        sample.random_levels = false;
        sample.pixels = nullptr;
        sample.ray_pixels = nullptr;
    }
    const int stride = int(gridDim.x) * march_threads;
    for (int first = int(blockIdx.x) * march_threads; first < n_rays; first += stride) {
        const int i = first + int(threadIdx.x);
        TrainingRay ray;
        float start = 0, end = 0; // of the ray
        uint32_t count = 0;
        if (i < n_rays) {
            sample.rays = &ray;
            sample.first_ray = i;
            if constexpr (Options) sample.ray_pixels = step.ray_pixels ? step.ray_pixels + i : nullptr;
            sample(i);
            start = ray.march.t;
            end = ray.march.t_end;
            while (count < uint32_t(marched_ahead)) {
                const float dt = ray.march.next(job.occupancy, sample.stepping, true);
                if (dt == 0.0f) {
                    ray.march.t_end = 0.0f; // there are no more
                    break;
                }
                kept[threadIdx.x][count++] = ray.march.t;
                ray.march.t += dt;
            }
        }
        const uint32_t inclusive = warp_inclusive_sum(count);
        uint32_t base = 0;
        if (lane == 31 && inclusive) base = atomicAdd(&state.n_times, inclusive);
        base = __shfl_sync(0xffffffffu, base, 31) + inclusive - count;
        const bool hit = count > 0, fits = int64_t(base) + count <= step.time_capacity;
        if (hit && !fits) { // it is traced from its start
            ray.march.t = start;
            ray.march.t_end = end;
            count = 0;
        }
        if (hit) {
            step.spans[i] = {base, count};
            for (uint32_t k = 0; k < count; ++k) step.times[base + k] = kept[threadIdx.x][k];
        }
        if (i < n_rays) {
            step.rays[i] = ray;
            if (!hit) step.outcomes[i] = ray_outcome(job.objective, ray, {}, 1.0f, 0);
        }
        const uint32_t hits = __ballot_sync(0xffffffffu, hit);
        uint32_t at = 0;
        if (lane == 0 && hits) at = atomicAdd(&state.n_hits, uint32_t(__popc(hits)));
        at = __shfl_sync(0xffffffffu, at, 0) + uint32_t(__popc(hits & ((1u << lane) - 1u)));
        if (hit) step.hits[at] = uint32_t(i);
    }
}

__device__ void clear_march_counters(StepState& state) { state.n_times = state.n_hits = state.hit_ticket = 0; }
__global__ void restart_kernel(const StepView step) { clear_march_counters(*step.state); }

// --- order -------------------------------------------------------------------------------------------------------

// A thread a ray: where its samples go, if there is room for them in the batch.
__global__ void __launch_bounds__(rays_per_tile) order_rays_kernel(const StepView step) {
    constexpr int warps = rays_per_tile / 32;
    static_assert(warps == 8);
    __shared__ uint32_t tile, base, totals[warps];
    __shared__ float losses[warps];
    StepState& state = *step.state;
    const int n_rays = state.n_rays, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    for (;;) {
        __syncthreads(); // of the last tile
        if (threadIdx.x == 0) tile = atomicAdd(&state.order_ticket, 1u);
        __syncthreads();
        const int i = int(tile) * rays_per_tile + int(threadIdx.x);
        if (int(tile) * rays_per_tile >= n_rays) return;
        bool used = i < n_rays && step.outcomes[i].count != unused_ray;
        const uint32_t count = used ? step.outcomes[i].count : 0;
        const uint32_t inclusive = warp_inclusive_sum(count);
        if (lane == 31) totals[warp] = inclusive;
        __syncthreads();
        if (warp == 0) {
            const uint32_t own = lane < warps ? totals[lane] : 0;
            const uint32_t upto = warp_inclusive_sum(own);
            const uint32_t before = TileScan(step.scan).exclusive(tile, __shfl_sync(0xffffffffu, upto, 31));
            if (lane < warps) totals[lane] = upto - own;
            if (lane == 0) base = before;
        }
        __syncthreads();
        const int64_t first = int64_t(base) + totals[warp] + inclusive - count;
        // Rays beyond the batch take no part; since sums only grow, none after them does.
        used &= first + count <= step.batch_capacity;
        if (i < n_rays) step.first[i] = used ? uint32_t(first) : unused_ray;
        const float loss = warp_sum(used ? step.outcomes[i].loss : 0.0f);
        const uint32_t n_used = warp_sum(uint32_t(used)), end = warp_max(used ? uint32_t(first) + count : 0u);
        if (lane == 0) {
            losses[warp] = loss;
            atomicAdd(&state.n_rays_used, n_used);
            atomicMax(&state.n_contributing, end);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            float sum = 0;
            for (float l : losses) sum += l;
            step.tile_loss[tile] = sum;
        }
    }
}

// What the next step will do, now that this one's samples are counted.
__device__ void plan_next_step(const StepView& step, int64_t batch_size) {
    StepState& state = *step.state;
    const int n = next_ray_count(max_of(1u, state.n_rays_used), state.n_contributing, batch_size);
    state.next_n_rays = int32_t(min_of<int64_t>(n, step.max_rays));
    state.next_rng = state.rng;
    state.next_rng.advance(uint64_t(1) << 32);
    clear_march_counters(state);
}

__global__ void __launch_bounds__(256) order_samples_kernel(const StepView step, int64_t batch_size) {
    if (blockIdx.x == 0 && threadIdx.x == 0) plan_next_step(step, batch_size);
    const uint32_t n = min_of<int64_t>(step.state->n_samples, step.sample_capacity);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const Sample s = step.samples[i];
        const uint32_t first = step.first[s.ray];
        if (first != unused_ray) step.order[first + s.index] = i;
    }
}

// --- end of a step -----------------------------------------------------------------------------------------------

struct FinishJob {
    StepView step;
    bool matrices, encoding; // were trained
    StepResult* results;     // of step k at k % n_results
    uint32_t n_results;
};

__global__ void __launch_bounds__(256) finish_kernel(const __grid_constant__ FinishJob job) {
    __shared__ float sums[8];
    StepState& state = *job.step.state;
    const int n_tiles = (state.n_rays + rays_per_tile - 1) / rays_per_tile;
    float sum = 0;
    for (int i = threadIdx.x; i < n_tiles; i += blockDim.x) {
        sum += job.step.tile_loss[i];
        job.step.scan[i] = 0;
    }
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float loss = 0;
    for (float s : sums) loss += s;
    StepResult r;
    r.rays = state.n_rays_used;
    r.samples = state.n_contributing;
    r.samples_evaluated = state.n_evaluated;
    r.loss = loss / float(max_of(1u, state.n_rays_used));
    job.results[state.step % job.n_results] = r;
    __threadfence_system();

    state.n_rays = state.next_n_rays;
    state.rng = state.next_rng;
    ++state.step;
    state.matrix_steps += job.matrices;
    state.encoding_steps += job.encoding;
    state.n_evaluated = state.n_samples = state.n_contributing = state.n_rays_used = 0;
    state.order_ticket = 0;
}

__global__ void __launch_bounds__(128)
    gather_kernel(const StepView step, const CompositeOptions given, const GatheredSamples to) {
    const CompositeOptions options = step_options(*step.state, given);
    const uint32_t n = step.state->n_contributing;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const uint32_t sample = step.order[i];
        const Sample& s = step.samples[sample];
        const TrainingRay& ray = step.rays[s.ray];
        to.positions[i] = ray.march.position(s.t);
        to.directions[i] = ray.march.direction;
        to.d_raw[i] = sample_gradient(step, options, sample);
        to.views[i] = ray.view;
        if (to.max_levels) to.max_levels[i] = ray.max_level;
    }
}

template <typename Kernel>
unsigned full_grid(const Context& context, Kernel kernel, int threads) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0), "occupancy");
    return unsigned(std::max(1, blocks) * context.multiprocessors());
}

} // namespace

void launch_march(Context& context, cudaStream_t stream, const StepView& step, const SampleTrainingRays& sample,
                  const OccupancyView& occupancy, const Objective& objective, bool ahead) {
    const bool options = sample.errors.active() || sample.random_levels || sample.pixels || step.ray_pixels;
    const auto kernel = options ? march_kernel<true> : march_kernel<false>;
    kernel<<<full_grid(context, kernel, march_threads), march_threads, 0, stream>>>(
        MarchJob{step, sample, occupancy, objective, ahead});
    check(cudaGetLastError(), "launch of marching");
}

void launch_restart(Context& context, const StepView& step) {
    restart_kernel<<<1, 1, 0, context.stream()>>>(step);
    check(cudaGetLastError(), "launch of a step's start");
}

void launch_order(Context& context, const StepView& step, int64_t batch_size) {
    order_rays_kernel<<<full_grid(context, order_rays_kernel, rays_per_tile), rays_per_tile, 0, context.stream()>>>(
        step);
    order_samples_kernel<<<full_grid(context, order_samples_kernel, 256), 256, 0, context.stream()>>>(step, batch_size);
    check(cudaGetLastError(), "launch of ordering samples");
}

void launch_finish(Context& context, const StepView& step, NerfOptimizer::Trained trained, StepResult* results,
                   uint32_t n_results) {
    finish_kernel<<<1, 256, 0, context.stream()>>>(
        FinishJob{step, trained.matrices, trained.encoding, results, n_results});
    check(cudaGetLastError(), "launch of the end of a step");
}

void launch_gather(Context& context, const StepView& step, const CompositeOptions& options, const GatheredSamples& to) {
    gather_kernel<<<full_grid(context, gather_kernel, 128), 128, 0, context.stream()>>>(step, options, to);
    check(cudaGetLastError(), "launch of gathering samples");
}

} // namespace ngp::cuda
