// Stage: a training image as both devices read it: colours, and what may lie beside them (specification C.4).
#pragma once

#include <ngp/formulas/color.h>
#include <ngp/formulas/half.h>
#include <ngp/formulas/vec.h>
#include <string>
#include <type_traits>

namespace ngp {

enum class PixelType : uint8_t {
    U8,  // sRGB, straight alpha
    F32, // linear
    F16, // linear, IEEE binary16
};
constexpr int64_t bytes_of(PixelType type) { return type == PixelType::U8 ? 1 : type == PixelType::F16 ? 2 : 4; }

enum class DepthType : uint8_t { F32, U16 };
constexpr int64_t bytes_of(DepthType type) { return type == DepthType::U16 ? 2 : 4; }

constexpr int floats_per_ray = 6; // of a ray file's record: origin, direction

struct ImageView {
    const void* pixels = nullptr; // row-major height x width x channels
    PixelType type = PixelType::U8;
    int channels = 4; // 3 or 4
    int width = 0, height = 0;
    int device = -1;            // number of the CUDA device whose memory holds the pixels; -1: the host's
    bool premultiplied = false; // the colours by alpha; not of U8

    // One entry a pixel, row-major, in host memory until an engine has taken the view; null: there is none.
    const uint8_t* mask = nullptr; // not 0: training leaves the pixel out
    const void* depth = nullptr;   // along the camera's forward axis; not above 0: unknown
    DepthType depth_type = DepthType::F32;
    float depth_scale = 1.0f; // from the values of `depth` to NGP units
    const float* rays =
        nullptr; // the pixel's ray in place of the camera's, NGP space: origin and direction (any length)

    NGP_HD size_t n_pixels() const { return size_t(width) * size_t(height); }
    NGP_HD size_t index(int x, int y) const { return size_t(y) * size_t(width) + size_t(x); }
    int64_t pixel_bytes() const { return int64_t(n_pixels()) * channels * bytes_of(type); }
    int64_t bytes() const; // of everything
};

// Calls visit(data, bytes, holds_pixels) for every array that an image has; what it returns takes the array's place.
template <typename Visit>
void for_each_plane(ImageView& image, Visit&& visit) {
    const auto n = int64_t(image.n_pixels());
    auto move = [&](auto*& data, int64_t bytes, bool pixels) {
        if (data) data = static_cast<std::remove_reference_t<decltype(data)>>(visit(data, bytes, pixels));
    };
    move(image.pixels, image.pixel_bytes(), true);
    move(image.mask, n, false);
    move(image.depth, n * bytes_of(image.depth_type), false);
    move(image.rays, n * floats_per_ray * int64_t(sizeof(float)), false);
}

// Raises ngp::Error, which begins with `where`, for an image that can't be trained on.
void check_image(const ImageView& image, const std::string& where);

// Linear light premultiplied by alpha, and alpha.
struct LinearPixel {
    Vec3 rgb;
    float alpha;
};
NGP_HD LinearPixel read_pixel(const ImageView& image, int x, int y) {
    const size_t at = image.index(x, y) * size_t(image.channels);
    LinearPixel p;
    if (image.type == PixelType::U8) {
        const uint8_t* c = static_cast<const uint8_t*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? float(c[3]) * (1.0f / 255.0f) : 1.0f;
        p.rgb = srgb_to_linear(Vec3{float(c[0]), float(c[1]), float(c[2])} * (1.0f / 255.0f)) * p.alpha;
        return p;
    }
    if (image.type == PixelType::F16) {
        const uint16_t* c = static_cast<const uint16_t*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? half_to_float(c[3]) : 1.0f;
        p.rgb = {half_to_float(c[0]), half_to_float(c[1]), half_to_float(c[2])};
    } else {
        const float* c = static_cast<const float*>(image.pixels) + at;
        p.alpha = image.channels == 4 ? c[3] : 1.0f;
        p.rgb = {c[0], c[1], c[2]};
    }
    if (!image.premultiplied) p.rgb = p.rgb * p.alpha;
    return p;
}

NGP_HD bool is_masked(const ImageView& image, int x, int y) { return image.mask && image.mask[image.index(x, y)]; }

// Depth along the camera's forward axis in NGP units; 0: unknown.
NGP_HD float read_depth(const ImageView& image, int x, int y) {
    if (!image.depth) return 0.0f;
    const size_t at = image.index(x, y);
    const float v = image.depth_type == DepthType::U16 ? float(static_cast<const uint16_t*>(image.depth)[at])
                                                       : static_cast<const float*>(image.depth)[at];
    return v > 0.0f ? v * image.depth_scale : 0.0f;
}

} // namespace ngp
