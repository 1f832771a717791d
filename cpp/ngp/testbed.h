// Testbed: the object that users hold. It owns the training data, the options, the render camera and one engine; it
// parses no files except snapshots. Names and meanings follow instant-ngp's Python API (specification A) where both
// have them. Methods may be called from several threads; they take turns.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <ngp/core/memory.h>
#include <ngp/fields/nerf.h>
#include <ngp/io/snapshot.h>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ngp {

enum class TestbedMode : uint8_t { Nerf = 0, Sdf = 1, Image = 2, Volume = 3, None = 4 };
enum class TrainMode : uint8_t { Nerf = 0, Rfl = 1, RflRelax = 2 };

// Training data of a NeRF: cameras and, unless it came from a snapshot, their images.
struct NerfDataset {
    DatasetRecord record;
    std::vector<ImageView> images;                   // of record.views
    std::vector<std::shared_ptr<const void>> owners; // keep the pixels alive

    // Adds a view. `camera_to_world`: OpenGL axes (x right, y up, z back), world units; its rotation is normalised if
    // its determinant is not 1. `camera.width` and `height` are those of the image. Raises ngp::Error for what can't be
    // used.
    void add_view(const std::string& path, const CameraMatrix& camera_to_world, const CameraModel& camera,
                  const ImageView& image, std::shared_ptr<const void> owner);
    // How the view added last moves from the pose that it was given to `end` (OpenGL axes, world units) while its image
    // is taken: at s = A + B u + C v + D tau, u and v from 0 to 1 across the image, tau random within [0, 1] (C.5).
    void set_rolling_shutter(const CameraMatrix& end, const std::array<float, 4>& abcd);
    bool has_images() const { return !images.empty() && images.size() == record.views.size(); }
};

class Testbed;

struct NerfTraining {
    Testbed* owner = nullptr;                                               // whose options they are
    std::shared_ptr<NerfDataset> dataset = std::make_shared<NerfDataset>(); // never null
    int n_images_for_training = 0;                                          // first n
    bool random_bg_color = true;
    bool linear_colors = false;
    bool snap_to_pixel_centers = true;
    LossType loss_type = LossType::Huber;
    TrainMode train_mode = TrainMode::Nerf;
    float near_distance = 0.1f; // NGP units
    float density_grid_decay = 0.95f;
    OccupancySchedule occupancy_schedule = OccupancySchedule::Budgeted; // Testbed: on CUDA, Specification
    // Cameras that are learned with the scene (E.5); on the CPU.
    bool optimize_extrinsics = false, optimize_exposure = false, optimize_distortion = false;
    bool optimize_focal_length = false; // one factor for all views and each axis
    int n_steps_between_cam_updates = 16;
    float extrinsic_l2_reg = 1e-4f, extrinsic_learning_rate = 1e-3f, intrinsic_l2_reg = 1e-4f, exposure_l2_reg = 0.0f;
};

struct NerfSettings {
    NerfTraining training;
    Activation rgb_activation = Activation::Logistic;
    Activation density_activation = Activation::Exponential;
    float render_min_transmittance = 0.01f;
    float cone_angle_constant = 1.0f / 256.0f;
};

// Which channels render_channels() makes.
struct ChannelSet {
    bool rgb = true, alpha = true, depth = true, normal = true;
};

// Channels of render_channels(), row-major height x width; empty if not asked for.
struct ChannelImages {
    int width = 0, height = 0;
    SharedArray rgb;    // x3: linear, premultiplied, no background
    SharedArray alpha;  // x1
    SharedArray depth;  // x1: expected z along the camera's forward axis / alpha, world units; NaN where alpha < 1e-3
                        //     (below zero: behind it, which 360 degree lenses see)
    SharedArray normal; // x3: unit, world axes; zero where alpha < 1e-3
};

struct QueryResult {
    SharedArray rgb;     // (n, 3), as the network composites it; empty without directions
    SharedArray density; // (n), per world unit of length
};

// Samples that the renderer takes along a ray, in marching order.
struct RaySamples {
    Vec3 origin, direction;   // world frame; unit direction
    std::vector<float> t, dt; // world units
};

struct TestbedStats {
    StageTimes stages;
    StepResult last_step;
    double train_seconds = 0; // wall-clock, inside training
    int64_t host_bytes = 0, image_bytes = 0;
    int64_t device_bytes = 0, peak_device_bytes = 0; // of a device with memory of its own
};

