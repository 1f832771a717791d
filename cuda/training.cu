#include "for_each.cuh"
#include "training.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

constexpr uint32_t unused_ray = 0xffffffffu; // count of a ray whose samples did not fit

struct MarchJob {
    StepView step;
    SampleTrainingRays sample;
    OccupancyView occupancy;
};

// --- marching ----------------------------------------------------------------------------------------------------

constexpr int kept_samples = 32; // of each ray, in shared memory between counting and writing

// A thread a ray: draws it, counts its samples, and, once the block knows where they go, writes them.
__global__ void __launch_bounds__(rays_per_tile) march_kernel(const __grid_constant__ MarchJob job) {
    static_assert(rays_per_tile == 64);
    __shared__ float kept[rays_per_tile][kept_samples + 1];
    __shared__ uint32_t tile, base, warp_total[2];
    const StepView& step = job.step;
    StepState& state = *step.state;
    const int n_rays = state.n_rays, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    SampleTrainingRays sample = job.sample;
    sample.rng = state.rng;
    sample.n_rays = n_rays;
    const Stepping stepping = sample.stepping;
    for (;;) {
        __syncthreads(); // of the last tile
        if (threadIdx.x == 0) tile = atomicAdd(&state.march_ticket, 1u);
        __syncthreads();
        const int i = int(tile) * rays_per_tile + int(threadIdx.x);
        if (int(tile) * rays_per_tile >= n_rays) return;
        TrainingRay ray;
        RayMarcher march;
        uint32_t count = 0;
        if (i < n_rays) {
            sample.rays = &ray;
            sample.first_ray = i;
            sample(i);
            march = ray.march;
            while (count < uint32_t(max_samples_per_ray)) {
                const float dt = march.next(job.occupancy, stepping, true);
                if (dt == 0.0f) break;
                if (count < kept_samples) kept[threadIdx.x][count] = march.t;
                march.t += dt;
                ++count;
            }
            step.rays[i] = ray;
        }
        const uint32_t inclusive = warp_inclusive_sum(count);
        if (lane == 31) warp_total[warp] = inclusive;
        __syncthreads();
        if (warp == 0) {
            const uint32_t before = TileScan(step.march_scan).exclusive(tile, warp_total[0] + warp_total[1]);
            if (lane == 0) base = before;
        }
        __syncthreads();
        const int64_t first = int64_t(base) + (warp ? warp_total[0] : 0) + inclusive - count;
        const bool fits = first + count <= step.sample_capacity;
        if (i < n_rays) step.spans[i] = {uint32_t(first), fits ? count : unused_ray};
        if (!fits || i >= n_rays) count = 0;
        march = ray.march;
        for (uint32_t k = 0; k < count; ++k) {
            float dt;
            if (k < kept_samples) {
                march.t = kept[threadIdx.x][k];
                dt = stepping.step_length(march.t);
            } else {
                if (k == kept_samples) march.t += stepping.step_length(march.t);
                dt = march.next(job.occupancy, stepping, true);
            }
            step.samples[first + k] = {march.t, dt, uint32_t(i)};
            if (k >= kept_samples) march.t += dt;
        }
        const uint32_t end = warp_max(count ? uint32_t(first) + count : 0u);
        if (lane == 0 && end) atomicMax(&state.n_samples, end);
    }
}

// --- compositing -------------------------------------------------------------------------------------------------

struct CompositeJob {
    StepView step;
    CompositeOptions options;
};

constexpr int composite_warps = 8;

// What the forward half of compositing a ray leaves for the backward half.
struct CompositedRay {
    Vec3 total, gradient; // colour with background; dL/d colour
    uint32_t contributing;
    float loss;
    bool used;
};

// 32 samples of a ray, one a lane, from some transmittance on.
struct Segment {
    RawSample raw;
    float t, dt;
    Vec3 color;
    float alpha, weight, after; // after: transmittance behind the sample
    bool valid;

    __device__ Segment(const StepView& step, const CompositeOptions& options, const RaySpan& span, uint32_t begin,
                       float transmittance) {
        const int lane = threadIdx.x & 31;
        const uint32_t k = begin + lane;
        valid = k < span.count;
        raw = {};
        t = dt = 0;
        if (valid) {
            raw = step.raw[span.first + k];
            const Sample& s = step.samples[span.first + k];
            t = s.t;
            dt = s.dt;
        }
        color = sample_color(options.rgb_activation, raw);
        alpha = valid ? segment_alpha(density_from_raw(options.density_activation, raw.density), dt) : 0.0f;
        const float through = warp_inclusive_product(1.0f - alpha);
        after = transmittance * through;
        const float before = __shfl_up_sync(0xffffffffu, after, 1);
        weight = (lane == 0 ? transmittance : before) * alpha;
    }
};

