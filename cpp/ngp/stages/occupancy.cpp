#include <algorithm>
#include <array>
#include <bit>
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

// OccupancyView::clearance of one cascade. Occupied space, and what is outside the grid, grows by a word in every
// direction at each step; the step in which it reaches a word is the word's clearance.
void find_clearances(const uint64_t* words, uint8_t* clearance) {
    constexpr int n = words_along_axis;
    static_assert(n == 32, "a row of words is the bits of an integer");
    std::array<uint32_t, n * n> reached{}, rows, planes; // [z][y], bit x
    for (uint32_t m = 0; m < uint32_t(occupancy_words); ++m) {
        const uint32_t x = gather_bits3(m), y = gather_bits3(m >> 1), z = gather_bits3(m >> 2);
        reached[z * n + y] |= uint32_t(words[m] != 0) << x;
        clearance[m] = words[m] != 0 ? 0 : max_clearance;
    }
    auto row_or_outside = [](const auto& from, int z, int y) {
        return unsigned(z) < unsigned(n) && unsigned(y) < unsigned(n) ? from[z * n + y] : ~0u;
    };
    for (int v = 1; v < max_clearance; ++v) {
        for (int i = 0; i < n * n; ++i) rows[i] = spread_along_row(reached[i]);
        for (int z = 0; z < n; ++z)
            for (int y = 0; y < n; ++y)
                planes[z * n + y] = row_or_outside(rows, z, y - 1) | rows[z * n + y] | row_or_outside(rows, z, y + 1);
        for (int z = 0; z < n; ++z)
            for (int y = 0; y < n; ++y) {
                const uint32_t now =
                    row_or_outside(planes, z - 1, y) | planes[z * n + y] | row_or_outside(planes, z + 1, y);
                for (uint32_t fresh = now & ~reached[z * n + y]; fresh; fresh &= fresh - 1)
                    clearance[morton3(uint32_t(std::countr_zero(fresh)), uint32_t(y), uint32_t(z))] = uint8_t(v);
                reached[z * n + y] = now;
            }
    }
}

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
    clearance_.assign(words_.size(), 0);
    for (int c = 0; c < n_cascades; ++c)
        find_clearances(words_.data() + c * occupancy_words, clearance_.data() + c * occupancy_words);
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
    parallel_for(n_cascades_, [&](int64_t c, int) {
        find_clearances(words_.data() + c * occupancy_words, clearance_.data() + c * occupancy_words);
    });
}

} // namespace ngp
