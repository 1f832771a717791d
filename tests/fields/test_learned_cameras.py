"""Learned cameras (E.5): poses, exposures, focal length and lens distortion, with the API of A.10 around them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fields.tiny_scene import FOCAL, INTRINSICS, SIZE, linear, look_at, srgb
from numpy.typing import NDArray
from pyngp import LensMode, Testbed, TrainMode
from pyngp._core import stages
from reference import rotation
from reference import snapshot as reader

F64 = NDArray[np.float64]
OPTIONS = ("extrinsics", "exposure", "distortion", "focal_length")


def learning(testbed: Testbed, *options: str) -> Testbed:
    for name in options:
        setattr(testbed.nerf.training, f"optimize_{name}", True)
    return testbed


def small(tiny, small_config, device: str, *options: str) -> Testbed:
    testbed = Testbed(device=device, config=small_config, deterministic=True)
    testbed.set_images(tiny.images, tiny.poses, INTRINSICS)
    return learning(testbed, *options)


def test_defaults():
    t = Testbed(device="cpu").nerf.training
    assert not any(getattr(t, f"optimize_{name}") for name in OPTIONS)
    assert (t.n_steps_between_cam_updates, t.exposure_l2_reg) == (16, 0)
    rates = (t.extrinsic_l2_reg, t.extrinsic_learning_rate, t.intrinsic_l2_reg)
    assert rates == pytest.approx((1e-4, 1e-3, 1e-4))


@pytest.mark.parametrize("option", OPTIONS)
def test_the_same_bytes_on_any_number_of_threads(option, tiny, small_config, python, device):
    code = """
import sys, json, hashlib
sys.path.insert(0, sys.argv[1])
import numpy as np
from fields.tiny_scene import INTRINSICS, photograph, poses
from pyngp import Testbed
t = Testbed(device=sys.argv[4], config=json.loads(sys.argv[2]), deterministic=True)
p = poses(6)
t.set_images(np.stack([photograph(q, 1) for q in p]), p, INTRINSICS)
setattr(t.nerf.training, "optimize_" + sys.argv[3], True)
t.nerf.training.n_steps_between_cam_updates = 2
t.fit(262, batch_size=512)
learned = [t.params(), t.cameras(), t.image_exposures(), t.camera_intrinsics()]
if t.distortion_map() is not None:
    learned.append(t.distortion_map())
