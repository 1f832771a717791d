// Testbed: pictures, channels and queries, and the render camera.
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/stages/render_rays.h>
#include <ngp/testbed.h>

namespace ngp {

namespace {

float degrees(float radians) { return radians * 57.29577951308232f; }
float radians(float degrees) { return degrees * 0.017453292519943295f; }

} // namespace

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
                                       const ChannelSet& channels, int spp, Placement where) {
    Lock lock(mutex_);
    check_render_size(model.width, model.height, spp);
    check_camera(model, "camera");
    ensure_network();
    FrameRequest r = frame_request(model, world().camera_to_ngp(camera_to_world), spp);
    r.space = ColorSpace::Linear;
    r.normals = channels.normal;
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
    const MakeRenderRay make{r.camera,        r.pose,
                             r.box,           r.crop,
                             r.crop_to_local, Stepping::with_cone_angle(r.cone_angle),
                             r.near_distance, r.snap_to_pixel_centers};
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

QueryResult Testbed::query(const Vec3* positions, const Vec3* directions, int64_t n, bool occupancy, Placement where) {
    Lock lock(mutex_);
    ensure_network();
    QueryResult out;
    out.density = new_array(size_t(n), where);
    if (directions) out.rgb = new_array(3 * size_t(n), where);
    engine_->query({world(), aabb, occupancy, nerf.rgb_activation, nerf.density_activation}, positions, directions, n,
                   out.rgb.data(), out.density.data(), where);
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

void Testbed::set_camera_to_training_view(int view) {
    Lock lock(mutex_);
    const auto& views = nerf.training.dataset->record.views;
    if (view < 0 || view >= int(views.size()))
        fail("training view ", view, " does not exist; there are ", views.size());
    const ViewRecord& v = views[view];
    const float along = float(camera.fov_axis == 0 ? v.camera.width : v.camera.height);
    camera.matrix = v.start;
    camera.relative_focal_length = v.camera.focal * (1.0f / along);
    camera.screen_center = Vec2{1, 1} - v.camera.principal;
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

std::vector<CameraMatrix> Testbed::cameras() const {
    Lock lock(mutex_);
    std::vector<CameraMatrix> result;
    for (const ViewRecord& v : nerf.training.dataset->record.views) result.push_back(world().camera_to_world(v.start));
    return result;
}

} // namespace ngp
