// Stage of rendering: the ray through a sample of a pixel (specification E.6).
#pragma once

#include <ngp/formulas/march.h>
#include <ngp/formulas/sobol.h>
#include <ngp/stages/scene.h>

namespace ngp {

struct MakeRenderRay {
    CameraModel camera;
    CameraMatrix pose;
    Aabb box;  // of the scene
    Aabb crop; // in the frame of crop_to_local
    Mat3 crop_to_local;
    Stepping stepping;
    float near_distance = 0;
    bool snap_to_pixel_centers = false;
    DistortionMap distortion;

    NGP_HD RayMarcher operator()(int x, int y, int sample) const {
        const Vec2 offset = pixel_offset(uint32_t(sample), snap_to_pixel_centers);
        const Vec2 uv{(float(x) + offset.x) / float(camera.width), (float(y) + offset.y) / float(camera.height)};
        Ray ray = camera_ray(camera, pose, uv, distortion);
        ray.origin += ray.direction * near_distance;
        Vec2 span = intersect(box, ray.origin, ray.direction);
        const Vec2 cropped = intersect(crop, crop_to_local * ray.origin, crop_to_local * ray.direction);
        if (box.empty() || crop.empty() || span.x == FLT_MAX || cropped.x == FLT_MAX)
            return RayMarcher::starting(ray.origin, ray.direction, 0, 0);
        span = {max_of(span.x, cropped.x), min_of(span.y, cropped.y)};
        const uint32_t pixel = uint32_t(y) * uint32_t(camera.width) + uint32_t(x);
        const float start = sobol2(uint32_t(sample), hash_combine(0x68bc21ebu, pixel * 0x9e3779b1u)).x;
        const float t = stepping.advance(max_of(span.x, 0.0f) + 1e-6f, start);
        return RayMarcher::starting(ray.origin, ray.direction, t, span.y);
    }
};

} // namespace ngp
