#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ngp/core/check.h>
#include <ngp/core/isa.h>
#include <ngp/core/parallel.h>
#include <ngp/fields/nerf_cpu.h>
#include <ngp/fields/view_inputs_cpu.h>

namespace ngp {

namespace {

constexpr int n_lanes = 64;
constexpr int initial_rays_divisor = 512; // first step: batch/512 rays, since every cell is still occupied
constexpr int64_t positions_per_task = 4096;
constexpr int64_t pixels_per_task = 1 << 14; // of a finished frame
constexpr int render_tile = 16;              // pixels; render_tile^2 rays are traced together
static_assert(render_tile * render_tile <= max_rays_per_chunk);

enum RandomStream : uint64_t { params_stream = 1, rays_stream = 2, occupancy_stream = 3 };

class Stopwatch {
  public:
    explicit Stopwatch(double& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
    ~Stopwatch() {
        total_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
    }

  private:
    double& total_;
    std::chrono::steady_clock::time_point start_;
};

void grow_tiles(GradientTiles& t) {
    auto& memory = *static_cast<AlignedVector<float>*>(t.owner);
    const int64_t capacity = std::max<int64_t>(16, 2 * t.capacity);
    memory.resize(size_t(capacity * t.record)); // may throw: nothing is changed then
    t.data = memory.data();
    t.capacity = capacity;
}

// Parameters in the forms that the kernels read.
class CpuModel {
  public:
    void reset(const NerfModelShape& shape, int aabb_scale) {
        shape_ = &shape;
        density_ = PackedMlp(shape.density);
        rgb_ = PackedMlp(shape.rgb);
        const float half = 0.5f * float(aabb_scale);
        box_ = {splat3(0.5f - half), splat3(0.5f + half)};
    }
    void pack(const float* params) {
        density_.pack(params);
        rgb_.pack(params + shape_->rgb_begin());
        encoding_ = params + shape_->encoding_begin();
    }
    NerfModelView view(Activation rgb, Activation density) const {
        return {&shape_->position,
                &shape_->direction,
                encoding_,
                {shape_->density, density_.forward_weights(), density_.backward_weights()},
                {shape_->rgb, rgb_.forward_weights(), rgb_.backward_weights()},
                rgb,
                density,
                box_};
    }
    const PackedMlp& density() const { return density_; }
    const PackedMlp& rgb() const { return rgb_; }
    const Aabb& box() const { return box_; }

  private:
    const NerfModelShape* shape_ = nullptr;
    PackedMlp density_, rgb_;
    const float* encoding_ = nullptr;
    Aabb box_;
};

class CpuNerfEngine final : public NerfEngine {
  public:
    void set_views(std::vector<TrainingView> views) override {
        given_views_ = std::move(views);
        correct_views();
        state_.n_images_seen = 0; // other cameras may see other cells
        errors_.reset();
    }
    const CameraCorrections& corrections() const override { return cameras_.corrections(); }
    void set_corrections(const CameraCorrections& corrections) override {
        cameras_.set_corrections(corrections);
        correct_views();
    }

    void reset_network(const NetworkConfig& config, int aabb_scale, int n_extra_dims, uint64_t seed) override {
        // Built aside, so that a configuration that can't be laid out leaves the old network in place.
        const NerfModelShape shape = nerf_model_shape(config, aabb_scale, n_extra_dims);
        int n_cascades = 1;
        while ((1 << (n_cascades - 1)) < aabb_scale) ++n_cascades;
        workspaces_.clear();
        shape_ = shape;
        settings_ = config.optimizer;
        cameras_.reset(config.distortion_map);
        seed_ = seed;
        n_cascades_ = n_cascades;
        model_.reset(shape_, aabb_scale);
        averaged_model_.reset(shape_, aabb_scale);
        for (int i = 0; i < num_threads(); ++i) workspaces_.push_back(std::make_unique<CpuWorkspace>(shape_));
        lanes_ = std::vector<CpuLane>(n_lanes);
        for (CpuLane& lane : lanes_) {
            lane.density_gradient.assign(size_t(model_.density().packed_size()), 0.0f);
            lane.rgb_gradient.assign(size_t(model_.rgb().packed_size()), 0.0f);
            lane.tiles.set_shape(shape_.position);
            lane.tiles.grow = grow_tiles;
            lane.tiles.owner = &lane.tile_memory;
        }
        gradient_.assign(shape_.n_params(), 0.0f);
        reset_occupancy();
        state_ = {};
        errors_.reset();
        last_step_ = {};
        view_inputs_.set_inputs({});
        set_params(initial_nerf_params(shape_, seed));
    }

