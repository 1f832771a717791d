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
#include <ngp/render/camera_path.h>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace ngp {

enum class TestbedMode : uint8_t { Nerf = 0, Sdf = 1, Image = 2, Volume = 3, None = 4 };

// A mutex that a copy of its owner gets anew.
struct CopyableMutex {
    CopyableMutex() = default;
    CopyableMutex(const CopyableMutex&) {}
    CopyableMutex& operator=(const CopyableMutex&) { return *this; }
    std::mutex mutex;
};

// Training data of a NeRF: cameras and, unless it came from a snapshot, their images.
struct NerfDataset {
    DatasetRecord record;
    std::vector<ImageView> images;                   // of record.views; without pixels until set_image(), if empty()
    std::vector<std::shared_ptr<const void>> owners; // keep the pixels alive, and what lies beside them

    // `n_images` views without images, at the origin (A.5). Raises ngp::Error for numbers that make no sense.
    static NerfDataset empty(int n_images, int aabb_scale = 1, bool is_hdr = false);

    // Adds a view. `camera_to_world`: OpenGL axes (x right, y up, z back), world units; its rotation is normalised if
    // its determinant is not 1. `camera.width` and `height` are those of the image. Raises ngp::Error for what can't be
    // used.
    void add_view(const std::string& path, const CameraMatrix& camera_to_world, const CameraModel& camera,
                  const ImageView& image, std::shared_ptr<const void> owner);
    // How the view added last moves from the pose that it was given to `end` (OpenGL axes, world units) while its image
    // is taken: at s = A + B u + C v + D tau, u and v from 0 to 1 across the image, tau random within [0, 1] (C.5).
    void set_rolling_shutter(const CameraMatrix& end, const std::array<float, 4>& abcd);
    bool has_images() const { return !images.empty() && images.size() == record.views.size(); }

    // Replaces a view's image, of whatever size, and what lies beside it. The same for its camera: see add_view(); a
    // pose may also be given in NGP space. A Testbed that has this dataset trains on them from its next step on. Raise
    // ngp::Error for views that don't exist and for what can't be used.
    void set_image(int view, const ImageView& image, std::shared_ptr<const void> owner);
    void set_camera(int view, const CameraModel& camera);
    void set_pose(int view, const CameraMatrix& camera_to_world, bool convert_to_ngp = true);

  private:
    friend class Testbed;
    ViewRecord& view_at(int view);

    // Guards views and images, which set_… may replace while a step that another thread does still reads the old ones:
    // those are kept until the engine has the new ones.
    mutable CopyableMutex mutex_;
    std::vector<std::shared_ptr<const void>> replaced_;
    bool changed_ = false; // since the engine got the views
};

class Testbed;

struct NerfTraining {
    Testbed* testbed = nullptr;                                             // that it belongs to
    std::shared_ptr<NerfDataset> dataset = std::make_shared<NerfDataset>(); // never null
    int n_images_for_training = 0;                                          // first n
    bool random_bg_color = true;
    bool linear_colors = false;
    bool snap_to_pixel_centers = true;
    LossType loss_type = LossType::L2; // a new network sets its configuration's
    TrainMode train_mode = TrainMode::Nerf;
    // Importance sampling (error_map.h): where in the images, which images, and whether sharp places count more.
    bool sample_focal_plane_proportional_to_error = false;
    bool sample_image_proportional_to_error = false;
    bool include_sharpness_in_error = false;
    float near_distance = 0.1f; // NGP units
    float density_grid_decay = 0.95f;
    float depth_supervision_lambda = 0; // weight of the loss of depths, where images have them; 0: off
    LossType depth_loss_type = LossType::L1;
    OccupancySchedule occupancy_schedule = OccupancySchedule::Budgeted; // Testbed: on CUDA, Specification
    // Whether per-image latents are trained; on by itself where the data has some. Change with
    // set_optimize_extra_dims(), which gives the data latents of default_latent_dims if it has none, and with them a
    // new network.
    bool optimize_extra_dims = false;
    void set_optimize_extra_dims(bool on);
    // Cameras that are learned with the scene (E.5).
    bool optimize_extrinsics = false, optimize_exposure = false, optimize_distortion = false;
    bool optimize_focal_length = false; // one factor for all views and each axis
    int n_steps_between_cam_updates = 16;
    float extrinsic_l2_reg = 1e-4f, extrinsic_learning_rate = 1e-3f, intrinsic_l2_reg = 1e-4f, exposure_l2_reg = 0.0f;
};

