// Stage: what training rays are drawn from. Images and their cameras, as both devices read them (specification C).
#pragma once

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/lens.h>
#include <ngp/formulas/pose.h>
#include <ngp/stages/image.h>
#include <string>

namespace ngp {

// One training view; camera in NGP space.
struct TrainingView {
    ImageView image;
    CameraModel camera;
    CameraMatrix pose;
};

struct SceneView {
    const TrainingView* views = nullptr;
    int n_views = 0;
    Aabb box;            // scene box, NGP space
    int max_cascade = 0; // log2(aabb_scale)
};

// A ray in NGP space with unit direction; or with none, which misses every box: the lens sees nothing there.
struct Ray {
    Vec3 origin, direction;

    NGP_HD bool exists() const { return !(direction == Vec3{}); }
};
NGP_HD Ray camera_ray(const CameraModel& camera, const CameraMatrix& pose, Vec2 uv) {
    Ray ray{pose.position, normalize(pose.rotate(camera.ray_direction(uv)))};
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
// The ray of pixel (x, y) through its image position uv: its own, else the camera's. None where the mask is set: as
// training sees it, nothing is there.
NGP_HD Ray pixel_ray(const TrainingView& view, int x, int y, Vec2 uv) {
    if (is_masked(view.image, x, y)) return {};
    if (!view.image.rays) return camera_ray(view.camera, view.pose, uv);
    const StoredRay r = StoredRay::of(view.image, x, y);
    return {r.origin, normalize(r.direction)};
}
// Where that ray reaches the pixel's depth, as a distance along it in NGP units; 0: unknown. Depths are multiples of
// the ray's direction before it is normalised (C.4), so with lenses whose directions have z = 1 they count along the
// camera's forward axis, and with FTheta and the 360 degree ones from its centre.
NGP_HD float pixel_distance(const TrainingView& view, int x, int y, Vec2 uv) {
    const float depth = read_depth(view.image, x, y);
    if (depth == 0.0f) return 0.0f;
    return depth * length(view.image.rays ? StoredRay::of(view.image, x, y).direction : view.camera.ray_direction(uv));
}

// Raises ngp::Error, which begins with `where`, unless lens, focal length and principal point make sense.
void check_camera(const CameraModel& camera, const std::string& where);

// The pose with its rotation scaled to determinant 1 (C.5). Raises ngp::Error, which begins with `where`, for what is
// no pose.
CameraMatrix with_unit_determinant(const CameraMatrix& c, const std::string& where);

} // namespace ngp
