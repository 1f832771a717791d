// Stages: compositing and loss of a ray, forward and backward (specification E.2, E.4).
#pragma once

#include <ngp/formulas/activation.h>
#include <ngp/formulas/alpha_blend.h>
#include <ngp/stages/rays.h>
#include <ngp/stages/train_mode.h>

namespace ngp {

// Network outputs of one sample before activation, and gradients with respect to them.
struct RawSample {
    float rgb[3];
    float density;
};

// Supervision of a ray's expected distance, the sum of weight * t over its samples (E.4).
struct DepthSupervision {
    LossType loss = LossType::L1;
    float lambda = 0; // 0: off

    NGP_HD bool operator==(const DepthSupervision& o) const { return loss == o.loss && lambda == o.lambda; }
    NGP_HD bool applies_to(const TrainingRay& ray) const { return lambda != 0.0f && ray.distance > 0.0f; }
    // dL/d(expected distance) of a ray that it applies to.
    NGP_HD float gradient(const TrainingRay& ray, float expected) const {
        return lambda * loss_term(loss, expected, ray.distance).gradient;
    }
};

struct CompositeOptions {
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    Objective objective;
    float near_distance = 0.1f;
    float regularizer = 0;          // weight of the two density regularizers, relative to the loss summed over rays
    bool encourage_density = false; // while the grid is almost empty; not in the Rfl modes
    DepthSupervision depth;
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
    float* loss; // of ray i, mean over channels
    // Minus dL/d(target) of ray i, whose denominators are constants: for all but mode Rfl dL/d(composited colour).
    // Null: not wanted.
    Vec3* d_color = nullptr;

    NGP_HD void operator()(int64_t i) const {
        const TrainingRay& ray = rays[i];
        const RawSample* s = raw + i * ray_stride;
        const float* step = dt + i * ray_stride;
        const float* at = t + i * ray_stride;
        const bool supervised = options.depth.applies_to(ray);

        // The forward pass leaves each sample's colour and opacity where its gradient goes.
        RawSample* d = gradient + i * ray_stride;
        BlendState state;
        float distance = 0;
        int n = 0;
        bool stopped = false;
        while (n < count[i] && !stopped) {
            const Vec3 color = sample_color(options.rgb_activation, s[n]);
            const float alpha = segment_alpha(density_from_raw(options.density_activation, s[n].density), step[n]);
            d[n] = {{color.x, color.y, color.z}, alpha};
            const float weight = blend(state, blended_quantity(options.objective, color, ray.target), alpha);
            if (supervised) distance += weight * at[n];
            ++n;
            stopped = state.transmittance < training_min_transmittance;
        }
        Vec3 total = state.rgb;
        if (!stopped) total += blended_quantity(options.objective, ray.background, ray.target) * state.transmittance;
        count[i] = n;

        // Each channel of the loss counts as one; the reported value is their mean.
        const RayLoss of_ray = ray_loss(options.objective, total, ray.target);
        loss[i] = of_ray.value;

        const float g_distance = supervised ? options.depth.gradient(ray, distance) : 0.0f;

        const bool sums_losses = options.objective.mode == TrainMode::Rfl;
        if (d_color) {
            d_color[i] = of_ray.gradient;
            if (sums_losses) d_color[i] = stopped ? Vec3{} : background_gradient(ray) * state.transmittance;
        }

        BlendState again;
        float distance_upto = 0;
        for (int k = 0; k < n; ++k) {
            const Vec3 color{d[k].rgb[0], d[k].rgb[1], d[k].rgb[2]};
            const float alpha = d[k].density;
            const Vec3 quantity = blended_quantity(options.objective, color, ray.target);
            const float weight = blend(again, quantity, alpha);
            const Vec3 suffix = total - again.rgb;
            const SampleGradients g = sample_gradients(options.objective, of_ray.gradient, color, ray.target, alpha,
                                                       again.transmittance, suffix);
            if (d_color && sums_losses) d_color[i] += g.color * weight;
            for (int c = 0; c < 3; ++c) {
                d[k].rgb[c] = weight * g.color[c] * color_derivative(options.rgb_activation, s[k].rgb[c], color[c]);
                if (options.rgb_activation == Activation::Exponential) d[k].rgb[c] += max_of(0.0f, 1e-4f * s[k].rgb[c]);
            }
            const float derivative = density_derivative(options.density_activation, s[k].density);
            float along = blend_density_gradient(g.blend, again.transmittance, quantity, suffix);
            if (supervised) {
                distance_upto += weight * at[k];
                along += blend_distance_gradient(g_distance, again.transmittance, at[k], distance - distance_upto);
            }
            d[k].density = derivative * step[k] * along;
            if (options.encourage_density && s[k].density < 0.0f) d[k].density -= options.regularizer;
            if (at[k] < options.near_distance && s[k].density > -10.0f) d[k].density += options.regularizer;
        }
    }
    NGP_HD Vec3 background_gradient(const TrainingRay& ray) const {
        return color_loss(options.objective.loss, ray.background, ray.target).gradient;
    }
};

} // namespace ngp