    const NerfModelShape& shape() const override { return shape_; }

    void train_step(const NerfTrainOptions& options, int64_t batch_size) override {
        if (views_.empty()) fail("there are no training images; load a scene or call set_images() first");
        check_view_inputs();
        options_ = options;
        const StepPlan plan = plan_step(batch_size);
        if (options.cameras.any()) {
            cameras_.prepare(views_.size(), options.cameras);
            ray_pixels_.resize(size_t(plan.n_rays));
            ray_d_color_.resize(size_t(plan.n_rays));
            camera_gradients_.resize(size_t(plan.n_rays));
            ray_gradients_.assign(size_t(plan.n_rays), {});
        }
        averaged_fresh_ = false;
        last_step_ = training_step(*this, plan);
        errors_.end_step(last_step_.rays);
        state_.rays_per_batch = next_ray_count(last_step_.rays, last_step_.samples, batch_size);
        ++state_.step;
        state_.loss = last_step_.loss;
        ++times_.steps;
    }
    StepResult last_step() override { return last_step_; }

    // --- execution policy of training_step -----------------------------------------------------------------------

    void update_occupancy(const StepPlan& plan) {
        Stopwatch watch(times_.occupancy);
        if (plan.occupancy.initial || plan.n_images != state_.n_images_seen) {
            occupancy_.mark_visible(scene(), plan.n_images, plan.occupancy.initial);
            state_.n_images_seen = plan.n_images;
        }
        const int64_t n_uniform = plan.occupancy.uniform_samples, n_occupied = plan.occupancy.occupied_samples;
        const int64_t n = n_uniform + n_occupied;
        positions_.resize(size_t(n));
        cells_.resize(size_t(n));
        thickness_.resize(size_t(n));
        Pcg32 rng = Pcg32::seeded(seed_, occupancy_stream);
        rng.advance(uint64_t(state_.occupancy_updates) << 32);
        const DrawOccupancySample uniform{occupancy_.values().data(),
                                          n_cascades_,
                                          state_.occupancy_updates,
                                          n_uniform,
                                          never_seen * 0.01f,
                                          rng,
                                          false,
                                          positions_.data(),
                                          cells_.data()};
        DrawOccupancySample occupied = uniform;
        occupied.n = n_occupied;
        occupied.threshold = occupancy_threshold;
        occupied.around = plan.occupancy.around;
        occupied.rng.advance(uint64_t(1) << 31);
        occupied.position += n_uniform;
        occupied.cell += n_uniform;

        model_.pack(params_.data());
        const NerfModelView model = model_view(model_);
        raw_.resize(size_t(n));
        parallel_for_range(n, positions_per_task, [&](int64_t begin, int64_t end, int worker) {
            for (int64_t i = begin; i < end; ++i) i < n_uniform ? uniform(i) : occupied(i - n_uniform);
            kernels_.evaluate(model, positions_.data() + begin, nullptr, end - begin, raw_.data() + begin,
                              workspace(worker));
            for (int64_t i = begin; i < end; ++i)
                thickness_[i] = visit_value(density_from_raw(options_.density_activation, raw_[i].density));
        });
        occupancy_.apply(cells_.data(), thickness_.data(), n, plan.occupancy.decay,
                         visits_by_training() && !plan.occupancy.initial);
        ++state_.occupancy_updates;
    }

