"""A scene small enough to train on in seconds: a shaded sphere and a box, ray-traced analytically.

World units, z up; the subject lies within [-1, 1]^3. Nothing here comes from the library under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

F64 = NDArray[np.float64]
SIZE = 48
FOV_X = 40.0  # degrees
FOCAL = 0.5 * SIZE / np.tan(np.radians(FOV_X) / 2)
INTRINSICS = (FOCAL, FOCAL, SIZE / 2, SIZE / 2)
N_TRAIN, N_TEST = 20, 4
SPHERE_CENTRE, SPHERE_RADIUS = np.array([0.0, -0.35, 0.2]), 0.5
BOX_LOW, BOX_HIGH = np.array([-0.75, 0.25, -0.6]), np.array([0.3, 0.85, 0.35])
LIGHT = np.array([0.48, -0.36, 0.8])


def look_at(position: F64, target: F64 | tuple[float, float, float] = (0.0, 0.0, 0.0)) -> F64:
    """Camera-to-world (3, 4), OpenGL axes, z up."""
    back = position - np.asarray(target)
    back = back / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(back, right), back, position])


def poses(n: int, phase: float = 0.0) -> F64:
    """n cameras on a spiral around the subject."""
    i = np.arange(n)
    azimuth = 2.399963 * i + phase
    height = np.linspace(-0.25, 0.75, n)
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), height], axis=1)
    return np.stack([look_at(3.4 * d) for d in directions])


def pixel_rays(
    pose: F64, width: int, height: int, intrinsics: tuple[float, ...], offset: tuple[float, float]
) -> tuple[F64, F64]:
    """Origin (3,) and unit directions (H, W, 3) through the pixels, in the frame of the pose."""
    fl_x, fl_y, cx, cy = intrinsics
    x = (np.arange(width) + offset[0] - cx) / fl_x
    y = (np.arange(height) + offset[1] - cy) / fl_y
    in_camera = np.stack([*np.meshgrid(x, -y), -np.ones((height, width))], axis=-1)
    directions = in_camera @ pose[:, :3].T
    return pose[:, 3], directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _hit_sphere(origin: F64, directions: F64) -> tuple[F64, F64]:
    to_origin = origin - SPHERE_CENTRE
    b = (directions * to_origin).sum(-1)
    root = b**2 - ((to_origin**2).sum(-1) - SPHERE_RADIUS**2)
    t = np.where(root > 0, -b - np.sqrt(np.maximum(root, 0)), np.inf)
    t = np.where(t > 0, t, np.inf)
    near = np.where(np.isfinite(t), t, 0.0)[..., None]
    return t, (origin + near * directions - SPHERE_CENTRE) / SPHERE_RADIUS


def _hit_box(origin: F64, directions: F64) -> tuple[F64, F64]:
    with np.errstate(divide="ignore"):
        inverse = 1.0 / directions
    low, high = (BOX_LOW - origin) * inverse, (BOX_HIGH - origin) * inverse
    enter, leave = np.minimum(low, high), np.maximum(low, high)
    t, axis = enter.max(-1), enter.argmax(-1)
    t = np.where((t <= leave.min(-1)) & (t > 0), t, np.inf)
    normals = -np.sign(np.take_along_axis(directions, axis[..., None], -1)) * np.eye(3)[axis]
    return t, normals


def trace(origin: F64, directions: F64, light: F64 = LIGHT) -> tuple[F64, F64, F64]:
    """Linear rgb (…, 3), distance (…) and normal (…, 3) of the first hit; distance inf on a miss.

    origin: (3,) of all rays, or (…, 3); light: unit direction to it.
    """
    (t_s, n_s), (t_b, n_b) = _hit_sphere(origin, directions), _hit_box(origin, directions)
    is_sphere, t = t_s < t_b, np.minimum(t_s, t_b)
    normal = np.where(is_sphere[..., None], n_s, n_b)
    point = origin + np.where(np.isfinite(t), t, 0.0)[..., None] * directions
    stripes = (np.floor(point[..., 2] * 5) % 2)[..., None]
    red, blue = np.array([0.85, 0.2, 0.12]), np.array([0.1, 0.25, 0.75])
    yellow = np.array([0.8, 0.7, 0.2])
    albedo = np.where(is_sphere[..., None], red, blue * stripes + yellow * (1 - stripes))
    shade = 0.25 + 0.75 * np.maximum(normal @ light, 0.0)
    rgb = np.where(np.isfinite(t)[..., None], albedo * shade[..., None], 0.0)
    return rgb, t, normal


def srgb(linear: F64) -> F64:
    linear = np.maximum(linear, 0.0)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear(srgb: F64) -> F64:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def photograph(
    pose: F64, samples: int = 3, light: F64 = LIGHT, gain: F64 | tuple[float, ...] = (1.0, 1.0, 1.0)
) -> NDArray[np.uint8]:
    """(SIZE, SIZE, 4) uint8: sRGB, straight alpha, antialiased. ``gain``: of each channel, in linear light."""
    total = np.zeros((SIZE, SIZE, 4))
    for i in range(samples * samples):
        offset = ((i % samples + 0.5) / samples, (i // samples + 0.5) / samples)
        rgb, t, _ = trace(*pixel_rays(pose, SIZE, SIZE, INTRINSICS, offset), light)
        total += np.concatenate([rgb * gain, np.isfinite(t)[..., None]], axis=-1)
    alpha = total[..., 3:] / samples**2
    straight = np.divide(total[..., :3] / samples**2, alpha, out=np.zeros((SIZE, SIZE, 3)), where=alpha > 0)
    return np.round(255 * np.concatenate([srgb(straight), alpha], axis=-1)).astype(np.uint8)


@dataclass(frozen=True)
class TinyScene:
    """The files, and the arrays that they hold."""

    folder: Path
    train: Path
    test: Path
    images: NDArray[np.uint8]  # of the training views
    poses: F64  # likewise, (N, 3, 4)
    test_images: NDArray[np.uint8]
    test_poses: F64


def transforms(names: list[str], matrices: F64, **keys: Any) -> dict[str, Any]:
    frames = [
        {"file_path": name, "transform_matrix": [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]}
        for name, pose in zip(names, matrices, strict=True)
    ]
    return {"camera_angle_x": np.radians(FOV_X).item(), **keys, "frames": frames}


def write_scene(folder: Path) -> TinyScene:
    """Photographs the subject into folder/{train,test} beside transforms_{train,test}.json."""
    views: dict[str, tuple[F64, NDArray[np.uint8]]] = {}
    for name, cameras in (("train", poses(N_TRAIN)), ("test", poses(N_TEST, phase=1.2))):
        (folder / name).mkdir(parents=True)
        images = np.stack([photograph(pose) for pose in cameras])
        files = [f"{name}/r_{i}.png" for i in range(len(cameras))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(folder / file)
        text = json.dumps(transforms(files, cameras))
        (folder / f"transforms_{name}.json").write_text(text)
        views[name] = cameras, images
    return TinyScene(
        folder,
        folder / "transforms_train.json",
        folder / "transforms_test.json",
        views["train"][1],
        views["train"][0],
        views["test"][1],
        views["test"][0],
    )
