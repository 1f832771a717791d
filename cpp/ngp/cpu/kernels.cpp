// The CPU kernels, compiled once per instruction set (core/isa.h). Everything here has internal linkage or lives in
// namespace ngp::NGP_ISA, and allocates nothing itself.
#include <ctime>
#include <ngp/cpu/encoding.h>
#include <ngp/cpu/kernels.h>
#include <ngp/cpu/mlp.h>
#include <ngp/cpu/optimizer.h>

namespace ngp::NGP_ISA {

static_assert(tile_size == kernel_tile);

namespace {

constexpr int samples_per_wave = 4; // of each ray, between checks for early termination

MlpWeights weights_of(const MlpParams& p) { return {p.shape, p.forward, p.backward}; }

// Layers of a workspace from some row on, as the networks' activations.
struct Activations {
    MlpActivations density, rgb;

    Activations(const NerfModelView& model, float* const* base, const int* stride, int64_t row) {
        const int nd = model.density.shape.n_layers, nr = model.rgb.shape.n_layers;
        auto at = [&](int k) { return base[k] + row * stride[k]; };
        for (int k = 0; k < nd; ++k) density.input[k] = at(k), density.input_stride[k] = stride[k];
        density.output = at(nd);
        density.output_stride = stride[nd];
        for (int k = 0; k < nr; ++k) rgb.input[k] = at(nd + k), rgb.input_stride[k] = stride[nd + k];
        rgb.output = at(nd + nr);
        rgb.output_stride = stride[nd + nr];
    }
};

Vec3 box_scale(const Aabb& box) {
    Vec3 d = box.diag();
    return {1.0f / d.x, 1.0f / d.y, 1.0f / d.z};
}

// Into [0,1]; NaN becomes 0, since cells are computed from the result without further checks.
float unit_clamp(float x) { return x > 0.0f ? min_of(x, 1.0f) : 0.0f; }

void set_position(PositionTile& tile, int s, const Aabb& box, Vec3 scale, Vec3 p) {
    const Vec3 x = (p - box.min) * scale;
    for (int d = 0; d < 3; ++d) tile.axis[d][s] = unit_clamp(x[d]);
}
// Fills a partial vector's unused lanes, so that cells computed for them are valid.
void pad_positions(PositionTile& tile, int n) {
    for (int s = n; s % vector_width; ++s)
        for (int d = 0; d < 3; ++d) tile.axis[d][s] = 0.5f;
}

// What the direction encoding reads: a direction, and those of the model's extra dimensions that `k` has.
struct DirectionInput {
    float x[3 + max_extra_dims];

    DirectionInput(const NerfModelView& model, Vec3 d, int64_t k) {
        x[0] = 0.5f * (d.x + 1), x[1] = 0.5f * (d.y + 1), x[2] = 0.5f * (d.z + 1);
        const float* extra = model.extra_dims + k * model.extra_dims_stride;
        for (int i = 0; i < model.n_extra_dims(); ++i) x[3 + i] = extra[i];
    }
};

void encode_direction(const NerfModelView& model, Vec3 d, int64_t k, float* out) {
    encode_analytic(*model.direction, DirectionInput(model, d, k).x, out);
}

// Gradient with respect to a direction and the extra dimensions, given that of what they are encoded as.
struct DirectionGradient {
    float x[3 + max_extra_dims]; // of DirectionInput
    int n_extra_dims;

