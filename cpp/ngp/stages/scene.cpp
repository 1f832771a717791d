#include <cmath>
#include <ngp/core/check.h>
#include <ngp/stages/scene.h>

namespace ngp {

namespace {

void check_ftheta(const CameraModel& camera, const std::string& where) {
    const float* p = camera.lens.params;
    if (!(p[5] > 0 && p[6] > 0))
        fail(where, ": the FTheta lens is for pictures of ", p[5], "x", p[6],
             " pixels (params 5 and 6; w and h); both must be positive");
    if (p[1] == 0 && p[2] == 0 && p[3] == 0 && p[4] == 0)
        fail(where, ": the FTheta lens has the same angle everywhere; ftheta_p1 to ftheta_p4 are zero");
    constexpr int side = 65;
    for (int i = 0; i < side * side; ++i) {
        const Vec2 uv{(float(i % side) + 0.5f) / float(side), (float(i / side) + 0.5f) / float(side)};
        if (!(camera.ray_direction(uv) == Vec3{})) return;
    }
    fail(where,
         ": the FTheta lens sees nothing: its angles, in radians, are all 90 degrees or more; at the principal point ",
         p[0], ", a pixel from there ", ftheta_angle(camera.lens, 1.0f));
}

} // namespace

void check_camera(const CameraModel& camera, const std::string& where) {
    if (!(camera.focal.x > 0 && camera.focal.y > 0 && std::isfinite(camera.focal.x + camera.focal.y)))
        fail(where, ": the focal length is (", camera.focal.x, ", ", camera.focal.y,
             ") pixels; it must be positive and finite");
    if (!std::isfinite(camera.principal.x + camera.principal.y)) fail(where, ": the principal point is not finite");
    if (uint8_t(camera.lens.mode) > uint8_t(LensMode::Orthographic))
        fail(where, ": lens mode ", int(camera.lens.mode), " is not known");
    for (int i = 0; i < 7; ++i)
        if (!std::isfinite(camera.lens.params[i]))
            fail(where, ": lens parameter ", i, " is ", camera.lens.params[i], "; it must be finite");
    if (camera.lens.mode == LensMode::FTheta) check_ftheta(camera, where);
}

CameraMatrix with_unit_determinant(const CameraMatrix& c, const std::string& where) {
    const float det = determinant(c.rotation());
    if (!std::isfinite(det) || std::fabs(det) < 1e-9f || !std::isfinite(dot(c.position, c.position)))
        fail(where, ": transform_matrix is not a camera pose (its rotation has determinant ", det, ")");
    if (det < 0) fail(where, ": transform_matrix mirrors (determinant ", det, "); cameras must be right-handed");
    if (std::fabs(det - 1.0f) <= 0.01f) return c;
    const float s = 1.0f / std::cbrt(det);
    return {c.right * s, c.down * s, c.forward * s, c.position};
}

} // namespace ngp
