// Keeps all code that devices share fit for the device, also what no kernel of the engine calls yet: this file includes
// every header of formulas/ and every header of stages/ that has bodies, and compiles a kernel for each body and for
// each formula that no body calls. Nothing here runs; a call to a host-only function, a container or an exception in
// shared code becomes a compile error.
#include "for_each.cuh"

#include <ngp/core/view.h>
#include <ngp/formulas/aabb.h>
#include <ngp/formulas/activation.h>
#include <ngp/formulas/adam_update.h>
#include <ngp/formulas/alpha_blend.h>
#include <ngp/formulas/color.h>
#include <ngp/formulas/distortion_map.h>
#include <ngp/formulas/frequency.h>
#include <ngp/formulas/grid_index.h>
#include <ngp/formulas/half.h>
#include <ngp/formulas/hd.h>
#include <ngp/formulas/lens.h>
#include <ngp/formulas/level_cut.h>
#include <ngp/formulas/loss_terms.h>
#include <ngp/formulas/march.h>
#include <ngp/formulas/morton.h>
#include <ngp/formulas/one_blob.h>
#include <ngp/formulas/pose.h>
#include <ngp/formulas/rigid_motion.h>
#include <ngp/formulas/rng.h>
#include <ngp/formulas/rotation.h>
#include <ngp/formulas/sh_basis.h>
#include <ngp/formulas/sobol.h>
#include <ngp/formulas/spline.h>
#include <ngp/formulas/triangle_wave.h>
#include <ngp/formulas/vec.h>
#include <ngp/stages/camera_gradient.h>
#include <ngp/stages/compositing.h>
#include <ngp/stages/display.h>
#include <ngp/stages/encoding.h>
#include <ngp/stages/error_map.h>
#include <ngp/stages/flat_pictures.h>
#include <ngp/stages/mlp.h>
#include <ngp/stages/occupancy.h>
#include <ngp/stages/query.h>
#include <ngp/stages/rays.h>
#include <ngp/stages/render_rays.h>
#include <ngp/stages/scene.h>
#include <ngp/stages/training_step.h>

namespace ngp::cuda {

// --- the bodies of the stages, as they are

template void for_each(cudaStream_t, int64_t, const SampleTrainingRays&);
template void for_each(cudaStream_t, int64_t, const CompositeAndLoss&);
template void for_each(cudaStream_t, int64_t, const GradientOfCamera&);
template void for_each(cudaStream_t, int64_t, const SharpnessOfTile&);
template void for_each(cudaStream_t, int64_t, const DrawOccupancySample&);
template void for_each(cudaStream_t, int64_t, const DecayOccupancy&);
template void for_each(cudaStream_t, int64_t, const OccupancyBits&);
template void for_each(cudaStream_t, int64_t, const CoarsenOccupancy&);
template void for_each(cudaStream_t, int64_t, const MarkVisiblePoints&);
template void for_each(cudaStream_t, int64_t, const MarkVisibleCells&);
template void for_each(cudaStream_t, int64_t, const FinishPixel&);
template void for_each(cudaStream_t, int64_t, const FinishChannels&);
template void for_each(cudaStream_t, int64_t, const PlaceQueryPoint&);
template void for_each(cudaStream_t, int64_t, const FinishQueryPoint&);
template void for_each(cudaStream_t, int64_t, const ShowTrainingImage&);
template void for_each(cudaStream_t, int64_t, const ShowDistortion&);
template void for_each(cudaStream_t, int64_t, const PlaceSlicePoint&);
template void for_each(cudaStream_t, int64_t, const AddSlicePoint&);

// --- bodies around what other loops call

namespace compile_check {

struct MakeRenderRays {
    MakeRenderRay make;
    int sample;
    View<RayMarcher> rays; // of the image, row-major

    NGP_HD void operator()(int64_t i) const {
        rays[i] = make(int(i % make.camera.width), int(i / make.camera.width), sample);
    }
};

struct MarchRays {
    OccupancyView grid;
    Stepping stepping;
    bool raise_by_dt;
    View<RayMarcher> rays;
    View2<float> t, dt; // samples of a ray in a row
    View<int> count;

    NGP_HD void operator()(int64_t i) const {
        RayMarcher march = rays[i];
        int n = 0;
        while (n < t.cols) {
            const float step = march.next(grid, stepping, raise_by_dt);
            if (step == 0.0f) break;
            t.row(i)[n] = march.t;
            dt.row(i)[n] = step;
            march.t += step;
            ++n;
        }
        rays[i] = march;
        count[i] = n;
    }
};

struct SteppingCoordinates {
    float cone_angle;
    View<const float> t;
    View<float> n, again;

