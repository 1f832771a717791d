// GeneralNetwork: the network policy (model.cuh) of every shape that FusedNetwork does not cover; and the scalar
// encodings and layers that it shares with the training backward of those shapes (general_backward.cuh).
//
// A thread evaluates its own sample. Activations are float32 in global memory, a sample's values apart by the number of
// threads so that a warp's are side by side; parameters are halves that all lanes read alike.
#pragma once

#include "grid_level.cuh"
#include "model.cuh"

#include <ngp/formulas/level_cut.h>
#include <ngp/formulas/sh_basis.h>

namespace ngp::cuda {
namespace general {

// Values of one sample; those of neighbouring samples are side by side.
template <typename T>
struct Column {
    T* first = nullptr;
    int64_t stride = 0;
    NGP_HD T& operator[](int k) const { return first[k * stride]; }
    NGP_HD Column from(int k) const { return {first + k * stride, stride}; }
};

// --- encodings

// Calls body.template operator()<F>() for the number of features.
template <typename Body>
NGP_HD void for_features(int n_features, const Body& body) {
    switch (n_features) {
    case 1: body.template operator()<1>(); break;
    case 2: body.template operator()<2>(); break;
    case 4: body.template operator()<4>(); break;
    default: body.template operator()<8>(); break;
    }
}

// Coordinates of a grid that takes D axes of the position.
template <int D>
struct GridInput {
    float x[D];
    NGP_HD GridInput(const EncodingPart& part, Vec3 p) {
        for (int d = 0; d < D; ++d) x[d] = p[part.in_begin + d];
    }
};

template <int D, int F, typename Out>
NGP_HD void encode_cells(const EncodingPart& part, const half* table, Vec3 x, Out out) {
    const GridInput<D> in(part, x);
    for (int l = 0; l < part.n_levels; ++l) {
        float v[F];
        interpolate_cell<D, F>(part.levels[l], part.interpolation, table, in.x, v);
        NGP_UNROLL
        for (int f = 0; f < F; ++f) out[l * F + f] = v[f];
    }
}

template <int F, typename Out>
NGP_HD void encode_grid(const EncodingPart& part, const half* table, Vec3 x, Out out) {
    if (!takes_find_cell(part.n_in, part.interpolation)) {
        if (part.n_in == 2)
            encode_cells<2, F>(part, table, x, out);
        else
            encode_cells<3, F>(part, table, x, out);
        return;
    }
    for (int l = 0; l < part.n_levels; ++l) {
        const GridLevel level = part.levels[l];
        float v[F];
        interpolate<F>(level, part.grid_type, part.interpolation, table, x, v);
        NGP_UNROLL
        for (int f = 0; f < F; ++f) out[l * F + f] = v[f];
    }
}

// Inputs of an encoding: the first three, a position or a direction, and those after them.
struct EncodingInput {
    Vec3 x;
    const float* more = nullptr;

    NGP_HD float operator[](int d) const { return d < 3 ? x[d] : more[d - 3]; }
};

// What spherical harmonics take of three inputs.
NGP_HD Vec3 harmonics_input(const EncodingInput& in, int begin) {
    return {2 * in[begin] - 1, 2 * in[begin + 1] - 1, 2 * in[begin + 2] - 1};
}

// The encoding of an input in the unit cube, with its padding: n_out_padded values. `params` are the encoding's own;
// grids read the first three inputs.
template <typename Out>
NGP_HD void encode(const EncodingShape& shape, const half* params, const EncodingInput& in, Out out) {
    const int n_padding = shape.n_out_padded - shape.n_out;
    for (int i = 0; i < n_padding; ++i) out[shape.padding_begin + i] = shape.padding_value;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        const Out to = out.from(part.out_begin);
        switch (part.kind) {
        case EncodingKind::Grid:
            for_features(part.n_features, [&]<int F>() { encode_grid<F>(part, params + part.param_begin, in.x, to); });
            break;
        case EncodingKind::SphericalHarmonics: sh_basis(part.degree, harmonics_input(in, part.in_begin), to); break;
        default:
            for (int d = 0; d < part.n_in; ++d)
                for (int j = 0; j < part.outputs_per_dim; ++j)
                    to[d * part.outputs_per_dim + j] = coordinate_output(part, in[part.in_begin + d], j);
        }
    }
}

// Zeroes the outputs of levels that a sample with this max level does not see (level_cut.h), or their gradients.
template <typename Out>
NGP_HD void cut_levels(const EncodingShape& shape, float max_level, Out out) {
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        const int seen = levels_below(max_level, part.n_levels);
        for (int k = seen * part.n_features; k < part.n_levels * part.n_features; ++k) out[part.out_begin + k] = 0.0f;
    }
}

