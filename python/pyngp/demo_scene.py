"""The synthetic scene of ``pyngp demo``: a toy robot with a balloon, on a round plinth.

The scene is modelled and rendered here by our own ray tracer (:mod:`pyngp.raytracer`), so the
demo needs no download. It has what makes a radiance field worth learning: soft shadows, a glossy
balloon and ball, fine procedural textures, and a string, aerial and railing that are one or two
pixels wide.

The world is z-up. The subject fills most of the cube [-1.5, 1.5]^3, which the default transform
``position * 0.33 + 0.5`` maps into the unit cube that is trained.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .raytracer import (
    Array,
    Camera,
    Ellipsoid,
    Material,
    Primitive,
    Rod,
    RoundedBox,
    Scene,
    render,
    rotation,
    vec3,
)

FOV_X = math.radians(40.0)
SCALE, OFFSET = 0.33, (0.5, 0.5, 0.5)  # world to trained unit cube
CAMERA_RADIUS = 5.2  # world units
TARGET = (0.0, 0.0, -0.22)  # where the cameras look, world units
FLOOR = -0.98  # height of the plinth's top, world units


# --------------------------------------------------------------------------------------------------
# Textures: local positions (3, N) -> linear RGB (3, N)


def _mix(a: tuple[float, float, float], b: tuple[float, float, float], use_b: NDArray) -> Array:
    """Return colour ``b`` where ``use_b`` (N,) is 1 or true and ``a`` where it is 0."""
    weight = use_b.astype(np.float32)
    return vec3(a) * (1 - weight) + vec3(b) * weight


def _band(x: Array, period: float, width: float) -> NDArray[np.bool_]:
    """Return where ``x`` lies within ``width`` of the start of a period (a line pattern)."""
    return np.mod(x, np.float32(period)) < width


def _plinth(p: Array) -> Array:
    """Inlaid checker with a compass ring on the top, brick courses on the side."""
    radius, angle = np.hypot(p[0], p[1]), np.arctan2(p[1], p[0])
    # Top: tiles of 0.2 with thin joints, and every second tile cut into a finer checker.
    tile = (np.floor(p[0] / 0.2) + np.floor(p[1] / 0.2)) % 2
    fine = (np.floor(p[0] / 0.05) + np.floor(p[1] / 0.05)) % 2
    top = _mix((0.72, 0.63, 0.48), (0.10, 0.22, 0.27), tile * (0.55 + 0.45 * fine))
    joint = _band(p[0] + 0.006, 0.2, 0.012) | _band(p[1] + 0.006, 0.2, 0.012)
    top = np.where(joint, vec3((0.30, 0.24, 0.18)), top)
    ticks = _mix((0.42, 0.13, 0.06), (0.80, 0.62, 0.32), _band(angle, math.pi / 36, math.pi / 80))
    top = np.where((radius > 1.02) & (radius < 1.08), vec3((0.80, 0.62, 0.32)), top)
    top = np.where(radius >= 1.08, ticks, top)
    top = np.where(radius >= 1.16, vec3((0.42, 0.13, 0.06)), top)
    # Side: running bond, with a tone of its own for every brick.
    course = np.floor((p[2] + 0.16) / 0.08)
    along = angle * np.float32(48 / (2 * math.pi)) + np.float32(0.5) * (course % 2)
    tone = 0.75 + 0.25 * np.sin(np.floor(along) * 12.9898 + course * 78.233).astype(np.float32)
    mortar = _band(p[2] + 0.16, 0.08, 0.013) | _band(along, 1.0, 0.09)
    side = np.where(mortar, vec3((0.55, 0.50, 0.43)), vec3((0.50, 0.17, 0.10)) * tone)
    return np.where(p[2] > 0.1599, top, side)


def _torso(p: Array) -> Array:
    """Teal paint with a cream chest panel: grille, seams and a row of rivets."""
    teal, cream, dark = (0.03, 0.34, 0.36), (0.80, 0.74, 0.60), (0.05, 0.06, 0.07)
    colour = _mix(teal, (0.02, 0.20, 0.22), _band(p[2] + 0.012, 0.26, 0.02) & (p[2] < 0.2))
    rivet = np.hypot(np.mod(p[2], 0.13) - 0.065, np.abs(p[0]) - 0.40) < 0.018
    colour = np.where(rivet & (np.abs(p[1]) > 0.3), vec3(cream), colour)
    x, z = np.abs(p[0]), p[2]
    front, back = p[1] < -0.30, p[1] > 0.30
    panel = (x < 0.31) & (np.abs(z + 0.02) < 0.27)
    colour = np.where((front | back) & panel, vec3(cream), colour)
    border = panel & ((x > 0.285) | (np.abs(z + 0.02) > 0.245))
    colour = np.where((front | back) & border, vec3((0.45, 0.27, 0.08)), colour)
    slots = (x < 0.24) & (z < 0.0) & (z > -0.23) & _band(z, 0.05, 0.022)
    colour = np.where(front & slots, vec3(dark), colour)
    vents = (np.hypot(p[0], z) < 0.2) & _band(np.hypot(p[0], z), 0.06, 0.03)
    return np.where(back & vents, vec3(dark), colour)


def _head(p: Array) -> Array:
    """Cream paint with a dark visor, a mouth grille and a teal crown line."""
    cream, dark = (0.80, 0.74, 0.60), (0.03, 0.05, 0.06)
    colour = _mix(cream, (0.03, 0.34, 0.36), np.abs(p[2] - 0.165) < 0.02)
    front, x = p[1] < -0.2, np.abs(p[0])
    visor = np.hypot(np.maximum(x - 0.15, 0), p[2] - 0.035) < 0.125
    mouth = (x < 0.17) & (np.abs(p[2] + 0.155) < 0.035)
    teeth = _mix((0.42, 0.13, 0.06), cream, _band(p[0] + 0.008, 0.048, 0.016))
    colour = np.where(front & mouth, teeth, colour)
    return np.where(front & visor, vec3(dark), colour)


def _block(paint: tuple[float, float, float]) -> Callable[[Array], Array]:
    """Return the texture of a toy block: maple with a painted frame and a ring on each side."""

    def texture(p: Array) -> Array:
        rings = np.hypot(p[0] + 0.5, p[2] * 0.3 + 0.9 + 0.02 * np.sin(p[1] * 9))
        colour = _mix((0.66, 0.44, 0.22), (0.52, 0.31, 0.14), _band(rings, 0.034, 0.012))
        q = np.sort(np.abs(p), axis=0)  # the largest component is the one across the face
        frame = (q[1] > 0.115) & (q[1] < 0.145)
        disc = np.abs(np.hypot(q[0], q[1]) - 0.062) < 0.022
        return np.where(frame | disc, vec3(paint), colour)

    return texture


def _balloon(p: Array) -> Array:
    """Red rubber with slightly darker gores."""
    angle = np.arctan2(p[1], p[0])
    shade = np.float32(0.5) + np.float32(0.5) * np.cos(8 * angle)
    return _mix((0.72, 0.035, 0.03), (0.50, 0.02, 0.03), shade * (1 - np.abs(p[2]) / 0.42))


# --------------------------------------------------------------------------------------------------
# Model

_TEAL = Material((0.03, 0.34, 0.36), f0=0.05, shininess=60, mirror=0.5)
_STEEL = Material((0.20, 0.21, 0.23), f0=0.10, shininess=70, mirror=0.5)
_BRASS = Material((0.58, 0.36, 0.10), f0=0.12, shininess=60, mirror=0.4)
_RUBBER = Material((0.06, 0.06, 0.07))
_CORAL = Material((0.80, 0.16, 0.07), f0=0.05, shininess=120, mirror=0.7)


def _robot(x: float, y: float) -> list[Primitive]:
    """Return the robot, standing on the floor at (x, y) and looking along -y."""

    def at(dx: float, dy: float, z: float) -> tuple[float, float, float]:
        return (x + dx, y + dy, z)

    paint = {"f0": 0.05, "shininess": 60.0, "mirror": 0.4}
    turn = rotation("z", -14.0)
    head = at(0, 0, 0.56)

    def on_head(dx: float, dy: float, dz: float) -> NDArray:
        return np.asarray(head) + turn @ np.array([dx, dy, dz])

    parts: list[Primitive] = [
        RoundedBox(at(0, 0, -0.17), (0.47, 0.35, 0.41), 0.11, Material(_torso, **paint)),
        RoundedBox(head, (0.37, 0.29, 0.25), 0.10, Material(_head, **paint), turn=turn),
        Rod(at(0, 0, 0.2), at(0, 0, 0.34), 0.13, _STEEL, flat=True),
        Rod(on_head(-0.43, 0, 0), on_head(0.43, 0, 0), 0.10, _BRASS, flat=True),
        Rod(on_head(0.2, 0.05, 0.22), on_head(0.24, 0.08, 0.68), 0.011, _STEEL),
        Ellipsoid(on_head(0.24, 0.08, 0.70), 0.055, _CORAL),
    ]
    eye = Material((0.45, 0.75, 0.72), f0=0.06, shininess=150, mirror=0.8)
    for side in (-1, 1):
        parts += [
            Ellipsoid(on_head(side * 0.14, -0.27, 0.035), 0.075, eye),
            RoundedBox(at(side * 0.23, -0.06, FLOOR + 0.085), (0.16, 0.25, 0.085), 0.05, _RUBBER),
            Rod(at(side * 0.22, 0, FLOOR + 0.1), at(side * 0.2, 0, -0.5), 0.085, _STEEL),
            Ellipsoid(at(side * 0.51, 0, 0.06), 0.13, _BRASS),
        ]
    colours = ((0.75, 0.08, 0.04), (0.80, 0.48, 0.04), (0.06, 0.42, 0.12))
    for i, colour in enumerate(colours):
        knob = Material(colour, f0=0.05, shininess=100, mirror=0.6)
        parts.append(Ellipsoid(at(0.15 * (i - 1), -0.35, -0.06), 0.045, knob))
    # One arm hangs, the other lifts the balloon's string.
    parts += [
        Rod(at(-0.53, 0, 0.05), at(-0.66, -0.03, -0.28), 0.075, _TEAL),
        Rod(at(-0.66, -0.03, -0.28), at(-0.60, -0.22, -0.50), 0.07, _TEAL),
        Ellipsoid(at(-0.595, -0.24, -0.54), 0.105, _BRASS),
        Rod(at(0.53, 0, 0.05), at(0.74, -0.06, -0.14), 0.075, _TEAL),
        Rod(at(0.74, -0.06, -0.14), at(0.93, -0.18, 0.05), 0.07, _TEAL),
        Ellipsoid(at(0.95, -0.19, 0.08), 0.105, _BRASS),
    ]
    return parts


def _railing() -> list[Primitive]:
    """Return a thin railing with crossed wires along the back half of the plinth's edge."""
    iron = Material((0.05, 0.06, 0.08), f0=0.05, shininess=40, mirror=0.2)
    angles = np.radians(np.linspace(15, 165, 11))
    xs, ys = 1.21 * np.cos(angles), 1.21 * np.sin(angles)
    low, high = FLOOR + 0.07, FLOOR + 0.42
    parts: list[Primitive] = []
    for x, y in zip(xs, ys, strict=True):
        parts.append(Rod((x, y, FLOOR), (x, y, high), 0.015, iron))
        parts.append(Ellipsoid((x, y, high + 0.02), 0.032, _BRASS))
    for i in range(len(xs) - 1):
        a, b = (xs[i], ys[i]), (xs[i + 1], ys[i + 1])
        parts.append(Rod((*a, high - 0.04), (*b, high - 0.04), 0.012, iron))
        parts.append(Rod((*a, low), (*b, low), 0.012, iron))
        parts.append(Rod((*a, low), (*b, high - 0.04), 0.007, iron))
        parts.append(Rod((*b, low), (*a, high - 0.04), 0.007, iron))
    return parts


