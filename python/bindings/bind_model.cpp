// The whole model's training work in separate stages, on the CPU or a CUDA device, for tests and benchmarks.
#include "bindings.h"

#include <cstring>
#include <ngp/core/device.h>
#include <ngp/core/isa.h>
#include <ngp/core/parallel.h>
#include <ngp/cpu/kernels.h>
#include <ngp/fields/nerf_cpu.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

class CpuModelBench final : public NerfModelBench {
  public:
    CpuModelBench(NerfBenchInput input, const std::string& isa)
        : input_(std::move(input)), shape_(nerf_model_shape(input_.config, input_.aabb_scale, input_.n_extra_dims)),
          kernels_(isa.empty() ? cpu_kernels() : cpu_kernels(isa)), gradient_(shape_.n_params()), raw_(size_t(n())) {
        d_extra_dims_.resize(input_.extra_dims.size());
        if (input_.input_gradients) d_inputs_.resize(size_t(n()));
        const std::vector<float> initial = initial_nerf_params(shape_, input_.seed);
        params_.assign(initial.begin(), initial.end());
        density_ = PackedMlp(shape_.density);
        rgb_ = PackedMlp(shape_.rgb);
        optimizer_.reset(input_.config.optimizer, shape_.encoding_begin(), shape_.position);
        const float half = 0.5f * float(input_.aabb_scale);
        view_ = {&shape_.position,     &shape_.direction,       params_.data() + shape_.encoding_begin(),  {}, {},
                 Activation::Logistic, Activation::Exponential, {splat3(0.5f - half), splat3(0.5f + half)}};
        for (const Vec3& p : input_.positions)
            unit_positions_.push_back((p - view_.box.min) * (1.0f / float(input_.aabb_scale)));
        for (int i = 0; i < num_threads(); ++i) workspaces_.push_back(std::make_unique<CpuWorkspace>(shape_));
        lanes_ = std::vector<CpuLane>(size_t(n_tasks()));
        for (CpuLane& lane : lanes_) {
            lane.density_gradient.resize(size_t(density_.packed_size()));
            lane.rgb_gradient.resize(size_t(rgb_.packed_size()));
            lane.tiles.set_shape(shape_.position);
            lane.tile_memory.resize(size_t(lane.tiles.record * (samples_per_task / kernel_tile)));
            lane.tiles.data = lane.tile_memory.data();
            lane.tiles.capacity = samples_per_task / kernel_tile;
        }
    }

    const NerfModelShape& shape() const override { return shape_; }

    void encode() override {
        // Results stay in the cache, as they do in training.
        const std::vector<float> buffer(size_t(samples_per_task) * shape_.position.n_out_padded);
        std::vector<std::vector<float>> out(workspaces_.size(), buffer);
        each_task([&](int64_t begin, int64_t n, int worker, CpuLane&) {
            kernels_.encode(shape_.position, view_.encoding_params, &unit_positions_[begin].x, n, out[worker].data());
        });
    }
    void forward() override {
        pack();
        each_task([&](int64_t begin, int64_t n, int worker, CpuLane&) {
            kernels_.evaluate(view_from(begin), &input_.positions[begin], &input_.directions[begin], n, &raw_[begin],
                              workspaces_[worker]->get());
        });
    }
    void forward_backward() override {
        pack();
        each_task([&](int64_t begin, int64_t n, int worker, CpuLane& lane) {
            lane.tiles.count = 0;
            TrainChunk results;
            results.density_gradient = lane.density_gradient.data();
            results.rgb_gradient = lane.rgb_gradient.data();
            results.tiles = &lane.tiles;
            if (input_.input_gradients) results.ray_gradients = d_inputs_.data() + begin;
            if (input_.n_extra_dims > 0) results.d_extra_dims = d_extra_dims_.data() + begin * input_.n_extra_dims;
            kernels_.forward_backward(view_from(begin), &input_.positions[begin], &input_.directions[begin],
                                      &input_.d_raw[begin], n, workspaces_[worker]->get(), results);
        });
    }
    void scatter() override {
        for (CpuLane& lane : lanes_) {
            density_.unpack_gradient(lane.density_gradient.data(), gradient_.data());
            rgb_.unpack_gradient(lane.rgb_gradient.data(), gradient_.data() + shape_.rgb_begin());
            std::fill(lane.density_gradient.begin(), lane.density_gradient.end(), 0.0f);
            std::fill(lane.rgb_gradient.begin(), lane.rgb_gradient.end(), 0.0f);
        }
        for (int i = 0; i < shape_.position.n_parts; ++i) scatter(shape_.position.parts[i]);
    }
    void scatter(const EncodingPart& part) {
        parallel_for(part.n_levels, [&](int64_t i, int) {
            const int l = part.n_levels - 1 - int(i);
            for (const CpuLane& lane : lanes_)
                kernels_.scatter(part, l, lane.tiles,
                                 gradient_.data() + shape_.encoding_begin() + part.param_begin +
                                     size_t(part.levels[l].offset) * part.n_features,
                                 0, part.levels[l].entries);
        });
    }
    void optimize() override {
        optimizer_.step(kernels_, params_.data(), gradient_.data(), 1.0f, optimizer_.steps(), {});
    }

