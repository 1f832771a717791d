// One level of a grid encoding for one sample: the entries of its cell, their weights, the interpolated features and
// their gradient with respect to the position. Cells are those of the CPU (cpu/encoding.h), bit for bit. For grids over
// three dimensions, linear or smooth; at the end, for all others.
//
// Tables are halves, arithmetic is float32. Functions that read a table are templates over the number of features F of
// an entry (1, 2, 4 or 8), which are loaded by one instruction: the table is aligned to an entry's size.
#pragma once

#include "model.cuh"

#include <cstring>

// Unrolls the loop that follows. The host's compiler, which sees NGP_HD functions too, doesn't know the pragma.
#if defined(__CUDA_ARCH__)
#define NGP_UNROLL _Pragma("unroll")
#else
#define NGP_UNROLL
#endif

namespace ngp::cuda {

// Word that holds N halves.
template <int N>
struct HalfWord;
template <>
struct HalfWord<1> {
    using type = unsigned short;
};
template <>
struct HalfWord<2> {
    using type = unsigned int;
};
template <>
struct HalfWord<4> {
    using type = uint2;
};
template <>
struct HalfWord<8> {
    using type = uint4;
};

// N halves at `p`, which is aligned to their size, by one load; through the read-only cache, since no kernel that
// evaluates the field writes parameters.
template <int N>
NGP_HD void load_halves(const half* p, float* v) {
    using Word = typename HalfWord<N>::type;
#if defined(__CUDA_ARCH__)
    const Word word = __ldg(reinterpret_cast<const Word*>(p));
#else
    Word word;
    memcpy(&word, p, sizeof word);
#endif
    half h[N];
    memcpy(static_cast<void*>(h), &word, sizeof word);
    NGP_UNROLL
    for (int i = 0; i < N; ++i) v[i] = __half2float(h[i]);
}

// The corners of the cell that a sample is in. Bit 0 of a corner's number: x+1, bit 1: y+1, bit 2: z+1.
struct LevelCell {
    uint32_t entry[8]; // relative to the level's offset
    float fraction[3];
};

// grid_cell() without conversions, which take a quarter of the rate of an addition.
constexpr float max_short_scale = 4194304.0f;
__device__ __forceinline__ uint32_t short_grid_cell(float scale, float x, float& fraction) {
    constexpr float unit = 8388608.0f; // 2^23: floats from there on are whole numbers
    const float p = mul_then_add(scale, x, 0.5f), cell = __fadd_rd(p, unit);
    fraction = p - (cell - unit);
    return __float_as_uint(cell) - 0x4b000000u;
}

// `x` is in the unit cube. Entries are what find_grid_cell() computes, but without a division where none is needed: a
// hashed level has a power of two of entries, and a dense index exceeds their number by less than that number (corners
// reach `resolution`). Tiled: whether the level may be of that type, whose corners need one; code that is never run
// still takes its place in the instruction cache. Short: the floor by an addition; on the device, for x in [0,1] and
// scales below max_short_scale.
template <bool Tiled = true, bool Short = false>
NGP_HD LevelCell find_cell(const GridLevel& level, GridType type, Vec3 x) {
    LevelCell c;
    const uint32_t resolution = level.resolution, entries = level.entries;
    const bool hashed = level.hashed != 0;
    const uint32_t stride[3] = {1u, hashed ? 2654435761u : resolution, hashed ? 805459861u : resolution * resolution};
    uint32_t low[3], high[3];
    NGP_UNROLL
    for (int d = 0; d < 3; ++d) {
        if constexpr (Short)
            low[d] = short_grid_cell(level.scale, x[d], c.fraction[d]) * stride[d];
        else
            low[d] = grid_cell(level.scale, x[d], c.fraction[d]) * stride[d];
        high[d] = low[d] + stride[d];
    }
    auto corner = [&](int k, int d) { return k >> d & 1 ? high[d] : low[d]; };
    if (hashed) {
        NGP_UNROLL
        for (int k = 0; k < 8; ++k) c.entry[k] = (corner(k, 0) ^ corner(k, 1) ^ corner(k, 2)) & (entries - 1);
        return c;
    }
    NGP_UNROLL
    for (int k = 0; k < 8; ++k) {
        const uint32_t index = corner(k, 0) + corner(k, 1) + corner(k, 2);
        if (Tiled && type == GridType::Tiled)
            c.entry[k] = index % entries;
        else
            c.entry[k] = index >= entries ? index - entries : index;
    }
    return c;
}

NGP_HD void corner_weights(Interpolation mode, const LevelCell& cell, float (&weight)[8]) {
    float high[3], low[3];
    NGP_UNROLL
    for (int d = 0; d < 3; ++d) {
        high[d] = interpolation_weight(mode, cell.fraction[d]);
        low[d] = 1.0f - high[d];
    }
    NGP_UNROLL
    for (int k = 0; k < 8; ++k)
        weight[k] = (k & 1 ? high[0] : low[0]) * (k & 2 ? high[1] : low[1]) * (k & 4 ? high[2] : low[2]);
}

// Interpolated features of a level; `table` is the grid's.
template <int F>
NGP_HD void interpolate(const GridLevel& level, GridType type, Interpolation mode, const half* table, Vec3 x,
                        float (&out)[F]) {
    const half* level_table = table + size_t(level.offset) * F;
    const LevelCell cell = find_cell(level, type, x);
    float entry[8][F], weight[8];
    NGP_UNROLL
    for (int k = 0; k < 8; ++k) load_halves<F>(level_table + size_t(cell.entry[k]) * F, entry[k]);
    corner_weights(mode, cell, weight);
    NGP_UNROLL
    for (int f = 0; f < F; ++f) out[f] = 0.0f;
    NGP_UNROLL
    for (int k = 0; k < 8; ++k) {
        NGP_UNROLL
        for (int f = 0; f < F; ++f) out[f] += weight[k] * entry[k][f];
    }
}
template <int F>
NGP_HD void interpolate(const GridShape& grid, int l, const half* table, Vec3 x, float (&out)[F]) {
    interpolate<F>(grid.levels[l], grid.type, grid.interpolation, table, x, out);
}

// The same in half arithmetic, for networks that take halves anyway: half the instructions. In two parts, so that a
// level's entries can be on their way while another's are combined. The result is within 11 * 2^-11 of the largest
// feature of the cell: three roundings of a weight, eight of partial sums. Not for tiled grids.
template <int F>
struct LevelEntries {
    typename HalfWord<F>::type entry[8];
    float fraction[3];
};
template <int F>
__device__ __forceinline__ void gather(const GridShape& grid, int l, const half* table, Vec3 x, LevelEntries<F>& got) {
    using Word = typename HalfWord<F>::type;
    const GridLevel& level = grid.levels[l];
    const Word* level_table = reinterpret_cast<const Word*>(table) + level.offset;
    // Unknown to the compiler, which would add the offset to every entry, in four instructions a corner and not one.
    asm("" : "+l"(level_table));
    const LevelCell cell = find_cell<false, true>(level, grid.type, x);
#pragma unroll
    for (int k = 0; k < 8; ++k) got.entry[k] = __ldg(level_table + cell.entry[k]);
#pragma unroll
    for (int d = 0; d < 3; ++d) got.fraction[d] = cell.fraction[d];
}
template <int F>
__device__ __forceinline__ void combine(Interpolation mode, const LevelEntries<F>& got, __half2 (&out)[F / 2]) {
    float high[3];
#pragma unroll
    for (int d = 0; d < 3; ++d) high[d] = interpolation_weight(mode, got.fraction[d]);
    const __half2 along_x = __floats2half2_rn(1.0f - high[0], high[0]);
#pragma unroll
    for (int i = 0; i < F / 2; ++i) out[i] = __half2{};
#pragma unroll
    for (int k = 0; k < 4; ++k) { // pairs of corners along x
        const float yz = (k & 1 ? high[1] : 1.0f - high[1]) * (k & 2 ? high[2] : 1.0f - high[2]);
        const __half2 weight = __hmul2(along_x, __float2half2_rn(yz));
        __half2 low[F / 2], up[F / 2];
        memcpy(low, &got.entry[2 * k], sizeof low);
        memcpy(up, &got.entry[2 * k + 1], sizeof up);
#pragma unroll
        for (int i = 0; i < F / 2; ++i) {
            out[i] = __hfma2(__low2half2(weight), low[i], out[i]);
            out[i] = __hfma2(__high2half2(weight), up[i], out[i]);
        }
    }
}

// Gradient of dot(d_out, features of the level) with respect to the position.
template <int F>
NGP_HD Vec3 level_position_gradient(const GridLevel& level, GridType type, Interpolation mode, const half* table,
                                    Vec3 x, const float (&d_out)[F]) {
    const half* level_table = table + size_t(level.offset) * F;
    const LevelCell cell = find_cell(level, type, x);
    float value[8]; // dot(d_out, entry) of each corner
    NGP_UNROLL
    for (int k = 0; k < 8; ++k) {
        float entry[F];
        load_halves<F>(level_table + size_t(cell.entry[k]) * F, entry);
        value[k] = 0.0f;
        NGP_UNROLL
        for (int f = 0; f < F; ++f) value[k] += d_out[f] * entry[f];
    }
    float weight[3], slope[3];
    NGP_UNROLL
    for (int d = 0; d < 3; ++d) {
        weight[d] = interpolation_weight(mode, cell.fraction[d]);
        slope[d] = level.scale * interpolation_weight_derivative(mode, cell.fraction[d]);
    }
    Vec3 gradient;
    NGP_UNROLL
    for (int d = 0; d < 3; ++d) { // differences along d, interpolated along the other two
        const int u = (d + 1) % 3, v = (d + 2) % 3;
        const int axis = 1 << d, bit_u = 1 << u, bit_v = 1 << v;
        const float a =
            (value[axis] - value[0]) * (1.0f - weight[u]) + (value[axis | bit_u] - value[bit_u]) * weight[u];
        const float b = (value[axis | bit_v] - value[bit_v]) * (1.0f - weight[u]) +
                        (value[axis | bit_u | bit_v] - value[bit_u | bit_v]) * weight[u];
        gradient[d] = slope[d] * (a * (1.0f - weight[v]) + b * weight[v]);
    }
    return gradient;
}
template <int F>
NGP_HD Vec3 level_position_gradient(const GridShape& grid, int l, const half* table, Vec3 x, const float (&d_out)[F]) {
    return level_position_gradient<F>(grid.levels[l], grid.type, grid.interpolation, table, x, d_out);
}

// --- any number of dimensions, nearest too; `x` are the D coordinates

template <int D, int F>
NGP_HD void interpolate_cell(const GridLevel& level, Interpolation mode, const half* table, const float* x,
                             float (&out)[F]) {
    const half* level_table = table + size_t(level.offset) * F;
    const CellCorners<D> cell = find_grid_cell<D>(level, mode, x);
    const int n_corners = grid_corners<D>(mode);
    NGP_UNROLL
    for (int f = 0; f < F; ++f) out[f] = 0.0f;
    NGP_UNROLL
    for (int c = 0; c < 1 << D; ++c) {
        if (c >= n_corners) break;
        const float weight = corner_weight(cell, c);
        float entry[F];
        load_halves<F>(level_table + size_t(cell.entry[c]) * F, entry);
        NGP_UNROLL
        for (int f = 0; f < F; ++f) out[f] += weight * entry[f];
    }
}

// Adds to `gradient`, of D values.
template <int D, int F>
NGP_HD void add_cell_position_gradient(const GridLevel& level, Interpolation mode, const half* table, const float* x,
                                       const float (&d_out)[F], float (&gradient)[D]) {
    if (mode == Interpolation::Nearest) return; // constant within cells
    const half* level_table = table + size_t(level.offset) * F;
    const CellCorners<D> cell = find_grid_cell<D>(level, mode, x);
    float value[1 << D], of_level[D];
    NGP_UNROLL
    for (int c = 0; c < 1 << D; ++c) {
        float entry[F];
        load_halves<F>(level_table + size_t(cell.entry[c]) * F, entry);
        value[c] = 0.0f;
        NGP_UNROLL
        for (int f = 0; f < F; ++f) value[c] += d_out[f] * entry[f];
    }
    grid_cell_gradient(cell, value, of_level);
    NGP_UNROLL
    for (int d = 0; d < D; ++d) gradient[d] += of_level[d];
}

} // namespace ngp::cuda
