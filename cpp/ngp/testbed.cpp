#include <algorithm>
#include <atomic>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ngp/core/check.h>
#include <ngp/core/device.h>
#include <ngp/testbed.h>
#include <utility>

namespace ngp {

namespace {

constexpr int64_t batch_granularity = 256;
constexpr int64_t cpu_batch_size = 1 << 15; // best PSNR over time on two cores (docs/performance.md)
constexpr int64_t cuda_batch_size = 1 << 18;
// fit() polls after as many steps or as much time, whichever is first: steps of a GPU take less than taking Python's
// lock when another thread holds it.
constexpr int poll_steps = 16;
constexpr double poll_seconds = 0.02;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr int cpu_device = -1;

void warn_once_of_fallback(const std::function<void(const std::string&)>& warn) {
    static std::atomic<bool> said{false};
    if (said.exchange(true)) return;
    const std::string message = "training and rendering run on the CPU: " + cuda_unavailable_reason();
    if (warn)
        warn(message);
    else
        std::fprintf(stderr, "ngp: %s\n", message.c_str());
}

// Number of the CUDA device that `options` name, or cpu_device.
int resolve_device(const TestbedOptions& options) {
    const std::string& name = options.device;
    if (name == "cpu") return cpu_device;
    if (name == "auto") {
        const std::vector<CudaDevice> devices = cuda_devices();
        if (!devices.empty()) return devices.front().index;
        if (built_with_cuda()) warn_once_of_fallback(options.warn);
        return cpu_device;
    }
    return cuda_device_of(name);
}

std::unique_ptr<NerfEngine> make_engine(int device, const TestbedOptions& options) {
    if (device == cpu_device) return make_cpu_nerf_engine();
    return make_cuda_nerf_engine({device, options.deterministic, options.max_device_bytes});
}

} // namespace

int cuda_device_of(const std::string& name) {
    const std::string prefix = "cuda:";
    const bool numbered = name.rfind(prefix, 0) == 0;
    unsigned index = 0;
    bool known = name == "cuda";
    if (numbered) {
        const char* end = name.data() + name.size();
        const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, index);
        known = error == std::errc{} && stop == end;
    }
    if (!known)
        fail("device '", name, "' is not known; use \"auto\", \"cpu\", \"cuda\" or, for a certain one, \"cuda:0\"");
    const std::vector<CudaDevice> devices = cuda_devices();
    if (devices.empty()) fail("device '", name, "': ", cuda_unavailable_reason());
    if (!numbered) return devices.front().index;
    std::string usable;
    for (const CudaDevice& d : devices) {
        if (unsigned(d.index) == index) return d.index;
        usable += (usable.empty() ? "cuda:" : ", cuda:") + std::to_string(d.index) + " (" + d.name + ")";
    }
    fail("device '", name, "' is not there or can't be used; usable: ", usable);
}

void NerfDataset::add_view(const std::string& path, const CameraMatrix& camera_to_world, const CameraModel& camera,
                           const ImageView& image, std::shared_ptr<const void> owner) {
    if (camera.width < 1 || camera.height < 1 || image.width != camera.width || image.height != camera.height)
        fail(path, ": the image is ", image.width, "x", image.height, ", its camera ", camera.width, "x",
             camera.height);
    check_image(image, path);
    check_camera(camera, path);
    ViewRecord v;
    v.path = path;
    v.camera = camera;
    v.start = v.end = record.world.camera_to_ngp(with_unit_determinant(camera_to_world, path));
    if (const Vec3 p = v.start.position; !std::isfinite(p.x + p.y + p.z))
        fail(path, ": the camera's position is not finite in NGP space; check scale, offset and the pose");
    record.views.push_back(std::move(v));
    images.push_back(image);
    owners.push_back(std::move(owner));
    changed_ = true;
}

