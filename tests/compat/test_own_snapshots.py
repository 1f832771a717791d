"""Snapshots that we write: the keys of part D, an independent reader, optimizer state, dispatch of load_file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from fields.tiny_scene import INTRINSICS, SIZE, TinyScene
from pyngp import ColorSpace, OccupancySchedule, Testbed, _core
from reference import nerf_render, occupancy
from reference import snapshot as reader

FLOAT, INT = (float, int), (int,)
BOX = {"min": [FLOAT] * 3, "max": [FLOAT] * 3}
MATRIX = [[FLOAT] * 4] * 3
REFINED = {
    **dict.fromkeys(("first_moment", "second_moment", "variable"), [FLOAT] * 3),
    **dict.fromkeys(("learning_rate", "epsilon", "beta1", "beta2"), FLOAT),
    "iter": INT,
}
# Part D.2; None: not looked into.
SCHEMA: dict[str, Any] = {
    "version": INT, "mode": (str,), "n_params": INT, "params_type": (str,), "params_binary": (bytes,),
    "training_step": INT, "loss": FLOAT, "aabb": BOX, "render_aabb": BOX,
    "render_aabb_to_local": [[FLOAT] * 3] * 3, "bounding_radius": FLOAT, "up_dir": [FLOAT] * 3,
    "sun_dir": [FLOAT] * 3, "exposure": FLOAT, "background_color": [FLOAT] * 4, "density_grid_size": INT,
    "density_grid_binary": (bytes,),
    "camera": {
        "matrix": MATRIX, "fov_axis": INT, "relative_focal_length": [FLOAT] * 2,
        "screen_center": [FLOAT] * 2, "zoom": FLOAT, "scale": FLOAT, "aperture_size": FLOAT,
        "autofocus": (bool,), "autofocus_target": [FLOAT] * 3, "autofocus_depth": FLOAT,
    },
    "nerf": {
        "aabb_scale": INT,
        "rgb": {
            "rays_per_batch": INT, "measured_batch_size": INT, "measured_batch_size_before_compaction": INT,
        },
        "cam_pos_offset": [REFINED] * 20, "cam_rot_offset": [REFINED] * 20, "extra_dims_opt": None,
        "dataset": {
            "n_images": INT, "paths": [(str,)] * 20, "render_aabb": None,
            "metadata": [{
                "focal_length": [FLOAT] * 2, "lens": (type(None),), "principal_point": [FLOAT] * 2,
                "rolling_shutter": [FLOAT] * 4, "resolution": [INT] * 2,
            }] * 20,
            "xforms": [{"start": MATRIX, "end": MATRIX}] * 20,
            "render_aabb_to_local": [[FLOAT] * 3] * 3, "up": [FLOAT] * 3, "offset": [FLOAT] * 3,
            "envmap_resolution": [INT] * 2, "scale": FLOAT, "aabb_scale": INT, "from_mitsuba": (bool,),
            "is_hdr": (bool,), "wants_importance_sampling": (bool,), "n_extra_learnable_dims": INT,
        },
    },
}  # fmt: skip


def check(value: Any, schema: Any, where: str = "snapshot") -> None:
    if schema is None:
        return
    if isinstance(schema, dict):
        assert isinstance(value, dict) and schema.keys() == value.keys(), where
        for key, inner in schema.items():
            check(value[key], inner, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and len(value) == len(schema), where
        for i, inner in enumerate(schema):
            check(value[i], inner, f"{where}[{i}]")
    else:
        assert isinstance(value, schema) and (bool in schema or not isinstance(value, bool)), where


def unpack(path: Path) -> dict[str, Any]:
    return msgpack.unpackb(reader.decompress(path.read_bytes()), strict_map_key=False)


@pytest.fixture(scope="module")
def exact(tiny: TinyScene, device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with optimizer state after 20 steps of the base network with a small table."""
    testbed = Testbed(data=tiny.train, config="base_12", device=device, deterministic=True)
    testbed.fit(20, batch_size=2048)
    path = tmp_path_factory.mktemp("exact") / "exact.ingp"
    testbed.save_snapshot(path, include_optimizer_state=True)
    return path


def test_keys_and_types(trained_snapshot):
    document = unpack(trained_snapshot)
    state = document.pop("snapshot")
    assert {"encoding", "network", "dir_encoding", "rgb_network", "loss", "optimizer"} <= document.keys()
    assert "settings" in state.pop("pyngp")
    check(state, SCHEMA)
    assert (state["version"], state["mode"], state["params_type"]) == (1, "nerf", "__half")
    assert len(state["params_binary"]) == 2 * state["n_params"]
    assert len(state["density_grid_binary"]) == 2 * 128**3
    assert "per_level_scale" not in document["encoding"]


