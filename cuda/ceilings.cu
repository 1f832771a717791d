// What a device reaches at most in the four things that bound the stages of a training step: copies, tensor-core
// products, random reads of the table and random additions to its gradient.
#include "for_each.cuh"
#include "tensor_core.cuh"

#include <algorithm>
#include <ngp/core/config.h>
#include <ngp/core/device.h>

namespace ngp::cuda {

namespace {

constexpr int threads = 256;          // a block
constexpr int entries = 3 << 20;      // of a table of 24 MiB, as large as that of the base configuration
constexpr int in_flight = 8;          // accesses of a thread, as many as a cell has corners
constexpr int rounds = 32;            // of them
constexpr int products_in_flight = 8; // of a warp, on accumulators of their own

__device__ __forceinline__ uint32_t mixed(uint32_t x) { // "lowbias32"
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// A random entry of the table: the upper half of a product instead of a division.
__device__ __forceinline__ uint32_t random_entry(uint32_t counter) {
    return uint32_t((uint64_t(mixed(counter)) * entries) >> 32);
}

// Body: 16 bytes.
struct Copy {
    const uint4* from;
    uint4* to;
    NGP_HD void operator()(int64_t i) const { to[i] = from[i]; }
};

// Results are written if they are what they never are, which the compiler can't know: they must be formed.
__global__ void __launch_bounds__(threads) multiply_kernel(int n, float* out) {
    // Small, so that no sum overflows; not constant, so that no product can be left out.
    Fragment a;
    const uint32_t lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < 4; ++r) a.r[r] = pack_halves(1e-3f * float(lane), 1e-3f * float(r));
    float sum[products_in_flight][4]; // all different, so that no two are one
#pragma unroll
    for (int k = 0; k < products_in_flight; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[k][i] = float(4 * k + i);
    for (int i = 0; i < n; ++i)
#pragma unroll
        for (int k = 0; k < products_in_flight; ++k) multiply_add(sum[k], a, a.r[k & 3], a.r[(k + 1) & 3]);
    float total = 0;
#pragma unroll
    for (int k = 0; k < products_in_flight; ++k) total += sum[k][0] + sum[k][1] + sum[k][2] + sum[k][3];
    if (total < 0.0f) out[threadIdx.x] = total;
}

__global__ void __launch_bounds__(threads) gather_kernel(const uint2* table, uint32_t* out) {
    const uint32_t first = (blockIdx.x * threads + threadIdx.x) * uint32_t(rounds * in_flight);
    uint32_t sum = 0;
    for (int i = 0; i < rounds; ++i) {
        uint2 v[in_flight];
#pragma unroll
        for (int k = 0; k < in_flight; ++k) v[k] = __ldg(table + random_entry(first + uint32_t(i * in_flight + k)));
#pragma unroll
        for (int k = 0; k < in_flight; ++k) sum += v[k].x ^ v[k].y;
    }
    if (sum != 0) out[threadIdx.x] = sum; // the table is zero
}

// As in the scatter, two neighbouring lanes add the two halves of an entry.
__global__ void __launch_bounds__(threads) add_kernel(__half2* table) {
    const uint32_t thread = blockIdx.x * threads + threadIdx.x;
    const uint32_t first = thread / 2 * uint32_t(rounds * in_flight);
    const __half2 one = __float2half2_rn(1.0f);
    for (int i = 0; i < rounds; ++i)
#pragma unroll
        for (int k = 0; k < in_flight; ++k)
            atomicAdd(table + size_t(random_entry(first + uint32_t(i * in_flight + k))) * 2 + (thread & 1), one);
}

class Stopwatch {
  public:
    explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
        check(cudaEventCreate(&begin_), "event");
        const cudaError_t status = cudaEventCreate(&end_);
        if (status != cudaSuccess) cudaEventDestroy(begin_);
        check(status, "event");
    }
    ~Stopwatch() {
        cudaEventDestroy(begin_);
        cudaEventDestroy(end_);
    }
    Stopwatch(const Stopwatch&) = delete;

    // Seconds that one of `n` launches takes.
    template <typename Launch>
    double time(const Launch& launch, int n) const {
        check(cudaEventRecord(begin_, stream_), "event");
        for (int i = 0; i < n; ++i) launch();
        check(cudaGetLastError(), "launch of a ceiling's kernel");
        check(cudaEventRecord(end_, stream_), "event");
        check(cudaEventSynchronize(end_), "measuring a ceiling");
        float ms = 0;
        check(cudaEventElapsedTime(&ms, begin_, end_), "elapsed time");
        return 1e-3 * double(ms) / n;
    }
    // The same: the best of 5 times of 3 ms or longer, after a warm-up.
    template <typename Launch>
    double best(const Launch& launch) const {
        time(launch, 1);
        const int n = int(std::clamp(3e-3 / std::max(time(launch, 2), 1e-7), 1.0, 1000.0)) + 1;
        time(launch, n); // clocks rise
        double seconds = time(launch, n);
        for (int i = 1; i < 5; ++i) seconds = std::min(seconds, time(launch, n));
        return seconds;
    }

  private:
    cudaStream_t stream_;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

} // namespace

} // namespace ngp::cuda

namespace ngp {

CudaCeilings measure_cuda_ceilings(int device) {
    using namespace cuda;
    const DeviceGuard guard(device);
    Context context(device);
    const Stopwatch stopwatch(context.stream());
    const int blocks = context.multiprocessors() * (2048 / threads); // as many as fit the largest multiprocessors
    CudaCeilings ceilings;
    {
        constexpr int64_t n = int64_t(512 << 20) / int64_t(sizeof(uint4));
        DeviceArray<uint4> from(context, n, "measuring copies"), to(context, n, "measuring copies");
        from.zero();
        const double seconds = stopwatch.best([&] { for_each(context.stream(), n, Copy{from.data(), to.data()}); });
        ceilings.copy_bytes_per_second = 2.0 * double(from.bytes()) / seconds;
    }
    DeviceArray<uint2> table(context, entries, "measuring accesses");
    DeviceArray<uint32_t> out(context, threads, "measuring accesses");
    table.zero();
    {
        constexpr int n = 1024;
        const double seconds = stopwatch.best([&] {
            multiply_kernel<<<blocks, threads, 0, context.stream()>>>(n, reinterpret_cast<float*>(out.data()));
        });
        ceilings.tensor_flops = 2.0 * 16 * 8 * 16 * products_in_flight * n * double(blocks) * (threads / 32) / seconds;
    }
    const double accesses = double(rounds) * in_flight * threads * double(blocks);
    ceilings.gather_per_second = accesses / stopwatch.best([&] {
        gather_kernel<<<blocks, threads, 0, context.stream()>>>(table.data(), out.data());
    });
    ceilings.add_per_second = accesses / stopwatch.best([&] {
        add_kernel<<<blocks, threads, 0, context.stream()>>>(reinterpret_cast<__half2*>(table.data()));
    });
    return ceilings;
}

} // namespace ngp
