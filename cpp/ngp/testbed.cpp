#include <algorithm>
#include <atomic>
#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ngp/core/check.h>
#include <ngp/core/device.h>
#include <ngp/stages/render_rays.h>
#include <ngp/testbed.h>

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

float degrees(float radians) { return radians * 57.29577951308232f; }
float radians(float degrees) { return degrees * 0.017453292519943295f; }

Aabb scene_box(int aabb_scale) {
    const float half = 0.5f * float(aabb_scale);
    return {splat3(0.5f - half), splat3(0.5f + half)};
}

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

CameraMatrix with_unit_determinant(const CameraMatrix& c, const std::string& path) {
    const float det = determinant(c.rotation());
    if (!std::isfinite(det) || std::fabs(det) < 1e-9f || !std::isfinite(dot(c.position, c.position)))
        fail(path, ": transform_matrix is not a camera pose (its rotation has determinant ", det, ")");
    if (det < 0) fail(path, ": transform_matrix mirrors (determinant ", det, "); cameras must be right-handed");
    if (std::fabs(det - 1.0f) <= 0.01f) return c;
    const float s = 1.0f / std::cbrt(det);
    return {c.right * s, c.down * s, c.forward * s, c.position};
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
    nerf.training.owner = this;
    if (on_cuda()) nerf.training.occupancy_schedule = OccupancySchedule::Specification;
    aabb = render_aabb = scene_box(1);
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
    for (size_t i = 0; i < dataset.images.size(); ++i)
        if (const int at = dataset.images[i].device; at != host_memory && at != device_index())
            fail(dataset.record.views[i].path, ": its pixels lie on cuda:", at, ", but this Testbed runs on ", device_);
    const bool keep = has_network_ && network_aabb_scale_ == scale;
    const auto replaced = nerf.training.dataset; // the engine reads its images until it gets others
    nerf.training.dataset = std::make_shared<NerfDataset>(std::move(dataset));
    mode_ = TestbedMode::Nerf;
    engine_->set_corrections({}); // they are those of other cameras
    apply_dataset(keep);
}

void Testbed::apply_dataset(bool keep_network) {
    const DatasetRecord& d = nerf.training.dataset->record;
    aabb = render_aabb = scene_box(d.aabb_scale);
    if (!d.render_aabb.empty()) render_aabb = aabb.intersection(d.render_aabb);
    render_aabb_to_local = d.render_aabb_to_local;
    nerf.rgb_activation = d.is_hdr ? Activation::Exponential : Activation::Logistic;
    nerf.cone_angle_constant = d.aabb_scale <= 1 ? 0.0f : 1.0f / 256.0f;
    nerf.training.n_images_for_training = int(d.views.size());
    up_dir = d.up;
    if (!keep_network) has_network_ = false;
    push_views();
}

void Testbed::push_views() {
    const NerfDataset& data = *nerf.training.dataset;
    std::vector<TrainingView> views;
    if (data.has_images())
        for (size_t i = 0; i < data.images.size(); ++i)
            views.push_back({data.images[i], data.record.views[i].camera, data.record.views[i].start,
                             camera_motion(data.record.views[i].start, data.record.views[i].end,
                                           data.record.views[i].rolling_shutter)});
    engine_->set_views(std::move(views));
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
    nerf_model_shape(config, nerf.training.dataset->record.aabb_scale); // raises before anything changes
    config_ = std::move(config);
    has_network_ = false;
    if (mode_ != TestbedMode::None) ensure_network();
}

