// Per-image latents and light directions.
#include "bindings.h"

#include <pybind11/stl.h>

using namespace ngp;

namespace {

Testbed& testbed_of(const NerfTraining& t) {
    if (!t.testbed) fail("these options belong to no Testbed");
    return *t.testbed;
}

FloatArray to_array(const std::vector<float>& v) { return FloatArray(py::ssize_t(v.size()), v.data()); }

// A LatentFit with the pixels that it refers to.
struct PictureFit : LatentFit {
    py::array owner;

    PictureFit(const py::array& picture, const FloatArray& pose, const FloatArray& focal_length,
               const FloatArray& principal_point, const Lens& lens) {
        const bool bytes = py::isinstance<py::array_t<uint8_t>>(picture);
        owner = bytes ? py::array(py::array_t<uint8_t, py::array::c_style>::ensure(picture))
                      : py::array(FloatArray::ensure(picture));
        if (owner.ndim() != 3 || owner.shape(2) < 3 || owner.shape(2) > 4)
            throw py::value_error("image must have shape (height, width, 3 or 4)");
        image.type = bytes ? PixelType::U8 : PixelType::F32;
        image.pixels = owner.data();
        image.height = int(owner.shape(0));
        image.width = int(owner.shape(1));
        image.channels = int(owner.shape(2));
        camera_to_world = to_camera(pose, "camera");
        camera.focal = to_vec2(focal_length, "focal_length");
        camera.principal = to_vec2(principal_point, "principal_point");
        camera.lens = lens;
        camera.width = image.width;
        camera.height = image.height;
    }
};

py::tuple fit_latent(Testbed& t, const PictureFit& fit) {
    LatentFitResult result;
    {
        py::gil_scoped_release release;
        result = t.fit_latent(fit, [] {
            py::gil_scoped_acquire gil;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            return true;
        });
    }
    return py::make_tuple(to_array(result.extra_dims), to_array(result.losses));
}

py::tuple latent_gradient(Testbed& t, const PictureFit& fit, const std::vector<float>& latent, int step) {
    std::vector<float> gradient;
    float loss = 0;
    {
        py::gil_scoped_release release;
        loss = t.latent_gradient(fit, latent, step, gradient);
    }
    return py::make_tuple(loss, to_array(gradient));
}

} // namespace

void bind_latents(py::module_& m, py::class_<NerfTraining>& training, py::class_<NerfSettings>& settings) {
    const auto optimized = [](const NerfTraining& t) { return t.optimize_extra_dims; };
    const char* doc = "Whether per-image latents are trained; on by itself where the data has some. Switching it on "
                      "without gives every view one of 16 values, and with them a new network.";
    training.def_property("optimize_extra_dims", optimized, &NerfTraining::set_optimize_extra_dims, doc)
        .def_property("optimize_per_image_latents", optimized, &NerfTraining::set_optimize_extra_dims, doc)
        .def(
            "get_extra_dims", [](const NerfTraining& t, int view) { return testbed_of(t).extra_dims(view); },
            py::arg("view"),
            "The latent of a training view, or (d + 1) / 2 of its light direction; empty in models without.")
        .def(
            "set_extra_dims",
            [](NerfTraining& t, int view, const std::vector<float>& v) { testbed_of(t).set_extra_dims(view, v); },
            py::arg("view"), py::arg("values"), "Sets the latent of a training view.");
    settings
        .def_readwrite("rendering_extra_dims_from_training_view",
                       &NerfSettings::rendering_extra_dims_from_training_view,
                       "Whose latent or light direction pictures get; -1: what set_rendering_extra_dims() said.")
        .def(
            "set_rendering_extra_dims_from_training_view",
            [](NerfSettings& s, int view) { testbed_of(s.training).set_rendering_extra_dims_from_training_view(view); },
            py::arg("view"),
            "Pictures get the latent or light direction of a training view, as it is when they are made.")
        .def(
            "set_rendering_extra_dims",
            [](NerfSettings& s, const std::vector<float>& v) { testbed_of(s.training).set_rendering_extra_dims(v); },
            py::arg("values"), "Pictures get this latent.")
        .def(
            "set_rendering_light_dir",
            [](NerfSettings& s, const FloatArray& d) {
                testbed_of(s.training).set_rendering_light_dir(to_vec3(d, "direction"));
            },
            py::arg("direction"), "Pictures get this light direction: (3,), world frame, of any length but zero.")
        .def(
            "get_rendering_extra_dims", [](NerfSettings& s) { return testbed_of(s.training).rendering_extra_dims(); },
            "The latent, or (d + 1) / 2 of the light direction, that pictures get; empty in models without.");
    py::class_<Appearance>(m, "Appearance",
                           "Whose appearance a picture has: a training view's, that of a latent (of a model with light "
                           "directions, (d + 1) / 2 in NGP space), or of a light (world frame); else what `nerf` says.")
        .def(py::init([](int image, std::vector<float> extra_dims, const std::optional<FloatArray>& light_dir) {
                 Appearance a{image, std::move(extra_dims), {}};
                 if (light_dir) a.light_dir = to_vec3(*light_dir, "light_direction");
                 return a;
             }),
             py::arg("image") = -1, py::arg("extra_dims") = std::vector<float>{}, py::arg("light_dir") = py::none());
    py::class_<PictureFit>(m, "LatentFit", "What Testbed.fit_latent() fits: a picture and how.")
        .def(py::init<const py::array&, const FloatArray&, const FloatArray&, const FloatArray&, const Lens&>(),
             py::arg("image"), py::arg("camera"), py::arg("focal_length"), py::arg("principal_point"), py::arg("lens"))
        .def_readwrite("pixels", &PictureFit::pixels, "y * width + x of the pixels that count; empty: all.")
        .def_readwrite("initial", &PictureFit::initial, "Latent to start from; empty: the mean of the training views'.")
        .def_readwrite("steps", &PictureFit::steps)
        .def_readwrite("rays_per_step", &PictureFit::rays_per_step)
        .def_readwrite("learning_rate", &PictureFit::learning_rate, "Of Adam; it falls linearly to zero.");
}

void bind_latent_fits(py::class_<Testbed>& testbed) {
    testbed
        .def_property_readonly("n_extra_dims", &Testbed::n_extra_dims,
                               "Length of latents, 3 of light directions, 0 in models without.")
        .def("fit_latent_to", fit_latent, py::arg("fit"), "(latent, loss of every step).")
        .def("latent_gradient", latent_gradient, py::arg("fit"), py::arg("latent"), py::arg("step"),
             "Loss of a fit's step for that latent, mean over rays and channels, and its gradient.");
}
