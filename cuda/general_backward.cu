#include "general_backward.cuh"
#include "general_network.cuh"

#include <algorithm>
#include <ngp/fields/nerf.h>

namespace ngp::cuda {

namespace {

using general::Column;

constexpr int64_t max_chunk = 16384, min_chunk = 1024; // samples
constexpr int64_t chunk_bytes = 512 << 20;             // chunks of large networks get smaller down to min_chunk
constexpr int sample_threads = 64;                     // few, so that a chunk's blocks spread over all multiprocessors

constexpr int weight_tile = 32; // outputs and inputs of a block of weight gradients
constexpr int weight_threads = 64;
constexpr int weight_samples = 32;  // that are in shared memory at a time
constexpr int max_slices = 32;      // of a chunk; a slice is at least weight_samples long
constexpr int weight_blocks = 1024; // that slicing aims at; fixed, so that sums don't depend on the card
constexpr int reduction_threads = 256;

constexpr int rgb_outputs = 3; // of the rgb network that have a gradient

// Rows of the kept activations.
struct LayerRows {
    MlpShape density, rgb;

    // Inputs X: of the density network's layers, then of the rgb network's, whose first inputs begin with the density
    // network's outputs.
    NGP_HD int density_input(int layer) const { return layer == 0 ? 0 : density.n_in + (layer - 1) * density.width; }
    NGP_HD int rgb_input(int layer) const {
        const int begin = density_input(density.n_layers);
        return layer == 0 ? begin : begin + rgb.n_in + (layer - 1) * rgb.width;
    }
    NGP_HD int n_inputs() const { return rgb_input(rgb.n_layers); }
    // Output gradients dY, in the same order; of the last one only those that are not zero.
    NGP_HD int density_output(int layer) const { return layer * density.width; }
    NGP_HD int rgb_output(int layer) const {
        return density_output(density.n_layers - 1) + density.n_out + layer * rgb.width;
    }
    NGP_HD int n_outputs() const { return rgb_output(rgb.n_layers - 1) + rgb_outputs; }
};

NGP_HD int64_t samples_in_chunk(const BackwardInput& input, int64_t begin, int64_t chunk) {
    return min_of(min_of(int64_t(*input.n), input.capacity) - begin, chunk);
}

// Body: sample i of the chunk, forward and backward.
struct BackwardSample {
    ModelView model;
    LayerRows rows;
    BackwardInput input;
    float *inputs, *d_outputs; // [row][chunk]
    float* d_encoding;         // of the first sample of all
    int n_encoded;
    int64_t begin, chunk;

    NGP_HD void operator()(int64_t i) const {
        const Column<float> x{inputs + i, chunk}, d{d_outputs + i, chunk};
        const half* rgb_weights = forward(i, x);
        const RawSample d_raw = input.d_raw[begin + i];
        backward(i, x, d, rgb_weights, d_raw);
    }

  private:
    // Leaves the inputs of all layers in x and returns the rgb network's weights.
    NGP_HD const half* forward(int64_t i, Column<float> x) const {
        const half* w = model.weights;
        general::encode(*model.position, model.encoding, {model.unit(input.positions[begin + i])}, x);
        if (input.max_levels) general::cut_levels(*model.position, input.max_levels[begin + i], x);
        for (int k = 0; k < rows.density.n_layers; ++k) {
            const bool last = k == rows.density.n_layers - 1;
            layer_forward(rows.density, k, w, x.from(rows.density_input(k)),
                          x.from(last ? rows.rgb_input(0) : rows.density_input(k + 1)), !last);
            w += rows.density.layer_params(k);
        }
        const half* rgb_weights = w;
        const int n_density = rows.density.n_out;
        const Column<float> rgb_in = x.from(rows.rgb_input(0));
        general::encode_direction(model, input.directions[begin + i], input.row(begin + i), rgb_in.from(n_density));
        for (int k = n_density + model.direction->n_out_padded; k < rows.rgb.n_in; ++k) rgb_in[k] = 0.0f;
        for (int k = 0; k < rows.rgb.n_layers - 1; ++k) { // nobody needs the last one's outputs
            layer_forward(rows.rgb, k, w, x.from(rows.rgb_input(k)), x.from(rows.rgb_input(k + 1)), true);
            w += rows.rgb.layer_params(k);
        }
        return rgb_weights;
    }

