#include "images.h"

#include <algorithm>
#include <cmath>

using namespace ngp;

namespace {

// Arrays of an image; C++ may let go of them without the GIL.
struct Owners {
    std::vector<py::array> arrays;
    std::shared_ptr<SharedMemory> memory; // on a device

    static std::shared_ptr<Owners> make() {
        return {new Owners, [](Owners* p) {
                    py::gil_scoped_acquire gil;
                    delete p;
                }};
    }
};

template <typename T>
using Contiguous = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
const T* keep(Owners& owners, const py::array& array) {
    owners.arrays.push_back(Contiguous<T>::ensure(array));
    return static_cast<const T*>(owners.arrays.back().data());
}

bool is_half(const py::array& a) { return a.dtype().kind() == 'f' && a.itemsize() == 2; }

py::array array_of(const py::object& values, const std::string& name) {
    py::array array = py::array::ensure(values);
    if (!array) throw py::value_error(name + " must be an array in host memory");
    return array;
}

// Halves as they are, without a type that pybind11 knows.
const void* keep_halves(Owners& owners, const py::array& array) {
    owners.arrays.push_back(py::module_::import("numpy").attr("ascontiguousarray")(array));
    return owners.arrays.back().data();
}

void set_pixels(ImageView& v, Owners& owners, const py::object& pixels, const std::string& name) {
    std::vector<py::ssize_t> shape;
    if (py::isinstance<DeviceArray>(pixels)) {
        const auto& a = pixels.cast<const DeviceArray&>();
        v.pixels = a.data;
        v.type = a.is_bytes ? PixelType::U8 : PixelType::F32;
        v.device = a.memory->device();
        shape = a.shape;
        owners.memory = a.memory;
    } else {
        const py::array array = array_of(pixels, name + ": pixels");
        const bool bytes = py::isinstance<py::array_t<uint8_t>>(array), halves = is_half(array);
        if (!bytes && array.dtype().kind() != 'f')
            throw py::value_error(name + ": pixels must be uint8 (sRGB) or float (linear)");
        v.type = bytes ? PixelType::U8 : halves ? PixelType::F16 : PixelType::F32;
        v.pixels = bytes    ? static_cast<const void*>(keep<uint8_t>(owners, array))
                   : halves ? keep_halves(owners, array)
                            : keep<float>(owners, array);
        shape.assign(array.shape(), array.shape() + array.ndim());
    }
    if (shape.size() != 3 || (shape[2] != 3 && shape[2] != 4))
        throw py::value_error(name + ": pixels must have shape (height, width, 3 or 4)");
    v.height = int(shape[0]);
    v.width = int(shape[1]);
    v.channels = int(shape[2]);
}

// What is to lie beside the pixels, of their size.
py::array plane(const ImageView& v, const py::object& values, const std::string& name) {
    py::array array = array_of(values, name);
    if (array.ndim() < 2 || array.shape(0) != v.height || array.shape(1) != v.width)
        throw py::value_error(name + " must be of the image's size, " + std::to_string(v.width) + "x" +
                              std::to_string(v.height) + " pixels");
    return array;
}

void set_mask(ImageView& v, Owners& owners, const py::object& mask, const std::string& name) {
    const py::array array = plane(v, mask, name + ": the mask");
    const char kind = array.dtype().kind();
    if (array.ndim() != 2 || (kind != 'b' && !(kind == 'u' && array.itemsize() == 1)))
        throw py::value_error(name + ": the mask must be bool or uint8 of shape (height, width)");
    v.mask = keep<uint8_t>(owners, array);
}

void set_depth(ImageView& v, Owners& owners, const py::object& depth, float scale, const std::string& name) {
    const py::array array = plane(v, depth, name + ": the depth map");
    const char kind = array.dtype().kind();
    const bool shorts = kind == 'u' && array.itemsize() == 2;
    if (array.ndim() != 2 || (!shorts && kind != 'f'))
        throw py::value_error(name + ": the depth map must be uint16 or float of shape (height, width)");
    v.depth_type = shorts ? DepthType::U16 : DepthType::F32;
    v.depth = shorts ? static_cast<const void*>(keep<uint16_t>(owners, array)) : keep<float>(owners, array);
    v.depth_scale = scale;
}

void set_rays(ImageView& v, Owners& owners, const py::object& rays, const std::string& name) {
    const py::array array = plane(v, rays, name + ": the rays");
    if (array.ndim() != 3 || array.shape(2) != floats_per_ray || array.dtype().kind() != 'f')
        throw py::value_error(name + ": the rays must be floats of shape (height, width, 6)");
    v.rays = keep<float>(owners, array);
}

TrainingImage make_image(const py::object& pixels, bool premultiplied, const py::object& mask, const py::object& depth,
                         float depth_scale, const py::object& rays, const std::string& name) {
    const auto owners = Owners::make();
    ImageView v;
    set_pixels(v, *owners, pixels, name);
    v.premultiplied = premultiplied;
    if (!mask.is_none()) set_mask(v, *owners, mask, name);
    if (!depth.is_none()) set_depth(v, *owners, depth, depth_scale, name);
    if (!rays.is_none()) set_rays(v, *owners, rays, name);
    return {v, owners};
}

py::object copy_of(const py::object& values) { return py::module_::import("numpy").attr("array")(values); }

// A.10. Copies: callers reuse their arrays for the next image.
void set_image(NerfTraining& t, int frame_idx, const py::object& img, const py::object& depth_img, float depth_scale) {
    const std::string name = "set_image(" + std::to_string(frame_idx) + ")";
    const FloatArray pixels = FloatArray::ensure(copy_of(img));
    if (!pixels) throw py::value_error(name + ": img must be a float array of shape (height, width, 4)");
    for (py::ssize_t i = 0; i < pixels.size(); ++i)
        if (!std::isfinite(pixels.data()[i])) throw py::value_error(name + ": img holds values that are not finite");
    py::object depth = py::none();
    if (!depth_img.is_none() && depth_scale >= 0) {
        const FloatArray values = FloatArray::ensure(copy_of(depth_img));
        if (!values) throw py::value_error(name + ": depth_img must be a float array of shape (height, width)");
        if (values.size() > 0) depth = values; // B6: instant-ngp reads beyond an empty one
    }
    const TrainingImage image =
        make_image(pixels, true, py::none(), depth, std::max(0.0f, depth_scale), py::none(), name);
    t.dataset->set_image(frame_idx, image.view, image.owner);
}

// A.10: relative principal points are given below zero, pixels above.
float principal_of(float c, int size, const char* name) {
    if (c < 0) return -c;
    if (size == 0)
        fail(name, " is in pixels, of an image that is not there yet; give -", name, "/size, or the image first");
    return c / float(size);
}

void set_intrinsics(NerfTraining& t, int frame_idx, float fx, float fy, float cx, float cy, float k1, float k2,
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
    t.dataset->set_camera(frame_idx, camera);
}

void set_extrinsics(NerfTraining& t, int frame_idx, const FloatArray& camera_to_world, bool convert_to_ngp) {
    t.dataset->set_pose(frame_idx, to_camera(camera_to_world, "camera_to_world"), convert_to_ngp);
}

} // namespace