    void rays_to_gradients(const StepPlan& plan) {
        Stopwatch watch(times_.rays_to_gradients);
        model_.pack(params_.data());
        NerfModelView model = model_view(model_);
        view_inputs_.attach_to(model);
        if (trains_view_inputs()) view_inputs_.start_step(plan.n_rays);
        start_lanes();
        // Chunks of about a thousand samples; rounds of one chunk a lane, until the rays or the batch are used up.
        const int chunk =
            int(std::clamp<int64_t>(1024 * int64_t(plan.n_rays) / plan.batch_size, 8, max_rays_per_chunk));
        const int n_chunks = (plan.n_rays + chunk - 1) / chunk;
        result_ = {};
        for (int first = 0; first < n_chunks && result_.samples < plan.batch_size; first += n_lanes) {
            const int n = std::min(n_lanes, n_chunks - first);
            parallel_for(n, [&](int64_t lane_index, int worker) {
                CpuLane& lane = lanes_[lane_index];
                TrainChunk c;
                c.model = &model;
                c.occupancy = occupancy_.view();
                c.sample = plan.sample;
                c.sample.scene = scene();
                c.composite = plan.composite;
                if (RayError* const errors = errors_.ray_errors()) c.errors = errors + (first + lane_index) * chunk;
                if (visits_by_training()) c.visited = occupancy_.fresh().data();
                c.first_ray = (first + lane_index) * chunk;
                c.n_rays = int(std::min<int64_t>(chunk, plan.n_rays - c.first_ray));
                c.density_gradient = lane.density_gradient.data();
                c.rgb_gradient = lane.rgb_gradient.data();
                c.tiles = &lane.tiles;
                if (trains_view_inputs()) view_inputs_.attach_to(c);
                if (options_.cameras.any()) {
                    c.sample.ray_pixels = ray_pixels_.data() + c.first_ray;
                    c.ray_gradients = ray_gradients_.data() + c.first_ray;
                    c.d_color = ray_d_color_.data() + c.first_ray;
                    c.finest_scale = cameras_.finest_cells(options_.cameras) * model_.box().diag().x;
                }
                kernels_.train_chunk(c, workspace(worker));
                lane.loss += c.loss;
                lane.samples += c.samples;
                lane.evaluated += c.evaluated;
                lane.marching_ns += c.marching_ns;
            });
            result_.rays = std::min<int64_t>(plan.n_rays, int64_t(first + n) * chunk);
            result_.samples = 0;
            for (const CpuLane& lane : lanes_) result_.samples += lane.samples;
        }
        double loss = 0;
        for (const CpuLane& lane : lanes_) {
            loss += lane.loss;
            result_.samples_evaluated += lane.evaluated;
            times_.marching += 1e-6 * double(lane.marching_ns) / num_threads();
        }
        result_.loss = float(loss / double(std::max<int64_t>(1, result_.rays)));
    }

    void scatter_gradients(const StepPlan&) {
        Stopwatch watch(times_.scatter);
        for (CpuLane& lane : lanes_) {
            model_.density().unpack_gradient(lane.density_gradient.data(), gradient_.data());
            model_.rgb().unpack_gradient(lane.rgb_gradient.data(), gradient_.data() + shape_.rgb_begin());
        }
        scatter_tiles();
    }

    void optimize(const StepPlan& plan) {
        Stopwatch watch(times_.optimizer);
        if (trains_view_inputs())
            view_inputs_.step(plan.n_images, result_.rays, decayed_learning_rate(settings_, plan.step));
        const float scale = 1.0f / float(std::max<int64_t>(1, result_.rays));
        optimizer_.step(kernels_, params_.data(), gradient_.data(), scale, state_.step,
                        {options_.train_network, options_.train_encoding});
        if (options_.cameras.any()) optimize_cameras();
    }

