"""World in, world out: poses come back in the input's frame; orbits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fields.tiny_scene import INTRINSICS, SIZE, look_at, poses
from pyngp import Lens, LensMode, Testbed
from pyngp.dataset import intrinsics_of, load_images, read_scene
from pyngp.orbit import focus_point, orbit_cameras

LENSES = [
    Lens(),
    Lens(LensMode.OpenCV, [0.1, -0.05, 0.01, 0.02]),
    Lens(LensMode.OpenCVFisheye, [0.1, -0.05, 0.01, 0.02]),
    Lens(LensMode.FTheta, [0.01, 0.02, 3e-4, 4e-5, 5e-6, 96.5, 64]),
    Lens(LensMode.LatLong),
    Lens(LensMode.Equirectangular),
    Lens(LensMode.Orthographic),
]


@pytest.mark.parametrize("shift,scale", [(0.0, 0.33), (100.0, 0.05), (-3.0, 2.0)])
def test_cameras_come_back(shift, scale, tiny, device):
    """Error below 1e-5 of the coordinates' size."""
    world = tiny.poses.copy()
    world[:, :, 3] += shift
    testbed = Testbed(device=device)
    testbed.set_images(tiny.images, world, INTRINSICS, scale=scale, offset=(0.5 - shift * scale, 0.5, 0.5))
    got = testbed.cameras()
    assert got.shape == (20, 3, 4) and got.dtype == np.float32
    assert np.abs(got - world).max() < 1e-5 * max(np.abs(world[:, :, 3]).max(), 1)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: lens.mode.name)
def test_exported_cameras_are_a_scene(lens, tiny, device, tmp_path):
    """export_cameras writes what read_scene reads: the same views, to 1e-5."""
    testbed = Testbed(device=device)
    intrinsics = [(40 + i, 45 + i, 20 + i / 2, 25) for i in range(20)]
    testbed.set_images(tiny.images, tiny.poses, intrinsics, lens=lens)
    path = tmp_path / "cameras.json"
    testbed.export_cameras(path)
    json.loads(path.read_text())
    scene = read_scene(path, need_images=False)
    assert len(scene.frames) == 20
    by_name = {f.file_path: f for f in scene.frames}
    for i in range(20):
        frame = by_name[f"image {i}"]
        np.testing.assert_allclose(frame.camera_to_world[:3], tiny.poses[i], atol=1e-5 * 3.4)
    for i, (fl_x, fl_y, cx, cy) in enumerate(intrinsics):
        got = intrinsics_of(by_name[f"image {i}"], SIZE, SIZE)
        np.testing.assert_allclose(got.focal_length, (fl_x, fl_y), rtol=1e-5)
        np.testing.assert_allclose(np.array(got.principal_point) * SIZE, (cx, cy), rtol=1e-5)
        assert got.lens.mode == lens.mode
        np.testing.assert_allclose(got.lens.params, lens.params, rtol=1e-5)


def test_export_of_a_loaded_scene(tiny, device, tmp_path):
    """Beside the images, the file can be trained on again."""
    testbed = Testbed(data=tiny.train, device=device)
    path = tiny.folder / "exported.json"
    try:
        testbed.export_cameras(path)
        again = Testbed(data=path, device=device)
        assert again.nerf.training.dataset.paths == testbed.nerf.training.dataset.paths
        np.testing.assert_allclose(again.cameras(), tiny.poses, atol=1e-5 * 3.4)
        assert len(load_images(read_scene(path).frames)) == 20
    finally:
        path.unlink()


def test_cameras_of_a_snapshot(trained, tiny, tmp_path):
    np.testing.assert_allclose(trained.cameras(), tiny.poses, atol=1e-5 * 3.4)
    trained.export_cameras(tmp_path / "c.json")
    assert len(read_scene(tmp_path / "c.json", need_images=False).frames) == 20


def test_orbit_of_a_surrounding_capture():
    """A full circle about what the cameras look at, at their distance and height, level."""
    target = np.array([4.0, -2.0, 1.0])
    around = np.stack(
        [look_at(target + 3 * np.array([np.cos(a), np.sin(a), 0.4]), target) for a in np.linspace(0, 6, 12)]
    )
    np.testing.assert_allclose(focus_point(around), target, atol=0.02)
    orbit = orbit_cameras(around, 8)
    assert orbit.shape == (8, 3, 4)
    np.testing.assert_allclose(
        np.einsum("nij,nik->njk", orbit[:, :, :3], orbit[:, :, :3]), np.tile(np.eye(3), (8, 1, 1)), atol=1e-9
    )
    assert np.linalg.det(orbit[:, :, :3]).min() > 0.99
    offset = orbit[:, :, 3] - target
    distance = np.linalg.norm(offset, axis=1)
    np.testing.assert_allclose(distance, 3 * np.sqrt(1 + 0.4**2), rtol=0.05)
    looking = -orbit[:, :, 2]
    assert ((looking * -offset).sum(1) / distance > 0.99).all()
    angles = np.sort(np.arctan2(offset[:, 1], offset[:, 0]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 4, atol=0.1)


def test_orbit_of_a_one_sided_capture():
    """Stays within the captured angles."""
    target = np.zeros(3)
    front = np.stack([look_at(3 * np.array([np.cos(a), np.sin(a), 0.1]), target) for a in np.linspace(-0.6, 0.6, 9)])
    orbit = orbit_cameras(front, 16)
    angles = np.arctan2(orbit[:, 1, 3], orbit[:, 0, 3])
    assert np.abs(angles).max() <= 0.6 and np.ptp(angles) > 0.5


def test_orbit_of_the_tiny_scene():
    np.testing.assert_allclose(focus_point(poses(20)), 0, atol=0.05)
