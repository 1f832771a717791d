// Cameras of the training views, and what is learned about them.
#include "bindings.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

Testbed::ViewTime view_time(const std::string& at) {
    const std::map<std::string, Testbed::ViewTime> times{
        {"start", Testbed::ViewTime::Start}, {"center", Testbed::ViewTime::Center}, {"end", Testbed::ViewTime::End}};
    const auto found = times.find(at);
    if (found == times.end()) throw py::value_error("at is '" + at + "'; it must be \"start\", \"center\" or \"end\"");
    return found->second;
}

FloatArray cameras(const Testbed& t, const std::string& at) {
    const auto poses = t.cameras(view_time(at));
    FloatArray a({py::ssize_t(poses.size()), py::ssize_t(3), py::ssize_t(4)});
    for (size_t i = 0; i < poses.size(); ++i) {
        const FloatArray pose = to_array(poses[i]);
        std::copy(pose.data(), pose.data() + 12, a.mutable_data(py::ssize_t(i)));
    }
    return a;
}

FloatArray camera_intrinsics(const Testbed& t) {
    const auto n = py::ssize_t(t.nerf.training.dataset->record.views.size());
    FloatArray a({n, py::ssize_t(4)});
    for (py::ssize_t i = 0; i < n; ++i) {
        const CameraModel c = t.camera_model(int(i));
        const float values[4] = {c.focal.x, c.focal.y, c.principal.x * float(c.width), c.principal.y * float(c.height)};
        std::copy(values, values + 4, a.mutable_data(i));
    }
    return a;
}

FloatArray image_exposures(const Testbed& t) {
    const std::vector<Vec3> stops = t.image_exposures();
    FloatArray a({py::ssize_t(stops.size()), py::ssize_t(3)});
    for (size_t i = 0; i < stops.size(); ++i)
        for (int c = 0; c < 3; ++c) a.mutable_at(py::ssize_t(i), c) = stops[i][c];
    return a;
}

py::object distortion_map(const Testbed& t) {
    const auto& map = t.camera_corrections().map;
    if (map.x.empty()) return py::none();
    return py::array_t<float>({map.height, map.width, 2}, map.x.data()); // a copy
}

// A.10: relative principal points are given below zero, pixels above.
float principal_of(float c, int size, const char* name) {
    if (c < 0) return -c;
    if (size == 0)
        fail(name, " is in pixels, of an image that is not there yet; give -", name, "/size, or the image first");
    return c / float(size);
}

void set_camera_intrinsics(NerfTraining& t, int frame_idx, float fx, float fy, float cx, float cy, float k1, float k2,
                           float p1, float p2, float k3, float k4, bool is_fisheye) {
    CameraModel camera;
    const auto& views = t.dataset->record.views;
    if (frame_idx >= 0 && frame_idx < int(views.size())) camera = views[size_t(frame_idx)].camera;
    camera.focal = {fx > 0 ? fx : fy, fy > 0 ? fy : fx};
    camera.principal = {principal_of(cx, camera.width, "cx"), principal_of(cy, camera.height, "cy")};
    camera.lens = {};
    const float params[4] = {k1, k2, is_fisheye ? k3 : p1, is_fisheye ? k4 : p2};
    if (std::any_of(params, params + 4, [](float p) { return p != 0; })) {
        camera.lens.mode = is_fisheye ? LensMode::OpenCVFisheye : LensMode::OpenCV;
        std::copy_n(params, 4, camera.lens.params);
    }
    t.testbed->set_camera_intrinsics(frame_idx, camera);
}

} // namespace

