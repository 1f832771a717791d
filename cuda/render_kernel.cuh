// Rendering: a persistent kernel from rays at their first sample to frame pixels, over a network policy (model.cuh).
// What it computes is what the CPU's trace() and accumulate() compute, sample by sample.
//
// Almost all time goes into evaluating the network, which a warp does for 32 samples at once. So each lane keeps a ray
// of its own, at its next sample, and the warp does three things by turns:
//   march     lanes move on to their next occupied sample, a few steps at a time: a lane with far to go sits out one
//             evaluation rather than hold up the others
//   refill    when enough rays have ended, they are added to the frame and their lanes take others
//   evaluate  and composite
// The loop must stay small: warps are at different places in it, and when it does not fit the instruction cache of a
// multiprocessor (somewhere near 2,000 instructions on an H100) fetching instructions takes most of the time.
#pragma once

#include "render.cuh"

#include <algorithm>
#include <ngp/stages/compositing.h>

namespace ngp::cuda {

constexpr uint32_t whole_warp = 0xffffffffu;

// --- constants to tune

// The warp marches on while more than one lane for each so many lanes at a sample is still on its way, but not more
// than that many steps between two evaluations.
constexpr int samples_per_straggler = 4;
constexpr int march_steps = 4;
// Lanes whose ray has ended wait until there are so many: what follows is code that the whole warp goes through.
constexpr int idle_lanes = 8;
// Blocks that must fit a multiprocessor: bounds registers to 128 a thread, unless the policy says otherwise.
template <typename Net>
constexpr int render_blocks = [] {
    if constexpr (requires { Net::render_blocks; })
        return int(Net::render_blocks);
    else
        return 512 / Net::threads;
}();

// As on the CPU: cells of the finest grid level whose gradient normals follow, in march steps.
constexpr float normal_cell_steps = 2.0f;

// --- rays

// Within 2 units in the last place; infinite where v is zero or a denormal number.
__device__ inline float short_reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// Full, here and below: what RenderJob::full() says, whose code would only take up room in the other kernel.

// A lane's ray. What follows from the direction is computed again where it is needed, since all of this takes up
// registers while the network is evaluated.
struct LaneRay {
    uint32_t pixel = 0;
    uint32_t number = 0; // of the started ray
    Vec3 line;           // StartedRay
    float t = 0, t_end = 0;
    float dt = 0; // of the sample at t, or 0 if the ray is not at one
    BlendState blend;
    float t_expected = 0, t_max_weight = 0, largest = 0;
    Vec3 normal;

