"""Losses per colour channel, and their gradients with respect to the prediction (E.4).

Values are per channel; a ray's loss as reported is the mean over the channels, but the gradient
that training uses is the one of the *sum* over channels (no division by 3), times 128 / n_rays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
LOSSES = ("L2", "L1", "Mape", "Smape", "Huber", "LogL1", "RelativeL2")
HUBER_DELTA = 0.1
EPSILON = 0.01


def denominator(kind: str, prediction: ArrayLike, target: ArrayLike) -> F64:
    """Denominator of the relative losses, a constant in their gradients; 1 for the others."""
    p, t = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if kind == "Mape":
        return np.abs(p) + EPSILON
    if kind == "Smape":
        return 0.5 * (np.abs(p) + np.abs(t)) + EPSILON
    if kind == "RelativeL2":
        return p * p + EPSILON
    return np.ones(np.broadcast_shapes(p.shape, t.shape))


def numerator(kind: str, difference: ArrayLike) -> F64:
    """Loss of d = prediction - target before the division by :func:`denominator`."""
    d = np.asarray(difference, dtype=np.float64)
    size = np.abs(d)
    if kind in ("L2", "RelativeL2"):
        return d * d
    if kind in ("L1", "Mape", "Smape"):
        return size
    if kind == "Huber":  # Huber of delta 0.1 divided by 5: d^2 inside, (|d| - 0.05) / 5 outside
        return np.where(size <= HUBER_DELTA, d * d, (size - HUBER_DELTA / 2.0) / 5.0)
    if kind == "LogL1":
        return np.log1p(size)
    raise ValueError(f"unknown loss {kind!r}")


def numerator_gradient(kind: str, difference: ArrayLike) -> F64:
    """Derivative of :func:`numerator`; 0 at d = 0."""
    d = np.asarray(difference, dtype=np.float64)
    size = np.abs(d)
    if kind in ("L2", "RelativeL2"):
        return 2.0 * d
    if kind in ("L1", "Mape", "Smape"):
        return np.sign(d)
    if kind == "Huber":
        return np.where(size <= HUBER_DELTA, 2.0 * d, 0.2 * np.sign(d))
    if kind == "LogL1":
        return np.sign(d) / (1.0 + size)
    raise ValueError(f"unknown loss {kind!r}")


def loss(kind: str, prediction: ArrayLike, target: ArrayLike) -> F64:
    """Loss per channel, same shape as the broadcast inputs."""
    d = np.asarray(prediction, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    return numerator(kind, d) / denominator(kind, prediction, target)


def loss_gradient(kind: str, prediction: ArrayLike, target: ArrayLike) -> F64:
    """d loss / d prediction per channel, the denominator held constant."""
    d = np.asarray(prediction, dtype=np.float64) - np.asarray(target, dtype=np.float64)
    return numerator_gradient(kind, d) / denominator(kind, prediction, target)


def loss_and_gradient(kind: str, prediction: ArrayLike, target: ArrayLike) -> tuple[F64, F64]:
    """(loss, gradient) per channel."""
    return loss(kind, prediction, target), loss_gradient(kind, prediction, target)


def sdf_mape(prediction: ArrayLike, target: ArrayLike) -> tuple[F64, F64]:
    """The SDF's MAPE: relative to the *target*, |d| / (|t| + 0.01) (E.7), and its gradient."""
    p, t = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    scale = np.abs(t) + EPSILON
    return np.abs(p - t) / scale, np.sign(p - t) / scale
