// Single stages of the CPU kernels on NumPy arrays, so that tests can hold each against its float64 twin.
#include "images.h"

#include <chrono>
#include <ngp/core/isa.h>
#include <ngp/core/parallel.h>
#include <ngp/cpu/kernels.h>
#include <ngp/formulas/sh_basis.h>
#include <ngp/formulas/sobol.h>
#include <ngp/stages/render_rays.h>
#include <pybind11/stl.h>

using namespace ngp;

namespace {

// The position encoding of a network configuration, for inputs of n_in dimensions.
EncodingShape position_encoding(const std::string& config, int aabb_scale, int n_in) {
    const NetworkConfig c = parse_network_config(config, "config");
    return encoding_shape(c.position_encoding, n_in, c.density_mlp.padding, aabb_scale);
}
// The same for an array of them, (N, n_in).
EncodingShape position_encoding(const std::string& config, int aabb_scale, const FloatArray& in) {
    if (in.ndim() != 2) throw py::value_error("positions must have shape (N, dimensions)");
    return position_encoding(config, aabb_scale, int(in.shape(1)));
}

const NerfKernels& kernels_of(const std::string& isa) { return isa.empty() ? cpu_kernels() : cpu_kernels(isa); }

py::list encoding_levels(const std::string& config, int aabb_scale, int n_dims) {
    const EncodingShape shape = position_encoding(config, aabb_scale, n_dims);
    py::list levels;
    for (int i = 0; i < shape.n_parts; ++i)
        for (int l = 0; l < shape.parts[i].n_levels; ++l) {
            const GridLevel& level = shape.parts[i].levels[l];
            levels.append(
                py::make_tuple(level.scale, level.resolution, level.offset, level.entries, bool(level.hashed)));
        }
    return levels;
}

py::array_t<float> encode(const std::string& config, int aabb_scale, const FloatArray& params, const FloatArray& in,
                          const std::string& isa) {
    const EncodingShape shape = position_encoding(config, aabb_scale, in);
    expect_shape(params, {py::ssize_t(shape.n_params)}, "params");
    py::array_t<float> out({in.shape(0), py::ssize_t(shape.n_out_padded)});
    kernels_of(isa).encode(shape, params.data(), in.data(), in.shape(0), out.mutable_data());
    return out;
}

py::array_t<float> encoding_position_gradient(const std::string& config, int aabb_scale, const FloatArray& params,
                                              const FloatArray& in, const FloatArray& d_out, const std::string& isa) {
    const EncodingShape shape = position_encoding(config, aabb_scale, in);
    expect_shape(params, {py::ssize_t(shape.n_params)}, "params");
    expect_shape(d_out, {in.shape(0), shape.n_out_padded}, "d_out");
    py::array_t<float> d_in({in.shape(0), in.shape(1)});
    kernels_of(isa).encoding_position_gradient(shape, params.data(), in.data(), d_out.data(), in.shape(0),
                                               d_in.mutable_data());
    return d_in;
}

py::array_t<float> encoding_params_gradient(const std::string& config, int aabb_scale, const FloatArray& in,
                                            const FloatArray& d_out, const std::string& isa) {
    const EncodingShape shape = position_encoding(config, aabb_scale, in);
    expect_shape(d_out, {in.shape(0), shape.n_out_padded}, "d_out");
    GradientTiles tiles;
    tiles.set_shape(shape);
    AlignedVector<float> memory(static_cast<size_t>(tiles.record));
    AlignedVector<float> gradient(size_t{shape.n_params});
    tiles.data = memory.data();
    tiles.capacity = 1;
    kernels_of(isa).encoding_params_gradient(shape, in.data(), d_out.data(), in.shape(0), tiles, gradient.data());
    return py::array_t<float>(py::ssize_t(gradient.size()), gradient.data());
}

py::array_t<float> encode_direction(int degree, const FloatArray& directions) {
    if (degree < 1 || degree > max_sh_degree)
        throw py::value_error("degree must be from 1 to " + std::to_string(max_sh_degree));
    const Vec3* d = as_vectors(directions, "directions");
    py::array_t<float> out({directions.shape(0), py::ssize_t(degree * degree)});
    for (py::ssize_t i = 0; i < directions.shape(0); ++i) sh_basis(degree, d[i], out.mutable_data(i));
    return out;
}

// output, and with d_output also (d_params, d_input).
py::object mlp(int n_in, int width, int n_hidden, int n_out, const FloatArray& params, const FloatArray& input,
               std::optional<FloatArray> d_output, int padding, const std::string& isa) {
    MlpConfig config;
    config.width = width;
    config.n_hidden = n_hidden;
    config.padding = padding;
    const MlpShape shape = mlp_shape(config, n_in, n_out);
    expect_shape(params, {py::ssize_t(shape.n_params())}, "params");
    expect_shape(input, {-1, n_in}, "input");
    const py::ssize_t n = input.shape(0);
    PackedMlp packed(shape);
    packed.pack(params.data());
    const int in_stride = pad16(n_in), out_stride = pad16(shape.n_out);
    AlignedVector<float> x(size_t(n) * in_stride), y(size_t(n) * out_stride), dy(y.size()), dx(x.size());
    AlignedVector<float> scratch(size_t(shape.n_layers + 2) * kernel_tile * pad16(std::max(width, 16)));
    AlignedVector<float> dw(size_t(packed.packed_size()));
    for (py::ssize_t i = 0; i < n; ++i) std::copy_n(input.data(i), n_in, x.data() + i * in_stride);
    if (d_output) {
        expect_shape(*d_output, {n, shape.n_out}, "d_output");
        for (py::ssize_t i = 0; i < n; ++i) std::copy_n(d_output->data(i), shape.n_out, dy.data() + i * out_stride);
    }
    kernels_of(isa).mlp({shape, packed.forward_weights(), packed.backward_weights()}, x.data(), n, y.data(),
                        d_output ? dy.data() : nullptr, dx.data(), dw.data(), scratch.data());
    py::array_t<float> out({n, py::ssize_t(shape.n_out)}), d_in({n, py::ssize_t(n_in)}),
        d_params(py::ssize_t(shape.n_params()));
    for (py::ssize_t i = 0; i < n; ++i) {
        std::copy_n(y.data() + i * out_stride, shape.n_out, out.mutable_data(i));
        std::copy_n(dx.data() + i * in_stride, n_in, d_in.mutable_data(i));
    }
    if (!d_output) return out;
    std::fill_n(d_params.mutable_data(), shape.n_params(), 0.0f);
    packed.unpack_gradient(dw.data(), d_params.mutable_data());
    return py::make_tuple(out, d_params, d_in);
}

// Composites one ray, whose distance, if above 0, is supervised: (rgb loss, number of contributing samples, d_raw (n,
// 4)).
py::tuple composite(const FloatArray& raw, const FloatArray& dt, const FloatArray& t, const FloatArray& target,
                    const FloatArray& background, const CompositeOptions& o, float distance) {
    expect_shape(raw, {-1, 4}, "raw");
    const py::ssize_t n = raw.shape(0);
    expect_shape(dt, {n}, "dt");
    expect_shape(t, {n}, "t");
    TrainingRay ray;
    ray.target = to_vec3(target, "target");
    ray.background = to_vec3(background, "background");
    ray.distance = distance;
    int count = int(n);
    float value = 0;
    py::array_t<float> d_raw({n, py::ssize_t(4)});
    std::fill_n(d_raw.mutable_data(), n * 4, 0.0f);
    CompositeAndLoss{o, &ray,   reinterpret_cast<const RawSample*>(raw.data()),     dt.data(), t.data(),
                     n, &count, reinterpret_cast<RawSample*>(d_raw.mutable_data()), &value}(0);
    return py::make_tuple(value, count, d_raw);
}

// Tiles (72, 128) of a uint8 image (H, W, 3 or 4).
py::array_t<float> sharpness_of(const py::array_t<uint8_t, py::array::c_style | py::array::forcecast>& image) {
    if (image.ndim() != 3 || image.shape(2) < 3 || image.shape(2) > 4)
        throw py::value_error("image must have shape (height, width, 3 or 4)");
    ImageView view;
    view.pixels = image.data();
    view.height = int(image.shape(0));
    view.width = int(image.shape(1));
    view.channels = int(image.shape(2));
    return take(image_sharpness(view), {sharpness_height, sharpness_width});
}

// Rays drawn by error maps (n_images, height, width): image (N,), position (N, 2) and probability density (N,) of each,
// and the place of its cell in the next map, (N,).
py::tuple draw_by_error(const FloatArray& maps, bool by_image, bool by_pixel, uint64_t seed, int n_rays) {
    expect_shape(maps, {-1, -1, -1}, "maps");
    const int n_images = int(maps.shape(0));
    ErrorMap::State state;
    state.n_images = n_images;
    state.width = state.drawn_width = int(maps.shape(2));
    state.height = state.drawn_height = int(maps.shape(1));
    state.drawn.assign(maps.data(), maps.data() + maps.size());
    state.errors.assign(state.drawn.size(), 0.0f);
    state.interval = 1;
    ErrorMap map;
    map.set_state(state);
    map.begin_step({by_image, by_pixel, false}, {}, n_images, n_rays);
    const ErrorSampling sampling = map.sampling();
    py::array_t<int> image(n_rays), cell(n_rays);
    py::array_t<float> uv({n_rays, 2}), density(n_rays);
    Pcg32 r = Pcg32::seeded(seed);
    for (int i = 0; i < n_rays; ++i) {
        int chosen = i % n_images;
        Vec2 at{r.next_float(), r.next_float()};
        density.mutable_at(i) = sampling.choose(r, n_images, chosen, at);
        r.advance(error_map_draws);
        image.mutable_at(i) = chosen;
        uv.mutable_at(i, 0) = at.x, uv.mutable_at(i, 1) = at.y;
        cell.mutable_at(i) = int(sampling.cell(chosen, at));
    }
    return py::make_tuple(image, uv, density, cell);
}

// GFLOP/s of the MLP kernels' matrix product alone, on a tile that stays in the first-level cache.
double gemm_peak_gflops(double seconds, const std::string& isa) {
    MlpConfig config;
    config.width = 64;
    config.n_hidden = 1;
    const MlpShape shape = mlp_shape(config, 64, 64);
    const NerfKernels& kernels = kernels_of(isa);
    std::vector<double> flops;
    flops.resize(size_t(num_threads()));
    const auto start = std::chrono::steady_clock::now();
    auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    parallel_for(num_threads(), [&](int64_t, int worker) {
        PackedMlp packed(shape);
        std::vector<float> weights(shape.n_params(), 0.01f);
        packed.pack(weights.data());
        AlignedVector<float> x(kernel_tile * 64, 0.5f), y(kernel_tile * 64), scratch(kernel_tile * 64 * 4);
        while (elapsed() < seconds) {
            for (int i = 0; i < 100; ++i)
                kernels.mlp({shape, packed.forward_weights(), packed.backward_weights()}, x.data(), kernel_tile,
                            y.data(), nullptr, nullptr, nullptr, scratch.data());
            flops[worker] += 100.0 * 2.0 * kernel_tile * shape.n_params();
        }
    });
    double total = 0;
    for (double f : flops) total += f;
    return total / elapsed() * 1e-9;
}

void check_grid(const FloatArray& grid) {
    if (grid.size() == 0 || grid.size() % occupancy_cells || grid.size() / occupancy_cells > max_cascades)
        throw py::value_error("grid must have 128^3 values for each of 1 to 8 cascades");
}

// (t, dt) of the samples of a ray through an occupancy grid given as values.
py::tuple march(const FloatArray& grid, const FloatArray& origin, const FloatArray& direction, float cone_angle,
                float t_start, float t_end, bool training) {
    check_grid(grid);
    const int n_cascades = int(grid.size() / occupancy_cells);
    OccupancyGrid occupancy;
    occupancy.resize(n_cascades);
    occupancy.set_values(grid.data(), size_t(grid.size()));
    const Stepping stepping = Stepping::with_cone_angle(cone_angle);
    RayMarcher m = RayMarcher::starting(to_vec3(origin, "origin"), to_vec3(direction, "direction"), t_start, t_end);
    std::vector<float> t, dt;
    while (const float step = m.next(occupancy.view(), stepping, training)) {
        t.push_back(m.t);
        dt.push_back(step);
        m.t += step;
        if (t.size() >= 100000) break;
    }
    const auto n = py::ssize_t(t.size());
    return py::make_tuple(take(std::move(t), {n}), take(std::move(dt), {n}));
}

OccupancyWords occupancy_words(const FloatArray& grid, const std::string& device) {
    check_grid(grid);
    if (device != "cpu") {
        CudaOptions options;
        options.device = cuda_device_of(device); // raises for other names
        return cuda_occupancy_words({grid.data(), grid.data() + grid.size()}, options);
    }
    OccupancyGrid occupancy;
    occupancy.resize(int(grid.size() / occupancy_cells));
    occupancy.set_values(grid.data(), size_t(grid.size()));
    const OccupancyView view = occupancy.view();
    const auto n = grid.size() / 64;
    return {{view.words, view.words + n}, {view.clearance, view.clearance + n}};
}
py::array_t<bool> occupancy_bits(const FloatArray& grid, const std::string& device) {
    const OccupancyWords w = occupancy_words(grid, device);
    py::array_t<bool> bits(grid.size());
    for (py::ssize_t i = 0; i < grid.size(); ++i) bits.mutable_at(i) = (w.words[size_t(i >> 6)] >> (i & 63)) & 1;
    return bits;
}
py::array_t<uint8_t> occupancy_clearance(const FloatArray& grid, const std::string& device) {
    const OccupancyWords w = occupancy_words(grid, device);
    return py::array_t<uint8_t>(py::ssize_t(w.clearance.size()), w.clearance.data());
}

// A pixel as training sees it, from a camera of the identity's pose: (rgb linear premultiplied, alpha, origin,
// direction, distance).
py::tuple pixel_of_image(const TrainingImage& image, const CameraModel& model, int x, int y) {
    TrainingView view;
    view.image = image.view;
    view.camera = model;
    view.pose = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 0, 0}};
    const LinearPixel p = read_pixel(view.image, x, y);
    const Vec2 uv{(float(x) + 0.5f) / float(image.view.width), (float(y) + 0.5f) / float(image.view.height)};
    const Ray ray = pixel_ray(view, x, y, uv);
    return py::make_tuple(to_array(p.rgb), p.alpha, to_array(ray.origin), to_array(ray.direction),
                          pixel_distance(view, x, y, uv));
}

