#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/formulas/sh_basis.h>
#include <ngp/stages/encoding.h>

namespace ngp {

namespace {

constexpr float finest_resolution = 2048.0f; // per unit of aabb_scale, NeRF and SDF (D.4)

uint64_t capped_power(uint32_t base, int exponent) {
    uint64_t v = 1;
    for (int i = 0; i < exponent; ++i) v = std::min<uint64_t>(v * base, 0x7fffffffu);
    return v;
}

int round_up(int v, int multiple) { return (v + multiple - 1) / multiple * multiple; }

// 0 for kinds whose outputs depend on several coordinates.
int outputs_per_dim(const EncodingConfig& c) {
    switch (c.kind) {
    case EncodingKind::Grid:
    case EncodingKind::SphericalHarmonics: return 0;
    case EncodingKind::Frequency: return 2 * c.n_frequencies;
    case EncodingKind::TriangleWave: return c.n_frequencies;
    case EncodingKind::OneBlob: return c.n_bins;
    default: return 1;
    }
}
int outputs_of(const EncodingConfig& c, int n_in) {
    switch (c.kind) {
    case EncodingKind::Grid: return c.n_levels * c.n_features;
    case EncodingKind::SphericalHarmonics: return sh_coefficients(c.degree);
    default: return n_in * outputs_per_dim(c);
    }
}

void fill_grid(EncodingPart& part, const EncodingConfig& c, int aabb_scale, uint32_t& n_params) {
    if (part.n_in < min_grid_dims || part.n_in > max_grid_dims)
        fail("encoding: grids take ", min_grid_dims, " to ", max_grid_dims, " input dimensions, not ", part.n_in);
    const auto levels = grid_levels(c, part.n_in, aabb_scale);
    part.grid_type = c.grid_type;
    part.interpolation = c.interpolation;
    part.n_levels = c.n_levels;
    part.n_features = c.n_features;
    part.param_begin = n_params;
    std::copy(levels.begin(), levels.end(), part.levels);
    n_params += (levels.back().offset + levels.back().entries) * uint32_t(c.n_features);
}

} // namespace

std::vector<GridLevel> grid_levels(const EncodingConfig& c, int n_dims, int aabb_scale) {
    const int base_resolution = c.base_resolution > 0 ? c.base_resolution : 1 << (c.log2_hashmap_size / n_dims);
    const float base = float(base_resolution);
    float per_level = c.per_level_scale;
    if (per_level <= 0.0f && c.n_levels > 1)
        per_level = std::exp(std::log(finest_resolution * float(aabb_scale) / base) / float(c.n_levels - 1));
    if (per_level <= 0.0f) per_level = 1.0f;
    const float log2_per_level = std::log2(per_level);

    std::vector<GridLevel> levels;
    uint64_t offset = 0;
    for (int l = 0; l < c.n_levels; ++l) {
        GridLevel level{};
        level.scale = std::exp2(float(l) * log2_per_level) * base - 1.0f;
        level.resolution = uint32_t(std::ceil(level.scale)) + 1;
        const uint64_t dense = capped_power(level.resolution, n_dims);
        uint64_t entries = (dense + 7) / 8 * 8;
        if (c.grid_type == GridType::Hash) entries = std::min<uint64_t>(entries, uint64_t(1) << c.log2_hashmap_size);
        if (c.grid_type == GridType::Tiled)
            entries = std::min(entries, capped_power(uint32_t(base_resolution), n_dims));
        level.hashed = c.grid_type == GridType::Hash && entries < dense;
        level.offset = uint32_t(offset);
        level.entries = uint32_t(entries);
        offset += entries;
        if (offset * uint64_t(c.n_features) > 0x7fffffffu)
            fail("encoding: the grid has more than 2^31 parameters; lower n_levels, log2_hashmap_size or "
                 "base_resolution");
        levels.push_back(level);
    }
    return levels;
}

EncodingShape encoding_shape(const std::vector<EncodingConfig>& configs, int n_in, int padding, int aabb_scale,
                             int max_in) {
    if (configs.size() > max_encoding_parts)
        fail("encoding: a composite of ", configs.size(), " parts; at most ", max_encoding_parts, " are supported");
    if (n_in < 1 || n_in > max_in) fail("encoding: an input of ", n_in, " dimensions; 1 to ", max_in, " are supported");
    EncodingShape s;
    s.n_in = n_in;
    for (const auto& c : configs) {
        EncodingPart part;
        part.kind = c.kind;
        part.in_begin = s.n_parts ? s.parts[s.n_parts - 1].in_begin + s.parts[s.n_parts - 1].n_in : 0;
        part.n_in = c.n_dims ? c.n_dims : n_in - part.in_begin;
        if (part.in_begin + part.n_in > n_in)
            fail("encoding: the parts read ", part.in_begin + part.n_in, " dimensions, but the input has ", n_in);
        if (part.n_in == 0) continue; // an Identity for latents that the scene doesn't have
        if (c.kind == EncodingKind::SphericalHarmonics && part.n_in != 3)
            fail("encoding: SphericalHarmonics takes 3 dimensions, not ", part.n_in);
        part.out_begin = s.n_out;
        part.n_out = outputs_of(c, part.n_in);
        part.degree = c.degree;
        part.outputs_per_dim = outputs_per_dim(c);
        if (c.kind == EncodingKind::Grid) fill_grid(part, c, aabb_scale, s.n_params);
        s.n_out += part.n_out;
        s.parts[s.n_parts++] = part;
    }
    if (s.n_parts == 0) fail("encoding: no part reads any input dimension");
    s.n_out_padded = round_up(s.n_out, padding);
    if (s.n_out_padded > max_encoding_width)
        fail("encoding: ", s.n_out_padded, " outputs; at most ", max_encoding_width, " are supported");
    auto& last = s.parts[s.n_parts - 1];
    s.padding_value = last.kind == EncodingKind::Grid ? 0.0f : 1.0f;
    s.padding_begin = s.n_out;
    if (last.kind == EncodingKind::SphericalHarmonics) { // ones before the coefficients
        s.padding_begin = last.out_begin;
        last.out_begin += s.n_out_padded - s.n_out;
    }
    return s;
}

} // namespace ngp
