// Stage: from the gradients of training rays to those of the cameras that they come from (specification E.5).
#pragma once

#include <ngp/stages/rays.h>

namespace ngp {

// Of the loss, with respect to a training ray: sums over its samples. `direction`: of the unit vector, as if its
// components were independent.
struct RayGradient {
    Vec3 origin, direction;
};

// What one ray adds to the gradient of its camera.
struct CameraGradient {
    Vec3 position; // of the camera, NGP units
    Vec3 rotation; // of a rotation vector that turns it further, NGP axes, at none
    Vec3 exposure; // of its image, stops a channel
    Vec2 focal;    // of the logarithm of the focal lengths
    Vec2 offset;   // of the distortion map's value at the pixel
};

// dL/d(log focal length) of the ray through uv, from dL/d(xy of its camera-space direction, or of its origin there if
// the lens is parallel).
NGP_HD Vec2 focal_gradient(const CameraModel& camera, Vec2 uv, Vec2 gradient) {
    const LensMode mode = camera.lens.mode;
    if (mode != LensMode::Perspective && mode != LensMode::OpenCV && mode != LensMode::OpenCVFisheye &&
        mode != LensMode::Orthographic)
        return {}; // no use for a focal length
    const Vec2 p = camera.on_plane(uv);
    if (mode == LensMode::OpenCV || mode == LensMode::OpenCVFisheye) {
        // p = v + distortion(v), so dL/dp = J^-1 dL/dv; J is symmetric.
        const LensSlopes j = distortion_slopes(camera.lens, undistort(camera.lens, p));
        const float det = j.x.x * j.y.y - j.x.y * j.y.x;
        if (std::fabs(det) < 1e-6f) return {};
        gradient =
            Vec2{j.y.y * gradient.x - j.x.y * gradient.y, j.x.x * gradient.y - j.y.x * gradient.x} * (1.0f / det);
    }
    return {-p.x * gradient.x, -p.y * gradient.y};
}

// Body: ray i.
struct GradientOfCamera {
    const TrainingView* views;
    DistortionMap distortion;
    const RayPixel* pixels;
    const RayGradient* rays;
    const Vec3* d_color; // minus dL/d(target) (CompositeAndLoss)
    bool focal_length;   // wanted
    CameraGradient* out;

    NGP_HD void operator()(int64_t i) const {
        const RayPixel& pixel = pixels[i];
        const TrainingView& view = views[pixel.view];
        CameraGradient& g = out[i];
        g = {};
        g.exposure = -(d_color[i] * pixel.target_slope);
        if (view.image.rays) return; // its rays are not the camera's
        const Vec3 in_camera = camera_direction(view.camera, distortion, pixel.uv);
        const float distance = length(in_camera);
        if (!(distance > 0.0f)) return;
        const CameraMatrix pose = view.pose_at(pixel.uv, pixel.tau);
        const Vec3 d = normalize(pose.rotate(in_camera));
        const RayGradient& ray = rays[i];
        g.position = ray.origin;
        g.rotation = cross(d, ray.direction);
        const Vec3 across = (ray.direction - d * dot(d, ray.direction)) / distance;
        const Vec3 local = pose.rotate_inverse(across);
        g.offset = {local.x, local.y};
        Vec2 of_plane = g.offset;
        if (view.camera.lens.parallel()) {
            g.rotation += cross(pose.rotate(view.camera.ray_origin(pixel.uv)), ray.origin);
            const Vec3 origin = pose.rotate_inverse(ray.origin);
            of_plane = {origin.x, origin.y};
            g.offset = {};
        }
        if (focal_length) g.focal = focal_gradient(view.camera, pixel.uv, of_plane);
    }
};

} // namespace ngp
