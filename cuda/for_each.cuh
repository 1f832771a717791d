// Launches stage bodies on the device: for_each(stream, n, body) calls body(i) once for each i in [0, n), as the CPU's
// parallel_for_range does with the same bodies. A body is a struct of views and options with
//
//   NGP_HD void operator()(int64_t i) const;
//
// that is copied to the device as the kernel's parameter, so every pointer in it must be readable there. The launch is
// asynchronous, in the order of `stream`, and can be captured into a graph.
#pragma once

#include "memory.cuh"

#include <type_traits>

namespace ngp::cuda {

constexpr int for_each_threads = 128; // a block
// Enough to fill any device several times over, so that rays of uneven length even out; beyond it, threads take several
// i.
constexpr int64_t for_each_max_blocks = 1 << 16;

// __grid_constant__: all threads read the one copy in constant memory; without it, a body whose arrays are indexed by a
// variable would be copied to every thread's stack.
template <typename Body>
__global__ void __launch_bounds__(for_each_threads) for_each_kernel(int64_t n, const __grid_constant__ Body body) {
    const int64_t stride = int64_t(gridDim.x) * for_each_threads;
    for (int64_t i = int64_t(blockIdx.x) * for_each_threads + threadIdx.x; i < n; i += stride) body(i);
}

template <typename Body>
void for_each(cudaStream_t stream, int64_t n, const Body& body) {
    static_assert(std::is_trivially_copyable_v<Body>,
                  "a body travels to the device byte by byte: views, no containers");
    static_assert(sizeof(Body) + sizeof(n) <= 4096, "a kernel's parameters have 4 KB; put tables behind a pointer");
    if (n <= 0) return; // an empty grid is an error to CUDA
    const int64_t blocks = (n - 1) / for_each_threads + 1;
    const auto grid = unsigned(blocks < for_each_max_blocks ? blocks : for_each_max_blocks);
    for_each_kernel<<<grid, for_each_threads, 0, stream>>>(n, body);
    check(cudaGetLastError(), "launch of a body over ", n, " elements");
}

} // namespace ngp::cuda
