// Stepping along a ray through the cascaded occupancy grid (specification E.2, D.5). Lengths are in NGP units, where
// the cascade-0 grid is the unit cube [0,1]^3 and cascade c the cube of side 2^c with the same centre.
#pragma once

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/morton.h>

namespace ngp {

constexpr int occupancy_resolution = 128;
constexpr uint32_t occupancy_cells = 128u * 128u * 128u; // of one cascade
constexpr int max_cascades = 8;
constexpr int max_samples_per_ray = 1024; // training only
constexpr float sqrt3 = 1.73205080757f;
constexpr float min_step = sqrt3 / 1024.0f;
constexpr float max_step = sqrt3;
constexpr float max_depth = 16384.0f;
constexpr float cone_angle_epsilon = 1e-5f;

// ln(t) / lambda and the exponential of stepping coordinates. On a GPU in a few instructions, with 2^-22 as the error
// of logarithm and exponential: a thousandth of a step.
NGP_HD float stepping_log(float t, [[maybe_unused]] float lambda, [[maybe_unused]] float inverse_lambda) {
#if defined(__CUDA_ARCH__)
    return __logf(t) * inverse_lambda;
#else
    return std::log(t) / lambda;
#endif
}
NGP_HD float stepping_exp(float x) {
#if defined(__CUDA_ARCH__)
    return __expf(x);
#else
    return std::exp(x);
#endif
}

// Stepping coordinate n(t): one march step is n + 1. With cone angle c and lambda = ln(1+c) it is linear with slope
// 1/min_step for t <= min_step/lambda, ln(t)/lambda in between and linear with slope 1/max_step beyond max_step/lambda.
struct Stepping {
    float cone_angle = 0, lambda = 0, inverse_lambda = 0, t_low = 0, n_low = 0, t_high = 0, n_high = 0;

    NGP_HD static Stepping with_cone_angle(float cone_angle) {
        Stepping s;
        if (cone_angle <= cone_angle_epsilon) return s;
        s.cone_angle = cone_angle;
        s.lambda = std::log1p(cone_angle);
        s.inverse_lambda = 1.0f / s.lambda;
        s.t_low = min_step / s.lambda;
        s.t_high = max_step / s.lambda;
        s.n_low = std::log(s.t_low) / s.lambda;
        s.n_high = std::log(s.t_high) / s.lambda;
        return s;
    }
    NGP_HD bool constant() const { return lambda == 0.0f; }
    NGP_HD float n_of_t(float t) const {
        if (constant()) return t * (1.0f / min_step);
        if (t <= t_low) return n_low + (t - t_low) * (1.0f / min_step);
        if (t >= t_high) return n_high + (t - t_high) * (1.0f / max_step);
        return stepping_log(t, lambda, inverse_lambda);
    }
    NGP_HD float t_of_n(float n) const {
        if (constant()) return n * min_step;
        if (n <= n_low) return t_low + (n - n_low) * min_step;
        if (n >= n_high) return t_high + (n - n_high) * max_step;
        return stepping_exp(n * lambda);
    }
    // t after `steps` march steps (fractions allowed).
    NGP_HD float advance(float t, float steps) const {
        return constant() ? t + steps * min_step : t_of_n(n_of_t(t) + steps);
    }
    // Length of the step that starts at t.
    NGP_HD float step_length(float t) const {
        if (constant() || t + min_step <= t_low) return min_step;
        // In the geometric part the step is proportional to t, which avoids a logarithm and an exponential.
        if (t > t_low && t * (1.0f + cone_angle) < t_high) return max_of(t * cone_angle, min_step);
        return clamp_to(t_of_n(n_of_t(t) + 1.0f) - t, min_step, max_step);
    }
    // First whole number of steps (at least one) from t that reaches t_target.
    NGP_HD float advance_to(float t, float t_target) const {
        if (constant()) return t + max_of(std::ceil((t_target - t) * (1.0f / min_step)), 1.0f) * min_step;
        float n = n_of_t(t);
        return t_of_n(n + max_of(std::ceil(n_of_t(t_target) - n), 1.0f));
    }
};

// Exponent e of v = m * 2^e with m in [0.5, 1), from its bits; -126 for zero and whatever is smaller than 2^-126.
NGP_HD int exponent_of(float v) { return int((bits_of(v) >> 23) & 255u) - 126; }

// 2^e, for e from -126 to 127.
NGP_HD float power_of_two(int e) { return float_of_bits(uint32_t(e + 127) << 23); }

// Smallest cascade that holds the position.
NGP_HD int cascade_at(Vec3 p, int max_cascade) {
    if (max_cascade == 0) return 0;
    int e = exponent_of(max_component(abs3(p - splat3(0.5f))));
    return clamp_to(e + 1, 0, max_cascade);
}
// ... raised so that a step of length dt is not longer than a cell (training, E.2).
NGP_HD int cascade_at(Vec3 p, float dt, int max_cascade) {
    int c = cascade_at(p, max_cascade);
    float scaled = dt * float(2 * occupancy_resolution);
    return scaled < 1.0f ? c : clamp_to(max_of(exponent_of(scaled), c), 0, max_cascade);
}

constexpr int occupancy_words = int(occupancy_cells) / 64; // of one cascade
constexpr int words_along_axis = occupancy_resolution / 4;
constexpr int max_clearance = 8;

// Occupancy bits, one a cell, cascade-major, Morton order within a cascade; 64 consecutive bits are a word: a 4x4x4
// block. `clearance` has a byte for each word: 0 if it is not zero, else the largest v <= max_clearance so that the
// cube of 2v-1 words a side around it is empty and within the grid.
struct OccupancyView {
    const uint64_t* words = nullptr;
    const uint8_t* clearance = nullptr;
    int max_cascade = 0;

