// Stage: occupancy grid (specification D.5, E.3). A cascaded 128^3 grid of optical thickness per minimal step, from
// whose bits marching decides what to skip. Bodies here run on every device; OccupancyGrid is the CPU's container.
#pragma once

#include <ngp/core/buffer.h>
#include <ngp/formulas/half.h>
#include <ngp/formulas/march.h>
#include <ngp/formulas/rng.h>
#include <ngp/stages/scene.h>
#include <vector>

namespace ngp {

constexpr float occupancy_threshold = 0.01f; // optical thickness of a minimal step
constexpr float never_seen = -1.0f;

// How much one update does. All counts are fixed in advance: a clock would break reproducibility.
struct OccupancyUpdate {
    int64_t uniform_samples = 0;  // over all cells that a camera sees
    int64_t occupied_samples = 0; // in cells above the threshold, or around them
    float decay = 0.95f;          // of a cell's value: the option to the power of decay_power
    float decay_power = 1.0f;
    bool initial = false; // decide first which cells any camera sees
    bool around = false;  // occupied samples reach into the neighbouring cells
};

// Steps between updates and their size. `Specification` follows E.3, which visits cells several times an update and
// lets all of them decay. `Budgeted` bounds the cost to a fixed number of density evaluations per training sample, for
// devices on which E.3's would outweigh training. So that few visits suffice, only cells that were sampled decay, the
// densities of training samples count as visits (they come for free, where rays go), and half of the others look around
// occupied cells, where surfaces are incomplete.
enum class OccupancySchedule : uint8_t { Specification = 0, Budgeted = 1 };
OccupancyUpdate occupancy_update_at(OccupancySchedule schedule, uint32_t step, int n_cascades, int64_t batch_size);

NGP_HD Vec3 occupancy_cell_corner(uint32_t x, uint32_t y, uint32_t z, int cascade) {
    const float length = float(1 << cascade);
    auto at = [&](uint32_t i) { return (float(i) / float(occupancy_resolution) - 0.5f) * length + 0.5f; };
    return {at(x), at(y), at(z)};
}

// Body: sample i of an update draws a cell and a random point in it.
struct DrawOccupancySample {
    const float* values;
    int n_cascades;
    uint32_t update; // number of updates so far
    int64_t n;       // samples of this kind in this update
    float threshold; // retry while the cell's value is not above it
    Pcg32 rng;       // state of this kind and update
    bool around;     // the point may lie in a neighbour of the drawn cell
    Vec3* position;
    uint32_t* cell; // cascade * occupancy_cells + Morton code

    NGP_HD void operator()(int64_t i) const {
        Pcg32 r = rng;
        r.advance(uint64_t(i) * 4);
        const uint32_t cascade = min_of(uint32_t(r.next_float() * float(n_cascades)), uint32_t(n_cascades - 1));
        uint32_t morton = 0;
        for (uint32_t retry = 0; retry < 10; ++retry) {
            morton =
                uint32_t((uint64_t(i) + uint64_t(update) * uint64_t(n)) * 56924617u + retry * 19349663u + 96925573u) %
                occupancy_cells;
            if (values[cascade * occupancy_cells + morton] > threshold) break;
        }
        const uint32_t x = gather_bits3(morton), y = gather_bits3(morton >> 1), z = gather_bits3(morton >> 2);
        const float cell_length = float(1 << cascade) / float(occupancy_resolution);
        Vec3 fraction{r.next_float(), r.next_float(), r.next_float()};
        const Vec3 corner = occupancy_cell_corner(x, y, z, int(cascade));
        if (around) {
            const Vec3 p = corner + (fraction * 3.0f - splat3(1.0f)) * cell_length;
            const GridCell c = occupancy_cell(p, int(cascade));
            if (c.inside) {
                position[i] = p;
                cell[i] = cascade * occupancy_cells + morton3(uint32_t(c.x), uint32_t(c.y), uint32_t(c.z));
                return;
            }
        }
        position[i] = corner + fraction * cell_length;
        cell[i] = cascade * occupancy_cells + morton;
    }
};

// Body: a cell's value after an update, from the largest density seen in it (0: not sampled).
struct DecayOccupancy {
    float* values;
    float* fresh; // zeroed
    float decay;
    bool sampled_only; // cells that were not sampled keep their value

