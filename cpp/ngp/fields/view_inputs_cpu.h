// The CPU engine's side of ViewInputs: gradients of a step's rays, and what becomes of them.
#pragma once

#include <functional>
#include <ngp/cpu/kernels.h>
#include <ngp/fields/nerf.h>
#include <vector>

namespace ngp {

class CpuViewInputs {
  public:
    const ViewInputs& inputs() const { return inputs_; }
    void set_inputs(ViewInputs inputs) { inputs_ = std::move(inputs); }

    // Lets chunks of a training step read the inputs of their rays' views.
    void attach_to(NerfModelView& model) const {
        model.extra_dims = inputs_.values.data();
        model.extra_dims_stride = inputs_.n_dims;
    }
    // Before a step that trains them: room for the gradients of `n_rays` rays.
    void start_step(int64_t n_rays) { reserve(n_rays, inputs_.n_dims); }
    void attach_to(TrainChunk& chunk) {
        chunk.d_extra_dims = d_extra_dims_.data();
        chunk.view_of_ray = view_of_ray_.data();
    }
    // One step of the first `n_views` (E.5), for the mean loss of each view's rays; `n_rays` were traced.
    void step(int n_views, int64_t n_rays, float learning_rate);

    // NerfEngine::view_input_gradient(). `run` runs a chunk with the workspace of a worker.
    float gradient_of(const ViewInputLoss& job, const NerfModelView& model, const OccupancyView& occupancy,
                      const std::function<void(TrainChunk&, int worker)>& run, std::vector<float>& gradient);

  private:
    void reserve(int64_t n_rays, int n_dims) {
        d_extra_dims_.resize(size_t(n_rays) * size_t(n_dims));
        view_of_ray_.resize(size_t(n_rays));
    }

    ViewInputs inputs_; // of all views
    std::vector<float> d_extra_dims_;
    std::vector<int32_t> view_of_ray_;
};

} // namespace ngp
