"""pyngp bench: times training stage by stage, beside a PyTorch version of the same work where torch is installed."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from pyngp import Testbed, _core
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.demo_scene import write_demo_scene
from pyngp.report import process_seconds, training_report

BATCH = 65536
SAMPLES_PER_RAY = 16
WARMUP_STEPS = 256


class Task(str, Enum):
    nerf = "nerf"


def samples_along_rays(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions and directions (n,3), NGP space: runs of 16 march steps from random points, random directions."""
    rng = np.random.default_rng(seed)
    rays = -(-n // SAMPLES_PER_RAY)
    origin = rng.uniform(0.25, 0.75, (rays, 3))
    direction = rng.normal(size=(rays, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    t = np.arange(SAMPLES_PER_RAY) * np.sqrt(3) / 1024
    positions = origin[:, None] + direction[:, None] * t[None, :, None]
    directions = np.repeat(direction, SAMPLES_PER_RAY, axis=0)
    return positions.reshape(-1, 3)[:n].astype(np.float32), directions[:n].astype(np.float32)


def _median_ms(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each function, called in sequence as in a training step."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(repeats + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def model_times(repeats: int, seed: int) -> tuple[dict[str, float], float]:
    """Stage times of the model's work on BATCH samples (ms), and the machine's GFLOP/s in the same matrix kernels."""
    positions, directions = samples_along_rays(BATCH, seed)
    gradient = np.random.default_rng(seed).normal(size=(BATCH, 4)).astype(np.float32) * 1e-3
    model = _core.stages.Model(_core.base_nerf_config(), 1, positions, directions, gradient, seed)
    alone = _median_ms({"encode": model.encode, "forward": model.forward}, repeats)
    whole = _median_ms(
        {"both": model.forward_backward, "scatter": model.scatter, "optimizer": model.optimize},
        repeats,
    )
    stages = {
        "grid_forward": alone["encode"],
        "mlp_forward": alone["forward"] - alone["encode"],
        "mlp_backward": whole["both"] - alone["forward"],
        "grid_backward": whole["scatter"],
        "optimizer": whole["optimizer"],
        "total": sum(whole.values()),
    }
    return stages, _core.stages.gemm_peak_gflops(0.5)


def find_twin(path: Path | None) -> ModuleType | None:
    """The PyTorch twin, tests/benchmarks/torch_twin.py of the source tree, if it and torch are there."""
    if path is None:
        path = Path("tests/benchmarks/torch_twin.py")
    if not path.is_file() or importlib.util.find_spec("torch") is None:
        return None
    spec = importlib.util.spec_from_file_location("torch_twin", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def step_times(testbed: Testbed, steps: int) -> dict[str, float]:
    """Whole training steps of BATCH samples (ms a step by stage), after a warm-up."""
    testbed.fit(WARMUP_STEPS, batch_size=BATCH)
    before = testbed.stats()
    testbed.fit(steps, batch_size=BATCH)
    after = testbed.stats()
    stages = {k: (v - before["stages"][k]) / steps for k, v in after["stages"].items()}
    return {
        **stages,
        "ms_per_step": 1000 * (after["train_seconds"] - before["train_seconds"]) / steps,
    }


def bench(
    task: Annotated[Task, typer.Option("--task", help="What to time")] = Task.nerf,
    scene: Annotated[Path | None, typer.Option("--scene", help="Scene to train on [default: the demo's]")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to time, after 256 to warm up")] = 96,
    repeats: Annotated[int, typer.Option("--repeats", min=1)] = 15,
    twin: Annotated[Path | None, typer.Option("--twin", help="PyTorch version [default: the source tree's]")] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Time training on 65,536 samples a step: by stage, in whole steps, and the same work in PyTorch if it is there."""
    output = Output(quiet)
    with tempfile.TemporaryDirectory() as folder:
        if scene is None:
            scene = Path(folder) / "transforms_train.json"
            write_demo_scene(Path(folder), size=160, n_train=48, n_test=1, seed=seed)
        testbed = Testbed(data=scene, device=device, seed=seed)
    startup_seconds = process_seconds()
    model, peak = model_times(repeats, seed)
    whole = step_times(testbed, steps)
    torch_twin = find_twin(twin)
    others: dict[str, dict[str, float]] = {}
    if torch_twin is not None:
        for scatter in ("levels", "atomic"):
            run = torch_twin.run(repeats=repeats, n_samples=BATCH, scatter=scatter)
            others[f"PyTorch {run['torch']}, {scatter}"] = {**run["stages"], "total": run["total"]}

    table = Table("stage", "ms", *others, title=f"{BATCH} samples, ms")
    for stage, ms in model.items():
        cells = [f"{o[stage]:.1f} ({o[stage] / ms:.1f}x)" for o in others.values()]
        table.add_row(stage, f"{ms:.1f}", *cells)
    output.console.print(table)
    stats = testbed.stats()
    matrix_gflop = BATCH * 2 * (32 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 3) * 3e-9
    achieved = matrix_gflop / (model["mlp_forward"] + model["mlp_backward"]) * 1000
    overhead = (whole["marching_ms"] + whole["occupancy_ms"]) / whole["ms_per_step"]
    output.say(
        f"networks: {achieved:.0f} GFLOP/s, {100 * achieved / peak:.0f}% of the {peak:.0f} measured here\n"
        f"whole step: {whole['ms_per_step']:.1f} ms, {stats['samples_per_step']} samples, "
        f"{stats['rays_per_step']} rays; occupancy {whole['occupancy_ms']:.1f}, "
        f"rays to gradients {whole['rays_to_gradients_ms']:.1f} (marching {whole['marching_ms']:.1f}), "
        f"scatter {whole['scatter_ms']:.1f}, optimizer {whole['optimizer_ms']:.1f}\n"
        f"marching and occupancy: {100 * overhead:.0f}% of the step"
    )
    result = training_report(testbed, "base", seed)
    result |= {
        "startup_seconds": startup_seconds,
        "steps": steps,
        "train_seconds": whole["ms_per_step"] * steps / 1000,
        "ms_per_step": whole["ms_per_step"],
        "model_ms_per_step": model["total"],
        "model_stages_ms": model,
        "stages_ms": whole,
        "mlp_gflops": achieved,
        "peak_gflops": peak,
        "twins_ms": others,
    }
    output.report(report, result)
