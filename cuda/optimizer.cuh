// Adam and the moving average of weights on the device (specification E.1; stages/optimizer.h is the CPU's).
#pragma once

#include "scatter.cuh"

#include <ngp/formulas/adam_update.h>
#include <ngp/stages/optimizer.h>

namespace ngp::cuda {

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
    int max_gradient_blocks() const { return max_blocks_; }
    float* table_gradient(size_t param_begin) const {
        return deterministic_ ? nullptr : gradient_.data() + param_begin;
    }
    FixedPoint* fixed_table_gradient(size_t param_begin) const {
        return deterministic_ ? fixed_gradient_.data() + param_begin : nullptr;
    }

    // Host side of a step: brings the tables of step sizes to the learning rate of training step `step`.
    void prepare(uint32_t step);
    // Device side: one step, `blocks` sets of weight gradients; divides by *n_rays * loss_scale. Capturable. Counters
    // in `state` are advanced by the caller afterwards.
    void launch(const StepState* state, int blocks, NerfOptimizer::Trained trained);

    // Averaged weights as halves, for rendering, with the counters of finished steps.
    void launch_averaged(uint32_t matrix_steps, uint32_t encoding_steps, half* matrices, half* encoding);
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
    struct Segment {  // consecutive entries of one grid
        size_t begin; // parameter within the encoding
        int64_t n_entries, first_entry;
        int n_features;
    };
    Context& context_;
    AdamSettings settings_;
    size_t n_matrix_, n_encoding_;
    int max_blocks_;
    bool deterministic_;
    std::vector<Segment> grids_;
    int64_t n_entries_ = 0;
    DeviceArray<float> masters_;         // matrices, then encoding
    DeviceArray<half> halves_;           // likewise, the encoding aligned
    DeviceArray<float> m_, v_, average_; // likewise, as masters_
    DeviceArray<uint2> counters_;        // of entries: updates, step of the average
    DeviceArray<float> weight_gradients_, gradient_;
    DeviceArray<FixedPoint> fixed_gradient_;
    DeviceArray<float> step_size_, ema_power_;
    PinnedArray<float> host_step_size_;
    float table_rate_ = -1; // learning rate that step_size_ holds
};

} // namespace ngp::cuda
