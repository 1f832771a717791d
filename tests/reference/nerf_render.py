"""Float64 NeRF renderer for snapshots: march, field and compositing, over rays (E.6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import color, frequency, grid, lens, march, mlp, occupancy, sh
from .snapshot import Snapshot

F64 = NDArray[np.float64]
MAX_DEPTH = 16384.0
MIN_ALPHA = 0.001
START_OFFSET = 1e-6
MAX_RESOLUTION = 2048  # R of D.4 for NeRF


@dataclass(frozen=True)
class NerfField:
    """The networks of a NeRF snapshot; positions and directions in NGP space."""

    levels: list[grid.GridLevel]
    table: F64
    density_net: list[F64]
    rgb_net: list[F64]
    box: tuple[F64, F64]
    interpolation: str
    is_hdr: bool
    latent: F64 = field(default_factory=lambda: np.zeros(0))  # of all rays: follows the direction's encoding

    def features(self, position: ArrayLike) -> F64:
        """Density-network outputs (N, 16) at positions (N, 3); column 0 is the raw density."""
        low, high = self.box
        unit = (np.asarray(position, dtype=np.float64) - low) / (high - low)
        encoded = grid.encode(self.levels, self.table, unit, self.interpolation)
        width = frequency.padded_width(encoded.shape[1], 16)
        return mlp.forward(self.density_net, frequency.pad(encoded, "Grid", width))[0]

    def raw(self, position: ArrayLike, direction: ArrayLike) -> tuple[F64, F64]:
        """Raw rgb (N, 3) and raw density (N,) at positions and unit directions (N, 3)."""
        return self.color(self.features(position), direction)

    def color(self, features: F64, direction: ArrayLike) -> tuple[F64, F64]:
        """The same from the density network's outputs, which do not depend on directions and latents."""
        latents = np.broadcast_to(self.latent, (len(features), self.latent.size))
        parts = [("SphericalHarmonics", sh.sh4(direction)), ("Identity", latents)]
        encoded = frequency.composite(parts)
        rgb, _ = mlp.forward(self.rgb_net, np.concatenate([features, encoded], axis=1))
        return rgb[:, :3], features[:, 0]

    def rgb_activation(self, raw: F64) -> F64:
        """Logistic, or exp(clamp(raw, +-10)) for HDR data (E.2)."""
        return np.exp(np.clip(raw, -10.0, 10.0)) if self.is_hdr else 1.0 / (1.0 + np.exp(-raw))

    def raw_density_gradient(self, position: ArrayLike) -> F64:
        """d raw density / d NGP position (N, 3)."""
        low, high = self.box
        unit = (np.asarray(position, dtype=np.float64) - low) / (high - low)
        encoded = grid.encode(self.levels, self.table, unit, self.interpolation)
        n_encoded = encoded.shape[1]
        width = frequency.padded_width(n_encoded, 16)
        out, inputs = mlp.forward(self.density_net, frequency.pad(encoded, "Grid", width))
        d_out = np.zeros_like(out)
        d_out[:, 0] = 1.0
        _, d_in = mlp.backward(self.density_net, inputs, d_out)
        d_unit = grid.position_gradient(self.levels, self.table, unit, d_in[:, :n_encoded], self.interpolation)
        return d_unit / (high - low)