void bind_training_cameras(py::class_<Testbed>& c) {
    c.def(
         "set_camera_to_training_view", &Testbed::set_camera_to_training_view, py::arg("view"),
         "The render camera becomes that of a training view, as far as it has been learned; at the centre of its image "
         "and time 0 if that has a rolling shutter. For pictures of the view's shape. Switches "
         "render_with_lens_distortion on; render_lens becomes the view's lens, but is not used unless it is set.")
        .def("cameras", cameras, py::arg("at") = "center",
             "(N,3,4) poses of the training views in the input's frame, with what was learned about them. `at`: when, "
             "of "
             "views with a rolling shutter: \"start\", \"center\" (of the image) or \"end\".")
        .def("camera_intrinsics", camera_intrinsics,
             "(N,4) fl_x, fl_y, cx, cy of the training views in pixels, with the learned focal length.")
        .def("image_exposures", image_exposures,
             "(N,3) learned exposures, in stops a channel: by how much the scene is brighter than each training image. "
             "Their mean over images is 0.")
        .def(
            "distortion_map", distortion_map,
            "(H,W,2) learned lens distortion, or None: offsets of the x and y (right and down) of ray directions whose "
            "z is 1, at nodes spread evenly over the image from corner to corner.");
}

void bind_camera_learning(py::class_<NerfTraining>& c) {
    c.def_readwrite("optimize_extrinsics", &NerfTraining::optimize_extrinsics,
                    "Learn a correction of each view's pose (CPU). Testbed.cameras() gives the results.")
        .def_readwrite("optimize_exposure", &NerfTraining::optimize_exposure,
                       "Learn each image's exposure, a channel (CPU). Testbed.image_exposures() gives the results.")
        .def_readwrite("optimize_distortion", &NerfTraining::optimize_distortion,
                       "Learn a lens distortion that all views share (CPU). Testbed.distortion_map() gives it.")
        .def_readwrite("optimize_focal_length", &NerfTraining::optimize_focal_length,
                       "Learn a factor of all views' focal lengths, along each axis (CPU). "
                       "Testbed.camera_intrinsics() gives the results.")
        .def_readwrite("n_steps_between_cam_updates", &NerfTraining::n_steps_between_cam_updates)
        .def_readwrite("extrinsic_l2_reg", &NerfTraining::extrinsic_l2_reg)
        .def_readwrite("extrinsic_learning_rate", &NerfTraining::extrinsic_learning_rate)
        .def_readwrite("intrinsic_l2_reg", &NerfTraining::intrinsic_l2_reg)
        .def_readwrite("exposure_l2_reg", &NerfTraining::exposure_l2_reg)
        .def(
            "set_camera_intrinsics", set_camera_intrinsics, py::arg("frame_idx"), py::arg("fx") = 0.0f,
            py::arg("fy") = 0.0f, py::arg("cx") = -0.5f, py::arg("cy") = -0.5f, py::arg("k1") = 0.0f,
            py::arg("k2") = 0.0f, py::arg("p1") = 0.0f, py::arg("p2") = 0.0f, py::arg("k3") = 0.0f,
            py::arg("k4") = 0.0f, py::arg("is_fisheye") = false,
            "A training view's focal length and principal point in pixels, and OpenCV or fisheye distortion. One of fx "
            "and fy stands for both; a negative cx or cy is relative to the image's size. A learned focal length goes "
            "on applying.")
        .def(
            "set_camera_extrinsics",
            [](NerfTraining& t, int frame, const FloatArray& pose, bool convert_to_ngp) {
                t.testbed->set_camera_extrinsics(frame, to_camera(pose, "camera_to_world"), convert_to_ngp);
            },
            py::arg("frame_idx"), py::arg("camera_to_world"), py::arg("convert_to_ngp") = true,
            "A training view's pose: (3,4) camera-to-world, OpenGL axes, world units; in NGP space if not "
            "convert_to_ngp. What was learned about it is dropped, and its rolling shutter.")
        .def(
            "get_camera_extrinsics",
            [](const NerfTraining& t, int frame) { return to_array(t.testbed->get_camera_extrinsics(frame)); },
            py::arg("frame_idx"),
            "(3,4) float32 camera-to-world, OpenGL axes, world units, with what was learned; where its rolling "
            "shutter, "
            "if any, starts.");
}
