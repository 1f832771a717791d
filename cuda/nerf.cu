// The CUDA engine of the NeRF task: rendering and queries, on top of training (nerf_training.cuh).
#include "for_each.cuh"
#include "nerf_training.cuh"
#include "shared_memory.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

constexpr int64_t points_per_launch = 1 << 20;

class CudaNerfEngine final : public CudaNerfTraining {
  public:
    explicit CudaNerfEngine(const CudaOptions& options) : CudaNerfTraining(options) {
        const DeviceGuard guard(context_.device());
        counters_ = {context_, 1, "counters"};
    }

    // --- rendering and queries -----------------------------------------------------------------------------------

    void render_display(const FrameRequest& r, const DisplayOptions& display, float* rgba, float* depth) override {
        const DeviceGuard guard(context_.device());
        const DeviceArray<FramePixel>& frame = render_on_device(r);
        const int64_t n = pixels_of(r);
        values_.reserve(context_, n * (depth ? 5 : 4), "the picture");
        float* const device_depth = depth ? values_.data() + 4 * n : nullptr;
        for_each(context_.stream(), n, FinishPixel{display, frame.data(), values_.data(), device_depth});
        copy_to_host(rgba, values_.data(), 4 * n);
        copy_to_host(depth, device_depth, n);
        context_.wait();
    }

    void render_channels(const FrameRequest& r, const WorldTransform& world, const ChannelPointers& channels,
                         Placement where) override {
        const DeviceGuard guard(context_.device());
        const DeviceArray<FramePixel>& frame = render_on_device(r);
        const int64_t n = pixels_of(r);
        ChannelPointers out = channels;
        if (where == Placement::Host) {
            const int floats = 3 * bool(out.rgb) + bool(out.alpha) + bool(out.depth) + 3 * bool(out.normal);
            values_.reserve(context_, n * floats, "the picture");
            float* at = values_.data();
            if (out.rgb) out.rgb = std::exchange(at, at + 3 * n);
            if (out.alpha) out.alpha = std::exchange(at, at + n);
            if (out.depth) out.depth = std::exchange(at, at + n);
            if (out.normal) out.normal = std::exchange(at, at + 3 * n);
        }
        for_each(context_.stream(), n, FinishChannels{world, frame.data(), out, r.gain});
        if (where == Placement::Host) {
            copy_to_host(channels.rgb, out.rgb, 3 * n);
            copy_to_host(channels.alpha, out.alpha, n);
            copy_to_host(channels.depth, out.depth, n);
            copy_to_host(channels.normal, out.normal, 3 * n);
        }
        context_.wait();
    }

    void query(const FieldQuery& q, const Vec3* positions, const Vec3* directions, int64_t n, float* rgb,
               float* density, Placement where) override {
        const DeviceGuard guard(context_.device());
        refresh_averaged();
        const cudaStream_t stream = context_.stream();
        ModelView model = model_->averaged(q.rgb_activation, q.density_activation);
        view_inputs_.attach_given(context_, model, q.extra_dims, shape().n_extra_dims());
        const int64_t chunk = std::min(n, points_per_launch);
        points_.reserve(context_, (directions ? 2 : 1) * chunk, "query points");
        raw_.reserve(context_, chunk, "query results");
        if (where == Placement::Host) values_.reserve(context_, (directions ? 4 : 1) * chunk, "query results");
        Vec3* const p = points_.data();
        Vec3* const d = directions ? p + chunk : nullptr;
        for (int64_t begin = 0; begin < n; begin += chunk) {
            const int64_t m = std::min(chunk, n - begin);
            PlaceQueryPoint place{q.world, positions + begin, directions ? directions + begin : nullptr, p, d};
            float* const colors = rgb ? rgb + 3 * begin : nullptr;
            FinishQueryPoint finish{q, occupancy_->view(), p, raw_.data(), colors, density + begin};
            if (where == Placement::Host) {
                copy_to_device(p, place.positions, m);
                copy_to_device(d, place.directions, m);
                place.positions = p;
                place.directions = d;
                finish.density = values_.data();
                finish.rgb = rgb ? values_.data() + chunk : nullptr;
            }
            for_each(stream, m, place);
            PointsJob job{};
            job.model = model;
            job.scratch = model_->scratch();
            job.positions = p;
            job.directions = d;
            job.n = m;
            job.out = raw_.data();
            model_->functions().points(context_, job);
            for_each(stream, m, finish);
            if (where == Placement::Host) {
                copy_to_host(density + begin, finish.density, m);
                copy_to_host(colors, finish.rgb, 3 * m);
            }
        }
        context_.wait();
    }

