#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/formulas/rng.h>
#include <ngp/stages/optimizer.h>
#include <ngp/stages/view_inputs.h>

namespace ngp {

namespace {

constexpr uint64_t latents_stream = 4; // of random numbers, beside those of the engines

ViewInputs zeros(int n_views, int n_dims) {
    const size_t n = size_t(n_views) * size_t(n_dims);
    ViewInputs inputs;
    inputs.n_dims = n_dims;
    inputs.values.resize(n);
    inputs.m.resize(n);
    inputs.v.resize(n);
    inputs.iterations.resize(size_t(n_views));
    return inputs;
}

} // namespace

ViewInputs initial_latents(int n_views, int n_dims, uint64_t seed) {
    ViewInputs inputs = zeros(n_views, n_dims);
    Pcg32 rng = Pcg32::seeded(seed, latents_stream);
    for (float& v : inputs.values) v = 2.0f * rng.next_float() - 1.0f;
    return inputs;
}

Vec3 light_input(Vec3 direction) { return (direction + splat3(1.0f)) * 0.5f; }

ViewInputs light_inputs(const std::vector<Vec3>& directions) {
    ViewInputs inputs = zeros(int(directions.size()), 3);
    for (size_t i = 0; i < directions.size(); ++i) {
        const Vec3 v = light_input(directions[i]);
        for (int d = 0; d < 3; ++d) inputs.values[3 * i + size_t(d)] = v[d];
    }
    return inputs;
}

void step_view_inputs(ViewInputs& inputs, int n_views, const double* gradient, float learning_rate) {
    NGP_CHECK_LE(n_views, inputs.n_views());
    const AdamSettings settings = view_inputs_adam();
    for (int i = 0; i < n_views; ++i) {
        const uint32_t t = ++inputs.iterations[size_t(i)];
        const float step = float(bias_corrected(settings, learning_rate, t));
        const size_t begin = size_t(i) * size_t(inputs.n_dims), end = begin + size_t(inputs.n_dims);
        for (size_t k = begin; k < end; ++k)
            adam_update(settings, step, float(gradient[k]), inputs.values[k], inputs.m[k], inputs.v[k]);
    }
}

void sum_by_view(const float* rows, const int32_t* view_of_ray, int64_t n_rays, int n_dims, std::vector<double>& sums) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t i = 0; i < n_rays; ++i) {
        double* sum = sums.data() + int64_t(view_of_ray[i]) * n_dims;
        for (int k = 0; k < n_dims; ++k) sum[k] += double(rows[i * n_dims + k]);
    }
}

} // namespace ngp
