#include "ray_gradients.cuh"

#include "fused_backward.cuh"
#include "general_network.cuh"

namespace ngp::cuda {

namespace {

constexpr int threads = 128;
constexpr int lanes_of_ray = 8; // most rays have a few samples to some tens
constexpr unsigned blocks_of_multiprocessor = 8;

// Halves of a row as floats.
struct HalfRow {
    const half* first;
    NGP_HD float operator[](int k) const { return __half2float(first[k]); }
    NGP_HD HalfRow from(int k) const { return {first + k}; }
};
struct FloatRow {
    const float* first;
    NGP_HD float operator[](int k) const { return first[k]; }
    NGP_HD FloatRow from(int k) const { return {first + k}; }
};

// What the sample of a row, at distance t, gives to its ray.
template <bool Fused>
__device__ RayGradient gradient_of_row(const RayGradientsJob& job, int64_t row, Vec3 position, Vec3 direction,
                                       float t) {
    const ModelView& model = job.model;
    const Vec3 x = model.unit(position);
    RayGradient g;
    if constexpr (Fused) {
        const HalfRow d{job.d_encodings + row * fused_encoded};
        g.origin = general::position_gradient(*model.position, model.encoding, x, d, job.finest_scale);
        const HalfRow harmonics{job.d_harmonics + row * fused_harmonics};
        g.direction = general::direction_gradient(model, direction, 0, harmonics, nullptr);
    } else {
        const FloatRow d{job.d_encodings_f32 + row * job.d_stride};
        g.origin = general::position_gradient(*model.position, model.encoding, x, d, job.finest_scale);
        g.direction = job.d_directions[row];
    }
    g.origin = g.origin * model.inverse_size * (1.0f / loss_scale);
    g.direction = g.direction * (1.0f / loss_scale) + g.origin * t;
    return g;
}

// What a ray's samples k = lane, lane + lanes_of_ray, ... give. `color`: of RayGradientsJob::d_color.
template <bool Fused>
__device__ RayGradient gradient_of_samples(const RayGradientsJob& job, int64_t i, int lane, Vec3& color) {
    const StepView& step = job.step;
    const TrainingRay& ray = step.rays[i];
    const RayOutcome& outcome = step.outcomes[i];
    const Objective& objective = job.options.objective;
    const bool sums_losses = objective.mode == TrainMode::Rfl;
    const uint32_t first = step.first[i], count = outcome.count;
    const Vec3 of_background = sums_losses ? color_loss(objective.loss, ray.background, ray.target).gradient : Vec3{};
    if (lane == 0) color = sums_losses ? (count == 0 ? of_background : Vec3{}) : outcome.gradient;
    RayGradient sum;
    for (uint32_t k = uint32_t(lane); k < count; k += lanes_of_ray) {
        const uint32_t sample = step.order[first + k];
        const float t = step.samples[sample].t;
        const RayGradient g =
            gradient_of_row<Fused>(job, int64_t(first) + k, ray.march.position(t), ray.march.direction, t);
        sum.origin += g.origin;
        sum.direction += g.direction;
        if (!sums_losses) continue;
        const RawSample raw = step.raw[sample];
        const float before = step.blends[sample].before;
        const float alpha =
            segment_alpha(density_from_raw(job.options.density_activation, raw.density), step.samples[sample].dt);
        const float after = before * (1.0f - alpha);
        const Vec3 c = sample_color(job.options.rgb_activation, raw);
        color += color_loss(objective.loss, c, ray.target).gradient * (before * alpha);
        const bool stopped = alpha > 0.0f && after < training_min_transmittance;
        if (k + 1 == count && !stopped) color += of_background * after;
    }
    return sum;
}

__device__ Vec3 sum_over_ray(Vec3 v) {
#pragma unroll
    for (int offset = lanes_of_ray / 2; offset > 0; offset >>= 1)
        v += {__shfl_xor_sync(0xffffffffu, v.x, offset), __shfl_xor_sync(0xffffffffu, v.y, offset),
              __shfl_xor_sync(0xffffffffu, v.z, offset)};
    return v;
}

// A group of lanes a ray. The groups of a warp go from ray to ray together, since they exchange sums.
template <bool Fused>
__global__ void __launch_bounds__(threads) ray_gradients_kernel(const __grid_constant__ RayGradientsJob job) {
    constexpr int rays_of_warp = 32 / lanes_of_ray;
    const bool of_step = job.step.state != nullptr;
    const int64_t n = of_step ? int64_t(job.step.state->n_rays) : int64_t(*job.n);
    const int lane = threadIdx.x % lanes_of_ray, group = (threadIdx.x & 31) / lanes_of_ray;
    const int64_t warp = (int64_t(blockIdx.x) * threads + threadIdx.x) / 32;
    const int64_t stride = int64_t(gridDim.x) * threads / lanes_of_ray;
    for (int64_t first = warp * rays_of_warp; first < n; first += stride) {
        const int64_t i = first + group;
        const bool used = i < n && (!of_step || job.step.first[i] != unused_ray);
        RayGradient g;
        Vec3 color;
        if (used && of_step) g = gradient_of_samples<Fused>(job, i, lane, color);
        if (used && !of_step && lane == 0)
            g = gradient_of_row<Fused>(job, i, job.positions[i], job.directions[i], 0.0f);
        g.origin = sum_over_ray(g.origin);
        g.direction = sum_over_ray(g.direction);
        color = sum_over_ray(color);
        if (!used || lane != 0) continue;
        job.rays[i] = g;
        if (job.d_color) job.d_color[i] = color;
    }
}

struct HalfOutputs {
    half* first;
    NGP_HD half& operator[](int k) const { return first[k]; }
};

__global__ void __launch_bounds__(threads)
    cut_levels_kernel(const __grid_constant__ ModelView model, const StepView step, half* d_encodings) {
    const uint32_t n = step.state->n_contributing;
    for (uint32_t i = blockIdx.x * threads + threadIdx.x; i < n; i += gridDim.x * threads) {
        const float max_level = step.rays[step.samples[step.order[i]].ray].max_level;
        general::cut_levels(*model.position, max_level, HalfOutputs{d_encodings + int64_t(i) * fused_encoded});
    }
}

unsigned blocks(const Context& context) { return blocks_of_multiprocessor * unsigned(context.multiprocessors()); }

} // namespace

void launch_ray_gradients(Context& context, const RayGradientsJob& job) {
    const auto kernel = job.d_encodings ? ray_gradients_kernel<true> : ray_gradients_kernel<false>;
    kernel<<<blocks(context), threads, 0, context.stream()>>>(job);
    check(cudaGetLastError(), "launch of the gradients of rays");
}

void launch_cut_levels(Context& context, const ModelView& model, const StepView& step, half* d_encodings) {
    cut_levels_kernel<<<blocks(context), threads, 0, context.stream()>>>(model, step, d_encodings);
    check(cudaGetLastError(), "launch of cutting levels");
}

} // namespace ngp::cuda
