// Times of a training step's stages, by an event after each.
#pragma once

#include "memory.cuh"

#include <array>
#include <ngp/fields/nerf.h>

namespace ngp::cuda {

class StageTimer {
  public:
    enum class Stage { Begin, Occupancy, March, Trace, Order, Backward, Scatter, Optimizer, Count };

    explicit StageTimer(int device) {
        const DeviceGuard guard(device);
        for (cudaEvent_t& e : events_) check(cudaEventCreate(&e), "event");
    }
    ~StageTimer() {
        for (cudaEvent_t e : events_) cudaEventDestroy(e);
    }
    StageTimer(const StageTimer&) = delete;

    // Off, steps are only counted.
    void turn(bool on) { on_ = on; }
    bool is_on() const { return on_; }
    const StageTimes& times() const { return times_; }
    void reset() { times_ = {}; }

    // After the launches of a stage. An occupancy update comes before the step and begins on its own, so that its time
    // is taken at once: waits for the device.
    void mark(Stage stage, cudaStream_t stream) {
        if (!on_) return;
        check(cudaEventRecord(event(stage), stream), "event");
        if (stage != Stage::Occupancy) return;
        check(cudaEventSynchronize(event(stage)), "event");
        times_.occupancy += elapsed(Stage::Begin, Stage::Occupancy);
    }
    // After the launches of a step, all of whose stages but the occupancy's were marked. On, waits for the device.
    void end_step() {
        ++times_.steps;
        if (!on_) return;
        check(cudaEventSynchronize(event(Stage::Optimizer)), "event");
        times_.marching += elapsed(Stage::Begin, Stage::March);
        times_.forward += elapsed(Stage::March, Stage::Trace);
        times_.compositing += elapsed(Stage::Trace, Stage::Order);
        times_.backward += elapsed(Stage::Order, Stage::Backward);
        times_.rays_to_gradients += elapsed(Stage::Begin, Stage::Backward);
        times_.scatter += elapsed(Stage::Backward, Stage::Scatter);
        times_.optimizer += elapsed(Stage::Scatter, Stage::Optimizer);
    }

  private:
    cudaEvent_t event(Stage stage) const { return events_[size_t(stage)]; }
    double elapsed(Stage from, Stage to) const {
        float ms = 0;
        check(cudaEventElapsedTime(&ms, event(from), event(to)), "elapsed time");
        return double(ms);
    }

    std::array<cudaEvent_t, size_t(Stage::Count)> events_{};
    bool on_ = false;
    StageTimes times_;
};

} // namespace ngp::cuda
