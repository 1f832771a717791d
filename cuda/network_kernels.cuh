// Kernels over a network policy (model.cuh), and their launchers. Included by one source file a policy.
#pragma once

#include "network.cuh"
#include "render_kernel.cuh"

#include <algorithm>
#include <type_traits>

namespace ngp::cuda {

// Rounds of a grid-wide loop in which each warp takes 32 consecutive items: body(first item of the warp).
template <typename Body>
__device__ __forceinline__ void for_warps_of(int64_t n, const Body& body) {
    const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    const int64_t warps = int64_t(gridDim.x) * blockDim.x / 32;
    for (int64_t first = warp * 32; first < n; first += warps * 32) body(first);
}

template <typename Net>
__global__ void __launch_bounds__(Net::threads) points_kernel(const __grid_constant__ PointsJob job) {
    extern __shared__ __align__(128) char shared[];
    Net net(job.model, shared, job.scratch.data);
    const int lane = threadIdx.x & 31;
    for_warps_of(job.n, [&](int64_t first) {
        const int64_t i = first + lane;
        const bool valid = i < job.n;
        const Vec3 x = job.model.unit(job.positions[valid ? i : job.n - 1]);
        RawSample raw{};
        if (job.directions)
            raw = evaluate_with(net, x, job.directions[valid ? i : job.n - 1], valid ? i : job.n - 1);
        else
            raw.density = net.density(x);
        if (valid && job.out) job.out[i] = raw;
        if constexpr (requires { net.store_encoding(job.encodings); })
            if (valid && job.encodings) net.store_encoding(job.encodings + i * fused_encoded);
        if (job.d_position) {
            const Vec3 g = net.density_gradient(x, job.finest_scale) * job.model.inverse_size;
            if (valid) job.d_position[i] = g;
        }
    });
}

template <typename Net>
__global__ void __launch_bounds__(Net::threads) occupancy_kernel(const __grid_constant__ OccupancyJob job) {
    extern __shared__ __align__(128) char shared[];
    Net net(job.model, shared, job.scratch.data);
    const int lane = threadIdx.x & 31;
    const int64_t n = job.uniform.n + job.occupied.n;
    for_warps_of(n, [&](int64_t first) {
        const int64_t i = first + lane;
        // The body writes its draw to position[i] and cell[i].
        Vec3 p{0.5f, 0.5f, 0.5f};
        uint32_t cell = 0;
        if (i < n) {
            const bool uniform = i < job.uniform.n;
            const int64_t k = uniform ? i : i - job.uniform.n;
            DrawOccupancySample draw = uniform ? job.uniform : job.occupied;
            draw.position = &p - k;
            draw.cell = &cell - k;
            draw(k);
        }
        const float raw = net.density(job.model.unit(p));
        if (i < n) store_max(job.fresh + cell, visit_value(density_from_raw(job.model.density_activation, raw)));
    });
}

// The grid that fills the device once, as far as scratch memory goes.
template <typename Net>
unsigned grid_of(const Context& context, const void* kernel, const ModelView& model, int64_t scratch_size) {
    const int64_t shared = Net::shared_bytes(model), scratch = Net::scratch_bytes(model) * Net::threads;
    if (shared > 48 << 10)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, context.device_shared_bytes()),
              "shared memory of ", shared, " bytes");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, Net::threads, size_t(shared)), "occupancy");
    int64_t grid = int64_t(std::max(1, blocks)) * context.multiprocessors();
    if (scratch > 0 && scratch_size > 0) grid = std::min(grid, scratch_size / scratch);
    return unsigned(std::max<int64_t>(1, grid));
}

template <typename Net, typename Job>
void launch_network_kernel(Context& context, void (*kernel)(Job), const Job& job) {
    const unsigned grid = grid_of<Net>(context, reinterpret_cast<const void*>(kernel), job.model, job.scratch.size);
    kernel<<<grid, Net::threads, size_t(Net::shared_bytes(job.model)), context.stream()>>>(job);
    check(cudaGetLastError(), "launch of a network kernel");
}
// A policy that can cut levels itself has one kernel, which looks whether it must.
template <typename Net>
constexpr bool cuts_levels = std::is_same_v<typename Net::CutLevels, Net>;

