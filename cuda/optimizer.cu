#include "for_each.cuh"
#include "optimizer.cuh"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ngp/core/view.h>

namespace ngp::cuda {

namespace {

NGP_HD float look_up(View<const float> table, uint32_t k) { return table[min_of(int64_t(k), table.size - 1)]; }

// What a step needs besides the parameters.
struct AdamCommon {
    AdamSettings settings;
    View<const float> step_size, ema_power; // by number of updates; by number of steps
    const StepState* state;

    // Gradients are those of the loss summed over rays, times loss_scale.
    __device__ float gradient_scale() const { return 1.0f / (loss_scale * float(max_of(1u, state->n_rays_used))); }
};

// Towards zero, so that a moment can decay to it: rounded to nearest, 0.9 times one of the smallest halves is that half
// again, and once the second moment has decayed on, such a remainder moves the weight without bound. Gradients as large
// as the largest half in these units don't occur in training, but must not become infinite.
NGP_HD half stored_moment(float m) {
    constexpr float largest = 65504.0f;
    return __float2half_rz(clamp_to(m * (1.0f / first_moment_unit), -largest, largest));
}

// What is not finite, or whose square would not be, is left out.
__device__ __forceinline__ float finite_or_zero(float g) { return fabsf(g) <= 1e18f ? g : 0.0f; }

// --- table entries -----------------------------------------------------------------------------------------------

// F values side by side, moved at once.
template <typename T, int F>
struct alignas(sizeof(T) * F <= 16 ? sizeof(T) * F : 16) Features {
    T v[F];
};

// Reads an entry's gradient and, if there is any, zeroes it.
template <int F>
__device__ __forceinline__ bool take_gradient(const TableGradient& table, int64_t e, float (&g)[F]) {
    bool any = false;
    if (table.fixed) {
        auto* at = reinterpret_cast<Features<FixedPoint, F>*>(table.fixed) + e;
        const Features<FixedPoint, F> units = *at;
#pragma unroll
        for (int f = 0; f < F; ++f) {
            g[f] = float(units.v[f]) * fixed_point_unit;
            any |= units.v[f] != 0;
        }
        if (any) *at = {};
    } else if (e < table.n_float_entries) {
        auto* at = reinterpret_cast<Features<float, F>*>(table.floats) + e;
        const Features<float, F> sum = *at;
#pragma unroll
        for (int f = 0; f < F; ++f) {
            g[f] = sum.v[f];
            any |= g[f] != 0.0f;
        }
        if (any) *at = {};
    } else {
        auto* at = reinterpret_cast<Features<half, F>*>(table.halves) + (e - table.n_float_entries);
        const Features<half, F> sum = *at;
#pragma unroll
        for (int f = 0; f < F; ++f) {
            g[f] = __half2float(sum.v[f]);
            any |= g[f] != 0.0f;
        }
        if (any) memset(static_cast<void*>(at), 0, sizeof *at);
    }
    return any;
}

template <int F>
struct AdamEntries {
    AdamCommon common;
    int64_t n;
    EntryRecord<F>* records;
    half* halves;
    TableGradient gradient;
};

template <int F>
__global__ void __launch_bounds__(256) adam_entries_kernel(const __grid_constant__ AdamEntries<F> job) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= job.n) return;
    float g[F];
    if (!take_gradient(job.gradient, e, g)) return; // entries without a gradient keep everything
    const AdamSettings& s = job.common.settings;
    const float scale = job.common.gradient_scale();
    const uint32_t step = job.common.state->encoding_steps + 1;
    const bool ema = s.ema_decay > 0.0f;
    EntryRecord<F> r = job.records[e];
    ++r.updates;
    const float step_size = look_up(job.common.step_size, r.updates);
    // Brings the average up to the last step with the weight as it was since, then by one more step.
    const float carry = ema ? look_up(job.common.ema_power, step - 1 - r.averaged) : 0.0f;
    Features<half, F> halves;
#pragma unroll
    for (int f = 0; f < F; ++f) {
        float m = __half2float(r.first[f]) * first_moment_unit;
        r.average[f] = ema_carry(r.average[f], r.weight[f], carry);
        adam_update(s, step_size, finite_or_zero(g[f] * scale), r.weight[f], m, r.second[f]);
        r.average[f] = ema_carry(r.average[f], r.weight[f], s.ema_decay);
        r.first[f] = stored_moment(m);
        halves.v[f] = __float2half_rn(r.weight[f]);
    }
    r.averaged = step;
    job.records[e] = r;
    reinterpret_cast<Features<half, F>*>(job.halves)[e] = halves;
}