template <int D, int F, typename In>
NGP_HD Vec3 cells_position_gradient(const EncodingPart& part, const half* table, Vec3 x, In d_out, float finest_scale) {
    const GridInput<D> in(part, x);
    float sum[D] = {};
    for (int l = 0; l < part.n_levels; ++l) {
        if (l > 0 && part.levels[l].scale > finest_scale) continue;
        float g[F];
        NGP_UNROLL
        for (int f = 0; f < F; ++f) g[f] = d_out[l * F + f];
        add_cell_position_gradient<D, F>(part.levels[l], part.interpolation, table, in.x, g, sum);
    }
    Vec3 gradient;
    for (int d = 0; d < D; ++d) gradient[part.in_begin + d] = sum[d];
    return gradient;
}

template <int F, typename In>
NGP_HD Vec3 grid_position_gradient(const EncodingPart& part, const half* table, Vec3 x, In d_out, float finest_scale) {
    if (!takes_find_cell(part.n_in, part.interpolation))
        return part.n_in == 2 ? cells_position_gradient<2, F>(part, table, x, d_out, finest_scale)
                              : cells_position_gradient<3, F>(part, table, x, d_out, finest_scale);
    Vec3 sum;
    for (int l = 0; l < part.n_levels; ++l) {
        const GridLevel level = part.levels[l];
        if (l > 0 && level.scale > finest_scale) continue; // the first level always counts
        float g[F];
        NGP_UNROLL
        for (int f = 0; f < F; ++f) g[f] = d_out[l * F + f];
        sum += level_position_gradient<F>(level, part.grid_type, part.interpolation, table, x, g);
    }
    return sum;
}

// Gradient of dot(d_out, encoding) with respect to the input. Grid levels but the first are held constant where their
// scale exceeds `finest_scale`.
template <typename In>
NGP_HD Vec3 position_gradient(const EncodingShape& shape, const half* params, Vec3 x, In d_out, float finest_scale) {
    Vec3 sum;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        const In d = d_out.from(part.out_begin);
        switch (part.kind) {
        case EncodingKind::Grid:
            for_features(part.n_features, [&]<int F>() {
                sum += grid_position_gradient<F>(part, params + part.param_begin, x, d, finest_scale);
            });
            break;
        case EncodingKind::SphericalHarmonics:
            sum += 2.0f * sh_basis_gradient(part.degree, {2 * x.x - 1, 2 * x.y - 1, 2 * x.z - 1}, d);
            break;
        default: // an output depends on one coordinate
            for (int k = 0; k < part.n_in; ++k) {
                const int axis = part.in_begin + k;
                float slope = 0.0f;
                for (int j = 0; j < part.outputs_per_dim; ++j)
                    slope += coordinate_slope(part, x[axis], j) * d[k * part.outputs_per_dim + j];
                sum += {axis == 0 ? slope : 0.0f, axis == 1 ? slope : 0.0f, axis == 2 ? slope : 0.0f};
            }
        }
    }
    return sum;
}

// What the network sees of a unit direction (D.3).
NGP_HD Vec3 direction_input(Vec3 d) { return {0.5f * (d.x + 1), 0.5f * (d.y + 1), 0.5f * (d.z + 1)}; }

