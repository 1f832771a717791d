// Inputs of the direction encoding besides the direction (stages/view_inputs.h) on the device: those of the training
// views, a row each, which training may change; and the one row that all rays of a picture or all points of a query
// have.
#pragma once

#include "fixed_point.cuh"
#include "training.cuh"

#include <ngp/stages/view_inputs.h>

namespace ngp::cuda {

// Sums of the extra dimensions' gradients, a row a view; or a single row for all.
struct ExtraDimsSums {
    const float* d_extra_dims; // of the step's samples, in order: rows of n_dims
    int n_dims;
    bool by_view;
    FixedSum* sums; // added to
};
// Capturable.
void launch_sum_extra_dims(Context& context, const StepView& step, const ExtraDimsSums& to);

class DeviceViewInputs {
  public:
    // As the device has them; waits, if it has trained them.
    const ViewInputs& inputs() const;
    int n_views() const { return inputs_.n_views(); }
    // The device must not be reading those that were there. Captured steps are no longer valid.
    void set_inputs(Context& context, ViewInputs inputs);

    // Lets a training step read the inputs of its samples' views.
    void attach_to(ModelView& model) const {
        if (inputs_.n_dims == 0) return;
        model.extra_dims = values_.data();
        model.extra_dims_stride = inputs_.n_dims;
    }
    // The same for all: n of them, in host memory. They hold until the next call.
    void attach_given(Context& context, ModelView& model, const float* extra_dims, int n) {
        if (n == 0) return;
        if (!extra_dims) fail("the extra dimensions of a latent or a light are missing");
        given_.reserve(context, n, "inputs of a view");
        given_.upload(extra_dims, n);
        model.extra_dims = given_.data();
        model.extra_dims_stride = 0;
    }

    // Before a step that trains them, whose learning rate it sets.
    void prepare(Context& context, float learning_rate);
    // One step of Adam of the first `n_views` (E.5), from the gradients of the step's samples. Capturable.
    void launch_step(Context& context, const StepView& step, const float* d_extra_dims, int n_views);
    // After the launch of a step that trained them.
    void changed() { on_host_ = false; }

  private:
    mutable ViewInputs inputs_;   // of all views
    mutable bool on_host_ = true; // inputs_ are those of the device
    float learning_rate_ = -1.0f; // that the device has
    DeviceArray<float> values_, given_;
    DeviceArray<float> m_, v_, rate_;
    DeviceArray<uint32_t> iterations_;
    DeviceArray<FixedSum> sums_;
};

} // namespace ngp::cuda
