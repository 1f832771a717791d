// Training of the CUDA engine of the NeRF task; nerf.cu adds rendering and queries.
#pragma once

#include "cameras.cuh"
#include "device_model.cuh"
#include "error_maps.cuh"
#include "images.cuh"
#include "occupancy.cuh"
#include "stage_timer.cuh"
#include "step.cuh"
#include "view_inputs.cuh"

#include <array>

namespace ngp::cuda {

class CudaNerfTraining : public NerfEngine {
  public:
    explicit CudaNerfTraining(const CudaOptions& options);
    ~CudaNerfTraining() override;

    void set_views(std::vector<TrainingView> views) override;
    const CameraCorrections& corrections() const override { return cameras_.corrections(); }
    void set_corrections(const CameraCorrections& corrections) override;
    void set_view_inputs(ViewInputs inputs) override;
    const ViewInputs& view_inputs() const override;
    float view_input_gradient(const ViewInputLoss& job, std::vector<float>& gradient) override;
    void reset_network(const NetworkConfig& config, int aabb_scale, int n_extra_dims, uint64_t seed) override;
    const NerfModelShape& shape() const override;

    void train_step(const NerfTrainOptions& options, int64_t batch_size) override;
    StepResult last_step() override;

    // --- execution policy of training_step
    void update_occupancy(const StepPlan& plan);
    void rays_to_gradients(const StepPlan& plan); // rays, samples, networks and gradients of a step
    void scatter_gradients(const StepPlan& plan);
    void optimize(const StepPlan& plan);
    StepResult result() const { return {}; } // on its way: last_step() waits for it

    std::vector<float> params() override;
    void set_params(const std::vector<float>& params) override;
    NerfTrainState train_state() const override;
    void set_train_state(const NerfTrainState& state) override;

    const OccupancyGrid& occupancy() const override;
    void set_occupancy(const std::vector<float>& values) override;
    void reset_occupancy() override;

    // Profiling runs a step's kernels one by one, with an event after each stage.
    void set_profiling(bool on) override { timer_.turn(on); }
    StageTimes stage_times() const override { return timer_.times(); }
    void reset_stage_times() override { timer_.reset(); }
    int64_t host_bytes() const override {
        return images_.host_bytes() + int64_t(host_occupancy_.values().size()) * 8 + errors_.host_bytes();
    }
    int64_t device_bytes() const override { return context_.bytes(); }
    int64_t peak_device_bytes() const override { return context_.peak_bytes(); }

  protected:
    // Device memory that images leave free: for the model, its optimizer and buffers, as far as they are not there yet.
    int64_t reserve() const;
    StepState read_state() const;
    // Averages of the weights, brought up to date.
    void refresh_averaged();

    CudaOptions options_of_device_;
    Context context_;
    DeviceCameras cameras_{context_};
    DeviceViewInputs view_inputs_;
    std::unique_ptr<DeviceModel> model_;
    std::unique_ptr<DeviceOccupancy> occupancy_;

  private:
    using Stage = StageTimer::Stage;

    bool visits_by_training() const { return options_.occupancy_schedule == OccupancySchedule::Budgeted; }
    bool trains_view_inputs() const { return options_.train_view_inputs && shape().n_extra_dims() > 0; }
    SceneView scene() const;
    ModelView trained() const;
    SampleTrainingRays sample_of(const StepPlan& plan) const;
    StepView step_view(int parity) const;
    DeviceModel::BackwardSource source() const;
    Pcg32 rays_rng(uint32_t step) const;
    int image_count(const NerfTrainOptions& options) const;

    // What changed, and what of it no longer holds.
    void weights_changed() { averaged_fresh_ = false; }
    void occupancy_changed();
    void forget_visibility() { n_images_seen_ = 0; } // which cells the images see
    void discard_rays() { marched_ = march_ahead_ = false; }
    void forget_steps();
    void correct_views();

    void write_state(const StepState& s); // restarts the host's count of steps with it

    // A step: what must be ready for it, its launches, what follows it.
    void prepare(const NerfTrainOptions& options, int64_t batch_size);
    void prepare_buffers(const NerfTrainOptions& options, int64_t batch_size);
    void prepare_learning(const NerfTrainOptions& options);
    void plan_step(int64_t batch_size);
    void plan_rays(int64_t batch_size);
    void launch_graph();
    void end_learning(uint32_t step);
    bool can_march_ahead() const;
    void prepare_fit();

    StageTimer timer_;
    DeviceImages images_;
    DeviceErrorMaps errors_{context_};
    std::unique_ptr<StepBuffers> buffers_;
    std::array<StepGraph, 8> graphs_; // by marched_, march_ahead_ and parity_
    cudaStream_t side_stream_ = nullptr;
    cudaEvent_t fork_ = nullptr, join_ = nullptr;
    int parity_ = 0;                             // of the step: which rays are its own
    bool marched_ = false, march_ahead_ = false; // this step's rays are there; the next one's will be
    DeviceArray<StepState> state_;
    PinnedArray<StepResult> results_;
    std::array<cudaEvent_t, 4> in_flight_{};
    // Of view_input_gradient()
    std::unique_ptr<StepBuffers> fit_buffers_;
    DeviceArray<StepState> fit_state_;
    DeviceArray<FixedSum> fit_sums_;
    PinnedArray<StepResult> fit_result_;
    AdamSettings settings_; // of the network
    uint64_t seed_ = 0;
    NerfTrainOptions options_;
    StepPlan plan_;
    uint32_t step_ = 0, first_step_ = 0; // launched; when the state was written last
    int64_t rays_of_batch_ = 0;          // batch size that the ray count was adapted to
    uint32_t occupancy_updates_ = 0;
    int n_images_seen_ = 0;
    float restored_loss_ = 0;
    bool averaged_fresh_ = false;
    mutable OccupancyGrid host_occupancy_;
    mutable bool host_occupancy_fresh_ = false;
};

} // namespace ngp::cuda
