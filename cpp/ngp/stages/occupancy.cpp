#include <algorithm>
#include <ngp/core/check.h>
#include <ngp/core/parallel.h>
#include <ngp/stages/occupancy.h>

namespace ngp {

namespace {

// Runs a body over a range on the CPU.
template <typename Body>
void for_each_index(int64_t n, int64_t chunk, const Body& body) {
    parallel_for_range(n, chunk, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) body(i);
    });
}

constexpr uint32_t warmup_steps = 256;

} // namespace

OccupancyUpdate occupancy_update_at(OccupancySchedule schedule, uint32_t step, int n_cascades, int64_t batch_size) {
    OccupancyUpdate u;
    const int64_t all = int64_t(occupancy_cells) * n_cascades;
    u.initial = step == 0;
    if (schedule == OccupancySchedule::Specification || step == 0) {
        const uint32_t interval = std::clamp(step / 16, 1u, 16u);
        if (step % interval != 0) return {};
        u.uniform_samples = step < warmup_steps ? all : all / 4;
        u.occupied_samples = step < warmup_steps ? 0 : all / 4;
        return u;
    }
    // A third of a density evaluation per training sample: a tenth of the CPU's time over the first thousand steps, the
    // denser warm-up included, and less later.
    const uint32_t interval = step < warmup_steps ? 8 : 16;
    if (step % interval != 0) return {};
    const int64_t budget = std::min(all / 2, batch_size * interval / 3);
    u.uniform_samples = u.occupied_samples = budget / 2;
    // While surfaces form, cells that nobody looked at again would fall behind the rising mean and leave holes.
    if (step < warmup_steps) u.uniform_samples = std::max(u.uniform_samples, all / 8);
    u.decay_power = 2.5f; // updates are rarer, but sampled cells have seen several training samples
    u.around = true;
    return u;
}

void OccupancyGrid::resize(int n_cascades) {
    n_cascades_ = n_cascades;
    values_.assign(size_t(occupancy_cells) * n_cascades, 0.0f);
    fresh_.assign(values_.size(), 0.0f);
    words_.assign(values_.size() / 64, 0);
    blocks_.assign(words_.size() / 64, 0);
    mean_ = 0;
}

void OccupancyGrid::set_values(const float* values, size_t n) {
    NGP_CHECK_EQ(n, values_.size());
    std::copy(values, values + n, values_.begin());
    rebuild_bits();
}

void OccupancyGrid::mark_visible(const SceneView& scene, int n_images, bool initial) {
    constexpr int points = MarkVisiblePoint::points;
    std::vector<uint8_t> seen(size_t(points) * points * points);
    for (int cascade = 0; cascade < n_cascades_; ++cascade) {
        for_each_index(points * points, points, MarkVisiblePoints{{scene, n_images, cascade, seen.data()}});
        float* values = values_.data() + size_t(cascade) * occupancy_cells;
        for_each_index(occupancy_cells, 1 << 15, MarkVisibleCells{seen.data(), values, initial});
    }
}

void OccupancyGrid::apply(const uint32_t* cells, const float* thickness, int64_t n, float decay, bool sampled_only) {
    parallel_for_range(n, 1 << 14, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) store_max(&fresh_[cells[i]], thickness[i]);
    });
    for_each_index(int64_t(values_.size()), 1 << 16,
                   DecayOccupancy{values_.data(), fresh_.data(), decay, sampled_only});
    rebuild_bits();
}

void OccupancyGrid::rebuild_bits() {
    constexpr int64_t chunk = 1 << 16;
    std::vector<double> sums(occupancy_cells / chunk);
    parallel_for(int64_t(sums.size()), [&](int64_t task, int) {
        for (int64_t i = task * chunk; i < (task + 1) * chunk; ++i) sums[task] += std::max(values_[i], 0.0f);
    });
    double sum = 0;
    for (double s : sums) sum += s;
    mean_ = float(sum / occupancy_cells);

    const int64_t words_per_cascade = occupancy_cells / 64;
    const float threshold = std::min(occupancy_threshold, mean_);
    for_each_index(int64_t(words_.size()), 1 << 12, OccupancyBits{values_.data(), threshold, words_.data()});
    for (int c = 1; c < n_cascades_; ++c) {
        uint64_t* coarse = words_.data() + c * words_per_cascade;
        for_each_index(words_per_cascade / 8, 1 << 10, CoarsenOccupancy{coarse - words_per_cascade, coarse});
    }
    for (size_t i = 0; i < blocks_.size(); ++i) {
        uint64_t block = 0;
        for (size_t k = 0; k < 64; ++k) block |= uint64_t(words_[i * 64 + k] != 0) << k;
        blocks_[i] = block;
    }
}

} // namespace ngp
