"""What compute-sanitizer is run on: every kernel of cuda/ and every instance of its templates, with little work.

    compute-sanitizer --tool memcheck|racecheck|initcheck python -m pytest tests/fields/test_every_kernel.py

Under these tools time goes by memory accesses, and racecheck's by those of shared memory. So models get some hundred
samples; and the engine starts where occupancy updates are small, with nearly all of the grid empty: an update of a new
model evaluates two million cells, and rays through them take 700 samples each. All of it also runs on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import SMALL_CONFIG
from fields.test_devices import GENERAL, KINDS, mlps, with_sections
from fields.tiny_scene import poses
from pyngp import OccupancySchedule, Testbed, TrainMode, _core
from pyngp._core import stages
from reference import occupancy

KIB = 1024
N = 193  # samples: a whole tile of the backward pass, and a part of one
WIDTHS = (16, 32, 64, 128)
# KiB of shared memory with which the backward pass takes tiles of 64 and 32 samples, where rendering allows those, or
# (width 128) leaves the model to the general kernels. Tiles of 128, 64 and 32 samples need, with one and two hidden
# layers of the rgb network, then rendering: width 16: 42 23 13, 49 27 15, 28 to 29; width 32: 54 30 19, 66 38 24, 32 to
# 34; width 64: 77 45 30, 104 63 43, 39 to 48.
SMALLER = {16: (36,), 32: (44, 36), 64: (70, 55, 42), 128: (64,)}
GRID = {"otype": "HashGrid", "n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 5, "per_level_scale": 1.6}
STEP, BATCH = 272, 1024  # an update of the occupancy grid then takes 5461 samples: those of 16 steps, by 3


def stages_of_training(config: dict[str, Any], device: str, deterministic: bool, max_shared_bytes: int = 0) -> None:
    """All that a model does, twice: the second time with what the first left behind."""
    r = np.random.default_rng(1)
    positions, directions = r.random((N, 3), np.float32), r.normal(size=(N, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    d_raw = r.normal(size=(N, 4)).astype(np.float32)
    options = {"deterministic": deterministic, "max_shared_bytes": max_shared_bytes}
    model, of_inputs = (
        stages.Model(
            json.dumps(config), 1, positions, directions, d_raw, device=device, input_gradients=wanted, **options
        )
        for wanted in (False, True)
    )
    params = (0.3 * r.normal(size=model.params().size)).astype(np.float32)
    of_inputs.set_params(params)
    of_inputs.forward_backward()
    assert np.all(np.isfinite(of_inputs.input_gradients()))
    model.set_params(params)
    before = model.params()
    for _ in range(2):
        model.encode()
        model.forward()
        model.forward_backward()
        model.scatter()
        assert np.all(np.isfinite(model.gradient())) and np.any(model.gradient() != 0)
        model.optimize()
    for values in (model.encoded(), model.raw(), model.density_gradient(), model.averaged()):
        assert np.all(np.isfinite(values))
    assert not np.array_equal(model.params(), before)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_network(kind, deterministic, device):
    """Every encoding and every shape of network."""
    config = with_sections(SMALL_CONFIG, KINDS[kind])
    if "n_levels" in config["encoding"]:
        config["encoding"] = config["encoding"] | {"log2_hashmap_size": 8}
    stages_of_training(config, device, deterministic)


@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
def test_grids(n_features, device):
    """The scatter and the optimizer by features, over two and three dimensions, nearest, added up either way."""
    grids = ({}, {"n_dims_to_encode": 2}, {"interpolation": "Nearest"})
    for grid in (GRID | {"n_features_per_level": n_features} | changes for changes in grids):
        two = "n_dims_to_encode" in grid
        encoding = {"otype": "Composite", "nested": [grid, {"otype": "Identity"}]} if two else grid
        for deterministic in (False, True):
            stages_of_training(SMALL_CONFIG | {"encoding": encoding}, device, deterministic)


@pytest.mark.parametrize("n_hidden", [1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_fused_backward(width, n_hidden, device):
    """Every tile of the backward pass: less shared memory, smaller tiles; in the end the general kernels."""
    config = SMALL_CONFIG | {"encoding": GRID} | mlps("FullyFusedMLP", (width, 1), (width, n_hidden))
    for kib in (0, *SMALLER[width]) if device != "cpu" else (0,):
        stages_of_training(config, device, False, kib * KIB)


# --- the engine


@cache
def ball(radius: float, cascades: int) -> np.ndarray:
    """Occupancy values with nothing but a ball in the middle of the finest cascade."""
    centre = occupancy.cell_centre(occupancy.morton_inverse(np.arange(occupancy.N_CELLS)), 0)
    values = np.zeros((cascades, occupancy.N_CELLS), np.float16)
    values[0, np.linalg.norm(centre - 0.5, axis=1) < radius] = 0.05
    return values


def scene(testbed: Testbed, aabb_scale: int, n: int = 2) -> None:
    """Noise for images: two of 20x17 pixels."""
    images = np.random.default_rng(2).integers(256, size=(n, 17, 20, 4), dtype=np.uint8)
    testbed.set_images(images, poses(n), (25.0, 25.0, 10.0, 8.5), aabb_scale=aabb_scale)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("every_kernel")


def empty_grid(testbed: Testbed, path: Path, aabb_scale: int) -> None:
    """Brings a model to STEP and its occupancy grid to ball()."""
    testbed.save_snapshot(path, compress=False)
    document = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    state = document["snapshot"]
    state["training_step"] = STEP
    state["density_grid_binary"] = ball(0.05, aabb_scale.bit_length()).tobytes()
    path.write_bytes(msgpack.packb(document))
    testbed.load_snapshot(path)


def started(config: dict[str, Any], device: str, folder: Path, deterministic: bool, aabb_scale: int) -> Testbed:
    """A model at STEP with an occupancy grid that is nearly empty: few samples, many rays."""
    testbed = Testbed(config=config, device=device, deterministic=deterministic)
    scene(testbed, aabb_scale)
    empty_grid(testbed, folder / "start.msgpack", aabb_scale)
    assert testbed.training_step == STEP
    testbed.nerf.training.occupancy_schedule = OccupancySchedule.Budgeted  # small updates: before steps 272, 288, ...
    return testbed


ENGINES = {
    **{f"{width}": (mlps("FullyFusedMLP", (width, 1), (width, 2)), 1) for width in WIDTHS},
    "general": (GENERAL, 1),
    "cascades": ({}, 4),
    "general cascades": (GENERAL, 4),
}


@pytest.mark.parametrize("name", ENGINES)
def test_engine(name, device, folder):
    """Training with and without captured steps, pictures, queries and snapshots; gradients added up either way."""
    sections, aabb_scale = ENGINES[name]
    deterministic = name in ("16", "general")
    testbed = started(SMALL_CONFIG | sections, device, folder, deterministic, aabb_scale)
    training = testbed.nerf.training
    rays: list[int] = []
    testbed.fit(4, batch_size=BATCH, callback=lambda t: rays.append(t.stats()["rays_per_step"]))
    assert max(rays) > 256  # so many a block orders
    assert testbed.stats()["samples_per_step"] > 0 and np.isfinite(testbed.loss) and testbed.loss > 0
    training.occupancy_schedule = OccupancySchedule.Specification  # without visits by training; no update before 288
    testbed.set_profiling(True)
    testbed.fit(1, batch_size=BATCH)
    testbed.set_profiling(False)
    testbed.shall_train_encoding = False
    testbed.fit(2, batch_size=BATCH // 2)
    assert np.isfinite(testbed.loss)
    switch_options(testbed, True)
    testbed.fit(3, batch_size=BATCH // 2)
    assert np.isfinite(testbed.loss) and testbed.image_exposures().any() and testbed.distortion_map().any()
    switch_options(testbed, False)

    channels = testbed.render_channels(poses(1)[0], 9, 5, fov_x=10, spp=2)
    rgba, depth = testbed.render_with_depth(9, 5, 1, False)
    assert all(np.all(np.isfinite(a)) for a in (channels["rgb"], channels["normal"], rgba, depth))
    assert channels["alpha"].max() > 0
    # Rays with origins of their own; activations, which the general network shows of every model.
    testbed.set_nerf_camera_matrix(poses(1)[0])
    testbed.aperture_size, testbed.slice_plane_z = 0.01, -0.5
    assert np.all(np.isfinite(testbed.render(9, 5, 2)))
    testbed.visualized_dimension, testbed.visualized_layer = 1, 3
    assert np.all(np.isfinite(testbed.render(9, 5, 2)))
    testbed.visualized_dimension, testbed.aperture_size = -1, 0.0
    r = np.random.default_rng(3)
    points, directions = r.uniform(-1, 1, (67, 3)), np.tile([0.6, 0.0, 0.8], (67, 1))
    rgb, density = testbed.query(points, directions)
    assert np.array_equal(density, testbed.query(points)) and np.all(np.isfinite(rgb))
    assert np.all(np.isfinite(testbed.query(points, occupancy=True)))

    path = folder / "state.msgpack"
    testbed.save_snapshot(path, include_optimizer_state=True, compress=False)
    params = testbed.params()
    testbed.fit(1, batch_size=BATCH)
    testbed.load_snapshot(path)
    assert np.array_equal(testbed.params(), params)


def switch_options(testbed: Testbed, on: bool) -> None:
    """Options whose kernels training has only for them: random levels, maps of errors, learned cameras."""
    testbed.max_level_rand_training = on
    training = testbed.nerf.training
    training.train_mode = TrainMode.Rfl if on else TrainMode.Nerf
    training.n_steps_between_cam_updates = 2
    for name in ("image", "focal_plane"):
        setattr(training, f"sample_{name}_proportional_to_error", on)
    for name in ("extrinsics", "exposure", "distortion", "focal_length"):
        setattr(training, f"optimize_{name}", on)


def test_error_maps(device, folder):
    """Over an end of their first interval, whose errors count in proportion to sharpness."""
    testbed = started(SMALL_CONFIG, device, folder, True, 1)
    training = testbed.nerf.training
    training.occupancy_schedule = OccupancySchedule.Specification
    training.sample_image_proportional_to_error = training.sample_focal_plane_proportional_to_error = True
    training.include_sharpness_in_error = True
    testbed.fit(16, batch_size=256)
    path = folder / "errors.msgpack"
    testbed.save_snapshot(path, include_optimizer_state=True, compress=False)
    document = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    document["snapshot"]["pyngp"]["train_state"]["error_map"]["steps"] = 128
    path.write_bytes(msgpack.packb(document))
    testbed.load_snapshot(path)
    testbed.fit(2, batch_size=256)
    assert np.isfinite(testbed.loss)


def test_latents(device, folder):
    """Their forward and backward pass, their optimizer, and a fit to a picture."""
    testbed = Testbed(config=json.loads(_core.base_nerf_config()) | SMALL_CONFIG, device=device, deterministic=True)
    images = np.random.default_rng(2).integers(256, size=(2, 17, 20, 4), dtype=np.uint8)
    testbed.set_images(images, poses(2), (25.0, 25.0, 10.0, 8.5), n_extra_learnable_dims=3)
    path = folder / "latents.msgpack"
    empty_grid(testbed, path, 1)
    testbed.nerf.training.occupancy_schedule = OccupancySchedule.Budgeted
    before = np.array([testbed.nerf.training.get_extra_dims(i) for i in range(2)])
    testbed.fit(2, batch_size=BATCH)
    after = np.array([testbed.nerf.training.get_extra_dims(i) for i in range(2)])
    assert np.all(np.isfinite(after)) and np.all(after != before)
    fit = _core.LatentFit(images[0], poses(1)[0], (25.0, 25.0), (0.5, 0.5), _core.Lens())
    fit.rays_per_step = 150
    loss, gradient = testbed.latent_gradient(fit, after[0].astype(np.float32), 0)
    assert np.isfinite(loss) and np.any(gradient != 0)


def test_inputs_of_views(device):
    """Latents in pictures and queries of an untrained model."""
    nested = [{"otype": "SphericalHarmonics", "n_dims_to_encode": 3, "degree": 4}, {"otype": "Identity"}]
    config = SMALL_CONFIG | {"encoding": GRID, "dir_encoding": {"otype": "Composite", "nested": nested}}
    testbed = Testbed(config=config, device=device)
    images = np.random.default_rng(2).integers(256, size=(2, 17, 20, 4), dtype=np.uint8)
    testbed.set_images(images, poses(2), (25.0, 25.0, 10.0, 8.5), n_extra_learnable_dims=3)
    for normals in (False, True):
        channels = ("rgb", "normal") if normals else ("rgb",)
        out = testbed.render_channels(poses(1)[0], 4, 3, fov_x=20, channels=channels, image=1)
        assert all(np.all(np.isfinite(a)) for a in out.values())
    points, directions = np.zeros((67, 3)), np.tile([0.6, 0.0, 0.8], (67, 1))
    assert not np.array_equal(*(testbed.query(points, directions, image=i)[0] for i in (0, 1)))


def test_occupancy(device):
    """Bits, coarser cascades, clearances."""
    values = ball(0.1, 3).astype(np.float32)
    bits = stages.occupancy_bits(values, device).reshape(values.shape)
    assert np.array_equal(bits, occupancy.occupied_cells(values)) and bits.any(axis=1).all()
    assert stages.occupancy_clearance(values, device).max() == 8


def test_device_arrays(cuda, folder):
    """Results that stay on the device; arguments that lie there, and are looked at for what is not finite."""
    testbed = started(SMALL_CONFIG, cuda, folder, False, 1)
    rgb = testbed.render_channels(poses(1)[0], 9, 5, fov_x=10, out="device")["rgb"]
    assert rgb.shape == (5, 9, 3) and np.all(np.isfinite(rgb.numpy()))
    density = testbed.query(rgb[0])
    assert density.shape == (9,) and np.all(np.isfinite(density.numpy()))
    testbed.set_images([rgb, rgb], poses(2), (25.0, 25.0, 4.5, 2.5))
    testbed.fit(1, batch_size=BATCH)
    assert np.isfinite(testbed.loss)


def test_ceilings(cuda):
    """What benchmarks measure a device with."""
    ceilings = stages.cuda_ceilings(cuda)
    assert len(ceilings) == 4 and min(ceilings.values()) > 0
