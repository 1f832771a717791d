// Training views on the device.
#pragma once

#include "memory.cuh"

#include <ngp/stages/camera_optimizer.h>

namespace ngp::cuda {

// Pixels, and what lies beside them, as they were given (8-bit images stay 8-bit). Those that are on the device stay
// where they are. Those of the host are copied to the device, or, if they would take more than `budget` bytes of it, to
// page-locked host memory, from which kernels fetch the pixels that they sample.
class DeviceImages {
  public:
    DeviceImages() = default;
    DeviceImages(Context& context, const std::vector<TrainingView>& views, int64_t budget);

    const TrainingView* views() const { return views_.data(); } // on the device
    // The views' cameras from now on, in their order; pixels stay. The device must not be reading them.
    void set_cameras(const CameraCorrections& corrections);
    int n_views() const { return int(views_.size()); }
    bool on_device() const { return on_device_; }
    const std::vector<TrainingView>& given() const { return given_; } // as on the device, with cameras uncorrected
    int64_t host_bytes() const { return pinned_.size(); }

  private:
    std::vector<TrainingView> given_; // with pixels as the device finds them, and cameras uncorrected
    DeviceArray<TrainingView> views_;
    DeviceArray<uint8_t> pixels_;
    PinnedArray<uint8_t> pinned_;
    bool on_device_ = true;
};

} // namespace ngp::cuda
