"""NumPy arrays of any type, order and stride go in; float32 arrays that own their memory come out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import FOV_X, INTRINSICS, SIZE, TinyScene, linear
from pyngp import Testbed


def strided(a: np.ndarray) -> np.ndarray:
    """The same values, every second element of a larger array along each axis."""
    big = np.zeros([2 * n for n in a.shape], a.dtype)
    view = big[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": lambda a: a.astype(np.float32),
    "float64": lambda a: a.astype(np.float64),
    "strided": strided,
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(">f8"),
    "list": lambda a: a.tolist(),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.fixture
def points() -> np.ndarray:
    """Multiples of 1/64, so that conversions are exact."""
    return np.random.default_rng(0).integers(-64, 64, (50, 3)) / 64.0


@pytest.mark.parametrize("form", FORMS)
def test_query_takes_any_array(form, trained, points):
    directions = np.tile([0.0, 0.6, 0.8], (50, 1)).astype(np.float32).astype(np.float64)
    rgb, density = trained.query(points, directions)
    assert rgb.shape == (50, 3) and density.shape == (50,) and rgb.dtype == density.dtype == np.float32
    assert density.max() > 1
    got_rgb, got_density = trained.query(FORMS[form](points), FORMS[form](directions))
    assert np.array_equal(got_rgb, rgb) and np.array_equal(got_density, density)
    assert np.array_equal(trained.query(FORMS[form](points)), density)


@pytest.mark.parametrize("form", FORMS)
def test_cameras_take_any_array(form, trained, tiny):
    pose = tiny.test_poses[0].astype(np.float32).astype(np.float64)
    expected = trained.render_channels(pose, 8, 8, fov_x=FOV_X)
    for matrix in (pose, np.vstack([pose, [0, 0, 0, 1]])):
        got = trained.render_channels(FORMS[form](matrix), 8, 8, fov_x=FOV_X)
        assert all(np.array_equal(got[k], expected[k], equal_nan=True) for k in expected)
    trained.set_nerf_camera_matrix(FORMS[form](pose))
    one = trained.camera_matrix
    trained.set_nerf_camera_matrix(pose)
    assert np.array_equal(one, trained.camera_matrix)


@pytest.mark.parametrize(
    "positions,directions",
    [
        (np.zeros(3), None), (np.zeros((4, 2)), None), (np.zeros((2, 2, 3)), None), (3.0, None),
        (np.zeros((4, 3)), np.zeros((3, 3))), (np.zeros((4, 3)), np.zeros(3)), (np.zeros((4, 3)), np.zeros((4, 4))),
    ],
)  # fmt: skip
def test_query_refuses_other_shapes(positions, directions, trained):
    with pytest.raises(ValueError, match=r"(positions|directions) must have shape"):
        trained.query(positions, directions)


def test_render_channels_refuses_other_arguments(trained, tiny):
    pose = tiny.test_poses[0]
    for camera in (np.zeros((3, 3)), np.zeros(12), np.zeros((5, 4))):
        with pytest.raises(ValueError, match="camera must have shape"):
            trained.render_channels(camera, 4, 4, fov_x=40)
    for fov in (0, 180, -1, float("nan")):
        with pytest.raises(ValueError, match="fov_x"):
            trained.render_channels(pose, 4, 4, fov_x=fov)
    with pytest.raises(ValueError, match=r"fov_x .*or intrinsics"):
        trained.render_channels(pose, 4, 4)
    with pytest.raises(ValueError, match="channel 'colour' is not known"):
        trained.render_channels(pose, 4, 4, fov_x=40, channels=("rgb", "colour"))
    for focal in (0, -5):
        with pytest.raises(RuntimeError, match=r"focal length .*must be positive"):
            trained.render_channels(pose, 4, 4, intrinsics=(focal, 5, 2, 2))


def test_only_the_channels_that_were_asked_for(trained, tiny):
    whole = trained.render_channels(tiny.test_poses[0], 8, 8, fov_x=FOV_X)
    for name, image in whole.items():
        part = trained.render_channels(tiny.test_poses[0], 8, 8, fov_x=FOV_X, channels=[name])
        assert list(part) == [name] and np.array_equal(part[name], image, equal_nan=True)


def test_results_own_their_memory(trained, tiny):
    image = trained.render(8, 8)
    channels = trained.render_channels(tiny.test_poses[0], 8, 8, fov_x=FOV_X)
    copies = image.copy(), {k: v.copy() for k, v in channels.items()}
    trained.render(64, 64)
    del trained
    gc.collect()
    np.zeros(100_000)
    assert np.array_equal(image, copies[0])
    assert all(np.array_equal(channels[k], copies[1][k], equal_nan=True) for k in channels)
    image[:] = 1  # writable


def four_losses(testbed: Testbed) -> list[float]:
    """Of steps of eight rays each: those of one step may all go past the subject, so that its colours do not count."""
    kept: list[float] = []
    testbed.fit(4, batch_size=512, callback=lambda t: kept.append(t.loss))
    return kept


def losses(tiny: TinyScene, config: dict, device: str, images: Any, cameras: Any = None, **keys: Any) -> list[float]:
    testbed = Testbed(config=config, device=device, deterministic=True)
    cameras = tiny.poses if cameras is None else cameras
    testbed.set_images(images, cameras, keys.pop("intrinsics", INTRINSICS), **keys)
    return four_losses(testbed)


IMAGE_FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "list of arrays": list,
    "strided": strided,
    "fortran": np.asfortranarray,
    "read-only": FORMS["read-only"],
}


def test_set_images_takes_any_array(tiny, small_config, device):
    expected = losses(tiny, small_config, device, tiny.images)
    for name, form in IMAGE_FORMS.items():
        assert losses(tiny, small_config, device, form(tiny.images)) == expected, name
    poses = tiny.poses.astype(np.float32).astype(np.float64)
    square = np.concatenate([poses, np.tile([[[0.0, 0, 0, 1]]], (20, 1, 1))], axis=1)
    for cameras in (poses, poses.astype(np.float32), strided(poses), poses.tolist(), square):
        assert losses(tiny, small_config, device, tiny.images, cameras) == expected
    each = np.tile(INTRINSICS, (20, 1))
    assert losses(tiny, small_config, device, tiny.images, intrinsics=each) == expected
    assert losses(tiny, small_config, device, tiny.images[..., :3]) != expected


def test_set_images_equals_the_files(tiny, small_config, device):
    testbed = Testbed(data=tiny.train, config=small_config, device=device, deterministic=True)
    assert four_losses(testbed) == pytest.approx(losses(tiny, small_config, device, tiny.images), rel=1e-4)


def test_float_images_are_linear(tiny, small_config, device):
    """Straight alpha; float16 and float64 as well."""
    expected = losses(tiny, small_config, device, tiny.images)
    rgb = tiny.images / 255.0
    floats = np.concatenate([linear(rgb[..., :3]), rgb[..., 3:]], axis=-1)
    for kind in (np.float32, np.float64):
        assert losses(tiny, small_config, device, floats.astype(kind)) == pytest.approx(expected, rel=1e-4)
    assert losses(tiny, small_config, device, floats.astype(np.float16)) == pytest.approx(expected, rel=1e-2)
    assert losses(tiny, small_config, device, rgb) != pytest.approx(expected, rel=1e-2)


def test_images_of_different_sizes(tiny, small_config, device):
    images = [image[: SIZE - i, : SIZE - 2 * i] for i, image in enumerate(tiny.images[:4])]
    testbed = Testbed(config=small_config, device=device)
    testbed.set_images(images, tiny.poses[:4], INTRINSICS)
    sizes = [view.resolution.tolist() for view in testbed.nerf.training.dataset.metadata]
    assert sizes == [[SIZE - 2 * i, SIZE - i] for i in range(4)]
    for i, view in enumerate(testbed.nerf.training.dataset.metadata):
        np.testing.assert_allclose(view.principal_point * view.resolution, INTRINSICS[2:], rtol=1e-6, err_msg=str(i))
    testbed.fit(2, batch_size=512)


def test_images_are_kept_alive(tiny, small_config, device):
    """Contiguous ones aren't copied; the caller may drop them."""
    kept, dropped = (Testbed(config=small_config, device=device, deterministic=True) for _ in range(2))
    kept.set_images(tiny.images, tiny.poses, INTRINSICS)
    copy = tiny.images.copy()
    dropped.set_images(copy, tiny.poses, INTRINSICS)
    del copy
    gc.collect()
    junk = [np.full_like(tiny.images, 77) for _ in range(5)]
    for testbed in (kept, dropped):
        testbed.fit(2, batch_size=512)
    assert kept.loss == dropped.loss and len(junk) == 5


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": np.zeros((20, 48, 48, 2), np.uint8)}, "image 0 must have shape"),
    ({"images": np.zeros((20, 48, 48), np.uint8)}, "image 0 must have shape"),
    ({"images": np.zeros((20, 4, 4, 3), np.int32)}, "image 0 is int32; it must be uint8"),
    ({"images": np.zeros((20, 4, 4, 3), bool)}, "image 0 is bool"),
    ({"images": np.full((20, 4, 4, 3), np.nan)}, "image 0 holds values that are not finite"),
    ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "cameras must have shape"),
    ({"images": np.zeros((20, 0, 4, 3), np.uint8)}, "image 0"),
    ({"cameras": np.zeros((20, 3, 3))}, "cameras must have shape"),
    ({"cameras": np.zeros((19, 3, 4))}, "cameras must have shape"),
    ({"cameras": np.zeros((20, 3, 4))}, "image 0.*not a camera pose"),
    ({"cameras": np.full((20, 3, 4), np.nan)}, "image 0.*not a camera pose"),
    ({"intrinsics": (1, 2, 3)}, "intrinsics must have shape"),
    ({"intrinsics": np.ones((19, 4))}, "intrinsics must have shape"),
    ({"intrinsics": (0, 50, 24, 24)}, "image 0: the focal length"),
    ({"intrinsics": (np.nan, 50, 24, 24)}, "image 0: the focal length"),
    ({"scale": 0.0}, "scale"), ({"scale": -1.0}, "scale"), ({"scale": np.inf}, "scale|finite"),
    ({"offset": (np.nan, 0, 0)}, "offset|finite"), ({"offset": (0, 0)}, "offset must have shape"),
    ({"aabb_scale": 3}, "aabb_scale is 3"), ({"aabb_scale": 256}, "aabb_scale is 256"),
    ({"aabb_scale": 0}, "aabb_scale is 0"),
]  # fmt: skip


@pytest.mark.parametrize("change,message", WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_set_images_refuses(change, message, tiny, trained):
    before = trained.nerf.training.dataset.paths
    arguments = {"images": tiny.images, "cameras": tiny.poses, "intrinsics": INTRINSICS} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        trained.set_images(**arguments)
    assert trained.nerf.training.dataset.paths == before


def test_mirrored_and_scaled_poses(tiny, device):
    """A rotation of another determinant is normalised, a mirror refused (C.5)."""
    poses = tiny.poses[:2].copy()
    poses[:, :, :3] *= 3
    testbed = Testbed(device=device)
    testbed.set_images(tiny.images[:2], poses, INTRINSICS)
    np.testing.assert_allclose(testbed.cameras(), tiny.poses[:2], atol=1e-5)
    poses[:, :, 0] *= -1
    with pytest.raises(RuntimeError, match=r"image 0.*mirrors"):
        testbed.set_images(tiny.images[:2], poses, INTRINSICS)
