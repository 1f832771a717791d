// Encodings of a tile of samples: forward, gradient with respect to the table and to the position.
//
// A tile holds up to `tile_size` samples: positions feature-major (x[], y[], z[]), so that cells and hashes vectorise
// over samples; encodings sample-major, as the networks read them (gemm.h). Cells of grids over three dimensions are
// found for vectors of samples; those of others, and of nearest ones, sample by sample.
#pragma once

#include <ngp/cpu/simd.h>
#include <ngp/formulas/sh_basis.h>
#include <ngp/stages/encoding.h>

namespace ngp::NGP_ISA {

constexpr int tile_size = 64;

struct PositionTile {
    alignas(64) float axis[max_input_dims][tile_size]; // within [0,1]; axes past the input's are unused
};

// Cells of one level: the entry of each corner (bit 0 of the corner number: x+1, bit 1: y+1, bit 2: z+1), and
// fractions.
struct CellTile {
    alignas(64) uint32_t entry[8][tile_size];
    alignas(64) uint32_t cell[3][tile_size];
    alignas(64) float fraction[3][tile_size];
};
struct WeightTile {
    alignas(64) float corner[8][tile_size];
};

// Features of one entry as one value. One float is a plain float, since compilers disagree on vectors of one.
template <int F>
struct FeatureType {
    typedef float type __attribute__((vector_size(4 * F)));
};
template <>
struct FeatureType<1> {
    typedef float type;
};
template <int F>
using Feature = typename FeatureType<F>::type;

// Entry numbers modulo the level's size. A hashed level has a power of two; a dense index exceeds it by less than one
// size (corners reach `resolution`); a tiled one needs the division.
NGP_HD VecU wrap_entry(VecU index, const GridLevel& level, GridType type) {
    if (level.hashed) return index & splat(level.entries - 1);
    if (type == GridType::Tiled) {
        for (int i = 0; i < vector_width; ++i) index[i] %= level.entries;
        return index;
    }
    const VecU size = splat(level.entries);
    return index >= size ? index - size : index;
}

inline void find_cells(const GridLevel& level, GridType type, const PositionTile& p, int n, CellTile& t) {
    const VecF scale = splat(level.scale), half = splat(0.5f);
    const VecU stride[3] = {splat(1u), splat(level.hashed ? 2654435761u : level.resolution),
                            splat(level.hashed ? 805459861u : level.resolution * level.resolution)};
    for (int s = 0; s < n; s += vector_width) {
        VecU low[3], high[3];
        for (int d = 0; d < 3; ++d) {
            const VecF q = load<VecF>(p.axis[d] + s) * scale + half; // rounded twice, as in grid_cell()
            const VecI cell = __builtin_convertvector(q, VecI);      // q > 0: truncation is floor
            store(t.fraction[d] + s, q - __builtin_convertvector(cell, VecF));
            store(t.cell[d] + s, cell);
            low[d] = VecU(cell) * stride[d];
            high[d] = low[d] + stride[d];
        }
        for (int c = 0; c < 8; ++c) {
            const VecU x = c & 1 ? high[0] : low[0], y = c & 2 ? high[1] : low[1], z = c & 4 ? high[2] : low[2];
            store(t.entry[c] + s, wrap_entry(level.hashed ? x ^ y ^ z : x + y + z, level, type));
        }
    }
}

inline void corner_weights(Interpolation mode, const CellTile& t, int n, WeightTile& w) {
    for (int s = 0; s < n; s += vector_width) {
        VecF high[3], low[3];
        for (int d = 0; d < 3; ++d) {
            const VecF f = load<VecF>(t.fraction[d] + s);
            high[d] = mode == Interpolation::Linear ? f : f * f * (splat(3.0f) - splat(2.0f) * f);
            low[d] = splat(1.0f) - high[d];
        }
        for (int c = 0; c < 8; ++c)
            store(w.corner[c] + s,
                  (c & 1 ? high[0] : low[0]) * (c & 2 ? high[1] : low[1]) * (c & 4 ? high[2] : low[2]));
    }
}

template <int F>
void interpolate_level(const float* table, const CellTile& t, const WeightTile& w, int n, float* out, int stride) {
    for (int s = 0; s < n; ++s, out += stride) {
        Feature<F> sum{};
        for (int c = 0; c < 8; ++c) sum += w.corner[c][s] * load<Feature<F>>(table + size_t(t.entry[c][s]) * F);
        store(out, sum);
    }
}

// Calls body.template operator()<F>() for the number of features.
template <typename Body>
NGP_HD void for_features(int n_features, Body&& body) {
    switch (n_features) {
    case 1: body.template operator()<1>(); break;
    case 2: body.template operator()<2>(); break;
    case 4: body.template operator()<4>(); break;
    default: body.template operator()<8>(); break;
    }
}

// Whether a grid's cells are found for vectors of samples (find_cells): it takes the first three axes.
inline bool vectorised(const EncodingPart& grid) {
    return grid.n_in == 3 && grid.in_begin == 0 && grid.interpolation != Interpolation::Nearest;
}

// Calls body.template operator()<D, F>() for the numbers of dimensions and of features.
template <typename Body>
NGP_HD void for_dims_and_features(const EncodingPart& grid, Body&& body) {
    switch (grid.n_in) {
    case 2: for_features(grid.n_features, [&]<int F>() { body.template operator()<2, F>(); }); break;
    case 3: for_features(grid.n_features, [&]<int F>() { body.template operator()<3, F>(); }); break;
    default: for_features(grid.n_features, [&]<int F>() { body.template operator()<4, F>(); }); break;
    }
}

// The cell of sample s.
template <int D>
CellCorners<D> cell_of(const EncodingPart& grid, int level, const PositionTile& p, int s) {
    float x[D];
    for (int d = 0; d < D; ++d) x[d] = p.axis[grid.in_begin + d][s];
    return find_grid_cell<D>(grid.levels[level], grid.interpolation, x);
}

template <int D, int F>
void encode_level(const EncodingPart& grid, int level, const float* table, const PositionTile& p, int n, float* out,
                  int stride) {
    const int n_corners = grid_corners<D>(grid.interpolation);
    for (int s = 0; s < n; ++s, out += stride) {
        const CellCorners<D> cell = cell_of<D>(grid, level, p, s);
        Feature<F> sum{};
        for (int c = 0; c < n_corners; ++c)
            sum += corner_weight(cell, c) * load<Feature<F>>(table + size_t(cell.entry[c]) * F);
        store(out, sum);
    }
}

template <int D, int F>
void level_position_gradient(const EncodingPart& grid, int level, const float* table, const PositionTile& p, int n,
                             const float* d_out, int stride, const float* finest_scale, PositionTile& d_position) {
    if (grid.interpolation == Interpolation::Nearest) return; // constant within cells
    for (int s = 0; s < n; ++s, d_out += stride) {
        if (finest_scale && grid.levels[level].scale > finest_scale[s]) continue;
        const CellCorners<D> cell = cell_of<D>(grid, level, p, s);
        const Feature<F> g = load<Feature<F>>(d_out);
        float value[1 << D], gradient[D];
        for (int c = 0; c < 1 << D; ++c) {
            float product[F];
            store(product, g * load<Feature<F>>(table + size_t(cell.entry[c]) * F));
            value[c] = 0.0f;
            for (int f = 0; f < F; ++f) value[c] += product[f];
        }
        grid_cell_gradient(cell, value, gradient);
        for (int d = 0; d < D; ++d) d_position.axis[grid.in_begin + d][s] += gradient[d];
    }
}

// As scatter_level() below.
template <int D, int F>
void scatter_cells(const EncodingPart& grid, int level, float* gradient, uint32_t first, uint32_t last,
                   const PositionTile& p, int n, const float* d_out) {
    const int n_corners = grid_corners<D>(grid.interpolation);
    for (int s = 0; s < n; ++s) {
        const CellCorners<D> cell = cell_of<D>(grid, level, p, s);
        const Feature<F> g = load<Feature<F>>(d_out + s * F);
        for (int c = 0; c < n_corners; ++c) {
            const uint32_t e = cell.entry[c];
            if (e - first >= last - first) continue;
            float* at = gradient + size_t(e) * F;
            store(at, load<Feature<F>>(at) + corner_weight(cell, c) * g);
        }
    }
}

inline void encode_grid(const EncodingPart& part, const float* table, const PositionTile& p, int n, float* out,
                        int stride) {
    if (!vectorised(part)) {
        for_dims_and_features(part, [&]<int D, int F>() {
            for (int l = 0; l < part.n_levels; ++l)
                encode_level<D, F>(part, l, table + size_t(part.levels[l].offset) * F, p, n, out + l * F, stride);
        });
        return;
    }
    CellTile cells;
    WeightTile weights;
    for (int l = 0; l < part.n_levels; ++l) {
        const GridLevel& level = part.levels[l];
        find_cells(level, part.grid_type, p, n, cells);
        corner_weights(part.interpolation, cells, n, weights);
        const float* level_table = table + size_t(level.offset) * part.n_features;
        for_features(part.n_features,
                     [&]<int F>() { interpolate_level<F>(level_table, cells, weights, n, out + l * F, stride); });
    }
}

// Gradient of dot(d_out, encoding) with respect to the position; adds to d_position. Samples for which the level is
// finer than finest_scale[s] (may be null) are left out.
template <int F>
void grid_position_gradient(const GridLevel& level, Interpolation mode, const float* table, const CellTile& t, int n,
                            const float* d_out, int stride, const float* finest_scale, PositionTile& d_position) {
    for (int s = 0; s < n; ++s, d_out += stride) {
        if (finest_scale && level.scale > finest_scale[s]) continue;
        const Feature<F> g = load<Feature<F>>(d_out);
        float value[8], weight[3], slope[3];
        for (int c = 0; c < 8; ++c) {
            Feature<F> product = g * load<Feature<F>>(table + size_t(t.entry[c][s]) * F);
            float v[F], sum = 0;
            store(v, product);
            for (int f = 0; f < F; ++f) sum += v[f];
            value[c] = sum;
        }
        for (int d = 0; d < 3; ++d) {
            weight[d] = interpolation_weight(mode, t.fraction[d][s]);
            slope[d] = level.scale * interpolation_weight_derivative(mode, t.fraction[d][s]);
        }
        for (int d = 0; d < 3; ++d) {
            const int u = (d + 1) % 3, v = (d + 2) % 3;
            const int axis = 1 << d, bit_u = 1 << u, bit_v = 1 << v;
            auto difference = [&](int corner) { return value[corner | axis] - value[corner]; };
            const float a = difference(0) * (1 - weight[u]) + difference(bit_u) * weight[u];
            const float b = difference(bit_v) * (1 - weight[u]) + difference(bit_u | bit_v) * weight[u];
            d_position.axis[d][s] += slope[d] * (a * (1 - weight[v]) + b * weight[v]);
        }
    }
}

// Adds the gradients of one tile to entries [first, last) of a level's gradient table. Consecutive samples in the same
// cell, the usual case on coarse levels, are summed in registers first.
template <int F>
void scatter_level(float* gradient, uint32_t first, uint32_t last, const CellTile& t, const WeightTile& w, int n,
                   const float* d_out) {
    auto add = [&](const Feature<F>(&sum)[8], int s) {
        for (int c = 0; c < 8; ++c) {
            const uint32_t e = t.entry[c][s];
            if (e - first >= last - first) continue;
            float* at = gradient + size_t(e) * F;
            store(at, load<Feature<F>>(at) + sum[c]);
        }
    };
    Feature<F> sum[8];
    for (int s = 0; s < n; ++s) {
        const Feature<F> g = load<Feature<F>>(d_out + s * F);
        const bool same_cell = s > 0 && t.cell[0][s] == t.cell[0][s - 1] && t.cell[1][s] == t.cell[1][s - 1] &&
                               t.cell[2][s] == t.cell[2][s - 1];
        if (same_cell) {
            for (int c = 0; c < 8; ++c) sum[c] += w.corner[c][s] * g;
        } else {
            if (s > 0) add(sum, s - 1);
            for (int c = 0; c < 8; ++c) sum[c] = w.corner[c][s] * g;
        }
    }
    if (n > 0) add(sum, n - 1);
}

// Any encoding of one input vector except its grid parts.
inline void encode_analytic(const EncodingShape& shape, const float* in, float* out) {
    for (int i = 0; i < shape.n_out_padded - shape.n_out; ++i) out[shape.padding_begin + i] = shape.padding_value;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        const float* x = in + part.in_begin;
        float* y = out + part.out_begin;
        if (part.kind == EncodingKind::SphericalHarmonics)
            sh_basis(part.degree, {2 * x[0] - 1, 2 * x[1] - 1, 2 * x[2] - 1}, y);
        const int per_dim = part.outputs_per_dim;
        for (int d = 0; per_dim > 0 && d < part.n_in; ++d)
            for (int j = 0; j < per_dim; ++j) y[d * per_dim + j] = coordinate_output(part, x[d], j);
    }
}

