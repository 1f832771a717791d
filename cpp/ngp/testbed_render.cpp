// Testbed: pictures, channels and queries, and the render camera.
#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/core/parallel.h>
#include <ngp/stages/flat_pictures.h>
#include <ngp/stages/render_rays.h>
#include <ngp/testbed.h>

namespace ngp {

namespace {

float degrees(float radians) { return radians * 57.29577951308232f; }
float radians(float degrees) { return degrees * 0.017453292519943295f; }

constexpr int64_t pixels_per_task = 1 << 14;
constexpr int64_t slice_points = 1 << 18; // that are queried at once

template <typename Body>
void for_each_pixel(int64_t n, const Body& body) {
    parallel_for_range(n, pixels_per_task, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) body(i);
    });
}

// `distortion`: the learned one, where the request wants it.
MakeRenderRay ray_maker(const FrameRequest& r, const DistortionMap& distortion) {
    return {r.camera,        r.pose,
            r.box,           r.crop,
            r.crop_to_local, Stepping::with_cone_angle(r.cone_angle),
            r.near_distance, r.snap_to_pixel_centers,
            r.blur,          r.motion,
            distortion};
}

} // namespace

// --- rendering -----------------------------------------------------------------------------------------------------

void Testbed::check_render_size(int width, int height, int spp) const {
    if (width < 1 || height < 1 || width > 65536 || height > 65536)
        fail("a picture of ", width, "x", height, " pixels can't be rendered; both sides must be from 1 to 65536");
    if (spp < 1) fail("spp is ", spp, "; it must be at least 1");
    if (!(nerf.render_min_transmittance >= 0 && nerf.render_min_transmittance < 1))
        fail("nerf.render_min_transmittance is ", nerf.render_min_transmittance, "; it must be at least 0 and below 1");
}

FrameRequest Testbed::frame_request(const CameraModel& model, const CameraMatrix& pose, int spp,
                                    const Appearance& appearance) {
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
    r.image = appearance.image;
    r.extra_dims = extra_dims_of(appearance);
    return r;
}

DistortionMap Testbed::distortion_of(const FrameRequest& r) const {
    return r.distortion_map ? engine_->corrections().distortion_map() : DistortionMap{};
}

SharedArray Testbed::new_array(size_t n, Placement where) const {
    return {engine_->allocate(int64_t(n * sizeof(float)), where), n};
}

CameraModel Testbed::render_model(int width, int height) const {
    const int along = camera.fov_axis == 0 ? width : height;
    CameraModel model;
    model.width = width;
    model.height = height;
    model.focal = camera.relative_focal_length * (float(along) * camera.zoom);
    model.principal = (Vec2{0.5f, 0.5f} - camera.screen_center) * camera.zoom + Vec2{0.5f, 0.5f};
    if (uses_render_lens()) {
        model.lens = render_lens;
        check_camera(model, "render_lens");
    }
    return model;
}

DisplayOptions Testbed::display_options(int width, bool linear) const {
    DisplayOptions display;
    display.space = color_space;
    display.background = {background_color[0], background_color[1], background_color[2]};
    if (color_space != ColorSpace::SRGB) display.background = srgb_to_linear(display.background);
    display.background_alpha = background_color[3];
    display.gain = std::exp2(exposure);
    display.curve = tonemap_curve;
    display.linear = linear;
    display.checkerboard_width = render_transparency_as_checkerboard ? width : 0;
    display.signed_values = visualized_dimension >= 0 && !render_ground_truth;
    return display;
}

