#include "for_each.cuh"
#include "occupancy.cuh"

namespace ngp::cuda {

namespace {

constexpr int sum_threads = 256, sum_blocks = 256;
constexpr int cells_per_block = int(occupancy_cells) / sum_blocks;

// Sums of cascade 0 over fixed ranges: the mean must not depend on timing.
__global__ void __launch_bounds__(sum_threads) partial_sums_kernel(const float* values, float* sums) {
    __shared__ float of_warp[sum_threads / 32];
    const float* from = values + int64_t(blockIdx.x) * cells_per_block;
    float sum = 0;
    for (int i = threadIdx.x; i < cells_per_block; i += sum_threads) sum += fmaxf(from[i], 0.0f);
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    sum = 0;
    for (float s : of_warp) sum += s;
    sums[blockIdx.x] = sum;
}
__global__ void __launch_bounds__(32) mean_kernel(const float* sums, StepState* state) {
    float sum = 0;
    for (int i = threadIdx.x; i < sum_blocks; i += 32) sum += sums[i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) state->occupancy_mean = sum / float(occupancy_cells);
}

// Body: OccupancyBits with the threshold that the mean gives.
struct BitsByMean {
    OccupancyBits bits;
    const StepState* state;

    NGP_HD void operator()(int64_t i) const {
        OccupancyBits b = bits;
        b.threshold = min_of(occupancy_threshold, state->occupancy_mean);
        b(i);
    }
};
// OccupancyView::clearance, as find_clearances() of stages/occupancy.cpp does it; a block a cascade, a thread a row.
__global__ void __launch_bounds__(words_along_axis* words_along_axis)
    clearance_kernel(const uint64_t* words, uint8_t* clearance) {
    constexpr int n = words_along_axis;
    static_assert(n == 32, "a row of words is the bits of an integer");
    __shared__ uint32_t rows[n + 2][n + 2], planes[n + 2][n + 2]; // with a border of what is outside
    words += int64_t(blockIdx.x) * occupancy_words;
    clearance += int64_t(blockIdx.x) * occupancy_words;
    const int y = int(threadIdx.x) % n, z = int(threadIdx.x) / n;
    for (int i = threadIdx.x; i < (n + 2) * (n + 2); i += n * n)
        rows[i / (n + 2)][i % (n + 2)] = planes[i / (n + 2)][i % (n + 2)] = ~0u;
    uint32_t reached = 0;
    for (int x = 0; x < n; ++x) {
        const uint32_t m = morton3(uint32_t(x), uint32_t(y), uint32_t(z));
        const bool occupied = words[m] != 0;
        reached |= uint32_t(occupied) << x;
        clearance[m] = occupied ? 0 : max_clearance;
    }
    for (int v = 1; v < max_clearance; ++v) {
        __syncthreads();
        rows[z + 1][y + 1] = spread_along_row(reached);
        __syncthreads();
        planes[z + 1][y + 1] = rows[z + 1][y] | rows[z + 1][y + 1] | rows[z + 1][y + 2];
        __syncthreads();
        const uint32_t now = planes[z][y + 1] | planes[z + 1][y + 1] | planes[z + 2][y + 1];
        for (uint32_t fresh = now & ~reached; fresh; fresh &= fresh - 1)
            clearance[morton3(uint32_t(__ffs(int(fresh)) - 1), uint32_t(y), uint32_t(z))] = uint8_t(v);
        reached = now;
    }
}

} // namespace

DeviceOccupancy::DeviceOccupancy(Context& context, int n_cascades) : context_(context), n_cascades_(n_cascades) {
    const int64_t n = int64_t(occupancy_cells) * n_cascades;
    values_ = {context, n, "the occupancy grid"};
    fresh_ = {context, n, "the occupancy grid"};
    words_ = {context, n / 64, "the occupancy grid"};
    clearance_ = {context, n / 64, "the occupancy grid"};
    partial_sums_ = {context, sum_blocks, "the occupancy grid"};
    reset();
}

void DeviceOccupancy::reset() {
    values_.zero();
    fresh_.zero();
    words_.zero();
    clearance_.zero(); // nothing is skipped: right for any bits
}

void DeviceOccupancy::set_values(const std::vector<float>& values, StepState* state) {
    NGP_CHECK_EQ(int64_t(values.size()), values_.size());
    values_.upload(values);
    rebuild_bits(state);
}

void DeviceOccupancy::mark_visible(const SceneView& scene, int n_images, bool initial) {
    constexpr int64_t points = MarkVisiblePoint::points;
    DeviceArray<uint8_t> seen(context_, points * points * points, "the visibility test");
    for (int cascade = 0; cascade < n_cascades_; ++cascade) {
        for_each(context_.stream(), seen.size(), MarkVisiblePoint{scene, n_images, cascade, seen.data()});
        for_each(context_.stream(), occupancy_cells,
                 MarkVisibleCells{seen.data(), values_.data() + int64_t(cascade) * occupancy_cells, initial});
    }
    context_.wait(); // before `seen` goes
}

void DeviceOccupancy::apply(float decay, bool sampled_only, StepState* state) {
    for_each(context_.stream(), values_.size(), DecayOccupancy{values_.data(), fresh_.data(), decay, sampled_only});
    rebuild_bits(state);
}

void DeviceOccupancy::rebuild_bits(StepState* state) {
    const cudaStream_t stream = context_.stream();
    partial_sums_kernel<<<sum_blocks, sum_threads, 0, stream>>>(values_.data(), partial_sums_.data());
    mean_kernel<<<1, 32, 0, stream>>>(partial_sums_.data(), state);
    check(cudaGetLastError(), "launch of the occupancy's mean");
    for_each(stream, words_.size(), BitsByMean{{values_.data(), 0.0f, words_.data()}, state});
    const int64_t words_per_cascade = occupancy_cells / 64;
    for (int c = 1; c < n_cascades_; ++c) {
        uint64_t* coarse = words_.data() + c * words_per_cascade;
        for_each(stream, words_per_cascade / 8, CoarsenOccupancy{coarse - words_per_cascade, coarse});
    }
    clearance_kernel<<<n_cascades_, words_along_axis * words_along_axis, 0, stream>>>(words_.data(), clearance_.data());
    check(cudaGetLastError(), "launch of the occupancy's clearances");
}

} // namespace ngp::cuda
