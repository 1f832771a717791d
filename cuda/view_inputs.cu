#include "view_inputs.cuh"

#include "for_each.cuh"

namespace ngp::cuda {

namespace {

constexpr int threads = 128;

// A thread a sample; warps stay together, since neighbouring samples are mostly of one view.
__global__ void __launch_bounds__(threads)
    sum_extra_dims_kernel(const StepView step, const __grid_constant__ ExtraDimsSums job) {
    const int64_t n = step.state->n_contributing, stride = int64_t(gridDim.x) * threads;
    const int lane = threadIdx.x & 31;
    for (int64_t first = (int64_t(blockIdx.x) * threads + threadIdx.x) / 32 * 32; first < n; first += stride) {
        const int64_t i = first + lane;
        const bool used = i < n;
        const int view = used && job.by_view ? step.rays[step.samples[step.order[i]].ray].view : 0;
        const WarpRows rows(used, view);
        for (int k = 0; k < job.n_dims; ++k)
            rows.add(job.sums, job.n_dims, k, used ? to_fixed_sum(job.d_extra_dims[i * job.n_dims + k]) : 0);
    }
}

struct SetRate {
    float* to;
    float rate;
    NGP_HD void operator()(int64_t) const { *to = rate; }
};

// Body: Adam of view i, whose gradient is that of the mean loss of its rays.
struct AdamOfView {
    const StepState* state;
    float *values, *m, *v;
    uint32_t* iterations;
    FixedSum* sums; // zeroed
    const float* rate;
    int n_dims, n_views;

    NGP_HD void operator()(int64_t i) const {
        const AdamSettings settings = view_inputs_adam();
        const float size = float(bias_corrected(settings, double(*rate), ++iterations[i]));
        const double scale =
            fixed_sum_unit / double(loss_scale) * double(n_views) / double(max_of(1u, state->n_rays_used));
        for (int64_t k = i * n_dims; k < (i + 1) * n_dims; ++k) {
            adam_update(settings, size, float(scale * double(sums[k])), values[k], m[k], v[k]);
            sums[k] = 0;
        }
    }
};

} // namespace

void launch_sum_extra_dims(Context& context, const StepView& step, const ExtraDimsSums& to) {
    sum_extra_dims_kernel<<<unsigned(8 * context.multiprocessors()), threads, 0, context.stream()>>>(step, to);
    check(cudaGetLastError(), "launch of adding up gradients of extra dimensions");
}

const ViewInputs& DeviceViewInputs::inputs() const {
    if (!on_host_) {
        values_.download(inputs_.values.data(), int64_t(inputs_.values.size()));
        m_.download(inputs_.m.data(), int64_t(inputs_.m.size()));
        v_.download(inputs_.v.data(), int64_t(inputs_.v.size()));
        iterations_.download(inputs_.iterations.data(), int64_t(inputs_.iterations.size()));
        on_host_ = true;
    }
    return inputs_;
}

void DeviceViewInputs::set_inputs(Context& context, ViewInputs inputs) {
    inputs_ = std::move(inputs);
    on_host_ = true;
    const auto n = int64_t(inputs_.values.size());
    for (DeviceArray<float>* a : {&values_, &m_, &v_}) a->reserve(context, n, "inputs of the views");
    iterations_.reserve(context, inputs_.n_views(), "inputs of the views");
    sums_.reserve(context, n, "inputs of the views");
    rate_.reserve(context, 1, "inputs of the views");
    learning_rate_ = -1.0f;
    if (n == 0) return;
    values_.upload(inputs_.values);
    m_.upload(inputs_.m);
    v_.upload(inputs_.v);
    iterations_.upload(inputs_.iterations);
    sums_.zero();
}

void DeviceViewInputs::prepare(Context& context, float learning_rate) {
    if (learning_rate == learning_rate_) return;
    for_each(context.stream(), 1, SetRate{rate_.data(), learning_rate});
    learning_rate_ = learning_rate;
}

void DeviceViewInputs::launch_step(Context& context, const StepView& step, const float* d_extra_dims, int n_views) {
    launch_sum_extra_dims(context, step, {d_extra_dims, inputs_.n_dims, true, sums_.data()});
    for_each(context.stream(), n_views,
             AdamOfView{step.state, values_.data(), m_.data(), v_.data(), iterations_.data(), sums_.data(),
                        rate_.data(), inputs_.n_dims, n_views});
}

} // namespace ngp::cuda
