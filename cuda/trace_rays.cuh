// Tracing a step's rays: evaluating and compositing at once, over a network policy (model.cuh).
//
// A group of lanes (a power of two of them, within a warp) takes a ray, and each lane one of the ray's next samples;
// the warp evaluates those of all its groups together; the group composites its own in order. It goes on until the ray
// is opaque or has no more samples, and takes another. So what is evaluated is what contributes, but for a few samples
// behind the one that ends the ray. Groups are as large as the device's lanes allow: few rays, with many samples each
// in the fog of the first steps, still fill it.
#pragma once

#include "training.cuh"

namespace ngp::cuda {

struct TraceRaysJob {
    ModelView model;
    ScratchView scratch;
    StepView step;
    OccupancyView occupancy;
    Stepping stepping;
    Objective objective;
    DepthSupervision depth;
    bool random_levels; // of rays
};

// A ray, the same in all lanes of its group.
struct GroupRay {
    RayMarcher march;            // behind the samples of the span
    RaySpan span;                // of samples that were marched ahead
    uint32_t ray = 0, count = 0; // samples so far
    BlendState blend;
    float distance = 0; // sum of weight * t, where depths are supervised
    uint32_t fits = 1;  // its samples found room
};

template <typename Net, bool RandomLevels>
class RayTracer {
  public:
    __device__ RayTracer(const TraceRaysJob& job, Net& net)
        : job_(job), net_(net), state_(*job.step.state), lane_(threadIdx.x & 31) {
        const uint32_t lanes = gridDim.x * blockDim.x, hits = state_.n_hits;
        group_ = 1;
        while (group_ < 32 && uint64_t(hits) * uint32_t(group_) * 2 <= lanes) group_ *= 2;
        set_group(max_of(group_, smallest_group));
    }

    __device__ void run() {
        for (;;) {
            refill();
            regroup();
            if (!__any_sync(whole, active_)) break;
            float t = 0, dt = 0;
            const uint32_t k = ray_.count + uint32_t(in_group_);
            if (active_ && k < ray_.span.count) {
                t = job_.step.times[ray_.span.first + k];
                dt = job_.stepping.step_length(t);
            }
            if (active_ && ray_.count >= ray_.span.count) march(t, dt);
            const bool sampled = dt > 0.0f;
            const Vec3 p = sampled ? ray_.march.position(t) : splat3(0.5f);
            const int row = job_.model.extra_dims && active_ ? job_.step.rays[ray_.ray].view : 0;
            if constexpr (RandomLevels)
                net_.set_max_level(job_.random_levels && active_ ? job_.step.rays[ray_.ray].max_level : 1.0f);
            const RawSample raw = evaluate_with(net_, job_.model.unit(p), ray_.march.direction, row);
            composite(sampled, p, t, dt, raw);
        }
        evaluated_ = warp_sum(evaluated_);
        if (lane_ == 0 && evaluated_) atomicAdd(&state_.n_evaluated, evaluated_);
    }

  private:
    static constexpr uint32_t whole = 0xffffffffu;
    static constexpr int smallest_group = 4;
    __device__ void set_group(int size) {
        group_ = size;
        in_group_ = lane_ % group_;
        of_group_ = group_ == 32 ? whole : ((1u << group_) - 1u) << (lane_ - in_group_);
    }

    // Gives idle groups the next rays.
    __device__ void refill() {
        const uint32_t wanting = __ballot_sync(whole, !active_ && !exhausted_ && in_group_ == 0);
        if (!wanting) return;
        const auto n = uint32_t(__popc(wanting));
        uint32_t at = 0;
        if (lane_ == 0) at = atomicAdd(&state_.hit_ticket, n);
        at = __shfl_sync(whole, at, 0);
        const uint32_t n_hits = state_.n_hits, next = at + n; // the next ray that anyone can get
        if (!active_) {
            const int leader = lane_ - in_group_;
            at += uint32_t(__popc(wanting & ((1u << leader) - 1u)));
            if (at < n_hits) {
                ray_ = {};
                ray_.ray = job_.step.hits[at];
                ray_.march = job_.step.rays[ray_.ray].march;
                ray_.span = job_.step.spans[ray_.ray];
                active_ = true;
            }
        }
        exhausted_ = next >= n_hits;
    }

    // When there are no more rays to take and few are left, their groups grow: long rays decide when the kernel ends.
    __device__ void regroup() {
        if (!exhausted_) return;
        while (group_ < 32) {
            const uint32_t leaders = __ballot_sync(whole, active_ && in_group_ == 0);
            const int n = __popc(leaders);
            if (n == 0 || n * group_ * 2 > 32) return;
            set_group(2 * group_);
            const int index = lane_ / group_; // of the lane's new group: it takes over the index-th ray
            active_ = index < n;
            int from = 0;
            for (uint32_t left = leaders, k = 0; left; left &= left - 1, ++k)
                if (int(k) == index) from = __ffs(int(left)) - 1;
            constexpr int words = sizeof(GroupRay) / 4;
            static_assert(words * 4 == sizeof(GroupRay));
            uint32_t state[words];
            memcpy(state, &ray_, sizeof state);
#pragma unroll
            for (int w = 0; w < words; ++w) state[w] = __shfl_sync(whole, state[w], from);
            memcpy(&ray_, state, sizeof state);
        }
    }

