// Per-image latents and light directions in snapshots (specification D.2). Internal: see json_node.h.
#pragma once

#include <ngp/io/json_node.h>
#include <ngp/io/snapshot.h>

namespace ngp {
namespace {

// nerf.extra_dims_opt: the latents of all views and Adam's state for them; arrays without elements where there are
// none.
Json write_latents(const ViewInputs& inputs, size_t n_views, float learning_rate) {
    Json list = Json::array();
    for (size_t i = 0; i < n_views; ++i) {
        Json latent{{"iter", 0},
                    {"learning_rate", learning_rate},
                    {"epsilon", view_inputs_epsilon},
                    {"beta1", view_inputs_beta1},
                    {"beta2", view_inputs_beta2}};
        const bool known = i < size_t(inputs.n_views());
        if (known) latent["iter"] = inputs.iterations[i];
        const auto row = [&](const std::vector<float>& all) {
            Json j = Json::array();
            for (size_t k = i * size_t(inputs.n_dims); known && k < (i + 1) * size_t(inputs.n_dims); ++k)
                j.push_back(all[k]);
            return j;
        };
        latent["first_moment"] = row(inputs.m);
        latent["second_moment"] = row(inputs.v);
        latent["variable"] = row(inputs.values);
        list.push_back(std::move(latent));
    }
    return list;
}

// Without views if the file has none.
ViewInputs read_latents(const Node& nerf, size_t n_views, int n_dims) {
    ViewInputs inputs;
    if (n_dims == 0 || !nerf.has("extra_dims_opt")) return inputs;
    const Node list = nerf.at("extra_dims_opt");
    list.expect_size(n_views);
    inputs.n_dims = n_dims;
    for (size_t i = 0; i < n_views; ++i) {
        const Node latent = list.at(i);
        inputs.iterations.push_back(uint32_t(latent.at("iter").integer(0, UINT32_MAX)));
        const auto row = [&](const char* key, std::vector<float>& all, bool negative) {
            const Node values = latent.at(key);
            if (values.size() != size_t(n_dims))
                fail(values.where(), ": must have ", n_dims, " elements, as dataset.n_extra_learnable_dims says, not ",
                     values.size());
            for (size_t k = 0; k < size_t(n_dims); ++k) {
                const float v = values.at(k).number();
                if (!std::isfinite(v) || (!negative && v < 0.0f))
                    fail(values.where(), "[", k, "]: is ", v, "; it must be finite",
                         negative ? "" : " and not negative");
                all.push_back(v);
            }
        };
        row("first_moment", inputs.m, true);
        row("second_moment", inputs.v, false);
        row("variable", inputs.values, true);
    }
    return inputs;
}

// pyngp.light_dirs: what the format has no key for.
Json write_light_dirs(const DatasetRecord& d) {
    Json list = Json::array();
    for (const ViewRecord& v : d.views) list.push_back({v.light_dir.x, v.light_dir.y, v.light_dir.z});
    return list;
}
void read_light_dirs(const Node& list, DatasetRecord& d) {
    list.expect_size(d.views.size());
    for (size_t i = 0; i < d.views.size(); ++i) d.views[i].light_dir = list.at(i).vec3();
    d.has_light_dirs = true;
}

} // namespace
} // namespace ngp