    StepResult result() const { return result_; }

    // --- rendering and queries -----------------------------------------------------------------------------------

    std::vector<FramePixel> render(const FrameRequest& r) {
        refresh_averaged();
        const NerfModelView model = averaged_view(r.rgb_activation, r.density_activation, r.extra_dims.data());
        const int width = r.camera.width, height = r.camera.height;
        const MakeRenderRay make{r.camera,
                                 r.pose,
                                 averaged_model_.box().intersection(r.box),
                                 r.crop,
                                 r.crop_to_local,
                                 Stepping::with_cone_angle(r.cone_angle),
                                 r.near_distance,
                                 r.snap_to_pixel_centers,
                                 r.blur,
                                 r.motion,
                                 r.distortion_map ? corrections().distortion_map() : DistortionMap{}};
        const AddRay add = r.add_ray();
        std::vector<FramePixel> pixels(size_t(width) * size_t(height));
        const int tiles_x = (width + render_tile - 1) / render_tile, tiles_y = (height + render_tile - 1) / render_tile;
        parallel_for(int64_t(tiles_x) * tiles_y, [&](int64_t tile, int worker) {
            const int x0 = int(tile % tiles_x) * render_tile, y0 = int(tile / tiles_x) * render_tile;
            const int w = std::min(render_tile, width - x0), h = std::min(render_tile, height - y0);
            RenderRay rays[max_rays_per_chunk];
            RenderedRay results[max_rays_per_chunk];
            FramePixel sums[max_rays_per_chunk];
            for (int sample = 0; sample < r.spp; ++sample) {
                for (int i = 0; i < w * h; ++i) {
                    const int x = x0 + i % w, y = y0 + i / w;
                    rays[i].march = make(x, y, sample);
                    rays[i].z_per_t = dot(rays[i].march.direction, make.pose_of(x, y, sample).forward);
                }
                kernels_.trace({&model, occupancy_.view(), make.stepping, r.min_transmittance, r.normals, r.shows,
                                r.near_distance, r.visualized, rays, results, w * h},
                               workspace(worker));
                for (int i = 0; i < w * h; ++i)
                    add(sums[i], results[i], rays[i].march.origin, rays[i].march.direction, rays[i].z_per_t);
            }
            for (int i = 0; i < w * h; ++i) {
                FramePixel& p = pixels[size_t(y0 + i / w) * size_t(width) + size_t(x0 + i % w)];
                const float s = 1.0f / float(r.spp);
                p = sums[i];
                p.rgb = p.rgb * s;
                p.alpha *= s;
                p.depth_expected *= s;
                p.normal = p.normal * s;
            }
        });
        return pixels;
    }

    void render_display(const FrameRequest& r, const DisplayOptions& display, float* rgba, float* depth) override {
        const std::vector<FramePixel> pixels = render(r);
        for_each(int64_t(pixels.size()), FinishPixel{display, pixels.data(), rgba, depth});
    }

    void render_channels(const FrameRequest& r, const WorldTransform& world, const ChannelPointers& channels,
                         Placement) override {
        const std::vector<FramePixel> pixels = render(r);
        for_each(int64_t(pixels.size()), FinishChannels{world, pixels.data(), channels, r.gain});
    }

