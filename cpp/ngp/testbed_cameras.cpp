// Testbed: cameras of the training views, and what is learned about them.
#include <cmath>
#include <ngp/core/check.h>
#include <ngp/testbed.h>

namespace ngp {

const ViewRecord& Testbed::view_record(int view) const {
    const auto& views = nerf.training.dataset->record.views;
    if (view < 0 || view >= int(views.size()))
        fail("training view ", view, " does not exist; there are ", views.size());
    return views[size_t(view)];
}

CameraMatrix Testbed::view_pose(int view, ViewTime at) const {
    const ViewRecord& v = view_record(view);
    const CameraMotion motion = camera_motion(v.start, v.end, v.rolling_shutter);
    CameraMatrix pose = at == ViewTime::End ? v.end : v.start;
    if (at == ViewTime::Center && motion.exists()) pose = motion.pose(v.start, motion.share({0.5f, 0.5f}, 0.0f));
    return engine_->corrections().corrected_pose(size_t(view), pose);
}

std::vector<CameraMatrix> Testbed::cameras(ViewTime at) const {
    Lock lock(mutex_);
    std::vector<CameraMatrix> result;
    const int n = int(nerf.training.dataset->record.views.size());
    for (int i = 0; i < n; ++i) result.push_back(world().camera_to_world(view_pose(i, at)));
    return result;
}

CameraModel Testbed::camera_model(int view) const {
    Lock lock(mutex_);
    return engine_->corrections().corrected_camera(view_record(view).camera);
}

void Testbed::set_camera_extrinsics(int view, const CameraMatrix& pose, bool convert_to_ngp) {
    Lock lock(mutex_);
    nerf.training.dataset->set_pose(view, pose, convert_to_ngp);
    CameraCorrections corrections = engine_->corrections();
    corrections.forget_pose(size_t(view));
    engine_->set_corrections(corrections);
}

CameraMatrix Testbed::get_camera_extrinsics(int view) const {
    Lock lock(mutex_);
    return world().camera_to_world(view_pose(view, ViewTime::Start));
}

void Testbed::set_camera_intrinsics(int view, const CameraModel& camera) {
    Lock lock(mutex_);
    nerf.training.dataset->set_camera(view, camera);
}

std::vector<Vec3> Testbed::image_exposures() const {
    Lock lock(mutex_);
    std::vector<Vec3> stops;
    for (size_t i = 0; i < nerf.training.dataset->record.views.size(); ++i)
        stops.push_back(engine_->corrections().stops(i));
    return stops;
}

Vec3 Testbed::exposure_gain(int image) const {
    if (image < 0) return {1, 1, 1};
    view_record(image);
    const Vec3 stops = engine_->corrections().stops(size_t(image));
    return {std::exp2(-stops.x), std::exp2(-stops.y), std::exp2(-stops.z)};
}

CameraLearning Testbed::camera_learning() const {
    const NerfTraining& t = nerf.training;
    CameraLearning c;
    c.extrinsics = t.optimize_extrinsics;
    c.exposure = t.optimize_exposure;
    c.distortion = t.optimize_distortion;
    c.focal_length = t.optimize_focal_length;
    c.interval = t.n_steps_between_cam_updates;
    c.extrinsic_l2 = t.extrinsic_l2_reg;
    c.extrinsic_learning_rate = t.extrinsic_learning_rate;
    c.intrinsic_l2 = t.intrinsic_l2_reg;
    c.exposure_l2 = t.exposure_l2_reg;
    if (c.any() && c.interval < 1)
        fail("nerf.training.n_steps_between_cam_updates is ", c.interval, "; it must be at least 1");
    return c;
}

// What is learned about single views is of use only to the same views (D.2).
void Testbed::restore_corrections(const Snapshot& snapshot, bool known_views) {
    CameraCorrections c = snapshot.corrections;
    if (!known_views) {
        for (auto* vectors : {&c.position, &c.rotation, &c.exposure}) vectors->clear();
        c.sums.clear();
        c.n_steps = 0;
    }
    engine_->set_corrections(c);
}

} // namespace ngp
