// Training data that comes one image at a time.
#include <ngp/core/check.h>
#include <ngp/testbed.h>
#include <utility>

namespace ngp {

NerfDataset NerfDataset::empty(int n_images, int aabb_scale, bool is_hdr) {
    if (n_images < 1) fail("n_images is ", n_images, "; a dataset needs at least one view");
    NerfDataset d;
    d.record.aabb_scale = aabb_scale;
    d.record.is_hdr = is_hdr;
    for (int i = 0; i < n_images; ++i) {
        ViewRecord v;
        v.path = "image " + std::to_string(i);
        v.start = v.end = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 0, 0}};
        d.record.views.push_back(std::move(v));
    }
    d.images.resize(size_t(n_images));
    d.owners.resize(size_t(n_images));
    return d;
}

ViewRecord& NerfDataset::view_at(int view) {
    if (view < 0 || view >= int(record.views.size()))
        fail("training image ", view, " does not exist; there are ", record.views.size());
    return record.views[size_t(view)];
}

void NerfDataset::set_image(int view, const ImageView& image, std::shared_ptr<const void> owner) {
    const std::lock_guard lock(mutex_.mutex);
    ViewRecord& v = view_at(view);
    check_image(image, v.path);
    if (!has_images()) fail(v.path, ": this dataset came from a snapshot, without images; give it all of them at once");
    v.camera.width = image.width;
    v.camera.height = image.height;
    images[size_t(view)] = image;
    replaced_.push_back(std::exchange(owners[size_t(view)], std::move(owner)));
    changed_ = true;
}

void NerfDataset::set_camera(int view, const CameraModel& camera) {
    const std::lock_guard lock(mutex_.mutex);
    ViewRecord& v = view_at(view);
    check_camera(camera, v.path);
    const int width = v.camera.width, height = v.camera.height; // the image's
    v.camera = camera;
    v.camera.width = width;
    v.camera.height = height;
    changed_ = true;
}

void NerfDataset::set_pose(int view, const CameraMatrix& pose, bool convert_to_ngp) {
    const std::lock_guard lock(mutex_.mutex);
    ViewRecord& v = view_at(view);
    const CameraMatrix unit = with_unit_determinant(pose, v.path);
    v.start = v.end = convert_to_ngp ? record.world.camera_to_ngp(unit) : unit;
    changed_ = true;
}

} // namespace ngp