struct TestbedOptions {
    // "cpu", "cuda", "cuda:1", or "auto": the first usable CUDA device, else the CPU. Raises ngp::Error for what is not
    // there.
    std::string device = "auto";
    uint64_t seed = 1337;
    bool deterministic = false;   // same seed, same bytes: on CUDA at some cost, on the CPU always
    int64_t max_device_bytes = 0; // device memory that may be taken; 0: all that is free
    // Gets one line, once per process, when "auto" falls back to the CPU although the build has CUDA; empty: to stderr.
    std::function<void(const std::string& message)> warn;
};

// Number of the CUDA device that "cuda" or "cuda:1" names. Raises ngp::Error for other names, and if it can't be used.
int cuda_device_of(const std::string& name);

class Testbed {
  public:
    explicit Testbed(TestbedMode mode = TestbedMode::None, const TestbedOptions& options = {});
    ~Testbed();

    TestbedMode mode() const { return mode_; }
    const std::string& device() const { return device_; } // "cpu" or "cuda:0"
    bool deterministic() const { return deterministic_; }

    // --- data and network
    // Replaces the training data. Keeps the network unless aabb_scale changes. Images are in host memory or on the
    // Testbed's device (ImageView::device).
    void set_dataset(NerfDataset dataset);
    void clear_training_data();
    // New network, training from step 0.
    void reload_network_from_json(const std::string& json, const std::string& source = "network configuration");
    void reset(bool reset_density_grid = true);
    std::string network_config() const;
    int64_t n_params();
    int64_t n_encoding_params();

    // --- training
    // One step; batch_size must be a multiple of 256. May return before the device has done it: loss(), stats() and
    // everything that uses its result wait.
    void train(int64_t batch_size);
    // One step of training_batch_size if shall_train. Always true.
    bool frame();
    // Trains until `steps` more steps, `seconds` of training or a function returning false; whichever is first. No
    // batch_size: one that suits the device. `after_step` is called when a step is done. `poll` is called now and then,
    // about every 20 ms, while steps may still be under way: a device is kept busy only without after_step. Returns
    // when all steps are done.
    void fit(std::optional<int64_t> steps, std::optional<double> seconds, std::optional<int64_t> batch_size,
             const std::function<bool(const Testbed&)>& after_step = {}, const std::function<bool()>& poll = {});
    int64_t default_batch_size() const;

    uint32_t training_step() const { return training_step_; }
    float loss() const; // of the last step

    // --- rendering
    // RGBA, premultiplied over the background, tone-mapped; linear or sRGB-encoded. `depth` (may be null): along the
    // camera's forward axis in NGP units at the sample of largest weight, 16384 where alpha <= 0.2.
    SharedArray render(int width, int height, int spp, bool linear, SharedArray* depth = nullptr);
    // `camera_to_world`: OpenGL axes, world units. Every channel comes from one pass; normals take longer. Results at
    // `out`: Device is for Testbeds on one. `image`: rgb as exposed as that training view; -1: as the scene.
    ChannelImages render_channels(const CameraMatrix& camera_to_world, const CameraModel& camera,
                                  const ChannelSet& channels = {}, int spp = 1, Placement out = Placement::Host,
                                  int image = -1);
    // What render_channels marches for pixel (x, y), first sample.
    RaySamples ray_samples(const CameraMatrix& camera_to_world, const CameraModel& camera, int x, int y);

    // positions: (n) world frame; directions: (n) unit, along the ray, may be null; 0 outside the scene box and, if
    // `occupancy`, in cells that the occupancy grid holds empty. Arrays and results are at `where`. `image`: rgb as
    // exposed as that training view.
    QueryResult query(const Vec3* positions, const Vec3* directions, int64_t n, bool occupancy,
                      Placement where = Placement::Host, int image = -1);

    // --- arrays on the Testbed's device; they raise ngp::Error on the CPU
    // Number of the device, or host_memory.
    int device_index() const { return engine_->device(); }
    // Makes calls from now on wait for what was put into a stream of the CUDA runtime (a cudaStream_t), because it
    // writes their arguments. Results are complete when a call returns.
    void wait_for_stream(uintptr_t stream);
    // A copy of pixels for a dataset's ImageView: on the device, or, if they leave no room for a model, in host memory.
    std::shared_ptr<SharedMemory> keep_pixels(const void* on_device, int64_t bytes);
    // Whether n floats on the device are finite.
    bool all_finite(const float* on_device, int64_t n);

