// The optimizer of grid entries: Adam and the moving average, entries without gradient left alone.
#pragma once

#include <ngp/cpu/encoding.h>
#include <ngp/cpu/kernels.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ngp::NGP_ISA {

// Elementwise square root.
template <typename V>
NGP_HD V square_root(V x) {
    if constexpr (sizeof(V) == sizeof(float)) {
        return std::sqrt(x);
    } else {
#if defined(__SSE2__)
        if constexpr (sizeof(V) == 16) return V(_mm_sqrt_ps(__m128(x)));
#endif
        for (size_t f = 0; f < sizeof(V) / sizeof(float); ++f) x[f] = std::sqrt(x[f]);
        return x;
    }
}
template <int F>
bool any_nonzero(Feature<F> x) {
    if constexpr (F == 1) {
        return x != 0.0f;
    } else {
#if defined(__SSE2__)
        if constexpr (F == 4) return _mm_movemask_ps(__m128(x != Feature<F>{})) != 0;
#endif
        bool any = false;
        for (int f = 0; f < F; ++f) any |= x[f] != 0.0f;
        return any;
    }
}

// One step of the entries that have a gradient; the features of an entry are updated at once.
template <int F>
void adam_entries(const AdamJob& job) {
    using V = Feature<F>;
    constexpr int record = F == 1 || F == 2 ? 8 : (F == 4 ? 16 : 32);
    const AdamTables& tables = job.tables;
    const AdamSettings& settings = job.settings;
    const bool ema = settings.ema_decay > 0.0f;
    auto at = [](const float* table, int n, uint32_t k) { return table[min_of(k, uint32_t(n - 1))]; };
    // Entries with a gradient are found a block at a time and their lines fetched ahead: the passes over memory, not
    // the arithmetic, are what this costs.
    constexpr int block = 64;
    for (int64_t first = 0; first < job.n_entries; first += block) {
        int touched[block], n_touched = 0;
        const int n = int(min_of<int64_t>(block, job.n_entries - first));
        for (int i = 0; i < n; ++i) {
            touched[n_touched] = i;
            const int hit = any_nonzero<F>(load<V>(job.gradient + (first + i) * F));
            if (hit) {
                __builtin_prefetch(job.state + (first + i) * record, 1);
                __builtin_prefetch(job.params + (first + i) * F, 1);
            }
            n_touched += hit;
        }
        for (int k = 0; k < n_touched; ++k) {
            const int64_t e = first + touched[k];
            float* const gradient = job.gradient + e * F;
            const V unscaled = load<V>(gradient);
            store(gradient, V{});
            float* const state = job.state + e * record;
            float* const params = job.params + e * F;
            uint32_t updates, averaged;
            memcpy(&updates, state + 3 * F, 4);
            memcpy(&averaged, state + 3 * F + 1, 4);
            ++updates;

            V w = load<V>(params), m = load<V>(state), v = load<V>(state + F);
            if (ema) { // bring the average up to the last step, with the weight as it was since
                const float carry = at(tables.ema_power, tables.n_ema_power, job.step - 1 - averaged);
                store(state + 2 * F, ema_carry(load<V>(state + 2 * F), w, carry));
            }
            adam_update(settings, at(tables.step_size, tables.n_step_size, updates), V(unscaled * job.gradient_scale),
                        w, m, v, [](V x) { return square_root(x); });
            store(params, w);
            store(state, m);
            store(state + F, v);
            if (ema) store(state + 2 * F, ema_carry(load<V>(state + 2 * F), w, settings.ema_decay));
            memcpy(state + 3 * F, &updates, 4);
            memcpy(state + 3 * F + 1, &job.step, 4);
        }
    }
}

} // namespace ngp::NGP_ISA
