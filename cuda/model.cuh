// The radiance field as kernels see it, and what a network policy offers.
//
// Kernels that evaluate the field (training's forward pass, queries, occupancy updates, rendering) are templates over a
// network policy:
//   FusedNetwork<Width>  (fused_network.cuh)   common shapes: a warp evaluates 32 samples on the tensor cores, weights
//   in
//                                              shared memory, activations in registers
//   GeneralNetwork       (general_network.cuh) every other shape: a thread evaluates its sample by itself
//
// A policy `Net` has
//   static constexpr int threads;             // of a block
//   static int64_t shared_bytes(const ModelView&);   // dynamic shared memory of a block
//   static int64_t scratch_bytes(const ModelView&);  // global memory a thread needs
//   __device__ Net(const ModelView& model, char* shared, char* scratch); // by all threads of a block, which it
//                                                           // synchronises; `shared` is 128-byte aligned, `scratch`
//                                                           // that of the whole grid
//   __device__ RawSample evaluate(Vec3 x, Vec3 direction);  // by all lanes of a warp, each with a sample of its own;
//                                                           // x: position in the unit cube, clamped to it
//   __device__ RawSample evaluate(Vec3 x, Vec3 direction, int64_t row); // likewise, with a row of the model's extra
//                                                           // dimensions; above: row 0 (GeneralNetwork only)
//   __device__ RawSample evaluate_and_see(Vec3 x, Vec3 direction, int64_t row, VisualizedActivation wanted,
//                                         float& activation); // ... and an activation (GeneralNetwork only)
//   using CutLevels = ...;                   // policy that can cut levels: itself, or one of its own for that
//   __device__ void set_max_level(float v);  // of CutLevels: share of the grid levels that the lane's samples see from
//   now
//                                            // on (formulas/level_cut.h)
//   __device__ float density(Vec3 x);                       // raw density alone
//   __device__ Vec3 density_gradient(Vec3 x, float finest_scale); // of the raw density with respect to x, where levels
//                                                           // with scale > finest_scale count as constant
//   __device__ void store_encoding(half* row);              // the lane's encoding in the last evaluate() or density()
//                                                           // (FusedNetwork only: fused_encoded halves)
// Lanes without a sample pass any finite position.
#pragma once

#include <cuda_fp16.h>
#include <ngp/stages/compositing.h>
#include <ngp/stages/encoding.h>
#include <ngp/stages/mlp.h>
#include <ngp/stages/render_mode.h>

namespace ngp::cuda {

using half = __half;

// The levels of one grid, small enough for a kernel's parameters.
struct GridShape {
    GridLevel levels[max_grid_levels];
    int n_levels = 0, n_features = 0;
    GridType type = GridType::Hash;
    Interpolation interpolation = Interpolation::Linear;
    int in_begin = 0, n_in = 3; // axes of the position
};

// Whether a grid has its cells found by find_cell() (grid_level.cuh): over three dimensions, not nearest. Others take
// the slower functions for any number of dimensions.
NGP_HD bool takes_find_cell(int n_in, Interpolation interpolation) {
    return n_in == 3 && interpolation != Interpolation::Nearest;
}

struct ModelView {
    GridShape grid;                          // the first grid of the position encoding
    const EncodingShape* position = nullptr; // on the device; for GeneralNetwork
    const EncodingShape* direction = nullptr;
    int n_encoded = 0; // position->n_out_padded
    MlpShape density, rgb;
    const half* encoding = nullptr; // parameters of the position encoding
    const half* weights = nullptr;  // matrices of the density network, then of the rgb network, row-major [out][in]
    Vec3 box_min{0, 0, 0}, inverse_size{1, 1, 1};
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    // Inputs of the direction encoding after the direction (ViewInputs), n_extra_dims() of them, on the device: row r
    // begins at r * extra_dims_stride. In training row v is that of view v; stride 0: all samples have the same. Null:
    // there are none. GeneralNetwork only.
    const float* extra_dims = nullptr;
    int extra_dims_stride = 0;

    NGP_HD const float* extra_dims_of(int64_t row) const { return extra_dims + row * extra_dims_stride; }
    // Into the unit cube; NaN becomes 0, since cells are computed from the result without further checks.
    NGP_HD Vec3 unit(Vec3 p) const {
        const Vec3 x = (p - box_min) * inverse_size;
        auto clamped = [](float v) { return v > 0.0f ? min_of(v, 1.0f) : 0.0f; };
        return {clamped(x.x), clamped(x.y), clamped(x.z)};
    }
};

// Net::evaluate() with a row of extra dimensions, where the policy knows any.
template <typename Net>
__device__ RawSample evaluate_with(Net& net, Vec3 x, Vec3 direction, [[maybe_unused]] int64_t row) {
    if constexpr (requires { net.evaluate(x, direction, row); })
        return net.evaluate(x, direction, row);
    else
        return net.evaluate(x, direction);
}

// Global memory that a policy's threads share out (GeneralNetwork's activations).
struct ScratchView {
    char* data = nullptr;
    int64_t size = 0;
};

// Whether FusedNetwork covers the model.
inline bool fused(const EncodingShape& position, const EncodingShape& direction, const MlpShape& density,
                  const MlpShape& rgb) {
    const EncodingPart& grid = position.parts[0];
    const EncodingPart& sh = direction.parts[0];
    const bool one_grid = position.n_parts == 1 && grid.kind == EncodingKind::Grid &&
                          takes_find_cell(grid.n_in, grid.interpolation) && grid.grid_type != GridType::Tiled &&
                          grid.n_features <= 4 && grid.n_features >= 2 && position.n_out_padded <= 32;
    const bool harmonics = direction.n_parts == 1 && sh.kind == EncodingKind::SphericalHarmonics && sh.degree == 4 &&
                           direction.n_out_padded == 16;
    const int w = density.width;
    const bool width = w == rgb.width && (w == 16 || w == 32 || w == 64 || w == 128);
    return one_grid && harmonics && width && density.n_layers == 2 && rgb.n_layers >= 2 && rgb.n_layers <= 3 &&
           density.hidden_relu && rgb.hidden_relu && density.n_out == 16 && rgb.n_out == 16 && rgb.n_in == 32 &&
           density.n_in == position.n_out_padded;
}

} // namespace ngp::cuda