// Body: the average of entry e's weights, debiased; as halves, as floats, or both.
template <int F>
struct AverageEntry {
    const EntryRecord<F>* records;
    View<const float> ema_power;
    uint32_t steps;
    float debias; // 0: the weights themselves
    half* halves;
    float* floats;

    NGP_HD void operator()(int64_t e) const {
        const EntryRecord<F>& r = records[e];
        const bool constant = debias == 0.0f || r.averaged == 0; // no average, or that of a constant
        const float power = constant ? 0.0f : look_up(ema_power, steps - r.averaged);
        for (int f = 0; f < F; ++f) {
            const float v = constant ? r.weight[f] : ema_carry(r.average[f], r.weight[f], power) * debias;
            if (halves) halves[e * F + f] = __float2half_rn(v);
            if (floats) floats[e * F + f] = v;
        }
    }
};

// Body: sets entry e's weights.
template <int F>
struct SetWeights {
    const float* from;
    EntryRecord<F>* records;
    half* halves;

    NGP_HD void operator()(int64_t e) const {
        for (int f = 0; f < F; ++f) {
            records[e].weight[f] = from[e * F + f];
            halves[e * F + f] = __float2half_rn(from[e * F + f]);
        }
    }
};

// --- matrices ----------------------------------------------------------------------------------------------------

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

// Body: the debiased average of weight i.
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
struct ToHalves {
    const float* from;
    half* to;
    NGP_HD void operator()(int64_t i) const { to[i] = __float2half_rn(from[i]); }
};

float debias_of(const AdamSettings& s, uint32_t steps) {
    return s.ema_decay > 0.0f && steps > 0 ? float(1.0 / (1.0 - std::pow(double(s.ema_decay), double(steps)))) : 0.0f;
}

template <typename Body>
void for_features(int n_features, const Body& body) {
    switch (n_features) {
    case 1: body.template operator()<1>(); break;
    case 2: body.template operator()<2>(); break;
    case 4: body.template operator()<4>(); break;
    default: body.template operator()<8>(); break;
    }
}

} // namespace

DeviceOptimizer::DeviceOptimizer(Context& context, const AdamSettings& settings, size_t n_matrix,
                                 const EncodingShape& encoding, int max_gradient_blocks, bool deterministic)
    : context_(context), settings_(settings), n_matrix_(n_matrix), deterministic_(deterministic) {
    for (int i = 0; i < encoding.n_parts; ++i) {
        const EncodingPart& part = encoding.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        NGP_CHECK_EQ(n_encoding_, size_t(0));
        const GridLevel& last = part.levels[part.n_levels - 1];
        n_entries_ = int64_t(last.offset) + last.entries;
        n_features_ = part.n_features;
        n_encoding_ = size_t(n_entries_) * size_t(n_features_);
        // Single halves can't be added as fast as pairs.
        while (n_float_levels_ < part.n_levels && (n_features_ == 1 || !part.levels[n_float_levels_].hashed))
            n_float_entries_ += part.levels[n_float_levels_++].entries;
    }
    NGP_CHECK_EQ(n_encoding_, size_t(encoding.n_params));
    const auto n = int64_t(n_matrix);
    halves_ = {context, int64_t(n_matrix_padded() + n_encoding_), "parameters"};
    matrix_weight_ = {context, n, "parameters"};
    matrix_first_ = {context, n, "the optimizer"};
    matrix_second_ = {context, n, "the optimizer"};
    matrix_average_ = {context, n, "averaged parameters"};
    for_features(n_features_,
                 [&]<int F>() { records_ = {context, n_entries_ * int64_t(sizeof(EntryRecord<F>)), "the optimizer"}; });
    weight_gradients_ = {context, n * max_gradient_blocks, "weight gradients"};
    if (deterministic) {
        fixed_gradient_ = {context, int64_t(n_encoding_), "gradients"};
    } else {
        float_gradient_ = {context, float_params(), "gradients"};
        half_gradient_ = {context, int64_t(n_encoding_) - float_params(), "gradients"};
    }
    step_size_ = {context, optimizer_table_length(std::max(settings.beta1, settings.beta2)), "the optimizer"};
    std::vector<float> power(size_t(optimizer_table_length(settings.ema_decay)));
    for (size_t k = 0; k < power.size(); ++k) power[k] = float(std::pow(double(settings.ema_decay), double(k)));
    ema_power_ = {context, int64_t(power.size()), "the optimizer"};
    ema_power_.upload(power);
    weight_gradients_.zero();
    zero_table_gradient();
}

