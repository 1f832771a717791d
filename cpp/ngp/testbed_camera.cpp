// Testbed: ways to move the render camera - training views, look-at point, camera path - and the crop box.
#include <algorithm>
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/formulas/rigid_motion.h>
#include <ngp/testbed.h>

namespace ngp {

namespace {

// A smoothed camera has this share of its way left after a second.
constexpr float smoothing_left_after_second = 0.02f;
constexpr float least_focus_distance = 0.1f; // of autofocus, NGP units

bool same_lens(const Lens& a, const Lens& b) {
    return a.mode == b.mode && std::equal(std::begin(a.params), std::end(a.params), std::begin(b.params));
}

} // namespace

// --- training views

int NerfSettings::find_closest_training_view(const CameraMatrix& pose) const {
    int best = -1;
    float least = FLT_MAX;
    const auto& views = training.dataset->record.views;
    for (size_t i = 0; i < views.size(); ++i) {
        const CameraMatrix c =
            training.testbed ? training.testbed->view_pose(int(i), Testbed::ViewTime::Center) : views[i].start;
        const float score = length(c.position - pose.position) + 0.25f * length(c.forward - pose.forward);
        if (score < least) {
            least = score;
            best = int(i);
        }
    }
    return best;
}

void Testbed::move_training_view(int by) {
    Lock lock(mutex_);
    const int last = std::max(0, int(nerf.training.dataset->record.views.size()) - 1);
    const int64_t view = int64_t(training_view_) + by;
    set_camera_to_training_view(int(std::clamp<int64_t>(view, 0, last)));
}

// --- the lens

void Testbed::set_render_lens(const Lens& lens) {
    Lock lock(mutex_);
    render_lens = lens;
    lens_is_set_ = render_with_lens_distortion = true;
}

// instant-ngp's render() ignores render_lens (specification B3), and pictures of its users depend on that: only what
// they set themselves counts, not what a training view left there.
bool Testbed::uses_render_lens() const {
    return render_with_lens_distortion && (lens_is_set_ || !same_lens(render_lens, view_lens_));
}

// --- the look-at point

void Testbed::set_look_at(Vec3 point) {
    Lock lock(mutex_);
    camera.matrix.position += point - look_at();
}

void Testbed::set_scale(float distance) {
    Lock lock(mutex_);
    if (!(distance > 0) || !std::isfinite(distance)) fail("scale is ", distance, "; it must be positive and finite");
    camera.matrix.position += camera.matrix.forward * (camera.scale - distance);
    camera.scale = distance;
}

void Testbed::set_view_dir(Vec3 forward) {
    Lock lock(mutex_);
    const Vec3 point = look_at(), right = cross(forward, up_dir);
    if (!(length(right) > 1e-6f * length(forward) * length(up_dir)))
        fail("view_dir is zero or parallel to up_dir, so that it does not say which way is up");
    CameraMatrix& m = camera.matrix;
    m.right = normalize(right);
    m.down = normalize(cross(forward, m.right));
    m.forward = normalize(forward);
    set_look_at(point);
}

// --- the camera path

void Testbed::set_camera_from_path(float play_time) {
    Lock lock(mutex_);
    if (camera_path.keyframes.empty()) return;
    const CameraKeyframe k = camera_path.eval_camera_path(play_time);
    camera.matrix = k.m();
    camera.slice_plane_z = k.slice;
    camera.scale = k.scale;
    camera.aperture_size = k.aperture_size;
    set_fov(k.fov);
}

ShutterMotion Testbed::follow_path(const FrameTime& time) {
    if (!(time.start >= 0) || camera_path.keyframes.empty()) return {};
    if (!(time.fps > 0)) fail("fps is ", time.fps, "; it must be positive");
    if (!(time.shutter_fraction >= 0 && time.shutter_fraction <= 1))
        fail("shutter_fraction is ", time.shutter_fraction, "; it must be from 0 to 1");
    const float last = time.end >= 0 ? time.end : time.start;
    set_camera_from_path(time.start);
    CameraMatrix from = camera.matrix;
    if (camera_smoothing && time.start > 0 && smoothed_camera_) from = *smoothed_camera_;
    set_camera_from_path(last);
    CameraMatrix to = camera.matrix;
    if (camera_smoothing) to = screw_between(from, to, 1.0f - std::pow(smoothing_left_after_second, 1.0f / time.fps));
    smoothed_camera_ = to;
    // What is not a pose does not change while the shutter is open.
    set_camera_from_path(time.start + 0.5f * time.shutter_fraction * (last - time.start));
    camera.matrix = from;
    if (time.shutter_fraction == 0) return {};
    return ShutterMotion::between(from, screw_between(from, to, time.shutter_fraction));
}

void Testbed::focus_on_target() {
    const float z = dot(camera.matrix.forward, camera.autofocus_target - camera.matrix.position);
    camera.slice_plane_z = (z > least_focus_distance ? z : least_focus_distance) - camera.scale; // also for a NaN
}

// --- the crop box

CameraMatrix Testbed::crop_box(bool nerf_space) const {
    Lock lock(mutex_);
    const Vec3 half = render_aabb.diag() * 0.5f;
    const auto axis = [&](Vec3 local) { return transpose_mul(render_aabb_to_local, local); };
    const CameraMatrix box{axis({half.x, 0, 0}), axis({0, half.y, 0}), axis({0, 0, half.z}),
                           axis(render_aabb.center())};
    if (!nerf_space) return box;
    CameraMatrix w = world().camera_to_world(box);
    const float to_world = 1.0f / world().scale;
    w.right = w.right * to_world, w.down = w.down * to_world, w.forward = w.forward * to_world;
    return w;
}

void Testbed::set_crop_box(const CameraMatrix& given, bool nerf_space) {
    Lock lock(mutex_);
    CameraMatrix box = given;
    if (nerf_space) {
        box = world().camera_to_ngp(given);
        const float s = world().scale;
        box.right = box.right * s, box.down = box.down * s, box.forward = box.forward * s;
    }
    const Vec3 half{length(box.right), length(box.down), length(box.forward)};
    const Vec3 x = normalize(box.right), y = normalize(box.down), z = normalize(box.forward);
    const float skew = max_of(std::fabs(dot(x, y)), max_of(std::fabs(dot(y, z)), std::fabs(dot(z, x))));
    if (!(half.x > 0 && half.y > 0 && half.z > 0) || !std::isfinite(half.x + half.y + half.z) || !(skew < 1e-3f))
        fail("set_crop_box: the first three columns must be the half axes of a box: finite, not zero and at right "
             "angles to each other");
    render_aabb_to_local = {{{x.x, y.x, z.x}, {x.y, y.y, z.y}, {x.z, y.z, z.z}}}; // rows x, y, z
    const Vec3 center = render_aabb_to_local * box.position;
    render_aabb = {center - half, center + half};
}

std::array<Vec3, 8> Testbed::crop_box_corners(bool nerf_space) const {
    const CameraMatrix box = crop_box(nerf_space);
    std::array<Vec3, 8> corners;
    for (int i = 0; i < 8; ++i)
        corners[size_t(i)] =
            box.position + box.rotate({(i & 1) ? 1.0f : -1.0f, (i & 2) ? 1.0f : -1.0f, (i & 4) ? 1.0f : -1.0f});
    return corners;
}

} // namespace ngp
