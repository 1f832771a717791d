// Stage: training rays (specification E.4). The body of `SampleTrainingRays` draws ray i of a step: an image, a pixel
// of it, the colour and distance that compositing should reach, and where marching starts.
#pragma once

#include <ngp/formulas/level_cut.h>
#include <ngp/formulas/march.h>
#include <ngp/formulas/rng.h>
#include <ngp/stages/error_map.h>
#include <ngp/stages/scene.h>

namespace ngp {

constexpr uint64_t random_draws_per_ray = 16;
// First draws of what options add, so that other draws don't depend on them.
constexpr uint64_t level_draw = 11, error_draws = 12;

// How targets and backgrounds are formed.
struct ColorOptions {
    ColorSpace space = ColorSpace::Linear; // in which colours are blended with the background
    bool linear_colors = false;            // the network composites linear light rather than sRGB
    bool random_background = true;
    Vec3 background{}; // sRGB, used if random_background is off

    NGP_HD bool operator==(const ColorOptions& o) const {
        return space == o.space && linear_colors == o.linear_colors && random_background == o.random_background &&
               background == o.background;
    }
};

struct TrainingRay {
    RayMarcher march;             // t: first stepping position, t_end: exit of the scene box
    Vec3 target;                  // in the network's compositing space
    Vec3 background;              // likewise
    int view = 0;                 // number of the training view
    float distance = 0;           // at which it should end, NGP units; 0: unknown
    float max_level = 1.0f;       // drawn_max_level()
    float inverse_density = 1.0f; // of its pixel (ErrorSampling), by which errors are multiplied
    uint32_t error_cell = 0;      // that its error counts for
};

// What compositing should reach for a pixel in front of a background (sRGB).
NGP_HD void form_target(const ColorOptions& options, const LinearPixel& pixel, Vec3 background, TrainingRay& ray) {
    const float through = 1.0f - pixel.alpha;
    if (options.linear_colors) {
        ray.background = srgb_to_linear(background);
        ray.target = pixel.rgb + ray.background * through;
        return;
    }
    ray.background = background;
    if (options.space == ColorSpace::SRGB) {
        Vec3 straight = pixel.alpha > 0.0f ? pixel.rgb / pixel.alpha : Vec3{};
        ray.target = linear_to_srgb(straight) * pixel.alpha + background * through;
    } else {
        ray.target = linear_to_srgb(pixel.rgb + srgb_to_linear(background) * through);
    }
}

// Rays of the next step: as many as would have filled the batch, to a multiple of 256 where there are that many (E.4).
NGP_HD int next_ray_count(int64_t rays, int64_t samples, int64_t batch_size) {
    const int64_t per_ray = max_of<int64_t>(1, samples);
    int64_t n = (rays * batch_size + per_ray - 1) / per_ray;
    if (n > 1024) n = (n + 255) / 256 * 256;
    return int(clamp_to<int64_t>(n, 8, max_of<int64_t>(8, batch_size)));
}

struct SampleTrainingRays {
    SceneView scene;
    ColorOptions color;
    Stepping stepping;
    Pcg32 rng;      // state of this step
    int n_rays = 0; // of this step
    int n_images = 0;
    bool snap_to_pixel_centers = true;
    bool with_distance = false; // depth maps are wanted
    bool random_levels = false;
    ErrorSampling errors;
    const uint32_t* pixels = nullptr; // y * width + x of those to draw from, the same in every view; null: all
    int n_pixels = 0;
    TrainingRay* rays = nullptr; // ray i goes to rays[i - first_ray]
    int64_t first_ray = 0;

    NGP_HD void operator()(int64_t i) const {
        Pcg32 r = rng;
        r.advance(uint64_t(i) * random_draws_per_ray);
        TrainingRay& ray = rays[i - first_ray];
        ray.max_level = ray.inverse_density = 1.0f;
        if (random_levels) {
            Pcg32 own = r;
            own.advance(level_draw);
            ray.max_level = drawn_max_level(own.next_float());
        }
        int image = int((i * n_images) / n_rays % n_images);
        const float u = r.next_float(), v = r.next_float();
        Vec2 uv{u, v};
        if (errors.active()) {
            Pcg32 own = rng;
            own.advance(uint64_t(i) * random_draws_per_ray + error_draws);
            ray.inverse_density = 1.0f / errors.choose(own, n_images, image, uv);
            ray.error_cell = errors.cell(image, uv);
        }
        ray.view = image;
        const TrainingView& view = scene.views[image];
        int x = min_of(int(uv.x * float(view.image.width)), view.image.width - 1);
        int y = min_of(int(uv.y * float(view.image.height)), view.image.height - 1);
        if (pixels) {
            const int pixel = int(pixels[min_of(int(u * float(n_pixels)), n_pixels - 1)]);
            x = pixel % view.image.width, y = pixel / view.image.width;
        }
        if (snap_to_pixel_centers || pixels)
            uv = {(float(x) + 0.5f) / float(view.image.width), (float(y) + 0.5f) / float(view.image.height)};
        Vec3 background = color.background;
        if (color.random_background) background = {r.next_float(), r.next_float(), r.next_float()};
        const float start = r.next_float();

        form_target(color, read_pixel(view.image, x, y), background, ray);
        const Ray line = pixel_ray(view, x, y, uv);
        if (!line.exists()) ray.target = ray.background; // no samples, and no loss
        ray.distance = with_distance ? pixel_distance(view, x, y, uv) : 0.0f;
        const Vec2 inside = intersect(scene.box, line.origin, line.direction);
        const float t_start = stepping.advance(max_of(inside.x, 0.0f), start);
        ray.march = RayMarcher::starting(line.origin, line.direction, t_start, inside.x == FLT_MAX ? 0.0f : inside.y);
    }
};

} // namespace ngp
