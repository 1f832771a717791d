// Loss per channel and its gradient with respect to the prediction (specification E.4). Denominators of the relative
// losses are constants in the gradient.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

enum class LossType : uint8_t { L2 = 0, L1 = 1, Mape = 2, Smape = 3, Huber = 4, LogL1 = 5, RelativeL2 = 6 };

struct LossTerm {
    float value, gradient;
};

NGP_HD float sign_of(float d) { return d > 0.0f ? 1.0f : (d < 0.0f ? -1.0f : 0.0f); }

NGP_HD LossTerm loss_term(LossType type, float prediction, float target) {
    const float d = prediction - target, a = std::fabs(d);
    switch (type) {
    case LossType::L1: return {a, sign_of(d)};
    case LossType::Mape: {
        float s = 1.0f / (std::fabs(prediction) + 0.01f);
        return {a * s, sign_of(d) * s};
    }
    case LossType::Smape: {
        float s = 1.0f / (0.5f * (std::fabs(prediction) + std::fabs(target)) + 0.01f);
        return {a * s, sign_of(d) * s};
    }
    case LossType::Huber: // delta 0.1, then divided by 5: d^2 within, (|d| - 0.05)/5 beyond
        return a <= 0.1f ? LossTerm{d * d, 2.0f * d} : LossTerm{(a - 0.05f) * 0.2f, 0.2f * sign_of(d)};
    case LossType::LogL1: return {std::log1p(a), sign_of(d) / (1.0f + a)};
    case LossType::RelativeL2: {
        float s = 1.0f / (prediction * prediction + 0.01f);
        return {d * d * s, 2.0f * d * s};
    }
    default: return {d * d, 2.0f * d};
    }
}

} // namespace ngp