    NGP_HD void backward(int64_t i, Column<float> x, Column<float> d, const half* rgb_weights,
                         const RawSample& d_raw) const {
        const MlpShape &rgb = rows.rgb, &density = rows.density;
        const Column<float> d_rgb = d.from(rows.rgb_output(rgb.n_layers - 1));
        NGP_UNROLL
        for (int c = 0; c < rgb_outputs; ++c) d_rgb[c] = d_raw.rgb[c];
        const half* w = rgb_weights + (rgb.n_params() - rgb.layer_params(rgb.n_layers - 1));
        for (int k = rgb.n_layers - 1; k > 0; --k) {
            layer_backward(rgb, k, w, k == rgb.n_layers - 1 ? rgb_outputs : rgb.out(k), d.from(rows.rgb_output(k)),
                           x.from(rows.rgb_input(k)), d.from(rows.rgb_output(k - 1)));
            w -= rgb.layer_params(k - 1);
        }
        // The head of the rgb network's inputs are the density network's outputs, the first of which is the raw
        // density.
        const Column<float> d_density = d.from(rows.density_output(density.n_layers - 1));
        const Column<float> d_encoded = d.from(rows.n_outputs()); // of the direction
        const bool of_directions = input.d_directions || input.d_extra_dims;
        general::multiply_transposed(w, rgb.n_in, rgb.n_layers == 1 ? rgb_outputs : rgb.out(0),
                                     d.from(rows.rgb_output(0)),
                                     density.n_out + (of_directions ? model.direction->n_out_padded : 0),
                                     [&]<int N>(int first, const float(&v)[N], int n) {
                                         NGP_UNROLL
                                         for (int j = 0; j < N; ++j) {
                                             if (j >= n) continue;
                                             const int k = first + j;
                                             if (k < density.n_out)
                                                 d_density[k] = v[j] + (k == 0 ? d_raw.density : 0.0f);
                                             else
                                                 d_encoded[k - density.n_out] = v[j];
                                         }
                                     });
        if (of_directions) direction_backward(begin + i, d_encoded);
        w = rgb_weights - density.layer_params(density.n_layers - 1);
        for (int k = density.n_layers - 1; k > 0; --k) {
            layer_backward(density, k, w, density.out(k), d.from(rows.density_output(k)), x.from(rows.density_input(k)),
                           d.from(rows.density_output(k - 1)));
            w -= density.layer_params(k - 1);
        }
        float* out = d_encoding + (begin + i) * n_encoded;
        const bool vectors = n_encoded % 4 == 0;
        general::multiply_transposed(w, density.n_in, density.out(0), d.from(rows.density_output(0)), n_encoded,
                                     [&]<int N>(int first, const float(&v)[N], int n) {
                                         NGP_UNROLL
                                         for (int j = 0; j < N; j += 4) { // full, if the row has fours
                                             if (vectors && j < n)
                                                 *reinterpret_cast<float4*>(out + first + j) =
                                                     float4{v[j], v[j + 1], v[j + 2], v[j + 3]};
                                             NGP_UNROLL
                                             for (int m = j; m < j + 4; ++m)
                                                 if (!vectors && m < n) out[first + m] = v[m];
                                         }
                                     });
        if (input.max_levels) general::cut_levels(*model.position, input.max_levels[begin + i], Column<float>{out, 1});
    }

    NGP_HD void direction_backward(int64_t sample, Column<float> d_encoded) const {
        float* const extra = input.d_extra_dims ? input.d_extra_dims + sample * (model.direction->n_in - 3) : nullptr;
        const Vec3 g =
            general::direction_gradient(model, input.directions[sample], input.row(sample), d_encoded, extra);
        if (input.d_directions) input.d_directions[sample] = g;
    }