CameraModel lens_camera(LensMode mode, const std::vector<float>& params, int width, int height, const FloatArray& focal,
                        const FloatArray& principal) {
    CameraModel c;
    c.lens.mode = mode;
    std::copy_n(params.begin(), std::min<size_t>(7, params.size()), c.lens.params);
    c.width = width;
    c.height = height;
    c.focal = to_vec2(focal, "focal");
    c.principal = to_vec2(principal, "principal");
    return c;
}

} // namespace

void bind_stages(py::module_& m) {
    m.def("encoding_levels", encoding_levels, py::arg("config"), py::arg("aabb_scale") = 1, py::arg("n_dims") = 3,
          "[(scale, resolution, offset, entries, hashed)] of every grid level.");
    m.def("encode", encode, py::arg("config"), py::arg("aabb_scale"), py::arg("params"), py::arg("positions"),
          py::arg("isa") = "");
    m.def("encoding_position_gradient", encoding_position_gradient, py::arg("config"), py::arg("aabb_scale"),
          py::arg("params"), py::arg("positions"), py::arg("d_out"), py::arg("isa") = "");
    m.def("encoding_params_gradient", encoding_params_gradient, py::arg("config"), py::arg("aabb_scale"),
          py::arg("positions"), py::arg("d_out"), py::arg("isa") = "", "(n_params): of sum(d_out * outputs).");
    m.def("spherical_harmonics", encode_direction, py::arg("degree"), py::arg("directions"));
    m.def("mlp", mlp, py::arg("n_in"), py::arg("width"), py::arg("n_hidden"), py::arg("n_out"), py::arg("params"),
          py::arg("input"), py::arg("d_output") = py::none(), py::arg("padding") = 16, py::arg("isa") = "");
    py::class_<DepthSupervision>(m, "DepthSupervision")
        .def(py::init([](LossType loss, float lambda) { return DepthSupervision{loss, lambda}; }), py::arg("loss"),
             py::arg("weight"));
    m.def(
        "composite",
        [](const FloatArray& raw, const FloatArray& dt, const FloatArray& t, const FloatArray& target,
           const FloatArray& background, LossType loss, Activation rgb_activation, float near_distance,
           float regularizer, bool encourage_density, Activation density_activation, TrainMode mode,
           const DepthSupervision& depth, float distance) {
            CompositeOptions o;
            o.objective = {mode, loss};
            o.rgb_activation = rgb_activation;
            o.density_activation = density_activation;
            o.near_distance = near_distance;
            o.regularizer = regularizer;
            o.encourage_density = encourage_density;
            o.depth = depth;
            return composite(raw, dt, t, target, background, o, distance);
        },
        py::arg("raw"), py::arg("dt"), py::arg("t"), py::arg("target"), py::arg("background"),
        py::arg("loss") = LossType::Huber, py::arg("rgb_activation") = Activation::Logistic,
        py::arg("near_distance") = 0.0f, py::arg("regularizer") = 0.0f, py::arg("encourage_density") = false,
        py::arg("density_activation") = Activation::Exponential, py::arg("mode") = TrainMode::Nerf,
        py::arg("depth") = DepthSupervision{}, py::arg("distance") = 0.0f);
    m.def("error_map_side", error_map_side, py::arg("rays"), py::arg("limit"));
    m.def("image_sharpness", sharpness_of, py::arg("image"));
    m.def("draw_by_error", draw_by_error, py::arg("maps"), py::arg("by_image"), py::arg("by_pixel"), py::arg("seed"),
          py::arg("n_rays"));
    m.def("levels_below", [](float u, int n_levels) { return levels_below(drawn_max_level(u), n_levels); });
    m.def("loss_term", [](LossType type, float prediction, float target) {
        const LossTerm t = loss_term(type, prediction, target);
        return py::make_tuple(t.value, t.gradient);
    });
    m.def("learning_rate", [](const std::string& config, uint32_t steps) {
        return decayed_learning_rate(parse_network_config(config, "config").optimizer, steps);
    });
    m.def("march", march, py::arg("grid"), py::arg("origin"), py::arg("direction"), py::arg("cone_angle"),
          py::arg("t_start"), py::arg("t_end"), py::arg("training"));
    m.def("occupancy_bits", occupancy_bits, py::arg("grid"), py::arg("device") = "cpu");
    m.def(
        "occupancy_clearance", occupancy_clearance, py::arg("grid"), py::arg("device") = "cpu",
        "A byte for each 64 cells: by how many blocks of 4x4x4 cells all around them space is empty (OccupancyView).");
    m.def("stepping", [](float cone_angle, float t, float steps) {
        const Stepping s = Stepping::with_cone_angle(cone_angle);
        return py::make_tuple(s.n_of_t(t), s.step_length(t), s.advance(t, steps));
    });
    m.def("lens_ray", [](LensMode mode, const std::vector<float>& params, int width, int height,
                         const FloatArray& focal, const FloatArray& principal, const FloatArray& uv) {
        return to_array(lens_camera(mode, params, width, height, focal, principal).ray_direction(to_vec2(uv, "uv")));
    });
    m.def("lens_origin", [](LensMode mode, const std::vector<float>& params, int width, int height,
                            const FloatArray& focal, const FloatArray& principal, const FloatArray& uv) {
        return to_array(lens_camera(mode, params, width, height, focal, principal).ray_origin(to_vec2(uv, "uv")));
    });
    m.def("lens_project", [](LensMode mode, const std::vector<float>& params, int width, int height,
                             const FloatArray& focal, const FloatArray& principal, const FloatArray& point) {
        return to_array(lens_camera(mode, params, width, height, focal, principal).project(to_vec3(point, "point")));
    });
    m.def("training_pixel", [](const TrainingImage& image, const FloatArray& focal, LensMode mode,
                               const std::vector<float>& params, int x, int y) {
        const FloatArray centre = to_array(Vec2{0.5f, 0.5f});
        return pixel_of_image(image, lens_camera(mode, params, image.view.width, image.view.height, focal, centre), x,
                              y);
    });
    m.def("srgb_to_linear", [](float v) { return srgb_to_linear(v); });
    m.def("linear_to_srgb", [](float v) { return linear_to_srgb(v); });
    m.def("tonemap",
          [](TonemapCurve curve, const FloatArray& rgb) { return to_array(tonemap(curve, to_vec3(rgb, "rgb"))); });
    m.def("sobol", [](uint32_t index, uint32_t seed) { return to_array(sobol2(index, seed)); });
    m.def("half_round_trip", [](float v) { return half_to_float(float_to_half(v)); });
    m.def("half_bits", [](float v) { return float_to_half(v); });
    m.def("random", [](uint64_t seed, uint64_t sequence, uint64_t skip, int n) {
        Pcg32 r = Pcg32::seeded(seed, sequence);
        r.advance(skip);
        std::vector<uint32_t> draws;
        for (int i = 0; i < n; ++i) draws.push_back(r.next());
        return draws;
    });
    m.def("morton", [](uint32_t x, uint32_t y, uint32_t z) { return morton3(x, y, z); });
    m.def("gemm_peak_gflops", gemm_peak_gflops, py::arg("seconds") = 0.5, py::arg("isa") = "");
}
