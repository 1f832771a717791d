"""Optimizer: Adam with per-entry counters, learning-rate decay, EMA with debiasing (E.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class AdamConfig:
    """Defaults of base.json; ``l2_reg`` acts on matrix (MLP) weights only."""

    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15
    l2_reg: float = 1e-6


@dataclass
class AdamState:
    """Weights and moments (P,), and one step counter an entry (P,)."""

    weights: F64
    first: F64 = field(default_factory=lambda: np.zeros(0))
    second: F64 = field(default_factory=lambda: np.zeros(0))
    steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        self.weights = np.array(self.weights, dtype=np.float64)
        if not self.first.size:
            self.first = np.zeros_like(self.weights)
            self.second = np.zeros_like(self.weights)
            self.steps = np.zeros(self.weights.shape, dtype=np.int64)


def adam_step(
    state: AdamState,
    gradient: ArrayLike,
    n_matrix_weights: int,
    config: AdamConfig = AdamConfig(),
    lr_factor: float = 1.0,
) -> None:
    """One update in place; the first ``n_matrix_weights`` parameters are MLP weights.

    ``gradient`` (P,) is without loss scale.  MLP weights: gradient += l2_reg * w, always updated.
    The other entries are skipped entirely (moments, counter and weight untouched) if their gradient
    is exactly 0. w -= lr * m_hat / (sqrt(v_hat) + epsilon) with bias correction by the entry's own
    counter.
    """
    g = np.array(gradient, dtype=np.float64)
    is_matrix = np.arange(g.size) < n_matrix_weights
    active = is_matrix | (g != 0.0)
    g = np.where(is_matrix, g + config.l2_reg * state.weights, g)[active]
    b1, b2 = config.beta1, config.beta2
    state.steps[active] += 1
    state.first[active] = b1 * state.first[active] + (1.0 - b1) * g
    state.second[active] = b2 * state.second[active] + (1.0 - b2) * g * g
    count = state.steps[active]
    m_hat = state.first[active] / (1.0 - b1**count)
    v_hat = state.second[active] / (1.0 - b2**count)
    rate = config.learning_rate * lr_factor
    state.weights[active] -= rate * m_hat / (np.sqrt(v_hat) + config.epsilon)


def lr_factor(
    step: int, start: int = 20000, interval: int = 10000, base: float = 0.33, end: int | None = None
) -> float:
    """Product of the decays at each s in [start, step] with (s - start) mod interval = 0 (E.1).

    ``end``: no decay at steps beyond it (the distortion map's 25000).
    """
    last = step if end is None else min(step, end)
    return base ** ((last - start) // interval + 1) if last >= start else 1.0


def ema_update(average: ArrayLike, weights: ArrayLike, n: int, decay: float = 0.95) -> F64:
    """Debiased average after update number ``n`` = 1, 2, ... (E.1).

    (average * d * (1 - d^(n-1)) + weights * (1 - d)) / (1 - d^n); fp16 storage is up to the caller.
    """
    average, weights = np.asarray(average, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    kept = average * decay * (1.0 - decay ** (n - 1))
    return (kept + weights * (1.0 - decay)) / (1.0 - decay**n)