void NerfDataset::set_rolling_shutter(const CameraMatrix& end, const std::array<float, 4>& abcd) {
    if (record.views.empty()) fail("a rolling shutter was given before any view");
    ViewRecord& v = record.views.back();
    for (const float s : abcd)
        if (!std::isfinite(s)) fail(v.path, ": rolling_shutter holds ", s, "; it must be four finite numbers");
    std::copy(abcd.begin(), abcd.end(), v.rolling_shutter);
    v.end = record.world.camera_to_ngp(with_unit_determinant(end, v.path));
    if (const Vec3 p = v.end.position; !std::isfinite(p.x + p.y + p.z))
        fail(v.path, ": transform_matrix_end's position is not finite in NGP space");
    changed_ = true;
}

Testbed::Testbed(TestbedMode mode, const TestbedOptions& options)
    : mode_(mode), seed_(options.seed), config_(parse_network_config(base_nerf_config_json(), "base")) {
    if (mode == TestbedMode::Sdf || mode == TestbedMode::Image || mode == TestbedMode::Volume)
        fail("this version of the library has the NeRF task only; use TestbedMode.Nerf");
    if (options.max_device_bytes < 0)
        fail("max_device_bytes is ", options.max_device_bytes, "; it must not be negative (0: all that is free)");
    const int index = resolve_device(options);
    device_ = index == cpu_device ? "cpu" : "cuda:" + std::to_string(index);
    deterministic_ = options.deterministic || !on_cuda();
    engine_ = make_engine(index, options);
    if (on_cuda()) nerf.training.occupancy_schedule = OccupancySchedule::Specification;
    nerf.training.testbed = this;
    aabb = render_aabb = raw_aabb = scene_box(1);
    reset_camera();
}

Testbed::~Testbed() = default;

// --- data and network ----------------------------------------------------------------------------------------------

void Testbed::set_dataset(NerfDataset dataset) {
    Lock lock(mutex_);
    if (dataset.record.views.empty()) fail("the dataset has no views");
    const int scale = dataset.record.aabb_scale;
    if (scale < 1 || scale > 128 || !std::has_single_bit(unsigned(scale)))
        fail("aabb_scale is ", scale, "; it must be a power of two from 1 to 128");
    const WorldTransform& w = dataset.record.world;
    if (!(w.scale > 0 && std::isfinite(w.scale) && std::isfinite(w.offset.x + w.offset.y + w.offset.z)))
        fail("scale is ", w.scale, " and offset (", w.offset.x, ", ", w.offset.y, ", ", w.offset.z,
             "); scale must be positive and both finite");
    for (size_t i = 0; i < dataset.images.size(); ++i) check_place(dataset, i);
    const auto replaced = nerf.training.dataset; // the engine reads its images until it gets others
    bool keep = has_network_ && network_aabb_scale_ == scale;
    if (keep) keep_extra_dims(replaced->record, dataset.record);
    keep = keep && dataset.record.n_extra_dims() == network_extra_dims_ &&
           dataset.record.has_light_dirs == replaced->record.has_light_dirs;
    const std::vector<float> appearance = keep ? rendering_extra_dims() : std::vector<float>{};
    nerf.training.dataset = std::make_shared<NerfDataset>(std::move(dataset));
    mode_ = TestbedMode::Nerf;
    engine_->set_corrections({}); // they are those of other cameras
    apply_dataset(keep);
    if (keep && network_extra_dims_ > 0 && !same_views(replaced->record, nerf.training.dataset->record)) {
        reset_view_inputs();
        set_rendering_extra_dims(appearance); // pictures stay as they were
    }
}

void Testbed::apply_dataset(bool keep_network) {
    const DatasetRecord& d = nerf.training.dataset->record;
    aabb = render_aabb = raw_aabb = scene_box(d.aabb_scale);
    training_view_ = 0;
    if (!d.render_aabb.empty()) render_aabb = aabb.intersection(d.render_aabb);
    render_aabb_to_local = d.render_aabb_to_local;
    nerf.rgb_activation = d.is_hdr ? Activation::Exponential : Activation::Logistic;
    nerf.cone_angle_constant = d.aabb_scale <= 1 ? 0.0f : 1.0f / 256.0f;
    nerf.training.n_images_for_training = int(d.views.size());
    for (const ImageView& image : nerf.training.dataset->images)
        if (image.rays) nerf.training.near_distance = 0; // C.4
    up_dir = d.up;
    nerf.training.optimize_extra_dims = d.n_extra_learnable_dims > 0 && !d.has_light_dirs;
    if (!keep_network) {
        has_network_ = false;
        nerf.rendering_extra_dims_from_training_view = 0;
        nerf.rendering_extra_dims.clear();
    }
    push_views();
}