    NGP_HD uint64_t word(int cascade, uint32_t morton) const {
        return words[(size_t(cascade) * occupancy_cells + morton) >> 6];
    }
    // 0: the cell is occupied; 1: it is empty; 1 + v: so is everything within the clearance v.
    NGP_HD int empty_around(int cascade, uint32_t morton) const {
        // Both are read at once, since a GPU would wait for one after the other.
        const uint64_t bits = word(cascade, morton);
        const int v = clearance[(size_t(cascade) * occupancy_cells + morton) >> 6];
        return v > 0 ? 1 + v : 1 - int((bits >> (morton & 63u)) & 1u);
    }
};

// One step of finding clearances: which of a row of 32 words along x are occupied, outside the grid, or next to one
// that is.
NGP_HD uint32_t spread_along_row(uint32_t row) { return row | (row << 1) | (row >> 1) | 0x80000001u; }

struct GridCell {
    int x, y, z;
    bool inside;
};
NGP_HD GridCell occupancy_cell(Vec3 p, int cascade) {
    const float scale = float(occupancy_resolution) * power_of_two(-cascade);
    Vec3 q = (p - splat3(0.5f)) * scale + splat3(0.5f * float(occupancy_resolution));
    GridCell c{int(std::floor(q.x)), int(std::floor(q.y)), int(std::floor(q.z)), false};
    c.inside = unsigned(c.x) < 128u && unsigned(c.y) < 128u && unsigned(c.z) < 128u;
    return c;
}
NGP_HD bool occupied_at(const OccupancyView& grid, Vec3 p) {
    int cascade = cascade_at(p, grid.max_cascade);
    GridCell c = occupancy_cell(p, cascade);
    if (!c.inside) return false;
    uint32_t m = morton3(uint32_t(c.x), uint32_t(c.y), uint32_t(c.z));
    return (grid.word(cascade, m) >> (m & 63u)) & 1u;
}

// Parameter at which the ray leaves the cell (empty 1), or the cube of clearance empty - 1 around the cell's word.
NGP_HD float empty_exit(Vec3 origin, Vec3 inverse_direction, const GridCell& cell, int cascade, int empty) {
    const float cell_length = power_of_two(cascade) * (1.0f / float(occupancy_resolution));
    const int index[3] = {cell.x, cell.y, cell.z};
    float t = FLT_MAX;
    for (int i = 0; i < 3; ++i) {
        const float inv = inverse_direction[i];
        if (std::fabs(inv) > 1e30f) continue; // parallel to this axis
        const bool up = inv > 0.0f;
        const int corner = empty == 1 ? index[i] + int(up) : ((index[i] >> 2) + (up ? empty - 1 : 2 - empty)) * 4;
        t = min_of(t, (float(corner - occupancy_resolution / 2) * cell_length + 0.5f - origin[i]) * inv);
    }
    return t;
}

// A ray inside a box, stopping at samples in occupied cells. Skipping empty space at once visits the same
// stepping positions as leaving its cells one by one, since every jump is a whole number of steps.
struct RayMarcher {
    Vec3 origin, direction, inverse_direction;
    float t = 0, t_end = 0;