    DirectionGradient(const NerfModelView& model, Vec3 d, int64_t k, const float* d_encoded)
        : n_extra_dims(model.n_extra_dims()) {
        analytic_gradient(*model.direction, DirectionInput(model, d, k).x, d_encoded, x);
    }
    Vec3 direction() const { return Vec3{x[0], x[1], x[2]} * 0.5f; }
    void store_extra_dims(float* to) const { memcpy(to, x + 3, size_t(n_extra_dims) * sizeof(float)); }
};

RawSample raw_sample(const Activations& a, int s) {
    const float* rgb = a.rgb.output + s * a.rgb.output_stride;
    return {{rgb[0], rgb[1], rgb[2]}, a.density.output[s * a.density.output_stride]};
}

// Zeroes the columns of grid levels that samples don't see (level_cut.h). `max_level`: of each sample.
void cut_levels(const EncodingShape& shape, const float* max_level, int n, float* rows, int stride) {
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        for (int s = 0; s < n; ++s) {
            const int seen = levels_below(max_level[s], part.n_levels);
            float* columns = rows + s * stride + part.out_begin;
            for (int j = seen * part.n_features; j < part.n_levels * part.n_features; ++j) columns[j] = 0.0f;
        }
    }
}

// Networks on n samples of a tile whose direction encodings are already in the rgb network's input. `max_level` as in
// cut_levels(), or null for all levels.
void forward_tile(const NerfModelView& model, const PositionTile& tile, const Activations& a, int n, bool with_rgb,
                  const float* max_level = nullptr) {
    encode_positions(*model.position, model.encoding_params, tile, n, a.density.input[0], a.density.input_stride[0]);
    if (max_level) cut_levels(*model.position, max_level, n, a.density.input[0], a.density.input_stride[0]);
    mlp_forward(weights_of(model.density), a.density, n);
    if (with_rgb) mlp_forward(weights_of(model.rgb), a.rgb, n);
}

float* direction_columns(const NerfModelView& model, const Activations& a, int s) {
    return a.rgb.input[0] + s * a.rgb.input_stride[0] + model.density.shape.n_out;
}

void copy_floats(float* to, const float* from, int n) { memcpy(to, from, size_t(n) * sizeof(float)); }

// --- gradient of a tile ------------------------------------------------------------------------------------------

int32_t& record_count(float* record) { return *reinterpret_cast<int32_t*>(record); }

// Stores positions and encoding gradients for the scatter, grid levels as [sample][feature].
void store_gradients(const EncodingShape& shape, GradientTiles& tiles, const PositionTile& p, const float* d_encoding,
                     int stride, int n) {
    if (tiles.count == tiles.capacity) tiles.grow(tiles);
    float* record = tiles.data + tiles.count++ * tiles.record;
    record_count(record) = n;
    record += GradientTiles::header;
    for (int d = 0; d < tiles.n_in; ++d) copy_floats(record + d * tile_size, p.axis[d], tile_size);
    record += tiles.n_in * tile_size;
    for (int i = 0; i < shape.n_parts; ++i) {
        const EncodingPart& part = shape.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        for_features(part.n_features, [&]<int F>() {
            for (int l = 0; l < part.n_levels; ++l) {
                const int column = part.out_begin + l * F;
                float* to = record + column * tile_size;
                for (int s = 0; s < n; ++s) store(to + s * F, load<Feature<F>>(d_encoding + s * stride + column));
            }
        });
    }
}

// Backward of a tile whose activations are in `a` and upstream gradients in workspace.d_output (rgb, rows of 16) and
// d_density. `max_level`: of each sample, or null. Where gradients of rays or of the extra dimensions are wanted, those
// of the encoded directions are left in workspace.d_encoding, after the density network's outputs.
void backward_tile(const NerfModelView& model, const PositionTile& p, const Activations& a, const float* d_density,
                   int n, NerfWorkspace& w, TrainChunk& results, const float* max_level = nullptr) {
    const int rgb_in = a.rgb.input_stride[0], enc = a.density.input_stride[0], n_geo = model.density.shape.n_out;
    const bool of_directions = results.d_extra_dims || results.ray_gradients; // gradients of what is encoded there
    const int wanted = n_geo + (of_directions ? model.direction->n_out_padded : 0);
    mlp_backward(weights_of(model.rgb), a.rgb,
                 {w.d_output, 16, 3, results.rgb_gradient, w.d_encoding, rgb_in, wanted, {w.scratch[0], w.scratch[1]}},
                 n);
    if (results.only_extra_dims) return;
    // The head of the rgb network's input gradient is that of the density network's output.
    for (int s = 0; s < n; ++s) w.d_encoding[s * rgb_in] += d_density[s];
    mlp_backward(weights_of(model.density), a.density,
                 {w.d_encoding,
                  rgb_in,
                  n_geo,
                  results.density_gradient,
                  w.d_input,
                  enc,
                  model.position->n_out,
                  {w.scratch[0], w.scratch[1]}},
                 n);
    if (max_level) cut_levels(*model.position, max_level, n, w.d_input, enc);
    store_gradients(*model.position, *results.tiles, p, w.d_input, enc, n);
}

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// --- training ----------------------------------------------------------------------------------------------------

// Samples of one wave, before they go through the networks.
struct Wave {
    int ray[max_rays_per_chunk]; // still alive
    int n_rays = 0;
    int sample_ray[max_rays_per_chunk * samples_per_wave];
    Vec3 position[max_rays_per_chunk * samples_per_wave];
    int n = 0;
};

void march_wave(const TrainChunk& c, NerfWorkspace& w, Wave& wave, int64_t first_row) {
    wave.n = 0;
    int alive = 0;
    for (int i = 0; i < wave.n_rays; ++i) {
        const int ray = wave.ray[i];
        RayMarcher& march = w.rays[ray].march;
        int k = 0;
        for (; k < samples_per_wave && w.count[ray] < max_samples_per_ray; ++k) {
            const float dt = march.next(c.occupancy, c.sample.stepping, true);
            if (dt == 0.0f) break;
            const int64_t at = int64_t(ray) * max_samples_per_ray + w.count[ray]++;
            w.t[at] = march.t;
            w.dt[at] = dt;
            w.row[at] = int32_t(first_row + wave.n);
            wave.sample_ray[wave.n] = ray;
            wave.position[wave.n++] = march.position(march.t);
            march.t += dt;
        }
        if (k == 0) march.t_end = 0.0f; // nothing more on this ray
        if (k > 0) wave.ray[alive++] = ray;
    }
    wave.n_rays = alive;
}

void evaluate_wave(const TrainChunk& c, NerfWorkspace& w, const Wave& wave, int64_t first_row) {
    const NerfModelView& model = *c.model;
    const Vec3 scale = box_scale(model.box);
    const int dir_width = model.direction->n_out_padded;
    PositionTile tile;
    for (int begin = 0; begin < wave.n; begin += tile_size) {
        const int n = min_of(tile_size, wave.n - begin);
        Activations a(model, w.layer, w.stride, first_row + begin);
        for (int s = 0; s < n; ++s) {
            set_position(tile, s, model.box, scale, wave.position[begin + s]);
            copy_floats(direction_columns(model, a, s), w.direction + wave.sample_ray[begin + s] * pad16(dir_width),
                        dir_width);
        }
        pad_positions(tile, n);
        float max_level[tile_size];
        if (c.sample.random_levels)
            for (int s = 0; s < n; ++s) max_level[s] = w.rays[wave.sample_ray[begin + s]].max_level;
        forward_tile(model, tile, a, n, true, c.sample.random_levels ? max_level : nullptr);
    }
}

// Distributes raw outputs to the rays and drops those that have become opaque.
void finish_wave(const TrainChunk& c, NerfWorkspace& w, Wave& wave, int64_t first_row) {
    const NerfModelView& model = *c.model;
    Activations a(model, w.layer, w.stride, first_row);
    int alive = 0, s = 0;
    for (int i = 0; i < wave.n_rays; ++i) {
        const int ray = wave.ray[i];
        int n = 0;
        while (s + n < wave.n && wave.sample_ray[s + n] == ray) ++n;
        for (int64_t at = int64_t(ray) * max_samples_per_ray + w.count[ray] - n; n > 0; --n, ++s, ++at) {
            w.raw[at] = raw_sample(a, s);
            const float sigma = density_from_raw(model.density_activation, w.raw[at].density);
            w.transmittance[ray] *= 1.0f - segment_alpha(sigma, w.dt[at]);
            if (c.visited)
                visit_cell(c.visited, w.rays[ray].march.position(w.t[at]), w.dt[at], c.occupancy.max_cascade, sigma);
        }
        if (w.transmittance[ray] >= training_min_transmittance && w.count[ray] < max_samples_per_ray)
            wave.ray[alive++] = ray;
    }
    wave.n_rays = alive;
}

// Gathers the activations of contributing samples, ray after ray, into tiles and runs them backward.
class TileGatherer {
  public:
    TileGatherer(TrainChunk& c, NerfWorkspace& w)
        : c_(c), w_(w), a_(*c.model, w.tile, w.stride, 0), scale_(box_scale(c.model->box)) {}