def build_scene() -> Scene:
    """Return the demo's scene, in world units (z up, inside [-1.4, 1.4]^3)."""
    plinth = Material(_plinth, f0=0.03, shininess=30, mirror=0.15)
    balloon = Material(_balloon, f0=0.05, shininess=220, mirror=0.9)
    ball = Material((0.78, 0.40, 0.03), f0=0.06, shininess=300, mirror=1.0)
    string = Material((0.62, 0.60, 0.55))
    knot = (0.80, -0.08, 0.28)
    parts: list[Primitive] = [
        Rod((0, 0, -1.30), (0, 0, FLOOR), 1.3, plinth, flat=True),
        *_robot(-0.28, 0.12),
        Ellipsoid((0.80, -0.08, 0.78), (0.40, 0.40, 0.47), balloon),
        Ellipsoid(knot, 0.05, _CORAL),
        Rod((0.67, -0.07, 0.06), knot, 0.008, string),
        Rod((0.67, -0.07, 0.06), (0.70, -0.10, -0.55), 0.008, string),
        Ellipsoid((0.34, -0.74, FLOOR + 0.22), 0.22, ball),
        *_railing(),
    ]
    for position, degrees, paint in (
        ((0.80, 0.10, FLOOR + 0.17), 20.0, (0.08, 0.24, 0.55)),
        ((0.80, 0.08, FLOOR + 0.51), 52.0, (0.60, 0.10, 0.05)),
        ((-0.72, -0.68, FLOOR + 0.17), -28.0, (0.10, 0.36, 0.12)),
    ):
        block = Material(_block(paint), f0=0.04, shininess=40, mirror=0.2)
        turn = rotation("z", degrees)
        parts.append(RoundedBox(position, (0.17, 0.17, 0.17), 0.02, block, turn=turn))
    return Scene(
        primitives=parts,
        light_position=(-3.7, -1.9, 4.0),
        light_radius=0.75,
        light_colour=(1.15, 1.06, 0.92),
        sky=(0.36, 0.43, 0.56),
        horizon=(0.80, 0.82, 0.86),
        bounce=(0.26, 0.20, 0.15),
    )


