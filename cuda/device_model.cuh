// A model on the device: shapes, parameters and optimizer, and the choice between fused and general kernels.
#pragma once

#include "general_backward.cuh"
#include "network.cuh"
#include "optimizer.cuh"
#include "ray_gradients.cuh"

#include <memory>
#include <ngp/fields/nerf.h>

namespace ngp::cuda {

// Gradients that a backward pass leaves besides those of the parameters: of positions and directions, of the extra
// dimensions.
struct InputGradients {
    bool rays = false, extra_dims = false;
    bool operator==(const InputGradients&) const = default;
};

class DeviceModel {
  public:
    DeviceModel(Context& context, const NerfModelShape& shape, const AdamSettings& settings, const Aabb& box,
                bool deterministic);

    const NerfModelShape& shape() const { return shape_; }
    const NetworkFunctions& functions() const { return *functions_; }
    DeviceOptimizer& optimizer() { return *optimizer_; }
    const DeviceOptimizer& optimizer() const { return *optimizer_; }
    const Aabb& box() const { return box_; }
    bool is_fused() const { return functions_->backward != nullptr; }

    // Weights that are trained; and their averages, brought up to the given counters where `stale`.
    ModelView trained(Activation rgb, Activation density) const;
    ModelView averaged(Activation rgb, Activation density) const;
    void refresh_averaged(uint32_t matrix_steps, uint32_t encoding_steps);

    // Scratch memory of forward kernels.
    ScratchView scratch() const { return {scratch_.data(), scratch_.size()}; }
    ScratchView render_scratch(const NetworkFunctions& functions, const RenderJob& job);

    // Sets of weight gradients that a backward pass leaves.
    int gradient_blocks() const { return gradient_blocks_; }
    // Gradients of the position encoding's outputs: rows that a backward pass writes and the scatter reads; and those
    // of inputs.
    void reserve_encoding_gradients(int64_t rows, InputGradients wanted = {});
    void release_encoding_gradients();
    bool has_encoding_gradients(int64_t rows, InputGradients wanted) const {
        return encoding_gradient_rows_ >= rows && reserved_inputs_ == wanted;
    }

    // What the backward pass reads: the samples of a step, in order; or, if step.state is null, rows as they are.
    struct BackwardSource {
        StepView step;
        CompositeOptions options;        // of the step
        const Vec3* positions = nullptr; // ... NGP space
        const Vec3* directions = nullptr;
        const half* encodings = nullptr;  // of a fused model
        const RawSample* d_raw = nullptr; // times loss_scale
        const uint32_t* n = nullptr;
        int64_t capacity = 0;
        InputGradients inputs;      // wanted; reserved
        bool random_levels = false; // of the step's rays
    };
    // All are capturable. Weight gradients replace those of the last pass; the scatter adds to the table's.
    void launch_backward(const ModelView& view, const BackwardSource& source);
    void launch_scatter_gradients(const BackwardSource& source);
    // After a backward pass that left gradients of rays: RayGradientsJob.
    void launch_ray_gradients(const ModelView& view, const BackwardSource& source, float finest_scale,
                              RayGradient* rays, Vec3* d_color);
    // Of the last backward pass, times loss_scale: a row of the model's extra dimensions a sample.
    const float* extra_dims_gradients() const { return d_extra_dims_.data(); }

  private:
    ModelView view(const half* matrices, const half* encoding, Activation rgb, Activation density) const;

    Context& context_;
    NerfModelShape shape_;
    Aabb box_;
    const NetworkFunctions* functions_;
    int gradient_blocks_ = 1;
    int64_t encoding_gradient_rows_ = 0;
    InputGradients reserved_inputs_;
    std::unique_ptr<DeviceOptimizer> optimizer_;
    std::unique_ptr<GeneralBackward> general_backward_;
    DeviceArray<EncodingShape> encodings_; // position, direction
    DeviceArray<half> averaged_;           // as the optimizer's halves
    DeviceArray<char> scratch_, render_scratch_;
    DeviceArray<half> d_encodings_, d_harmonics_; // fused
    DeviceArray<float> d_encodings_f32_;          // general
    DeviceArray<Vec3> d_directions_;              // likewise
    DeviceArray<float> d_extra_dims_;             // likewise
    DeviceArray<Vec3> positions_, directions_;    // general: of a step's samples, in order
    DeviceArray<RawSample> d_raw_;                // likewise
    DeviceArray<int32_t> views_;                  // likewise
    DeviceArray<float> max_levels_;               // likewise
};

} // namespace ngp::cuda
