"""Prints the GPU's figures of docs/performance.md: quality at equal steps, time to quality, rendering, memory.

    python tests/benchmarks/gpu_tables.py LEGO800 [--fox FOX] [--out FOLDER] [--parts equal,time,…]

LEGO800 holds transforms_train.json and transforms_test.json. Training seconds and steps are those of design section 7;
evaluation is not counted. With --out, pictures of both devices side by side are written there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyngp import ColorSpace, Testbed
from pyngp.dataset import Frame, load_images, read_scene
from pyngp.evaluation import evaluation_settings, on_black, render_frame
from pyngp.images import linear_to_srgb
from pyngp.metrics import psnr

PARTS = ("equal", "compat", "time", "render", "fox", "deterministic")
DEFAULT_MARKS, COMPAT_MARKS = (446, 2504, 15682), (436, 2444, 15305, 30856)
SEEDS, QUALITIES = (1337, 1, 2), (33.0, 35.5)


class Lego:
    """The dataset, its test pictures in memory, and models trained on it."""

    def __init__(self, folder: Path) -> None:
        self.train = folder / "transforms_train.json"
        self.frames: Sequence[Frame] = read_scene(folder / "transforms_test.json").frames
        self.references = [on_black(picture) for picture in load_images(self.frames)]
        self.pool = ThreadPoolExecutor(len(self.references))

    def testbed(self, seed: int = 1337, compat: bool = False, **options: Any) -> Testbed:
        testbed = Testbed(data=self.train, device="cuda", seed=seed, **options)
        if compat:
            testbed.color_space = ColorSpace.SRGB
            testbed.nerf.cone_angle_constant = 0.0
            testbed.nerf.training.random_bg_color = False
        return testbed

    def quality(self, testbed: Testbed) -> float:
        with evaluation_settings(testbed):
            pictures = [render_frame(testbed, f, f.intrinsics, ("rgb",))["rgb"] for f in self.frames]
        pairs = zip(pictures, self.references, strict=True)
        return float(np.mean(list(self.pool.map(lambda pair: psnr(linear_to_srgb(pair[0]), pair[1]), pairs))))


def seconds(testbed: Testbed) -> float:
    return float(testbed.stats()["train_seconds"])


def equal_steps(lego: Lego, compat: bool, marks: Sequence[int]) -> Testbed:
    testbed = lego.testbed(compat=compat)
    for mark in marks:
        before, n = seconds(testbed), mark - testbed.training_step
        testbed.fit(n)
        ms = (seconds(testbed) - before) / n * 1e3
        quality = lego.quality(testbed)
        print(f"{'compat' if compat else 'default'}: {mark} steps, {quality:.2f} dB, {ms:.3f} ms a step since the last")
    return testbed


def time_to_quality(lego: Lego, seed: int) -> None:
    testbed = lego.testbed(seed)
    wanted, reached = list(QUALITIES), {}
    while wanted and seconds(testbed) < 10:
        now = seconds(testbed)
        testbed.fit(seconds=0.9 if now == 0 else (0.04 if now < 1.4 else 0.1))
        if (quality := lego.quality(testbed)) >= wanted[0]:
            reached[wanted.pop(0)] = f"{seconds(testbed):.2f} s, {testbed.training_step} steps, {quality:.2f} dB"
    print(f"seed {seed}: " + "; ".join(f"{q} dB after {text}" for q, text in reached.items()))


def frame_ms(testbed: Testbed, spp: int, repeats: int = 7) -> float:
    testbed.render(1920, 1080, spp, True)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        testbed.render(1920, 1080, spp, True)
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def rendering(lego: Lego, testbed: Testbed) -> None:
    """Test frame 0; the vertical field of view of the 800x800 picture."""
    frame = lego.frames[0]
    testbed.set_nerf_camera_matrix(frame.camera_to_world[:3])
    testbed.fov_axis = 1
    height = lego.references[0].shape[0]
    testbed.fov = float(np.degrees(2 * np.arctan(0.5 * height / frame.intrinsics.focal_length[0])))
    for least in (1e-4, 1e-2):
        testbed.nerf.render_min_transmittance = least
        one, many = frame_ms(testbed, 1), frame_ms(testbed, 17, 3)
        print(
            f"1920x1080, least transmittance {least:g}: {one:.2f} ms as NumPy, "
            f"{(many - one) / 16:.2f} ms a further sample"
        )
    testbed.nerf.render_min_transmittance = 1e-2


def panels(testbed: Testbed, camera: NDArray[Any], width: int, height: int, fov_x: float) -> tuple[Any, Any]:
    channels = testbed.render_channels(camera, width, height, fov_x=fov_x)
    rgb = linear_to_srgb(channels["rgb"] + (1 - channels["alpha"])[..., None])
    near, far = np.nanpercentile(channels["depth"], (1, 99))
    depth = np.nan_to_num(1 - (channels["depth"] - near) / (far - near))[..., None].repeat(3, axis=2)
    return np.concatenate([rgb, depth, channels["normal"] * 0.5 + 0.5], axis=1).clip(0, 1), channels


def both_devices(
    testbed: Testbed, name: str, camera: NDArray[Any], size: tuple[int, int], fov_x: float, out: Path
) -> None:
    """The same snapshot rendered on both devices: compared, and written one above the other."""
    with tempfile.TemporaryDirectory() as folder:
        testbed.save_snapshot(Path(folder) / "model.ingp")
        cpu = Testbed(device="cpu")
        cpu.load_snapshot(Path(folder) / "model.ingp")
    (above, a), (below, b) = (panels(t, camera, *size, fov_x) for t in (testbed, cpu))
    solid = (a["alpha"] > 0.99) & (b["alpha"] > 0.99)
    close = np.mean(np.abs(a["depth"][solid] / b["depth"][solid] - 1) < 0.01)
    print(f"{name}, GPU against CPU: rgb {psnr(a['rgb'], b['rgb']):.1f} dB, depth within 1% for {100 * close:.1f}%")
    Image.fromarray((np.concatenate([above, below]) * 255).astype(np.uint8)).save(out / f"{name}.png")


def fox_figures(folder: Path, out: Path | None) -> None:
    testbed = Testbed(data=folder / "transforms.json", device="cuda")
    testbed.fit(1000)
    before = seconds(testbed)
    testbed.fit(2000)
    print(f"fox: {(seconds(testbed) - before) / 2:.3f} ms a step")
    testbed.set_camera_to_training_view(3)
    for least in (1e-4, 1e-2):
        testbed.nerf.render_min_transmittance = least
        ms = frame_ms(testbed, 1)
        print(f"fox from training view 3, 1920x1080, least transmittance {least:g}: {ms:.2f} ms as NumPy")
    if out:
        both_devices(testbed, "fox", testbed.cameras()[3], (270, 480), 42.9, out)


def determinism(lego: Lego) -> None:
    files = []
    for _ in range(2):
        testbed = lego.testbed(deterministic=True)
        testbed.fit(1000)
        before = seconds(testbed)
        testbed.fit(1000)
        ms = seconds(testbed) - before
        with tempfile.TemporaryDirectory() as folder:
            testbed.save_snapshot(Path(folder) / "model.ingp", include_optimizer_state=True, compress=False)
            files.append((Path(folder) / "model.ingp").read_bytes())
    print(f"deterministic: {ms:.3f} ms a step, two runs of 2,000 steps identical: {files[0] == files[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lego", type=Path)
    parser.add_argument("--fox", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    parts = set(arguments.parts.split(","))
    if unknown := parts - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} not known; there are {', '.join(PARTS)}")
    lego = Lego(arguments.lego)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    if parts & {"equal", "render"}:
        testbed = equal_steps(lego, False, DEFAULT_MARKS if "equal" in parts else DEFAULT_MARKS[1:2])
        if "render" in parts:
            rendering(lego, testbed)
        print(f"device memory: {testbed.stats()['peak_device_bytes'] / 2**20:.0f} MiB allocated at most")
        if arguments.out:
            both_devices(testbed, "lego", lego.frames[0].camera_to_world[:3], (400, 400), 39.6, arguments.out)
        del testbed
    if "compat" in parts:
        equal_steps(lego, True, COMPAT_MARKS)
    if "time" in parts:
        for seed in SEEDS:
            time_to_quality(lego, seed)
    if "fox" in parts and arguments.fox:
        fox_figures(arguments.fox, arguments.out)
    if "deterministic" in parts:
        determinism(lego)


if __name__ == "__main__":
    main()