def test_optimizer_state(exact):
    """The nest of D.6, one value a parameter."""
    state = unpack(exact)["snapshot"]
    n = state["n_params"]
    ema = state["optimizer"]
    assert ema.keys() == {"weights_ema_binary", "nested"}
    assert ema["weights_ema_binary"] == state["params_binary"]
    decay = ema["nested"]
    assert decay.keys() == {"learning_rate", "learning_rate_factor", "nested"}
    assert decay["learning_rate"] == pytest.approx(1e-2) and decay["learning_rate_factor"] == 1
    adam = decay["nested"]
    keys = {"first_moments_binary", "second_moments_binary", "param_steps_binary"}
    assert adam.keys() == keys | {"current_step", "base_learning_rate"}
    assert adam["current_step"] == 20 and adam["base_learning_rate"] == pytest.approx(1e-2)
    assert all(len(adam[key]) == 4 * n for key in keys)
    steps = np.frombuffer(adam["param_steps_binary"], np.uint32)
    n_mlp = 10240
    assert (steps[:n_mlp] == 20).all() and steps.max() == 20
    assert 0 < np.mean(steps[n_mlp:] == 0) < 1, "entries that no sample touched keep step 0"
    moments = np.frombuffer(adam["second_moments_binary"], np.float32)
    # By entry of four features, of which halves let a small one vanish.
    some, touched = (a[n_mlp:].reshape(-1, 4) > 0 for a in (moments, steps))
    assert (touched.all(axis=1) == touched.any(axis=1)).all()
    assert (some.any(axis=1) == touched.any(axis=1)).mean() > 0.99


def test_an_independent_reader_renders_it(trained_snapshot, trained, tiny):
    """The float64 twin, from the file alone, against render_channels."""
    loaded = reader.load(trained_snapshot)
    np.testing.assert_array_equal(loaded.params.astype(np.float32), trained.params())
    np.testing.assert_array_equal(loaded.density_grid.ravel().astype(np.float32), trained.density_grid())
    field = nerf_render.field_from_snapshot(loaded)
    bits = occupancy.occupied_cells(loaded.density_grid)
    rows, columns = np.meshgrid(np.arange(2, SIZE, 6), np.arange(1, SIZE, 6), indexing="ij")
    camera = loaded.cameras[4]
    assert camera.resolution == (SIZE, SIZE)
    uv = np.stack([(columns.ravel() + 0.5) / SIZE, (rows.ravel() + 0.5) / SIZE], axis=1)
    rays = nerf_render.camera_rays(camera.pose, uv, camera.resolution, tuple(camera.focal))
    options = nerf_render.RenderOptions(cone=0.0, min_transmittance=1e-4)
    got, _ = nerf_render.render_pixels(field, bits, rays, options, 4)
    trained.nerf.render_min_transmittance = 1e-4
    trained.snap_to_pixel_centers = True
    out = trained.render_channels(tiny.poses[4], SIZE, SIZE, intrinsics=INTRINSICS, spp=64)
    expected = np.concatenate([out["rgb"], out["alpha"][..., None]], axis=-1)[rows.ravel(), columns.ravel()]
    assert (expected[:, 3] > 0.5).sum() > 5
    # They differ by the jitter of 4 and 64 march starts only.
    assert -10 * np.log10(np.mean((got - expected) ** 2)) > 38


def test_settings_survive(trained, tmp_path, device):
    training = trained.nerf.training
    trained.color_space, trained.nerf.cone_angle_constant = ColorSpace.SRGB, 0.002
    training.linear_colors, training.random_bg_color = True, False
    training.near_distance, training.density_grid_decay = 0.25, 0.9
    training.snap_to_pixel_centers = False
    training.occupancy_schedule = OccupancySchedule.Specification
    trained.exposure, trained.background_color = 1.5, [0.1, 0.2, 0.3, 0.4]
    trained.render_aabb.max = [0.9, 0.8, 0.7]
    trained.fov, trained.up_dir = 33.0, [0.0, 0.0, 1.0]
    trained.camera_matrix = np.arange(12).reshape(3, 4)
    trained.save_snapshot(tmp_path / "s.ingp")
    other = Testbed(device=device)
    other.load_snapshot(tmp_path / "s.ingp")
    for name in ("color_space", "exposure", "fov_axis", "training_step", "loss"):
        assert getattr(other, name) == getattr(trained, name), name
    assert other.fov == pytest.approx(33.0, rel=1e-6)
    for name in ("linear_colors", "random_bg_color", "near_distance", "density_grid_decay",
                 "snap_to_pixel_centers", "occupancy_schedule"):  # fmt: skip
        assert getattr(other.nerf.training, name) == getattr(training, name), name
    assert other.nerf.cone_angle_constant == trained.nerf.cone_angle_constant
    for name in ("background_color", "camera_matrix", "up_dir"):
        np.testing.assert_array_equal(getattr(other, name), getattr(trained, name))
    np.testing.assert_array_equal(other.render_aabb.max, trained.render_aabb.max)


