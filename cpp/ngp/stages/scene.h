// Stage: what training rays are drawn from. Images and their cameras, as both devices read them (specification C).
#pragma once

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/distortion_map.h>
#include <ngp/formulas/lens.h>
#include <ngp/formulas/pose.h>
#include <ngp/formulas/rotation.h>
#include <ngp/stages/image.h>
#include <string>

namespace ngp {

// How a camera moves while it takes its picture, by a rolling shutter (C.5): position and rotation at the share
// s = A + B u + C v + D tau of the way, which need not lie within [0, 1].
struct CameraMotion {
    Vec3 shift;            // of the position from s = 0 to s = 1
    Vec3 turn;             // rotation vector likewise, in NGP space
    float weights[4] = {}; // A, B, C, D

    NGP_HD bool exists() const { return !(shift == Vec3{} && turn == Vec3{}); }
    // tau: of the exposure, within [0, 1].
    NGP_HD float share(Vec2 uv, float tau) const {
        return weights[0] + weights[1] * uv.x + weights[2] * uv.y + weights[3] * tau;
    }
    // The least and the largest share.
    NGP_HD Vec2 shares() const {
        Vec2 range{weights[0], weights[0]};
        for (int i = 1; i < 4; ++i) (weights[i] < 0.0f ? range.x : range.y) += weights[i];
        return range;
    }
    NGP_HD CameraMatrix pose(const CameraMatrix& start, float share) const {
        CameraMatrix c = rotate(turn * share, start);
        c.position += shift * share;
        return c;
    }
};
// From pose `start` (s = 0) to `end`; none if they are equal or all weights zero.
CameraMotion camera_motion(const CameraMatrix& start, const CameraMatrix& end, const float weights[4]);

// One training view; camera in NGP space.
struct TrainingView {
    ImageView image;
    CameraModel camera;
    CameraMatrix pose; // where its motion starts
    CameraMotion motion;
    Vec3 exposure{1, 1, 1}; // learned: factor that brings the image's linear colours to the scene's (E.4)

    NGP_HD CameraMatrix pose_at(Vec2 uv, float tau) const {
        return motion.exists() ? motion.pose(pose, motion.share(uv, tau)) : pose;
    }
};

struct SceneView {
    const TrainingView* views = nullptr;
    int n_views = 0;
    Aabb box;            // scene box, NGP space
    int max_cascade = 0; // log2(aabb_scale)
    DistortionMap distortion;
};

// A ray in NGP space with unit direction; or with none, which misses every box: the lens sees nothing there.
struct Ray {
    Vec3 origin, direction;

    NGP_HD bool exists() const { return !(direction == Vec3{}); }
};
// Camera-space direction of the ray through uv; zero: there is none. A learned distortion leaves parallel rays
// parallel.
NGP_HD Vec3 camera_direction(const CameraModel& camera, const DistortionMap& distortion, Vec2 uv) {
    Vec3 d = camera.ray_direction(uv);
    if (distortion.offsets && !camera.lens.parallel() && !(d == Vec3{})) {
        const Vec2 offset = distortion.at(uv);
        d.x += offset.x;
        d.y += offset.y;
    }
    return d;
}
NGP_HD Ray camera_ray(const CameraModel& camera, const CameraMatrix& pose, Vec2 uv,
                      const DistortionMap& distortion = {}) {
    Ray ray{pose.position, normalize(pose.rotate(camera_direction(camera, distortion, uv)))};
    if (camera.lens.parallel()) ray.origin += pose.rotate(camera.ray_origin(uv));
    return ray;
}

// The ray that an image gives a pixel itself (ImageView::rays).
struct StoredRay {
    Vec3 origin, direction; // of any length

    NGP_HD static StoredRay of(const ImageView& image, int x, int y) {
        const float* r = image.rays + image.index(x, y) * floats_per_ray;
        return {{r[0], r[1], r[2]}, {r[3], r[4], r[5]}};
    }
};
// The ray of pixel (x, y) through its image position uv: its own, else the camera's at the time tau. None where the
// mask is set: as training sees it, nothing is there.
NGP_HD Ray pixel_ray(const TrainingView& view, int x, int y, Vec2 uv, float tau = 0.0f,
                     const DistortionMap& distortion = {}) {
    if (is_masked(view.image, x, y)) return {};
    if (!view.image.rays) return camera_ray(view.camera, view.pose_at(uv, tau), uv, distortion);
    const StoredRay r = StoredRay::of(view.image, x, y);
    return {r.origin, normalize(r.direction)};
}
// Where that ray reaches the pixel's depth, as a distance along it in NGP units; 0: unknown. Depths are multiples of
// the ray's direction before it is normalised (C.4), so with lenses whose directions have z = 1 they count along the
// camera's forward axis, and with FTheta and the 360 degree ones from its centre.
NGP_HD float pixel_distance(const TrainingView& view, int x, int y, Vec2 uv, const DistortionMap& distortion = {}) {
    const float depth = read_depth(view.image, x, y);
    if (depth == 0.0f) return 0.0f;
    return depth * length(view.image.rays ? StoredRay::of(view.image, x, y).direction
                                          : camera_direction(view.camera, distortion, uv));
}

// Raises ngp::Error, which begins with `where`, unless lens, focal length and principal point make sense.
void check_camera(const CameraModel& camera, const std::string& where);

// The pose with its rotation scaled to determinant 1 (C.5). Raises ngp::Error, which begins with `where`, for what is
// no pose.
CameraMatrix with_unit_determinant(const CameraMatrix& c, const std::string& where);

} // namespace ngp