    int device() const override { return context_.device(); }
    std::shared_ptr<SharedMemory> allocate(int64_t bytes, Placement where) override {
        if (where == Placement::Device) return context_.share(bytes, "a result");
        return allocate_for_host(context_.device(), bytes, context_.stream());
    }
    void wait_for_stream(uintptr_t stream) override {
        const DeviceGuard guard(context_.device());
        wait_for(context_.stream(), reinterpret_cast<cudaStream_t>(stream));
    }
    std::shared_ptr<SharedMemory> keep_pixels(const void* on_device, int64_t bytes) override {
        const DeviceGuard guard(context_.device());
        const bool fits = bytes <= context_.available() - reserve();
        auto kept = fits ? context_.share(bytes, "training images")
                         : allocate_for_host(context_.device(), bytes, context_.stream());
        check(cudaMemcpyAsync(kept->data(), on_device, size_t(bytes), cudaMemcpyDefault, context_.stream()),
              "copy of training images");
        context_.wait();
        return kept;
    }
    std::shared_ptr<SharedMemory> fetch(const void* on_device, int64_t bytes) override {
        const DeviceGuard guard(context_.device());
        auto copy = allocate_for_host(context_.device(), bytes, context_.stream());
        check(cudaMemcpyAsync(copy->data(), on_device, size_t(bytes), cudaMemcpyDefault, context_.stream()),
              "copy from the device");
        context_.wait();
        return copy;
    }
    bool all_finite(const float* on_device, int64_t n) override {
        const DeviceGuard guard(context_.device());
        return cuda::all_finite(context_, on_device, n);
    }

  private:
    // Asynchronous where host memory is page-locked. Null: not wanted.
    template <typename T>
    void copy_to_host(T* to, const T* from, int64_t n) const {
        if (to)
            check(cudaMemcpyAsync(to, from, size_t(n) * sizeof(T), cudaMemcpyDeviceToHost, context_.stream()),
                  "copy from the device");
    }
    template <typename T>
    void copy_to_device(T* to, const T* from, int64_t n) const {
        if (to)
            check(cudaMemcpyAsync(to, from, size_t(n) * sizeof(T), cudaMemcpyHostToDevice, context_.stream()),
                  "copy to the device");
    }

    static int64_t pixels_of(const FrameRequest& r) { return int64_t(r.camera.width) * r.camera.height; }

    const DeviceArray<FramePixel>& render_on_device(const FrameRequest& r) {
        refresh_averaged();
        frame_.reserve(context_, pixels_of(r), "the picture");
        RenderJob job;
        job.model = model_->averaged(r.rgb_activation, r.density_activation);
        view_inputs_.attach_given(context_, job.model, r.extra_dims.data(), shape().n_extra_dims());
        job.occupancy = occupancy_->view();
        job.make = {r.camera,
                    r.pose,
                    model_->box().intersection(r.box),
                    r.crop,
                    r.crop_to_local,
                    Stepping::with_cone_angle(r.cone_angle),
                    r.near_distance,
                    r.snap_to_pixel_centers,
                    r.blur,
                    r.motion,
                    r.distortion_map ? cameras_.distortion_map() : DistortionMap{}};
        job.spp = r.spp;
        job.min_transmittance = r.min_transmittance;
        job.add = r.add_ray();
        job.normals = r.normals || r.shows.mode == RenderMode::Normals;
        job.visualized = r.visualized;
        job.pixels = frame_.data();
        const int64_t n_rays = render_rays(r.camera.width, r.camera.height);
        started_rays_.reserve(context_, n_rays, "the picture's rays");
        job.rays = started_rays_.data();
        job.counters = counters_.data();
        if (job.separate_starts()) {
            ray_starts_.reserve(context_, n_rays, "the picture's rays");
            job.starts = ray_starts_.data();
        }
        // Fused networks have no place where activations could be seen; the general one evaluates their models too.
        const NetworkFunctions& functions = job.visualized.wanted() ? general_functions() : model_->functions();
        const ScratchView scratch = model_->render_scratch(functions, job);
        job.scratch = scratch.data;
        job.scratch_size = scratch.size;
        functions.render(context_, job);
        return frame_;
    }

    DeviceArray<FramePixel> frame_;
    DeviceArray<StartedRay> started_rays_;
    DeviceArray<RayStart> ray_starts_;
    DeviceArray<RenderCounters> counters_;
    DeviceArray<float> values_; // of results on their way to the host
    DeviceArray<Vec3> points_;  // of queries
    DeviceArray<RawSample> raw_;
};

} // namespace

} // namespace ngp::cuda

namespace ngp {

std::unique_ptr<NerfEngine> make_cuda_nerf_engine(const CudaOptions& options) {
    return std::make_unique<cuda::CudaNerfEngine>(options);
}

} // namespace ngp