print(hashlib.sha256(b"".join(a.tobytes() for a in learned)).hexdigest())
"""
    folder = Path(__file__).parents[1]
    results = {
        python(code, folder, json.dumps(small_config), option, device, env={"PYNGP_NUM_THREADS": n}).stdout
        for n in ("1", "3")
    }
    assert len(results) == 1


def test_only_what_is_asked_for_is_learned(tiny, small_config, device):
    for option in OPTIONS:
        testbed = small(tiny, small_config, device, option)
        testbed.nerf.training.n_steps_between_cam_updates = 4
        testbed.fit(264, batch_size=1024)
        changed = {
            "extrinsics": bool(np.abs(testbed.cameras() - tiny.poses).max() > 1e-4),
            "exposure": bool(testbed.image_exposures().any()),
            "distortion": testbed.distortion_map() is not None and bool(testbed.distortion_map().any()),
            "focal_length": bool(np.abs(testbed.camera_intrinsics()[:, :2] / FOCAL - 1).max() > 1e-4),
        }
        assert [name for name, value in changed.items() if value] == [option]


def test_resume_is_exact(tiny, small_config, tmp_path, device):
    """Also between two updates, whose gradients wait in the file."""
    whole = small(tiny, small_config, device, *OPTIONS)
    whole.fit(300, batch_size=512)
    whole.save_snapshot(tmp_path / "s.ingp", include_optimizer_state=True)
    resumed = small(tiny, small_config, device, *OPTIONS)
    resumed.load_snapshot(tmp_path / "s.ingp")
    for t in (whole, resumed):
        t.fit(40, batch_size=512)
    for read in ("params", "cameras", "image_exposures", "camera_intrinsics", "distortion_map"):
        assert getattr(whole, read)().tobytes() == getattr(resumed, read)().tobytes(), read


def test_snapshots(tiny, small_config, tmp_path, device):
    """Poses are kept as in D.2; all of it comes back, with images or without, but not for other images."""
    testbed = small(tiny, small_config, device, *OPTIONS)
    testbed.fit(300, batch_size=512)
    path = tmp_path / "s.ingp"
    testbed.save_snapshot(path)
    nerf = reader.load(path).state["nerf"]
    scale, offset = nerf["dataset"]["scale"], np.array(nerf["dataset"]["offset"])
    for i in range(20):
        position, turn = nerf["cam_pos_offset"][i], nerf["cam_rot_offset"][i]
        assert position["iter"] == turn["iter"] == (300 - 256) // 16
        pose = np.array(nerf["dataset"]["xforms"][i]["start"])
        pose[:, :3] = rotation.matrix(turn["variable"]) @ pose[:, :3]
        pose[:, 3] += position["variable"]
        pose = pose[[2, 0, 1]] * [1, -1, -1, 1]
        pose[:, 3] = (pose[:, 3] - offset) / scale
        np.testing.assert_allclose(testbed.cameras()[i], pose, atol=2e-5)
    other = Testbed(device=device)
    other.set_images(tiny.images[::-1], tiny.poses[::-1], INTRINSICS)
    for t in (Testbed(device=device), small(tiny, small_config, device), other):
        t.load_snapshot(path)
        same = t is not other
        np.testing.assert_array_equal(t.camera_intrinsics(), testbed.camera_intrinsics())
        np.testing.assert_array_equal(t.distortion_map(), testbed.distortion_map())
        assert np.array_equal(t.cameras(), testbed.cameras()) == same
        assert np.array_equal(t.image_exposures(), testbed.image_exposures()) == same
        assert same or not t.image_exposures().any()
    testbed.export_cameras(tmp_path / "cameras.json")
    document = json.loads((tmp_path / "cameras.json").read_text())
    np.testing.assert_allclose(document["distortion_map"], testbed.distortion_map(), rtol=1e-6)
    for frame, pose, (fl_x, fl_y, *_) in zip(
        document["frames"], testbed.cameras(), testbed.camera_intrinsics(), strict=True
    ):
        np.testing.assert_allclose(np.array(frame["transform_matrix"])[:3], pose, rtol=1e-6)
        np.testing.assert_allclose((frame["fl_x"], frame["fl_y"]), (fl_x, fl_y), rtol=1e-6)


def test_a_new_network_forgets(tiny, small_config, device):
    testbed = small(tiny, small_config, device, *OPTIONS)
    testbed.fit(300, batch_size=512)
    testbed.reset()
    np.testing.assert_allclose(testbed.cameras(), tiny.poses, atol=1e-5)
    assert testbed.distortion_map() is None and not testbed.image_exposures().any()


def test_exposures_of_pictures(tiny, small_config, device):
    """Images at -1 and 1 stops: their pictures come out as bright as they are; the scene between them."""
    gains = np.where(np.arange(20) % 2, 2.0, 0.5)
    images = linear(tiny.images[..., :3] / 255.0) * 0.5 * gains[:, None, None, None]  # nothing clips
    images = np.concatenate([images, tiny.images[..., 3:] / 255.0], axis=-1).astype(np.float32)
    testbed = Testbed(device=device, config=small_config, deterministic=True)
    testbed.set_images(images, tiny.poses, INTRINSICS)
    learning(testbed, "exposure")
    testbed.nerf.training.n_steps_between_cam_updates = 2
    testbed.fit(600, batch_size=2048)
    stops = testbed.image_exposures()
    assert np.abs(stops.mean(0)).max() < 1e-5
    # On their way: a hundredth of a stop an update at most
    assert (stops[gains > 1] < 0).all() and (stops[gains < 1] > 0).all()
    assert 0.3 < np.abs(stops).mean() < 1.05
    camera = {"camera": tiny.poses[0], "width": SIZE, "height": SIZE, "intrinsics": INTRINSICS}
    scene = testbed.render_channels(**camera)["rgb"]
    for i in (0, 1):
        seen = testbed.render_channels(**camera, image=i)
        np.testing.assert_allclose(seen["rgb"], scene * 2.0 ** -stops[i], rtol=1e-5)
    points = np.array([[0.0, -0.35, 0.6], [0.0, 0.4, 0.3]], np.float32)
    directions = np.tile(np.array([0, 0, -1], np.float32), (2, 1))
    rgb, density = testbed.query(points, directions)
    as_seen, same = testbed.query(points, directions, image=1)
    np.testing.assert_allclose(as_seen, srgb(linear(rgb.astype(np.float64)) * 2.0 ** -stops[1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(density, same)
    with pytest.raises(RuntimeError, match="training view 20 does not exist; there are 20"):
        testbed.render_channels(**camera, image=20)
    with pytest.raises(ValueError, match="image is -1"):
        testbed.query(points, directions, image=-1)


@pytest.mark.parametrize("mode", [TrainMode.Rfl, TrainMode.RflRelax])
def test_exposures_in_other_train_modes(mode, tiny, small_config, device):
    """Images at -1 and 1 stops: learned in the right direction, though gradients of samples are others."""
    gains = np.where(np.arange(20) % 2, 2.0, 0.5)
    images = linear(tiny.images[..., :3] / 255.0) * 0.5 * gains[:, None, None, None]  # nothing clips
    images = np.concatenate([images, tiny.images[..., 3:] / 255.0], axis=-1).astype(np.float32)
    testbed = Testbed(device=device, config=small_config)
    testbed.set_images(images, tiny.poses, INTRINSICS)
    learning(testbed, "exposure")
    testbed.nerf.training.train_mode = mode
    testbed.nerf.training.n_steps_between_cam_updates = 2
    testbed.fit(600, batch_size=2048)
    stops = testbed.image_exposures().mean(1)
    assert stops[gains > 1].max() < 0 < stops[gains < 1].min()


def test_poses_beside_latents(tiny, small_config, device):
    """Both are learned from the same rays' gradients (stages/test_camera_gradients.py has those of the poses)."""
    testbed = small(tiny, small_config, device, "extrinsics")
    testbed.nerf.training.optimize_extra_dims = True
    testbed.nerf.training.n_steps_between_cam_updates = 4
    testbed.fit(1, batch_size=512)
    latents = [np.array(testbed.nerf.training.get_extra_dims(i)) for i in range(20)]
    testbed.fit(300, batch_size=512)
    moved = np.abs(testbed.cameras() - tiny.poses).max((1, 2))
    assert moved.min() > 1e-4 and moved.max() < 0.1
    for i, before in enumerate(latents):
        assert np.abs(testbed.nerf.training.get_extra_dims(i) - before).max() > 1e-4


