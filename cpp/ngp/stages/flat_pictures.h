// Stage of rendering: pictures that need no marching (specification E.6) - training images as they are, what the lens
// does, and the field on a plane.
#pragma once

#include <ngp/formulas/alpha_blend.h>
#include <ngp/stages/render_mode.h>
#include <ngp/stages/render_rays.h>

namespace ngp {

// Body: pixel i of a training image under the render camera: the nearest pixel, scaled so that both sizes along
// fov_axis agree, and panned and zoomed with the camera.
struct ShowTrainingImage {
    ImageView image;
    CameraModel of_image, of_picture;
    float scale;       // image pixels per picture pixel
    Vec3 gain;         // of linear light
    ColorSpace space;  // of the frame
    float depth_scale; // 0: colours; else the image's depths, in displayed values per NGP unit, where they are known
    FramePixel* pixels;

    NGP_HD void operator()(int64_t i) const {
        const int64_t row = i / of_picture.width;
        const Vec2 at = to_image({float(i - row * of_picture.width) + 0.5f, float(row) + 0.5f});
        FramePixel p;
        p.depth_max_weight = 0.0f;
        if (at.x >= 0.0f && at.x < float(image.width) && at.y >= 0.0f && at.y < float(image.height)) {
            const LinearPixel seen =
                depth_scale > 0.0f ? depth_pixel(int(at.x), int(at.y)) : read_pixel(image, int(at.x), int(at.y));
            p.alpha = seen.alpha;
            p.rgb = seen.rgb * gain;
            if (space == ColorSpace::SRGB && p.alpha > 0.0f && depth_scale == 0.0f)
                p.rgb = linear_to_srgb(p.rgb / p.alpha) * p.alpha;
        }
        pixels[i] = p;
    }

  private:
    NGP_HD LinearPixel depth_pixel(int x, int y) const {
        const float depth = read_depth(image, x, y);
        return {splat3(depth * depth_scale), depth > 0.0f ? 1.0f : 0.0f};
    }
    NGP_HD static Vec2 center(const CameraModel& c) {
        return {c.principal.x * float(c.width), c.principal.y * float(c.height)};
    }
    NGP_HD Vec2 to_image(Vec2 pixel) const { return center(of_image) + (pixel - center(of_picture)) * scale; }
};

// A hue (turns, any) at full saturation.
NGP_HD Vec3 hue_color(float hue, float value) {
    const auto channel = [&](float shift) {
        const float h = 6.0f * fract(hue + shift); // red at 0, one third turn apart
        return value * clamp_to(std::fabs(h - 3.0f) - 1.0f, 0.0f, 1.0f);
    };
    return {channel(0.0f), channel(2.0f / 3.0f), channel(1.0f / 3.0f)};
}

// Body: where a perspective camera of the same focal length would see what pixel i sees, relative to the pixel, as a
// colour (RenderMode::Distortion). Empty where the lens sees nothing or looks behind.
struct ShowDistortion {
    CameraModel camera;
    CameraMatrix pose;
    FramePixel* pixels;

    static constexpr float gain = 64.0f; // of offsets in shares of the picture

    NGP_HD void operator()(int64_t i) const {
        const int64_t row = i / camera.width;
        const Vec2 uv{(float(i - row * camera.width) + 0.5f) / float(camera.width),
                      (float(row) + 0.5f) / float(camera.height)};
        const Ray ray = camera_ray(camera, pose, uv);
        const Vec3 d = pose.rotate_inverse(ray.direction);
        FramePixel p;
        if (ray.exists() && d.z > 0.0f) {
            const Vec2 seen{d.x / d.z * camera.focal.x / float(camera.width) + camera.principal.x,
                            d.y / d.z * camera.focal.y / float(camera.height) + camera.principal.y};
            const Vec2 offset = seen - uv;
            const float size = std::sqrt(offset.x * offset.x + offset.y * offset.y);
            p.rgb = hue_color(std::atan2(offset.y, offset.x) * (0.5f * inverse_pi), min_of(1.0f, gain * size));
            p.alpha = 1.0f;
        }
        pixels[i] = p;
    }
};

// Bodies of RenderMode::Slice: where the ray of pixel i's sample meets the plane `distance` in front of the camera, and
// how what the field holds there adds to the pixel.
constexpr float slice_thickness = 0.01f; // NGP units, of which the slice shows the opacity

struct PlaceSlicePoint {
    MakeRenderRay make;
    float distance; // along the forward axis, NGP units
    int64_t first;  // pixel of points[0]
    int sample;
    Vec3* points; // NaN: outside the box or the crop box, or behind the camera
    Vec3* directions;

    NGP_HD void operator()(int64_t i) const {
        const int64_t pixel = first + i;
        const int y = int(pixel / make.camera.width), x = int(pixel - int64_t(y) * make.camera.width);
        const RayMarcher ray = make(x, y, sample);
        const CameraMatrix pose = make.pose_of(x, y, sample);
        const float z_per_t = dot(ray.direction, pose.forward);
        const float t = (distance - dot(ray.origin - pose.position, pose.forward)) / z_per_t;
        const Vec3 p = ray.position(t);
        const bool shown =
            z_per_t > 0.0f && t > 0.0f && make.box.contains(p) && make.crop.contains(make.crop_to_local * p);
        points[i] = shown ? p : splat3(NAN);
        directions[i] = ray.direction;
    }
};

struct AddSlicePoint {
    AddRay add;
    float distance, share; // share: 1 / samples per pixel
    const Vec3* points;
    const float* rgb;     // as the network composites it
    const float* density; // per NGP unit
    FramePixel* pixels;

    NGP_HD void operator()(int64_t i) const {
        FramePixel& p = pixels[i];
        const bool there = points[i].x == points[i].x;
        const float alpha = there ? segment_alpha(density[i], slice_thickness) : 0.0f;
        p.depth_max_weight = alpha > 0.2f ? distance : max_depth;
        if (!(alpha > 0.001f)) return;
        Vec3 c = Vec3{rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]} * alpha;
        if (add.linear_colors && add.space == ColorSpace::SRGB) c = linear_to_srgb(c);
        if (!add.linear_colors && add.space == ColorSpace::Linear) c = srgb_to_linear(c);
        p.rgb += c * share;
        p.alpha += alpha * share;
    }
};

} // namespace ngp