void DeviceOptimizer::zero_table_gradient() {
    float_gradient_.zero();
    half_gradient_.zero();
    fixed_gradient_.zero();
}

TableGradient DeviceOptimizer::table_gradient() const {
    return {fixed_gradient_.data(), float_gradient_.data(), half_gradient_.data(), n_float_entries_, n_float_levels_};
}

void DeviceOptimizer::set_masters(const std::vector<float>& canonical) {
    NGP_CHECK_EQ(canonical.size(), n_matrix_ + n_encoding_);
    matrix_weight_.upload(canonical.data(), int64_t(n_matrix_));
    for_each(context_.stream(), int64_t(n_matrix_), ToHalves{matrix_weight_.data(), halves_.data()});
    DeviceArray<float> weights(context_, int64_t(n_encoding_), "parameters");
    weights.upload(canonical.data() + n_matrix_, int64_t(n_encoding_));
    for_features(n_features_, [&]<int F>() {
        for_each(context_.stream(), n_entries_,
                 SetWeights<F>{weights.data(), reinterpret_cast<EntryRecord<F>*>(records_.data()),
                               halves_.data() + n_matrix_padded()});
    });
    context_.wait(); // before `weights` goes
}

void DeviceOptimizer::set_params(const std::vector<float>& canonical) {
    matrix_first_.zero();
    matrix_second_.zero();
    matrix_average_.zero();
    records_.zero();
    set_masters(canonical);
}

std::vector<float> DeviceOptimizer::params() const {
    std::vector<float> p(n_matrix_ + n_encoding_);
    matrix_weight_.download(p.data(), int64_t(n_matrix_));
    const std::vector<char> records = records_.download();
    for_features(n_features_, [&]<int F>() {
        const auto* r = reinterpret_cast<const EntryRecord<F>*>(records.data());
        for (int64_t e = 0; e < n_entries_; ++e) std::copy_n(r[e].weight, F, p.data() + n_matrix_ + size_t(e * F));
    });
    return p;
}

void DeviceOptimizer::prepare(uint32_t step) {
    const float rate = decayed_learning_rate(settings_, step);
    if (rate == table_rate_) return;
    std::vector<float> sizes(size_t(step_size_.size()));
    for (size_t t = 0; t < sizes.size(); ++t) sizes[t] = float(bias_corrected(settings_, rate, uint32_t(t)));
    step_size_.upload(sizes); // in the order of the stream: after the steps before
    table_rate_ = rate;
}

void DeviceOptimizer::launch(const StepState* state, int blocks, NerfOptimizer::Trained trained) {
    const AdamCommon common{
        settings_, {step_size_.data(), step_size_.size()}, {ema_power_.data(), ema_power_.size()}, state};
    if (trained.matrices && n_matrix_ > 0) {
        const AdamMatrices job{common,
                               int(n_matrix_),
                               matrix_weight_.data(),
                               halves_.data(),
                               matrix_first_.data(),
                               matrix_second_.data(),
                               matrix_average_.data(),
                               weight_gradients_.data(),
                               blocks};
        adam_matrices_kernel<<<unsigned((n_matrix_ + 31) / 32), 32 * adam_slices, 0, context_.stream()>>>(job);
        check(cudaGetLastError(), "launch of the optimizer");
    }
    if (!trained.encoding) {
        zero_table_gradient();
        return;
    }
    if (n_entries_ == 0) return;
    for_features(n_features_, [&]<int F>() {
        const AdamEntries<F> job{common, n_entries_, reinterpret_cast<EntryRecord<F>*>(records_.data()),
                                 halves_.data() + n_matrix_padded(), table_gradient()};
        adam_entries_kernel<F><<<unsigned((n_entries_ + 255) / 256), 256, 0, context_.stream()>>>(job);
    });
    check(cudaGetLastError(), "launch of the optimizer");
}

void DeviceOptimizer::launch_averaged(uint32_t matrix_steps, uint32_t encoding_steps, const Averages& to) {
    for_each(context_.stream(), int64_t(n_matrix_),
             AverageMatrix{matrix_weight_.data(), matrix_average_.data(), debias_of(settings_, matrix_steps),
                           to.matrix_halves, to.matrix_floats});
    for_features(n_features_, [&]<int F>() {
        for_each(context_.stream(), n_entries_,
                 AverageEntry<F>{reinterpret_cast<const EntryRecord<F>*>(records_.data()),
                                 {ema_power_.data(), ema_power_.size()},
                                 encoding_steps,
                                 debias_of(settings_, encoding_steps),
                                 to.encoding_halves,
                                 to.encoding_floats});
    });
}

