#include "for_each.cuh"
#include "optimizer.cuh"

#include <algorithm>
#include <cmath>
#include <ngp/core/view.h>

namespace ngp::cuda {

namespace {

__device__ __forceinline__ float look_up(View<const float> table, uint32_t k) {
    return table[min_of(int64_t(k), table.size - 1)];
}

template <int N>
struct alignas(4 * N) Floats {
    float v[N];
};
template <>
struct alignas(16) Floats<8> {
    float v[8];
};

// What a step needs besides the arrays.
struct AdamCommon {
    AdamSettings settings;
    View<const float> step_size, ema_power; // by number of updates; by number of steps
    const StepState* state;
    // Gradients are those of the loss summed over rays, times loss_scale.
    __device__ float gradient_scale() const { return 1.0f / (loss_scale * float(max_of(1u, state->n_rays_used))); }
};

struct AdamEntries { // one grid's
    AdamCommon common;
    int64_t n;
    float* masters;
    half* halves;
    float *m, *v, *average;
    uint2* counters;
    float* gradient; // or
    FixedPoint* fixed_gradient;
};

__device__ __forceinline__ float finite_or_zero(float g) { return fabsf(g) <= FLT_MAX ? g : 0.0f; }

template <int F>
__global__ void __launch_bounds__(256) adam_entries_kernel(const __grid_constant__ AdamEntries job) {
    using V = Floats<F>;
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= job.n) return;
    V g;
    bool any = false;
    if (job.fixed_gradient) {
#pragma unroll
        for (int f = 0; f < F; ++f) {
            const FixedPoint units = job.fixed_gradient[e * F + f];
            g.v[f] = float(units) * fixed_point_unit;
            any |= units != 0;
        }
    } else {
        g = reinterpret_cast<const V*>(job.gradient)[e];
#pragma unroll
        for (int f = 0; f < F; ++f) any |= g.v[f] != 0.0f;
    }
    if (!any) return; // entries without a gradient keep everything
    if (job.fixed_gradient) {
#pragma unroll
        for (int f = 0; f < F; ++f) job.fixed_gradient[e * F + f] = 0;
    } else {
        reinterpret_cast<V*>(job.gradient)[e] = V{};
    }

    const AdamSettings& s = job.common.settings;
    const float scale = job.common.gradient_scale();
    const uint32_t step = job.common.state->encoding_steps + 1;
    const bool ema = s.ema_decay > 0.0f;
    uint2 counters = job.counters[e];
    ++counters.x;
    const float step_size = look_up(job.common.step_size, counters.x);
    V w = reinterpret_cast<const V*>(job.masters)[e], m = reinterpret_cast<const V*>(job.m)[e],
      v = reinterpret_cast<const V*>(job.v)[e], average{};
    if (ema) average = reinterpret_cast<const V*>(job.average)[e];
    // Brings the average up to the last step with the weight as it was since, then by one more step.
    const float carry = ema ? look_up(job.common.ema_power, step - 1 - counters.y) : 0.0f;
#pragma unroll
    for (int f = 0; f < F; ++f) {
        average.v[f] = ema_carry(average.v[f], w.v[f], carry);
        adam_update(s, step_size, finite_or_zero(g.v[f] * scale), w.v[f], m.v[f], v.v[f]);
        average.v[f] = ema_carry(average.v[f], w.v[f], s.ema_decay);
    }
    counters.y = step;
    reinterpret_cast<V*>(job.masters)[e] = w;
    reinterpret_cast<V*>(job.m)[e] = m;
    reinterpret_cast<V*>(job.v)[e] = v;
    if (ema) reinterpret_cast<V*>(job.average)[e] = average;
    job.counters[e] = counters;
#pragma unroll
    for (int f = 0; f < F; ++f) job.halves[e * F + f] = __float2half_rn(w.v[f]);
}

struct AdamMatrices {
    AdamCommon common;
    int n;
    float* masters;
    half* halves;
    float *m, *v, *average;
    const float* gradients; // one set a block of the backward pass
    int blocks;
};

constexpr int adam_slices = 8; // threads that share the sum over blocks, for each weight

__global__ void __launch_bounds__(32 * adam_slices) adam_matrices_kernel(const __grid_constant__ AdamMatrices job) {
    __shared__ float partial[adam_slices][32];
    const int column = threadIdx.x & 31, slice = threadIdx.x / 32, i = int(blockIdx.x) * 32 + column;
    float sum = 0;
    if (i < job.n)
        for (int b = slice; b < job.blocks; b += adam_slices) sum += job.gradients[int64_t(b) * job.n + i];
    partial[slice][column] = sum;
    __syncthreads();
    if (slice != 0 || i >= job.n) return;
    float g = 0;
    for (int k = 0; k < adam_slices; ++k) g += partial[k][column];
    const AdamSettings& s = job.common.settings;
    float w = job.masters[i], m = job.m[i], v = job.v[i];
    g = finite_or_zero(g * job.common.gradient_scale()) + s.l2_reg * w;
    adam_update(s, look_up(job.common.step_size, job.common.state->matrix_steps + 1), g, w, m, v);
    job.masters[i] = w;
    job.m[i] = m;
    job.v[i] = v;
    if (s.ema_decay > 0.0f) job.average[i] = ema_carry(job.average[i], w, s.ema_decay);
    job.halves[i] = __float2half_rn(w);
}

// Body: the debiased average of parameter i as a half and, if wanted, as a float.
struct AverageMatrix {
    const float *masters, *average;
    float debias; // 0: the weight itself
    half* halves;
    float* floats;

