// The NeRF task: a radiance field with everything needed to train, render and query it, behind an interface that hides
// the device (design: one engine a device, options and scene shared).
#pragma once

#include <memory>
#include <ngp/core/config.h>
#include <ngp/stages/encoding.h>
#include <ngp/stages/mlp.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/optimizer.h>
#include <ngp/stages/training_step.h>
#include <string>
#include <vector>

namespace ngp {

constexpr int density_outputs = 16; // of the density network; output 0 is the raw density

// Shapes and parameter offsets of the whole model, in canonical order: density network, rgb network, position encoding.
struct NerfModelShape {
    EncodingShape position, direction;
    MlpShape density, rgb;

    size_t rgb_begin() const { return density.n_params(); }
    size_t encoding_begin() const { return rgb_begin() + rgb.n_params(); }
    size_t n_params() const { return encoding_begin() + position.n_params; }
};
NerfModelShape nerf_model_shape(const NetworkConfig& config, int aabb_scale);

// Initial parameters (E.1): networks uniform in ±sqrt(6/(in+out)), encoding uniform in ±1e-4.
std::vector<float> initial_nerf_params(const NerfModelShape& shape, uint64_t seed);

// Options of training that can change between steps.
struct NerfTrainOptions {
    ColorOptions color;
    LossType loss = LossType::Huber;
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    float near_distance = 0.1f;
    float cone_angle = 0.0f;
    float occupancy_decay = 0.95f;
    int n_images = 0; // first n are used; 0: all
    bool snap_to_pixel_centers = true;
    OccupancySchedule occupancy_schedule = OccupancySchedule::Budgeted;
    bool train_encoding = true, train_network = true;
};

// A picture to take; camera in NGP space.
struct FrameRequest {
    CameraModel camera; // width and height in pixels
    CameraMatrix pose;
    int spp = 1;
    Aabb box;  // cut with the scene box
    Aabb crop; // in the frame of crop_to_local
    Mat3 crop_to_local;
    float near_distance = 0; // the ray's origin moves this far
    float cone_angle = 0;
    float min_transmittance = 0.01f;
    bool snap_to_pixel_centers = false;
    bool normals = false;
    bool linear_colors = false;            // of the network
    ColorSpace space = ColorSpace::Linear; // in which samples are averaged
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
};

// One pixel of a frame, averaged over its samples; colours premultiplied, without background.
struct FramePixel {
    Vec3 rgb;
    float alpha = 0;
    float depth_expected = 0; // alpha-weighted mean of z along the camera's forward axis, times alpha
    float depth_max_weight =
        max_depth; // z of the sample of largest weight in the last sample per pixel; alpha <= 0.2: max_depth
    Vec3 normal;   // alpha-weighted sum of unit normals
};

// Everything that training continues from besides the parameters.
struct NerfTrainState {
    std::vector<float> params; // fp32 masters
    NerfOptimizer::State optimizer;
    uint32_t step = 0;
    int rays_per_batch = 0;
    int64_t rays_of_last_batch = 0; // batch size that rays_per_batch was adapted to
    uint32_t occupancy_updates = 0;
    std::vector<float> occupancy_fresh; // OccupancyGrid::fresh()
    int n_images_seen = 0;              // of the last visibility test
    float loss = 0;
};

struct StageTimes { // milliseconds, summed over the steps since reset
    double occupancy = 0, rays_to_gradients = 0, scatter = 0, optimizer = 0;
    double marching = 0; // the part of rays_to_gradients that draws rays and marches
    int64_t steps = 0;
};

class NerfEngine {
  public:
    virtual ~NerfEngine() = default;

    // Views must stay valid until replaced. Changing aabb_scale needs a new network.
    virtual void set_views(std::vector<TrainingView> views) = 0;
    // New network: parameters from `seed`, training from step 0.
    virtual void reset_network(const NetworkConfig& config, int aabb_scale, uint64_t seed) = 0;
    virtual const NerfModelShape& shape() const = 0;

    virtual StepResult train_step(const NerfTrainOptions& options, int64_t batch_size) = 0;

    virtual void render(const FrameRequest& request, FramePixel* pixels) = 0;
    // Raw outputs of the averaged weights at NGP positions; `directions` may be null.
    virtual void evaluate(const Vec3* positions, const Vec3* directions, int64_t n, RawSample* out) = 0;

    // Averaged weights, which rendering and snapshots use; setting them also sets the trained ones and restarts the
    // optimizer.
    virtual std::vector<float> params() = 0;
    virtual void set_params(const std::vector<float>& params) = 0;
    virtual NerfTrainState train_state() const = 0;
    virtual void set_train_state(const NerfTrainState& state) = 0;

    virtual const OccupancyGrid& occupancy() const = 0;
    virtual void set_occupancy(const std::vector<float>& values) = 0;
    virtual void reset_occupancy() = 0;

    virtual StageTimes stage_times() const = 0;
    virtual void reset_stage_times() = 0;
    virtual int64_t host_bytes() const = 0;
};

std::unique_ptr<NerfEngine> make_cpu_nerf_engine();

} // namespace ngp
