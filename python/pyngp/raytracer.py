"""A small NumPy ray tracer: convex primitives, a disc light with soft shadows, alpha output.

It exists to make the synthetic scene of ``pyngp demo`` (see :mod:`pyngp.demo_scene`) and needs
nothing but NumPy. Conventions, used everywhere below:

* The world is right-handed with z up. Lengths are world units, colours are linear RGB.
* Batches of vectors are stored component first, shape (3, N) float32, so that every component
  is contiguous and NumPy's inner loops stay long.
* Cameras are OpenGL ones: x right, y up, looking along -z.

All primitives are convex. A ray that leaves a convex body from the lit side of its surface cannot
meet that body again, so shadow rays skip the primitive they start on and need no offset.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Texture = Callable[[Array], Array]

_MISS = np.float32(np.inf)
# Rotated-grid positions inside a pixel: four different rows and columns, which is what near
# horizontal and near vertical edges need most.
_SUBPIXELS = ((0.375, 0.125), (0.875, 0.375), (0.125, 0.625), (0.625, 0.875))
_SHADOW_SAMPLES = 4  # per subpixel sample, so 16 per pixel


def vec3(values: ArrayLike) -> Array:
    """Return ``values`` as a float32 column of shape (3, 1), ready to broadcast over rays."""
    return np.asarray(values, dtype=np.float32).reshape(3, 1)


def dot(a: Array, b: Array) -> Array:
    """Return the dot product over the first axis (the three components)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def normalize(v: Array) -> Array:
    """Return ``v`` (3, ...) scaled to unit length."""
    return v / np.sqrt(np.maximum(dot(v, v), np.float32(1e-20)))


