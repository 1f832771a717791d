// Inputs of the direction encoding besides the direction (stages/view_inputs.h) on the device: those of the training
// views, a row each, and the one row that all rays of a picture or all points of a query have.
#pragma once

#include "memory.cuh"
#include "model.cuh"

#include <ngp/stages/view_inputs.h>

namespace ngp::cuda {

class DeviceViewInputs {
  public:
    const ViewInputs& inputs() const { return inputs_; }
    // The device must not be reading those that were there.
    void set_inputs(Context& context, ViewInputs inputs) {
        inputs_ = std::move(inputs);
        values_.reserve(context, int64_t(inputs_.values.size()), "inputs of the views");
        if (!inputs_.values.empty()) values_.upload(inputs_.values);
    }

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

  private:
    ViewInputs inputs_; // of all views
    DeviceArray<float> values_, given_;
};

} // namespace ngp::cuda