    NGP_HD void operator()(int64_t i) const {
        const Stepping stepping = Stepping::with_cone_angle(cone_angle);
        n[i] = stepping.n_of_t(t[i]);
        again[i] = stepping.t_of_n(n[i]);
    }
};

struct Occupied {
    OccupancyView grid;
    Aabb box;
    View<const Vec3> positions;
    View<uint8_t> occupied;
    View<Vec3> relative;

    NGP_HD void operator()(int64_t i) const {
        const Aabb unit{splat3(0.0f), splat3(1.0f)};
        const Vec3 p = positions[i];
        occupied[i] = !box.empty() && box.intersection(unit).contains(p) && occupied_at(grid, p);
        relative[i] = box.relative(p) - box.center();
    }
};

// One level of the grid with one feature an entry: index, interpolation and its derivative.
template <int D>
struct InterpolateLevel {
    GridLevel level;
    Interpolation mode;
    View<const uint16_t> table;   // halves
    View2<const float> positions; // in [0,1]^D
    View<float> value;
    View2<float> gradient;

    NGP_HD void operator()(int64_t i) const {
        const CellCorners<D> cell = find_grid_cell<D>(level, mode, positions.row(i));
        float feature[1 << D], slope[D], v = 0;
        for (int c = 0; c < 1 << D; ++c) {
            feature[c] = half_to_float(table[level.offset + cell.entry[c]]);
            if (c < grid_corners<D>(mode)) v += corner_weight(cell, c) * feature[c];
        }
        grid_cell_gradient(cell, feature, slope);
        value[i] = v;
        for (int d = 0; d < D; ++d) gradient.row(i)[d] = slope[d];
    }
};

// The parts of an encoding, as a kernel walks them: the shapes have to be readable on the device.
struct EncodeDirections {
    EncodingShape shape;
    View<const Vec3> directions; // in [0,1]^3
    View2<float> out;

    NGP_HD void operator()(int64_t i) const {
        float* row = out.row(i);
        for (int k = 0; k < shape.n_parts; ++k) {
            const EncodingPart& part = shape.parts[k];
            if (part.kind == EncodingKind::SphericalHarmonics)
                sh_basis(part.degree, directions[i] * 2.0f - splat3(1.0f), row + part.out_begin);
            else if (part.kind == EncodingKind::Grid)
                row[part.out_begin] = sh_basis_gradient(max_sh_degree, directions[i], row).x;
            else
                for (int j = 0; j < part.n_out; ++j) {
                    const float x = directions[i][part.in_begin + j / part.outputs_per_dim];
                    row[part.out_begin + j] = coordinate_output(part, x, j % part.outputs_per_dim) +
                                              coordinate_slope(part, x, j % part.outputs_per_dim);
                }
        }
        for (int j = shape.padding_begin; j < shape.n_out_padded; ++j) row[j] = shape.padding_value;
    }
};

// A network without vectors, tensor cores or batches: what the shape means.
struct EvaluateMlp {
    MlpShape shape;
    View<const float> params; // canonical
    View2<float> a, b;        // a: input, at least as wide as the widest layer; the output is in a or b by turns

    NGP_HD void operator()(int64_t i) const {
        const float* weights = params.data;
        float *in = a.row(i), *out = b.row(i);
        for (int layer = 0; layer < shape.n_layers; ++layer) {
            const bool relu = shape.hidden_relu && layer + 1 < shape.n_layers;
            for (int row = 0; row < shape.out(layer); ++row) {
                float sum = 0;
                for (int column = 0; column < shape.in(layer); ++column)
                    sum += weights[row * shape.in(layer) + column] * in[column];
                out[row] = relu ? max_of(sum, 0.0f) : sum;
            }
            weights += shape.layer_params(layer);
            float* last = in;
            in = out;
            out = last;
        }
        if (shape.n_params() > params.size || pad16(shape.n_out) > a.cols) a.row(i)[0] = 0;
    }
};

struct UpdateParameters {
    AdamSettings settings;
    float step_size, decay_k;
    View<const float> gradient;
    View<float> weight, m, v, average;
    View<uint16_t> halves;

    NGP_HD void operator()(int64_t i) const {
        average[i] = ema_carry(average[i], weight[i], decay_k);
        adam_update(settings, step_size, gradient[i], weight[i], m[i], v[i]);
        halves[i] = float_to_half(weight[i]);
    }
};

struct EvaluateLoss {
    LossType type;
    View<const float> prediction, target;
    View<LossTerm> loss;

