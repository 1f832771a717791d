// Fits of extra dimensions to pictures (NerfEngine::view_input_gradient): rays through a frozen field, and back as far
// as the direction encoding.
#include "nerf_training.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

constexpr int rays_of_chunk = 128;
constexpr int64_t samples_of_chunk = int64_t(rays_of_chunk) * max_samples_per_ray; // no ray is left out
constexpr InputGradients wanted{false, true};

// On the device: the pictures, the pixels and the distortion map that rays are drawn from.
struct FitScene {
    DeviceImages images;
    DeviceArray<uint32_t> pixels;
    DeviceArray<Vec2> distortion;

    FitScene(Context& context, SampleTrainingRays& sample)
        : images(context, std::vector<TrainingView>(sample.scene.views, sample.scene.views + sample.scene.n_views),
                 std::max<int64_t>(0, context.available() / 2)),
          pixels(context, sample.pixels ? sample.n_pixels : 0, "pixels of a fit") {
        sample.scene.views = images.views();
        if (sample.pixels) {
            pixels.upload(sample.pixels, sample.n_pixels);
            sample.pixels = pixels.data();
        }
        DistortionMap& map = sample.scene.distortion;
        if (!map.offsets) return;
        distortion = {context, int64_t(map.width) * map.height, "the distortion map"};
        distortion.upload(map.offsets, distortion.size());
        map.offsets = distortion.data();
    }
};

} // namespace

void CudaNerfTraining::prepare_fit() {
    if (!model_->has_encoding_gradients(batch_capacity(samples_of_chunk), wanted)) {
        context_.wait();
        forget_steps(); // which use the memory that goes
        model_->reserve_encoding_gradients(batch_capacity(samples_of_chunk), wanted);
    }
    if (fit_buffers_) return;
    fit_state_ = {context_, 1, "counters"};
    fit_sums_ = {context_, shape().n_extra_dims(), "gradients of a fit"};
    fit_result_ = PinnedArray<StepResult>(1);
    fit_buffers_ = std::make_unique<StepBuffers>(context_, samples_of_chunk, StepBuffers::Extras{}, fit_state_.data());
}

float CudaNerfTraining::view_input_gradient(const ViewInputLoss& job, std::vector<float>& gradient) {
    const int n_dims = shape().n_extra_dims();
    NGP_CHECK_EQ(int(job.extra_dims.size()), n_dims);
    const DeviceGuard guard(context_.device());
    prepare_fit();
    refresh_averaged();
    ModelView model = model_->averaged(job.composite.rgb_activation, job.composite.density_activation);
    view_inputs_.attach_given(context_, model, job.extra_dims.data(), n_dims);
    SampleTrainingRays sample = job.sample;
    const FitScene on_device(context_, sample);
    const OccupancyView occupancy = occupancy_->view();
    const StepView step = fit_buffers_->view(0);

    DeviceModel::BackwardSource source;
    source.step = step;
    source.options = job.composite;
    source.n = &step.state->n_contributing;
    source.capacity = step.batch_capacity;
    source.inputs = wanted;
    fit_sums_.zero();
    double loss = 0;
    for (int first = 0; first < job.sample.n_rays; first += rays_of_chunk) {
        StepState state{};
        state.n_rays = std::min(rays_of_chunk, job.sample.n_rays - first);
        state.rng = job.sample.rng;
        state.rng.advance(uint64_t(first) * random_draws_per_ray);
        fit_state_.upload(&state, 1);
        launch_march(context_, context_.stream(), step, sample, occupancy, job.composite.objective, false);
        model_->functions().trace_rays(context_, {model, model_->scratch(), step, occupancy, sample.stepping,
                                                  job.composite.objective, job.composite.depth, false});
        launch_order(context_, step, samples_of_chunk);
        model_->launch_backward(model, source);
        launch_sum_extra_dims(context_, step, {model_->extra_dims_gradients(), n_dims, false, fit_sums_.data()});
        launch_finish(context_, step, {false, false}, fit_result_.data(), 1);
        context_.wait();
        const StepResult& result = *fit_result_.data();
        loss += double(result.loss) * double(result.rays);
    }
    const std::vector<FixedSum> sums = fit_sums_.download();
    const double per_ray = 1.0 / double(std::max(1, job.sample.n_rays));
    gradient.resize(sums.size());
    // The loss is a mean over channels; gradients are those of the sum (CompositeAndLoss).
    for (size_t k = 0; k < sums.size(); ++k)
        gradient[k] = float(double(sums[k]) * fixed_sum_unit / double(loss_scale) * per_ray / 3.0);
    return float(loss * per_ray);
}

} // namespace ngp::cuda
