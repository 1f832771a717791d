#include "arrays.h"

#include <algorithm>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

constexpr auto internal = py::return_value_policy::reference_internal;

CameraModel camera_model(int width, int height, const FloatArray& focal, const FloatArray& principal,
                         const Lens& lens) {
    CameraModel c;
    c.focal = to_vec2(focal, "focal_length");
    c.principal = to_vec2(principal, "principal_point");
    c.lens = lens;
    c.width = width;
    c.height = height;
    return c;
}

// Trains with the GIL released; takes it now and then for signals and, if there is a callback, after every step.
void fit(Testbed& t, std::optional<int64_t> steps, std::optional<double> seconds, std::optional<int64_t> batch_size,
         py::object callback) {
    std::function<bool(const Testbed&)> after_step;
    if (!callback.is_none())
        after_step = [&](const Testbed&) {
            py::gil_scoped_acquire gil;
            py::object go_on = callback();
            return go_on.is_none() || go_on.cast<bool>();
        };
    auto poll = [] {
        py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        return true;
    };
    py::gil_scoped_release release;
    t.fit(steps, seconds, batch_size, after_step, poll);
}

// A Python warning at the caller of pyngp.Testbed().
void warn(const std::string& message) {
    py::gil_scoped_acquire gil;
    if (PyErr_WarnEx(PyExc_RuntimeWarning, message.c_str(), 2) < 0) throw py::error_already_set();
}

std::unique_ptr<Testbed> make_testbed(TestbedMode mode, const std::string& device, uint64_t seed, bool deterministic,
                                      std::optional<int64_t> max_device_bytes) {
    if (max_device_bytes && *max_device_bytes < 1)
        throw py::value_error("max_device_bytes is " + std::to_string(*max_device_bytes) +
                              "; it must be positive, or None for all that is free");
    py::gil_scoped_release release; // a GPU takes a while to start: images are decoded meanwhile
    return std::make_unique<Testbed>(mode,
                                     TestbedOptions{device, seed, deterministic, max_device_bytes.value_or(0), warn});
}

py::array_t<float> render(Testbed& t, int width, int height, int spp, bool linear, float start_t, float end_t,
                          float fps, float shutter_fraction) {
    SharedArray rgba;
    {
        py::gil_scoped_release release;
        rgba = t.render(width, height, spp, linear, nullptr, {start_t, end_t, fps, shutter_fraction});
    }
    return to_python(rgba, {height, width, 4});
}

py::tuple render_with_depth(Testbed& t, int width, int height, int spp, bool linear, float start_t, float end_t,
                            float fps, float shutter_fraction) {
    SharedArray rgba, depth;
    {
        py::gil_scoped_release release;
        rgba = t.render(width, height, spp, linear, &depth, {start_t, end_t, fps, shutter_fraction});
    }
    return py::make_tuple(to_python(rgba, {height, width, 4}), to_python(depth, {height, width}));
}

py::dict render_channels(Testbed& t, const FloatArray& camera, int width, int height, const FloatArray& focal,
                         const FloatArray& principal, const Lens& lens, const std::vector<std::string>& channels,
                         int spp, bool on_device, const Appearance& appearance) {
    const CameraMatrix pose = to_camera(camera, "camera");
    const CameraModel model = camera_model(width, height, focal, principal, lens);
    const auto asked_for = [&](const char* name) {
        return std::find(channels.begin(), channels.end(), name) != channels.end();
    };
    const ChannelSet set{asked_for("rgb"), asked_for("alpha"), asked_for("depth"), asked_for("normal")};
    ChannelImages out;
    {
        py::gil_scoped_release release;
        out = t.render_channels(pose, model, set, spp, on_device ? Placement::Device : Placement::Host, appearance);
    }
    py::dict d;
    if (set.rgb) d["rgb"] = to_python(out.rgb, {height, width, 3});
    if (set.alpha) d["alpha"] = to_python(out.alpha, {height, width});
    if (set.depth) d["depth"] = to_python(out.depth, {height, width});
    if (set.normal) d["normal"] = to_python(out.normal, {height, width, 3});
    return d;
}