    // --- camera
    void set_nerf_camera_matrix(const CameraMatrix& camera_to_world); // OpenGL axes
    void set_camera_to_training_view(int view);
    void reset_camera();
    float fov() const; // degrees along fov_axis
    void set_fov(float degrees);
    Vec2 fov_xy() const;
    void set_fov_xy(Vec2 degrees);

    // --- cameras of the training views, with what was learned about them; in the input's frame. They raise ngp::Error
    // for views that don't exist.
    // When a view that moves is looked at: at s = 0, at the centre of its image (and tau = 0), at s = 1 (C.5).
    enum class ViewTime : uint8_t { Start, Center, End };
    std::vector<CameraMatrix> cameras(ViewTime at = ViewTime::Center) const;
    CameraModel camera_model(int view) const;
    // Stops by which the scene is brighter than each image, per channel; their mean over images is 0.
    std::vector<Vec3> image_exposures() const;
    // Row-major height x width: offsets of the x and y of camera-space ray directions (z = 1); empty if not learned.
    const CameraCorrections& camera_corrections() const { return engine_->corrections(); }
    // A view's camera as if the input had had it; what was learned about its pose is dropped. `camera_to_world`: OpenGL
    // axes, world units, or, if not `convert_to_ngp`, a pose in NGP space.
    void set_camera_extrinsics(int view, const CameraMatrix& camera_to_world, bool convert_to_ngp = true);
    CameraMatrix get_camera_extrinsics(int view) const;
    // A learned factor of the focal lengths goes on applying.
    void set_camera_intrinsics(int view, const CameraModel& camera);

    // --- snapshots
    void save_snapshot(const std::string& path, bool include_optimizer_state = false, bool compress = true);
    void load_snapshot(const std::string& path);

    TestbedStats stats() const;
    // Whether stage times are taken where that costs speed (NerfEngine::set_profiling).
    void set_profiling(bool on);
    // Averaged weights in the canonical order of snapshots.
    std::vector<float> params();
    // Occupancy values, cascade-major in Morton order: density times the minimal step; -1: seen by no camera.
    std::vector<float> density_grid();

    // --- options
    NerfSettings nerf;
    RenderCamera camera;
    Aabb aabb, render_aabb;
    Mat3 render_aabb_to_local;
    std::array<float, 4> background_color{0, 0, 0, 1}; // sRGB, straight
    float exposure = 0;                                // stops
    ColorSpace color_space = ColorSpace::Linear;
    TonemapCurve tonemap_curve = TonemapCurve::Identity;
    bool snap_to_pixel_centers = false;
    float render_near_distance = 0;
    bool render_with_lens_distortion = false; // pictures are bent by the learned distortion map
    Vec3 up_dir{0, 1, 0}, sun_dir{0.57735026f, 0.57735026f, 0.57735026f};
    float bounding_radius = 1.0f;
    bool shall_train = false, shall_train_encoding = true, shall_train_network = true;
    int64_t training_batch_size = 1 << 18;

  private:
    using Lock = std::lock_guard<std::recursive_mutex>;

    bool on_cuda() const { return device_ != "cpu"; }
    void ensure_network();
    void wait_for_step() const;
    void note_device_bytes() const;
    void apply_dataset(bool keep_network);
    void push_views();
    const ViewRecord& view_record(int view) const;
    ViewRecord& view_record(int view) { return const_cast<ViewRecord&>(std::as_const(*this).view_record(view)); }
    CameraMatrix view_pose(int view, ViewTime at) const; // NGP space, corrected
    Vec3 exposure_gain(int image) const;
    CameraLearning camera_learning() const;
    void restore_corrections(const Snapshot& snapshot, bool other_data);
    void check_render_size(int width, int height, int spp) const;
    SharedArray new_array(size_t n, Placement where) const;
    NerfTrainOptions train_options() const;
    FrameRequest frame_request(const CameraModel& model, const CameraMatrix& pose, int spp) const;
    const WorldTransform& world() const { return nerf.training.dataset->record.world; }

    mutable std::recursive_mutex mutex_;
    TestbedMode mode_;
    std::string device_;
    bool deterministic_;
    uint64_t seed_;
    NetworkConfig config_;
    std::unique_ptr<NerfEngine> engine_;
    bool has_network_ = false;
    int network_aabb_scale_ = 1;
    uint32_t training_step_ = 0;
    // What wait_for_step() brings up to date.
    mutable bool step_under_way_ = false;
    mutable float loss_ = 0;
    mutable StepResult last_step_;
    mutable double train_seconds_ = 0;
    mutable int64_t peak_device_bytes_ = 0;
};

} // namespace ngp