    void query(const FieldQuery& q, const Vec3* positions, const Vec3* directions, int64_t n, float* rgb,
               float* density, Placement) override {
        refresh_averaged();
        const NerfModelView model = averaged_view(q.rgb_activation, q.density_activation, q.extra_dims);
        struct Task {
            std::vector<Vec3> positions, directions;
            std::vector<RawSample> raw;
        };
        std::vector<Task> tasks(workspaces_.size());
        const auto chunk = size_t(std::min(n, positions_per_task));
        parallel_for_range(n, positions_per_task, [&](int64_t begin, int64_t end, int worker) {
            Task& t = tasks[size_t(worker)];
            t.positions.resize(chunk);
            t.raw.resize(chunk);
            if (directions) t.directions.resize(chunk);
            const PlaceQueryPoint place{q.world, positions + begin, directions ? directions + begin : nullptr,
                                        t.positions.data(), t.directions.data()};
            const FinishQueryPoint finish{q,
                                          occupancy_.view(),
                                          t.positions.data(),
                                          t.raw.data(),
                                          rgb ? rgb + 3 * begin : nullptr,
                                          density + begin};
            for (int64_t i = 0; i < end - begin; ++i) place(i);
            kernels_.evaluate(model, t.positions.data(), directions ? t.directions.data() : nullptr, end - begin,
                              t.raw.data(), workspace(worker));
            for (int64_t i = 0; i < end - begin; ++i) finish(i);
        });
    }

    void set_view_inputs(ViewInputs inputs) override {
        NGP_CHECK_EQ(inputs.n_dims, shape_.n_extra_dims());
        view_inputs_.set_inputs(std::move(inputs));
    }
    const ViewInputs& view_inputs() const override { return view_inputs_.inputs(); }

    float view_input_gradient(const ViewInputLoss& job, std::vector<float>& gradient) override {
        NGP_CHECK_EQ(int(job.extra_dims.size()), shape_.n_extra_dims());
        refresh_averaged();
        const NerfModelView model =
            averaged_view(job.composite.rgb_activation, job.composite.density_activation, job.extra_dims.data());
        const auto run = [&](TrainChunk& c, int worker) { kernels_.train_chunk(c, workspace(worker)); };
        return view_inputs_.gradient_of(job, model, occupancy_.view(), run, gradient);
    }

    std::shared_ptr<SharedMemory> allocate(int64_t bytes, Placement where) override {
        if (where == Placement::Device) fail("this Testbed runs on the CPU, where there is no device memory");
        return allocate_host_memory(bytes);
    }

    std::vector<float> params() override {
        refresh_averaged();
        return {averaged_.begin(), averaged_.end()};
    }
    void set_params(const std::vector<float>& params) override {
        NGP_CHECK_EQ(params.size(), shape_.n_params());
        params_.assign(params.begin(), params.end());
        optimizer_.reset(settings_, shape_.encoding_begin(), shape_.position);
        averaged_fresh_ = false;
    }
    NerfTrainState train_state() const override {
        NerfTrainState s = state_;
        s.params.assign(params_.begin(), params_.end());
        s.optimizer = optimizer_.state();
        s.occupancy_fresh = occupancy_.fresh();
        s.error_map = errors_.state();
        return s;
    }
    void set_train_state(const NerfTrainState& s) override {
        NGP_CHECK_EQ(s.params.size(), shape_.n_params());
        if (!s.optimizer.matrix_m.empty()) optimizer_.set_state(s.optimizer);
        params_.assign(s.params.begin(), s.params.end());
        state_ = s;
        state_.params.clear();
        state_.optimizer = {};
        state_.occupancy_fresh.clear();
        errors_.set_state(std::move(state_.error_map));
        state_.error_map = {};
        if (s.occupancy_fresh.size() == occupancy_.fresh().size()) occupancy_.fresh() = s.occupancy_fresh;
        averaged_fresh_ = false;
    }

    const OccupancyGrid& occupancy() const override { return occupancy_; }
    void set_occupancy(const std::vector<float>& values) override {
        occupancy_.set_values(values.data(), values.size());
    }
    void reset_occupancy() override {
        occupancy_.resize(n_cascades_);
        state_.occupancy_updates = 0;
        state_.n_images_seen = 0;
    }

