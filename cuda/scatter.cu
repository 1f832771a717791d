#include "grid_level.cuh"
#include "scatter.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

constexpr int warps = 8; // of a block

__device__ __forceinline__ void add(float* at, float v) { atomicAdd(at, v); }
__device__ __forceinline__ void add(half* at, float v) { atomicAdd(at, __float2half_rn(v)); }
__device__ __forceinline__ void add(FixedPoint* at, float v) {
    if (!(fabsf(v) <= FLT_MAX)) return; // it would become a finite number
    constexpr float largest = 1 << 24;  // so that sums over a batch don't wrap
    const FixedPoint units = __float2ll_rn(clamp_to(v, -largest, largest) * (1.0f / fixed_point_unit));
    atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(units));
}
// Two neighbouring floats; `at` is 8-byte aligned.
__device__ __forceinline__ void add2(float* at, float a, float b) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(a), "f"(b) : "memory");
#else
    atomicAdd(at, a);
    atomicAdd(at + 1, b);
#endif
}
__device__ __forceinline__ void add2(half* at, float a, float b) {
    atomicAdd(reinterpret_cast<__half2*>(at), __floats2half2_rn(a, b));
}
__device__ __forceinline__ void add2(FixedPoint* at, float a, float b) {
    add(at, a);
    add(at + 1, b);
}

// A warp takes 32 rows, which are mostly consecutive samples of a ray: in coarse levels many share a cell. First every
// lane finds the cell of its row and stages corner entries, weights and gradients. Then lanes become (corner, features)
// pairs in `groups` groups, and each group walks its share of the rows, adding up for as long as the cell stays the
// same, so that a run of rows costs one atomic a corner rather than one a row.
template <int F>
struct Walk {
    static constexpr int features = F == 1 ? 1 : 2;               // of a lane
    static constexpr int lanes = 8 * F / features;                // of a group
    static constexpr int groups = 32 / lanes, rows = 32 / groups; // rows of a group
    // Groups read the same row of their shares at once; the gap puts them in different banks.
    static constexpr int gap = 8;
    static constexpr int corner_stride = rows * 8 + gap, gradient_stride = rows * F + F;

    struct Staging {
        alignas(16) float weight[groups * corner_stride];
        alignas(16) uint32_t entry[groups * corner_stride];
        alignas(16) float gradient[groups * gradient_stride];
    };
    __device__ static int corners_of(int row) { return row / rows * corner_stride + row % rows * 8; }
    __device__ static int gradients_of(int row) { return row / rows * gradient_stride + row % rows * F; }
};

template <int F>
__device__ __forceinline__ void load_gradient(const ScatterJob& job, int64_t row, int level, float (&g)[F]) {
    const int64_t at = row * job.d_stride + job.d_begin + level * F;
    if (job.d_encodings_f32) {
#pragma unroll
        for (int f = 0; f < F; ++f) g[f] = job.d_encodings_f32[at + f];
        return;
    }
    const half* d = job.d_encodings + at;
    if constexpr (F == 4) { // rows and levels of the fused path are aligned
        const uint2 u = *reinterpret_cast<const uint2*>(d);
        const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&u.x));
        const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&u.y));
        g[0] = a.x, g[1] = a.y, g[2] = b.x, g[3] = b.y;
    } else {
#pragma unroll
        for (int f = 0; f < F; ++f) g[f] = __half2float(d[f]);
    }
}

// Tells cells of a level apart.
__device__ __forceinline__ uint64_t cell_key(const GridLevel& level, Vec3 x) {
    uint64_t key = 0;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
        float fraction;
        key = key << 21 | grid_cell(level.scale, x[d], fraction);
    }
    return key;
}

