// Stage of queries: points of the world's frame into NGP space, and raw outputs of the networks there into values.
#pragma once

#include <ngp/formulas/march.h>
#include <ngp/formulas/pose.h>
#include <ngp/stages/compositing.h>

namespace ngp {

// What is asked of the field.
struct FieldQuery {
    WorldTransform world;
    Aabb box;               // NGP space; zero outside
    bool occupancy = false; // zero also in cells that the occupancy grid holds empty
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    const float* extra_dims = nullptr; // host memory: those of the model (ViewInputs)
    Vec3 gain{1, 1, 1};                // of linear colours
    bool linear_colors = false;        // of the network

    NGP_HD Vec3 graded(Vec3 c) const {
        if (gain == Vec3{1, 1, 1}) return c;
        return linear_colors ? c * gain : linear_to_srgb(srgb_to_linear(c) * gain);
    }
};

// Body: point i, and its direction if there are any, in NGP space. Input and output may be the same arrays.
struct PlaceQueryPoint {
    WorldTransform world;
    const Vec3* positions;
    const Vec3* directions; // may be null
    Vec3* ngp_positions;
    Vec3* ngp_directions;

    NGP_HD void operator()(int64_t i) const {
        ngp_positions[i] = world.point_to_ngp(positions[i]);
        if (directions) ngp_directions[i] = world.direction_to_ngp(directions[i]);
    }
};

// Body: the values at point i.
struct FinishQueryPoint {
    FieldQuery query;
    OccupancyView grid;
    const Vec3* ngp_positions;
    const RawSample* raw;
    float* rgb;     // 3 a point, as the network composites it; null: not wanted
    float* density; // per world unit of length

    NGP_HD void operator()(int64_t i) const {
        const Vec3 p = ngp_positions[i];
        const bool there = query.box.contains(p) && (!query.occupancy || occupied_at(grid, p));
        density[i] = there ? density_from_raw(query.density_activation, raw[i].density) * query.world.scale : 0.0f;
        if (!rgb) return;
        const Vec3 c = there ? query.graded(sample_color(query.rgb_activation, raw[i])) : Vec3{};
        rgb[3 * i] = c.x, rgb[3 * i + 1] = c.y, rgb[3 * i + 2] = c.z;
    }
};

} // namespace ngp