// The direction encoding of a unit direction and a row of extra dimensions, with its padding: n_out_padded values.
template <typename Out>
NGP_HD void encode_direction(const ModelView& model, Vec3 direction, int64_t row, Out out) {
    encode(*model.direction, nullptr, {direction_input(direction), model.extra_dims_of(row)}, out);
}

// Gradient of dot(d_out, direction encoding) with respect to the unit direction, its components as if independent, and,
// where it is not null, to the extra dimensions.
template <typename In>
NGP_HD Vec3 direction_gradient(const ModelView& model, Vec3 direction, int64_t row, In d_out, float* d_extra) {
    const EncodingShape& shape = *model.direction;
    const EncodingInput in{direction_input(direction), model.extra_dims_of(row)};
    for (int k = 3; d_extra && k < shape.n_in; ++k) d_extra[k - 3] = 0.0f;
    Vec3 sum;
    auto add = [&](int d, float v) {
        sum += {d == 0 ? v : 0.0f, d == 1 ? v : 0.0f, d == 2 ? v : 0.0f};
        if (d_extra && d >= 3) d_extra[d - 3] += v;
    };
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        const In d = d_out.from(part.out_begin);
        if (part.kind == EncodingKind::SphericalHarmonics) {
            const Vec3 slope = sh_basis_gradient(part.degree, harmonics_input(in, part.in_begin), d);
            for (int k = 0; k < 3; ++k) add(part.in_begin + k, 2.0f * slope[k]);
            continue;
        }
        for (int k = 0; k < part.n_in; ++k) {
            float slope = 0.0f;
            for (int j = 0; j < part.outputs_per_dim; ++j)
                slope += coordinate_slope(part, in[part.in_begin + k], j) * d[k * part.outputs_per_dim + j];
            add(part.in_begin + k, slope);
        }
    }
    return sum * 0.5f;
}

// --- layers

// Sums that a thread forms at once, in registers. A value that it reads from its column serves all of them.
constexpr int layer_block = 16;

// Whether the rows of a matrix can be read as words of eight halves.
NGP_HD bool rows_in_words(const half* w, int n_in) { return n_in % 8 == 0 && reinterpret_cast<uintptr_t>(w) % 16 == 0; }

template <int Rows, int Word, typename In, typename Store>
NGP_HD void multiply_rows(const half* w, int n_in, int n_out, int first, In x, const Store& store) {
    float sum[Rows] = {};
    for (int i = 0; i < n_in; i += Word) {
        float in[Word];
        NGP_UNROLL
        for (int j = 0; j < Word; ++j) in[j] = x[i + j];
        NGP_UNROLL
        for (int r = 0; r < Rows; ++r) {
            float v[Word]; // rows past the last repeat it and are not stored
            load_halves<Word>(w + size_t(min_of(first + r, n_out - 1)) * n_in + i, v);
            NGP_UNROLL
            for (int j = 0; j < Word; ++j) sum[r] += v[j] * in[j];
        }
    }
    store(first, sum, min_of(Rows, n_out - first));
}

// The first n_out outputs of a layer with weights w, [..][n_in]. `store(first, values, n)` takes them in blocks of
// `float values[N]`, of which n are valid; no block spans a multiple of 16. (It should loop over N, a constant, so that
// the values stay in registers.)
template <typename In, typename Store>
NGP_HD void multiply(const half* w, int n_in, int n_out, In x, const Store& store) {
    const bool words = rows_in_words(w, n_in);
    int o = 0;
    for (; o + layer_block <= n_out; o += layer_block) {
        if (words)
            multiply_rows<layer_block, 8>(w, n_in, n_out, o, x, store);
        else
            multiply_rows<layer_block, 1>(w, n_in, n_out, o, x, store);
    }
    for (; o < n_out; o += 4) {
        if (words)
            multiply_rows<4, 8>(w, n_in, n_out, o, x, store);
        else
            multiply_rows<4, 1>(w, n_in, n_out, o, x, store);
    }
}

