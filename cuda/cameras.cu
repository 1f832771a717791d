#include "cameras.cuh"

#include "for_each.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

constexpr int threads = 128;

struct AddRaysJob {
    GradientOfCamera gradient; // without its destination
    StepView step;
    FixedSum* sums;  // CameraCorrections::sums
    int focal_begin; // among them; the map's follow
};

// A thread a ray; warps stay together, since neighbouring rays are mostly of one view.
__global__ void __launch_bounds__(threads) add_rays_kernel(const __grid_constant__ AddRaysJob job) {
    const StepView& step = job.step;
    const int n = step.state->n_rays, lane = threadIdx.x & 31, stride = int(gridDim.x) * threads;
    FixedSum* const focal = job.sums + job.focal_begin;
    const DistortionMap& texels = job.gradient.distortion;
    for (int first = (int(blockIdx.x) * threads + int(threadIdx.x)) / 32 * 32; first < n; first += stride) {
        const int i = first + lane;
        const bool used = i < n && step.first[i] != unused_ray;
        CameraGradient g{};
        if (used) {
            GradientOfCamera body = job.gradient;
            body.out = &g - i; // the body writes to out[i]
            body(i);
        }
        const WarpRows views(used, used ? step.ray_pixels[i].view : 0);
        constexpr int columns = CameraCorrections::sums_per_view;
#pragma unroll
        for (int k = 0; k < 3; ++k) {
            views.add(job.sums, columns, k, to_fixed_sum(g.position[k]));
            views.add(job.sums, columns, 3 + k, to_fixed_sum(g.rotation[k]));
            views.add(job.sums, columns, 6 + k, to_fixed_sum(g.exposure[k]));
        }
        const FixedSum x = warp_sum_of_fixed(to_fixed_sum(g.focal.x)), y = warp_sum_of_fixed(to_fixed_sum(g.focal.y));
        if (lane == 0) add_fixed(focal, x);
        if (lane == 0) add_fixed(focal + 1, y);
        if (!used || !texels.offsets) continue;
        const MapCell cell = texels.cell(step.ray_pixels[i].uv);
        for (int corner = 0; corner < 4; ++corner) {
            const float weight = (corner & 1 ? cell.fraction.x : 1.0f - cell.fraction.x) *
                                 (corner & 2 ? cell.fraction.y : 1.0f - cell.fraction.y);
            FixedSum* const at = focal + 2 + 2 * (cell.first + (corner & 1) + (corner & 2 ? texels.width : 0));
            add_fixed(at, to_fixed_sum(weight * g.offset.x));
            add_fixed(at + 1, to_fixed_sum(weight * g.offset.y));
        }
    }
}

// Body: brings sum k of the step to the sums since the last update, as CameraOptimizer::add() scales them.
struct FoldSums {
    const StepState* state;
    double *sums, n_images, half_map; // half the number of the map's values
    FixedSum* of_step;
    int focal_begin;

    NGP_HD void operator()(int64_t k) const {
        double scale = fixed_sum_unit / double(max_of(1u, state->n_rays_used));
        if (k < focal_begin) scale *= n_images;
        if (k >= focal_begin + 2) scale *= half_map;
        sums[k] += scale * double(of_step[k]);
        of_step[k] = 0;
    }
};

int focal_begin_of(const CameraCorrections& c) { return int(c.position.size()) * CameraCorrections::sums_per_view; }

} // namespace

const CameraCorrections& DeviceCameras::corrections() const {
    if (!sums_on_host_) {
        const DeviceGuard guard(context_.device());
        optimizer_.set_sums(sums_.download(), n_steps_);
        sums_on_host_ = true;
    }
    return optimizer_.corrections();
}

DistortionMap DeviceCameras::distortion_map() const {
    DistortionMap map = current().distortion_map();
    if (map.offsets) map.offsets = map_.data();
    return map;
}

void DeviceCameras::set_corrections(const CameraCorrections& corrections) {
    optimizer_.set_corrections(corrections);
    sums_on_host_ = true;
    sums_on_device_ = false;
    upload_map();
}

void DeviceCameras::upload_map() {
    const DistortionMap map = current().distortion_map();
    const int64_t n = map.offsets ? int64_t(map.width) * map.height : 0;
    if (map_.size() != n) {
        map_ = {};
        map_ = {context_, n, "the distortion map"};
    }
    if (n > 0) map_.upload(map.offsets, n);
}

void DeviceCameras::upload_sums() {
    const std::vector<double>& sums = current().sums;
    const auto n = int64_t(sums.size());
    if (sums_.size() != n) {
        sums_ = {};
        of_step_ = {};
        sums_ = {context_, n, "gradients of cameras"};
        of_step_ = {context_, n, "gradients of cameras"};
    }
    of_step_.zero();
    sums_.upload(sums);
    n_steps_ = current().n_steps;
    sums_on_device_ = sums_on_host_ = true;
}

bool DeviceCameras::prepare(const CameraLearning& options, int n_views, int64_t max_rays, float box_size) {
    bool changed = false;
    optimizer_.prepare(size_t(n_views), options);
    const float finest = optimizer_.finest_cells(options) * box_size;
    if (finest != finest_scale_) changed = true;
    finest_scale_ = finest;
    if (distortion_map().width != 0 && map_.size() != int64_t(current().map.x.size() / 2)) {
        context_.wait();
        upload_map();
        changed = true;
    }
    if (!sums_on_device_ || sums_.size() != int64_t(current().sums.size())) {
        context_.wait();
        upload_sums();
        changed = true;
    }
    if (ray_gradients_.size() != max_rays) {
        context_.wait();
        ray_gradients_ = {};
        d_color_ = {};
        ray_gradients_ = {context_, max_rays, "gradients of rays"};
        d_color_ = {context_, max_rays, "gradients of rays"};
        changed = true;
    }
    return changed;
}

void DeviceCameras::launch_add(const CameraLearning& options, const StepView& step, const TrainingView* views,
                               int n_images) {
    const int focal_begin = focal_begin_of(current());
    AddRaysJob job{};
    job.gradient = {views,           distortion_map(),     step.ray_pixels, ray_gradients_.data(),
                    d_color_.data(), options.focal_length, nullptr};
    job.step = step;
    job.sums = of_step_.data();
    job.focal_begin = focal_begin;
    add_rays_kernel<<<unsigned(8 * context_.multiprocessors()), threads, 0, context_.stream()>>>(job);
    check(cudaGetLastError(), "launch of adding up gradients of cameras");
    for_each(context_.stream(), sums_.size(),
             FoldSums{step.state, sums_.data(), double(n_images), 0.5 * double(current().map.x.size()), of_step_.data(),
                      focal_begin});
}

bool DeviceCameras::end_step(const CameraLearning& options, int n_images, uint32_t step, float network_learning_rate) {
    ++n_steps_;
    sums_on_host_ = false;
    if (n_steps_ < options.interval) return false;
    corrections(); // with their sums
    optimizer_.update(options, n_images, step, network_learning_rate);
    upload_map();
    upload_sums();
    return true;
}

} // namespace ngp::cuda
