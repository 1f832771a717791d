"""Real spherical harmonics: the 16 coefficients of degree 4 as D.3 lists them, and any degree from its definition."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

N_COEFFICIENTS = 16


def sh4(direction: ArrayLike) -> NDArray[np.float64]:
    """(N, 16) basis values of unit directions (N, 3)."""
    d = np.asarray(direction, dtype=np.float64)
    x, y, z = d[:, 0], d[:, 1], d[:, 2]
    one = np.ones_like(x)
    return np.stack(
        [
            0.28209479 * one,
            -0.48860251 * y,
            0.48860251 * z,
            -0.48860251 * x,
            1.09254843 * x * y,
            -1.09254843 * y * z,
            0.94617470 * z * z - 0.31539157,
            -1.09254843 * x * z,
            0.54627422 * (x * x - y * y),
            0.59004359 * y * (y * y - 3.0 * x * x),
            2.89061144 * x * y * z,
            0.45704580 * y * (1.0 - 5.0 * z * z),
            0.37317633 * z * (5.0 * z * z - 3.0),
            0.45704580 * x * (1.0 - 5.0 * z * z),
            1.44530572 * z * (x * x - y * y),
            0.59004359 * x * (3.0 * y * y - x * x),
        ],
        axis=1,
    )


def sh4_jacobian(direction: ArrayLike) -> NDArray[np.float64]:
    """(N, 16, 3) partial derivatives of the polynomials of :func:`sh4`, d unconstrained."""
    d = np.asarray(direction, dtype=np.float64)
    x, y, z = d[:, 0], d[:, 1], d[:, 2]
    o = np.zeros_like(x)
    one = np.ones_like(x)
    c1, c2, c3 = 0.48860251, 1.09254843, 0.54627422
    c4, c5, c6, c7 = 0.59004359, 2.89061144, 0.45704580, 0.37317633
    rows = [
        (o, o, o),
        (o, -c1 * one, o),
        (o, o, c1 * one),
        (-c1 * one, o, o),
        (c2 * y, c2 * x, o),
        (o, -c2 * z, -c2 * y),
        (o, o, 2.0 * 0.94617470 * z),
        (-c2 * z, o, -c2 * x),
        (2.0 * c3 * x, -2.0 * c3 * y, o),
        (-6.0 * c4 * x * y, c4 * (3.0 * y * y - 3.0 * x * x), o),
        (c5 * y * z, c5 * x * z, c5 * x * y),
        (o, c6 * (1.0 - 5.0 * z * z), -10.0 * c6 * y * z),
        (o, o, c7 * (15.0 * z * z - 3.0)),
        (c6 * (1.0 - 5.0 * z * z), o, -10.0 * c6 * x * z),
        (2.0 * 1.44530572 * x * z, -2.0 * 1.44530572 * y * z, 1.44530572 * (x * x - y * y)),
        (c4 * (3.0 * y * y - 3.0 * x * x), 6.0 * c4 * x * y, o),
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


Polynomial = dict[tuple[int, int, int], float]  # coefficient of x^i y^j z^k


@cache
def polynomials(degree: int) -> tuple[Polynomial, ...]:
    """Y(l, m) at l^2 + l + m for l < degree, with the Condon-Shortley phase, by Rodrigues' formula.

    P_l(z) = 1/(2^l l!) d^l/dz^l (z^2 - 1)^l; P_l^m / sin^m = (-1)^m d^m/dz^m P_l, times Re or Im of (x + iy)^m
    and sqrt((2l+1)/(4 pi) (l-m)!/(l+m)!), times sqrt 2 where m != 0 (Abramowitz & Stegun, 8.6.6 and 8.6.18).
    """
    found: list[Polynomial] = []
    for band in range(degree):
        # coefficient of z^(2 band - 2 k) in (z^2 - 1)^band, derived band + |m| times
        for order in range(-band, band + 1):
            m = abs(order)
            in_z: dict[int, Fraction] = {}
            for k in range(band + 1):
                power = 2 * band - 2 * k
                left = power - band - m
                if left >= 0:
                    factor = Fraction(math.factorial(power), math.factorial(left))
                    factor *= (-1) ** (k + m) * math.comb(band, k)
                    in_z[left] = factor / (2**band * math.factorial(band))
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m))
            norm *= math.sqrt(2) if m else 1
            result: Polynomial = {}
            for k in range(m + 1):  # (x + iy)^m: real for even k
                if k % 2 == (order < 0):
                    sign = (-1) ** (k // 2)
                    for left, factor in in_z.items():
                        result[m - k, k, left] = norm * sign * math.comb(m, k) * float(factor)
            found.append(result)
    return tuple(found)


def _monomial(d: NDArray[np.float64], powers: tuple[int, ...]) -> NDArray[np.float64]:
    return np.prod([d[:, axis] ** power for axis, power in enumerate(powers)], axis=0)


def basis(direction: ArrayLike, degree: int) -> NDArray[np.float64]:
    """(N, degree^2) values at directions (N, 3), which need not be unit."""
    d = np.asarray(direction, dtype=np.float64)
    columns = [sum(c * _monomial(d, k) for k, c in p.items()) for p in polynomials(degree)]
    return np.stack(columns, axis=1) if len(d) else np.zeros((0, degree**2))


def magnitude(direction: ArrayLike, degree: int) -> NDArray[np.float64]:
    """The same with all terms positive: what rounding errors are relative to."""
    d = np.abs(np.asarray(direction, dtype=np.float64))
    columns = [sum(abs(c) * _monomial(d, k) for k, c in p.items()) for p in polynomials(degree)]
    return np.stack(columns, axis=1) if len(d) else np.zeros((0, degree**2))


def _jacobian(d: NDArray[np.float64], degree: int, absolute: bool) -> NDArray[np.float64]:
    out = np.zeros((len(d), degree**2, 3))
    for column, polynomial in enumerate(polynomials(degree)):
        for powers, c in polynomial.items():
            for axis in range(3):
                if powers[axis]:
                    lower = tuple(k - (a == axis) for a, k in enumerate(powers))
                    out[:, column, axis] += (abs(c) if absolute else c) * powers[axis] * _monomial(d, lower)
    return out


def jacobian(direction: ArrayLike, degree: int) -> NDArray[np.float64]:
    """(N, degree^2, 3) partial derivatives of :func:`basis`, coordinates unconstrained."""
    return _jacobian(np.asarray(direction, dtype=np.float64), degree, absolute=False)


def jacobian_magnitude(direction: ArrayLike, degree: int) -> NDArray[np.float64]:
    """The same with all terms positive."""
    return _jacobian(np.abs(np.asarray(direction, dtype=np.float64)), degree, absolute=True)
