"""Gradients of cameras (E.5): against finite differences of a float64 twin of everything from the pixel to the loss."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from pyngp import ColorSpace, Lens, LensMode, LossType, TrainMode
from pyngp._core import available_isas, stages
from reference import color, compositing, grid, losses, mlp, rotation, train_modes
from reference import lens as twin
from reference.nerf_render import NerfField
from stages.helpers import grid_encoding, model_config, network

F64 = NDArray[np.float64]
N_RAYS, SIZE = 12, (6, 5)
FOCAL, CENTRE = (5.5, 6.0), (0.52, 0.47)
EXPOSURE = np.array([0.8, 1.3, 1.0])
# Where each kind of gradient is.
KINDS = {
    "position": slice(0, 3),
    "rotation": slice(3, 6),
    "exposure": slice(6, 9),
    "focal length": slice(9, 11),
    "distortion": slice(11, 13),
}
# How far gradients may be off, relative to the largest of all rays: float32 sums over 500 samples, whose terms cancel
# to a hundredth. In one ray of a few, rounding changes the cell of a sample, or a ReLU's mask: then one of 500 terms.
TOLERANCE, TOLERANCE_OF_FLIPS = 500**0.5 * 100 * 2.0**-24, 5e-3
LENSES = {
    "Perspective": (),
    "OpenCV": (0.1, -0.03, 0.02, -0.01),
    "OpenCVFisheye": (0.05, -0.02, 0.01, 0.0),
    "FTheta": (0.01, 0.14, 0, 1e-3, 0, 6.0, 5.0),
    "LatLong": (),
    "Orthographic": (),
}


def config() -> str:
    return model_config(encoding=grid_encoding(), network=network(16, 1), rgb_network=network(16, 1))


class SmoothField(NerfField):
    """Without NerfField's rounding of positions to float32: finite differences need finer steps."""

    def features(self, position: F64) -> F64:
        encoded = []
        for level in self.levels:
            p = float(level.scale) * position + 0.5
            cell = np.floor(p).astype(np.int64).astype(np.uint32)
            values = np.zeros((len(p), self.table.shape[1]))
            for bits in product((0, 1), repeat=3):
                entries = grid.entry_index(level, cell + np.array(bits, np.uint32))
                values += grid.corner_weights(p - np.floor(p), bits)[:, None] * self.table[entries]
            encoded.append(values)
        width = 16 - sum(v.shape[1] for v in encoded)
        return mlp.forward(self.density_net, np.concatenate([*encoded, np.zeros((len(position), width))], axis=1))[0]


