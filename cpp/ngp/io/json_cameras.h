// Learned corrections of cameras in a snapshot: poses in instant-ngp's keys (specification D.2), the rest, which it
// does not store, in ours. Internal: included by json_documents.cpp only.
#pragma once

#include <ngp/io/json_node.h>
#include <ngp/stages/camera_optimizer.h>

namespace ngp {
namespace {

template <int N>
Json write_adam(const AdamVector<N>& a) {
    return {{"iter", a.iter},
            {"first_moment", std::vector<float>(a.m, a.m + N)},
            {"second_moment", std::vector<float>(a.v, a.v + N)},
            {"variable", std::vector<float>(a.x, a.x + N)},
            {"learning_rate", 1e-4f}, // set anew for every update
            {"epsilon", 1e-8f},
            {"beta1", 0.9f},
            {"beta2", 0.99f}};
}
template <int N>
AdamVector<N> read_adam(const Node& n) {
    AdamVector<N> a;
    a.iter = uint32_t(n.at("iter").integer(0, UINT32_MAX));
    const std::pair<const char*, float*> vectors[3] = {
        {"first_moment", a.m}, {"second_moment", a.v}, {"variable", a.x}};
    for (const auto& [key, values] : vectors) {
        const Node v = n.at(key);
        v.expect_size(N);
        for (size_t i = 0; i < size_t(N); ++i) {
            values[i] = v.at(i).number();
            if (!std::isfinite(values[i])) fail(v.where(), ": value ", i, " is not finite");
        }
    }
    return a;
}

// One a view, as many as there are views.
Json write_adams(const std::vector<AdamVector<3>>& vectors, size_t n_views) {
    Json j = Json::array();
    for (size_t i = 0; i < n_views; ++i) j.push_back(write_adam(i < vectors.size() ? vectors[i] : AdamVector<3>{}));
    return j;
}
std::vector<AdamVector<3>> read_adams(const Node& parent, const char* key, size_t n_views) {
    std::vector<AdamVector<3>> vectors(n_views);
    if (!parent.has(key)) return vectors;
    const Node n = parent.at(key);
    n.expect_size(n_views);
    for (size_t i = 0; i < n_views; ++i) vectors[i] = read_adam<3>(n.at(i));
    return vectors;
}

template <typename T>
Json binary(const std::vector<T>& v) {
    const auto* p = reinterpret_cast<const uint8_t*>(v.data());
    return Json::binary(std::vector<uint8_t>(p, p + v.size() * sizeof(T)));
}
// `n` values of type T, or a complaint.
template <typename T>
std::vector<T> values(const Node& n, size_t count) {
    const std::vector<uint8_t> bytes = n.binary();
    if (bytes.size() != count * sizeof(T))
        fail(n.where(), ": has ", bytes.size(), " bytes, but ", count * sizeof(T), " are needed");
    std::vector<T> v(count);
    std::memcpy(v.data(), bytes.data(), bytes.size());
    return v;
}
template <typename T>
void expect_finite(const std::vector<T>& v, const std::string& where) {
    for (size_t i = 0; i < v.size(); ++i)
        if (!std::isfinite(v[i])) fail(where, ": value ", i, " is not finite");
}

// The part of `snapshot.pyngp`. With the sums of gradients that the next update waits for, if training is to resume.
Json write_corrections(const CameraCorrections& c, size_t n_views, bool with_sums) {
    Json j{{"exposure", write_adams(c.exposure, n_views)}, {"focal_length", write_adam(c.focal)}};
    if (!c.map.x.empty())
        j["distortion_map"] = {{"resolution", {c.map.width, c.map.height}},
                               {"iter", c.map.iter},
                               {"first_moment_binary", binary(c.map.m)},
                               {"second_moment_binary", binary(c.map.v)},
                               {"variable_binary", binary(c.map.x)}};
    if (with_sums) j["gradient_binary"] = binary(c.sums), j["gradient_steps"] = c.n_steps;
    return j;
}

void read_map(const Node& n, CameraCorrections::Map& map) {
    const Node resolution = n.at("resolution");
    resolution.expect_size(2);
    map.width = int(resolution.at(size_t(0)).integer(2, 4096));
    map.height = int(resolution.at(1).integer(2, 4096));
    map.iter = uint32_t(n.at("iter").integer(0, UINT32_MAX));
    const size_t size = size_t(map.width) * size_t(map.height) * 2;
    const std::pair<const char*, std::vector<float>*> vectors[3] = {
        {"first_moment_binary", &map.m}, {"second_moment_binary", &map.v}, {"variable_binary", &map.x}};
    for (const auto& [key, v] : vectors) {
        *v = values<float>(n.at(key), size);
        expect_finite(*v, n.where() + "." + key);
    }
}

// From `snapshot.nerf` and, if it is there, `snapshot.pyngp.cameras`.
CameraCorrections read_corrections(const Node& nerf, const Node* ours, size_t n_views) {
    CameraCorrections c;
    c.position = read_adams(nerf, "cam_pos_offset", n_views);
    c.rotation = read_adams(nerf, "cam_rot_offset", n_views);
    if (ours) {
        c.exposure = read_adams(*ours, "exposure", n_views);
        c.focal = read_adam<2>(ours->at("focal_length"));
        if (ours->has("distortion_map")) read_map(ours->at("distortion_map"), c.map);
        if (ours->has("gradient_binary")) {
            c.sums = values<double>(ours->at("gradient_binary"),
                                    CameraCorrections::sums_per_view * n_views + 2 + c.map.x.size());
            expect_finite(c.sums, ours->where() + ".gradient_binary");
            c.n_steps = ours->integer("gradient_steps", 0, 0, INT32_MAX);
        }
        return c;
    }
    const auto untouched = [](const std::vector<AdamVector<3>>& v) {
        return std::all_of(v.begin(), v.end(), [](const AdamVector<3>& a) { return a == AdamVector<3>{}; });
    };
    if (untouched(c.position) && untouched(c.rotation)) return {};
    c.exposure.resize(n_views);
    return c;
}

} // namespace
} // namespace ngp