template <int Columns, int Word, typename In, typename Store>
NGP_HD void multiply_columns(const half* w, int n_in, int n_out, int first, int n_wanted, In d_out,
                             const Store& store) {
    float sum[Columns] = {};
    for (int o = 0; o < n_out; ++o) {
        const float d = d_out[o];
        const half* row = w + size_t(o) * n_in;
        NGP_UNROLL
        for (int c = 0; c < Columns; c += Word) {
            float v[Word]; // words end within n_in; single columns past the last repeat it and are not stored
            load_halves<Word>(row + (Word > 1 ? first + c : min_of(first + c, n_in - 1)), v);
            NGP_UNROLL
            for (int j = 0; j < Word; ++j) sum[c + j] += v[j] * d;
        }
    }
    store(first, sum, min_of(Columns, n_wanted - first));
}

// The transposed product: gradient with respect to a layer's first `n_wanted` inputs, given that of its first n_out
// outputs. `store` as in multiply().
template <typename In, typename Store>
NGP_HD void multiply_transposed(const half* w, int n_in, int n_out, In d_out, int n_wanted, const Store& store) {
    int i = 0;
    if (rows_in_words(w, n_in)) {
        for (; i + layer_block <= n_wanted; i += layer_block)
            multiply_columns<layer_block, 8>(w, n_in, n_out, i, n_wanted, d_out, store);
        for (; i < n_wanted; i += 8) multiply_columns<8, 8>(w, n_in, n_out, i, n_wanted, d_out, store);
    } else {
        for (; i + layer_block <= n_wanted; i += layer_block)
            multiply_columns<layer_block, 1>(w, n_in, n_out, i, n_wanted, d_out, store);
        for (; i < n_wanted; i += 4) multiply_columns<4, 1>(w, n_in, n_out, i, n_wanted, d_out, store);
    }
}

} // namespace general

class GeneralNetwork {
    template <typename T>
    using Column = general::Column<T>;

  public:
    static constexpr int threads = 128;
    using CutLevels = GeneralNetwork;

    static int64_t shared_bytes(const ModelView&) { return 0; }
    static int64_t scratch_bytes(const ModelView& m) {
        return int64_t(sizeof(float)) * (2 * int64_t(widest(m)) + sign_words(m.density));
    }

    // `scratch` is that of the whole grid, whose blocks are one-dimensional.
    __device__ GeneralNetwork(const ModelView& model, char*, char* scratch)
        : GeneralNetwork(model, reinterpret_cast<float*>(scratch) + (int64_t(blockIdx.x) * blockDim.x + threadIdx.x),
                         int64_t(gridDim.x) * blockDim.x) {
        __syncthreads();
    }
    // Scratch of one sample: element k at first[k * stride].
    NGP_HD GeneralNetwork(const ModelView& model, float* first, int64_t stride)
        : model_(model), scratch_{first, stride}, widest_(widest(model)) {}

    __device__ void set_max_level(float max_level) { max_level_ = max_level; }

    NGP_HD RawSample evaluate(Vec3 x, Vec3 direction) const { return evaluate(x, direction, 0); }
    NGP_HD RawSample evaluate(Vec3 x, Vec3 direction, int64_t row) const {
        return forward(x, direction, row, [](int, Column<float>) {});
    }
    // Likewise, and an activation, if one is wanted.
    NGP_HD RawSample evaluate_and_see(Vec3 x, Vec3 direction, int64_t row, VisualizedActivation wanted,
                                      float& activation) const {
        const MlpShape& rgb = model_.rgb;
        const half* last_weights =
            model_.weights + (model_.density.n_params() + rgb.n_params()) - rgb.layer_params(rgb.n_layers - 1);
        const int last = model_.density.n_layers + rgb.n_layers - 1; // its inputs are the last that forward() shows
        return forward(x, direction, row, [&](int layer, Column<float> inputs) {
            if (!wanted.wanted()) return;
            if (layer == wanted.layer) activation = inputs[wanted.dimension];
            if (layer == last && wanted.layer > last)
                general::multiply(last_weights, rgb.in(rgb.n_layers - 1), rgb.n_out, inputs,
                                  [&]<int N>(int first, const float(&v)[N], int n) {
                                      NGP_UNROLL
                                      for (int k = 0; k < N; ++k)
                                          if (k < n && first + k == wanted.dimension) activation = v[k];
                                  });
        });
    }