    StageTimes stage_times() const override { return times_; }
    void reset_stage_times() override { times_ = {}; }
    int64_t host_bytes() const override {
        int64_t n = int64_t(params_.size() + averaged_.size() + gradient_.size()) * 4;
        n += optimizer_.bytes() + int64_t(occupancy_.values().size()) * 8;
        for (const CpuLane& lane : lanes_) n += int64_t(lane.tile_memory.size()) * 4;
        for (const auto& w : workspaces_) n += w->bytes();
        return n + errors_.bytes();
    }

  private:
    // Extra dimensions: the same for all rays or points.
    NerfModelView averaged_view(Activation rgb, Activation density, const float* extra_dims) const {
        NerfModelView view = averaged_model_.view(rgb, density);
        if (shape_.n_extra_dims() > 0 && !extra_dims) fail("the extra dimensions of a latent or a light are missing");
        view.extra_dims = extra_dims;
        return view;
    }
    void check_view_inputs() const {
        if (shape_.n_extra_dims() > 0 && view_inputs().n_views() < int(views_.size()))
            fail("there are latents or lights of ", view_inputs().n_views(), " views, but ", views_.size(), " views");
    }
    bool trains_view_inputs() const { return options_.train_view_inputs && shape_.n_extra_dims() > 0; }
    void start_lanes() {
        for (CpuLane& lane : lanes_) {
            lane.tiles.count = 0;
            // Not empty only after a step that failed half-way.
            std::fill(lane.density_gradient.begin(), lane.density_gradient.end(), 0.0f);
            std::fill(lane.rgb_gradient.begin(), lane.rgb_gradient.end(), 0.0f);
            lane.loss = 0;
            lane.samples = lane.evaluated = lane.marching_ns = 0;
        }
    }
    bool visits_by_training() const { return options_.occupancy_schedule == OccupancySchedule::Budgeted; }
    NerfWorkspace& workspace(int worker) { return workspaces_[worker]->get(); }
    NerfModelView model_view(const CpuModel& m) const {
        return m.view(options_.rgb_activation, options_.density_activation);
    }
    SceneView scene() const {
        return {views_.data(), int(views_.size()), model_.box(), n_cascades_ - 1, corrections().distortion_map()};
    }

    void correct_views() {
        views_ = given_views_;
        for (size_t i = 0; i < views_.size(); ++i) views_[i] = corrected(corrections(), i, views_[i]);
    }

    // Of the rays at hand: they are drawn in order, and summed in order.
    void optimize_cameras() {
        for_each(result_.rays, GradientOfCamera{views_.data(), corrections().distortion_map(), ray_pixels_.data(),
                                                ray_gradients_.data(), ray_d_color_.data(),
                                                options_.cameras.focal_length, camera_gradients_.data()});
        const int n_images = image_count();
        cameras_.add(ray_pixels_.data(), camera_gradients_.data(), result_.rays, n_images);
        const float rate = decayed_learning_rate(settings_, state_.step);
        if (cameras_.update(options_.cameras, n_images, state_.step, rate)) correct_views();
    }
    int image_count() const {
        const int n = int(views_.size());
        return options_.n_images > 0 ? std::min(options_.n_images, n) : n;
    }

    StepPlan plan_step(int64_t batch_size) {
        StepPlan p;
        p.step = state_.step;
        p.batch_size = batch_size;
        apply_options(options_, image_count(), p);
        if (state_.rays_per_batch == 0 || state_.rays_of_last_batch == 0)
            state_.rays_per_batch = int(std::max<int64_t>(8, batch_size / initial_rays_divisor));
        else if (state_.rays_of_last_batch != batch_size) // a new batch size: the same samples a ray
            state_.rays_per_batch = std::max(
                8, int(double(state_.rays_per_batch) * double(batch_size) / double(state_.rays_of_last_batch)));
        state_.rays_of_last_batch = batch_size;
        p.n_rays = state_.rays_per_batch;
        p.occupancy = occupancy_update_at(options_.occupancy_schedule, state_.step, n_cascades_, batch_size);
        p.occupancy.decay = std::pow(options_.occupancy_decay, p.occupancy.decay_power);

        p.sample.rng = Pcg32::seeded(seed_, rays_stream);
        p.sample.rng.advance(uint64_t(state_.step) << 32);
        p.sample.n_rays = p.n_rays;
        errors_.begin_step(options_.error_map, views_, p.n_images, p.n_rays);
        p.sample.errors = errors_.sampling();

        // E.4 adds 1e-4 to gradients that are scaled by 128/n_rays; ours are those of the sum over rays.
        p.composite.regularizer = 1e-4f * float(p.n_rays) / 128.0f;
        p.composite.encourage_density =
            options_.train_mode == TrainMode::Nerf && occupancy_.mean() < occupancy_threshold;
        return p;
    }

