// What the binding files share: NumPy conversions and the bind_* entry points.
#pragma once

#include <ngp/core/check.h>
#include <ngp/testbed.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <string>
#include <vector>

namespace py = pybind11;

// float32, C-contiguous; converts anything array-like.
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

inline FloatArray to_array(const ngp::CameraMatrix& m) {
    FloatArray a({3, 4});
    const ngp::Vec3 columns[4] = {m.right, m.down, m.forward, m.position};
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 4; ++c) a.mutable_at(r, c) = columns[c][r];
    return a;
}
inline FloatArray to_array(ngp::Vec3 v) {
    FloatArray a(3);
    for (int i = 0; i < 3; ++i) a.mutable_at(i) = v[i];
    return a;
}
inline FloatArray to_array(ngp::Vec2 v) {
    FloatArray a(2);
    a.mutable_at(0) = v.x, a.mutable_at(1) = v.y;
    return a;
}
inline FloatArray to_array(const ngp::Mat3& m) {
    FloatArray a({3, 3});
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 3; ++c) a.mutable_at(r, c) = m.c[c][r];
    return a;
}

// Raises ValueError for other shapes; -1 stands for any length.
inline void expect_shape(const std::vector<py::ssize_t>& shape, const std::vector<py::ssize_t>& expected,
                         const std::string& name) {
    bool same = shape.size() == expected.size();
    std::string wanted, got;
    for (size_t i = 0; i < expected.size(); ++i) {
        wanted += i ? ", " : "";
        wanted += expected[i] < 0 ? std::string("N") : std::to_string(expected[i]);
        same = same && (expected[i] < 0 || shape[i] == expected[i]);
    }
    for (size_t i = 0; i < shape.size(); ++i) {
        got += i ? ", " : "";
        got += std::to_string(shape[i]);
    }
    if (!same) throw py::value_error(name + " must have shape (" + wanted + "), not (" + got + ")");
}
inline void expect_shape(const py::array& a, const std::vector<py::ssize_t>& expected, const std::string& name) {
    expect_shape(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()), expected, name);
}

inline ngp::CameraMatrix to_camera(const FloatArray& a, const char* name) {
    if (a.ndim() != 2 || a.shape(0) < 3 || a.shape(0) > 4 || a.shape(1) != 4) expect_shape(a, {3, 4}, name);
    auto column = [&](int c) { return ngp::Vec3{a.at(0, c), a.at(1, c), a.at(2, c)}; };
    return {column(0), column(1), column(2), column(3)};
}
inline ngp::Vec3 to_vec3(const FloatArray& a, const char* name) {
    expect_shape(a, {3}, name);
    return {a.at(0), a.at(1), a.at(2)};
}
inline ngp::Vec2 to_vec2(const FloatArray& a, const char* name) {
    expect_shape(a, {2}, name);
    return {a.at(0), a.at(1)};
}
inline ngp::Mat3 to_mat3(const FloatArray& a, const char* name) {
    expect_shape(a, {3, 3}, name);
    ngp::Mat3 m;
    for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 3; ++c) m.c[c][r] = a.at(r, c);
    return m;
}

// Hands a vector's memory to NumPy.
inline py::array_t<float> take(std::vector<float>&& values, std::vector<py::ssize_t> shape) {
    auto* owned = new std::vector<float>(std::move(values));
    py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<float>*>(p); });
    return py::array_t<float>(std::move(shape), owned->data(), owner);
}

// (N, 3) float32 as vectors.
inline const ngp::Vec3* as_vectors(const FloatArray& a, const char* name) {
    static_assert(sizeof(ngp::Vec3) == 12);
    expect_shape(a, {-1, 3}, name);
    return reinterpret_cast<const ngp::Vec3*>(a.data());
}

void bind_arrays(py::module_& m);
void bind_images(py::module_& m);
void bind_training_images(py::class_<ngp::NerfTraining>& c);
void bind_types(py::module_& m);
void bind_nerf(py::module_& m);
// Per-image latents and light directions, on the classes of bind_nerf() and of bind_testbed().
void bind_latents(py::module_& m, py::class_<ngp::NerfTraining>& training, py::class_<ngp::NerfSettings>& settings);
void bind_latent_fits(py::class_<ngp::Testbed>& testbed);
void bind_rendering(py::module_& m); // before bind_testbed
void bind_testbed(py::module_& m);
void bind_display(py::class_<ngp::Testbed>& c);
void bind_stages(py::module_& m);
void bind_render_stages(py::module_& m);
void bind_model(py::module_& m);
