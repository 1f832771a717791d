"""PCG32 generator (O'Neill's pcg32, XSH-RR 64/32) with jumps; seed 1337 in training (E.1, E.4)."""

from __future__ import annotations

import numpy as np

MULTIPLIER = 6364136223846793005
MASK64 = (1 << 64) - 1
MASK32 = (1 << 32) - 1
RAY_STRIDE = 16  # draws reserved a ray
STEP_STRIDE = 1 << 32  # draws reserved a training step


class Pcg32:
    """State and increment are 64-bit Python integers."""

    def __init__(self, seed: int = 1337, sequence: int = 1) -> None:
        self.state = 0
        self.increment = ((sequence << 1) | 1) & MASK64
        self.next_uint()
        self.state = (self.state + seed) & MASK64
        self.next_uint()

    def next_uint(self) -> int:
        """Next 32-bit integer."""
        old = self.state
        self.state = (old * MULTIPLIER + self.increment) & MASK64
        shifted = (((old >> 18) ^ old) >> 27) & MASK32
        rotation = old >> 59
        return ((shifted >> rotation) | (shifted << (-rotation & 31))) & MASK32

    def next_float(self) -> np.float32:
        """Uniform float32 in [0, 1): the upper 23 bits of the next integer, times 2^-23."""
        return np.float32((self.next_uint() >> 9) * 2.0**-23)

    def advance(self, delta: int) -> None:
        """Jump ``delta`` draws ahead (or back, modulo 2^64) in O(log delta)."""
        multiplier, addend = MULTIPLIER, self.increment
        total_multiplier, total_addend = 1, 0
        delta &= MASK64
        while delta:
            if delta & 1:
                total_multiplier = total_multiplier * multiplier & MASK64
                total_addend = (total_addend * multiplier + addend) & MASK64
            addend = (multiplier + 1) * addend & MASK64
            multiplier = multiplier * multiplier & MASK64
            delta >>= 1
        self.state = (total_multiplier * self.state + total_addend) & MASK64


def ray_generator(step: int, ray: int, seed: int = 1337) -> Pcg32:
    """Generator of one training ray: 2^32 draws a step, 16 draws a ray (E.4)."""
    rng = Pcg32(seed)
    rng.advance(step * STEP_STRIDE + ray * RAY_STRIDE)
    return rng
