"""A snapshot that instant-ngp wrote: its pictures, its bytes, its cameras (specification D)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyngp
import pytest
from pyngp import Testbed
from reference import snapshot as reader

VIEWS = {0: "0", 6: "6", 12: "12"}  # frame of lego800/transforms_test.json -> suffix in the archive


def unpack(path: Path) -> dict[str, Any]:
    return msgpack.unpackb(reader.decompress(path.read_bytes()), strict_map_key=False)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) + 1e-20))


@pytest.fixture(scope="module")
def lego_path(data: Path) -> Path:
    return data / "snapshots" / "lego_base14.ingp"


@pytest.fixture(scope="module")
def pictures(data: Path) -> dict[str, np.ndarray]:
    return dict(np.load(data / "snapshots" / "lego_base14_ref.npz"))


@pytest.fixture(scope="module")
def cameras(data: Path) -> dict[str, Any]:
    return json.loads((data / "lego800" / "transforms_test.json").read_text())


@pytest.fixture
def lego(lego_path: Path, device: str) -> Testbed:
    testbed = Testbed(device=device)
    testbed.load_snapshot(lego_path)
    return testbed


@pytest.mark.parametrize("frame", VIEWS)
def test_pictures_agree_with_instant_ngp(frame, lego, pictures, cameras):
    """16 samples a pixel against its 64: at least 45 dB; one sample against 64 is 48-55 dB there."""
    lego.background_color = [0, 0, 0, 0]
    lego.snap_to_pixel_centers = True
    lego.nerf.render_min_transmittance = 1e-4
    lego.fov_axis = 0
    lego.fov = np.degrees(cameras["camera_angle_x"])
    matrix = np.array(cameras["frames"][frame]["transform_matrix"])
    lego.set_nerf_camera_matrix(matrix[:3])
    image = lego.render(400, 400, 16, True)
    reference = pictures["v" + VIEWS[frame]].astype(np.float64)
    seen = reference[..., 3] > 0.05
    assert 0.2 < seen.mean() < 0.8
    rgb, alpha = psnr(image[seen][:, :3], reference[seen][:, :3]), psnr(image[..., 3], reference[..., 3])
    print(f"view {frame}: rgb {rgb:.1f} dB, alpha {alpha:.1f} dB")
    assert rgb >= 45 and alpha >= 45

    _, depth = lego.render_with_depth(400, 400, 1, True)
    solid = reference[..., 3] > 0.99
    z = pictures["z" + VIEWS[frame]]
    assert np.mean(np.abs(depth - z)[solid] <= 0.01 * z[solid]) >= 0.99
    missed = reference[..., 3] < 0.1
    assert (depth[missed] == 16384).mean() > 0.999 and (z[missed] == 16384).mean() > 0.999


@pytest.mark.parametrize("mode", ["Normals", "Positions", "Depth", "AO"])
def test_render_modes_agree_with_instant_ngp(mode, lego, pictures, cameras):
    """16 samples a pixel, as there: 30 dB where alpha > 0.99; depth within 1% for 99% of those pixels."""
    lego.background_color = [0, 0, 0, 0]
    lego.snap_to_pixel_centers = True
    lego.nerf.render_min_transmittance = 1e-4
    lego.fov_axis = 0
    lego.fov = np.degrees(cameras["camera_angle_x"])
    lego.set_nerf_camera_matrix(np.array(cameras["frames"][0]["transform_matrix"])[:3])
    lego.render_mode = pyngp.RenderMode.__members__[mode]
    image = lego.render(400, 400, 16, True)
    reference = pictures[mode.lower() + "0"].astype(np.float64)
    solid = pictures["v0"][..., 3] > 0.99
    assert 0.2 < solid.mean() < 0.8
    got, wanted = image[solid][:, :3], reference[solid][:, :3]
    alpha = psnr(image[..., 3], reference[..., 3])
    if mode == "Depth":
        within = np.mean(np.abs(got - wanted) <= 0.01 * wanted)
        print(f"Depth: within 1% for {100 * within:.2f}%, alpha {alpha:.1f} dB")
        assert within >= 0.99 and wanted.min() > 1
    else:
        print(f"{mode}: {psnr(got, wanted):.1f} dB, alpha {alpha:.1f} dB")
        assert psnr(got, wanted) >= 30
    assert alpha >= 45


def test_channels_agree_with_instant_ngp(lego, pictures, cameras):
    """render_channels' world-unit depth is its normalised depth, with alpha premultiplied there."""
    lego.snap_to_pixel_centers = True
    lego.nerf.render_min_transmittance = 1e-4
    fov = np.degrees(cameras["camera_angle_x"])
    matrix = np.array(cameras["frames"][0]["transform_matrix"])
    out = lego.render_channels(matrix[:3], 400, 400, fov_x=fov, channels=("rgb", "alpha", "depth"), spp=4)
    reference = pictures["v0"].astype(np.float64)
    assert psnr(out["rgb"], reference[..., :3]) > 45
    z = pictures["z0"] / 0.33
    solid = reference[..., 3] > 0.99
    assert np.median(np.abs(out["depth"] / z - 1)[solid]) < 0.005