    void add(int ray_index, float t, int64_t row, const RawSample& d) {
        const TrainingRay& ray = w_.rays[ray_index];
        ray_[n_] = ray_index;
        for (int k = 0; k < w_.n_layers - 1; ++k) // the output layer's values are not needed
            copy_floats(w_.tile[k] + n_ * w_.stride[k], w_.layer[k] + row * w_.stride[k], w_.stride[k]);
        set_position(tile_, n_, c_.model->box, scale_, ray.march.position(t));
        max_level_[n_] = ray.max_level;
        t_[n_] = t;
        float* out = w_.d_output + n_ * 16;
        out[0] = d.rgb[0], out[1] = d.rgb[1], out[2] = d.rgb[2];
        d_density_[n_] = d.density;
        if (++n_ == tile_size) flush();
    }
    void flush() {
        if (n_ == 0) return;
        pad_positions(tile_, n_);
        backward_tile(*c_.model, tile_, a_, d_density_, n_, w_, c_, c_.sample.random_levels ? max_level_ : nullptr);
        if (c_.d_extra_dims || c_.ray_gradients) add_direction_gradients();
        if (c_.ray_gradients) add_to_rays();
        n_ = 0;
    }

  private:
    // Of each ray, sums over samples of the gradients of the encoded direction, which all its samples share.
    void add_direction_gradients() {
        const int stride = a_.rgb.input_stride[0], width = c_.model->direction->n_out_padded;
        for (int s = 0; s < n_; ++s) {
            const float* d = w_.d_encoding + s * stride + c_.model->density.shape.n_out;
            float* sum = w_.d_direction + ray_[s] * pad16(width);
            for (int j = 0; j < width; ++j) sum[j] += d[j];
        }
    }

