// Axis-aligned box and its intersection with a ray.
#pragma once

#include <cfloat>
#include <ngp/formulas/vec.h>

namespace ngp {

struct Aabb {
    Vec3 min{INFINITY, INFINITY, INFINITY}, max{-INFINITY, -INFINITY, -INFINITY};

    NGP_HD bool empty() const { return max.x < min.x || max.y < min.y || max.z < min.z; }
    NGP_HD Vec3 center() const { return (min + max) * 0.5f; }
    NGP_HD Vec3 diag() const { return max - min; }
    NGP_HD bool contains(Vec3 p) const {
        return p.x >= min.x && p.x <= max.x && p.y >= min.y && p.y <= max.y && p.z >= min.z && p.z <= max.z;
    }
    NGP_HD Vec3 relative(Vec3 p) const {
        Vec3 d = diag();
        return {(p.x - min.x) / d.x, (p.y - min.y) / d.y, (p.z - min.z) / d.z};
    }
    NGP_HD bool intersects(const Aabb& b) const { return !intersection(b).empty(); }
    NGP_HD void enlarge(const Aabb& b) {
        min = {min_of(min.x, b.min.x), min_of(min.y, b.min.y), min_of(min.z, b.min.z)};
        max = {max_of(max.x, b.max.x), max_of(max.y, b.max.y), max_of(max.z, b.max.z)};
    }
    NGP_HD void enlarge(Vec3 p) { enlarge(Aabb{p, p}); }
    NGP_HD void inflate(float amount) {
        min = min - splat3(amount);
        max = max + splat3(amount);
    }
    NGP_HD float distance_squared(Vec3 p) const {
        const Vec3 below = min - p, above = p - max;
        const Vec3 d{max_of(0.0f, max_of(below.x, above.x)), max_of(0.0f, max_of(below.y, above.y)),
                     max_of(0.0f, max_of(below.z, above.z))};
        return dot(d, d);
    }
    NGP_HD float distance(Vec3 p) const { return std::sqrt(distance_squared(p)); }
    // instant-ngp's (specification A.3): with q = |p - min| - diag, the distance of q to the negative octant.
    NGP_HD float signed_distance(Vec3 p) const {
        const Vec3 q = abs3(p - min) - diag();
        const Vec3 outside{max_of(q.x, 0.0f), max_of(q.y, 0.0f), max_of(q.z, 0.0f)};
        return length(outside) + min_of(max_component(q), 0.0f);
    }
    NGP_HD Aabb intersection(const Aabb& b) const {
        return {{max_of(min.x, b.min.x), max_of(min.y, b.min.y), max_of(min.z, b.min.z)},
                {min_of(max.x, b.max.x), min_of(max.y, b.max.y), min_of(max.z, b.max.z)}};
    }
};

// The cube of side aabb_scale that a scene lies in, NGP space.
NGP_HD Aabb scene_box(int aabb_scale) {
    const float half = 0.5f * float(aabb_scale);
    return {splat3(0.5f - half), splat3(0.5f + half)};
}

// Parameters at which origin + t*direction enters and leaves the box; both FLT_MAX on a miss (rays that are not finite
// miss). Slab method; a zero direction component divides to an infinity of the right sign, which the comparisons
// handle.
NGP_HD Vec2 intersect(const Aabb& box, Vec3 origin, Vec3 direction) {
    float t_min = -FLT_MAX, t_max = FLT_MAX;
    for (int i = 0; i < 3; ++i) {
        float o = origin[i], d = direction[i];
        if (d == 0.0f) {
            if (o < box.min[i] || o > box.max[i]) return {FLT_MAX, FLT_MAX};
            continue;
        }
        float t0 = (box.min[i] - o) / d, t1 = (box.max[i] - o) / d;
        t_min = max_of(t_min, min_of(t0, t1));
        t_max = min_of(t_max, max_of(t0, t1));
    }
    return t_min <= t_max && t_max < FLT_MAX ? Vec2{t_min, t_max} : Vec2{FLT_MAX, FLT_MAX}; // so is a NaN
}

} // namespace ngp