void Testbed::set_mode(FrameRequest& r) const {
    r.shows.mode = render_mode;
    r.shows.hard_edges = nerf.render_gbuffer_hard_edges;
    r.shows.depth_scale = 1.0f / world().scale;
    r.blur.aperture = camera.aperture_size;
    r.blur.focus_distance = camera.slice_plane_z + camera.scale;
    if (r.blur.aperture < 0 || (r.blur.aperture > 0 && !(r.blur.focus_distance > 0)))
        fail("aperture_size is ", r.blur.aperture, " and slice_plane_z + scale, the focus distance, ",
             r.blur.focus_distance, "; the first must not be negative and the second positive");
    if (!(parallax_shift == Vec3{})) {
        if (r.camera.lens.mode != LensMode::Perspective)
            fail("parallax_shift needs a perspective lens; set render_with_lens_distortion to False");
        const Vec2 moved = Vec2{parallax_shift.x, parallax_shift.y} * parallax_shift.z;
        r.camera.principal = r.camera.principal + Vec2{moved.x * r.camera.focal.x / float(r.camera.width),
                                                       moved.y * r.camera.focal.y / float(r.camera.height)};
        r.pose.position += r.pose.right * parallax_shift.x + r.pose.down * parallax_shift.y;
    }
    if (visualized_dimension < 0) return;
    check_visualized();
    r.shows.mode = RenderMode::Shade;
    r.visualized = {visualized_layer, visualized_dimension};
    r.linear_colors = r.space == ColorSpace::Linear; // values, not colours: no conversion
}

void Testbed::check_visualized() const {
    const NerfModelShape& shape = engine_->shape();
    std::vector<int> widths;
    for (int k = 0; k < shape.density.n_layers; ++k) widths.push_back(shape.density.in(k));
    for (int k = 0; k < shape.rgb.n_layers; ++k) widths.push_back(shape.rgb.in(k));
    widths.push_back(shape.rgb.n_out);
    if (visualized_layer < 0 || visualized_layer >= int(widths.size()))
        fail("visualized_layer is ", visualized_layer, "; the model's layers are 0 to ", widths.size() - 1);
    if (visualized_dimension >= widths[size_t(visualized_layer)])
        fail("visualized_dimension is ", visualized_dimension, "; layer ", visualized_layer, " has dimensions 0 to ",
             widths[size_t(visualized_layer)] - 1, " (-1: none is shown)");
}

SharedArray Testbed::render(int width, int height, int spp, bool linear, SharedArray* depth, const FrameTime& time) {
    Lock lock(mutex_);
    check_render_size(width, height, spp);
    ensure_network();
    const ShutterMotion motion = follow_path(time);
    if (camera.autofocus) focus_on_target();
    FrameRequest request = frame_request(render_model(width, height), camera.matrix, spp);
    request.motion = motion;
    set_mode(request);
    const DisplayOptions display = display_options(width, linear);
    const size_t n_pixels = size_t(width) * size_t(height);
    const SharedArray rgba = new_array(n_pixels * 4, Placement::Host);
    if (depth) *depth = new_array(n_pixels, Placement::Host);
    float* const depths = depth ? depth->data() : nullptr;
    if (!render_ground_truth && request.shows.mode != RenderMode::Distortion &&
        request.shows.mode != RenderMode::Slice) {
        engine_->render_display(request, display, rgba.data(), depths);
    } else {
        std::vector<FramePixel> pixels(n_pixels);
        if (render_ground_truth)
            render_training_image(request.camera, pixels.data());
        else if (request.shows.mode == RenderMode::Distortion)
            for_each_pixel(int64_t(n_pixels),
                           ShowDistortion{request.camera, request.pose, distortion_of(request), pixels.data()});
        else
            render_slice(request, pixels.data());
        for_each_pixel(int64_t(n_pixels), FinishPixel{display, pixels.data(), rgba.data(), depths});
    }
    note_device_bytes();
    return rgba;
}

void Testbed::render_training_image(const CameraModel& model, FramePixel* pixels) const {
    const NerfDataset& data = *nerf.training.dataset;
    if (!data.has_images())
        fail("render_ground_truth: there are no training images; call load_training_data() or set_images() first");
    int view = nerf.find_closest_training_view(camera.matrix);
    // Views may share a pose: then the one that was asked for last.
    if (training_view_ < int(data.images.size()))
        if (const CameraMatrix a = view_pose(training_view_, ViewTime::Center), b = view_pose(view, ViewTime::Center);
            a.position == b.position && a.forward == b.forward)
            view = training_view_;
    ImageView image = data.images[size_t(view)];
    std::shared_ptr<SharedMemory> fetched;
    if (image.device != host_memory) { // its pixels; what lies beside them is in host memory
        fetched = engine_->fetch(image.pixels, image.pixel_bytes());
        image.pixels = fetched->data();
        image.device = host_memory;
    }
    const bool depths = groundtruth_render_mode == GroundTruthRenderMode::Depth;
    if (depths && !image.depth)
        fail("render_ground_truth: view ", view, " has no depth map; set groundtruth_render_mode to Shade");
    const int axis = camera.fov_axis;
    const float scale = float(axis == 0 ? image.width : image.height) / float(axis == 0 ? model.width : model.height);
    for_each_pixel(int64_t(model.width) * model.height,
                   ShowTrainingImage{image, camera_model(view), model, scale / camera.zoom, splat3(1.0f), color_space,
                                     depths ? 1.0f / world().scale : 0.0f, pixels});
}

