// Rendering: one persistent kernel from pixels to averaged frame pixels, over a network policy (model.cuh). What it
// computes is what the CPU's trace() and accumulate() compute, sample by sample.
//
// Almost all time goes into evaluating the network, which a warp does for 32 samples at once. So each lane keeps a ray
// of its own, at its next sample, and the warp does three things by turns:
//   march     lanes move on to their next occupied sample, a few steps at a time: a lane with far to go sits out one
//             evaluation rather than hold up the others
//   refill    lanes without a ray take one from the warp's queue. If that is empty, all 32 lanes make a ray each and
//             take it through empty space to its first sample; those that get there form the queue. Whole tiles of
//             pixels do so together: neighbouring rays, which take about as many steps, and rays that meet nothing
//             never cost an evaluation.
//   evaluate  and composite
// A pixel's samples follow each other, whichever lanes trace them, and are summed in the frame: always in the same
// order.
#pragma once

#include "render.cuh"

#include <algorithm>
#include <cfloat>
#include <cstddef>
#include <ngp/stages/compositing.h>

namespace ngp::cuda {

constexpr uint32_t whole_warp = 0xffffffffu;

// --- constants to tune

// The warp marches on while more than one lane for each so many lanes at a sample is still on its way, but not more
// than that many steps between two evaluations.
constexpr int samples_per_straggler = 8;
constexpr int march_steps = 8;
// Rounds of new rays between two evaluations. A round keeps all lanes busy, so nothing is lost by many; the limit is
// for the end of a picture, where few warps with long rays decide the time.
constexpr int refill_rounds = 8;
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

// --- pixels

// The picture in tiles of 8x4 pixels, a warp's worth. Tickets number them in Z-order within squares of 8x8 tiles, and
// those row by row; tiles beyond the picture's edge have no pixels.
struct TileOrder {
    int width, height;

    static constexpr int tile_width = 8, tile_height = 4, square = 8; // square: in tiles

    struct Tile {
        int x, y; // of the first pixel
    };
    NGP_HD static uint32_t squares(int pixels, int side) { return uint32_t((pixels + side - 1) / side); }
    NGP_HD uint32_t squares_x() const { return squares(width, tile_width * square); }
    NGP_HD uint32_t count() const {
        return squares_x() * squares(height, tile_height * square) * uint32_t(square * square);
    }
    NGP_HD Tile tile(uint32_t ticket) const {
        const uint32_t within = ticket % uint32_t(square * square), s = ticket / uint32_t(square * square);
        const uint32_t x = (within & 1u) | ((within >> 1) & 2u) | ((within >> 2) & 4u); // bits 0, 2, 4
        const uint32_t y = ((within >> 1) & 1u) | ((within >> 2) & 2u) | ((within >> 3) & 4u);
        return {int(s % squares_x() * uint32_t(square) + x) * tile_width,
                int(s / squares_x() * uint32_t(square) + y) * tile_height};
    }
    NGP_HD bool contains(int x, int y) const { return x < width && y < height; }
};

// Sets the pixels of a tile to those of rays that met nothing; by all lanes. Word by word over the rows, because a lane
// that writes its 36 bytes alone takes a memory transaction for each of their words.
__device__ inline void clear_tile(const TileOrder& order, TileOrder::Tile tile, FramePixel* pixels, int lane) {
    constexpr int words = sizeof(FramePixel) / sizeof(float), row = order.tile_width * words;
    constexpr int depth = offsetof(FramePixel, depth_max_weight) / sizeof(float);
    static_assert(words * sizeof(float) == sizeof(FramePixel) && row * order.tile_height % 32 == 0);
    for (int i = lane; i < row * order.tile_height; i += 32) {
        const int x = tile.x + i % row / words, y = tile.y + i / row, word = i % words;
        if (order.contains(x, y))
            reinterpret_cast<float*>(pixels + (size_t(y) * size_t(order.width) + size_t(x)))[word] =
                word == depth ? max_depth : 0.0f;
    }
}

struct PixelSample {
    uint32_t pixel, sample; // row-major index; number within the pixel
};

// Where sums are kept: in the frame itself rather than in registers. A ray that is its pixel's only one, as most are,
// does not read it, and does not write it either if it meets nothing.
__device__ inline FramePixel sum_before(const RenderJob& job, PixelSample s) {
    return s.sample == 0 ? FramePixel{} : job.pixels[s.pixel];
}
__device__ inline void store_sum(const RenderJob& job, PixelSample s, FramePixel sum) {
    if (int(s.sample) + 1 == job.spp) {
        const float scale = 1.0f / float(job.spp);
        sum.rgb = sum.rgb * scale;
        sum.alpha *= scale;
        sum.depth_expected *= scale;
        sum.normal = sum.normal * scale;
    }
    job.pixels[s.pixel] = sum;
}
__device__ inline void add_missed_ray(const RenderJob& job, PixelSample s) {
    if (s.sample == 0) return; // clear_tile() did it
    FramePixel sum = sum_before(job, s);
    sum.depth_max_weight = max_depth;
    store_sum(job, s, sum);
}

// --- rays

// A lane's ray. What follows from the direction is computed again where it is needed, since all of this takes up
// registers while the network is evaluated.
struct LaneRay {
    PixelSample owner{};
    Vec3 line; // the direction; if all rays have the job's, the origin
    float t = 0, t_end = 0;
    float dt = 0; // of the sample at t, or 0 if the ray is not at one
    BlendState blend;
    float t_expected = 0, t_max_weight = 0, largest = 0;
    Vec3 normal;

