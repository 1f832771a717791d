// Multiresolution grid: level geometry, cell and entry index, interpolation weights (specification D.4;
// Müller et al. 2022, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding", sections 3 and A).
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

enum class GridType : uint8_t { Hash = 0, Dense = 1, Tiled = 2 };
enum class Interpolation : uint8_t { Linear = 0, Smoothstep = 1 };

constexpr int max_grid_levels = 32;

// One level. Positions x in [0,1]^3 map to p = scale * x + 0.5, whose floor is the cell and whose fraction weighs the
// cell's eight corners. `scale` is computed once on the host: it decides cells, so every device must use the same bits.
struct GridLevel {
    float scale;
    uint32_t resolution; // corners along one axis
    uint32_t offset;     // first entry in the table
    uint32_t entries;    // number of entries
    uint32_t hashed;     // 1: spatial hash, 0: row-major index modulo `entries`
};

// Entry of corner (x, y, z) relative to the level's offset. Corners can reach `resolution` and wrap.
NGP_HD uint32_t grid_entry(const GridLevel& level, uint32_t x, uint32_t y, uint32_t z) {
    uint32_t index =
        level.hashed ? x ^ (y * 2654435761u) ^ (z * 805459861u) : x + (y + z * level.resolution) * level.resolution;
    return index % level.entries;
}

// Cell and fraction of coordinate x in [0,1]: floor and fraction of scale*x + 0.5.
NGP_HD uint32_t grid_cell(float scale, float x, float& fraction) {
    float p = mul_then_add(scale, x, 0.5f);
    float cell = std::floor(p);
    fraction = p - cell;
    return uint32_t(int32_t(cell));
}

NGP_HD float interpolation_weight(Interpolation mode, float fraction) {
    return mode == Interpolation::Linear ? fraction : fraction * fraction * (3.0f - 2.0f * fraction);
}
// d weight / d fraction.
NGP_HD float interpolation_weight_derivative(Interpolation mode, float fraction) {
    return mode == Interpolation::Linear ? 1.0f : 6.0f * fraction * (1.0f - fraction);
}

} // namespace ngp
