// Stage: multilayer perceptrons without biases (specification D.3).
#pragma once

#include <ngp/core/buffer.h>
#include <ngp/core/config.h>
#include <vector>

namespace ngp {

constexpr int max_mlp_layers = 32;
constexpr int max_mlp_width = 1024;

// Layer k maps `in(k)` to `out(k)` features; canonical parameters are the row-major [out][in] matrices in order.
struct MlpShape {
    int n_layers = 0;                   // hidden layers + 1
    int n_in = 0, width = 0, n_out = 0; // padded
    bool hidden_relu = true;

    NGP_HD int in(int layer) const { return layer == 0 ? n_in : width; }
    NGP_HD int out(int layer) const { return layer == n_layers - 1 ? n_out : width; }
    NGP_HD uint32_t layer_params(int layer) const { return uint32_t(in(layer)) * uint32_t(out(layer)); }
    NGP_HD uint32_t n_params() const {
        uint32_t n = 0;
        for (int k = 0; k < n_layers; ++k) n += layer_params(k);
        return n;
    }
};

// Raises ngp::Error for shapes outside the limits above.
MlpShape mlp_shape(const MlpConfig& config, int n_in_padded, int n_out);

// Weights as the CPU kernels read them: every matrix twice, [in][out] for the forward product and [out][in] for the
// backward one, both sides padded with zeros to a multiple of 16.
class PackedMlp {
  public:
    PackedMlp() = default;
    explicit PackedMlp(const MlpShape& shape);
    void pack(const float* canonical);
    // Adds the padded [out][in] gradients to canonical ones.
    void unpack_gradient(const float* packed, float* canonical) const;

    const MlpShape& shape() const { return shape_; }
    const float* forward_weights() const { return forward_.data(); }
    const float* backward_weights() const { return backward_.data(); }
    int64_t packed_size() const { return int64_t(backward_.size()); }

  private:
    MlpShape shape_;
    AlignedVector<float> forward_, backward_;
};

NGP_HD int pad16(int n) { return (n + 15) & ~15; }

} // namespace ngp