    // Both as MakeRenderRay gave them.
    __device__ Vec3 direction(const RenderJob& job) const {
        return job.make.camera.lens.parallel() ? job.parallel_direction : line;
    }
    __device__ Vec3 origin(const RenderJob& job) const {
        return job.make.camera.lens.parallel() ? line : job.make.pose.position + line * job.make.near_distance;
    }
    __device__ RayMarcher marcher(const RenderJob& job) const {
        return RayMarcher::starting(origin(job), direction(job), t, t_end);
    }
};

// One step of RayMarcher::next(): an end of the ray just ahead makes it return after that. False: the ray has ended.
__device__ inline bool march_step(const RenderJob& job, RayMarcher& march, float& dt) {
    const float end = march.t_end, bound = min_of(end, march.t * 1.000001f);
    march.t_end = bound;
    dt = march.next(job.occupancy, job.make.stepping, false);
    march.t_end = end;
    return dt > 0.0f || (march.t >= bound && march.t < end);
}

template <bool Normals>
__device__ void composite(const RenderJob& job, LaneRay& ray, const RawSample& raw, Vec3 normal) {
    const float sigma = density_from_raw(job.model.density_activation, raw.density);
    const float alpha = segment_alpha(sigma, ray.dt);
    Vec3 value = sample_color(job.model.rgb_activation, raw);
    if (job.add.shows.mode != RenderMode::Shade) {
        const float z_per_t = dot(ray.direction(job), job.make.pose.forward);
        value = geometry_value(job.add.shows, alpha, ray.marcher(job).position(ray.t),
                               (ray.t + job.make.near_distance) * z_per_t);
    }
    const float weight = blend(ray.blend, value, alpha);
    if (job.add.shows.mode == RenderMode::Cost) ray.blend.rgb += splat3(cost_of_sample);
    ray.t_expected += weight * ray.t;
    if constexpr (Normals) ray.normal += normal * weight;
    if (weight > ray.largest) {
        ray.largest = weight;
        ray.t_max_weight = ray.t;
    }
    ray.t += ray.dt;
    ray.dt = 0.0f;
    if (!(ray.blend.transmittance >= job.min_transmittance)) ray.t_end = 0.0f; // so is a NaN
}

template <bool Normals>
__device__ void add_ray(const RenderJob& job, LaneRay& ray) {
    RenderedRay result{ray.blend.rgb, 0.0f, ray.t_expected, ray.t_max_weight, {}};
    if constexpr (Normals) result.normal = ray.normal;
    result.finish(job.add.shows.mode, ray.blend.transmittance, job.min_transmittance);
    FramePixel sum = sum_before(job, ray.owner);
    const Vec3 direction = ray.direction(job);
    job.add(sum, result, ray.origin(job), direction, dot(direction, job.make.pose.forward));
    store_sum(job, ray.owner, sum);
}

// --- the warp's supply of rays

// In shared memory, of which the level-1 cache has what is left: kept small. A pixel that the warp has begun is in one
// of three places: waiting for the ray of its next sample, queued with a ray that is at its first sample, or with a
// lane. New pixels come 32 at a time while the queue is empty and fewer than 32 wait, so that at most 31 + 32 + 32 are
// on their way.
struct alignas(128) WarpMemory {
    static constexpr int max_queued = 32, max_waiting = 96;
    PixelSample waiting[max_waiting];
    PixelSample queued[max_queued];
    float line[3][max_queued], t[max_queued], t_end[max_queued];
};

class RaySupply {
  public:
    __device__ RaySupply(const RenderJob& job, WarpMemory& memory)
        : job_(job), memory_(memory), order_{job.make.camera.width, job.make.camera.height}, lane_(threadIdx.x & 31) {}

    // All of these by all lanes.

