// The NeRF task: a radiance field with everything needed to train, render and query it, behind an interface that hides
// the device (design: one engine a device, options and scene shared).
#pragma once

#include <memory>
#include <ngp/core/config.h>
#include <ngp/core/memory.h>
#include <ngp/stages/camera_optimizer.h>
#include <ngp/stages/display.h>
#include <ngp/stages/encoding.h>
#include <ngp/stages/error_map.h>
#include <ngp/stages/mlp.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/optimizer.h>
#include <ngp/stages/query.h>
#include <ngp/stages/render_mode.h>
#include <ngp/stages/render_rays.h>
#include <ngp/stages/training_step.h>
#include <ngp/stages/view_inputs.h>
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
    int n_extra_dims() const { return max_of(0, direction.n_in - 3); }
};
// `n_extra_dims`: inputs of the direction encoding after the direction (ViewInputs). Raises ngp::Error if it leaves
// some of them unread.
NerfModelShape nerf_model_shape(const NetworkConfig& config, int aabb_scale, int n_extra_dims = 0);

// Initial parameters (E.1): networks uniform in ±sqrt(6/(in+out)), encoding uniform in ±1e-4.
std::vector<float> initial_nerf_params(const NerfModelShape& shape, uint64_t seed);

// Options of training that can change between steps.
struct NerfTrainOptions {
    ColorOptions color;
    LossType loss = LossType::Huber;
    TrainMode train_mode = TrainMode::Nerf;
    ErrorMapOptions error_map;
    bool random_levels = false; // level_cut.h
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    float near_distance = 0.1f;
    float cone_angle = 0.0f;
    float occupancy_decay = 0.95f;
    int n_images = 0; // first n are used; 0: all
    bool snap_to_pixel_centers = true;
    OccupancySchedule occupancy_schedule = OccupancySchedule::Budgeted;
    bool train_encoding = true, train_network = true;
    DepthSupervision depth;
    bool train_view_inputs = false; // per-image latents
    CameraLearning cameras;

    bool operator==(const NerfTrainOptions&) const = default;
};

// What the options, and the number of images that are trained on, say of a step: the same on every device.
inline void apply_options(const NerfTrainOptions& o, int n_images, StepPlan& plan) {
    plan.n_images = n_images;
    plan.sample.n_images = n_images;
    plan.sample.color = o.color;
    plan.sample.stepping = Stepping::with_cone_angle(o.cone_angle);
    plan.sample.snap_to_pixel_centers = o.snap_to_pixel_centers;
    plan.sample.with_distance = o.depth.lambda != 0.0f;
    plan.sample.random_levels = o.random_levels;
    plan.composite.rgb_activation = o.rgb_activation;
    plan.composite.density_activation = o.density_activation;
    plan.composite.objective = {o.train_mode, o.loss};
    plan.composite.near_distance = o.near_distance;
    plan.composite.depth = o.depth;
}

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
    LensBlur blur;
    ShutterMotion motion; // of the camera from `pose`
    ModeOptions shows;    // a mode that marches: not Distortion, not Slice
    VisualizedActivation visualized;
    int image = -1;                // training view whose appearance the picture has; -1: none in particular
    std::vector<float> extra_dims; // of the model, which rays get besides their direction (ViewInputs)
    bool distortion_map = false;   // through the learned one
    Vec3 gain{1, 1, 1};            // of the rgb channel

    AddRay add_ray() const { return {shows, linear_colors, space, near_distance}; }
};

// Rays along which a frozen field's colours are compared with pictures, as a function of the extra dimensions.
struct ViewInputLoss {
    SampleTrainingRays sample; // n_rays of them; its views, and their pixels in host memory, are not the engine's
    CompositeOptions composite;
    std::vector<float> extra_dims; // the same for all rays
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
    ErrorMap::State error_map;
};

struct StageTimes { // milliseconds, summed over the steps since reset
    double occupancy = 0, rays_to_gradients = 0, scatter = 0, optimizer = 0;
    double marching = 0;                               // the part of rays_to_gradients that draws rays and marches
    double forward = 0, compositing = 0, backward = 0; // its other parts, where they are separate
    int64_t steps = 0;
};

class NerfEngine {
  public:
    virtual ~NerfEngine() = default;

    // Views, whose pixels are in host memory or on the engine's device, must stay valid until replaced. Changing
    // aabb_scale needs a new network.
    virtual void set_views(std::vector<TrainingView> views) = 0;
    // Learned corrections of their cameras. Views are given without them.
    virtual const CameraCorrections& corrections() const = 0;
    virtual void set_corrections(const CameraCorrections& corrections) = 0;
    // New network: parameters from `seed`, training from step 0.
    // `n_extra_dims`: of each view's inputs; set_view_inputs() must follow if there are any.
    virtual void reset_network(const NetworkConfig& config, int aabb_scale, int n_extra_dims, uint64_t seed) = 0;
    virtual const NerfModelShape& shape() const = 0;

    // One step. May return before the device has done it; last_step() waits.
    virtual void train_step(const NerfTrainOptions& options, int64_t batch_size) = 0;
    virtual StepResult last_step() = 0; // zeros before the first

    // --- what the direction encoding gets of each training view besides the direction
    // One for each view, of the network's n_extra_dims; trained in place if the options say so.
    virtual void set_view_inputs(ViewInputs inputs) = 0;
    virtual const ViewInputs& view_inputs() const = 0;
    // Mean loss over rays and channels for the averaged weights, and its gradient with respect to the extra dimensions.
    virtual float view_input_gradient(const ViewInputLoss& job, std::vector<float>& gradient) = 0;