def field_from_snapshot(snapshot: Snapshot) -> NerfField:
    """Split the parameter blob (density MLP, RGB MLP, grid; D.3); the latent is that of view 0."""
    config, nerf = snapshot.config, snapshot.state["nerf"]
    if config["dir_encoding"]["nested"][0]["degree"] != 4:
        raise ValueError("a direction encoding other than SH4")
    n_latent = nerf["dataset"].get("n_extra_learnable_dims", 0)
    latent = np.array(nerf["extra_dims_opt"][0]["variable"] if n_latent else [], dtype=np.float64)
    enc = config["encoding"]
    n_levels, base = enc.get("n_levels", 16), enc.get("base_resolution", 16)
    n_features = enc.get("n_features_per_level", 2)
    growth = enc.get("per_level_scale", 0.0)
    if growth <= 0.0:
        growth = grid.default_per_level_scale(MAX_RESOLUTION, base, n_levels, nerf["aabb_scale"])
    kind = {"HashGrid": "Hash", "Grid": "Hash", "DenseGrid": "Dense", "TiledGrid": "Tiled"}
    levels = grid.level_table(n_levels, base, growth, enc.get("log2_hashmap_size", 19), kind=kind[enc["otype"]])
    net, rgb = config["network"], config["rgb_network"]
    density_shape = mlp.MlpShape(n_levels * n_features, 16, net["n_neurons"], net["n_hidden_layers"])
    rgb_in = 16 + frequency.padded_width(16 + n_latent, 16)
    rgb_shape = mlp.MlpShape(rgb_in, 3, rgb["n_neurons"], rgb["n_hidden_layers"])
    n_first = density_shape.n_params
    n_networks = n_first + rgb_shape.n_params
    n_expected = n_networks + grid.total_entries(levels) * n_features
    if snapshot.params.size != n_expected:
        raise ValueError(f"{snapshot.params.size} parameters, expected {n_expected}")
    aabb = snapshot.state["aabb"]
    return NerfField(
        levels=levels,
        table=snapshot.params[n_networks:].reshape(-1, n_features),
        density_net=mlp.unpack(density_shape, snapshot.params[:n_first]),
        rgb_net=mlp.unpack(rgb_shape, snapshot.params[n_first:n_networks]),
        box=(np.array(aabb["min"], dtype=np.float64), np.array(aabb["max"], dtype=np.float64)),
        interpolation=enc.get("interpolation", "Linear"),
        is_hdr=bool(nerf["dataset"]["is_hdr"]),
        latent=latent,
    )


@dataclass(frozen=True)
class RenderOptions:
    """``cone``: cone-angle constant; stop when T < ``min_transmittance``; ``box``: render box."""

    cone: float
    min_transmittance: float = 0.01
    box: tuple[ArrayLike, ArrayLike] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    linear_colors: bool = False
    mode: str = "Shade"
    depth_scale: float = 1.0  # dataset scale, for mode "Depth"


@dataclass
class Rays:
    """A batch: origins (N, 3), unit directions (N, 3), camera forward (3,) or (N, 3)."""

    origin: F64
    direction: F64
    forward: F64


def camera_rays(camera: ArrayLike, uv: ArrayLike, resolution: ArrayLike, focal: ArrayLike, **lens_args: object) -> Rays:
    """Rays of an NGP camera (3, 4) through ``uv`` (N, 2) in [0, 1]^2."""
    m = np.asarray(camera, dtype=np.float64)
    d = lens.ray_direction(uv, resolution, focal, **lens_args)  # type: ignore[arg-type]
    d = d @ m[:, :3].T
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    return Rays(np.broadcast_to(m[:, 3], d.shape), d, m[:, 2])


def next_samples(rays: Rays, t: F64, leave: F64, bits: NDArray[np.bool_], cone: float) -> tuple[F64, NDArray[np.bool_]]:
    """First t' >= t (N,) in an occupied cell, and whether there is one before ``leave``."""
    t = t.copy()
    found = np.zeros(t.shape, dtype=bool)
    searching = np.flatnonzero(t < leave)
    while searching.size:
        d = rays.direction[searching]
        p = rays.origin[searching] + t[searching, None] * d
        cascade = march.cascade_from_position(p, bits.shape[0] - 1)
        cell, inside = occupancy.cell_of(p, cascade)
        hit = inside & bits[cascade, occupancy.morton(cell)]
        found[searching[hit]] = True
        searching, p, d, cascade = searching[~hit], p[~hit], d[~hit], cascade[~hit]
        t[searching] = march.skip_voxel(t[searching], p, d, cascade, cone)
        searching = searching[t[searching] < leave[searching]]
    return t, found


def unit_vectors(v: F64) -> F64:
    """Rows of (N, 3) divided by their length; zero stays zero."""
    return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30)


def sample_value(field: NerfField, options: RenderOptions, rays: Rays, p: F64, rgb: F64, alpha: F64) -> F64:
    """Value (N, 3) that is composited at positions ``p`` in the render mode (E.6).

    Normals are unit vectors -grad(raw density) of NGP axes; :func:`finish` turns their sum into a
    colour.
    """
    if options.mode == "Shade":
        return rgb
    if options.mode == "AO":
        return np.repeat(alpha[:, None], 3, axis=1)
    if options.mode == "Positions":
        return (p - 0.5) / 2.0 + 0.5
    if options.mode == "Depth":
        depth = np.sum((p - rays.origin) * rays.forward, axis=1) / options.depth_scale
        return np.repeat(depth[:, None], 3, axis=1)
    if options.mode == "Normals":
        n = -field.raw_density_gradient(p)
        return unit_vectors(n)
    raise ValueError(f"unknown render mode {options.mode!r}")


