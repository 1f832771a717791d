// What can be run of a model's networks, for every shape behind one table of functions. All are asynchronous in the
// context's stream and can be captured into a graph.
#pragma once

#include "fused_backward.cuh"
#include "render.cuh"
#include "trace_rays.cuh"

#include <ngp/stages/occupancy.h>

namespace ngp::cuda {

// Evaluates points.
struct PointsJob {
    ModelView model;
    ScratchView scratch;
    const Vec3* positions;  // NGP space
    const Vec3* directions; // null: only densities
    int64_t n;
    RawSample* out;     // null: not wanted
    half* encodings;    // of FusedNetwork; null: not wanted
    Vec3* d_position;   // gradient of the raw density; null: not wanted
    float finest_scale; // of d_position
};
// Draws cells of the occupancy grid and keeps the largest visit value of each.
struct OccupancyJob {
    ModelView model;
    ScratchView scratch;
    DrawOccupancySample uniform, occupied; // where their results go is not used
    float* fresh;
};

struct NetworkFunctions {
    void (*trace_rays)(Context&, const TraceRaysJob&);
    void (*points)(Context&, const PointsJob&);
    void (*occupancy)(Context&, const OccupancyJob&);
    RenderLauncher render;
    RenderScratch render_scratch;
    int64_t (*scratch_bytes)(const Context&, const ModelView&); // for the first three
    int64_t (*shared_bytes)(const ModelView&);                  // of a block, at most
    // Of fused shapes only.
    void (*backward)(Context&, const FusedBackwardJob&) = nullptr;
    int (*backward_blocks)(const Context&) = nullptr; // sets of weight gradients that it leaves; 0: no room for a block
};

// For FusedNetwork<width>, one or two hidden layers of the rgb network.
const NetworkFunctions& fused_functions(int width, int rgb_hidden);
const NetworkFunctions& general_functions();

} // namespace ngp::cuda