__device__ CompositedRay composite_forward(const CompositeJob& job, const TrainingRay& ray, const RaySpan& span) {
    const int lane = threadIdx.x & 31;
    CompositedRay out{};
    float transmittance = 1.0f;
    Vec3 rgb;
    bool stopped = false;
    out.contributing = span.count;
    for (uint32_t begin = 0; begin < span.count && !stopped; begin += 32) {
        const Segment s(job.step, job.options, span, begin, transmittance);
        const uint32_t stops = __ballot_sync(0xffffffffu, s.valid && s.after < training_min_transmittance);
        const int last = stops ? __ffs(int(stops)) - 1 : 31;
        stopped = stops != 0;
        const float w = s.valid && lane <= last ? s.weight : 0.0f;
        rgb += Vec3{warp_sum(w * s.color.x), warp_sum(w * s.color.y), warp_sum(w * s.color.z)};
        if (stopped) out.contributing = begin + uint32_t(last) + 1;
        transmittance = __shfl_sync(0xffffffffu, s.after, 31);
    }
    out.total = stopped ? rgb : rgb + ray.background * transmittance;
    LossTerm l[3];
    for (int c = 0; c < 3; ++c) l[c] = loss_term(job.options.loss, out.total[c], ray.target[c]);
    out.loss = (l[0].value + l[1].value + l[2].value) * (1.0f / 3.0f);
    out.gradient = {l[0].gradient, l[1].gradient, l[2].gradient};
    return out;
}

// Gradients of the ray's contributing samples to batch positions [at, ...).
__device__ void composite_backward(const CompositeJob& job, const RaySpan& span, const CompositedRay& ray, int64_t at) {
    const int lane = threadIdx.x & 31;
    const CompositeOptions& options = job.options;
    float transmittance = 1.0f;
    Vec3 rgb; // of all samples before
    for (uint32_t begin = 0; begin < ray.contributing; begin += 32) {
        const Segment s(job.step, options, span, begin, transmittance);
        const Vec3 own = s.color * s.weight;
        const Vec3 upto = rgb + Vec3{warp_inclusive_sum(own.x), warp_inclusive_sum(own.y), warp_inclusive_sum(own.z)};
        const uint32_t k = begin + lane;
        if (k < ray.contributing) {
            RawSample d;
            for (int c = 0; c < 3; ++c) {
                d.rgb[c] =
                    s.weight * ray.gradient[c] * color_derivative(options.rgb_activation, s.raw.rgb[c], s.color[c]);
                if (options.rgb_activation == Activation::Exponential) d.rgb[c] += max_of(0.0f, 1e-4f * s.raw.rgb[c]);
                d.rgb[c] *= loss_scale;
            }
            d.density = density_derivative(options.density_activation, s.raw.density) * s.dt *
                        blend_density_gradient(ray.gradient, s.after, s.color, ray.total - upto);
            if (options.encourage_density && s.raw.density < 0.0f) d.density -= options.regularizer;
            if (s.t < options.near_distance && s.raw.density > -10.0f) d.density += options.regularizer;
            d.density *= loss_scale;
            job.step.contributing[at + k] = span.first + k;
            job.step.d_raw[at + k] = d;
        }
        transmittance = __shfl_sync(0xffffffffu, s.after, 31);
        rgb = {__shfl_sync(0xffffffffu, upto.x, 31), __shfl_sync(0xffffffffu, upto.y, 31),
               __shfl_sync(0xffffffffu, upto.z, 31)};
    }
}

