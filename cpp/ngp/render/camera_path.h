// Camera paths (specification A.13): keyframes of the render camera in NGP space, and the smooth way between them.
#pragma once

#include <memory>
#include <ngp/formulas/spline.h>
#include <ngp/formulas/vec.h>
#include <vector>

namespace ngp {

struct CameraKeyframe {
    float R[4] = {0, 0, 0, 1}; // unit quaternion x, y, z, w: the camera's rotation
    Vec3 T;                    // its position
    float slice = 0;           // slice_plane_z
    float scale = 1;
    float fov = 50.625f; // degrees along fov_axis
    float aperture_size = 0;
    float timestamp = 0; // where the way to the next keyframe ends, in any unit

    CameraMatrix m() const;
    // Raises ngp::Error unless the axes are those of a rotation, but for their lengths.
    void from_m(const CameraMatrix& camera);
    // To 1e-4 in position and 0.999 in the product of the quaternions.
    bool same_pos_as(const CameraKeyframe& other) const;
};

struct CameraPathRenderSettings {
    int resolution[2] = {1920, 1080};
    int spp = 8;
    float fps = 60, duration_seconds = 5, shutter_fraction = 0.5f;
    int quality = 10;
};

// A place on the path: share t of the way from keyframe kfidx to the next.
struct CameraPathPos {
    int kfidx = 0;
    float t = 0;
};

struct CameraPath {
    std::vector<std::shared_ptr<CameraKeyframe>> keyframes; // never null
    int spline_order = 3;                                   // bspline_weights
    bool loop = false;                                      // from the last keyframe on to the first
    float duration_seconds = 0;
    // Kept for scripts and files; what plays and edits a path interactively would use them.
    bool update_cam_from_path = false, rendering = false;
    float play_time = 0, auto_play_speed = 0;
    int keyframe_subsampling = 1;
    float camera_prediction_duration_seconds = 0, camera_prediction_dt = 0.005f;
    EditingKernel editing_kernel_type = EditingKernel::None;
    float editing_kernel_radius = 0.1f; // play time
    CameraPathRenderSettings render_settings;
    int render_frame_idx = 0;
    double render_start_time = 0; // seconds
    CameraMatrix render_frame_end_camera;

    CameraPath() = default;
    CameraPath(const CameraPath& other) { *this = other; }
    CameraPath& operator=(const CameraPath& other); // copies the keyframes

    void clear();
    bool has_valid_timestamps() const; // strictly increasing, the first above zero
    void make_keyframe_timestamps_equidistant();
    // Equidistant timestamps unless they are valid.
    void sanitize_keyframes();

    // Play times run from 0 to 1: from the first keyframe to the last, or, in a loop, back to the first. Others are
    // clamped, or wrapped. Raise ngp::Error if there are no keyframes.
    CameraPathPos get_pos(float play_time) const;
    float get_playtime(int keyframe) const;
    CameraKeyframe eval_camera_path(float play_time) const;
    // Clamped to the path, or wrapped in a loop.
    const CameraKeyframe& get_keyframe(int i) const;

    // Adds a keyframe: where its timestamp is above zero and differs from all others, at its place in time, else at
    // the end, and all timestamps become equidistant.
    void add_camera(const CameraMatrix& camera, float slice_plane_z, float scale, float fov, float aperture_size,
                    float timestamp);
    // Changes keyframe i, and its neighbours by editing_weight() of their distance in play time / the radius.
    void edit_keyframe(int i, const CameraKeyframe& changed);

  private:
    void expect_keyframes() const;
    float end_time() const;
};

} // namespace ngp
