// Stage: Adam with per-entry step counters, learning-rate decay and a moving average of the weights (specification
// E.1).
#pragma once

#include <ngp/core/buffer.h>
#include <ngp/cpu/kernels.h>
#include <vector>

namespace ngp {

// Learning rate of the step that follows `steps` finished ones: times decay_base at decay_start and every
// decay_interval from there.
float decayed_learning_rate(const AdamSettings& s, uint32_t steps);

// Length of a table of a decay's powers, from the zeroth: those beyond its end are negligible (1e-13).
int optimizer_table_length(double decay);

// Optimizer of the network weights: every weight is updated in every step.
struct DenseOptimizer {
    std::vector<float> m, v, average;

    void reset(size_t n);
};

// Everything about the optimizers that training continues from.
class NerfOptimizer {
  public:
    void reset(const AdamSettings& settings, size_t n_matrix, const EncodingShape& encoding);

    // One step over all parameters; gradients are those of the loss summed over rays, scaled by `gradient_scale`, and
    // are zeroed. `params`: matrices, then the encoding's. What is not trained keeps its bytes, averages included.
    struct Trained {
        bool matrices = true, encoding = true;
    };
    void step(const NerfKernels& kernels, float* params, float* gradient, float gradient_scale, uint32_t training_step,
              Trained trained);

    // Averaged weights, or the weights themselves where no average is kept.
    void averaged(const float* params, float* out) const;

    uint32_t steps() const { return encoding_steps_; }

    int64_t bytes() const { return int64_t(entries_.size() + 3 * n_matrix_) * 4; }

    // Exact state, for snapshots: steps in which each kind was trained, then the arrays.
    struct State {
        uint32_t matrix_steps = 0, encoding_steps = 0;
        std::vector<float> matrix_m, matrix_v, matrix_average;
        std::vector<float> entries; // records of optimizer_record(features) floats
    };
    State state() const;
    void set_state(const State& state); // raises ngp::Error if sizes differ

  private:
    struct GridSegment { // consecutive entries of one grid part
        size_t param_begin;
        size_t state_begin;
        int64_t n_entries;
        int n_features;
    };
    void fill_tables(float learning_rate);

    AdamSettings settings_;
    size_t n_matrix_ = 0;
    DenseOptimizer matrix_;
    std::vector<GridSegment> grids_;
    AlignedVector<float> entries_;
    std::vector<float> step_size_, ema_power_;
    uint32_t matrix_steps_ = 0, encoding_steps_ = 0;
};

} // namespace ngp
