// FusedNetwork: the network policy (model.cuh) of the common shapes, and the layout of weights in shared memory that
// the fused backward pass shares.
//
// Shapes (fused() in model.cuh): one grid of 2 or 4 features with at most 32 outputs; density network with one hidden
// layer; spherical harmonics of degree 4; rgb network with one or two hidden layers; all hidden layers Width wide with
// ReLU. Operands are halves, sums are floats. A warp evaluates 32 samples, one a lane: every lane gathers and
// interpolates its own encoding, then the warp takes the 32 rows through the layers in registers (tensor_core.cuh).
#pragma once

#include "grid_level.cuh"
#include "model.cuh"
#include "tensor_core.cuh"

#include <ngp/formulas/level_cut.h>
#include <ngp/formulas/sh_basis.h>

namespace ngp::cuda {

constexpr int fused_encoded = 32;    // encoding columns; fewer outputs are padded with zeros
constexpr int fused_row_padding = 8; // halves after each row, so that 8 rows' 16-byte pieces are in different banks

// Weights in shared memory, every matrix row-major [out][in] with padded rows.
template <int Width>
struct FusedWeights {
    static constexpr int narrow = fused_encoded + fused_row_padding, wide = Width + fused_row_padding; // strides
    static constexpr int density_hidden = 0;                                                           // [Width][32]
    static constexpr int density_out = density_hidden + Width * narrow;                                // [16][Width]
    static constexpr int rgb_first = density_out + 16 * wide;                                          // [Width][32]
    static constexpr int rgb_next = rgb_first + Width * narrow;        // [Width][Width], if there are two
    __host__ __device__ static constexpr int rgb_out(int rgb_hidden) { // [16][Width]
        return rgb_next + (rgb_hidden - 1) * Width * wide;
    }
    // `out_rows`: of the last matrix that are kept, at least as many as there are colours.
    __host__ __device__ static constexpr int size(int rgb_hidden, int out_rows = 16) {
        return rgb_out(rgb_hidden) + out_rows * wide;
    }

    // From the canonical matrices, by all threads of a block.
    __device__ static void load(const half* canonical, int n_encoded, int rgb_hidden, half* shared, int out_rows = 16) {
        auto copy = [&](int rows, int columns, int stride, half* to) {
            for (int i = threadIdx.x; i < rows * columns; i += blockDim.x)
                to[i / columns * stride + i % columns] = canonical[i];
            canonical += rows * columns;
        };
        if (n_encoded < fused_encoded)
            for (int i = threadIdx.x; i < Width * narrow; i += blockDim.x) shared[density_hidden + i] = half(0.0f);
        if (n_encoded < fused_encoded) __syncthreads();
        copy(Width, n_encoded, narrow, shared + density_hidden);
        copy(16, Width, wide, shared + density_out);
        copy(Width, 32, narrow, shared + rgb_first);
        if (rgb_hidden > 1) copy(Width, Width, wide, shared + rgb_next);
        copy(out_rows, Width, wide, shared + rgb_out(rgb_hidden));
    }
};

// Spherical harmonics of a unit direction as halves, 16 of them to `row` (16-byte aligned).
__device__ __forceinline__ void store_harmonics(Vec3 direction, half* row) {
    // What the network sees is (d+1)/2 (D.3); the basis takes it back.
    float sh[16];
    sh_basis(4, direction, sh);
    uint32_t packed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) packed[i] = pack_halves(sh[2 * i], sh[2 * i + 1]);
    auto* to = reinterpret_cast<uint4*>(row);
    to[0] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    to[1] = make_uint4(packed[4], packed[5], packed[6], packed[7]);
}

// `Cut`: with max levels. `Lean`: what is staged takes less shared memory, which leaves more of it to the first-level
// cache; encodings are gone after evaluate(). Template's own instances, so that other kernels are as they would be
// without.
template <int Width, bool Cut = false, bool Lean = false>
class FusedNetwork {
    using Weights = FusedWeights<Width>;
    static constexpr int row_tiles = 2; // 32 samples
    static constexpr int harmonics_stride = 16 + fused_row_padding;

