"""Train modes Rfl and RflRelax (E.4) as functions of the raw outputs, whose central differences are the gradients.

Rfl is a loss like any other: sum w_i l(c_i) + T_end l(background). RflRelax has no loss, but each sample's gradient is
that of a function of this sample's outputs alone: what a ray would lose that starts at the sample, (transmittance in
front of it) * l((1 - alpha) behind + alpha c), with all that lies in front and behind held constant. Here `behind` is
composited back to front, where the library divides a remainder by the transmittance.

Arrays of one ray as in compositing.py; the denominators of relative losses are those at the given outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import compositing, losses

F64 = NDArray[np.float64]


class Ray:
    """One ray at which gradients are wanted."""

    def __init__(
        self,
        raw_rgb: F64,
        raw_density: F64,
        dt: F64,
        background: F64,
        target: F64,
        loss: str = "Huber",
        activations: tuple[str, str] = ("Logistic", "Exponential"),
    ) -> None:
        self.raw = np.column_stack([raw_rgb, raw_density]).astype(np.float64)
        self.dt, self.background, self.target = (np.asarray(a, np.float64) for a in (dt, background, target))
        self.loss, self.activations = loss, activations
        at = compositing.composite(self.raw[:, :3], self.raw[:, 3], self.dt, self.background, *activations)
        self.used, self.stopped = at.used, at.stopped
        color, alpha = self.activated(self.raw)
        self.color, self.alpha = color[: self.used], alpha[: self.used]
        self.after = np.cumprod(1 - self.alpha)
        self.before = np.concatenate([[1.0], self.after[:-1]]) if self.used else np.zeros(0)
        self.behind = self._behind()

    def activated(self, raw: F64) -> tuple[F64, F64]:
        """Colours (S, 3) and opacities (S,)."""
        color, _ = compositing.rgb_activation(raw[:, :3], self.activations[0])
        sigma, _ = compositing.density_activation(raw[:, 3], self.activations[1])
        return color, 1 - np.exp(-sigma * self.dt)

    def _behind(self) -> F64:
        """Colour that a ray finds behind each used sample; nothing behind the one that stopped it."""
        behind = np.zeros((self.used, 3))
        seen = np.zeros(3) if self.stopped else self.background
        for i in reversed(range(self.used)):
            behind[i] = seen
            seen = self.alpha[i] * self.color[i] + (1 - self.alpha[i]) * seen
        return behind

    def _loss(self, color: F64, at: F64) -> F64:
        """Of colours, with the denominators that they have at `at`."""
        scale = losses.denominator(self.loss, at, self.target)
        return losses.numerator(self.loss, color - self.target) / scale

    def rfl(self, raw: F64) -> float:
        """The loss of Rfl, summed over channels."""
        color, alpha = (a[: self.used] for a in self.activated(raw))
        after = np.cumprod(1 - alpha)
        before = np.concatenate([[1.0], after[:-1]]) if self.used else after
        total = float(np.sum((before * alpha)[:, None] * self._loss(color, self.color)))
        if not self.stopped:
            end = after[-1] if self.used else 1.0
            total += float(end * np.sum(self._loss(self.background, self.background)))
        return total

    def starting_at(self) -> F64:
        """(S, 3): colour of a ray that starts at each used sample."""
        return (1 - self.alpha)[:, None] * self.behind + self.alpha[:, None] * self.color

    def relaxed(self, raw: F64, i: int) -> float:
        """RflRelax's function of sample i."""
        color, alpha = self.activated(raw)
        seen = (1 - alpha[i]) * self.behind[i] + alpha[i] * color[i]
        return float(self.before[i] * np.sum(self._loss(seen, self.starting_at()[i])))

    def gradient(self, mode: str, h: float = 1e-6) -> F64:
        """(S, 4): central differences with respect to raw rgb and raw density."""
        result = np.zeros_like(self.raw)
        for i in range(self.used):
            value: Callable[[F64], float] = self.rfl if mode == "Rfl" else (lambda raw, i=i: self.relaxed(raw, i))
            for channel in range(4):
                ends = []
                for s in (h, -h):
                    moved = self.raw.copy()
                    moved[i, channel] += s
                    ends.append(value(moved))
                result[i, channel] = (ends[0] - ends[1]) / (2 * h)
        return result

    def reported(self, mode: str) -> float:
        """Loss as a step reports it: mean over channels; of the composited colour in RflRelax."""
        if mode == "Rfl":
            return self.rfl(self.raw) / 3
        rgb = (self.before * self.alpha) @ self.color
        if not self.stopped:
            rgb = rgb + (self.after[-1] if self.used else 1.0) * self.background
        return float(losses.loss(self.loss, rgb, self.target).mean())
