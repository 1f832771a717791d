// Render modes, camera paths, and the Testbed's display options and camera controls.
#include "bindings.h"

#include <ngp/render/camera_path.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

constexpr auto internal = py::return_value_policy::reference_internal;

// Of tasks that this version of the library does not have; scripts name them.
enum class RandomMode { Random = 0, Halton = 1, Sobol = 2, Stratified = 3 };
enum class SDFGroundTruthMode { RaytracedMesh = 0, SpheretracedMesh = 1 };
enum class MeshSdfMode { Watertight = 0, Raystab = 1, PathEscape = 2 };

void bind_enums(py::module_& m) {
    py::enum_<RenderMode>(m, "RenderMode", R"(What render() shows.

AO: opacity of each sample. Shade: the model's colours. Normals: n/2 + 1/2 of the density's gradient, NGP axes.
Positions: (p - 1/2)/2 + 1/2, NGP space. Depth: along the camera's forward axis, world units. Distortion: how far the lens
moves a pixel, by hue and, 64 times the share of the picture, brightness. Cost: samples of a ray / 128. Slice: the field
on the plane at slice_plane_z + scale in front of the camera, 0.01 thick.)")
        .value("AO", RenderMode::AO)
        .value("Shade", RenderMode::Shade)
        .value("Normals", RenderMode::Normals)
        .value("Positions", RenderMode::Positions)
        .value("Depth", RenderMode::Depth)
        .value("Distortion", RenderMode::Distortion)
        .value("Cost", RenderMode::Cost)
        .value("Slice", RenderMode::Slice);
    py::enum_<GroundTruthRenderMode>(m, "GroundTruthRenderMode")
        .value("Shade", GroundTruthRenderMode::Shade)
        .value("Depth", GroundTruthRenderMode::Depth);
    py::enum_<CameraPredictionMode>(m, "CameraPredictionMode")
        .value("None", CameraPredictionMode::None)
        .value("MatLogLinear", CameraPredictionMode::MatLogLinear)
        .value("MatLogQuadratic", CameraPredictionMode::MatLogQuadratic)
        .value("Se3LogLinear", CameraPredictionMode::Se3LogLinear)
        .value("Se3LogQuadratic", CameraPredictionMode::Se3LogQuadratic);
    py::enum_<EditingKernel>(m, "EditingKernel", "How a keyframe's change spreads over its neighbours.")
        .value("None", EditingKernel::None)
        .value("Gaussian", EditingKernel::Gaussian)
        .value("Quartic", EditingKernel::Quartic)
        .value("Hat", EditingKernel::Hat)
        .value("Box", EditingKernel::Box);
    py::enum_<RandomMode>(m, "RandomMode")
        .value("Random", RandomMode::Random)
        .value("Halton", RandomMode::Halton)
        .value("Sobol", RandomMode::Sobol)
        .value("Stratified", RandomMode::Stratified);
    py::enum_<SDFGroundTruthMode>(m, "SDFGroundTruthMode")
        .value("RaytracedMesh", SDFGroundTruthMode::RaytracedMesh)
        .value("SpheretracedMesh", SDFGroundTruthMode::SpheretracedMesh);
    py::enum_<MeshSdfMode>(m, "MeshSdfMode")
        .value("Watertight", MeshSdfMode::Watertight)
        .value("Raystab", MeshSdfMode::Raystab)
        .value("PathEscape", MeshSdfMode::PathEscape);
}

// --- camera paths

void set_quaternion(CameraKeyframe& k, const FloatArray& r) {
    expect_shape(r, {4}, "R");
    std::copy_n(r.data(), 4, k.R);
}
FloatArray quaternion(const CameraKeyframe& k) {
    FloatArray a(4);
    std::copy_n(k.R, 4, a.mutable_data());
    return a;
}
CameraKeyframe keyframe(float slice, float scale, float fov, float aperture_size, float timestamp) {
    CameraKeyframe k;
    k.slice = slice;
    k.scale = scale;
    k.fov = fov;
    k.aperture_size = aperture_size;
    k.timestamp = timestamp;
    return k;
}