struct NerfSettings {
    NerfTraining training;
    bool render_gbuffer_hard_edges = false; // modes Positions and Depth: of the sample of largest weight, not blended
    bool visualize_cameras = false;         // of a window
    Activation rgb_activation = Activation::Exponential; // loading data sets it
    Activation density_activation = Activation::Exponential;
    float render_min_transmittance = 0.01f;
    float cone_angle_constant = 1.0f / 256.0f;
    float sharpen = 0; // how much the images of a scene are sharpened when they are loaded; 0: not
    // Latent or light direction of pictures for which nothing else is said: those of a training view, or, where that is
    // -1, the given values (ViewInputs).
    int rendering_extra_dims_from_training_view = 0;
    std::vector<float> rendering_extra_dims;

    // The training view nearest to a pose in NGP space, with what was learned about it: by distance of the positions
    // plus a quarter of the distance of the forward axes. -1: there are none.
    int find_closest_training_view(const CameraMatrix& pose) const;
};

constexpr int default_latent_dims = 16;

// Whose appearance a picture or query gets: a training view's, that of given extra dimensions (a latent; of a model
// with light directions (d + 1) / 2, NGP space), or that of a light (world frame, of any length). None of them: what
// NerfSettings says. Models without extra dimensions take no others; of an image, they have the exposure.
struct Appearance {
    int image = -1;
    std::vector<float> extra_dims;
    std::optional<Vec3> light_dir;
};

// A picture that a latent is fitted to, while the field stays as it is.
struct LatentFit {
    ImageView image;              // in host memory
    CameraMatrix camera_to_world; // OpenGL axes, world units
    CameraModel camera;
    std::vector<uint32_t> pixels; // y * width + x of those that count; empty: all
    std::vector<float> initial;   // empty: the mean over the training views
    int steps = 200;
    int rays_per_step = 1024;
    float learning_rate = 0.02f; // of Adam, falling linearly to zero
};
struct LatentFitResult {
    std::vector<float> extra_dims;
    std::vector<float> losses; // of each step, mean over rays and channels, before it
};

enum class GroundTruthRenderMode : uint8_t { Shade = 0, Depth = 1 };

// What a window, or a headset, would use (specification A.6); values are kept for scripts that set them.
enum class CameraPredictionMode : uint8_t {
    None = 0,
    MatLogLinear = 1,
    MatLogQuadratic = 2,
    Se3LogLinear = 3,
    Se3LogQuadratic = 4
};
struct WindowSettings {
    bool dynamic_res = true;
    float dynamic_res_target_fps = 20;
    int fixed_res_factor = 8;
    float dlss_sharpening = 0;
    bool display_gui = true, visualize_unit_cube = false, record_camera_path = false, floor_enable = false;
    bool is_rendering = true;
    CameraPredictionMode camera_prediction_mode = CameraPredictionMode::MatLogQuadratic;
};

// The time that a frame of a video shows, as play times of the camera path.
struct FrameTime {
    float start = -1;           // negative: the current camera, at rest
    float end = -1;             // of the frame; negative: the start
    float fps = 30;             // frames a second, for the camera's smoothing
    float shutter_fraction = 1; // of the frame for which the shutter is open
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
    // NerfDataset::empty() as training data; n_images_for_training becomes 0, and training needs it to be set.
    void create_empty_nerf_dataset(int n_images, int aabb_scale = 1, bool is_hdr = false);
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
    // camera's forward axis in NGP units at the sample of largest weight, 16384 where alpha <= 0.2. A `time` on the
    // camera path moves the camera there, to the pose at its start, and leaves it there; how it moves on while the
    // shutter is open is blurred. The lens is perspective unless uses_render_lens().
    SharedArray render(int width, int height, int spp, bool linear, SharedArray* depth = nullptr,
                       const FrameTime& time = {});
    // `camera_to_world`: OpenGL axes, world units. Every channel comes from one pass; normals take longer. Results at
    // `out`: Device is for Testbeds on one. With an image as `appearance`, rgb is as exposed as that one.
    ChannelImages render_channels(const CameraMatrix& camera_to_world, const CameraModel& camera,
                                  const ChannelSet& channels = {}, int spp = 1, Placement out = Placement::Host,
                                  const Appearance& appearance = {});
    // What render_channels marches for pixel (x, y), first sample.
    RaySamples ray_samples(const CameraMatrix& camera_to_world, const CameraModel& camera, int x, int y);