void Testbed::ensure_network() {
    if (has_network_) return;
    network_aabb_scale_ = nerf.training.dataset->record.aabb_scale;
    engine_->reset_network(config_, network_aabb_scale_, seed_);
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
    ensure_network();
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

// --- rendering -----------------------------------------------------------------------------------------------------

void Testbed::check_render_size(int width, int height, int spp) const {
    if (width < 1 || height < 1 || width > 65536 || height > 65536)
        fail("a picture of ", width, "x", height, " pixels can't be rendered; both sides must be from 1 to 65536");
    if (spp < 1) fail("spp is ", spp, "; it must be at least 1");
    if (!(nerf.render_min_transmittance >= 0 && nerf.render_min_transmittance < 1))
        fail("nerf.render_min_transmittance is ", nerf.render_min_transmittance, "; it must be at least 0 and below 1");
}

FrameRequest Testbed::frame_request(const CameraModel& model, const CameraMatrix& pose, int spp) const {
    FrameRequest r;
    r.camera = model;
    r.pose = pose;
    r.spp = spp;
    r.box = scene_box(network_aabb_scale_).intersection(aabb);
    r.crop = render_aabb;
    r.crop_to_local = render_aabb_to_local;
    r.near_distance = render_near_distance;
    r.cone_angle = nerf.cone_angle_constant;
    r.min_transmittance = nerf.render_min_transmittance;
    r.snap_to_pixel_centers = snap_to_pixel_centers;
    r.linear_colors = nerf.training.linear_colors;
    r.space = color_space;
    r.rgb_activation = nerf.rgb_activation;
    r.density_activation = nerf.density_activation;
    r.distortion_map = render_with_lens_distortion;
    return r;
}

SharedArray Testbed::new_array(size_t n, Placement where) const {
    return {engine_->allocate(int64_t(n * sizeof(float)), where), n};
}

SharedArray Testbed::render(int width, int height, int spp, bool linear, SharedArray* depth) {
    Lock lock(mutex_);
    check_render_size(width, height, spp);
    ensure_network();
    const int along = camera.fov_axis == 0 ? width : height;
    CameraModel model;
    model.width = width;
    model.height = height;
    model.focal = camera.relative_focal_length * (float(along) * camera.zoom);
    model.principal = (Vec2{0.5f, 0.5f} - camera.screen_center) * camera.zoom + Vec2{0.5f, 0.5f};

    DisplayOptions display;
    display.space = color_space;
    display.background = {background_color[0], background_color[1], background_color[2]};
    if (color_space != ColorSpace::SRGB) display.background = srgb_to_linear(display.background);
    display.background_alpha = background_color[3];
    display.gain = std::exp2(exposure);
    display.curve = tonemap_curve;
    display.linear = linear;
    const size_t n_pixels = size_t(width) * size_t(height);
    const SharedArray rgba = new_array(n_pixels * 4, Placement::Host);
    if (depth) *depth = new_array(n_pixels, Placement::Host);
    engine_->render_display(frame_request(model, camera.matrix, spp), display, rgba.data(),
                            depth ? depth->data() : nullptr);
    note_device_bytes();
    return rgba;
}

ChannelImages Testbed::render_channels(const CameraMatrix& camera_to_world, const CameraModel& model,
                                       const ChannelSet& channels, int spp, Placement where, int image) {
    Lock lock(mutex_);
    check_render_size(model.width, model.height, spp);
    check_camera(model, "camera");
    ensure_network();
    FrameRequest r = frame_request(model, world().camera_to_ngp(camera_to_world), spp);
    r.space = ColorSpace::Linear;
    r.normals = channels.normal;
    r.gain = exposure_gain(image);
    const size_t n = size_t(model.width) * size_t(model.height);
    ChannelImages out;
    out.width = model.width;
    out.height = model.height;
    if (channels.rgb) out.rgb = new_array(3 * n, where);
    if (channels.alpha) out.alpha = new_array(n, where);
    if (channels.depth) out.depth = new_array(n, where);
    if (channels.normal) out.normal = new_array(3 * n, where);
    engine_->render_channels(r, world(), {out.rgb.data(), out.alpha.data(), out.depth.data(), out.normal.data()},
                             where);
    note_device_bytes();
    return out;
}

RaySamples Testbed::ray_samples(const CameraMatrix& camera_to_world, const CameraModel& model, int x, int y) {
    Lock lock(mutex_);
    check_render_size(model.width, model.height, 1);
    check_camera(model, "camera");
    ensure_network();
    const FrameRequest r = frame_request(model, world().camera_to_ngp(camera_to_world), 1);
    const MakeRenderRay make{r.camera,
                             r.pose,
                             r.box,
                             r.crop,
                             r.crop_to_local,
                             Stepping::with_cone_angle(r.cone_angle),
                             r.near_distance,
                             r.snap_to_pixel_centers,
                             r.distortion_map ? engine_->corrections().distortion_map() : DistortionMap{}};
    RayMarcher march = make(x, y, 0);
    const float to_world = 1.0f / world().scale;
    RaySamples s{world().point_to_world(march.origin), world().direction_to_world(march.direction), {}, {}};
    const OccupancyView grid = engine_->occupancy().view();
    while (const float dt = march.next(grid, make.stepping, false)) {
        s.t.push_back(march.t * to_world);
        s.dt.push_back(dt * to_world);
        march.t += dt;
    }
    return s;
}

QueryResult Testbed::query(const Vec3* positions, const Vec3* directions, int64_t n, bool occupancy, Placement where,
                           int image) {
    Lock lock(mutex_);
    ensure_network();
    QueryResult out;
    out.density = new_array(size_t(n), where);
    if (directions) out.rgb = new_array(3 * size_t(n), where);
    engine_->query({world(), aabb, occupancy, nerf.rgb_activation, nerf.density_activation, exposure_gain(image),
                    nerf.training.linear_colors},
                   positions, directions, n, out.rgb.data(), out.density.data(), where);
    note_device_bytes();
    return out;
}

void Testbed::wait_for_stream(uintptr_t stream) {
    Lock lock(mutex_);
    engine_->wait_for_stream(stream);
}
std::shared_ptr<SharedMemory> Testbed::keep_pixels(const void* on_device, int64_t bytes) {
    Lock lock(mutex_);
    auto kept = engine_->keep_pixels(on_device, bytes);
    note_device_bytes();
    return kept;
}
bool Testbed::all_finite(const float* on_device, int64_t n) {
    Lock lock(mutex_);
    return engine_->all_finite(on_device, n);
}

// --- camera --------------------------------------------------------------------------------------------------------

void Testbed::set_nerf_camera_matrix(const CameraMatrix& camera_to_world) {
    Lock lock(mutex_);
    camera.matrix = world().camera_to_ngp(camera_to_world);
}

void Testbed::reset_camera() {
    Lock lock(mutex_);
    camera = RenderCamera{};
    camera.matrix.position = Vec3{0.5f, 0.5f, 0.5f} - camera.matrix.forward * camera.scale;
}

float Testbed::fov() const {
    const Vec2 xy = fov_xy();
    return camera.fov_axis == 0 ? xy.x : xy.y;
}
void Testbed::set_fov(float angle) { set_fov_xy({angle, angle}); }
Vec2 Testbed::fov_xy() const {
    return {degrees(2 * std::atan(0.5f / camera.relative_focal_length.x)),
            degrees(2 * std::atan(0.5f / camera.relative_focal_length.y))};
}
void Testbed::set_fov_xy(Vec2 angle) {
    if (!(angle.x > 0 && angle.x < 180 && angle.y > 0 && angle.y < 180))
        fail("a field of view of (", angle.x, ", ", angle.y, ") degrees; both must be above 0 and below 180");
    camera.relative_focal_length = {0.5f / std::tan(0.5f * radians(angle.x)), 0.5f / std::tan(0.5f * radians(angle.y))};
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
    config_ = parse_network_config(s.config_json, path);
    if (!keep_images) nerf.training.dataset = std::make_shared<NerfDataset>(NerfDataset{s.dataset, {}, {}});
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
        // A snapshot of the CPU's must not leave a GPU with the CPU's schedule, unless it continues that very training.
        if (!on_cuda() || s.has_train_state || s.extra.occupancy_schedule == OccupancySchedule::Specification)
            t.occupancy_schedule = s.extra.occupancy_schedule;
        if (s.extra.n_images > 0 && keep_images) t.n_images_for_training = s.extra.n_images;
        has_network_ = false; // the seed also drives training's random numbers
        ensure_network();
    }
    engine_->set_params(s.params);
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
    restore_corrections(s, keep_images);
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
    for (const ImageView& i : nerf.training.dataset->images)
        s.image_bytes += int64_t(i.width) * i.height * i.channels * (i.type == PixelType::U8 ? 1 : 4);
    return s;
}

} // namespace ngp