def test_rates_follow_the_interval(tiny, small_config, device):
    """Exposures: E.5's rate is that of updates in every step, and grows as the root of the interval."""
    steps = {}
    for interval in (1, 4, 16):
        testbed = small(tiny, small_config, device, "exposure")
        testbed.nerf.training.n_steps_between_cam_updates = interval
        testbed.fit(interval, batch_size=16384)
        # Adam's first step is as long as the rate, before the mean is taken off.
        steps[interval] = np.ptp(testbed.image_exposures(), axis=0).max()
    for interval, step in steps.items():
        np.testing.assert_allclose(step, 2 * 1e-2 * np.sqrt(interval), rtol=1e-3)


def test_pictures_through_the_distortion_map(tiny, small_config, tmp_path, device):
    """render_with_lens_distortion bends rays by the map; set_camera_to_training_view switches it on (A.7)."""
    testbed = small(tiny, small_config, device, "distortion")
    testbed.nerf.training.n_steps_between_cam_updates = 1
    testbed.fit(320, batch_size=512)
    offsets = testbed.distortion_map()
    assert offsets.shape == (32, 32, 2) and 1e-4 < np.abs(offsets).max() < 0.02
    assert not testbed.render_with_lens_distortion
    pose, pixel = tiny.poses[3], (10, 37)
    uv = (np.array(pixel) + 0.5) / SIZE
    plain = testbed.ray_samples(pose, SIZE, SIZE, *pixel, intrinsics=INTRINSICS)[1]
    testbed.set_camera_to_training_view(3)
    assert testbed.render_with_lens_distortion
    bent = testbed.ray_samples(pose, SIZE, SIZE, *pixel, intrinsics=INTRINSICS)[1]
    xy = np.array([(uv[0] - 0.5) * SIZE / FOCAL, (uv[1] - 0.5) * SIZE / FOCAL])
    for got, offset in ((plain, 0), (bent, stages.distortion_at(offsets, uv))):
        d = np.array([*(xy + offset), 1]) * [1, -1, -1] @ pose[:, :3].T
        np.testing.assert_allclose(got, d / np.linalg.norm(d), atol=1e-6)
    assert np.abs(plain - bent).max() > 1e-5