    // positions: (n) world frame; directions: (n) unit, along the ray, may be null; 0 outside the scene box and, if
    // `occupancy`, in cells that the occupancy grid holds empty. Arrays and results are at `where`. With an image as
    // `appearance`, rgb is as exposed as that one.
    QueryResult query(const Vec3* positions, const Vec3* directions, int64_t n, bool occupancy,
                      Placement where = Placement::Host, const Appearance& appearance = {});

    // --- per-image latents and light directions (specification C.3, D.3, E.5)
    // Values a view has: 0 in models without.
    int n_extra_dims();
    // Of a training view.
    std::vector<float> extra_dims(int view);
    void set_extra_dims(int view, const std::vector<float>& values);
    // What NerfSettings says of rendering; setting it raises ngp::Error for views and lengths that don't exist.
    std::vector<float> rendering_extra_dims();
    void set_rendering_extra_dims(const std::vector<float>& values);
    void set_rendering_extra_dims_from_training_view(int view);
    void set_rendering_light_dir(Vec3 direction); // world frame, of any length
    // The latent with which the field, as it is, looks most like a picture. `poll` as in fit(): false stops.
    LatentFitResult fit_latent(const LatentFit& fit, const std::function<bool()>& poll = {});
    // Loss of a fit's step, for the averaged weights, and its gradient.
    float latent_gradient(const LatentFit& fit, const std::vector<float>& extra_dims, int step,
                          std::vector<float>& gradient);

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
    void move_training_view(int by);                     // from the view that was set last; stops at the first and last
    int training_view() const { return training_view_; } // that was set last
    void reset_camera();
    // The lens of render() from now on, while render_with_lens_distortion, which this switches on.
    void set_render_lens(const Lens& lens);
    bool uses_render_lens() const;
    Vec3 look_at() const { return camera.matrix.position + camera.matrix.forward * camera.scale; }
    void set_look_at(Vec3 point);    // moves the camera
    void set_scale(float distance);  // moves the camera so that it looks at the same point
    void set_view_dir(Vec3 forward); // looks at the same point from elsewhere, with up_dir upwards
    // Puts the camera where the camera path is at a play time from 0 to 1; without keyframes, leaves it.
    void set_camera_from_path(float play_time);

    // --- crop box: render_aabb in the frame of render_aabb_to_local
    // Columns: half axes and centre, in the input's frame or NGP space.
    CameraMatrix crop_box(bool nerf_space = true) const;
    void set_crop_box(const CameraMatrix& box, bool nerf_space = true); // raises ngp::Error unless its axes are square
    std::array<Vec3, 8> crop_box_corners(bool nerf_space = true) const;
    float fov() const; // degrees along fov_axis
    void set_fov(float degrees);
    Vec2 fov_xy() const;
    void set_fov_xy(Vec2 degrees);