def rotation(axis: str, degrees: float) -> Array:
    """Return the (3, 3) matrix that turns by ``degrees`` about the world axis 'x', 'y' or 'z'."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3, dtype=np.float32)
    matrix[j, j], matrix[j, k], matrix[k, j], matrix[k, k] = c, -s, s, c
    return matrix


# --------------------------------------------------------------------------------------------------
# Materials and primitives


@dataclass(frozen=True)
class Material:
    """Surface look: a diffuse base under a clear coat.

    ``albedo`` is a linear RGB triple or a function of positions in the primitive's local frame,
    (3, N) -> (3, N). ``f0`` is the coat's reflectance at normal incidence, ``shininess`` the
    Blinn exponent of its highlight, ``mirror`` how much of the sky it reflects (0 to 1).
    """

    albedo: tuple[float, float, float] | Texture
    f0: float = 0.03
    shininess: float = 24.0
    mirror: float = 0.0

    def base_colour(self, local: Array) -> Array:
        """Return the linear diffuse colour, broadcastable to (3, N), at local positions (3, N)."""
        return self.albedo(local) if callable(self.albedo) else vec3(self.albedo)


class Primitive(ABC):
    """A convex body. Subclasses give the nearest entry of a ray, normals, and bounds."""

    material: Material
    center: Array  # (3, 1), of the bounding sphere
    bound: float  # radius of the bounding sphere
    hull: Array  # (3, K) points: the body lies inside their convex hull grown by ``pad``
    pad: float
    ambient_radius: float = 0.0  # sphere that stands for the body in ambient occlusion; 0: none

    def local(self, p: Array) -> Array:
        """Return world positions (3, N) in the local frame that textures use."""
        return p - self.center

    @abstractmethod
    def intersect(self, o: Array, d: Array) -> Array:
        """Return distances (N,) to the entry points, inf where the ray misses.

        ``o`` is (3, 1) or (3, N), ``d`` (3, N) has unit length. A ray that starts inside, or
        beyond the body, gives a negative distance or inf.
        """

    @abstractmethod
    def normal(self, p: Array) -> Array:
        """Return outward unit normals (3, N) at surface points ``p`` (3, N)."""


class Ellipsoid(Primitive):
    """An axis-aligned ellipsoid with the three half-axes ``radii`` (equal ones give a sphere)."""

    def __init__(self, center: ArrayLike, radii: float | Sequence[float], material: Material) -> None:
        self.material = material
        self.center = self.hull = vec3(center)
        self.radii = vec3(np.broadcast_to(radii, 3))
        self.bound = self.pad = float(self.radii.max())
        self.ambient_radius = float(self.radii.mean()) if self.bound > 0.1 else 0.0

    def intersect(self, o: Array, d: Array) -> Array:
        # Scaling by 1/radii makes it the unit sphere; distances along the ray do not change
        # because the direction is scaled too and left un-normalised.
        o, d = (o - self.center) / self.radii, d / self.radii
        a, b, c = dot(d, d), dot(o, d), dot(o, o) - np.float32(1)
        disc = b * b - a * c
        t = (-b - np.sqrt(np.maximum(disc, 0))) / a
        return np.where(disc > 0, t, _MISS)

    def normal(self, p: Array) -> Array:
        return normalize((p - self.center) / (self.radii * self.radii))


class Rod(Primitive):
    """A round bar from ``a`` to ``b``: a capsule, or a flat-ended cylinder if ``flat``."""

    def __init__(self, a: ArrayLike, b: ArrayLike, radius: float, material: Material, *, flat: bool = False) -> None:
        self.material = material
        self.a, self.b = vec3(a), vec3(b)
        self.length = float(np.linalg.norm(self.b - self.a))
        self.axis = normalize(self.b - self.a)
        self.radius, self.flat = float(radius), flat
        self.center = (self.a + self.b) / 2
        half = self.length / 2
        self.bound = math.hypot(half, radius) if flat else half + radius
        self.hull, self.pad = np.concatenate([self.a, self.b], axis=1), self.radius

    def intersect(self, o: Array, d: Array) -> Array:
        oc = o - self.a
        du, ou = dot(d, self.axis), dot(oc, self.axis)
        # Quadratic of the infinite cylinder; ``a`` is the squared sine to the axis.
        a = np.maximum(1 - du * du, np.float32(1e-7))
        b = dot(oc, d) - ou * du
        disc = b * b - a * (dot(oc, oc) - ou * ou - np.float32(self.radius**2))
        root = np.sqrt(np.maximum(disc, 0))
        t = (-b - root) / a
        if self.flat:
            # Where the ray is inside both the cylinder and the slab between the end planes.
            inv = 1 / np.where(np.abs(du) < 1e-7, np.float32(1e-7), du)
            t0, t1 = -ou * inv, (np.float32(self.length) - ou) * inv
            enter = np.maximum(t, np.minimum(t0, t1))
            leave = np.minimum((-b + root) / a, np.maximum(t0, t1))
            return np.where((disc > 0) & (enter < leave), enter, _MISS)
        along = ou + t * du
        t = np.where((disc > 0) & (along >= 0) & (along <= self.length), t, _MISS)
        # Rays that pass an end of the cylinder's body may still meet the half sphere there.
        ends = np.flatnonzero((disc > 0) & ~np.isfinite(t))
        if ends.size:
            tip = np.where(along[ends] < 0, self.a, self.b)
            oc, d = (o if o.shape[1] == 1 else o[:, ends]) - tip, d[:, ends]
            b = dot(oc, d)
            disc = b * b - dot(oc, oc) + np.float32(self.radius**2)
            t[ends] = np.where(disc > 0, -b - np.sqrt(np.maximum(disc, 0)), _MISS)
        return t

    def normal(self, p: Array) -> Array:
        along = dot(p - self.a, self.axis)
        n = normalize(p - self.a - np.clip(along, 0, self.length) * self.axis)
        if self.flat:
            n = np.where(along > self.length - 1e-4, self.axis, n)
            n = np.where(along < 1e-4, -self.axis, n)
        return n


class RoundedBox(Primitive):
    """A box with half sizes ``half``, edges rounded by radius ``edge``, turned by ``turn``."""

    def __init__(
        self,
        center: ArrayLike,
        half: Sequence[float],
        edge: float,
        material: Material,
        *,
        turn: Array | None = None,
    ) -> None:
        self.material = material
        self.center, self.half, self.edge = vec3(center), vec3(half), float(edge)
        self.inner = self.half - np.float32(edge)
        self.turn = np.eye(3, dtype=np.float32) if turn is None else turn
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3), dtype=np.float32).reshape(3, 8)
        self.hull, self.pad = self.center + self.turn @ (signs * self.half), 0.0
        self.bound = float(np.linalg.norm(self.half))
        self.ambient_radius = float(self.half.mean())

    def _unturn(self, v: Array) -> Array:
        # Sums written out: a BLAS call for three rows would only start threads of its own.
        r = self.turn
        return np.stack([r[0, i] * v[0] + r[1, i] * v[1] + r[2, i] * v[2] for i in range(3)])

    def local(self, p: Array) -> Array:
        return self._unturn(p - self.center)

    def _distance(self, p: Array) -> Array:
        """Distance (N,) from local points outside the inner box to the rounded surface."""
        q = np.maximum(np.abs(p) - self.inner, 0)
        return np.sqrt(dot(q, q)) - np.float32(self.edge)

    def intersect(self, o: Array, d: Array) -> Array:
        o, d = self.local(o), self._unturn(d)
        inv = 1 / np.where(np.abs(d) < 1e-7, np.float32(1e-7), d)
        mid, reach = -o * inv, np.abs(inv) * self.half
        enter, leave = (mid - reach).max(axis=0), (mid + reach).min(axis=0)
        t = np.where(enter < leave, enter, _MISS)
        # From the entry into the sharp box, step by the distance to the rounded one. Most rays
        # enter on a flat side and are there already.
        active = np.flatnonzero(enter < leave)
        for _ in range(14):
            if not active.size:
                return t
            origin = o if o.shape[1] == 1 else o[:, active]
            gap = self._distance(origin + t[active] * d[:, active])
            t[active] += gap
            keep = (gap > 1e-4) & (t[active] < leave[active])
            t[active[t[active] >= leave[active]]] = _MISS
            active, gap = active[keep], gap[keep]
        t[active[gap > 2e-3]] = _MISS  # still too far after the last step: it grazed a corner
        return t

    def normal(self, p: Array) -> Array:
        q = self.local(p)
        n = normalize(q - np.clip(q, -self.inner, self.inner))
        return np.stack([dot(row, n) for row in self.turn])


# --------------------------------------------------------------------------------------------------
# Camera, light, scene


@dataclass(frozen=True)
class Camera:
    """A square pinhole camera: ``pose`` (4, 4) camera-to-world, ``fov`` radians, ``size`` px."""

    pose: NDArray[np.float64]
    fov: float
    size: int

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.5 * self.size / math.tan(0.5 * self.fov)

    def project(self, points: NDArray) -> NDArray[np.float64]:
        """Return pixel coordinates (2, N), x right and y down, of world ``points`` (3, N).

        The point (0, 0) is the outer corner of the top left pixel.
        """
        p = self.pose[:3, :3].T @ (points - self.pose[:3, 3:])
        return np.stack([p[0], -p[1]]) * self.focal / -p[2] + 0.5 * self.size

    def rays(self) -> tuple[Array, Array]:
        """Return the origin (3, 1) and unit directions (3, S, size, size) of all samples."""
        grid = np.arange(self.size, dtype=np.float64)
        dirs = np.empty((3, len(_SUBPIXELS), self.size, self.size), dtype=np.float32)
        for s, (dx, dy) in enumerate(_SUBPIXELS):
            x = ((grid + dx) / self.size - 0.5)[None, :] * self.size / self.focal
            y = -((grid + dy) / self.size - 0.5)[:, None] * self.size / self.focal
            for i in range(3):
                r = self.pose[i]
                dirs[i, s] = r[0] * x + r[1] * y - r[2]
        return vec3(self.pose[:3, 3]), normalize(dirs)


@dataclass(frozen=True)
class Scene:
    """Primitives, one disc light that faces the origin, and a smooth sky."""

    primitives: list[Primitive]
    light_position: tuple[float, float, float]
    light_radius: float
    light_colour: tuple[float, float, float]
    sky: tuple[float, float, float]  # ambient light from straight above
    horizon: tuple[float, float, float]  # sky colour seen in reflections near the horizon
    bounce: tuple[float, float, float]  # ambient light from straight below
    _disc: Array = field(init=False, repr=False)  # (3, 2) half axes of the light's disc
    _windows: list[tuple[Array, Array]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = normalize(vec3(self.light_position))
        side = normalize(np.cross(n, vec3((0, 0, 1)), axis=0))
        axes = np.stack([side, np.cross(n, side, axis=0)], axis=1)[..., 0]  # (3, 2)
        object.__setattr__(self, "_disc", (axes * self.light_radius).astype(np.float32))
        object.__setattr__(self, "_windows", [self._window(prim) for prim in self.primitives])

    def light_view(self, p: Array) -> tuple[Array, Array]:
        """Return (2, N) picture coordinates of ``p`` (3, N) seen from the light, and (N,) depths.

        The picture plane is parallel to the light's disc and at unit distance from its centre.
        """
        offset = p - vec3(self.light_position)
        axes = self._disc / np.float32(self.light_radius)
        depth = -dot(offset, normalize(vec3(self.light_position)))
        return np.stack([dot(offset, axes[:, i, None]) for i in range(2)]) / depth, depth

    def _window(self, prim: Primitive) -> tuple[Array, Array]:
        """Return bounds (2,), (2,) for :func:`_visibility`'s quick test of an occluder.

        A ray from a point at depth D to the light's disc, of radius R, passes depth w at most
        R / w - R / D away, in the light's view, from where the point itself is seen. The bounds
        hold the occluder's rectangle grown by R / w; the test adds the point's R / D.
        """
        seen, depth = self.light_view(prim.hull)
        near = depth.min() - prim.pad
        grow = np.float32((self.light_radius + 1.1 * prim.pad) / near)
        return seen.min(axis=1) - grow, seen.max(axis=1) + grow

    def light_points(self, turn: Array, subpixel: NDArray[np.integer]) -> Array:
        """Return points (3, N, K) on the light for N surface samples.

        The sixteen points of a pixel form a sunflower spiral; each subpixel takes every fourth
        one. ``turn`` (N,), in [0, 1), turns the spiral: equal for samples of one pixel.
        """
        total = _SHADOW_SAMPLES * len(_SUBPIXELS)
        index = subpixel[:, None] + len(_SUBPIXELS) * np.arange(_SHADOW_SAMPLES)
        index = index.astype(np.float32)
        r = np.sqrt((index + np.float32(0.5)) / np.float32(total))
        golden = np.float32(math.pi * (3 - math.sqrt(5)))
        angle = index * golden + turn[:, None] * np.float32(2 * math.pi)
        x, y = r * np.cos(angle), r * np.sin(angle)
        u, v = self._disc[:, 0, None, None], self._disc[:, 1, None, None]
        return u * x + v * y + vec3(self.light_position)[..., None]

    def sky_colour(self, d: Array) -> Array:
        """Return the smooth environment (3, N) seen along unit directions ``d`` (3, N)."""
        up = np.clip(d[2], -1, 1)
        blend = np.clip(up * np.float32(1.3) + np.float32(0.5), 0, 1)
        blend = blend * blend * (3 - 2 * blend)  # smooth step from ground to horizon
        high = np.maximum(up, 0)
        above = vec3(self.horizon) * (1 - high) + vec3(self.sky) * high
        return vec3(self.bounce) * (1 - blend) + above * blend


# --------------------------------------------------------------------------------------------------
# Rendering


def _hash01(index: NDArray[np.integer], seed: int) -> Array:
    """Return a deterministic pseudo-random number in [0, 1) for each integer."""
    h = index.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return ((h ^ (h >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def _trace(scene: Scene, camera: Camera, o: Array, dirs: Array) -> tuple[Array, NDArray]:
    """Return nearest distances and primitive numbers, (S, H, W) each; -1 is no hit."""
    depth = np.full(dirs.shape[1:], _MISS, dtype=np.float32)
    owner = np.full(dirs.shape[1:], -1, dtype=np.int16)
    eye = camera.pose[:3, 3:]
    for k, prim in enumerate(scene.primitives):
        # Only rays through the primitive's bounding rectangle in the picture can meet it.
        near = float(np.linalg.norm(prim.hull - eye, axis=0).min()) - prim.pad
        margin = 1.25 * prim.pad * camera.focal / near + 1
        px = camera.project(prim.hull)
        x0, y0 = np.clip(np.floor(px.min(axis=1) - margin), 0, camera.size).astype(int)
        x1, y1 = np.clip(np.ceil(px.max(axis=1) + margin), 0, camera.size).astype(int)
        if x0 >= x1 or y0 >= y1:
            continue
        window = np.s_[:, y0:y1, x0:x1]
        shape = depth[window].shape
        t = prim.intersect(o, dirs[:, :, y0:y1, x0:x1].reshape(3, -1)).reshape(shape)
        closer = (t < depth[window]) & (t > 0)
        np.copyto(depth[window], t, where=closer)
        np.copyto(owner[window], np.int16(k), where=closer)
    return depth, owner


def _visibility(scene: Scene, p: Array, lit: NDArray, spans: list[slice], points: Array) -> Array:
    """Return the fraction (N,) of the light that each surface point sees.

    ``p`` (3, N) surface points, ``lit`` (N,) those that face the light, ``spans`` the points that
    belong to each primitive, ``points`` (3, N, K) targets on the light.
    """
    chosen = np.flatnonzero(lit)
    starts = np.searchsorted(chosen, [span.start for span in spans])
    stops = np.searchsorted(chosen, [span.stop for span in spans])
    p = p[:, chosen]
    rays = normalize(points[:, chosen] - p[..., None])
    blocked = np.zeros(rays.shape[1:], dtype=bool)
    (u, v), depth = scene.light_view(p)
    shrink = np.float32(scene.light_radius) / depth
    u_out, u_in, v_out, v_in = u + shrink, u - shrink, v + shrink, v - shrink
    for k, (prim, (lo, hi)) in enumerate(zip(scene.primitives, scene._windows, strict=True)):
        # Most points cannot be shaded by most primitives; see Scene._window.
        near = (u_in >= lo[0]) & (u_out <= hi[0]) & (v_in >= lo[1]) & (v_out <= hi[1])
        near[starts[k] : stops[k]] = False  # a convex body does not shade its own lit side
        index = np.flatnonzero(near)
        if not index.size:
            continue
        origins = np.repeat(p[:, index], _SHADOW_SAMPLES, axis=1)
        t = prim.intersect(origins, rays[:, index].reshape(3, -1))
        blocked[index] |= ((t > 1e-4) & (t < _MISS)).reshape(-1, _SHADOW_SAMPLES)
    seen = np.zeros(lit.shape, dtype=np.float32)
    seen[chosen] = 1 - blocked.sum(axis=1, dtype=np.float32) / np.float32(_SHADOW_SAMPLES)
    return seen


def _ambient_access(scene: Scene, p: Array, n: Array, spans: list[slice]) -> Array:
    """Return how open (N,) points are to the sky, from the bodies' stand-in spheres."""
    access = np.ones(p.shape[1], dtype=np.float32)
    for k, prim in enumerate(scene.primitives):
        if not prim.ambient_radius:
            continue
        w = prim.center - p
        # A sphere blocks cos * (r / distance)^2 of the cosine-weighted hemisphere.
        dist2 = np.maximum(dot(w, w), np.float32(prim.ambient_radius**2))
        share = dot(n, w) * np.float32(prim.ambient_radius**2) / (dist2 * np.sqrt(dist2))
        share = np.clip(share, 0, np.float32(0.85))
        share[spans[k]] = 0
        access *= 1 - share
    return access


