// Single stages of rendering on NumPy arrays: camera paths, poses between two, rays through a lens, boxes.
#include "bindings.h"

#include <ngp/formulas/rigid_motion.h>
#include <ngp/formulas/spline.h>
#include <ngp/stages/flat_pictures.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

py::tuple spline_weights(int order, float t) {
    const SplineWeights w = bspline_weights(order, t);
    return py::make_tuple(w.first, std::vector<float>(w.weight, w.weight + w.n));
}

// (origin, direction, pose) of sample `sample` of pixel (x, y), in a scene box that holds everything.
py::tuple render_ray(const FloatArray& pose, const py::object& end, const py::tuple& camera, const Lens& lens,
                     std::pair<float, float> blur, float near_distance, std::pair<int, int> pixel, int sample) {
    const auto [width, height, fx, fy, cx, cy] = camera.cast<std::tuple<int, int, float, float, float, float>>();
    const CameraModel model{{fx, fy}, {cx, cy}, lens, width, height};
    const CameraMatrix start = to_camera(pose, "pose");
    const Aabb box{splat3(-1e3f), splat3(1e3f)};
    MakeRenderRay make{model, start, box, box, {}, {}, near_distance, false, {blur.first, blur.second}, {}};
    if (!end.is_none()) make.motion = ShutterMotion::between(start, to_camera(end.cast<FloatArray>(), "end"));
    const RayMarcher ray = make(pixel.first, pixel.second, sample);
    return py::make_tuple(to_array(ray.origin), to_array(ray.direction),
                          to_array(make.pose_of(pixel.first, pixel.second, sample)));
}

} // namespace

void bind_render_stages(py::module_& m) {
    m.def("bspline_weights", spline_weights, py::arg("order"), py::arg("t"), "(first control point, weights).");
    m.def("editing_weight", editing_weight, py::arg("kernel"), py::arg("x"));
    m.def(
        "screw_between",
        [](const FloatArray& a, const FloatArray& b, float t) {
            return to_array(screw_between(to_camera(a, "a"), to_camera(b, "b"), t));
        },
        py::arg("a"), py::arg("b"), py::arg("t"));
    m.def(
        "shutter_pose",
        [](const FloatArray& a, const FloatArray& b, float share) {
            const CameraMatrix start = to_camera(a, "a");
            return to_array(ShutterMotion::between(start, to_camera(b, "b")).pose(start, share));
        },
        py::arg("a"), py::arg("b"), py::arg("share"));
    m.def("disc_point", [](const FloatArray& square) { return to_array(disc_point(to_vec2(square, "square"))); });
    m.def("hue_color", [](float hue, float value) { return to_array(hue_color(hue, value)); });
    m.def("render_ray", render_ray, py::arg("pose"), py::arg("end"), py::arg("camera"), py::arg("lens"),
          py::arg("blur"), py::arg("near_distance"), py::arg("pixel"), py::arg("sample"),
          "(origin, direction, pose) of a sample of a pixel, NGP space. camera: (width, height, fl_x, fl_y, relative "
          "cx, cy); blur: (aperture, focus distance).");
}