std::vector<float> DeviceOptimizer::averaged(uint32_t matrix_steps, uint32_t encoding_steps) {
    DeviceArray<float> out(context_, int64_t(n_matrix_ + n_encoding_), "averaged parameters");
    launch_averaged(matrix_steps, encoding_steps, {nullptr, nullptr, out.data(), out.data() + n_matrix_});
    return out.download();
}

NerfOptimizer::State DeviceOptimizer::state() const {
    NerfOptimizer::State s;
    s.matrix_m = matrix_first_.download();
    s.matrix_v = matrix_second_.download();
    s.matrix_average = matrix_average_.download();
    const std::vector<char> records = records_.download();
    for_features(n_features_, [&]<int F>() {
        const int record = optimizer_record(F);
        s.entries.assign(size_t(n_entries_) * size_t(record), 0.0f);
        const auto* r = reinterpret_cast<const EntryRecord<F>*>(records.data());
        for (int64_t e = 0; e < n_entries_; ++e) {
            float* to = s.entries.data() + e * record;
            for (int f = 0; f < F; ++f) to[f] = __half2float(r[e].first[f]) * first_moment_unit;
            std::copy_n(r[e].second, F, to + F);
            std::copy_n(r[e].average, F, to + 2 * F);
            to[3 * F] = bits_to_float(r[e].updates);
            to[3 * F + 1] = bits_to_float(r[e].averaged);
        }
    });
    return s;
}

void DeviceOptimizer::set_state(const NerfOptimizer::State& s) {
    const size_t record = size_t(optimizer_record(n_features_));
    if (s.matrix_m.size() != n_matrix_ || s.matrix_v.size() != n_matrix_ || s.matrix_average.size() != n_matrix_ ||
        s.entries.size() != size_t(n_entries_) * record)
        fail("the optimizer state has ", s.matrix_m.size(), " matrix weights and ", s.entries.size(),
             " grid values, but the network needs ", n_matrix_, " and ", size_t(n_entries_) * record);
    matrix_first_.upload(s.matrix_m);
    matrix_second_.upload(s.matrix_v);
    matrix_average_.upload(s.matrix_average);
    std::vector<char> records = records_.download(); // keeps the weights
    for_features(n_features_, [&]<int F>() {
        auto* r = reinterpret_cast<EntryRecord<F>*>(records.data());
        for (int64_t e = 0; e < n_entries_; ++e) {
            const float* from = s.entries.data() + size_t(e) * record;
            for (int f = 0; f < F; ++f) r[e].first[f] = stored_moment(from[f]);
            std::copy_n(from + F, F, r[e].second);
            std::copy_n(from + 2 * F, F, r[e].average);
            r[e].updates = float_to_bits(from[3 * F]);
            r[e].averaged = float_to_bits(from[3 * F + 1]);
        }
    });
    records_.upload(records);
}

std::vector<float> DeviceOptimizer::gradient(int blocks) const {
    std::vector<float> g(n_matrix_ + n_encoding_, 0.0f), sets(n_matrix_ * size_t(blocks));
    weight_gradients_.download(sets.data(), int64_t(sets.size()));
    for (int b = 0; b < blocks; ++b)
        for (size_t i = 0; i < n_matrix_; ++i) g[i] += sets[size_t(b) * n_matrix_ + i];
    float* table = g.data() + n_matrix_;
    if (deterministic_) {
        const std::vector<FixedPoint> units = fixed_gradient_.download();
        for (size_t i = 0; i < n_encoding_; ++i) table[i] = float(units[i]) * fixed_point_unit;
    } else {
        float_gradient_.download(table, float_params());
        const std::vector<half> halves = half_gradient_.download();
        for (size_t i = 0; i < halves.size(); ++i) table[size_t(float_params()) + i] = __half2float(halves[i]);
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
    const float* table = g.data() + n_matrix_;
    if (deterministic_) {
        std::vector<FixedPoint> units(n_encoding_);
        for (size_t i = 0; i < n_encoding_; ++i)
            units[i] = FixedPoint(std::llround(double(table[i]) / double(fixed_point_unit)));
        fixed_gradient_.upload(units);
    } else {
        float_gradient_.upload(table, float_params());
        std::vector<half> halves(n_encoding_ - size_t(float_params()));
        for (size_t i = 0; i < halves.size(); ++i) halves[i] = __float2half_rn(table[size_t(float_params()) + i]);
        half_gradient_.upload(halves);
    }
}

} // namespace ngp::cuda