    // What a warp stages for its samples: encodings, then harmonics, then outputs. Later ones may take the place of
    // what has been read.
    struct alignas(16) Encoded {
        half rows[32 * Weights::narrow];
    };
    struct alignas(16) Harmonics {
        half rows[32 * harmonics_stride];
    };
    static constexpr int out_rows = Lean && Width > 16 ? 8 : 16; // of the last weights
    static constexpr int64_t later_at = Lean ? 0 : sizeof(Encoded);
    static constexpr int64_t staging_bytes = Lean ? sizeof(Encoded) : sizeof(Encoded) + sizeof(Harmonics);
    static_assert(sizeof(Harmonics) <= sizeof(Encoded) && 32 * sizeof(RawSample) <= sizeof(Harmonics));

  public:
    static constexpr int threads = Lean ? 512 : 256; // which share the weights
    using CutLevels = FusedNetwork<Width, true>;
    using OfPictures = FusedNetwork<Width, false, true>; // for kernels that call evaluate() only

    static int64_t shared_bytes(const ModelView& m) {
        return weight_bytes(m.rgb.n_layers - 1) + int64_t(threads / 32) * staging_bytes;
    }
    static int64_t scratch_bytes(const ModelView&) { return 0; }

    __device__ FusedNetwork(const ModelView& model, char* shared, char*) : model_(model), lane_(threadIdx.x & 31) {
        weights_ = reinterpret_cast<half*>(shared);
        staging_ = shared + weight_bytes(rgb_hidden()) + threadIdx.x / 32 * staging_bytes;
        Weights::load(model.weights, model.n_encoded, rgb_hidden(), weights_, out_rows);
        __syncthreads();
    }

    __device__ void set_max_level(float max_level)
        requires Cut
    {
        max_level_ = max_level;
    }

    __device__ RawSample evaluate(Vec3 x, Vec3 direction) {
        __syncwarp();
        encode(x);
        if constexpr (!Lean) store_harmonics(direction, harmonics() + lane_ * harmonics_stride);
        __syncwarp();
        Fragment hidden[row_tiles][Width / 16], rgb_in[row_tiles][2];
        density_hidden(hidden);
        if constexpr (Lean) {
            __syncwarp();
            store_harmonics(direction, harmonics() + lane_ * harmonics_stride);
            __syncwarp();
        }
        float raw[row_tiles][2];
        density_out(hidden, raw, rgb_in);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) rgb_in[m][1] = load_left(harmonics(), harmonics_stride, 16 * m, 0, lane_);
        layer_forward<row_tiles, 32, Width>(weights_ + Weights::rgb_first, Weights::narrow, rgb_in, hidden, true,
                                            lane_);
        if (rgb_hidden() > 1) {
            Fragment next[row_tiles][Width / 16];
            layer_forward<row_tiles, Width, Width>(weights_ + Weights::rgb_next, Weights::wide, hidden, next, true,
                                                   lane_);
#pragma unroll
            for (int m = 0; m < row_tiles; ++m)
#pragma unroll
                for (int k = 0; k < Width / 16; ++k) hidden[m][k] = next[m][k];
        }
        float sum[row_tiles][4] = {}; // only the first eight outputs: three are used
        rgb_out(hidden, sum);
        float blue[row_tiles][2]; // of the next lane, which is where it is
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) blue[m][h] = __shfl_down_sync(0xffffffffu, sum[m][2 * h], 1);
        __syncwarp(); // the harmonics have been read
        if ((lane_ & 3) == 0)