    NGP_HD static void layer_forward(const MlpShape& mlp, int k, const half* w, Column<float> in, Column<float> out,
                                     bool hidden) {
        const bool relu = hidden && mlp.hidden_relu;
        general::multiply(w, mlp.in(k), mlp.out(k), in, [&]<int N>(int first, const float(&v)[N], int n) {
            NGP_UNROLL
            for (int j = 0; j < N; ++j)
                if (j < n) out[first + j] = relu ? max_of(v[j], 0.0f) : v[j];
        });
    }
    // From the gradient of layer k's first n_out outputs to that of layer k-1's; `in`: what layer k read.
    NGP_HD static void layer_backward(const MlpShape& mlp, int k, const half* w, int n_out, Column<float> d_out,
                                      Column<float> in, Column<float> d_in) {
        general::multiply_transposed(
            w, mlp.in(k), n_out, d_out, mlp.in(k), [&]<int N>(int first, const float(&v)[N], int n) {
                NGP_UNROLL
                for (int j = 0; j < N; ++j)
                    if (j < n) d_in[first + j] = !mlp.hidden_relu || in[first + j] > 0.0f ? v[j] : 0.0f;
            });
    }
};

__global__ void __launch_bounds__(sample_threads) backward_samples(const __grid_constant__ BackwardSample body) {
    const int64_t i = int64_t(blockIdx.x) * sample_threads + threadIdx.x;
    if (i < samples_in_chunk(body.input, body.begin, body.chunk)) body(i);
}

} // namespace

struct WeightGradientJob {
    using Tile = GeneralBackward::WeightTile;
    const Tile* tiles;
    const float *inputs, *d_outputs; // [row][chunk]
    float* sums;                     // [slice][weights]
    uint32_t n_weights;
    BackwardInput input;
    int64_t begin, chunk;
    int slice; // samples
};

namespace {

// A tile's rows of one operand for samples [s, s + weight_samples); zeros where there is no row or no sample.
__device__ void load_rows(const float* rows, int n_rows, int64_t chunk, int64_t s, int64_t end,
                          float (*to)[weight_samples + 4]) {
    constexpr int quads = weight_samples / 4;
#pragma unroll
    for (int k = threadIdx.x; k < weight_tile * quads; k += weight_threads) {
        const int row = k / quads, at = k % quads * 4;
        float4 v{0.0f, 0.0f, 0.0f, 0.0f};
        if (row < n_rows) {
            v = *reinterpret_cast<const float4*>(rows + row * chunk + s + at);
            if (s + at + 3 >= end) { // nobody wrote the rest
                v.x = s + at < end ? v.x : 0.0f;
                v.y = s + at + 1 < end ? v.y : 0.0f;
                v.z = s + at + 2 < end ? v.z : 0.0f;
                v.w = 0.0f;
            }
        }
        *reinterpret_cast<float4*>(&to[row][at]) = v;
    }
}

// Block (tile, slice) adds the slice's samples, in order, to its tile of the slice's sums. A thread has every eighth
// output and input of the tile; four samples of a row are read at once. Rows are padded by four floats, so that what
// eight threads read of eight rows is in different banks.
__global__ void __launch_bounds__(weight_threads) weight_gradients(const __grid_constant__ WeightGradientJob job) {
    constexpr int per_thread = weight_tile / 8;
    alignas(16) __shared__ float x_rows[weight_tile][weight_samples + 4], d_rows[weight_tile][weight_samples + 4];

    const int64_t first = int64_t(blockIdx.y) * job.slice;
    const int64_t end = min_of(first + job.slice, samples_in_chunk(job.input, job.begin, job.chunk));
    if (first >= end) return;
    const auto tile = job.tiles[blockIdx.x];
    const int i0 = threadIdx.x % 8, o0 = threadIdx.x / 8;

    float sum[per_thread][per_thread] = {};
    for (int64_t s = first; s < end; s += weight_samples) {
        __syncthreads();
        load_rows(job.inputs + tile.x_row * job.chunk, tile.n_in, job.chunk, s, end, x_rows);
        load_rows(job.d_outputs + tile.d_row * job.chunk, tile.n_out, job.chunk, s, end, d_rows);
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < weight_samples; k += 4) {
            float4 x[per_thread], d[per_thread];
#pragma unroll
            for (int a = 0; a < per_thread; ++a) {
                x[a] = *reinterpret_cast<const float4*>(&x_rows[i0 + 8 * a][k]);
                d[a] = *reinterpret_cast<const float4*>(&d_rows[o0 + 8 * a][k]);
            }
#pragma unroll
            for (int o = 0; o < per_thread; ++o)
#pragma unroll
                for (int i = 0; i < per_thread; ++i) {
                    sum[o][i] += d[o].x * x[i].x;
                    sum[o][i] += d[o].y * x[i].y;
                    sum[o][i] += d[o].z * x[i].z;
                    sum[o][i] += d[o].w * x[i].w;
                }
        }
    }
    float* to = job.sums + int64_t(blockIdx.y) * job.n_weights + tile.weight;
#pragma unroll
    for (int o = 0; o < per_thread; ++o)
#pragma unroll
        for (int i = 0; i < per_thread; ++i)
            if (o0 + 8 * o < tile.n_out && i0 + 8 * i < tile.n_in)
                to[int64_t(o0 + 8 * o) * tile.stride + (i0 + 8 * i)] += sum[o][i];
}

__global__ void __launch_bounds__(reduction_threads)
    add_slices(const float* sums, int n_slices, uint32_t n_weights, float* weight_gradient) {
    const uint32_t i = blockIdx.x * reduction_threads + threadIdx.x;
    if (i >= n_weights) return;
    float sum = 0.0f;
    for (int k = 0; k < n_slices; ++k) sum += sums[int64_t(k) * n_weights + i];
    weight_gradient[i] += sum;
}

unsigned blocks_for(int64_t n, int threads) { return unsigned((n + threads - 1) / threads); }

} // namespace