    NGP_HD void operator()(int64_t i) const { loss[i] = loss_term(type, prediction[i], target[i]); }
};

struct Activate {
    Activation density_activation, rgb_activation;
    View<RawSample> samples; // in: raw; out: values
    View<RawSample> derivatives;

    NGP_HD void operator()(int64_t i) const {
        const RawSample raw = samples[i];
        samples[i].density = density_from_raw(density_activation, raw.density);
        derivatives[i].density = density_derivative(density_activation, raw.density);
        const Vec3 color = sample_color(rgb_activation, raw);
        for (int c = 0; c < 3; ++c) {
            samples[i].rgb[c] = color[c];
            derivatives[i].rgb[c] = color_derivative(rgb_activation, raw.rgb[c], color[c]);
        }
    }
};

// Through a lens and back, from the world and back.
struct LensRoundTrip {
    CameraModel camera;
    CameraMatrix pose; // OpenGL axes, world
    WorldTransform world;
    View<Vec2> uv;
    View<Ray> rays; // in the world

    NGP_HD void operator()(int64_t i) const {
        const Vec3 seen = camera.ray_origin(uv[i]) + camera.ray_direction(uv[i]);
        const CameraMatrix matrix = world.camera_to_ngp(pose);
        const Ray ray = camera_ray(camera, matrix, uv[i]);
        uv[i] = camera.project(seen);
        rays[i] = {world.camera_to_world(matrix).position, world.direction_to_world(ray.direction)};
        rays[i].origin += world.point_to_world(world.point_to_ngp(rays[i].origin)) - pose.position;
        rays[i].direction = transpose_mul(matrix.rotation(), world.direction_to_ngp(rays[i].direction));
    }
};

struct TonemapPixels {
    TonemapCurve curve;
    View<Vec3> pixels; // in: sRGB, out: sRGB

    NGP_HD void operator()(int64_t i) const { pixels[i] = linear_to_srgb(tonemap(curve, srgb_to_linear(pixels[i]))); }
};

struct DrawNumbers {
    uint64_t seed;
    bool snap_to_centre;
    View<Vec2> sobol, offsets;
    View<float> random;

    NGP_HD void operator()(int64_t i) const {
        Pcg32 rng = Pcg32::seeded(seed, Pcg32::multiplier);
        rng.advance(uint64_t(i));
        random[i] = rng.next_float();
        sobol[i] = sobol2(uint32_t(i), hash_combine(uint32_t(seed), morton3(1, 2, 3)));
        offsets[i] = pixel_offset(uint32_t(i), snap_to_centre);
    }
};

struct MoveCameras {
    EditingKernel kernel;
    View<CameraMatrix> from, to, between;
    View<Vec3> turned;
    View<float> weights;
    View<int> levels;

    NGP_HD void operator()(int64_t i) const {
        between[i] = screw_between(from[i], to[i], 0.5f);
        turned[i] = compose_rotations(rotation_between(from[i], to[i]), rotation_vector(from[i].rotation()));
        const SplineWeights w = bspline_weights(3, 0.25f);
        weights[i] = editing_weight(kernel, w.weight[0]);
        levels[i] = levels_below(drawn_max_level(w.weight[1]), 16);
    }
};

} // namespace compile_check

template void for_each(cudaStream_t, int64_t, const compile_check::MakeRenderRays&);
template void for_each(cudaStream_t, int64_t, const compile_check::MarchRays&);
template void for_each(cudaStream_t, int64_t, const compile_check::SteppingCoordinates&);
template void for_each(cudaStream_t, int64_t, const compile_check::Occupied&);
template void for_each(cudaStream_t, int64_t, const compile_check::InterpolateLevel<2>&);
template void for_each(cudaStream_t, int64_t, const compile_check::InterpolateLevel<3>&);
template void for_each(cudaStream_t, int64_t, const compile_check::InterpolateLevel<4>&);
template void for_each(cudaStream_t, int64_t, const compile_check::EncodeDirections&);
template void for_each(cudaStream_t, int64_t, const compile_check::EvaluateMlp&);
template void for_each(cudaStream_t, int64_t, const compile_check::UpdateParameters&);
template void for_each(cudaStream_t, int64_t, const compile_check::EvaluateLoss&);
template void for_each(cudaStream_t, int64_t, const compile_check::Activate&);
template void for_each(cudaStream_t, int64_t, const compile_check::LensRoundTrip&);
template void for_each(cudaStream_t, int64_t, const compile_check::TonemapPixels&);
template void for_each(cudaStream_t, int64_t, const compile_check::DrawNumbers&);
template void for_each(cudaStream_t, int64_t, const compile_check::MoveCameras&);

} // namespace ngp::cuda