    // Samples move with their ray: dL/d(origin) = sum of dL/d(position), dL/d(direction) = sum of t times that, plus
    // what the colours' dependence on the direction gives, which store_direction_gradients() adds.
    void add_to_rays() {
        const NerfModelView& model = *c_.model;
        const int stride = a_.density.input_stride[0];
        PositionTile gradient;
        float finest[tile_size];
        for (int s = 0; s < n_; ++s) finest[s] = c_.finest_scale;
        position_gradient(*model.position, model.encoding_params, tile_, n_, w_.d_input, stride, finest, gradient);
        for (int s = 0; s < n_; ++s) {
            const Vec3 g = Vec3{gradient.axis[0][s], gradient.axis[1][s], gradient.axis[2][s]} * scale_;
            RayGradient& ray = c_.ray_gradients[ray_[s]];
            ray.origin += g;
            ray.direction += g * t_[s];
        }
    }

    TrainChunk& c_;
    NerfWorkspace& w_;
    Activations a_;
    Vec3 scale_;
    PositionTile tile_;
    float d_density_[tile_size], max_level_[tile_size], t_[tile_size];
    int ray_[tile_size];
    int n_ = 0;
};

// Gradients of the direction and of the extra dimensions, ray by ray, from the sums that TileGatherer left. That of the
// direction is added to what ray_gradients holds.
void store_direction_gradients(const TrainChunk& c, const NerfWorkspace& w) {
    const NerfModelView& model = *c.model;
    const int n = model.n_extra_dims(), stride = pad16(model.direction->n_out_padded);
    for (int i = 0; i < c.n_rays; ++i) {
        const TrainingRay& ray = w.rays[i];
        const DirectionGradient g(model, ray.march.direction, ray.view, w.d_direction + i * stride);
        if (c.ray_gradients) c.ray_gradients[i].direction += g.direction();
        if (!c.d_extra_dims) continue;
        g.store_extra_dims(c.d_extra_dims + (c.first_ray + i) * n);
        c.view_of_ray[c.first_ray + i] = ray.view;
    }
}

void train_chunk(TrainChunk& c, NerfWorkspace& w) {
    const int dir_stride = pad16(c.model->direction->n_out_padded);
    SampleTrainingRays sample = c.sample;
    sample.rays = w.rays;
    sample.first_ray = c.first_ray;
    Wave wave;
    const int64_t start = now_ns();
    for (int i = 0; i < c.n_rays; ++i) {
        sample(c.first_ray + i);
        w.count[i] = 0;
        w.transmittance[i] = 1.0f;
        if (w.rays[i].march.t < w.rays[i].march.t_end) {
            wave.ray[wave.n_rays++] = i;
            encode_direction(*c.model, w.rays[i].march.direction, w.rays[i].view, w.direction + i * dir_stride);
        }
    }
    c.marching_ns += now_ns() - start;
    int64_t row = 0;
    while (wave.n_rays > 0) {
        if (row + wave.n_rays * samples_per_wave > w.rows) w.grow(w, row + wave.n_rays * samples_per_wave);
        const int64_t before = now_ns();
        march_wave(c, w, wave, row);
        c.marching_ns += now_ns() - before;
        evaluate_wave(c, w, wave, row);
        finish_wave(c, w, wave, row);
        row += wave.n;
    }
    c.evaluated += row;

    const CompositeAndLoss composite{c.composite,         w.rays,  w.raw,   w.dt,   w.t,
                                     max_samples_per_ray, w.count, w.d_raw, w.loss, c.d_color};
    const bool of_directions = c.d_extra_dims || c.ray_gradients;
    if (of_directions) memset(w.d_direction, 0, size_t(c.n_rays) * size_t(dir_stride) * sizeof(float));
    TileGatherer gather(c, w);
    for (int i = 0; i < c.n_rays; ++i) {
        composite(i);
        const float error = w.loss[i] * w.rays[i].inverse_density;
        c.loss += double(error);
        if (c.errors) c.errors[i] = {w.rays[i].error_cell, error};
        c.samples += w.count[i];
        for (int k = 0; k < w.count[i]; ++k) {
            const int64_t at = int64_t(i) * max_samples_per_ray + k;
            gather.add(i, w.t[at], w.row[at], w.d_raw[at]);
        }
    }
    gather.flush();
    if (of_directions) store_direction_gradients(c, w);
}

void scatter(const EncodingPart& part, int level, const GradientTiles& tiles, float* gradient, uint32_t first,
             uint32_t last) {
    PositionTile p;
    CellTile cells;
    WeightTile weights;
    for (int64_t i = 0; i < tiles.count; ++i) {
        float* record = tiles.data + i * tiles.record;
        const int n = record_count(record);
        for (int d = 0; d < tiles.n_in; ++d)
            copy_floats(p.axis[d], record + GradientTiles::header + d * tile_size, tile_size);
        const float* outputs = record + GradientTiles::header + (tiles.n_in + part.out_begin) * tile_size;
        if (!vectorised(part)) {
            for_dims_and_features(part, [&]<int D, int F>() {
                scatter_cells<D, F>(part, level, gradient, first, last, p, n, outputs + level * F * tile_size);
            });
            continue;
        }
        find_cells(part.levels[level], part.grid_type, p, n, cells);
        corner_weights(part.interpolation, cells, n, weights);
        for_features(part.n_features, [&]<int F>() {
            scatter_level<F>(gradient, first, last, cells, weights, n, outputs + level * F * tile_size);
        });
    }
}

void adam(const AdamJob& job) {
    for_features(job.n_features, [&]<int F>() { adam_entries<F>(job); });
}

// --- rendering ---------------------------------------------------------------------------------------------------

// Cells of the finest grid level whose gradient normals follow, in march steps. Along a ray, compositing sees the
// density a step apart; what finer levels do in between is noise to it, and would dominate the gradient.
constexpr float normal_cell_steps = 2.0f;

// Outward unit normals: minus the density gradient of each sample of the tile. No dt: of all grid levels.
void tile_normals(const NerfModelView& model, const PositionTile& p, const Activations& a, const float* dt, int n,
                  NerfWorkspace& w, Vec3* normals) {
    const int enc = a.density.input_stride[0];
    for (int s = 0; s < n; ++s) w.d_output[s * 16] = 1.0f;
    mlp_backward(weights_of(model.density), a.density,
                 {w.d_output, 16, 1, nullptr, w.d_input, enc, model.position->n_out, {w.scratch[0], w.scratch[1]}}, n);
    PositionTile gradient;
    const Vec3 scale = box_scale(model.box);
    float finest[tile_size];
    for (int s = 0; dt && s < n; ++s) finest[s] = 1.0f / (normal_cell_steps * dt[s] * scale.x);
    position_gradient(*model.position, model.encoding_params, p, n, w.d_input, enc, dt ? finest : nullptr, gradient);
    for (int s = 0; s < n; ++s)
        normals[s] = normalize(-(Vec3{gradient.axis[0][s], gradient.axis[1][s], gradient.axis[2][s]} * scale));
}

struct TraceState {
    RayMarcher march;
    BlendState blend;
    float largest = 0;
};

struct TracedSample {
    RawSample raw;
    float t, dt;
    const Vec3* normal;      // may be null
    const float* activation; // that takes the place of colours, or null
};
Vec3 shown_value(const TraceJob& job, const RenderRay& ray, const TracedSample& s, float alpha) {
    if (s.activation) return VisualizedActivation::value(*s.activation);
    if (job.shows.mode == RenderMode::Shade) return sample_color(job.model->rgb_activation, s.raw);
    return geometry_value(job.shows, alpha, ray.march.position(s.t), (s.t + job.near_distance) * ray.z_per_t);
}

void trace_sample(const TraceJob& job, TraceState& ray, const RenderRay& from, RenderedRay& out,
                  const TracedSample& s) {
    const float alpha = segment_alpha(density_from_raw(job.model->density_activation, s.raw.density), s.dt);
    const float t = s.t, weight = blend(ray.blend, shown_value(job, from, s, alpha), alpha);
    if (job.shows.mode == RenderMode::Cost) ray.blend.rgb += splat3(cost_of_sample);
    out.t_expected += weight * t;
    if (s.normal) out.normal += *s.normal * weight;
    if (weight > ray.largest) {
        ray.largest = weight;
        out.t_max_weight = t;
    }
}

void finish_ray(const TraceJob& job, const TraceState& ray, RenderedRay& out) {
    out.rgb = ray.blend.rgb;
    out.finish(job.shows.mode, ray.blend.transmittance, job.min_transmittance);
}

void trace(const TraceJob& job, NerfWorkspace& w) {
    const NerfModelView& model = *job.model;
    const Vec3 scale = box_scale(model.box);
    const int dir_width = model.direction->n_out_padded;
    Activations a(model, w.tile, w.stride, 0);
    TraceState state[max_rays_per_chunk];
    int alive[max_rays_per_chunk], n_alive = 0;
    for (int i = 0; i < job.n_rays; ++i) {
        state[i].march = job.rays[i].march;
        job.results[i] = {};
        if (state[i].march.t >= state[i].march.t_end) continue;
        alive[n_alive++] = i;
        encode_direction(model, state[i].march.direction, i, w.direction + i * pad16(dir_width));
    }
    PositionTile tile;
    int owner[tile_size];
    float t[tile_size], dt[tile_size];
    Vec3 normals[tile_size];
    // Mode Normals shows the gradient of the whole encoding, other normals that of what a march step resolves.
    const bool of_mode = job.shows.mode == RenderMode::Normals, normals_wanted = job.normals || of_mode;
    const int shown_layer = job.visualized.layer;
    const float* activation = job.visualized.wanted() ? w.tile[shown_layer] + job.visualized.dimension : nullptr;
    const int activation_stride = w.stride[shown_layer];
    while (n_alive > 0) {
        // Fill a tile with up to samples_per_wave samples of each of the next rays, shade it, and keep rays that go on.
        int kept = 0;
        for (int next = 0; next < n_alive;) {
            const int first = next;
            int n = 0;
            for (; next < n_alive && n + samples_per_wave <= tile_size; ++next) {
                const int ray = alive[next];
                RayMarcher& march = state[ray].march;
                for (int k = 0; k < samples_per_wave; ++k) {
                    const float step = march.next(job.occupancy, job.stepping, false);
                    if (step == 0.0f) {
                        march.t_end = 0.0f;
                        break;
                    }
                    owner[n] = ray, t[n] = march.t, dt[n] = step;
                    set_position(tile, n, model.box, scale, march.position(march.t));
                    copy_floats(direction_columns(model, a, n), w.direction + ray * pad16(dir_width), dir_width);
                    march.t += step;
                    ++n;
                }
            }
            pad_positions(tile, n);
            if (n > 0) {
                forward_tile(model, tile, a, n, true);
                if (normals_wanted) tile_normals(model, tile, a, of_mode ? nullptr : dt, n, w, normals);
            }
            for (int s = 0; s < n; ++s) {
                TraceState& ray = state[owner[s]];
                if (ray.blend.transmittance < job.min_transmittance) continue; // stopped within this tile
                trace_sample(job, ray, job.rays[owner[s]], job.results[owner[s]],
                             {raw_sample(a, s), t[s], dt[s], normals_wanted ? normals + s : nullptr,
                              activation ? activation + s * activation_stride : nullptr});
            }
            for (int i = first; i < next; ++i) {
                const TraceState& ray = state[alive[i]];
                if (ray.march.t < ray.march.t_end && ray.blend.transmittance >= job.min_transmittance)
                    alive[kept++] = alive[i];
                else
                    finish_ray(job, ray, job.results[alive[i]]);
            }
        }
        n_alive = kept;
    }
}

// --- single stages -----------------------------------------------------------------------------------------------

// Shades n samples from number `first` on into the given rows.
void shade_tile(const NerfModelView& model, const Vec3* positions, const Vec3* directions, int64_t first, int n,
                const Activations& a, PositionTile& tile) {
    const Vec3 scale = box_scale(model.box);
    for (int s = 0; s < n; ++s) {
        set_position(tile, s, model.box, scale, positions[first + s]);
        if (directions) encode_direction(model, directions[first + s], first + s, direction_columns(model, a, s));
    }
    pad_positions(tile, n);
    forward_tile(model, tile, a, n, directions != nullptr);
}

void evaluate(const NerfModelView& model, const Vec3* positions, const Vec3* directions, int64_t n, RawSample* out,
              NerfWorkspace& w) {
    Activations a(model, w.tile, w.stride, 0);
    PositionTile tile;
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = int(min_of<int64_t>(tile_size, n - begin));
        shade_tile(model, positions, directions, begin, m, a, tile);
        for (int s = 0; s < m; ++s) {
            if (directions)
                out[begin + s] = raw_sample(a, s);
            else
                out[begin + s].density = a.density.output[s * a.density.output_stride];
        }
    }
}

