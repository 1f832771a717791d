// Memory of a training step, and the step as a graph.
#pragma once

#include "training.cuh"

#include <algorithm>

namespace ngp::cuda {

// Samples of a step: some more than the batch, since ray counts are only adapted to what the last step gave; and enough
// for the first rays of the smallest batches, which can have max_samples_per_ray each.
inline int64_t batch_capacity(int64_t batch_size) { return batch_size + std::max<int64_t>(batch_size / 4, 1 << 14); }

// Memory of training steps of one batch size.
class StepBuffers {
  public:
    // What a step keeps besides.
    struct Extras {
        bool encodings = false, distances = false, ray_pixels = false;
        bool operator==(const Extras&) const = default;
    };
    StepBuffers(Context& context, int64_t batch_size, Extras extras, StepState* state)
        : batch_size_(batch_size), extras_(extras) {
        view_.state = state;
        // What contributes varies from step to step; what does not fit into the batch is left out (order_rays_kernel),
        // what does not even fit here is lost while it is traced.
        view_.time_capacity = std::max<int64_t>(8 * batch_size, 1 << 18);
        // Rays that find no room are lost, and which ones depends on timing. Small batches, whose numbers of rays jump,
        // have room for 512 rays of the greatest length.
        view_.sample_capacity = std::max<int64_t>(2 * batch_capacity(batch_size), int64_t(512) * max_samples_per_ray);
        view_.batch_capacity = batch_capacity(batch_size);
        view_.max_rays = std::max<int64_t>(batch_size, 256);
        const int64_t tiles = (view_.max_rays + rays_per_tile - 1) / rays_per_tile;
        for (RayBuffers& b : rays_) {
            b.rays = {context, view_.max_rays, "rays"};
            b.spans = {context, view_.max_rays, "rays"};
            b.times = {context, view_.time_capacity, "samples"};
            b.outcomes = {context, view_.max_rays, "rays"};
            b.hits = {context, view_.max_rays, "rays"};
            if (extras.ray_pixels) b.pixels = {context, view_.max_rays, "rays"};
        }
        first_ = {context, view_.max_rays, "rays"};
        samples_ = {context, view_.sample_capacity, "samples"};
        raw_ = {context, view_.sample_capacity, "samples"};
        blends_ = {context, view_.sample_capacity, "samples"};
        if (extras.encodings) encodings_ = {context, view_.sample_capacity * fused_encoded, "encodings"};
        if (extras.distances) {
            distances_ = {context, view_.sample_capacity, "samples"};
            ray_distances_ = {context, view_.max_rays, "rays"};
        }
        order_ = {context, view_.batch_capacity, "samples"};
        scan_ = {context, tiles, "rays"};
        tile_loss_ = {context, tiles, "rays"};
        scan_.zero();
        view_.samples = samples_.data();
        view_.raw = raw_.data();
        view_.blends = blends_.data();
        view_.encodings = encodings_.data();
        view_.distances = distances_.data();
        view_.ray_distances = ray_distances_.data();
        view_.first = first_.data();
        view_.order = order_.data();
        view_.scan = scan_.data();
        view_.tile_loss = tile_loss_.data();
    }
    // With the rays of even or of odd steps: the next step's are marched while this one's are in use.
    StepView view(int parity) const {
        StepView v = view_;
        const RayBuffers& b = rays_[parity];
        v.rays = b.rays.data();
        v.spans = b.spans.data();
        v.times = b.times.data();
        v.outcomes = b.outcomes.data();
        v.hits = b.hits.data();
        v.ray_pixels = b.pixels.data();
        return v;
    }
    int64_t max_rays() const { return view_.max_rays; }
    int64_t batch_size() const { return batch_size_; }
    const Extras& extras() const { return extras_; }

  private:
    int64_t batch_size_;
    Extras extras_;
    StepView view_;
    struct RayBuffers {
        DeviceArray<TrainingRay> rays;
        DeviceArray<RaySpan> spans;
        DeviceArray<float> times;
        DeviceArray<RayOutcome> outcomes;
        DeviceArray<uint32_t> hits;
        DeviceArray<RayPixel> pixels;
    };
    RayBuffers rays_[2];
    DeviceArray<uint32_t> first_, order_;
    DeviceArray<Sample> samples_;
    DeviceArray<RawSample> raw_;
    DeviceArray<SampleBlend> blends_;
    DeviceArray<float> distances_;
    DeviceArray<RayDistance> ray_distances_;
    DeviceArray<half> encodings_;
    DeviceArray<unsigned long long> scan_;
    DeviceArray<float> tile_loss_;
};

// A captured step.
class StepGraph {
  public:
    StepGraph() = default;
    StepGraph(const StepGraph&) = delete;
    ~StepGraph() { clear(); }
    void clear() {
        if (graph_) cudaGraphExecDestroy(graph_);
        graph_ = nullptr;
    }
    bool captured() const { return graph_ != nullptr; }
    void launch(cudaStream_t stream) const { check(cudaGraphLaunch(graph_, stream), "launch of a training step"); }

    template <typename Launches>
    void capture(cudaStream_t stream, const Launches& launches) {
        clear();
        // Thread-local: other threads may go on allocating on this or other devices.
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture of a training step");
        cudaGraph_t graph = nullptr;
        try {
            launches();
        } catch (...) {
            cudaStreamEndCapture(stream, &graph);
            if (graph) cudaGraphDestroy(graph);
            throw;
        }
        check(cudaStreamEndCapture(stream, &graph), "capture of a training step");
        const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "instantiation of a training step");
    }

  private:
    cudaGraphExec_t graph_ = nullptr;
};

} // namespace ngp::cuda