    NGP_HD void operator()(int64_t i) const {
        const float v = debias > 0.0f ? average[i] * debias : masters[i];
        if (halves) halves[i] = __float2half_rn(v);
        if (floats) floats[i] = v;
    }
};
struct AverageEntry {
    int n_features;
    const float *masters, *average;
    const uint2* counters;
    View<const float> ema_power;
    uint32_t steps;
    float debias; // 0: the weights themselves
    half* halves;
    float* floats;

    NGP_HD void operator()(int64_t e) const {
        const uint2 c = counters[e];
        const bool constant = debias == 0.0f || c.y == 0; // no average, or that of a constant
        const float power = constant ? 0.0f : ema_power[min_of(int64_t(steps - c.y), ema_power.size - 1)];
        for (int f = 0; f < n_features; ++f) {
            const int64_t i = e * n_features + f;
            const float v = constant ? masters[i] : ema_carry(average[i], masters[i], power) * debias;
            if (halves) halves[i] = __float2half_rn(v);
            if (floats) floats[i] = v;
        }
    }
};
struct ToHalves {
    const float* from;
    half* to;
    NGP_HD void operator()(int64_t i) const { to[i] = __float2half_rn(from[i]); }
};

// Powers of a decay below one are negligible (1e-13) from here on.
int table_length(double decay) {
    return decay <= 0.0 || decay >= 1.0 ? 2 : std::min(1 << 16, int(-30.0 / std::log(decay)) + 2);
}
float debias_of(const AdamSettings& s, uint32_t steps) {
    return s.ema_decay > 0.0f && steps > 0 ? float(1.0 / (1.0 - std::pow(double(s.ema_decay), double(steps)))) : 0.0f;
}

} // namespace

