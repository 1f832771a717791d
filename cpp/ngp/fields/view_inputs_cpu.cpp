#include <algorithm>
#include <ngp/core/parallel.h>
#include <ngp/fields/view_inputs_cpu.h>

namespace ngp {

namespace {

constexpr int64_t rays_per_task = 32;

} // namespace

void CpuViewInputs::step(int n_views, int64_t n_rays, float learning_rate) {
    std::vector<double> sums(size_t(n_views) * size_t(inputs_.n_dims));
    sum_by_view(d_extra_dims_.data(), view_of_ray_.data(), n_rays, inputs_.n_dims, sums);
    const double scale = double(n_views) / double(std::max<int64_t>(1, n_rays));
    for (double& s : sums) s *= scale;
    step_view_inputs(inputs_, n_views, sums.data(), learning_rate);
}

float CpuViewInputs::gradient_of(const ViewInputLoss& job, const NerfModelView& model, const OccupancyView& occupancy,
                                 const std::function<void(TrainChunk&, int worker)>& run,
                                 std::vector<float>& gradient) {
    const int n_dims = model.n_extra_dims();
    const int64_t n_rays = job.sample.n_rays;
    reserve(n_rays, n_dims);
    const int64_t n_tasks = (n_rays + rays_per_task - 1) / rays_per_task;
    std::vector<double> losses(static_cast<size_t>(n_tasks));
    parallel_for(n_tasks, [&](int64_t i, int worker) {
        TrainChunk c;
        c.model = &model;
        c.occupancy = occupancy;
        c.sample = job.sample;
        c.composite = job.composite;
        c.first_ray = i * rays_per_task;
        c.n_rays = int(std::min(rays_per_task, n_rays - c.first_ray));
        c.only_extra_dims = true;
        attach_to(c);
        run(c, worker);
        losses[size_t(i)] = c.loss;
    });
    std::vector<double> sums(static_cast<size_t>(n_dims));
    sum_by_view(d_extra_dims_.data(), view_of_ray_.data(), n_rays, n_dims, sums);
    const double per_ray = 1.0 / double(std::max<int64_t>(1, n_rays));
    gradient.resize(sums.size());
    // The loss is a mean over channels; gradients are those of the sum (CompositeAndLoss).
    for (size_t k = 0; k < sums.size(); ++k) gradient[k] = float(sums[k] * per_ray / 3.0);
    double loss = 0;
    for (const double l : losses) loss += l;
    return float(loss * per_ray);
}

} // namespace ngp
