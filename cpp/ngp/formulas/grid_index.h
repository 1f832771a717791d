// Multiresolution grid: level geometry, cell and entry index, interpolation weights (specification D.4;
// Müller et al. 2022, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding", sections 3 and A).
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

enum class GridType : uint8_t { Hash = 0, Dense = 1, Tiled = 2 };
enum class Interpolation : uint8_t { Linear = 0, Smoothstep = 1, Nearest = 2 };

constexpr int max_grid_levels = 32;
constexpr int min_grid_dims = 2, max_grid_dims = 4;

// One level. Positions x in [0,1]^D map to p = scale * x + 0.5, whose floor is the cell and whose fraction weighs the
// cell's 2^D corners. `scale` is computed once on the host: it decides cells, so every device must use the same bits.
struct GridLevel {
    float scale;
    uint32_t resolution; // corners along one axis
    uint32_t offset;     // first entry in the table
    uint32_t entries;    // number of entries
    uint32_t hashed;     // 1: spatial hash, 0: row-major index modulo `entries`
};

// What a corner's coordinate d is multiplied with, in 32-bit arithmetic, before the products are joined.
NGP_HD uint32_t grid_stride(const GridLevel& level, int d) {
    if (level.hashed) return d == 0 ? 1u : d == 1 ? 2654435761u : d == 2 ? 805459861u : 3674653429u;
    uint32_t stride = 1;
    for (int i = 0; i < d; ++i) stride *= level.resolution;
    return stride;
}

// Cell and fraction of coordinate x in [0,1]: floor and fraction of scale*x + 0.5.
NGP_HD uint32_t grid_cell(float scale, float x, float& fraction) {
    float p = mul_then_add(scale, x, 0.5f);
    float cell = std::floor(p);
    fraction = p - cell;
    return uint32_t(int32_t(cell));
}

// Weight of the upper one of two corners; not for Nearest, which takes the lower one alone.
NGP_HD float interpolation_weight(Interpolation mode, float fraction) {
    return mode == Interpolation::Linear ? fraction : fraction * fraction * (3.0f - 2.0f * fraction);
}
// d weight / d fraction.
NGP_HD float interpolation_weight_derivative(Interpolation mode, float fraction) {
    return mode == Interpolation::Linear ? 1.0f : 6.0f * fraction * (1.0f - fraction);
}

// The corners of the cell that a position is in: corner c is one further than the first along each axis d whose bit
// d of c is set. Any number of dimensions; devices have faster code of their own for three, linear or smooth.
template <int D>
struct CellCorners {
    uint32_t entry[1 << D]; // relative to the level's offset. Corners can reach `resolution` and wrap.
    float weight[D];        // of the upper corners along an axis; Nearest: 0
    float slope[D];         // its derivative with respect to the coordinate
};

template <int D>
NGP_HD CellCorners<D> find_grid_cell(const GridLevel& level, Interpolation mode, const float* x) {
    static_assert(D >= min_grid_dims && D <= max_grid_dims);
    CellCorners<D> cell;
    uint32_t low[D], high[D];
    for (int d = 0; d < D; ++d) {
        const uint32_t stride = grid_stride(level, d);
        float fraction;
        low[d] = grid_cell(level.scale, x[d], fraction) * stride;
        high[d] = low[d] + stride;
        const bool nearest = mode == Interpolation::Nearest;
        cell.weight[d] = nearest ? 0.0f : interpolation_weight(mode, fraction);
        cell.slope[d] = nearest ? 0.0f : level.scale * interpolation_weight_derivative(mode, fraction);
    }
    for (int c = 0; c < 1 << D; ++c) {
        uint32_t index = 0;
        for (int d = 0; d < D; ++d) {
            const uint32_t k = c >> d & 1 ? high[d] : low[d];
            index = level.hashed ? index ^ k : index + k;
        }
        cell.entry[c] = index % level.entries;
    }
    return cell;
}

// Corners whose entries count.
template <int D>
NGP_HD int grid_corners(Interpolation mode) {
    return mode == Interpolation::Nearest ? 1 : 1 << D;
}

template <int D>
NGP_HD float corner_weight(const CellCorners<D>& cell, int corner) {
    float w = 1.0f;
    for (int d = 0; d < D; ++d) w *= corner >> d & 1 ? cell.weight[d] : 1.0f - cell.weight[d];
    return w;
}

// Gradient of sum_c weight_c value[c] with respect to the position.
template <int D>
NGP_HD void grid_cell_gradient(const CellCorners<D>& cell, const float (&value)[1 << D], float (&gradient)[D]) {
    for (int axis = 0; axis < D; ++axis) { // differences along it, interpolated along the others
        float sum = 0.0f;
        for (int c = 0; c < 1 << D; ++c) {
            if (c >> axis & 1) continue;
            float w = 1.0f;
            for (int d = 0; d < D; ++d)
                if (d != axis) w *= c >> d & 1 ? cell.weight[d] : 1.0f - cell.weight[d];
            sum += w * (value[c | 1 << axis] - value[c]);
        }
        gradient[axis] = cell.slope[axis] * sum;
    }
}

} // namespace ngp