def _shade(scene: Scene, o: Array, d: Array, p: Array, spans: list[slice], points: Array) -> Array:
    """Return the linear colour (3, N) of hits at ``p`` seen from ``o`` along ``d`` (3, N)."""
    base, n = np.empty_like(p), np.empty_like(p)
    f0, shininess, mirror = (np.zeros(p.shape[1], dtype=np.float32) for _ in range(3))
    for prim, span in zip(scene.primitives, spans, strict=True):
        if span.start == span.stop:
            continue
        m = prim.material
        n[:, span] = prim.normal(p[:, span])
        base[:, span] = m.base_colour(prim.local(p[:, span]))
        f0[span], shininess[span], mirror[span] = m.f0, m.shininess, m.mirror
    to_light = normalize(vec3(scene.light_position) - p)
    cosine = np.maximum(dot(n, to_light), 0)
    direct = cosine * _visibility(scene, p, cosine > 0, spans, points)
    access = _ambient_access(scene, p, n, spans)
    up = np.float32(0.5) + np.float32(0.5) * n[2]
    ambient = (vec3(scene.sky) * up + vec3(scene.bounce) * (1 - up)) * access
    light = vec3(scene.light_colour)
    colour = base * (light * direct + ambient)
    # The clear coat: a normalised Blinn highlight of the light and a reflection of the sky.
    half = np.maximum(dot(n, normalize(to_light - d)), np.float32(1e-4))
    lobe = np.power(half, shininess) * (shininess + 8) * np.float32(0.125)
    colour += light * (f0 * lobe * direct)
    facing = dot(n, d)
    fresnel = f0 + (1 - f0) * np.power(np.clip(1 + facing, 0, 1), np.float32(5))
    sky = scene.sky_colour(d - n * (2 * facing))
    return colour + sky * (fresnel * mirror * np.sqrt(access))