py::tuple ray_samples(Testbed& t, const FloatArray& camera, int width, int height, const FloatArray& focal,
                      const FloatArray& principal, const Lens& lens, int x, int y) {
    RaySamples s =
        t.ray_samples(to_camera(camera, "camera"), camera_model(width, height, focal, principal, lens), x, y);
    const py::ssize_t n = py::ssize_t(s.t.size());
    return py::make_tuple(to_array(s.origin), to_array(s.direction), take(std::move(s.t), {n}),
                          take(std::move(s.dt), {n}));
}

py::object query(Testbed& t, const Vec3* positions, const Vec3* directions, py::ssize_t n, bool occupancy,
                 Placement where, const Appearance& appearance, const std::vector<uintptr_t>& streams = {}) {
    QueryResult r;
    {
        py::gil_scoped_release release;
        for (const uintptr_t stream : streams)
            if (stream) t.wait_for_stream(stream);
        r = t.query(positions, directions, n, occupancy, where, appearance);
    }
    const py::object density = to_python(r.density, {n});
    if (!directions) return density;
    return py::make_tuple(to_python(r.rgb, {n, 3}), density);
}

const Vec3* vectors_of(const DeviceInput& a, py::ssize_t n, const std::string& name) {
    expect_shape(a.shape, {n, 3}, name);
    if (a.dtype != "float32") throw py::value_error(name + " must be float32 on a device, not " + a.dtype);
    return static_cast<const Vec3*>(a.data);
}

py::object query_on_device(Testbed& t, const py::object& positions, const py::object& directions, bool occupancy,
                           const Appearance& appearance) {
    const DeviceInput p = device_input(t, positions, "positions");
    const Vec3* points = vectors_of(p, -1, "positions");
    const py::ssize_t n = p.shape[0];
    if (directions.is_none()) return query(t, points, nullptr, n, occupancy, Placement::Device, appearance, {p.stream});
    const DeviceInput d = device_input(t, directions, "directions");
    // Without points, the pointer may be null, which would mean that there are no directions.
    const Vec3* along = vectors_of(d, n, "directions");
    static const Vec3 any{};
    return query(t, points, n > 0 ? along : &any, n, occupancy, Placement::Device, appearance, {p.stream, d.stream});
}

py::object query_field(Testbed& t, const py::object& positions, const py::object& directions, bool occupancy,
                       const Appearance& appearance) {
    const bool on_device = is_on_device(positions);
    if (!directions.is_none() && is_on_device(directions) != on_device) {
        if (!on_device) device_input(t, directions, "directions"); // raises on the CPU
        throw py::value_error(std::string(on_device ? "positions" : "directions") + " lie on a CUDA device, " +
                              (on_device ? "directions" : "positions") + " in host memory; pass both in one place");
    }
    if (on_device) return query_on_device(t, positions, directions, occupancy, appearance);
    const FloatArray p = host_floats(positions, "positions");
    const Vec3* points = as_vectors(p, "positions");
    if (directions.is_none()) return query(t, points, nullptr, p.shape(0), occupancy, Placement::Host, appearance);
    const FloatArray d = host_floats(directions, "directions");
    expect_shape(d, {p.shape(0), 3}, "directions");
    return query(t, points, as_vectors(d, "directions"), p.shape(0), occupancy, Placement::Host, appearance);
}

// A copy of images on the device: (height, width, channels), or (n, height, width, channels).
py::object keep_images(Testbed& t, const py::object& images, const std::string& name) {
    const DeviceInput in = device_input(t, images, name);
    const size_t axes = in.shape.size();
    if (axes < 3 || axes > 4 || in.shape[axes - 1] < 3 || in.shape[axes - 1] > 4) {
        const std::string shape = py::str(py::tuple(py::cast(in.shape)));
        throw py::value_error(name + " must have shape (height, width, 3 or 4), or that of several, not " + shape);
    }
    const bool is_bytes = in.dtype == "uint8";
    if (!is_bytes && in.dtype != "float32")
        throw py::value_error(name + " must be uint8 (sRGB) or float32 (linear) on a device, not " + in.dtype);
    int64_t n = 1;
    for (const py::ssize_t extent : in.shape) n *= extent;
    if (n == 0) throw py::value_error(name + " holds no pixels");
    std::shared_ptr<SharedMemory> kept;
    bool finite = true;
    {
        py::gil_scoped_release release;
        if (in.stream) t.wait_for_stream(in.stream);
        if (!is_bytes) finite = t.all_finite(static_cast<const float*>(in.data), n);
        if (finite) kept = t.keep_pixels(in.data, is_bytes ? n : 4 * n);
    }
    if (!finite) throw py::value_error(name + " holds values that are not finite");
    return to_python(DeviceArray{kept, static_cast<char*>(kept->data()), in.shape, is_bytes});
}