// The gradient of dot(d_out, outputs) of that with respect to the input vector.
inline void analytic_gradient(const EncodingShape& shape, const float* in, const float* d_out, float* d_in) {
    for (int d = 0; d < shape.n_in; ++d) d_in[d] = 0.0f;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        const float* x = in + part.in_begin;
        const float* g = d_out + part.out_begin;
        float* sum = d_in + part.in_begin;
        if (part.kind == EncodingKind::SphericalHarmonics) {
            const Vec3 slope = sh_basis_gradient(part.degree, {2 * x[0] - 1, 2 * x[1] - 1, 2 * x[2] - 1}, g);
            for (int d = 0; d < 3; ++d) sum[d] += 2 * slope[d];
        }
        const int per_dim = part.outputs_per_dim;
        for (int d = 0; per_dim > 0 && d < part.n_in; ++d)
            for (int j = 0; j < per_dim; ++j) sum[d] += coordinate_slope(part, x[d], j) * g[d * per_dim + j];
    }
}

// All parts of a position encoding; columns from n_out_padded to pad16 are zeroed.
inline void encode_positions(const EncodingShape& shape, const float* params, const PositionTile& p, int n, float* out,
                             int stride) {
    const bool plain_grid = shape.n_parts == 1 && shape.parts[0].kind == EncodingKind::Grid;
    if (!plain_grid || shape.n_out != stride)
        for (int s = 0; s < n; ++s) {
            float x[max_input_dims] = {};
            for (int d = 0; d < shape.n_in; ++d) x[d] = p.axis[d][s];
            encode_analytic(shape, x, out + s * stride);
            for (int j = shape.n_out_padded; j < stride; ++j) out[s * stride + j] = 0.0f;
        }
    for (int i = 0; i < shape.n_parts; ++i)
        if (shape.parts[i].kind == EncodingKind::Grid)
            encode_grid(shape.parts[i], params + shape.parts[i].param_begin, p, n, out + shape.parts[i].out_begin,
                        stride);
}