DeviceOptimizer::DeviceOptimizer(Context& context, const AdamSettings& settings, size_t n_matrix,
                                 const EncodingShape& encoding, int max_gradient_blocks, bool deterministic)
    : context_(context), settings_(settings), n_matrix_(n_matrix), n_encoding_(encoding.n_params),
      max_blocks_(max_gradient_blocks), deterministic_(deterministic) {
    for (int i = 0; i < encoding.n_parts; ++i) {
        const EncodingPart& part = encoding.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        const GridLevel& last = part.levels[part.n_levels - 1];
        const int64_t n = int64_t(last.offset) + last.entries;
        grids_.push_back({part.param_begin, n, n_entries_, part.n_features});
        n_entries_ += n;
    }
    masters_ = {context, int64_t(n_matrix_padded() + n_encoding_), "parameters"};
    halves_ = {context, int64_t(n_matrix_padded() + n_encoding_), "parameters"};
    m_ = {context, masters_.size(), "the optimizer"};
    v_ = {context, masters_.size(), "the optimizer"};
    if (settings.ema_decay > 0.0f) average_ = {context, masters_.size(), "averaged parameters"};
    counters_ = {context, n_entries_, "the optimizer"};
    weight_gradients_ = {context, int64_t(n_matrix) * max_blocks_, "weight gradients"};
    if (deterministic)
        fixed_gradient_ = {context, int64_t(n_encoding_), "gradients"};
    else
        gradient_ = {context, int64_t(n_encoding_), "gradients"};
    step_size_ = {context, table_length(std::max(settings.beta1, settings.beta2)), "the optimizer"};
    host_step_size_ = PinnedArray<float>(step_size_.size());
    std::vector<float> power(size_t(table_length(settings.ema_decay)));
    for (size_t k = 0; k < power.size(); ++k) power[k] = float(std::pow(double(settings.ema_decay), double(k)));
    ema_power_ = {context, int64_t(power.size()), "the optimizer"};
    ema_power_.upload(power);
    weight_gradients_.zero();
    gradient_.zero();
    fixed_gradient_.zero();
}

void DeviceOptimizer::set_masters(const std::vector<float>& canonical) {
    NGP_CHECK_EQ(canonical.size(), n_matrix_ + n_encoding_);
    masters_.upload(canonical.data(), int64_t(n_matrix_));
    masters_.upload(canonical.data() + n_matrix_, int64_t(n_encoding_), int64_t(n_matrix_padded()));
    for_each(context_.stream(), int64_t(n_matrix_), ToHalves{masters_.data(), halves_.data()});
    for_each(context_.stream(), int64_t(n_encoding_),
             ToHalves{masters_.data() + n_matrix_padded(), halves_.data() + n_matrix_padded()});
}

void DeviceOptimizer::set_params(const std::vector<float>& canonical) {
    set_masters(canonical);
    m_.zero();
    v_.zero();
    average_.zero();
    counters_.zero();
}

std::vector<float> DeviceOptimizer::params() const {
    std::vector<float> p(n_matrix_ + n_encoding_);
    masters_.download(p.data(), int64_t(n_matrix_));
    masters_.download(p.data() + n_matrix_, int64_t(n_encoding_), int64_t(n_matrix_padded()));
    return p;
}

void DeviceOptimizer::prepare(uint32_t step) {
    const float rate = decayed_learning_rate(settings_, step);
    if (rate == table_rate_) return;
    context_.wait(); // the last upload, and steps that read the table
    const double b1 = settings_.beta1, b2 = settings_.beta2;
    for (int64_t t = 0; t < host_step_size_.size(); ++t) {
        const double correction =
            t == 0 ? 1.0 : std::sqrt(1.0 - std::pow(b2, double(t))) / (1.0 - std::pow(b1, double(t)));
        host_step_size_.data()[t] = float(rate * correction);
    }
    step_size_.upload(host_step_size_.data(), host_step_size_.size());
    table_rate_ = rate;
}

