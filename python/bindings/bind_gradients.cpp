// Rays of one view through a model on the CPU, and the gradients of their camera, for tests.
#include "bindings.h"

#include <algorithm>
#include <ngp/core/isa.h>
#include <ngp/fields/nerf_cpu.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

struct View {
    CameraModel camera;
    CameraMatrix start, end; // NGP space
    std::array<float, 4> rolling_shutter{};
    FloatArray image; // (H, W, 3 or 4), linear
    Vec3 exposure{1, 1, 1};
    FloatArray distortion; // (h, w, 2), or empty
    FloatArray latent;     // (n,), or empty
};

template <typename T>
py::array_t<float> rows_of(const std::vector<T>& v, py::ssize_t width) {
    static_assert(sizeof(T) % sizeof(float) == 0);
    py::array_t<float> a({py::ssize_t(v.size()), width});
    for (size_t i = 0; i < v.size(); ++i)
        std::copy_n(reinterpret_cast<const float*>(v.data() + i), width, a.mutable_data(py::ssize_t(i)));
    return a;
}

// Everything that the gradients depend on: pixels, targets, sample positions; and the gradients.
py::dict view_gradients(const std::string& config, const FloatArray& params, const View& view, int n_rays,
                        const Objective& objective, ColorSpace space, uint64_t seed, const std::string& isa) {
    if (n_rays < 1 || n_rays > max_rays_per_chunk) throw py::value_error("n_rays must be from 1 to 256");
    const NerfModelShape shape = nerf_model_shape(parse_network_config(config, "config"), 1, int(view.latent.size()));
    expect_shape(params, {py::ssize_t(shape.n_params())}, "params");
    PackedMlp density(shape.density), rgb(shape.rgb);
    density.pack(params.data());
    rgb.pack(params.data() + shape.rgb_begin());
    NerfModelView model{&shape.position,
                        &shape.direction,
                        params.data() + shape.encoding_begin(),
                        {shape.density, density.forward_weights(), density.backward_weights()},
                        {shape.rgb, rgb.forward_weights(), rgb.backward_weights()},
                        Activation::Logistic,
                        Activation::Exponential,
                        {splat3(0), splat3(1)}};
    if (view.latent.size() > 0) model.extra_dims = view.latent.data();
    OccupancyGrid occupancy;
    occupancy.resize(1);
    const std::vector<float> everywhere(occupancy_cells, 1.0f);
    occupancy.set_values(everywhere.data(), everywhere.size());

    TrainingView training;
    training.camera = view.camera;
    training.image = {view.image.data(), PixelType::F32, int(view.image.shape(2)), view.camera.width,
                      view.camera.height};
    training.pose = view.start;
    training.motion = camera_motion(view.start, view.end, view.rolling_shutter.data());
    training.exposure = view.exposure;

    CpuWorkspace workspace(shape);
    std::vector<float> density_gradient(size_t(density.packed_size())), rgb_gradient(size_t(rgb.packed_size()));
    GradientTiles tiles;
    tiles.set_shape(shape.position);
    std::vector<float> memory;
    tiles.owner = &memory;
    tiles.grow = [](GradientTiles& t) {
        auto& m = *static_cast<std::vector<float>*>(t.owner);
        t.capacity = std::max<int64_t>(16, 2 * t.capacity);
        m.resize(size_t(t.capacity * t.record));
        t.data = m.data();
    };
    std::vector<RayPixel> pixels(static_cast<size_t>(n_rays));
    std::vector<RayGradient> rays(pixels.size());
    std::vector<Vec3> d_color(pixels.size());
    std::vector<CameraGradient> cameras(pixels.size());
    TrainChunk c;
    c.model = &model;
    c.occupancy = occupancy.view();
    c.sample.scene = {&training, 1, model.box, 0, {}};
    if (view.distortion.size() > 0)
        c.sample.scene.distortion = {reinterpret_cast<const Vec2*>(view.distortion.data()),
                                     int(view.distortion.shape(1)), int(view.distortion.shape(0))};
    c.sample.color.space = space;
    c.sample.stepping = Stepping::with_cone_angle(0.0f);
    c.sample.rng = Pcg32::seeded(seed);
    c.sample.n_rays = c.n_rays = n_rays;
    c.sample.n_images = 1;
    c.sample.ray_pixels = pixels.data();
    c.composite.objective = objective;
    c.composite.near_distance = 0;
    c.ray_gradients = rays.data();
    c.d_color = d_color.data();
    c.density_gradient = density_gradient.data();
    c.rgb_gradient = rgb_gradient.data();
    c.tiles = &tiles;
    NerfWorkspace& w = workspace.get();
    (isa.empty() ? cpu_kernels() : cpu_kernels(isa)).train_chunk(c, w);
    const GradientOfCamera body{
        &training, c.sample.scene.distortion, pixels.data(), rays.data(), d_color.data(), true, cameras.data()};
    py::list samples;
    std::vector<float> losses;
    std::vector<Vec3> targets, backgrounds;
    for (int i = 0; i < n_rays; ++i) {
        body(i);
        const int64_t at = int64_t(i) * max_samples_per_ray;
        samples.append(
            py::make_tuple(py::array_t<float>(w.count[i], w.t + at), py::array_t<float>(w.count[i], w.dt + at)));
        losses.push_back(3 * w.loss[i]); // the sum over channels, which the gradients are of
        targets.push_back(w.rays[i].target);
        backgrounds.push_back(w.rays[i].background);
    }
    std::vector<Vec3> uv_tau;
    for (const RayPixel& p : pixels) uv_tau.push_back({p.uv.x, p.uv.y, p.tau});
    py::dict d;
    d["uv_tau"] = rows_of(uv_tau, 3);
    d["target"] = rows_of(targets, 3);
    d["background"] = rows_of(backgrounds, 3);
    d["loss"] = py::array_t<float>(n_rays, losses.data());
    d["samples"] = samples;
    d["rays"] = rows_of(rays, 6);
    d["gradient"] = rows_of(cameras, 13);
    return d;
}

