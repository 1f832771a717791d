// What training compares with a ray's target: the train modes (specification E.4), as both devices evaluate them.
//
// Samples i of a ray have colours c_i, opacities alpha_i and weights w_i; T is the transmittance behind a sample, and
// loss() that of one colour against the ray's target, summed over its channels.
//
//   Nerf      loss(sum w_i c_i + T_end background): the composited colour.
//   Rfl       sum w_i loss(c_i) + T_end loss(background): each sample by itself, as if the ray ended there. So
//             compositing adds up losses instead of colours.
//   RflRelax  at each sample, the loss of a ray that starts there, (1 - alpha_i) behind_i + alpha_i c_i, where behind_i
//             is the colour that compositing finds behind the sample. Its gradient takes the place of the ray's in the
//             formulas of Nerf; there is no function of which these are the gradients. Reported is Nerf's loss.
#pragma once

#include <ngp/formulas/alpha_blend.h>
#include <ngp/formulas/loss_terms.h>

namespace ngp {

enum class TrainMode : uint8_t { Nerf = 0, Rfl = 1, RflRelax = 2 };

struct Objective {
    TrainMode mode = TrainMode::Nerf;
    LossType loss = LossType::Huber;
};

// Loss of a colour, channel by channel, and its derivatives.
struct ColorLoss {
    Vec3 value, gradient;
};
NGP_HD ColorLoss color_loss(LossType type, Vec3 color, Vec3 target) {
    const LossTerm x = loss_term(type, color.x, target.x), y = loss_term(type, color.y, target.y),
                   z = loss_term(type, color.z, target.z);
    return {{x.value, y.value, z.value}, {x.gradient, y.gradient, z.gradient}};
}

// What compositing adds up for a colour, of a sample or of the background.
NGP_HD Vec3 blended_quantity(const Objective& o, Vec3 color, Vec3 target) {
    return o.mode == TrainMode::Rfl ? color_loss(o.loss, color, target).value : color;
}

// Loss of a ray, from what compositing added up, background included.
struct RayLoss {
    float value;   // as reported: mean over channels
    Vec3 gradient; // of the sum over channels, with respect to the composite
};
NGP_HD RayLoss ray_loss(const Objective& o, Vec3 composite, Vec3 target) {
    if (o.mode == TrainMode::Rfl) return {(composite.x + composite.y + composite.z) * (1.0f / 3.0f), splat3(1.0f)};
    const ColorLoss l = color_loss(o.loss, composite, target);
    return {(l.value.x + l.value.y + l.value.z) * (1.0f / 3.0f), l.gradient};
}

// Gradients at a sample: with respect to its colour, over its weight; and the one that blend_density_gradient() takes.
struct SampleGradients {
    Vec3 color, blend;
};
// `of_ray`: RayLoss::gradient. `after`: transmittance behind the sample. `suffix`: what compositing adds up behind it.
NGP_HD SampleGradients sample_gradients(const Objective& o, Vec3 of_ray, Vec3 color, Vec3 target, float alpha,
                                        float after, Vec3 suffix) {
    if (o.mode == TrainMode::Nerf) return {of_ray, of_ray};
    if (o.mode == TrainMode::Rfl) return {color_loss(o.loss, color, target).gradient, of_ray};
    constexpr float least = 1e-6f; // transmittance behind which nothing is seen
    const Vec3 behind = suffix / max_of(least, after);
    const Vec3 g = color_loss(o.loss, behind * (1.0f - alpha) + color * alpha, target).gradient;
    return {g, g};
}

} // namespace ngp