void Testbed::push_views() {
    NerfDataset& data = *nerf.training.dataset;
    const std::lock_guard lock(data.mutex_.mutex);
    std::vector<TrainingView> views;
    if (data.has_images())
        for (size_t i = 0; i < data.images.size(); ++i)
            views.push_back({data.images[i], data.record.views[i].camera, data.record.views[i].start,
                             camera_motion(data.record.views[i].start, data.record.views[i].end,
                                           data.record.views[i].rolling_shutter)});
    engine_->set_views(std::move(views));
    data.replaced_.clear();
    data.changed_ = false;
}

void Testbed::create_empty_nerf_dataset(int n_images, int aabb_scale, bool is_hdr) {
    Lock lock(mutex_);
    set_dataset(NerfDataset::empty(n_images, aabb_scale, is_hdr));
    nerf.training.n_images_for_training = 0;
}

void Testbed::check_place(const NerfDataset& dataset, size_t image) const {
    if (const int at = dataset.images[image].device; at != host_memory && at != device_index())
        fail(dataset.record.views[image].path, ": its pixels lie on cuda:", at, ", but this Testbed runs on ", device_);
}

// Of the images that are trained on, all must be there: create_empty_nerf_dataset() leaves that to its caller.
void Testbed::check_images() const {
    const NerfDataset& data = *nerf.training.dataset;
    const int n = nerf.training.n_images_for_training, n_views = int(data.images.size());
    for (int i = 0; i < (n > 0 ? std::min(n, n_views) : n_views); ++i) {
        check_place(data, size_t(i));
        if (!data.images[size_t(i)].pixels)
            fail(data.record.views[size_t(i)].path, ": has no pixels yet; call nerf.training.set_image(", i,
                 ", …), or set nerf.training.n_images_for_training to the number of images that are there");
    }
}

void Testbed::clear_training_data() {
    Lock lock(mutex_);
    NerfDataset& data = *nerf.training.dataset;
    data.images.clear();
    push_views();
    data.owners.clear(); // only now: the engine read their pixels
}

void Testbed::reload_network_from_json(const std::string& json, const std::string& source) {
    Lock lock(mutex_);
    NetworkConfig config = parse_network_config(json, source);
    const DatasetRecord& d = nerf.training.dataset->record;
    nerf_model_shape(config, d.aabb_scale, d.n_extra_dims()); // raises before anything changes
    config_ = std::move(config);
    has_network_ = false;
    if (mode_ != TestbedMode::None) ensure_network();
}

void Testbed::ensure_network() {
    const DatasetRecord& d = nerf.training.dataset->record;
    if (has_network_ && network_extra_dims_ == d.n_extra_dims()) return;
    engine_->reset_network(config_, d.aabb_scale, d.n_extra_dims(), seed_);
    network_aabb_scale_ = d.aabb_scale;
    network_extra_dims_ = d.n_extra_dims();
    reset_view_inputs();
    engine_->set_corrections({}); // they are learned with the network
    engine_->reset_stage_times();
    nerf.training.loss_type = config_.loss;
    training_step_ = 0;
    step_under_way_ = false;
    last_step_ = {};
    loss_ = 0;
    train_seconds_ = 0;
    has_network_ = true;
    note_device_bytes();
}

void Testbed::reset(bool reset_density_grid) {
    Lock lock(mutex_);
    std::vector<float> grid;
    if (!reset_density_grid && has_network_) grid = engine_->occupancy().values();
    has_network_ = false;
    ensure_network();
    if (!grid.empty()) engine_->set_occupancy(grid);
}

