// Stage: learned corrections of cameras, and their optimizer (specification E.5): poses, exposures, focal length, and a
// lens distortion map (C.6).
#pragma once

#include <ngp/core/config.h>
#include <ngp/stages/camera_gradient.h>
#include <vector>

namespace ngp {

// Options, by their names of specification A.10.
struct CameraLearning {
    bool extrinsics = false, exposure = false, distortion = false, focal_length = false;
    int interval = 16; // steps between updates
    float extrinsic_l2 = 1e-4f, extrinsic_learning_rate = 1e-3f;
    float intrinsic_l2 = 1e-4f, exposure_l2 = 0.0f;

    bool any() const { return extrinsics || exposure || distortion || focal_length; }
    bool operator==(const CameraLearning&) const = default;
};

// Values that Adam learns, with its state.
template <int N>
struct AdamVector {
    uint32_t iter = 0; // updates so far
    float m[N] = {}, v[N] = {}, x[N] = {};

    bool operator==(const AdamVector&) const = default;
};

// What has been learned. Empty vectors: nothing.
struct CameraCorrections {
    static constexpr int sums_per_view = 9; // gradients of position, rotation and exposure

    // One a view. Position: added, NGP units. Rotation: a vector that turns the camera in place, NGP axes. Exposure:
    // stops by which the scene is brighter than the image, a channel.
    std::vector<AdamVector<3>> position, rotation, exposure;
    AdamVector<2> focal; // logarithm of a factor of every view's focal lengths
    struct Map {
        int width = 0, height = 0; // 0: none
        uint32_t iter = 0;
        std::vector<float> m, v, x; // height * width * 2
    } map;
    // Of the steps since the last update: sums_per_view a view, 2 of the focal length, then the map's; and how many.
    std::vector<double> sums;
    int n_steps = 0;

    bool empty() const { return position.empty() && map.x.empty(); }
    // A view's camera, corrected; `pose` may be any on its way.
    CameraMatrix corrected_pose(size_t view, const CameraMatrix& pose) const;
    CameraModel corrected_camera(const CameraModel& camera) const;
    Vec3 stops(size_t view) const;
    DistortionMap distortion_map() const;
    // A view is back where its input had it.
    void forget_pose(size_t view);
};
TrainingView corrected(const CameraCorrections& corrections, size_t index, TrainingView view);

class CameraOptimizer {
  public:
    void reset(const DistortionMapConfig& map) { map_config_ = map; }
    const CameraCorrections& corrections() const { return corrections_; }
    void set_corrections(CameraCorrections c) { corrections_ = std::move(c); }

    // Steps before poses are learned: until the scene has some shape, the few rays of a view give noise that Adam would
    // remember. What all views share is learned from the start, before the scene has taken the shape that suits its
    // error.
    static constexpr uint32_t pose_warmup_steps = 256;

    // Makes room for views, and for the map if it is to be learned.
    void prepare(size_t n_views, const CameraLearning& options);
    // Cells along a unit of NGP space up to which grid levels give cameras gradients. Finer levels change within the
    // distance that a camera may still be off by, about ten steps of its optimizer: to it, their slopes are noise (Heo
    // et al. 2023, "Robust Camera Pose Refinement for Multi-Resolution Hash Encoding").
    float finest_cells(const CameraLearning& options) const;
    // Adds a step's rays, in order, to the sums. `gradients` are those of the loss summed over rays.
    void add(const RayPixel* pixels, const CameraGradient* gradients, int64_t n_rays, int n_images);
    // The same where a device adds up: sums of that many steps take the place of those here.
    void set_sums(std::vector<double> sums, int n_steps) {
        corrections_.sums = std::move(sums);
        corrections_.n_steps = n_steps;
    }
    // Updates what the options name after every `interval` steps. Returns whether it did.
    bool update(const CameraLearning& options, int n_images, uint32_t step, float network_learning_rate);

  private:
    size_t focal_begin() const { return corrections_.position.size() * CameraCorrections::sums_per_view; }
    size_t map_begin() const { return focal_begin() + 2; }
    void update_pose(const CameraLearning& options, size_t view, float network_learning_rate);
    void update_exposures(const CameraLearning& options, size_t n, float network_learning_rate);
    void update_map(uint32_t step);

    DistortionMapConfig map_config_;
    CameraCorrections corrections_;
};

} // namespace ngp