// Of m samples from number `begin` on, after backward_tile().
void store_input_gradients(const NerfModelView& model, const Vec3* directions, int64_t begin, int m,
                           const PositionTile& tile, const Activations& a, const NerfWorkspace& w,
                           const TrainChunk& results) {
    if (!results.d_extra_dims && !results.ray_gradients) return;
    PositionTile g;
    if (results.ray_gradients)
        position_gradient(*model.position, model.encoding_params, tile, m, w.d_input, a.density.input_stride[0],
                          nullptr, g);
    const Vec3 scale = box_scale(model.box);
    const float* d_direction = w.d_encoding + model.density.shape.n_out;
    for (int s = 0; s < m; ++s) {
        const DirectionGradient d(model, directions[begin + s], begin + s, d_direction + s * a.rgb.input_stride[0]);
        if (results.d_extra_dims) d.store_extra_dims(results.d_extra_dims + (begin + s) * model.n_extra_dims());
        if (results.ray_gradients)
            results.ray_gradients[begin + s] = {Vec3{g.axis[0][s], g.axis[1][s], g.axis[2][s]} * scale, d.direction()};
    }
}

void forward_backward(const NerfModelView& model, const Vec3* positions, const Vec3* directions, const RawSample* d_raw,
                      int64_t n, NerfWorkspace& w, TrainChunk& results) {
    Activations a(model, w.tile, w.stride, 0);
    PositionTile tile;
    float d_density[tile_size];
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = int(min_of<int64_t>(tile_size, n - begin));
        shade_tile(model, positions, directions, begin, m, a, tile);
        for (int s = 0; s < m; ++s) {
            for (int c = 0; c < 3; ++c) w.d_output[s * 16 + c] = d_raw[begin + s].rgb[c];
            d_density[s] = d_raw[begin + s].density;
        }
        backward_tile(model, tile, a, d_density, m, w, results);
        store_input_gradients(model, directions, begin, m, tile, a, w, results);
    }
}