py::dict view_gradients_of(const std::string& config, const FloatArray& params, const FloatArray& image,
                           const FloatArray& start, const FloatArray& focal, const FloatArray& principal,
                           const Lens& lens, std::optional<FloatArray> end, std::array<float, 4> rolling_shutter,
                           const FloatArray& exposure, std::optional<FloatArray> distortion, int n_rays, LossType loss,
                           ColorSpace space, uint64_t seed, const std::string& isa, TrainMode train_mode,
                           std::optional<FloatArray> latent) {
    View v;
    v.image = image;
    if (image.ndim() != 3) throw py::value_error("image must have shape (H, W, 3 or 4)");
    v.camera.focal = to_vec2(focal, "focal");
    v.camera.principal = to_vec2(principal, "principal");
    v.camera.lens = lens;
    v.camera.height = int(image.shape(0));
    v.camera.width = int(image.shape(1));
    v.start = to_camera(start, "start");
    v.end = end ? to_camera(*end, "end") : v.start;
    v.rolling_shutter = rolling_shutter;
    v.exposure = to_vec3(exposure, "exposure");
    if (distortion) v.distortion = *distortion;
    if (latent) v.latent = *latent;
    return view_gradients(config, params, v, n_rays, {train_mode, loss}, space, seed, isa);
}

} // namespace

void bind_gradients(py::module_& m) {
    m.def(
        "view_gradients", view_gradients_of, py::arg("config"), py::arg("params"), py::arg("image"), py::arg("start"),
        py::arg("focal"), py::arg("principal"), py::arg("lens"), py::arg("end") = py::none(),
        py::arg("rolling_shutter") = std::array<float, 4>{}, py::arg("exposure") = std::array<float, 3>{1, 1, 1},
        py::arg("distortion") = py::none(), py::arg("n_rays") = 64, py::arg("loss") = LossType::L2,
        py::arg("space") = ColorSpace::Linear, py::arg("seed") = 1, py::arg("isa") = "",
        py::arg("train_mode") = TrainMode::Nerf, py::arg("latent") = py::none(),
        "Training rays of one view with its camera in NGP space, through a model in the unit box that is occupied "
        "everywhere. (N,3) uv_tau, target, background; (N,) loss, summed over channels; samples: N pairs of distances "
        "and step lengths; (N,6) rays: gradients of origin and direction; (N,13) gradient of position, rotation, "
        "exposure, log focal length, distortion at the pixel.");
    m.def("rotate", [](const FloatArray& r, const FloatArray& v) {
        return to_array(rotate(to_vec3(r, "rotation"), to_vec3(v, "vector")));
    });
    m.def("compose_rotations", [](const FloatArray& a, const FloatArray& b) {
        return to_array(compose_rotations(to_vec3(a, "a"), to_vec3(b, "b")));
    });
    m.def("rotation_vector", [](const FloatArray& r) { return to_array(rotation_vector(to_mat3(r, "matrix"))); });
    m.def("distortion_at", [](const FloatArray& map, const FloatArray& uv) {
        expect_shape(map, {-1, -1, 2}, "map");
        const DistortionMap m{reinterpret_cast<const Vec2*>(map.data()), int(map.shape(1)), int(map.shape(0))};
        return to_array(m.at(to_vec2(uv, "uv")));
    });
    m.def("moving_pose", [](const FloatArray& start, const FloatArray& end, std::array<float, 4> weights,
                            const FloatArray& uv, float tau) {
        TrainingView v;
        v.pose = to_camera(start, "start");
        v.motion = camera_motion(v.pose, to_camera(end, "end"), weights.data());
        return to_array(v.pose_at(to_vec2(uv, "uv"), tau));
    });
}
