"""Camera paths: keyframes, timestamps, splines, editing, camera_path.json, and the Testbed's camera (A.7, A.13)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyngp
import pytest
from pyngp import CameraKeyframe, CameraPath, CameraPathPos, CameraPathRenderSettings, EditingKernel, Testbed
from reference import camera

NONE = getattr(EditingKernel, "None")


def random_path(n: int, loop: bool = False, seed: int = 0) -> tuple[CameraPath, list[dict[str, Any]]]:
    """A path, and its keyframes as the twin takes them; quaternions of either sign."""
    rng = np.random.default_rng(seed)
    path, twin = CameraPath(), []
    times = np.cumsum(rng.uniform(0.2, 1.5, n)).astype(np.float32)
    for time in times:
        q = rng.normal(size=4)
        values = [rng.uniform(0.1, 2), rng.uniform(0.5, 2), rng.uniform(20, 90), rng.uniform(0, 0.2), float(time)]
        q, position = (q / np.linalg.norm(q)).astype(np.float32), rng.normal(size=3).astype(np.float32)
        path.keyframes = [*path.keyframes, CameraKeyframe(q, position, *values)]
        names = ("slice", "scale", "fov", "aperture_size", "timestamp")
        twin.append({"R": q, "T": position, **dict(zip(names, np.float32(values), strict=True))})
    path.loop = loop
    return path, twin


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_paths_against_the_twin(order, loop):
    """Play times are float32; times of up to 12 move by 1e-6, and values by up to 90 / 0.2 of that."""
    for n in (2, 3, 4, 9):
        path, twin = random_path(n, loop, seed=n)
        path.spline_order = order
        for t in np.float32([0, 0.001, 0.13, 0.37, 0.5, 0.77, 0.999]):
            got, wanted = path.eval_camera_path(t), camera.eval_path(twin, order, loop, float(t))
            for name in ("T", "slice", "scale", "fov", "aperture_size"):
                np.testing.assert_allclose(getattr(got, name), wanted[name], atol=1e-3, err_msg=f"{name} {n} {t}")
            assert abs(got.R @ wanted["R"]) == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(got.m()[:, :3], camera.to_matrix(got.R), atol=1e-6)


def test_paths_begin_and_end_at_their_keyframes():
    path, twin = random_path(5)
    for order in (0, 1):
        path.spline_order = order
        for t, k in ((0, 0), (1, -1), (-3, 0), (7, -1)):
            np.testing.assert_allclose(path.eval_camera_path(t).T, twin[k]["T"], atol=1e-6)
        for i in range(5):
            np.testing.assert_allclose(path.eval_camera_path(path.get_playtime(i)).T, twin[i]["T"], atol=1e-4)
    path.loop = True
    for t in (0.0, 1.0, 2.0, -1.0):
        np.testing.assert_allclose(path.eval_camera_path(t).T, twin[0]["T"], atol=1e-4)
    np.testing.assert_allclose(path.eval_camera_path(1.25).T, path.eval_camera_path(0.25).T, atol=1e-4)
    assert path.get_keyframe(-1).timestamp == path.keyframes[-1].timestamp
    assert path.get_keyframe(6).timestamp == path.keyframes[1].timestamp
    path.loop = False
    assert path.get_keyframe(-1).timestamp == path.keyframes[0].timestamp
    assert path.get_keyframe(6).timestamp == path.keyframes[-1].timestamp


def test_positions_on_a_path():
    path, _ = random_path(6)
    times = [k.timestamp for k in path.keyframes]
    for i in range(5):
        pos = path.get_pos(path.get_playtime(i) + 1e-4)
        assert pos.kfidx == i and 0 <= pos.t < 0.01
    middle = (times[1] + times[2]) / 2 / times[4]
    assert path.get_pos(middle).kfidx == 2
    assert path.get_pos(middle).t == pytest.approx(0.5, abs=1e-4)
    assert (path.get_pos(1).kfidx, path.get_pos(1).t) == (4, 1)
    assert isinstance(path.get_pos(0), CameraPathPos)


def test_short_paths():
    path, twin = random_path(1)
    for t in (0, 0.4, 1):
        assert path.get_pos(t).kfidx == 0
        np.testing.assert_allclose(path.eval_camera_path(t).T, twin[0]["T"], atol=1e-6)
    path.clear()
    assert path.keyframes == [] and path.has_valid_timestamps()
    for call in (lambda: path.get_pos(0), lambda: path.eval_camera_path(0), lambda: path.get_keyframe(0)):
        with pytest.raises(RuntimeError, match="no keyframes"):
            call()


def test_timestamps():
    path, _ = random_path(4)
    assert path.has_valid_timestamps()
    before = [k.timestamp for k in path.keyframes]
    path.sanitize_keyframes()
    assert [k.timestamp for k in path.keyframes] == before
    for times in ([0, 1, 2, 3], [1, 1, 2, 3], [3, 1, 4, 5]):
        for keyframe, time in zip(path.keyframes, times, strict=True):
            keyframe.timestamp = time
        assert not path.has_valid_timestamps()
    path.sanitize_keyframes()
    assert [k.timestamp for k in path.keyframes] == [0.25, 0.5, 0.75, 1.0]
    assert path.duration_seconds == 1


def test_keyframes():
    q = camera.from_axis([1, 2, 3], 2.0)
    m = np.column_stack([camera.to_matrix(q), [1, 2, 3]])
    k = CameraKeyframe(m, 0.1, 1.2, 40, 0.01, 0.5)
    np.testing.assert_allclose(np.sign(k.R @ q) * k.R, q, atol=1e-6)
    np.testing.assert_allclose(k.m(), m, atol=1e-6)
    assert [k.slice, k.scale, k.fov, k.aperture_size, k.timestamp] == pytest.approx([0.1, 1.2, 40, 0.01, 0.5])
    other = CameraKeyframe(-k.R, k.T, 0, 1, 50, 0, 0)
    assert k.same_pos_as(other) and other.same_pos_as(k)
    other.T = k.T + np.float32([2e-4, 0, 0])
    assert not k.same_pos_as(other)
    other.from_m(np.column_stack([camera.to_matrix(camera.multiply(camera.from_axis([0, 1, 0], 0.1), q)), k.T]))
    assert not k.same_pos_as(other)
    with pytest.raises(RuntimeError, match="not a camera pose"):
        k.from_m(np.diag([1, 1, -1]) @ m)
    # Elements of the list are the path's own; the list is not.
    path, _ = random_path(2)
    path.keyframes[1].fov = 33
    path.keyframes.append(k)
    assert len(path.keyframes) == 2 and path.keyframes[1].fov == 33
    kept = path.keyframes[0]
    path.keyframes = [k]
    k.fov = 77
    assert path.keyframes[0].fov == 40 and kept.fov > 0  # a copy; and the old one lives on


def test_adding_cameras():
    path = CameraPath()
    eye = np.eye(3)
    for x in range(3):
        path.add_camera(np.column_stack([eye, [x, 0, 0]]), 0.1, 1.5, 50, 0, 1, 0)
    assert [k.T[0] for k in path.keyframes] == [0, 1, 2]
    assert [k.timestamp for k in path.keyframes] == pytest.approx([1 / 3, 2 / 3, 1])
    path.add_camera(np.column_stack([eye, [9, 0, 0]]), 0.1, 1.5, 50, 0, 1, 0.5)
    assert [k.T[0] for k in path.keyframes] == [0, 9, 1, 2]
    assert path.keyframes[1].timestamp == pytest.approx(0.5)
    assert path.play_time == pytest.approx(path.get_playtime(1))


@pytest.mark.parametrize(
    "kernel", [NONE, EditingKernel.Gaussian, EditingKernel.Quartic, EditingKernel.Hat, EditingKernel.Box]
)
def test_editing_spreads_a_change(kernel):
    path = CameraPath()
    for x in range(11):
        path.add_camera(np.column_stack([np.eye(3), [x, 0, 0]]), 0, 1, 50, 0, 1, 0)
    path.editing_kernel_type, path.editing_kernel_radius = kernel, 0.25
    changed = CameraKeyframe(camera.from_axis([0, 0, 1], 0.2), [5, 3, 0], 0.5, 1, 60, 0, 0)
    path.edit_keyframe(5, changed)
    weights = [k.T[1] / 3 for k in path.keyframes]
    distance = np.abs(np.arange(11) - 5) / 10 / 0.25
    inside = distance < 1
    wanted = {
        NONE: distance == 0,
        EditingKernel.Gaussian: np.exp(-2 * distance**2),
        EditingKernel.Quartic: inside * (1 - distance**2) ** 2,
        EditingKernel.Hat: inside * (1 - distance),
        EditingKernel.Box: inside,
    }[kernel]
    np.testing.assert_allclose(weights, wanted, atol=1e-5)
    np.testing.assert_allclose([k.fov for k in path.keyframes], 50 + 10 * wanted, atol=1e-3)
    angles = [2 * np.arctan2(k.R[2], k.R[3]) for k in path.keyframes]
    np.testing.assert_allclose(angles, 0.2 * wanted, atol=1e-3)
    assert path.keyframes[5].same_pos_as(changed)
    with pytest.raises(RuntimeError, match="keyframe 11 does not exist"):
        path.edit_keyframe(11, changed)


# --- files


def test_files_both_ways(tmp_path):
    path, twin = random_path(5, loop=True)
    path.duration_seconds, path.spline_order, path.play_time = 7.5, 2, 0.25
    path.save(str(tmp_path / "path.json"))
    document = json.loads((tmp_path / "path.json").read_text())
    assert document.keys() == {"loop", "time", "path", "duration_seconds", "spline_order"}
    assert document["path"][0].keys() == {"R", "T", "slice", "scale", "fov", "aperture_size", "timestamp"}
    again = CameraPath()
    again.load(str(tmp_path / "path.json"))
    assert (again.loop, again.duration_seconds, again.spline_order, again.play_time) == (True, 7.5, 2, 0)
    for k, wanted in zip(again.keyframes, twin, strict=True):
        np.testing.assert_allclose(k.R, wanted["R"], atol=1e-6)
        for name in ("T", "slice", "scale", "fov", "aperture_size", "timestamp"):
            np.testing.assert_array_equal(getattr(k, name), wanted[name])
    assert again.keyframe_subsampling == 1 and again.editing_kernel_type == NONE
    again.save(str(tmp_path / "again.json"))
    again.load(str(tmp_path / "again.json"), np.column_stack([camera.to_matrix([0, 0, 1, 0]), [1, 0, 0]]))
    np.testing.assert_allclose(again.keyframes[2].T, twin[2]["T"] * [-1, -1, 1] + [1, 0, 0], atol=1e-6)


def legacy(n: int) -> dict[str, Any]:
    """As early versions of instant-ngp wrote them."""
    keyframe = {"R": [0, 0, 0, 2], "T": [0.5, 0.5, 0.5], "slice": 0.1, "scale": 1.5, "fov": 50.625, "dof": 0.02}
    return {"time": 0.3, "path": [keyframe] * n}


def test_legacy_files(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(legacy(4)))
    path = CameraPath()
    path.load(str(tmp_path / "old.json"))
    assert [k.timestamp for k in path.keyframes] == [0.25, 0.5, 0.75, 1]
    assert path.keyframes[0].aperture_size == pytest.approx(0.02)
    assert path.keyframes[0].R.tolist() == [0, 0, 0, 1] and path.spline_order == 3 and not path.loop
    (tmp_path / "long.json").write_text(json.dumps(legacy(16)))
    path.load(str(tmp_path / "long.json"))
    assert path.keyframe_subsampling == 15 and path.editing_kernel_type == EditingKernel.Gaussian


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda d: d.pop("path"), "not a camera path"),
        (lambda d: d.update(path={}), "not a camera path"),
        (lambda d: d["path"][0].pop("T"), r"path\[0\].T"),
        (lambda d: d["path"][0].update(R=[0, 0, 0, 0]), r"path\[0\].R: must be a quaternion"),
        (lambda d: d["path"][0].update(R=[0, 0, 1]), r"path\[0\].R: must be a list of 4"),
        (lambda d: d["path"][0].update(fov="wide"), r"path\[0\].fov"),
        (lambda d: d["path"][0].update(fov=200), r"path\[0\].fov: is 200"),
        (lambda d: d["path"][0].pop("scale"), r"path\[0\]: has no scale"),
        (lambda d: d.update(path=[3]), r"path\[0\]: must be an object"),
        (lambda d: d.update(spline_order=9), "spline_order is 9"),
    ],
)
def test_bad_files_change_nothing(change, message, tmp_path):
    document = json.loads(json.dumps(legacy(2)))
    change(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    path, _ = random_path(3)
    with pytest.raises(RuntimeError, match=message) as error:
        path.load(str(tmp_path / "bad.json"))
    assert "bad.json" in str(error.value)
    assert len(path.keyframes) == 3
    with pytest.raises(RuntimeError, match=r"none\.json"):
        path.load(str(tmp_path / "none.json"))


def test_defaults():
    path, settings = CameraPath(), CameraPathRenderSettings()
    defaults = {
        "update_cam_from_path": False, "play_time": 0, "auto_play_speed": 0, "loop": False, "keyframe_subsampling": 1,
        "duration_seconds": 0, "camera_prediction_duration_seconds": 0, "editing_kernel_type": NONE,
        "spline_order": 3, "rendering": False, "render_frame_idx": 0, "render_start_time": 0,
    }  # fmt: skip
    for name, value in defaults.items():
        assert getattr(path, name) == value, name
        setattr(path, name, value)
    assert path.camera_prediction_dt == pytest.approx(0.005) and path.editing_kernel_radius == pytest.approx(0.1)
    assert path.render_frame_end_camera.shape == (3, 4)
    path.render_settings.spp = 3
    assert path.render_settings.spp == 3
    assert settings.resolution.tolist() == [1920, 1080] and settings.resolution.dtype == np.int32
    assert (settings.spp, settings.fps, settings.duration_seconds) == (8, 60, 5)
    assert (settings.shutter_fraction, settings.quality) == (0.5, 10)


# --- the Testbed's camera


@pytest.fixture
def testbed() -> Testbed:
    return Testbed(device="cpu")


def test_camera_of_a_new_testbed(testbed):
    rows = [[1, 0, 0, 0.5], [0, -1, 0, 0.5], [0, 0, -1, 0.5]]
    np.testing.assert_array_equal(testbed.default_camera, np.float32(rows))
    np.testing.assert_array_equal(testbed.camera_matrix[:, 3], [0.5, 0.5, 2.0])
    assert testbed.scale == 1.5 and testbed.fov == pytest.approx(50.625, abs=1e-4)
    np.testing.assert_allclose(testbed.look_at, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(testbed.view_dir, [0, 0, -1])
    np.testing.assert_array_equal(testbed.up_dir, [0, 1, 0])
    np.testing.assert_allclose(testbed.sun_dir, np.full(3, 3**-0.5), atol=1e-6)


def test_moving_the_camera(testbed):
    testbed.scale = 0.5
    np.testing.assert_allclose(testbed.camera_matrix[:, 3], [0.5, 0.5, 1.0], atol=1e-6)
    testbed.look_at = [0, 0.2, 0.5]
    np.testing.assert_allclose(testbed.camera_matrix[:, 3], [0, 0.2, 1.0], atol=1e-6)
    testbed.view_dir = [1, -1, 0]
    m = testbed.camera_matrix
    s = 2**-0.5
    np.testing.assert_allclose(m, [[0, -s, s, -0.5 * s], [0, -s, -s, 0.2 + 0.5 * s], [1, 0, 0, 0.5]], atol=1e-6)
    assert np.linalg.det(m[:, :3]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(testbed.look_at, [0, 0.2, 0.5], atol=1e-6)
    testbed.sun_dir = [0, 3, 4]
    np.testing.assert_allclose(testbed.sun_dir, [0, 0.6, 0.8], atol=1e-6)
    for bad in ([0, 1, 0], [0, 0, 0]):
        with pytest.raises(RuntimeError, match="view_dir"):
            testbed.view_dir = bad
    with pytest.raises(RuntimeError, match="scale is 0"):
        testbed.scale = 0
    testbed.reset_camera()
    np.testing.assert_array_equal(testbed.camera_matrix[:, 3], [0.5, 0.5, 2.0])


def test_training_views(tiny, testbed):
    with pytest.raises(RuntimeError, match="does not exist"):
        testbed.first_training_view()
    testbed.load_training_data(tiny.train)
    poses = []
    for i in range(len(tiny.poses)):
        testbed.set_camera_to_training_view(i)
        poses.append(testbed.camera_matrix)
    for call, wanted in (
        ("first", 0), ("previous", 0), ("next", 1), ("next", 2), ("previous", 1), ("last", 19), ("next", 19),
    ):  # fmt: skip
        getattr(testbed, f"{call}_training_view")()
        np.testing.assert_array_equal(testbed.camera_matrix, poses[wanted])
    nerf = testbed.nerf
    for i, pose in enumerate(poses):
        assert nerf.find_closest_training_view(pose) == i
    # Position counts fully, the forward axis a quarter.
    rng = np.random.default_rng(0)
    for _ in range(20):
        m = np.column_stack([camera.to_matrix(camera.from_axis(rng.normal(size=3), 1)), rng.uniform(-1, 2, 3)])
        score = [np.linalg.norm(p[:, 3] - m[:, 3]) + 0.25 * np.linalg.norm(p[:, 2] - m[:, 2]) for p in poses]
        assert nerf.find_closest_training_view(m) == int(np.argmin(score))


def test_following_a_path(tiny, testbed, tmp_path):
    testbed.load_training_data(tiny.train)
    for view, fov in ((0, 40), (5, 60)):
        testbed.set_camera_to_training_view(view)
        testbed.camera_path.add_camera(testbed.camera_matrix, 0.2, 1.1, fov, 0, 1, 0)
    testbed.camera_path.spline_order = 1
    wanted = testbed.camera_path.eval_camera_path(0.25)
    testbed.render(4, 4, 1, True, 0.25)
    np.testing.assert_allclose(testbed.camera_matrix, wanted.m(), atol=1e-6)
    assert testbed.fov == pytest.approx(45, abs=1e-3)
    assert (testbed.scale, testbed.slice_plane_z) == pytest.approx((1.1, 0.2))
    before = testbed.camera_matrix
    testbed.render(4, 4)
    np.testing.assert_array_equal(testbed.camera_matrix, before)
    # Smoothed, it starts where it is, and lags behind: 0.02 of the way is left after a second.
    testbed.camera_smoothing = True
    testbed.render(4, 4, 1, True, 0.0, 0.5, 2)
    np.testing.assert_allclose(testbed.camera_matrix, testbed.camera_path.eval_camera_path(0).m(), atol=1e-6)
    testbed.render(4, 4, 1, True, 0.5, 1.0, 2)
    wanted = camera.screw_between(
        testbed.camera_path.eval_camera_path(0).m(), testbed.camera_path.eval_camera_path(0.5).m(), 1 - 0.02**0.5
    )
    np.testing.assert_allclose(testbed.camera_matrix, wanted, atol=1e-4)
    with pytest.raises(RuntimeError, match="fps"):
        testbed.render(4, 4, 1, True, 0.0, 1.0, 0)
    with pytest.raises(RuntimeError, match="shutter_fraction"):
        testbed.render(4, 4, 1, True, 0.0, 1.0, 30, 2)
    # Through files
    testbed.camera_path.save(str(tmp_path / "path.json"))
    other = Testbed(device="cpu")
    other.load_file(tmp_path / "path.json")
    assert len(other.camera_path.keyframes) == 2
    other.loop_animation = True
    assert other.camera_path.loop
    other.camera_path = testbed.camera_path
    assert not other.camera_path.loop and len(other.camera_path.keyframes) == 2
    other.load_camera_path(tmp_path / "path.json")
    fresh = Testbed(device="cpu")
    before = fresh.camera_matrix
    fresh.set_camera_from_path(0.5)  # there is no path
    np.testing.assert_array_equal(fresh.camera_matrix, before)


# --- what only a window would use, and types


def test_members_of_windows(testbed):
    values = {
        "dynamic_res": True, "dynamic_res_target_fps": 20, "fixed_res_factor": 8, "dlss": False, "dlss_sharpening": 0,
        "display_gui": True, "visualize_unit_cube": False, "record_camera_path": False, "floor_enable": False,
        "is_rendering": True, "camera_prediction_mode": pyngp.CameraPredictionMode.MatLogQuadratic,
    }  # fmt: skip
    for name, value in values.items():
        assert getattr(testbed, name) == value, name
        setattr(testbed, name, value)
    testbed.fixed_res_factor = np.int32(4)
    assert testbed.fixed_res_factor == 4
    with pytest.raises(RuntimeError, match="dlss"):
        testbed.dlss = True
    for call in (lambda: testbed.init_window(640, 480, hidden=True), testbed.destroy_window, testbed.init_vr):
        with pytest.raises(RuntimeError, match="window"):
            call()
    for call in (testbed.view, lambda: testbed.view_camera(0), lambda: testbed.predict_view_camera(0, 0.1)):
        with pytest.raises(RuntimeError, match="View #0 does not exist"):
            call()
    testbed.reset_accumulation(due_to_camera_movement=True)


ENUMS = {
    "TrainMode": "Nerf Rfl RflRelax",
    "TestbedMode": "Nerf Sdf Image Volume None",
    "GroundTruthRenderMode": "Shade Depth",
    "RenderMode": "AO Shade Normals Positions Depth Distortion Cost Slice",
    "RandomMode": "Random Halton Sobol Stratified",
    "SDFGroundTruthMode": "RaytracedMesh SpheretracedMesh",
    "NerfActivation": "None ReLU Logistic Exponential",
    "MeshSdfMode": "Watertight Raystab PathEscape",
    "ColorSpace": "Linear SRGB",
    "TonemapCurve": "Identity ACES Hable Reinhard",
    "LensMode": "Perspective OpenCV FTheta LatLong OpenCVFisheye Equirectangular Orthographic",
    "CameraPredictionMode": "None MatLogLinear MatLogQuadratic Se3LogLinear Se3LogQuadratic",
    "EditingKernel": "None Gaussian Quartic Hat Box",
}


@pytest.mark.parametrize("name", ENUMS)
def test_enumerations(name):
    """Values in order, from 0; from int or a member; and, but for EditingKernel, as names of the module."""
    enum = getattr(pyngp, name)
    for value, member in enumerate(ENUMS[name].split()):
        item = getattr(enum, member)
        assert int(item) == value and enum(value) == item and enum(item) == item
        assert hasattr(pyngp, member) or name == "EditingKernel"
    assert len(enum.__members__) == len(ENUMS[name].split())
    assert pyngp.Shade == pyngp.RenderMode.Shade and pyngp.Nerf == pyngp.TestbedMode.Nerf
    assert not hasattr(pyngp, "Gaussian")


def test_bounding_boxes():
    box = pyngp.BoundingBox([0, 0, 0], [1, 2, 4])
    assert box.distance([0.5, 1, 1]) == 0 and box.distance([4, 6, 3]) == 5 and box.distance_sq([4, 6, 3]) == 25
    # q = |p - min| - diag: (2, 3, -3), and (-0.5, -1.5, -1)
    assert box.signed_distance([3, 5, 1]) == pytest.approx(13**0.5)
    assert box.signed_distance([0.5, 0.5, 3]) == -0.5
    assert box.intersects(pyngp.BoundingBox([0.5, 1, 3], [5, 5, 5]))
    assert not box.intersects(pyngp.BoundingBox([2, 0, 0], [3, 1, 1]))
    vertices = box.get_vertices()
    assert vertices.shape == (8, 3) and len(np.unique(vertices, axis=0)) == 8
    assert vertices.min() == 0 and (vertices.max(axis=0) == [1, 2, 4]).all()
    box.enlarge([2, -1, 1])
    np.testing.assert_array_equal([box.min, box.max], [[0, -1, 0], [2, 2, 4]])
    box.enlarge(pyngp.BoundingBox([0, 0, 5], [1, 1, 6]))
    box.inflate(0.5)
    np.testing.assert_array_equal([box.min, box.max], [[-0.5, -1.5, -0.5], [2.5, 2.5, 6.5]])
    empty = pyngp.BoundingBox()
    empty.enlarge([1, 2, 3])
    np.testing.assert_array_equal([empty.min, empty.max], [[1, 2, 3]] * 2)


def test_paths_of_files_name_them(tmp_path: Path, testbed):
    with pytest.raises(RuntimeError, match="nothing"):
        testbed.load_camera_path(tmp_path / "nothing.json")
