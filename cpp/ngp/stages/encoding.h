// Stage: input encodings. Shapes shared by both devices, and the level geometry of the grid (specification D.3, D.4).
#pragma once

#include <ngp/core/config.h>
#include <ngp/formulas/vec.h>
#include <vector>

namespace ngp {

constexpr int max_encoding_parts = 4;
constexpr int max_encoding_width = 512;

struct EncodingPart {
    EncodingKind kind = EncodingKind::Identity;
    int in_begin = 0, n_in = 0;   // input dimensions it reads
    int out_begin = 0, n_out = 0; // outputs it writes
    int degree = 0, n_frequencies = 0;
    // Grid
    GridType grid_type = GridType::Hash;
    Interpolation interpolation = Interpolation::Linear;
    int n_levels = 0, n_features = 0;
    uint32_t param_begin = 0; // first parameter within the encoding's own
    GridLevel levels[max_grid_levels] = {};
};

// A composite of parts. Inputs are in [0,1]; spherical harmonics take 2x-1. Outputs are followed by padding (D.3: zeros
// after a grid, ones otherwise; before the coefficients of a last spherical-harmonics part).
struct EncodingShape {
    EncodingPart parts[max_encoding_parts];
    int n_parts = 0;
    int n_in = 0;
    int n_out = 0;        // without padding
    int n_out_padded = 0; // what the network reads
    float padding_value = 0;
    int padding_begin = 0; // first padded output
    uint32_t n_params = 0;
};

// Lays the parts of an encoding out. `padding` is that of the network that reads it; `aabb_scale` sets the finest grid
// resolution where the configuration leaves it open. Raises ngp::Error for shapes outside the limits above.
EncodingShape encoding_shape(const std::vector<EncodingConfig>& parts, int n_in, int padding, int aabb_scale);

// Levels of a grid, with the float32 arithmetic of D.4 that snapshots depend on.
std::vector<GridLevel> grid_levels(const EncodingConfig& config, int n_dims, int aabb_scale);

} // namespace ngp