    NGP_HD void operator()(int64_t i) const {
        const float v = values[i];
        if (sampled_only && fresh[i] == 0.0f) return;
        values[i] = v < 0.0f ? v : max_of(v * decay, fresh[i]);
        fresh[i] = 0.0f;
    }
};

// Body: 64 bits, a 4x4x4 block.
struct OccupancyBits {
    const float* values;
    float threshold;
    uint64_t* words;

    NGP_HD void operator()(int64_t i) const {
        uint64_t word = 0;
        for (int k = 0; k < 64; ++k) word |= uint64_t(values[i * 64 + k] > threshold) << k;
        words[i] = word;
    }
};

// Body: marks cell i of a cascade's central half if any of the 2x2x2 cells of the next finer cascade there is set. Word
// i holds coarse cells 64i..64i+63 of the central half's cube of 64^3, in Morton order.
struct CoarsenOccupancy {
    const uint64_t* fine;
    uint64_t* coarse;

    NGP_HD void operator()(int64_t i) const {
        // The central half is 64^3 cells; 64 of them in Morton order are an aligned block, so one coarse word.
        uint64_t word = 0;
        for (int k = 0; k < 64; ++k) {
            const uint32_t m = uint32_t(i * 64 + k); // also the number of the finer 2x2x2 block, a byte
            word |= uint64_t(((fine[m >> 3] >> ((m & 7u) * 8u)) & 0xffu) != 0) << k;
        }
        const uint32_t m = uint32_t(i * 64);
        const uint32_t at = morton3(gather_bits3(m) + 32, gather_bits3(m >> 1) + 32, gather_bits3(m >> 2) + 32);
        coarse[at >> 6] |= word;
    }
};

// Body: lattice point i of one cascade, 129 along each axis, x fastest: is it in front of a camera and inside its
// image? Lenses that see (almost) all around, and images with rays of their own, are taken to see everything (E.3,
// C.4).
struct MarkVisiblePoint {
    SceneView scene;
    int n_images;
    int cascade;
    uint8_t* seen; // [129][129][129]

    static constexpr int points = occupancy_resolution + 1; // along an axis

    NGP_HD bool sees(const TrainingView& view, Vec3 p) const {
        const Lens& lens = view.camera.lens;
        if (lens.sees_everything() || view.image.rays) return true;
        const Vec3 c = view.pose.rotate_inverse(p - view.pose.position);
        const Vec2 uv = view.camera.project(c); // NaN: behind the camera
        if (!(uv.x >= 0.0f && uv.x <= 1.0f && uv.y >= 0.0f && uv.y <= 1.0f)) return false;
        if (lens.mode == LensMode::Perspective || lens.mode == LensMode::Orthographic) return true;
        // Distortion polynomials fold back far outside the image: the ray through the pixel must return to the point.
        const Vec3 back = view.camera.ray_direction(uv);
        return length(normalize(back) - normalize(c)) < 1e-3f;
    }
    // `first`: the view to try first, and then the one that saw the point.
    NGP_HD void mark(int64_t i, int& first) const {
        const uint32_t x = uint32_t(i % points), y = uint32_t(i / points % points), z = uint32_t(i / points / points);
        const Vec3 p = occupancy_cell_corner(x, y, z, cascade);
        bool any = sees(scene.views[first], p);
        for (int k = 0; k < n_images && !any; ++k)
            if ((any = sees(scene.views[k], p))) first = k;
        seen[i] = any;
    }
    NGP_HD void operator()(int64_t i) const {
        int first = 0;
        mark(i, first);
    }
};
// Body: row i of them, for loops in order: neighbours are mostly seen by the same camera.
struct MarkVisiblePoints {
    MarkVisiblePoint point;

