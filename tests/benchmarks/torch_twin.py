"""The base NeRF model's training work in compiled PyTorch: float32, CPU, hand-written backward.

What `pyngp bench --task nerf --device cpu` is compared with. It covers the work on compacted
samples: hash grid (8 levels x 4 features, T = 2^19), density MLP 32-64-16, RGB MLP 32-64-64-16,
their gradients, and Adam with the zero-gradient skip and EMA. Ray marching, compositing and the
loss are not in it: the gradients with respect to the raw outputs are given.

Each stage uses the fastest of the forms that were measured (two Sapphire Rapids cores, torch 2.13;
each form timed alone, so with warmer caches than inside a step):

- grid forward: one inductor kernel over all levels (6 ms; one a level 9, `embedding_bag` with its
  indices 9 to 22);
- MLPs: eager MKL products on blocks of 8192 samples, ReLU in place (forward 5.6 ms; without blocks
  6.3, inductor 6.5);
- grid gradient: one non-atomic inductor kernel a level, levels spread over Python threads (16 ms;
  sorted `scatter_add_` 38 and one-thread `index_add_` 41 without their products, inductor's atomic
  scatter 50). `build(scatter="atomic")` gives the usual form, inductor's own atomics;
- optimizer: one inductor kernel for Adam, EMA and the zeroing of the gradient (14 ms; only the 39%
  of the entries that have a gradient, gathered and scattered, 37; int16 step counters 14).

Run `python tests/benchmarks/torch_twin.py` for the table.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("the PyTorch twin needs torch, which is in the extra [bench]: pip install '.[bench]'") from error

LEVELS = 8
FEATURES = 4
TABLE_SIZE = 1 << 19
BASE_RESOLUTION = 16
FINEST_RESOLUTION = 2048
PRIMES = (1, 2654435761, 805459861)
SAMPLES_PER_RAY = 16
STEP = math.sqrt(3.0) / 1024.0
BLOCK = 8192  # samples a matrix product takes at once, so that activations stay in the L2 cache

MLP_SHAPES = ((64, 32), (16, 64), (64, 32), (64, 64), (16, 64))
N_RGB = 3  # outputs of the RGB network that are used

LEARNING_RATE = 1e-2
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-15
L2_MLP = 1e-6
EMA_DECAY = 0.95
BIAS_TABLE = 4096  # both bias corrections are 1 in float32 beyond this many updates

STAGES = ("grid_forward", "mlp_forward", "mlp_backward", "grid_backward", "optimizer")


@dataclass(frozen=True)
class Level:
    """One resolution of the grid: p = scale * x + 0.5, entries at offset .. offset + entries."""

    scale: float
    resolution: int
    offset: int
    entries: int

    @property
    def hashed(self) -> bool:
        return self.resolution**3 > self.entries


def grid_levels() -> list[Level]:
    """The levels of the base configuration at aabb_scale 1, in float32 as the format asks."""
    f32 = np.float32
    growth = np.exp(np.log(f32(FINEST_RESOLUTION) / f32(BASE_RESOLUTION)) / f32(LEVELS - 1))
    log2_growth = np.log2(growth, dtype=f32)
    levels, offset = [], 0
    for level in range(LEVELS):
        scale = f32(BASE_RESOLUTION) * np.exp2(f32(level) * log2_growth, dtype=f32) - f32(1)
        resolution = int(np.ceil(scale)) + 1
        entries = min(-(-(resolution**3) // 8) * 8, TABLE_SIZE)
        levels.append(Level(float(scale), resolution, offset, entries))
        offset += entries
    return levels


def ray_samples(n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the unit cube and unit directions (n, 3): 16 consecutive samples on each ray."""
    rng = np.random.default_rng(seed)
    n_rays = -(-n_samples // SAMPLES_PER_RAY)
    direction = rng.standard_normal((n_rays, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centre = 0.25 + 0.5 * rng.random((n_rays, 3))
    t = (np.arange(SAMPLES_PER_RAY) - 0.5 * (SAMPLES_PER_RAY - 1)) * STEP
    position = centre[:, None] + t[None, :, None] * direction[:, None]
    directions = np.repeat(direction, SAMPLES_PER_RAY, axis=0)[:n_samples]
    positions = position.reshape(-1, 3)[:n_samples]
    return (
        np.ascontiguousarray(positions, np.float32),
        np.ascontiguousarray(directions, np.float32),
    )


def _level_corners(x: torch.Tensor, level: Level) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Entry index (int32) and trilinear weight of the 8 corners around each position."""
    p = x * level.scale + 0.5
    cell = p.floor()
    high = (p - cell).unbind(1)
    low = [1.0 - w for w in high]
    c = cell.to(torch.int32).unbind(1)
    primes = [q - (1 << 32) if q >= 1 << 31 else q for q in PRIMES]  # as int32, which wraps
    indices, weights = [], []
    for corner in range(8):
        bits = [(corner >> d) & 1 for d in range(3)]
        i = [c[d] + bits[d] for d in range(3)]
        if level.hashed:
            index = (i[0] ^ (i[1] * primes[1]) ^ (i[2] * primes[2])) & (level.entries - 1)
        else:
            index = i[0] + i[1] * level.resolution + i[2] * level.resolution**2
            index = torch.where(index >= level.entries, index - level.entries, index)
        w = [high[d] if bits[d] else low[d] for d in range(3)]
        indices.append(index + level.offset)
        weights.append(w[0] * w[1] * w[2])
    return indices, weights


def _spherical_harmonics(d: torch.Tensor) -> torch.Tensor:
    """The 16 coefficients of degree 4 for unit directions, in the format's order."""
    x, y, z = d.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        (
            torch.full_like(x, 0.28209479),
            -0.48860251 * y,
            0.48860251 * z,
            -0.48860251 * x,
            1.09254843 * x * y,
            -1.09254843 * y * z,
            0.94617470 * zz - 0.31539157,
            -1.09254843 * x * z,
            0.54627422 * (xx - yy),
            0.59004359 * y * (yy - 3.0 * xx),
            2.89061144 * x * y * z,
            0.45704580 * y * (1.0 - 5.0 * zz),
            0.37317633 * z * (5.0 * zz - 3.0),
            0.45704580 * x * (1.0 - 5.0 * zz),
            1.44530572 * z * (xx - yy),
            0.59004359 * x * (3.0 * yy - xx),
        ),
        dim=1,
    )


def _encode(x: torch.Tensor, grid: torch.Tensor, levels: list[Level]) -> torch.Tensor:
    """Trilinear grid features (n, levels * features), level-major."""
    features = []
    for level in levels:
        corners = zip(*_level_corners(x, level), strict=True)
        features.append(sum(grid[i] * w[:, None] for i, w in corners))
    return torch.cat(features, 1)


def _make_grid_forward(levels: list[Level]) -> Callable[..., None]:
    def grid_forward(x: torch.Tensor, grid: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(_encode(x, grid, levels))

    return torch.compile(grid_forward, dynamic=False, fullgraph=True)


def _make_grid_backward(levels: list[Level], first: int, single: bool) -> Callable[..., None]:
    """Adds the gradient of `levels`, the first of which is level number `first`.

    `single` compiles it for one thread: plain additions, and a C++ wrapper that releases the GIL.
    """

    def grid_backward(x: torch.Tensor, d_features: torch.Tensor, d_grid: torch.Tensor) -> None:
        for number, level in enumerate(levels, first):
            indices, weights = _level_corners(x, level)
            d = d_features[:, number * FEATURES : (number + 1) * FEATURES]
            value = d.unsqueeze(1) * torch.stack(weights, 1).unsqueeze(2)
            d_grid.index_put_((torch.stack(indices, 1),), value, accumulate=True)

    options = {"cpp.threads": 1, "cpp_wrapper": True} if single else None
    return torch.compile(grid_backward, dynamic=False, fullgraph=True, options=options)


def _directions_forward(directions: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(_spherical_harmonics(directions))


def _ema(ema: torch.Tensor, w: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    return ema * scalars[0] + w * scalars[1]


def _update_grid(
    w: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    ema: torch.Tensor,
    steps: torch.Tensor,
    g: torch.Tensor,
    scalars: torch.Tensor,
    bias: torch.Tensor,
) -> None:
    """Adam where the gradient isn't zero, with own step counters; EMA of all; clears `g`.

    `scalars` holds the two EMA factors and the learning rate, `bias` the correction by step count.
    """
    hit = g != 0
    steps_new = (steps + hit.to(steps.dtype)).clamp(max=BIAS_TABLE - 1)
    m_new = torch.where(hit, BETA1 * m + (1 - BETA1) * g, m)
    v_new = torch.where(hit, BETA2 * v + (1 - BETA2) * g * g, v)
    move = scalars[2] * bias[steps_new] * m_new / (v_new.sqrt() + EPSILON)
    w_new = torch.where(hit, w - move, w)
    ema.copy_(_ema(ema, w_new, scalars))
    w.copy_(w_new)
    m.copy_(m_new)
    v.copy_(v_new)
    steps.copy_(steps_new)
    g.zero_()


def _update_mlp(
    w: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    ema: torch.Tensor,
    g: torch.Tensor,
    scalars: torch.Tensor,
    bias: torch.Tensor,
) -> None:
    """Adam with L2 regularisation, and EMA; `bias` is the correction of this step."""
    grad = g + L2_MLP * w
    m_new = BETA1 * m + (1 - BETA1) * grad
    v_new = BETA2 * v + (1 - BETA2) * grad * grad
    w_new = w - scalars[2] * bias * m_new / (v_new.sqrt() + EPSILON)
    ema.copy_(_ema(ema, w_new, scalars))
    w.copy_(w_new)
    m.copy_(m_new)
    v.copy_(v_new)


def _relu_backward(d: torch.Tensor, activation: torch.Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(d, activation, 0, grad_input=d)


class Twin:
    """Parameters, buffers and compiled kernels of one training problem; `step()` does one step."""

    def __init__(self, n_samples: int, n_threads: int, seed: int, scatter: str) -> None:
        if scatter not in ("levels", "atomic"):
            raise ValueError(f"scatter is 'levels' or 'atomic', not {scatter!r}")
        self.n_samples = n_samples
        self.n_threads = n_threads
        self.levels = grid_levels()
        self.positions, self.directions = ray_samples(n_samples, seed)
        self._x = torch.from_numpy(self.positions)
        self._d = torch.from_numpy(self.directions)
        self._make_parameters(torch.Generator().manual_seed(seed))
        self._make_buffers()
        self._make_kernels(scatter)

    def _make_parameters(self, generator: torch.Generator) -> None:
        n_entries = self.levels[-1].offset + self.levels[-1].entries
        shape = (n_entries, FEATURES)
        self.grid = torch.empty(shape).uniform_(-1e-4, 1e-4, generator=generator)
        sizes = [rows * columns for rows, columns in MLP_SHAPES]
        self.mlp = torch.empty(sum(sizes))
        self.d_mlp = torch.zeros_like(self.mlp)
        self.d_grid = torch.zeros_like(self.grid)
        self.weights = self._matrices(self.mlp)
        self.d_weights = self._matrices(self.d_mlp)
        for w in self.weights:
            bound = math.sqrt(6.0 / sum(w.shape))
            w.uniform_(-bound, bound, generator=generator)
        scale = 1.0 / self.n_samples
        normal = torch.randn(self.n_samples, N_RGB + 1, generator=generator) * scale
        self.d_rgb_raw = normal[:, :N_RGB].contiguous()
        self.d_density_raw = normal[:, N_RGB].contiguous()
        self.grid_state = [torch.zeros_like(self.grid) for _ in range(2)]
        self.mlp_state = [torch.zeros_like(self.mlp) for _ in range(2)]
        self.grid_steps = torch.zeros(shape, dtype=torch.int32)
        self.grid_ema, self.mlp_ema = self.grid.clone(), self.mlp.clone()
        self.n_steps = 0
        count = np.maximum(np.arange(BIAS_TABLE, dtype=np.float64), 1.0)
        bias = np.sqrt(1.0 - BETA2**count) / (1.0 - BETA1**count)
        self._bias = torch.from_numpy(bias.astype(np.float32))

    @staticmethod
    def _matrices(flat: torch.Tensor) -> list[torch.Tensor]:
        parts = flat.split([rows * columns for rows, columns in MLP_SHAPES])
        return [part.view(shape) for part, shape in zip(parts, MLP_SHAPES, strict=True)]

    def _make_buffers(self) -> None:
        n, block = self.n_samples, min(BLOCK, self.n_samples)
        self.features = torch.zeros(n, LEVELS * FEATURES)
        self.d_features = torch.zeros(n, LEVELS * FEATURES)
        self.rgb_input = torch.zeros(n, 32)  # 16 density outputs, then 16 of the direction
        self.rgb_raw = torch.zeros(n, 16)
        self._hidden = [torch.zeros(n, 64) for _ in range(3)]
        self._scratch = [torch.zeros(block, 64) for _ in range(2)]
        self._d_density_out = torch.zeros(block, 16)

    def _make_kernels(self, scatter: str) -> None:
        levels = self.levels
        self._grid_forward = _make_grid_forward(levels)
        self._pool: ThreadPoolExecutor | None = None
        if scatter == "atomic":
            self._grid_backward = [_make_grid_backward(levels, 0, single=False)]
        else:
            # The finest first: they take longest, so the threads finish together.
            self._grid_backward = [_make_grid_backward([levels[i]], i, single=True) for i in reversed(range(LEVELS))]
            if self.n_threads > 1:
                self._pool = ThreadPoolExecutor(min(self.n_threads, LEVELS))
        self._directions_forward = torch.compile(_directions_forward, dynamic=False)
        self._update_grid = torch.compile(_update_grid, dynamic=False, fullgraph=True)
        self._update_mlp = torch.compile(_update_mlp, dynamic=False, fullgraph=True)
        for kernel in self._grid_backward:  # compile here: compiling isn't thread-safe
            kernel(self._x, self.d_features, self.d_grid)

    @property
    def density_raw(self) -> torch.Tensor:
        return self.rgb_input[:, 0]

    def grid_forward(self) -> None:
        self._grid_forward(self._x, self.grid, self.features)

    def mlp_forward(self) -> None:
        """Both networks, block by block; keeps the activations for the backward pass."""
        self._directions_forward(self._d, self.rgb_input[:, 16:])
        w1, w2, w3, w4, w5 = (w.t() for w in self.weights)
        for start in range(0, self.n_samples, BLOCK):
            s = slice(start, start + BLOCK)
            h1, h2, h3 = (h[s] for h in self._hidden)
            rgb_input = self.rgb_input[s]
            torch.mm(self.features[s], w1, out=h1).relu_()
            torch.mm(h1, w2, out=rgb_input[:, :16])
            torch.mm(rgb_input, w3, out=h2).relu_()
            torch.mm(h2, w4, out=h3).relu_()
            torch.mm(h3, w5, out=self.rgb_raw[s])

    def mlp_backward(self) -> None:
        """Gradients of the matrices and of the grid's features, from those of the raw outputs."""
        w1, w2, w3, w4, w5 = self.weights
        d1, d2, d3, d4, d5 = self.d_weights
        self.d_mlp.zero_()
        for start in range(0, self.n_samples, BLOCK):
            s = slice(start, start + BLOCK)
            h1, h2, h3 = (h[s] for h in self._hidden)
            d_rgb, n = self.d_rgb_raw[s], h1.shape[0]
            a, b = (t[:n] for t in self._scratch)
            d_out = self._d_density_out[:n]
            d5[:N_RGB].addmm_(d_rgb.t(), h3)
            _relu_backward(torch.mm(d_rgb, w5[:N_RGB], out=a), h3)
            d4.addmm_(a.t(), h2)
            _relu_backward(torch.mm(a, w4, out=b), h2)
            d3.addmm_(b.t(), self.rgb_input[s])
            torch.mm(b, w3[:, :16], out=d_out)
            d_out[:, 0].add_(self.d_density_raw[s])
            d2.addmm_(d_out.t(), h1)
            _relu_backward(torch.mm(d_out, w2, out=a), h1)
            d1.addmm_(a.t(), self.features[s])
            torch.mm(a, w1, out=self.d_features[s])

    def grid_backward(self) -> None:
        """Scatters into `d_grid`, which is zero before (the optimizer clears it)."""
        arguments = (self._x, self.d_features, self.d_grid)
        if self._pool is None:
            for kernel in self._grid_backward:
                kernel(*arguments)
        else:
            for future in [self._pool.submit(k, *arguments) for k in self._grid_backward]:
                future.result()

    def optimizer(self) -> None:
        self.n_steps += 1
        n, d = self.n_steps, EMA_DECAY
        factors = d * (1.0 - d ** (n - 1)) / (1.0 - d**n), (1.0 - d) / (1.0 - d**n)
        scalars = torch.tensor([*factors, LEARNING_RATE])
        flat = [t.view(-1) for t in (self.grid, *self.grid_state, self.grid_ema, self.grid_steps)]
        self._update_grid(*flat, self.d_grid.view(-1), scalars, self._bias)
        bias = self._bias[min(n, BIAS_TABLE - 1)]
        self._update_mlp(self.mlp, *self.mlp_state, self.mlp_ema, self.d_mlp, scalars, bias)

    def step(self) -> None:
        """One training step."""
        for stage in STAGES:
            getattr(self, stage)()

    def stage_times(self, repeats: int = 10) -> dict[str, float]:
        """Median milliseconds of each stage and of the whole step, after two steps of warm-up."""
        for _ in range(2):
            self.step()
        rows: list[list[float]] = []
        for _ in range(repeats):
            marks = [time.perf_counter()]
            for stage in STAGES:
                getattr(self, stage)()
                marks.append(time.perf_counter())
            spans = [b - a for a, b in itertools.pairwise(marks)]
            rows.append([*spans, marks[-1] - marks[0]])
        columns = zip(*rows, strict=True)
        medians = [1000.0 * statistics.median(column) for column in columns]
        return dict(zip((*STAGES, "total"), medians, strict=True))


def build(
    n_samples: int = 65536,
    n_threads: int | None = None,
    seed: int = 0,
    scatter: str = "levels",
) -> Twin:
    """Makes the problem and compiles what can't be compiled at first use.

    Sets torch's thread count for the process: `n_threads`, or the cores that the process may use.
    """
    if n_threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        n_threads = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    torch.set_num_threads(n_threads)
    # The levels share one code object, and torch.compile gives up after 8 variants of one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return Twin(n_samples, n_threads, seed, scatter)


def _relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference).norm() / reference.norm())


def _autograd_reference(twin: Twin) -> dict[str, torch.Tensor]:
    """Outputs and gradients of the same model in float64, by autograd.

    The positions stay float32: in the finest level their rounding moves the weights by 1e-4.
    """
    grid = twin.grid.double().requires_grad_()
    weights = [w.double().requires_grad_() for w in twin.weights]
    w1, w2, w3, w4, w5 = (w.t() for w in weights)
    features = _encode(torch.from_numpy(twin.positions), grid, twin.levels)
    density = torch.relu(features @ w1) @ w2
    harmonics = _spherical_harmonics(torch.from_numpy(twin.directions).double())
    hidden = torch.relu(torch.cat([density, harmonics], 1) @ w3)
    rgb = torch.relu(hidden @ w4) @ w5
    loss = (rgb[:, :N_RGB] * twin.d_rgb_raw).sum() + (density[:, 0] * twin.d_density_raw).sum()
    loss.backward()
    result = {"rgb_raw": rgb.detach(), "density_raw": density[:, 0].detach()}
    result |= {f"d_w{i}": w.grad for i, w in enumerate(weights, 1)}
    return result | {"d_grid": grid.grad}


def _numpy_features(twin: Twin, sample: int) -> torch.Tensor:
    """The grid features of one sample, by an independent loop over the corners."""
    features = np.zeros((LEVELS, FEATURES))
    for number, level in enumerate(twin.levels):
        p = twin.positions[sample] * np.float32(level.scale) + np.float32(0.5)
        cell = np.floor(p)
        for bits in np.ndindex(2, 2, 2):
            weight = np.where(bits, p - cell, 1 - (p - cell)).astype(np.float64).prod()
            corner = [int(c) + bit for c, bit in zip(cell, bits, strict=True)]
            index = sum(c * level.resolution**d for d, c in enumerate(corner))
            if level.entries < level.resolution**3:
                x, y, z = (c * prime % 2**32 for c, prime in zip(corner, PRIMES, strict=True))
                index = x ^ y ^ z
            entry = level.offset + index % level.entries
            features[number] += weight * twin.grid[entry].double().numpy()
    return torch.from_numpy(features.reshape(-1))


class _NumpyAdam:
    """Adam and EMA of one tensor, written out in float64; errors are those of the change."""

    def __init__(self, w: torch.Tensor, state: list[torch.Tensor], ema: torch.Tensor) -> None:
        self.m, self.v = (t.double().numpy().copy() for t in state)
        self.w, self.ema = w.double().numpy().copy(), ema.double().numpy().copy()
        self.start = self.w.copy(), self.ema.copy()

    def update(self, g: np.ndarray, count: np.ndarray | int, n: int) -> None:
        hit, t, d = g != 0, np.maximum(count, 1), EMA_DECAY
        self.m = np.where(hit, BETA1 * self.m + (1 - BETA1) * g, self.m)
        self.v = np.where(hit, BETA2 * self.v + (1 - BETA2) * g * g, self.v)
        rate = LEARNING_RATE * np.sqrt(1 - BETA2**t) / (1 - BETA1**t)
        self.w = np.where(hit, self.w - rate * self.m / (np.sqrt(self.v) + EPSILON), self.w)
        self.ema = (self.ema * d * (1 - d ** (n - 1)) + self.w * (1 - d)) / (1 - d**n)

    def errors(self, w: torch.Tensor, ema: torch.Tensor) -> tuple[float, float]:
        pairs = zip((w, ema), (self.w, self.ema), self.start, strict=True)
        return tuple(
            _relative_error(value.double() - torch.from_numpy(s), torch.from_numpy(expected - s))
            for value, expected, s in pairs
        )


def _check_optimizer(twin: Twin) -> dict[str, float]:
    """Three steps, with changing gradients, against `_NumpyAdam`."""
    grid = _NumpyAdam(twin.grid, twin.grid_state, twin.grid_ema)
    mlp = _NumpyAdam(twin.mlp, twin.mlp_state, twin.mlp_ema)
    count = twin.grid_steps.numpy().astype(np.int64)
    for n in range(twin.n_steps + 1, twin.n_steps + 4):
        for stage in STAGES[:-1]:
            getattr(twin, stage)()
        if n == 2:
            twin.d_grid[::3] = 0.0  # so that the step counters differ
        g = twin.d_grid.double().numpy()
        count += g != 0
        grid.update(g, count, n)
        # In float32, as in the step: elsewhere the sign of a tiny gradient may differ.
        mlp.update((twin.d_mlp + L2_MLP * twin.mlp).double().numpy(), n, n)
        twin.optimizer()
    assert np.array_equal(count, twin.grid_steps.numpy())
    assert not twin.d_grid.any()
    grid_error, grid_ema_error = grid.errors(twin.grid, twin.grid_ema)
    mlp_error, mlp_ema_error = mlp.errors(twin.mlp, twin.mlp_ema)
    return {
        "grid_adam": grid_error,
        "grid_ema": grid_ema_error,
        "mlp_adam": mlp_error,
        "mlp_ema": mlp_ema_error,
    }


def check(n_samples: int = 9000, scatter: str = "levels", tolerance: float = 1e-3) -> dict:
    """Relative error (norm) of outputs, gradients and optimizer against float64; raises if large.

    The default covers two blocks, the second not full. About 1e-6 is usual; the tolerance leaves
    room for a ReLU whose input rounds across zero in float32, which changes one sample's gradient.
    A wrong formula gives errors near 1.
    """
    twin = build(n_samples, scatter=scatter)
    assert sum(level.entries for level in twin.levels) == 2920448
    twin.grid.mul_(1e4)  # at +-1e-4, the initial range, the density network would be untested
    twin.d_grid.zero_()
    for stage in STAGES[:-1]:
        getattr(twin, stage)()
    values = {"rgb_raw": twin.rgb_raw, "density_raw": twin.density_raw, "d_grid": twin.d_grid}
    values |= {f"d_w{i}": w for i, w in enumerate(twin.d_weights, 1)}
    reference = _autograd_reference(twin)
    errors = {name: _relative_error(value, reference[name]) for name, value in values.items()}
    chosen = range(0, n_samples, -(-n_samples // 32))
    expected = torch.stack([_numpy_features(twin, i) for i in chosen])
    errors["features"] = _relative_error(twin.features[list(chosen)], expected)
    twin.d_grid.zero_()
    errors |= _check_optimizer(twin)
    bad = {name: error for name, error in errors.items() if not error < tolerance}
    if bad:
        raise AssertionError(f"the twin disagrees with float64: {bad}")
    return errors


def run(repeats: int = 10, n_samples: int = 65536, scatter: str = "levels") -> dict:
    """Builds the twin and times it: {"stages": {name: ms}, "total": ms, and what was timed}."""
    twin = build(n_samples, scatter=scatter)
    times = twin.stage_times(repeats)
    return {
        "total": times.pop("total"),
        "stages": times,
        "n_samples": n_samples,
        "n_threads": twin.n_threads,
        "scatter": scatter,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--check", action="store_true", help="compare with float64 autograd first")
    parser.add_argument("--scatter", choices=("levels", "atomic", "both"), default="levels")
    arguments = parser.parse_args()
    variants = ["levels", "atomic"] if arguments.scatter == "both" else [arguments.scatter]
    if arguments.check:
        for scatter in variants:
            for name, error in check(scatter=scatter).items():
                print(f"{scatter:>8} {name:<12} relative error {error:.1e}")
    results = [run(arguments.repeats, arguments.samples, scatter) for scatter in variants]
    first = results[0]
    threads, version = first["n_threads"], first["torch"]
    print(f"{first['n_samples']} samples a step, {threads} threads, torch {version}, median ms")
    print(f"{'scatter':<16}" + "".join(f"{result['scatter']:>10}" for result in results))
    for name in STAGES:
        print(f"{name:<16}" + "".join(f"{result['stages'][name]:>10.1f}" for result in results))
    print(f"{'total':<16}" + "".join(f"{result['total']:>10.1f}" for result in results))


if __name__ == "__main__":
    main()