// Position of a row in the unit cube.
__device__ __forceinline__ Vec3 unit_position(const ScatterJob& job, int64_t row) {
    const int64_t at = job.contributing ? job.contributing[row] : row;
    Vec3 p;
    if (job.samples) {
        const Sample sample = job.samples[at];
        const RayMarcher& march = job.rays[sample.ray].march;
        p = march.position(sample.t);
    } else {
        p = job.positions[at];
    }
    ModelView box;
    box.box_min = job.box_min;
    box.inverse_size = job.inverse_size;
    return box.unit(p);
}

// Adds F gradients to an entry's.
template <int F, typename Accumulator>
__device__ __forceinline__ void add_entry(Accumulator* to, const float (&g)[F]) {
    if constexpr (F == 1) {
        if (g[0] != 0.0f) add(to, g[0]);
    } else {
#pragma unroll
        for (int f = 0; f < F; f += 2)
            if (g[f] != 0.0f || g[f + 1] != 0.0f) add2(to + f, g[f], g[f + 1]);
    }
}

// The walk of one level: runs of this lane's corner and features to `table`, the level's gradient.
template <int F, typename Accumulator>
__device__ __forceinline__ void walk(const typename Walk<F>::Staging& s, uint32_t ends, int group, int corner,
                                     int feature, Accumulator* table) {
    using W = Walk<F>;
    const float* weight = s.weight + group * W::corner_stride + corner;
    const uint32_t* entry = s.entry + group * W::corner_stride + corner;
    const float* d = s.gradient + group * W::gradient_stride + feature;
    float a = 0, b = 0;
#pragma unroll
    for (int r = 0; r < W::rows; ++r) {
        const float w = weight[r * 8];
        a = fmaf(w, d[r * F], a);
        if constexpr (W::features == 2) b = fmaf(w, d[r * F + 1], b);
        if ((ends >> r) & 1u) {
            Accumulator* const to = table + size_t(entry[r * 8]) * F + feature;
            if constexpr (W::features == 2) {
                if (a != 0.0f || b != 0.0f) add2(to, a, b);
            } else {
                if (a != 0.0f) add(to, a);
            }
            a = b = 0;
        }
    }
}

template <int F, bool Fixed>
__global__ void __launch_bounds__(32 * warps) scatter_kernel(const __grid_constant__ ScatterJob job) {
    using W = Walk<F>;
    __shared__ typename W::Staging staging[warps];
    typename W::Staging& s = staging[threadIdx.x / 32];
    const int lane = threadIdx.x & 31;
    const int group = lane / W::lanes, corner = lane % W::lanes / (F / W::features);
    const int feature = lane % (F / W::features) * W::features;
    const uint32_t n = *job.n;
    const TableGradient& gradient = job.gradient;

    const int64_t stride = int64_t(gridDim.x) * warps * 32;
    for (int64_t first = (int64_t(blockIdx.x) * warps + threadIdx.x / 32) * 32; first < n; first += stride) {
        const int64_t row = first + lane;
        const bool valid = row < n;
        Vec3 x{0.5f, 0.5f, 0.5f};
        if (valid) x = unit_position(job, row);
        for (int l = 0; l < job.grid.n_levels; ++l) {
            const GridLevel& level = job.grid.levels[l];
            const LevelCell cell = find_cell(level, job.grid.type, x);
            float weights[8], g[F] = {};
            corner_weights(job.grid.interpolation, cell, weights);
            if (valid) load_gradient<F>(job, row, l, g);
            // The last row of a run: the next one is in another cell, in another group's share, or not there.
            const uint64_t key = cell_key(level, x);
            const uint64_t next = __shfl_down_sync(0xffffffffu, key, 1);
            const bool ends = valid && (lane % W::rows == W::rows - 1 || key != next || row + 1 >= n);
            const uint32_t all_ends = __ballot_sync(0xffffffffu, ends);
            __syncwarp(); // the last level's walk is over
#pragma unroll
            for (int c = 0; c < 8; c += 4) {
                *reinterpret_cast<float4*>(s.weight + W::corners_of(lane) + c) =
                    make_float4(weights[c], weights[c + 1], weights[c + 2], weights[c + 3]);
                *reinterpret_cast<uint4*>(s.entry + W::corners_of(lane) + c) =
                    make_uint4(cell.entry[c], cell.entry[c + 1], cell.entry[c + 2], cell.entry[c + 3]);
            }
#pragma unroll
            for (int f = 0; f < F; ++f) s.gradient[W::gradients_of(lane) + f] = g[f];
            __syncwarp();

            const uint32_t my_ends = all_ends >> (group * W::rows);
            if constexpr (Fixed)
                walk<F>(s, my_ends, group, corner, feature, gradient.fixed + size_t(level.offset) * F);
            else if (l < gradient.n_float_levels)
                walk<F>(s, my_ends, group, corner, feature, gradient.floats + size_t(level.offset) * F);
            else
                walk<F>(s, my_ends, group, corner, feature,
                        gradient.halves + size_t(level.offset - gradient.n_float_entries) * F);
        }
    }
}

