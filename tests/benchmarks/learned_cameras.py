"""Prints what learning cameras gives: poses, focal length, exposures; and training through rolling shutters and lenses.

    python tests/benchmarks/learned_cameras.py [--scene FOLDER] [--parts poses,focal,exposure,lenses] [--steps N]
        [--batch-size N] [--config NAME] [--seeds N] [--device cpu]

FOLDER holds transforms_train.json (or transforms.json) and transforms_test.json (or _val). Without it, pictures of the
tests' tiny scene are made, 50 of 64x64 pixels; `lenses` always takes that. The scene's size is the side of its box.

Cameras that all aim at the centre of a small subject can't tell a focal length from the size of the subject, to first
order in its size over their distance. So for `focal` the tiny scene's cameras aim at random points of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fields import tiny_scene
from fields.test_rolling_shutter import FISHEYE, OPENCV, ROWS, ends
from fields.test_rolling_shutter import photograph as photograph_moving
from pyngp import Lens, LensMode, Testbed
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluation_settings, on_black
from pyngp.images import linear_to_srgb, srgb_to_linear
from pyngp.metrics import psnr
from reference import rotation

F64 = NDArray[np.float64]
Intrinsics = tuple[float, float, float, float]
PARTS = ("poses", "focal", "exposure", "lenses")
FOCAL_SPREAD = 0.5  # world units
MAX_DEGREES, MAX_SHIFT = 0.5, 0.01  # of perturbed poses; the latter of the scene's size


@dataclass
class Data:
    images: NDArray[np.uint8]
    poses: F64
    test_images: NDArray[np.uint8]
    test_poses: F64
    intrinsics: Intrinsics
    size: float  # of the scene, world units
    keys: dict[str, Any]

    def train(self, a: argparse.Namespace, seed: int, changes: dict[str, Any], options: Callable[[Testbed], None]):
        testbed = Testbed(device=a.device, config=a.config, seed=seed)
        arguments: dict[str, Any] = {"images": self.images, "cameras": self.poses, "intrinsics": self.intrinsics}
        testbed.set_images(**arguments | self.keys | changes)
        options(testbed)
        testbed.fit(a.steps, batch_size=a.batch_size)
        return testbed

    def quality(self, testbed: Testbed) -> float:
        height, width = self.test_images.shape[1:3]
        values = []
        with evaluation_settings(testbed):
            for pose, image in zip(self.test_poses, self.test_images, strict=True):
                camera = {"camera": pose, "width": width, "height": height, "intrinsics": self.intrinsics}
                got = testbed.render_channels(**camera, lens=self.keys.get("lens"), channels=("rgb",))
                values.append(psnr(linear_to_srgb(got["rgb"]), on_black(image)))
        return float(np.mean(values))


def tiny_data(n: int = 50, size: int = 64, spread: float = 0.0) -> Data:
    """``spread``: cameras aim at random points that far from the centre, along each axis."""
    tiny_scene.SIZE, tiny_scene.FOCAL = size, 0.5 * size / np.tan(np.radians(tiny_scene.FOV_X) / 2)
    intrinsics = (tiny_scene.FOCAL, tiny_scene.FOCAL, size / 2, size / 2)
    tiny_scene.INTRINSICS = intrinsics
    train, test = tiny_scene.poses(n), tiny_scene.poses(6, phase=1.2)
    rng = np.random.default_rng(7)
    for pose in train if spread else ():
        pose[:] = tiny_scene.look_at(pose[:, 3], rng.uniform(-spread, spread, 3))
    pictures = [np.stack([tiny_scene.photograph(pose) for pose in set_]) for set_ in (train, test)]
    return Data(pictures[0], train, pictures[1], test, intrinsics, 2.0, {})


def scene_data(folder: Path) -> Data:
    sets = []
    files = [next(f for n in names if (f := folder / f"transforms{n}.json").exists())
             for names in (("_train", ""), ("_test", "_val"))]  # fmt: skip
    for file in files:
        scene = read_scene(file)
        images = np.stack(load_images(scene.frames))
        sets.append((images, np.stack([f.camera_to_world[:3] for f in scene.frames])))
    first = scene.frames[0].intrinsics
    assert first is not None
    (fl_x, fl_y), (cx, cy) = first.focal_length, first.principal_point
    keys = {"scale": scene.scale, "offset": scene.offset, "aabb_scale": scene.aabb_scale, "lens": first.lens}
    intrinsics = (fl_x, fl_y, cx * first.width, cy * first.height)
    return Data(*sets[0], *sets[1], intrinsics, scene.aabb_scale / scene.scale, keys)


def within_ball(rng: np.random.Generator, radius: float) -> F64:
    direction = rng.normal(size=3)
    return radius * rng.uniform() ** (1 / 3) * direction / np.linalg.norm(direction)


def perturbed(poses: F64, size: float, seed: int = 0) -> F64:
    """Turned by up to MAX_DEGREES, moved by up to MAX_SHIFT, in random directions."""
    rng = np.random.default_rng(seed)
    poses = poses.copy()
    for pose in poses:
        pose[:, :3] = rotation.matrix(within_ball(rng, np.radians(MAX_DEGREES))) @ pose[:, :3]
        pose[:, 3] += within_ball(rng, MAX_SHIFT * size)
    return poses


def pose_errors(poses: F64, truth: F64) -> tuple[float, float]:
    """Median errors in degrees and world units, after the similarity that brings positions closest (Umeyama 1991)."""
    x, y = poses[:, :, 3].astype(np.float64), truth[:, :, 3]
    mx, my = x.mean(0), y.mean(0)
    u, s, vt = np.linalg.svd((y - my).T @ (x - mx) / len(x))
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    turn = (u * sign) @ vt
    scale = (s * sign).sum() / ((x - mx) ** 2).sum() * len(x)
    shift = np.linalg.norm(scale * (x - mx) @ turn.T + my - y, axis=1)
    cosines = [(np.trace((turn @ a[:, :3]).T @ b[:, :3]) - 1) / 2 for a, b in zip(poses, truth, strict=True)]
    return float(np.median(np.degrees(np.arccos(np.clip(cosines, -1, 1))))), float(np.median(shift))


def row(*values: object) -> None:
    print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values) + " |", flush=True)


def poses_table(d: Data, a: argparse.Namespace) -> None:
    wrong = perturbed(d.poses, d.size)
    print(f"\nposes turned by up to {MAX_DEGREES} degrees, moved by up to {MAX_SHIFT * d.size:.3g}: median errors left")
    row("", "degrees", "share", "units", "share", "PSNR")
    row("---", *["---:"] * 5)
    before = pose_errors(wrong, d.poses)
    row("given", before[0], 1.0, before[1], 1.0, "")
    for learn in (False, True):
        for seed in range(a.seeds):

            def options(t: Testbed, learn: bool = learn) -> None:
                t.nerf.training.optimize_extrinsics = learn

            t = d.train(a, seed, {"cameras": wrong}, options)
            left = pose_errors(t.cameras(), d.poses)
            name = f"{'learned' if learn else 'kept'}, seed {seed}"
            row(name, left[0], left[0] / before[0], left[1], left[1] / before[1], d.quality(t) if not learn else "")
            if not learn:
                break


def focal_table(d: Data, a: argparse.Namespace) -> None:
    print("\nfocal length off by 2%: error left along x and y")
    row("given", "seed", "x", "y", "PSNR")
    row("---", "---:", "---:", "---:", "---:")
    for factor, seed in product((0.98, 1.02), range(a.seeds)):
        given = (d.intrinsics[0] * factor, d.intrinsics[1] * factor, *d.intrinsics[2:])

        def options(t: Testbed) -> None:
            t.nerf.training.optimize_focal_length = True

        t = d.train(a, seed, {"intrinsics": given}, options)
        error = t.camera_intrinsics()[0, :2] / d.intrinsics[:2] - 1
        row(f"{factor - 1:+.0%}", seed, *(f"{e:+.2%}" for e in error), d.quality(t))


def exposed(images: NDArray[np.uint8], stops: F64) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Images with other exposures: as 8-bit sRGB, which clips, and as linear floats, which don't."""
    light = srgb_to_linear(images[..., :3] / 255.0) * 2.0 ** stops[:, None, None, None]
    alpha = images[..., 3:] / 255.0
    floats = np.concatenate([light, alpha], axis=-1).astype(np.float32)
    bytes_ = np.round(255 * np.concatenate([linear_to_srgb(np.minimum(light, 1)), alpha], axis=-1)).astype(np.uint8)
    return bytes_, floats


