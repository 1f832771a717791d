#include <algorithm>
#include <cfloat>
#include <cmath>
#include <ngp/formulas/adam_update.h>
#include <ngp/stages/camera_optimizer.h>
#include <ngp/stages/optimizer.h>

namespace ngp {

namespace {

constexpr float beta1 = 0.9f, beta2 = 0.99f, epsilon = 1e-8f;  // of all but the map (E.5)
constexpr int usual_interval = 16;                             // steps between updates that E.5's rates are for
constexpr uint32_t pose_decay_interval = 128 * usual_interval; // steps
constexpr float pose_decay = 0.33f;
constexpr float uncertain_steps = 10.0f; // finest_cells()
constexpr float least_rate = 1e-3f;      // of poses and focal length, relative to the network's

AdamSettings adam_settings() {
    AdamSettings s;
    s.beta1 = beta1, s.beta2 = beta2, s.epsilon = epsilon;
    return s;
}

// Steps of one vector; the new values are x - step.
template <int N>
void adam_steps(AdamVector<N>& a, const float* gradient, float learning_rate, float* step) {
    const AdamSettings s = adam_settings();
    ++a.iter;
    const float size = float(bias_corrected(s, learning_rate, a.iter));
    for (int i = 0; i < N; ++i) {
        float moved = 0.0f;
        adam_update(s, size, std::isfinite(gradient[i]) ? gradient[i] : 0.0f, moved, a.m[i], a.v[i]);
        step[i] = -moved;
    }
}
template <int N>
void adam_add(AdamVector<N>& a, const float* gradient, float learning_rate) {
    float step[N];
    adam_steps(a, gradient, learning_rate, step);
    for (int i = 0; i < N; ++i) a.x[i] -= step[i];
}

// A learning rate that is meant for updates `per` steps apart, for those that are o.interval apart: Adam's gradients,
// which are mostly noise, then lead as far astray in a number of steps (Malladi et al. 2022, "On the SDEs and Scaling
// Rules for Adaptive Gradient Algorithms").
float rate_of_interval(float rate, const CameraLearning& o, int per) {
    return rate * std::sqrt(float(o.interval) / float(per));
}

// Of poses and focal length, if updates are usual_interval apart.
template <int N>
float pose_learning_rate(const AdamVector<N>& a, const CameraLearning& o, float network_learning_rate) {
    const auto decays = uint64_t(a.iter) * uint64_t(o.interval) / pose_decay_interval;
    return std::max(o.extrinsic_learning_rate * std::pow(pose_decay, float(decays)),
                    network_learning_rate * least_rate);
}

float map_learning_rate(const DistortionMapConfig& c, uint32_t step) {
    const uint32_t at = std::min(step, uint32_t(c.decay_end)), start = uint32_t(c.decay_start);
    return at < start ? c.learning_rate
                      : c.learning_rate * std::pow(c.decay_base, float(1 + (at - start) / uint32_t(c.decay_interval)));
}

Vec3 vector_of(const AdamVector<3>& a) { return {a.x[0], a.x[1], a.x[2]}; }

} // namespace

CameraMatrix CameraCorrections::corrected_pose(size_t view, const CameraMatrix& pose) const {
    if (view >= position.size()) return pose;
    CameraMatrix c = rotate(vector_of(rotation[view]), pose);
    c.position += vector_of(position[view]);
    return c;
}
CameraModel CameraCorrections::corrected_camera(const CameraModel& camera) const {
    CameraModel c = camera;
    if (focal.x[0] != 0.0f) c.focal.x *= std::exp(focal.x[0]);
    if (focal.x[1] != 0.0f) c.focal.y *= std::exp(focal.x[1]);
    return c;
}
Vec3 CameraCorrections::stops(size_t view) const { return view < exposure.size() ? vector_of(exposure[view]) : Vec3{}; }
DistortionMap CameraCorrections::distortion_map() const {
    static_assert(sizeof(Vec2) == 2 * sizeof(float));
    if (map.x.empty()) return {};
    return {reinterpret_cast<const Vec2*>(map.x.data()), map.width, map.height};
}
void CameraCorrections::forget_pose(size_t view) {
    if (view < position.size()) position[view] = rotation[view] = {};
}

TrainingView corrected(const CameraCorrections& c, size_t index, TrainingView view) {
    view.camera = c.corrected_camera(view.camera);
    if (index >= c.position.size()) return view;
    view.pose = c.corrected_pose(index, view.pose);
    view.motion.turn = rotate(vector_of(c.rotation[index]), view.motion.turn);
    const Vec3 stops = c.stops(index);
    view.exposure = {std::exp2(stops.x), std::exp2(stops.y), std::exp2(stops.z)};
    return view;
}

void CameraOptimizer::prepare(size_t n_views, const CameraLearning& options) {
    CameraCorrections& c = corrections_;
    for (auto* vectors : {&c.position, &c.rotation, &c.exposure}) vectors->resize(n_views);
    if (options.distortion && c.map.x.empty()) {
        c.map.width = map_config_.width;
        c.map.height = map_config_.height;
        for (auto* values : {&c.map.m, &c.map.v, &c.map.x})
            values->assign(size_t(c.map.width) * c.map.height * 2, 0.0f);
    }
    const size_t n = map_begin() + c.map.x.size();
    if (c.sums.size() == n) return;
    c.sums.assign(n, 0.0);
    c.n_steps = 0;
}

float CameraOptimizer::finest_cells(const CameraLearning& o) const {
    const CameraCorrections& c = corrections_;
    float rate = 0.0f;
    if (o.extrinsics && !c.position.empty()) rate = std::max(rate, pose_learning_rate(c.position[0], o, 0.0f));
    if (o.focal_length) rate = std::max(rate, pose_learning_rate(c.focal, o, 0.0f));
    return rate > 0.0f ? 1.0f / (uncertain_steps * rate) : FLT_MAX;
}

void CameraOptimizer::add(const RayPixel* pixels, const CameraGradient* gradients, int64_t n_rays, int n_images) {
    CameraCorrections& c = corrections_;
    double* const focal = c.sums.data() + focal_begin();
    double* const map = c.sums.data() + map_begin();
    const double per_ray = 1.0 / double(std::max<int64_t>(1, n_rays)); // of the mean over rays
    const double per_view = per_ray * n_images, per_texel = per_ray * 0.5 * double(c.map.x.size());
    const DistortionMap texels = c.distortion_map();
    for (int64_t i = 0; i < n_rays; ++i) {
        const CameraGradient& g = gradients[i];
        double* const view = c.sums.data() + size_t(pixels[i].view) * CameraCorrections::sums_per_view;
        for (int k = 0; k < 3; ++k) {
            view[k] += per_view * g.position[k];
            view[3 + k] += per_view * g.rotation[k];
            view[6 + k] += per_view * g.exposure[k];
        }
        focal[0] += per_ray * g.focal.x;
        focal[1] += per_ray * g.focal.y;
        if (!texels.offsets) continue;
        const MapCell cell = texels.cell(pixels[i].uv);
        for (int corner = 0; corner < 4; ++corner) {
            const double weight = (corner & 1 ? cell.fraction.x : 1.0f - cell.fraction.x) *
                                  (corner & 2 ? cell.fraction.y : 1.0f - cell.fraction.y) * per_texel;
            double* const at = map + 2 * (cell.first + (corner & 1) + (corner & 2 ? texels.width : 0));
            at[0] += weight * g.offset.x;
            at[1] += weight * g.offset.y;
        }
    }
    ++c.n_steps;
}

void CameraOptimizer::update_pose(const CameraLearning& o, size_t view, float network_learning_rate) {
    CameraCorrections& c = corrections_;
    const double* sums = c.sums.data() + view * CameraCorrections::sums_per_view;
    AdamVector<3>&p = c.position[view], &r = c.rotation[view];
    const auto rate = [&](const AdamVector<3>& a) {
        return rate_of_interval(pose_learning_rate(a, o, network_learning_rate), o, usual_interval);
    };
    float g[3], step[3];
    for (int k = 0; k < 3; ++k) g[k] = float(sums[k] / c.n_steps) + o.extrinsic_l2 * p.x[k];
    adam_add(p, g, rate(p));
    for (int k = 0; k < 3; ++k) g[k] = float(sums[3 + k] / c.n_steps) + o.extrinsic_l2 * r.x[k];
    adam_steps(r, g, rate(r), step);
    const Vec3 turned = compose_rotations({-step[0], -step[1], -step[2]}, vector_of(r));
    for (int k = 0; k < 3; ++k) r.x[k] = turned[k];
}

void CameraOptimizer::update_exposures(const CameraLearning& o, size_t n, float network_learning_rate) {
    CameraCorrections& c = corrections_;
    // E.5 has the network's rate whatever the interval, which takes 1,600 steps to a stop at the usual one: until then
    // the scene has taken the exposures that it was shown. So it is the rate of updates in every step, as of latents.
    const float rate = rate_of_interval(network_learning_rate, o, 1);
    for (size_t i = 0; i < n; ++i) {
        const double* sums = c.sums.data() + i * CameraCorrections::sums_per_view + 6;
        float g[3];
        for (int k = 0; k < 3; ++k) g[k] = float(sums[k] / c.n_steps) + o.exposure_l2 * c.exposure[i].x[k];
        adam_add(c.exposure[i], g, rate);
    }
    for (int k = 0; k < 3; ++k) { // only differences between images mean something
        double sum = 0;
        for (size_t i = 0; i < n; ++i) sum += c.exposure[i].x[k];
        for (size_t i = 0; i < n; ++i) c.exposure[i].x[k] -= float(sum / double(n));
    }
}

bool CameraOptimizer::update(const CameraLearning& o, int n_images, uint32_t step, float network_learning_rate) {
    CameraCorrections& c = corrections_;
    if (c.n_steps < o.interval) return false;
    const size_t n = std::min(size_t(n_images), c.position.size());
    for (size_t i = 0; o.extrinsics && step >= pose_warmup_steps && i < n; ++i)
        update_pose(o, i, network_learning_rate);
    if (o.exposure) update_exposures(o, n, network_learning_rate);
    if (o.focal_length) {
        const double* sums = c.sums.data() + focal_begin();
        float g[2];
        for (int k = 0; k < 2; ++k) g[k] = float(sums[k] / c.n_steps) + o.intrinsic_l2 * c.focal.x[k];
        adam_add(c.focal, g,
                 rate_of_interval(pose_learning_rate(c.focal, o, network_learning_rate), o, usual_interval));
    }
    if (o.distortion) update_map(step);
    std::fill(c.sums.begin(), c.sums.end(), 0.0);
    c.n_steps = 0;
    return true;
}

void CameraOptimizer::update_map(uint32_t step) {
    CameraCorrections& c = corrections_;
    AdamSettings s;
    s.beta1 = map_config_.beta1, s.beta2 = map_config_.beta2, s.epsilon = map_config_.epsilon;
    ++c.map.iter;
    const float size = float(bias_corrected(s, map_learning_rate(map_config_, step), c.map.iter));
    const double* sums = c.sums.data() + map_begin();
    for (size_t i = 0; i < c.map.x.size(); ++i) {
        const float g = float(sums[i] / c.n_steps);
        adam_update(s, size, std::isfinite(g) ? g : 0.0f, c.map.x[i], c.map.m[i], c.map.v[i]);
    }
}

} // namespace ngp