// By way of queries, which every engine answers.
void Testbed::render_slice(const FrameRequest& r, FramePixel* pixels) {
    const int64_t n_pixels = int64_t(r.camera.width) * r.camera.height;
    const auto n_points = size_t(std::min(n_pixels, slice_points));
    std::vector<Vec3> points(n_points), directions(n_points);
    std::vector<float> rgb(3 * n_points), density(n_points);
    WorldTransform ngp_space; // the identity
    ngp_space.scale = 1.0f;
    ngp_space.offset = {};
    ngp_space.from_mitsuba = true;
    const FieldQuery query{ngp_space, r.box, false, r.rgb_activation, r.density_activation, r.extra_dims.data()};
    const float distance = r.blur.focus_distance;
    const MakeRenderRay make = ray_maker(r, distortion_of(r));
    for (int64_t first = 0; first < n_pixels; first += slice_points)
        for (int sample = 0; sample < r.spp; ++sample) {
            const int64_t n = std::min(slice_points, n_pixels - first);
            for_each_pixel(n, PlaceSlicePoint{make, distance, first, sample, points.data(), directions.data()});
            engine_->query(query, points.data(), directions.data(), n, rgb.data(), density.data(), Placement::Host);
            for_each_pixel(n, AddSlicePoint{r.add_ray(), distance, 1.0f / float(r.spp), points.data(), rgb.data(),
                                            density.data(), pixels + first});
        }
}

ChannelImages Testbed::render_channels(const CameraMatrix& camera_to_world, const CameraModel& model,
                                       const ChannelSet& channels, int spp, Placement where,
                                       const Appearance& appearance) {
    Lock lock(mutex_);
    check_render_size(model.width, model.height, spp);
    check_camera(model, "camera");
    ensure_network();
    FrameRequest r = frame_request(model, world().camera_to_ngp(camera_to_world), spp, appearance);
    r.space = ColorSpace::Linear;
    r.normals = channels.normal;
    r.gain = exposure_gain(appearance.image);
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
    const MakeRenderRay make = ray_maker(r, distortion_of(r));
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
                           const Appearance& appearance) {
    Lock lock(mutex_);
    ensure_network();
    const std::vector<float> extra_dims = extra_dims_of(appearance);
    QueryResult out;
    out.density = new_array(size_t(n), where);
    if (directions) out.rgb = new_array(3 * size_t(n), where);
    engine_->query({world(), aabb, occupancy, nerf.rgb_activation, nerf.density_activation, extra_dims.data(),
                    exposure_gain(appearance.image), nerf.training.linear_colors},
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

void Testbed::set_camera_to_training_view(int view) {
    Lock lock(mutex_);
    const CameraModel model = camera_model(view);
    const float along = float(camera.fov_axis == 0 ? model.width : model.height);
    camera.matrix = view_pose(view, ViewTime::Center);
    camera.relative_focal_length = model.focal * (1.0f / along);
    camera.screen_center = Vec2{1, 1} - model.principal;
    // As instant-ngp does; by itself, it changes nothing that render() shows (specification B3).
    render_lens = view_lens_ = model.lens;
    lens_is_set_ = false;
    render_with_lens_distortion = true;
    training_view_ = view;
}

void Testbed::reset_camera() {
    Lock lock(mutex_);
    camera = RenderCamera{};
    camera.matrix = default_camera;
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

} // namespace ngp
