// Stage: what training rays are drawn from. Images and their cameras, as both devices read them (specification C).
#pragma once

#include <ngp/formulas/aabb.h>
#include <ngp/formulas/color.h>
#include <ngp/formulas/lens.h>
#include <ngp/formulas/pose.h>
#include <string>

namespace ngp {

enum class PixelType : uint8_t {
    U8,  // sRGB, straight alpha
    F32, // linear, straight alpha
};

struct ImageView {
    const void* pixels = nullptr; // row-major height x width x channels
    PixelType type = PixelType::U8;
    int channels = 4; // 3 or 4
    int width = 0, height = 0;
    int device = -1; // number of the CUDA device whose memory holds the pixels; -1: the host's
};

// Linear light premultiplied by alpha, and alpha.
struct LinearPixel {
    Vec3 rgb;
    float alpha;
};
NGP_HD LinearPixel read_pixel(const ImageView& image, int x, int y) {
    const size_t at = (size_t(y) * size_t(image.width) + size_t(x)) * size_t(image.channels);
    LinearPixel p;
    if (image.type == PixelType::U8) {
        const uint8_t* c = static_cast<const uint8_t*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? float(c[3]) * (1.0f / 255.0f) : 1.0f;
        p.rgb = srgb_to_linear(Vec3{float(c[0]), float(c[1]), float(c[2])} * (1.0f / 255.0f)) * p.alpha;
    } else {
        const float* c = static_cast<const float*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? c[3] : 1.0f;
        p.rgb = Vec3{c[0], c[1], c[2]} * p.alpha;
    }
    return p;
}

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

// Raises ngp::Error, which begins with `where`, unless lens, focal length and principal point make sense.
void check_camera(const CameraModel& camera, const std::string& where);

} // namespace ngp
