// The backward pass of FusedNetwork's shapes: recomputes the networks from kept encodings, and leaves gradients of the
// encodings and of the weights.
//
// A block takes a tile of samples at a time, as many as its shared memory holds activations of; each warp owns some of
// their rows. Activations H of every layer stay in shared memory, since the gradient of a weight matrix, dY^T X, sums
// over all rows: every warp adds the block's rows to its own part of each matrix, in registers that live as long as the
// block. The gradient of a layer's output is formed in registers, and replaces that output in shared memory once its
// own weight gradient has been taken:
//
//   dY        | d raw     | dH3        | dH2      | dD (density outputs) | dH1
//   X         | H3        | H2         | [D | SH] | H1                   | encoding
//   matrix    | rgb out   | rgb next   | rgb first| density out          | density hidden
//
// At the end each block writes its sums to memory of its own; the optimizer adds the blocks' in order, so that the
// result does not depend on timing.
#pragma once

#include "fused_network.cuh"
#include "training.cuh"

namespace ngp::cuda {

struct FusedBackwardJob {
    ModelView model;
    StepView step;            // row i is sample step.order[i]; or, if step.state is null:
    const half* encodings;    // ... rows of fused_encoded
    const Vec3* directions;   // ...
    const RawSample* d_raw;   // ... gradients of the raw outputs, times loss_scale
    CompositeOptions options; // of the step
    const uint32_t* n;        // rows
    half* d_encodings;        // rows of fused_encoded
    half* d_harmonics;        // rows of fused_harmonics, for the kernel that has them; null: not wanted
    float* weight_gradients;  // one set of canonical matrices a block
};

constexpr int fused_harmonics = 16; // of a direction

template <int Width, int RgbHidden, int Tile>
struct FusedBackward {
    using Weights = FusedWeights<Width>;
    static constexpr int tile = Tile; // samples
    static constexpr int warps = Width > 64 ? 8 : (tile >= 64 ? 4 : tile / 16);
    static constexpr int threads = 32 * warps;
    static constexpr int row_tiles = tile / 16 / warps;
    static constexpr int narrow = Weights::narrow, wide = Weights::wide;
    static constexpr int slim = 16 + fused_row_padding;

    // Shared memory, in halves.
    static constexpr int encoded = (Weights::size(RgbHidden) + 63) / 64 * 64; // [tile][32]
    static constexpr int rgb_in = encoded + tile * narrow;                    // [tile][32]: D, then SH
    static constexpr int h1 = rgb_in + tile * narrow;                         // [tile][Width]
    static constexpr int h2 = h1 + tile * wide;
    static constexpr int h3 = h2 + tile * wide;                      // only if RgbHidden is 2
    static constexpr int d_out = h3 + (RgbHidden - 1) * tile * wide; // [tile][16]
    static constexpr int d_density = d_out + tile * slim;            // [tile] floats
    static constexpr int64_t shared_bytes = int64_t(d_density) * 2 + tile * 4;

    // 16 x 16 parts of a matrix [Out][In] that a warp sums: numbers first, first + 1, ...
    template <int Out, int In>
    struct MatrixPart {
        static constexpr int blocks_in = In / 16, blocks = (Out / 16) * blocks_in, each = (blocks + warps - 1) / warps;
        float sum[each][2][4] = {};

        // Adds dY^T X over the tile's rows.
        __device__ void add(const half* dy, int dy_stride, const half* x, int x_stride, int warp, int lane) {
#pragma unroll
            for (int i = 0; i < each; ++i) {
                const int block = warp * each + i;
                if (block >= blocks) return;
                const int out = 16 * (block / blocks_in), in = 16 * (block % blocks_in);
#pragma unroll
                for (int k = 0; k < tile / 16; ++k) {
                    const Fragment a = load_left_transposed(dy, dy_stride, 16 * k, out, lane);
                    const Fragment b = load_right(x, x_stride, 16 * k, in, lane);
                    multiply_add(sum[i][0], a, b.r[0], b.r[1]);
                    multiply_add(sum[i][1], a, b.r[2], b.r[3]);
                }
            }
        }
        __device__ void write(float* matrix, int columns, int warp, int lane) const {
#pragma unroll
            for (int i = 0; i < each; ++i) {
                const int block = warp * each + i;
                if (block >= blocks) return;
                const int out = 16 * (block / blocks_in) + (lane >> 2), in = 16 * (block % blocks_in) + 2 * (lane & 3);
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        const int column = in + 8 * n + (r & 1);
                        if (column < columns) matrix[(out + 8 * (r >> 1)) * columns + column] = sum[i][n][r];
                    }
            }
        }
    };