    // Both as MakeRenderRay gave them.
    template <bool Full>
    __device__ Vec3 direction(const RenderJob& job) const {
        if (Full && job.starts) return line;
        return job.make.camera.lens.parallel() ? job.parallel_direction : line;
    }
    template <bool Full>
    __device__ Vec3 origin(const RenderJob& job) const {
        if (Full && job.starts) return job.starts[number].origin;
        return job.make.camera.lens.parallel() ? line : job.make.pose.position + line * job.make.near_distance;
    }
    // Cosine of its angle to the camera's forward axis.
    template <bool Full>
    __device__ float z_per_t(const RenderJob& job) const {
        if (Full && job.starts) return job.starts[number].z_per_t;
        return dot(direction<Full>(job), job.make.pose.forward);
    }
    template <bool Full>
    __device__ RayMarcher marcher(const RenderJob& job) const {
        const Vec3 d = direction<Full>(job);
        // A unit in the last place of where empty space ends decides nothing.
        const Vec3 inverse{short_reciprocal(d.x), short_reciprocal(d.y), short_reciprocal(d.z)};
        return {origin<Full>(job), d, inverse, t, t_end};
    }
};

// One step of RayMarcher::next(), to a sample (dt > 0) or to the next position to look at. False: the ray has ended.
__device__ inline bool march_step(const RenderJob& job, RayMarcher& march, float& dt) {
    if (!(march.t < march.t_end)) return false;
    const RayMarcher::Probe here = march.probe(job.occupancy, job.make.stepping, false, march.t);
    if (here.empty == 0) {
        dt = here.dt;
        return march.t + dt > march.t;
    }
    const float after = march.leave(job.occupancy, job.make.stepping, false, here);
    const bool moves = after > march.t;
    march.t = after;
    return moves;
}

// What the networks and the encoding say of a sample.
struct LaneSample {
    RawSample raw;
    float activation = 0; // the visualized one
    Vec3 normal;
};

template <bool Full>
__device__ void composite(const RenderJob& job, LaneRay& ray, const LaneSample& sample) {
    const RawSample& raw = sample.raw;
    const float sigma = density_from_raw(job.model.density_activation, raw.density);
    const float alpha = segment_alpha(sigma, ray.dt);
    Vec3 value = sample_color(job.model.rgb_activation, raw);
    if constexpr (Full) {
        if (job.visualized.wanted())
            value = VisualizedActivation::value(sample.activation);
        else if (job.add.shows.mode != RenderMode::Shade)
            value = geometry_value(job.add.shows, alpha, ray.marcher<Full>(job).position(ray.t),
                                   (ray.t + job.make.near_distance) * ray.z_per_t<Full>(job));
    }
    const float weight = blend(ray.blend, value, alpha);
    if constexpr (Full)
        if (job.add.shows.mode == RenderMode::Cost) ray.blend.rgb += splat3(cost_of_sample);
    ray.t_expected += weight * ray.t;
    if constexpr (Full) ray.normal += sample.normal * weight;
    if (weight > ray.largest) {
        ray.largest = weight;
        ray.t_max_weight = ray.t;
    }
    ray.t += ray.dt;
    ray.dt = 0.0f;
    if (!(ray.blend.transmittance >= job.min_transmittance)) ray.t_end = 0.0f; // so is a NaN
}

// srgb_to_linear() (formulas/color.h) within 1e-6, in a tenth of its instructions.
__device__ inline float short_srgb_to_linear(float v) {
    using namespace srgb_curve;
    return v <= line_end ? v * (1.0f / slope) : __powf((v + offset) * (1.0f / scale), exponent);
}

template <bool Full>
__device__ void add_ray(const RenderJob& job, LaneRay& ray) {
    RenderedRay result{ray.blend.rgb, 0.0f, ray.t_expected, ray.t_max_weight, {}};
    if constexpr (Full) result.normal = ray.normal;
    AddRay add = job.add;
    if constexpr (!Full) add.shows = {};
    result.finish(add.shows.mode, ray.blend.transmittance, job.min_transmittance);
    if (add.shows.mode == RenderMode::Shade && !add.linear_colors && add.space == ColorSpace::Linear) {
        result.rgb = {short_srgb_to_linear(result.rgb.x), short_srgb_to_linear(result.rgb.y),
                      short_srgb_to_linear(result.rgb.z)};
        add.linear_colors = true; // as they are now
    }
    FramePixel sum = sum_before(job, ray.pixel);
    add(sum, result, ray.origin<Full>(job), ray.direction<Full>(job), ray.z_per_t<Full>(job));
    store_sum(job, ray.pixel, sum);
}

// The started rays, of which a warp takes 32 at a time.
class RaySupply {
  public:
    __device__ explicit RaySupply(const RenderJob& job) : job_(job), started_(job.counters->started) {}

    // Gives lanes without a ray one, as long as there are any; by all lanes.
    __device__ void refill(bool& active, LaneRay& ray) {
        for (;;) {
            const uint32_t idle = __ballot_sync(whole_warp, !active);
            if (idle == 0 || exhausted_) return;
            if (next_ == end_) {
                take();
                continue;
            }
            const uint32_t rank = uint32_t(__popc(idle & ((1u << (threadIdx.x & 31)) - 1u)));
            const uint32_t n = min_of(uint32_t(__popc(idle)), end_ - next_);
            if (!active && rank < n) {
                const StartedRay started = job_.rays[next_ + rank];
                ray = {};
                ray.pixel = started.pixel;
                ray.number = next_ + rank;
                ray.line = started.line;
                ray.t = started.t;
                ray.t_end = started.t_end;
                ray.dt = started.dt;
                active = true;
            }
            next_ += n;
        }
    }