def render_rays(
    field: NerfField,
    bits: NDArray[np.bool_],
    rays: Rays,
    jitter: ArrayLike,
    options: RenderOptions,
    on_sample: Callable[[int], None] | None = None,
) -> tuple[F64, F64]:
    """Premultiplied RGBA (N, 4), linear unless ``options.mode`` is a debug mode, and depth (N,).

    ``jitter`` (N,) is the fraction of a step by which the start is moved.  Depth is along the
    camera's forward axis at the sample of largest weight; MAX_DEPTH where alpha <= 0.2.  No
    background.
    """
    n = rays.direction.shape[0]
    cone, low, high = options.cone, *options.box
    entry, leave = march.ray_box(rays.origin, rays.direction, low, high)
    t = march.advance(np.maximum(entry, 0.0) + START_OFFSET, np.asarray(jitter), cone)
    leave = np.where(entry <= leave, leave, -np.inf)
    value, transmittance = np.zeros((n, 3)), np.ones(n)
    best_weight, depth = np.zeros(n), np.full(n, MAX_DEPTH)
    alive = np.arange(n)
    while alive.size:
        now = Rays(rays.origin[alive], rays.direction[alive], rays.forward)
        t[alive], found = next_samples(now, t[alive], leave[alive], bits, cone)
        alive = alive[found]
        now = Rays(rays.origin[alive], rays.direction[alive], rays.forward)
        p = now.origin + t[alive, None] * now.direction
        dt = march.step_size(t[alive], cone)
        raw_rgb, raw_density = field.raw(p, now.direction)
        alpha = 1.0 - np.exp(-np.exp(raw_density) * dt)
        weight = transmittance[alive] * alpha
        shade = sample_value(field, options, now, p, field.rgb_activation(raw_rgb), alpha)
        value[alive] += weight[:, None] * shade
        transmittance[alive] *= 1.0 - alpha
        better = weight > best_weight[alive]
        best_weight[alive[better]] = weight[better]
        depth[alive[better]] = np.sum((p - now.origin) * rays.forward, axis=1)[better]
        t[alive] = march.advance(t[alive], 1.0, cone)
        if on_sample is not None:
            on_sample(alive.size)
        alive = alive[transmittance[alive] >= options.min_transmittance]
    return finish(value, transmittance, depth, options)


def finish(value: F64, transmittance: F64, depth: F64, options: RenderOptions) -> tuple[F64, F64]:
    """Divide stopped rays by alpha, drop alpha <= 0.001, decode premultiplied sRGB (E.6).

    Mode Normals: the weighted sum of unit normals is normalised once more, then (n/2 + 1/2) *
    alpha; found by comparison with instant-ngp's own picture, the specification leaves it open.
    """
    alpha = 1.0 - transmittance
    stopped = transmittance < options.min_transmittance
    value = np.where(stopped[:, None], value / np.maximum(alpha, 1e-30)[:, None], value)
    alpha = np.where(stopped, 1.0, alpha)
    if options.mode == "Shade" and not options.linear_colors:
        value = color.srgb_to_linear(value)
    if options.mode == "Normals":
        value = (0.5 * unit_vectors(value) + 0.5) * alpha[:, None]
    rgba = np.concatenate([value, alpha[:, None]], axis=1)
    rgba[alpha <= MIN_ALPHA] = 0.0
    return rgba, np.where(alpha <= 0.2, MAX_DEPTH, depth)


def render_pixels(
    field: NerfField,
    bits: NDArray[np.bool_],
    rays: Rays,
    options: RenderOptions,
    n_jitters: int = 1,
) -> tuple[F64, F64]:
    """Mean RGBA (N, 4) over ``n_jitters`` stratified start offsets, and depth (N,) of the first."""
    total = np.zeros((rays.direction.shape[0], 4))
    first_depth = np.zeros(0)
    for number in range(n_jitters):
        jitter = np.full(rays.direction.shape[0], (number + 0.5) / n_jitters)
        rgba, depth = render_rays(field, bits, rays, jitter, options)
        total += rgba
        first_depth = depth if number == 0 else first_depth
    return total / n_jitters, first_depth
