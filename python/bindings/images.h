// Training images as arguments: pixels, and what may lie beside them.
#pragma once

#include "arrays.h"

#include <string>

// An image whose arrays `owner` keeps alive.
struct TrainingImage {
    ngp::ImageView view;
    std::shared_ptr<const void> owner;
};

// A TrainingImage, or pixels alone: uint8 (sRGB), float16 or float32 (linear) of shape (height, width, 3 or 4),
// straight alpha. Raises ValueError, which begins with `name`. Without a copy where an array is contiguous.
TrainingImage image_of(const py::object& pixels, const std::string& name);
