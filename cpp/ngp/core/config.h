// Network configuration: what instant-ngp's JSON configs say, as plain structures (specification D.1, D.3, D.4, E.1).
#pragma once

#include <ngp/formulas/adam_update.h>
#include <ngp/formulas/grid_index.h>
#include <ngp/formulas/loss_terms.h>
#include <string>
#include <vector>

namespace ngp {

enum class EncodingKind : uint8_t {
    Grid = 0,
    SphericalHarmonics = 1,
    Frequency = 2,
    Identity = 3,
    TriangleWave = 4,
    OneBlob = 5
};

struct EncodingConfig {
    EncodingKind kind = EncodingKind::Identity;
    int n_dims = 0; // 0: all that are left
    // Grid
    GridType grid_type = GridType::Hash;
    int n_levels = 16;
    int n_features = 2;
    int log2_hashmap_size = 19;
    int base_resolution = 16;     // 0: 2^(log2_hashmap_size / dimensions)
    float per_level_scale = 0.0f; // 0: derived from the scene (D.4)
    Interpolation interpolation = Interpolation::Linear;
    int degree = 4;         // SphericalHarmonics
    int n_frequencies = 12; // Frequency, TriangleWave
    int n_bins = 16;        // OneBlob
};

struct MlpConfig {
    int width = 64;
    int n_hidden = 1;
    bool hidden_relu = true; // false: no activation
    int padding = 16;        // widths are padded to a multiple: 16 (FullyFusedMLP) or 8 (CutlassMLP)
};

struct NetworkConfig {
    std::vector<EncodingConfig> position_encoding, direction_encoding; // parts of a composite, in order
    MlpConfig density_mlp, rgb_mlp;
    // A loss scale (E.1: 128) is accepted and ignored: gradients are float32 here, and CUDA's halves have a scale of
    // their own (cuda/training.cuh).
    LossType loss = LossType::Huber;
    AdamSettings optimizer;
    std::string json; // the resolved document that this was read from; kept in snapshots
};

// Reads a resolved configuration (no comments, no `parent`). `source` names it in errors.
// Raises ngp::Error that names the key for unknown types, missing or out-of-range values.
NetworkConfig parse_network_config(const std::string& json, const std::string& source);

// The base configuration of the NeRF task (E.1), as JSON.
const std::string& base_nerf_config_json();

} // namespace ngp
