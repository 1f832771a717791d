// The Testbed's per-image latents and light directions: who has which, and fits of latents to pictures.
#include <algorithm>
#include <bit>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/testbed.h>

namespace ngp {

namespace {

constexpr uint64_t fit_stream = 5; // of random numbers, beside those of training

bool finite_values(const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

bool nearly_equal(const CameraMatrix& a, const CameraMatrix& b) {
    constexpr float tolerance = 1e-5f; // poses of one file, read with different arithmetic
    const Vec3 differences[4] = {a.right - b.right, a.down - b.down, a.forward - b.forward, a.position - b.position};
    for (const Vec3& d : differences)
        if (!(std::sqrt(dot(d, d)) <= tolerance * std::max(1.0f, std::sqrt(dot(a.position, a.position))))) return false;
    return true;
}

} // namespace

bool same_views(const DatasetRecord& a, const DatasetRecord& b) {
    return std::equal(a.views.begin(), a.views.end(), b.views.begin(), b.views.end(),
                      [](const ViewRecord& u, const ViewRecord& v) {
                          return u.path == v.path && nearly_equal(u.start, v.start) && nearly_equal(u.end, v.end);
                      });
}

void NerfTraining::set_optimize_extra_dims(bool on) {
    DatasetRecord& d = dataset->record;
    if (on && d.n_extra_dims() == 0) {
        d.n_extra_learnable_dims = default_latent_dims; // Testbed::ensure_network() sees it
    }
    optimize_extra_dims = on;
}

// Data that says nothing of latents or lights takes over those of the network that it will use.
void Testbed::keep_extra_dims(const DatasetRecord& old, DatasetRecord& record) const {
    if (record.n_extra_dims() > 0) return;
    record.n_extra_learnable_dims = old.n_extra_learnable_dims;
    record.has_light_dirs = old.has_light_dirs;
}

void Testbed::reset_view_inputs() {
    const DatasetRecord& d = nerf.training.dataset->record;
    if (d.n_extra_dims() == 0) return;
    if (!d.has_light_dirs) engine_->set_view_inputs(initial_latents(int(d.views.size()), d.n_extra_dims(), seed_));
    push_light_dirs();
}

// Lights can be changed in the metadata at any time.
void Testbed::push_light_dirs() {
    const DatasetRecord& d = nerf.training.dataset->record;
    if (!d.has_light_dirs) return;
    std::vector<Vec3> directions;
    for (const ViewRecord& v : d.views) directions.push_back(v.light_dir);
    ViewInputs inputs = light_inputs(directions);
    if (!(inputs == engine_->view_inputs())) engine_->set_view_inputs(std::move(inputs));
}

void Testbed::check_extra_dims(const std::vector<float>& values) const {
    if (network_extra_dims_ == 0) fail("this model has neither per-image latents nor light directions");
    if (int(values.size()) != network_extra_dims_ || !finite_values(values))
        fail("a latent of this model has ", network_extra_dims_, " finite values; ", values.size(), " were given");
}

int Testbed::n_extra_dims() {
    Lock lock(mutex_);
    ensure_network();
    return network_extra_dims_;
}

std::vector<float> Testbed::extra_dims(int view) {
    Lock lock(mutex_);
    ensure_network();
    push_light_dirs();
    const ViewInputs& inputs = engine_->view_inputs();
    if (network_extra_dims_ == 0) return {};
    if (view < 0 || view >= inputs.n_views())
        fail("training view ", view, " does not exist; there are ", inputs.n_views());
    return {inputs.of(view), inputs.of(view + 1)};
}

void Testbed::set_extra_dims(int view, const std::vector<float>& values) {
    Lock lock(mutex_);
    if (nerf.training.dataset->record.has_light_dirs)
        fail("the views have light directions, not latents; change the metadata's light_dir");
    const size_t n = extra_dims(view).size(); // raises for views that don't exist
    check_extra_dims(values);
    ViewInputs inputs = engine_->view_inputs();
    std::copy(values.begin(), values.end(), inputs.values.begin() + std::ptrdiff_t(size_t(view) * n));
    engine_->set_view_inputs(std::move(inputs));
}

std::vector<float> Testbed::rendering_extra_dims() {
    Lock lock(mutex_);
    ensure_network();
    if (network_extra_dims_ == 0) return {};
    const int view = nerf.rendering_extra_dims_from_training_view;
    if (view >= 0) return extra_dims(view);
    if (int(nerf.rendering_extra_dims.size()) != network_extra_dims_)
        fail("nerf.rendering_extra_dims_from_training_view is ", view, ", but of ", network_extra_dims_,
             " extra dimensions ", nerf.rendering_extra_dims.size(),
             " are given; call nerf.set_rendering_extra_dims(), or name a training view");
    return nerf.rendering_extra_dims;
}

void Testbed::set_rendering_extra_dims(const std::vector<float>& values) {
    Lock lock(mutex_);
    ensure_network();
    check_extra_dims(values);
    nerf.rendering_extra_dims = values;
    nerf.rendering_extra_dims_from_training_view = -1;
}

void Testbed::set_rendering_extra_dims_from_training_view(int view) {
    Lock lock(mutex_);
    if (extra_dims(view).empty()) fail("this model has neither per-image latents nor light directions");
    nerf.rendering_extra_dims_from_training_view = view;
}

void Testbed::set_rendering_light_dir(Vec3 direction) {
    Lock lock(mutex_);
    set_rendering_extra_dims(extra_dims_of({-1, {}, direction}));
}

std::vector<float> Testbed::extra_dims_of(const Appearance& a) {
    ensure_network();
    if (a.light_dir) {
        const DatasetRecord& d = nerf.training.dataset->record;
        if (!d.has_light_dirs) fail("this model has no light directions (driver_parameters)");
        const float length = std::sqrt(dot(*a.light_dir, *a.light_dir));
        if (!(length > 0.0f && std::isfinite(length))) fail("a light direction must be finite and not zero");
        const Vec3 v = light_input(d.world.light_to_ngp(*a.light_dir / length));
        return {v.x, v.y, v.z};
    }
    if (!a.extra_dims.empty()) {
        check_extra_dims(a.extra_dims);
        return a.extra_dims;
    }
    return a.image >= 0 ? extra_dims(a.image) : rendering_extra_dims();
}

// --- fits ----------------------------------------------------------------------------------------------------------

void Testbed::check_latent(const LatentFit& fit, const std::vector<float>& extra_dims) const {
    check_extra_dims(extra_dims);
    check_camera(fit.camera, "camera");
    const int width = fit.image.width, height = fit.image.height;
    if (width < 1 || height < 1 || fit.camera.width != width || fit.camera.height != height)
        fail("the image has ", width, "x", height, " pixels, its camera ", fit.camera.width, "x", fit.camera.height);
    for (const uint32_t p : fit.pixels)
        if (p >= uint32_t(width) * uint32_t(height)) fail("pixel ", p, " is not in an image of ", width, "x", height);
    if (fit.steps < 0 || fit.rays_per_step < 1 || !(fit.learning_rate >= 0.0f))
        fail("steps is ", fit.steps, ", rays_per_step ", fit.rays_per_step, " and learning_rate ", fit.learning_rate,
             "; a fit takes rays, and neither steps nor a learning rate below 0");
}

float Testbed::latent_gradient(const LatentFit& fit, const std::vector<float>& extra_dims, int step,
                               std::vector<float>& gradient) {
    Lock lock(mutex_);
    ensure_network();
    check_latent(fit, extra_dims);
    const TrainingView view{fit.image, fit.camera, world().camera_to_ngp(fit.camera_to_world), {}};
    const NerfTrainOptions options = train_options();
    ViewInputLoss job;
    job.extra_dims = extra_dims;
    job.sample.scene = {&view, 1, {}, int(std::bit_width(unsigned(network_aabb_scale_))) - 1, {}};
    if (render_with_lens_distortion) job.sample.scene.distortion = engine_->corrections().distortion_map();
    const float half = 0.5f * float(network_aabb_scale_);
    job.sample.scene.box = {splat3(0.5f - half), splat3(0.5f + half)};
    job.sample.color = options.color;
    job.sample.stepping = Stepping::with_cone_angle(options.cone_angle);
    job.sample.rng = Pcg32::seeded(seed_, fit_stream);
    job.sample.rng.advance(uint64_t(step) << 32);
    job.sample.n_rays = fit.rays_per_step;
    job.sample.n_images = 1;
    if (!fit.pixels.empty()) {
        job.sample.pixels = fit.pixels.data();
        job.sample.n_pixels = int(fit.pixels.size());
    }
    job.composite.rgb_activation = options.rgb_activation;
    job.composite.density_activation = options.density_activation;
    job.composite.objective = {TrainMode::Nerf, options.loss};
    return engine_->view_input_gradient(job, gradient);
}

LatentFitResult Testbed::fit_latent(const LatentFit& fit, const std::function<bool()>& poll) {
    Lock lock(mutex_);
    ensure_network();
    push_light_dirs();
    const ViewInputs& known = engine_->view_inputs();
    LatentFitResult result;
    ViewInputs latent = initial_latents(1, network_extra_dims_, seed_);
    for (int k = 0; k < network_extra_dims_; ++k) {
        double sum = 0;
        for (int i = 0; i < known.n_views(); ++i) sum += double(known.of(i)[k]);
        latent.values[size_t(k)] = float(sum / std::max(1, known.n_views()));
    }
    if (!fit.initial.empty()) latent.values = fit.initial;
    check_latent(fit, latent.values);
    std::vector<float> gradient;
    for (int step = 0; step < fit.steps && (!poll || poll()); ++step) {
        result.losses.push_back(latent_gradient(fit, latent.values, step, gradient));
        const std::vector<double> g(gradient.begin(), gradient.end());
        const float rate = fit.learning_rate * (1.0f - float(step) / float(fit.steps));
        step_view_inputs(latent, 1, g.data(), rate);
    }
    result.extra_dims = std::move(latent.values);
    return result;
}

} // namespace ngp
