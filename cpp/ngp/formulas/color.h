// Colour encodings and tone curves (IEC 61966-2-1 for sRGB; constants of specification E.6).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

enum class ColorSpace : uint8_t { Linear = 0, SRGB = 1 };
enum class TonemapCurve : uint8_t { Identity = 0, ACES = 1, Hable = 2, Reinhard = 3 };

// sRGB is a line near black, and a power of the value beyond. E.6 rounds the exponent of encoding.
namespace srgb_curve {
constexpr float slope = 12.92f, line_end = 0.04045f, linear_line_end = 0.0031308f;
constexpr float scale = 1.055f, offset = 0.055f;
constexpr float exponent = 2.4f, encoding_exponent = 0.41666f;
} // namespace srgb_curve

NGP_HD float srgb_to_linear(float v) {
    using namespace srgb_curve;
    return v <= line_end ? v / slope : std::pow((v + offset) / scale, exponent);
}
NGP_HD float linear_to_srgb(float v) {
    using namespace srgb_curve;
    return v < linear_line_end ? slope * v : scale * std::pow(v, encoding_exponent) - offset;
}
// Derivative of linear_to_srgb().
NGP_HD float linear_to_srgb_slope(float v) {
    using namespace srgb_curve;
    return v < linear_line_end ? slope : scale * encoding_exponent * std::pow(v, encoding_exponent - 1.0f);
}
NGP_HD Vec3 srgb_to_linear(Vec3 c) { return {srgb_to_linear(c.x), srgb_to_linear(c.y), srgb_to_linear(c.z)}; }
NGP_HD Vec3 linear_to_srgb(Vec3 c) { return {linear_to_srgb(c.x), linear_to_srgb(c.y), linear_to_srgb(c.z)}; }
NGP_HD Vec3 linear_to_srgb_slope(Vec3 c) {
    return {linear_to_srgb_slope(c.x), linear_to_srgb_slope(c.y), linear_to_srgb_slope(c.z)};
}

NGP_HD float rational_curve(const float k[6], float x) {
    x = max_of(x, 0.0f);
    return (x * (k[0] * x + k[1]) + k[2]) / (x * (k[3] * x + k[4]) + k[5]);
}

NGP_HD Vec3 tonemap(TonemapCurve curve, Vec3 c) {
    if (curve == TonemapCurve::ACES) { // Narkowicz's fit, input scaled by 0.6
        const float k[6] = {0.36f * 2.51f, 0.6f * 0.03f, 0.0f, 0.36f * 2.43f, 0.6f * 0.59f, 0.14f};
        return {rational_curve(k, c.x), rational_curve(k, c.y), rational_curve(k, c.z)};
    }
    if (curve == TonemapCurve::Hable) {
        const float A = 0.15f, B = 0.5f, C = 0.1f, D = 0.2f, E = 0.02f, F = 0.3f, white = 11.2f;
        // (x(Ax+CB)+DE)/(x(Ax+B)+DF) - E/F, brought to one fraction
        const float k[6] = {A * F - A * E, C * B * F - B * E, 0.0f, A * F, B * F, D * F * F};
        const float scale = 1.0f / rational_curve(k, white);
        return Vec3{rational_curve(k, 2.0f * c.x), rational_curve(k, 2.0f * c.y), rational_curve(k, 2.0f * c.z)} *
               scale;
    }
    if (curve == TonemapCurve::Reinhard) {
        c = {max_of(c.x, 0.0f), max_of(c.y, 0.0f), max_of(c.z, 0.0f)};
        float y = 0.2126f * c.x + 0.7152f * c.y + 0.0722f * c.z;
        return c * (1.0f / (1.0f + y));
    }
    return c;
}

} // namespace ngp