    template <int Columns>
    __device__ static void mask(Fragment (&d)[row_tiles][Columns], const half* h, int stride, int row0, int lane) {
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int k = 0; k < Columns; ++k) {
                const Fragment f = load_fragment(h, stride, row0 + 16 * m, 16 * k, lane);
#pragma unroll
                for (int r = 0; r < 4; ++r) d[m][k].r[r] = where_positive(d[m][k].r[r], f.r[r]);
            }
    }
    template <int Columns>
    __device__ static void store(const Fragment (&f)[row_tiles][Columns], half* to, int stride, int row0, int lane) {
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int k = 0; k < Columns; ++k) store_fragment(f[m][k], to, stride, row0 + 16 * m, 16 * k, lane);
    }

    // Few warps fit a multiprocessor, so they can't hide the way to memory: which sample is in the lane's row of the
    // next tile is read a tile ahead (no_sample: none), and what will be read of it is brought near.
    static constexpr uint32_t no_sample = 0xffffffffu;
    __device__ static uint32_t prefetch_order(const FusedBackwardJob& job, int64_t first, uint32_t n, int warp,
                                              int lane) {
        constexpr int rows = 16 * row_tiles;
        const int64_t i = first + warp * rows + lane;
        if (lane >= rows || i >= n) return no_sample;
        return job.step.state ? job.step.order[i] : uint32_t(i);
    }
    __device__ static void prefetch(const void* p) { asm volatile("prefetch.global.L1 [%0];" ::"l"(p)); }
    __device__ static void prefetch_rows(const FusedBackwardJob& job, uint32_t sample) {
        if (sample == no_sample || !job.step.state) return;
        prefetch(job.step.encodings + int64_t(sample) * fused_encoded);
        prefetch(job.step.raw + sample);
        prefetch(job.step.blends + sample);
        const uint32_t ray = job.step.samples[sample].ray;
        prefetch(job.step.outcomes + ray);
        prefetch(&job.step.rays[ray].march.direction);
    }

    // Loads the samples of the warp's rows; this lane's is `at`. `options` are step_options().
    __device__ static void load_rows(const FusedBackwardJob& job, const CompositeOptions& options, int64_t first,
                                     uint32_t at, uint32_t n, half* s, int warp, int lane) {
        constexpr int rows = 16 * row_tiles;
        if (lane >= rows) return;
        const int row = warp * rows + lane;
        const int64_t i = first + row;
        auto* const x = reinterpret_cast<uint4*>(s + encoded + row * narrow);
        auto* const d = reinterpret_cast<uint4*>(s + d_out + row * slim);
        RawSample g{{0, 0, 0}, 0};
        if (i < n) {
            const bool of_step = job.step.state != nullptr;
            const half* encodings = of_step ? job.step.encodings : job.encodings;
            const auto* from = reinterpret_cast<const uint4*>(encodings + int64_t(at) * fused_encoded);
#pragma unroll
            for (int k = 0; k < fused_encoded / 8; ++k) x[k] = from[k];
            g = of_step ? sample_gradient(job.step, options, at) : job.d_raw[i];
            const Vec3 direction =
                of_step ? job.step.rays[job.step.samples[at].ray].march.direction : job.directions[at];
            store_harmonics(direction, s + rgb_in + row * narrow + 16);
        } else {
#pragma unroll
            for (int k = 0; k < fused_encoded / 8; ++k) x[k] = make_uint4(0, 0, 0, 0);
            auto* const sh = reinterpret_cast<uint4*>(s + rgb_in + row * narrow + 16);
            sh[0] = sh[1] = make_uint4(0, 0, 0, 0);
        }
        d[0] = make_uint4(pack_saturated(g.rgb[0], g.rgb[1]), pack_saturated(g.rgb[2], 0.0f), 0, 0);
        d[1] = make_uint4(0, 0, 0, 0);
        reinterpret_cast<float*>(s + d_density)[row] = g.density;
    }

    // Forward through the warp's rows, leaving every layer's output in shared memory.
    __device__ static void forward(half* s, int row0, int lane) {
        Fragment in[row_tiles][2], h[row_tiles][Width / 16];
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int k = 0; k < 2; ++k) in[m][k] = load_left(s + encoded, narrow, row0 + 16 * m, 16 * k, lane);
        layer_forward<row_tiles, 32, Width>(s + Weights::density_hidden, narrow, in, h, true, lane);
        store(h, s + h1, wide, row0, lane);
        Fragment d[row_tiles][1];
        layer_forward<row_tiles, Width, 16>(s + Weights::density_out, wide, h, d, false, lane);
        store(d, s + rgb_in, narrow, row0, lane);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
            in[m][0] = d[m][0];
            in[m][1] = load_left(s + rgb_in, narrow, row0 + 16 * m, 16, lane);
        }
        layer_forward<row_tiles, 32, Width>(s + Weights::rgb_first, narrow, in, h, true, lane);
        store(h, s + h2, wide, row0, lane);
        if constexpr (RgbHidden > 1) {
            Fragment next[row_tiles][Width / 16];
            layer_forward<row_tiles, Width, Width>(s + Weights::rgb_next, wide, h, next, true, lane);
            store(next, s + h3, wide, row0, lane);
        }
    }

    static constexpr int next_width = RgbHidden > 1 ? Width : 16;
    struct Gradients {
        MatrixPart<Width, 32> density_hidden, rgb_first;
        MatrixPart<16, Width> density_out, rgb_out;
        MatrixPart<next_width, next_width> rgb_next; // unused with one hidden layer
    };

    // `Harmonics`: the gradients of the encoded directions too.
    template <bool Harmonics>
    __device__ static void run(const FusedBackwardJob& job, half* s) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, row0 = warp * 16 * row_tiles;
        Weights::load(job.model.weights, job.model.n_encoded, RgbHidden, s);
        Gradients sums;
        const uint32_t n = *job.n;
        const CompositeOptions options = job.step.state ? step_options(*job.step.state, job.options) : job.options;
        const int64_t stride = int64_t(gridDim.x) * tile;
        uint32_t next = prefetch_order(job, int64_t(blockIdx.x) * tile, n, warp, lane);
        for (int64_t first = int64_t(blockIdx.x) * tile; first < n; first += stride) {
            __syncthreads(); // weights are there; the last tile's activations are no longer read
            load_rows(job, options, first, next, n, s, warp, lane);
            next = prefetch_order(job, first + stride, n, warp, lane);
            __syncwarp();
            forward(s, row0, lane);
            __syncwarp();

            Fragment d_hidden[row_tiles][Width / 16];
            {
                Fragment d[row_tiles][1];
#pragma unroll
                for (int m = 0; m < row_tiles; ++m) d[m][0] = load_left(s + d_out, slim, row0 + 16 * m, 0, lane);
                layer_backward<row_tiles, 16, Width / 16>(s + Weights::rgb_out(RgbHidden), wide, d, d_hidden, lane);
            }
            prefetch_rows(job, next);
            half* last = s + (RgbHidden > 1 ? h3 : h2);
            mask(d_hidden, last, wide, row0, lane);
            __syncthreads();
            sums.rgb_out.add(s + d_out, slim, last, wide, warp, lane);
            __syncthreads();
            store(d_hidden, last, wide, row0, lane);
            if constexpr (RgbHidden > 1) {
                __syncthreads();
                sums.rgb_next.add(s + h3, wide, s + h2, wide, warp, lane);
                Fragment d[row_tiles][Width / 16];
                layer_backward<row_tiles, Width, Width / 16>(s + Weights::rgb_next, wide, d_hidden, d, lane);
                mask(d, s + h2, wide, row0, lane);
                __syncthreads();
                store(d, s + h2, wide, row0, lane);
#pragma unroll
                for (int m = 0; m < row_tiles; ++m)
#pragma unroll
                    for (int k = 0; k < Width / 16; ++k) d_hidden[m][k] = d[m][k];
            }
            // Of the rgb network's input only the density outputs have something before them to train.
            Fragment d_density_out[row_tiles][1];
            if constexpr (Harmonics) {
                Fragment d_in[row_tiles][2];
                layer_backward<row_tiles, Width, 2>(s + Weights::rgb_first, narrow, d_hidden, d_in, lane);
#pragma unroll
                for (int m = 0; m < row_tiles; ++m) d_density_out[m][0] = d_in[m][0];
                write_harmonics(d_in, job.d_harmonics, first + row0, n, lane);
            } else {
                layer_backward<row_tiles, Width, 1>(s + Weights::rgb_first, narrow, d_hidden, d_density_out, lane);
            }
            add_raw_density(d_density_out, reinterpret_cast<const float*>(s + d_density), row0, lane);
            store(d_density_out, s + d_out, slim, row0, lane); // its readers are two barriers behind
            __syncthreads();
            sums.rgb_first.add(s + h2, wide, s + rgb_in, narrow, warp, lane);
            sums.density_out.add(s + d_out, slim, s + h1, wide, warp, lane);
            layer_backward<row_tiles, 16, Width / 16>(s + Weights::density_out, wide, d_density_out, d_hidden, lane);
            mask(d_hidden, s + h1, wide, row0, lane);
            __syncthreads();
            store(d_hidden, s + h1, wide, row0, lane);
            Fragment d_encoded[row_tiles][2];
            layer_backward<row_tiles, Width, 2>(s + Weights::density_hidden, narrow, d_hidden, d_encoded, lane);
            write_rows(d_encoded, job.d_encodings, first + row0, n, lane);
            __syncthreads();
            sums.density_hidden.add(s + h1, wide, s + encoded, narrow, warp, lane);
        }
        write_sums(job, sums, warp, lane);
    }

    __device__ static void add_raw_density(Fragment (&d)[row_tiles][1], const float* raw, int row0, int lane) {
        if ((lane & 3) != 0) return; // column 0 is the low half of registers 0 and 1
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float2 v = __half22float2(as_half2(d[m][0].r[r]));
                d[m][0].r[r] = pack_saturated(v.x + raw[row0 + 16 * m + 8 * r + (lane >> 2)], v.y);
            }
    }
    __device__ static void write_rows(const Fragment (&f)[row_tiles][2], half* to, int64_t row0, uint32_t n, int lane) {
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int64_t row = row0 + 16 * m + (lane >> 2) + 8 * (r & 1);
                if (row >= n) continue;
#pragma unroll
                for (int k = 0; k < 2; ++k)
                    *reinterpret_cast<uint32_t*>(to + row * fused_encoded + 16 * k + 2 * (lane & 3) + 8 * (r >> 1)) =
                        f[m][k].r[r];
            }
    }
    // The second sixteen columns.
    __device__ static void write_harmonics(const Fragment (&f)[row_tiles][2], half* to, int64_t row0, uint32_t n,
                                           int lane) {
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int64_t row = row0 + 16 * m + (lane >> 2) + 8 * (r & 1);
                if (row < n)
                    *reinterpret_cast<uint32_t*>(to + row * fused_harmonics + 2 * (lane & 3) + 8 * (r >> 1)) =
                        f[m][1].r[r];
            }
    }
    __device__ static void write_sums(const FusedBackwardJob& job, const Gradients& sums, int warp, int lane) {
        const int n_encoded = job.model.n_encoded;
        const int n_weights = int(job.model.density.n_params() + job.model.rgb.n_params());
        float* to = job.weight_gradients + int64_t(blockIdx.x) * n_weights;
        sums.density_hidden.write(to, n_encoded, warp, lane);
        to += Width * n_encoded;
        sums.density_out.write(to, Width, warp, lane);
        to += 16 * Width;
        sums.rgb_first.write(to, 32, warp, lane);
        to += 32 * Width;
        if constexpr (RgbHidden > 1) {
            sums.rgb_next.write(to, Width, warp, lane);
            to += Width * Width;
        }
        sums.rgb_out.write(to, Width, warp, lane);
    }
};

template <int Width, int RgbHidden, int Tile, bool Harmonics>
__global__ void __launch_bounds__(FusedBackward<Width, RgbHidden, Tile>::threads, Width > 64 ? 1 : 2)
    fused_backward_kernel(const __grid_constant__ FusedBackwardJob job) {
    extern __shared__ __align__(128) char shared[];
    FusedBackward<Width, RgbHidden, Tile>::template run<Harmonics>(job, reinterpret_cast<half*>(shared));
}

} // namespace ngp::cuda
