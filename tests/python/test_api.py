"""The contract: names, defaults and meanings (issue 2 item 6, design section 7, specification A)."""

from __future__ import annotations

import gc
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pyngp
import pytest
from fields.tiny_scene import INTRINSICS
from pyngp import BoundingBox, ColorSpace, Lens, LensMode, LossType, Testbed, TonemapCurve, TrainMode, _core


def test_version_and_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", pyngp.__version__)
    assert set(pyngp.__all__) <= set(dir(pyngp))
    assert (Path(pyngp.__file__).parent / "py.typed").is_file()


ENUMS = {
    "TrainMode": "Nerf 0 Rfl 1 RflRelax 2",
    "TestbedMode": "Nerf 0 Sdf 1 Image 2 Volume 3 None 4",
    "LossType": "L2 0 L1 1 Mape 2 Smape 3 Huber 4 SmoothL1 4 LogL1 5 RelativeL2 6",
    "NerfActivation": "None 0 ReLU 1 Logistic 2 Exponential 3",
    "ColorSpace": "Linear 0 SRGB 1",
    "TonemapCurve": "Identity 0 ACES 1 Hable 2 Reinhard 3",
    "LensMode": "Perspective 0 OpenCV 1 FTheta 2 LatLong 3 OpenCVFisheye 4 Equirectangular 5 Orthographic 6",
}


@pytest.mark.parametrize("name", ENUMS)
def test_enums(name):
    """A.1: values, and construction from them."""
    enum, words = getattr(pyngp, name), ENUMS[name].split()
    expected = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert {k: int(v) for k, v in enum.__members__.items()} == expected
    for value in expected.values():
        assert int(enum(value)) == value


DEFAULTS = {
    "shall_train": False, "shall_train_encoding": True, "shall_train_network": True,
    "training_batch_size": 262144, "training_step": 0, "loss": 0.0,
    "exposure": 0.0, "color_space": ColorSpace.Linear, "tonemap_curve": TonemapCurve.Identity,
    "snap_to_pixel_centers": False, "render_near_distance": 0.0, "fov_axis": 1, "zoom": 1.0,
    "mode": getattr(pyngp.TestbedMode, "None"), "device": pyngp.devices()[0].id, "root_dir": "",
    "nerf.render_min_transmittance": 0.01, "nerf.rendering_min_transmittance": 0.01,
    "nerf.cone_angle_constant": 1 / 256, "nerf.training.random_bg_color": True,
    "nerf.training.linear_colors": False, "nerf.training.snap_to_pixel_centers": True,
    "nerf.training.near_distance": 0.1, "nerf.training.density_grid_decay": 0.95,
    "nerf.training.train_mode": TrainMode.Nerf, "nerf.training.n_images_for_training": 0,
    "nerf.training.dataset.n_images": 0, "nerf.training.dataset.scale": 0.33,
    "nerf.training.dataset.aabb_scale": 1, "nerf.training.dataset.from_mitsuba": False,
    "nerf.training.dataset.is_hdr": False,
}  # fmt: skip


def attribute(testbed: Testbed, path: str) -> object:
    value: object = testbed
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("path", DEFAULTS)
def test_defaults(path):
    """A.5 to A.11."""
    value, expected = attribute(Testbed(), path), DEFAULTS[path]
    assert value == pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else value == expected


def test_array_defaults():
    testbed = Testbed()
    np.testing.assert_allclose(testbed.fov, 50.625, rtol=1e-5)
    np.testing.assert_allclose(testbed.fov_xy, [50.625, 50.625], rtol=1e-5)
    camera = [[1, 0, 0, 0.5], [0, -1, 0, 0.5], [0, 0, -1, 0.5]]
    np.testing.assert_array_equal(testbed.camera_matrix[:, :3], np.array(camera)[:, :3])
    np.testing.assert_array_equal(testbed.screen_center, [0.5, 0.5])
    np.testing.assert_array_equal(testbed.up_dir, [0, 1, 0])
    np.testing.assert_array_equal(testbed.render_aabb_to_local, np.eye(3))
    for box in (testbed.aabb, testbed.render_aabb):
        np.testing.assert_array_equal([box.min, box.max], [[0] * 3, [1] * 3])
    np.testing.assert_array_equal(testbed.nerf.training.dataset.offset, [0.5] * 3)