// Reads up to a tile of row-major inputs.
int load_positions(const float* in, int n_in, int64_t begin, int64_t n, PositionTile& tile) {
    const int m = int(min_of<int64_t>(tile_size, n - begin));
    for (int s = 0; s < m; ++s)
        for (int d = 0; d < n_in; ++d) tile.axis[d][s] = unit_clamp(in[(begin + s) * n_in + d]);
    pad_positions(tile, m);
    return m;
}

void encode(const EncodingShape& shape, const float* params, const float* in, int64_t n, float* out) {
    PositionTile tile;
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = load_positions(in, shape.n_in, begin, n, tile);
        encode_positions(shape, params, tile, m, out + begin * shape.n_out_padded, shape.n_out_padded);
    }
}

void encoding_position_gradient(const EncodingShape& shape, const float* params, const float* in, const float* d_out,
                                int64_t n, float* d_in) {
    PositionTile tile, gradient;
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = load_positions(in, shape.n_in, begin, n, tile);
        position_gradient(shape, params, tile, m, d_out + begin * shape.n_out_padded, shape.n_out_padded, nullptr,
                          gradient);
        for (int s = 0; s < m; ++s)
            for (int d = 0; d < shape.n_in; ++d) d_in[(begin + s) * shape.n_in + d] = gradient.axis[d][s];
    }
}

