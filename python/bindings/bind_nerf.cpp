#include "arrays.h"

#include <algorithm>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

// Keeps a NumPy array alive from C++, which may let go of it without the GIL.
std::shared_ptr<const void> keep_alive(py::array array) {
    return {new py::array(std::move(array)), [](const void* p) {
                py::gil_scoped_acquire gil;
                delete static_cast<const py::array*>(p);
            }};
}

// uint8 or float32 (height, width, 3 or 4), without a copy where it is contiguous.
std::pair<ImageView, std::shared_ptr<const void>> image_of(const py::object& pixels, const std::string& path) {
    ImageView v;
    std::vector<py::ssize_t> shape;
    std::shared_ptr<const void> owner;
    if (py::isinstance<DeviceArray>(pixels)) {
        const auto& a = pixels.cast<const DeviceArray&>();
        v.pixels = a.data;
        v.type = a.is_bytes ? PixelType::U8 : PixelType::F32;
        v.device = a.memory->device();
        shape = a.shape;
        owner = a.memory;
    } else {
        py::array array = py::array::ensure(pixels);
        if (!array) throw py::value_error(path + ": pixels must be an array");
        const bool bytes = py::isinstance<py::array_t<uint8_t>>(array);
        if (!bytes && array.dtype().kind() != 'f')
            throw py::value_error(path + ": pixels must be uint8 (sRGB) or float (linear)");
        if (bytes)
            array = py::array_t<uint8_t, py::array::c_style>::ensure(array);
        else
            array = FloatArray::ensure(array);
        if (!array) throw py::value_error(path + ": pixels must be uint8 or float");
        v.pixels = array.data();
        v.type = bytes ? PixelType::U8 : PixelType::F32;
        shape.assign(array.shape(), array.shape() + array.ndim());
        owner = keep_alive(array);
    }
    if (shape.size() != 3 || (shape[2] != 3 && shape[2] != 4))
        throw py::value_error(path + ": pixels must have shape (height, width, 3 or 4)");
    v.height = int(shape[0]);
    v.width = int(shape[1]);
    v.channels = int(shape[2]);
    return {v, owner};
}

void add_view(NerfDataset& d, const std::string& path, const FloatArray& camera_to_world,
              const FloatArray& focal_length, const FloatArray& principal_point, const Lens& lens,
              const py::object& pixels) {
    auto [image, owner] = image_of(pixels, path);
    CameraModel camera;
    camera.focal = to_vec2(focal_length, "focal_length");
    camera.principal = to_vec2(principal_point, "principal_point");
    camera.lens = lens;
    camera.width = image.width;
    camera.height = image.height;
    d.add_view(path, to_camera(camera_to_world, "camera_to_world"), camera, image, std::move(owner));
}

} // namespace

