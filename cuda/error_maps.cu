#include "error_maps.cuh"

#include "for_each.cuh"

namespace ngp::cuda {

namespace {

std::vector<std::vector<float>> sharpness_on_device(Context& context, const std::vector<TrainingView>& views, int n) {
    constexpr int64_t tiles = int64_t(sharpness_width) * sharpness_height;
    DeviceArray<float> sharpness(context, tiles, "sharpness");
    std::vector<std::vector<float>> result;
    for (int i = 0; i < n; ++i) {
        for_each(context.stream(), tiles, SharpnessOfTile{views[size_t(i)].image, sharpness.data()});
        result.push_back(sharpness.download());
    }
    return result;
}

// Body: loss of ray i, as E.4 reports it.
struct WeighLoss {
    const TrainingRay* rays;
    RayOutcome* outcomes;

    NGP_HD void operator()(int64_t i) const { outcomes[i].loss *= rays[i].inverse_density; }
};
// Body: loss of ray i, weighed, to its cell.
struct AddError {
    const TrainingRay* rays;
    const RayOutcome* outcomes;
    const uint32_t* first;
    FixedSum* sums;

    __device__ void operator()(int64_t i) const {
        if (first[i] != unused_ray) add_fixed(sums + rays[i].error_cell, to_fixed_sum(outcomes[i].loss));
    }
};
// Body: the step's sum of cell k to its errors.
struct FoldErrors {
    float* errors;
    FixedSum* sums;

    NGP_HD void operator()(int64_t k) const {
        errors[k] += float(fixed_sum_unit * double(sums[k]));
        sums[k] = 0;
    }
};

void upload(Context& context, DeviceArray<float>& to, const float* from, int64_t n) {
    if (to.size() != n) {
        to = {};
        to = {context, n, "error maps"};
    }
    if (n > 0) to.upload(from, n);
}

} // namespace

DeviceErrorMaps::DeviceErrorMaps(Context& context)
    : context_(context), map_([&context](const std::vector<TrainingView>& views, int n) {
          return sharpness_on_device(context, views, n);
      }) {}

void DeviceErrorMaps::begin_step(const ErrorMapOptions& options, const std::vector<TrainingView>& views, int n_images,
                                 int n_rays) {
    if (on_device_) map_.set_errors(errors_.download());
    on_device_ = false;
    map_.begin_step(options, views, n_images, n_rays);
    const ErrorSampling s = map_.sampling();
    const std::vector<float>& errors = map_.state().errors;
    const auto n = int64_t(errors.size());
    upload(context_, errors_, errors.data(), n);
    if (of_step_.size() != n) {
        of_step_ = {};
        of_step_ = {context_, n, "error maps"};
    }
    of_step_.zero();
    const int64_t n_rows = int64_t(n_images) * s.height;
    upload(context_, images_, s.images, s.images ? n_images : 0);
    upload(context_, rows_, s.rows, s.rows ? n_rows : 0);
    upload(context_, columns_, s.columns, s.columns ? n_rows * s.width : 0);
    on_device_ = options.active();
}

ErrorSampling DeviceErrorMaps::sampling() const {
    ErrorSampling s = map_.sampling();
    s.images = images_.data();
    s.rows = rows_.data();
    s.columns = columns_.data();
    return s;
}

void DeviceErrorMaps::launch_weigh(const StepView& step) {
    for_each_ray(context_, step.state, WeighLoss{step.rays, step.outcomes});
}

void DeviceErrorMaps::launch_add(const StepView& step) {
    for_each_ray(context_, step.state, AddError{step.rays, step.outcomes, step.first, of_step_.data()});
    for_each(context_.stream(), errors_.size(), FoldErrors{errors_.data(), of_step_.data()});
}

void DeviceErrorMaps::reset() {
    map_.reset();
    on_device_ = false;
}

ErrorMap::State DeviceErrorMaps::state() const {
    ErrorMap::State s = map_.state();
    if (on_device_) {
        const DeviceGuard guard(context_.device());
        s.errors = errors_.download();
    }
    return s;
}

void DeviceErrorMaps::set_state(ErrorMap::State state) {
    map_.set_state(std::move(state));
    on_device_ = false;
}

} // namespace ngp::cuda
