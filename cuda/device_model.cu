#include "device_model.cuh"

#include <algorithm>

namespace ngp::cuda {

namespace {

GridShape grid_shape(const EncodingPart& part) {
    GridShape g;
    std::copy_n(part.levels, part.n_levels, g.levels);
    g.n_levels = part.n_levels;
    g.n_features = part.n_features;
    g.type = part.grid_type;
    g.interpolation = part.interpolation;
    g.in_begin = part.in_begin;
    g.n_in = part.n_in;
    return g;
}

} // namespace

DeviceModel::DeviceModel(Context& context, const NerfModelShape& shape, const AdamSettings& settings, const Aabb& box,
                         bool deterministic)
    : context_(context), shape_(shape), box_(box) {
    functions_ = &general_functions();
    if (fused(shape.position, shape.direction, shape.density, shape.rgb)) {
        const NetworkFunctions& f = fused_functions(shape.density.width, shape.rgb.n_layers - 1);
        ModelView sizes;
        sizes.rgb = shape.rgb;
        const int blocks = f.backward_blocks(context); // 0 on devices with too little shared memory
        if (blocks > 0 && f.shared_bytes(sizes) <= context.max_shared_bytes()) {
            functions_ = &f;
            gradient_blocks_ = blocks;
        }
    }
    optimizer_ = std::make_unique<DeviceOptimizer>(context, settings, shape.encoding_begin(), shape.position,
                                                   gradient_blocks_, deterministic);
    if (!is_fused()) general_backward_ = std::make_unique<GeneralBackward>(context, shape);
    encodings_ = {context, 2, "the model"};
    encodings_.upload(&shape.position, 1);
    encodings_.upload(&shape.direction, 1, 1);
    averaged_ = {context, int64_t(optimizer_->n_matrix_padded() + shape.position.n_params), "averaged parameters"};
    const ModelView view = trained(Activation::None, Activation::None);
    scratch_ = {context, functions_->scratch_bytes(context, view), "activations"};
}

ModelView DeviceModel::view(const half* matrices, const half* encoding, Activation rgb, Activation density) const {
    ModelView v;
    for (int i = shape_.position.n_parts - 1; i >= 0; --i)
        if (shape_.position.parts[i].kind == EncodingKind::Grid) v.grid = grid_shape(shape_.position.parts[i]);
    v.position = encodings_.data();
    v.direction = encodings_.data() + 1;
    v.n_encoded = shape_.position.n_out_padded;
    v.density = shape_.density;
    v.rgb = shape_.rgb;
    v.encoding = encoding;
    v.weights = matrices;
    v.box_min = box_.min;
    const Vec3 size = box_.diag();
    v.inverse_size = {1.0f / size.x, 1.0f / size.y, 1.0f / size.z};
    v.rgb_activation = rgb;
    v.density_activation = density;
    return v;
}

ModelView DeviceModel::trained(Activation rgb, Activation density) const {
    return view(optimizer_->matrix_halves(), optimizer_->encoding_halves(), rgb, density);
}
ModelView DeviceModel::averaged(Activation rgb, Activation density) const {
    return view(averaged_.data(), averaged_.data() + optimizer_->n_matrix_padded(), rgb, density);
}
void DeviceModel::refresh_averaged(uint32_t matrix_steps, uint32_t encoding_steps) {
    optimizer_->launch_averaged(matrix_steps, encoding_steps,
                                {averaged_.data(), averaged_.data() + optimizer_->n_matrix_padded()});
}

ScratchView DeviceModel::render_scratch(const NetworkFunctions& functions, const RenderJob& job) {
    const int64_t size = functions.render_scratch(context_, job.model, job.full());
    if (size > render_scratch_.size()) render_scratch_ = {context_, size, "activations"};
    return {render_scratch_.data(), render_scratch_.size()};
}

void DeviceModel::reserve_encoding_gradients(int64_t rows, InputGradients wanted) {
    if (has_encoding_gradients(rows, wanted)) return;
    release_encoding_gradients(); // the new ones may need its memory
    if (is_fused()) {
        d_encodings_ = {context_, rows * fused_encoded, "gradients"};
        if (wanted.rays) d_harmonics_ = {context_, rows * fused_harmonics, "gradients"};
    } else {
        d_encodings_f32_ = {context_, rows * shape_.position.n_out, "gradients"};
        positions_ = {context_, rows, "samples"};
        directions_ = {context_, rows, "samples"};
        d_raw_ = {context_, rows, "gradients"};
        views_ = {context_, rows, "samples"};
        max_levels_ = {context_, rows, "samples"};
        if (wanted.rays) d_directions_ = {context_, rows, "gradients"};
        if (wanted.extra_dims) d_extra_dims_ = {context_, rows * shape_.n_extra_dims(), "gradients"};
    }
    encoding_gradient_rows_ = rows; // not before all are there
    reserved_inputs_ = wanted;
}

void DeviceModel::release_encoding_gradients() {
    encoding_gradient_rows_ = 0;
    reserved_inputs_ = {};
    for (DeviceArray<half>* a : {&d_encodings_, &d_harmonics_}) *a = {};
    for (DeviceArray<float>* a : {&d_encodings_f32_, &d_extra_dims_, &max_levels_}) *a = {};
    for (DeviceArray<Vec3>* a : {&positions_, &directions_, &d_directions_}) *a = {};
    d_raw_ = {};
    views_ = {};
}

void DeviceModel::launch_backward(const ModelView& view, const BackwardSource& source) {
    if (is_fused()) {
        half* const harmonics = source.inputs.rays ? d_harmonics_.data() : nullptr;
        functions_->backward(context_,
                             {view, source.step, source.encodings, source.directions, source.d_raw, source.options,
                              source.n, d_encodings_.data(), harmonics, optimizer_->weight_gradients()});
        if (source.random_levels) launch_cut_levels(context_, view, source.step, d_encodings_.data());
        return;
    }
    BackwardInput in;
    if (source.step.state) {
        float* const max_levels = source.random_levels ? max_levels_.data() : nullptr;
        launch_gather(context_, source.step, source.options,
                      {positions_.data(), directions_.data(), d_raw_.data(), views_.data(), max_levels});
        in.positions = positions_.data();
        in.directions = directions_.data();
        in.d_raw = d_raw_.data();
        in.rows = views_.data();
        in.max_levels = max_levels;
    } else {
        in.positions = source.positions;
        in.directions = source.directions;
        in.d_raw = source.d_raw;
    }
    in.n = source.n;
    in.capacity = source.capacity;
    if (source.inputs.rays) in.d_directions = d_directions_.data();
    if (source.inputs.extra_dims) in.d_extra_dims = d_extra_dims_.data();
    check(cudaMemsetAsync(optimizer_->weight_gradients(), 0, optimizer_->n_matrix() * sizeof(float), context_.stream()),
          "memset");
    general_backward_->run(context_.stream(), view, in, d_encodings_f32_.data(), optimizer_->weight_gradients());
}

void DeviceModel::launch_ray_gradients(const ModelView& view, const BackwardSource& source, float finest_scale,
                                       RayGradient* rays, Vec3* d_color) {
    RayGradientsJob job{};
    job.model = view;
    job.step = source.step;
    job.positions = source.positions;
    job.directions = source.directions;
    job.n = source.n;
    job.options = source.options;
    job.d_encodings = d_encodings_.data();
    job.d_harmonics = d_harmonics_.data();
    job.d_encodings_f32 = d_encodings_f32_.data();
    job.d_directions = d_directions_.data();
    job.d_stride = shape_.position.n_out;
    job.finest_scale = finest_scale;
    job.rays = rays;
    job.d_color = d_color;
    cuda::launch_ray_gradients(context_, job);
}

void DeviceModel::launch_scatter_gradients(const BackwardSource& source) {
    const EncodingShape& position = shape_.position;
    for (int i = 0; i < position.n_parts; ++i) {
        const EncodingPart& part = position.parts[i];
        if (part.kind != EncodingKind::Grid) continue;
        const Vec3 size = box_.diag();
        launch_scatter(context_, {grid_shape(part),
                                  box_.min,
                                  {1.0f / size.x, 1.0f / size.y, 1.0f / size.z},
                                  source.step.samples,
                                  source.step.rays,
                                  source.positions,
                                  source.step.order,
                                  source.n,
                                  is_fused() ? d_encodings_.data() : nullptr,
                                  is_fused() ? nullptr : d_encodings_f32_.data(),
                                  is_fused() ? fused_encoded : position.n_out,
                                  part.out_begin,
                                  optimizer_->table_gradient()});
    }
}

} // namespace ngp::cuda