# --------------------------------------------------------------------------------------------------
# Cameras and files


def camera_poses(count: int, seed: int) -> NDArray[np.float64]:
    """Return ``count`` camera-to-world matrices (count, 4, 4) on a dome around the origin.

    A Fibonacci spiral from just below the horizon (still above the plinth's base) to 70 degrees
    up, with a little jitter of the distance and of the point looked at.
    """
    rng = np.random.default_rng(seed)
    turn = rng.uniform(0, 2 * math.pi)
    poses = np.tile(np.eye(4), (count, 1, 1))
    low, high = math.sin(math.radians(-6)), math.sin(math.radians(70))
    for i in range(count):
        z = low + (high - low) * (i + 0.5) / count
        angle = turn + i * math.pi * (3 - math.sqrt(5))
        ring = math.sqrt(1 - z * z)
        direction = np.array([ring * math.cos(angle), ring * math.sin(angle), z])
        target = TARGET + rng.uniform(-0.04, 0.04, 3)
        eye = TARGET + direction * CAMERA_RADIUS * rng.uniform(0.97, 1.03)
        back = (eye - target) / np.linalg.norm(eye - target)
        right = np.cross((0.0, 0.0, 1.0), back)
        right /= np.linalg.norm(right)
        poses[i, :3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return poses


def _encode(image: Array) -> NDArray[np.uint8]:
    """Turn linear premultiplied RGBA (H, W, 4) into straight-alpha sRGB bytes."""
    alpha = image[..., 3:]
    colour = np.clip(image[..., :3] / np.maximum(alpha, np.float32(1e-6)), 0, 1)
    curve = np.float32(1.055) * np.power(colour, np.float32(1 / 2.4)) - np.float32(0.055)
    colour = np.where(colour <= 0.0031308, colour * np.float32(12.92), curve)
    return np.rint(np.concatenate([colour, alpha], axis=2) * 255).astype(np.uint8)


def _worker_count() -> int:
    """Return how many views to render at once: PYNGP_NUM_THREADS, or one per processor, up to 8.

    Beyond that the interpreter lock leaves little to gain, and each view takes some 50 MB.
    """
    wanted = os.environ.get("PYNGP_NUM_THREADS", "")
    return max(1, int(wanted)) if wanted.isdigit() else min(8, os.cpu_count() or 1)


def _write_json(path: Path, names: list[str], poses: NDArray[np.float64]) -> None:
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]
    header = {"camera_angle_x": FOV_X, "aabb_scale": 1, "scale": SCALE, "offset": list(OFFSET)}
    path.write_text(json.dumps({**header, "frames": frames}, indent=1) + "\n", encoding="utf-8")