@pytest.mark.parametrize(
    "mode,params",
    [
        ("Perspective", []),
        ("OpenCV", [0.1, 0.2, 0.03, 0.04]),
        ("OpenCVFisheye", [0.1, 0.2, 0.3, 0.4]),
        ("FTheta", [0.01, 0.02, 3e-4, 4e-5, 5e-6, 96, 64]),
        ("LatLong", []),
        ("Equirectangular", []),
        ("Orthographic", []),
    ],
)
def test_lenses_and_intrinsics_survive(mode, params, tiny, device, small_config, tmp_path):
    testbed = Testbed(device=device, config=small_config)
    lens = _core.Lens(getattr(_core.LensMode, mode), params)
    intrinsics = [(50 + i, 40 + i, 20 + i, 30) for i in range(3)]
    testbed.set_images(tiny.images[:3], tiny.poses[:3], intrinsics, lens=lens, aabb_scale=4)
    testbed.save_snapshot(tmp_path / "s.ingp")
    other = Testbed(device=device)
    other.load_snapshot(tmp_path / "s.ingp")
    assert other.nerf.training.dataset.aabb_scale == 4
    for i, view in enumerate(other.nerf.training.dataset.metadata):
        assert view.lens.mode == lens.mode
        np.testing.assert_array_equal(view.lens.params, lens.params)
        np.testing.assert_allclose(view.focal_length, intrinsics[i][:2])
        np.testing.assert_allclose(view.principal_point * SIZE, intrinsics[i][2:], rtol=1e-6)
    assert other.density_grid().size == 3 * 128**3


def test_instant_ngp_optimizer_state_is_taken_over(exact, tiny, device, tmp_path):
    """A file with D.6 but without our key: moments and counters continue."""
    document = unpack(exact)
    del document["snapshot"]["pyngp"]
    path = tmp_path / "theirs.msgpack"
    path.write_bytes(msgpack.packb(document))
    testbed = Testbed(data=tiny.train, device=device)
    testbed.load_snapshot(path)
    testbed.save_snapshot(tmp_path / "again.msgpack", include_optimizer_state=True)
    again = unpack(tmp_path / "again.msgpack")["snapshot"]
    old, new = document["snapshot"]["optimizer"], again["optimizer"]
    assert new["nested"]["nested"] == old["nested"]["nested"]
    half = np.frombuffer(again["params_binary"], np.float16).astype(np.float32)
    stored = np.frombuffer(document["snapshot"]["params_binary"], np.float16).astype(np.float32)
    np.testing.assert_allclose(half, stored, rtol=2e-3, atol=1e-6)
    testbed.fit(2, batch_size=2048)
    assert testbed.training_step == 22 and np.isfinite(testbed.loss)


def test_json_snapshots(exact, device, tmp_path):
    """Text snapshots hold binaries as {"bytes": [...], "subtype": null} (D.1)."""

    def text(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": list(value), "subtype": None}
        if isinstance(value, dict):
            return {k: text(v) for k, v in value.items()}
        if isinstance(value, float) and np.isinf(value):
            return None  # as its writer does
        return [text(v) for v in value] if isinstance(value, list) else value

    document = unpack(exact)
    del document["snapshot"]["optimizer"], document["snapshot"]["pyngp"]
    document["snapshot"]["density_grid_binary"] = b""
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps(text(document)))
    testbed = Testbed(device=device)
    testbed.load_file(path)
    assert testbed.training_step == 20
    expected = np.frombuffer(document["snapshot"]["params_binary"], np.float16)
    np.testing.assert_array_equal(testbed.params(), expected.astype(np.float32))


def test_load_file_finds_out_what_a_file_is(trained_snapshot, tiny, device, small_config, tmp_path):
    testbed = Testbed(device=device)
    assert not testbed.shall_train
    testbed.load_file(trained_snapshot)
    assert testbed.training_step == 300 and not testbed.shall_train
    testbed.load_file(tiny.train)
    assert testbed.nerf.training.dataset.has_images and testbed.shall_train
    assert testbed.training_step == 300, "the network stays"
    testbed.shall_train = False
    testbed.load_file(tiny.test)
    assert testbed.nerf.training.dataset.n_images == 4 and not testbed.shall_train
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small_config))
    testbed.load_file(config)
    assert testbed.training_step == 0
    assert json.loads(testbed.network_config)["network"]["n_neurons"] == 16
    testbed.load_file("base_13.json")  # no such file: a named configuration
    assert json.loads(testbed.network_config)["encoding"]["log2_hashmap_size"] == 13
    testbed.load_file(tiny.folder / "transforms_test.json")
    for missing in ("nothing.ingp", "nothing.json", "nothing"):
        with pytest.raises(RuntimeError, match="nothing"):
            testbed.load_file(tmp_path / missing)
