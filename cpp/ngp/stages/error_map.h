// Stage: importance sampling of training pixels by their errors (specification E.4).
//
// While it is on, each image has a coarse map of the losses of its rays. After 128 steps, and then after intervals that
// grow by a half each, the maps become cumulative distributions, and new ones are begun. Half of the rays take their
// image, and half their pixel, from these; the others are uniform as without. Losses are divided by the probability
// density of their pixel when they are reported and added to the maps, but not in gradients: that training looks more
// often where errors are large is the purpose.
#pragma once

#include <functional>
#include <ngp/formulas/rng.h>
#include <ngp/stages/scene.h>
#include <vector>

namespace ngp {

struct ErrorMapOptions {
    bool by_image = false;     // images in proportion to their error
    bool by_pixel = false;     // pixels of an image likewise
    bool by_sharpness = false; // errors count in proportion to the sharpness of the image where they are

    bool active() const { return by_image || by_pixel; }
    bool operator==(const ErrorMapOptions&) const = default;
};

// Inverse of a cumulative distribution over n intervals of [0,1), whose last value is 1.
struct CdfInverse {
    int interval;
    float fraction; // where in the interval
};
NGP_HD CdfInverse invert_cdf(const float* cdf, int n, float u) {
    int low = 0, high = n - 1; // the first interval whose value is above u
    while (low < high) {
        const int middle = (low + high) / 2;
        if (cdf[middle] > u)
            high = middle;
        else
            low = middle + 1;
    }
    const float begin = low > 0 ? cdf[low - 1] : 0.0f, length = cdf[low] - begin;
    return {low, length > 0.0f ? clamp_to((u - begin) / length, 0.0f, 1.0f) : 0.0f};
}
NGP_HD float cdf_probability(const float* cdf, int i) { return cdf[i] - (i > 0 ? cdf[i - 1] : 0.0f); }

constexpr uint64_t error_map_draws = 2; // random numbers that choose() takes

// What a step's rays are drawn by. Distributions that are null are not in use.
struct ErrorSampling {
    const float* images = nullptr;     // cumulative, of n_images
    const float* rows = nullptr;       // of each image, of `height`
    const float* columns = nullptr;    // of each row, of `width`
    int width = 0, height = 0;         // of the distributions
    int map_width = 0, map_height = 0; // of the map that errors go to; 0: they are not kept

    NGP_HD bool active() const { return map_width > 0; }

    // Changes image and position (uniform in [0,1)^2) for half of the rays each. Returns the probability density, 1
    // being that of uniform rays.
    NGP_HD float choose(Pcg32 r, int n_images, int& image, Vec2& uv) const {
        float density = 1.0f;
        const float of_image = r.next_float(), of_pixel = r.next_float();
        if (images) {
            if (of_image >= 0.5f) image = invert_cdf(images, n_images, 2.0f * of_image - 1.0f).interval;
            density *= 0.5f + 0.5f * float(n_images) * cdf_probability(images, image);
        }
        if (rows) {
            const float* image_rows = rows + size_t(image) * size_t(height);
            const float* image_columns = columns + size_t(image) * size_t(height) * size_t(width);
            if (of_pixel >= 0.5f) {
                const CdfInverse y = invert_cdf(image_rows, height, uv.y);
                const CdfInverse x = invert_cdf(image_columns + size_t(y.interval) * size_t(width), width, uv.x);
                uv = {(float(x.interval) + x.fraction) / float(width),
                      (float(y.interval) + y.fraction) / float(height)};
            }
            const int x = cell_along(uv.x, width), y = cell_along(uv.y, height);
            const float of_cell =
                cdf_probability(image_rows, y) * cdf_probability(image_columns + size_t(y) * size_t(width), x);
            density *= 0.5f + 0.5f * float(width) * float(height) * of_cell;
        }
        return density;
    }
    // Of the map.
    NGP_HD uint32_t cell(int image, Vec2 uv) const {
        return (uint32_t(image) * uint32_t(map_height) + uint32_t(cell_along(uv.y, map_height))) * uint32_t(map_width) +
               uint32_t(cell_along(uv.x, map_width));
    }
    NGP_HD static int cell_along(float u, int n) { return min_of(int(u * float(n)), n - 1); }
};

// The error of a ray, and the cell that it counts for.
struct RayError {
    uint32_t cell;
    float error;
};

constexpr int sharpness_width = 128, sharpness_height = 72; // tiles of an image

// sRGB luma of a pixel over black (Rec.709 weights).
NGP_HD float pixel_luma(const ImageView& image, int x, int y) {
    const Vec3 c = linear_to_srgb(read_pixel(image, x, y).rgb);
    return 0.2126f * c.x + 0.7152f * c.y + 0.0722f * c.z;
}
// Pixels of tile i of n along an axis, at least three of them where there are as many.
struct TilePixels {
    int begin, end;
    NGP_HD TilePixels(int i, int n, int size)
        : begin(int(int64_t(i) * size / n)), end(max_of(begin + 1, int(int64_t(i + 1) * size / n))) {
        while (end - begin < 3 && end - begin < size) {
            if (begin > 0) --begin;
            if (end - begin < 3 && end < size) ++end;
        }
    }
};
// Sharpness of a tile (row-major number) of an image: variance of the Laplacian of luma(x, y), whose edges repeat.
template <typename Luma>
NGP_HD float tile_sharpness(int tile, int width, int height, const Luma& luma) {
    const TilePixels xs(tile % sharpness_width, sharpness_width, width);
    const TilePixels ys(tile / sharpness_width, sharpness_height, height);
    auto at = [&](int x, int y) { return luma(clamp_to(x, 0, width - 1), clamp_to(y, 0, height - 1)); };
    double sum = 0, squares = 0;
    for (int y = ys.begin; y < ys.end; ++y)
        for (int x = xs.begin; x < xs.end; ++x) {
            const double l = at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1) - 4.0f * at(x, y);
            sum += l, squares += l * l;
        }
    const double n = double(xs.end - xs.begin) * (ys.end - ys.begin), mean = sum / n;
    return float(max_of(0.0, squares / n - mean * mean));
}
// Body: tile i of an image.
struct SharpnessOfTile {
    ImageView image;
    float* tiles;