    void scatter_tiles() {
        struct Task {
            const EncodingPart* part;
            int level;
            uint32_t first, last;
        };
        // The entries of a level are split only as far as threads need work; every entry has one writer, and its order
        // of additions does not depend on the split. Large levels first, to balance the end.
        std::vector<Task> tasks;
        for (int i = 0; i < shape_.position.n_parts; ++i) {
            const EncodingPart& part = shape_.position.parts[i];
            if (part.kind != EncodingKind::Grid) continue;
            const uint32_t splits = uint32_t((2 * num_threads() + part.n_levels - 1) / part.n_levels);
            for (int l = part.n_levels - 1; l >= 0; --l)
                for (uint32_t s = 0; s < splits; ++s) {
                    const uint64_t n = part.levels[l].entries;
                    tasks.push_back({&part, l, uint32_t(n * s / splits), uint32_t(n * (s + 1) / splits)});
                }
        }
        parallel_for(int64_t(tasks.size()), [&](int64_t t, int) {
            const EncodingPart& part = *tasks[t].part;
            float* table = gradient_.data() + shape_.encoding_begin() + part.param_begin +
                           size_t(part.levels[tasks[t].level].offset) * part.n_features;
            for (const CpuLane& lane : lanes_)
                kernels_.scatter(part, tasks[t].level, lane.tiles, table, tasks[t].first, tasks[t].last);
        });
    }

    void refresh_averaged() {
        if (averaged_fresh_) return;
        averaged_.resize(params_.size());
        optimizer_.averaged(params_.data(), averaged_.data());
        averaged_model_.pack(averaged_.data());
        averaged_fresh_ = true;
    }

    template <typename Body>
    static void for_each(int64_t n, const Body& body) {
        parallel_for_range(n, pixels_per_task, [&](int64_t begin, int64_t end, int) {
            for (int64_t i = begin; i < end; ++i) body(i);
        });
    }