void DeviceOptimizer::launch(const StepState* state, int blocks, NerfOptimizer::Trained trained) {
    const AdamCommon common{
        settings_, {step_size_.data(), step_size_.size()}, {ema_power_.data(), ema_power_.size()}, state};
    if (trained.matrices && n_matrix_ > 0) {
        const AdamMatrices job{common,    int(n_matrix_),  masters_.data(),          halves_.data(), m_.data(),
                               v_.data(), average_.data(), weight_gradients_.data(), blocks};
        adam_matrices_kernel<<<unsigned((n_matrix_ + 31) / 32), 32 * adam_slices, 0, context_.stream()>>>(job);
        check(cudaGetLastError(), "launch of the optimizer");
    }
    if (!trained.encoding) {
        gradient_.zero();
        fixed_gradient_.zero();
        return;
    }
    for (const Segment& g : grids_) {
        const size_t at = n_matrix_padded() + g.begin;
        const AdamEntries job{common,
                              g.n_entries,
                              masters_.data() + at,
                              halves_.data() + at,
                              m_.data() + at,
                              v_.data() + at,
                              average_.size() ? average_.data() + at : nullptr,
                              counters_.data() + g.first_entry,
                              table_gradient(g.begin),
                              fixed_table_gradient(g.begin)};
        const auto grid = unsigned((g.n_entries + 255) / 256);
        switch (g.n_features) {
        case 1: adam_entries_kernel<1><<<grid, 256, 0, context_.stream()>>>(job); break;
        case 2: adam_entries_kernel<2><<<grid, 256, 0, context_.stream()>>>(job); break;
        case 4: adam_entries_kernel<4><<<grid, 256, 0, context_.stream()>>>(job); break;
        default: adam_entries_kernel<8><<<grid, 256, 0, context_.stream()>>>(job); break;
        }
        check(cudaGetLastError(), "launch of the optimizer");
    }
}

void DeviceOptimizer::launch_averaged(uint32_t matrix_steps, uint32_t encoding_steps, half* matrices, half* encoding) {
    for_each(context_.stream(), int64_t(n_matrix_),
             AverageMatrix{masters_.data(), average_.data(), debias_of(settings_, matrix_steps), matrices, nullptr});
    for (const Segment& g : grids_) {
        const size_t at = n_matrix_padded() + g.begin;
        for_each(context_.stream(), g.n_entries,
                 AverageEntry{g.n_features,
                              masters_.data() + at,
                              average_.size() ? average_.data() + at : nullptr,
                              counters_.data() + g.first_entry,
                              {ema_power_.data(), ema_power_.size()},
                              encoding_steps,
                              debias_of(settings_, encoding_steps),
                              encoding + g.begin,
                              nullptr});
    }
}

std::vector<float> DeviceOptimizer::averaged(uint32_t matrix_steps, uint32_t encoding_steps) {
    DeviceArray<float> out(context_, int64_t(n_matrix_ + n_encoding_), "averaged parameters");
    for_each(context_.stream(), int64_t(n_matrix_),
             AverageMatrix{masters_.data(), average_.data(), debias_of(settings_, matrix_steps), nullptr, out.data()});
    for (const Segment& g : grids_) {
        const size_t at = n_matrix_padded() + g.begin;
        for_each(context_.stream(), g.n_entries,
                 AverageEntry{g.n_features,
                              masters_.data() + at,
                              average_.size() ? average_.data() + at : nullptr,
                              counters_.data() + g.first_entry,
                              {ema_power_.data(), ema_power_.size()},
                              encoding_steps,
                              debias_of(settings_, encoding_steps),
                              nullptr,
                              out.data() + n_matrix_ + g.begin});
    }
    return out.download();
}

NerfOptimizer::State DeviceOptimizer::state() const {
    NerfOptimizer::State s;
    auto matrix = [&](const DeviceArray<float>& from) {
        std::vector<float> v(n_matrix_, 0.0f);
        if (from.size()) from.download(v.data(), int64_t(n_matrix_));
        return v;
    };
    s.matrix_m = matrix(m_);
    s.matrix_v = matrix(v_);
    s.matrix_average = matrix(average_);
    const std::vector<uint2> counters = counters_.download();
    const auto begin = int64_t(n_matrix_padded());
    std::vector<float> m(n_encoding_), v(n_encoding_), average(n_encoding_, 0.0f);
    m_.download(m.data(), int64_t(n_encoding_), begin);
    v_.download(v.data(), int64_t(n_encoding_), begin);
    if (average_.size()) average_.download(average.data(), int64_t(n_encoding_), begin);
    for (const Segment& g : grids_) {
        const int F = g.n_features, record = optimizer_record(F);
        const size_t at = s.entries.size();
        s.entries.resize(at + size_t(g.n_entries) * record, 0.0f);
        for (int64_t e = 0; e < g.n_entries; ++e) {
            float* to = s.entries.data() + at + e * record;
            for (int f = 0; f < F; ++f) {
                to[f] = m[g.begin + e * F + f];
                to[F + f] = v[g.begin + e * F + f];
                to[2 * F + f] = average[g.begin + e * F + f];
            }
            const uint2 c = counters[g.first_entry + e];
            to[3 * F] = bits_to_float(c.x);
            to[3 * F + 1] = bits_to_float(c.y);
        }
    }
    return s;
}

