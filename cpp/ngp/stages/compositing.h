// Stages: compositing and loss of a ray, forward and backward (specification E.2, E.4).
#pragma once

#include <ngp/formulas/activation.h>
#include <ngp/formulas/alpha_blend.h>
#include <ngp/formulas/loss_terms.h>
#include <ngp/stages/rays.h>

namespace ngp {

// Network outputs of one sample before activation, and gradients with respect to them.
struct RawSample {
    float rgb[3];
    float density;
};

struct CompositeOptions {
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    LossType loss = LossType::Huber;
    float near_distance = 0.1f;
    float regularizer = 0;          // weight of the two density regularizers, relative to the loss summed over rays
    bool encourage_density = false; // while the grid is almost empty
};

NGP_HD Vec3 sample_color(Activation a, const RawSample& s) {
    return {color_from_raw(a, s.rgb[0]), color_from_raw(a, s.rgb[1]), color_from_raw(a, s.rgb[2])};
}

// Body: composites ray i, evaluates the loss and writes dL/d(raw) of each sample that was reached. Gradients are those
// of the loss summed over rays; the optimizer divides by their number.
struct CompositeAndLoss {
    CompositeOptions options;
    const TrainingRay* rays;
    const RawSample* raw; // ray i has samples [i*ray_stride, i*ray_stride + count[i])
    const float* dt;
    const float* t; // distance along the ray
    int64_t ray_stride;
    int* count; // in: samples evaluated; out: samples that contribute
    RawSample* gradient;
    float* loss;             // of ray i, mean over channels
    Vec3* d_color = nullptr; // dL/d(composited colour) of ray i; null: not wanted

    NGP_HD void operator()(int64_t i) const {
        const TrainingRay& ray = rays[i];
        const RawSample* s = raw + i * ray_stride;
        const float* step = dt + i * ray_stride;

        // The forward pass leaves each sample's colour and opacity where its gradient goes.
        RawSample* d = gradient + i * ray_stride;
        BlendState state;
        int n = 0;
        bool stopped = false;
        while (n < count[i] && !stopped) {
            const Vec3 color = sample_color(options.rgb_activation, s[n]);
            const float alpha = segment_alpha(density_from_raw(options.density_activation, s[n].density), step[n]);
            d[n] = {{color.x, color.y, color.z}, alpha};
            blend(state, color, alpha);
            ++n;
            stopped = state.transmittance < training_min_transmittance;
        }
        Vec3 total = state.rgb;
        if (!stopped) total += ray.background * state.transmittance;
        count[i] = n;

        // Each channel of the loss counts as one; the reported value is their mean.
        const LossTerm l[3] = {loss_term(options.loss, total.x, ray.target.x),
                               loss_term(options.loss, total.y, ray.target.y),
                               loss_term(options.loss, total.z, ray.target.z)};
        loss[i] = (l[0].value + l[1].value + l[2].value) * (1.0f / 3.0f);
        const Vec3 g{l[0].gradient, l[1].gradient, l[2].gradient};
        if (d_color) d_color[i] = g;

        BlendState again;
        for (int k = 0; k < n; ++k) {
            const Vec3 color{d[k].rgb[0], d[k].rgb[1], d[k].rgb[2]};
            const float weight = blend(again, color, d[k].density);
            for (int c = 0; c < 3; ++c) {
                d[k].rgb[c] = weight * g[c] * color_derivative(options.rgb_activation, s[k].rgb[c], color[c]);
                if (options.rgb_activation == Activation::Exponential) d[k].rgb[c] += max_of(0.0f, 1e-4f * s[k].rgb[c]);
            }
            const float derivative = density_derivative(options.density_activation, s[k].density);
            d[k].density =
                derivative * step[k] * blend_density_gradient(g, again.transmittance, color, total - again.rgb);
            if (options.encourage_density && s[k].density < 0.0f) d[k].density -= options.regularizer;
            if (t[i * ray_stride + k] < options.near_distance && s[k].density > -10.0f)
                d[k].density += options.regularizer;
        }
    }
};

} // namespace ngp
