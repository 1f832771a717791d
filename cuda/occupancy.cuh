// The occupancy grid on the device (stages/occupancy.h).
#pragma once

#include "network.cuh"

namespace ngp::cuda {

class DeviceOccupancy {
  public:
    DeviceOccupancy(Context& context, int n_cascades);

    // All cells unknown (value 0) and no bit set.
    void reset();
    void set_values(const std::vector<float>& values, StepState* state); // rebuilds the bits
    std::vector<float> values() const { return values_.download(); }
    std::vector<float> fresh() const { return fresh_.download(); }
    void set_fresh(const std::vector<float>& fresh) { fresh_.upload(fresh); }

    OccupancyView view() const { return {words_.data(), clearance_.data(), n_cascades_ - 1}; }
    std::vector<uint64_t> words() const { return words_.download(); }
    std::vector<uint8_t> clearance() const { return clearance_.download(); }
    int n_cascades() const { return n_cascades_; }
    const float* values_on_device() const { return values_.data(); }
    float* fresh_on_device() const { return fresh_.data(); }
    int64_t bytes() const { return values_.bytes() + fresh_.bytes() + words_.bytes() + clearance_.bytes(); }

    // Cells that none of the first n_images views sees become -1 (E.3).
    void mark_visible(const SceneView& scene, int n_images, bool initial);
    // The decay and the largest of what was seen, after fresh_on_device() was filled; then the bits. Leaves the mean in
    // `state`.
    void apply(float decay, bool sampled_only, StepState* state);

  private:
    void rebuild_bits(StepState* state);

    Context& context_;
    int n_cascades_;
    DeviceArray<float> values_, fresh_, partial_sums_;
    DeviceArray<uint64_t> words_;
    DeviceArray<uint8_t> clearance_;
};

} // namespace ngp::cuda