    // Gives lanes without a ray one, as long as there are any; no longer than refill_rounds if some lane has one.
    __device__ void refill(bool& active, LaneRay& ray) {
        for (int round = 0;; ++round) {
            take(active, ray);
            if (__all_sync(whole_warp, active) || !more()) return;
            if (round >= refill_rounds && __any_sync(whole_warp, active)) return;
            make_rays();
        }
    }
    // Queues the next sample of the pixel whose last one has just been added.
    __device__ void next_sample(bool ended, PixelSample s) {
        const bool next = ended && int(s.sample) + 1 < job_.spp;
        const uint32_t mask = __ballot_sync(whole_warp, next);
        if (next) memory_.waiting[n_waiting_ + rank(mask)] = {s.pixel, s.sample + 1};
        n_waiting_ += __popc(mask);
        __syncwarp(); // also orders the sums in the frame
    }

  private:
    // Lanes below this one in the mask.
    __device__ int rank(uint32_t mask) const { return __popc(mask & ((1u << lane_) - 1u)); }
    __device__ bool more() const { return n_waiting_ > 0 || !exhausted_; }

    __device__ void take(bool& active, LaneRay& ray) {
        if (n_queued_ == 0) return;
        const uint32_t idle = __ballot_sync(whole_warp, !active);
        const int n = min_of(__popc(idle), n_queued_);
        if (!active && rank(idle) < n) {
            const int k = n_queued_ - n + rank(idle);
            ray = {};
            ray.owner = memory_.queued[k];
            ray.line = {memory_.line[0][k], memory_.line[1][k], memory_.line[2][k]};
            ray.t = memory_.t[k];
            ray.t_end = memory_.t_end[k];
            ray.dt = job_.make.stepping.step_length(ray.t); // what next() gave
            active = true;
        }
        n_queued_ -= n; // make_rays() synchronises before it writes to the queue
    }

    __device__ void take_tile() {
        uint32_t ticket = 0;
        if (lane_ == 0) ticket = atomicAdd(job_.ticket, 1u);
        ticket = __shfl_sync(whole_warp, ticket, 0);
        exhausted_ = ticket >= order_.count();
        if (exhausted_) return;
        const TileOrder::Tile tile = order_.tile(ticket);
        clear_tile(order_, tile, job_.pixels, lane_);
        const int x = tile.x + lane_ % order_.tile_width, y = tile.y + lane_ / order_.tile_width;
        const bool inside = order_.contains(x, y);
        const uint32_t mask = __ballot_sync(whole_warp, inside);
        if (inside) memory_.waiting[n_waiting_ + rank(mask)] = {uint32_t(y) * uint32_t(order_.width) + uint32_t(x), 0};
        n_waiting_ += __popc(mask);
        __syncwarp();
    }

    // Fills the empty queue from up to 32 waiting pixels. The last ones that came: pixels of one tile, until it is
    // done.
    __device__ void make_rays() {
        while (n_waiting_ < 32 && !exhausted_) take_tile();
        const int n = min_of(n_waiting_, 32);
        n_waiting_ -= n;
        PixelSample s{};
        RayMarcher march{};
        float dt = 0.0f;
        if (lane_ < n) {
            s = memory_.waiting[n_waiting_ + lane_];
            const int x = int(s.pixel % uint32_t(order_.width)), y = int(s.pixel / uint32_t(order_.width));
            march = job_.make(x, y, int(s.sample));
            dt = march.next(job_.occupancy, job_.make.stepping, false);
            if (dt == 0.0f) add_missed_ray(job_, s);
        }
        __syncwarp(); // waiting pixels and, by take(), queued rays have been read
        const uint32_t met = __ballot_sync(whole_warp, dt > 0.0f);
        if (dt > 0.0f) {
            const int k = rank(met);
            memory_.queued[k] = s;
            const Vec3 line = job_.make.camera.lens.parallel() ? march.origin : march.direction;
            memory_.line[0][k] = line.x;
            memory_.line[1][k] = line.y;
            memory_.line[2][k] = line.z;
            memory_.t[k] = march.t;
            memory_.t_end[k] = march.t_end;
        }
        n_queued_ = __popc(met);
        next_sample(lane_ < n && dt == 0.0f, s);
    }

