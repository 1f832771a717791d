"""Pictures and queries of every option on a device, beside the CPU's of the same snapshot.

Both devices draw the same random numbers and visit the same samples, so pictures differ by the networks' rounding
alone: on a GPU, fused ones keep activations as halves, which moves a composited value by up to 1e-2
(test_rendering.py), and a picture by less (CLOSE). The general ones keep floats, as the CPU does. That an option is
there is seen in how far it moves the CPU's own picture: much more than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fields.test_options import set_options
from fields.tiny_scene import INTRINSICS, SIZE
from pyngp import Lens, LensMode, RenderMode, Testbed
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate
from pyngp.images import linear_to_srgb
from reference import snapshot as reader
from reference.nerf_render import NerfField, field_from_snapshot
from reference.pose import point_to_ngp

W, H, SPP = 48, 40, 4
CLOSE = 10 ** (-40 / 20)  # root of the mean squared difference
APART = 5 * CLOSE
OPEN = {"aperture_size": 0.15, "slice_plane_z": -1.15}  # focused at 0.35; the cameras are 1.1 from the middle


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2)))


@dataclass(frozen=True)
class Case:
    """Options, and those of the picture that it must be unlike; shutter: while the camera moves along a path."""

    options: dict[str, Any]
    plain: dict[str, Any] = field(default_factory=dict)
    shutter: float = 0.0
    scale: float = 1.0  # of the picture's values


def lens(mode: LensMode, *params: float) -> dict[str, Any]:
    return {"render_lens": Lens(mode, list(params)), "render_with_lens_distortion": True}


def mode(name: str) -> dict[str, Any]:
    return {"render_mode": RenderMode.__members__[name]}


PARALLEL = lens(LensMode.Orthographic) | {"fov": 80.0}
SLICE = mode("Slice") | {"slice_plane_z": -0.4}
CASES = {
    "aperture": Case(OPEN),
    "aperture, fisheye": Case(OPEN | lens(LensMode.OpenCVFisheye, 0.1, 0.02), lens(LensMode.OpenCVFisheye, 0.1, 0.02)),
    "aperture, orthographic": Case(OPEN | PARALLEL, PARALLEL),
    "aperture, equirectangular": Case(
        OPEN | lens(LensMode.Equirectangular), lens(LensMode.Equirectangular), scale=0.5
    ),  # it is small
    "aperture, near distance": Case(OPEN | {"render_near_distance": 0.9}, {"render_near_distance": 0.9}),
    "aperture, AO": Case(OPEN | mode("AO"), mode("AO")),
    "aperture, depth": Case(OPEN | mode("Depth"), mode("Depth"), scale=3),
    "aperture, hard depth": Case(
        OPEN | mode("Depth") | {"nerf.render_gbuffer_hard_edges": True}, mode("Depth"), scale=3
    ),
    "aperture, positions": Case(OPEN | mode("Positions"), mode("Positions")),
    # A ray shows all of its cost or, where it meets as good as nothing, none: rounding decides a few.
    "aperture, cost": Case(OPEN | mode("Cost"), mode("Cost"), scale=2),
    "moving": Case({}, shutter=1.0),
    "moving, orthographic": Case(PARALLEL, PARALLEL, shutter=1.0),
    "moving, aperture": Case(OPEN, shutter=1.0),
    "moving, slice": Case(SLICE, SLICE, shutter=1.0),
    "moving, depth": Case(mode("Depth"), mode("Depth"), shutter=1.0, scale=3),
    **{f"layer {k}": Case({"visualized_layer": k, "visualized_dimension": 1}) for k in range(6)},
    "layer 5, aperture, moving": Case(
        OPEN | {"visualized_layer": 5, "visualized_dimension": 0},
        {"visualized_layer": 5, "visualized_dimension": 0},
        shutter=1.0,
    ),
}


def picture(testbed: Testbed, options: dict[str, Any], shutter: float = 0.0) -> np.ndarray:
    defaults = {"render_mode": RenderMode.Shade, "aperture_size": 0.0, "slice_plane_z": 0.0, "visualized_dimension": -1}
    set_options(testbed, defaults | options)
    aperture, focus = testbed.aperture_size, testbed.slice_plane_z
    path = testbed.camera_path
    path.clear()
    path.spline_order = 1
    pose = testbed.camera_matrix
    for x in (0.0, 0.25):
        moved = np.column_stack([pose[:, :3], pose[:, 3] + x * pose[:, 0] + x * pose[:, 2]])
        path.add_camera(moved, focus, testbed.scale, testbed.fov, aperture, 1, 0)
    return np.asarray(testbed.render(W, H, SPP, True, 0.0, 1.0, 30, shutter))


@pytest.mark.parametrize("name", CASES)
def test_pictures(name, device, snapshot_of, tiny):
    """One model, trained on the CPU, on both devices."""
    case = CASES[name]
    pictures = []
    for place, options, shutter in (
        ("cpu", case.plain, 0.0),
        ("cpu", case.options, case.shutter),
        (device, case.options, case.shutter),
    ):
        testbed = Testbed(device=place)
        testbed.load_snapshot(snapshot_of("cpu"))
        testbed.nerf.render_min_transmittance = 0.0
        testbed.background_color = [0, 0, 0, 0]
        testbed.fov = 40.0
        testbed.set_nerf_camera_matrix(tiny.test_poses[1])
        pictures.append(picture(testbed, options, shutter))
    plain, wanted, got = pictures
    assert np.all(np.isfinite(got)) and got[..., 3].max() > 0.5
    assert rms(wanted, plain) > APART * case.scale
    assert rms(got, wanted) < CLOSE * case.scale


# --- learned distortion and exposures


@pytest.fixture(scope="module")
def bent_snapshot(tiny, small_config, tmp_path_factory) -> Path:
    """Of a model with a distortion map as large as a tenth of the picture, and exposures."""
    testbed = Testbed(device="cpu", config=small_config)
    testbed.set_images(tiny.images, tiny.poses, INTRINSICS)
    training = testbed.nerf.training
    training.optimize_distortion = training.optimize_exposure = True
    training.n_steps_between_cam_updates = 4
    testbed.fit(300, batch_size=2048)
    path = tmp_path_factory.mktemp("bent") / "bent.msgpack"
    testbed.save_snapshot(path, compress=False)
    document = msgpack.unpackb(path.read_bytes())
    bend(document, np.random.default_rng(5))
    path.write_bytes(msgpack.packb(document))
    return path


def bend(document: Any, r: np.random.Generator) -> None:
    """Sets offsets and exposures that can be seen, wherever the snapshot has them."""
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key == "distortion_map":
            width, height = value["resolution"]
            u, v = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
            offsets = 0.1 * np.stack([np.sin(6 * v), np.cos(5 * u)], axis=-1)
            value["variable_binary"] = offsets.astype(np.float32).tobytes()
        elif key == "exposure" and isinstance(value, list):
            for stops in value:
                stops["variable"] = r.uniform(-1, 1, 3).tolist()
        else:
            bend(value, r)


def loaded(path: Path, device: str) -> Testbed:
    testbed = Testbed(device=device)
    testbed.load_snapshot(path)
    testbed.nerf.render_min_transmittance = 0.0
    return testbed


def test_learned_distortion_and_exposures(device, bent_snapshot, tiny):
    """In render_channels(), render(), and query() with an image's exposure."""
    ours, theirs = loaded(bent_snapshot, device), loaded(bent_snapshot, "cpu")
    assert np.abs(ours.distortion_map()).max() > 0.05
    view = {"camera": tiny.poses[3], "width": W, "height": H, "fov_x": 40.0}
    straight = theirs.render_channels(**view, image=1)
    bent = []
    for testbed in (ours, theirs):
        testbed.render_with_lens_distortion = True
        bent.append(testbed.render_channels(**view, image=1))
    got, wanted = bent
    assert rms(wanted["alpha"], straight["alpha"]) > APART
    for channel in ("rgb", "alpha"):
        assert rms(got[channel], wanted[channel]) < CLOSE
    assert rms(wanted["rgb"], theirs.render_channels(**view)["rgb"]) > 2 * CLOSE  # exposures
    images = []
    for testbed in (ours, theirs):
        testbed.set_camera_to_training_view(3)
        images.append(testbed.render(W, H, 1, True))
    assert rms(*images) < CLOSE
    points = np.random.default_rng(1).uniform(-0.4, 0.4, (500, 3))
    directions = np.tile([0.0, 0.6, 0.8], (500, 1))
    (a, _), (b, _), (plain, _) = (
        ours.query(points, directions, image=1), theirs.query(points, directions, image=1),
        theirs.query(points, directions),
    )  # fmt: skip
    assert rms(a, b) < CLOSE and rms(b, plain) > APART