def exposure_table(d: Data, a: argparse.Namespace) -> None:
    print("\nexposures from -1 to 1 stop")
    row("images", "PSNR", "median error, stops")
    row("---", "---:", "---:")
    n = len(d.images)
    stops = np.random.default_rng(0).permutation(np.linspace(-1, 1, n))
    bytes_, floats = exposed(d.images, stops)
    for name, images, learn in (
        ("unexposed", d.images, False),
        ("8 bit, kept", bytes_, False),
        ("8 bit, learned", bytes_, True),
        ("float, learned", floats, True),
    ):

        def options(t: Testbed, learn: bool = learn) -> None:
            t.nerf.training.optimize_exposure = learn

        t = d.train(a, 0, {"images": images}, options)
        error = float(np.median(np.abs(t.image_exposures() + stops[:, None]))) if learn else ""
        row(name, d.quality(t), error)


def lenses_table(a: argparse.Namespace) -> None:
    size = tiny_scene.SIZE
    tests = tiny_scene.poses(6, phase=1.2)
    cameras = tiny_scene.poses(20)
    d = Data(
        np.stack([tiny_scene.photograph(p) for p in cameras]), cameras,
        np.stack([tiny_scene.photograph(p) for p in tests]), tests, tiny_scene.INTRINSICS, 2.0, {},
    )  # fmt: skip
    last = ends(20)
    sets: dict[str, tuple[Any, dict[str, Any]]] = {
        "undistorted": (d.images, {}),
        "rolling shutter": (
            np.stack([photograph_moving(s, e) for s, e in zip(cameras, last, strict=True)]),
            {"cameras_end": last, "rolling_shutter": ROWS},
        ),
    }
    for mode, params in (("OpenCV", OPENCV), ("OpenCVFisheye", FISHEYE)):
        pictures = np.stack([photograph_moving(p, p, mode=mode, params=params) for p in cameras])
        sets[mode] = pictures, {"lens": Lens(getattr(LensMode, mode), list(params))}
    print(f"\n20 pictures of {size}x{size} pixels through cameras that move or bend: PSNR of undistorted test views")
    row("seed", *sets)
    row("---:", *["---:"] * len(sets))
    every = []
    for seed in range(a.seeds):
        values = [d.quality(d.train(a, seed, {"images": i} | k, lambda t: None)) for i, k in sets.values()]
        every.append(values)
        row(seed, *values)
    row("mean", *(float(v) for v in np.mean(every, axis=0)))
    behind = np.array(every) - np.array(every)[:, :1]  # seed by seed
    row("behind undistorted", *(float(v) for v in -behind.mean(0)))
    if len(every) > 1:
        row("standard error of that", *(float(v) for v in behind.std(0, ddof=1) / np.sqrt(len(every))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--config", default="base_14")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    tables = {"poses": poses_table, "focal": focal_table, "exposure": exposure_table}
    parts = a.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if "lenses" in parts:
        lenses_table(a)
    if tables.keys() & set(parts):
        for part in parts:
            if part in tables:
                spread = FOCAL_SPREAD if part == "focal" else 0.0
                tables[part](scene_data(a.scene) if a.scene else tiny_data(spread=spread), a)


if __name__ == "__main__":
    main()
