// The stages of a model's training work on given samples, one by one: what tests compare with their references and
// benchmarks time.
#include "device_model.cuh"
#include "for_each.cuh"
#include "general_network.cuh"
#include "occupancy.cuh"

namespace ngp::cuda {

namespace {

// Body: the encoding of point i as floats.
struct EncodePoint {
    ModelView model;
    const Vec3* positions;
    float* rows; // n_encoded a point

    NGP_HD void operator()(int64_t i) const {
        general::encode(*model.position, model.encoding, {model.unit(positions[i])},
                        general::Column<float>{rows + i * model.n_encoded, 1});
    }
};

class CudaNerfBench final : public NerfModelBench {
  public:
    CudaNerfBench(NerfBenchInput input, const CudaOptions& options)
        : context_(options.device, options.max_bytes, options.max_shared_bytes), input_(std::move(input)),
          n_(int64_t(input_.positions.size())) {
        const DeviceGuard guard(context_.device());
        NGP_CHECK_EQ(input_.directions.size(), input_.positions.size());
        NGP_CHECK_EQ(input_.d_raw.size(), input_.positions.size());
        const NerfModelShape shape = nerf_model_shape(input_.config, input_.aabb_scale, input_.n_extra_dims);
        NGP_CHECK_EQ(int64_t(input_.extra_dims.size()), n_ * input_.n_extra_dims);
        const float half_size = 0.5f * float(input_.aabb_scale);
        model_ = std::make_unique<DeviceModel>(context_, shape, input_.config.optimizer,
                                               Aabb{splat3(0.5f - half_size), splat3(0.5f + half_size)},
                                               options.deterministic);
        model_->reserve_encoding_gradients(n_, inputs());
        if (input_.input_gradients) rays_ = {context_, n_, "gradients"};
        positions_ = {context_, n_, "samples"};
        directions_ = {context_, n_, "samples"};
        d_raw_ = {context_, n_, "gradients"};
        raw_ = {context_, n_, "samples"};
        d_position_ = {context_, n_, "gradients"};
        encoded_ = {context_, n_ * shape.position.n_out_padded, "encodings"};
        if (model_->is_fused()) encodings_ = {context_, n_ * fused_encoded, "encodings"};
        state_ = {context_, 1, "counters"};
        count_ = {context_, 1, "counters"};
        extra_dims_ = {context_, n_ * input_.n_extra_dims, "samples"};
        extra_dims_.upload(input_.extra_dims);
        positions_.upload(input_.positions);
        directions_.upload(input_.directions);
        std::vector<RawSample> scaled = input_.d_raw;
        for (RawSample& d : scaled) {
            for (float& c : d.rgb) c *= loss_scale;
            d.density *= loss_scale;
        }
        d_raw_.upload(scaled);
        const auto count = uint32_t(n_);
        count_.upload(&count, 1);
        write_steps();
        set_params(initial_nerf_params(shape, input_.seed));
        model_->optimizer().prepare(0);
    }

    const NerfModelShape& shape() const override { return model_->shape(); }

    void encode() override {
        const DeviceGuard guard(context_.device());
        for_each(context_.stream(), n_, EncodePoint{view(), positions_.data(), encoded_.data()});
    }
    void forward() override {
        const DeviceGuard guard(context_.device());
        launch_points(raw_.data(), nullptr);
    }
    void forward_backward() override {
        const DeviceGuard guard(context_.device());
        launch_points(raw_.data(), nullptr);
        model_->launch_backward(view(), source());
        blocks_ = model_->gradient_blocks();
    }
    void scatter() override {
        const DeviceGuard guard(context_.device());
        model_->launch_scatter_gradients(source());
    }
    void optimize() override {
        const DeviceGuard guard(context_.device());
        model_->optimizer().launch(state_.data(), blocks_, {});
        ++steps_;
        write_steps();
        model_->optimizer().clear_weight_gradients();
        model_->optimizer().prepare(steps_);
    }
    void wait() override { context_.wait(); }