TrainingImage image_of(const py::object& pixels, const std::string& name) {
    if (py::isinstance<TrainingImage>(pixels)) return pixels.cast<TrainingImage>();
    return make_image(pixels, false, py::none(), py::none(), 1.0f, py::none(), name);
}

void bind_images(py::module_& m) {
    py::class_<TrainingImage>(m, "TrainingImage", "Pixels of a training view, and what lies beside them.")
        .def(py::init(&make_image), py::arg("pixels"), py::kw_only(), py::arg("premultiplied") = false,
             py::arg("mask") = py::none(), py::arg("depth") = py::none(), py::arg("depth_scale") = 1.0f,
             py::arg("rays") = py::none(), py::arg("name") = "image",
             "pixels: uint8 sRGB, or float16 or float32 linear, (H,W,3|4), straight alpha unless `premultiplied` "
             "(floats only); kept without a copy if contiguous; or a DeviceArray. mask: (H,W) bool or uint8; training "
             "leaves out pixels where it is not 0. depth: (H,W) uint16 or float along the camera's forward axis; what "
             "is not above 0 is unknown; depth_scale: from its values to NGP units. rays: (H,W,6) float, NGP space: "
             "origin and direction of each pixel's ray, in place of the camera's. `name` begins errors.");
}

void bind_training_images(py::class_<NerfTraining>& c) {
    c.def_readwrite("depth_supervision_lambda", &NerfTraining::depth_supervision_lambda,
                    "Weight of the loss of depths, where images have depth maps; 0: off.")
        .def_readwrite("depth_loss_type", &NerfTraining::depth_loss_type, "Loss of depths, in NGP units along the ray.")
        .def("set_image", set_image, py::arg("frame_idx"), py::arg("img"), py::arg("depth_img") = py::none(),
             py::arg("depth_scale") = 1.0f,
             "Replaces a training image by a copy of img: (H,W,4) float, linear, premultiplied by alpha, of any size. "
             "depth_img: (H,W) float along the camera's forward axis, not above 0: unknown; empty or None, or a "
             "negative "
             "depth_scale: no depth. depth_scale: from its values to NGP units, so the dataset's scale times the size "
             "of "
             "their unit in world units. Training goes on with it from the next step on.")
        .def("set_camera_intrinsics", set_intrinsics, py::arg("frame_idx"), py::arg("fx") = 0.0f, py::arg("fy") = 0.0f,
             py::arg("cx") = -0.5f, py::arg("cy") = -0.5f, py::arg("k1") = 0.0f, py::arg("k2") = 0.0f,
             py::arg("p1") = 0.0f, py::arg("p2") = 0.0f, py::arg("k3") = 0.0f, py::arg("k4") = 0.0f,
             py::arg("is_fisheye") = false,
             "Focal length in pixels (one axis may stand for both); principal point in pixels, or, below zero, minus "
             "its "
             "part of the image's size; OpenCV's distortion, or that of its fisheye model.")
        .def("set_camera_extrinsics", set_extrinsics, py::arg("frame_idx"), py::arg("camera_to_world"),
             py::arg("convert_to_ngp") = true,
             "camera_to_world: (3,4), in the input's frame (OpenGL axes, world units), or, without convert_to_ngp, in "
             "NGP "
             "space.");
}
