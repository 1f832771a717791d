// A learned lens distortion: a grid of offsets over the image, added to the xy of camera-space ray directions (C.6).
#pragma once

#include <ngp/formulas/vec.h>

namespace ngp {

struct MapCell {
    int first;     // texel at the upper left; its neighbours are first + 1, + width, + width + 1
    Vec2 fraction; // of the way to them
};

// Nodes lie on the image's corners and evenly between them; bilinear in between. No offsets: no distortion.
struct DistortionMap {
    const Vec2* offsets = nullptr; // row-major height x width
    int width = 0, height = 0;     // at least 2 each

    NGP_HD MapCell cell(Vec2 uv) const {
        const float x = clamp_to(uv.x, 0.0f, 1.0f) * float(width - 1),
                    y = clamp_to(uv.y, 0.0f, 1.0f) * float(height - 1);
        const int i = min_of(int(x), width - 2), j = min_of(int(y), height - 2);
        return {j * width + i, {x - float(i), y - float(j)}};
    }
    NGP_HD Vec2 at(Vec2 uv) const {
        const MapCell c = cell(uv);
        const Vec2* o = offsets + c.first;
        const Vec2 top = o[0] * (1.0f - c.fraction.x) + o[1] * c.fraction.x;
        const Vec2 bottom = o[width] * (1.0f - c.fraction.x) + o[width + 1] * c.fraction.x;
        return top * (1.0f - c.fraction.y) + bottom * c.fraction.y;
    }
};

} // namespace ngp