#pragma unroll
            for (int m = 0; m < row_tiles; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    reinterpret_cast<float4*>(out())[16 * m + 8 * h + (lane_ >> 2)] =
                        make_float4(sum[m][2 * h], sum[m][2 * h + 1], blue[m][h], raw[m][h]);
        __syncwarp();
        const float4 sample = reinterpret_cast<const float4*>(out())[lane_];
        return {{sample.x, sample.y, sample.z}, sample.w};
    }

    __device__ float density(Vec3 x) {
        __syncwarp();
        encode(x);
        __syncwarp();
        Fragment hidden[row_tiles][Width / 16];
        density_hidden(hidden);
        float raw[row_tiles][2];
        Fragment unused[row_tiles][2];
        density_out(hidden, raw, unused);
        if ((lane_ & 3) == 0)
#pragma unroll
            for (int m = 0; m < row_tiles; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) out()[16 * m + 8 * h + (lane_ >> 2)].density = raw[m][h];
        __syncwarp();
        return out()[lane_].density;
    }

    // Follows evaluate() or density() of the same x, whose encodings are still staged.
    __device__ Vec3 density_gradient(Vec3 x, float finest_scale) {
        Fragment d_hidden[row_tiles][Width / 16], d_encoded[row_tiles][2];
        density_hidden(d_hidden);
        const half* out_row = weights_ + Weights::density_out; // of output 0, whose gradient is 1
#pragma unroll
        for (int k = 0; k < Width / 16; ++k)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const uint32_t w =
                    *reinterpret_cast<const uint32_t*>(out_row + 16 * k + 2 * (lane_ & 3) + 8 * (r >> 1));
#pragma unroll
                for (int m = 0; m < row_tiles; ++m) d_hidden[m][k].r[r] = where_positive(w, d_hidden[m][k].r[r]);
            }
        layer_backward<row_tiles, Width, 2>(weights_ + Weights::density_hidden, Weights::narrow, d_hidden, d_encoded,
                                            lane_);
        __syncwarp();
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
                store_fragment(d_encoded[m][n], encoded(), Weights::narrow, 16 * m, 16 * n, lane_);
        __syncwarp();
        const half* d = encoded() + lane_ * Weights::narrow;
        if (model_.grid.n_features == 4) return position_gradient<4>(x, d, finest_scale);
        return position_gradient<2>(x, d, finest_scale);
    }

    // The lane's encoding in the last evaluate() or density(), fused_encoded halves.
    __device__ void store_encoding(half* row) const {
        const auto* from = reinterpret_cast<const uint4*>(encoded() + lane_ * Weights::narrow);
#pragma unroll
        for (int i = 0; i < fused_encoded / 8; ++i) reinterpret_cast<uint4*>(row)[i] = from[i];
    }

  private:
    __device__ half* encoded() const { return reinterpret_cast<Encoded*>(staging_)->rows; }
    __device__ half* harmonics() const { return reinterpret_cast<Harmonics*>(staging_ + later_at)->rows; }
    __device__ RawSample* out() const { return reinterpret_cast<RawSample*>(staging_ + later_at); }

    __host__ __device__ static int64_t weight_bytes(int rgb_hidden) {
        return (int64_t(Weights::size(rgb_hidden, out_rows)) * 2 + 127) / 128 * 128;
    }
    __device__ int rgb_hidden() const { return model_.rgb.n_layers - 1; }

    __device__ void encode(Vec3 x) {
        half* row = encoded() + lane_ * Weights::narrow;
        if (model_.grid.n_features == 2)
            encode_levels<2>(x, row);
        else if (model_.grid.interpolation != Interpolation::Linear)
            encode_levels<4>(x, row);
        else
            encode_linear_levels(x, row);
    }
    __device__ static uint2 combine_linear(const LevelEntries<4>& got) {
        __half2 value[2];
        combine<4>(Interpolation::Linear, got, value);
        return make_uint2(as_bits(value[0]), as_bits(value[1]));
    }
    template <int F>
    __device__ void combine_level(Interpolation mode, int l, const LevelEntries<F>& got, half* row) const {
        __half2 value[F / 2];
        combine<F>(mode, got, value);
        if constexpr (F == 4)
            *reinterpret_cast<uint2*>(row + 4 * l) = make_uint2(as_bits(value[0]), as_bits(value[1]));
        else
            *reinterpret_cast<uint32_t*>(row + 2 * l) = as_bits(value[0]);
    }
    // A level's entries are on their way while those of the level before are combined. No more of them, and nothing
    // unrolled: a kernel whose loop does not fit the instruction cache waits for instructions (render_kernel.cuh).
    template <int F>
    __device__ void encode_levels(Vec3 x, half* row) const {
        int n = model_.grid.n_levels;
        if constexpr (Cut) n = levels_below(max_level_, n); // the others' columns are zero, as padding is
        LevelEntries<F> here, next;
        gather<F>(model_.grid, 0, model_.encoding, x, next);
#pragma unroll 1
        for (int l = 0; l < n; ++l) {
            here = next;
            if (l + 1 < n) gather<F>(model_.grid, l + 1, model_.encoding, x, next);
            combine_level<F>(model_.grid.interpolation, l, here, row);
        }
        pad(n * F, row);
    }
    // The same for the usual grid, two levels a turn: nothing has to be moved from `next` to `here`.
    __device__ void encode_linear_levels(Vec3 x, half* row) const {
        const int n = model_.grid.n_levels;
        LevelEntries<4> even, odd;
        gather<4>(model_.grid, 0, model_.encoding, x, even);
#pragma unroll 1
        for (int l = 0;; l += 2) {
            if (l + 1 < n) gather<4>(model_.grid, l + 1, model_.encoding, x, odd);
            const uint2 low = combine_linear(even);
            if (l + 1 >= n) {
                *reinterpret_cast<uint2*>(row + 4 * l) = low;
                break;
            }
            if (l + 2 < n) gather<4>(model_.grid, l + 2, model_.encoding, x, even);
            const uint2 high = combine_linear(odd);
            *reinterpret_cast<uint4*>(row + 4 * l) = make_uint4(low.x, low.y, high.x, high.y);
            if (l + 2 >= n) break;
        }
        pad(n * 4, row);
    }
    __device__ static void pad(int begin, half* row) {
        for (int i = begin; i < fused_encoded; i += 2) *reinterpret_cast<uint32_t*>(row + i) = 0;
    }
    template <int F>
    __device__ Vec3 position_gradient(Vec3 x, const half* d, float finest_scale) const {
        Vec3 sum;
        for (int l = 0; l < model_.grid.n_levels; ++l) {
            if (l > 0 && model_.grid.levels[l].scale > finest_scale) continue;
            float g[F];
#pragma unroll
            for (int f = 0; f < F; ++f) g[f] = __half2float(d[F * l + f]);
            sum += level_position_gradient<F>(model_.grid, l, model_.encoding, x, g);
        }
        return sum;
    }

    __device__ void density_hidden(Fragment (&hidden)[row_tiles][Width / 16]) const {
        Fragment in[row_tiles][2];
#pragma unroll
        for (int m = 0; m < row_tiles; ++m)
#pragma unroll
            for (int k = 0; k < 2; ++k) in[m][k] = load_left(encoded(), Weights::narrow, 16 * m, 16 * k, lane_);
        layer_forward<row_tiles, 32, Width>(weights_ + Weights::density_hidden, Weights::narrow, in, hidden, true,
                                            lane_);
    }
    // raw: output 0 of rows g and g + 8, valid where lane % 4 is 0; all sixteen outputs become rgb_in[.][0].
    __device__ void density_out(const Fragment (&hidden)[row_tiles][Width / 16], float (&raw)[row_tiles][2],
                                Fragment (&rgb_in)[row_tiles][2]) const {
        float sum[row_tiles][2][4] = {};
#pragma unroll
        for (int k = 0; k < Width / 16; ++k) {
            const Fragment w = load_right_by_columns(weights_ + Weights::density_out, Weights::wide, 16 * k, 0, lane_);
#pragma unroll
            for (int m = 0; m < row_tiles; ++m) {
                multiply_add(sum[m][0], hidden[m][k], w.r[0], w.r[1]);
                multiply_add(sum[m][1], hidden[m][k], w.r[2], w.r[3]);
            }
        }
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
            raw[m][0] = sum[m][0][0];
            raw[m][1] = sum[m][0][2];
            rgb_in[m][0] = to_fragment(sum[m][0], sum[m][1]);
        }
    }

    // Sums of the first eight outputs.
    __device__ void rgb_out(const Fragment (&hidden)[row_tiles][Width / 16], float (&sum)[row_tiles][4]) const {
        const half* weights = weights_ + Weights::rgb_out(rgb_hidden());
        if constexpr (Width == 16) {
            const Fragment w = load_right_by_columns(weights, Weights::wide, 0, 0, lane_);
#pragma unroll
            for (int m = 0; m < row_tiles; ++m) multiply_add(sum[m], hidden[m][0], w.r[0], w.r[1]);
        } else {
#pragma unroll
            for (int k = 0; k < Width / 16; k += 2) {
                const Fragment w = load_narrow_right_by_columns(weights, Weights::wide, 16 * k, 0, lane_);
#pragma unroll
                for (int m = 0; m < row_tiles; ++m) {
                    multiply_add(sum[m], hidden[m][k], w.r[0], w.r[1]);
                    multiply_add(sum[m], hidden[m][k + 1], w.r[2], w.r[3]);
                }
            }
        }
    }

    const ModelView& model_;
    half* weights_;
    char* staging_; // of the warp
    int lane_;
    [[maybe_unused]] float max_level_ = 1.0f; // of Cut
};

} // namespace ngp::cuda
