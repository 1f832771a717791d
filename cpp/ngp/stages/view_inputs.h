// Stage: what the direction encoding gets of a training view besides the direction (specification D.3): a latent of its
// own, trained with the field (E.5), or the direction of its light.
#pragma once

#include <cstdint>
#include <ngp/formulas/adam_update.h>
#include <ngp/formulas/vec.h>
#include <vector>

namespace ngp {

// Of every view `n_dims` values, and Adam's state for them (D.2, extra_dims_opt). Lights have no use for the latter.
struct ViewInputs {
    int n_dims = 0;
    std::vector<float> values, m, v;  // n_views x n_dims
    std::vector<uint32_t> iterations; // n_views

    int n_views() const { return int(iterations.size()); }
    const float* of(int view) const { return values.data() + size_t(view) * size_t(n_dims); }
    bool operator==(const ViewInputs&) const = default;
};

// Adam of E.5. Its learning rate is the network's.
constexpr float view_inputs_beta1 = 0.9f, view_inputs_beta2 = 0.99f, view_inputs_epsilon = 1e-8f;
NGP_HD AdamSettings view_inputs_adam() {
    AdamSettings s;
    s.beta1 = view_inputs_beta1, s.beta2 = view_inputs_beta2, s.epsilon = view_inputs_epsilon;
    return s;
}

// Latents as training begins with them: uniform in (-1, 1).
ViewInputs initial_latents(int n_views, int n_dims, uint64_t seed);
// Unit directions of lights, NGP space, as (d + 1) / 2; zero stands for none.
ViewInputs light_inputs(const std::vector<Vec3>& directions);
Vec3 light_input(Vec3 direction);

// One step of the first `n_views` of them. `gradient`: n_views x n_dims, of the mean loss of the view's rays.
void step_view_inputs(ViewInputs& inputs, int n_views, const double* gradient, float learning_rate);

// Adds rows of `n_dims` floats, one a ray, up by view: in the order of the rays, whatever computed them.
// `view_of_ray` names the view of each. `sums`: n_views x n_dims, set.
void sum_by_view(const float* rows, const int32_t* view_of_ray, int64_t n_rays, int n_dims, std::vector<double>& sums);

} // namespace ngp
