#include "images.h"

#include <algorithm>
#include <cmath>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

void add_view(NerfDataset& d, const std::string& path, const FloatArray& camera_to_world,
              const FloatArray& focal_length, const FloatArray& principal_point, const Lens& lens,
              const py::object& pixels) {
    TrainingImage image = image_of(pixels, path);
    CameraModel camera;
    camera.focal = to_vec2(focal_length, "focal_length");
    camera.principal = to_vec2(principal_point, "principal_point");
    camera.lens = lens;
    camera.width = image.view.width;
    camera.height = image.view.height;
    d.add_view(path, to_camera(camera_to_world, "camera_to_world"), camera, image.view, std::move(image.owner));
}

void set_light_dir(NerfDataset& d, int view, const FloatArray& direction) {
    if (view < 0 || view >= int(d.record.views.size()))
        fail("view ", view, " does not exist; there are ", d.record.views.size());
    const Vec3 v = to_vec3(direction, "direction");
    const float length = std::sqrt(dot(v, v));
    ViewRecord& record = d.record.views[size_t(view)];
    if (!(length > 0.0f && std::isfinite(length)))
        fail(record.path, ": its light direction must be finite and not zero");
    record.light_dir = d.record.world.light_to_ngp(v / length);
    d.record.has_light_dirs = true;
    d.record.n_extra_learnable_dims = 0;
}

} // namespace

void bind_nerf(py::module_& m) {
    py::class_<ViewRecord, std::shared_ptr<ViewRecord>>(m, "TrainingImageMetadata", "Camera of a training view.")
        .def_readwrite("path", &ViewRecord::path)
        .def_property(
            "lens", [](ViewRecord& v) -> Lens& { return v.camera.lens; },
            [](ViewRecord& v, const Lens& l) { v.camera.lens = l; }, py::return_value_policy::reference_internal)
        .def_property(
            "camera_distortion", [](ViewRecord& v) -> Lens& { return v.camera.lens; },
            [](ViewRecord& v, const Lens& l) { v.camera.lens = l; }, py::return_value_policy::reference_internal,
            "The same as lens.")
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
            "light_dir", [](const ViewRecord& v) { return to_array(v.light_dir); },
            [](ViewRecord& v, const FloatArray& a) { v.light_dir = to_vec3(a, "light_dir"); },
            "(3,) unit, NGP space, of datasets with light directions; zero: none. Changes count from the next step "
            "on.")
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
        .def_property_readonly(
            "envmap_resolution",
            [](const NerfDataset&) {
                py::array_t<int> a(2);
                a.mutable_at(0) = a.mutable_at(1) = 0;
                return a;
            },
            "(2,) int32: zeros; no dataset has an environment map (specification C.2).")
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
            "n_extra_learnable_dims", [](const NerfDataset& d) { return d.record.n_extra_learnable_dims; },
            [](NerfDataset& d, int n) {
                if (n < 0 || n > max_extra_dims)
                    fail("n_extra_learnable_dims is ", n, "; it must be from 0 to ", max_extra_dims);
                d.record.n_extra_learnable_dims = d.record.has_light_dirs ? 0 : n;
            },
            "Size of each view's latent; 0 where views have light directions.")
        .def_property_readonly(
            "has_light_dirs", [](const NerfDataset& d) { return d.record.has_light_dirs; },
            "Whether views have light directions, which take the place of latents.")
        .def("set_light_dir", set_light_dir, py::arg("view"), py::arg("direction"),
             "Gives a view a light direction (3,), world frame, of any length but zero; views without have none.")
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
             "(2,) relative; pixels: a TrainingImage, or its pixels alone, on the host or on the device of the Testbed "
             "that will train on them. Set scale, offset and from_mitsuba before.")
        .def(
            "set_rolling_shutter",
            [](NerfDataset& d, const FloatArray& end, const std::array<float, 4>& abcd) {
                d.set_rolling_shutter(to_camera(end, "end"), abcd);
            },
            py::arg("end"), py::arg("abcd"),
            "How the view added last moves while its image is taken: from its pose to `end`, (3,4) likewise, at "
            "s = A + B u + C v + D tau, with u and v from 0 to 1 across the image and tau random within [0, 1].");

    py::class_<NerfTraining> training(m, "NerfTraining", "Options of NeRF training.");
    bind_training_images(training);
    training.def_property_readonly("dataset", [](NerfTraining& t) { return t.dataset; })
        .def_readwrite("random_bg_color", &NerfTraining::random_bg_color)
        .def_readwrite("n_images_for_training", &NerfTraining::n_images_for_training, "The first n views are used.")
        .def_readwrite("linear_colors", &NerfTraining::linear_colors)
        .def_readwrite("loss_type", &NerfTraining::loss_type)
        .def_readwrite("snap_to_pixel_centers", &NerfTraining::snap_to_pixel_centers)
        .def_readwrite("near_distance", &NerfTraining::near_distance, "NGP units.")
        .def_readwrite("density_grid_decay", &NerfTraining::density_grid_decay)
        .def_readwrite("occupancy_schedule", &NerfTraining::occupancy_schedule)
        .def_readwrite("train_mode", &NerfTraining::train_mode,
                       "Nerf compares a ray's composited colour with its target, Rfl each sample's, RflRelax at each "
                       "sample what a ray from there on would show. Nerf is the default (instant-ngp's is RflRelax).")
        .def_readwrite("sample_focal_plane_proportional_to_error",
                       &NerfTraining::sample_focal_plane_proportional_to_error,
                       "Half of the rays go where the images' errors are large.")
        .def_readwrite("sample_image_proportional_to_error", &NerfTraining::sample_image_proportional_to_error,
                       "Half of the rays go to images in proportion to their errors.")
        .def_readwrite("include_sharpness_in_error", &NerfTraining::include_sharpness_in_error,
                       "Errors count in proportion to the sharpness of the image where they are; with one of the "
                       "sample_* options.");
    bind_camera_learning(training);

    py::class_<NerfSettings> settings(m, "NerfSettings", "NeRF options beyond training.");
    settings
        .def_property_readonly(
            "training", [](NerfSettings& s) -> NerfTraining& { return s.training; },
            py::return_value_policy::reference_internal)
        .def_readwrite("rgb_activation", &NerfSettings::rgb_activation)
        .def_readwrite("density_activation", &NerfSettings::density_activation)
        .def_readwrite("render_min_transmittance", &NerfSettings::render_min_transmittance,
                       "Rays stop when less than this shines through.")
        .def_readwrite("rendering_min_transmittance", &NerfSettings::render_min_transmittance)
        .def_readwrite("cone_angle_constant", &NerfSettings::cone_angle_constant,
                       "Growth of the march step with distance; 0: constant steps.")
        .def_readwrite("sharpen", &NerfSettings::sharpen,
                       "How much load_training_data() sharpens images; 0: not. A scene's own `sharpen` replaces it.")
        .def_readwrite("render_gbuffer_hard_edges", &NerfSettings::render_gbuffer_hard_edges,
                       "Render modes Positions and Depth: of the sample of largest weight, not blended.")
        .def_readwrite("visualize_cameras", &NerfSettings::visualize_cameras, "Kept; only a window would use it.")
        .def(
            "find_closest_training_view",
            [](const NerfSettings& s, const FloatArray& pose) {
                return s.find_closest_training_view(to_camera(pose, "pose"));
            },
            py::arg("pose"), "Training view nearest to an NGP camera matrix (3,4), by position and forward axis.");
    bind_latents(m, training, settings);
}