  private:
    // see(layer, inputs) is called with the inputs of each layer: the density network's, then the rgb network's.
    template <typename See>
    NGP_HD RawSample forward(Vec3 x, Vec3 direction, int64_t row, const See& see) const {
        const ModelView& m = model_;
        const int n_density = m.density.n_out;
        const half* w = m.weights;
        general::encode(*m.position, m.encoding, {x}, buffer(0));
        if (max_level_ < 1.0f) general::cut_levels(*m.position, max_level_, buffer(0));
        int at = hidden_layers<false>(m.density, w, 0, see);
        const Column<float> rgb_in = buffer(at ^ 1);
        last_layer(m.density, w, n_density, at, [&]<int N>(int first, const float(&v)[N], int n) {
            NGP_UNROLL
            for (int k = 0; k < N; ++k)
                if (k < n) rgb_in[first + k] = v[k];
        });
        RawSample raw{};
        raw.density = rgb_in[0];
        general::encode_direction(m, direction, row, rgb_in.from(n_density));
        for (int k = n_density + m.direction->n_out_padded; k < m.rgb.n_in; ++k) rgb_in[k] = 0.0f;
        at = hidden_layers<false>(m.rgb, w, at ^ 1,
                                  [&](int layer, Column<float> inputs) { see(m.density.n_layers + layer, inputs); });
        last_layer(m.rgb, w, 3, at, [&]<int N>(int, const float(&v)[N], int) {
            NGP_UNROLL
            for (int c = 0; c < 3; ++c) raw.rgb[c] = v[c];
        });
        return raw;
    }

  public:
    NGP_HD float density(Vec3 x) const {
        const half* w = model_.weights;
        general::encode(*model_.position, model_.encoding, {x}, buffer(0));
        const int at = hidden_layers<false>(model_.density, w, 0);
        float raw = 0.0f;
        last_layer(model_.density, w, 1, at, [&]<int N>(int, const float(&v)[N], int) { raw = v[0]; });
        return raw;
    }

    NGP_HD Vec3 density_gradient(Vec3 x, float finest_scale) const {
        const MlpShape& mlp = model_.density;
        const half* w = model_.weights;
        general::encode(*model_.position, model_.encoding, {x}, buffer(0));
        hidden_layers<true>(mlp, w, 0);
        // Output 0, whose gradient is 1: that of the last layer's inputs is its first row.
        int layer = mlp.n_layers - 1, at = 0;
        const Column<float> last_inputs = buffer(0);
        for (int i = 0; i < mlp.in(layer); ++i)
            last_inputs[i] = layer == 0 || kept(mlp, layer - 1, i) ? __half2float(w[i]) : 0.0f;
        while (layer > 0) {
            --layer;
            w -= mlp.layer_params(layer);
            const Column<float> d_in = buffer(at ^ 1);
            general::multiply_transposed(w, mlp.in(layer), mlp.out(layer), buffer(at), mlp.in(layer),
                                         [&]<int N>(int first, const float(&v)[N], int n) {
                                             const uint32_t keep = layer > 0 ? signs(mlp, layer - 1, first) : ~0u;
                                             NGP_UNROLL
                                             for (int k = 0; k < N; ++k)
                                                 if (k < n) d_in[first + k] = keep >> k & 1u ? v[k] : 0.0f;
                                         });
            at ^= 1;
        }
        return general::position_gradient(*model_.position, model_.encoding, x, buffer(at), finest_scale);
    }

