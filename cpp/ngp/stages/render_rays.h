// Stage of rendering: the ray through a sample of a pixel (specification E.6).
#pragma once

#include <ngp/formulas/march.h>
#include <ngp/formulas/rigid_motion.h>
#include <ngp/formulas/sobol.h>
#include <ngp/stages/scene.h>

namespace ngp {

// Depth of field: rays start on a disc around the camera and meet where they would without one at the focus distance.
struct LensBlur {
    float aperture = 0; // radius of the disc, NGP units; 0: a pinhole
    // Along the camera's forward axis, NGP units; with a lens that sees everything, along each ray.
    float focus_distance = 1;
};

struct MakeRenderRay {
    CameraModel camera;
    CameraMatrix pose;
    Aabb box;  // of the scene
    Aabb crop; // in the frame of crop_to_local
    Mat3 crop_to_local;
    Stepping stepping;
    float near_distance = 0;
    bool snap_to_pixel_centers = false;
    LensBlur blur;
    ShutterMotion motion; // of the camera from `pose`

    // The camera when the sample is taken.
    NGP_HD CameraMatrix pose_of(int x, int y, int sample) const {
        return motion.exists() ? motion.pose(pose, start_and_time(x, y, sample).y) : pose;
    }
    NGP_HD RayMarcher operator()(int x, int y, int sample) const {
        const Vec2 offset = pixel_offset(uint32_t(sample), snap_to_pixel_centers);
        const Vec2 uv{(float(x) + offset.x) / float(camera.width), (float(y) + offset.y) / float(camera.height)};
        const CameraMatrix from = pose_of(x, y, sample);
        Ray ray = camera_ray(camera, from, uv);
        if (blur.aperture > 0.0f && ray.exists()) ray = through_lens(ray, from, random2(x, y, sample, 0x967a889bu));
        ray.origin += ray.direction * near_distance;
        Vec2 span = intersect(box, ray.origin, ray.direction);
        const Vec2 cropped = intersect(crop, crop_to_local * ray.origin, crop_to_local * ray.direction);
        if (box.empty() || crop.empty() || span.x == FLT_MAX || cropped.x == FLT_MAX)
            return RayMarcher::starting(ray.origin, ray.direction, 0, 0);
        span = {max_of(span.x, cropped.x), min_of(span.y, cropped.y)};
        const float start = start_and_time(x, y, sample).x;
        const float t = stepping.advance(max_of(span.x, 0.0f) + 1e-6f, start);
        return RayMarcher::starting(ray.origin, ray.direction, t, span.y);
    }

  private:
    // Random numbers of a pixel's sample, evenly spread over its samples; `seed` picks the pair.
    NGP_HD Vec2 random2(int x, int y, int sample, uint32_t seed) const {
        const uint32_t pixel = uint32_t(y) * uint32_t(camera.width) + uint32_t(x);
        return sobol2(uint32_t(sample), hash_combine(seed, pixel * 0x9e3779b1u));
    }
    // Fraction of a step by which marching starts later; share of the time that the shutter is open.
    NGP_HD Vec2 start_and_time(int x, int y, int sample) const { return random2(x, y, sample, 0x68bc21ebu); }

    NGP_HD Ray through_lens(const Ray& ray, const CameraMatrix& from, Vec2 random) const {
        const float z_per_t = camera.lens.sees_everything() ? 1.0f : dot(ray.direction, from.forward);
        const Vec3 focus = ray.origin + ray.direction * (blur.focus_distance / z_per_t);
        const Vec2 p = disc_point(random) * blur.aperture;
        const Vec3 origin = ray.origin + from.right * p.x + from.down * p.y;
        return {origin, normalize(focus - origin)};
    }
};

} // namespace ngp