    const NerfKernels& kernels_ = cpu_kernels();
    std::vector<TrainingView> given_views_, views_; // views_: with corrected cameras
    CameraOptimizer cameras_;
    // Of a step's rays, while cameras are learned
    std::vector<RayPixel> ray_pixels_;
    std::vector<RayGradient> ray_gradients_;
    std::vector<Vec3> ray_d_color_;
    std::vector<CameraGradient> camera_gradients_;
    NerfModelShape shape_;
    AdamSettings settings_;
    uint64_t seed_ = 0;
    int n_cascades_ = 1;
    NerfTrainOptions options_;
    NerfTrainState state_; // its parameters live in params_, its optimizer part in optimizer_
    NerfOptimizer optimizer_;
    CpuViewInputs view_inputs_;
    OccupancyGrid occupancy_;
    ErrorMap errors_;
    CpuModel model_, averaged_model_;
    AlignedVector<float> params_, averaged_, gradient_; // params_: fp32 masters
    bool averaged_fresh_ = false;
    std::vector<std::unique_ptr<CpuWorkspace>> workspaces_;
    std::vector<CpuLane> lanes_;
    StepResult result_;    // of the step at hand
    StepResult last_step_; // of the last whole one
    StageTimes times_;
    // Of occupancy updates
    std::vector<Vec3> positions_;
    std::vector<uint32_t> cells_;
    std::vector<float> thickness_;
    std::vector<RawSample> raw_;
};

} // namespace

void CpuWorkspace::Free::operator()(void* p) const { std::free(p); }

template <typename T>
T* CpuWorkspace::allocate(int64_t n) {
    const size_t size = (size_t(n) * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, std::max<size_t>(64, size));
    if (!p) throw std::bad_alloc();
    memory_.emplace_back(p);
    bytes_ += int64_t(size);
    return static_cast<T*>(p);
}

CpuWorkspace::CpuWorkspace(const NerfModelShape& shape) {
    NerfWorkspace& w = workspace_;
    int widest = 16;
    auto add_layer = [&](int width) {
        w.stride[w.n_layers++] = pad16(width);
        widest = std::max(widest, pad16(width));
    };
    for (int k = 0; k < shape.density.n_layers; ++k) add_layer(shape.density.in(k));
    for (int k = 0; k < shape.rgb.n_layers; ++k) add_layer(shape.rgb.in(k));
    add_layer(shape.rgb.n_out);
    for (int k = 0; k < w.n_layers; ++k) {
        w.tile[k] = allocate<float>(int64_t(kernel_tile) * w.stride[k]);
        std::fill_n(w.tile[k], int64_t(kernel_tile) * w.stride[k], 0.0f); // padding columns must be finite
    }
    for (float*& s : w.scratch) s = allocate<float>(int64_t(kernel_tile) * widest);
    w.d_output = allocate<float>(kernel_tile * 16);
    std::fill_n(w.d_output, kernel_tile * 16, 0.0f);
    w.d_encoding = allocate<float>(int64_t(kernel_tile) * pad16(shape.rgb.n_in));
    w.d_input = allocate<float>(int64_t(kernel_tile) * pad16(shape.density.n_in));
    constexpr int64_t samples = int64_t(max_rays_per_chunk) * max_samples_per_ray;
    w.rays = allocate<TrainingRay>(max_rays_per_chunk);
    w.raw = allocate<RawSample>(samples);
    w.d_raw = allocate<RawSample>(samples);
    w.dt = allocate<float>(samples);
    w.t = allocate<float>(samples);
    w.row = allocate<int32_t>(samples);
    w.count = allocate<int>(max_rays_per_chunk);
    w.loss = allocate<float>(max_rays_per_chunk);
    w.transmittance = allocate<float>(max_rays_per_chunk);
    w.direction = allocate<float>(int64_t(max_rays_per_chunk) * pad16(shape.direction.n_out_padded));
    w.d_direction = allocate<float>(int64_t(max_rays_per_chunk) * pad16(shape.direction.n_out_padded));
    w.grow = grow;
    w.owner = this;
    rows_.resize(w.n_layers);
}

void CpuWorkspace::grow(NerfWorkspace& w, int64_t rows) {
    auto& self = *static_cast<CpuWorkspace*>(w.owner);
    rows = std::max<int64_t>({rows, 2 * w.rows, 4096});
    for (int k = 0; k < w.n_layers; ++k) {
        const size_t old_size = size_t(w.rows) * w.stride[k], size = size_t(rows) * w.stride[k];
        auto* p = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
        if (!p) throw std::bad_alloc();
        std::copy(w.layer[k], w.layer[k] + old_size, p);
        std::fill(p + old_size, p + size, 0.0f); // padding columns must be finite
        self.rows_[k].reset(p);
        self.bytes_ += int64_t(size - old_size) * 4;
        w.layer[k] = p;
    }
    w.rows = rows;
}

std::unique_ptr<NerfEngine> make_cpu_nerf_engine() { return std::make_unique<CpuNerfEngine>(); }

} // namespace ngp
