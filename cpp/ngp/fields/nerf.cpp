#include <cmath>
#include <ngp/core/check.h>
#include <ngp/core/device.h>
#include <ngp/fields/nerf.h>

namespace ngp {

NerfModelShape nerf_model_shape(const NetworkConfig& config, int aabb_scale, int n_extra_dims) {
    if (n_extra_dims < 0 || n_extra_dims > max_extra_dims)
        fail("the direction encoding gets ", n_extra_dims, " extra dimensions; 0 to ", max_extra_dims,
             " are supported");
    NerfModelShape s;
    s.position = encoding_shape(config.position_encoding, 3, config.density_mlp.padding, aabb_scale);
    s.density = mlp_shape(config.density_mlp, s.position.n_out_padded, density_outputs);
    s.direction = encoding_shape(config.direction_encoding, 3 + n_extra_dims, config.rgb_mlp.padding, aabb_scale,
                                 3 + max_extra_dims);
    if (s.direction.n_params > 0) fail("dir_encoding: an encoding with parameters; grids encode positions only");
    const EncodingPart& last = s.direction.parts[s.direction.n_parts - 1];
    if (n_extra_dims > 0 && last.in_begin + last.n_in < 3 + n_extra_dims)
        fail("dir_encoding: reads ", last.in_begin + last.n_in, " of ", 3 + n_extra_dims,
             " dimensions (3 of the direction, ", n_extra_dims,
             " of latents or a light); end its Composite with {\"otype\": \"Identity\"}, as base.json does");
    const int padding = config.rgb_mlp.padding;
    const int n_in = density_outputs + s.direction.n_out_padded;
    s.rgb = mlp_shape(config.rgb_mlp, (n_in + padding - 1) / padding * padding, 3);
    return s;
}

std::vector<float> initial_nerf_params(const NerfModelShape& shape, uint64_t seed) {
    std::vector<float> params(shape.n_params());
    Pcg32 rng = Pcg32::seeded(seed);
    float* p = params.data();
    for (const MlpShape* mlp : {&shape.density, &shape.rgb})
        for (int k = 0; k < mlp->n_layers; ++k) {
            const float bound = std::sqrt(6.0f / float(mlp->in(k) + mlp->out(k)));
            for (uint32_t i = 0; i < mlp->layer_params(k); ++i) *p++ = (2.0f * rng.next_float() - 1.0f) * bound;
        }
    for (uint32_t i = 0; i < shape.position.n_params; ++i) *p++ = (2.0f * rng.next_float() - 1.0f) * 1e-4f;
    return params;
}

namespace {
[[noreturn]] void fail_without_device() { fail("this engine runs on the CPU and knows no arrays on devices"); }
} // namespace
void NerfEngine::wait_for_stream(uintptr_t) { fail_without_device(); }
std::shared_ptr<SharedMemory> NerfEngine::keep_pixels(const void*, int64_t) { fail_without_device(); }
std::shared_ptr<SharedMemory> NerfEngine::fetch(const void*, int64_t) { fail_without_device(); }
bool NerfEngine::all_finite(const float*, int64_t) { fail_without_device(); }

#if !defined(NGP_HAVE_CUDA) // else: cuda/nerf.cu and cuda/bench.cu
std::unique_ptr<NerfEngine> make_cuda_nerf_engine(const CudaOptions& options) {
    fail("device 'cuda:", options.device, "': ", cuda_unavailable_reason());
}
std::unique_ptr<NerfModelBench> make_cuda_nerf_bench(NerfBenchInput, const CudaOptions& options) {
    fail("device 'cuda:", options.device, "': ", cuda_unavailable_reason());
}
OccupancyWords cuda_occupancy_words(const std::vector<float>&, const CudaOptions& options) {
    fail("device 'cuda:", options.device, "': ", cuda_unavailable_reason());
}
#endif

} // namespace ngp