py::dict stats(const Testbed& t) {
    TestbedStats s;
    {
        py::gil_scoped_release release;
        s = t.stats();
    }
    py::dict stages, d;
    stages["occupancy_ms"] = s.stages.occupancy;
    stages["rays_to_gradients_ms"] = s.stages.rays_to_gradients;
    stages["marching_ms"] = s.stages.marching;
    stages["forward_ms"] = s.stages.forward;
    stages["compositing_ms"] = s.stages.compositing;
    stages["backward_ms"] = s.stages.backward;
    stages["scatter_ms"] = s.stages.scatter;
    stages["optimizer_ms"] = s.stages.optimizer;
    d["stages"] = stages;
    d["steps"] = s.stages.steps;
    d["rays_per_step"] = s.last_step.rays;
    d["samples_per_step"] = s.last_step.samples;
    d["samples_evaluated_per_step"] = s.last_step.samples_evaluated;
    d["train_seconds"] = s.train_seconds;
    d["host_bytes"] = s.host_bytes;
    d["image_bytes"] = s.image_bytes;
    d["device_bytes"] = s.device_bytes;
    d["peak_device_bytes"] = s.peak_device_bytes;
    return d;
}

void bind_camera(py::class_<Testbed>& c) {
    c.def_property(
         "camera_matrix", [](const Testbed& t) { return to_array(t.camera.matrix); },
         [](Testbed& t, const FloatArray& m) { t.camera.matrix = to_camera(m, "camera_matrix"); },
         "(3,4) float32, NGP space, y down, z forward; a copy.")
        .def_property("fov", &Testbed::fov, &Testbed::set_fov, "Degrees along fov_axis.")
        .def_property(
            "fov_xy", [](const Testbed& t) { return to_array(t.fov_xy()); },
            [](Testbed& t, const FloatArray& v) { t.set_fov_xy(to_vec2(v, "fov_xy")); }, "(2,) degrees.")
        .def_property(
            "fov_axis", [](const Testbed& t) { return t.camera.fov_axis; },
            [](Testbed& t, int axis) {
                if (axis != 0 && axis != 1) throw py::value_error("fov_axis must be 0 (width) or 1 (height)");
                t.camera.fov_axis = axis;
            })
        .def_property(
            "relative_focal_length", [](const Testbed& t) { return to_array(t.camera.relative_focal_length); },
            [](Testbed& t, const FloatArray& v) {
                t.camera.relative_focal_length = to_vec2(v, "relative_focal_length");
            },
            "(2,) focal length in pixels / resolution along fov_axis.")
        .def_property(
            "screen_center", [](const Testbed& t) { return to_array(t.camera.screen_center); },
            [](Testbed& t, const FloatArray& v) { t.camera.screen_center = to_vec2(v, "screen_center"); })
        .def_property(
            "zoom", [](const Testbed& t) { return t.camera.zoom; },
            [](Testbed& t, float v) {
                if (!(v > 0)) throw py::value_error("zoom must be positive");
                t.camera.zoom = v;
            })
        .def(
            "set_nerf_camera_matrix",
            [](Testbed& t, const FloatArray& m) { t.set_nerf_camera_matrix(to_camera(m, "matrix")); },
            "Sets the camera from a camera-to-world matrix in the input's frame (OpenGL axes).")
        .def("reset_camera", &Testbed::reset_camera);
}