def test_what_it_holds(lego, lego_path):
    document = unpack(lego_path)["snapshot"]
    assert lego.mode == pyngp.TestbedMode.Nerf
    assert lego.training_step == document["training_step"] == 5000
    assert lego.loss == pytest.approx(document["loss"], rel=1e-6)
    assert lego.n_params() == document["n_params"] == 485376
    assert lego.n_encoding_params() == 485376 - 10240
    data = lego.nerf.training.dataset
    assert data.n_images == 87 and not data.has_images
    assert data.paths == document["nerf"]["dataset"]["paths"]
    assert data.scale == pytest.approx(0.33) and data.aabb_scale == 1
    np.testing.assert_array_equal(data.metadata[3].resolution, [800, 800])
    stored = np.frombuffer(document["params_binary"], np.float16).astype(np.float32)
    np.testing.assert_array_equal(lego.params(), stored)
    np.testing.assert_allclose(lego.camera_matrix, document["camera"]["matrix"])
    assert lego.fov_axis == document["camera"]["fov_axis"]


@pytest.mark.parametrize("name,compress", [("a.ingp", True), ("a.ingp", False), ("a.msgpack", True)])
def test_saving_keeps_the_bytes(name, compress, lego, lego_path, tmp_path, device):
    original = unpack(lego_path)
    lego.save_snapshot(tmp_path / name, compress=compress)
    content = (tmp_path / name).read_bytes()
    assert (content[:2] == b"\x1f\x8b") == name.endswith(".ingp")
    ours = unpack(tmp_path / name)
    for key in ("params_binary", "density_grid_binary"):
        assert ours["snapshot"][key] == original["snapshot"][key], key
    for key, value in original["snapshot"]["nerf"]["dataset"].items():
        assert roughly(ours["snapshot"]["nerf"]["dataset"][key], value), key
    again = Testbed(device=device)
    again.load_snapshot(tmp_path / name)
    again.save_snapshot(tmp_path / ("again_" + name), compress=compress)
    assert (tmp_path / ("again_" + name)).read_bytes() == content


def roughly(a: Any, b: Any) -> bool:
    """Equal, numbers to single precision."""
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(roughly(a[k], b[k]) for k in b)
    if isinstance(b, list):
        return isinstance(a, list) and len(a) == len(b) and all(map(roughly, a, b))
    if isinstance(b, float):
        return a == b or abs(a - b) <= 1e-6 * max(1.0, abs(b))
    return a == b


def test_keys_are_those_of_instant_ngp(lego, lego_path, tmp_path):
    """Every key that it wrote is in ours, with the same type; ours adds `pyngp` only."""
    lego.save_snapshot(tmp_path / "ours.ingp")
    theirs, ours = unpack(lego_path), unpack(tmp_path / "ours.ingp")
    missing, differing = [], []

    def compare(a: Any, b: Any, where: str) -> None:
        kind = {int: "number", float: "number"}.get(type(b), type(b).__name__)
        if kind != {int: "number", float: "number"}.get(type(a), type(a).__name__):
            differing.append(f"{where}: {type(a).__name__}, not {type(b).__name__}")
        elif isinstance(b, dict):
            missing.extend(f"{where}.{key}" for key in b.keys() - a.keys())
            for key in b.keys() & a.keys():
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(b, list) and a and b:
            compare(a[0], b[0], f"{where}[0]")

    compare(ours, theirs, "")
    assert not missing and not differing
    assert ours.keys() == theirs.keys()
    assert ours["snapshot"].keys() - theirs["snapshot"].keys() == {"pyngp"}


def test_training_views_from_the_snapshot_alone(lego, pictures, data, device):
    """Its own cameras, in the input's frame, without any image.

    Their focal lengths are the same but for rounding: see test_rendering.py for what that does on a GPU.
    """
    frames = json.loads((data / "lego800" / "transforms_train.json").read_text())["frames"]
    by_path = {f["file_path"]: np.array(f["transform_matrix"])[:3] for f in frames}
    expected = np.stack([by_path[p] for p in lego.nerf.training.dataset.paths])
    np.testing.assert_allclose(lego.cameras(), expected, atol=1e-5 * np.abs(expected).max())
    lego.background_color = [0, 0, 0, 0]
    lego.set_camera_to_training_view(5)
    by_view = lego.render(64, 64)
    focal = 64 / 800 * lego.nerf.training.dataset.metadata[5].focal_length
    out = lego.render_channels(expected[5], 64, 64, intrinsics=(*focal, 32, 32))
    assert out["alpha"].mean() > 0.1
    whole = np.concatenate([out["rgb"], out["alpha"][..., None]], axis=-1)
    np.testing.assert_allclose(by_view, whole, atol=2e-3 if device == "cpu" else 2e-2)
    assert psnr(by_view, whole) > 50


def test_training_goes_on_from_it(lego_path, data, device):
    """A few steps on a part of the scene keep the loss of a trained model (random: 0.02 and more)."""
    scene = json.loads((data / "lego400" / "transforms_train.json").read_text())
    testbed = Testbed(device=device)
    testbed.load_training_data(data / "lego400" / "transforms_train.json")
    assert testbed.nerf.training.dataset.n_images == len(scene["frames"])
    testbed.load_snapshot(lego_path)
    losses = []
    testbed.fit(8, batch_size=8192, callback=lambda t: losses.append(t.loss))
    assert testbed.training_step == 5008
    assert max(losses) < 5e-3, losses