void encoding_params_gradient(const EncodingShape& shape, const float* in, const float* d_out, int64_t n,
                              GradientTiles& tiles, float* gradient) {
    PositionTile tile;
    const int width = shape.n_out_padded;
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = load_positions(in, shape.n_in, begin, n, tile);
        tiles.count = 0;
        store_gradients(shape, tiles, tile, d_out + begin * width, width, m);
        for (int i = 0; i < shape.n_parts; ++i) {
            const EncodingPart& part = shape.parts[i];
            for (int l = 0; l < part.n_levels; ++l)
                scatter(part, l, tiles,
                        gradient + part.param_begin + size_t(part.levels[l].offset) * size_t(part.n_features), 0,
                        part.levels[l].entries);
        }
    }
}

void mlp(const MlpParams& params, const float* input, int64_t n, float* output, const float* d_output, float* d_input,
         float* weight_gradient, float* scratch) {
    const MlpShape& s = params.shape;
    const int n_in = pad16(s.n_in), width = pad16(s.width), n_out = pad16(s.n_out);
    for (int64_t begin = 0; begin < n; begin += tile_size) {
        const int m = int(min_of<int64_t>(tile_size, n - begin));
        MlpActivations a;
        for (int k = 0; k < s.n_layers; ++k) {
            // Layer inputs are only read, but share a type with the ones that are written.
            a.input[k] =
                k == 0 ? const_cast<float*>(input) + begin * n_in : scratch + int64_t(k + 1) * tile_size * width;
            a.input_stride[k] = k == 0 ? n_in : width;
        }
        a.output = output + begin * n_out;
        a.output_stride = n_out;
        mlp_forward(weights_of(params), a, m);
        if (!d_output) continue;
        mlp_backward(weights_of(params), a,
                     {d_output + begin * n_out,
                      n_out,
                      n_out,
                      weight_gradient,
                      d_input + begin * n_in,
                      n_in,
                      n_in,
                      {scratch, scratch + int64_t(tile_size) * width}},
                     m);
    }
}

} // namespace

extern const NerfKernels kernels;
const NerfKernels kernels{NGP_ISA_NAME,
                          train_chunk,
                          scatter,
                          adam,
                          trace,
                          evaluate,
                          encode,
                          encoding_position_gradient,
                          encoding_params_gradient,
                          forward_backward,
                          mlp};

} // namespace ngp::NGP_ISA
