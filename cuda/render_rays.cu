// Rendering: from pixels to rays at their first sample (render.cuh).
#include "render.cuh"

#include <cstddef>

namespace ngp::cuda {

namespace {

constexpr uint32_t whole_warp = 0xffffffffu;
constexpr int threads = 256; // a block

// Sets the pixels of a tile to those of rays that met nothing; by all lanes. Word by word over the rows, because a lane
// that writes its 36 bytes alone takes a memory transaction for each of their words.
__device__ void clear_tile(const TileOrder& order, TileOrder::Tile tile, FramePixel* pixels, int lane) {
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

__device__ void add_missed_ray(const RenderJob& job, uint32_t pixel) {
    if (job.sample == 0) return; // clear_tile() did it
    FramePixel sum = sum_before(job, pixel);
    sum.depth_max_weight = max_depth;
    store_sum(job, pixel, sum);
}

// A warp a tile: its rays are neighbours, which take about as many steps.
__global__ void __launch_bounds__(threads)
    start_rays_kernel(const __grid_constant__ RenderJob job, int64_t first_tile, int64_t n_tiles) {
    const TileOrder order{job.make.camera.width, job.make.camera.height};
    const int lane = int(threadIdx.x) & 31;
    const int64_t number = (int64_t(blockIdx.x) * threads + threadIdx.x) / 32;
    if (number >= n_tiles) return;
    const TileOrder::Tile tile = order.tile(first_tile + number);
    if (job.sample == 0) clear_tile(order, tile, job.pixels, lane);
    const int x = tile.x + lane % order.tile_width, y = tile.y + lane / order.tile_width;
    const uint32_t pixel = uint32_t(y) * uint32_t(order.width) + uint32_t(x);
    RayMarcher march{};
    float dt = 0.0f;
    if (order.contains(x, y)) {
        march = job.make(x, y, job.sample);
        dt = march.next(job.occupancy, job.make.stepping, false);
        if (dt == 0.0f) add_missed_ray(job, pixel);
    }
    const bool met = dt > 0.0f;
    const uint32_t mask = __ballot_sync(whole_warp, met);
    uint32_t at = 0;
    if (lane == 0 && mask) at = atomicAdd(&job.counters->started, uint32_t(__popc(mask)));
    at = __shfl_sync(whole_warp, at, 0) + uint32_t(__popc(mask & ((1u << lane) - 1u)));
    if (!met) return;
    const bool same_direction = !job.starts && job.make.camera.lens.parallel();
    job.rays[at] = {pixel, march.t, march.t_end, dt, same_direction ? march.origin : march.direction};
    if (job.starts) job.starts[at] = {march.origin, dot(march.direction, job.make.pose_of(x, y, job.sample).forward)};
}

} // namespace

void start_rays(Context& context, const RenderJob& job, int64_t first_tile, int64_t n_tiles) {
    check(cudaMemsetAsync(job.counters, 0, sizeof(RenderCounters), context.stream()), "memset");
    const int64_t blocks = (n_tiles * 32 + threads - 1) / threads;
    start_rays_kernel<<<unsigned(blocks), threads, 0, context.stream()>>>(job, first_tile, n_tiles);
    check(cudaGetLastError(), "launch of the rays of ", n_tiles, " tiles");
}

} // namespace ngp::cuda
