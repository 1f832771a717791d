"""Multilayer perceptron without biases, ReLU between layers; canonical parameter blob (D.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .frequency import padded_width

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class MlpShape:
    """Sizes before padding; input and output align to 16 (FullyFused) or 8 (Cutlass)."""

    n_in: int
    n_out: int
    width: int
    n_hidden_layers: int
    alignment: int = 16

    @property
    def padded_in(self) -> int:
        return padded_width(self.n_in, self.alignment)

    @property
    def padded_out(self) -> int:
        return padded_width(self.n_out, self.alignment)

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """(out, in) of each matrix, input to output; no hidden layer is one [out][in] matrix."""
        sizes = [self.padded_in] + [self.width] * self.n_hidden_layers + [self.padded_out]
        return [(sizes[i + 1], sizes[i]) for i in range(len(sizes) - 1)]

    @property
    def n_params(self) -> int:
        return sum(rows * columns for rows, columns in self.matrix_shapes)


def unpack(shape: MlpShape, blob: ArrayLike) -> list[F64]:
    """Split a flat blob (n_params,) into row-major [out][in] float64 matrices."""
    blob = np.asarray(blob)
    if blob.shape != (shape.n_params,):
        raise ValueError(f"expected {shape.n_params} parameters, got shape {blob.shape}")
    matrices, start = [], 0
    for rows, columns in shape.matrix_shapes:
        matrices.append(blob[start : start + rows * columns].reshape(rows, columns))
        start += rows * columns
    return [m.astype(np.float64) for m in matrices]


def pack(matrices: Sequence[ArrayLike]) -> F64:
    """Inverse of :func:`unpack`."""
    return np.concatenate([np.asarray(m, dtype=np.float64).ravel() for m in matrices])


def forward(
    weights: Sequence[F64], x: ArrayLike, output_activation: str = "None", hidden_relu: bool = True
) -> tuple[F64, list[F64]]:
    """Output (N, padded_out) and the inputs of every layer [(N, in_0), (N, width), ...].

    ``x`` is (N, padded_in); hidden layers are ReLU unless ``hidden_relu`` is False (then they have no
    activation); ``output_activation`` is "None" or "ReLU".
    """
    layer_inputs = []
    value = np.asarray(x, dtype=np.float64)
    for number, w in enumerate(weights):
        layer_inputs.append(value)
        value = value @ w.T
        last = number + 1 == len(weights)
        if output_activation == "ReLU" if last else hidden_relu:
            value = np.maximum(value, 0.0)
    return value, layer_inputs


def backward(
    weights: Sequence[F64],
    layer_inputs: Sequence[F64],
    d_out: ArrayLike,
    output: F64 | None = None,
    hidden_relu: bool = True,
) -> tuple[list[F64], F64]:
    """Weight gradients (a matrix a layer) and dL/dx (N, padded_in) from ``d_out`` (N, padded_out).

    ``output`` must be given if the output activation is ReLU.  The gradient of ReLU at 0 is 0.
    """
    grad = np.asarray(d_out, dtype=np.float64)
    if output is not None:
        grad = grad * (output > 0.0)
    d_weights: list[F64] = [np.empty(0)] * len(weights)
    for number in reversed(range(len(weights))):
        d_weights[number] = grad.T @ layer_inputs[number]
        grad = grad @ weights[number]
        if number > 0 and hidden_relu:
            grad = grad * (layer_inputs[number] > 0.0)
    return d_weights, grad


def init_uniform_bound(shape: MlpShape) -> list[float]:
    """Half-width sqrt(6 / (in + out)) of the initial uniform distribution of each matrix (E.1)."""
    return [float(np.sqrt(6.0 / (rows + columns))) for rows, columns in shape.matrix_shapes]
