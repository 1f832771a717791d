#include "bindings.h"

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/color.h>
#include <ngp/formulas/lens.h>
#include <pybind11/stl.h>

using namespace ngp;

void bind_types(py::module_& m) {
    py::enum_<TestbedMode>(m, "TestbedMode")
        .value("Nerf", TestbedMode::Nerf)
        .value("Sdf", TestbedMode::Sdf)
        .value("Image", TestbedMode::Image)
        .value("Volume", TestbedMode::Volume)
        .value("None", TestbedMode::None);
    py::enum_<TrainMode>(m, "TrainMode")
        .value("Nerf", TrainMode::Nerf)
        .value("Rfl", TrainMode::Rfl)
        .value("RflRelax", TrainMode::RflRelax);
    py::enum_<LossType>(m, "LossType")
        .value("L2", LossType::L2)
        .value("L1", LossType::L1)
        .value("Mape", LossType::Mape)
        .value("Smape", LossType::Smape)
        .value("Huber", LossType::Huber)
        .value("SmoothL1", LossType::Huber)
        .value("LogL1", LossType::LogL1)
        .value("RelativeL2", LossType::RelativeL2);
    py::enum_<Activation>(m, "NerfActivation")
        .value("None", Activation::None)
        .value("ReLU", Activation::ReLU)
        .value("Logistic", Activation::Logistic)
        .value("Exponential", Activation::Exponential);
    py::enum_<ColorSpace>(m, "ColorSpace").value("Linear", ColorSpace::Linear).value("SRGB", ColorSpace::SRGB);
    py::enum_<TonemapCurve>(m, "TonemapCurve")
        .value("Identity", TonemapCurve::Identity)
        .value("ACES", TonemapCurve::ACES)
        .value("Hable", TonemapCurve::Hable)
        .value("Reinhard", TonemapCurve::Reinhard);
    py::enum_<LensMode>(m, "LensMode")
        .value("Perspective", LensMode::Perspective)
        .value("OpenCV", LensMode::OpenCV)
        .value("FTheta", LensMode::FTheta)
        .value("LatLong", LensMode::LatLong)
        .value("OpenCVFisheye", LensMode::OpenCVFisheye)
        .value("Equirectangular", LensMode::Equirectangular)
        .value("Orthographic", LensMode::Orthographic);
    py::enum_<OccupancySchedule>(m, "OccupancySchedule",
                                 "How often and how densely the occupancy grid is updated: Specification is "
                                 "instant-ngp's schedule, Budgeted a tenth of a CPU's step time.")
        .value("Specification", OccupancySchedule::Specification)
        .value("Budgeted", OccupancySchedule::Budgeted);

    py::class_<Aabb>(m, "BoundingBox", "Axis-aligned box. BoundingBox() is empty.")
        .def(py::init<>())
        .def(py::init([](const FloatArray& low, const FloatArray& high) {
                 return Aabb{to_vec3(low, "min"), to_vec3(high, "max")};
             }),
             py::arg("min"), py::arg("max"))
        .def_property(
            "min", [](const Aabb& b) { return to_array(b.min); },
            [](Aabb& b, const FloatArray& v) { b.min = to_vec3(v, "min"); }, "(3,) float32, lower corner.")
        .def_property(
            "max", [](const Aabb& b) { return to_array(b.max); },
            [](Aabb& b, const FloatArray& v) { b.max = to_vec3(v, "max"); }, "(3,) float32, upper corner.")
        .def(
            "center", [](const Aabb& b) { return to_array(b.center()); }, "(3,) float32, centre.")
        .def(
            "diag", [](const Aabb& b) { return to_array(b.diag()); }, "(3,) float32, max - min.")
        .def("contains", [](const Aabb& b, const FloatArray& p) { return b.contains(to_vec3(p, "point")); })
        .def("intersection", &Aabb::intersection)
        .def(
            "distance", [](const Aabb& b, const FloatArray& p) { return b.distance(to_vec3(p, "point")); },
            "Of a point to the box; 0 inside.")
        .def("distance_sq", [](const Aabb& b, const FloatArray& p) { return b.distance_squared(to_vec3(p, "point")); })
        .def(
            "signed_distance",
            [](const Aabb& b, const FloatArray& p) { return b.signed_distance(to_vec3(p, "point")); },
            "instant-ngp's: of |p - min| to a box of side 2 diag() around 0.")
        .def("enlarge", [](Aabb& b, const Aabb& other) { b.enlarge(other); })
        .def(
            "enlarge", [](Aabb& b, const FloatArray& p) { b.enlarge(to_vec3(p, "point")); },
            "Grows to hold a point or another box.")
        .def("inflate", &Aabb::inflate, "Moves every face outwards.")
        .def("intersects", &Aabb::intersects)
        .def(
            "get_vertices",
            [](const Aabb& b, const py::object&) {
                FloatArray a({8, 3});
                for (int i = 0; i < 8; ++i)
                    for (int k = 0; k < 3; ++k) a.mutable_at(i, k) = (i >> k) & 1 ? b.max[k] : b.min[k];
                return a;
            },
            py::arg("v") = py::none(), "(8,3) corners; the argument has no effect.")
        .def("relative_pos",
             [](const Aabb& b, const FloatArray& p) { return to_array(b.relative(to_vec3(p, "point"))); })
        .def("ray_intersect",
             [](const Aabb& b, const FloatArray& pos, const FloatArray& dir) {
                 return to_array(intersect(b, to_vec3(pos, "pos"), to_vec3(dir, "dir")));
             })
        .def("__repr__", [](const Aabb& b) {
            std::ostringstream s;
            s << "BoundingBox(min=[" << b.min.x << ", " << b.min.y << ", " << b.min.z << "], max=[" << b.max.x << ", "
              << b.max.y << ", " << b.max.z << "])";
            return s.str();
        });

    py::class_<Lens>(m, "Lens", R"(Lens model, and its params; those that a lens does not name are not used.

Perspective: none. Focal length in pixels, as in all lenses but those below.
OpenCV: [k1, k2, p1, p2], radial and tangential distortion.
OpenCVFisheye: [k1, k2, k3, k4], equidistant.
FTheta: [p0, p1, p2, p3, p4, w, h]. At n pixels from the principal point, in a picture of w by h pixels, the ray is
    p0 + p1 n + p2 n^2 + p3 n^3 + p4 n^4 radians off the axis. No ray goes through the principal point itself and
    pixels at 90 degrees or more: they are rendered empty and not trained on. No focal length.
LatLong: none. 360 by 180 degrees; columns are longitudes, rows latitudes. No focal length or principal point.
Equirectangular: none. Likewise, but rows are equally spaced in the sine of the latitude.
Orthographic: none. Rays are parallel to the camera's axis; the focal length is in pixels per unit of NGP space, which
    is pixels per world unit divided by the dataset's scale.)")
        .def(py::init<>())
        .def(py::init([](LensMode mode, const std::vector<float>& params) {
                 if (params.size() > 7) throw py::value_error("a lens has at most 7 parameters");
                 Lens lens;
                 lens.mode = mode;
                 std::copy(params.begin(), params.end(), lens.params);
                 return lens;
             }),
             py::arg("mode"), py::arg("params") = std::vector<float>{})
        .def_readwrite("mode", &Lens::mode)
        .def_property_readonly(
            "params", [](py::object self) { return py::array_t<float>({7}, {4}, self.cast<Lens&>().params, self); },
            "(7,) float32, a writable view.");
}