void bind_nerf(py::module_& m) {
    py::class_<ViewRecord, std::shared_ptr<ViewRecord>>(m, "TrainingImageMetadata", "Camera of a training view.")
        .def_readwrite("path", &ViewRecord::path)
        .def_property(
            "lens", [](ViewRecord& v) -> Lens& { return v.camera.lens; },
            [](ViewRecord& v, const Lens& l) { v.camera.lens = l; }, py::return_value_policy::reference_internal)
        .def_property_readonly(
            "resolution",
            [](const ViewRecord& v) {
                py::array_t<int> a(2);
                a.mutable_at(0) = v.camera.width, a.mutable_at(1) = v.camera.height;
                return a;
            },
            "(2,) int32 [width, height].")
        .def_property(
            "focal_length", [](const ViewRecord& v) { return to_array(v.camera.focal); },
            [](ViewRecord& v, const FloatArray& a) { v.camera.focal = to_vec2(a, "focal_length"); }, "(2,) pixels.")
        .def_property(
            "principal_point", [](const ViewRecord& v) { return to_array(v.camera.principal); },
            [](ViewRecord& v, const FloatArray& a) { v.camera.principal = to_vec2(a, "principal_point"); },
            "(2,) relative to the image size.")
        .def_property(
            "rolling_shutter",
            [](const ViewRecord& v) {
                FloatArray a(4);
                std::copy(v.rolling_shutter, v.rolling_shutter + 4, a.mutable_data());
                return a;
            },
            [](ViewRecord& v, const FloatArray& a) {
                expect_shape(a, {4}, "rolling_shutter");
                std::copy(a.data(), a.data() + 4, v.rolling_shutter);
            },
            "(4,) A, B, C, D: pose s = A + B u + C v + D tau of the way.");

    py::class_<NerfDataset, std::shared_ptr<NerfDataset>>(m, "NerfDataset", "NeRF training data: cameras and images.")
        .def(py::init<>())
        .def_property_readonly("n_images", [](const NerfDataset& d) { return d.record.views.size(); })
        .def_property_readonly(
            "metadata",
            [](const std::shared_ptr<NerfDataset>& d) {
                // Elements share the dataset's ownership, so that they outlive its replacement.
                py::list list;
                for (ViewRecord& v : d->record.views) list.append(std::shared_ptr<ViewRecord>(d, &v));
                return list;
            },
            "List of TrainingImageMetadata.")
        .def_property_readonly("paths",
                               [](const NerfDataset& d) {
                                   std::vector<std::string> paths;
                                   for (const auto& v : d.record.views) paths.push_back(v.path);
                                   return paths;
                               })
        .def_property_readonly("has_images", &NerfDataset::has_images)
        .def_property(
            "scale", [](const NerfDataset& d) { return d.record.world.scale; },
            [](NerfDataset& d, float v) { d.record.world.scale = v; }, "NGP units per world unit.")
        .def_property(
            "offset", [](const NerfDataset& d) { return to_array(d.record.world.offset); },
            [](NerfDataset& d, const FloatArray& v) { d.record.world.offset = to_vec3(v, "offset"); })
        .def_property(
            "from_mitsuba", [](const NerfDataset& d) { return d.record.world.from_mitsuba; },
            [](NerfDataset& d, bool v) { d.record.world.from_mitsuba = v; })
        .def_property(
            "aabb_scale", [](const NerfDataset& d) { return d.record.aabb_scale; },
            [](NerfDataset& d, int v) {
                if (v < 1 || v > 128 || (v & (v - 1)) != 0)
                    fail("aabb_scale is ", v, "; it must be a power of two from 1 to 128");
                d.record.aabb_scale = v;
            })
        .def_property(
            "up", [](const NerfDataset& d) { return to_array(d.record.up); },
            [](NerfDataset& d, const FloatArray& v) { d.record.up = to_vec3(v, "up"); }, "(3,) NGP space.")
        .def_property(
            "is_hdr", [](const NerfDataset& d) { return d.record.is_hdr; },
            [](NerfDataset& d, bool v) { d.record.is_hdr = v; })
        .def_property(
            "render_aabb", [](NerfDataset& d) -> Aabb& { return d.record.render_aabb; },
            [](NerfDataset& d, const Aabb& b) { d.record.render_aabb = b; },
            py::return_value_policy::reference_internal)
        .def_property_readonly("render_aabb_to_local",
                               [](const NerfDataset& d) { return to_array(d.record.render_aabb_to_local); })
        .def("add_view", add_view, py::arg("path"), py::arg("camera_to_world"), py::arg("focal_length"),
             py::arg("principal_point"), py::arg("lens"), py::arg("pixels"),
             "Adds a view. camera_to_world: (3,4), OpenGL axes, world units; focal_length: (2,) pixels; "
             "principal_point: "
             "(2,) relative; pixels: uint8 sRGB or float linear (H,W,3|4), straight alpha, kept without a copy if "
             "contiguous; or a DeviceArray on the device of the Testbed that will train on it. Set scale, offset and "
             "from_mitsuba before.")
        .def(
            "set_rolling_shutter",
            [](NerfDataset& d, const FloatArray& end, const std::array<float, 4>& abcd) {
                d.set_rolling_shutter(to_camera(end, "end"), abcd);
            },
            py::arg("end"), py::arg("abcd"),
            "How the view added last moves while its image is taken: from its pose to `end`, (3,4) likewise, at "
            "s = A + B u + C v + D tau, with u and v from 0 to 1 across the image and tau random within [0, 1].");

    py::class_<NerfTraining> training(m, "NerfTraining", "Options of NeRF training.");
    training.def_property_readonly("dataset", [](NerfTraining& t) { return t.dataset; })
        .def_readwrite("random_bg_color", &NerfTraining::random_bg_color)
        .def_readwrite("n_images_for_training", &NerfTraining::n_images_for_training, "The first n views are used.")
        .def_readwrite("linear_colors", &NerfTraining::linear_colors)
        .def_readwrite("loss_type", &NerfTraining::loss_type)
        .def_readwrite("snap_to_pixel_centers", &NerfTraining::snap_to_pixel_centers)
        .def_readwrite("near_distance", &NerfTraining::near_distance, "NGP units.")
        .def_readwrite("density_grid_decay", &NerfTraining::density_grid_decay)
        .def_readwrite("occupancy_schedule", &NerfTraining::occupancy_schedule)
        .def_property(
            "train_mode", [](const NerfTraining& t) { return t.train_mode; },
            [](NerfTraining&, TrainMode mode) {
                // instant-ngp without its run-time compiler does the same (specification E.4).
                if (mode != TrainMode::Nerf &&
                    PyErr_WarnEx(PyExc_UserWarning,
                                 "train_mode: Rfl and RflRelax are not available here; training goes on in mode Nerf",
                                 1) < 0)
                    throw py::error_already_set();
            },
            "Nerf. Other modes warn and leave it.");
    bind_camera_learning(training);

    py::class_<NerfSettings>(m, "NerfSettings", "NeRF options beyond training.")
        .def_property_readonly(
            "training", [](NerfSettings& s) -> NerfTraining& { return s.training; },
            py::return_value_policy::reference_internal)
        .def_readwrite("rgb_activation", &NerfSettings::rgb_activation)
        .def_readwrite("density_activation", &NerfSettings::density_activation)
        .def_readwrite("render_min_transmittance", &NerfSettings::render_min_transmittance,
                       "Rays stop when less than this shines through.")
        .def_readwrite("rendering_min_transmittance", &NerfSettings::render_min_transmittance)
        .def_readwrite("cone_angle_constant", &NerfSettings::cone_angle_constant,
                       "Growth of the march step with distance; 0: constant steps.");
}
