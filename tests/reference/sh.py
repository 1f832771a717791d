"""Real spherical harmonics up to degree 4: 16 coefficients in the order of D.3."""

from __future__ import annotations

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