template <typename Net>
void launch_trace_rays(Context& context, const TraceRaysJob& job) {
    using Cut = typename Net::CutLevels;
    if (cuts_levels<Net> || job.random_levels)
        launch_network_kernel<Net>(context, trace_rays_kernel<Cut, true>, job);
    else
        launch_network_kernel<Net>(context, trace_rays_kernel<Net, cuts_levels<Net>>, job);
}
template <typename Net>
void launch_points(Context& context, const PointsJob& job) {
    if (job.n > 0) launch_network_kernel<Net>(context, points_kernel<Net>, job);
}
template <typename Net>
void launch_occupancy(Context& context, const OccupancyJob& job) {
    launch_network_kernel<Net>(context, occupancy_kernel<Net>, job);
}
template <typename Net>
int64_t network_scratch_bytes(const Context& context, const ModelView& model) {
    const int64_t a_thread = Net::scratch_bytes(model);
    if (a_thread == 0) return 0;
    // The most that any of the kernels can use.
    const auto trace_rays = trace_rays_kernel<Net, cuts_levels<Net>>; // others need no scratch memory
    const unsigned grid =
        std::max({grid_of<Net>(context, reinterpret_cast<const void*>(trace_rays), model, 0),
                  grid_of<Net>(context, reinterpret_cast<const void*>(points_kernel<Net>), model, 0),
                  grid_of<Net>(context, reinterpret_cast<const void*>(occupancy_kernel<Net>), model, 0)});
    return int64_t(grid) * Net::threads * a_thread;
}

// Calls body.template operator()<Tile>() for the largest tile of the backward pass for which the device has shared
// memory; false if there is none.
template <int Width, int RgbHidden, typename Body>
bool with_backward_tile(const Context& context, const Body& body) {
    auto fits = [&]<int Tile>() {
        return FusedBackward<Width, RgbHidden, Tile>::shared_bytes <= context.max_shared_bytes();
    };
    if (fits.template operator()<128>()) {
        body.template operator()<128>();
        return true;
    }
    if constexpr (Width <= 64) { // wider: the sums of the weights' gradients need all eight warps
        if (fits.template operator()<64>()) {
            body.template operator()<64>();
            return true;
        }
        if (fits.template operator()<32>()) {
            body.template operator()<32>();
            return true;
        }
    }
    return false;
}
template <int Width, int RgbHidden>
int fused_backward_blocks(const Context& context) {
    int blocks = 0;
    const bool fits = with_backward_tile<Width, RgbHidden>(context, [&]<int Tile>() {
        using B = FusedBackward<Width, RgbHidden, Tile>;
        const auto kernel = fused_backward_kernel<Width, RgbHidden, Tile, false>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, context.device_shared_bytes()),
              "shared memory of ", B::shared_bytes, " bytes for the backward pass of ", Width, " neurons");
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, B::threads, size_t(B::shared_bytes)),
              "occupancy of the backward pass");
    });
    return fits ? std::max(1, blocks) * context.multiprocessors() : 0;
}
template <int Width, int RgbHidden>
void launch_fused_backward(Context& context, const FusedBackwardJob& job) {
    const int blocks = fused_backward_blocks<Width, RgbHidden>(context);
    with_backward_tile<Width, RgbHidden>(context, [&]<int Tile>() {
        using B = FusedBackward<Width, RgbHidden, Tile>;
        const auto kernel = job.d_harmonics ? fused_backward_kernel<Width, RgbHidden, Tile, true>
                                            : fused_backward_kernel<Width, RgbHidden, Tile, false>;
        if (job.d_harmonics) // fused_backward_blocks() says so of the other
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       context.device_shared_bytes()),
                  "shared memory of ", B::shared_bytes, " bytes");
        kernel<<<unsigned(blocks), B::threads, size_t(B::shared_bytes), context.stream()>>>(job);
    });
    check(cudaGetLastError(), "launch of the backward pass");
}

template <typename Net>
int64_t most_shared_bytes(const ModelView& model) {
    return Net::shared_bytes(model); // of every kernel
}

template <typename Net>
NetworkFunctions functions_of() {
    return {launch_trace_rays<Net>, launch_points<Net>,         launch_occupancy<Net>, launch_render<Net>,
            render_scratch<Net>,    network_scratch_bytes<Net>, most_shared_bytes<Net>};
}
template <int Width, int RgbHidden>
NetworkFunctions fused_functions_of() {
    NetworkFunctions f = functions_of<FusedNetwork<Width>>();
    f.backward = launch_fused_backward<Width, RgbHidden>;
    f.backward_blocks = fused_backward_blocks<Width, RgbHidden>;
    return f;
}

} // namespace ngp::cuda