// Gradient of dot(d_out, encoding) with respect to the position, for all parts. Grid levels but the first
// are held constant for sample s where they have more than finest_scale[s] cells a unit (null: none are).
inline void position_gradient(const EncodingShape& shape, const float* params, const PositionTile& p, int n,
                              const float* d_out, int stride, const float* finest_scale, PositionTile& d_position) {
    memset(&d_position, 0, sizeof d_position);
    CellTile cells;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        if (part.kind == EncodingKind::Grid && !vectorised(part)) {
            for_dims_and_features(part, [&]<int D, int F>() {
                const float* table = params + part.param_begin;
                for (int l = 0; l < part.n_levels; ++l)
                    level_position_gradient<D, F>(part, l, table + size_t(part.levels[l].offset) * F, p, n,
                                                  d_out + part.out_begin + l * F, stride,
                                                  l == 0 ? nullptr : finest_scale, d_position);
            });
        } else if (part.kind == EncodingKind::Grid) {
            for (int l = 0; l < part.n_levels; ++l) {
                find_cells(part.levels[l], part.grid_type, p, n, cells);
                const float* table = params + part.param_begin + size_t(part.levels[l].offset) * part.n_features;
                for_features(part.n_features, [&]<int F>() {
                    grid_position_gradient<F>(part.levels[l], part.interpolation, table, cells, n,
                                              d_out + part.out_begin + l * F, stride, l == 0 ? nullptr : finest_scale,
                                              d_position);
                });
            }
        } else if (part.kind == EncodingKind::SphericalHarmonics) {
            for (int s = 0; s < n; ++s) {
                auto direction = [&](int i) { return 2 * p.axis[part.in_begin + i][s] - 1; };
                const Vec3 g = sh_basis_gradient(part.degree, {direction(0), direction(1), direction(2)},
                                                 d_out + s * stride + part.out_begin);
                for (int i = 0; i < 3; ++i) d_position.axis[part.in_begin + i][s] += 2 * g[i];
            }
        } else {
            const int per_dim = part.outputs_per_dim;
            for (int s = 0; s < n; ++s)
                for (int d = 0; d < part.n_in; ++d) {
                    const float* of_dim = d_out + s * stride + part.out_begin + d * per_dim;
                    float& sum = d_position.axis[part.in_begin + d][s];
                    for (int j = 0; j < per_dim; ++j)
                        sum += coordinate_slope(part, p.axis[part.in_begin + d][s], j) * of_dim[j];
                }
        }
    }
}

} // namespace ngp::NGP_ISA