// Grids that find_cell() doesn't cover: a thread adds one level of one row, corner by corner.
template <int D, int F, bool Fixed>
__global__ void __launch_bounds__(32 * warps) scatter_cells_kernel(const __grid_constant__ ScatterJob job) {
    const int64_t n = *job.n, total = n * job.grid.n_levels;
    const TableGradient& gradient = job.gradient;
    const int n_corners = grid_corners<D>(job.grid.interpolation);
    const int64_t stride = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += stride) {
        const int l = int(i / n);
        const int64_t row = i % n;
        const GridLevel& level = job.grid.levels[l];
        const Vec3 p = unit_position(job, row);
        float x[D], g[F];
        for (int d = 0; d < D; ++d) x[d] = p[job.grid.in_begin + d];
        load_gradient<F>(job, row, l, g);
        const CellCorners<D> cell = find_grid_cell<D>(level, job.grid.interpolation, x);
#pragma unroll
        for (int c = 0; c < 1 << D; ++c) {
            if (c >= n_corners) break;
            const float weight = corner_weight(cell, c);
            float weighted[F];
#pragma unroll
            for (int f = 0; f < F; ++f) weighted[f] = weight * g[f];
            const size_t entry = size_t(level.offset) + cell.entry[c];
            if constexpr (Fixed)
                add_entry<F>(gradient.fixed + entry * F, weighted);
            else if (l < gradient.n_float_levels)
                add_entry<F>(gradient.floats + entry * F, weighted);
            else
                add_entry<F>(gradient.halves + (entry - gradient.n_float_entries) * F, weighted);
        }
    }
}

void launch(Context& context, const ScatterJob& job, void (*kernel)(ScatterJob)) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * warps, 0), "occupancy of the scatter");
    blocks = std::max(1, blocks) * context.multiprocessors();
    kernel<<<blocks, 32 * warps, 0, context.stream()>>>(job);
    check(cudaGetLastError(), "launch of the scatter");
}

template <int F, bool Fixed>
void launch(Context& context, const ScatterJob& job) {
    if (takes_find_cell(job.grid.n_in, job.grid.interpolation))
        launch(context, job, scatter_kernel<F, Fixed>);
    else if (job.grid.n_in == 2)
        launch(context, job, scatter_cells_kernel<2, F, Fixed>);
    else
        launch(context, job, scatter_cells_kernel<3, F, Fixed>);
}

} // namespace

void launch_scatter(Context& context, const ScatterJob& job) {
    auto with = [&]<int F>() { job.gradient.fixed ? launch<F, true>(context, job) : launch<F, false>(context, job); };
    switch (job.grid.n_features) {
    case 1: with.template operator()<1>(); break;
    case 2: with.template operator()<2>(); break;
    case 4: with.template operator()<4>(); break;
    default: with.template operator()<8>(); break;
    }
}

} // namespace ngp::cuda