GeneralBackward::GeneralBackward(Context& context, const NerfModelShape& shape)
    : n_encoded_(shape.position.n_out), n_weights_(shape.density.n_params() + shape.rgb.n_params()) {
    DeviceGuard guard(context.device());
    const LayerRows rows{shape.density, shape.rgb};

    std::vector<WeightTile> tiles;
    uint32_t weight = 0;
    auto add_matrix = [&](int x_row, int d_row, int n_in, int n_out) {
        for (int o = 0; o < n_out; o += weight_tile)
            for (int i = 0; i < n_in; i += weight_tile)
                tiles.push_back({x_row + i, d_row + o, std::min(weight_tile, n_in - i),
                                 std::min(weight_tile, n_out - o), weight + uint32_t(o) * uint32_t(n_in) + uint32_t(i),
                                 n_in});
    };
    for (int k = 0; k < shape.density.n_layers; ++k) {
        add_matrix(rows.density_input(k), rows.density_output(k), shape.density.in(k), shape.density.out(k));
        weight += shape.density.layer_params(k);
    }
    for (int k = 0; k < shape.rgb.n_layers; ++k) {
        const bool last = k == shape.rgb.n_layers - 1;
        add_matrix(rows.rgb_input(k), rows.rgb_output(k), shape.rgb.in(k), last ? rgb_outputs : shape.rgb.out(k));
        weight += shape.rgb.layer_params(k);
    }
    n_tiles_ = int(tiles.size());

    // Beside the layers' gradients one of the encoded direction.
    const int n_gradients = rows.n_outputs() + shape.direction.n_out_padded;
    const int64_t sample_bytes = int64_t(rows.n_inputs() + n_gradients) * int64_t(sizeof(float));
    for (chunk_ = max_chunk; chunk_ > min_chunk && chunk_ * sample_bytes > chunk_bytes;) chunk_ /= 2;
    while (n_slices_ < max_slices && 2 * n_slices_ * n_tiles_ <= weight_blocks) n_slices_ *= 2;

    inputs_ = {context, rows.n_inputs() * chunk_, "activations of the backward pass"};
    d_outputs_ = {context, n_gradients * chunk_, "gradients of the backward pass"};
    // Whole vectors are read where the last chunk ends, and what is beyond the end is masked: it must only be there.
    inputs_.zero();
    d_outputs_.zero();
    if (n_slices_ > 1) sums_ = {context, int64_t(n_slices_) * n_weights_, "sums of weight gradients"};
    tiles_ = {context, n_tiles_, "list of weight gradients"};
    tiles_.upload(tiles);
}

void GeneralBackward::run(cudaStream_t stream, const ModelView& model, const BackwardInput& input, float* d_encoding,
                          float* weight_gradient) {
    float* sums = n_slices_ > 1 ? sums_.data() : weight_gradient;
    if (n_slices_ > 1) check(cudaMemsetAsync(sums, 0, size_t(sums_.bytes()), stream), "memset");

    BackwardSample body{
        model, {model.density, model.rgb}, input, inputs_.data(), d_outputs_.data(), d_encoding, n_encoded_, 0, chunk_};
    WeightGradientJob job{tiles_.data(), inputs_.data(),         d_outputs_.data(), sums, n_weights_, input, 0,
                          chunk_,        int(chunk_ / n_slices_)};
    static_assert(sizeof body <= 4096, "a kernel's parameters have 4 KB");
    for (int64_t begin = 0; begin < input.capacity; begin += chunk_) {
        body.begin = job.begin = begin;
        const int64_t n = std::min(chunk_, input.capacity - begin);
        backward_samples<<<blocks_for(n, sample_threads), sample_threads, 0, stream>>>(body);
        weight_gradients<<<dim3(unsigned(n_tiles_), unsigned(n_slices_)), weight_threads, 0, stream>>>(job);
    }
    if (n_slices_ > 1)
        add_slices<<<blocks_for(n_weights_, reduction_threads), reduction_threads, 0, stream>>>(
            sums, n_slices_, n_weights_, weight_gradient);
    check(cudaGetLastError(), "backward pass of ", input.capacity, " samples");
}

} // namespace ngp::cuda