    // The next samples of a group that has used up those that were marched ahead; this lane's is at t, if there is one.
    __device__ void march(float& t, float& dt) {
        RayMarcher& m = ray_.march;
        for (int k = 0; k < group_; ++k) {
            const bool more = ray_.count + uint32_t(k) < uint32_t(max_samples_per_ray);
            const float step = more ? m.next(job_.occupancy, job_.stepping, true) : 0.0f;
            if (step == 0.0f) {
                m.t_end = 0.0f; // nothing more on this ray
                return;
            }
            if (k == in_group_) {
                t = m.t;
                dt = step;
            }
            m.t += step;
        }
    }

    __device__ void composite(bool sampled, Vec3 p, float t, float dt, const RawSample& raw) {
        const float sigma = density_from_raw(job_.model.density_activation, raw.density);
        const float alpha = sampled ? segment_alpha(sigma, dt) : 0.0f;
        Vec3 color = sample_color(job_.model.rgb_activation, raw);
        if (job_.objective.mode == TrainMode::Rfl && active_) // its loss is what is added up
            color = blended_quantity(job_.objective, color, job_.step.rays[ray_.ray].target);
        evaluated_ += sampled;

        // One sample after the other, so that the result does not depend on the size of groups. Samples behind the one
        // that makes the ray opaque don't contribute.
        bool stopped = false, contributes = false;
        SampleBlend own{};
        float own_distance = 0;
        for (int k = 0; k < group_; ++k) {
            const float a = __shfl_sync(whole, alpha, k, group_);
            const Vec3 c{__shfl_sync(whole, color.x, k, group_), __shfl_sync(whole, color.y, k, group_),
                         __shfl_sync(whole, color.z, k, group_)};
            const float at = job_.step.distances ? __shfl_sync(whole, t, k, group_) : 0.0f;
            if (stopped) continue;
            const float before = ray_.blend.transmittance;
            const float weight = blend(ray_.blend, c, a);
            if (job_.step.distances) ray_.distance += weight * at;
            if (k == in_group_) {
                own = {ray_.blend.rgb, before};
                own_distance = ray_.distance;
                contributes = sampled;
            }
            stopped = a > 0.0f && ray_.blend.transmittance < training_min_transmittance;
        }
        // Samples behind an opaque one are not visits: how many of them there are depends on the size of groups.
        if (contributes && job_.step.visited) visit_cell(job_.step.visited, p, dt, job_.occupancy.max_cascade, sigma);
        const uint32_t contributing = __ballot_sync(whole, contributes);
        keep(contributes, contributing, t, dt, raw, own, own_distance);
        ray_.count += uint32_t(__popc(contributing & of_group_));
        const bool ends = active_ && (stopped || (ray_.count >= ray_.span.count && ray_.march.t_end == 0.0f));
        if (ends && in_group_ == 0) {
            const TrainingRay& ray = job_.step.rays[ray_.ray];
            job_.step.outcomes[ray_.ray] =
                ray_outcome(job_.objective, ray, ray_.blend.rgb, stopped ? 0.0f : ray_.blend.transmittance,
                            ray_.fits ? ray_.count : unused_ray);
            if (job_.step.distances)
                job_.step.ray_distances[ray_.ray] = {
                    ray_.distance, job_.depth.applies_to(ray) ? job_.depth.gradient(ray, ray_.distance) : 0.0f};
        }
        if (ends) active_ = false;
    }

    __device__ void keep(bool contributes, uint32_t contributing, float t, float dt, const RawSample& raw,
                         const SampleBlend& blend, float distance) {
        if (!contributing) return;
        const StepView& step = job_.step;
        uint32_t base = 0;
        if (lane_ == 0) base = atomicAdd(&state_.n_samples, uint32_t(__popc(contributing)));
        base = __shfl_sync(whole, base, 0);
        const uint32_t below = contributing & ((1u << lane_) - 1u);
        const uint32_t at = base + uint32_t(__popc(below));
        const bool fits = int64_t(at) < step.sample_capacity;
        if (contributes && fits) {
            const int leader = lane_ - in_group_;
            const uint32_t index = ray_.count + uint32_t(__popc(below >> leader));
            step.samples[at] = {t, dt, ray_.ray, index};
            step.raw[at] = raw;
            step.blends[at] = blend;
            if (step.distances) step.distances[at] = distance;
            if constexpr (requires { net_.store_encoding(step.encodings); })
                net_.store_encoding(step.encodings + int64_t(at) * fused_encoded);
        }
        const uint32_t lost = __ballot_sync(whole, contributes && !fits);
        if (lost & of_group_) ray_.fits = 0;
    }

    const TraceRaysJob& job_;
    Net& net_;
    StepState& state_;
    int lane_, group_, in_group_;
    uint32_t of_group_; // lanes
    GroupRay ray_;
    bool active_ = false, exhausted_ = false;
    uint32_t evaluated_ = 0;
};

// RandomLevels: a kernel for steps with them, of a policy that can cut levels (model.cuh).
template <typename Net, bool RandomLevels>
__global__ void __launch_bounds__(Net::threads, 512 / Net::threads)
    trace_rays_kernel(const __grid_constant__ TraceRaysJob job) {
    extern __shared__ __align__(128) char shared[];
    Net net(job.model, shared, job.scratch.data);
    RayTracer<Net, RandomLevels>(job, net).run();
}

} // namespace ngp::cuda