    std::vector<float> gradient() override { return {gradient_.begin(), gradient_.end()}; }
    void set_gradient(const std::vector<float>& g) override { std::copy(g.begin(), g.end(), gradient_.begin()); }
    std::vector<float> params() override { return {params_.begin(), params_.end()}; }
    void set_params(const std::vector<float>& p) override { std::copy(p.begin(), p.end(), params_.begin()); }
    std::vector<float> averaged() override {
        std::vector<float> out(params_.size());
        optimizer_.averaged(params_.data(), out.data());
        return out;
    }
    std::vector<RawSample> raw() override { return raw_; }
    std::vector<float> encoded() override {
        std::vector<float> out(size_t(n()) * shape_.position.n_out_padded);
        if (n() > 0) kernels_.encode(shape_.position, view_.encoding_params, &unit_positions_[0].x, n(), out.data());
        return out;
    }
    std::vector<RayGradient> input_gradients() override { return d_inputs_; }
    std::vector<float> extra_dims_gradient() override { return d_extra_dims_; }
    std::vector<Vec3> density_gradient() override {
        const MlpShape& mlp = shape_.density;
        const int width = shape_.position.n_out_padded, in = pad16(mlp.n_in), out = pad16(mlp.n_out);
        const std::vector<float> encoding = encoded();
        AlignedVector<float> x(size_t(n()) * in), dx(x.size()), y(size_t(n()) * out), dy(y.size());
        AlignedVector<float> scratch(size_t(mlp.n_layers + 2) * kernel_tile * pad16(std::max(mlp.width, 16)));
        for (int64_t i = 0; i < n(); ++i) {
            std::copy_n(encoding.data() + i * width, width, x.data() + i * in);
            dy[size_t(i * out)] = 1.0f; // raw density
        }
        pack();
        kernels_.mlp(view_.density, x.data(), n(), y.data(), dy.data(), dx.data(), nullptr, scratch.data());
        std::vector<float> d_encoding(encoding.size());
        for (int64_t i = 0; i < n(); ++i) std::copy_n(dx.data() + i * in, width, d_encoding.data() + i * width);
        std::vector<Vec3> gradient(size_t(n()), Vec3{0, 0, 0});
        if (n() > 0)
            kernels_.encoding_position_gradient(shape_.position, view_.encoding_params, &unit_positions_[0].x,
                                                d_encoding.data(), n(), &gradient[0].x);
        for (Vec3& g : gradient) g = g * (1.0f / float(input_.aabb_scale));
        return gradient;
    }

  private:
    static constexpr int64_t samples_per_task = 1024;
    int64_t n() const { return int64_t(input_.positions.size()); }
    int64_t n_tasks() const { return (n() + samples_per_task - 1) / samples_per_task; }
    NerfModelView view_from(int64_t begin) const {
        NerfModelView view = view_;
        view.extra_dims = input_.extra_dims.data() + begin * input_.n_extra_dims;
        view.extra_dims_stride = input_.n_extra_dims;
        return view;
    }
    void pack() {
        density_.pack(params_.data());
        rgb_.pack(params_.data() + shape_.rgb_begin());
        view_.density = {shape_.density, density_.forward_weights(), density_.backward_weights()};
        view_.rgb = {shape_.rgb, rgb_.forward_weights(), rgb_.backward_weights()};
    }
    template <typename Body>
    void each_task(const Body& body) {
        parallel_for(n_tasks(), [&](int64_t task, int worker) {
            const int64_t begin = task * samples_per_task;
            body(begin, std::min(samples_per_task, n() - begin), worker, lanes_[size_t(task)]);
        });
    }

    NerfBenchInput input_;
    NerfModelShape shape_;
    const NerfKernels& kernels_;
    std::vector<Vec3> unit_positions_; // relative to the box; the kernels clamp
    AlignedVector<float> params_, gradient_;
    std::vector<RawSample> raw_;
    std::vector<float> d_extra_dims_;
    std::vector<RayGradient> d_inputs_;
    PackedMlp density_, rgb_;
    NerfOptimizer optimizer_;
    NerfModelView view_;
    std::vector<std::unique_ptr<CpuWorkspace>> workspaces_;
    std::vector<CpuLane> lanes_;
};

// Rows of floats as structures of floats, and back.
template <typename T>
std::vector<T> rows(const FloatArray& a) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> v(static_cast<size_t>(a.shape(0)));
    if (!v.empty()) std::memcpy(static_cast<void*>(v.data()), a.data(), v.size() * sizeof(T));
    return v;
}
template <typename T>
py::array_t<float> array(const std::vector<T>& v, py::ssize_t width) {
    py::array_t<float> a({py::ssize_t(v.size() * sizeof(T) / sizeof(float)) / width, width});
    if (!v.empty()) std::memcpy(a.mutable_data(), v.data(), v.size() * sizeof(T));
    return a;
}
py::array_t<float> array(const std::vector<float>& v) { return py::array_t<float>(py::ssize_t(v.size()), v.data()); }

