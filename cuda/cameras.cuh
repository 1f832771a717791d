// Learning of cameras on the device (stages/camera_optimizer.h). Every step adds its rays' gradients up there, in sums
// that do not depend on the order of additions; the host takes the sums, updates the cameras and writes them back
// between steps, after every CameraLearning::interval of them.
#pragma once

#include "fixed_point.cuh"
#include "images.cuh"
#include "training.cuh"

#include <ngp/stages/camera_gradient.h>

namespace ngp::cuda {

class DeviceCameras {
  public:
    explicit DeviceCameras(Context& context) : context_(context) {}

    void reset(const DistortionMapConfig& map) { optimizer_.reset(map); }
    // With the device's sums; waits for them.
    const CameraCorrections& corrections() const;
    // What has been learned of cameras, whose sums may be out of date; and its distortion map on the device.
    const CameraCorrections& current() const { return optimizer_.corrections(); }
    DistortionMap distortion_map() const;
    // The device must not be reading the map, and captured steps are no longer valid.
    void set_corrections(const CameraCorrections& corrections);

    // Before a step that learns cameras: room for views and rays. Returns whether captured steps are no longer valid.
    bool prepare(const CameraLearning& options, int n_views, int64_t max_rays, float box_size);
    // Grid levels with a larger scale than this give cameras no gradient.
    float finest_scale() const { return finest_scale_; }
    RayGradient* ray_gradients() const { return ray_gradients_.data(); }
    Vec3* d_color() const { return d_color_.data(); }
    // Adds up the step's rays, of which there are ray_gradients() and d_color(). Capturable.
    void launch_add(const CameraLearning& options, const StepView& step, const TrainingView* views, int n_images);
    // Whether an update follows the step at hand: rays of the next one must not be drawn before.
    bool updates_after_step(const CameraLearning& options) const { return n_steps_ + 1 >= options.interval; }
    // After the launch of step number `step`. Updates cameras, if it is time: waits for the device then. Returns
    // whether it did; the caller passes current() on to the images.
    bool end_step(const CameraLearning& options, int n_images, uint32_t step, float network_learning_rate);

  private:
    void upload_map();
    void upload_sums();

    Context& context_;
    mutable CameraOptimizer optimizer_;
    mutable bool sums_on_host_ = true; // optimizer_ has those of the device
    bool sums_on_device_ = false;      // and the other way
    int n_steps_ = 0;                  // that the device's sums are of
    float finest_scale_ = 0;
    DeviceArray<Vec2> map_;
    DeviceArray<double> sums_;      // as CameraCorrections::sums
    DeviceArray<FixedSum> of_step_; // the same of the step at hand, without their factors
    DeviceArray<RayGradient> ray_gradients_;
    DeviceArray<Vec3> d_color_;
};

} // namespace ngp::cuda
