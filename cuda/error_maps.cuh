// Importance sampling by errors (stages/error_map.h) on the device: it adds up the errors of the rays of every step;
// the host makes distributions of the sums when an interval ends.
#pragma once

#include "fixed_point.cuh"
#include "training.cuh"

#include <ngp/stages/error_map.h>

namespace ngp::cuda {

class DeviceErrorMaps {
  public:
    explicit DeviceErrorMaps(Context& context);
    DeviceErrorMaps(const DeviceErrorMaps&) = delete;

    // Whether begin_step() would change what rays are drawn by.
    bool changes_at(const ErrorMapOptions& options, int n_images) const {
        return map_.changes_at(options, n_images) || (options.active() && !on_device_);
    }
    // Before such a step, which has `n_rays`. `views` as the device finds them. The device must have finished all
    // steps; captured ones are no longer valid.
    void begin_step(const ErrorMapOptions& options, const std::vector<TrainingView>& views, int n_images, int n_rays);
    ErrorSampling sampling() const; // on the device
    // Of the rays of a step, while there are maps: losses by the inverse density of their pixels, before
    // launch_order(); and to the maps, after it. Capturable.
    void launch_weigh(const StepView& step);
    void launch_add(const StepView& step);
    void end_step() { map_.end_step(0); }

    void reset();
    ErrorMap::State state() const; // waits
    void set_state(ErrorMap::State state);
    int64_t host_bytes() const { return map_.bytes(); }

  private:
    Context& context_;
    ErrorMap map_;           // its errors are of the last begin_step()
    bool on_device_ = false; // what map_ holds
    DeviceArray<float> errors_, images_, rows_, columns_;
    DeviceArray<FixedSum> of_step_;
};

} // namespace ngp::cuda