void bind_keyframe(py::module_& m) {
    py::class_<CameraKeyframe, std::shared_ptr<CameraKeyframe>>(m, "CameraKeyframe",
                                                                "A render camera in NGP space on a camera path.")
        .def(py::init<>())
        .def(py::init([](const FloatArray& r, const FloatArray& t, float slice, float scale, float fov,
                         float aperture_size, float timestamp) {
            CameraKeyframe k = keyframe(slice, scale, fov, aperture_size, timestamp);
            set_quaternion(k, r);
            k.T = to_vec3(t, "T");
            return k;
        }))
        .def(py::init(
            [](const FloatArray& m, float slice, float scale, float fov, float aperture_size, float timestamp) {
                CameraKeyframe k = keyframe(slice, scale, fov, aperture_size, timestamp);
                k.from_m(to_camera(m, "m"));
                return k;
            }))
        .def_property("R", quaternion, set_quaternion, "(4,) unit quaternion x, y, z, w: the rotation.")
        .def_property(
            "T", [](const CameraKeyframe& k) { return to_array(k.T); },
            [](CameraKeyframe& k, const FloatArray& v) { k.T = to_vec3(v, "T"); }, "(3,) the position, NGP space.")
        .def_readwrite("slice", &CameraKeyframe::slice, "slice_plane_z.")
        .def_readwrite("scale", &CameraKeyframe::scale)
        .def_readwrite("fov", &CameraKeyframe::fov, "Degrees along fov_axis.")
        .def_readwrite("aperture_size", &CameraKeyframe::aperture_size)
        .def_readwrite("timestamp", &CameraKeyframe::timestamp, "Where the way to the next keyframe ends.")
        .def(
            "m", [](const CameraKeyframe& k) { return to_array(k.m()); }, "(3,4) NGP camera matrix.")
        .def("from_m", [](CameraKeyframe& k, const FloatArray& m) { k.from_m(to_camera(m, "m")); })
        .def("same_pos_as", &CameraKeyframe::same_pos_as);
}

void bind_path_settings(py::module_& m) {
    py::class_<CameraPathRenderSettings>(m, "CameraPathRenderSettings", "How a path is to be made a video; kept.")
        .def(py::init<>())
        .def_property(
            "resolution",
            [](const CameraPathRenderSettings& s) {
                py::array_t<int> a(2);
                std::copy_n(s.resolution, 2, a.mutable_data());
                return a;
            },
            [](CameraPathRenderSettings& s, const py::array_t<int, py::array::c_style | py::array::forcecast>& v) {
                expect_shape(v, {2}, "resolution");
                std::copy_n(v.data(), 2, s.resolution);
            },
            "(2,) int32 [width, height].")
        .def_readwrite("spp", &CameraPathRenderSettings::spp)
        .def_readwrite("fps", &CameraPathRenderSettings::fps)
        .def_readwrite("duration_seconds", &CameraPathRenderSettings::duration_seconds)
        .def_readwrite("shutter_fraction", &CameraPathRenderSettings::shutter_fraction)
        .def_readwrite("quality", &CameraPathRenderSettings::quality);
    py::class_<CameraPathPos>(m, "CameraPathPos", "A place on a path: share t of the way from keyframe kfidx on.")
        .def(py::init<>())
        .def_readwrite("kfidx", &CameraPathPos::kfidx)
        .def_readwrite("t", &CameraPathPos::t);
}

void set_keyframes(CameraPath& p, const std::vector<std::shared_ptr<CameraKeyframe>>& keyframes) {
    CameraPath copied;
    for (const auto& k : keyframes) {
        if (!k) throw py::value_error("keyframes must be CameraKeyframes");
        copied.keyframes.push_back(std::make_shared<CameraKeyframe>(*k));
    }
    p.keyframes = std::move(copied.keyframes);
}