  private:
    __device__ void take() {
        if ((threadIdx.x & 31) == 0) next_ = atomicAdd(&job_.counters->taken, 32u);
        next_ = __shfl_sync(whole_warp, next_, 0);
        exhausted_ = next_ >= started_;
        end_ = min_of(next_ + 32u, started_);
    }

    const RenderJob& job_;
    uint32_t started_, next_ = 0, end_ = 0; // the same in all lanes, as is the next
    bool exhausted_ = false;
};

// Moves lanes with a ray to its next sample, until enough are there; by all lanes. True: the ray has ended.
template <bool Full>
__device__ bool march_to_samples(const RenderJob& job, bool active, LaneRay& ray) {
    bool marching = active && ray.dt == 0.0f, ended = false;
    if (!__any_sync(whole_warp, marching)) return false;
    RayMarcher march = ray.marcher<Full>(job);
    for (int step = 0; step < march_steps; ++step) {
        if (marching) {
            ended = !march_step(job, march, ray.dt);
            marching = !ended && ray.dt == 0.0f;
        }
        const int stragglers = __popc(__ballot_sync(whole_warp, marching));
        const int sampled = __popc(__ballot_sync(whole_warp, active && ray.dt > 0.0f));
        if (stragglers * samples_per_straggler <= sampled) break;
    }
    ray.t = march.t;
    return ended;
}

// --- the kernel

// By all lanes of a warp, as Net::evaluate().
template <bool Full, typename Net>
__device__ __forceinline__ void evaluate_sample(const RenderJob& job, Net& net, Vec3 x, Vec3 direction,
                                                LaneSample& sample) {
    if constexpr (Full && requires { net.evaluate_and_see(x, direction, 0, job.visualized, sample.activation); })
        sample.raw = net.evaluate_and_see(x, direction, 0, job.visualized, sample.activation);
    else
        sample.raw = net.evaluate(x, direction);
}

extern __shared__ __align__(128) char render_shared[];

template <typename Net, bool Full>
__global__ void __launch_bounds__(Net::threads, render_blocks<Net>)
    render_kernel(const __grid_constant__ RenderJob job) {
    static_assert(Net::threads % 32 == 0);
    Net net(job.model, render_shared, job.scratch);
    RaySupply supply(job);
    LaneRay ray;
    bool active = false, ended = false; // the lane has a ray; it has ended, but is not in the picture yet
    for (;;) {
        ended |= march_to_samples<Full>(job, active && !ended, ray);
        const int under_way = __popc(__ballot_sync(whole_warp, active && !ended));
        if (under_way <= 32 - idle_lanes) {
            if (ended) add_ray<Full>(job, ray);
            active &= !ended;
            ended = false;
            supply.refill(active, ray);
            if (!__any_sync(whole_warp, active)) return;
        }
        const bool sampled = active && ray.dt > 0.0f;
        const uint32_t mask = __ballot_sync(whole_warp, sampled);
        if (mask == 0) continue;

        Vec3 x;
        if (sampled) x = job.model.unit(ray.marcher<Full>(job).position(ray.t));
        // Lanes without a sample ask for that of another, which costs no memory transactions.
        const int other = __ffs(int(mask)) - 1;
        const Vec3 theirs{__shfl_sync(whole_warp, x.x, other), __shfl_sync(whole_warp, x.y, other),
                          __shfl_sync(whole_warp, x.z, other)};
        if (!sampled) x = theirs;
        LaneSample sample;
        evaluate_sample<Full>(job, net, x, ray.direction<Full>(job), sample);
        if constexpr (Full)
            if (job.normals) {
                const Vec3 scale = job.model.inverse_size;
                float finest = 1.0f / (normal_cell_steps * (sampled ? ray.dt : 1.0f) * scale.x);
                if (job.add.shows.mode == RenderMode::Normals) finest = FLT_MAX; // of the whole encoding
                sample.normal = normalize(-(net.density_gradient(x, finest) * scale));
            }
        if (sampled) composite<Full>(job, ray, sample);
    }
}

// --- its launch

// The policy's own for kernels that call evaluate() only, if it has one.
template <typename Net>
struct PolicyOfPictures {
    using type = Net;
};
template <typename Net>
    requires requires { typename Net::OfPictures; }
struct PolicyOfPictures<Net> {
    using type = typename Net::OfPictures;
};

struct RenderGrid {
    const void* kernel;
    int64_t shared, scratch; // bytes of a block, of a thread
    int64_t blocks;          // that the device runs at once
    int threads;             // of a block
};
template <typename Net>
RenderGrid render_grid(const Context& context, const ModelView& model, bool full) {
    RenderGrid g;
    g.kernel = reinterpret_cast<const void*>(&render_kernel<Net, true>);
    g.shared = Net::shared_bytes(model);
    g.threads = Net::threads;
    if (!full) {
        using Plain = typename PolicyOfPictures<Net>::type;
        g.kernel = reinterpret_cast<const void*>(&render_kernel<Plain, false>);
        g.shared = Plain::shared_bytes(model);
        g.threads = Plain::threads;
    }
    g.scratch = Net::scratch_bytes(model);
    check(cudaFuncSetAttribute(g.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, context.device_shared_bytes()),
          "rendering with ", g.shared, " bytes of shared memory a block");
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, g.kernel, g.threads, size_t(g.shared)),
          "occupancy of rendering");
    if (per_multiprocessor == 0) fail("CUDA: rendering: a block of ", g.threads, " threads does not fit the device");
    g.blocks = int64_t(per_multiprocessor) * context.multiprocessors();
    return g;
}

