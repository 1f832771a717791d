// Between the input's world frame and NGP space, in which the scene is centred at (0.5, 0.5, 0.5) (specification C.5).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

struct WorldTransform {
    float scale = 0.33f;
    Vec3 offset{0.5f, 0.5f, 0.5f};
    bool from_mitsuba = false;

    // (x, y, z) -> (y, z, x), unless the scene comes from Mitsuba.
    NGP_HD Vec3 cycle(Vec3 v) const { return from_mitsuba ? v : Vec3{v.y, v.z, v.x}; }
    NGP_HD Vec3 uncycle(Vec3 v) const { return from_mitsuba ? v : Vec3{v.z, v.x, v.y}; }

    NGP_HD Vec3 point_to_ngp(Vec3 p) const {
        return cycle({mul_then_add(p.x, scale, offset.x), mul_then_add(p.y, scale, offset.y),
                      mul_then_add(p.z, scale, offset.z)});
    }
    NGP_HD Vec3 point_to_world(Vec3 p) const { return (uncycle(p) - offset) / scale; }
    NGP_HD Vec3 direction_to_ngp(Vec3 d) const { return cycle(d); }
    NGP_HD Vec3 direction_to_world(Vec3 d) const { return uncycle(d); }
    // Of light directions: those of Mitsuba's scenes point the other way (C.5).
    NGP_HD Vec3 light_to_ngp(Vec3 d) const { return from_mitsuba ? -d : cycle(d); }

    // Camera-to-world matrices: OpenGL axes in the world (x right, y up, z back), y down and z forward in NGP space.
    NGP_HD CameraMatrix camera_to_ngp(CameraMatrix c) const {
        float s0 = from_mitsuba ? -1.0f : 1.0f, s2 = from_mitsuba ? 1.0f : -1.0f;
        return {cycle(c.right * s0), cycle(-c.down), cycle(c.forward * s2), point_to_ngp(c.position)};
    }
    NGP_HD CameraMatrix camera_to_world(CameraMatrix c) const {
        float s0 = from_mitsuba ? -1.0f : 1.0f, s2 = from_mitsuba ? 1.0f : -1.0f;
        return {uncycle(c.right) * s0, -uncycle(c.down), uncycle(c.forward) * s2, point_to_world(c.position)};
    }
};

} // namespace ngp