METHODS = [
    "load_training_data", "load_file", "load_snapshot", "save_snapshot", "reload_network_from_file",
    "reload_network_from_json", "frame", "train", "n_params", "n_encoding_params", "render",
    "render_with_depth", "reset", "set_nerf_camera_matrix", "set_camera_to_training_view", "reset_camera",
    "clear_training_data", "fit", "query", "render_channels", "cameras", "export_cameras", "stats",
    "set_images",
]  # fmt: skip


def test_methods_are_documented():
    for name in METHODS:
        assert callable(getattr(Testbed, name)), name


def signature(name: str) -> dict[str, object]:
    parameters = inspect.signature(getattr(Testbed, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


def test_signatures():
    """Design section 7, specification A.5."""
    none = inspect.Parameter.empty
    assert signature("__init__") == {
        "mode": None, "data": None, "config": None, "device": "auto", "seed": 1337, "deterministic": False,
        "max_device_bytes": None,
    }  # fmt: skip
    assert signature("fit") == {"steps": None, "seconds": None, "batch_size": None, "callback": None}
    appearance = {"latent": None, "light_direction": None}
    assert signature("query") == {
        "positions": none, "directions": None, "image": None, "occupancy": False, **appearance,
    }  # fmt: skip
    assert signature("render_channels") == {
        "camera": none, "width": none, "height": none, "fov_x": None, "intrinsics": None, "lens": None,
        "channels": ("rgb", "alpha", "depth", "normal"), "spp": 1, "image": None, **appearance, "out": "numpy",
    }  # fmt: skip
    assert signature("save_snapshot") == {"path": none, "include_optimizer_state": False, "compress": True}
    assert list(signature("set_images"))[:3] == ["images", "cameras", "intrinsics"]


def test_render_has_the_arguments_of_instant_ngp(trained):
    """A.6: width, height, spp, linear, by position and by name; those of camera paths come with them."""
    assert trained.render(4, 3, 1, True).shape == (3, 4, 4)
    assert trained.render(width=4, height=3, spp=1, linear=False).shape == (3, 4, 4)
    rgba, depth = trained.render_with_depth(np.int32(4), np.int64(3))
    assert rgba.shape == (3, 4, 4) and depth.shape == (3, 4)


def test_constructor_loads(tiny, small_config, tmp_path, device):
    """Mode, data and configuration by position, as in instant-ngp; the configuration as dict, file or name."""
    file = tmp_path / "net.json"
    file.write_text(json.dumps(small_config))
    for config in (small_config, file, str(file)):
        testbed = Testbed(pyngp.TestbedMode.Nerf, str(tiny.train), config, device=device)
        assert testbed.mode == pyngp.TestbedMode.Nerf and testbed.nerf.training.dataset.n_images == 20
        assert json.loads(testbed.network_config)["network"]["n_neurons"] == 16
    assert json.loads(Testbed(config="base_15").network_config)["encoding"]["log2_hashmap_size"] == 15


@pytest.mark.parametrize("mode", [pyngp.TestbedMode.Sdf, pyngp.TestbedMode.Image, pyngp.TestbedMode.Volume])
def test_other_modes_say_that_they_are_missing(mode):
    with pytest.raises(RuntimeError, match=r"NeRF task only; use TestbedMode.Nerf"):
        Testbed(mode)


@pytest.mark.parametrize(
    "name", ["gpu", "", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999", "cuda1"]
)
def test_unknown_devices(name):
    with pytest.raises(RuntimeError, match=f"device '{name}' is not known; use"):
        Testbed(device=name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:77"])
def test_missing_devices(name):
    """The message says why, and what would help."""
    if name != "cuda:77" and _core.has_cuda:
        pytest.skip("there is such a device")
    with pytest.raises(RuntimeError) as error:
        Testbed(device=name)
    assert str(error.value).startswith(f"device '{name}'")
    remedy = "usable: cuda:0" if _core.has_cuda else _core.cuda_unavailable_reason()
    assert remedy and remedy in str(error.value)


def test_devices(device):
    """What devices() lists can be had; the best is what "auto" takes."""
    found = pyngp.devices()
    assert found[-1].id == "cpu" and found[-1].name and found[-1].total_bytes is None
    assert len(found) == len({d.id for d in found}) and (len(found) > 1) == _core.has_cuda
    assert [d["index"] for d in _core.cuda_devices()] == [int(d.id.removeprefix("cuda:")) for d in found[:-1]]
    assert _core.has_cuda == (_core.built_with_cuda and not _core.cuda_unavailable_reason())
    assert all(d.total_bytes > 2**28 and float(d.compute_capability) >= 7.5 for d in found[:-1])
    for d in found:
        assert Testbed(device=d.id).device == d.id
    assert Testbed(device=device).device in (device, "cuda:0") and Testbed().device == found[0].id


def test_auto_says_why_it_fell_back(python):
    """One warning a process, at the caller, where the build has CUDA and the machine has not."""
    code = """
import warnings
from pyngp import Testbed, _core
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    used = [Testbed().device, Testbed(device="auto").device, Testbed(device="cpu").device]
    where = [(w.category, w.filename) for w in caught]
expected = _core.built_with_cuda and not _core.has_cuda
assert where == [(RuntimeWarning, "<string>")] * expected, where
assert used == (["cpu"] * 3 if not _core.has_cuda else ["cuda:0", "cuda:0", "cpu"])
assert all(_core.cuda_unavailable_reason() in str(w.message) for w in caught)
"""
    # No device is visible: the same with and without a GPU.
    result = python(code, env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.stderr == ""


def test_deterministic_and_memory_options(device):
    assert Testbed(device="cpu").deterministic and Testbed(device="cpu", max_device_bytes=1 << 30).device == "cpu"
    assert Testbed(device=device, deterministic=True).deterministic
    assert Testbed(device=device).deterministic == (device == "cpu")
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"max_device_bytes is {bad}; it must be positive"):
            Testbed(device=device, max_device_bytes=bad)


def test_defaults_suit_the_device(device):
    testbed = Testbed(device=device)
    schedule = "Budgeted" if device == "cpu" else "Specification"
    assert testbed.nerf.training.occupancy_schedule.name == schedule
    assert testbed.default_batch_size == (2**15 if device == "cpu" else 2**18)


def test_data_sets_activations_and_stepping(tiny, device):
    """A.9: cone angle 0 for a unit box, else 1/256; up direction; the scene box."""
    for scale, cone in ((1, 0.0), (4, 1 / 256)):
        testbed = Testbed(device=device)
        testbed.set_images(tiny.images[:2], tiny.poses[:2], INTRINSICS, aabb_scale=scale)
        assert testbed.nerf.cone_angle_constant == pytest.approx(cone)
        np.testing.assert_array_equal(testbed.aabb.diag(), [scale] * 3)
        np.testing.assert_array_equal(testbed.aabb.center(), [0.5] * 3)
        assert testbed.nerf.training.n_images_for_training == 2
        assert testbed.nerf.rgb_activation == pyngp.NerfActivation.Logistic
        assert testbed.nerf.density_activation == pyngp.NerfActivation.Exponential


def test_the_network_stays_unless_the_box_changes(tiny, device, small_config):
    testbed = Testbed(device=device, config=small_config)
    testbed.set_images(tiny.images, tiny.poses, INTRINSICS)
    testbed.fit(2, batch_size=512)
    before = testbed.params()
    testbed.load_training_data(tiny.test)
    assert testbed.training_step == 2 and np.array_equal(testbed.params(), before)
    testbed.set_images(tiny.images, tiny.poses, INTRINSICS, aabb_scale=2)
    testbed.n_params()
    assert testbed.training_step == 0
    testbed.clear_training_data()
    with pytest.raises(RuntimeError, match="no training data"):
        testbed.fit(1)


def test_train_modes(tiny, device, small_config):
    """By name, number and from the schedule of run.py (B): Nerf, and RflRelax between two steps."""
    testbed = Testbed(data=tiny.train, config=small_config, device=device)
    training = testbed.nerf.training
    assert training.train_mode == TrainMode.Nerf, "not RflRelax, as in instant-ngp (design section 7)"
    testbed.shall_train, testbed.training_batch_size = True, 512
    begin, end = 2, 4
    modes = []
    while testbed.frame():
        modes.append(training.train_mode)
        if testbed.training_step >= 6:
            break
        relaxed = begin <= testbed.training_step < end
        training.train_mode = TrainMode.RflRelax if relaxed else TrainMode.Nerf
    assert [int(m) for m in modes] == [0, 0, 2, 2, 0, 0] and np.isfinite(testbed.loss)
    training.train_mode = TrainMode(1)
    assert training.train_mode == TrainMode.Rfl


def test_loss_type_comes_from_the_configuration(tiny, device, small_config):
    testbed = Testbed(data=tiny.train, config=small_config | {"loss": {"otype": "RelativeL2"}}, device=device)
    testbed.n_params()
    assert testbed.nerf.training.loss_type == LossType.RelativeL2


def test_getters_are_copies_and_sub_objects_live():
    testbed = Testbed()
    testbed.camera_matrix[0, 3] = 99
    assert testbed.camera_matrix[0, 3] != 99
    testbed.render_aabb.max = [0.1, 0.2, 0.3]
    np.testing.assert_allclose(testbed.render_aabb.max, [0.1, 0.2, 0.3])
    training = testbed.nerf.training
    training.near_distance = 0.5
    assert testbed.nerf.training.near_distance == 0.5
    del testbed
    assert training.near_distance == 0.5, "a part keeps the whole alive"


def test_camera_settings():
    testbed = Testbed()
    testbed.fov = 90
    np.testing.assert_allclose(testbed.relative_focal_length, [0.5, 0.5], rtol=1e-6)
    testbed.fov_xy = [90, 60]
    assert testbed.fov == pytest.approx(60)
    testbed.fov_axis = 0
    assert testbed.fov == pytest.approx(90)
    for wrong in (0, 180, -5, float("nan")):
        with pytest.raises(RuntimeError, match="field of view"):
            testbed.fov = wrong
    with pytest.raises(ValueError, match="fov_axis"):
        testbed.fov_axis = 2
    with pytest.raises(ValueError, match="camera_matrix"):
        testbed.camera_matrix = np.zeros((2, 4))
    testbed.reset_camera()
    assert testbed.fov == pytest.approx(50.625)


def test_set_nerf_camera_matrix_converts_as_the_specification_says():
    """C.5: columns 1 and 2 negated, position scaled and shifted, rows cycled."""
    pose = np.arange(12, dtype=float).reshape(3, 4)
    for matrix in (pose, np.vstack([pose, [0, 0, 0, 1]]), pose.tolist()):
        testbed = Testbed()
        testbed.set_nerf_camera_matrix(matrix)
        ngp = pose * [1, -1, -1, 0.33]
        ngp[:, 3] += 0.5
        np.testing.assert_allclose(testbed.camera_matrix, ngp[[1, 2, 0]], rtol=1e-6)


def test_bounding_box():
    box = BoundingBox([0, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(box.center(), [0.5, 1, 1.5])
    np.testing.assert_array_equal(box.diag(), [1, 2, 3])
    assert box.contains([0.5, 2, 3]) and not box.contains([0.5, 2.1, 3])
    np.testing.assert_allclose(box.relative_pos([0.5, 0.5, 0.75]), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(box.ray_intersect([-1, 1, 1], [1, 0, 0]), [1, 2])
    assert (box.ray_intersect([-1, 5, 1], [1, 0, 0]) == np.finfo(np.float32).max).all()
    both = box.intersection(BoundingBox([0.5, -1, 2], [9, 1, 9]))
    np.testing.assert_array_equal([both.min, both.max], [[0.5, 0, 2], [1, 1, 3]])
    empty = BoundingBox()
    assert np.isposinf(empty.min).all() and np.isneginf(empty.max).all() and not empty.contains([0, 0, 0])
    assert "min=[0, 0, 0]" in repr(box)
    with pytest.raises(ValueError, match="min must have shape"):
        BoundingBox([0, 0], [1, 1, 1])


def test_lens():
    lens = Lens()
    assert lens.mode == LensMode.Perspective and lens.params.shape == (7,) and lens.params.dtype == np.float32
    lens.mode = LensMode.OpenCV
    lens.params[1] = 0.25  # a writable view (A.4)
    assert lens.params[1] == 0.25
    np.testing.assert_allclose(Lens(LensMode.OpenCV, [0.1, 0.2]).params, [0.1, 0.2, 0, 0, 0, 0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="7 parameters"):
        Lens(LensMode.OpenCV, [0.0] * 8)


def test_metadata_is_live(tiny, device):
    testbed = Testbed(data=tiny.test, device=device)
    views = testbed.nerf.training.dataset.metadata
    assert [v.path for v in views] == testbed.nerf.training.dataset.paths == [f"test/r_{i}.png" for i in range(4)]
    assert views[0].resolution.tolist() == [48, 48]
    np.testing.assert_allclose(views[0].focal_length, INTRINSICS[:2], rtol=1e-6)
    views[0].principal_point = [0.25, 0.75]
    np.testing.assert_array_equal(testbed.nerf.training.dataset.metadata[0].principal_point, [0.25, 0.75])


def test_stats(tiny, device, small_config):
    testbed = Testbed(data=tiny.train, config=small_config, device=device)
    assert testbed.stats()["steps"] == 0
    testbed.set_profiling(True)  # stage times cost a GPU speed
    testbed.fit(5, batch_size=2048)
    stats = testbed.stats()
    assert stats["steps"] == 5 and 0 < stats["train_seconds"] < 60
    assert stats["image_bytes"] == 20 * 48 * 48 * 4, "8-bit images stay 8-bit"
    assert stats["samples_evaluated_per_step"] >= stats["samples_per_step"] > 0
    assert stats["rays_per_step"] > 0
    held = stats["host_bytes"] if device == "cpu" else stats["device_bytes"]
    assert held > 4 * testbed.n_params()
    assert stats["peak_device_bytes"] >= stats["device_bytes"] >= 0
    assert (stats["device_bytes"] > 0) == (device != "cpu")
    stages = stats["stages"]
    parts = ("occupancy_ms", "rays_to_gradients_ms", "scatter_ms", "optimizer_ms")
    assert all(stages[part] > 0 for part in parts)
    assert sum(stages[part] for part in parts) <= 1000 * stats["train_seconds"]
    assert testbed.default_batch_size % 256 == 0


def test_metadata_outlives_its_dataset(tiny, device):
    """Elements stay valid after the data is replaced and the testbed is gone."""
    testbed = Testbed(data=tiny.train, device=device)
    view, dataset = testbed.nerf.training.dataset.metadata[3], testbed.nerf.training.dataset
    testbed.load_training_data(tiny.test)
    del testbed
    gc.collect()
    assert view.resolution.tolist() == [48, 48] and dataset.n_images == 20