    NGP_HD void operator()(int64_t i) const {
        int first = 0;
        for (int x = 0; x < MarkVisiblePoint::points; ++x) point.mark(i * MarkVisiblePoint::points + x, first);
    }
};

// Body: a cell is seen if any of its corners is; a cell whose status changes is reset.
struct MarkVisibleCells {
    const uint8_t* seen;
    float* values; // of one cascade
    bool initial;  // every seen cell becomes 0

    NGP_HD void operator()(int64_t i) const {
        constexpr int points = MarkVisiblePoint::points;
        const uint32_t m = uint32_t(i);
        const uint32_t x = gather_bits3(m), y = gather_bits3(m >> 1), z = gather_bits3(m >> 2);
        bool any = false;
        for (uint32_t c = 0; c < 8; ++c)
            any |= seen[(size_t(z + (c >> 2)) * points + y + ((c >> 1) & 1)) * points + x + (c & 1)] != 0;
        const float v = values[i];
        if (initial || (v < 0.0f) == any) values[i] = any ? 0.0f : never_seen;
    }
};

// A visit's optical thickness as cells store it: positive, since 0 means that nobody looked.
NGP_HD float visit_value(float density) {
    constexpr float opaque = 1e6f; // more makes no difference, and an infinity would stay for ever
    const float thickness = density * min_step;
    return thickness > FLT_MIN ? min_of(thickness, opaque) : FLT_MIN;
}

// Keeps the larger of the stored and the given positive value; their order is that of their bits, and the result
// does not depend on the order of calls.
NGP_HD void store_max(float* at, float value) {
    const uint32_t wanted = float_to_bits(value);
#if defined(__CUDA_ARCH__)
    atomicMax(reinterpret_cast<uint32_t*>(at), wanted);
#else
    auto* bits = reinterpret_cast<uint32_t*>(at);
    uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (seen < wanted &&
           !__atomic_compare_exchange_n(bits, &seen, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
#endif
}

// Counts a training sample's density (per NGP length) as a visit of its cell.
NGP_HD void visit_cell(float* fresh, Vec3 p, float dt, int max_cascade, float density) {
    const int cascade = cascade_at(p, dt, max_cascade);
    const GridCell c = occupancy_cell(p, cascade);
    if (!c.inside) return;
    store_max(fresh + size_t(cascade) * occupancy_cells + morton3(uint32_t(c.x), uint32_t(c.y), uint32_t(c.z)),
              visit_value(density));
}

// The CPU's grid.
class OccupancyGrid {
  public:
    // All cells unknown (value 0) and no bit set.
    void resize(int n_cascades);
    int n_cascades() const { return n_cascades_; }
    OccupancyView view() const { return {words_.data(), clearance_.data(), n_cascades_ - 1}; }
    const std::vector<float>& values() const { return values_; }
    void set_values(const float* values, size_t n); // rebuilds the bits
    float mean() const { return mean_; }            // of max(value, 0) over cascade 0

    void mark_visible(const SceneView& scene, int n_images, bool initial);
    // Applies densities x min_step of the drawn cells (largest wins), the decay, and rebuilds the bits.
    void apply(const uint32_t* cells, const float* thickness, int64_t n, float decay, bool sampled_only);
    // Largest density x min_step seen in each cell since the last update.
    std::vector<float>& fresh() { return fresh_; }
    const std::vector<float>& fresh() const { return fresh_; }

  private:
    void rebuild_bits();

    int n_cascades_ = 0;
    std::vector<float> values_, fresh_;
    AlignedVector<uint64_t> words_;
    AlignedVector<uint8_t> clearance_;
    float mean_ = 0;
};

} // namespace ngp