void bind_options(py::class_<Testbed>& c) {
    c.def_property(
         "background_color",
         [](const Testbed& t) {
             FloatArray a(4);
             std::copy(t.background_color.begin(), t.background_color.end(), a.mutable_data());
             return a;
         },
         [](Testbed& t, const std::vector<float>& v) {
             if (v.size() != 3 && v.size() != 4) throw py::value_error("background_color must have 3 or 4 values");
             std::copy(v.begin(), v.end(), t.background_color.begin());
         },
         "(4,) float32: RGBA, sRGB, straight alpha; a copy.")
        .def_readwrite("exposure", &Testbed::exposure, "Stops.")
        .def_readwrite("color_space", &Testbed::color_space)
        .def_readwrite("tonemap_curve", &Testbed::tonemap_curve)
        .def_readwrite("snap_to_pixel_centers", &Testbed::snap_to_pixel_centers)
        .def_readwrite("render_near_distance", &Testbed::render_near_distance, "NGP units.")
        .def_property(
            "render_aabb", [](Testbed& t) -> Aabb& { return t.render_aabb; },
            [](Testbed& t, const Aabb& b) { t.render_aabb = b; }, internal, "Crop box, NGP space.")
        .def_property(
            "aabb", [](Testbed& t) -> Aabb& { return t.aabb; }, [](Testbed& t, const Aabb& b) { t.aabb = b; }, internal,
            "Scene box, NGP space.")
        .def_property(
            "render_aabb_to_local", [](const Testbed& t) { return to_array(t.render_aabb_to_local); },
            [](Testbed& t, const FloatArray& m) { t.render_aabb_to_local = to_mat3(m, "render_aabb_to_local"); })
        .def_property(
            "up_dir", [](const Testbed& t) { return to_array(t.up_dir); },
            [](Testbed& t, const FloatArray& v) { t.up_dir = to_vec3(v, "up_dir"); })
        .def_readwrite("shall_train", &Testbed::shall_train)
        .def_readwrite("shall_train_encoding", &Testbed::shall_train_encoding)
        .def_readwrite("shall_train_network", &Testbed::shall_train_network)
        .def_readwrite("max_level_rand_training", &Testbed::max_level_rand_training,
                       "Half of the rays are trained with a random number of grid levels, coarsest first.")
        .def_readwrite("training_batch_size", &Testbed::training_batch_size, "Samples of a step that frame() does.")
        .def_property_readonly("nerf", [](Testbed& t) -> NerfSettings& { return t.nerf; }, internal);
}

} // namespace