def random_field(rng: np.random.Generator, n_latent: int = 0) -> tuple[NDArray[np.float32], NerfField]:
    """Parameters, and the field that they make: about half opaque along a ray, of changing colour."""
    encoding = json.loads(config())["encoding"]
    levels = grid.level_table(4, 5, 1.6, 8)
    shapes = [mlp.MlpShape(16, 16, 16, 1), mlp.MlpShape(32 + (n_latent + 15) // 16 * 16, 3, 16, 1)]
    networks = [rng.uniform(-0.6, 0.6, s.n_params) for s in shapes]
    table = rng.uniform(-1, 1, grid.total_entries(levels) * encoding["n_features_per_level"])
    params = np.concatenate([*networks, table]).astype(np.float32)
    p = params.astype(np.float64)
    n = shapes[0].n_params, shapes[0].n_params + shapes[1].n_params
    nets = [mlp.unpack(s, blob) for s, blob in zip(shapes, (p[: n[0]], p[n[0] : n[1]]), strict=True)]
    box = (np.zeros(3), np.ones(3))
    latent = rng.uniform(-1, 1, n_latent).astype(np.float32).astype(np.float64)
    return params, SmoothField(levels, p[n[1] :].reshape(-1, 2), *nets, box, "Linear", False, latent)


@dataclass
class Twin:
    field: NerfField
    lens: str
    start: F64
    end: F64
    abcd: tuple[float, ...]
    image: F64
    distortion: F64
    space: str
    loss: str
    mode: str = "Nerf"

    def direction_offset(self, uv: F64) -> F64:
        """Bilinear, nodes from corner to corner."""
        h, w, _ = self.distortion.shape
        x, y = uv * (w - 1, h - 1)
        i, j = min(int(x), w - 2), min(int(y), h - 2)
        fx, fy = x - i, y - j
        m = self.distortion
        return (m[j, i] * (1 - fx) + m[j, i + 1] * fx) * (1 - fy) + (m[j + 1, i] * (1 - fx) + m[j + 1, i + 1] * fx) * fy

    def ray_loss(self, ray: dict[str, F64], change: F64) -> float:
        """Loss of a ray, summed over channels, with its camera changed; samples keep their distances."""
        raw_rgb, raw_density = self.raw(ray, change)
        target = self.target(ray["uv_tau"][:2], ray["background"], change)
        if self.mode == "Rfl":
            twin_ray = train_modes.Ray(raw_rgb, raw_density, ray["dt"], ray["background"], target, self.loss)
            return twin_ray.rfl(twin_ray.raw)
        rgb = ray["background"]
        if len(ray["t"]):
            rgb = compositing.composite(raw_rgb, raw_density, ray["dt"], ray["background"]).rgb
        return float(np.sum(losses.numerator(self.loss, rgb - target)))

    def relaxed_loss(self, ray: dict[str, F64], change: F64) -> float:
        """What RflRelax follows where the camera moves: the sum of its samples' functions, as they are at no change."""
        target = self.target(ray["uv_tau"][:2], ray["background"], np.zeros(13))
        raw = self.raw(ray, np.zeros(13))
        at = train_modes.Ray(*raw, ray["dt"], ray["background"], target, self.loss)
        moved = np.column_stack(self.raw(ray, change))
        return float(sum(at.relaxed(moved, i) for i in range(at.used)))

    def raw(self, ray: dict[str, F64], change: F64) -> tuple[F64, F64]:
        """Raw rgb (S, 3) and raw density (S,) of the samples."""
        uv, tau = ray["uv_tau"][:2], ray["uv_tau"][2]
        pose = rotation.moving_pose(self.start, self.end, self.abcd, uv, tau)
        turned = rotation.matrix(change[KINDS["rotation"]]) @ pose[:, :3]
        size, focal = SIZE, np.array(FOCAL) * np.exp(change[KINDS["focal length"]])
        params = LENSES[self.lens]
        d = twin.ray_direction(uv, size, focal, CENTRE, self.lens, params or (0.0,) * 4)
        if self.lens != "Orthographic":
            d[:2] += self.direction_offset(uv) + change[KINDS["distortion"]]
        d = turned @ d
        d /= np.linalg.norm(d)
        origin = pose[:, 3] + change[KINDS["position"]]
        origin = origin + turned @ twin.ray_origin(uv, size, focal, CENTRE, self.lens)
        t = ray["t"]
        return self.field.raw(origin + t[:, None] * d, np.broadcast_to(d, (len(t), 3)))

    def target(self, uv: F64, background: F64, change: F64) -> F64:
        x, y = (uv * SIZE).astype(int)
        pixel, alpha = self.image[y, x, :3], self.image[y, x, 3]
        straight = pixel * EXPOSURE * 2.0 ** change[KINDS["exposure"]]
        if self.space == "SRGB":
            return color.linear_to_srgb(straight) * alpha + background * (1 - alpha)
        return color.linear_to_srgb(straight * alpha + color.srgb_to_linear(background) * (1 - alpha))

    def gradient(self, ray: dict[str, F64]) -> F64:
        """Central differences; the exposure of RflRelax is that of its composited colour's loss."""
        h = 1e-7
        of_geometry = self.relaxed_loss if self.mode == "RflRelax" else self.ray_loss
        exposure = range(*KINDS["exposure"].indices(13))
        values = [self.ray_loss if i in exposure else of_geometry for i in range(13)]
        return np.array([(f(ray, h * e) - f(ray, -h * e)) / (2 * h) for f, e in zip(values, np.eye(13), strict=True)])


def camera(rng: np.random.Generator, lens: str) -> F64:
    """NGP camera in front of the box, or in it for lenses that see all around; y down, z forward."""
    base = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    turn = rotation.matrix(rng.uniform(-0.3, 0.3, 3))
    position = np.array([0.5, 0.5, 0.5]) if lens == "LatLong" else np.array([0.5, 0.5, 0.5]) - 1.0 * turn[:, 2]
    return np.column_stack([turn @ base, position])


# Lens, colour space, loss, instruction set, train mode, latent dimensions
CASES = [(name, "Linear", "L2", "", "Nerf", 0) for name in LENSES if name != "OpenCV"]
CASES += [("OpenCV", "Linear", "L2", isa, "Nerf", 0) for isa in available_isas()]
CASES += [("OpenCV", "SRGB", "Huber", "", "Nerf", 0), ("Perspective", "Linear", "L1", "", "Nerf", 0)]
CASES += [("Perspective", "Linear", "L2", "", mode, 0) for mode in ("Rfl", "RflRelax")]
CASES += [("OpenCV", "SRGB", "Huber", "", "Rfl", 0)]
CASES += [("Perspective", "Linear", "L2", "", "Nerf", n) for n in (3, 16)]
CASES += [("OpenCV", "Linear", "L2", "", "RflRelax", 5)]


@pytest.mark.parametrize(("lens", "space", "loss", "isa", "mode", "n_latent"), CASES)
def test_gradients(lens, space, loss, isa, mode, n_latent):
    rng = np.random.default_rng(len(lens) + len(space))
    params, field = random_field(rng, n_latent)
    start = camera(rng, lens)
    end = np.column_stack([rotation.matrix([0.05, -0.08, 0.03]) @ start[:, :3], start[:, 3] + (0.03, -0.02, 0.05)])
    abcd = (0.1, -0.2, 0.9, 0.3)
    image = rng.uniform(0.05, 1, (SIZE[1], SIZE[0], 4)).astype(np.float32)
    distortion = rng.uniform(-0.02, 0.02, (3, 4, 2)).astype(np.float32)
    start, end = start.astype(np.float32), end.astype(np.float32)
    got = stages.view_gradients(
        config(), params, image, start, FOCAL, CENTRE, Lens(getattr(LensMode, lens), list(LENSES[lens])), end, abcd,
        EXPOSURE, distortion, N_RAYS, getattr(LossType, loss), getattr(ColorSpace, space), 5, isa,
        getattr(TrainMode, mode), field.latent.astype(np.float32) if n_latent else None,
    )  # fmt: skip
    reference = Twin(
        field, lens, start.astype(np.float64), end.astype(np.float64), abcd, image.astype(np.float64),
        distortion.astype(np.float64), space, loss, mode,
    )  # fmt: skip
    wanted = np.zeros((N_RAYS, 13))
    n_samples = 0
    for i in range(N_RAYS):
        ray = {k: got[k][i].astype(np.float64) for k in ("uv_tau", "background", "target")}
        ray["t"], ray["dt"] = (a.astype(np.float64) for a in got["samples"][i])
        n_samples += len(ray["t"])
        value = reference.ray_loss(ray, np.zeros(13))
        np.testing.assert_allclose(got["loss"][i], value, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(ray["target"], reference.target(ray["uv_tau"][:2], ray["background"], np.zeros(13)),
                                   rtol=1e-5)  # fmt: skip
        wanted[i] = reference.gradient(ray)
    assert n_samples > 10 * N_RAYS
    for kind, columns in KINDS.items():
        a, b = got["gradient"][:, columns], wanted[:, columns]
        useless = (lens in ("FTheta", "LatLong") and kind == "focal length") or (
            lens == "Orthographic" and kind == "distortion"
        )
        assert (np.abs(b).max() < 1e-6) == useless, kind
        off = np.abs(a - b).max(1) / max(np.abs(b).max(), 1e-6)
        assert np.quantile(off, 0.6) <= TOLERANCE, kind
        assert off.max() <= TOLERANCE_OF_FLIPS, kind