    NGP_HD void operator()(int64_t i) const {
        const ImageView& of = image;
        tiles[i] =
            tile_sharpness(int(i), image.width, image.height, [&](int x, int y) { return pixel_luma(of, x, y); });
    }
};
// Of all tiles of an image whose pixels are in host memory.
std::vector<float> image_sharpness(const ImageView& image);
// Of the first n images; on the CPU.
std::vector<std::vector<float>> sharpness_of_images(const std::vector<TrainingView>& views, int n);

// Cumulative distribution in proportion to `values` (not negative), of which `floor` is spread evenly.
void cumulate(const double* values, int n, double floor, float* cdf);

// Side of a map that `rays` of one image go to, at most `limit`: 3.5 rays^(1/4).
int error_map_side(double rays, int limit);

// The maps on the host.
class ErrorMap {
  public:
    using Sharpness = std::function<std::vector<std::vector<float>>(const std::vector<TrainingView>&, int n)>;
    explicit ErrorMap(Sharpness sharpness = sharpness_of_images) : find_sharpness_(std::move(sharpness)) {}

    // What training continues from.
    struct State {
        int n_images = 0;          // 0: nothing was kept
        int width = 0, height = 0; // of `errors`
        std::vector<float> errors; // image after image, row-major
        int drawn_width = 0, drawn_height = 0;
        std::vector<float> drawn;         // the maps of the last interval; empty in the first
        uint32_t steps = 0, interval = 0; // since the last one, and its length
    };

    // Whether begin_step() will change maps or distributions.
    bool changes_at(const ErrorMapOptions& options, int n_images) const;
    // Before a step of `n_rays` of the first n_images: begins, ends or rebuilds, if it is time.
    void begin_step(const ErrorMapOptions& options, const std::vector<TrainingView>& views, int n_images, int n_rays);
    ErrorSampling sampling() const;
    // Where the step's rays leave their errors; null if they are not kept.
    RayError* ray_errors() { return ray_errors_.empty() ? nullptr : ray_errors_.data(); }
    // After a step of which the first n_rays were traced.
    void end_step(int64_t n_rays);
    // Devices that add up errors themselves: call end_step(0), and this before what reads them.
    void set_errors(std::vector<float> errors) { state_.errors = std::move(errors); }

    // Forgets everything, as after a change of the images.
    void reset();
    const State& state() const { return state_; }
    void set_state(State state) { state_ = std::move(state), must_cumulate_ = true; }
    int64_t bytes() const;

  private:
    void begin_interval(const std::vector<TrainingView>& views, int n_rays);
    void cumulate_maps(const std::vector<TrainingView>& views);
    float cell_sharpness(int image, int x, int y) const;

    Sharpness find_sharpness_;
    ErrorMapOptions options_;
    State state_;
    bool must_cumulate_ = false; // distributions are not those of state_
    std::vector<float> images_, rows_, columns_;
    std::vector<std::vector<float>> sharpness_; // of images; empty until needed
    std::vector<RayError> ray_errors_;
};

} // namespace ngp