void bind_testbed(py::module_& m) {
    py::class_<Testbed> c(m, "Testbed", "See pyngp.Testbed.");
    c.def(py::init(&make_testbed), py::arg("mode") = TestbedMode::None, py::arg("device") = "auto",
          py::arg("seed") = 1337, py::arg("deterministic") = false, py::arg("max_device_bytes") = py::none())
        .def_property_readonly("mode", &Testbed::mode)
        .def_property_readonly("device", &Testbed::device, "\"cpu\" or \"cuda:0\".")
        .def_property_readonly("deterministic", &Testbed::deterministic, "On the CPU always.")
        .def_property_readonly("training_step", &Testbed::training_step)
        .def_property_readonly("loss",
                               py::cpp_function(&Testbed::loss, py::call_guard<py::gil_scoped_release>()), // waits
                               "Of the last step: mean over rays and channels.")
        .def_property_readonly("default_batch_size", &Testbed::default_batch_size)
        .def_property_readonly("network_config", &Testbed::network_config, "Resolved network configuration, JSON text.")
        .def("n_params", &Testbed::n_params)
        .def("n_encoding_params", &Testbed::n_encoding_params)
        .def(
            "params",
            [](Testbed& t) {
                std::vector<float> p = t.params();
                const auto n = py::ssize_t(p.size());
                return take(std::move(p), {n});
            },
            "(n_params,) float32: averaged weights in the canonical order of snapshots; a copy.")
        .def(
            "density_grid",
            [](Testbed& t) {
                std::vector<float> v = t.density_grid();
                const auto n = py::ssize_t(v.size());
                return take(std::move(v), {n});
            },
            "(cascades * 128^3,) float32, Morton order: density times the minimal step; -1: seen by no camera.")
        .def("set_dataset", &Testbed::set_dataset, py::arg("dataset"), "Replaces the training data.")
        .def("clear_training_data", &Testbed::clear_training_data)
        .def(
            "create_empty_nerf_dataset", &Testbed::create_empty_nerf_dataset, py::arg("n_images"),
            py::arg("aabb_scale") = 1, py::arg("is_hdr") = false,
            "Views without images as training data, scale 0.33, offset 0.5, poses of the identity. Give them theirs by "
            "nerf.training.set_image(), set_camera_intrinsics() and set_camera_extrinsics(), and set "
            "nerf.training.n_images_for_training to the number of the first ones that are complete.")
        .def("reload_network_from_json_text", &Testbed::reload_network_from_json, py::arg("json"),
             py::arg("source") = "network configuration")
        .def("reset", &Testbed::reset, py::arg("reset_density_grid") = true)
        .def("train", &Testbed::train, py::arg("batch_size"), py::call_guard<py::gil_scoped_release>(),
             "One training step; batch_size must be a multiple of 256.")
        .def("frame", &Testbed::frame, py::call_guard<py::gil_scoped_release>(),
             "One training step of training_batch_size if shall_train; always True.")
        .def("fit_steps", fit, py::arg("steps"), py::arg("seconds"), py::arg("batch_size"), py::arg("callback"))
        .def("render", render, py::arg("width") = 1920, py::arg("height") = 1080, py::arg("spp") = 1,
             py::arg("linear") = true, py::arg("start_t") = -1.0f, py::arg("end_t") = -1.0f, py::arg("fps") = 30.0f,
             py::arg("shutter_fraction") = 1.0f,
             R"((H,W,4) float32: premultiplied RGBA over background_color, linear or sRGB-encoded, of render_mode.

The camera is the current one, or, with start_t from 0 to 1, that of camera_path from start_t to end_t (default: the same),
where it stays. Its motion is blurred while the shutter is open, for shutter_fraction of that time. A time of 0 also
resets camera_smoothing, which follows the path by frames of 1/fps seconds. The lens is perspective unless render_lens
has been set.)")
        .def("render_with_depth", render_with_depth, py::arg("width") = 1920, py::arg("height") = 1080,
             py::arg("spp") = 1, py::arg("linear") = true, py::arg("start_t") = -1.0f, py::arg("end_t") = -1.0f,
             py::arg("fps") = 30.0f, py::arg("shutter_fraction") = 1.0f,
             "(rgba, depth): as render(), and (H,W) in NGP units along the camera's forward axis at the sample of "
             "largest weight; of several samples per pixel, of the last. 16384 where alpha <= 0.2; 0 with "
             "render_ground_truth.")
        .def("render_camera", render_channels, py::arg("camera"), py::arg("width"), py::arg("height"),
             py::arg("focal_length"), py::arg("principal_point"), py::arg("lens"), py::arg("channels"), py::arg("spp"),
             py::arg("on_device"), py::arg("appearance"))
        .def("ray_samples_of_pixel", ray_samples, py::arg("camera"), py::arg("width"), py::arg("height"),
             py::arg("focal_length"), py::arg("principal_point"), py::arg("lens"), py::arg("x"), py::arg("y"))
        .def("query_field", query_field, py::arg("positions"), py::arg("directions"), py::arg("occupancy"),
             py::arg("appearance"))
        .def("keep_images", keep_images, py::arg("images"), py::arg("name"),
             "A copy of an image, or of several of one size, that lies on the Testbed's device: a DeviceArray, or a "
             "NumPy "
             "array where it would leave no room for a model.")
        .def("save_snapshot", &Testbed::save_snapshot, py::arg("path"), py::arg("include_optimizer_state") = false,
             py::arg("compress") = true, py::call_guard<py::gil_scoped_release>())
        .def("load_snapshot", &Testbed::load_snapshot, py::arg("path"), py::call_guard<py::gil_scoped_release>())
        .def("set_profiling", &Testbed::set_profiling, py::arg("on"),
             "On a GPU, stage times are taken only while this is on: steps then run kernel by kernel.")
        .def("stats", stats, "Counters, stage times in ms (summed over `steps`), bytes held. Waits for the device.");
    bind_camera(c);
    bind_training_cameras(c);
    bind_options(c);
    bind_latent_fits(c);
    bind_display(c);
}
