#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/formulas/rotation.h>
#include <ngp/render/camera_path.h>

namespace ngp {

namespace {

Quaternion quaternion_of(const CameraKeyframe& k) { return {k.R[3], k.R[0], k.R[1], k.R[2]}; }

Quaternion normalized(Quaternion q) {
    const double n = std::sqrt(q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z);
    return n > 1e-12 ? Quaternion{q.w / n, q.x / n, q.y / n, q.z / n} : Quaternion{};
}
void set_rotation(CameraKeyframe& k, Quaternion q) {
    q = normalized(q);
    k.R[0] = float(q.x), k.R[1] = float(q.y), k.R[2] = float(q.z), k.R[3] = float(q.w);
}
double product(Quaternion a, Quaternion b) { return a.w * b.w + a.x * b.x + a.y * b.y + a.z * b.z; }

// First b, then a.
Quaternion composed(Quaternion a, Quaternion b) {
    return {a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z, a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
            a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x, a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}
Quaternion inverse(Quaternion q) { return {q.w, -q.x, -q.y, -q.z}; }

// Sum of weight * keyframe; rotations on the side of the first, and normalised.
CameraKeyframe weighted_sum(const CameraKeyframe* const* keyframes, const float* weight, int n) {
    CameraKeyframe sum;
    sum.scale = sum.fov = 0;
    Quaternion rotation{0, 0, 0, 0};
    const Quaternion first = normalized(quaternion_of(*keyframes[0]));
    for (int i = 0; i < n; ++i) {
        const CameraKeyframe& k = *keyframes[i];
        const float w = weight[i];
        const Quaternion q = normalized(quaternion_of(k));
        const double s = product(q, first) < 0 ? -w : w;
        rotation = {rotation.w + s * q.w, rotation.x + s * q.x, rotation.y + s * q.y, rotation.z + s * q.z};
        sum.T += k.T * w;
        sum.slice += k.slice * w;
        sum.scale += k.scale * w;
        sum.fov += k.fov * w;
        sum.aperture_size += k.aperture_size * w;
        sum.timestamp += k.timestamp * w;
    }
    set_rotation(sum, rotation);
    return sum;
}

} // namespace

CameraMatrix CameraKeyframe::m() const {
    const auto [w, x, y, z] = normalized(quaternion_of(*this));
    const auto column = [](double a, double b, double c) { return Vec3{float(a), float(b), float(c)}; };
    return {column(1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
            column(2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
            column(2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)), T};
}

void CameraKeyframe::from_m(const CameraMatrix& camera) {
    const Mat3 axes{{normalize(camera.right), normalize(camera.down), normalize(camera.forward)}};
    const float det = determinant(axes);
    if (!(std::fabs(det - 1.0f) < 1e-2f))
        fail("camera keyframe: the matrix is not a camera pose (the determinant of its unit axes is ", det, ")");
    set_rotation(*this, quaternion(rotation_vector(axes)));
    T = camera.position;
}

bool CameraKeyframe::same_pos_as(const CameraKeyframe& other) const {
    return length(T - other.T) < 1e-4f && std::fabs(product(quaternion_of(*this), quaternion_of(other))) >= 0.999;
}

CameraPath& CameraPath::operator=(const CameraPath& other) {
    if (this == &other) return *this;
    keyframes.clear();
    for (const auto& k : other.keyframes) keyframes.push_back(std::make_shared<CameraKeyframe>(*k));
    spline_order = other.spline_order;
    loop = other.loop;
    duration_seconds = other.duration_seconds;
    update_cam_from_path = other.update_cam_from_path;
    rendering = other.rendering;
    play_time = other.play_time;
    auto_play_speed = other.auto_play_speed;
    keyframe_subsampling = other.keyframe_subsampling;
    camera_prediction_duration_seconds = other.camera_prediction_duration_seconds;
    camera_prediction_dt = other.camera_prediction_dt;
    editing_kernel_type = other.editing_kernel_type;
    editing_kernel_radius = other.editing_kernel_radius;
    render_settings = other.render_settings;
    render_frame_idx = other.render_frame_idx;
    render_start_time = other.render_start_time;
    render_frame_end_camera = other.render_frame_end_camera;
    return *this;
}

void CameraPath::expect_keyframes() const {
    if (keyframes.empty()) fail("the camera path has no keyframes; add_camera() or load() some first");
}

void CameraPath::clear() {
    keyframes.clear();
    play_time = 0;
}

bool CameraPath::has_valid_timestamps() const {
    float last = 0;
    for (const auto& k : keyframes) {
        if (!(k->timestamp > last) || !std::isfinite(k->timestamp)) return false;
        last = k->timestamp;
    }
    return true;
}

void CameraPath::make_keyframe_timestamps_equidistant() {
    for (size_t i = 0; i < keyframes.size(); ++i) keyframes[i]->timestamp = float(i + 1) / float(keyframes.size());
    duration_seconds = 1;
}

void CameraPath::sanitize_keyframes() {
    if (!has_valid_timestamps()) make_keyframe_timestamps_equidistant();
}

// The time at play time 1: the way to the last keyframe ends with the timestamp of the one before it.
float CameraPath::end_time() const {
    const size_t n = keyframes.size();
    return loop || n < 2 ? keyframes.back()->timestamp : keyframes[n - 2]->timestamp;
}

CameraPathPos CameraPath::get_pos(float time) const {
    expect_keyframes();
    const int n = int(keyframes.size());
    if (n == 1 || !std::isfinite(time)) return {};
    if (loop && (time < 0 || time > 1)) time -= std::floor(time);
    time = std::clamp(time, 0.0f, 1.0f) * end_time();
    const auto after = std::upper_bound(keyframes.begin(), keyframes.end(), time,
                                        [](float at, const auto& k) { return at < k->timestamp; });
    const int i = std::min(int(after - keyframes.begin()), loop ? n - 1 : n - 2);
    const float begin = i == 0 ? 0.0f : keyframes[size_t(i) - 1]->timestamp, span = keyframes[i]->timestamp - begin;
    return {i, span > 0 ? std::clamp((time - begin) / span, 0.0f, 1.0f) : 0.0f};
}

float CameraPath::get_playtime(int i) const {
    expect_keyframes();
    if (i <= 0 || keyframes.size() == 1) return 0;
    const size_t before = std::min(size_t(i), keyframes.size() - (loop ? 0 : 1)) - 1;
    return keyframes[before]->timestamp / end_time();
}

const CameraKeyframe& CameraPath::get_keyframe(int i) const {
    expect_keyframes();
    const int n = int(keyframes.size());
    return *keyframes[size_t(loop ? ((i % n) + n) % n : std::clamp(i, 0, n - 1))];
}

CameraKeyframe CameraPath::eval_camera_path(float time) const {
    const CameraPathPos pos = get_pos(time);
    const SplineWeights w = bspline_weights(std::clamp(spline_order, 0, max_spline_order), pos.t);
    const CameraKeyframe* points[4];
    for (int k = 0; k < w.n; ++k) points[k] = &get_keyframe(pos.kfidx + w.first + k);
    return weighted_sum(points, w.weight, w.n);
}

void CameraPath::add_camera(const CameraMatrix& camera, float slice_plane_z, float scale, float fov,
                            float aperture_size, float timestamp) {
    auto added = std::make_shared<CameraKeyframe>();
    added->from_m(camera);
    added->slice = slice_plane_z;
    added->scale = scale;
    added->fov = fov;
    added->aperture_size = aperture_size;
    added->timestamp = timestamp;
    auto at = keyframes.end();
    if (timestamp > 0 && has_valid_timestamps())
        at = std::find_if(keyframes.begin(), keyframes.end(), [&](const auto& k) { return k->timestamp > timestamp; });
    const int i = int(at - keyframes.begin());
    keyframes.insert(at, std::move(added));
    update_cam_from_path = false;
    sanitize_keyframes();
    play_time = get_playtime(i);
}

void CameraPath::edit_keyframe(int i, const CameraKeyframe& changed) {
    if (i < 0 || i >= int(keyframes.size()))
        fail("keyframe ", i, " does not exist; the camera path has ", keyframes.size());
    const CameraKeyframe old = *keyframes[size_t(i)];
    const Quaternion turn = composed(normalized(quaternion_of(changed)), inverse(normalized(quaternion_of(old))));
    const Quaternion shorter = turn.w < 0 ? Quaternion{-turn.w, -turn.x, -turn.y, -turn.z} : turn;
    const float at = get_playtime(i);
    for (int j = 0; j < int(keyframes.size()); ++j) {
        CameraKeyframe& k = *keyframes[size_t(j)];
        float distance = std::fabs(get_playtime(j) - at);
        if (loop) distance = std::min(distance, 1.0f - distance);
        const float w = j == i ? 1.0f : editing_weight(editing_kernel_type, distance / editing_kernel_radius);
        if (w == 0.0f) continue;
        const Quaternion part{1.0 - w + w * shorter.w, w * shorter.x, w * shorter.y, w * shorter.z};
        set_rotation(k, composed(normalized(part), quaternion_of(k)));
        k.T += (changed.T - old.T) * w;
        k.slice += (changed.slice - old.slice) * w;
        k.scale += (changed.scale - old.scale) * w;
        k.fov += (changed.fov - old.fov) * w;
        k.aperture_size += (changed.aperture_size - old.aperture_size) * w;
    }
}

} // namespace ngp
