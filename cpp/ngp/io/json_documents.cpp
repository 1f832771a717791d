// Everything that touches nlohmann-json, in one translation unit because the header is heavy: network configurations
// (json_config.h) and the MessagePack document inside a snapshot.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <ngp/core/check.h>
#include <ngp/formulas/half.h>
#include <ngp/io/gzip_file.h>
#include <ngp/io/json_config.h>
#include <ngp/io/json_node.h>
#include <ngp/io/json_view_inputs.h>
#include <ngp/io/snapshot.h>

namespace ngp {

namespace {

static_assert(std::endian::native == std::endian::little, "snapshots are little-endian; this needs byte swapping");

Json rows(const CameraMatrix& m) {
    const Vec3 c[4] = {m.right, m.down, m.forward, m.position};
    Json j = Json::array();
    for (int r = 0; r < 3; ++r) j.push_back({c[0][r], c[1][r], c[2][r], c[3][r]});
    return j;
}
Json rows(const Mat3& m) {
    Json j = Json::array();
    for (int r = 0; r < 3; ++r) j.push_back({m.c[0][r], m.c[1][r], m.c[2][r]});
    return j;
}
Json array(Vec3 v) { return {v.x, v.y, v.z}; }
Json array(Vec2 v) { return {v.x, v.y}; }
Json object(const Aabb& b) { return {{"min", array(b.min)}, {"max", array(b.max)}}; }

template <typename T>
Json binary(const std::vector<T>& v) {
    const auto* p = reinterpret_cast<const uint8_t*>(v.data());
    return Json::binary(std::vector<uint8_t>(p, p + v.size() * sizeof(T)));
}
std::vector<uint16_t> to_halves(const std::vector<float>& v) {
    std::vector<uint16_t> h(v.size());
    std::transform(v.begin(), v.end(), h.begin(), float_to_half);
    return h;
}
// `n` values of type T, or a complaint.
template <typename T>
std::vector<T> values(const Node& n, size_t count) {
    const std::vector<uint8_t> bytes = n.binary();
    if (bytes.size() != count * sizeof(T))
        fail(n.where(), ": has ", bytes.size(), " bytes, but ", count * sizeof(T), " are needed");
    std::vector<T> v(count);
    std::memcpy(v.data(), bytes.data(), bytes.size());
    return v;
}
std::vector<float> halves(const Node& n, size_t count) {
    const auto h = values<uint16_t>(n, count);
    std::vector<float> v(h.size());
    std::transform(h.begin(), h.end(), v.begin(), half_to_float);
    return v;
}
void expect_finite(const std::vector<float>& v, const std::string& where) {
    for (size_t i = 0; i < v.size(); ++i)
        if (!std::isfinite(v[i])) fail(where, ": value ", i, " is not finite");
}

constexpr const char* ftheta_keys[7] = {"ftheta_p0", "ftheta_p1", "ftheta_p2", "ftheta_p3", "ftheta_p4", "w", "h"};

Json write_lens(const Lens& l) {
    const float* p = l.params;
    Json json;
    switch (l.mode) {
    case LensMode::Perspective: return nullptr;
    case LensMode::OpenCV: return {{"is_fisheye", false}, {"k1", p[0]}, {"k2", p[1]}, {"p1", p[2]}, {"p2", p[3]}};
    case LensMode::OpenCVFisheye: return {{"is_fisheye", true}, {"k1", p[0]}, {"k2", p[1]}, {"k3", p[2]}, {"k4", p[3]}};
    case LensMode::FTheta:
        for (int i = 0; i < 7; ++i) json[ftheta_keys[i]] = p[i];
        return json;
    case LensMode::LatLong: json["latlong"] = true; return json;
    case LensMode::Equirectangular: json["equirectangular"] = true; return json;
    case LensMode::Orthographic: json["orthographic"] = true; return json;
    }
    return nullptr;
}
Lens read_lens(const Node& n) {
    Lens l;
    if (n.json().is_null()) return l;
    const auto read = [&](LensMode mode, const char* const* keys, int count) {
        l.mode = mode;
        for (int i = 0; i < count; ++i) l.params[i] = n.number(keys[i], 0.0f);
        return l;
    };
    // By presence, the last that applies (C.2).
    if (n.has("orthographic")) return read(LensMode::Orthographic, nullptr, 0);
    if (n.has("equirectangular")) return read(LensMode::Equirectangular, nullptr, 0);
    if (n.has("latlong")) return read(LensMode::LatLong, nullptr, 0);
    if (n.has("ftheta_p0")) return read(LensMode::FTheta, ftheta_keys, 7);
    if (!n.has("k1")) return l;
    const char* keys[2][4] = {{"k1", "k2", "p1", "p2"}, {"k1", "k2", "k3", "k4"}};
    const bool fisheye = n.boolean("is_fisheye", false);
    return read(fisheye ? LensMode::OpenCVFisheye : LensMode::OpenCV, keys[fisheye], 4);
}

Json write_dataset(const DatasetRecord& d) {
    Json paths = Json::array(), metadata = Json::array(), xforms = Json::array();
    for (const ViewRecord& v : d.views) {
        paths.push_back(v.path);
        metadata.push_back({{"focal_length", array(v.camera.focal)},
                            {"lens", write_lens(v.camera.lens)},
                            {"principal_point", array(v.camera.principal)},
                            {"rolling_shutter", v.rolling_shutter},
                            {"resolution", {v.camera.width, v.camera.height}}});
        xforms.push_back({{"start", rows(v.start)}, {"end", rows(v.end)}});
    }
    return {{"n_images", d.views.size()},
            {"paths", paths},
            {"metadata", metadata},
            {"xforms", xforms},
            {"render_aabb", object(d.render_aabb)},
            {"render_aabb_to_local", rows(d.render_aabb_to_local)},
            {"up", array(d.up)},
            {"offset", array(d.world.offset)},
            {"envmap_resolution", {0, 0}},
            {"scale", d.world.scale},
            {"aabb_scale", d.aabb_scale},
            {"from_mitsuba", d.world.from_mitsuba},
            {"is_hdr", d.is_hdr},
            {"wants_importance_sampling", true},
            {"n_extra_learnable_dims", d.n_extra_learnable_dims}};
}

DatasetRecord read_dataset(const Node& n) {
    DatasetRecord d;
    const size_t n_images = size_t(n.at("n_images").integer(0, 1 << 24));
    const Node paths = n.at("paths"), metadata = n.at("metadata"), xforms = n.at("xforms");
    paths.expect_size(n_images);
    metadata.expect_size(n_images);
    xforms.expect_size(n_images);
    for (size_t i = 0; i < n_images; ++i) {
        ViewRecord v;
        const Node m = metadata.at(i);
        v.path = paths.at(i).text();
        v.camera.focal = m.at("focal_length").vec2();
        v.camera.principal = m.at("principal_point").vec2();
        if (m.has("lens")) v.camera.lens = read_lens(m.at("lens"));
        const Node resolution = m.at("resolution");
        resolution.expect_size(2);
        v.camera.width = int(resolution.at(size_t(0)).integer(1, 1 << 20));
        v.camera.height = int(resolution.at(1).integer(1, 1 << 20));
        check_camera(v.camera, m.where());
        v.start = xforms.at(i).at("start").camera_matrix();
        v.end = xforms.at(i).at("end").camera_matrix();
        d.views.push_back(v);
    }
    d.world.scale = n.at("scale").number();
    d.world.offset = n.at("offset").vec3();
    d.world.from_mitsuba = n.boolean("from_mitsuba", false);
    if (!(d.world.scale > 0.0f && std::isfinite(d.world.scale)))
        fail(n.where(), ".scale: is ", d.world.scale, "; it must be positive and finite");
    if (const Vec3 o = d.world.offset; !std::isfinite(o.x + o.y + o.z)) fail(n.where(), ".offset: must be finite");
    if (n.has("up")) d.up = n.at("up").vec3();
    if (n.has("render_aabb")) d.render_aabb = n.at("render_aabb").box();
    if (n.has("render_aabb_to_local")) d.render_aabb_to_local = n.at("render_aabb_to_local").mat3();
    d.is_hdr = n.boolean("is_hdr", false);
    d.n_extra_learnable_dims = n.integer("n_extra_learnable_dims", 0, 0, max_extra_dims);
    return d;
}

Json write_camera(const RenderCamera& c) {
    return {{"matrix", rows(c.matrix)},
            {"fov_axis", c.fov_axis},
            {"relative_focal_length", array(c.relative_focal_length)},
            {"screen_center", array(c.screen_center)},
            {"zoom", c.zoom},
            {"scale", c.scale},
            {"aperture_size", c.aperture_size},
            {"autofocus", c.autofocus},
            {"autofocus_target", array(c.autofocus_target)},
            {"autofocus_depth", c.slice_plane_z}};
}
RenderCamera read_camera(const Node& n) {
    RenderCamera c;
    c.matrix = n.at("matrix").camera_matrix();
    c.fov_axis = n.integer("fov_axis", c.fov_axis, 0, 1);
    if (n.has("relative_focal_length")) c.relative_focal_length = n.at("relative_focal_length").vec2();
    if (n.has("screen_center")) c.screen_center = n.at("screen_center").vec2();
    c.zoom = n.number("zoom", c.zoom);
    c.scale = n.number("scale", c.scale);
    c.aperture_size = n.number("aperture_size", c.aperture_size);
    c.autofocus = n.boolean("autofocus", c.autofocus);
    if (n.has("autofocus_target")) c.autofocus_target = n.at("autofocus_target").vec3();
    c.slice_plane_z = n.number("autofocus_depth", c.slice_plane_z);
    if (!(c.aperture_size >= 0.0f && std::isfinite(c.aperture_size)))
        fail(n.where(), ".aperture_size: is ", c.aperture_size, "; it must be finite and not negative");
    if (c.aperture_size > 0.0f && !c.autofocus && !(c.slice_plane_z + c.scale > 0.0f))
        fail(n.where(), ": autofocus_depth + scale, the focus distance, is ", c.slice_plane_z + c.scale,
             "; it must be positive where aperture_size is not 0");
    return c;
}

// Calls visit(first parameter, number of entries, features, first float of the records) for every grid part.
template <typename Visit>
void for_each_grid(const NerfModelShape& shape, Visit&& visit) {
    size_t records = 0;
    for (int i = 0; i < shape.position.n_parts; ++i) {
        const EncodingPart& part = shape.position.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        const GridLevel& last = part.levels[part.n_levels - 1];
        const size_t n = size_t(last.offset) + last.entries;
        visit(shape.encoding_begin() + part.param_begin, n, part.n_features, records);
        records += n * size_t(optimizer_record(part.n_features));
    }
}

// Optimizer arrays in the format's layout (D.6: one value a parameter), and the two of ours.
struct OptimizerArrays {
    std::vector<float> m, v, average;
    std::vector<uint32_t> steps, average_steps;