    // --- cameras of the training views, with what was learned about them; in the input's frame. They raise ngp::Error
    // for views that don't exist.
    // When a view that moves is looked at: at s = 0, at the centre of its image (and tau = 0), at s = 1 (C.5).
    enum class ViewTime : uint8_t { Start, Center, End };
    std::vector<CameraMatrix> cameras(ViewTime at = ViewTime::Center) const;
    CameraMatrix view_pose(int view, ViewTime at) const; // NGP space
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
    CameraMatrix default_camera = RenderCamera{}.matrix; // of reset_camera()
    CameraPath camera_path;
    bool camera_smoothing = false; // along the path
    Vec3 parallax_shift;           // x, y: of the eye, along the camera's axes, NGP units; z: 1 / distance of
                                   // what stays where it is in the picture, NGP units
    Lens render_lens;              // see uses_render_lens()
    bool render_with_lens_distortion = false; // also whether pictures are bent by the learned distortion map
    RenderMode render_mode = RenderMode::Shade;
    bool render_ground_truth = false; // the training image of the view nearest to the camera, in place of the model
    GroundTruthRenderMode groundtruth_render_mode = GroundTruthRenderMode::Shade;
    bool render_transparency_as_checkerboard = false;
    // An activation in place of colours (FrameRequest::visualized_dimension), orange above zero and blue below.
    int visualized_dimension = -1, visualized_layer = 0;
    WindowSettings window;
    Aabb aabb, render_aabb, raw_aabb; // raw_aabb: before training data crops it
    Mat3 render_aabb_to_local;
    std::array<float, 4> background_color{0, 0, 0, 1}; // sRGB, straight
    float exposure = 0;                                // stops
    ColorSpace color_space = ColorSpace::Linear;
    TonemapCurve tonemap_curve = TonemapCurve::Identity;
    bool snap_to_pixel_centers = false;
    float render_near_distance = 0;
    Vec3 up_dir{0, 1, 0}, sun_dir{0.57735026f, 0.57735026f, 0.57735026f};
    float bounding_radius = 1.0f;
    bool shall_train = false, shall_train_encoding = true, shall_train_network = true;
    bool max_level_rand_training = false; // level_cut.h
    int64_t training_batch_size = 1 << 18;

  private:
    using Lock = std::lock_guard<std::recursive_mutex>;

    bool on_cuda() const { return device_ != "cpu"; }
    void ensure_network();
    void wait_for_step() const;
    void note_device_bytes() const;
    void apply_dataset(bool keep_network);
    void push_views();
    void check_place(const NerfDataset& dataset, size_t image) const; // of pixels that set_image() may have changed
    void check_images() const;
    const ViewRecord& view_record(int view) const;
    ViewRecord& view_record(int view) { return const_cast<ViewRecord&>(std::as_const(*this).view_record(view)); }
    Vec3 exposure_gain(int image) const;
    CameraLearning camera_learning() const;
    void restore_corrections(const Snapshot& snapshot, bool known_views);
    void check_render_size(int width, int height, int spp) const;
    SharedArray new_array(size_t n, Placement where) const;
    NerfTrainOptions train_options() const;
    void reset_view_inputs();
    void push_light_dirs();
    void keep_extra_dims(const DatasetRecord& old, DatasetRecord& record) const;
    std::vector<float> extra_dims_of(const Appearance& appearance);
    void check_extra_dims(const std::vector<float>& values) const;
    void check_latent(const LatentFit& fit, const std::vector<float>& extra_dims) const;
    FrameRequest frame_request(const CameraModel& model, const CameraMatrix& pose, int spp,
                               const Appearance& appearance = {});
    DistortionMap distortion_of(const FrameRequest& request) const;
    CameraModel render_model(int width, int height) const;
    DisplayOptions display_options(int width, bool linear) const;
    // Camera and its motion, at a time on the path.
    ShutterMotion follow_path(const FrameTime& time);
    void focus_on_target();
    void set_mode(FrameRequest& request) const;
    void check_visualized() const;
    void render_training_image(const CameraModel& model, FramePixel* pixels) const;
    void render_slice(const FrameRequest& request, FramePixel* pixels);
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
    int network_extra_dims_ = 0;
    uint32_t training_step_ = 0;
    int training_view_ = 0;
    Lens view_lens_; // that render_lens got from a training view
    bool lens_is_set_ = false;
    std::optional<CameraMatrix> smoothed_camera_; // at the end of the last frame on the path
    // What wait_for_step() brings up to date.
    mutable bool step_under_way_ = false;
    mutable float loss_ = 0;
    mutable StepResult last_step_;
    mutable double train_seconds_ = 0;
    mutable int64_t peak_device_bytes_ = 0;
};

} // namespace ngp