    NGP_HD static RayMarcher starting(Vec3 o, Vec3 d, float t_start, float t_end) {
        return {o, d, {1.0f / d.x, 1.0f / d.y, 1.0f / d.z}, t_start, t_end};
    }
    NGP_HD Vec3 position(float at) const { return origin + direction * at; }

    // What the grid says at a stepping position.
    struct Probe {
        float dt = 0; // length of the step from there
        int cascade = 0;
        GridCell cell{};
        int empty = 1; // OccupancyView::empty_around
    };
    NGP_HD Probe probe(const OccupancyView& grid, const Stepping& stepping, bool raise_by_dt, float at) const {
        Probe r;
        r.dt = stepping.step_length(at);
        const Vec3 p = position(at);
        r.cascade = raise_by_dt ? cascade_at(p, r.dt, grid.max_cascade) : cascade_at(p, grid.max_cascade);
        r.cell = occupancy_cell(p, r.cascade);
        if (r.cell.inside)
            r.empty = grid.empty_around(r.cascade, morton3(uint32_t(r.cell.x), uint32_t(r.cell.y), uint32_t(r.cell.z)));
        return r;
    }
    // The next stepping position that need not be empty, seen from an empty one.
    NGP_HD float leave(const OccupancyView& grid, const Stepping& stepping, bool raise_by_dt, const Probe& at_t) const {
        if (!at_t.cell.inside) return t + at_t.dt; // rounding can put the ends of a ray just outside the grid
        const float after = skip(stepping, at_t.cell, at_t.cascade, at_t.empty);
        // Where steps grow into the next cascade within the empty space, that cascade may be occupied there.
        if (raise_by_dt && at_t.empty > 1 &&
            cascade_at(position(t), stepping.step_length(after), grid.max_cascade) > at_t.cascade)
            return skip(stepping, at_t.cell, at_t.cascade, 1);
        return after;
    }

    // Moves to the next occupied sample and returns its step length, or 0 when the ray has left the box. The caller
    // adds the step length to t. `raise_by_dt`: the cascade rule of training.
    NGP_HD float next(const OccupancyView& grid, const Stepping& stepping, bool raise_by_dt) {
        while (t < t_end) {
            const Probe here = probe(grid, stepping, raise_by_dt, t);
            // So far away that a step vanishes in t's rounding, marching would never end; nothing can be resolved.
            if (here.empty == 0) return t + here.dt > t ? here.dt : 0.0f;
            const float after = leave(grid, stepping, raise_by_dt, here);
            if (!(after > t)) return 0.0f;
            t = after;
        }
        return 0.0f;
    }

    NGP_HD float skip(const Stepping& stepping, const GridCell& cell, int cascade, int empty) const {
        return stepping.advance_to(t, empty_exit(origin, inverse_direction, cell, cascade, empty));
    }
};

} // namespace ngp