    // --- rendering and queries, of the averaged weights. They return when their results are there.
    // A picture finished for display, in host memory: `rgba` gets 4 floats a pixel, `depth` (may be null) one.
    virtual void render_display(const FrameRequest& request, const DisplayOptions& display, float* rgba,
                                float* depth) = 0;
    // The channels that are not null, at `out`.
    virtual void render_channels(const FrameRequest& request, const WorldTransform& world,
                                 const ChannelPointers& channels, Placement out) = 0;
    // Values at world positions (FinishQueryPoint): `density` gets one float a point, `rgb` 3; it and `directions` are
    // both null or neither. All arrays are at `where`.
    virtual void query(const FieldQuery& query, const Vec3* positions, const Vec3* directions, int64_t n, float* rgb,
                       float* density, Placement where) = 0;

    // --- memory
    // Number of the CUDA device, or host_memory. Placement::Device is for engines that have one.
    virtual int device() const { return host_memory; }
    // For results, not initialised; it may outlive the engine. In host memory that the device copies to at full speed,
    // as far as there is any.
    virtual std::shared_ptr<SharedMemory> allocate(int64_t bytes, Placement where) = 0;
    // Makes what the engine does from now on wait for what was put into a stream of the CUDA runtime, a cudaStream_t.
    virtual void wait_for_stream(uintptr_t stream);
    // A copy of training pixels that are on the device: there, or, if they leave no room for a model, in host memory.
    virtual std::shared_ptr<SharedMemory> keep_pixels(const void* on_device, int64_t bytes);
    // A copy in host memory of what is on the device.
    virtual std::shared_ptr<SharedMemory> fetch(const void* on_device, int64_t bytes);
    // Whether n floats on the device are.
    virtual bool all_finite(const float* on_device, int64_t n);

    // Averaged weights, which rendering and snapshots use; setting them also sets the trained ones and restarts the
    // optimizer.
    virtual std::vector<float> params() = 0;
    virtual void set_params(const std::vector<float>& params) = 0;
    virtual NerfTrainState train_state() const = 0;
    virtual void set_train_state(const NerfTrainState& state) = 0;

    virtual const OccupancyGrid& occupancy() const = 0;
    virtual void set_occupancy(const std::vector<float>& values) = 0;
    virtual void reset_occupancy() = 0;

    // On devices where taking stage times costs speed, they are taken only while profiling is on.
    virtual void set_profiling(bool) {}
    virtual StageTimes stage_times() const = 0;
    virtual void reset_stage_times() = 0;
    virtual int64_t host_bytes() const = 0;
    // Allocated on the device, if it has memory of its own: now, and at most.
    virtual int64_t device_bytes() const { return 0; }
    virtual int64_t peak_device_bytes() const { return 0; }
};

std::unique_ptr<NerfEngine> make_cpu_nerf_engine();

// Engine on the CUDA device of that number. `max_bytes`: device memory that it may take, 0: all that is free; training
// images that don't fit stay in pinned host memory, from which the device fetches the pixels it samples. Raises
// ngp::Error if this build has no CUDA engine or the device can't be used.
struct CudaOptions {
    int device = 0;
    bool deterministic = false; // integer accumulation of gradients: same bytes for the same seed and card
    int64_t max_bytes = 0;
    int max_shared_bytes =
        0; // on-chip memory that a block may take, as of a smaller device, for tests; 0: what there is
};
std::unique_ptr<NerfEngine> make_cuda_nerf_engine(const CudaOptions& options);

// A model's training work in separate stages on given samples, for tests and benchmarks. Arrays are host memory.
class NerfModelBench {
  public:
    virtual ~NerfModelBench() = default;
    virtual const NerfModelShape& shape() const = 0;
    virtual void encode() = 0;                 // position encoding of all samples, alone
    virtual void forward() = 0;                // encoding and both networks
    virtual void forward_backward() = 0;       // ... and back to the encodings' gradients; adds weight gradients
    virtual void scatter() = 0;                // encoding gradients to table entries, added
    virtual void optimize() = 0;               // one step of every parameter; zeroes the gradient
    virtual void wait() {}                     // until the device has done all that
    virtual std::vector<float> gradient() = 0; // canonical order
    virtual void set_gradient(const std::vector<float>& gradient) = 0;
    virtual std::vector<float> params() = 0; // trained ones
    virtual void set_params(const std::vector<float>& params) = 0;
    virtual std::vector<float> averaged() = 0;
    virtual std::vector<RawSample> raw() = 0; // of forward()
    // What the position encoding gives, n x position.n_out_padded.
    virtual std::vector<float> encoded() = 0;
    // Of forward_backward(), if they are wanted: with respect to each sample's NGP position and direction, its
    // components as if independent. And with respect to the extra dimensions, empty without.
    virtual std::vector<RayGradient> input_gradients() = 0;
    virtual std::vector<float> extra_dims_gradient() = 0;
    // Gradient of the raw density with respect to the NGP position.
    virtual std::vector<Vec3> density_gradient() = 0;
};
struct NerfBenchInput {
    NetworkConfig config;
    int aabb_scale = 1;
    uint64_t seed = 1337;
    std::vector<Vec3> positions, directions; // NGP space
    std::vector<RawSample> d_raw;            // upstream gradients
    int n_extra_dims = 0;
    std::vector<float> extra_dims; // n_extra_dims a sample
    bool input_gradients = false;  // forward_backward() leaves those below
};
std::unique_ptr<NerfModelBench> make_cuda_nerf_bench(NerfBenchInput input, const CudaOptions& options);

// What an occupancy grid of given values holds for the marching of rays, as OccupancyView has it. For tests.
struct OccupancyWords {
    std::vector<uint64_t> words;
    std::vector<uint8_t> clearance;
};
OccupancyWords cuda_occupancy_words(const std::vector<float>& values, const CudaOptions& options);

} // namespace ngp