    const RenderJob& job_;
    WarpMemory& memory_;
    TileOrder order_;
    int lane_;
    int n_waiting_ = 0, n_queued_ = 0; // the same in all lanes, as is the next
    bool exhausted_ = false;           // no tickets left
};

// Moves lanes with a ray to its next sample, until enough are there; by all lanes. True: the ray has ended.
__device__ inline bool march_to_samples(const RenderJob& job, bool active, LaneRay& ray) {
    bool marching = active && ray.dt == 0.0f, ended = false;
    if (!__any_sync(whole_warp, marching)) return false;
    RayMarcher march = ray.marcher(job);
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

template <typename Net>
constexpr int64_t render_memory = Net::threads / 32 * int64_t(sizeof(WarpMemory));

extern __shared__ __align__(128) char render_shared[]; // WarpMemory of each warp, then the policy's

template <typename Net, bool Normals>
__global__ void __launch_bounds__(Net::threads, render_blocks<Net>)
    render_kernel(const __grid_constant__ RenderJob job) {
    static_assert(Net::threads % 32 == 0);
    Net net(job.model, render_shared + render_memory<Net>, job.scratch);
    RaySupply supply(job, reinterpret_cast<WarpMemory*>(render_shared)[threadIdx.x / 32]);
    LaneRay ray;
    bool active = false; // the lane has a ray
    for (;;) {
        const bool ended = march_to_samples(job, active, ray);
        if (__any_sync(whole_warp, ended)) {
            if (ended) {
                add_ray<Normals>(job, ray);
                active = false;
            }
            supply.next_sample(ended, ray.owner);
        }
        supply.refill(active, ray);
        if (!__any_sync(whole_warp, active)) return;
        const bool sampled = active && ray.dt > 0.0f;
        if (!__any_sync(whole_warp, sampled)) continue;

        // Lanes without a sample ask for one that is always in the cache.
        Vec3 x = splat3(0.5f);
        if (sampled) x = job.model.unit(ray.marcher(job).position(ray.t));
        const RawSample raw = net.evaluate(x, ray.direction(job));
        Vec3 normal;
        if constexpr (Normals) {
            const Vec3 scale = job.model.inverse_size;
            float finest = 1.0f / (normal_cell_steps * (sampled ? ray.dt : 1.0f) * scale.x);
            if (job.add.shows.mode == RenderMode::Normals) finest = FLT_MAX; // of the whole encoding
            normal = normalize(-(net.density_gradient(x, finest) * scale));
        }
        if (sampled) composite<Normals>(job, ray, raw, normal);
    }
}

// --- its launch

struct RenderGrid {
    const void* kernel;
    int64_t shared, scratch; // bytes of a block, of a thread
    int64_t blocks;          // that the device runs at once
};
template <typename Net>
RenderGrid render_grid(const Context& context, const ModelView& model, bool normals) {
    RenderGrid g;
    g.kernel = normals ? reinterpret_cast<const void*>(&render_kernel<Net, true>)
                       : reinterpret_cast<const void*>(&render_kernel<Net, false>);
    g.shared = render_memory<Net> + Net::shared_bytes(model);
    g.scratch = Net::scratch_bytes(model);
    check(cudaFuncSetAttribute(g.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, context.device_shared_bytes()),
          "rendering with ", g.shared, " bytes of shared memory a block");
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, g.kernel, Net::threads, size_t(g.shared)),
          "occupancy of rendering");
    if (per_multiprocessor == 0) fail("CUDA: rendering: a block of ", Net::threads, " threads does not fit the device");
    g.blocks = int64_t(per_multiprocessor) * context.multiprocessors();
    return g;
}

// A RenderScratch.
template <typename Net>
int64_t render_scratch(const Context& context, const ModelView& model, bool normals) {
    const DeviceGuard guard(context.device());
    const RenderGrid g = render_grid<Net>(context, model, normals);
    return g.blocks * Net::threads * g.scratch;
}

// A RenderLauncher.
template <typename Net>
void launch_render(Context& context, const RenderJob& job, bool normals) {
    const TileOrder order{job.make.camera.width, job.make.camera.height};
    if (order.width <= 0 || order.height <= 0 || job.spp <= 0) return;
    const DeviceGuard guard(context.device());
    const RenderGrid g = render_grid<Net>(context, job.model, normals);
    const int64_t pixels = int64_t(order.width) * order.height;
    int64_t blocks = std::min<int64_t>(g.blocks, (pixels + Net::threads - 1) / Net::threads);
    if (g.scratch > 0) {
        const int64_t of_block = g.scratch * Net::threads;
        NGP_CHECK_LE(of_block, job.scratch_size);
        blocks = std::min<int64_t>(blocks, job.scratch_size / of_block);
    }
    RenderJob launched = job;
    launched.parallel_direction = normalize(job.make.pose.forward);
    static_assert(sizeof(RenderJob) <= 4096, "a kernel's parameters have 4 KB");
    check(cudaMemsetAsync(job.ticket, 0, sizeof(uint32_t), context.stream()), "memset");
    void* parameters[] = {&launched};
    check(cudaLaunchKernel(g.kernel, dim3(unsigned(blocks)), dim3(Net::threads), parameters, size_t(g.shared),
                           context.stream()),
          "rendering ", order.width, "x", order.height, " pixels");
}

} // namespace ngp::cuda
