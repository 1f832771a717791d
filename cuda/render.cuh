// Rendering on the device: what a frame is made from. The kernel is in render_kernel.cuh; files that include that one
// instantiate it for a network policy and hand out the two functions below.
#pragma once

#include "memory.cuh"
#include "model.cuh"

#include <ngp/stages/render_mode.h>
#include <ngp/stages/render_rays.h>

namespace ngp::cuda {

// A picture to take. Its size, the camera's axis and the near distance are those of `make`.
struct RenderJob {
    ModelView model;
    OccupancyView occupancy; // on the device
    MakeRenderRay make;      // box: of the scene, cut with that of the request
    Vec3 parallel_direction; // of all rays, if the lens is orthographic; the launch sets it
    int spp = 1;
    float min_transmittance = 0.01f;
    AddRay add;                   // its near distance: that of `make`
    FramePixel* pixels = nullptr; // on the device, row-major; every one is written
    uint32_t* ticket = nullptr;   // on the device, one; the launch sets it
    // On the device, for policies that need any (RenderScratch). Less makes the grid smaller.
    char* scratch = nullptr;
    int64_t scratch_size = 0; // bytes
};

// Asynchronous, in the context's stream. Raises ngp::Error if the kernel can't be launched.
using RenderLauncher = void (*)(Context& context, const RenderJob& job, bool normals);
// Bytes of scratch with which the launcher fills the device; 0 for policies that need none.
using RenderScratch = int64_t (*)(const Context& context, const ModelView& model, bool normals);

} // namespace ngp::cuda
