// One Adam step of one parameter (Kingma & Ba 2015; constants of specification E.1) and the debiased exponential moving
// average of weights in the closed form that lets untouched parameters be skipped.
#pragma once

#include <ngp/formulas/hd.h>

namespace ngp {

struct AdamSettings {
    float learning_rate = 1e-2f; // base
    float beta1 = 0.9f;
    float beta2 = 0.99f;
    float epsilon = 1e-15f;
    float l2_reg = 1e-6f;    // MLP weights only: gradient += l2_reg * w
    float ema_decay = 0.95f; // 0: no average
    int decay_start = 20000, decay_interval = 10000;
    float decay_base = 0.33f; // 1: no decay
};

// A learning rate with Adam's bias correction for update t, counted from 1.
NGP_HD double bias_corrected(const AdamSettings& s, double learning_rate, uint32_t t) {
    return t == 0 ? learning_rate
                  : learning_rate * std::sqrt(1.0 - std::pow(double(s.beta2), double(t))) /
                        (1.0 - std::pow(double(s.beta1), double(t)));
}

// Updates moments and weight; `step_size` = lr * sqrt(1 - beta2^t) / (1 - beta1^t). V is float, or a vector of floats,
// and `root` its square root.
template <typename V, typename Root>
NGP_HD void adam_update(const AdamSettings& s, float step_size, V gradient, V& weight, V& m, V& v, Root root) {
    m = s.beta1 * m + (1.0f - s.beta1) * gradient;
    v = s.beta2 * v + (1.0f - s.beta2) * gradient * gradient;
    weight -= step_size * m / (root(v) + s.epsilon);
}
NGP_HD void adam_update(const AdamSettings& s, float step_size, float gradient, float& weight, float& m, float& v) {
    adam_update(s, step_size, gradient, weight, m, v, [](float x) { return std::sqrt(x); });
}

// The average w_n of E.1 obeys w_n (1-d^n) = e_n with e_n = d e_(n-1) + (1-d) w, e_0 = 0. While w stays constant for k
// steps, e_(n+k) = d^k e_n + (1 - d^k) w. `decay_k` = d^k.
template <typename V>
NGP_HD V ema_carry(V e, V w, float decay_k) {
    return decay_k * e + (1.0f - decay_k) * w;
}

} // namespace ngp
