"""Per-image latents and light directions: pictures of one scene in different colours and light, and what is learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fields.tiny_scene import FOCAL, INTRINSICS, SIZE, photograph, poses, transforms
from numpy.typing import NDArray
from PIL import Image
from pyngp import Testbed, _core
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate, evaluation_settings, on_black
from pyngp.images import linear_to_srgb
from pyngp.metrics import psnr
from reference import color, compositing, march, nerf_render, occupancy
from reference import snapshot as reader
from reference.rng import RAY_STRIDE, STEP_STRIDE, Pcg32

N_LATENT, N_VIEWS, N_TEST = 4, 40, 4
STEPS, BATCH = 900, 8192
CONFIG = json.loads(_core.base_nerf_config())  # smaller, so that it trains in seconds
CONFIG["encoding"] |= {"log2_hashmap_size": 13, "n_levels": 6, "n_features_per_level": 2}
CONFIG["network"]["n_neurons"] = CONFIG["rgb_network"]["n_neurons"] = 32
FIT_STREAM = 5  # of random numbers (cpp/ngp/testbed_latents.cpp)
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class CastScene:
    """The tiny scene, each picture with a colour cast of its own."""

    images: NDArray[np.uint8]
    poses: F64
    test_images: NDArray[np.uint8]
    test_poses: F64

    def testbed(self, device: str, n_latent: int = N_LATENT) -> Testbed:
        testbed = Testbed(device=device, config=CONFIG, deterministic=True)
        testbed.set_images(self.images, self.poses, INTRINSICS, n_extra_learnable_dims=n_latent)
        return testbed


def cast_pictures(cameras: F64, r: np.random.Generator) -> NDArray[np.uint8]:
    return np.stack([photograph(pose, 2, gain=r.uniform(0.45, 1.0, size=3)) for pose in cameras])


@pytest.fixture(scope="module")
def cast() -> CastScene:
    r = np.random.default_rng(1)
    cameras, test_cameras = poses(N_VIEWS), poses(N_TEST, phase=1.2)
    return CastScene(cast_pictures(cameras, r), cameras, cast_pictures(test_cameras, r), test_cameras)


@pytest.fixture(scope="module")
def cast_snapshot(cast: CastScene, device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    testbed = cast.testbed(device)
    testbed.fit(STEPS, batch_size=BATCH)
    path = tmp_path_factory.mktemp("latents") / "cast.ingp"
    testbed.save_snapshot(path)
    return path


@pytest.fixture
def trained_on_cast(cast_snapshot: Path, device: str) -> Testbed:
    testbed = Testbed(device=device, deterministic=True)
    testbed.load_snapshot(cast_snapshot)
    return testbed


def psnr_of(testbed: Testbed, pose: F64, picture: NDArray[np.uint8], columns: slice, **appearance: object) -> float:
    out = testbed.render_channels(pose, SIZE, SIZE, intrinsics=INTRINSICS, channels=("rgb",), **appearance)  # type: ignore[call-overload]
    return psnr(linear_to_srgb(out["rgb"])[:, columns], on_black(picture)[:, columns])


def test_a_latent_fitted_to_one_half_beats_that_of_image_0_on_the_other(cast, trained_on_cast, device):
    """Also a field without latents, which can only learn what the casts are on average."""
    testbed, left, right = trained_on_cast, slice(0, SIZE // 2), slice(SIZE // 2, SIZE)
    plain = cast.testbed(device, 0)
    plain.fit(STEPS, batch_size=BATCH)
    rows = []
    with evaluation_settings(testbed), evaluation_settings(plain):
        for pose, picture in zip(cast.test_poses, cast.test_images, strict=True):
            latent = testbed.fit_latent(picture, pose, intrinsics=INTRINSICS, region="left")
            assert latent.shape == (N_LATENT,) and latent.dtype == np.float32
            fitted = psnr_of(testbed, pose, picture, right, latent=latent)
            first = psnr_of(testbed, pose, picture, right, image=0)
            without = psnr_of(plain, pose, picture, right)
            rows.append((fitted, first, without))
            print(
                f"right half: fitted to the left half {fitted:.2f} dB, image 0's latent {first:.2f}, "
                f"no latents {without:.2f}; left half {psnr_of(testbed, pose, picture, left, latent=latent):.2f}"
            )
    fitted, first, without = np.array(rows).T
    assert np.all(fitted > first + 1) and fitted.mean() > first.mean() + 2
    assert fitted.mean() > without.mean() + 1


# --- gradient of a fit's loss ---------------------------------------------------------------------------------------


@dataclass
class FitTwin:
    """The rays of a fit's step in float64, from the snapshot's file and the generator alone (E.4)."""

    field: nerf_render.NerfField
    rays: list[tuple[F64, F64, F64, F64, F64]]  # features, directions, dt, background, target

    def loss(self, latent: F64) -> float:
        """Mean over rays and channels."""
        lit = nerf_render.NerfField(**{**vars(self.field), "latent": latent})
        total = 0.0
        for features, directions, dt, background, target in self.rays:
            rgb, density = lit.color(features, directions)
            total += compositing.ray_loss(rgb, density, dt, background, target) / 3
        return total / len(self.rays)


def fit_twin(path: Path, image: NDArray[np.uint8], view: int, pixels: list[int], n_rays: int, step: int) -> FitTwin:
    loaded = reader.load(path)
    field = nerf_render.field_from_snapshot(loaded)
    bits = occupancy.occupied_cells(loaded.density_grid)
    rng = Pcg32(1337, FIT_STREAM)
    rng.advance(step * STEP_STRIDE)
    twin = FitTwin(field, [])
    for i in range(n_rays):
        draw = Pcg32(1337, FIT_STREAM)
        draw.state = rng.state
        draw.advance(i * RAY_STRIDE)
        u, _ = draw.next_float(), draw.next_float()
        background = np.array([draw.next_float() for _ in range(3)], np.float64)
        start = float(draw.next_float())
        y, x = divmod(pixels[int(u * np.float32(len(pixels)))], SIZE)
        uv = np.array([[(x + 0.5) / SIZE, (y + 0.5) / SIZE]])
        rays = nerf_render.camera_rays(loaded.cameras[view].pose, uv, (SIZE, SIZE), (FOCAL, FOCAL))
        found = march.march_ray(rays.origin[0], rays.direction[0], bits, ((0, 0, 0), (1, 1, 1)), jitter=start)
        t, dt = (np.array(column) for column in zip(*found, strict=True)) if found else (np.zeros(0), np.zeros(0))
        rgba = image[y, x] / 255
        alpha = rgba[3]
        premultiplied = np.append(color.srgb_to_linear(rgba[:3]) * alpha, alpha)
        target, _ = compositing.blend_target(premultiplied, color.srgb_to_linear(background))
        directions = np.broadcast_to(rays.direction, (len(t), 3))
        features = field.features(rays.origin + t[:, None] * rays.direction)
        twin.rays.append((features, directions, dt, background, target))
    return twin


def test_gradient_of_a_fit_against_finite_differences(cast, cast_snapshot, trained_on_cast):
    view, step, n_rays = 7, 3, 48
    pixels = [y * SIZE + x for y in range(10, 38) for x in range(10, 24)]
    twin = fit_twin(cast_snapshot, cast.images[view], view, pixels, n_rays, step)
    fit = _core.LatentFit(
        cast.images[view], cast.poses[view], (FOCAL, FOCAL), (0.5, 0.5), _core.Lens()
    )  # fmt: skip
    fit.pixels, fit.rays_per_step = pixels, n_rays
    latent = np.array([0.3, -0.6, 0.9, 0.1], np.float32)
    loss, gradient = trained_on_cast.latent_gradient(fit, latent, step)
    # float32 rounds raw outputs to some 1e-5: so much of colours, ten times of their differences from targets, and of
    # gradients, whose terms cancel a little. A march step more or less would be off by a percent.
    wanted = twin.loss(latent.astype(np.float64))
    assert loss == pytest.approx(wanted, rel=2e-4)
    h = 1e-5  # Huber's curvature jumps: its error is h
    slopes = []
    for k in range(N_LATENT):
        z = latent.astype(np.float64) + np.outer([h, -h], np.eye(N_LATENT)[k])
        slopes.append((twin.loss(z[0]) - twin.loss(z[1])) / (2 * h))
    np.testing.assert_allclose(gradient, slopes, atol=5e-4 * np.abs(slopes).max(), rtol=0)
    assert np.abs(slopes).max() > 1e-3  # the test means something


def test_fits_go_downhill_and_repeat(cast, trained_on_cast):
    testbed, image, pose = trained_on_cast, cast.test_images[1], cast.test_poses[1]
    fit = _core.LatentFit(image, pose, (FOCAL, FOCAL), (0.5, 0.5), _core.Lens())
    fit.steps = 120
    before = testbed.params()
    latent, losses = testbed.fit_latent_to(fit)
    assert len(losses) == 120 and losses[-20:].mean() < 0.8 * losses[:5].mean()
    again, _ = testbed.fit_latent_to(fit)
    np.testing.assert_array_equal(latent, again)
    np.testing.assert_array_equal(before, testbed.params())
    mean = np.mean([testbed.nerf.training.get_extra_dims(i) for i in range(N_VIEWS)], axis=0)
    fit.steps = 0
    np.testing.assert_allclose(testbed.fit_latent_to(fit)[0], mean, atol=1e-6)
    fit.initial = [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(testbed.fit_latent_to(fit)[0], fit.initial)


def test_regions(cast, trained_on_cast):
    """Only the region's pixels count, and a mask is what a half's name stands for."""
    testbed, image, pose = trained_on_cast, cast.test_images[0], cast.test_poses[0]
    arguments = {"intrinsics": INTRINSICS, "steps": 20}
    left = np.zeros((SIZE, SIZE), bool)
    left[:, : SIZE // 2] = True
    spoilt = image.copy()
    spoilt[:, SIZE // 2 :] = 77
    latents = [
        testbed.fit_latent(image, pose, region="left", **arguments),
        testbed.fit_latent(image, pose, region=left, **arguments),
        testbed.fit_latent(spoilt, pose, region="left", **arguments),
    ]
    np.testing.assert_array_equal(latents[0], latents[1])
    np.testing.assert_array_equal(latents[0], latents[2])
    assert not np.array_equal(latents[0], testbed.fit_latent(image, pose, **arguments))
    for region, words in (
        ("middle", "left, right"),
        (left[1:], "shape"),
        (left * 1, "bools"),
        (left & False, "no pixel"),
    ):
        with pytest.raises(ValueError, match=words):
            testbed.fit_latent(image, pose, region=region, **arguments)
    with pytest.raises(ValueError, match="image"):
        testbed.fit_latent(image[..., :2], pose, **arguments)
    with pytest.raises(RuntimeError, match="4 finite values; 3"):
        testbed.fit_latent(image, pose, initial=[0, 0, 0], **arguments)
    with pytest.raises(RuntimeError, match="rays_per_step"):
        testbed.fit_latent(image, pose, rays_per_step=0, **arguments)


# --- light directions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LitScene:
    train: Path
    test: Path
    lights: F64  # of the training views, unit, world frame


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> LitScene:
    """The tiny scene with another light in every picture, as files with driver_parameters (C.3)."""
    folder = tmp_path_factory.mktemp("lit")
    r = np.random.default_rng(2)
    lights = {}
    for name, cameras in (("train", poses(80)), ("test", poses(N_TEST, phase=1.2))):
        (folder / name).mkdir()
        found = r.normal(size=(len(cameras), 3)) + np.array([0, 0, 0.7])
        lights[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
        files = [f"{name}/{i}.png" for i in range(len(cameras))]
        document = transforms(files, cameras)
        for file, pose, light, frame in zip(files, cameras, lights[name], document["frames"], strict=True):
            Image.fromarray(photograph(pose, 2, light=light)).save(folder / file)
            x, y, z = (2.5 * light).tolist()  # lengths don't matter
            frame["driver_parameters"] = {"LightX": x, "LightY": y, "LightZ": z}
        (folder / f"{name}.json").write_text(json.dumps(document))
    return LitScene(folder / "train.json", folder / "test.json", lights["train"])


@pytest.fixture(scope="module")
def lit_testbed(lit: LitScene, device: str) -> Callable[[bool], Testbed]:
    @cache
    def train(with_lights: bool) -> Testbed:
        path = lit.train
        if not with_lights:
            document = json.loads(path.read_text())
            for frame in document["frames"]:
                del frame["driver_parameters"]
            path = path.with_name("unlit.json")
            path.write_text(json.dumps(document))
        testbed = Testbed(data=path, config=CONFIG, device=device, deterministic=True)
        testbed.fit(STEPS, batch_size=BATCH)
        return testbed

    return train


def test_light_directions_help(lit, lit_testbed):
    frames = read_scene(lit.test).frames
    images = load_images(frames)
    found = {on: evaluate(lit_testbed(on), frames, images).psnr for on in (False, True)}
    print(f"test views in light of their own: {found[False]:.2f} dB without light directions, {found[True]:.2f} with")
    assert found[True] > found[False] + 1


def test_light_directions_are_inputs(lit, lit_testbed, tmp_path, device):
    """(d + 1) / 2 with axes cycled as all directions are (C.5), not trained, and kept in snapshots."""
    testbed = lit_testbed(True)
    data = testbed.nerf.training.dataset
    assert data.has_light_dirs and data.n_extra_learnable_dims == 0 and testbed.n_extra_dims == 3
    assert not testbed.nerf.training.optimize_extra_dims
    for i in (0, 5):
        np.testing.assert_allclose(data.metadata[i].light_dir, lit.lights[i][[1, 2, 0]], atol=1e-6)
        wanted = (lit.lights[i][[1, 2, 0]] + 1) / 2
        np.testing.assert_allclose(testbed.nerf.training.get_extra_dims(i), wanted, atol=1e-6)

    def picture(t: Testbed, **light: object) -> NDArray[np.float32]:
        return t.render_channels(poses(3)[1], 12, 12, fov_x=40, channels=("rgb",), **light)["rgb"]  # type: ignore[call-overload]

    first = picture(testbed)
    np.testing.assert_array_equal(first, picture(testbed, image=0))
    np.testing.assert_allclose(first, picture(testbed, light_direction=4 * lit.lights[0]), atol=1e-5)
    assert np.abs(first - picture(testbed, light_direction=lit.lights[5])).max() > 0.02
    testbed.nerf.set_rendering_light_dir(lit.lights[5])
    np.testing.assert_array_equal(picture(testbed), picture(testbed, light_direction=lit.lights[5]))
    testbed.nerf.set_rendering_extra_dims_from_training_view(0)
    for direction in ((0, 0, 0), (np.nan, 0, 1)):
        with pytest.raises(RuntimeError, match="light direction"):
            testbed.nerf.set_rendering_light_dir(direction)

    testbed.save_snapshot(tmp_path / "lit.ingp")
    other = Testbed(device=device)
    other.load_snapshot(tmp_path / "lit.ingp")
    np.testing.assert_allclose(picture(other), first, atol=0.02)  # parameters became halves
    assert other.nerf.training.get_extra_dims(5) == testbed.nerf.training.get_extra_dims(5)
    # Data that names no lights keeps the network.
    other.load_training_data(lit.train.with_name("unlit.json"))
    assert other.training_step == STEPS and other.n_extra_dims == 3
    other.fit(1, batch_size=1024)


def test_changed_lights_count(lit, device):
    """Metadata is live: the next step, and pictures, see another light."""
    testbed = Testbed(data=lit.train, config=CONFIG, device=device)
    view = testbed.nerf.training.dataset.metadata[2]
    view.light_dir = [0, 1, 0]
    assert testbed.nerf.training.get_extra_dims(2) == [0.5, 1.0, 0.5]


def test_lights_from_arrays(cast):
    lights = np.tile([0.0, 0.0, 3.0], (N_VIEWS, 1))
    testbed = Testbed(device="cpu", config=CONFIG)
    testbed.set_images(cast.images, cast.poses, INTRINSICS, light_directions=lights, n_extra_learnable_dims=8)
    assert testbed.n_extra_dims == 3 and testbed.nerf.training.dataset.n_extra_learnable_dims == 0
    assert testbed.nerf.training.get_extra_dims(4) == [0.5, 1.0, 0.5]  # z of the world is y
    with pytest.raises(ValueError, match="light_directions"):
        testbed.set_images(cast.images, cast.poses, INTRINSICS, light_directions=lights[:3])
    lights[3] = 0
    with pytest.raises(RuntimeError, match="image 3: its light direction"):
        testbed.set_images(cast.images, cast.poses, INTRINSICS, light_directions=lights)
