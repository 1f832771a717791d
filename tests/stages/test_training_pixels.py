"""A pixel of a training image as training sees it: colour, ray and distance (specification C.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyngp._core import LensMode, TrainingImage, stages
from reference import lens
from reference.color import srgb_to_linear
from stages.helpers import U

W, H, FOCAL = 7, 5, (6.0, 5.0)
RANDOM = np.random.default_rng(8)
BYTES = RANDOM.integers(0, 256, (H, W, 4), np.uint8)
FLOATS = (10 ** RANDOM.uniform(-3, 2, (H, W, 4))).astype(np.float32)
FLOATS[..., 3] = RANDOM.random((H, W))
SUBNORMAL = np.float16(3e-6)


def pixel(image: Any, x: int, y: int, mode: str = "Perspective", params: tuple[float, ...] = ()) -> tuple[Any, ...]:
    return stages.training_pixel(image, FOCAL, getattr(LensMode, mode), list(params), x, y)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_colours(dtype, channels, premultiplied):
    """sRGB bytes, linear halves and floats; straight or premultiplied; with alpha and without."""
    pixels = np.ascontiguousarray((BYTES if dtype == np.uint8 else FLOATS.astype(dtype))[..., :channels])
    if dtype == np.float16:
        pixels[1, 2, 0] = SUBNORMAL
    if dtype == np.uint8 and premultiplied:
        return
    image = TrainingImage(pixels, premultiplied=premultiplied)
    wide = pixels.astype(np.float64)
    if dtype == np.uint8:
        wide = np.dstack([srgb_to_linear(wide[..., :3] / 255), wide[..., 3:] / 255])
    alpha = wide[..., 3:] if channels == 4 else np.ones((H, W, 1))
    rgb = wide[..., :3] if premultiplied else wide[..., :3] * alpha
    for y in range(H):
        for x in range(W):
            got_rgb, got_alpha, *_ = pixel(image, x, y)
            # The power of the sRGB curve in float32: see tests/formulas/test_color.py.
            np.testing.assert_allclose(got_rgb, rgb[y, x], rtol=2e-6 if dtype == np.uint8 else 2 * U)
            assert got_alpha == pytest.approx(alpha[y, x, 0], rel=2 * U)


def test_strided_arrays_and_other_types():
    wide = np.zeros((H, 2 * W, 4), np.float16)
    wide[:, ::2] = FLOATS.astype(np.float16)
    views = [wide[:, ::2], np.asfortranarray(wide[:, ::2]), wide[:, ::2].astype(np.float64)]
    for view in views:
        got = pixel(TrainingImage(view, premultiplied=True), 3, 2)
        np.testing.assert_array_equal(got[0], FLOATS[2, 3, :3].astype(np.float16).astype(np.float32))


LENSES = [
    ("Perspective", ()),
    ("OpenCV", (0.05, -0.02, 0.01, -0.01)),
    ("OpenCVFisheye", (0.03, 0.01, 0.0, 0.0)),
    ("FTheta", (0.0, 0.1, 1e-4, 0.0, 0.0, W, H)),
    ("LatLong", ()),
    ("Orthographic", ()),
]


@pytest.mark.parametrize("mode,params", LENSES, ids=[mode for mode, _ in LENSES])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_distance(mode, params, dtype):
    """Depth times the length of the ray's direction before it is normalised, and times the scale; 0: unknown."""
    depth = RANDOM.integers(1, 60000, (H, W)).astype(dtype)
    depth[0, 0], depth[1, 1] = 0, 0 if dtype == np.uint16 else -5
    image = TrainingImage(BYTES, depth=depth, depth_scale=1 / 1024)
    for y in range(H):
        for x in range(W):
            uv = np.array([(x + 0.5) / W, (y + 0.5) / H])
            direction = lens.ray_direction(uv, (W, H), FOCAL, mode=mode, params=params)
            wanted = max(float(depth[y, x]), 0.0) / 1024 * np.linalg.norm(direction)
            # Distortions are inverted to 1e-4 px: of a picture that is 7 wide, at a focal length of 5.
            assert pixel(image, x, y, mode, params)[4] == pytest.approx(wanted, rel=4e-5 if params else 4 * U)


def test_without_depth_there_is_no_distance():
    assert pixel(TrainingImage(BYTES), 3, 3)[4] == 0


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_masked_pixels_have_no_ray(dtype):
    mask = (RANDOM.random((H, W)) < 0.5).astype(dtype)
    if dtype is not bool:
        mask *= 200
    rays = RANDOM.normal(size=(H, W, 6)).astype(np.float32)
    for image in (TrainingImage(BYTES, mask=mask), TrainingImage(BYTES, mask=mask, rays=rays)):
        for y in range(H):
            for x in range(W):
                direction = pixel(image, x, y)[3]
                assert np.linalg.norm(direction) == pytest.approx(0 if mask[y, x] else 1, abs=1e-6)


def test_own_rays():
    """Origin and direction of any length, which scales depth; a zero direction is no ray."""
    rays = RANDOM.normal(size=(H, W, 6)).astype(np.float32)
    rays[2, 2, 3:] = 0
    image = TrainingImage(BYTES, rays=rays, depth=np.full((H, W), 2.0), depth_scale=0.5)
    for y in range(H):
        for x in range(W):
            _, _, origin, direction, distance = pixel(image, x, y)
            length = np.linalg.norm(rays[y, x, 3:].astype(np.float64))
            np.testing.assert_array_equal(origin, rays[y, x, :3])
            np.testing.assert_allclose(direction, rays[y, x, 3:] / (length or 1), rtol=1e-6)
            assert distance == pytest.approx(length, rel=4 * U)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"pixels": np.zeros((H, W, 4), np.int32)}, "x: pixels must be uint8"),
    ({"pixels": np.zeros((H, W), np.uint8)}, "x: pixels must have shape"),
    ({"mask": np.zeros((H, W), np.int32)}, "x: the mask must be bool or uint8"),
    ({"mask": np.zeros((W, H), bool)}, "x: the mask must be of the image's size, 7x5 pixels"),
    ({"depth": np.zeros((H, W), np.int32)}, "x: the depth map must be uint16 or float"),
    ({"depth": np.zeros(H)}, "x: the depth map must be of the image's size"),
    ({"rays": np.zeros((H, W, 3), np.float32)}, "x: the rays must be floats of shape"),
    ({"rays": np.zeros((H, W, 6), np.int64)}, "x: the rays must be floats"),
]


@pytest.mark.parametrize("change,message", WRONG, ids=[message for _, message in WRONG])
def test_what_an_image_refuses(change, message):
    arguments: dict[str, Any] = {"pixels": BYTES} | change
    with pytest.raises(ValueError, match=message):
        TrainingImage(arguments.pop("pixels"), name="x", **arguments)