  private:
    // Two buffers that layers read and write by turns, each as wide as the widest of them ...
    NGP_HD static int widest(const ModelView& m) {
        int n = max_of(max_of(m.density.n_in, m.density.n_out), m.rgb.n_in);
        if (m.density.n_layers > 1) n = max_of(n, m.density.width);
        if (m.rgb.n_layers > 1) n = max_of(n, m.rgb.width);
        return n;
    }
    // ... and for density_gradient() which hidden outputs of the density network are positive, 16 to a word.
    NGP_HD static int words_of_layer(const MlpShape& mlp) {
        return (mlp.width + general::layer_block - 1) / general::layer_block;
    }
    NGP_HD static int sign_words(const MlpShape& mlp) {
        return mlp.hidden_relu ? (mlp.n_layers - 1) * words_of_layer(mlp) : 0;
    }
    NGP_HD Column<float> buffer(int k) const { return scratch_.from(k * widest_); }
    NGP_HD Column<uint32_t> sign_words_of(const MlpShape& mlp, int layer) const {
        const Column<float> begin = scratch_.from(2 * widest_ + layer * words_of_layer(mlp));
        return {reinterpret_cast<uint32_t*>(begin.first), begin.stride};
    }
    // Signs of outputs [first, ...) of a hidden layer up to the next multiple of 16, from bit 0 on.
    NGP_HD uint32_t signs(const MlpShape& mlp, int layer, int first) const {
        if (!mlp.hidden_relu) return ~0u;
        return sign_words_of(mlp, layer)[first / general::layer_block] >> (first % general::layer_block);
    }
    NGP_HD bool kept(const MlpShape& mlp, int layer, int i) const { return signs(mlp, layer, i) & 1u; }

    // All layers but the last, from the inputs in buffer `at` to the returned one. Moves `w` to the last layer's. All
    // layers' inputs are shown to `see`.
    struct Nobody {
        NGP_HD void operator()(int, Column<float>) const {}
    };
    template <bool KeepSigns, typename See = Nobody>
    NGP_HD int hidden_layers(const MlpShape& mlp, const half*& w, int at, const See& see = {}) const {
        for (int layer = 0; layer < mlp.n_layers - 1; ++layer, at ^= 1) {
            see(layer, buffer(at));
            const Column<float> out = buffer(at ^ 1);
            const Column<uint32_t> words = sign_words_of(mlp, layer);
            general::multiply(w, mlp.in(layer), mlp.out(layer), buffer(at),
                              [&]<int N>(int first, const float(&v)[N], int n) {
                                  uint32_t positive = 0;
                                  NGP_UNROLL
                                  for (int k = 0; k < N; ++k) {
                                      if (k < n) out[first + k] = mlp.hidden_relu ? max_of(v[k], 0.0f) : v[k];
                                      positive |= uint32_t(v[k] > 0.0f) << k;
                                  }
                                  if (KeepSigns && mlp.hidden_relu) {
                                      const int word = first / general::layer_block, bit = first % general::layer_block;
                                      words[word] = (bit ? words[word] : 0u) | positive << bit;
                                  }
                              });
            w += mlp.layer_params(layer);
        }
        see(mlp.n_layers - 1, buffer(at));
        return at;
    }
    // The first n outputs. Moves `w` past the layer.
    template <typename Store>
    NGP_HD void last_layer(const MlpShape& mlp, const half*& w, int n, int at, const Store& store) const {
        const int layer = mlp.n_layers - 1;
        general::multiply(w, mlp.in(layer), n, buffer(at), store);
        w += mlp.layer_params(layer);
    }

    const ModelView& model_;
    Column<float> scratch_;
    int widest_;
    float max_level_ = 1.0f;
};

} // namespace ngp::cuda