def test_distortion_map_lookup():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(3, 4, 2)).astype(np.float32)
    for v, row in enumerate(offsets):
        for u, node in enumerate(row):
            np.testing.assert_allclose(stages.distortion_at(offsets, (u / 3, v / 2)), node, atol=1e-6)
    middle = offsets[1:3, 2:4].mean((0, 1))
    np.testing.assert_allclose(stages.distortion_at(offsets, (2.5 / 3, 0.75)), middle, atol=1e-6)


def test_camera_setters(tiny, device, small_config):
    testbed = Testbed(device=device, config=small_config)
    testbed.set_images(tiny.images, tiny.poses, INTRINSICS)
    training = testbed.nerf.training
    pose = look_at(np.array([2.0, 1.0, 0.5]))
    training.set_camera_extrinsics(2, pose)
    np.testing.assert_allclose(training.get_camera_extrinsics(2), pose, atol=1e-5)
    np.testing.assert_allclose(testbed.cameras()[2], pose, atol=1e-5)
    testbed.set_nerf_camera_matrix(pose)
    training.set_camera_extrinsics(1, testbed.camera_matrix, convert_to_ngp=False)
    np.testing.assert_allclose(training.get_camera_extrinsics(1), pose, atol=1e-5)
    training.set_camera_intrinsics(0, fx=80, cx=20, k1=0.1, p2=0.02)
    view = training.dataset.metadata[0]
    np.testing.assert_allclose(testbed.camera_intrinsics()[0], (80, 80, 20, SIZE / 2), rtol=1e-6)
    assert view.lens.mode == LensMode.OpenCV
    np.testing.assert_allclose(view.lens.params[:4], (0.1, 0, 0, 0.02), rtol=1e-6)
    training.set_camera_intrinsics(0, fx=80, fy=70, cy=-0.25, k1=0.1, k4=0.3, is_fisheye=True)
    np.testing.assert_allclose(testbed.camera_intrinsics()[0], (80, 70, SIZE / 2, SIZE / 4), rtol=1e-6)
    assert view.lens.mode == LensMode.OpenCVFisheye and view.lens.params[3] == pytest.approx(0.3)
    testbed.fit(2, batch_size=512)
    for call, message in (
        (lambda: training.set_camera_intrinsics(0), r"focal length is \(0, 0\)"),
        (lambda: training.set_camera_intrinsics(20, fx=1), "training image 20 does not exist"),
        (lambda: training.set_camera_extrinsics(-1, pose), "training image -1 does not exist"),
        (lambda: training.set_camera_extrinsics(0, np.zeros((3, 4))), "not a camera pose"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_setters_drop_what_was_learned(tiny, small_config, device):
    testbed = small(tiny, small_config, device, "extrinsics")
    testbed.fit(300, batch_size=512)
    learned = testbed.cameras()
    testbed.nerf.training.set_camera_extrinsics(0, tiny.poses[0])
    np.testing.assert_allclose(testbed.cameras()[0], tiny.poses[0], atol=1e-5)
    np.testing.assert_array_equal(testbed.cameras()[1:], learned[1:])


def test_errors(tiny, small_config, device):
    testbed = small(tiny, small_config, device, "extrinsics")
    testbed.nerf.training.n_steps_between_cam_updates = 0
    with pytest.raises(RuntimeError, match="n_steps_between_cam_updates is 0; it must be at least 1"):
        testbed.fit(1, batch_size=512)
    with pytest.raises(RuntimeError, match="distortion_map"):
        testbed.reload_network_from_json(small_config | {"distortion_map": {"resolution": [1, 32]}})


def test_distortion_map_of_the_configuration(tiny, small_config, device):
    optimizer = {"otype": "Adam", "learning_rate": 1e-3}
    config = small_config | {"distortion_map": {"resolution": [4, 3], "optimizer": optimizer}}
    testbed = small(tiny, config, device, "distortion")
    testbed.nerf.training.n_steps_between_cam_updates = 1
    testbed.fit(3, batch_size=512)
    got = testbed.distortion_map()
    assert got.shape == (3, 4, 2)
    # Adam's first steps are about as long as the learning rate
    assert 1e-3 < np.abs(got).max() < 5e-3
