#include "nerf_training.cuh"

#include "for_each.cuh"

#include <algorithm>
#include <cmath>

namespace ngp::cuda {

namespace {

constexpr int initial_rays_divisor = 512; // first step: batch/512 rays, since every cell is still occupied
constexpr uint32_t n_results = 64;        // of the last steps
// Device memory that images leave free if nothing better is known: a base model with its optimizer, and buffers.
constexpr int64_t default_reserve = int64_t(600) << 20;

enum RandomStream : uint64_t { params_stream = 1, rays_stream = 2, occupancy_stream = 3 };

} // namespace

CudaNerfTraining::CudaNerfTraining(const CudaOptions& options)
    : options_of_device_(options), context_(options.device, options.max_bytes, options.max_shared_bytes),
      timer_(options.device) {
    const DeviceGuard guard(context_.device());
    state_ = {context_, 1, "counters"};
    results_ = PinnedArray<StepResult>(n_results);
    check(cudaStreamCreateWithFlags(&side_stream_, cudaStreamNonBlocking), "stream");
    check(cudaEventCreateWithFlags(&fork_, cudaEventDisableTiming), "event");
    check(cudaEventCreateWithFlags(&join_, cudaEventDisableTiming), "event");
    for (cudaEvent_t& e : in_flight_) check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
    write_state({});
}

CudaNerfTraining::~CudaNerfTraining() {
    int previous = 0;
    cudaGetDevice(&previous);
    cudaSetDevice(context_.device());
    cudaStreamSynchronize(context_.stream());
    forget_steps();
    cudaStreamDestroy(side_stream_);
    cudaEventDestroy(fork_);
    cudaEventDestroy(join_);
    for (cudaEvent_t e : in_flight_) cudaEventDestroy(e);
    cudaSetDevice(previous);
}

// --- views, cameras, network ---------------------------------------------------------------------------------------

int64_t CudaNerfTraining::reserve() const { return model_ ? buffers_ ? 0 : default_reserve / 2 : default_reserve; }

void CudaNerfTraining::set_views(std::vector<TrainingView> views) {
    const DeviceGuard guard(context_.device());
    context_.wait();
    forget_steps();
    images_ = {}; // room for the new ones
    errors_.reset();
    forget_visibility();
    images_ = DeviceImages(context_, views, std::max<int64_t>(0, context_.available() - reserve()));
    correct_views();
}

void CudaNerfTraining::set_corrections(const CameraCorrections& corrections) {
    const DeviceGuard guard(context_.device());
    context_.wait();
    forget_steps();
    cameras_.set_corrections(corrections);
    correct_views();
}
void CudaNerfTraining::correct_views() { images_.set_cameras(cameras_.current()); }

void CudaNerfTraining::set_view_inputs(ViewInputs inputs) {
    NGP_CHECK_EQ(inputs.n_dims, shape().n_extra_dims());
    const DeviceGuard guard(context_.device());
    context_.wait();
    forget_steps(); // they may have the old ones' address
    view_inputs_.set_inputs(context_, std::move(inputs));
}
const ViewInputs& CudaNerfTraining::view_inputs() const {
    const DeviceGuard guard(context_.device());
    return view_inputs_.inputs();
}

void CudaNerfTraining::reset_network(const NetworkConfig& config, int aabb_scale, int n_extra_dims, uint64_t seed) {
    const DeviceGuard guard(context_.device());
    // Raises before anything changes.
    const NerfModelShape shape = nerf_model_shape(config, aabb_scale, n_extra_dims);
    int n_cascades = 1;
    while ((1 << (n_cascades - 1)) < aabb_scale) ++n_cascades;
    const float half_size = 0.5f * float(aabb_scale);
    const Aabb box{splat3(0.5f - half_size), splat3(0.5f + half_size)};
    context_.wait();
    forget_steps();
    buffers_.reset();
    fit_buffers_.reset();
    // Built aside, so that a network for which there is no room leaves the old one in place.
    auto model =
        std::make_unique<DeviceModel>(context_, shape, config.optimizer, box, options_of_device_.deterministic);
    auto occupancy = std::make_unique<DeviceOccupancy>(context_, n_cascades);
    model_ = std::move(model);
    occupancy_ = std::move(occupancy);
    view_inputs_.set_inputs(context_, {});
    errors_.reset();
    cameras_.reset(config.distortion_map);
    settings_ = config.optimizer;
    seed_ = seed;
    write_state({});
    rays_of_batch_ = 0;
    restored_loss_ = 0;
    occupancy_updates_ = 0;
    forget_visibility();
    host_occupancy_.resize(n_cascades);
    host_occupancy_fresh_ = true;
    set_params(initial_nerf_params(shape, seed));
}

const NerfModelShape& CudaNerfTraining::shape() const {
    static const NerfModelShape none{};
    return model_ ? model_->shape() : none;
}

// --- steps ---------------------------------------------------------------------------------------------------------

void CudaNerfTraining::train_step(const NerfTrainOptions& options, int64_t batch_size) {
    if (images_.n_views() == 0) fail("there are no training images; load a scene or call set_images() first");
    if (shape().n_extra_dims() > 0 && view_inputs_.n_views() < images_.n_views())
        fail("there are latents or lights of ", view_inputs_.n_views(), " views, but ", images_.n_views(), " views");
    const DeviceGuard guard(context_.device());
    prepare(options, batch_size);
    if (timer_.is_on())
        training_step(*this, plan_);
    else
        launch_graph();
    const cudaEvent_t done = in_flight_[step_ % in_flight_.size()];
    check(cudaEventRecord(done, context_.stream()), "event");
    const uint32_t step = step_++;
    weights_changed();
    if (timer_.is_on()) discard_rays(); // used up; launch_graph() says so itself
    end_learning(step);
    timer_.end_step();
}

StepResult CudaNerfTraining::last_step() {
    const DeviceGuard guard(context_.device());
    context_.wait();
    return step_ == first_step_ ? StepResult{} : results_.data()[(step_ - 1) % n_results];
}

void CudaNerfTraining::update_occupancy(const StepPlan& plan) {
    timer_.mark(Stage::Begin, context_.stream());
    if (plan.occupancy.initial || plan.n_images != n_images_seen_) {
        occupancy_->mark_visible(scene(), plan.n_images, plan.occupancy.initial);
        n_images_seen_ = plan.n_images;
    }
    Pcg32 rng = Pcg32::seeded(seed_, occupancy_stream);
    rng.advance(uint64_t(occupancy_updates_) << 32);
    DrawOccupancySample uniform{occupancy_->values_on_device(),
                                occupancy_->n_cascades(),
                                occupancy_updates_,
                                plan.occupancy.uniform_samples,
                                never_seen * 0.01f,
                                rng,
                                false,
                                nullptr,
                                nullptr};
    DrawOccupancySample occupied = uniform;
    occupied.n = plan.occupancy.occupied_samples;
    occupied.threshold = occupancy_threshold;
    occupied.around = plan.occupancy.around;
    occupied.rng.advance(uint64_t(1) << 31);
    model_->functions().occupancy(context_,
                                  {trained(), model_->scratch(), uniform, occupied, occupancy_->fresh_on_device()});
    occupancy_->apply(plan.occupancy.decay, visits_by_training() && !plan.occupancy.initial, state_.data());
    ++occupancy_updates_;
    occupancy_changed();
    timer_.mark(Stage::Occupancy, context_.stream());
}

void CudaNerfTraining::rays_to_gradients(const StepPlan& plan) {
    timer_.mark(Stage::Begin, context_.stream());
    const StepView step = step_view(parity_);
    const bool with_errors = plan.sample.errors.active();
    if (!marched_) {
        launch_restart(context_, step);
        launch_march(context_, context_.stream(), step, sample_of(plan), occupancy_->view(), plan.composite.objective,
                     false);
    }
    timer_.mark(Stage::March, context_.stream());
    model_->functions().trace_rays(context_,
                                   {trained(), model_->scratch(), step, occupancy_->view(), plan.sample.stepping,
                                    plan.composite.objective, plan.composite.depth, plan.sample.random_levels});
    timer_.mark(Stage::Trace, context_.stream());
    if (with_errors) errors_.launch_weigh(step);
    launch_order(context_, step, plan.batch_size);
    if (with_errors) errors_.launch_add(step);
    timer_.mark(Stage::Order, context_.stream());
    model_->launch_backward(trained(), source());
    if (options_.cameras.any()) {
        model_->launch_ray_gradients(trained(), source(), cameras_.finest_scale(), cameras_.ray_gradients(),
                                     cameras_.d_color());
        cameras_.launch_add(options_.cameras, step, images_.views(), plan.n_images);
    }
    timer_.mark(Stage::Backward, context_.stream());
}

void CudaNerfTraining::scatter_gradients(const StepPlan& plan) {
    if (march_ahead_) { // in a branch of its own: it is held up by latencies, the others by memory
        check(cudaEventRecord(fork_, context_.stream()), "event");
        check(cudaStreamWaitEvent(side_stream_, fork_), "event");
        launch_march(context_, side_stream_, step_view(1 - parity_), sample_of(plan), occupancy_->view(),
                     plan.composite.objective, true);
        check(cudaEventRecord(join_, side_stream_), "event");
    }
    model_->launch_scatter_gradients(source());
    timer_.mark(Stage::Scatter, context_.stream());
}

void CudaNerfTraining::optimize(const StepPlan& plan) {
    const NerfOptimizer::Trained trained{options_.train_network, options_.train_encoding};
    if (trains_view_inputs())
        view_inputs_.launch_step(context_, step_view(parity_), model_->extra_dims_gradients(), plan.n_images);
    model_->optimizer().launch(state_.data(), model_->gradient_blocks(), trained);
    if (march_ahead_) check(cudaStreamWaitEvent(context_.stream(), join_), "event");
    launch_finish(context_, step_view(parity_), trained, results_.data(), n_results);
    timer_.mark(Stage::Optimizer, context_.stream());
}

// --- state ---------------------------------------------------------------------------------------------------------

std::vector<float> CudaNerfTraining::params() {
    const DeviceGuard guard(context_.device());
    const StepState s = read_state();
    return model_->optimizer().averaged(s.matrix_steps, s.encoding_steps);
}
void CudaNerfTraining::set_params(const std::vector<float>& params) {
    NGP_CHECK_EQ(params.size(), shape().n_params());
    const DeviceGuard guard(context_.device());
    model_->optimizer().set_params(params);
    StepState s = read_state();
    s.matrix_steps = s.encoding_steps = 0;
    write_state(s);
    weights_changed();
}

NerfTrainState CudaNerfTraining::train_state() const {
    const DeviceGuard guard(context_.device());
    NerfTrainState t;
    if (!model_) return t;
    const StepState s = read_state();
    t.params = model_->optimizer().params();
    t.optimizer = model_->optimizer().state();
    t.optimizer.matrix_steps = s.matrix_steps;
    t.optimizer.encoding_steps = s.encoding_steps;
    t.step = s.step;
    t.rays_per_batch = s.n_rays;
    t.rays_of_last_batch = rays_of_batch_;
    t.occupancy_updates = occupancy_updates_;
    t.occupancy_fresh = occupancy_->fresh();
    t.n_images_seen = n_images_seen_;
    t.loss = step_ == first_step_ ? restored_loss_ : results_.data()[(step_ - 1) % n_results].loss;
    t.error_map = errors_.state();
    return t;
}
void CudaNerfTraining::set_train_state(const NerfTrainState& t) {
    NGP_CHECK_EQ(t.params.size(), shape().n_params());
    const DeviceGuard guard(context_.device());
    if (!t.optimizer.matrix_m.empty()) model_->optimizer().set_state(t.optimizer);
    model_->optimizer().set_masters(t.params);
    StepState s = read_state();
    s.matrix_steps = t.optimizer.matrix_steps;
    s.encoding_steps = t.optimizer.encoding_steps;
    s.step = t.step;
    s.n_rays = t.rays_per_batch;
    s.rng = rays_rng(t.step);
    write_state(s);
    rays_of_batch_ = t.rays_of_last_batch;
    occupancy_updates_ = t.occupancy_updates;
    n_images_seen_ = t.n_images_seen;
    restored_loss_ = t.loss;
    errors_.set_state(t.error_map);
    if (int64_t(t.occupancy_fresh.size()) == int64_t(host_occupancy_.values().size()))
        occupancy_->set_fresh(t.occupancy_fresh);
    weights_changed();
}

const OccupancyGrid& CudaNerfTraining::occupancy() const {
    if (!host_occupancy_fresh_) {
        const DeviceGuard guard(context_.device());
        const std::vector<float> values = occupancy_->values();
        host_occupancy_.set_values(values.data(), values.size());
        host_occupancy_fresh_ = true;
    }
    return host_occupancy_;
}
void CudaNerfTraining::set_occupancy(const std::vector<float>& values) {
    const DeviceGuard guard(context_.device());
    occupancy_->set_values(values, state_.data());
    occupancy_changed();
}
void CudaNerfTraining::reset_occupancy() {
    const DeviceGuard guard(context_.device());
    occupancy_->reset();
    occupancy_changed();
    occupancy_updates_ = 0;
    forget_visibility();
}

StepState CudaNerfTraining::read_state() const {
    StepState s;
    state_.download(&s, 1);
    return s;
}
void CudaNerfTraining::write_state(const StepState& s) {
    state_.upload(&s, 1);
    discard_rays();
    step_ = first_step_ = s.step;
}

void CudaNerfTraining::refresh_averaged() {
    if (averaged_fresh_) return;
    const StepState s = read_state();
    model_->refresh_averaged(s.matrix_steps, s.encoding_steps);
    averaged_fresh_ = true;
}

// --- what kernels are given ----------------------------------------------------------------------------------------

SceneView CudaNerfTraining::scene() const {
    return {images_.views(), images_.n_views(), model_->box(), occupancy_->n_cascades() - 1, cameras_.distortion_map()};
}
ModelView CudaNerfTraining::trained() const {
    ModelView v = model_->trained(options_.rgb_activation, options_.density_activation);
    view_inputs_.attach_to(v);
    return v;
}
SampleTrainingRays CudaNerfTraining::sample_of(const StepPlan& plan) const {
    SampleTrainingRays sample = plan.sample;
    sample.scene = scene();
    return sample;
}
StepView CudaNerfTraining::step_view(int parity) const {
    StepView v = buffers_->view(parity);
    v.visited = visits_by_training() ? occupancy_->fresh_on_device() : nullptr;
    return v;
}
DeviceModel::BackwardSource CudaNerfTraining::source() const {
    DeviceModel::BackwardSource s;
    s.step = step_view(parity_);
    s.options = plan_.composite;
    s.n = &s.step.state->n_contributing;
    s.capacity = s.step.batch_capacity;
    s.inputs = {options_.cameras.any(), trains_view_inputs()};
    s.random_levels = options_.random_levels;
    return s;
}
Pcg32 CudaNerfTraining::rays_rng(uint32_t step) const {
    Pcg32 rng = Pcg32::seeded(seed_, rays_stream);
    rng.advance(uint64_t(step) << 32);
    return rng;
}
int CudaNerfTraining::image_count(const NerfTrainOptions& options) const {
    return options.n_images > 0 ? std::min(options.n_images, images_.n_views()) : images_.n_views();
}

void CudaNerfTraining::occupancy_changed() {
    discard_rays(); // marched through the grid as it was
    host_occupancy_fresh_ = false;
}
// Steps that were captured, and rays that were marched ahead, no longer do what the next step should.
void CudaNerfTraining::forget_steps() {
    for (StepGraph& g : graphs_) g.clear();
    discard_rays();
}

// --- preparing a step ----------------------------------------------------------------------------------------------

// Brings buffers, ray count, step sizes and plan to the step at hand.
void CudaNerfTraining::prepare(const NerfTrainOptions& options, int64_t batch_size) {
    prepare_buffers(options, batch_size);
    if (step_ == first_step_ || rays_of_batch_ != batch_size) plan_rays(batch_size);
    if (!(options == options_)) forget_steps();
    options_ = options;
    prepare_learning(options);
    // Not more than a few steps ahead of the device.
    check(cudaEventSynchronize(in_flight_[step_ % in_flight_.size()]), "waiting for a training step");
    model_->optimizer().prepare(step_);
    plan_step(batch_size);
}

void CudaNerfTraining::prepare_buffers(const NerfTrainOptions& options, int64_t batch_size) {
    const bool cameras = options.cameras.any();
    const StepBuffers::Extras extras{model_->is_fused(), options.depth.lambda != 0.0f, cameras};
    const InputGradients inputs{cameras, options.train_view_inputs && shape().n_extra_dims() > 0};
    const bool same = buffers_ && buffers_->batch_size() == batch_size && buffers_->extras() == extras;
    if (same && model_->has_encoding_gradients(batch_capacity(batch_size), inputs)) return;
    context_.wait();
    forget_steps();
    if (!same) buffers_.reset();
    try {
        model_->reserve_encoding_gradients(batch_capacity(batch_size), inputs);
        if (!same) buffers_ = std::make_unique<StepBuffers>(context_, batch_size, extras, state_.data());
    } catch (...) {
        buffers_.reset();
        model_->release_encoding_gradients(); // so that a smaller batch finds room
        throw;
    }
}

// What is learned and kept besides parameters: error maps, cameras, inputs of the views.
void CudaNerfTraining::prepare_learning(const NerfTrainOptions& options) {
    const int n_images = image_count(options);
    if (errors_.changes_at(options.error_map, n_images)) {
        const int n_rays = read_state().n_rays; // waits
        forget_steps();
        errors_.begin_step(options.error_map, images_.given(), n_images, n_rays);
    }
    const float box_size = model_->box().diag().x;
    if (options.cameras.any() && cameras_.prepare(options.cameras, images_.n_views(), buffers_->max_rays(), box_size))
        forget_steps();
    if (trains_view_inputs()) view_inputs_.prepare(context_, decayed_learning_rate(settings_, step_));
}

void CudaNerfTraining::plan_step(int64_t batch_size) {
    StepPlan& p = plan_;
    p.step = step_;
    p.batch_size = batch_size;
    apply_options(options_, image_count(options_), p);
    p.occupancy = occupancy_update_at(options_.occupancy_schedule, step_, occupancy_->n_cascades(), batch_size);
    p.occupancy.decay = std::pow(options_.occupancy_decay, p.occupancy.decay_power);
    p.sample.errors = errors_.sampling();
}

// The first step, or another batch size: the same samples a ray.
void CudaNerfTraining::plan_rays(int64_t batch_size) {
    StepState s = read_state();
    if (s.n_rays == 0 || rays_of_batch_ == 0)
        s.n_rays = int(std::max<int64_t>(8, batch_size / initial_rays_divisor));
    else if (rays_of_batch_ != batch_size)
        s.n_rays = int(std::clamp(double(s.n_rays) * double(batch_size) / double(rays_of_batch_), 8.0, 1e9));
    s.n_rays = int(std::min<int64_t>(s.n_rays, buffers_->max_rays()));
    s.rng = rays_rng(s.step);
    state_.upload(&s, 1);
    discard_rays();
    rays_of_batch_ = batch_size;
}

// Whether the next step's rays can be drawn and marched beside this step: nothing that they depend on changes before.
bool CudaNerfTraining::can_march_ahead() const {
    if (options_.cameras.any() && cameras_.updates_after_step(options_.cameras)) return false;
    return occupancy_update_at(options_.occupancy_schedule, step_ + 1, occupancy_->n_cascades(), plan_.batch_size)
               .uniform_samples == 0;
}

void CudaNerfTraining::launch_graph() {
    if (plan_.occupancy.uniform_samples > 0) update_occupancy(plan_);
    march_ahead_ = can_march_ahead();
    StepGraph& graph = graphs_[size_t(marched_) | size_t(march_ahead_) << 1 | size_t(parity_) << 2];
    if (!graph.captured()) {
        StepPlan plan = plan_;
        plan.occupancy = {};
        graph.capture(context_.stream(), [&] { training_step(*this, plan); });
    }
    graph.launch(context_.stream());
    marched_ = march_ahead_;
    march_ahead_ = false;
    parity_ = 1 - parity_;
}

void CudaNerfTraining::end_learning(uint32_t step) {
    if (options_.error_map.active()) errors_.end_step();
    if (trains_view_inputs()) view_inputs_.changed();
    if (!options_.cameras.any()) return;
    if (cameras_.end_step(options_.cameras, plan_.n_images, step, decayed_learning_rate(settings_, step)))
        correct_views();
}

} // namespace ngp::cuda