int64_t Testbed::n_params() {
    Lock lock(mutex_);
    ensure_network();
    return int64_t(engine_->shape().n_params());
}
std::string Testbed::network_config() const {
    Lock lock(mutex_);
    return config_.json;
}
std::vector<float> Testbed::params() {
    Lock lock(mutex_);
    ensure_network();
    return engine_->params();
}
std::vector<float> Testbed::density_grid() {
    Lock lock(mutex_);
    ensure_network();
    return engine_->occupancy().values();
}
int64_t Testbed::n_encoding_params() {
    Lock lock(mutex_);
    ensure_network();
    return engine_->shape().position.n_params;
}

// --- training ------------------------------------------------------------------------------------------------------

NerfTrainOptions Testbed::train_options() const {
    const NerfTraining& t = nerf.training;
    NerfTrainOptions o;
    o.color.space = color_space;
    o.color.linear_colors = t.linear_colors;
    o.color.random_background = t.random_bg_color;
    o.color.background = {background_color[0], background_color[1], background_color[2]};
    o.loss = t.loss_type;
    o.train_mode = t.train_mode;
    o.error_map = {t.sample_image_proportional_to_error, t.sample_focal_plane_proportional_to_error,
                   t.include_sharpness_in_error};
    o.random_levels = max_level_rand_training;
    o.rgb_activation = nerf.rgb_activation;
    o.density_activation = nerf.density_activation;
    o.near_distance = t.near_distance;
    o.cone_angle = nerf.cone_angle_constant;
    o.occupancy_decay = t.density_grid_decay;
    o.n_images = t.n_images_for_training;
    o.snap_to_pixel_centers = t.snap_to_pixel_centers;
    o.occupancy_schedule = t.occupancy_schedule;
    o.train_encoding = shall_train_encoding;
    o.train_network = shall_train_network;
    o.depth = {t.depth_loss_type, t.depth_supervision_lambda};
    o.train_view_inputs = t.optimize_extra_dims && !t.dataset->record.has_light_dirs;
    o.cameras = camera_learning();
    return o;
}

void Testbed::train(int64_t batch_size) {
    Lock lock(mutex_);
    if (batch_size < batch_granularity || batch_size % batch_granularity)
        fail("batch_size is ", batch_size, "; it must be a positive multiple of ", batch_granularity);
    if (!nerf.training.dataset->has_images())
        fail("there is no training data; call load_training_data() or set_images() first");
    const auto start = Clock::now();
    check_images();
    ensure_network();
    if (nerf.training.dataset->changed_) push_views();
    push_light_dirs();
    engine_->train_step(train_options(), batch_size);
    ++training_step_;
    step_under_way_ = true;
    train_seconds_ += seconds_since(start);
    note_device_bytes();
}

// The wait is part of training, or train_seconds would only say how fast steps can be asked for.
void Testbed::wait_for_step() const {
    if (!step_under_way_) return;
    const auto start = Clock::now();
    last_step_ = engine_->last_step();
    step_under_way_ = false;
    loss_ = last_step_.loss;
    train_seconds_ += seconds_since(start);
}

float Testbed::loss() const {
    Lock lock(mutex_);
    wait_for_step();
    return loss_;
}

void Testbed::note_device_bytes() const { peak_device_bytes_ = std::max(peak_device_bytes_, engine_->device_bytes()); }

bool Testbed::frame() {
    Lock lock(mutex_);
    if (shall_train && nerf.training.dataset->has_images()) train(training_batch_size);
    return true;
}

int64_t Testbed::default_batch_size() const { return on_cuda() ? cuda_batch_size : cpu_batch_size; }