def write_demo_scene(
    directory: Path,
    *,
    size: int = 256,
    n_train: int = 72,
    n_test: int = 12,
    seed: int = 1337,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the demo's views and write them as a NeRF-synthetic style data set.

    Writes ``train/r_000.png`` ... and ``test/r_000.png`` ... (``size`` x ``size`` RGBA, sRGB,
    straight alpha) and then ``transforms_train.json`` and ``transforms_test.json``: an interrupted
    run leaves no transforms file that names missing pictures. ``progress`` is called in the
    caller's thread with (views done, views in all). The files depend on the sizes, counts and
    seed only, not on the number of threads.
    """
    directory = Path(directory)
    total = n_train + n_test
    poses = camera_poses(total, seed)
    # Held-out views are spread evenly through the spiral, so each lies between training views.
    held_out = {int((j + 0.5) * total / n_test) for j in range(n_test)}
    groups = {
        "train": [i for i in range(total) if i not in held_out],
        "test": sorted(held_out),
    }
    jobs: list[tuple[int, str]] = []
    for group, indices in groups.items():
        (directory / group).mkdir(parents=True, exist_ok=True)
        (directory / f"transforms_{group}.json").unlink(missing_ok=True)
        jobs += [(view, f"{group}/r_{i:03d}.png") for i, view in enumerate(indices)]
    scene, stop = build_scene(), threading.Event()

    def render_view(view: int, name: str) -> None:
        if not stop.is_set():
            image = render(scene, Camera(poses[view], FOV_X, size), seed * 1009 + view)
            Image.fromarray(_encode(image), "RGBA").save(directory / name)

    # Threads rather than processes: NumPy's loops run without the interpreter lock, and spawned
    # processes would re-import the caller's main module.
    pool = ThreadPoolExecutor(max_workers=_worker_count())
    try:
        futures = [pool.submit(render_view, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if progress is not None:
                progress(done, total)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    for group, indices in groups.items():
        names = [name for _, name in jobs if name.startswith(f"{group}/")]
        _write_json(directory / f"transforms_{group}.json", names, poses[indices])