def render(scene: Scene, camera: Camera, seed: int) -> Array:
    """Render one view: (size, size, 4) float32, linear premultiplied RGB and alpha in [0, 1].

    The result depends only on the arguments; ``seed`` turns the shadow samples.
    """
    o, dirs = camera.rays()
    depth, owner = _trace(scene, camera, o, dirs)
    pixels = camera.size * camera.size
    flat = owner.reshape(-1)
    hits = np.flatnonzero(flat >= 0)
    hits = hits[np.argsort(flat[hits], kind="stable")]  # group by primitive
    edges = np.searchsorted(flat[hits], np.arange(len(scene.primitives) + 1))
    spans = [slice(int(a), int(b)) for a, b in pairwise(edges)]
    d = dirs.reshape(3, -1)[:, hits]
    p = o + d * depth.reshape(-1)[hits]
    pixel = hits % pixels
    points = scene.light_points(_hash01(pixel, seed), hits // pixels)
    # Clip before averaging, so that edges of over-bright highlights are smooth as well.
    colour = np.clip(_shade(scene, o, d, p, spans, points), 0, 1)
    image = np.empty((pixels, 4), dtype=np.float32)
    for i in range(3):
        image[:, i] = np.bincount(pixel, weights=colour[i], minlength=pixels)
    image[:, 3] = np.bincount(pixel, minlength=pixels)
    return (image / np.float32(len(_SUBPIXELS))).reshape(camera.size, camera.size, 4)