// A warp a ray, and a block a tile of rays: colours and losses first, then, once the block knows where its contributing
// samples go, their gradients. What CompositeAndLoss (stages/compositing.h) does one sample after the other.
__global__ void __launch_bounds__(32 * composite_warps) composite_kernel(const __grid_constant__ CompositeJob given) {
    __shared__ CompositedRay composited[rays_per_tile];
    __shared__ uint32_t first[rays_per_tile];
    __shared__ uint32_t tile;
    StepState& state = *given.step.state;
    const int n_rays = state.n_rays, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    CompositeJob job = given;
    // E.4 adds 1e-4 to gradients that are scaled by 128/n_rays; ours are those of the sum over rays.
    job.options.regularizer = 1e-4f * float(n_rays) / 128.0f;
    job.options.encourage_density = state.occupancy_mean < occupancy_threshold;
    const StepView& step = job.step;
    for (;;) {
        __syncthreads(); // of the last tile
        if (threadIdx.x == 0) tile = atomicAdd(&state.composite_ticket, 1u);
        __syncthreads();
        const int first_ray = int(tile) * rays_per_tile;
        if (first_ray >= n_rays) return;
        const int n = min_of(rays_per_tile, n_rays - first_ray);
        for (int r = warp; r < rays_per_tile; r += composite_warps) {
            CompositedRay c{};
            if (r < n) {
                const RaySpan span = step.spans[first_ray + r];
                c.used = span.count != unused_ray;
                if (c.used) {
                    c = composite_forward(job, step.rays[first_ray + r], span);
                    c.used = true;
                }
            }
            if (lane == 0) composited[r] = c;
        }
        __syncthreads();
        if (warp == 0) { // two rays a lane
            static_assert(rays_per_tile == 64);
            CompositedRay &a = composited[2 * lane], &b = composited[2 * lane + 1];
            const uint32_t own = a.contributing + b.contributing;
            const uint32_t inclusive = warp_inclusive_sum(own);
            const uint32_t total = __shfl_sync(0xffffffffu, inclusive, 31);
            const uint32_t before = TileScan(step.composite_scan).exclusive(tile, total) + inclusive - own;
            first[2 * lane] = before;
            first[2 * lane + 1] = before + a.contributing;
            // Rays beyond the batch take no part; since sums only grow, none after them does.
            a.used &= int64_t(before) + a.contributing <= step.batch_capacity;
            b.used &= int64_t(before) + own <= step.batch_capacity;
            const uint32_t end = b.used ? before + own : (a.used ? before + a.contributing : 0u);
            const float loss = warp_sum((a.used ? a.loss : 0.0f) + (b.used ? b.loss : 0.0f));
            const uint32_t used = warp_sum(uint32_t(a.used) + uint32_t(b.used));
            const uint32_t last = warp_max(end);
            if (lane == 0) {
                step.tile_loss[tile] = loss;
                atomicAdd(&state.n_rays_used, used);
                atomicMax(&state.n_contributing, last);
            }
        }
        __syncthreads();
        for (int r = warp; r < n; r += composite_warps)
            if (composited[r].used)
                composite_backward(job, step.spans[first_ray + r], composited[r], int64_t(first[r]));
    }
}

// --- end of a step -----------------------------------------------------------------------------------------------

struct FinishJob {
    StepView step;
    int64_t batch_size;
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
        job.step.march_scan[i] = job.step.composite_scan[i] = 0;
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
    r.samples_evaluated = state.n_samples;
    r.loss = loss / float(max_of(1u, state.n_rays_used));
    job.results[state.step % job.n_results] = r;
    __threadfence_system();

    state.n_rays = int32_t(
        min_of<int64_t>(next_ray_count(max_of<int64_t>(1, r.rays), r.samples, job.batch_size), job.step.max_rays));
    state.rng.advance(uint64_t(1) << 32);
    ++state.step;
    state.matrix_steps += job.matrices;
    state.encoding_steps += job.encoding;
    state.n_samples = state.n_contributing = state.n_rays_used = 0;
    state.march_ticket = state.composite_ticket = 0;
}

// Body of launch_gather.
struct GatherContributing {
    StepView step;
    Vec3 *positions, *directions;

    NGP_HD void operator()(int64_t i) const {
        if (i >= step.state->n_contributing) return;
        const Sample& s = step.samples[step.contributing[i]];
        const RayMarcher& march = step.rays[s.ray].march;
        positions[i] = march.position(s.t);
        directions[i] = march.direction;
    }
};

template <typename Kernel>
unsigned full_grid(const Context& context, Kernel kernel, int threads) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0), "occupancy");
    return unsigned(std::max(1, blocks) * context.multiprocessors());
}

} // namespace

void launch_march(Context& context, const StepView& step, const SampleTrainingRays& sample,
                  const OccupancyView& occupancy) {
    march_kernel<<<full_grid(context, march_kernel, rays_per_tile), rays_per_tile, 0, context.stream()>>>(
        MarchJob{step, sample, occupancy});
    check(cudaGetLastError(), "launch of marching");
}

void launch_composite(Context& context, const StepView& step, const CompositeOptions& options) {
    constexpr int threads = 32 * composite_warps;
    composite_kernel<<<full_grid(context, composite_kernel, threads), threads, 0, context.stream()>>>(
        CompositeJob{step, options});
    check(cudaGetLastError(), "launch of compositing");
}

void launch_finish(Context& context, const StepView& step, int64_t batch_size, NerfOptimizer::Trained trained,
                   StepResult* results, uint32_t n_results) {
    finish_kernel<<<1, 256, 0, context.stream()>>>(
        FinishJob{step, batch_size, trained.matrices, trained.encoding, results, n_results});
    check(cudaGetLastError(), "launch of the end of a step");
}

void launch_gather(Context& context, const StepView& step, Vec3* positions, Vec3* directions) {
    for_each(context.stream(), step.batch_capacity, GatherContributing{step, positions, directions});
}

} // namespace ngp::cuda