# --- latents and lights


@pytest.fixture(scope="module")
def with_inputs(tiny, tmp_path_factory) -> Callable[[str], Path]:
    """Snapshot of a model with latents, or with light directions."""

    @cache
    def train(kind: str) -> Path:
        from fields.test_latents import CONFIG

        testbed = Testbed(device="cpu", config=CONFIG)
        r = np.random.default_rng(3)
        lights = r.normal(size=(len(tiny.images), 3))
        lights /= np.linalg.norm(lights, axis=1, keepdims=True)
        lights[3] = -lights[0]  # as unlike as can be
        gains = (0.7 + 0.3 * lights)[:, None, None]
        images = tiny.images.copy()
        images[..., :3] = np.round(images[..., :3] * gains)
        keys: dict[str, Any] = {"n_extra_learnable_dims": 5}
        if kind == "lights":
            keys = {"light_directions": lights}
        testbed.set_images(images, tiny.poses, INTRINSICS, **keys)
        testbed.fit(250, batch_size=4096)
        path = tmp_path_factory.mktemp(kind) / f"{kind}.ingp"
        testbed.save_snapshot(path)
        return path

    return train


APPEARANCES: dict[str, list[dict[str, Any]]] = {
    "latents": [{"image": 3}, {"latent": [0.9, -0.8, 0.1, 0.7, -0.4]}],
    "lights": [{"image": 3}, {"light_direction": (0.3, -0.9, 0.2)}],
}


