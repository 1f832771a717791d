// Stage: input encodings. Shapes shared by both devices, and the level geometry of the grid (specification D.3, D.4).
#pragma once

#include <ngp/core/config.h>
#include <ngp/formulas/frequency.h>
#include <ngp/formulas/one_blob.h>
#include <ngp/formulas/triangle_wave.h>
#include <ngp/formulas/vec.h>
#include <vector>

namespace ngp {

constexpr int max_encoding_parts = 4;
constexpr int max_encoding_width = 512;
constexpr int max_input_dims = 4;   // of a position
constexpr int max_extra_dims = 256; // of a view's inputs besides the direction

struct EncodingPart {
    EncodingKind kind = EncodingKind::Identity;
    int in_begin = 0, n_in = 0;   // input dimensions it reads
    int out_begin = 0, n_out = 0; // outputs it writes
    int degree = 0;               // SphericalHarmonics
    int outputs_per_dim = 0;      // of kinds whose outputs depend on one coordinate: coordinate_output()
    // Grid
    GridType grid_type = GridType::Hash;
    Interpolation interpolation = Interpolation::Linear;
    int n_levels = 0, n_features = 0;
    uint32_t param_begin = 0; // first parameter within the encoding's own
    GridLevel levels[max_grid_levels] = {};
};

// Output j of one coordinate, of `outputs_per_dim`, for every kind but Grid and SphericalHarmonics; and its derivative.
NGP_HD float coordinate_output(const EncodingPart& part, float x, int j) {
    switch (part.kind) {
    case EncodingKind::Frequency: return frequency_output(x, j);
    case EncodingKind::TriangleWave: return triangle_wave(x, j);
    case EncodingKind::OneBlob: return one_blob(x, j, part.outputs_per_dim);
    default: return x;
    }
}
NGP_HD float coordinate_slope(const EncodingPart& part, float x, int j) {
    switch (part.kind) {
    case EncodingKind::Frequency: return frequency_slope(x, j);
    case EncodingKind::TriangleWave: return triangle_wave_slope(x, j);
    case EncodingKind::OneBlob: return one_blob_slope(x, j, part.outputs_per_dim);
    default: return 1.0f;
    }
}

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
// resolution where the configuration leaves it open. Raises ngp::Error for shapes outside the limits above, of which
// `max_in` is that of the input's dimensions.
EncodingShape encoding_shape(const std::vector<EncodingConfig>& parts, int n_in, int padding, int aabb_scale,
                             int max_in = max_input_dims);

// Levels of a grid, with the float32 arithmetic of D.4 that snapshots depend on.
std::vector<GridLevel> grid_levels(const EncodingConfig& config, int n_dims, int aabb_scale);

} // namespace ngp