void bind_path(py::module_& m) {
    using P = CameraPath;
    py::class_<P>(m, "CameraPath", "Keyframes of the camera and the B-spline between them; play times are 0 to 1.")
        .def(py::init<>())
        .def_property(
            "keyframes", [](const P& p) { return p.keyframes; }, set_keyframes,
            "A new list of the keyframes; assign a list to replace them.")
        .def_readwrite("spline_order", &P::spline_order, "0: nearest keyframe, 1: linear, 2, 3: B-splines.")
        .def_readwrite("loop", &P::loop)
        .def_readwrite("duration_seconds", &P::duration_seconds)
        .def_readwrite("update_cam_from_path", &P::update_cam_from_path)
        .def_readwrite("play_time", &P::play_time)
        .def_readwrite("auto_play_speed", &P::auto_play_speed)
        .def_readwrite("keyframe_subsampling", &P::keyframe_subsampling)
        .def_readwrite("camera_prediction_duration_seconds", &P::camera_prediction_duration_seconds)
        .def_readwrite("camera_prediction_dt", &P::camera_prediction_dt)
        .def_readwrite("editing_kernel_type", &P::editing_kernel_type, "Of edit_keyframe().")
        .def_readwrite("editing_kernel_radius", &P::editing_kernel_radius, "Play time.")
        .def_property(
            "render_settings", [](P& p) -> CameraPathRenderSettings& { return p.render_settings; },
            [](P& p, const CameraPathRenderSettings& s) { p.render_settings = s; }, internal)
        .def_readwrite("rendering", &P::rendering)
        .def_readwrite("render_frame_idx", &P::render_frame_idx)
        .def_readwrite("render_start_time", &P::render_start_time, "Seconds.")
        .def_property(
            "render_frame_end_camera", [](const P& p) { return to_array(p.render_frame_end_camera); },
            [](P& p, const FloatArray& m) { p.render_frame_end_camera = to_camera(m, "render_frame_end_camera"); })
        .def("clear", &P::clear)
        .def("has_valid_timestamps", &P::has_valid_timestamps, "Strictly increasing, the first above zero.")
        .def("make_keyframe_timestamps_equidistant", &P::make_keyframe_timestamps_equidistant)
        .def("sanitize_keyframes", &P::sanitize_keyframes, "Equidistant timestamps unless they are valid.")
        .def("get_pos", &P::get_pos, py::arg("playtime"))
        .def("get_playtime", &P::get_playtime, py::arg("i"))
        .def(
            "get_keyframe",
            [](const P& p, int i) {
                const CameraKeyframe* k = &p.get_keyframe(i);
                return *std::find_if(p.keyframes.begin(), p.keyframes.end(),
                                     [&](const auto& other) { return other.get() == k; });
            },
            py::arg("i"), "Clamped to the path, or wrapped in a loop.")
        .def("eval_camera_path", &P::eval_camera_path, py::arg("t"))
        .def(
            "add_camera",
            [](P& p, const FloatArray& camera, float slice_plane_z, float scale, float fov, float aperture_size, float,
               float timestamp) {
                p.add_camera(to_camera(camera, "camera"), slice_plane_z, scale, fov, aperture_size, timestamp);
            },
            py::arg("camera"), py::arg("slice_plane_z"), py::arg("scale"), py::arg("fov"), py::arg("aperture_size"),
            py::arg("bounding_radius"), py::arg("timestamp"),
            "Adds a keyframe at its place in time; without a timestamp (0) at the end, and all become equidistant. "
            "bounding_radius has no effect.")
        .def("edit_keyframe", &P::edit_keyframe, py::arg("i"), py::arg("keyframe"),
             "Changes a keyframe, and its neighbours by the editing kernel.")
        .def(
            "save",
            [](const P& p, const std::string& path) {
                py::module_::import("pyngp.camera_path").attr("save_camera_path")(p, path);
            },
            py::arg("path"), "Writes a camera_path.json.")
        .def(
            "load",
            [](P& p, const std::string& path, const py::object& first_xform) {
                py::module_::import("pyngp.camera_path").attr("load_camera_path")(py::cast(&p), path, first_xform);
            },
            py::arg("path"), py::arg("first_xform") = py::none(),
            "Reads a camera_path.json. first_xform (3,4): moves all keyframes.");
}

// --- the Testbed

template <typename T>
void bind_window(py::class_<Testbed>& c, const char* name, T WindowSettings::* member) {
    c.def_property(
        name, [member](const Testbed& t) { return t.window.*member; },
        [member](Testbed& t, T value) { t.window.*member = value; }, "Kept; only a window would use it.");
}

[[noreturn]] void no_window() { fail("this build has no windows; render() pictures instead, or use 'pyngp render'"); }
[[noreturn]] void no_view(int i) { fail("View #", i, " does not exist."); }

