#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/core/parallel.h>
#include <ngp/stages/optimizer.h>

namespace ngp {

namespace {

constexpr int64_t entries_per_task = 1 << 14;

} // namespace

int optimizer_table_length(double decay) {
    return decay <= 0.0 || decay >= 1.0 ? 2 : std::min(1 << 16, int(-30.0 / std::log(decay)) + 2);
}

float decayed_learning_rate(const AdamSettings& s, uint32_t steps) {
    if (s.decay_base == 1.0f || steps < uint32_t(s.decay_start)) return s.learning_rate;
    const uint32_t times =
        s.decay_interval > 0 ? 1 + (steps - uint32_t(s.decay_start)) / uint32_t(s.decay_interval) : 1;
    return s.learning_rate * std::pow(s.decay_base, float(times));
}

void DenseOptimizer::reset(size_t n) {
    m.assign(n, 0.0f);
    v.assign(n, 0.0f);
    average.assign(n, 0.0f);
}

void NerfOptimizer::reset(const AdamSettings& settings, size_t n_matrix, const EncodingShape& encoding) {
    settings_ = settings;
    n_matrix_ = n_matrix;
    matrix_.reset(n_matrix);
    matrix_steps_ = encoding_steps_ = 0;
    grids_.clear();
    size_t state_begin = 0;
    for (int i = 0; i < encoding.n_parts; ++i) {
        const EncodingPart& part = encoding.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        const GridLevel& last = part.levels[part.n_levels - 1];
        const int64_t n = int64_t(last.offset) + last.entries;
        grids_.push_back({n_matrix + part.param_begin, state_begin, n, part.n_features});
        state_begin += size_t(n) * optimizer_record(part.n_features);
    }
    entries_.assign(state_begin, 0.0f);
    ema_power_.resize(optimizer_table_length(settings.ema_decay));
    for (size_t k = 0; k < ema_power_.size(); ++k)
        ema_power_[k] = float(std::pow(double(settings.ema_decay), double(k)));
}

void NerfOptimizer::fill_tables(float learning_rate) {
    step_size_.resize(optimizer_table_length(std::max(settings_.beta1, settings_.beta2)));
    for (size_t t = 0; t < step_size_.size(); ++t)
        step_size_[t] = float(bias_corrected(settings_, learning_rate, uint32_t(t)));
}

void NerfOptimizer::step(const NerfKernels& kernels, float* params, float* gradient, float gradient_scale,
                         uint32_t training_step, Trained trained) {
    const float learning_rate = decayed_learning_rate(settings_, training_step);
    fill_tables(learning_rate);
    if (trained.matrices) {
        const float step_size = float(bias_corrected(settings_, learning_rate, ++matrix_steps_));
        for (size_t i = 0; i < n_matrix_; ++i) {
            const float g = gradient[i] * gradient_scale + settings_.l2_reg * params[i];
            adam_update(settings_, step_size, g, params[i], matrix_.m[i], matrix_.v[i]);
            if (settings_.ema_decay > 0.0f)
                matrix_.average[i] = ema_carry(matrix_.average[i], params[i], settings_.ema_decay);
        }
    }
    std::fill_n(gradient, n_matrix_, 0.0f);
    if (!trained.encoding) {
        for (const GridSegment& g : grids_) std::fill_n(gradient + g.param_begin, g.n_entries * g.n_features, 0.0f);
        return;
    }
    ++encoding_steps_;

    AdamJob job;
    job.settings = settings_;
    job.tables = {step_size_.data(), int(step_size_.size()), ema_power_.data(), int(ema_power_.size())};
    job.gradient_scale = gradient_scale;
    job.step = encoding_steps_;
    for (const GridSegment& g : grids_)
        parallel_for_range(g.n_entries, entries_per_task, [&](int64_t begin, int64_t end, int) {
            AdamJob part = job;
            part.n_features = g.n_features;
            part.params = params + g.param_begin + begin * g.n_features;
            part.gradient = gradient + g.param_begin + begin * g.n_features;
            part.state = entries_.data() + g.state_begin + begin * optimizer_record(g.n_features);
            part.n_entries = end - begin;
            kernels.adam(part);
        });
}

void NerfOptimizer::averaged(const float* params, float* out) const {
    const bool ema = settings_.ema_decay > 0.0f;
    auto debias_of = [&](uint32_t steps) {
        return float(1.0 / (1.0 - std::pow(double(settings_.ema_decay), double(steps))));
    };
    if (!ema || matrix_steps_ == 0) {
        std::copy(params, params + n_matrix_, out);
    } else {
        const float debias = debias_of(matrix_steps_);
        for (size_t i = 0; i < n_matrix_; ++i) out[i] = matrix_.average[i] * debias;
    }
    const float debias = ema && encoding_steps_ > 0 ? debias_of(encoding_steps_) : 1.0f;
    for (const GridSegment& g : grids_)
        parallel_for_range(g.n_entries, entries_per_task, [&](int64_t begin, int64_t end, int) {
            const int F = g.n_features, record = optimizer_record(F);
            for (int64_t e = begin; e < end; ++e) {
                const float* state = entries_.data() + g.state_begin + e * record;
                const float* w = params + g.param_begin + e * F;
                float* to = out + g.param_begin + e * F;
                const uint32_t averaged = float_to_bits(state[3 * F + 1]);
                if (!ema || averaged == 0) { // no average, or that of a constant
                    std::copy(w, w + F, to);
                    continue;
                }
                const float power = ema_power_[std::min(size_t(encoding_steps_ - averaged), ema_power_.size() - 1)];
                for (int f = 0; f < F; ++f) to[f] = ema_carry(state[2 * F + f], w[f], power) * debias;
            }
        });
}

NerfOptimizer::State NerfOptimizer::state() const {
    return {matrix_steps_, encoding_steps_, matrix_.m, matrix_.v, matrix_.average, {entries_.begin(), entries_.end()}};
}

void NerfOptimizer::set_state(const State& s) {
    if (s.matrix_m.size() != n_matrix_ || s.matrix_v.size() != n_matrix_ || s.matrix_average.size() != n_matrix_ ||
        s.entries.size() != entries_.size())
        fail("the optimizer state has ", s.matrix_m.size(), " matrix weights and ", s.entries.size(),
             " grid values, but the network needs ", n_matrix_, " and ", entries_.size());
    matrix_steps_ = s.matrix_steps;
    encoding_steps_ = s.encoding_steps;
    matrix_.m = s.matrix_m;
    matrix_.v = s.matrix_v;
    matrix_.average = s.matrix_average;
    entries_.assign(s.entries.begin(), s.entries.end());
}

} // namespace ngp