    std::vector<float> gradient() override {
        const DeviceGuard guard(context_.device());
        return model_->optimizer().gradient(blocks_);
    }
    void set_gradient(const std::vector<float>& gradient) override {
        const DeviceGuard guard(context_.device());
        model_->optimizer().set_gradient(gradient);
        blocks_ = 1;
    }
    std::vector<float> params() override {
        const DeviceGuard guard(context_.device());
        return model_->optimizer().params();
    }
    void set_params(const std::vector<float>& params) override {
        const DeviceGuard guard(context_.device());
        model_->optimizer().set_params(params);
        steps_ = 0;
        write_steps();
    }
    std::vector<float> averaged() override {
        const DeviceGuard guard(context_.device());
        return model_->optimizer().averaged(steps_, steps_);
    }
    std::vector<RawSample> raw() override {
        const DeviceGuard guard(context_.device());
        return raw_.download();
    }
    std::vector<float> encoded() override {
        const DeviceGuard guard(context_.device());
        if (!model_->is_fused()) {
            encode();
            return encoded_.download();
        }
        // What the fused kernels keep.
        launch_points(raw_.data(), nullptr);
        const std::vector<half> rows = encodings_.download();
        const int columns = shape().position.n_out_padded;
        std::vector<float> out(size_t(n_) * size_t(columns));
        for (int64_t i = 0; i < n_; ++i)
            for (int k = 0; k < columns; ++k)
                out[size_t(i * columns + k)] = __half2float(rows[size_t(i * fused_encoded + k)]);
        return out;
    }
    std::vector<RayGradient> input_gradients() override {
        const DeviceGuard guard(context_.device());
        if (rays_.size() > 0) model_->launch_ray_gradients(view(), source(), FLT_MAX, rays_.data(), nullptr);
        return rays_.download();
    }
    std::vector<float> extra_dims_gradient() override {
        const DeviceGuard guard(context_.device());
        std::vector<float> gradient(input_.extra_dims.size());
        context_.wait();
        if (!gradient.empty())
            check(cudaMemcpy(gradient.data(), model_->extra_dims_gradients(), gradient.size() * sizeof(float),
                             cudaMemcpyDeviceToHost),
                  "copy from the device");
        for (float& g : gradient) g *= 1.0f / loss_scale;
        return gradient;
    }
    std::vector<Vec3> density_gradient() override {
        const DeviceGuard guard(context_.device());
        launch_points(nullptr, d_position_.data());
        return d_position_.download();
    }

  private:
    InputGradients inputs() const { return {input_.input_gradients, input_.n_extra_dims > 0}; }
    ModelView view() const {
        ModelView v = model_->trained(Activation::Logistic, Activation::Exponential);
        v.extra_dims = extra_dims_.data();
        v.extra_dims_stride = input_.n_extra_dims;
        return v;
    }
    void launch_points(RawSample* out, Vec3* d_position) {
        PointsJob job{};
        job.model = view();
        job.scratch = model_->scratch();
        job.positions = positions_.data();
        job.directions = directions_.data();
        job.n = n_;
        job.out = out;
        job.encodings = encodings_.data();
        job.d_position = d_position;
        job.finest_scale = FLT_MAX;
        model_->functions().points(context_, job);
    }
    DeviceModel::BackwardSource source() const {
        DeviceModel::BackwardSource s;
        s.positions = positions_.data();
        s.directions = directions_.data();
        s.encodings = encodings_.data();
        s.d_raw = d_raw_.data();
        s.n = count_.data();
        s.capacity = n_;
        s.inputs = inputs();
        return s;
    }
    void write_steps() {
        StepState s{};
        s.matrix_steps = s.encoding_steps = steps_;
        s.n_rays_used = 1; // gradients are what the optimizer should see
        state_.upload(&s, 1);
    }

    Context context_;
    NerfBenchInput input_;
    int64_t n_;
    std::unique_ptr<DeviceModel> model_;
    DeviceArray<Vec3> positions_, directions_, d_position_;
    DeviceArray<RawSample> raw_, d_raw_;
    DeviceArray<RayGradient> rays_;
    DeviceArray<float> encoded_, extra_dims_;
    DeviceArray<half> encodings_;
    DeviceArray<StepState> state_;
    DeviceArray<uint32_t> count_;
    uint32_t steps_ = 0;
    int blocks_ = 1;
};

} // namespace

} // namespace ngp::cuda

namespace ngp {

std::unique_ptr<NerfModelBench> make_cuda_nerf_bench(NerfBenchInput input, const CudaOptions& options) {
    return std::make_unique<cuda::CudaNerfBench>(std::move(input), options);
}

OccupancyWords cuda_occupancy_words(const std::vector<float>& values, const CudaOptions& options) {
    cuda::Context context(options.device, options.max_bytes, options.max_shared_bytes);
    const cuda::DeviceGuard guard(context.device());
    cuda::DeviceOccupancy occupancy(context, int(int64_t(values.size()) / occupancy_cells));
    const cuda::DeviceArray<cuda::StepState> state(context, 1, "counters");
    occupancy.set_values(values, state.data());
    return {occupancy.words(), occupancy.clearance()};
}

} // namespace ngp