void bind_windows(py::class_<Testbed>& c) {
    bind_window(c, "dynamic_res", &WindowSettings::dynamic_res);
    bind_window(c, "dynamic_res_target_fps", &WindowSettings::dynamic_res_target_fps);
    bind_window(c, "fixed_res_factor", &WindowSettings::fixed_res_factor);
    bind_window(c, "dlss_sharpening", &WindowSettings::dlss_sharpening);
    bind_window(c, "display_gui", &WindowSettings::display_gui);
    bind_window(c, "visualize_unit_cube", &WindowSettings::visualize_unit_cube);
    bind_window(c, "record_camera_path", &WindowSettings::record_camera_path);
    bind_window(c, "floor_enable", &WindowSettings::floor_enable);
    bind_window(c, "is_rendering", &WindowSettings::is_rendering);
    bind_window(c, "camera_prediction_mode", &WindowSettings::camera_prediction_mode);
    c.def_property(
         "dlss", [](const Testbed&) { return false; },
         [](Testbed&, bool on) {
             if (on) fail("dlss is not supported");
         })
        .def(
            "init_window", [](Testbed&, int, int, bool, bool) { no_window(); }, py::arg("width"), py::arg("height"),
            py::arg("hidden") = false, py::arg("second_window") = false, "Raises RuntimeError: there are no windows.")
        .def(
            "destroy_window", [](Testbed&) { no_window(); }, "Raises RuntimeError: there are no windows.")
        .def(
            "init_vr", [](Testbed&) { no_window(); }, "Raises RuntimeError: there are no windows.")
        .def(
            "view", [](Testbed&, bool, int i) -> py::array_t<float> { no_view(i); }, py::arg("linear") = true,
            py::arg("view") = 0, "Raises RuntimeError: there are no windows.")
        .def(
            "view_camera", [](Testbed&, int i) -> py::array_t<float> { no_view(i); }, py::arg("view") = 0,
            "Raises RuntimeError: there are no windows.")
        .def(
            "predict_view_camera", [](Testbed&, int i, float) -> py::array_t<float> { no_view(i); }, py::arg("view"),
            py::arg("dt"), "Raises RuntimeError: there are no windows.")
        .def(
            "reset_accumulation", [](Testbed&, bool, bool) {}, py::arg("due_to_camera_movement") = false,
            py::arg("immediate_redraw") = true, "Does nothing: every picture is made anew.");
}

void bind_look(py::class_<Testbed>& c) {
    c.def_property(
         "default_camera", [](const Testbed& t) { return to_array(t.default_camera); },
         [](Testbed& t, const FloatArray& m) { t.default_camera = to_camera(m, "default_camera"); },
         "(3,4) NGP camera matrix that reset_camera() starts from.")
        .def_property(
            "scale", [](const Testbed& t) { return t.camera.scale; }, &Testbed::set_scale,
            "Distance to the point looked at, NGP units; setting it moves the camera.")
        .def_property(
            "look_at", [](const Testbed& t) { return to_array(t.look_at()); },
            [](Testbed& t, const FloatArray& v) { t.set_look_at(to_vec3(v, "look_at")); },
            "(3,) point looked at, NGP space; setting it moves the camera.")
        .def_property(
            "view_dir", [](const Testbed& t) { return to_array(t.camera.matrix.forward); },
            [](Testbed& t, const FloatArray& v) { t.set_view_dir(to_vec3(v, "view_dir")); },
            "(3,) forward axis; setting it turns the camera about the point looked at, upright by up_dir.")
        .def_property(
            "sun_dir", [](const Testbed& t) { return to_array(t.sun_dir); },
            [](Testbed& t, const FloatArray& v) { t.sun_dir = normalize(to_vec3(v, "sun_dir")); },
            "(3,) unit, NGP axes.")
        .def_property(
            "parallax_shift", [](const Testbed& t) { return to_array(t.parallax_shift); },
            [](Testbed& t, const FloatArray& v) { t.parallax_shift = to_vec3(v, "parallax_shift"); },
            "(3,) x, y: shift of the eye along the camera's axes, NGP units; z: 1 / distance of what stays in place.")
        .def("first_training_view", [](Testbed& t) { t.set_camera_to_training_view(0); })
        .def("last_training_view",
             [](Testbed& t) {
                 const auto n = int(t.nerf.training.dataset->record.views.size());
                 t.set_camera_to_training_view(n > 0 ? n - 1 : 0);
             })
        .def("previous_training_view", [](Testbed& t) { t.move_training_view(-1); })
        .def("next_training_view", [](Testbed& t) { t.move_training_view(1); })
        .def_readwrite("camera_smoothing", &Testbed::camera_smoothing, "Along the camera path.")
        .def_property(
            "camera_path", [](Testbed& t) -> CameraPath& { return t.camera_path; },
            [](Testbed& t, const CameraPath& p) { t.camera_path = p; }, internal)
        .def_property(
            "loop_animation", [](const Testbed& t) { return t.camera_path.loop; },
            [](Testbed& t, bool v) { t.camera_path.loop = v; }, "camera_path.loop.")
        .def("set_camera_from_path", &Testbed::set_camera_from_path, py::arg("playtime"),
             "Puts the camera where the camera path is at a play time from 0 to 1.");
}