    explicit OptimizerArrays(size_t n) : m(n), v(n), average(n), steps(n), average_steps(n) {}
};
OptimizerArrays spread_state(const NerfOptimizer::State& s, const NerfModelShape& shape) {
    OptimizerArrays a(shape.n_params());
    std::copy(s.matrix_m.begin(), s.matrix_m.end(), a.m.begin());
    std::copy(s.matrix_v.begin(), s.matrix_v.end(), a.v.begin());
    std::copy(s.matrix_average.begin(), s.matrix_average.end(), a.average.begin());
    std::fill_n(a.steps.begin(), s.matrix_m.size(), s.matrix_steps);
    std::fill_n(a.average_steps.begin(), s.matrix_m.size(), s.matrix_steps);
    for_each_grid(shape, [&](size_t param, size_t n, int F, size_t records) {
        for (size_t e = 0; e < n; ++e) {
            const float* r = s.entries.data() + records + e * size_t(optimizer_record(F));
            for (int f = 0; f < F; ++f) {
                const size_t at = param + e * F + f;
                a.m[at] = r[f], a.v[at] = r[F + f], a.average[at] = r[2 * F + f];
                a.steps[at] = float_to_bits(r[3 * F]), a.average_steps[at] = float_to_bits(r[3 * F + 1]);
            }
        }
    });
    return a;
}
NerfOptimizer::State gather_state(const OptimizerArrays& a, uint32_t steps, const NerfModelShape& shape) {
    NerfOptimizer::State s;
    const size_t n_matrix = shape.encoding_begin();
    s.matrix_steps = n_matrix > 0 ? a.steps[0] : 0;
    s.encoding_steps = steps;
    s.matrix_m.assign(a.m.begin(), a.m.begin() + n_matrix);
    s.matrix_v.assign(a.v.begin(), a.v.begin() + n_matrix);
    s.matrix_average.assign(a.average.begin(), a.average.begin() + n_matrix);
    for_each_grid(shape, [&](size_t param, size_t n, int F, size_t records) {
        const size_t size = size_t(optimizer_record(F));
        s.entries.resize(records + n * size);
        for (size_t e = 0; e < n; ++e) {
            float* r = s.entries.data() + records + e * size;
            uint32_t updates = 0, averaged = 0;
            for (int f = 0; f < F; ++f) {
                const size_t at = param + e * F + f;
                r[f] = a.m[at], r[F + f] = a.v[at], r[2 * F + f] = a.average[at];
                updates = std::max(updates, a.steps[at]);
                averaged = std::max(averaged, a.average_steps[at]);
            }
            r[3 * F] = bits_to_float(updates), r[3 * F + 1] = bits_to_float(averaged);
        }
    });
    return s;
}

// The nest of D.6, in the order of the configuration's optimizers. `adam` is the innermost state.
Json write_optimizer(const Json& config, const Json& adam, const Json& averages, float base_lr, float factor) {
    const std::string name = lower(config.value("otype", std::string("Adam")));
    if (name == "adam") return adam;
    Json j{{"nested", write_optimizer(config.at("nested"), adam, averages, base_lr, factor)}};
    if (name == "ema") j["weights_ema_binary"] = averages;
    if (name == "exponentialdecay") j["learning_rate"] = base_lr, j["learning_rate_factor"] = factor;
    return j;
}

Json write_error_map(const ErrorMap::State& s) {
    return {{"n_images", s.n_images},
            {"size", {s.width, s.height}},
            {"errors_binary", binary(s.errors)},
            {"drawn_size", {s.drawn_width, s.drawn_height}},
            {"drawn_binary", binary(s.drawn)},
            {"steps", s.steps},
            {"interval", s.interval}};
}
// The maps of `n_views` images at most.
ErrorMap::State read_error_map(const Node& n, size_t n_views) {
    ErrorMap::State s;
    s.n_images = int(n.at("n_images").integer(0, int64_t(n_views)));
    auto read_map = [&](const char* size_key, const char* key, int lowest, int& width, int& height) {
        const Node size = n.at(size_key);
        size.expect_size(2);
        width = int(size.at(size_t(0)).integer(lowest, 1 << 14));
        height = int(size.at(1).integer(lowest, 1 << 14));
        const std::vector<float> v = values<float>(n.at(key), size_t(s.n_images) * size_t(width) * size_t(height));
        for (const float e : v)
            if (!(e >= 0 && std::isfinite(e))) fail(n.where(), ".", key, ": holds ", e, "; errors are not negative");
        return v;
    };
    s.errors = read_map("size", "errors_binary", s.n_images > 0, s.width, s.height);
    s.drawn = read_map("drawn_size", "drawn_binary", 0, s.drawn_width, s.drawn_height);
    s.steps = uint32_t(n.at("steps").integer(0, UINT32_MAX));
    s.interval = uint32_t(n.at("interval").integer(s.n_images > 0, INT32_MAX));
    return s;
}

Json write_train_state(const NerfTrainState& s, const OptimizerArrays& a, const std::vector<float>& grid) {
    return {{"params_binary", binary(s.params)},
            {"average_binary", binary(a.average)},
            {"average_steps_binary", binary(a.average_steps)},
            {"density_grid_binary", binary(grid)},
            {"occupancy_fresh_binary", binary(s.occupancy_fresh)},
            {"optimizer_steps", s.optimizer.encoding_steps},
            {"rays_per_batch", s.rays_per_batch},
            {"rays_of_last_batch", s.rays_of_last_batch},
            {"occupancy_updates", s.occupancy_updates},
            {"n_images_seen", s.n_images_seen},
            {"error_map", write_error_map(s.error_map)}};
}

Node innermost_optimizer(const Node& n) { return n.has("nested") ? innermost_optimizer(n.at("nested")) : n; }

// From a file of ours: everything. From instant-ngp's: Adam's moments and counters; masters are the stored weights, and
// the average restarts from them.
void read_train_state(const Node& snapshot, const NerfModelShape& shape, Snapshot& s) {
    const size_t n = shape.n_params();
    OptimizerArrays a(n);
    const Node adam = innermost_optimizer(snapshot.at("optimizer"));
    a.m = values<float>(adam.at("first_moments_binary"), n);
    a.v = values<float>(adam.at("second_moments_binary"), n);
    a.steps = values<uint32_t>(adam.at("param_steps_binary"), n);
    expect_finite(a.m, adam.where() + ".first_moments_binary");
    expect_finite(a.v, adam.where() + ".second_moments_binary");
    NerfTrainState& t = s.train_state;
    t.step = s.training_step;
    t.loss = s.loss;
    t.params = s.params;
    uint32_t steps = uint32_t(adam.at("current_step").integer(0, UINT32_MAX));
    t.rays_per_batch = s.rays_per_batch;
    t.n_images_seen = int(s.dataset.views.size());
    if (snapshot.has("pyngp") && snapshot.at("pyngp").has("train_state")) {
        const Node p = snapshot.at("pyngp").at("train_state");
        t.params = values<float>(p.at("params_binary"), n);
        a.average = values<float>(p.at("average_binary"), n);
        a.average_steps = values<uint32_t>(p.at("average_steps_binary"), n);
        expect_finite(t.params, p.where() + ".params_binary");
        expect_finite(a.average, p.where() + ".average_binary");
        s.density_grid = values<float>(p.at("density_grid_binary"), s.density_grid.size());
        expect_finite(s.density_grid, p.where() + ".density_grid_binary");
        t.occupancy_fresh = values<float>(p.at("occupancy_fresh_binary"), s.density_grid.size());
        expect_finite(t.occupancy_fresh, p.where() + ".occupancy_fresh_binary");
        steps = uint32_t(p.at("optimizer_steps").integer(0, UINT32_MAX));
        t.rays_per_batch = int(p.at("rays_per_batch").integer(0, 1 << 30));
        t.rays_of_last_batch = p.at("rays_of_last_batch").integer(0, int64_t(1) << 40);
        t.occupancy_updates = uint32_t(p.at("occupancy_updates").integer(0, UINT32_MAX));
        t.n_images_seen = int(p.at("n_images_seen").integer(0, 1 << 24));
        if (p.has("error_map")) t.error_map = read_error_map(p.at("error_map"), s.dataset.views.size());
    } else {
        // e_n of adam_update.h for a debiased average equal to the weights.
        a.average_steps.assign(n, steps);
        const NetworkConfig config = parse_network_config(s.config_json, "config");
        const double debias = 1.0 - std::pow(double(config.optimizer.ema_decay), double(steps));
        for (size_t i = 0; i < n; ++i) a.average[i] = float(s.params[i] * debias);
    }
    for (size_t i = shape.encoding_begin(); i < n; ++i)
        if (a.average_steps[i] > steps)
            fail(snapshot.where(), ".pyngp: average_steps_binary holds a step beyond the last one");
    t.optimizer = gather_state(a, steps, shape);
    s.has_train_state = true;
}

Json write_extra(const ExtraSettings& e) {
    Json j{{"seed", e.seed},
           {"color_space", int(e.color_space)},
           {"linear_colors", e.linear_colors},
           {"random_background", e.random_background},
           {"cone_angle", e.cone_angle},
           {"near_distance", e.near_distance},
           {"snap_to_pixel_centers", e.snap_to_pixel_centers},
           {"occupancy_decay", e.occupancy_decay},
           {"occupancy_schedule", int(e.occupancy_schedule)},
           {"batch_size", e.batch_size},
           {"n_images", e.n_images},
           {"depth_supervision_lambda", e.depth_supervision_lambda},
           {"depth_loss_type", int(e.depth_loss_type)},
           {"train_mode", int(e.train_mode)},
           {"sample_image_proportional_to_error", e.sample_image_by_error},
           {"sample_focal_plane_proportional_to_error", e.sample_pixel_by_error},
           {"include_sharpness_in_error", e.sharpness_in_error},
           {"max_level_rand_training", e.random_levels}};
    if (e.loss) j["loss_type"] = int(*e.loss);
    if (e.rgb_activation) j["rgb_activation"] = int(*e.rgb_activation);
    if (e.density_activation) j["density_activation"] = int(*e.density_activation);
    return j;
}
ExtraSettings read_extra(const Node& n) {
    ExtraSettings e;
    if (n.has("seed")) e.seed = uint64_t(n.at("seed").integer(0, int64_t(1) << 53));
    e.color_space = ColorSpace(n.integer("color_space", int(e.color_space), 0, 1));
    e.linear_colors = n.boolean("linear_colors", e.linear_colors);
    e.random_background = n.boolean("random_background", e.random_background);
    e.cone_angle = n.number("cone_angle", e.cone_angle);
    e.near_distance = n.number("near_distance", e.near_distance);
    e.snap_to_pixel_centers = n.boolean("snap_to_pixel_centers", e.snap_to_pixel_centers);
    e.occupancy_decay = n.number("occupancy_decay", e.occupancy_decay);
    e.occupancy_schedule = OccupancySchedule(n.integer("occupancy_schedule", int(e.occupancy_schedule), 0, 1));
    if (n.has("batch_size")) e.batch_size = n.at("batch_size").integer(0, int64_t(1) << 40);
    e.n_images = n.integer("n_images", 0, 0, 1 << 24);
    e.depth_supervision_lambda = n.number("depth_supervision_lambda", e.depth_supervision_lambda);
    e.depth_loss_type = LossType(n.integer("depth_loss_type", int(e.depth_loss_type), 0, int(LossType::RelativeL2)));
    e.train_mode = TrainMode(n.integer("train_mode", 0, 0, 2));
    e.sample_image_by_error = n.boolean("sample_image_proportional_to_error", false);
    e.sample_pixel_by_error = n.boolean("sample_focal_plane_proportional_to_error", false);
    e.sharpness_in_error = n.boolean("include_sharpness_in_error", false);
    e.random_levels = n.boolean("max_level_rand_training", false);
    if (n.has("loss_type")) e.loss = LossType(n.at("loss_type").integer(0, int(LossType::RelativeL2)));
    const int last = int(Activation::Exponential);
    if (n.has("rgb_activation")) e.rgb_activation = Activation(n.at("rgb_activation").integer(0, last));
    if (n.has("density_activation")) e.density_activation = Activation(n.at("density_activation").integer(0, last));
    return e;
}

constexpr int64_t default_batch = 1 << 18; // of instant-ngp, which doesn't store it

// The model's shape. instant-ngp says nowhere that a dataset has light directions: the number of parameters does.
NerfModelShape snapshot_shape(const Node& snapshot, const NetworkConfig& config, DatasetRecord& d) {
    const NerfModelShape shape = nerf_model_shape(config, d.aabb_scale, d.n_extra_dims());
    if (d.n_extra_dims() > 0) return shape;
    const size_t size = snapshot.text("params_type", "__half") == "float" ? 4 : 2;
    const size_t n = snapshot.at("params_binary").binary().size() / size;
    if (n == shape.n_params() || config.direction_encoding.size() < 2) return shape;
    const NerfModelShape lit = nerf_model_shape(config, d.aabb_scale, 3);
    if (n != lit.n_params()) return shape; // the caller complains
    d.has_light_dirs = true;
    return lit;
}

Snapshot read_document(const Json& document, const std::string& path) {
    const Node root(document, path);
    const Node n = root.at("snapshot");
    n.at("version").integer(1, INT32_MAX);
    const std::string mode = n.text("mode", "nerf");
    if (lower(mode) != "nerf") fail(n.where(), ".mode: is '", mode, "'; this version reads NeRF snapshots");

    Snapshot s;
    Json config = document;
    config.erase("snapshot");
    s.config_json = config.dump();
    s.training_step = uint32_t(n.at("training_step").integer(0, UINT32_MAX));
    s.loss = n.at("loss").number();
    const Node nerf = n.at("nerf");
    const int aabb_scale = int(nerf.at("aabb_scale").integer(1, 128));
    if (!std::has_single_bit(unsigned(aabb_scale)))
        fail(nerf.where(), ".aabb_scale: is ", aabb_scale, "; it must be a power of two");
    s.dataset = read_dataset(nerf.at("dataset"));
    s.dataset.aabb_scale = aabb_scale;
    if (nerf.has("rgb")) s.rays_per_batch = nerf.at("rgb").integer("rays_per_batch", 0, 0, 1 << 30);

    if (n.has("pyngp") && n.at("pyngp").has("light_dirs")) read_light_dirs(n.at("pyngp").at("light_dirs"), s.dataset);
    const NerfModelShape shape = snapshot_shape(n, read_config(Node(config, path)), s.dataset);
    s.latents = read_latents(nerf, s.dataset.views.size(), s.dataset.has_light_dirs ? 0 : shape.n_extra_dims());
    const Node params = n.at("params_binary");
    const std::string type = n.text("params_type", "__half");
    if (type == "__half")
        s.params = halves(params, shape.n_params());
    else if (type == "float")
        s.params = values<float>(params, shape.n_params());
    else
        fail(n.where(), ".params_type: is '", type, "'; it must be '__half' or 'float'");
    expect_finite(s.params, params.where());

    const size_t cells = size_t(std::bit_width(unsigned(aabb_scale))) * occupancy_cells;
    if (n.has("density_grid_size") && n.at("density_grid_size").integer(0, 1 << 20) != occupancy_resolution)
        fail(n.where(), ".density_grid_size: must be ", occupancy_resolution);
    if (n.has("density_grid_binary") && !n.at("density_grid_binary").binary().empty()) {
        s.density_grid = halves(n.at("density_grid_binary"), cells);
        for (float& v : s.density_grid)
            if (std::isnan(v)) fail(n.where(), ".density_grid_binary: holds a NaN");
    }
    if (n.has("aabb")) s.aabb = n.at("aabb").box();
    if (n.has("render_aabb")) s.render_aabb = n.at("render_aabb").box();
    if (n.has("render_aabb_to_local")) s.render_aabb_to_local = n.at("render_aabb_to_local").mat3();
    s.bounding_radius = n.number("bounding_radius", s.bounding_radius);
    if (n.has("up_dir")) s.up_dir = n.at("up_dir").vec3();
    if (n.has("sun_dir")) s.sun_dir = n.at("sun_dir").vec3();
    s.exposure = n.number("exposure", 0.0f);
    if (n.has("background_color")) {
        const Node b = n.at("background_color");
        b.expect_size(4);
        for (size_t i = 0; i < 4; ++i) s.background_color[i] = b.at(i).number();
    }
    if (n.has("camera")) s.camera = read_camera(n.at("camera"));
    if (n.has("pyngp")) {
        const Node p = n.at("pyngp");
        const std::vector<uint8_t> bytes = params.binary();
        if (uint32_t(p.at("checksum").integer(0, UINT32_MAX)) != checksum(bytes.data(), bytes.size()))
            fail(params.where(), ": does not match its checksum; the file is damaged");
        s.has_extra = true;
        s.extra = read_extra(p.at("settings"));
    }
    s.train_state.rays_of_last_batch = s.has_extra ? s.extra.batch_size : default_batch;
    if (n.has("optimizer")) read_train_state(n, shape, s);
    return s;
}

} // namespace

void write_snapshot(const std::string& path, const Snapshot& s, const NerfModelShape& shape, bool compress) {
    Json document = parse_text(s.config_json, "network configuration");
    const Json optimizer_config = document.value("optimizer", Json::object());
    const std::vector<uint16_t> params = to_halves(s.params);
    const size_t n_images = s.dataset.views.size();
    Json n{{"version", 1},
           {"mode", "nerf"},
           {"n_params", s.params.size()},
           {"params_type", "__half"},
           {"params_binary", binary(params)},
           {"training_step", s.training_step},
           {"loss", s.loss},
           {"aabb", object(s.aabb)},
           {"render_aabb", object(s.render_aabb)},
           {"render_aabb_to_local", rows(s.render_aabb_to_local)},
           {"bounding_radius", s.bounding_radius},
           {"up_dir", array(s.up_dir)},
           {"sun_dir", array(s.sun_dir)},
           {"exposure", s.exposure},
           {"background_color", s.background_color},
           {"camera", write_camera(s.camera)},
           {"density_grid_size", occupancy_resolution},
           {"density_grid_binary", binary(to_halves(s.density_grid))}};
    // Refined cameras: none yet, as instant-ngp writes them when nothing has been optimised.
    const Json offset{{"iter", 0},
                      {"first_moment", {0.0f, 0.0f, 0.0f}},
                      {"second_moment", {0.0f, 0.0f, 0.0f}},
                      {"variable", {0.0f, 0.0f, 0.0f}},
                      {"learning_rate", 1e-4f},
                      {"epsilon", 1e-8f},
                      {"beta1", 0.9f},
                      {"beta2", 0.99f}};
    const bool has_latents = s.latents.n_views() > 0;
    const float latents_rate =
        has_latents ? decayed_learning_rate(read_config(Node(document, "config")).optimizer, s.training_step) : 1e-4f;
    n["nerf"] = {{"aabb_scale", s.dataset.aabb_scale},
                 {"cam_pos_offset", std::vector<Json>(n_images, offset)},
                 {"cam_rot_offset", std::vector<Json>(n_images, offset)},
                 {"extra_dims_opt", write_latents(s.latents, n_images, latents_rate)},
                 {"rgb",
                  {{"rays_per_batch", s.rays_per_batch},
                   {"measured_batch_size", 0},
                   {"measured_batch_size_before_compaction", 0}}},
                 {"dataset", write_dataset(s.dataset)}};
    Json extra{{"settings", write_extra(s.extra)}, {"checksum", checksum(params.data(), params.size() * 2)}};
    if (s.dataset.has_light_dirs) extra["light_dirs"] = write_light_dirs(s.dataset);
    if (s.has_train_state) {
        const OptimizerArrays a = spread_state(s.train_state.optimizer, shape);
        const AdamSettings settings = parse_network_config(s.config_json, "config").optimizer;
        const Json adam{{"current_step", s.train_state.optimizer.encoding_steps},
                        {"base_learning_rate", settings.learning_rate},
                        {"first_moments_binary", binary(a.m)},
                        {"second_moments_binary", binary(a.v)},
                        {"param_steps_binary", binary(a.steps)}};
        const float factor = decayed_learning_rate(settings, s.training_step) / settings.learning_rate;
        n["optimizer"] = write_optimizer(optimizer_config, adam, n["params_binary"], settings.learning_rate, factor);
        extra["train_state"] = write_train_state(s.train_state, a, s.density_grid);
    }
    n["pyngp"] = std::move(extra);
    document["snapshot"] = std::move(n);
    const bool raw = path.size() > 8 && path.substr(path.size() - 8) == ".msgpack";
    write_atomically(path, Json::to_msgpack(document), raw ? -1 : (compress ? 1 : 0));
}

Snapshot read_snapshot(const std::string& path) {
    std::vector<uint8_t> bytes = read_maybe_compressed(path);
    const bool text = !bytes.empty() && bytes[0] == '{';
    const Json document =
        parse_document(bytes, text ? Json::input_format_t::json : Json::input_format_t::msgpack, path, "a snapshot");
    bytes = {};
    try {
        return read_document(document, path);
    } catch (const Json::exception& e) {
        fail(path, ": ", e.what());
    }
}

} // namespace ngp
