// Adam and the moving average of weights on the device (specification E.1; stages/optimizer.h is the CPU's).
#pragma once

#include "scatter.cuh"

#include <ngp/formulas/adam_update.h>
#include <ngp/stages/optimizer.h>

namespace ngp::cuda {

// First moments are kept as halves in this unit: gradients of the mean loss are small.
constexpr float first_moment_unit = 1.0f / 1048576.0f;

// All that the optimizer knows of a table entry, in one record that a thread reads and writes at once: of entries
// without a gradient, no memory is touched. 64 bytes for four features.
template <int F>
struct alignas(F == 1 ? 8 : (F == 2 ? 8 : 16)) EntryRecord {
    float weight[F], second[F], average[F];
    half first[F];     // times 1/first_moment_unit
    uint32_t updates;  // so far
    uint32_t averaged; // step of the stored average
};

// Optimizer of all parameters of a model. Parameters live here: float masters, and halves for the kernels.
class DeviceOptimizer {
  public:
    DeviceOptimizer(Context& context, const AdamSettings& settings, size_t n_matrix, const EncodingShape& encoding,
                    int max_gradient_blocks, bool deterministic);

    // Sets masters and halves, and restarts.
    void set_params(const std::vector<float>& canonical);
    void set_masters(const std::vector<float>& canonical); // without restarting
    std::vector<float> params() const;

    const half* matrix_halves() const { return halves_.data(); }
    const half* encoding_halves() const { return halves_.data() + n_matrix_padded(); }
    // Where the backward pass leaves its weight gradients: one set a block.
    float* weight_gradients() const { return weight_gradients_.data(); }
    // Where the scatter adds the table's.
    TableGradient table_gradient() const;

    // Host side of a step: brings the table of step sizes to the learning rate of training step `step`.
    void prepare(uint32_t step);
    // Device side: one step, `blocks` sets of weight gradients; divides by n_rays_used * loss_scale, and zeroes the
    // table's gradient. Capturable. Counters in `state` are advanced by the caller afterwards.
    void launch(const StepState* state, int blocks, NerfOptimizer::Trained trained);

    // Averaged weights with the counters of finished steps: as halves, for rendering, as floats, or both (null: not).
    struct Averages {
        half *matrix_halves = nullptr, *encoding_halves = nullptr;
        float *matrix_floats = nullptr, *encoding_floats = nullptr;
    };
    void launch_averaged(uint32_t matrix_steps, uint32_t encoding_steps, const Averages& to);
    std::vector<float> averaged(uint32_t matrix_steps, uint32_t encoding_steps);

    // The CPU's form (stages/optimizer.h), for snapshots.
    NerfOptimizer::State state() const;
    void set_state(const NerfOptimizer::State& state);

    // For tests: canonical gradient of the loss summed over rays.
    std::vector<float> gradient(int blocks) const;
    void set_gradient(const std::vector<float>& gradient);
    void clear_weight_gradients() { weight_gradients_.zero(); }

    size_t n_matrix() const { return n_matrix_; }
    size_t n_matrix_padded() const { return (n_matrix_ + 63) / 64 * 64; } // so that the table is aligned

  private:
    void zero_table_gradient();
    int64_t float_params() const { return int64_t(n_float_entries_) * n_features_; }

    Context& context_;
    AdamSettings settings_;
    size_t n_matrix_;
    size_t n_encoding_ = 0; // parameters of the grid, of which there is at most one
    int64_t n_entries_ = 0;
    int n_features_ = 1;
    uint32_t n_float_entries_ = 0;
    int n_float_levels_ = 0;
    bool deterministic_;
    DeviceArray<half> halves_; // matrices, then encoding, aligned
    DeviceArray<float> matrix_weight_, matrix_first_, matrix_second_, matrix_average_;
    DeviceArray<char> records_; // EntryRecord of every entry
    DeviceArray<float> weight_gradients_, float_gradient_;
    DeviceArray<half> half_gradient_;
    DeviceArray<FixedPoint> fixed_gradient_;
    DeviceArray<float> step_size_, ema_power_;
    float table_rate_ = -1; // learning rate that step_size_ holds
};

} // namespace ngp::cuda