void Testbed::fit(std::optional<int64_t> steps, std::optional<double> seconds, std::optional<int64_t> batch_size,
                  const std::function<bool(const Testbed&)>& after_step, const std::function<bool()>& poll) {
    if (steps && *steps < 0) fail("steps is ", *steps, "; it must not be negative");
    if (seconds && !(*seconds >= 0)) fail("seconds is ", *seconds, "; it must not be negative");
    double spent = 0, polled_at = 0; // train_seconds_ starts over with a new network
    int unpolled = 0;
    bool go_on = true;
    for (int64_t i = 0; go_on && (!steps || i < *steps) && (!seconds || spent < *seconds); ++i) {
        const auto start = Clock::now();
        train(batch_size.value_or(default_batch_size()));
        if (after_step) loss(); // waits
        spent += seconds_since(start);
        if (after_step) go_on = after_step(*this);
        if (poll && go_on && (++unpolled >= poll_steps || spent - polled_at >= poll_seconds)) {
            go_on = poll();
            unpolled = 0;
            polled_at = spent;
        }
    }
    loss();
}

// --- snapshots -----------------------------------------------------------------------------------------------------

void Testbed::save_snapshot(const std::string& path, bool include_optimizer_state, bool compress) {
    Lock lock(mutex_);
    ensure_network();
    wait_for_step();
    Snapshot s;
    s.config_json = config_.json;
    s.params = engine_->params();
    s.training_step = training_step_;
    s.loss = loss_;
    s.aabb = aabb;
    s.render_aabb = render_aabb;
    s.render_aabb_to_local = render_aabb_to_local;
    s.bounding_radius = bounding_radius;
    s.up_dir = up_dir;
    s.sun_dir = sun_dir;
    s.exposure = exposure;
    std::copy(background_color.begin(), background_color.end(), s.background_color);
    s.camera = camera;
    s.density_grid = engine_->occupancy().values();
    s.dataset = nerf.training.dataset->record;
    if (!s.dataset.has_light_dirs) s.latents = engine_->view_inputs();
    const NerfTraining& t = nerf.training;
    s.extra = {seed_,
               color_space,
               t.linear_colors,
               t.random_bg_color,
               nerf.cone_angle_constant,
               t.near_distance,
               t.snap_to_pixel_centers,
               t.density_grid_decay,
               t.occupancy_schedule,
               0,
               t.n_images_for_training};
    s.extra.depth_supervision_lambda = t.depth_supervision_lambda;
    s.extra.depth_loss_type = t.depth_loss_type;
    s.extra.loss = t.loss_type;
    s.extra.train_mode = t.train_mode;
    s.extra.rgb_activation = nerf.rgb_activation;
    s.extra.density_activation = nerf.density_activation;
    s.extra.sample_image_by_error = t.sample_image_proportional_to_error;
    s.extra.sample_pixel_by_error = t.sample_focal_plane_proportional_to_error;
    s.extra.sharpness_in_error = t.include_sharpness_in_error;
    s.extra.random_levels = max_level_rand_training;
    s.train_state = engine_->train_state();
    s.rays_per_batch = s.train_state.rays_per_batch;
    s.extra.batch_size = s.train_state.rays_of_last_batch;
    s.has_train_state = include_optimizer_state;
    s.corrections = engine_->corrections();
    write_snapshot(path, s, engine_->shape(), compress);
}