@pytest.mark.parametrize("kind", APPEARANCES)
def test_appearances(kind, device, with_inputs, tiny):
    """Pictures and queries. Their networks are general ones, which keep floats on both devices: differences are 1e-4,
    but for rays that meet another sample at the edge of a cell."""
    path = with_inputs(kind)
    ours, theirs = loaded(path, device), loaded(path, "cpu")
    assert ours.n_extra_dims == theirs.n_extra_dims == {"latents": 5, "lights": 3}[kind]
    for i in (0, 3):
        assert ours.nerf.training.get_extra_dims(i) == theirs.nerf.training.get_extra_dims(i)
    view = {"camera": tiny.test_poses[0], "width": W, "height": H, "fov_x": 40.0}
    points = np.random.default_rng(1).uniform(-0.4, 0.4, (500, 3))
    directions = np.tile([0.0, 0.6, 0.8], (500, 1))
    first = theirs.render_channels(**view), theirs.query(points, directions)
    assert rms(ours.render_channels(**view)["rgb"], first[0]["rgb"]) < 1e-3
    for appearance in APPEARANCES[kind]:
        got, wanted = (t.render_channels(**view, **appearance) for t in (ours, theirs))
        assert rms(got["rgb"], wanted["rgb"]) < 1e-3 < 5e-3 < rms(wanted["rgb"], first[0]["rgb"])
        np.testing.assert_allclose(got["alpha"], wanted["alpha"], atol=2e-2)
        (rgb, density), (rgb_cpu, density_cpu) = (t.query(points, directions, **appearance) for t in (ours, theirs))
        np.testing.assert_allclose(rgb, rgb_cpu, atol=1e-4)
        np.testing.assert_allclose(density, density_cpu, rtol=1e-3)
        assert np.array_equal(density, ours.query(points)) and rms(rgb_cpu, first[1][0]) > 5e-3
    ours.set_nerf_camera_matrix(tiny.test_poses[0])
    before = ours.render(W, H)
    ours.nerf.set_rendering_extra_dims_from_training_view(3)
    assert rms(before, ours.render(W, H)) > 5e-3
    ours.aperture_size, ours.visualized_dimension, ours.visualized_layer = 0.02, 16, 2  # ... of the direction encoding
    assert np.all(np.isfinite(ours.render(W, H)))


def test_colours_of_a_latent_against_the_twin(device, with_inputs):
    """Raw outputs are sums of some 64 floats that are 50 together: off by 2e-4 at most, colours by a quarter of it."""
    path = with_inputs("latents")
    testbed = loaded(path, device)
    world = reader.load(path).state["nerf"]["dataset"]
    points = np.random.default_rng(2).uniform(-0.5, 0.5, (300, 3)).astype(np.float32)
    directions = np.tile(np.float32([0.0, 0.6, 0.8]), (300, 1))
    ngp = point_to_ngp(points.astype(np.float64), world["scale"], world["offset"])
    twin = field_from_snapshot(reader.load(path))
    for latent in (None, [0.9, -0.8, 0.1, 0.7, -0.4]):
        if latent is not None:
            twin = NerfField(**{**vars(twin), "latent": np.array(latent)})
        raw, density = twin.raw(ngp, directions[:, [1, 2, 0]].astype(np.float64))
        keys = {"image": 0} if latent is None else {"latent": latent}
        rgb, sigma = testbed.query(points, directions, **keys)
        close = np.isclose(np.log(sigma * world["scale"] ** -1), density, atol=1e-3)
        assert close.mean() > 0.98  # positions of the twin are not float32: a few are in another cell
        np.testing.assert_allclose(rgb[close], twin.rgb_activation(raw)[close], atol=1e-3)


def test_evaluation(device, with_inputs, tiny):
    """pyngp eval takes the rendering's appearance, and lights of the frames."""
    frames = read_scene(tiny.test).frames[:2]
    images = load_images(frames)
    found = [evaluate(loaded(with_inputs("latents"), d), frames, images).psnr for d in (device, "cpu")]
    assert found[0] == pytest.approx(found[1], abs=0.05) and found[1] > 8


# --- ground truth


def test_ground_truth_of_images_on_the_device(cuda, snapshot_of, tiny):
    """Pixels are fetched from where they are."""
    source = loaded(snapshot_of("cpu"), cuda)
    keys = {"intrinsics": INTRINSICS, "channels": ("rgb",), "out": "device"}
    pictures = [source.render_channels(p, SIZE, SIZE, **keys)["rgb"] for p in tiny.poses[:2]]
    testbed = Testbed(device=cuda)
    testbed.set_images(pictures, tiny.poses[:2], INTRINSICS)
    testbed.render_ground_truth, testbed.background_color = True, [0, 0, 0, 0]
    for i, wanted in enumerate(pictures):
        testbed.set_camera_to_training_view(i)
        seen = testbed.render(SIZE, SIZE, 1, True)
        np.testing.assert_allclose(seen[..., :3], wanted.numpy(), atol=1e-6)
        assert (seen[..., 3] == 1).all() and linear_to_srgb(seen[..., :3]).max() > 0.2
