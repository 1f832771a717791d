// Activations between raw network outputs and colour or density (specification E.2), and their derivatives.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

enum class Activation : uint8_t { None = 0, ReLU = 1, Logistic = 2, Exponential = 3 };

NGP_HD float logistic(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Density per unit of NGP length. The exponential is not clamped; its gradient is.
NGP_HD float density_from_raw(Activation a, float raw) {
    switch (a) {
    case Activation::None: return raw;
    case Activation::ReLU: return max_of(raw, 0.0f);
    case Activation::Logistic: return logistic(raw);
    default: return std::exp(raw);
    }
}
NGP_HD float density_derivative(Activation a, float raw) {
    switch (a) {
    case Activation::None: return 1.0f;
    case Activation::ReLU: return raw > 0.0f ? 1.0f : 0.0f;
    case Activation::Logistic: {
        float s = logistic(raw);
        return s * (1.0f - s);
    }
    default: return std::exp(clamp_to(raw, -15.0f, 15.0f));
    }
}

NGP_HD float color_from_raw(Activation a, float raw) {
    switch (a) {
    case Activation::None: return raw;
    case Activation::ReLU: return max_of(raw, 0.0f);
    case Activation::Logistic: return logistic(raw);
    default: return std::exp(clamp_to(raw, -10.0f, 10.0f));
    }
}
// Derivative, given the activated value as well as the raw one.
NGP_HD float color_derivative(Activation a, float raw, float value) {
    switch (a) {
    case Activation::None: return 1.0f;
    case Activation::ReLU: return raw > 0.0f ? 1.0f : 0.0f;
    case Activation::Logistic: return value * (1.0f - value);
    default: return value; // not that of the clamp: samples beyond it must find back
    }
}

} // namespace ngp
