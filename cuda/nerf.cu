// The CUDA engine of the NeRF task.
#include "device_model.cuh"
#include "for_each.cuh"
#include "images.cuh"
#include "occupancy.cuh"
#include "shared_memory.cuh"
#include "stage_timer.cuh"
#include "step.cuh"
#include "view_inputs.cuh"

#include <algorithm>
#include <array>
#include <cmath>

namespace ngp::cuda {

namespace {

constexpr int initial_rays_divisor = 512; // first step: batch/512 rays, since every cell is still occupied
constexpr uint32_t n_results = 64;        // of the last steps
constexpr int64_t points_per_launch = 1 << 20;
// Device memory that images leave free if nothing better is known: a base model with its optimizer, and buffers.
constexpr int64_t default_reserve = int64_t(600) << 20;

enum RandomStream : uint64_t { params_stream = 1, rays_stream = 2, occupancy_stream = 3 };

class CudaNerfEngine final : public NerfEngine {
  public:
    explicit CudaNerfEngine(const CudaOptions& options)
        : options_of_device_(options), context_(options.device, options.max_bytes, options.max_shared_bytes),
          timer_(options.device) {
        const DeviceGuard guard(context_.device());
        state_ = {context_, 1, "counters"};
        counters_ = {context_, 1, "counters"};
        results_ = PinnedArray<StepResult>(n_results);
        check(cudaStreamCreateWithFlags(&side_stream_, cudaStreamNonBlocking), "stream");
        check(cudaEventCreateWithFlags(&fork_, cudaEventDisableTiming), "event");
        check(cudaEventCreateWithFlags(&join_, cudaEventDisableTiming), "event");
        for (cudaEvent_t& e : in_flight_) check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event");
        write_state({});
    }
    ~CudaNerfEngine() override {
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

    void set_views(std::vector<TrainingView> views) override {
        const DeviceGuard guard(context_.device());
        context_.wait();
        forget_steps();
        images_ = {}; // room for the new ones
        forget_visibility();
        images_ = DeviceImages(context_, views, std::max<int64_t>(0, context_.available() - reserve()));
        images_.set_cameras(corrections_);
    }
    const CameraCorrections& corrections() const override { return corrections_; }
    void set_corrections(const CameraCorrections& corrections) override {
        const DeviceGuard guard(context_.device());
        context_.wait();
        forget_steps();
        corrections_ = corrections;
        images_.set_cameras(corrections_);
        const DistortionMap map = corrections_.distortion_map();
        const std::vector<Vec2> offsets(map.offsets, map.offsets + map.width * map.height);
        distortion_ = {};
        if (offsets.empty()) return;
        distortion_ = DeviceArray<Vec2>(context_, int64_t(offsets.size()), "the distortion map");
        distortion_.upload(offsets);
    }

    void reset_network(const NetworkConfig& config, int aabb_scale, int n_extra_dims, uint64_t seed) override {
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
        // Built aside, so that a network for which there is no room leaves the old one in place.
        auto model =
            std::make_unique<DeviceModel>(context_, shape, config.optimizer, box, options_of_device_.deterministic);
        auto occupancy = std::make_unique<DeviceOccupancy>(context_, n_cascades);
        model_ = std::move(model);
        occupancy_ = std::move(occupancy);
        view_inputs_.set_inputs(context_, {});
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

    const NerfModelShape& shape() const override {
        static const NerfModelShape none{};
        return model_ ? model_->shape() : none;
    }

    void train_step(const NerfTrainOptions& options, int64_t batch_size) override {
        if (images_.n_views() == 0) fail("there are no training images; load a scene or call set_images() first");
        check_supported(options);
        if (shape().n_extra_dims() > 0) fail_with_view_inputs();
        const DeviceGuard guard(context_.device());
        prepare(options, batch_size);
        if (timer_.is_on())
            training_step(*this, plan_);
        else
            launch_graph();
        const cudaEvent_t done = in_flight_[step_ % in_flight_.size()];
        check(cudaEventRecord(done, context_.stream()), "event");
        ++step_;
        weights_changed();
        if (timer_.is_on()) discard_rays(); // used up; launch_graph() says so itself
        timer_.end_step();
    }

    StepResult last_step() override {
        const DeviceGuard guard(context_.device());
        context_.wait();
        return step_ == first_step_ ? StepResult{} : results_.data()[(step_ - 1) % n_results];
    }

    // --- execution policy of training_step -----------------------------------------------------------------------

    void update_occupancy(const StepPlan& plan) {
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

    // Rays, samples, networks and gradients of a step.
    void rays_to_gradients(const StepPlan& plan) {
        timer_.mark(Stage::Begin, context_.stream());
        const StepView step = step_view(parity_);
        if (!marched_) {
            launch_restart(context_, step);
            launch_march(context_, context_.stream(), step, sample_of(plan), occupancy_->view(),
                         plan.composite.objective, false);
        }
        timer_.mark(Stage::March, context_.stream());
        model_->functions().trace_rays(context_,
                                       {trained(), model_->scratch(), step, occupancy_->view(), plan.sample.stepping,
                                        plan.composite.objective, plan.composite.depth});
        timer_.mark(Stage::Trace, context_.stream());
        launch_order(context_, step, plan.batch_size);
        timer_.mark(Stage::Order, context_.stream());
        model_->launch_backward(trained(), source());
        timer_.mark(Stage::Backward, context_.stream());
    }
    void scatter_gradients(const StepPlan& plan) {
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
    void optimize(const StepPlan&) {
        const NerfOptimizer::Trained trained{options_.train_network, options_.train_encoding};
        model_->optimizer().launch(state_.data(), model_->gradient_blocks(), trained);
        if (march_ahead_) check(cudaStreamWaitEvent(context_.stream(), join_), "event");
        launch_finish(context_, step_view(parity_), trained, results_.data(), n_results);
        timer_.mark(Stage::Optimizer, context_.stream());
    }
    StepResult result() const { return {}; } // on its way: last_step() waits for it

    // --- rendering and queries -----------------------------------------------------------------------------------

    void render_display(const FrameRequest& r, const DisplayOptions& display, float* rgba, float* depth) override {
        const DeviceGuard guard(context_.device());
        const DeviceArray<FramePixel>& frame = render_on_device(r);
        const int64_t n = pixels_of(r);
        values_.reserve(context_, n * (depth ? 5 : 4), "the picture");
        float* const device_depth = depth ? values_.data() + 4 * n : nullptr;
        for_each(context_.stream(), n, FinishPixel{display, frame.data(), values_.data(), device_depth});
        copy_to_host(rgba, values_.data(), 4 * n);
        copy_to_host(depth, device_depth, n);
        context_.wait();
    }

    void render_channels(const FrameRequest& r, const WorldTransform& world, const ChannelPointers& channels,
                         Placement where) override {
        const DeviceGuard guard(context_.device());
        const DeviceArray<FramePixel>& frame = render_on_device(r);
        const int64_t n = pixels_of(r);
        ChannelPointers out = channels;
        if (where == Placement::Host) {
            const int floats = 3 * bool(out.rgb) + bool(out.alpha) + bool(out.depth) + 3 * bool(out.normal);
            values_.reserve(context_, n * floats, "the picture");
            float* at = values_.data();
            if (out.rgb) out.rgb = std::exchange(at, at + 3 * n);
            if (out.alpha) out.alpha = std::exchange(at, at + n);
            if (out.depth) out.depth = std::exchange(at, at + n);
            if (out.normal) out.normal = std::exchange(at, at + 3 * n);
        }
        for_each(context_.stream(), n, FinishChannels{world, frame.data(), out, r.gain});
        if (where == Placement::Host) {
            copy_to_host(channels.rgb, out.rgb, 3 * n);
            copy_to_host(channels.alpha, out.alpha, n);
            copy_to_host(channels.depth, out.depth, n);
            copy_to_host(channels.normal, out.normal, 3 * n);
        }
        context_.wait();
    }

    void query(const FieldQuery& q, const Vec3* positions, const Vec3* directions, int64_t n, float* rgb,
               float* density, Placement where) override {
        const DeviceGuard guard(context_.device());
        refresh_averaged();
        const cudaStream_t stream = context_.stream();
        ModelView model = model_->averaged(q.rgb_activation, q.density_activation);
        view_inputs_.attach_given(context_, model, q.extra_dims, shape().n_extra_dims());
        const int64_t chunk = std::min(n, points_per_launch);
        points_.reserve(context_, (directions ? 2 : 1) * chunk, "query points");
        raw_.reserve(context_, chunk, "query results");
        if (where == Placement::Host) values_.reserve(context_, (directions ? 4 : 1) * chunk, "query results");
        Vec3* const p = points_.data();
        Vec3* const d = directions ? p + chunk : nullptr;
        for (int64_t begin = 0; begin < n; begin += chunk) {
            const int64_t m = std::min(chunk, n - begin);
            PlaceQueryPoint place{q.world, positions + begin, directions ? directions + begin : nullptr, p, d};
            float* const colors = rgb ? rgb + 3 * begin : nullptr;
            FinishQueryPoint finish{q, occupancy_->view(), p, raw_.data(), colors, density + begin};
            if (where == Placement::Host) {
                copy_to_device(p, place.positions, m);
                copy_to_device(d, place.directions, m);
                place.positions = p;
                place.directions = d;
                finish.density = values_.data();
                finish.rgb = rgb ? values_.data() + chunk : nullptr;
            }
            for_each(stream, m, place);
            PointsJob job{};
            job.model = model;
            job.scratch = model_->scratch();
            job.positions = p;
            job.directions = d;
            job.n = m;
            job.out = raw_.data();
            model_->functions().points(context_, job);
            for_each(stream, m, finish);
            if (where == Placement::Host) {
                copy_to_host(density + begin, finish.density, m);
                copy_to_host(colors, finish.rgb, 3 * m);
            }
        }
        context_.wait();
    }

    void set_view_inputs(ViewInputs inputs) override {
        NGP_CHECK_EQ(inputs.n_dims, shape().n_extra_dims());
        const DeviceGuard guard(context_.device());
        context_.wait();
        forget_steps(); // they may have the old ones' address
        view_inputs_.set_inputs(context_, std::move(inputs));
    }
    const ViewInputs& view_inputs() const override { return view_inputs_.inputs(); }

    int device() const override { return context_.device(); }
    std::shared_ptr<SharedMemory> allocate(int64_t bytes, Placement where) override {
        if (where == Placement::Device) return context_.share(bytes, "a result");
        return allocate_for_host(context_.device(), bytes, context_.stream());
    }
    void wait_for_stream(uintptr_t stream) override {
        const DeviceGuard guard(context_.device());
        wait_for(context_.stream(), reinterpret_cast<cudaStream_t>(stream));
    }
    std::shared_ptr<SharedMemory> keep_pixels(const void* on_device, int64_t bytes) override {
        const DeviceGuard guard(context_.device());
        const bool fits = bytes <= context_.available() - reserve();
        auto kept = fits ? context_.share(bytes, "training images")
                         : allocate_for_host(context_.device(), bytes, context_.stream());
        check(cudaMemcpyAsync(kept->data(), on_device, size_t(bytes), cudaMemcpyDefault, context_.stream()),
              "copy of training images");
        context_.wait();
        return kept;
    }
    std::shared_ptr<SharedMemory> fetch(const void* on_device, int64_t bytes) override {
        const DeviceGuard guard(context_.device());
        auto copy = allocate_for_host(context_.device(), bytes, context_.stream());
        check(cudaMemcpyAsync(copy->data(), on_device, size_t(bytes), cudaMemcpyDefault, context_.stream()),
              "copy from the device");
        context_.wait();
        return copy;
    }
    bool all_finite(const float* on_device, int64_t n) override {
        const DeviceGuard guard(context_.device());
        return cuda::all_finite(context_, on_device, n);
    }

    std::vector<float> params() override {
        const DeviceGuard guard(context_.device());
        const StepState s = read_state();
        return model_->optimizer().averaged(s.matrix_steps, s.encoding_steps);
    }
    void set_params(const std::vector<float>& params) override {
        NGP_CHECK_EQ(params.size(), shape().n_params());
        const DeviceGuard guard(context_.device());
        model_->optimizer().set_params(params);
        StepState s = read_state();
        s.matrix_steps = s.encoding_steps = 0;
        write_state(s);
        weights_changed();
    }
    NerfTrainState train_state() const override {
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
        return t;
    }
    void set_train_state(const NerfTrainState& t) override {
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
        if (int64_t(t.occupancy_fresh.size()) == int64_t(host_occupancy_.values().size()))
            occupancy_->set_fresh(t.occupancy_fresh);
        weights_changed();
    }

    const OccupancyGrid& occupancy() const override {
        if (!host_occupancy_fresh_) {
            const DeviceGuard guard(context_.device());
            const std::vector<float> values = occupancy_->values();
            host_occupancy_.set_values(values.data(), values.size());
            host_occupancy_fresh_ = true;
        }
        return host_occupancy_;
    }
    void set_occupancy(const std::vector<float>& values) override {
        const DeviceGuard guard(context_.device());
        occupancy_->set_values(values, state_.data());
        occupancy_changed();
    }
    void reset_occupancy() override {
        const DeviceGuard guard(context_.device());
        occupancy_->reset();
        occupancy_changed();
        occupancy_updates_ = 0;
        forget_visibility();
    }

    // Profiling runs a step's kernels one by one, with an event after each stage.
    void set_profiling(bool on) override { timer_.turn(on); }
    StageTimes stage_times() const override { return timer_.times(); }
    void reset_stage_times() override { timer_.reset(); }
    int64_t host_bytes() const override { return images_.host_bytes() + int64_t(host_occupancy_.values().size()) * 8; }
    int64_t device_bytes() const override { return context_.bytes(); }
    int64_t peak_device_bytes() const override { return context_.peak_bytes(); }

  private:
    using Stage = StageTimer::Stage;

    // Options that only the CPU's engine has.
    static void check_supported(const NerfTrainOptions& o) {
        const char* remedy = ": not on CUDA yet; switch it off, or use device=\"cpu\"";
        if (o.error_map.by_image) fail("sample_image_proportional_to_error", remedy);
        if (o.error_map.by_pixel) fail("sample_focal_plane_proportional_to_error", remedy);
        if (o.random_levels) fail("max_level_rand_training", remedy);
        if (o.cameras.any())
            fail("cameras are learned on the CPU only: switch optimize_extrinsics, optimize_exposure, "
                 "optimize_distortion and optimize_focal_length off, or learn them on a Testbed with device=\"cpu\", "
                 "whose snapshots train and render here with what they have learned");
    }

    bool visits_by_training() const { return options_.occupancy_schedule == OccupancySchedule::Budgeted; }
    SceneView scene() const {
        return {images_.views(), images_.n_views(), model_->box(), occupancy_->n_cascades() - 1, distortion_map()};
    }
    DistortionMap distortion_map() const {
        DistortionMap map = corrections_.distortion_map();
        map.offsets = distortion_.data();
        return map;
    }
    ModelView trained() const {
        ModelView v = model_->trained(options_.rgb_activation, options_.density_activation);
        view_inputs_.attach_to(v);
        return v;
    }
    SampleTrainingRays sample_of(const StepPlan& plan) const {
        SampleTrainingRays sample = plan.sample;
        sample.scene = scene();
        return sample;
    }
    StepView step_view(int parity) const {
        StepView v = buffers_->view(parity);
        v.visited = visits_by_training() ? occupancy_->fresh_on_device() : nullptr;
        return v;
    }
    DeviceModel::BackwardSource source() const {
        DeviceModel::BackwardSource s;
        s.step = step_view(parity_);
        s.options = plan_.composite;
        s.n = &s.step.state->n_contributing;
        s.capacity = s.step.batch_capacity;
        return s;
    }
    Pcg32 rays_rng(uint32_t step) const {
        Pcg32 rng = Pcg32::seeded(seed_, rays_stream);
        rng.advance(uint64_t(step) << 32);
        return rng;
    }
    int64_t reserve() const { return model_ ? buffers_ ? 0 : default_reserve / 2 : default_reserve; }

    // What changed, and what of it no longer holds.
    void weights_changed() { averaged_fresh_ = false; }
    void occupancy_changed() {
        discard_rays(); // marched through the grid as it was
        host_occupancy_fresh_ = false;
    }
    void forget_visibility() { n_images_seen_ = 0; } // which cells the images see
    void discard_rays() { marched_ = march_ahead_ = false; }
    // Steps that were captured, and rays that were marched ahead, no longer do what the next step should.
    void forget_steps() {
        for (StepGraph& g : graphs_) g.clear();
        discard_rays();
    }

    StepState read_state() const {
        StepState s;
        state_.download(&s, 1);
        return s;
    }
    // Restarts the host's count of steps with it.
    void write_state(const StepState& s) {
        state_.upload(&s, 1);
        discard_rays();
        step_ = first_step_ = s.step;
    }

    // Brings buffers, ray count, step sizes and plan to the step at hand.
    void prepare(const NerfTrainOptions& options, int64_t batch_size) {
        const bool with_distances = options.depth.lambda != 0.0f;
        if (!buffers_ || buffers_->batch_size() != batch_size || buffers_->with_distances() != with_distances) {
            context_.wait();
            forget_steps();
            buffers_.reset();
            try {
                model_->reserve_encoding_gradients(batch_capacity(batch_size));
                buffers_ = std::make_unique<StepBuffers>(context_, batch_size, model_->is_fused(), with_distances,
                                                         state_.data());
            } catch (...) {
                model_->release_encoding_gradients(); // so that a smaller batch finds room
                throw;
            }
        }
        if (step_ == first_step_ || rays_of_batch_ != batch_size) plan_rays(batch_size);
        const int n_images = options.n_images > 0 ? std::min(options.n_images, images_.n_views()) : images_.n_views();
        if (!(options == options_)) forget_steps();
        options_ = options;
        // Not more than a few steps ahead of the device.
        check(cudaEventSynchronize(in_flight_[step_ % in_flight_.size()]), "waiting for a training step");
        model_->optimizer().prepare(step_);

        StepPlan& p = plan_;
        p.step = step_;
        p.batch_size = batch_size;
        p.n_images = n_images;
        p.occupancy = occupancy_update_at(options_.occupancy_schedule, step_, occupancy_->n_cascades(), batch_size);
        p.occupancy.decay = std::pow(options_.occupancy_decay, p.occupancy.decay_power);
        p.sample.color = options_.color;
        p.sample.stepping = Stepping::with_cone_angle(options_.cone_angle);
        p.sample.n_images = n_images;
        p.sample.snap_to_pixel_centers = options_.snap_to_pixel_centers;
        p.composite.rgb_activation = options_.rgb_activation;
        p.composite.density_activation = options_.density_activation;
        p.composite.objective = {options_.train_mode, options_.loss};
        p.composite.near_distance = options_.near_distance;
        p.composite.depth = options_.depth;
        p.sample.with_distance = with_distances;
    }

    // The first step, or another batch size: the same samples a ray.
    void plan_rays(int64_t batch_size) {
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

    void launch_graph() {
        if (plan_.occupancy.uniform_samples > 0) update_occupancy(plan_);
        // The next step's rays are marched ahead, unless the occupancy grid changes before.
        march_ahead_ =
            occupancy_update_at(options_.occupancy_schedule, step_ + 1, occupancy_->n_cascades(), plan_.batch_size)
                .uniform_samples == 0;
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

    void refresh_averaged() {
        if (averaged_fresh_) return;
        const StepState s = read_state();
        model_->refresh_averaged(s.matrix_steps, s.encoding_steps);
        averaged_fresh_ = true;
    }

    // Asynchronous where host memory is page-locked. Null: not wanted.
    template <typename T>
    void copy_to_host(T* to, const T* from, int64_t n) const {
        if (to)
            check(cudaMemcpyAsync(to, from, size_t(n) * sizeof(T), cudaMemcpyDeviceToHost, context_.stream()),
                  "copy from the device");
    }
    template <typename T>
    void copy_to_device(T* to, const T* from, int64_t n) const {
        if (to)
            check(cudaMemcpyAsync(to, from, size_t(n) * sizeof(T), cudaMemcpyHostToDevice, context_.stream()),
                  "copy to the device");
    }

    static int64_t pixels_of(const FrameRequest& r) { return int64_t(r.camera.width) * r.camera.height; }

    const DeviceArray<FramePixel>& render_on_device(const FrameRequest& r) {
        refresh_averaged();
        frame_.reserve(context_, pixels_of(r), "the picture");
        RenderJob job;
        job.model = model_->averaged(r.rgb_activation, r.density_activation);
        view_inputs_.attach_given(context_, job.model, r.extra_dims.data(), shape().n_extra_dims());
        job.occupancy = occupancy_->view();
        job.make = {r.camera,
                    r.pose,
                    model_->box().intersection(r.box),
                    r.crop,
                    r.crop_to_local,
                    Stepping::with_cone_angle(r.cone_angle),
                    r.near_distance,
                    r.snap_to_pixel_centers,
                    r.blur,
                    r.motion,
                    r.distortion_map ? distortion_map() : DistortionMap{}};
        job.spp = r.spp;
        job.min_transmittance = r.min_transmittance;
        job.add = r.add_ray();
        job.normals = r.normals || r.shows.mode == RenderMode::Normals;
        job.visualized = r.visualized;
        job.pixels = frame_.data();
        const int64_t n_rays = render_rays(r.camera.width, r.camera.height);
        started_rays_.reserve(context_, n_rays, "the picture's rays");
        job.rays = started_rays_.data();
        job.counters = counters_.data();
        if (job.separate_starts()) {
            ray_starts_.reserve(context_, n_rays, "the picture's rays");
            job.starts = ray_starts_.data();
        }
        // Fused networks have no place where activations could be seen; the general one evaluates their models too.
        const NetworkFunctions& functions = job.visualized.wanted() ? general_functions() : model_->functions();
        const ScratchView scratch = model_->render_scratch(functions, job);
        job.scratch = scratch.data;
        job.scratch_size = scratch.size;
        functions.render(context_, job);
        return frame_;
    }

    CudaOptions options_of_device_;
    Context context_;
    StageTimer timer_;
    DeviceImages images_;
    CameraCorrections corrections_;
    DeviceArray<Vec2> distortion_; // its distortion map
    DeviceViewInputs view_inputs_;
    std::unique_ptr<DeviceModel> model_;
    std::unique_ptr<DeviceOccupancy> occupancy_;
    std::unique_ptr<StepBuffers> buffers_;
    std::array<StepGraph, 8> graphs_; // by marched_, march_ahead_ and parity_
    cudaStream_t side_stream_ = nullptr;
    cudaEvent_t fork_ = nullptr, join_ = nullptr;
    int parity_ = 0;                             // of the step: which rays are its own
    bool marched_ = false, march_ahead_ = false; // this step's rays are there; the next one's will be
    DeviceArray<StepState> state_;
    PinnedArray<StepResult> results_;
    DeviceArray<FramePixel> frame_;
    DeviceArray<StartedRay> started_rays_;
    DeviceArray<RayStart> ray_starts_;
    DeviceArray<RenderCounters> counters_;
    DeviceArray<float> values_; // of results on their way to the host
    DeviceArray<Vec3> points_;  // of queries
    DeviceArray<RawSample> raw_;
    std::array<cudaEvent_t, 4> in_flight_{};
    uint64_t seed_ = 0;
    NerfTrainOptions options_;
    StepPlan plan_;
    uint32_t step_ = 0, first_step_ = 0; // launched; when the state was written last
    int64_t rays_of_batch_ = 0;          // batch size that the ray count was adapted to
    uint32_t occupancy_updates_ = 0;
    int n_images_seen_ = 0;
    float restored_loss_ = 0;
    bool averaged_fresh_ = false;
    mutable OccupancyGrid host_occupancy_;
    mutable bool host_occupancy_fresh_ = false;
};

} // namespace

} // namespace ngp::cuda

namespace ngp {

std::unique_ptr<NerfEngine> make_cuda_nerf_engine(const CudaOptions& options) {
    return std::make_unique<cuda::CudaNerfEngine>(options);
}

} // namespace ngp