template <typename T>
void bind_camera_value(py::class_<Testbed>& c, const char* name, T RenderCamera::* member, const char* doc) {
    c.def_property(
        name, [member](const Testbed& t) { return t.camera.*member; },
        [member](Testbed& t, T value) { t.camera.*member = value; }, doc);
}

void bind_picture(py::class_<Testbed>& c) {
    bind_camera_value(c, "slice_plane_z", &RenderCamera::slice_plane_z,
                      "The plane of Slice and of focus lies slice_plane_z + scale in front of the camera, NGP units.");
    for (const char* name : {"aperture_size", "dof"})
        bind_camera_value(c, name, &RenderCamera::aperture_size, "Radius of the lens, NGP units; 0: a pinhole.");
    bind_camera_value(c, "autofocus", &RenderCamera::autofocus, "render() sets slice_plane_z to autofocus_target.");
    c.def_property(
         "autofocus_target", [](const Testbed& t) { return to_array(t.camera.autofocus_target); },
         [](Testbed& t, const FloatArray& v) { t.camera.autofocus_target = to_vec3(v, "autofocus_target"); },
         "(3,) NGP space.")
        .def_readwrite("render_mode", &Testbed::render_mode)
        .def_readwrite("render_ground_truth", &Testbed::render_ground_truth,
                       "render() shows the training image of the view nearest to the camera.")
        .def_readwrite("render_groundtruth", &Testbed::render_ground_truth)
        .def_readwrite("groundtruth_render_mode", &Testbed::groundtruth_render_mode)
        .def_readwrite("render_transparency_as_checkerboard", &Testbed::render_transparency_as_checkerboard)
        .def_readwrite("visualized_dimension", &Testbed::visualized_dimension,
                       "Activation that render() shows: this column of visualized_layer, orange above zero and blue "
                       "below; -1: none.")
        .def_readwrite("visualized_layer", &Testbed::visualized_layer,
                       "Inputs of the density network's layers, of the rgb network's layers, then its output.")
        .def_readwrite(
            "render_with_lens_distortion", &Testbed::render_with_lens_distortion,
            "Whether render() uses a render_lens that has been set, and whether pictures are bent by the learned "
            "lens distortion (distortion_map()).")
        .def_property(
            "render_lens", [](Testbed& t) -> Lens& { return t.render_lens; }, &Testbed::set_render_lens, internal,
            "Lens of render() from when it is set; what set_camera_to_training_view() leaves here is not used. "
            "Setting it switches render_with_lens_distortion on.")
        .def_property(
            "raw_aabb", [](Testbed& t) -> Aabb& { return t.raw_aabb; },
            [](Testbed& t, const Aabb& b) { t.raw_aabb = b; }, internal, "Scene box as the data has it, NGP space.")
        .def_readonly("bounding_radius", &Testbed::bounding_radius)
        .def(
            "crop_box", [](const Testbed& t, bool nerf_space) { return to_array(t.crop_box(nerf_space)); },
            py::arg("nerf_space") = true, "(3,4): half axes and centre, in the input's frame or NGP space.")
        .def(
            "set_crop_box",
            [](Testbed& t, const FloatArray& m, bool nerf_space) {
                t.set_crop_box(to_camera(m, "matrix"), nerf_space);
            },
            py::arg("matrix"), py::arg("nerf_space") = true)
        .def(
            "crop_box_corners",
            [](const Testbed& t, bool nerf_space) {
                py::list corners;
                for (const Vec3& v : t.crop_box_corners(nerf_space)) corners.append(to_array(v));
                return corners;
            },
            py::arg("nerf_space") = true, "8 corners, (3,) each.");
}

} // namespace

void bind_rendering(py::module_& m) {
    bind_enums(m);
    bind_keyframe(m);
    bind_path_settings(m);
    bind_path(m);
}

void bind_display(py::class_<Testbed>& c) {
    bind_windows(c);
    bind_look(c);
    bind_picture(c);
}