// A RenderScratch.
template <typename Net>
int64_t render_scratch(const Context& context, const ModelView& model, bool full) {
    const DeviceGuard guard(context.device());
    const RenderGrid g = render_grid<Net>(context, model, full);
    return g.blocks * g.threads * g.scratch;
}

// A RenderLauncher.
template <typename Net>
void launch_render(Context& context, const RenderJob& job) {
    const TileOrder order{job.make.camera.width, job.make.camera.height};
    if (order.width <= 0 || order.height <= 0 || job.spp <= 0) return;
    const DeviceGuard guard(context.device());
    const RenderGrid g = render_grid<Net>(context, job.model, job.full());
    RenderJob launched = job;
    launched.parallel_direction = normalize(job.make.pose.forward);
    static_assert(sizeof(RenderJob) <= 4096, "a kernel's parameters have 4 KB");
    const int64_t n_tiles = tiles_of_pass(order), rays_of_block = g.threads;
    int64_t blocks = std::min<int64_t>(g.blocks, (n_tiles * TileOrder::tile_pixels - 1) / rays_of_block + 1);
    if (g.scratch > 0) {
        const int64_t of_block = g.scratch * g.threads;
        NGP_CHECK_LE(of_block, job.scratch_size);
        blocks = std::min<int64_t>(blocks, job.scratch_size / of_block);
    }
    for (launched.sample = 0; launched.sample < job.spp; ++launched.sample)
        for (int64_t first = 0; first < order.count(); first += n_tiles) {
            start_rays(context, launched, first, std::min(n_tiles, order.count() - first));
            void* parameters[] = {&launched};
            check(cudaLaunchKernel(g.kernel, dim3(unsigned(blocks)), dim3(unsigned(g.threads)), parameters,
                                   size_t(g.shared), context.stream()),
                  "rendering ", order.width, "x", order.height, " pixels");
        }
}

} // namespace ngp::cuda
