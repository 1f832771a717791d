#include <cmath>
#include <ngp/core/check.h>
#include <ngp/stages/image.h>

namespace ngp {

int64_t ImageView::bytes() const {
    ImageView copy = *this;
    int64_t sum = 0;
    for_each_plane(copy, [&](const void* data, int64_t bytes, bool) {
        sum += bytes;
        return data;
    });
    return sum;
}

void check_image(const ImageView& image, const std::string& where) {
    if (image.width < 1 || image.height < 1) fail(where, ": the image is ", image.width, "x", image.height, " pixels");
    if (image.channels != 3 && image.channels != 4)
        fail(where, ": the image has ", image.channels, " channels; it must have 3 or 4");
    if (image.premultiplied && image.type == PixelType::U8)
        fail(where, ": 8-bit colours are sRGB, which can't be premultiplied by alpha");
    if (!(image.depth_scale >= 0 && std::isfinite(image.depth_scale)))
        fail(where, ": depth_scale is ", image.depth_scale, "; it must not be negative and finite");
}

} // namespace ngp