std::vector<float> checked(const NerfModelBench& model, const FloatArray& a, const char* name) {
    expect_shape(a, {py::ssize_t(model.shape().n_params())}, name);
    return {a.data(), a.data() + a.size()};
}

std::unique_ptr<NerfModelBench> make_model(const std::string& config, int aabb_scale, const FloatArray& positions,
                                           const FloatArray& directions, const FloatArray& d_raw, uint64_t seed,
                                           const std::string& isa, const std::string& device, bool deterministic,
                                           int max_shared_bytes, const std::optional<FloatArray>& extra_dims,
                                           bool input_gradients) {
    static_assert(sizeof(Vec3) == 12 && sizeof(RawSample) == 16);
    expect_shape(positions, {-1, 3}, "positions");
    expect_shape(directions, {positions.shape(0), 3}, "directions");
    expect_shape(d_raw, {positions.shape(0), 4}, "d_raw");
    NerfBenchInput input{parse_network_config(config, "config"),
                         aabb_scale,
                         seed,
                         rows<Vec3>(positions),
                         rows<Vec3>(directions),
                         rows<RawSample>(d_raw)};
    input.input_gradients = input_gradients;
    if (extra_dims) {
        expect_shape(*extra_dims, {positions.shape(0), -1}, "extra_dims");
        input.n_extra_dims = int(extra_dims->shape(1));
        input.extra_dims.assign(extra_dims->data(), extra_dims->data() + extra_dims->size());
    }
    if (device == "cpu") return std::make_unique<CpuModelBench>(std::move(input), isa);
    if (!isa.empty()) throw py::value_error("isa is of the CPU; it must be empty on device '" + device + "'");
    CudaOptions options;
    options.deterministic = deterministic;
    options.max_shared_bytes = max_shared_bytes;
    options.device = cuda_device_of(device); // raises for other names
    return make_cuda_nerf_bench(std::move(input), options);
}

py::dict cuda_ceilings(const std::string& device) {
    CudaCeilings c;
    {
        const py::gil_scoped_release release;
        c = measure_cuda_ceilings(cuda_device_of(device));
    }
    py::dict d;
    d["copy_bytes_per_second"] = c.copy_bytes_per_second;
    d["tensor_flops"] = c.tensor_flops;
    d["gather_per_second"] = c.gather_per_second;
    d["add_per_second"] = c.add_per_second;
    return d;
}

} // namespace

void bind_model(py::module_& m) {
    m.def("cuda_ceilings", cuda_ceilings, py::arg("device") = "cuda",
          "What the device reaches at most, measured, a second.");
    py::class_<NerfModelBench>(m, "Model", "A model's training work on given samples (NGP space).")
        .def(py::init(&make_model), py::arg("config"), py::arg("aabb_scale"), py::arg("positions"),
             py::arg("directions"), py::arg("d_raw"), py::arg("seed") = 1337, py::arg("isa") = "",
             py::arg("device") = "cpu", py::arg("deterministic") = false, py::arg("max_shared_bytes") = 0,
             py::arg("extra_dims") = py::none(), py::arg("input_gradients") = false)
        .def("encode", &NerfModelBench::encode, "Position encoding alone.")
        .def("forward", &NerfModelBench::forward, "Encoding and both networks: raw().")
        .def("forward_backward", &NerfModelBench::forward_backward, "... and back; adds weight gradients.")
        .def("scatter", &NerfModelBench::scatter, "Adds the encoding's gradients to its table entries.")
        .def("optimize", &NerfModelBench::optimize, "One step; zeroes the gradient.")
        .def("wait", &NerfModelBench::wait, "Until the device has done all that.")
        .def("gradient", [](NerfModelBench& b) { return array(b.gradient()); })
        .def("set_gradient", [](NerfModelBench& b, const FloatArray& g) { b.set_gradient(checked(b, g, "gradient")); })
        .def("params", [](NerfModelBench& b) { return array(b.params()); })
        .def("set_params", [](NerfModelBench& b, const FloatArray& p) { b.set_params(checked(b, p, "params")); })
        .def("averaged", [](NerfModelBench& b) { return array(b.averaged()); })
        .def(
            "raw", [](NerfModelBench& b) { return array(b.raw(), 4); }, "(N,4): raw rgb and density of forward().")
        .def(
            "encoded", [](NerfModelBench& b) { return array(b.encoded(), b.shape().position.n_out_padded); },
            "(N, padded outputs): what the position encoding gives.")
        .def(
            "input_gradients", [](NerfModelBench& b) { return array(b.input_gradients(), 6); },
            "(N,6): of forward_backward(), with respect to the position and to the direction; input_gradients=True "
            "asks "
            "for them.")
        .def(
            "extra_dims_gradient",
            [](NerfModelBench& b) { return array(b.extra_dims_gradient(), std::max(1, b.shape().n_extra_dims())); },
            "(N, extra dimensions): of forward_backward().")
        .def(
            "density_gradient", [](NerfModelBench& b) { return array(b.density_gradient(), 3); },
            "(N,3): of the raw density with respect to the position.");
}
