"""Compositing of one ray: forward, loss and gradient with respect to the raw network outputs (E.4).

Arrays of one ray: ``raw_rgb`` (S, 3), ``raw_density`` (S,), ``dt`` (S,) in NGP units, near to far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import losses
from .color import linear_to_srgb

F64 = NDArray[np.float64]
MIN_TRANSMITTANCE = 1e-4
RGB_REGULARISER = 1e-4
DENSITY_REGULARISER = 1e-4
NEAR_REGULARISER = 1e-4


def logistic(raw: ArrayLike) -> F64:
    """1 / (1 + exp(-raw)), without overflow."""
    raw = np.asarray(raw, dtype=np.float64)
    e = np.exp(-np.abs(raw))
    return np.where(raw >= 0.0, 1.0, e) / (1.0 + e)


def rgb_activation(raw: ArrayLike, kind: str = "Logistic") -> tuple[F64, F64]:
    """Colour and its derivative; "Exponential" is exp(clamp(raw, +-10)) for both (E.2)."""
    raw = np.asarray(raw, dtype=np.float64)
    if kind == "Logistic":
        value = logistic(raw)
        return value, value * (1.0 - value)
    if kind == "Exponential":
        value = np.exp(np.clip(raw, -10.0, 10.0))
        return value, value
    if kind == "ReLU":
        return np.maximum(raw, 0.0), (raw > 0.0).astype(np.float64)
    if kind == "None":
        return raw, np.ones_like(raw)
    raise ValueError(f"unknown activation {kind!r}")


def density_activation(raw: ArrayLike, kind: str = "Exponential") -> tuple[F64, F64]:
    """sigma = exp(raw) and the derivative exp(clamp(raw, +-15)) that training uses (E.2); the others as for colours."""
    raw = np.asarray(raw, dtype=np.float64)
    if kind != "Exponential":
        return rgb_activation(raw, kind)
    return np.exp(raw), np.exp(np.clip(raw, -15.0, 15.0))


@dataclass(frozen=True)
class Composite:
    """Result of a ray; the first ``used`` samples were composited.

    ``rgb`` (3,) includes the background unless the ray stopped early.  ``weight`` and ``color`` are
    (used,) and (used, 3); ``after`` (used,) is the transmittance behind each sample.
    """

    rgb: F64
    transmittance: float
    used: int
    stopped: bool
    weight: F64
    color: F64
    after: F64


def composite(
    raw_rgb: ArrayLike,
    raw_density: ArrayLike,
    dt: ArrayLike,
    background: ArrayLike,
    activation: str = "Logistic",
    density: str = "Exponential",
) -> Composite:
    """Composite front to back; a sample is used only while T >= 1e-4 in front of it (E.4).

    "Stopped early" means that at least one sample was left out; only then is there no background.
    (If the very last sample takes T below 1e-4 the background is added with weight T < 1e-4.)
    """
    sigma, _ = density_activation(raw_density, density)
    alpha = 1.0 - np.exp(-sigma * np.asarray(dt, dtype=np.float64))
    after_all = np.cumprod(1.0 - alpha)
    before = np.concatenate([[1.0], after_all[:-1]]) if alpha.size else alpha
    used = int(np.count_nonzero(before >= MIN_TRANSMITTANCE))  # `before` never increases
    stopped = used < alpha.size
    color, _ = rgb_activation(np.asarray(raw_rgb, dtype=np.float64)[:used], activation)
    weight = before[:used] * alpha[:used]
    transmittance = float(after_all[used - 1]) if used else 1.0
    rgb = weight @ color
    if not stopped:
        rgb = rgb + transmittance * np.asarray(background, dtype=np.float64)
    return Composite(rgb, transmittance, used, stopped, weight, color, after_all[:used])


def ray_loss(
    raw_rgb: ArrayLike,
    raw_density: ArrayLike,
    dt: ArrayLike,
    background: ArrayLike,
    target: ArrayLike,
    loss_type: str = "Huber",
    activation: str = "Logistic",
) -> float:
    """Sum over channels of the loss of one ray (a third of it is what the step reports)."""
    result = composite(raw_rgb, raw_density, dt, background, activation)
    return float(np.sum(losses.loss(loss_type, result.rgb, target)))


def _expand(values: F64, n: int) -> F64:
    """Append zeros for the samples that were not composited."""
    return np.concatenate([values, np.zeros((n - values.shape[0], *values.shape[1:]))])


def backward(
    raw_rgb: ArrayLike,
    raw_density: ArrayLike,
    dt: ArrayLike,
    background: ArrayLike,
    d_rgb: ArrayLike,
    activation: str = "Logistic",
) -> tuple[F64, F64]:
    """(dL/draw_rgb (S, 3), dL/draw_density (S,)) from dL/drgb (3,), no regularisers (E.4).

    dL/draw_sigma = sigma' dt (g . (T_after c_i - suffix_i)), dL/draw_c = w g act'; ``suffix_i`` is
    the final colour, background included, less what samples 0..i contributed.
    """
    raw_rgb = np.asarray(raw_rgb, dtype=np.float64)
    raw_density, dt = np.asarray(raw_density, dtype=np.float64), np.asarray(dt, dtype=np.float64)
    g = np.asarray(d_rgb, dtype=np.float64)
    r = composite(raw_rgb, raw_density, dt, background, activation)
    _, slope = rgb_activation(raw_rgb[: r.used], activation)
    _, d_sigma = density_activation(raw_density[: r.used])
    suffix = r.rgb - np.cumsum(r.weight[:, None] * r.color, axis=0)
    along = (r.after[:, None] * r.color - suffix) @ g
    d_raw_rgb = r.weight[:, None] * g * slope
    n = raw_density.size
    return _expand(d_raw_rgb, n), _expand(d_sigma * dt[: r.used] * along, n)


def depth_backward(raw_density: ArrayLike, dt: ArrayLike, t: ArrayLike, d_depth: float) -> F64:
    """dL/draw_density (S,) of the depth term, ``d_depth`` = lambda L'(sum w t - target) (E.4).

    sigma' dt d_depth (T_after t_i - suffix_i), with the suffix of sum w t.
    """
    raw_density, dt = np.asarray(raw_density, dtype=np.float64), np.asarray(dt, dtype=np.float64)
    t = np.asarray(t, dtype=np.float64)
    r = composite(np.zeros((t.size, 3)), raw_density, dt, np.zeros(3))
    _, d_sigma = density_activation(raw_density[: r.used])
    t_used = t[: r.used]
    contribution = r.weight * t_used
    suffix = contribution.sum() - np.cumsum(contribution)
    return _expand(d_sigma * dt[: r.used] * d_depth * (r.after * t_used - suffix), t.size)


def regulariser_gradient(
    raw_rgb: ArrayLike,
    raw_density: ArrayLike,
    used: int,
    t: ArrayLike,
    activation: str = "Logistic",
    near_distance: float = 0.0,
    mean_density_low: bool = False,
) -> tuple[F64, F64]:
    """Terms that E.4 adds to (dL/draw_rgb, dL/draw_density) of the first ``used`` samples.

    max(0, 1e-4 raw) for exponential colours; -1e-4 where raw < 0 if the mean grid density is below
    0.01; +1e-4 for samples nearer than ``near_distance`` with raw > -10.
    """
    raw_rgb = np.asarray(raw_rgb, dtype=np.float64)
    raw_density = np.asarray(raw_density, dtype=np.float64)
    d_rgb, d_density = np.zeros_like(raw_rgb), np.zeros_like(raw_density)
    if activation == "Exponential":
        d_rgb = np.maximum(0.0, RGB_REGULARISER * raw_rgb)
    if mean_density_low:
        d_density -= np.where(raw_density < 0.0, DENSITY_REGULARISER, 0.0)
    near = (raw_density > -10.0) & (np.asarray(t) < near_distance)
    d_density += np.where(near, NEAR_REGULARISER, 0.0)
    mask = np.arange(raw_density.size) < used
    return np.where(mask[:, None], d_rgb, 0.0), np.where(mask, d_density, 0.0)


def finite_difference(
    raw_rgb: ArrayLike,
    raw_density: ArrayLike,
    dt: ArrayLike,
    background: ArrayLike,
    d_rgb: ArrayLike,
    activation: str = "Logistic",
    h: float = 1e-5,
) -> tuple[F64, F64]:
    """Central differences of g . rgb: the check of :func:`backward`, away from thresholds."""
    raw_rgb = np.array(raw_rgb, dtype=np.float64)
    raw_density = np.array(raw_density, dtype=np.float64)
    g = np.asarray(d_rgb, dtype=np.float64)

    def value() -> float:
        return float(composite(raw_rgb, raw_density, dt, background, activation).rgb @ g)

    gradients = []
    for array in (raw_rgb, raw_density):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + h
            upper = value()
            array[index] = kept - h
            gradient[index] = (upper - value()) / (2.0 * h)
            array[index] = kept
        gradients.append(gradient)
    return gradients[0], gradients[1]


def blend_target(
    rgba: ArrayLike, background: ArrayLike, color_space: str = "Linear", linear_colors: bool = False
) -> tuple[F64, F64]:
    """(target, background for compositing) of a linear premultiplied pixel ``rgba`` (4,) (E.4).

    ``background`` is linear; exposure is applied by the caller.  With color_space "Linear" the
    blend is done in linear light and encoded, with "SRGB" straight sRGB colours are blended.
    """
    rgba, bg = np.asarray(rgba, dtype=np.float64), np.asarray(background, dtype=np.float64)
    rgb, a = rgba[:3], rgba[3]
    if linear_colors:
        return rgb + (1.0 - a) * bg, bg
    encoded = linear_to_srgb(bg)
    if color_space == "Linear":
        return linear_to_srgb(rgb + (1.0 - a) * bg), encoded
    straight = linear_to_srgb(rgb / a) * a if a > 0.0 else np.zeros(3)
    return straight + (1.0 - a) * encoded, encoded