void Testbed::load_snapshot(const std::string& path) {
    Snapshot s = read_snapshot(path); // everything is checked before anything changes
    Lock lock(mutex_);
    const bool keep_images = nerf.training.dataset->has_images();
    if (keep_images && nerf.training.dataset->record.aabb_scale != s.dataset.aabb_scale)
        fail(path, ": its aabb_scale is ", s.dataset.aabb_scale, ", but the loaded training data's is ",
             nerf.training.dataset->record.aabb_scale);
    if (keep_images) {
        DatasetRecord& d = nerf.training.dataset->record;
        const bool as_data_says = d.n_extra_dims() == 0 || s.dataset.n_extra_dims() == d.n_extra_dims();
        if (!as_data_says)
            fail(path, ": its views have ", s.dataset.n_extra_dims(),
                 " extra dimensions (latents or light directions), but those of the loaded training data ",
                 d.n_extra_dims());
        keep_extra_dims(s.dataset, d);
    }
    const bool known_views = !keep_images || same_views(nerf.training.dataset->record, s.dataset);
    config_ = parse_network_config(s.config_json, path);
    if (!keep_images) {
        nerf.training.dataset = std::make_shared<NerfDataset>();
        nerf.training.dataset->record = std::move(s.dataset);
    }
    mode_ = TestbedMode::Nerf;
    apply_dataset(false);
    ensure_network();
    if (!s.aabb.empty()) aabb = s.aabb;
    if (!s.render_aabb.empty()) render_aabb = s.render_aabb;
    render_aabb_to_local = s.render_aabb_to_local;
    bounding_radius = s.bounding_radius;
    up_dir = s.up_dir;
    sun_dir = s.sun_dir;
    exposure = s.exposure;
    std::copy(s.background_color, s.background_color + 4, background_color.begin());
    camera = s.camera;
    if (s.has_extra) {
        NerfTraining& t = nerf.training;
        seed_ = s.extra.seed;
        color_space = s.extra.color_space;
        t.linear_colors = s.extra.linear_colors;
        t.random_bg_color = s.extra.random_background;
        if (s.extra.cone_angle >= 0) nerf.cone_angle_constant = s.extra.cone_angle;
        t.near_distance = s.extra.near_distance;
        t.snap_to_pixel_centers = s.extra.snap_to_pixel_centers;
        t.density_grid_decay = s.extra.occupancy_decay;
        t.depth_supervision_lambda = s.extra.depth_supervision_lambda;
        t.depth_loss_type = s.extra.depth_loss_type;
        t.train_mode = s.extra.train_mode;
        t.sample_image_proportional_to_error = s.extra.sample_image_by_error;
        t.sample_focal_plane_proportional_to_error = s.extra.sample_pixel_by_error;
        t.include_sharpness_in_error = s.extra.sharpness_in_error;
        max_level_rand_training = s.extra.random_levels;
        if (s.extra.rgb_activation) nerf.rgb_activation = *s.extra.rgb_activation;
        if (s.extra.density_activation) nerf.density_activation = *s.extra.density_activation;
        // A snapshot of the CPU's must not leave a GPU with the CPU's schedule, unless it continues that very training.
        if (!on_cuda() || s.has_train_state || s.extra.occupancy_schedule == OccupancySchedule::Specification)
            t.occupancy_schedule = s.extra.occupancy_schedule;
        if (s.extra.n_images > 0 && keep_images) t.n_images_for_training = s.extra.n_images;
        has_network_ = false; // the seed also drives training's random numbers
        ensure_network();
        if (s.extra.loss) t.loss_type = *s.extra.loss; // a new network sets its configuration's
    }
    engine_->set_params(s.params);
    if (s.latents.n_views() > 0) {
        const std::vector<float> first(s.latents.of(0), s.latents.of(1));
        if (known_views)
            engine_->set_view_inputs(std::move(s.latents));
        else
            set_rendering_extra_dims(first); // the new views' latents are still to be trained
    }
    if (s.has_train_state) {
        engine_->set_train_state(s.train_state);
    } else {
        NerfTrainState state = engine_->train_state();
        state.step = s.training_step;
        state.rays_per_batch = s.rays_per_batch;
        state.rays_of_last_batch = s.train_state.rays_of_last_batch;
        engine_->set_train_state(state);
    }
    if (!s.density_grid.empty()) engine_->set_occupancy(s.density_grid);
    restore_corrections(s, known_views);
    training_step_ = s.training_step;
    loss_ = s.loss;
}

void Testbed::set_profiling(bool on) {
    Lock lock(mutex_);
    engine_->set_profiling(on);
    engine_->reset_stage_times();
}

TestbedStats Testbed::stats() const {
    Lock lock(mutex_);
    wait_for_step();
    TestbedStats s;
    s.stages = engine_->stage_times();
    s.last_step = last_step_;
    s.train_seconds = train_seconds_;
    s.host_bytes = has_network_ ? engine_->host_bytes() : 0;
    note_device_bytes();
    s.device_bytes = engine_->device_bytes();
    s.peak_device_bytes = peak_device_bytes_;
    for (const ImageView& i : nerf.training.dataset->images) s.image_bytes += i.bytes();
    return s;
}

} // namespace ngp
