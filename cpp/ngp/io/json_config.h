// Network configurations from JSON (specification D.1, D.3, D.4, E.1). Internal: see json_node.h.
#pragma once

#include <bit>
#include <ngp/core/config.h>
#include <ngp/formulas/frequency.h>
#include <ngp/formulas/one_blob.h>
#include <ngp/formulas/sh_basis.h>
#include <ngp/io/json_node.h>
#include <ngp/stages/mlp.h>

namespace ngp {
namespace {

enum class EncodingName {
    Grid,
    Hash,
    Dense,
    Tiled,
    SphericalHarmonics,
    Frequency,
    TriangleWave,
    OneBlob,
    Identity,
    Composite
};

void read_grid(const Node& n, EncodingName name, EncodingConfig& c) {
    c.kind = EncodingKind::Grid;
    c.grid_type =
        name == EncodingName::Dense   ? GridType::Dense
        : name == EncodingName::Tiled ? GridType::Tiled
        : name == EncodingName::Hash
            ? GridType::Hash
            : choose<GridType>(n, "type", "Hash",
                               {{"Hash", GridType::Hash}, {"Dense", GridType::Dense}, {"Tiled", GridType::Tiled}});
    c.n_levels = n.integer("n_levels", 16, 1, max_grid_levels);
    c.n_features = n.integer("n_features_per_level", 2, 1, 8);
    if (!std::has_single_bit(unsigned(c.n_features)))
        fail(n.where(), ".n_features_per_level: is ", c.n_features, "; it must be 1, 2, 4 or 8");
    c.log2_hashmap_size = n.integer("log2_hashmap_size", 19, 3, 28);
    c.base_resolution = n.integer("base_resolution", 0, 1, 1 << 16);
    c.per_level_scale = n.number("per_level_scale", 0.0f);
    if (!(c.per_level_scale >= 0.0f && c.per_level_scale < 64.0f))
        fail(n.where(), ".per_level_scale: is ", c.per_level_scale,
             "; it must be positive and below 64, or 0 for automatic");
    c.interpolation = choose<Interpolation>(n, "interpolation", "Linear",
                                            {{"Linear", Interpolation::Linear},
                                             {"Smoothstep", Interpolation::Smoothstep},
                                             {"Nearest", Interpolation::Nearest}});
}

void read_encoding(const Node& n, std::vector<EncodingConfig>& parts) {
    const auto name = choose<EncodingName>(n, "otype", "HashGrid",
                                           {{"HashGrid", EncodingName::Hash},
                                            {"Grid", EncodingName::Grid},
                                            {"DenseGrid", EncodingName::Dense},
                                            {"TiledGrid", EncodingName::Tiled},
                                            {"SphericalHarmonics", EncodingName::SphericalHarmonics},
                                            {"Frequency", EncodingName::Frequency},
                                            {"TriangleWave", EncodingName::TriangleWave},
                                            {"OneBlob", EncodingName::OneBlob},
                                            {"Identity", EncodingName::Identity},
                                            {"Composite", EncodingName::Composite}});
    if (name == EncodingName::Composite) {
        const Node nested = n.at("nested");
        for (size_t i = 0; i < nested.size(); ++i) read_encoding(nested.at(i), parts);
        return;
    }
    EncodingConfig c;
    c.n_dims = n.integer("n_dims_to_encode", 0, 0, 64);
    switch (name) {
    case EncodingName::SphericalHarmonics:
        c.kind = EncodingKind::SphericalHarmonics;
        c.degree = n.integer("degree", 4, 1, max_sh_degree);
        break;
    case EncodingName::Frequency:
    case EncodingName::TriangleWave:
        c.kind = name == EncodingName::Frequency ? EncodingKind::Frequency : EncodingKind::TriangleWave;
        c.n_frequencies = n.integer("n_frequencies", 12, 1, max_frequencies);
        break;
    case EncodingName::OneBlob:
        c.kind = EncodingKind::OneBlob;
        c.n_bins = n.integer("n_bins", 16, 1, max_blob_bins);
        break;
    case EncodingName::Identity: c.kind = EncodingKind::Identity; break;
    default: read_grid(n, name, c);
    }
    parts.push_back(c);
}

MlpConfig read_mlp(const Node& n) {
    MlpConfig c;
    const bool fused = choose<bool>(n, "otype", "FullyFusedMLP",
                                    {{"FullyFusedMLP", true}, {"CutlassMLP", false}, {"MegakernelMLP", true}});
    c.padding = fused ? 16 : 8;
    c.width = n.integer("n_neurons", 64, 1, max_mlp_width);
    c.n_hidden = n.integer("n_hidden_layers", 2, 0, max_mlp_layers - 1);
    c.hidden_relu = choose<bool>(n, "activation", "ReLU", {{"ReLU", true}, {"None", false}});
    choose<bool>(n, "output_activation", "None", {{"None", true}});
    if (fused && !(c.width == 16 || c.width == 32 || c.width == 64 || c.width == 128))
        fail(n.where(), ".n_neurons: is ", c.width, "; FullyFusedMLP takes 16, 32, 64 or 128 (CutlassMLP any width)");
    if (fused && c.n_hidden == 0) fail(n.where(), ".n_hidden_layers: FullyFusedMLP needs at least one hidden layer");
    if (!fused && c.width % 8) fail(n.where(), ".n_neurons: is ", c.width, "; it must be a multiple of 8");
    return c;
}

enum class OptimizerName { Ema, ExponentialDecay, Adam };

void read_optimizer(const Node& n, AdamSettings& s) {
    switch (choose<OptimizerName>(n, "otype", "Adam",
                                  {{"Ema", OptimizerName::Ema},
                                   {"ExponentialDecay", OptimizerName::ExponentialDecay},
                                   {"Adam", OptimizerName::Adam}})) {
    case OptimizerName::Ema:
        s.ema_decay = n.number("decay", 0.99f);
        if (!(s.ema_decay >= 0.0f && s.ema_decay < 1.0f))
            fail(n.where(), ".decay: is ", s.ema_decay, "; it must be at least 0 and below 1");
        return read_optimizer(n.at("nested"), s);
    case OptimizerName::ExponentialDecay:
        s.decay_start = n.integer("decay_start", 0, 0, INT32_MAX);
        s.decay_interval = n.integer("decay_interval", 1, 1, INT32_MAX);
        s.decay_base = n.number("decay_base", 0.1f);
        return read_optimizer(n.at("nested"), s);
    case OptimizerName::Adam:
        s.learning_rate = n.number("learning_rate", 1e-3f);
        s.beta1 = n.number("beta1", 0.9f);
        s.beta2 = n.number("beta2", 0.999f);
        s.epsilon = n.number("epsilon", 1e-8f);
        s.l2_reg = n.number("l2_reg", 1e-8f);
    }
    if (!(s.learning_rate >= 0.0f))
        fail(n.where(), ".learning_rate: is ", s.learning_rate, "; it must not be negative");
    if (!(s.beta1 >= 0.0f && s.beta1 < 1.0f && s.beta2 >= 0.0f && s.beta2 < 1.0f))
        fail(n.where(), ": beta1 and beta2 must be at least 0 and below 1");
}

NetworkConfig read_config(const Node& n) {
    NetworkConfig c;
    c.optimizer.ema_decay = 0.0f;
    c.optimizer.decay_base = 1.0f;
    read_encoding(n.at("encoding"), c.position_encoding);
    if (n.has("dir_encoding")) {
        read_encoding(n.at("dir_encoding"), c.direction_encoding);
    } else {
        EncodingConfig sh, rest; // as base.json has them
        sh.kind = EncodingKind::SphericalHarmonics;
        sh.n_dims = 3;
        c.direction_encoding = {sh, rest};
    }
    c.density_mlp = read_mlp(n.at("network"));
    c.rgb_mlp = read_mlp(n.at(n.has("rgb_network") ? "rgb_network" : "network"));
    if (n.has("loss"))
        c.loss = choose<LossType>(n.at("loss"), "otype", "L2",
                                  {{"L2", LossType::L2},
                                   {"L1", LossType::L1},
                                   {"MAPE", LossType::Mape},
                                   {"SMAPE", LossType::Smape},
                                   {"Huber", LossType::Huber},
                                   {"SmoothL1", LossType::Huber},
                                   {"LogL1", LossType::LogL1},
                                   {"RelativeL2", LossType::RelativeL2}});
    read_optimizer(n.at("optimizer"), c.optimizer);
    return c;
}

} // namespace

NetworkConfig parse_network_config(const std::string& text, const std::string& source) {
    const Json json = parse_text(text, source);
    NetworkConfig c = read_config(Node(json, source));
    c.json = json.dump();
    return c;
}

const std::string& base_nerf_config_json() {
    static const std::string text = R"({
  "loss": {"otype": "Huber"},
  "optimizer": {"otype": "Ema", "decay": 0.95, "nested": {
    "otype": "ExponentialDecay", "decay_start": 20000, "decay_interval": 10000, "decay_base": 0.33, "nested": {
      "otype": "Adam", "learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-15, "l2_reg": 1e-6}}},
  "encoding": {"otype": "HashGrid", "n_levels": 8, "n_features_per_level": 4, "log2_hashmap_size": 19, "base_resolution": 16},
  "network": {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64, "n_hidden_layers": 1},
  "dir_encoding": {"otype": "Composite", "nested": [
    {"n_dims_to_encode": 3, "otype": "SphericalHarmonics", "degree": 4}, {"otype": "Identity"}]},
  "rgb_network": {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64, "n_hidden_layers": 2}
})";
    return text;
}

} // namespace ngp