void DeviceOptimizer::set_state(const NerfOptimizer::State& s) {
    size_t n_entries = 0;
    for (const Segment& g : grids_) n_entries += size_t(g.n_entries) * optimizer_record(g.n_features);
    if (s.matrix_m.size() != n_matrix_ || s.matrix_v.size() != n_matrix_ || s.matrix_average.size() != n_matrix_ ||
        s.entries.size() != n_entries)
        fail("the optimizer state has ", s.matrix_m.size(), " matrix weights and ", s.entries.size(),
             " grid values, but the network needs ", n_matrix_, " and ", n_entries);
    m_.upload(s.matrix_m.data(), int64_t(n_matrix_));
    v_.upload(s.matrix_v.data(), int64_t(n_matrix_));
    if (average_.size()) average_.upload(s.matrix_average.data(), int64_t(n_matrix_));
    std::vector<float> m(n_encoding_), v(n_encoding_), average(n_encoding_);
    std::vector<uint2> counters(static_cast<size_t>(n_entries_));
    const float* from = s.entries.data();
    for (const Segment& g : grids_) {
        const int F = g.n_features;
        for (int64_t e = 0; e < g.n_entries; ++e, from += optimizer_record(F)) {
            for (int f = 0; f < F; ++f) {
                m[g.begin + e * F + f] = from[f];
                v[g.begin + e * F + f] = from[F + f];
                average[g.begin + e * F + f] = from[2 * F + f];
            }
            counters[g.first_entry + e] = {float_to_bits(from[3 * F]), float_to_bits(from[3 * F + 1])};
        }
    }
    const auto begin = int64_t(n_matrix_padded());
    m_.upload(m.data(), int64_t(n_encoding_), begin);
    v_.upload(v.data(), int64_t(n_encoding_), begin);
    if (average_.size()) average_.upload(average.data(), int64_t(n_encoding_), begin);
    counters_.upload(counters);
}

std::vector<float> DeviceOptimizer::gradient(int blocks) const {
    std::vector<float> g(n_matrix_ + n_encoding_, 0.0f), sets(n_matrix_ * size_t(blocks));
    weight_gradients_.download(sets.data(), int64_t(sets.size()));
    for (int b = 0; b < blocks; ++b)
        for (size_t i = 0; i < n_matrix_; ++i) g[i] += sets[size_t(b) * n_matrix_ + i];
    if (deterministic_) {
        const std::vector<FixedPoint> units = fixed_gradient_.download();
        for (size_t i = 0; i < n_encoding_; ++i) g[n_matrix_ + i] = float(units[i]) * fixed_point_unit;
    } else {
        gradient_.download(g.data() + n_matrix_, int64_t(n_encoding_));
    }
    for (float& v : g) v *= 1.0f / loss_scale;
    return g;
}

void DeviceOptimizer::set_gradient(const std::vector<float>& gradient) {
    NGP_CHECK_EQ(gradient.size(), n_matrix_ + n_encoding_);
    std::vector<float> g(gradient);
    for (float& v : g) v *= loss_scale;
    weight_gradients_.zero();
    weight_gradients_.upload(g.data(), int64_t(n_matrix_));
    if (deterministic_) {
        std::vector<FixedPoint> units(n_encoding_);
        for (size_t i = 0; i < n_encoding_; ++i)
            units[i] = FixedPoint(std::llround(double(g[n_matrix_ + i]) / double(fixed_point_unit)));
        fixed_gradient_.upload(units);
    } else {
        gradient_.upload(g.data() + n_matrix_, int64_t(n_encoding_));
    }
}

} // namespace ngp::cuda
