// Rendering on the device: what a frame is made from. In passes: one over a sample of all pixels, or of as many as
// there is room for. start_rays() (render_rays.cu) makes their rays and takes them through empty space, to their first
// sample or out of the scene; the kernel of render_kernel.cuh traces those that have met something. They are two
// kernels because the second one is fast as long as its loop fits the instruction cache (docs/performance.md), and
// lenses don't.
//
// Files that include render_kernel.cuh instantiate it for a network policy and hand out the two functions below.
#pragma once

#include "memory.cuh"
#include "model.cuh"

#include <ngp/stages/render_mode.h>
#include <ngp/stages/render_rays.h>

namespace ngp::cuda {

// A ray at its first sample.
struct StartedRay {
    uint32_t pixel;     // row-major index
    float t, t_end, dt; // dt: length of the step from t
    Vec3 line;          // the direction; if all rays have the job's, the origin
};
// What else there is to say of rays that share neither: those of a lens with an aperture, or of a moving camera.
struct RayStart {
    Vec3 origin;   // where t is 0
    float z_per_t; // cosine of the angle to the camera's forward axis
};
struct RenderCounters {
    uint32_t started, taken; // rays
};

// A picture to take. Its size, the camera's axis and the near distance are those of `make`.
struct RenderJob {
    ModelView model;
    OccupancyView occupancy; // on the device
    MakeRenderRay make;      // box: of the scene, cut with that of the request
    Vec3 parallel_direction; // of all rays, if the lens is orthographic; the launch sets it
    int spp = 1, sample = 0; // samples of a pixel; number of this pass's, which the launch sets
    float min_transmittance = 0.01f;
    AddRay add;                      // its near distance: that of `make`
    bool normals = false;            // wanted, by the frame or by its mode
    VisualizedActivation visualized; // GeneralNetwork only
    FramePixel* pixels = nullptr;    // on the device, row-major; every one is written
    // On the device, and of no meaning between passes.
    StartedRay* rays = nullptr; // render_rays() of them
    RayStart* starts = nullptr; // likewise, if separate_starts(); `line` is the direction of all then
    RenderCounters* counters = nullptr;
    // For policies that need any (RenderScratch). Less makes the grid smaller.
    char* scratch = nullptr;
    int64_t scratch_size = 0; // bytes

    // Whether the kernel must have everything: the other one, which is smaller, draws what most pictures are.
    NGP_HD bool full() const {
        return normals || add.shows.mode != RenderMode::Shade || visualized.wanted() || separate_starts();
    }
    NGP_HD bool separate_starts() const { return make.blur.aperture > 0.0f || make.motion.exists(); }
};

// The picture in tiles of 8x4 pixels, a warp's worth. They are numbered in Z-order within squares of 8x8 tiles, and
// those row by row; tiles beyond the picture's edge have no pixels.
struct TileOrder {
    int width, height;

    static constexpr int tile_width = 8, tile_height = 4, square = 8; // square: in tiles
    static constexpr int tile_pixels = tile_width * tile_height;

    struct Tile {
        int x, y; // of the first pixel
    };
    NGP_HD static int64_t squares(int pixels, int side) { return (pixels + side - 1) / side; }
    NGP_HD int64_t squares_x() const { return squares(width, tile_width * square); }
    NGP_HD int64_t count() const { return squares_x() * squares(height, tile_height * square) * square * square; }
    NGP_HD Tile tile(int64_t number) const {
        const auto within = uint32_t(number % (square * square));
        const int64_t s = number / (square * square);
        const uint32_t x = (within & 1u) | ((within >> 1) & 2u) | ((within >> 2) & 4u); // bits 0, 2, 4
        const uint32_t y = ((within >> 1) & 1u) | ((within >> 2) & 2u) | ((within >> 3) & 4u);
        return {int(s % squares_x() * square + x) * tile_width, int(s / squares_x() * square + y) * tile_height};
    }
    NGP_HD bool contains(int x, int y) const { return x < width && y < height; }
};

// Tiles of a pass at most: 2 million pixels, whose rays take 56 MiB.
constexpr int64_t pass_tiles = 1 << 16;
inline int64_t tiles_of_pass(const TileOrder& order) { return order.count() < pass_tiles ? order.count() : pass_tiles; }
// Rays that a picture needs room for.
inline int64_t render_rays(int width, int height) { return tiles_of_pass({width, height}) * TileOrder::tile_pixels; }

// Sums over a pixel's samples are kept in the frame itself. The first sample does not read it.
__device__ inline FramePixel sum_before(const RenderJob& job, uint32_t pixel) {
    return job.sample == 0 ? FramePixel{} : job.pixels[pixel];
}
__device__ inline void store_sum(const RenderJob& job, uint32_t pixel, FramePixel sum) {
    if (job.sample + 1 == job.spp) {
        const float scale = 1.0f / float(job.spp);
        sum.rgb = sum.rgb * scale;
        sum.alpha *= scale;
        sum.depth_expected *= scale;
        sum.normal = sum.normal * scale;
    }
    job.pixels[pixel] = sum;
}

// Makes the rays of `n_tiles` tiles from `first_tile` on, and adds those that meet nothing to the frame; the others go
// to job.rays, their number to job.counters. Asynchronous, in the context's stream.
void start_rays(Context& context, const RenderJob& job, int64_t first_tile, int64_t n_tiles);

// Asynchronous, in the context's stream. Raises ngp::Error if the kernel can't be launched.
using RenderLauncher = void (*)(Context& context, const RenderJob& job);
// Bytes of scratch with which the launcher fills the device; 0 for policies that need none.
using RenderScratch = int64_t (*)(const Context& context, const ModelView& model, bool full);

} // namespace ngp::cuda
