"""The twins against instant-ngp's own pictures of a snapshot (shared/data/README.md)."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from . import nerf_render, occupancy, pose, snapshot
from .nerf_render import RenderOptions

DATA = Path(os.environ.get("PYNGP_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
SNAPSHOT = DATA / "snapshots" / "lego_base14.ingp"
PICTURES = DATA / "snapshots" / "lego_base14_ref.npz"
CAMERAS = DATA / "lego800" / "transforms_test.json"
SIZE = 400
STRIDE = 8  # 50 x 50 pixels
N_JITTERS = 8
OPTIONS = RenderOptions(cone=0.0, min_transmittance=1e-4)

needs_data = pytest.mark.skipif(
    not all(p.exists() for p in (SNAPSHOT, PICTURES, CAMERAS)), reason=f"no test data in {DATA}"
)


@dataclass
class Scene:
    """Snapshot, its field and bit-field, the pictures, and the rays of every STRIDE-th pixel."""

    snapshot: snapshot.Snapshot
    field: nerf_render.NerfField
    bits: np.ndarray
    pictures: dict[str, np.ndarray]
    cameras: dict

    def rays(self, frame: int) -> nerf_render.Rays:
        row, column = self.pixels()
        uv = np.stack([(column + 0.5) / SIZE, (row + 0.5) / SIZE], axis=1)
        matrix = np.array(self.cameras["frames"][frame]["transform_matrix"])
        focal = 0.5 * SIZE / np.tan(0.5 * self.cameras["camera_angle_x"])
        camera = pose.pose_to_ngp(matrix, 0.33, np.full(3, 0.5))
        return nerf_render.camera_rays(camera, uv, (SIZE, SIZE), (focal, focal))

    @staticmethod
    def pixels() -> tuple[np.ndarray, np.ndarray]:
        row, column = np.meshgrid(np.arange(3, SIZE, STRIDE), np.arange(4, SIZE, STRIDE), indexing="ij")
        return row.ravel(), column.ravel()

    def picture(self, key: str) -> np.ndarray:
        return self.pictures[key][self.pixels()].astype(np.float64)

    def render(self, frame: int, options: RenderOptions, n: int) -> tuple[np.ndarray, np.ndarray]:
        return nerf_render.render_pixels(self.field, self.bits, self.rays(frame), options, n)


@pytest.fixture(scope="module")
def scene() -> Scene:
    loaded = snapshot.load(SNAPSHOT)
    return Scene(
        loaded,
        nerf_render.field_from_snapshot(loaded),
        occupancy.occupied_cells(loaded.density_grid),
        dict(np.load(PICTURES)),
        json.loads(CAMERAS.read_text()),
    )


def psnr(got: np.ndarray, want: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.mean((got - want) ** 2)))


def compare(name: str, got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """(PSNR of rgb where alpha > 0.05, PSNR of alpha), printed."""
    seen = want[:, 3] > 0.05
    rgb, alpha = psnr(got[seen, :3], want[seen, :3]), psnr(got[:, 3], want[:, 3])
    print(f"{name}: rgb {rgb:.2f} dB over {seen.sum()} pixels, alpha {alpha:.2f} dB")
    return rgb, alpha


def test_decompress() -> None:
    raw = b"\x81\xa1a\x01"
    for packed in (raw, gzip.compress(raw), gzip.compress(raw, 0), zlib.compress(raw)):
        assert snapshot.decompress(packed) == raw


@needs_data
def test_snapshot_contents(scene: Scene) -> None:
    assert scene.snapshot.params.size == 485376 == scene.snapshot.state["n_params"]
    assert scene.snapshot.density_grid.shape == (1, occupancy.N_CELLS)
    assert len(scene.snapshot.cameras) == 87
    assert scene.snapshot.cameras[0].resolution == (800, 800)
    frames = json.loads((CAMERAS.parent / "transforms_train.json").read_text())["frames"]
    by_path = {frame["file_path"]: frame["transform_matrix"] for frame in frames}
    paths = scene.snapshot.state["nerf"]["dataset"]["paths"]
    for path, camera in zip(paths, scene.snapshot.cameras, strict=True):
        expected = pose.pose_to_ngp(np.array(by_path[path]), 0.33, np.full(3, 0.5))
        assert np.allclose(expected, camera.pose, atol=1e-6)


@needs_data
@pytest.mark.parametrize("frame", [0, 6, 12])
def test_pictures(scene: Scene, frame: int) -> None:
    """64 jitters and fp16 there, 8 stratified jitters here: measured 77-84 dB."""
    got, _ = scene.render(frame, OPTIONS, N_JITTERS)
    rgb, alpha = compare(f"v{frame}", got, scene.picture(f"v{frame}"))
    assert rgb > 72.0 and alpha > 72.0


@needs_data
def test_depth(scene: Scene) -> None:
    """One sample each: the start jitter moves the sample of largest weight by up to a step."""
    _, got = scene.render(0, OPTIONS, 1)
    want = scene.picture("z0")
    hit = want < nerf_render.MAX_DEPTH
    assert np.mean(hit != (got < nerf_render.MAX_DEPTH)) < 0.002
    error = np.abs(got - want)[hit & (got < nerf_render.MAX_DEPTH)]
    print(f"z0: median {np.median(error):.2e}, 95% {np.percentile(error, 95):.2e}")
    assert np.median(error) < 1e-3 and np.percentile(error, 90) < np.sqrt(3.0) / 1024.0


@needs_data
@pytest.mark.parametrize(
    "mode,key,peak,minimum",
    [
        ("AO", "ao0", 1.0, 52.0),
        ("Positions", "positions0", 1.0, 70.0),
        ("Depth", "depth0", 5.0, 70.0),
        ("Normals", "normals0", 1.0, 40.0),
    ],
)
@pytest.mark.slow  # the twin against itself and the pictures; pictures of view 0 to 12 run always
def test_modes(scene: Scene, mode: str, key: str, peak: float, minimum: float) -> None:
    """Other render modes of frame 0 (E.6), 16 samples a pixel; PSNR relative to ``peak``."""
    options = replace(OPTIONS, mode=mode, depth_scale=0.33)
    got, _ = scene.render(0, options, 2 * N_JITTERS)
    want = scene.picture(key)
    scale = np.array([peak, peak, peak, 1.0])
    rgb, alpha = compare(mode, got / scale, want / scale)
    assert rgb > minimum and alpha > 70.0
