// Snapshots (.ingp): instant-ngp's file format (specification D) plus one key of our own, `pyngp`, that it ignores.
//
// `pyngp` holds what exact resume needs beyond the format and a checksum of the parameters. Files are written beside
// their destination, flushed and renamed, so that a kill at any moment leaves the old file or the new one.
#pragma once

#include <deque>
#include <memory>
#include <ngp/core/config.h>
#include <ngp/fields/nerf.h>
#include <optional>
#include <string>
#include <vector>

namespace ngp {

// The render camera, in NGP space. `relative_focal_length`: focal length in pixels / resolution[fov_axis].
struct RenderCamera {
    CameraMatrix matrix{{1, 0, 0}, {0, -1, 0}, {0, 0, -1}, {0.5f, 0.5f, 0.5f}};
    int fov_axis = 1;
    Vec2 relative_focal_length{1.0571610f, 1.0571610f}; // 50.625 degrees
    Vec2 screen_center{0.5f, 0.5f};
    float zoom = 1.0f;
    float scale = 1.5f; // distance to the point looked at
    float aperture_size = 0.0f;
    bool autofocus = false;
    Vec3 autofocus_target{0.5f, 0.5f, 0.5f};
    float slice_plane_z = 0.0f;
};

// One training view without its pixels.
struct ViewRecord {
    std::string path;
    CameraModel camera;
    float rolling_shutter[4] = {};
    CameraMatrix start, end; // NGP space
    Vec3 light_dir;          // unit, NGP space; zero: none
};

struct DatasetRecord {
    std::deque<ViewRecord> views; // addresses stay valid as views are added
    WorldTransform world;
    int aabb_scale = 1;
    Vec3 up{0, 1, 0}; // NGP space
    Aabb render_aabb; // empty: unset
    Mat3 render_aabb_to_local;
    bool is_hdr = false;
    int n_extra_learnable_dims = 0; // of each view's latent
    bool has_light_dirs = false;    // then there are no latents

    // Inputs of the direction encoding besides the direction.
    int n_extra_dims() const { return has_light_dirs ? 3 : n_extra_learnable_dims; }
};

// Whether two datasets have the same views in the same order: paths, and poses up to rounding. What was learned of
// one's views then holds for the other's (D.2).
bool same_views(const DatasetRecord& a, const DatasetRecord& b);

// Settings that instant-ngp does not store.
struct ExtraSettings {
    uint64_t seed = 1337;
    ColorSpace color_space = ColorSpace::Linear;
    bool linear_colors = false;
    bool random_background = true;
    float cone_angle = -1.0f; // negative: what loading the data sets
    float near_distance = 0.1f;
    bool snap_to_pixel_centers = true;
    float occupancy_decay = 0.95f;
    OccupancySchedule occupancy_schedule = OccupancySchedule::Budgeted;
    int64_t batch_size = 0;
    int n_images = 0;
    float depth_supervision_lambda = 0;
    LossType depth_loss_type = LossType::L1;
    TrainMode train_mode = TrainMode::Nerf;
    std::optional<LossType> loss;                                 // none: the configuration's
    std::optional<Activation> rgb_activation, density_activation; // none: what the data set
    bool sample_image_by_error = false, sample_pixel_by_error = false, sharpness_in_error = false;
    bool random_levels = false;
};

struct Snapshot {
    std::string config_json; // resolved network configuration
    std::vector<float> params;
    uint32_t training_step = 0;
    float loss = 0;
    Aabb aabb, render_aabb;
    Mat3 render_aabb_to_local;
    float bounding_radius = 1.0f;
    Vec3 up_dir{0, 1, 0}, sun_dir{0.57735026f, 0.57735026f, 0.57735026f};
    float exposure = 0;
    float background_color[4] = {0, 0, 0, 1};
    RenderCamera camera;
    std::vector<float> density_grid; // cascade-major, Morton; empty: untrained
    DatasetRecord dataset;
    int rays_per_batch = 0;
    bool has_extra = false; // written by pyngp
    ExtraSettings extra;
    ViewInputs latents; // of the dataset's views; without views: there are none
    bool has_train_state = false;
    NerfTrainState train_state; // its parameters are fp32 masters
};

// Raises ngp::Error that names the file and what is wrong. `compress` false stores the blocks.
void write_snapshot(const std::string& path, const Snapshot& snapshot, const NerfModelShape& shape, bool compress);
// Checks every length against `path`'s own network configuration before using it.
Snapshot read_snapshot(const std::string& path);

} // namespace ngp
